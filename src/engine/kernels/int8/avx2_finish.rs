//! What is done with sums of codes, with AVX2: those of products to codes and to floats, and of two tensors.

use std::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm256_add_epi32, _mm256_add_ps, _mm256_adds_epi16, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtps_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_epu8, _mm256_min_epu8,
    _mm256_min_ps, _mm256_mul_ps, _mm256_mullo_epi32, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_packus_epi16,
    _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
    _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_xor_si256,
};

use super::finish::{OVERFLOW, Place, Requantize, Scale};
use super::{PANEL, STRIP, Strip, Sums, TILE_LINES};
use crate::engine::kernels::epilogue::activate;

/// Columns in a register.
const COLUMNS: usize = 8;

/// Sums to codes: a strip's rows to `y`, rows `ldc` apart.
#[target_feature(enable = "avx2,fma")]
pub(super) fn requantize(sums: &Sums, strip: &Strip, with: &Requantize<'_>, y: &mut [u8], place: &Place) {
    let Place { at, width, ldc, .. } = *place;
    assert!(width <= PANEL && strip.count <= STRIP);
    const PARTS: [usize; PANEL / COLUMNS] = [0, COLUMNS, 2 * COLUMNS, 3 * COLUMNS];
    let shift = PARTS.map(|column| integers(&with.shift.all, column));
    let all = |values: &[f32; PANEL]| PARTS.map(|column| floats(values, column));
    let (factors, offsets) = (all(with.factors), with.offsets.map(all));
    let (zero, low, high) = (_mm256_set1_epi16(with.zero), _mm256_set1_epi8(with.low as i8), _mm256_set1_epi8(with.high as i8));
    let flip = _mm256_set1_epi8(with.flip as i8);
    for (row, &to) in strip.to[..strip.count].iter().enumerate() {
        if to == Strip::SKIP {
            continue;
        }
        let scaled = |part: usize| {
            let sum = _mm256_add_epi32(sums_of(sums, row, part), shift[part]);
            let value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), factors[part]);
            let value = match &offsets {
                Some(offsets) => _mm256_add_ps(value, offsets[part]),
                None => value,
            };
            rounded(value)
        };
        let words = |part: usize| _mm256_adds_epi16(_mm256_packs_epi32(scaled(part), scaled(part + 1)), zero);
        let codes = in_order(_mm256_packus_epi16(words(0), words(2)));
        let codes = _mm256_xor_si256(_mm256_min_epu8(_mm256_max_epu8(codes, low), high), flip);
        let y = &mut y[to as usize * ldc + at..][..width];
        match y.first_chunk_mut::<PANEL>() {
            // SAFETY: the chunk has 32 bytes.
            Some(y) => unsafe { _mm256_storeu_si256(y.as_mut_ptr().cast(), codes) },
            None => {
                let mut all = [0_u8; PANEL];
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), codes) };
                y.copy_from_slice(&all[..width]);
            }
        }
    }
}

/// Sums to floats: a strip's rows to `y`, rows `ldc` apart, a whole panel of columns. `fma` rounds the product with the factor and the bias
/// once.
#[target_feature(enable = "avx2,fma")]
pub(super) fn scale(sums: &Sums, strip: &Strip, with: &Scale<'_>, y: &mut [f32], place: &Place) {
    let Place { at, width, ldc, .. } = *place;
    assert!(width == PANEL && strip.count <= STRIP);
    for (row, &to) in strip.to[..strip.count].iter().enumerate() {
        if to == Strip::SKIP {
            continue;
        }
        let to = to as usize;
        let scale = _mm256_set1_ps(with.scales.map_or(1.0, |scales| scales[to]));
        let taken = with.shift.rows.as_ref().map(|taken| {
            let of = |terms: Option<&[i32]>| _mm256_set1_epi32(terms.map_or(0, |terms| terms[to]));
            (taken, of(taken.terms.zeros), of(taken.terms.sums))
        });
        let y: &mut [f32; PANEL] = y[to * ldc + at..].first_chunk_mut().expect("a row of the output");
        for (part, y) in y.as_chunks_mut::<COLUMNS>().0.iter_mut().enumerate() {
            let column = part * COLUMNS;
            let mut sum = _mm256_add_epi32(sums_of(sums, row, part), integers(&with.shift.all, column));
            if let Some((taken, zero, row_sum)) = taken {
                sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(zero, integers(&taken.column_sums, column)));
                sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(row_sum, integers(&taken.zeros, column)));
            }
            let value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale);
            let mut value = _mm256_fmadd_ps(value, floats(with.factors, column), floats(with.bias, column));
            if with.adds {
                // SAFETY: the chunk has eight elements.
                value = _mm256_add_ps(value, unsafe { _mm256_loadu_ps(y.as_ptr()) });
            }
            // SAFETY: the chunk has eight elements.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), value) };
        }
        activate::<true>(with.activation, y);
    }
}

