//! The product with AVX2: pairs of 16-bit products, for those of 8 bits saturate.

use std::arch::x86_64::{
    __m256i, _mm_cvtepu8_epi16, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi32, _mm256_broadcastq_epi64, _mm256_cvtepi8_epi16,
    _mm256_hadd_epi32, _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_setzero_si256, _mm256_storeu_si256,
};
use std::ops::Range;

use super::{Line, Rows, STEP, Sums, TILE_COLUMNS, TILE_LINES};

/// # Safety
///
/// The machine has the instructions; the rows' steps lie in the data, the steps' lines in the panel.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(rows: &Rows<'_>, panel: &[Line], steps: Range<usize>, sums: &mut Sums) {
    let mut row = 0;
    while row < rows.count {
        // SAFETY: the caller's promise, for fewer rows.
        row += unsafe {
            if rows.count - row >= 2 {
                some_rows::<2>(rows, row, panel, steps.clone(), sums)
            } else {
                some_rows::<1>(rows, row, panel, steps.clone(), sums)
            }
        };
    }
}

/// # Safety
///
/// As [`multiply`]; there are `R` rows from `row` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn some_rows<const R: usize>(rows: &Rows<'_>, row: usize, panel: &[Line], steps: Range<usize>, sums: &mut Sums) -> usize {
    let left = rows.left;
    for half in 0..2 {
        // Four columns in each, two sums for each column.
        let mut acc = [[_mm256_setzero_si256(); 4]; R];
        for step in steps.clone() {
            let first = left.data.as_ptr().wrapping_add(left.offsets[step] + (rows.start + row) * left.stride);
            let lines = &panel[(step * 2 + half) * TILE_LINES..][..TILE_LINES];
            for quad in 0..STEP / 4 {
                let line = lines[quad].0.as_ptr();
                // SAFETY: a line has 64 bytes.
                let b: [__m256i; 4] = std::array::from_fn(|v| _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(line.add(16 * v).cast()) }));
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: four bytes of a step of a row, which lies in the data as the caller promises.
                    let a = unsafe { first.add(i * left.stride + quad * 4).cast::<i32>().read_unaligned() };
                    let a = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(a)));
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(a, b));
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            let to = &mut sums.0[(row + i) / TILE_LINES * 2 + half][(row + i) % TILE_LINES];
            let mut found = [0_i32; TILE_COLUMNS];
            for (pair, found) in acc.as_chunks::<2>().0.iter().zip(found.as_chunks_mut::<8>().0) {
                // Columns 0 1, 4 5, 2 3, 6 7.
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(pair[0], pair[1]));
                // SAFETY: the array has 32 bytes.
                unsafe { _mm256_storeu_si256(found.as_mut_ptr().cast(), both) };
            }
            for (to, found) in to.iter_mut().zip(found) {
                *to = if rows.first { found } else { to.wrapping_add(found) };
            }
        }
    }
    R
}
