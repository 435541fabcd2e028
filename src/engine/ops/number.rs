//! The arithmetic that generic operator bodies use: integers wrap, floats round, and nothing panics.

use half::{bf16, f16};

use crate::engine::dtype::Element;

/// A numeric element type. f16 and bf16 compute in f32 and round each result.
pub(crate) trait Number: Element + Copy + PartialOrd {
    const ZERO: Self;
    const ONE: Self;
    /// The smallest value: minus infinity for floats.
    const LOWEST: Self;
    /// The greatest value: infinity for floats.
    const HIGHEST: Self;
    /// Whether the type has fractions.
    const FLOAT: bool;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// The quotient, towards zero for integers; zero for an integer divided by zero, which callers refuse beforehand.
    fn div(self, other: Self) -> Self;
    /// The remainder with the sign of `self` (C's `%` and `fmod`); zero for an integer divisor of zero.
    fn fmod(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn neg(self) -> Self;
    fn nan(self) -> bool;
    fn to_f64(self) -> f64;
    /// The nearest value; integers truncate and saturate, NaN gives zero.
    fn from_f64(value: f64) -> Self;
    /// The value modulo 2^64 for integers; floats truncate and saturate.
    fn to_i64(self) -> i64;
    /// The value modulo the width for integers.
    fn from_i64(value: i64) -> Self;
    /// A number of the same order for every type: two zeros are equal, and all NaN are the greatest.
    fn key(self) -> u64;

    /// The remainder with the sign of `other` (Python's `%`), zeros of floats included.
    fn modulo(self, other: Self) -> Self {
        let remainder = self.fmod(other);
        if Self::FLOAT && remainder == Self::ZERO {
            return if other < Self::ZERO { Self::ZERO.neg() } else { Self::ZERO };
        }
        if remainder != Self::ZERO && (remainder < Self::ZERO) != (other < Self::ZERO) { remainder.add(other) } else { remainder }
    }

    /// -1, 0 or 1; NaN stays NaN.
    fn sign(self) -> Self {
        if self.nan() {
            self
        } else if self > Self::ZERO {
            Self::ONE
        } else if self < Self::ZERO {
            Self::ONE.neg()
        } else {
            Self::ZERO
        }
    }

    /// The greater; NaN if either is NaN.
    fn greater(self, other: Self) -> Self {
        if self > other || self.nan() { self } else { other }
    }

    /// The smaller; NaN if either is NaN.
    fn smaller(self, other: Self) -> Self {
        if self < other || self.nan() { self } else { other }
    }
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            const ZERO: Self = 0;
            const ONE: Self = 1;
            const LOWEST: Self = <$t>::MIN;
            const HIGHEST: Self = <$t>::MAX;
            const FLOAT: bool = false;

            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn div(self, other: Self) -> Self { if other == 0 { 0 } else { self.wrapping_div(other) } }
            fn fmod(self, other: Self) -> Self { if other == 0 { 0 } else { self.wrapping_rem(other) } }
            #[allow(unused_comparisons, reason = "the body is shared with unsigned types")]
            fn abs(self) -> Self { if self < 0 { self.wrapping_neg() } else { self } }
            fn neg(self) -> Self { self.wrapping_neg() }
            fn nan(self) -> bool { false }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(value: f64) -> Self { value as Self }
            fn to_i64(self) -> i64 { self as i64 }
            fn from_i64(value: i64) -> Self { value as Self }
            fn key(self) -> u64 { if Self::MIN == 0 { self as u64 } else { self as u64 ^ 1 << 63 } }
        }
    )*};
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! floats {
    ($($t:ty: $zero:expr, $one:expr, $abs:expr, $to:expr, $from:expr;)*) => {$(
        impl Number for $t {
            const ZERO: Self = $zero;
            const ONE: Self = $one;
            const LOWEST: Self = <$t>::NEG_INFINITY;
            const HIGHEST: Self = <$t>::INFINITY;
            const FLOAT: bool = true;

            fn add(self, other: Self) -> Self { self + other }
            fn sub(self, other: Self) -> Self { self - other }
            fn mul(self, other: Self) -> Self { self * other }
            fn div(self, other: Self) -> Self { self / other }
            fn fmod(self, other: Self) -> Self { self % other }
            fn abs(self) -> Self { $abs(self) }
            fn neg(self) -> Self { -self }
            fn nan(self) -> bool { self.is_nan() }
            fn to_f64(self) -> f64 { $to(self) }
            fn from_f64(value: f64) -> Self { $from(value) }
            fn to_i64(self) -> i64 { $to(self) as i64 }
            fn from_i64(value: i64) -> Self { $from(value as f64) }
            fn key(self) -> u64 {
                if self.is_nan() {
                    return u64::MAX;
                }
                // The sum turns −0 to +0; of two negative numbers the one with the greater magnitude is the smaller.
                let bits = (self.to_f64() + 0.0).to_bits();
                if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
            }
        }
    )*};
}
floats! {
    f32: 0.0, 1.0, f32::abs, f64::from, |v| v as f32;
    f64: 0.0, 1.0, f64::abs, std::convert::identity, std::convert::identity;
    f16: f16::ZERO, f16::ONE, |v: f16| f16::from_bits(v.to_bits() & 0x7fff), f16::to_f64, |v| f16::from_f64(sticky(v));
    bf16: bf16::ZERO, bf16::ONE, |v: bf16| bf16::from_bits(v.to_bits() & 0x7fff), bf16::to_f64, |v| bf16::from_f64(sticky(v));
}

