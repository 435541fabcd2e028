//! The gradients of Softmax and LogSoftmax, from their outputs.

use smallvec::{SmallVec, smallvec};

use super::{Function, Softmax};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{around, axis, same_type};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] =
    &[Rule::new("Softmax", softmax), Rule::new("LogSoftmax", softmax), Rule::new("Hardmax", |_, _, _| Ok(Vec::new()))];

static GRADIENT: OpDef = own("SoftmaxGradient");

fn softmax(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let softmax = concrete::<Softmax>(op)?;
    let op = SoftmaxGradient { log: matches!(softmax.function, Function::LogSoftmax), axis: softmax.axis, flattens: softmax.flattens };
    Ok(vec![Some(emit.one(&GRADIENT, op, &[at.g()?, at.y(0)?])?)])
}

/// Inputs: the gradient of the output, the output.
#[derive(Debug)]
struct SoftmaxGradient {
    log: bool,
    axis: i64,
    flattens: bool,
}

impl SoftmaxGradient {
    /// `p (g - Σ g p)`, or `g - exp(y) Σ g` of the logarithm.
    fn run_typed<T: Scalar>(&self, g: View<'_>, y: View<'_>, x: &mut [T]) -> Result<(), OpError> {
        let shape = g.shape();
        // Before opset 13 the axis may be the rank: rows of one element.
        let at = if self.flattens && self.axis == shape.len() as i64 { shape.len() } else { axis(self.axis, shape.len())? };
        let (size, inner) = match (self.flattens, shape.get(at..)) {
            (true, Some(row)) => (row.iter().product(), 1),
            _ => {
                let (_, size, inner) = around(shape, at);
                (size, inner)
            }
        };
        let (g, y) = (g.slice::<T>()?, y.slice::<T>()?);
        if x.is_empty() {
            return Ok(());
        }
        let block = size * inner;
        let mut sums: SmallVec<[f64; 16]> = smallvec![0.0; inner];
        for ((x, g), y) in x.chunks_exact_mut(block).zip(g.chunks_exact(block)).zip(y.chunks_exact(block)) {
            sums.fill(0.0);
            for (i, (g, y)) in g.iter().zip(y).enumerate() {
                sums[i % inner] += g.wide() * if self.log { 1.0 } else { y.wide() };
            }
            for (i, ((x, g), y)) in x.iter_mut().zip(g).zip(y).enumerate() {
                let (g, y, sum) = (g.wide(), y.wide(), sums[i % inner]);
                *x = T::of(if self.log { g - y.exp() * sum } else { y * (g - sum) });
            }
        }
        Ok(())
    }
}

impl Op for SoftmaxGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, inputs.at(1)?);
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, y, outputs.at(0)?.slice()?))
    }
}
