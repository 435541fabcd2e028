//! Scanning a decimal number: sign, digits, fraction, exponent. The grammar is checked here, once, for every element type.

use super::Result;
use super::error::{JsonError, found};
use super::reader::byte;

/// A number as it is written: `±mantissa · 10^exponent`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal {
    pub(super) negative: bool,
    /// All digits as one integer; meaningless if `digits > MAX_DIGITS`.
    pub(super) mantissa: u64,
    /// Power of ten; saturated, so that a long exponent stays huge.
    pub(super) exponent: i32,
    /// How many digits were written, leading zeros included.
    pub(super) digits: usize,
    /// Whether there is neither a fraction nor an exponent.
    pub(super) whole: bool,
    /// The position behind the number.
    pub(super) end: usize,
}

/// Any number of this many digits fits a `u64`.
pub(super) const MAX_DIGITS: usize = 19;

/// Scans the number at `at`, which must not be one of the bare tokens, and is expected to be a float.
#[inline(always)]
pub(super) fn scan(bytes: &[u8], at: usize) -> Result<Decimal> {
    let start = at + usize::from(byte(bytes, at) == b'-');
    scan_rest(bytes, at, start, short_run(bytes, start))
}

/// Scans the number at `at`, which is expected to be an integer.
#[inline(always)]
pub(super) fn scan_integer(bytes: &[u8], at: usize) -> Result<Decimal> {
    let start = at + usize::from(byte(bytes, at) == b'-');
    scan_rest(bytes, at, start, run(bytes, start, 0))
}

/// Scans what follows the digits before the point, which began at `start`.
#[inline(always)]
fn scan_rest(bytes: &[u8], at: usize, start: usize, (mut mantissa, mut i): (u64, usize)) -> Result<Decimal> {
    let negative = start > at;
    let mut digits = i - start;
    if digits == 0 || (digits > 1 && byte(bytes, start) == b'0') {
        return Err(malformed(bytes, start, digits));
    }
    let mut whole = true;
    let mut exponent = 0;
    if byte(bytes, i) == b'.' {
        let fraction = i + 1;
        (mantissa, i) = run(bytes, fraction, mantissa);
        let count = i - fraction;
        if count == 0 {
            return Err(expected_digit(bytes, i));
        }
        digits += count;
        exponent = -i32::try_from(count).unwrap_or(i32::MAX);
        whole = false;
    }
    if byte(bytes, i) | 0x20 == b'e' {
        let (written, end) = scan_exponent(bytes, i + 1)?;
        exponent = exponent.saturating_add(written);
        i = end;
        whole = false;
    }
    Ok(Decimal { negative, mantissa, exponent, digits, whole, end: i })
}

/// Appends the run of digits at `i` to `mantissa`. Up to eight are taken at once without a branch on how many there are,
/// because a branch that depends on random digits is mispredicted once per number.
#[inline(always)]
fn run(bytes: &[u8], mut i: usize, mut mantissa: u64) -> (u64, usize) {
    const POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
    while let Some(eight) = bytes.get(i..i + 8).and_then(|eight| <[u8; 8]>::try_from(eight).ok()).map(u64::from_le_bytes) {
        let count = leading_digits(eight);
        // The digits move to the end of the word, behind zeros; in two steps because a shift by 64 is none.
        let aligned = if count == 8 { eight } else { (eight << 8) << (56 - 8 * count) };
        mantissa = mantissa.wrapping_mul(POWERS[count]).wrapping_add(eight_digits(aligned));
        i += count;
        if count < 8 {
            return (mantissa, i);
        }
    }
    loop {
        let digit = byte(bytes, i).wrapping_sub(b'0');
        if digit > 9 {
            return (mantissa, i);
        }
        mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        i += 1;
    }
}

/// The digits of a float before the point, mostly one to three: measured, predicted branches beat the word that [`run`] loads
/// (705 to 560 MB/s on four decimals), and lose on integers of varying length (320 to 465).
#[inline(always)]
fn short_run(bytes: &[u8], start: usize) -> (u64, usize) {
    let mut mantissa = 0;
    for i in start..start + 3 {
        let digit = byte(bytes, i).wrapping_sub(b'0');
        if digit > 9 {
            return (mantissa, i);
        }
        mantissa = mantissa * 10 + u64::from(digit);
    }
    run(bytes, start + 3, mantissa)
}

/// How many of the eight bytes are ASCII digits before the first that is none, first byte lowest.
#[inline(always)]
fn leading_digits(eight: u64) -> usize {
    let values = eight ^ 0x3030_3030_3030_3030;
    // Adding 0x76 sets the high bit of a value above 9; a carry only reaches bytes behind one that is no digit.
    let others = (values.wrapping_add(0x7676_7676_7676_7676) | values) & 0x8080_8080_8080_8080;
    others.trailing_zeros() as usize / 8
}

/// The value of eight ASCII digits, first digit in the lowest byte: pairs, then fours, then the eight, in three multiplications.
#[inline(always)]
fn eight_digits(eight: u64) -> u64 {
    let ones = eight & 0x0f0f_0f0f_0f0f_0f0f;
    let pairs = (ones.wrapping_mul(2561) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(6_553_601) >> 16) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(42_949_672_960_001) >> 32
}

fn scan_exponent(bytes: &[u8], mut i: usize) -> Result<(i32, usize)> {
    let negative = byte(bytes, i) == b'-';
    i += usize::from(negative || byte(bytes, i) == b'+');
    if !byte(bytes, i).is_ascii_digit() {
        return Err(expected_digit(bytes, i));
    }
    let mut value = 0_i32;
    while byte(bytes, i).is_ascii_digit() {
        value = value.saturating_mul(10).saturating_add(i32::from(byte(bytes, i) - b'0'));
        i += 1;
    }
    Ok((if negative { -value } else { value }, i))
}

#[cold]
fn expected_digit(bytes: &[u8], at: usize) -> Box<JsonError> {
    JsonError::syntax(at, format!("expected a digit, {}", found(bytes, at)))
}

#[cold]
fn malformed(bytes: &[u8], start: usize, digits: usize) -> Box<JsonError> {
    if digits > 1 { JsonError::syntax(start, "a number must not begin with a superfluous zero") } else { expected_digit(bytes, start) }
}
