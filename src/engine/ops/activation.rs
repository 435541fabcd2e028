//! Activations.

use super::ANY;
use crate::engine::op::{Context, Facts, Inputs, Op, OpDef, OpError, Outputs, Shape, types};

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "Relu", domain: "", opsets: 1..=ANY, types: types::FLOATS, build: |_| Ok(Box::new(Relu)) }];

#[derive(Debug)]
struct Relu;

impl Op for Relu {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        for (y, x) in outputs.at(0)?.slice::<f32>()?.iter_mut().zip(inputs.at(0)?.slice::<f32>()?) {
            *y = x.max(0.0);
        }
        Ok(())
    }
}
