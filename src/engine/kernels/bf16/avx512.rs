//! What stands before and behind the tile unit, with AVX-512 intrinsics: rounding the left operand, and the epilogue.

use std::arch::x86_64::{
    __m512bh, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::ops::Range;

use super::functions::Function;
use super::pack::Part;
use super::{Line, PANEL, STEP, STRIP, Sums, TILE_LINES};
use crate::engine::kernels::epilogue::{Bias, Epilogue};

const LANES: usize = 16;

/// A line of the left operand: 32 numbers, rounded to nearest, ties to even; subnormal numbers become zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn line(values: &[f32; STEP]) -> Line {
    // SAFETY: both loads lie in the array.
    let (low, high) = unsafe { (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(LANES))) };
    let halves = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 64 bytes without padding, and every bit pattern is a line.
    unsafe { std::mem::transmute::<__m512bh, Line>(halves) }
}

/// [`super::pack::left_part`] into lines that are there already.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) fn pack_left(a: &[f32], part: &Part, lines: &mut [Line]) {
    for (index, row) in part.rows.clone().enumerate() {
        let lines = &mut lines[part.place(row)..];
        let (whole, rest) = a[index * part.lda..][..part.len].as_chunks::<STEP>();
        for (at, values) in whole.iter().enumerate() {
            lines[at * TILE_LINES] = line(values);
        }
        if !rest.is_empty() {
            lines[whole.len() * TILE_LINES] = short_line(rest);
        }
    }
}

/// [`super::pack::round_pixels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) fn round_pixels(from: &[f32], (step, len): (usize, usize), to: &mut [Line], stride: usize) {
    for (index, lines) in to.chunks_exact_mut(stride).enumerate() {
        let (whole, rest) = from[index * step..][..len].as_chunks::<STEP>();
        for (to, values) in lines.iter_mut().zip(whole) {
            *to = line(values);
        }
        if !rest.is_empty() {
            lines[whole.len()] = short_line(rest);
        }
    }
}

/// A line of less than 32 numbers, the others zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn short_line(values: &[f32]) -> Line {
    let mask = |v: usize| ((1u32 << values.len().saturating_sub(v * LANES).min(LANES)) - 1) as u16;
    // SAFETY: the masks leave out what lies beyond the values.
    let (low, high) =
        unsafe { (_mm512_maskz_loadu_ps(mask(0), values.as_ptr()), _mm512_maskz_loadu_ps(mask(1), values.as_ptr().wrapping_add(LANES))) };
    let halves = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 64 bytes without padding, and every bit pattern is a line.
    unsafe { std::mem::transmute::<__m512bh, Line>(halves) }
}

/// [`super::finish`] for the functions of [`Function`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn finish(
    sums: &Sums,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
    function: Function,
    c: &mut [f32],
    (ldc, width): (usize, usize),
) {
    assert!(rows.end <= STRIP && width <= PANEL, "rows {rows:?} of a strip by {width}");
    assert!(rows.is_empty() || c.len() >= (rows.len() - 1) * ldc + width, "c is shorter than rows {rows:?}");
    let mask = |v: usize| ((1u32 << width.saturating_sub(v * LANES).min(LANES)) - 1) as u16;
    let masks = [mask(0), mask(1)];
    let alpha = _mm512_set1_ps(epilogue.alpha);
    let mut added = [_mm512_setzero_ps(); 2];
    if let Bias::PerColumn(bias) = epilogue.bias {
        assert!(bias.len() >= width, "a bias for each column");
        for v in 0..2 {
            // SAFETY: the mask leaves out columns beyond `width`, of which the bias has as many.
            added[v] = unsafe { _mm512_maskz_loadu_ps(masks[v], bias.as_ptr().wrapping_add(v * LANES)) };
        }
    }
    let first = rows.start;
    for row in rows {
        if let Bias::PerRow(bias) = epilogue.bias {
            added = [_mm512_set1_ps(bias[row - first]); 2];
        }
        for v in 0..2 {
            let sums = &sums.0[row / TILE_LINES * 2 + v][row % TILE_LINES];
            // SAFETY: a line of sums has 16 elements.
            let sum = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
            let mut value = _mm512_fmadd_ps(alpha, sum, added[v]);
            let to = c.as_mut_ptr().wrapping_add((row - first) * ldc + v * LANES);
            if epilogue.adds {
                // SAFETY: the assertion above, and the mask leaves out columns beyond `width`.
                value = _mm512_add_ps(value, unsafe { _mm512_maskz_loadu_ps(masks[v], to) });
            }
            let value = function.of_value(value);
            // SAFETY: as for the load.
            unsafe { if masks[v] == u16::MAX { _mm512_storeu_ps(to, value) } else { _mm512_mask_storeu_ps(to, masks[v], value) } }
        }
    }
}
