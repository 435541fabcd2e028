//! The gradient of Dropout: what was kept, by the same factor. The node must list its mask.

use std::sync::atomic::AtomicU64;

use super::Dropout;
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type};
use crate::engine::ops::identity::Identity;
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] = &[Rule::new("Dropout", dropout)];

static GRADIENT: OpDef = own("DropoutGradient");

fn dropout(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    if op.downcast::<Identity>().is_some() {
        return Ok(vec![Some(at.g()?)]);
    }
    let Dropout { mode, ratio, seed, bool_mask, .. } = *concrete::<Dropout>(op)?;
    let input = |i: usize| at.inputs.get(i).copied().flatten();
    let inputs = [Some(at.g()?), input(1), input(2), Some(at.y(1)?)];
    let op = DropoutGradient(Dropout { mode, ratio, seed, bool_mask, runs: AtomicU64::default() });
    Ok(vec![Some(emit.own(&GRADIENT, Box::new(op), &inputs, 1)?[0])])
}

/// Inputs: the gradient of the output, the ratio and the mode as the operator has them, the mask.
#[derive(Debug)]
struct DropoutGradient(Dropout);

/// Whether each element was kept.
fn kept(mask: View<'_>) -> Result<Vec<bool>, OpError> {
    if mask.dtype() == DType::Bool {
        return Ok(mask.slice::<bool>()?.to_vec());
    }
    with_scalar!(mask.dtype(), T => Ok(mask.slice::<T>()?.iter().map(|v| v.wide() != 0.0).collect()))
}

impl Op for DropoutGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(&inputs[3..], 1)?;
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (g, kept) = (inputs.at(0)?, kept(inputs.at(3)?)?);
        let factor = if self.0.trains(inputs)? { self.0.ratio(inputs)?.1 } else { 1.0 };
        with_scalar!(g.dtype(), T => {
            for ((y, g), &kept) in outputs.at(0)?.slice::<T>()?.iter_mut().zip(g.slice::<T>()?).zip(&kept) {
                *y = if kept { T::of(g.wide() * factor) } else { num_traits::Zero::zero() };
            }
            Ok(())
        })
    }
}
