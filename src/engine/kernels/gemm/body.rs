//! The bodies of a tile: one for all instruction sets, over a type of registers.
//!
//! A call takes all rows that pass by a panel, and cuts them into tiles in a loop of its own: what follows a tile is done while the next one
//! begins. The sums of a tile are an array of registers whose size the compiler knows, as it does the way that the left operand lies.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use super::pack::LINE;
use super::tile::{Rows, Tile, heights, shape};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::register::{Four, Register};

/// Tiles of one height: the first row, how many, and what they fetch, `share` elements each.
struct Group<'a> {
    first: usize,
    count: usize,
    next: &'a [f32],
    share: usize,
}

/// The groups that rows are cut into and the height of their tiles, `most` at most, which fetch an equal share of `next` each.
fn groups(rows: usize, most: usize, mut next: &[f32]) -> impl Iterator<Item = (usize, Group<'_>)> {
    let share = next.len().div_ceil(rows.div_ceil(most));
    heights(rows, most).into_iter().filter(|(.., count)| *count > 0).map(move |(first, height, count)| {
        let next = next.split_off(..next.len().min(count * share)).unwrap_or_default();
        (height, Group { first, count, next, share })
    })
}

/// How rows of the left operand lie, for the compiler.
const PACKED: usize = 0;
const BLOCKED: usize = 1;
const STRIDED: usize = 2;
const RUNS: usize = 3;

