//! A residual connection: what an Add that was fused into a product brings to it (`optimize/fuse_activation.rs`).
//!
//! Where the shapes are equal, as they are in networks, the sum of a product starts from it, in place where the plan allows.
//! Otherwise one broadcasts, and the sum is what Add makes of both.

use super::arithmetic::Arithmetic;
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
pub(crate) fn finish(
    residual: Residual<'_>,
    shape: &[usize],
    activation: Activation,
    outputs: &mut Outputs<'_, '_>,
    ctx: &mut Context<'_>,
    multiply: impl FnOnce(&mut [f32], End, &mut Context<'_>) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let y = outputs.at(0)?;
    let whole = y.shape().iter().product::<usize>() == shape.iter().product::<usize>();
    match residual {
        Residual::None => return multiply(y.slice()?, End { adds: false, activation }, ctx),
        Residual::InPlace if whole => return multiply(y.slice()?, End { adds: true, activation }, ctx),
        Residual::Given(view) if whole && view.len() == y.shape().iter().product::<usize>() => {
            let y = y.slice::<f32>()?;
            y.copy_from_slice(view.slice()?);
            return multiply(y, End { adds: true, activation }, ctx);
        }
        _ => {}
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
