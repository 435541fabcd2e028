//! Elementwise maths and reductions over `f32` slices.
//!
//! Every function takes the instruction set as its first argument ([`Isa::best`] outside tests) and panics if slice lengths
//! disagree. Error bounds are in ULP of the exact result, seen over the whole domain; they hold for every instruction set.
//! Subnormal results are produced, not flushed. A NaN gives a NaN.

pub(crate) mod math;
mod reduce;

pub(crate) use reduce::dot_body;
pub use reduce::{layer_norm_row, max, softmax_row, softmax_row_in_place, sum, sum_of_squared_deviations};

use super::epilogue::{Activation, activate};
use super::isa::{Isa, instantiate};

/// Declares an elementwise function in its two forms over one body from [`math`].
macro_rules! elementwise {
    ($(#[$doc:meta])* $name:ident, $in_place:ident, $f:expr) => {
        $(#[$doc])*
        pub fn $name(isa: Isa, x: &[f32], y: &mut [f32]) {
            #[inline(always)]
            fn body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
                math::map(x, y, $f);
            }
            assert_eq!(x.len(), y.len(), "input and output lengths differ");
            instantiate!(isa, body, (x: &[f32], y: &mut [f32]));
        }

        #[doc = concat!("[`", stringify!($name), "`] in place.")]
        pub fn $in_place(isa: Isa, x: &mut [f32]) {
            #[inline(always)]
            fn body<const FMA: bool>(x: &mut [f32]) {
                math::map_in_place(x, $f);
            }
            instantiate!(isa, body, (x: &mut [f32]));
        }
    };
}

elementwise! {
    /// `y = exp(x)`, within 1 ULP; overflows to infinity, underflows through the subnormals to 0.
    exp, exp_in_place, math::exp::<FMA>
}
elementwise! {
    /// `y = 1 / (1 + exp(-x))`, within 3 ULP.
    sigmoid, sigmoid_in_place, math::sigmoid::<FMA>
}
elementwise! {
    /// `y = tanh(x)`, within 2 ULP; exactly ±1 at ±infinity.
    tanh, tanh_in_place, math::tanh::<FMA>
}
elementwise! {
    /// `y = erf(x)`, within 2 ULP; exactly ±1 at ±infinity.
    erf, erf_in_place, math::erf::<FMA>
}
elementwise! {
    /// `y = x * sigmoid(x)`, within 4 ULP where `x >= -87`; below that the sigmoid is subnormal, and the absolute error stays
    /// under 1e-42.
    silu, silu_in_place, math::silu::<FMA>
}
elementwise! {
    /// `y = x * (1 + erf(x / sqrt(2))) / 2`, with an absolute error of at most `2e-7 * max(|x|, 1)`. Not a bound in ULP:
    /// `1 + erf` cancels for negative `x`, as it does in the reference definition of the operator.
    gelu, gelu_in_place, math::gelu::<FMA>
}
elementwise! {
    /// The tanh approximation of [`gelu`], with an absolute error of at most `2e-7 * max(|x|, 1)` against its own formula.
    gelu_tanh, gelu_tanh_in_place, math::gelu_tanh::<FMA>
}
/// `y = max(x, 0)`, exact.
pub fn relu(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "input and output lengths differ");
    instantiate!(isa, relu_body, (x: &[f32], y: &mut [f32]));
}

/// [`relu`] in place.
pub fn relu_in_place(isa: Isa, x: &mut [f32]) {
    activation_in_place(isa, Activation::Relu, x);
}

#[inline(always)]
fn relu_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = math::relu(*x));
}

/// Applies an [`Activation`] in place: the same functions a product's epilogue applies.
pub fn activation_in_place(isa: Isa, activation: Activation, x: &mut [f32]) {
    #[inline(always)]
    fn body<const FMA: bool>(activation: Activation, x: &mut [f32]) {
        activate::<FMA>(activation, x);
    }
    instantiate!(isa, body, (activation: Activation, x: &mut [f32]));
}

/// The operation of [`binary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// The greater of the two; NaN if either is NaN.
    Max,
    /// The smaller of the two; NaN if either is NaN.
    Min,
}

/// One side of [`binary`]: a slice of the output's length or one value for all elements.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// An element per output element.
    Slice(&'a [f32]),
    /// The same value for every output element.
    Scalar(f32),
}

/// `y = a op b`, element by element; each is correctly rounded.
pub fn binary(isa: Isa, op: Binary, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]) {
    for operand in [a, b] {
        if let Operand::Slice(values) = operand {
            assert_eq!(values.len(), y.len(), "operand and output lengths differ");
        }
    }
    instantiate!(isa, binary_body, (op: Binary, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]));
}

/// `x = x op b` in place.
pub fn binary_in_place(isa: Isa, op: Binary, x: &mut [f32], b: Operand<'_>) {
    if let Operand::Slice(values) = b {
        assert_eq!(values.len(), x.len(), "operand and output lengths differ");
    }
    instantiate!(isa, binary_in_place_body, (op: Binary, x: &mut [f32], b: Operand<'_>));
}

#[inline(always)]
fn binary_body<const FMA: bool>(op: Binary, a: Operand<'_>, b: Operand<'_>, y: &mut [f32]) {
    match op {
        Binary::Add => zip(a, b, y, |a, b| a + b),
        Binary::Sub => zip(a, b, y, |a, b| a - b),
        Binary::Mul => zip(a, b, y, |a, b| a * b),
        Binary::Div => zip(a, b, y, |a, b| a / b),
        Binary::Max => zip(a, b, y, math::greater),
        Binary::Min => zip(a, b, y, math::smaller),
    }
}

#[inline(always)]
fn binary_in_place_body<const FMA: bool>(op: Binary, x: &mut [f32], b: Operand<'_>) {
    match op {
        Binary::Add => zip_in_place(x, b, |a, b| a + b),
        Binary::Sub => zip_in_place(x, b, |a, b| a - b),
        Binary::Mul => zip_in_place(x, b, |a, b| a * b),
        Binary::Div => zip_in_place(x, b, |a, b| a / b),
        Binary::Max => zip_in_place(x, b, math::greater),
        Binary::Min => zip_in_place(x, b, math::smaller),
    }
}

#[inline(always)]
fn zip(a: Operand<'_>, b: Operand<'_>, y: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Operand::Slice(a), Operand::Slice(b)) => y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = f(*a, *b)),
        (Operand::Slice(a), Operand::Scalar(b)) => y.iter_mut().zip(a).for_each(|(y, a)| *y = f(*a, b)),
        (Operand::Scalar(a), Operand::Slice(b)) => y.iter_mut().zip(b).for_each(|(y, b)| *y = f(a, *b)),
        (Operand::Scalar(a), Operand::Scalar(b)) => y.fill(f(a, b)),
    }
}

#[inline(always)]
fn zip_in_place(x: &mut [f32], b: Operand<'_>, f: impl Fn(f32, f32) -> f32) {
    match b {
        Operand::Slice(b) => x.iter_mut().zip(b).for_each(|(x, b)| *x = f(*x, *b)),
        Operand::Scalar(b) => x.iter_mut().for_each(|x| *x = f(*x, b)),
    }
}
