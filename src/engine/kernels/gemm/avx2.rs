//! The tile with AVX2 and FMA intrinsics.
//!
//! Intrinsics because the compiler does not keep 12 accumulators of an array of arrays in registers once their number is
//! generic (the portable body reached 29 % of the peak at 1024³, this one 73 %). The arithmetic is safe inside
//! `#[target_feature]` functions; `unsafe` is for loads and stores, whose bounds [`super::tile::run`] has checked.

use std::arch::x86_64::{
    __m256, _MM_HINT_T1, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::pack::LINE;
use super::tile::{Rows, Tile, shape};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::isa::Isa;

/// Elements per register.
pub(in crate::engine::kernels) const LANES: usize = 8;

/// Registers side by side in a full tile.
const VECTORS_MAX: usize = 2;

/// Computes a tile.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for the AVX2 shape: 6 rows, width 16 or 8.
#[target_feature(enable = "avx2,fma")]
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
    if tile.width == VECTORS_MAX * LANES {
        by_rows!(2, 1 2 3 4 5 6);
    } else {
        by_rows!(1, 1 2 3 4 5 6);
    }
}

/// # Safety
///
/// As for [`tile`], and `R == tile.rows`, `V * 8 == tile.width`.
#[target_feature(enable = "avx2,fma")]
unsafe fn body<const R: usize, const V: usize>(tile: &mut Tile<'_>, next: &[f32]) {
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    if !tile.first {
        for i in 0..R {
            acc[i] = load(&tile.c[i * tile.ldc..][..tile.columns]);
        }
    }
    // SAFETY: `check` saw a and b to hold `k` steps in this layout.
    unsafe {
        match tile.a_rows {
            Rows::Packed => accumulate::<R, V, true>(tile, 0, &mut acc, next),
            Rows::Blocked => accumulate::<R, V, false>(tile, const { shape(Isa::Avx2).stride() }, &mut acc, next),
            Rows::Strided(lda) => accumulate::<R, V, false>(tile, lda, &mut acc, next),
        }
    }
    if let Some(finish) = &tile.finish {
        scale_and_bias(finish, &mut acc);
    }
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    for i in 0..R {
        store(acc[i], &mut tile.c[i * tile.ldc..][..tile.columns]);
    }
    if activation != Activation::None {
        activate_rows(activation, tile);
    }
}

/// The activation, on what was stored; one copy of its code serves all tile sizes.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
    activate_each::<true>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
}

/// Rows that one pointer reaches: itself, and once and twice the distance, which an address scales by 4 and 8.
pub(in crate::engine::kernels) const REACH: usize = 3;

/// Pointers that 6 rows need.
pub(in crate::engine::kernels) const POINTERS: usize = 2;

/// Steps whose addresses are computed together.
const QUAD: usize = 4;

