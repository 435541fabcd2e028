//! Convolution with channels last: the tile with AVX-512 intrinsics.
//!
//! As in the tile of matrix products the sums stay in registers; here the rows of the left operand are pixels of an image, and there
//! are several runs of neighbours in it. Every third row has a pointer of its own, those between are reached by the scaled index that
//! an address may have.

use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

use super::tile::Tile;
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};

/// Elements per register.
const LANES: usize = 16;

/// Computes a tile.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for AVX-512: at most 12 rows, width 32 or 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn tile(tile: &mut Tile<'_>) {
    macro_rules! by_rows {
        ($vectors:literal, $($rows:literal)*) => {
            match tile.rows {
                // SAFETY: the caller's promise, with the constants equal to the tile's own sizes.
                $($rows => unsafe { body::<$rows, $vectors>(tile) },)*
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
unsafe fn body<const R: usize, const V: usize>(tile: &mut Tile<'_>) {
    let masks: [__mmask16; V] = std::array::from_fn(|v| ((1_u32 << tile.columns.saturating_sub(v * LANES).min(LANES)) - 1) as __mmask16);
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    if !tile.first {
        for i in 0..R {
            for v in 0..V {
                // SAFETY: the mask leaves out columns beyond `columns`, and `check` saw `columns` elements in row `i` of c.
                acc[i][v] = unsafe { _mm512_maskz_loadu_ps(masks[v], tile.c.as_ptr().add(i * tile.ldc).wrapping_add(v * LANES)) };
            }
        }
    }
    // SAFETY: `check` saw a and b to hold all runs in this layout.
    unsafe { accumulate::<R, V>(tile, &mut acc) };
    if let Some(epilogue) = &tile.finish {
        finish::<R, V>(epilogue, tile.columns, &masks, &mut acc);
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
    if activation.bounds().is_none() {
        activate_rows(activation, tile);
    }
}

/// The other activations, on what was stored; one copy of their code serves all tile sizes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
    activate_each::<true>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
}

/// Rows that one pointer reaches: itself, and once and twice the distance, which an address scales by 4 and 8.
const REACH: usize = 3;

/// Pointers that 12 rows need.
const POINTERS: usize = 4;

/// # Safety
///
/// As for [`body`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn accumulate<const R: usize, const V: usize>(tile: &Tile<'_>, acc: &mut [[__m512; V]; R]) {
    let mut sums = *acc;
    let mut b = tile.b.as_ptr();
    let lda = tile.lda;
    // One step of the run, `$s` elements behind the pointers.
    macro_rules! step {
        ($a:ident, $s:literal) => {
            // SAFETY: in step s of the run, b points at `width` elements of the panel, and row i of a has an element s behind the
            // beginning of the run: all seen by `check`.
            unsafe {
                let mut row = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    row[v] = _mm512_loadu_ps(b.wrapping_add(($s * V + v) * LANES));
                }
                for i in 0..R {
                    let value = _mm512_set1_ps(*$a[i / REACH].wrapping_add(i % REACH * lda + $s));
                    for v in 0..V {
                        sums[i][v] = _mm512_fmadd_ps(value, row[v], sums[i][v]);
                    }
                }
            }
        };
    }
    for run in tile.runs {
        let first = tile.a.as_ptr().wrapping_add(*run);
        let mut a: [*const f32; POINTERS] = std::array::from_fn(|p| first.wrapping_add(p * REACH * lda));
        // Four steps for each time that addresses are computed: that takes the ports that multiply.
        for _ in 0..tile.len / 4 {
            step!(a, 0);
            step!(a, 1);
            step!(a, 2);
            step!(a, 3);
            a = a.map(|a| a.wrapping_add(4));
            b = b.wrapping_add(4 * V * LANES);
        }
        for _ in 0..tile.len % 4 {
            step!(a, 0);
            a = a.map(|a| a.wrapping_add(1));
            b = b.wrapping_add(V * LANES);
        }
    }
    *acc = sums;
}

/// The bias, and the activations that are a pair of bounds.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn finish<const R: usize, const V: usize>(finish: &Epilogue<'_>, columns: usize, masks: &[__mmask16; V], acc: &mut [[__m512; V]; R]) {
    if let Bias::PerColumn(bias) = finish.bias {
        assert!(bias.len() >= columns);
        for v in 0..V {
            // SAFETY: the mask leaves out what lies beyond `columns`.
            let bias = unsafe { _mm512_maskz_loadu_ps(masks[v], bias.as_ptr().wrapping_add(v * LANES)) };
            for i in 0..R {
                acc[i][v] = _mm512_add_ps(acc[i][v], bias);
            }
        }
    }
    let Some((low, high)) = finish.activation.bounds().filter(|_| finish.activation != Activation::None) else { return };
    let (low, high) = (_mm512_set1_ps(low), _mm512_set1_ps(high));
    for i in 0..R {
        for v in 0..V {
            // The second operand is the answer if either is NaN, so a NaN sum stays NaN.
            acc[i][v] = _mm512_min_ps(high, _mm512_max_ps(low, acc[i][v]));
        }
    }
}
