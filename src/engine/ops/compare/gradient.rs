//! The gradient of a choice.

use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule};
use crate::engine::op::{Op, OpError};
use crate::engine::ops::sum_to::sum_to;

pub(crate) const RULES: &[Rule] = &[Rule::new("Where", choose)];

fn choose(_: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let (condition, g) = (at.x(0)?, at.g()?);
    let zero = emit.number(g, 0.0)?;
    at.each(|i| {
        let taken = if i == 1 { [condition, g, zero] } else { [condition, zero, g] };
        let share = emit.op("Where", &taken)?;
        sum_to(emit, share, at.x(i)?)
    })
}