/// The number with 20 bits of mantissa, the last of which is set if there was more behind it: it rounds to f16 and bf16 as the
/// number itself. `half` looks at no more bits than these, and so takes what is a little above a tie for the tie.
fn sticky(value: f64) -> f64 {
    let bits = value.to_bits();
    if bits as u32 == 0 || value.is_nan() { value } else { f64::from_bits((bits >> 32 | 1) << 32) }
}

/// Runs `$body` with the alias `$t` bound to a floating-point element type; `$other` is the value for the others.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr, else $other:expr) => {{
        use $crate::engine::dtype::DType;
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            _ => $other,
        }
    }};
}
pub(crate) use with_float;

/// Elements converted at once by [`through_f32`].
const BLOCK: usize = 256;

/// Applies a function on f32 to elements of another type, in blocks.
pub(crate) fn through_f32<T: Number>(values: &mut [T], mut f: impl FnMut(&mut [f32])) {
    let mut block = [0.0_f32; BLOCK];
    for chunk in values.chunks_mut(BLOCK) {
        let block = &mut block[..chunk.len()];
        for (b, v) in block.iter_mut().zip(&*chunk) {
            *b = v.to_f64() as f32;
        }
        f(block);
        for (v, b) in chunk.iter_mut().zip(&*block) {
            *v = T::from_f64(f64::from(*b));
        }
    }
}

/// The error function in f64, within a few ULP: the series of positive terms below 6, where it rounds to 1.
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() || a >= 6.0 {
        return if a.is_nan() { x } else { 1.0_f64.copysign(x) };
    }
    // erf(a) = 2/sqrt(pi) exp(-a²) Σ 2^n a^(2n+1) / (2n+1)!!
    let (mut term, mut sum, mut n) = (a, a, 1.0);
    while term > sum * 1e-17 {
        term *= 2.0 * a * a / (2.0 * n + 1.0);
        sum += term;
        n += 1.0;
    }
    (std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp() * sum).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_never_panic() {
        assert_eq!(Number::div(i64::MIN, -1), i64::MIN);
        assert_eq!(Number::fmod(i64::MIN, -1), 0);
        assert_eq!(Number::abs(i8::MIN), i8::MIN);
        assert_eq!(Number::div(1_u8, 0), 0);
    }

    #[test]
    fn keys_are_in_the_order_of_the_numbers() {
        fn check<T: Number>(ascending: &[T]) {
            assert!(ascending.is_sorted_by(|a, b| a.key() < b.key()), "{ascending:?}");
        }
        check(&[f64::NEG_INFINITY, -2.5, -1e-320, 0.0, 1e-320, 1.0, f64::MAX, f64::INFINITY, f64::NAN]);
        check(&[f16::NEG_INFINITY, -f16::ONE, f16::ZERO, f16::MIN_POSITIVE, f16::INFINITY, f16::NAN]);
        check(&[i8::MIN, -1, 0, 1, i8::MAX]);
        check(&[i64::MIN, -1, 0, i64::MAX]);
        check(&[0, 1, u64::MAX]);
        assert_eq!((-0.0_f32).key(), 0.0_f32.key());
        assert_eq!((-f32::NAN).key(), f32::NAN.key());
    }

    #[test]
    fn what_is_a_little_above_a_tie_rounds_up() {
        let tie = 1.0 + 1.0 / 256.0;
        for (value, want) in
            [(tie, 0x3f80), (f64::from((tie as f32).next_up()), 0x3f81), (tie.next_up(), 0x3f81), (tie.next_down(), 0x3f80)]
        {
            assert_eq!(<bf16 as Number>::from_f64(value).to_bits(), want, "{value}");
            assert_eq!(<bf16 as Number>::from_f64(-value).to_bits(), want | 0x8000, "{value}");
        }
        let tie = 1.0 + 1.0 / 2048.0;
        for (value, want) in
            [(tie, 0x3c00), (f64::from((tie as f32).next_up()), 0x3c01), (tie.next_up(), 0x3c01), (tie.next_down(), 0x3c00)]
        {
            assert_eq!(<f16 as Number>::from_f64(value).to_bits(), want, "{value}");
        }
        assert_eq!(<f16 as Number>::from_f64(65519.999).to_bits(), 0x7bff);
        assert_eq!(<f16 as Number>::from_f64(65520.0), f16::INFINITY);
        assert_eq!(<bf16 as Number>::from_f64(f64::INFINITY), bf16::INFINITY);
        assert!(<bf16 as Number>::from_f64(f64::from_bits(0x7ff0_0000_0000_0001)).is_nan());
        // Half of the smallest, and a little more.
        assert_eq!(<f16 as Number>::from_f64(2.0_f64.powi(-25)).to_bits(), 0);
        assert_eq!(<f16 as Number>::from_f64(2.0_f64.powi(-25).next_up()).to_bits(), 1);
    }

    #[test]
    fn modulo_takes_the_sign_of_the_divisor() {
        assert_eq!((-7_i32).modulo(3), 2);
        assert_eq!(7_i32.modulo(-3), -2);
        assert_eq!((-6_i32).modulo(3), 0);
        assert_eq!((-7_i32).fmod(3), -1);
        assert_eq!((-7.5_f32).modulo(2.0), 0.5);
        assert_eq!((-1.0_f64).modulo(f64::INFINITY), f64::INFINITY);
        assert!(6.0_f32.modulo(-3.0).is_sign_negative());
        assert!(1.0_f32.modulo(0.0).is_nan());
    }

    #[test]
    fn erf_agrees_with_tables() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - y).abs() < 1e-10);
            assert_eq!(erf(-x), -erf(x));
        }
        assert_eq!(erf(f64::INFINITY), 1.0);
        assert!(erf(f64::NAN).is_nan());
        assert_eq!(erf(0.0), 0.0);
    }
}
