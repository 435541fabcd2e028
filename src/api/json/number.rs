//! Numbers of every element type: correctly rounded floats, range-checked integers.

use half::{bf16, f16};

use super::Result;
use super::digits::{Decimal, MAX_DIGITS, scan, scan_integer};
use super::error::{JsonError, excerpt, found};
use super::reader::{byte, literal};
use crate::engine::Element;

/// Powers of ten that a `f64` holds exactly.
const POWERS: [f64; 23] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22];

/// Integers up to this are exact in a `f64`.
const EXACT: u64 = 1 << 53;

/// `mantissa · 10^exponent` with one rounding per step: at most two, the mantissa's and the scaling's.
#[inline(always)]
fn scaled(number: &Decimal) -> Option<f64> {
    let power = POWERS.get(number.exponent.unsigned_abs() as usize)?;
    if number.digits > MAX_DIGITS {
        return None;
    }
    let mantissa = number.mantissa as f64;
    Some(if number.exponent < 0 { mantissa / power } else { mantissa * power })
}

/// Reads a `f64`, correctly rounded. The position behind it is returned too, as by every function here.
#[inline(always)]
pub(super) fn float64(bytes: &[u8], at: usize) -> Result<(f64, usize)> {
    if let Some(special) = special(bytes, at)? {
        return Ok(special);
    }
    let number = scan(bytes, at)?;
    // An exact mantissa scaled by an exact power is rounded once, so correctly (Clinger, 1990).
    let value = match scaled(&number) {
        Some(value) if number.mantissa <= EXACT => value,
        _ => return slow(bytes, at, number.end),
    };
    Ok((if number.negative { -value } else { value }, number.end))
}

/// Reads a `f32`, correctly rounded.
#[inline(always)]
pub(super) fn float32(bytes: &[u8], at: usize) -> Result<(f32, usize)> {
    if let Some((value, next)) = special(bytes, at)? {
        return Ok((value as f32, next));
    }
    let number = scan(bytes, at)?;
    // Seven digits are below 2^24: exact.
    if number.whole && number.digits <= 7 {
        let value = number.mantissa as f32;
        return Ok((if number.negative { -value } else { value }, number.end));
    }
    match scaled(&number).and_then(narrow) {
        Some(value) => Ok((if number.negative { -value } else { value }, number.end)),
        None => slow(bytes, at, number.end),
    }
}

/// Rounds to `f32` a `f64` that is within 4 units in the last place of a decimal, if that gives the nearest to the decimal.
///
/// Two roundings go wrong only where the `f64` is next to the middle between two `f32`, i.e. the 29 bits that `f32` does not
/// have are next to 1000…0. Below the normal range the middle is elsewhere; above the maximum is an error to report.
#[inline(always)]
fn narrow(value: f64) -> Option<f32> {
    const LOST: u64 = (1 << 29) - 1;
    const MIDDLE: u64 = 1 << 28;
    let near_middle = (value.to_bits() & LOST).abs_diff(MIDDLE) <= 4;
    let normal = value == 0.0 || (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&value);
    (normal && !near_middle).then_some(value as f32)
}

/// `NaN`, `Infinity` or `-Infinity`, if one stands at `at`.
#[inline(always)]
fn special(bytes: &[u8], at: usize) -> Result<Option<(f64, usize)>> {
    match byte(bytes, at) {
        b'0'..=b'9' => Ok(None),
        b'-' if byte(bytes, at + 1) != b'I' => Ok(None),
        _ => bare_token(bytes, at).map(Some),
    }
}

#[cold]
fn bare_token(bytes: &[u8], at: usize) -> Result<(f64, usize)> {
    match byte(bytes, at) {
        b'N' => Ok((f64::NAN, literal(bytes, at, "NaN")?)),
        b'I' => Ok((f64::INFINITY, literal(bytes, at, "Infinity")?)),
        b'-' => Ok((f64::NEG_INFINITY, literal(bytes, at, "-Infinity")?)),
        _ => Err(JsonError::syntax(at, format!("expected a number, {}", found(bytes, at)))),
    }
}

/// A float type that the standard library reads from text, correctly rounded.
trait Parsed: std::str::FromStr + Element {
    fn is_finite(&self) -> bool;
}

impl Parsed for f32 {
    fn is_finite(&self) -> bool {
        Self::is_finite(*self)
    }
}

impl Parsed for f64 {
    fn is_finite(&self) -> bool {
        Self::is_finite(*self)
    }
}

