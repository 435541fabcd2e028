//! Constant: a tensor in the graph itself.

use smallvec::smallvec;

use super::ANY;
use crate::engine::attrs::Attrs;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::{Kind, Tensor};

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "Constant", domain: "", opsets: 1..=ANY, types: &[], build }];

#[derive(Debug)]
struct Constant {
    value: Tensor,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let value = if let Some(tensor) = attrs.tensor("value")? {
        tensor
    } else if let Some(value) = attrs.float("value_float")? {
        Tensor::scalar(value)
    } else if let Some(values) = attrs.floats("value_floats")? {
        Tensor::vector(values)
    } else if let Some(value) = attrs.int("value_int")? {
        Tensor::scalar(value)
    } else if let Some(values) = attrs.ints("value_ints")? {
        Tensor::vector(values)
    } else if let Some(value) = attrs.string("value_string")? {
        Tensor::scalar(value)
    } else if let Some(values) = attrs.strings("value_strings")? {
        Tensor::vector(values)
    } else {
        return Err(OpError::Attribute("none of the attributes that hold a value is given".into()));
    };
    Ok(Box::new(Constant { value }))
}

impl Op for Constant {
    fn kinds(&self, _: &[Option<Kind>]) -> Result<Kinds, OpError> {
        Ok(smallvec![Kind::Tensor(self.value.dtype())])
    }

    fn shapes(&self, _: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![self.value.shape().into()])
    }

    fn run(&self, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.data().copy_from(0, &self.value.data());
        Ok(())
    }

    fn values_from_shapes(&self, _: &Facts<'_>) -> Option<Vec<Tensor>> {
        Some(vec![self.value.clone()])
    }
}
