//! Gradients of conversions between floating-point types.

use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule};
use crate::engine::attrs::Attr;
use crate::engine::op::{Op, OpError};

pub(crate) const RULES: &[Rule] = &[Rule::new("Cast", cast), Rule::new("CastLike", cast)];

fn cast(_: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let to = emit.dtype(at.x(0)?)?;
    Ok(vec![Some(emit.with("Cast", &[("to", Attr::Int(to.onnx().into()))], &[at.g()?])?)])
}
