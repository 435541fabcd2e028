//! The floating-point types that recurrent and attention operators compute in: f32 by the fast kernels, f64 by plain loops.
//!
//! f16 and bf16 operands are widened to f32; where the standard's reference rounds an intermediate result to the narrow type, the
//! operator does so by [`Rounding`].

use std::borrow::Cow;
use std::fmt::Debug;

use half::{bf16, f16};

use super::number::{Number, with_float};
use super::product::multiply_packed;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::gemm_generic;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::kernels::weights::{Precision, Weights};
use crate::engine::op::OpError;
use crate::engine::threads::Threads;
use crate::engine::view::{View, ViewMut};

/// f32 or f64.
pub(crate) trait Real: Number {
    /// A right operand `[k, n]` of a product, laid out as the product wants it.
    type Packed: Debug + Send + Sync;

    /// Lays out `b`, which is `[k, n]`, or `[n, k]` if `transposed`; f32 rounded to a precision.
    fn pack(precision: Precision, isa: Isa, b: &[Self], k: usize, n: usize, transposed: bool) -> Self::Packed;

    /// Bytes that a laid out operand takes.
    fn packed_bytes(packed: &Self::Packed) -> usize;

    /// `c[m, n] = a[m, k] · b` on one thread. The bits of a row depend on that row alone.
    fn multiply(a: &[Self], m: usize, b: &Self::Packed, c: &mut [Self]);

    /// `c[m, n] = a[m, k] · b + bias` on as many threads as it is worth; a bias has `n` elements.
    fn project(a: &[Self], m: usize, b: &Self::Packed, bias: Option<&[Self]>, c: &mut [Self], threads: &Threads);

    /// `x = 1 / (1 + exp(-x))`.
    fn sigmoid(isa: Isa, x: &mut [Self]);

    /// `x = tanh(x)`.
    fn tanh(isa: Isa, x: &mut [Self]);

    /// `x = exp(x)`.
    fn exp(isa: Isa, x: &mut [Self]);

    /// The greatest element; minus infinity if there is none, NaN if one is NaN.
    fn max(isa: Isa, x: &[Self]) -> Self;

    /// The sum in a fixed order.
    fn sum(isa: Isa, x: &[Self]) -> Self;

    /// The softmax of a row that has more than minus infinity in it.
    fn softmax_row(isa: Isa, x: &mut [Self]);
}

impl Real for f32 {
    type Packed = Weights;

    fn pack(precision: Precision, isa: Isa, b: &[f32], k: usize, n: usize, transposed: bool) -> Weights {
        Weights::pack(precision, isa, b, k, n, transposed)
    }

    fn packed_bytes(packed: &Weights) -> usize {
        packed.bytes()
    }

    fn multiply(a: &[f32], m: usize, b: &Weights, c: &mut [f32]) {
        if m > 0 && b.n() > 0 {
            b.multiply(a, m, c, &Epilogue::default());
        }
    }

    fn project(a: &[f32], m: usize, b: &Weights, bias: Option<&[f32]>, c: &mut [f32], threads: &Threads) {
        let epilogue = Epilogue { bias: bias.map_or(Bias::None, Bias::PerColumn), ..Epilogue::default() };
        multiply_packed(a, m, b, &epilogue, c, threads);
    }

    fn sigmoid(isa: Isa, x: &mut [f32]) {
        vector::activation_in_place(isa, Activation::Sigmoid, x);
    }

    fn tanh(isa: Isa, x: &mut [f32]) {
        vector::activation_in_place(isa, Activation::Tanh, x);
    }

    fn exp(isa: Isa, x: &mut [f32]) {
        vector::exp_in_place(isa, x);
    }

    fn max(isa: Isa, x: &[f32]) -> f32 {
        vector::max(isa, x)
    }

    fn sum(isa: Isa, x: &[f32]) -> f32 {
        vector::sum(isa, x)
    }

    fn softmax_row(isa: Isa, x: &mut [f32]) {
        vector::softmax_row_in_place(isa, x);
    }
}

/// A right operand as it is, row by row.
#[derive(Debug)]
pub(crate) struct Rows {
    k: usize,
    n: usize,
    data: Vec<f64>,
}

impl Real for f64 {
    type Packed = Rows;

    fn pack(_: Precision, _: Isa, b: &[f64], k: usize, n: usize, transposed: bool) -> Rows {
        let mut data = Vec::new();
        if transposed {
            super::product::transpose(b, n, k, &mut data);
        } else {
            data.extend_from_slice(b);
        }
        Rows { k, n, data }
    }

    fn packed_bytes(packed: &Rows) -> usize {
        size_of_val(packed.data.as_slice())
    }

    fn multiply(a: &[f64], m: usize, b: &Rows, c: &mut [f64]) {
        gemm_generic::<f64, f64, f64>(m, b.k, b.n, a, &b.data, c);
    }

    fn project(a: &[f64], m: usize, b: &Rows, bias: Option<&[f64]>, c: &mut [f64], _: &Threads) {
        Self::multiply(a, m, b, c);
        let Some(bias) = bias else { return };
        for row in c.chunks_exact_mut(b.n.max(1)) {
            row.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
    }

    fn sigmoid(_: Isa, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
    }

    fn tanh(_: Isa, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = x.tanh());
    }