/// A function that computes a tile, or several below each other, with registers of a type: for each height of a tile, given here, a copy of the
/// body, compiled for the instruction set.
macro_rules! by_registers {
    ($name:ident, $register:ty, $fma:literal, $($rows:literal)* $(; $features:literal)?) => {
        /// # Safety
        ///
        /// - The machine has the features it is compiled for.
        /// - `Tile::check` has passed for the shape of the instruction set.
        $(#[target_feature(enable = $features)])?
        pub(super) unsafe fn $name(tile: &mut Tile<'_>, next: &[f32]) {
            $(#[target_feature(enable = $features)])?
            unsafe fn rows<const R: usize, const V: usize, const LAYOUT: usize>(tile: &mut Tile<'_>, group: Group<'_>) {
                // SAFETY: the caller's promise.
                unsafe { body::<$register, R, V, LAYOUT>(tile, group) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn all<const LAYOUT: usize>(tile: &mut Tile<'_>, next: &[f32]) {
                const LANES: usize = <$register>::LANES;
                const MOST: usize = shape(<$register>::ISA).rows;
                for (height, group) in groups(tile.rows, MOST, next) {
                    // SAFETY: the caller's promise, with the constants equal to the tile's own sizes.
                    unsafe {
                        match (tile.width / LANES, height) {
                            $((2, $rows) => rows::<$rows, 2, LAYOUT>(tile, group), (_, $rows) => rows::<$rows, 1, LAYOUT>(tile, group),)*
                            (_, rows) => unreachable!("a tile of {rows} rows"),
                        }
                    }
                }
            }
            /// The other activations, on what was stored; one copy of their code serves all tile sizes.
            #[inline(never)]
            $(#[target_feature(enable = $features)])?
            fn activate_rows(activation: Activation, tile: &mut Tile<'_>) {
                activate_each::<$fma>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
            }
            // SAFETY: the caller's promise.
            unsafe {
                match tile.a_rows {
                    Rows::Packed => all::<PACKED>(tile, next),
                    Rows::Blocked => all::<BLOCKED>(tile, next),
                    Rows::Strided(_) => all::<STRIDED>(tile, next),
                    Rows::Runs { .. } => all::<RUNS>(tile, next),
                }
            }
            let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
            if activation.bounds().is_none() {
                activate_rows(activation, tile);
            }
        }
    };
}

by_registers!(portable, Four, false, 1 2 3 4);
#[cfg(target_arch = "x86_64")]
by_registers!(avx2, __m256, true, 1 2 3 4 5 6; "avx2,fma");
#[cfg(target_arch = "x86_64")]
by_registers!(avx512, __m512, true, 1 2 3 4 5 6 7 8 9 10 11 12; "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");

/// Rows that one pointer reaches: itself, and once and twice the distance, which an address scales by 4 and 8.
const REACH: usize = 3;

/// Pointers that 12 rows need.
const POINTERS: usize = 4;

/// Steps whose addresses are computed together.
const QUAD: usize = 4;

/// The sums of some tiles of `R` rows by `V` registers, their scale and bias, and the activations that are a pair of bounds.
///
/// # Safety
///
/// As for [`by_registers`]; `V` registers are the tile's width, the group's rows are among its own, and its left operand lies as `LAYOUT` says.
#[inline(always)]
unsafe fn body<X: Register, const R: usize, const V: usize, const LAYOUT: usize>(tile: &mut Tile<'_>, group: Group<'_>) {
    let (lda, runs, len) = match tile.a_rows {
        Rows::Runs { lda, runs, len } if LAYOUT == RUNS => (lda, runs, len),
        Rows::Strided(lda) if LAYOUT == STRIDED => (lda, &[0][..], tile.k),
        _ => (const { shape(X::ISA).stride() }, &[0][..], tile.k),
    };
    let (columns, ldc) = (tile.columns, tile.ldc);
    let b_stride = if LAYOUT == RUNS { V * X::LANES } else { tile.b_stride };
    // Only where the rows of b follow one another; and where a register is one value to the compiler, which otherwise orders the steps anew.
    let quads = if b_stride == V * X::LANES && X::ISA != Isa::Scalar { len / QUAD } else { 0 };
    // Lines of the cache to fetch in each quad: not more than it takes of the panel.
    let pace = if group.next.is_empty() { 0 } else { group.share.div_ceil(LINE).div_ceil((runs.len() * quads).max(1)) };
    let pace = pace.min((QUAD * V * X::LANES).div_ceil(LINE));
    // SAFETY: the caller's promise, and for each access what is said there.
    unsafe {
        let bias: [X; V] = match tile.finish.map(|finish| finish.bias) {
            Some(Bias::PerColumn(bias)) => read_row(&bias[..columns]),
            _ => [X::zero(); V],
        };
        for index in 0..group.count {
            let row = group.first + index * R;
            let mut fetched = group.next.as_ptr().wrapping_add(index * group.share);
            let mut sums = [[X::zero(); V]; R];
            if !tile.first {
                for i in 0..R {
                    sums[i] = read_row(&tile.c[(row + i) * ldc..][..columns]);
                }
            }
            let mut b = tile.b.as_ptr();
            // The step that lies `$s` behind the pointers; other than 0 only where the rows of b follow one another. In step s of a run, b
            // points at a row of `width` elements; a at `s * R` (packed) or `s`, and the element of row i lies `i` or `i * lda` further: all
            // seen by `check`. Moving on beyond the last step wraps.
            macro_rules! step {
                ($a:ident, $lda:ident, $s:literal) => {
                    let mut step = [X::zero(); V];
                    for v in 0..V {
                        step[v] = X::read(b.wrapping_add(($s * V + v) * X::LANES));
                    }
                    for i in 0..R {
                        let at = match LAYOUT {
                            PACKED => $a[0].wrapping_add($s * R + i),
                            BLOCKED => $a[0].wrapping_add(i * const { shape(X::ISA).stride() } + $s),
                            _ => $a[i / REACH].wrapping_add(i % REACH * $lda + $s),
                        };
                        let value = X::all(*at);
                        for v in 0..V {
                            sums[i][v] = sums[i][v].plus_product(value, step[v]);
                        }
                    }
                };
            }
            for run in runs {
                let first = tile.a.as_ptr().wrapping_add(row * lda + *run);
                let mut a: [*const f32; POINTERS] = [first; POINTERS];
                if LAYOUT == STRIDED || LAYOUT == RUNS {
                    for p in 0..POINTERS {
                        a[p] = first.wrapping_add(p * REACH * lda);
                    }
                }
                for _ in 0..quads {
                    // The addresses of rows are computed from a few pointers in each quad.
                    let lda = X::unknown(lda);
                    for _ in 0..pace {
                        X::fetch(fetched);
                        fetched = fetched.wrapping_add(LINE);
                    }
                    step!(a, lda, 0);
                    step!(a, lda, 1);
                    step!(a, lda, 2);
                    step!(a, lda, 3);
                    move_on(&mut a, QUAD * if LAYOUT == PACKED { R } else { 1 });
                    b = b.wrapping_add(QUAD * V * X::LANES);
                }
                for _ in QUAD * quads..len {
                    step!(a, lda, 0);
                    move_on(&mut a, if LAYOUT == PACKED { R } else { 1 });
                    b = b.wrapping_add(b_stride);
                }
            }
            if let Some(finish) = &tile.finish {
                scale_and_bias(finish, row, bias, &mut sums);
                if let Some((low, high)) = finish.activation.bounds().filter(|_| finish.activation != Activation::None) {
                    for i in 0..R {
                        for v in 0..V {
                            sums[i][v] = sums[i][v].limited(low, high);
                        }
                    }
                }
            }
            write_rows(sums, &mut tile.c[row * ldc..], ldc, columns);
        }
    }
}

#[inline(always)]
fn move_on(a: &mut [*const f32; POINTERS], elements: usize) {
    for p in 0..POINTERS {
        a[p] = a[p].wrapping_add(elements);
    }
}

/// # Safety
///
/// Of [`Register`]; `row` is the first of `R` rows, of which a bias per row has as many behind it.
#[inline(always)]
unsafe fn scale_and_bias<X: Register, const R: usize, const V: usize>(
    finish: &Epilogue<'_>,
    row: usize,
    columns: [X; V],
    sums: &mut [[X; V]; R],
) {
    // SAFETY: the caller's promise. Indexed loops with the choice outside: the compiler unrolls them and keeps the sums in registers.
    unsafe {
        let alpha = X::all(finish.alpha);
        match finish.bias {
            Bias::None => {
                for i in 0..R {
                    for v in 0..V {
                        sums[i][v] = alpha.times(sums[i][v]);
                    }
                }
            }
            Bias::PerColumn(_) => {
                for i in 0..R {
                    for v in 0..V {
                        sums[i][v] = columns[v].plus_product(alpha, sums[i][v]);
                    }
                }
            }
            Bias::PerRow(bias) => {
                let bias: &[f32; R] = bias[row..].first_chunk().expect("a bias for each row of the tile");
                for i in 0..R {
                    for v in 0..V {
                        sums[i][v] = X::all(bias[i]).plus_product(alpha, sums[i][v]);
                    }
                }
            }
        }
    }
}

/// Reads `values`; lanes behind them are zero.
///
/// # Safety
///
/// Of [`Register`].
#[inline(always)]
unsafe fn read_row<X: Register, const V: usize>(values: &[f32]) -> [X; V] {
    // SAFETY: `V` registers, or as many elements of each as there are, lie within the slice.
    unsafe {
        let mut row = [X::zero(); V];
        if values.len() >= V * X::LANES {
            for v in 0..V {
                row[v] = X::read(values.as_ptr().add(v * X::LANES));
            }
        } else {
            for v in 0..V {
                let from = values.as_ptr().wrapping_add(v * X::LANES);
                row[v] = X::read_first(from, values.len().saturating_sub(v * X::LANES).min(X::LANES));
            }
        }
        row
    }
}

/// Writes `columns` lanes of each row, rows `ldc` apart.
///
/// # Safety
///
/// Of [`Register`].
#[inline(always)]
unsafe fn write_rows<X: Register, const R: usize, const V: usize>(rows: [[X; V]; R], c: &mut [f32], ldc: usize, columns: usize) {
    let c = c[..(R - 1) * ldc + columns].as_mut_ptr();
    // SAFETY: `R` rows of `columns` elements, `ldc` apart, lie within the slice.
    unsafe {
        if columns == V * X::LANES {
            for i in 0..R {
                for v in 0..V {
                    rows[i][v].write(c.add(i * ldc + v * X::LANES));
                }
            }
        } else {
            for i in 0..R {
                for v in 0..V {
                    let to = c.wrapping_add(i * ldc + v * X::LANES);
                    match columns.saturating_sub(v * X::LANES) {
                        count if count < X::LANES => rows[i][v].write_first(to, count),
                        _ => rows[i][v].write(to),
                    }
                }
            }
        }
    }
}
