//! The product with VNNI, and requantising, with AVX-512 intrinsics.

use std::arch::x86_64::{
    __m512, __m512i, _mm256_mask_storeu_epi8, _mm256_storeu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_adds_epi16,
    _mm512_castsi512_si256, _mm512_cvtepi32_ps, _mm512_cvtps_epi32, _mm512_dpbusd_epi32, _mm512_extracti64x4_epi64, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_epu8, _mm512_min_epu8, _mm512_min_ps,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_packs_epi32, _mm512_packus_epi16, _mm512_permutexvar_epi32, _mm512_set1_epi8,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_si512, _mm512_storeu_si512, _mm512_sub_epi32,
    _mm512_xor_si512,
};
use std::ops::Range;

use super::finish::{OVERFLOW, Place, Requantize, Scale};
use super::{Line, PANEL, Rows, STEP, STRIP, Strip, Sums, TILE_COLUMNS, TILE_LINES};
use crate::engine::kernels::epilogue::activate;

/// # Safety
///
/// The machine has the instructions; the rows' steps lie in the data, the steps' lines in the panel.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn multiply(rows: &Rows<'_>, panel: &[Line], steps: Range<usize>, sums: &mut Sums) {
    let mut row = 0;
    while row < rows.count {
        // SAFETY: the caller's promise, for fewer rows.
        row += unsafe {
            match rows.count - row {
                8.. => some_rows::<8>(rows, row, panel, steps.clone(), sums),
                4.. => some_rows::<4>(rows, row, panel, steps.clone(), sums),
                _ => some_rows::<1>(rows, row, panel, steps.clone(), sums),
            }
        };
    }
}

/// # Safety
///
/// As [`multiply`]; there are `R` rows from `row` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn some_rows<const R: usize>(rows: &Rows<'_>, row: usize, panel: &[Line], steps: Range<usize>, sums: &mut Sums) -> usize {
    let left = rows.left;
    let at = |i: usize, half: usize| ((row + i) / TILE_LINES * 2 + half, (row + i) % TILE_LINES);
    let mut acc = [[_mm512_setzero_si512(); 2]; R];
    if !rows.first {
        for (i, acc) in acc.iter_mut().enumerate() {
            for (half, acc) in acc.iter_mut().enumerate() {
                let (tile, line) = at(i, half);
                // SAFETY: a line of sums has 64 bytes.
                *acc = unsafe { _mm512_loadu_si512(sums.0[tile][line].as_ptr().cast()) };
            }
        }
    }
    for step in steps {
        let first = left.data.as_ptr().wrapping_add(left.offsets[step] + (rows.start + row) * left.stride);
        let lines = &panel[step * 2 * TILE_LINES..][..2 * TILE_LINES];
        for quad in 0..STEP / 4 {
            // SAFETY: a line has 64 bytes.
            let b = [0, TILE_LINES].map(|half| unsafe { _mm512_loadu_si512(lines[half + quad].0.as_ptr().cast()) });
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: four bytes of a step of a row, which lies in the data as the caller promises.
                let a = unsafe { first.add(i * left.stride + quad * 4).cast::<i32>().read_unaligned() };
                let a = _mm512_set1_epi32(a);
                acc[0] = _mm512_dpbusd_epi32(acc[0], a, b[0]);
                acc[1] = _mm512_dpbusd_epi32(acc[1], a, b[1]);
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        for (half, acc) in acc.iter().enumerate() {
            let (tile, line) = at(i, half);
            // SAFETY: a line of sums has 64 bytes.
            unsafe { _mm512_storeu_si512(sums.0[tile][line].as_mut_ptr().cast(), *acc) };
        }
    }
    R
}

