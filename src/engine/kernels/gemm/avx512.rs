//! The tile with AVX-512 intrinsics.
//!
//! Intrinsics because the compiler does not keep 24 accumulators of an array of arrays in registers. The arithmetic is safe
//! inside `#[target_feature]` functions; `unsafe` is for loads and stores, whose bounds [`super::tile::run`] has checked.

use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_T1, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

use super::tile::{Rows, Tile, shape};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::isa::Isa;

/// Elements per register.
const LANES: usize = 16;

/// Computes a tile.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for the AVX-512 shape: 12 rows, width 32 or 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn tile(tile: &mut Tile<'_>, next: &[f32]) {
    macro_rules! by_rows {
        ($vectors:literal, $($rows:literal)*) => {
            match tile.rows {
                // SAFETY: the caller's promise, with the constants equal to the tile's own sizes.
                $($rows => unsafe { body::<$rows, $vectors>(tile, next) },)*
                rows => unreachable!("a tile of {rows} rows passed the check"),
            }
        };
    }
    if tile.width == 2 * LANES {
        by_rows!(2, 1 2 3 4 5 6 7 8 9 10 11 12);
    } else {
        by_rows!(1, 1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// # Safety
///
/// As for [`tile`], and `R == tile.rows`, `V * 16 == tile.width`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn body<const R: usize, const V: usize>(tile: &mut Tile<'_>, next: &[f32]) {
    let masks: [__mmask16; V] = column_masks(tile.columns);
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    if !tile.first {
        for i in 0..R {
            for v in 0..V {
                // SAFETY: the mask leaves out columns beyond `columns`, and `check` saw `columns` elements in row `i` of c.
                acc[i][v] = unsafe { _mm512_maskz_loadu_ps(masks[v], tile.c.as_ptr().add(i * tile.ldc).wrapping_add(v * LANES)) };
            }
        }
    }
    // SAFETY: `check` saw a and b to hold `k` steps in this layout.
    unsafe {
        match tile.a_rows {
            Rows::Packed => accumulate::<R, V, PACKED>(tile, 0, next, &mut acc),
            Rows::Blocked => accumulate::<R, V, BLOCKED>(tile, 0, next, &mut acc),
            Rows::Strided(lda) => accumulate::<R, V, STRIDED>(tile, lda, next, &mut acc),
        }
    }
    if let Some(finish) = &tile.finish {
        scale_and_bias(finish, &masks, &mut acc);
    }
    for i in 0..R {
        for v in 0..V {
            // SAFETY: as for the load above.
            unsafe {
                _mm512_mask_storeu_ps(tile.c.as_mut_ptr().add(i * tile.ldc).wrapping_add(v * LANES), masks[v], acc[i][v]);
            }
        }
    }
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    if !matches!(activation, Activation::None | Activation::Relu | Activation::Clip { .. }) {
        activate_rows(activation, tile);
    }
}

/// The other activations, on what was stored; one copy of their code serves all tile sizes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
    activate_each::<true>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
}

/// Adds `a · b` to the accumulators, and meanwhile fetches `next`.
///
/// # Safety
///
/// As for [`body`]; `LAYOUT` is that of a, whose rows are `lda` apart if it is [`STRIDED`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn accumulate<const R: usize, const V: usize, const LAYOUT: u8>(
    tile: &Tile<'_>,
    lda: usize,
    next: &[f32],
    acc: &mut [[__m512; V]; R],
) {
    let mut a = tile.a.as_ptr();
    let mut b = tile.b.as_ptr();
    let mut sums = *acc;
    // Nothing to fetch is a hint for what is there. Two lines a step: no memory delivers faster. That a line is asked for in several
    // steps costs less than a loop around those of one line.
    let (mut fetched, pace) = if next.is_empty() { (b, 0) } else { (next.as_ptr(), next.len().div_ceil(tile.k.max(1)).min(2 * LANES)) };
    for _ in 0..tile.k {
        // SAFETY: in step s, b points at `s * b_stride`, with `width` elements behind it; a at `s * R` (packed) or `s`, and
        // the element of row i lies `i` or i rows further: all seen by `check`. Moving on beyond the last step wraps.
        unsafe {
            let mut row = [_mm512_setzero_ps(); V];
            for v in 0..V {
                row[v] = _mm512_loadu_ps(b.add(v * LANES));
            }
            _mm_prefetch::<_MM_HINT_T1>(fetched.cast());
            _mm_prefetch::<_MM_HINT_T1>(fetched.wrapping_add(LANES).cast());
            for i in 0..R {
                let distance = match LAYOUT {
                    PACKED => i,
                    BLOCKED => i * const { shape(Isa::Avx512).stride() },
                    _ => i * lda,
                };
                let value = _mm512_set1_ps(*a.add(distance));
                for v in 0..V {
                    sums[i][v] = _mm512_fmadd_ps(value, row[v], sums[i][v]);
                }
            }
        }
        a = a.wrapping_add(if LAYOUT == PACKED { R } else { 1 });
        b = b.wrapping_add(tile.b_stride);
        fetched = fetched.wrapping_add(pace);
    }
    *acc = sums;
}

/// The layouts of a left operand, as [`Rows`] names them.
const PACKED: u8 = 0;
const BLOCKED: u8 = 1;
const STRIDED: u8 = 2;

/// Scale and bias, and the activations that are a pair of bounds.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn scale_and_bias<const R: usize, const V: usize>(finish: &Epilogue<'_>, masks: &[__mmask16; V], acc: &mut [[__m512; V]; R]) {
    let alpha = _mm512_set1_ps(finish.alpha);
    let mut columns = [_mm512_setzero_ps(); V];
    if let Bias::PerColumn(bias) = finish.bias {
        assert!(V * LANES - masks.iter().map(|mask| mask.leading_zeros() as usize).sum::<usize>() <= bias.len());
        for v in 0..V {
            // SAFETY: the assertion above: `bias` has as many elements as the masks have lanes.
            columns[v] = unsafe { _mm512_maskz_loadu_ps(masks[v], bias.as_ptr().wrapping_add(v * LANES)) };
        }
    }
    // Indexed loops with the choice outside: the compiler unrolls them and keeps the accumulators in registers.
    match finish.bias {
        Bias::None => {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm512_mul_ps(alpha, acc[i][v]);
                }
            }
        }
        Bias::PerColumn(_) => {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(alpha, acc[i][v], columns[v]);
                }
            }
        }
        Bias::PerRow(bias) => {
            let bias: &[f32; R] = bias.first_chunk().expect("a bias for each row of the tile");
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(alpha, acc[i][v], _mm512_set1_ps(bias[i]));
                }
            }
        }
    }
    let (low, high) = match finish.activation {
        Activation::Relu => (0.0, f32::INFINITY),
        Activation::Clip { min, max } => (min, max),
        _ => return,
    };
    let (low, high) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
    for i in 0..R {
        for v in 0..V {
            // The second operand is the answer if either is NaN, so a NaN sum stays NaN.
            acc[i][v] = _mm512_min_ps(high, _mm512_max_ps(low, acc[i][v]));
        }
    }
}

/// One mask per register: lane `j` of register `v` is set if column `v * 16 + j` is stored.
#[inline]
fn column_masks<const V: usize>(columns: usize) -> [__mmask16; V] {
    std::array::from_fn(|v| {
        let lanes = columns.saturating_sub(v * LANES).min(LANES);
        ((1u32 << lanes) - 1) as __mmask16
    })
}
