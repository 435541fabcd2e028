//! What is applied to a finished output tile while it is still in the cache: scale, bias, activation.

use std::ops::Range;

use super::vector::math;

/// `y = activation(alpha * x + bias)`, or `y = activation(x + bias + y)`, applied to each element of a product once its sum over `k` is complete.
///
/// With FMA `alpha * x + bias` is rounded once. The default leaves the product as it is.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Factor on the product.
    pub alpha: f32,
    /// Added after scaling.
    pub bias: Bias<'a>,
    /// Whether the product is added to what the output holds, a residual connection; `alpha` is 1 then.
    pub adds: bool,
    /// Applied last.
    pub activation: Activation,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { alpha: 1.0, bias: Bias::None, adds: false, activation: Activation::None }
    }
}

/// A vector added to every row or to every column of the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bias<'a> {
    /// Nothing is added.
    None,
    /// One value per output column (length `n`): dense layers.
    PerColumn(&'a [f32]),
    /// One value per output row (length `m`): convolution channels.
    PerRow(&'a [f32]),
}

impl<'a> Bias<'a> {
    /// Panics unless the length fits an output of `m` rows and `n` columns.
    pub(crate) fn check(&self, m: usize, n: usize) {
        match self {
            Bias::None => {}
            Bias::PerColumn(values) => {
                assert_eq!(values.len(), n, "bias per column: length against columns")
            }
            Bias::PerRow(values) => {
                assert_eq!(values.len(), m, "bias per row: length against rows")
            }
        }
    }

    /// The bias of the tile that starts at `(row, column)` and has `rows` × `columns` elements.
    #[inline]
    pub(crate) fn tile(&self, row: usize, rows: usize, column: usize, columns: usize) -> Bias<'a> {
        match self {
            Bias::None => Bias::None,
            Bias::PerColumn(values) => Bias::PerColumn(&values[column..column + columns]),
            Bias::PerRow(values) => Bias::PerRow(&values[row..row + rows]),
        }
    }
}

/// An elementwise function that can follow a product. Errors are those of the functions in [`super::vector`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x` if `x >= 0`, else `alpha * x`.
    LeakyRelu {
        /// Slope for negative values.
        alpha: f32,
    },
    /// `min(max(x, min), max)`.
    Clip {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `x * sigmoid(x)`, also called Swish.
    Silu,
    /// `x * Φ(x)` with the normal distribution function Φ.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
    /// `max(0, min(1, alpha * x + beta))`.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// `x * max(0, min(1, x / 6 + 1 / 2))`.
    HardSwish,
}

impl Activation {
    /// The bounds of one that is a pair of them; the identity has infinite ones.
    #[inline]
    pub(crate) fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Activation::None => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Clip { min, max } => Some((min, max)),
            _ => None,
        }
    }
}

/// Applies the activation in place; inlined into feature-gated callers, so that each gets its own vector code.
#[inline(always)]
pub(crate) fn activate<const FMA: bool>(activation: Activation, x: &mut [f32]) {
    let columns = x.len();
    activate_each::<FMA>(activation, x, (1, columns.max(1)), 0..columns);
}

/// [`activate`] of some columns of `rows` rows that lie `pitch` apart. Rows behind a tile are short: which function it is is asked once.
#[inline(always)]
pub(crate) fn activate_each<const FMA: bool>(activation: Activation, y: &mut [f32], (rows, pitch): (usize, usize), columns: Range<usize>) {
    macro_rules! each {
        ($map:path, $f:expr) => {
            for row in y.chunks_mut(pitch).take(rows) {
                $map(&mut row[columns.clone()], $f);
            }
        };
    }
    match activation {
        Activation::None => {}
        Activation::Relu => each!(math::map_short_in_place, math::relu),
        Activation::LeakyRelu { alpha } => each!(math::map_short_in_place, |v| if v < 0.0 { alpha * v } else { v }),
        Activation::Clip { min, max } => each!(math::map_short_in_place, |v| math::clamp(v, min, max)),
        Activation::Sigmoid => each!(math::map_in_place, math::sigmoid::<FMA>),
        Activation::Tanh => each!(math::map_in_place, math::tanh::<FMA>),
        Activation::Silu => each!(math::map_in_place, math::silu::<FMA>),
        Activation::Gelu => each!(math::map_in_place, math::gelu::<FMA>),
        Activation::GeluTanh => each!(math::map_in_place, math::gelu_tanh::<FMA>),
        Activation::HardSigmoid { alpha, beta } => {
            each!(math::map_in_place, |v| math::clamp(math::fma::<FMA>(alpha, v, beta), 0.0, 1.0));
        }
        Activation::HardSwish => {
            each!(math::map_in_place, |v| v * math::clamp(math::fma::<FMA>(v, 1.0 / 6.0, 0.5), 0.0, 1.0));
        }
    }
}
