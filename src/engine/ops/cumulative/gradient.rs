//! The gradient of running sums: running sums from the other end.

use super::{Cumulate, Join};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::attrs::Attr;
use crate::engine::op::{Op, OpError};

pub(crate) const RULES: &[Rule] = &[Rule::new("CumSum", cumulate)];

fn cumulate(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let &Cumulate { ref join, exclusive, reverse } = concrete(op)?;
    if !matches!(join, Join::Sum) {
        return Err(OpError::unsupported("running products have no gradient"));
    }
    let attrs = [("exclusive", Attr::Int(exclusive.into())), ("reverse", Attr::Int((!reverse).into()))];
    Ok(vec![Some(emit.with("CumSum", &attrs, &[at.g()?, at.x(1)?])?)])
}
