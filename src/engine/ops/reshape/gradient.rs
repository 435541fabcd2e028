//! Gradients of other shapes for the same elements.

use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule};
use crate::engine::op::{Op, OpError};

pub(crate) const RULES: &[Rule] =
    &[Rule::new("Reshape", back), Rule::new("Flatten", back), Rule::new("Squeeze", back), Rule::new("Unsqueeze", back)];

fn back(_: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    Ok(vec![Some(emit.reshape_like(at.g()?, at.x(0)?)?)])
}
