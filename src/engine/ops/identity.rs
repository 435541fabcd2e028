//! Identity, whose output is its input.

pub(crate) mod gradient;

use super::ANY;
use crate::engine::op::{Context, Facts, Inputs, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Value;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Identity", domain: "", opsets: 1..=ANY, types: types::ALL, build: |_| Ok(Box::new(Identity)) },
];

/// Passes its input on.
#[derive(Debug)]
pub(crate) struct Identity;

impl Op for Identity {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.data().copy_from(0, &inputs.at(0)?.data());
        Ok(())
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], _: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let value = inputs.first().copied().flatten().ok_or_else(|| OpError::missing_input(0))?;
        Ok(vec![value.clone()])
    }

    fn alias(&self) -> Option<usize> {
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};

    #[test]
    fn any_type_passes() {
        assert_eq!(op("Identity").one(&[&tensor(&[1], &["a".to_owned()])]), tensor(&[1], &["a".to_owned()]));
    }
}