    fn exp(_: Isa, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = x.exp());
    }

    fn max(_: Isa, x: &[f64]) -> f64 {
        x.iter().copied().fold(f64::NEG_INFINITY, Number::greater)
    }

    fn sum(_: Isa, x: &[f64]) -> f64 {
        x.iter().sum()
    }

    fn softmax_row(isa: Isa, x: &mut [f64]) {
        let greatest = <Self as Real>::max(isa, x);
        x.iter_mut().for_each(|x| *x = (*x - greatest).exp());
        let sum = <Self as Real>::sum(isa, x);
        x.iter_mut().for_each(|x| *x /= sum);
    }
}

/// Runs `$body` with the alias `$t` bound to the type that computes for a floating-point element type: f64 for f64, else f32.
macro_rules! with_real {
    ($dtype:expr, $t:ident => $body:expr) => {{
        if $dtype == $crate::engine::dtype::DType::F64 {
            type $t = f64;
            $body
        } else {
            type $t = f32;
            $body
        }
    }};
}
pub(crate) use with_real;

/// The elements of a floating-point operand in the type that computes.
pub(crate) fn widen<R: Real>(view: View<'_>) -> Result<Cow<'_, [R]>, OpError> {
    if view.dtype() == R::DTYPE {
        return Ok(Cow::Borrowed(view.slice::<R>()?));
    }
    with_float!(view.dtype(), T => Ok(Cow::Owned(view.slice::<T>()?.iter().map(|v| R::from_f64(v.to_f64())).collect())),
        else Err(OpError::wrong_type(R::DTYPE, view.dtype())))
}

/// The elements of an operand that may be omitted.
pub(crate) fn widen_some<R: Real>(view: Option<View<'_>>) -> Result<Option<Cow<'_, [R]>>, OpError> {
    view.map(widen).transpose()
}

/// Writes results, rounded to the type of `y`.
pub(crate) fn store<R: Real>(from: &[R], y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let dtype = y.dtype();
    if dtype == R::DTYPE {
        y.slice::<R>()?.copy_from_slice(from);
        return Ok(());
    }
    with_float!(dtype, T => {
        y.slice::<T>()?.iter_mut().zip(from).for_each(|(y, v)| *y = T::from_f64(v.to_f64()));
        Ok(())
    }, else Err(OpError::wrong_type(R::DTYPE, dtype)))
}

/// To which narrower type intermediate results are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    None,
    F16,
    BF16,
}

impl Rounding {
    /// The rounding that an element type asks for.
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            _ => Self::None,
        }
    }

    /// Rounds every element.
    pub(crate) fn apply<R: Real>(self, x: &mut [R]) {
        match self {
            Self::None => {}
            Self::F16 => x.iter_mut().for_each(|x| *x = R::from_f64(<f16 as Number>::from_f64(x.to_f64()).to_f64())),
            Self::BF16 => x.iter_mut().for_each(|x| *x = R::from_f64(<bf16 as Number>::from_f64(x.to_f64()).to_f64())),
        }
    }

    /// One number, rounded.
    pub(crate) fn one<R: Real>(self, x: R) -> R {
        let mut x = [x];
        self.apply(&mut x);
        x[0]
    }
}

/// The softmax of a row, rounded after every step as the reference does; a row of nothing but minus infinity gives zeros. `sink` is a
/// score that counts, but has no place.
pub(crate) fn softmax<R: Real>(isa: Isa, rounding: Rounding, x: &mut [R], sink: Option<R>) {
    rounding.apply(x);
    let mut greatest = R::max(isa, x);
    if let Some(sink) = sink {
        greatest = greatest.greater(sink);
    }
    if greatest == R::LOWEST {
        return x.fill(R::ZERO);
    }
    if rounding == Rounding::None && sink.is_none() {
        return R::softmax_row(isa, x);
    }
    x.iter_mut().for_each(|x| *x = x.sub(greatest));
    rounding.apply(x);
    R::exp(isa, x);
    rounding.apply(x);
    let mut sum = R::sum(isa, x);
    if let Some(sink) = sink {
        let mut own = [sink.sub(greatest)];
        R::exp(isa, &mut own);
        sum = sum.add(own[0]);
    }
    let sum = rounding.one(sum);
    x.iter_mut().for_each(|x| *x = Number::div(*x, sum));
    rounding.apply(x);
}

/// A buffer of zeros for intermediate results; an error, not an abort, if there is no room for it.
pub(crate) fn buffer<R: Real>(dims: &[usize]) -> Result<Vec<R>, OpError> {
    let len = super::axes::product(dims)?;
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| OpError::shape(format!("there is no room for intermediate results of shape {dims:?}")))?;
    values.resize(len, R::ZERO);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_types_multiply_alike() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, -1.0, 2.0, 1.0, 0.5];
        let want = [-2.0, 5.5, -2.0, 16.0];
        let wide = f64::pack(Precision::F32, Isa::best(), &b, 3, 2, true);
        let mut c = [0.0; 4];
        f64::multiply(&a, 2, &wide, &mut c);
        assert_eq!(c, want);
        let narrow = f32::pack(Precision::F32, Isa::best(), &b.map(|v| v as f32), 3, 2, true);
        let mut c = [0.0_f32; 4];
        f32::multiply(&a.map(|v| v as f32), 2, &narrow, &mut c);
        assert_eq!(c, want.map(|v| v as f32));
    }

    #[test]
    fn a_buffer_beyond_memory_is_an_error() {
        assert!(buffer::<f32>(&[usize::MAX, 2]).is_err());
        assert!(buffer::<f32>(&[usize::MAX / 8]).is_err());
        assert_eq!(buffer::<f64>(&[2, 0]).unwrap().len(), 0);
    }
}
