//! The tile with AVX2 and FMA intrinsics.
//!
//! Intrinsics because the compiler does not keep 12 accumulators of an array of arrays in registers once their number is
//! generic (the portable body reached 29 % of the peak at 1024³, this one 73 %). The arithmetic is safe inside
//! `#[target_feature]` functions; `unsafe` is for loads and stores, whose bounds [`super::tile::run`] has checked.

use std::arch::x86_64::{
    __m256, _MM_HINT_T1, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps,
};

pub(in crate::engine::kernels) use super::pack::LINE;
use super::tile::{Rows, Tile, heights, shape};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::isa::Isa;

/// Elements per register.
pub(in crate::engine::kernels) const LANES: usize = 8;

/// Registers side by side in a full tile.
const VECTORS_MAX: usize = 2;

/// Computes a tile, or several below each other.
///
/// # Safety
///
/// - The machine has the features named below.
/// - `Tile::check` has passed for the AVX2 shape: 6 rows, width 16 or 8.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(tile: &mut Tile<'_>, next: &[f32]) {
    // SAFETY: the caller's promise, with the constants equal to the tile's own sizes.
    unsafe { each_group!(tile, next, by_layout) };
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    if activation.bounds().is_none() {
        activate_rows(activation, tile);
    }
}

/// Tiles of one height: the first row, how many, and what they fetch, `share` elements each.
pub(in crate::engine::kernels) struct Group<'a> {
    pub first: usize,
    pub count: usize,
    pub next: &'a [f32],
    pub share: usize,
}

/// Calls `$body::<R, V>(tile, group)`, which is unsafe, with each group of a tile's rows: of `R` rows in each tile, and of panels of `V` registers.
macro_rules! each_group {
    ($tile:ident, $next:expr, $body:ident) => { $crate::engine::kernels::gemm::avx2::each_group!($tile, $next, $body, 1 2 3 4 5 6) };
    ($tile:ident, $next:expr, $body:ident, $($rows:literal)*) => {
        for (height, group) in $crate::engine::kernels::gemm::avx2::groups($tile.rows, $next) {
            match ($tile.width / $crate::engine::kernels::gemm::avx2::LANES, height) {
                $((2, $rows) => $body::<$rows, 2>($tile, group), (_, $rows) => $body::<$rows, 1>($tile, group),)*
                (_, rows) => unreachable!("a tile of {rows} rows"),
            }
        }
    };
}
pub(in crate::engine::kernels) use each_group;

/// The groups that rows are cut into and the height of their tiles, which fetch an equal share of `next` each.
pub(in crate::engine::kernels) fn groups(rows: usize, mut next: &[f32]) -> impl Iterator<Item = (usize, Group<'_>)> {
    let most = shape(Isa::Avx2).rows;
    let share = next.len().div_ceil(rows.div_ceil(most));
    heights(rows, most).into_iter().filter(|(.., count)| *count > 0).map(move |(first, height, count)| {
        let next = next.split_off(..next.len().min(count * share)).unwrap_or_default();
        (height, Group { first, count, next, share })
    })
}

impl Group<'_> {
    /// Lines of the cache that a tile fetches in each of its so many quads of steps.
    pub(in crate::engine::kernels) fn pace(&self, quads: usize) -> usize {
        if self.next.is_empty() { 0 } else { self.share.div_ceil(LINE).div_ceil(quads.max(1)).min(QUAD) }
    }
}

/// How rows of the left operand lie, for the compiler.
const PACKED: usize = 0;
const BLOCKED: usize = 1;
const STRIDED: usize = 2;

/// # Safety
///
/// As for [`tile`]; `V * 8 == tile.width`, and the group's rows, `R` in each of its tiles, are among those of the tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn by_layout<const R: usize, const V: usize>(tile: &mut Tile<'_>, group: Group<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.a_rows {
            Rows::Packed => body::<R, V, PACKED>(tile, 0, group),
            Rows::Blocked => body::<R, V, BLOCKED>(tile, 0, group),
            Rows::Strided(lda) => body::<R, V, STRIDED>(tile, lda, group),
        }
    }
}

