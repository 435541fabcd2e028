//! Convolution with channels last: the tile with AVX2 and FMA intrinsics. The same sums in the same order as with AVX-512, with half as
//! many rows of registers half as wide.

use std::arch::x86_64::{
    __m256, _MM_HINT_T1, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
};

use super::tile::Tile;
use crate::engine::kernels::epilogue::{Activation, Bias, activate_each};
use crate::engine::kernels::gemm::avx2::{Group, LANES, LINE, POINTERS, REACH, bound, each_group, limits, load, store_rows};

/// Computes a tile, or several behind each other.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for AVX2: width 16 or 8.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(tile: &mut Tile<'_>) {
    // SAFETY: the caller's promise, with the constants equal to the tile's own sizes.
    unsafe { each_group!(tile, tile.next, body) };
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    if activation.bounds().is_none() {
        activate_rows(activation, tile);
    }
}

/// The other activations, on what was stored; one copy of their code serves all tile sizes.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
    activate_each::<true>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
}

/// Tiles of `R` pixels: the sums, the bias, and the activations that are a pair of bounds. All of it is one function and its loop: what
/// follows a tile is done while the next one begins.
///
/// # Safety
///
/// As for [`tile`]; the group's pixels are among its own, and `V * 8 == tile.width`.
#[target_feature(enable = "avx2,fma")]
unsafe fn body<const R: usize, const V: usize>(tile: &mut Tile<'_>, group: Group<'_>) {
    let (lda, columns, ldc) = (tile.lda, tile.columns, tile.ldc);
    let bias: Option<[__m256; V]> = match tile.finish.map(|finish| finish.bias) {
        Some(Bias::PerColumn(bias)) => Some(load(&bias[..columns])),
        _ => None,
    };
    let limits = limits(tile.finish);
    let pace = group.pace(tile.runs.len() * (tile.len / 4));
    for index in 0..group.count {
        let pixel = group.first + index * R;
        let mut fetched = group.next.as_ptr().wrapping_add(index * group.share);
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        if !tile.first {
            for i in 0..R {
                sums[i] = load(&tile.c[(pixel + i) * ldc..][..columns]);
            }
        }
        let mut b = tile.b.as_ptr();
        // One step of the run, `$s` elements behind the pointers.
        macro_rules! step {
            ($a:ident, $s:literal) => {
                // SAFETY: in step s of the run, b points at `width` elements of the panel, and row i of a has an element s behind the
                // beginning of the run: all seen by `check`.
                unsafe {
                    let mut step = [_mm256_setzero_ps(); V];
                    for v in 0..V {
                        step[v] = _mm256_loadu_ps(b.wrapping_add(($s * V + v) * LANES));
                    }
                    for i in 0..R {
                        let value = _mm256_set1_ps(*$a[i / REACH].wrapping_add(i % REACH * lda + $s));
                        for v in 0..V {
                            sums[i][v] = _mm256_fmadd_ps(value, step[v], sums[i][v]);
                        }
                    }
                }
            };
        }
        for run in tile.runs {
            let first = tile.a.as_ptr().wrapping_add(pixel * lda + *run);
            let mut a: [*const f32; POINTERS] = std::array::from_fn(|p| first.wrapping_add(p * REACH * lda));
            for _ in 0..tile.len / 4 {
                for _ in 0..pace {
                    _mm_prefetch::<_MM_HINT_T1>(fetched.cast());
                    fetched = fetched.wrapping_add(LINE);
                }
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
        if let Some(bias) = bias {
            for i in 0..R {
                for v in 0..V {
                    sums[i][v] = _mm256_add_ps(sums[i][v], bias[v]);
                }
            }
        }
        if let Some((low, high)) = limits {
            bound(low, high, &mut sums);
        }
        store_rows(sums, &mut tile.c[pixel * ldc..], ldc, columns);
    }
}
