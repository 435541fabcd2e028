//! Activations of sums of bf16 products, with AVX-512 intrinsics, as exact as those sums are: a number of bf16 has 8 bits, and these
//! are right to 12 and more, where the functions of [`super::super::vector`] are right to 22 and take three times as long.
//!
//! The coefficients were fitted for this crate by iteratively reweighted least squares, as those of f32.

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_fmadd_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_rcp14_ps, _mm512_roundscale_ps, _mm512_scalef_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_sub_ps, _mm512_ternarylogic_epi32,
};
use std::f32::consts::LOG2_E;

use crate::engine::kernels::epilogue::Activation;

/// A function of a value. What is not here is finished by the portable code.
#[derive(Clone, Copy, Debug)]
pub(super) enum Function {
    Identity,
    /// Between two bounds.
    Bounds(f32, f32),
    /// Relative error at most 2^-12 down to 2^-126, absolute below; exactly zero from -89 on.
    Sigmoid,
    /// Relative error at most 2^-12.
    Tanh,
    /// Relative error as that of the sigmoid; NaN at minus infinity.
    Silu,
    /// Absolute error at most 2^-13 |x|; NaN at minus infinity.
    Gelu,
    /// As [`Function::Gelu`], against its own formula.
    GeluTanh,
}

impl Function {
    pub(super) fn of(activation: Activation) -> Option<Function> {
        Some(match activation {
            Activation::None => Function::Identity,
            Activation::Relu => Function::Bounds(0.0, f32::INFINITY),
            Activation::Clip { min, max } => Function::Bounds(min, max),
            Activation::Sigmoid => Function::Sigmoid,
            Activation::Tanh => Function::Tanh,
            Activation::Silu => Function::Silu,
            Activation::Gelu => Function::Gelu,
            Activation::GeluTanh => Function::GeluTanh,
            Activation::LeakyRelu { .. } | Activation::HardSigmoid { .. } | Activation::HardSwish => return None,
        })
    }

    /// NaN for NaN.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn of_value(self, x: __m512) -> __m512 {
        match self {
            Function::Identity => x,
            // The second operand is the answer if either is NaN.
            Function::Bounds(low, high) => _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x)),
            Function::Sigmoid => sigmoid_base_2(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E))),
            Function::Tanh => tanh(x),
            Function::Silu => _mm512_mul_ps(x, sigmoid_base_2(_mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E)))),
            Function::Gelu => _mm512_mul_ps(x, sigmoid_base_2(_mm512_mul_ps(x, normal_exponent(x)))),
            Function::GeluTanh => {
                // 2 sqrt(2 / pi) (x + 0.044715 x^3), to the base 2.
                const LINEAR: f32 = -1.595_769 * LOG2_E;
                const CUBIC: f32 = 0.044_715 * LINEAR;
                let slope = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(CUBIC), _mm512_set1_ps(LINEAR));
                _mm512_mul_ps(x, sigmoid_base_2(_mm512_mul_ps(x, slope)))
            }
        }
    }
}

/// `(2^f - 1) / f` for `|f| <= 1/2`, relative error 1.5e-5.
const POLY_EXP2: [f32; 4] = [0.693_136_9, 0.240_232_53, 0.055_837_292, 0.009_618_106];

/// `-log2(Φ(x) / Φ(-x)) / x` in `x^2` for `|x| <= 6` with the normal distribution function Φ: `x Φ(x)` is right to 2.2e-5 `|x|`.
const POLY_NORMAL: [f32; 3] = [-1.595_512 * LOG2_E, -0.073_505_014 * LOG2_E, 0.000_614_590_07 * LOG2_E];

/// Its slope stays what it is at 6 beyond.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn normal_exponent(x: __m512) -> __m512 {
    let square = _mm512_min_ps(_mm512_set1_ps(36.0), _mm512_mul_ps(x, x));
    let slope = _mm512_fmadd_ps(_mm512_set1_ps(POLY_NORMAL[2]), square, _mm512_set1_ps(POLY_NORMAL[1]));
    _mm512_fmadd_ps(slope, square, _mm512_set1_ps(POLY_NORMAL[0]))
}

/// A number `t` as a whole one and the rest `f`, and `2^f - 1`. Limited to what still makes a power of two infinite or zero, since
/// infinity has no rest; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn split(t: __m512) -> (__m512, __m512) {
    let t = _mm512_min_ps(_mm512_set1_ps(200.0), _mm512_max_ps(_mm512_set1_ps(-200.0), t));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
    let f = _mm512_sub_ps(t, whole);
    let mut p = _mm512_set1_ps(POLY_EXP2[3]);
    for coefficient in [POLY_EXP2[2], POLY_EXP2[1], POLY_EXP2[0]] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(coefficient));
    }
    (whole, _mm512_mul_ps(p, f))
}

/// `1 / (1 + 2^t)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn sigmoid_base_2(t: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let (whole, rest) = split(t);
    let power = _mm512_scalef_ps(_mm512_add_ps(rest, one), whole);
    _mm512_rcp14_ps(_mm512_add_ps(power, one))
}

/// `tanh(x) = -m / (m + 2)` of the sign of `x` with `m = exp(-2|x|) - 1`, which does not cancel near zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn tanh(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let (whole, rest) = split(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-2.0 * LOG2_E)));
    let scale = _mm512_scalef_ps(one, whole);
    let m = _mm512_fmadd_ps(rest, scale, _mm512_sub_ps(scale, one));
    let magnitude = _mm512_mul_ps(m, _mm512_rcp14_ps(_mm512_add_ps(m, _mm512_set1_ps(2.0))));
    // The sign bit of x, the others of the magnitude, whose own sign is that of m: never positive.
    const SIGN_OF_FIRST: i32 = 0xca;
    let sign = _mm512_set1_epi32(i32::MIN);
    _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<SIGN_OF_FIRST>(sign, _mm512_castps_si512(x), _mm512_castps_si512(magnitude)))
}
