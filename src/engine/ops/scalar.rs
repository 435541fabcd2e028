//! The two types that gradients compute in, f32 and f64, with products by the fast kernels for f32.

use std::cell::Cell;
use std::iter::Sum;
use std::ops::AddAssign;

use num_traits::Float;

use super::product::{Left, Right, multiply, transpose};
use crate::engine::dtype::Element;
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::{gemm, gemm_generic};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::Context;

/// The operands of a product `[m, k] · [k, n]`, each dense and perhaps given transposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a, T> {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) left: &'a [T],
    pub(crate) left_transposed: bool,
    pub(crate) right: &'a [T],
    pub(crate) right_transposed: bool,
}

/// f32 or f64.
pub(crate) trait Scalar: Element + Float + AddAssign + Sum {
    fn of(value: f64) -> Self;

    fn wide(self) -> f64;

    /// The sum in a fixed order.
    fn total(isa: Isa, values: &[Self]) -> Self;

    /// `c = left · right` on all threads.
    fn product(product: Product<'_, Self>, c: &mut [Self], ctx: &mut Context<'_>);

    /// Calls `work` with lists of this thread, which it keeps for the next call: of anything.
    fn with_lists<R>(work: impl FnOnce(&mut [Vec<Self>; 3]) -> R) -> R;

    /// `c = left · right` on this thread.
    fn product_here(product: Product<'_, Self>, c: &mut [Self], isa: Isa, scratch: &mut Vec<Self>);
}

thread_local! {
    static LISTS_F32: Cell<[Vec<f32>; 3]> = const { Cell::new([const { Vec::new() }; 3]) };
    static LISTS_F64: Cell<[Vec<f64>; 3]> = const { Cell::new([const { Vec::new() }; 3]) };
}

impl Scalar for f32 {
    fn with_lists<R>(work: impl FnOnce(&mut [Vec<Self>; 3]) -> R) -> R {
        let mut lists = LISTS_F32.take();
        let found = work(&mut lists);
        LISTS_F32.set(lists);
        found
    }

    fn of(value: f64) -> Self {
        value as Self
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn total(isa: Isa, values: &[Self]) -> Self {
        vector::sum(isa, values)
    }

    fn product(product: Product<'_, Self>, c: &mut [Self], ctx: &mut Context<'_>) {
        let Product { m, k, n, left, left_transposed, right, right_transposed } = product;
        let right = Right::Plain { data: right, transposed: right_transposed, n };
        multiply(Left { data: left, transposed: left_transposed, m, k }, right, &Epilogue::default(), c, ctx);
    }

    fn product_here(product: Product<'_, Self>, c: &mut [Self], isa: Isa, scratch: &mut Vec<Self>) {
        let Product { m, k, n, left, left_transposed, right, right_transposed } = product;
        gemm(isa, m, k, n, left, left_transposed, right, right_transposed, c, &Epilogue::default(), scratch);
    }
}

impl Scalar for f64 {
    fn with_lists<R>(work: impl FnOnce(&mut [Vec<Self>; 3]) -> R) -> R {
        let mut lists = LISTS_F64.take();
        let found = work(&mut lists);
        LISTS_F64.set(lists);
        found
    }

    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    fn total(_: Isa, values: &[Self]) -> Self {
        values.iter().sum()
    }

    fn product(product: Product<'_, Self>, c: &mut [Self], ctx: &mut Context<'_>) {
        Self::product_here(product, c, ctx.isa, &mut Vec::new());
    }

    fn product_here(product: Product<'_, Self>, c: &mut [Self], _: Isa, scratch: &mut Vec<Self>) {
        let Product { m, k, n, left, left_transposed, right, right_transposed } = product;
        let mut straight = Vec::new();
        if left_transposed {
            transpose(left, k, m, &mut straight);
        }
        if right_transposed {
            transpose(right, n, k, scratch);
        }
        let left = if left_transposed { &straight } else { left };
        let right = if right_transposed { &*scratch } else { right };
        gemm_generic::<f64, f64, f64>(m, k, n, left, right, c);
    }
}

/// Runs `$body` with the alias `$t` bound to f32 or f64.
macro_rules! with_scalar {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::engine::dtype::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::engine::dtype::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err($crate::engine::op::OpError::wrong_type($crate::engine::dtype::DType::F32, other)),
        }
    };
}
pub(crate) use with_scalar;
