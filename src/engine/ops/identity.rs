//! Operators whose output is their input: Identity, and Dropout as it serves.

use super::ANY;
use crate::engine::attrs::Attrs;
use crate::engine::op::{Context, Facts, Inputs, Op, OpDef, OpError, Outputs, Shape, types};

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Identity", domain: "", opsets: 1..=ANY, types: types::ALL, build: |_| Ok(Box::new(Identity)) },
    OpDef { name: "Dropout", domain: "", opsets: 7..=ANY, types: types::FLOATS, build: dropout },
];

/// Passes its input on.
#[derive(Debug)]
pub(crate) struct Identity;

/// Dropout at inference is the identity. Its mask output exists only for training.
fn dropout(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    attrs.ignore(&["ratio", "seed"]);
    if attrs.outputs.len() > 1 {
        return Err(OpError::unsupported("the mask output is not supported"));
    }
    if attrs.inputs.get(2) == Some(&true) {
        return Ok(Box::new(ServedDropout));
    }
    Ok(Box::new(Identity))
}

impl Op for Identity {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.data().copy_from(0, &inputs.at(0)?.data());
        Ok(())
    }

    fn alias(&self) -> Option<usize> {
        Some(0)
    }
}

/// Dropout with a `training_mode` input: the identity, provided that the mode is off.
#[derive(Debug)]
struct ServedDropout;

impl Op for ServedDropout {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        if inputs.at(2)?.slice::<bool>()?.first() == Some(&true) {
            return Err(OpError::unsupported("training mode is not supported"));
        }
        outputs.at(0)?.data().copy_from(0, &inputs.at(0)?.data());
        Ok(())
    }
}
