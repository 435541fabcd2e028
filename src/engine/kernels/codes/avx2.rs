//! Codes of a block as numbers, with AVX2. Intrinsics because the compiler unrolls loops of a tile's width before it looks for vectors, and then
//! finds none: a block took five times as long.

use std::arch::x86_64::{
    _mm_cvtsi32_si128, _mm256_cvtepi32_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_sll_epi32, _mm256_srai_epi32,
    _mm256_storeu_ps,
};

use super::{GROUP, PANEL, Panel};

/// Elements in a register.
const LANES: usize = 8;

/// The numbers of `width` columns of a panel from `from` on, step by step, of words with `P` codes of `BITS` bits.
///
/// # Panics
/// If the columns are not the panel's, or not whole registers, or `to` has no room.
#[target_feature(enable = "avx2,fma")]
pub(super) fn decode<const P: usize, const BITS: i32>(panel: Panel<'_>, from: usize, width: usize, to: &mut [f32]) {
    assert!(from + width <= PANEL && width.is_multiple_of(LANES), "columns {from} to {} of a panel", from + width);
    let mut to = to[..panel.words.len() * P * width].chunks_exact_mut(P * width);
    for (words, scales) in panel.words.chunks(GROUP / P).zip(panel.scales) {
        for (words, to) in words.iter().zip(&mut to) {
            for column in (0..width).step_by(LANES) {
                // SAFETY: eight of the panel's columns, as seen above.
                let (word, scale) = unsafe {
                    let at = from + column;
                    (_mm256_loadu_si256(words.0.as_ptr().add(at).cast()), _mm256_loadu_ps(scales.0.as_ptr().add(at)))
                };
                for step in 0..P {
                    // The code's highest bit to the word's, and back with its sign.
                    let count = _mm_cvtsi32_si128(32 - BITS * (step as i32 + 1));
                    let code = match BITS {
                        4 => _mm256_srai_epi32::<28>(_mm256_sll_epi32(word, count)),
                        _ => _mm256_srai_epi32::<24>(_mm256_sll_epi32(word, count)),
                    };
                    let number = _mm256_mul_ps(_mm256_cvtepi32_ps(code), scale);
                    // SAFETY: `to` is `P` steps of `width` numbers, a multiple of eight.
                    unsafe { _mm256_storeu_ps(to.as_mut_ptr().add(step * width + column), number) };
                }
            }
        }
    }
}
