//! Numbers to 8-bit codes and back, with one scale and zero point.

use super::finish::OVERFLOW;
use crate::engine::kernels::isa::{Isa, instantiate};

/// The integer nearest to a number, ties to even: what is beyond ±2^16 becomes that, and NaN -2^16.
/// Adding 1.5 · 2^23 leaves no bits behind the point.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    // In this order NaN becomes the least.
    let value = if value > -OVERFLOW { value } else { -OVERFLOW };
    let value = if value < OVERFLOW { value } else { OVERFLOW };
    (value + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

/// The least and the greatest of the values and zero; NaN is passed over.
pub fn range(isa: Isa, values: &[f32]) -> (f32, f32) {
    instantiate!(isa, range_body, (values: &[f32]) -> (f32, f32))
}

#[inline(always)]
fn range_body<const FMA: bool>(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 64;
    let (mut least, mut greatest) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for j in 0..LANES {
            least[j] = if chunk[j] < least[j] { chunk[j] } else { least[j] };
            greatest[j] = if chunk[j] > greatest[j] { chunk[j] } else { greatest[j] };
        }
    }
    let all = least.iter().chain(&greatest).chain(rest);
    all.fold((0.0, 0.0), |(least, greatest), &v| (if v < least { v } else { least }, if v > greatest { v } else { greatest }))
}

/// `clamp(round(value / scale) + zero, 0, 255)`, ties to even, with the bits of `flip` turned over. Panics unless there are as many
/// codes as values.
pub fn quantize(isa: Isa, values: &[f32], scale: f32, zero: i32, flip: u8, codes: &mut [u8]) {
    assert_eq!(values.len(), codes.len(), "codes against values");
    instantiate!(isa, quantize_body, (values: &[f32], scale: f32, zero: i32, flip: u8, codes: &mut [u8]));
}

#[inline(always)]
fn quantize_body<const FMA: bool>(values: &[f32], scale: f32, zero: i32, flip: u8, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = nearest(value / scale).wrapping_add(zero).clamp(0, 255) as u8 ^ flip;
    }
}

/// `(code - zero) * scale`, where the bits of `flip` are turned over before. Panics unless there are as many codes as values.
pub fn dequantize(isa: Isa, codes: &[u8], zero: i32, flip: u8, scale: f32, values: &mut [f32]) {
    assert_eq!(values.len(), codes.len(), "codes against values");
    instantiate!(isa, dequantize_body, (codes: &[u8], zero: i32, flip: u8, scale: f32, values: &mut [f32]));
}

#[inline(always)]
fn dequantize_body<const FMA: bool>(codes: &[u8], zero: i32, flip: u8, scale: f32, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = (i32::from(*code ^ flip) - zero) as f32 * scale;
    }
}

/// The sum of each row's codes: rows of `k`, `stride` apart.
pub fn row_sums(isa: Isa, codes: &[u8], stride: usize, k: usize, sums: &mut [i32]) {
    assert!(sums.is_empty() || (stride >= k && codes.len() >= (sums.len() - 1) * stride + k), "codes of {} rows", sums.len());
    instantiate!(isa, row_sums_body, (codes: &[u8], stride: usize, k: usize, sums: &mut [i32]));
}

#[inline(always)]
fn row_sums_body<const FMA: bool>(codes: &[u8], stride: usize, k: usize, sums: &mut [i32]) {
    for (row, sum) in sums.iter_mut().enumerate() {
        *sum = codes[row * stride..][..k].iter().map(|&code| i32::from(code)).sum();
    }
}

/// `clamp(round(a * a_ratio + (b * b_ratio + fixed)), 0, 255)` of codes `a` and `b`, bits of `flip` turned over in all three: the sum of
/// two tensors of codes. Panics unless all have one length.
pub fn add(isa: Isa, a: &[u8], b: &[u8], ratios: (f32, f32, f32), flip: u8, y: &mut [u8]) {
    assert!(a.len() == y.len() && b.len() == y.len(), "lengths of a sum");
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx2 {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        let done = unsafe { super::avx2_finish::add(a, b, ratios, flip != 0, y) };
        return add_body::<false>(&a[done..], &b[done..], ratios, flip, &mut y[done..]);
    }
    instantiate!(isa, add_body, (a: &[u8], b: &[u8], ratios: (f32, f32, f32), flip: u8, y: &mut [u8]));
}

#[inline(always)]
fn add_body<const FMA: bool>(a: &[u8], b: &[u8], (a_ratio, b_ratio, fixed): (f32, f32, f32), flip: u8, y: &mut [u8]) {
    let shift = if flip == 0 { 0 } else { 128 };
    let number = |code: u8| (i32::from(code ^ flip) - shift) as f32;
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        *y = (nearest(number(a) * a_ratio + (number(b) * b_ratio + fixed)) + shift).clamp(0, 255) as u8 ^ flip;
    }
}
