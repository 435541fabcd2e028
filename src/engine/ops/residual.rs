//! A residual connection: what an Add that was fused into a product brings to it (`optimize/fuse_activation.rs`).
//!
//! The sum of a product starts from it, in place where the plan allows. Where the product broadcasts within a sample, which no network
//! does, the sum is what Add makes of both.

use super::arithmetic::Arithmetic;
use super::broadcast::{Broadcast, map};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::vector::{Binary, activation_in_place};
use crate::engine::op::{Context, Inputs, Op, OpError, Outputs};
use crate::engine::view::{Slice, View};

/// The residual of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Residual<'a> {
    None,
    /// An operand.
    Given(View<'a>),
    /// Output 0 holds it already.
    InPlace,
}

/// How a product ends: whether it is added to what the output holds, and the activation after that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) adds: bool,
    pub(crate) activation: Activation,
}

/// Writes `activation(product + residual)` into output 0. `multiply` computes the product, of `shape`.
///
/// A row's bits do not depend on how many rows there are, even if one of the two has a single row for all: the sums start from
/// the residual whatever broadcasts along the first dimensions.
pub(crate) fn finish(
    residual: Residual<'_>,
    shape: &[usize],
    activation: Activation,
    outputs: &mut Outputs<'_, '_>,
    ctx: &mut Context<'_>,
    mut multiply: impl FnMut(&mut [f32], End, &mut Context<'_>) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let y = outputs.at(0)?;
    let adds = !matches!(residual, Residual::None);
    let inner = &shape[shape.iter().take_while(|&&n| n == 1).count()..];
    if !adds || y.shape().ends_with(inner) {
        if let Residual::Given(view) = residual {
            let plan = Broadcast::new(y.shape(), [view.shape()]);
            map(&plan, view.slice::<f32>()?, y.slice()?, |&held, y| *y = held);
        }
        let y = y.slice::<f32>()?;
        let len = shape.iter().product::<usize>().max(1);
        return y.chunks_exact_mut(len).try_for_each(|y| multiply(y, End { adds, activation }, ctx));
    }
    let mut product = vec![0.0; shape.iter().product()];
    multiply(&mut product, End { adds: false, activation: Activation::None }, ctx)?;
    let product = View::new(Slice::F32(&product), shape);
    let add = Arithmetic(Binary::Add);
    match residual {
        Residual::Given(view) => add.run(&Inputs(&[Some(product), Some(view)]), outputs, ctx)?,
        _ => add.run_in_place(1, &Inputs(&[Some(product), None]), outputs, ctx)?,
    }
    activation_in_place(ctx.isa, activation, outputs.at(0)?.slice()?);
    Ok(())
}
