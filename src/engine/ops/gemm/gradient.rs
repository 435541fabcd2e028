//! The gradient of Gemm, out of Gemm: `Y = alpha · A' B' + beta · C`, where `A'` and `B'` may be transposed.

use super::Gemm;
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, ValueId, concrete};
use crate::engine::attrs::Attr;
use crate::engine::kernels::epilogue::Activation;
use crate::engine::op::{Op, OpError};
use crate::engine::ops::sum_to::sum_to;

pub(crate) const RULES: &[Rule] = &[Rule::new("Gemm", gemm)];

fn gemm(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let gemm = concrete::<Gemm>(op)?;
    if gemm.activation != Activation::None {
        return Err(OpError::unsupported("a fused activation has no gradient: differentiate the graph before it is optimised"));
    }
    let (g, a, b) = (at.g()?, at.x(0)?, at.x(1)?);
    let product = |emit: &mut dyn Emit, (left, trans_a): (ValueId, bool), (right, trans_b): (ValueId, bool)| {
        let attrs = [("alpha", Attr::Float(gemm.alpha)), ("transA", Attr::Int(trans_a.into())), ("transB", Attr::Int(trans_b.into()))];
        emit.with("Gemm", &attrs, &[left, right])
    };
    at.each(|i| match (i, gemm.trans_a, gemm.trans_b) {
        // dA' = G B'ᵀ and dB' = A'ᵀ G, and their transposes.
        (0, false, trans_b) => product(emit, (g, false), (b, !trans_b)),
        (0, true, trans_b) => product(emit, (b, trans_b), (g, true)),
        (1, trans_a, false) => product(emit, (a, !trans_a), (g, false)),
        (1, trans_a, true) => product(emit, (g, true), (a, trans_a)),
        _ => {
            let summed = sum_to(emit, g, at.x(2)?)?;
            emit.scale(summed, f64::from(gemm.beta))
        }
    })
}
