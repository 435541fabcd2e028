//! The gradient of MatMul, whatever the ranks of its operands: `dA = G Bᵀ` and `dB = Aᵀ G`, summed over what was broadcast.

use super::{MatMul, Sizes, sizes, starts};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type, size};
use crate::engine::ops::own;
use crate::engine::ops::product::flops;
use crate::engine::ops::scalar::{Product, Scalar, with_scalar};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const RULES: &[Rule] = &[Rule::new("MatMul", matmul)];

static LEFT: OpDef = own("MatMulGradientLeft");
static RIGHT: OpDef = own("MatMulGradientRight");

fn matmul(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    if concrete::<MatMul>(op)?.activation != Activation::None {
        return Err(OpError::unsupported("a fused activation has no gradient: differentiate the graph before it is optimised"));
    }
    let g = at.g()?;
    at.each(|i| {
        let (side, def) = if i == 0 { (Side::Left, &LEFT) } else { (Side::Right, &RIGHT) };
        let shape = emit.shape(at.x(i)?)?;
        emit.one(def, MatMulGradient(side), &[g, at.x(1 - i)?, shape])
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// The gradient of one operand. Inputs: that of the product, the other operand, and the shape of this one.
#[derive(Debug)]
struct MatMulGradient(Side);

impl MatMulGradient {
    fn sizes(&self, other: &[usize], own: &[usize]) -> Result<Sizes, OpError> {
        if self.0 == Side::Left { sizes(own, other) } else { sizes(other, own) }
    }

    fn run_typed<T: Scalar>(&self, g: View<'_>, other: View<'_>, y: &mut ViewMut<'_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let own = Shape::from(y.shape());
        let Sizes { batch, m, k, n, .. } = self.sizes(other.shape(), &own)?;
        let (g, x, y) = (g.slice::<T>()?, other.slice::<T>()?, y.slice::<T>()?);
        if g.is_empty() || y.is_empty() {
            y.fill(T::zero());
            return Ok(());
        }
        let product = |m, g, x| match self.0 {
            Side::Left => Product { m, k: n, n: k, left: g, left_transposed: false, right: x, right_transposed: true },
            Side::Right => Product { m: k, k: m, n, left: x, left_transposed: true, right: g, right_transposed: false },
        };
        // One matrix on the right: all rows of the left batch form one matrix.
        if (if self.0 == Side::Left { x.len() } else { y.len() }) == k * n {
            let rows = g.len() / n;
            T::product(product(rows, g, x), y, ctx);
            return Ok(());
        }
        y.fill(T::zero());
        let (own_len, other_len) = if self.0 == Side::Left { (m * k, k * n) } else { (k * n, m * k) };
        let (to, from) = (starts(&batch, &own, own_len), starts(&batch, other.shape(), other_len));
        let mut part = vec![T::zero(); own_len];
        let mut scratch = Vec::new();
        for (number, (&to, &from)) in to.iter().zip(&from).enumerate() {
            let g = &g[number * m * n..][..m * n];
            T::product_here(product(m, g, &x[from..from + other_len]), &mut part, ctx.isa, &mut scratch);
            y[to..to + own_len].iter_mut().zip(&part).for_each(|(y, &part)| *y += part);
        }
        Ok(())
    }
}

impl Op for MatMulGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let own: Shape = inputs.ints(2)?.into_iter().map(size).collect::<Result<_, _>>()?;
        let sizes = self.sizes(inputs.shape(1)?, &own)?;
        if sizes.shape.as_slice() != inputs.shape(0)? {
            return Err(OpError::shape(format!("a gradient of shape {:?} for a product of shape {:?}", inputs.shape(0)?, sizes.shape)));
        }
        Ok(vec![own])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, other) = (inputs.at(0)?, inputs.at(1)?);
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, other, outputs.at(0)?, ctx))
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let Ok(own) = inputs.ints(2) else { return 0 };
        let own: Shape = own.into_iter().map(|n| n.max(0) as usize).collect();
        let sizes = inputs.shape(1).and_then(|other| self.sizes(other, &own));
        sizes.map_or(0, |s| flops(s.m, s.k, s.n).saturating_mul(s.batch.iter().product::<usize>() as u64))
    }
}
