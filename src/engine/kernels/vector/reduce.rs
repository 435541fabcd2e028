//! Reductions over one row: sum, maximum, and the rows built from them (softmax, layer normalisation).
//!
//! A sum runs in [`LANES`] partial sums, element `i` in lane `i % LANES`, which are then added in pairs. The order depends on
//! the length alone, so a row's result does not depend on where the row lies.

use super::math::{self, LANES};
use crate::engine::kernels::isa::{Isa, instantiate};

/// The sum of the elements; 0 for an empty slice. Error at most `(len / 16 + 5) * 2^-24 * sum(|x|)`.
pub fn sum(isa: Isa, x: &[f32]) -> f32 {
    instantiate!(isa, sum_body, (x: &[f32]) -> f32)
}

/// The greatest element; minus infinity for an empty slice, NaN if any element is NaN.
pub fn max(isa: Isa, x: &[f32]) -> f32 {
    instantiate!(isa, max_body, (x: &[f32]) -> f32)
}

/// `sum((x - mean)^2)`: the numerator of the variance.
pub fn sum_of_squared_deviations(isa: Isa, x: &[f32], mean: f32) -> f32 {
    instantiate!(isa, squares_body, (x: &[f32], mean: f32) -> f32)
}

/// `y = exp(x - max(x)) / sum(exp(x - max(x)))` over one row. A row of nothing but minus infinity, or with a NaN or plus
/// infinity in it, gives NaN, as the definition does. Each element within `(len / 16 + 9)` ULP of the exact quotient taken
/// over the rounded differences `x - max(x)`.
pub fn softmax_row(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "input and output lengths differ");
    y.copy_from_slice(x);
    softmax_row_in_place(isa, y);
}

/// [`softmax_row`] in place.
pub fn softmax_row_in_place(isa: Isa, x: &mut [f32]) {
    instantiate!(isa, softmax_body, (x: &mut [f32]));
}

/// `y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias` over one row; all slices have one length, an empty `bias`
/// stands for zeros. The variance is taken about the mean in a second pass.
pub fn layer_norm_row(isa: Isa, x: &[f32], scale: &[f32], bias: &[f32], epsilon: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "input and output lengths differ");
    assert_eq!(x.len(), scale.len(), "input and scale lengths differ");
    assert!(bias.is_empty() || bias.len() == x.len(), "input and bias lengths differ");
    type Affine<'a> = (&'a [f32], &'a [f32]);
    let affine: Affine<'_> = (scale, bias);
    instantiate!(isa, layer_norm_body, (x: &[f32], affine: Affine<'_>, epsilon: f32, y: &mut [f32]));
}

/// Folds the row into lanes with `step`; a tail is padded with `fill`, which must be neutral.
#[inline(always)]
fn fold(x: &[f32], start: f32, fill: f32, step: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (steps, tail) = x.as_chunks::<LANES>();
    for values in steps {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], values[i]);
        }
    }
    if !tail.is_empty() {
        let values = math::padded(tail, fill);
        for i in 0..LANES {
            lanes[i] = step(lanes[i], values[i]);
        }
    }
    lanes
}

/// Combines the lanes in pairs: 16 to 8 to 4 to 2 to 1.
#[inline(always)]
fn join(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum_body<const FMA: bool>(x: &[f32]) -> f32 {
    join(fold(x, 0.0, 0.0, |a, b| a + b), |a, b| a + b)
}

/// The sum of products, in lanes as a sum; both slices have one length. Error at most `(len / 16 + 6) * 2^-24 * sum(|a * b|)`.
#[inline(always)]
pub(crate) fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a_steps, a_tail), (b_steps, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_steps.iter().zip(b_steps) {
        for i in 0..LANES {
            lanes[i] = math::fma::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    if !a_tail.is_empty() {
        let (a, b) = (math::padded(a_tail, 0.0), math::padded(b_tail, 0.0));
        for i in 0..LANES {
            lanes[i] = math::fma::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    join(lanes, |a, b| a + b)
}

#[inline(always)]
fn max_body<const FMA: bool>(x: &[f32]) -> f32 {
    join(fold(x, f32::NEG_INFINITY, f32::NEG_INFINITY, math::greater), math::greater)
}

#[inline(always)]
fn squares_body<const FMA: bool>(x: &[f32], mean: f32) -> f32 {
    // The tail is padded with the mean itself, whose deviation is zero.
    let lanes = fold(x, 0.0, mean, |sum, v| math::fma::<FMA>(v - mean, v - mean, sum));
    join(lanes, |a, b| a + b)
}

#[inline(always)]
fn softmax_body<const FMA: bool>(x: &mut [f32]) {
    let greatest = max_body::<FMA>(x);
    math::map_in_place(x, |v| math::exp_negative::<FMA>(v - greatest));
    let total = sum_body::<FMA>(x);
    // One division for all: a unit divides 16 numbers in the time of 16 products of so many.
    let inverse = 1.0 / total;
    math::map_short_in_place(x, |v| v * inverse);
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(x: &[f32], (scale, bias): (&[f32], &[f32]), epsilon: f32, y: &mut [f32]) {
    let count = x.len() as f32;
    let mean = sum_body::<FMA>(x) / count;
    let variance = squares_body::<FMA>(x, mean) / count;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    if bias.is_empty() {
        for i in 0..y.len() {
            y[i] = (x[i] - mean) * inverse * scale[i];
        }
    } else {
        for i in 0..y.len() {
            y[i] = math::fma::<FMA>((x[i] - mean) * inverse, scale[i], bias[i]);
        }
    }
}