/// The sums of a row of the strip in the panel's eight columns number `part`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums_of(sums: &Sums, row: usize, part: usize) -> __m256i {
    let line = &sums.0[row / TILE_LINES * 2 + part / 2][row % TILE_LINES];
    // SAFETY: the slice has eight elements.
    unsafe { _mm256_loadu_si256(line[part % 2 * COLUMNS..][..COLUMNS].as_ptr().cast()) }
}

/// Eight columns' values.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn integers(values: &[i32; PANEL], column: usize) -> __m256i {
    // SAFETY: the slice has eight elements.
    unsafe { _mm256_loadu_si256(values[column..][..COLUMNS].as_ptr().cast()) }
}

/// As [`integers`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn floats(values: &[f32; PANEL], column: usize) -> __m256 {
    // SAFETY: the slice has eight elements.
    unsafe { _mm256_loadu_ps(values[column..][..COLUMNS].as_ptr()) }
}

/// 32 codes at a time of [`super::quantize::add`]; how many were done.
#[target_feature(enable = "avx2,fma")]
pub(super) fn add(a: &[u8], b: &[u8], (a_ratio, b_ratio, fixed): (f32, f32, f32), signed: bool, y: &mut [u8]) -> usize {
    let ratios = [a_ratio, b_ratio, fixed].map(|ratio| _mm256_set1_ps(ratio));
    let chunks = a.as_chunks::<PANEL>().0.iter().zip(b.as_chunks::<PANEL>().0).zip(y.as_chunks_mut::<PANEL>().0);
    let mut done = 0;
    for ((a, b), y) in chunks {
        let codes = if signed { sums::<true>(a, b, ratios) } else { sums::<false>(a, b, ratios) };
        // SAFETY: the chunk has 32 bytes.
        unsafe { _mm256_storeu_si256(y.as_mut_ptr().cast(), codes) };
        done += PANEL;
    }
    done
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sums<const SIGNED: bool>(a: &[u8; PANEL], b: &[u8; PANEL], [a_ratio, b_ratio, fixed]: [__m256; 3]) -> __m256i {
    let numbers = |codes: &[u8; PANEL], part: usize| {
        // SAFETY: the slice has eight bytes.
        let codes = unsafe { _mm_loadl_epi64(codes[part * COLUMNS..][..COLUMNS].as_ptr().cast()) };
        _mm256_cvtepi32_ps(if SIGNED { _mm256_cvtepi8_epi32(codes) } else { _mm256_cvtepu8_epi32(codes) })
    };
    let sum = |part: usize| {
        let rest = _mm256_add_ps(_mm256_mul_ps(numbers(b, part), b_ratio), fixed);
        rounded(_mm256_add_ps(_mm256_mul_ps(numbers(a, part), a_ratio), rest))
    };
    let words = |part: usize| _mm256_packs_epi32(sum(part), sum(part + 1));
    in_order(if SIGNED { _mm256_packs_epi16(words(0), words(2)) } else { _mm256_packus_epi16(words(0), words(2)) })
}

/// The nearest integers. The second operand is the answer if either is NaN; what overflows below, and NaN, becomes the least integer.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn rounded(value: __m256) -> __m256i {
    _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(OVERFLOW), value))
}

/// Packing takes turns between the halves of a register: this puts the four bytes of each back into their order.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn in_order(codes: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}
