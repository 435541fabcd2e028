//! The functions on one `f32`, written without branches so that loops over them become vector code.
//!
//! Every function is `#[inline(always)]`: it takes on the instruction set of the feature-gated caller. The same operations
//! run on every lane and on padded tails, so a value's result does not depend on its position. The polynomials were fitted
//! for this crate by iteratively reweighted least squares (minimax in the relative error) against 40-digit references.

/// Elements handled by one unrolled step: one 512-bit or two 256-bit registers. A tail is padded to a full step.
pub(crate) const LANES: usize = 16;

/// `a * b + c`, rounded once if `FMA`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `c[0] + c[1] x + c[2] x² + …`, of an odd number of terms: pairs by Horner's rule in `x²`, which waits half as often for the sum before as
/// the rule in `x`, and that for the last step, which decides the rounding. A loop and not a fold from the right: that adaptor is a call of
/// its own where the compiler does not inline it, and a call neither takes on the caller's instruction set nor leaves vector code around it.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    const { assert!(N % 2 == 1 && N >= 3, "one term and pairs") }
    let square = x * x;
    let mut i = N - 2;
    let mut sum = fma::<FMA>(coefficients[N - 1], x, coefficients[i]);
    while i > 1 {
        i -= 2;
        sum = fma::<FMA>(sum, square, fma::<FMA>(coefficients[i + 1], x, coefficients[i]));
    }
    fma::<FMA>(sum, x, coefficients[0])
}

/// `x` limited to `[low, high]`; NaN stays NaN (unlike `f32::max` and `f32::min`).
#[inline(always)]
pub(crate) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// The greater of the two; NaN if either is NaN.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if (a > b) | a.is_nan() { a } else { b }
}

/// The smaller of the two; NaN if either is NaN.
#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if (a < b) | a.is_nan() { a } else { b }
}

/// `max(x, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// `exp(x)`: `2^n * exp(r)` with `|r| <= ln(2) / 2` (Cody and Waite's reduction).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these the result is 0 or infinity; limiting keeps `n` within what the two scale factors can represent.
    let (p, n) = reduced::<FMA>(clamp(x, -105.0, 90.0));
    // 2^n in two factors: the first product is exact, so a subnormal result is rounded once.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// [`exp`] of an `x` that is not above 0, to the bit, in fewer steps: only one end can leave what is normal.
#[inline(always)]
pub(crate) fn exp_negative<const FMA: bool>(x: f32) -> f32 {
    let (p, n) = reduced::<FMA>(if x < -105.0 { -105.0 } else { x });
    // As above, of which one factor is the same for all.
    p * power_of_two(n.wrapping_add(64)) * power_of_two(-64)
}