/// The sums of some tiles, their scale and bias, and the activations that are a pair of bounds. All of it is one function and its loop: what
/// follows a tile is done while the next one begins.
///
/// # Safety
///
/// As for [`by_layout`], of which `LAYOUT` and `lda` say how a lies.
#[target_feature(enable = "avx2,fma")]
unsafe fn body<const R: usize, const V: usize, const LAYOUT: usize>(tile: &mut Tile<'_>, lda: usize, group: Group<'_>) {
    let lda = if LAYOUT == BLOCKED { const { shape(Isa::Avx2).stride() } } else { lda };
    let (columns, ldc) = (tile.columns, tile.ldc);
    let bias: [__m256; V] = match tile.finish.map(|finish| finish.bias) {
        Some(Bias::PerColumn(bias)) => load(bias),
        _ => [_mm256_setzero_ps(); V],
    };
    let limits = limits(tile.finish);
    // Only where the rows of b follow one another.
    let quads = if tile.b_stride == V * LANES { tile.k / QUAD } else { 0 };
    let pace = group.pace(quads);
    for index in 0..group.count {
        let row = group.first + index * R;
        let mut fetched = group.next.as_ptr().wrapping_add(index * group.share);
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        if !tile.first {
            for i in 0..R {
                sums[i] = load(&tile.c[(row + i) * ldc..][..columns]);
            }
        }
        let first = tile.a.as_ptr().wrapping_add(row * lda);
        let mut a: [*const f32; POINTERS] =
            std::array::from_fn(|p| if LAYOUT == PACKED { first } else { first.wrapping_add(p * REACH * lda) });
        let mut b = tile.b.as_ptr();
        // The step that lies `$s` behind the pointers; other than 0 only where the rows of b follow one another.
        macro_rules! step {
            ($s:literal) => {
                // SAFETY: in step s, b points at `s * b_stride`, with `width` elements behind it; a at `s * R` (packed) or `s`, and
                // the element of row i lies `i` or `i * lda` further: all seen by `check`. Moving on beyond the last step wraps.
                unsafe {
                    let mut step = [_mm256_setzero_ps(); V];
                    for v in 0..V {
                        step[v] = _mm256_loadu_ps(b.add($s * V * LANES + v * LANES));
                    }
                    for i in 0..R {
                        let at = if LAYOUT == PACKED { a[0].add($s * R + i) } else { a[i / REACH].wrapping_add(i % REACH * lda + $s) };
                        let value = _mm256_set1_ps(*at);
                        for v in 0..V {
                            sums[i][v] = _mm256_fmadd_ps(value, step[v], sums[i][v]);
                        }
                    }
                }
            };
        }
        for _ in 0..quads {
            for _ in 0..pace {
                _mm_prefetch::<_MM_HINT_T1>(fetched.cast());
                fetched = fetched.wrapping_add(LINE);
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            a = a.map(|a| a.wrapping_add(QUAD * if LAYOUT == PACKED { R } else { 1 }));
            b = b.wrapping_add(QUAD * V * LANES);
        }
        for _ in QUAD * quads..tile.k {
            step!(0);
            a = a.map(|a| a.wrapping_add(if LAYOUT == PACKED { R } else { 1 }));
            b = b.wrapping_add(tile.b_stride);
        }
        if let Some(finish) = &tile.finish {
            scale_and_bias(finish, row, bias, &mut sums);
        }
        if let Some((low, high)) = limits {
            bound(low, high, &mut sums);
        }
        store_rows(sums, &mut tile.c[row * ldc..], ldc, columns);
    }
}

/// The other activations, on what was stored; one copy of their code serves all tile sizes.
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

#[inline]
#[target_feature(enable = "avx2,fma")]
fn scale_and_bias<const R: usize, const V: usize>(finish: &Epilogue<'_>, row: usize, columns: [__m256; V], acc: &mut [[__m256; V]; R]) {
    let alpha = _mm256_set1_ps(finish.alpha);
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
            let bias: &[f32; R] = bias[row..].first_chunk().expect("a bias for each row of the tile");
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(alpha, acc[i][v], _mm256_set1_ps(bias[i]));
                }
            }
        }
    }
}

/// The bounds of an activation that is a pair of them, in every lane.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::engine::kernels) fn limits(finish: Option<Epilogue<'_>>) -> Option<(__m256, __m256)> {
    let finish = finish.filter(|finish| finish.activation != Activation::None)?;
    finish.activation.bounds().map(|(low, high)| (_mm256_set1_ps(low), _mm256_set1_ps(high)))
}

/// Applies [`limits`] to sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::engine::kernels) fn bound<const R: usize, const V: usize>(low: __m256, high: __m256, acc: &mut [[__m256; V]; R]) {
    for i in 0..R {
        for v in 0..V {
            // The second operand is the answer if either is NaN, so a NaN sum stays NaN.
            acc[i][v] = _mm256_min_ps(high, _mm256_max_ps(low, acc[i][v]));
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

/// Stores `columns` lanes of each row, rows `ldc` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(in crate::engine::kernels) fn store_rows<const R: usize, const V: usize>(
    rows: [[__m256; V]; R],
    c: &mut [f32],
    ldc: usize,
    columns: usize,
) {
    if columns == V * LANES {
        let c = c[..(R - 1) * ldc + V * LANES].as_mut_ptr();
        for i in 0..R {
            for v in 0..V {
                // SAFETY: R rows of V registers of 8 elements, `ldc` apart, were seen to lie within.
                unsafe { _mm256_storeu_ps(c.add(i * ldc + v * LANES), rows[i][v]) };
            }
        }
    } else {
        for i in 0..R {
            store(rows[i], &mut c[i * ldc..][..columns]);
        }
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