/// Sums to codes: a strip's rows to `y`, rows `ldc` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn requantize(sums: &Sums, strip: &Strip, with: &Requantize<'_>, y: &mut [u8], place: &Place) {
    let Place { at, width, ldc, .. } = *place;
    assert!(width <= PANEL && strip.count <= STRIP);
    // SAFETY: the arrays have two vectors of 16 elements each.
    let (shift, factors, offsets) = unsafe {
        (
            [0, TILE_COLUMNS].map(|j| _mm512_loadu_si512(with.shift.all.as_ptr().add(j).cast())),
            [0, TILE_COLUMNS].map(|j| _mm512_loadu_ps(with.factors.as_ptr().add(j))),
            with.offsets.map(|offsets| [0, TILE_COLUMNS].map(|j| _mm512_loadu_ps(offsets.as_ptr().add(j)))),
        )
    };
    let (zero, low, high) = (_mm512_set1_epi16(with.zero), _mm512_set1_epi8(with.low as i8), _mm512_set1_epi8(with.high as i8));
    let flip = _mm512_set1_epi8(with.flip as i8);
    // Packing takes turns between 128-bit lanes: this puts the four bytes of each back into their order.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let words = |row: usize| {
        let (tile, line) = (row / TILE_LINES * 2, row % TILE_LINES);
        let one = |half: usize| {
            // SAFETY: a line of sums has 16 elements.
            let sum = unsafe { _mm512_loadu_si512(sums.0[tile + half][line].as_ptr().cast()) };
            scaled(sum, shift[half], factors[half], offsets.map(|offsets| offsets[half]))
        };
        _mm512_adds_epi16(_mm512_packs_epi32(one(0), one(1)), zero)
    };
    for row in (0..strip.count).step_by(2) {
        let pair = _mm512_packus_epi16(words(row), words(row + 1));
        let pair = _mm512_xor_si512(_mm512_min_epu8(_mm512_max_epu8(pair, low), high), flip);
        let pair = _mm512_permutexvar_epi32(order, pair);
        let halves = [_mm512_castsi512_si256(pair), _mm512_extracti64x4_epi64::<1>(pair)];
        for (half, &to) in halves.into_iter().zip(&strip.to[row..strip.count.min(row + 2)]) {
            if to == Strip::SKIP {
                continue;
            }
            let y = &mut y[to as usize * ldc + at..][..width];
            if width == PANEL {
                // SAFETY: the slice has 32 bytes.
                unsafe { _mm256_storeu_si256(y.as_mut_ptr().cast(), half) };
            } else {
                // SAFETY: the mask leaves out bytes beyond the slice.
                unsafe { _mm256_mask_storeu_epi8(y.as_mut_ptr().cast(), (1_u32 << width) - 1, half) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn scaled(sum: __m512i, shift: __m512i, factor: __m512, offset: Option<__m512>) -> __m512i {
    let value = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, shift)), factor);
    let value = match offset {
        Some(offset) => _mm512_add_ps(value, offset),
        None => value,
    };
    // The second operand is the answer if either is NaN; what overflows below, and NaN, becomes the least integer.
    _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(OVERFLOW), value))
}

/// Sums to floats: a strip's rows to `y`, rows `ldc` apart. `fma` rounds the product with the factor and the bias once.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn scale(sums: &Sums, strip: &Strip, with: &Scale<'_>, y: &mut [f32], place: &Place) {
    let Place { at, width, ldc, .. } = *place;
    assert!(width <= PANEL && strip.count <= STRIP);
    let halves = [0, TILE_COLUMNS];
    // SAFETY: the arrays have two vectors of 16 elements each.
    let integers = |values: &[i32; PANEL]| halves.map(|j| unsafe { _mm512_loadu_si512(values.as_ptr().add(j).cast()) });
    // SAFETY: as above.
    let floats = |values: &[f32; PANEL]| halves.map(|j| unsafe { _mm512_loadu_ps(values.as_ptr().add(j)) });
    let (shift, factors, bias) = (integers(&with.shift.all), floats(with.factors), floats(with.bias));
    let taken = with.shift.rows.as_ref().map(|taken| (integers(&taken.column_sums), integers(&taken.zeros), taken.terms));
    let masks = halves.map(|j| ((1_u32 << width.saturating_sub(j).min(TILE_COLUMNS)) - 1) as u16);
    for (row, &to) in strip.to[..strip.count].iter().enumerate() {
        if to == Strip::SKIP {
            continue;
        }
        let (to, tile, line) = (to as usize, row / TILE_LINES * 2, row % TILE_LINES);
        let scale = _mm512_set1_ps(with.scales.map_or(1.0, |scales| scales[to]));
        let y = &mut y[to * ldc + at..][..width];
        for half in 0..2 {
            // SAFETY: a line of sums has 16 elements.
            let sum = unsafe { _mm512_loadu_si512(sums.0[tile + half][line].as_ptr().cast()) };
            let mut sum = _mm512_add_epi32(sum, shift[half]);
            if let Some((column_sums, zeros, terms)) = &taken {
                let zero = _mm512_set1_epi32(terms.zeros.map_or(0, |zeros| zeros[to]));
                sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, column_sums[half]));
                if let Some(sums) = terms.sums {
                    sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(sums[to]), zeros[half]));
                }
            }
            let mut value = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale), factors[half], bias[half]);
            let place = y.as_mut_ptr().wrapping_add(halves[half]);
            if with.adds {
                // SAFETY: the mask leaves out columns beyond the slice's width.
                value = _mm512_add_ps(value, unsafe { _mm512_maskz_loadu_ps(masks[half], place) });
            }
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(place, masks[half], value) };
        }
        activate::<true>(with.activation, y);
    }
}
