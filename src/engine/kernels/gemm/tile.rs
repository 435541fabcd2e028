//! The tile: the innermost piece of every product, a few rows times one column panel, in registers; and many rows times that panel, which
//! are cut into such tiles.
//!
//! A tile computes `c = finish(c0 + a · b)` for `rows × columns` elements, each as one chain of multiply-adds over ascending
//! `k`. Splitting `k` over several calls stores and reloads the partial sum, which is exact, so neither the blocking nor the
//! tile height changes a bit of the result.

use super::body::portable;
#[cfg(target_arch = "x86_64")]
use super::body::{avx2, avx512};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::isa::Isa;

/// How the left operand of a tile lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows<'a> {
    /// `a[k][rows]`: for each step of `k` the values of all rows, contiguous.
    Packed,
    /// `a[rows][..]` with [`Shape::stride`] from row to row.
    Blocked,
    /// `a[rows][..]` with this distance from row to row.
    Strided(usize),
    /// As strided, of which the steps of the sum meet runs of `len` neighbours, which begin at `runs`: what a pixel meets of an image. The rows
    /// of b follow one another.
    Runs {
        /// Distance from row to row.
        lda: usize,
        /// Where the runs of the first row begin.
        runs: &'a [usize],
        /// Elements of a run.
        len: usize,
    },
}

/// One tile to compute.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Left operand.
    pub a: &'a [f32],
    /// Layout of `a`.
    pub a_rows: Rows<'a>,
    /// Right operand: row `k` starts at `k * b_stride` and has at least `width` elements.
    pub b: &'a [f32],
    /// Distance from row to row of `b`.
    pub b_stride: usize,
    /// Register width of the panel: [`Shape::width`] or half of it.
    pub width: usize,
    /// Steps of the sum.
    pub k: usize,
    /// Output rows, at least 1: of packed ones [`Shape::rows`] at most.
    pub rows: usize,
    /// Output columns that are stored, 1 to `width`.
    pub columns: usize,
    /// Output; row `i` starts at `i * ldc`.
    pub c: &'a mut [f32],
    /// Distance from row to row of `c`.
    pub ldc: usize,
    /// Whether the sum starts from zero rather than from what `c` holds.
    pub first: bool,
    /// What to apply once the sum is complete; the bias is already cut to the tile.
    pub finish: Option<Epilogue<'a>>,
}

/// The register tile of an instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Greatest number of rows.
    pub rows: usize,
    /// Columns of a full panel; a last panel with at most half as many columns left is stored at half width.
    pub width: usize,
    /// Steps of `k` per block of a product, a multiple of 64.
    pub steps: usize,
}

impl Shape {
    /// From row to row in a block: known to the compiler, so that no register holds it, and odd in lines of the cache, so that rows
    /// spread over its sets.
    pub(crate) const fn stride(self) -> usize {
        self.steps + 16
    }
}

/// The greatest [`Shape::rows`] and [`Shape::width`] of all instruction sets, for buffers on the stack.
pub(crate) const ROWS_MAX: usize = 12;
/// See [`ROWS_MAX`].
pub(crate) const WIDTH_MAX: usize = 32;

/// The tile that fills the registers of the instruction set.
pub(crate) const fn shape(isa: Isa) -> Shape {
    match isa {
        // 16 registers of 4: 8 accumulators, 2 of b, the rest for products.
        Isa::Scalar => Shape { rows: 4, width: 8, steps: 256 },
        // 16 registers of 8: 12 accumulators, 2 of b, one broadcast of a. A step takes 6 cycles and a line of b, which the second-level cache
        // delivers in time; sums that are stored and loaded between blocks cost more.
        Isa::Avx2 => Shape { rows: 6, width: 16, steps: 768 },
        // 32 registers of 16: 24 accumulators, 2 of b; a is broadcast from memory. Of a panel (256 × 32 × 4 = 32 KiB) and a tile's rows
        // (12 KiB) all stays in a first-level cache of 48 KiB while the rows pass by.
        Isa::Avx512 | Isa::Amx => Shape { rows: 12, width: 32, steps: 256 },
    }
}

impl Tile<'_> {
    /// Panics unless every element the tile touches lies within its slices. The bodies rely on this.
    #[inline]
    fn check(&self, shape: Shape) {
        assert!(self.rows >= 1 && (self.rows <= shape.rows || !matches!(self.a_rows, Rows::Packed)));
        assert!(self.width == shape.width || 2 * self.width == shape.width);
        assert!(self.columns >= 1 && self.columns <= self.width);
        assert!(self.c.len() >= (self.rows - 1) * self.ldc + self.columns);
        if let Rows::Runs { runs, len, .. } = self.a_rows {
            assert!(self.k == runs.len() * len && self.b_stride == self.width);
        }
        if self.k > 0 {
            assert!(self.b.len() >= (self.k - 1) * self.b_stride + self.width);
            match self.a_rows {
                Rows::Packed => assert!(self.a.len() >= self.k * self.rows),
                Rows::Blocked => assert!(self.a.len() >= (self.rows - 1) * shape.stride() + self.k),
                Rows::Strided(lda) => assert!(self.a.len() >= (self.rows - 1) * lda + self.k),
                Rows::Runs { lda, runs, len } => {
                    let last = runs.iter().copied().max().unwrap_or(0);
                    assert!(self.a.len() >= last + (self.rows - 1) * lda + len);
                }
            }
        }
    }
}

/// How many rows are cut into tiles of equal height, `most` at most (a low last one would wait for its own sums): the first row, the height
/// and the number of the higher ones, and of those that are a row lower.
#[inline]
pub(crate) fn heights(rows: usize, most: usize) -> [(usize, usize, usize); 2] {
    let count = rows.div_ceil(most);
    let (height, higher) = (rows / count, rows % count);
    [(0, height + 1, higher), (higher * (height + 1), height, count - higher)]
}

/// Computes one tile, or several below each other.
#[inline]
pub(crate) fn run(isa: Isa, tile: &mut Tile<'_>) {
    run_fetching(isa, tile, &[]);
}

/// Computes one tile, or several, and meanwhile fetches `next` into the second-level cache: a hint, which AVX2 and AVX-512 take.
#[inline]
pub(crate) fn run_fetching(isa: Isa, tile: &mut Tile<'_>, next: &[f32]) {
    isa.require();
    tile.check(shape(isa));
    // SAFETY: `require` has shown that this machine has the features each is compiled for; `check` has shown that every element of the tile
    // lies within its slices.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2(tile, next),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => avx512(tile, next),
            _ => portable(tile, next),
        }
    }
}