/// `exp(r)` and `n` of [`exp`].
#[inline(always)]
fn reduced<const FMA: bool>(x: f32) -> (f32, i32) {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln(2) in two parts; the first has few enough bits for `n * LN2_HIGH` to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let r = fma::<FMA>(n, -LN2_HIGH, x);
    let r = fma::<FMA>(n, -LN2_LOW, r);
    let p = polynomial::<FMA, _>(&POLY_EXP, r);
    let p = fma::<FMA>(p * r, r, r) + 1.0;
    (p, (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32))
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + exp(-x))`, from `exp(-|x|)`, which cannot overflow.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    let e = exp_negative::<FMA>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// `tanh(x)`: an odd polynomial near 0 (where the other form cancels), `1 - 2 / (exp(2|x|) + 1)` elsewhere.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let magnitude = x.abs();
    let z = x * x;
    let p = polynomial::<FMA, _>(&POLY_TANH, z);
    let near = fma::<FMA>(p * z, x, x);
    let far = (1.0 - 2.0 / (exp::<FMA>(2.0 * magnitude) + 1.0)).copysign(x);
    if magnitude < 0.625 { near } else { far }
}

/// The error function: an odd polynomial near 0, `1 - exp(ln(erfc|x|))` elsewhere.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let p = polynomial::<FMA, _>(&POLY_ERF, z);
    let near = fma::<FMA>(p, x, x);
    // From 4 on erf rounds to 1; limiting keeps the polynomial inside the range it was fitted for.
    let t = clamp(x.abs(), 0.0, 4.0);
    let s = polynomial::<FMA, _>(&POLY_ERFC, t);
    let far = (1.0 - exp_negative::<FMA>(fma::<FMA>(s, t, -t))).copysign(x);
    if x.abs() < 0.93 { near } else { far }
}

/// `x * sigmoid(x)`; NaN at minus infinity, as that product is. Where `x` is so low that it would magnify what is left of the other factor,
/// that is 0 by rounding; so it is in the two functions below.
#[inline(always)]
pub(crate) fn silu<const FMA: bool>(x: f32) -> f32 {
    x * sigmoid::<FMA>(x)
}

/// `x * (1 + erf(x / sqrt(2))) / 2`; NaN at minus infinity, as that product is.
#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x * (1 + tanh(u)) / 2 = x * sigmoid(2u)` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`; NaN at
/// minus infinity, as that product is.
#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWICE_SQRT_2_OVER_PI * fma::<FMA>(0.044_715 * x * x, x, x);
    x * sigmoid::<FMA>(u)
}

/// Replaces every element by `f` of it, for an `f` of one or two instructions. (The compiler unrolls a fixed number of such
/// steps before it looks for vectors, and then finds none; a loop of unknown length it does turn into vector code.)
#[inline(always)]
pub(crate) fn map_short_in_place(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in x {
        *v = f(*v);
    }
}

/// Replaces every element by `f` of it, for an `f` long enough that a padded step is cheaper than a scalar tail.
#[inline(always)]
pub(crate) fn map_in_place(x: &mut [f32], f: impl Fn(f32) -> f32) {
    let (steps, tail) = x.as_chunks_mut::<LANES>();
    for step in steps {
        for v in step.iter_mut() {
            *v = f(*v);
        }
    }
    if !tail.is_empty() {
        let mut step = padded(tail, 0.0);
        for v in step.iter_mut() {
            *v = f(*v);
        }
        tail.copy_from_slice(&step[..tail.len()]);
    }
}

/// Writes `f` of each element of `x` into `y`, which has the same length.
#[inline(always)]
pub(crate) fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    let (steps, tail) = x.as_chunks::<LANES>();
    let (out_steps, out_tail) = y.as_chunks_mut::<LANES>();
    for (step, out) in steps.iter().zip(out_steps) {
        for i in 0..LANES {
            out[i] = f(step[i]);
        }
    }
    if !tail.is_empty() {
        let mut step = padded(tail, 0.0);
        for v in step.iter_mut() {
            *v = f(*v);
        }
        out_tail.copy_from_slice(&step[..tail.len()]);
    }
}

/// A tail shorter than a step, filled up with `fill`.
#[inline(always)]
pub(crate) fn padded(tail: &[f32], fill: f32) -> [f32; LANES] {
    let mut step = [fill; LANES];
    step[..tail.len()].copy_from_slice(tail);
    step
}

/// `(exp(r) - 1 - r) / r^2` for `|r| <= ln(2) / 2`; relative error of the whole 3.1e-9.
const POLY_EXP: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_4, 0.008_368_85, 0.001_381_432];

/// `(tanh(x) - x) / x^3` in `z = x^2` for `|x| <= 0.625`; relative error of the whole 4.4e-9.
const POLY_TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_09, -0.005_704_99];

/// `erf(x) / x - 1` in `z = x^2` for `|x| <= 0.93`; relative error of the whole 4.6e-10.
const POLY_ERF: [f32; 7] = [0.128_379_17, -0.376_126_32, 0.112_836_875, -0.026_858_943, 0.005_199_907, -0.000_813_001_65, 0.000_083_167_89];

/// `ln(erfc(t)) / t + 1` for `0.93 <= t <= 4`; absolute error of `erfc` 6.4e-10.
const POLY_ERFC: [f32; 7] =
    [-0.128_657_79, -0.635_113_24, -0.106_300_36, 0.023_817_185, -0.003_668_719_7, 0.000_329_308, -0.000_011_885_327];