/// Any number whose grammar was checked.
#[cold]
fn slow<T: Parsed>(bytes: &[u8], at: usize, end: usize) -> Result<(T, usize)> {
    let text = &bytes[at..end];
    let value = std::str::from_utf8(text).ok().and_then(|text| text.parse::<T>().ok()).expect("a JSON number is a Rust number");
    if !value.is_finite() {
        return Err(JsonError::value(at, format!("is {}, out of range of {}", excerpt(text), T::DTYPE)));
    }
    Ok((value, end))
}

/// Reads a number and forgets it.
pub(super) fn skip(bytes: &[u8], at: usize) -> Result<usize> {
    match special(bytes, at)? {
        Some((_, next)) => Ok(next),
        None => Ok(scan(bytes, at)?.end),
    }
}

/// A half-precision type, read by way of `f64`.
pub(super) fn half<T: Element>(bytes: &[u8], at: usize, narrow: fn(f64) -> T, finite: fn(&T) -> bool) -> Result<(T, usize)> {
    let (wide, next) = float64(bytes, at)?;
    let value = narrow(wide);
    if wide.is_finite() && !finite(&value) {
        return Err(JsonError::value(at, format!("is {}, out of range of {}", excerpt(&bytes[at..next]), T::DTYPE)));
    }
    Ok((value, next))
}

pub(super) fn float16(bytes: &[u8], at: usize) -> Result<(f16, usize)> {
    half(bytes, at, f16::from_f64, |value| value.is_finite())
}

pub(super) fn bfloat16(bytes: &[u8], at: usize) -> Result<(bf16, usize)> {
    half(bytes, at, bf16::from_f64, |value| value.is_finite())
}

/// Reads an integer type; a number with a fraction or exponent is taken if its value is whole.
#[inline(always)]
pub(super) fn integer<T: Integer>(bytes: &[u8], at: usize) -> Result<(T, usize)> {
    if let b'N' | b'I' = byte(bytes, at) {
        return Err(not_whole::<T>(bytes, at, skip(bytes, at)?));
    }
    if byte(bytes, at) == b'-' && byte(bytes, at + 1) == b'I' {
        return Err(not_whole::<T>(bytes, at, skip(bytes, at)?));
    }
    let number = scan_integer(bytes, at)?;
    if number.whole && number.digits <= MAX_DIGITS {
        let value = if number.negative { -i128::from(number.mantissa) } else { i128::from(number.mantissa) };
        return match T::try_from(value) {
            Ok(value) => Ok((value, number.end)),
            Err(_) => Err(out_of_range::<T>(bytes, at, number.end)),
        };
    }
    whole(bytes, at, &number)
}

/// What the integer element types have in common.
pub(super) trait Integer: Element + TryFrom<i128> + num_traits::Bounded + std::fmt::Display {}
impl<T: Element + TryFrom<i128> + num_traits::Bounded + std::fmt::Display> Integer for T {}

/// An integer of many digits, or with a fraction or exponent.
#[cold]
fn whole<T: Integer>(bytes: &[u8], at: usize, number: &Decimal) -> Result<(T, usize)> {
    let text = std::str::from_utf8(&bytes[at..number.end]).expect("a number is ASCII");
    let integer = match text.split_once(['.', 'e', 'E']) {
        None => text.parse::<i128>().ok(),
        Some((digits, rest)) if rest.bytes().all(|b| b == b'0') && !text.contains(['e', 'E']) => digits.parse::<i128>().ok(),
        Some(_) => {
            let value = text.parse::<f64>().expect("a JSON number is a Rust number");
            if value.fract() != 0.0 {
                return Err(not_whole::<T>(bytes, at, number.end));
            }
            // Beyond 2^53 a float does not tell which integer was written.
            (value.abs() <= EXACT as f64).then_some(value as i128)
        }
    };
    match integer.and_then(|integer| T::try_from(integer).ok()) {
        Some(value) => Ok((value, number.end)),
        None => Err(out_of_range::<T>(bytes, at, number.end)),
    }
}

#[cold]
fn out_of_range<T: Integer>(bytes: &[u8], at: usize, end: usize) -> Box<JsonError> {
    let text = excerpt(&bytes[at..end]);
    JsonError::value(at, format!("is {text}, out of range of {} ({} to {})", T::DTYPE, T::min_value(), T::max_value()))
}

#[cold]
fn not_whole<T: Integer>(bytes: &[u8], at: usize, end: usize) -> Box<JsonError> {
    JsonError::value(at, format!("is {} where a whole number ({}) is wanted", excerpt(&bytes[at..end]), T::DTYPE))
}
