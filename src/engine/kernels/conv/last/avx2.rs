//! Convolution with channels last: the tile with AVX2 and FMA intrinsics. The same sums in the same order as with AVX-512, with half as
//! many rows of registers half as wide.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_set1_ps, _mm256_setzero_ps,
};

use super::tile::{Tile, bounds};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::gemm::avx2::{LANES, POINTERS, REACH, load, store};

/// Computes a tile.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for AVX2: at most 6 rows, width 16 or 8.
#[target_feature(enable = "avx2,fma")]
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
        by_rows!(2, 1 2 3 4 5 6);
    } else {
        by_rows!(1, 1 2 3 4 5 6);
    }
}

/// # Safety
///
/// As for [`tile`], and `R == tile.rows`, `V * 8 == tile.width`.
#[target_feature(enable = "avx2,fma")]
unsafe fn body<const R: usize, const V: usize>(tile: &mut Tile<'_>) {
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    if !tile.first {
        for i in 0..R {
            acc[i] = load(&tile.c[i * tile.ldc..][..tile.columns]);
        }
    }
    // SAFETY: `check` saw a and b to hold all runs in this layout.
    unsafe { accumulate::<R, V>(tile, &mut acc) };
    if let Some(epilogue) = &tile.finish {
        finish::<R, V>(epilogue, tile.columns, &mut acc);
    }
    for i in 0..R {
        store(acc[i], &mut tile.c[i * tile.ldc..][..tile.columns]);
    }
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    if bounds(activation).is_none() {
        activate_rows(activation, tile);
    }
}

/// The other activations, on what was stored; one copy of their code serves all tile sizes.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
    activate_each::<true>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
}

/// # Safety
///
/// As for [`body`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate<const R: usize, const V: usize>(tile: &Tile<'_>, acc: &mut [[__m256; V]; R]) {
    let mut sums = *acc;
    let mut b = tile.b.as_ptr();
    let lda = tile.lda;
    // One step of the run, `$s` elements behind the pointers.
    macro_rules! step {
        ($a:ident, $s:literal) => {
            // SAFETY: in step s of the run, b points at `width` elements of the panel, and row i of a has an element s behind the
            // beginning of the run: all seen by `check`.
            unsafe {
                let mut row = [_mm256_setzero_ps(); V];
                for v in 0..V {
                    row[v] = _mm256_loadu_ps(b.wrapping_add(($s * V + v) * LANES));
                }
                for i in 0..R {
                    let value = _mm256_set1_ps(*$a[i / REACH].wrapping_add(i % REACH * lda + $s));
                    for v in 0..V {
                        sums[i][v] = _mm256_fmadd_ps(value, row[v], sums[i][v]);
                    }
                }
            }
        };
    }
    for run in tile.runs {
        let first = tile.a.as_ptr().wrapping_add(*run);
        let mut a: [*const f32; POINTERS] = std::array::from_fn(|p| first.wrapping_add(p * REACH * lda));
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
#[target_feature(enable = "avx2,fma")]
fn finish<const R: usize, const V: usize>(finish: &Epilogue<'_>, columns: usize, acc: &mut [[__m256; V]; R]) {
    if let Bias::PerColumn(bias) = finish.bias {
        let bias: [__m256; V] = load(&bias[..columns]);
        for i in 0..R {
            for v in 0..V {
                acc[i][v] = _mm256_add_ps(acc[i][v], bias[v]);
            }
        }
    }
    let Some((low, high)) = bounds(finish.activation).filter(|_| finish.activation != Activation::None) else { return };
    let (low, high) = (_mm256_set1_ps(low), _mm256_set1_ps(high));
    for i in 0..R {
        for v in 0..V {
            // The second operand is the answer if either is NaN, so a NaN sum stays NaN.
            acc[i][v] = _mm256_min_ps(high, _mm256_max_ps(low, acc[i][v]));
        }
    }
}
