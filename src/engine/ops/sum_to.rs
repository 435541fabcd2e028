//! The transpose of broadcasting: a gradient summed to the shape of the operand that was repeated.

use super::axes::{ints, require, same_type};
use super::broadcast::{self, Broadcast};
use super::own;
use super::scalar::{Scalar, with_scalar};
use crate::engine::adjoint::{Emit, ValueId};
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

static SUM_TO: OpDef = own("SumTo");

/// `gradient` summed to the shape of `operand`.
pub(crate) fn sum_to(emit: &mut dyn Emit, gradient: ValueId, operand: ValueId) -> Result<ValueId, OpError> {
    let shape = emit.shape(operand)?;
    emit.one(&SUM_TO, SumTo, &[gradient, shape])
}

/// Input 0 summed to the shape that is input 1, which broadcasts to its own.
#[derive(Debug)]
struct SumTo;

fn run<T: Scalar>(g: View<'_>, y: &mut ViewMut<'_>, isa: Isa) -> Result<(), OpError> {
    let plan = Broadcast::new(g.shape(), [y.shape()]);
    let (g, y) = (g.slice::<T>()?, y.slice::<T>()?);
    y.fill(T::zero());
    plan.for_each(|run| {
        let g = &g[run.start..run.start + run.len];
        if run.moves[0] {
            y[run.from[0]..].iter_mut().zip(g).for_each(|(y, &g)| *y += g);
        } else {
            y[run.from[0]] += T::total(isa, g);
        }
    });
    Ok(())
}

impl Op for SumTo {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (from, to) = (inputs.shape(0)?, inputs.ints(1)?);
        let to: Shape = to.into_iter().map(super::axes::size).collect::<Result<_, _>>()?;
        match broadcast::shape([from, &to]) {
            Ok(common) if common.as_slice() == from => Ok(vec![to]),
            _ => Err(OpError::shape(format!("{from:?} is no broadcast form of {to:?}"))),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        ints(inputs.at(1)?)?;
        if g.len() == y.shape().iter().product::<usize>() {
            y.data().copy_from(0, &g.data());
            return Ok(());
        }
        with_scalar!(g.dtype(), T => run::<T>(g, y, ctx.isa))
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    /// As many elements in as out: nothing was repeated.
    fn run_in_place(&self, _: usize, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Ok(())
    }
}
