//! The gradient of Pad: what was copied to several places adds up where it came from.

use super::Pad;
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, require, same_type, size, strides};
use crate::engine::ops::own;
use crate::engine::ops::scalar::with_scalar;
use crate::engine::tensor::Kind;

pub(crate) const RULES: &[Rule] = &[Rule::new("Pad", pad)];

static GRADIENT: OpDef = own("PadGradient");

fn pad(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let Pad { mode, attributes } = concrete::<Pad>(op)?;
    if at.wants(2) {
        return Err(OpError::unsupported("the value that Pad fills with has no gradient"));
    }
    let mut inputs = vec![Some(at.g()?), Some(emit.shape(at.x(0)?)?)];
    // The padding and its axes; the value does not count.
    inputs.extend([1, 3].map(|i| at.inputs.get(i).copied().flatten()));
    let op = PadGradient(Pad { mode: *mode, attributes: attributes.clone() });
    Ok(vec![Some(emit.own(&GRADIENT, Box::new(op), &inputs, 1)?[0])])
}

/// Inputs: the gradient of the output, the shape of the input, the padding and its axes as the operator has them.
#[derive(Debug)]
struct PadGradient(Pad);

impl Op for PadGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.ints(1)?.into_iter().map(size).collect::<Result<_, _>>()?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        let shape = Shape::from(y.shape());
        let operand = |i: usize| inputs.get(if i == 1 { 2 } else { i }).map(|v| ints(v).map(|v| v.to_vec())).transpose();
        let pads = self.0.pads(shape.len(), operand)?;
        let sources: Vec<Vec<Option<usize>>> = (0..shape.len()).map(|d| self.0.sources(shape[d], pads[d].0, g.shape()[d])).collect();
        let (from, to) = (strides(g.shape()), strides(&shape));
        with_scalar!(g.dtype(), T => {
            let (values, y) = (g.slice::<T>()?, y.slice::<T>()?);
            y.fill(num_traits::Zero::zero());
            for (i, &value) in values.iter().enumerate() {
                let place = (0..shape.len()).try_fold(0, |sum, d| Some(sum + sources[d][i / from[d] % g.shape()[d]]? * to[d]));
                if let Some(place) = place {
                    y[place] += value;
                }
            }
            Ok(())
        })
    }
}