/// Adds `a · b` to the accumulators, and meanwhile fetches `next`.
///
/// # Safety
///
/// As for [`body`]; `PACKED` says that a is `[k][R]`, otherwise its rows are `lda` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate<const R: usize, const V: usize, const PACKED: bool>(
    tile: &Tile<'_>,
    lda: usize,
    acc: &mut [[__m256; V]; R],
    next: &[f32],
) {
    let first = tile.a.as_ptr();
    let mut a: [*const f32; POINTERS] = std::array::from_fn(|p| if PACKED { first } else { first.wrapping_add(p * REACH * lda) });
    let mut b = tile.b.as_ptr();
    let mut sums = *acc;
    // The step that lies `$s` behind the pointers; other than 0 only where the rows of b follow one another.
    macro_rules! step {
        ($s:literal) => {
            // SAFETY: in step s, b points at `s * b_stride`, with `width` elements behind it; a at `s * R` (packed) or `s`, and
            // the element of row i lies `i` or `i * lda` further: all seen by `check`. Moving on beyond the last step wraps.
            unsafe {
                let mut row = [_mm256_setzero_ps(); V];
                for v in 0..V {
                    row[v] = _mm256_loadu_ps(b.add($s * V * LANES + v * LANES));
                }
                for i in 0..R {
                    let value =
                        _mm256_set1_ps(if PACKED { *a[0].add($s * R + i) } else { *a[i / REACH].wrapping_add(i % REACH * lda + $s) });
                    for v in 0..V {
                        sums[i][v] = _mm256_fmadd_ps(value, row[v], sums[i][v]);
                    }
                }
            }
        };
    }
    let quads = if tile.b_stride == V * LANES { tile.k / QUAD } else { 0 };
    let mut fetched = next.as_ptr();
    // Lines of the cache for each quad.
    let pace = next.len().div_ceil(LINE).div_ceil(quads.max(1)).min(QUAD);
    for _ in 0..quads {
        for _ in 0..pace {
            _mm_prefetch::<_MM_HINT_T1>(fetched.cast());
            fetched = fetched.wrapping_add(LINE);
        }
        step!(0);
        step!(1);
        step!(2);
        step!(3);
        a = a.map(|a| a.wrapping_add(QUAD * if PACKED { R } else { 1 }));
        b = b.wrapping_add(QUAD * V * LANES);
    }
    for _ in QUAD * quads..tile.k {
        step!(0);
        a = a.map(|a| a.wrapping_add(if PACKED { R } else { 1 }));
        b = b.wrapping_add(tile.b_stride);
    }
    *acc = sums;
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn scale_and_bias<const R: usize, const V: usize>(finish: &Epilogue<'_>, acc: &mut [[__m256; V]; R]) {
    let alpha = _mm256_set1_ps(finish.alpha);
    let columns: [__m256; V] = match finish.bias {
        Bias::PerColumn(bias) => load(bias),
        _ => [_mm256_setzero_ps(); V],
    };
    // Indexed loops with the choice outside: the compiler unrolls them and keeps the accumulators in registers.
    match finish.bias {
        Bias::None => {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_mul_ps(alpha, acc[i][v]);
                }
            }
        }
        Bias::PerColumn(_) => {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(alpha, acc[i][v], columns[v]);
                }
            }
        }
        Bias::PerRow(bias) => {
            let bias: &[f32; R] = bias.first_chunk().expect("a bias for each row of the tile");
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(alpha, acc[i][v], _mm256_set1_ps(bias[i]));
                }
            }
        }
    }
}

/// Loads `values`; lanes beyond them are zero.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::engine::kernels) fn load<const V: usize>(values: &[f32]) -> [__m256; V] {
    let mut padded = [0.0; VECTORS_MAX * LANES];
    let source = if values.len() == V * LANES { values } else { pad(values, &mut padded) };
    let mut loaded = [_mm256_setzero_ps(); V];
    let source = source[..V * LANES].as_ptr();
    for v in 0..V {
        // SAFETY: V registers of 8 elements were seen to lie within.
        loaded[v] = unsafe { _mm256_loadu_ps(source.add(v * LANES)) };
    }
    loaded
}

/// Stores as many lanes as `row` has elements.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::engine::kernels) fn store<const V: usize>(registers: [__m256; V], row: &mut [f32]) {
    let mut padded = [0.0; VECTORS_MAX * LANES];
    let whole = row.len() == V * LANES;
    let target = if whole { &mut *row } else { &mut padded };
    let target = target[..V * LANES].as_mut_ptr();
    for v in 0..V {
        // SAFETY: V registers of 8 elements were seen to lie within.
        unsafe { _mm256_storeu_ps(target.add(v * LANES), registers[v]) };
    }
    if !whole {
        cut(&padded, row);
    }
}

/// Copies `values` to the front of `padded`. A call, as is [`cut`]: where such a copy is inlined, the compiler makes one of it and of the
/// whole registers' way, and every row of every tile goes through memory and a copy of a length that is not known.
#[inline(never)]
fn pad<'a>(values: &[f32], padded: &'a mut [f32; VECTORS_MAX * LANES]) -> &'a [f32] {
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// Copies the front of `padded` to `row`.
#[inline(never)]
fn cut(padded: &[f32; VECTORS_MAX * LANES], row: &mut [f32]) {
    row.copy_from_slice(&padded[..row.len()]);
}
