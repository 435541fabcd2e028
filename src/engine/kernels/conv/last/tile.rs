//! The innermost piece of a convolution with channels last: some pixels of a line times a panel of output channels, in registers; and
//! whole lines of pixels, which are cut into such tiles.
//!
//! Each sum is one chain of multiply-adds over the lines of the kernel, the columns in each and the channels in those.

use std::ops::Range;

use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::tile as dense;
use crate::engine::kernels::isa::Isa;

/// One tile to compute.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    /// What the first pixel meets, and the pixels behind it, `lda` apart.
    pub(super) a: &'a [f32],
    pub(super) lda: usize,
    /// Where in `a` the runs of a pixel begin.
    pub(super) runs: &'a [usize],
    /// Elements of a run.
    pub(super) len: usize,
    /// The panel: `width` elements for each element of the runs, one run after the other.
    pub(super) b: &'a [f32],
    pub(super) width: usize,
    /// Pixels, at least 1.
    pub(super) rows: usize,
    /// Channels that are stored, 1 to `width`.
    pub(super) columns: usize,
    /// Output; pixel `i` starts at `i * ldc`.
    pub(super) c: &'a mut [f32],
    pub(super) ldc: usize,
    /// Whether the sums start from zero rather than from what `c` holds.
    pub(super) first: bool,
    /// What to apply once the sums are complete; the bias is already cut to the tile.
    pub(super) finish: Option<Epilogue<'a>>,
    /// What is fetched into the second-level cache meanwhile: a hint, which AVX2 takes.
    pub(super) next: &'a [f32],
}

impl Tile<'_> {
    /// Panics unless every element the tile touches lies within its slices.
    #[inline]
    fn check(&self, isa: Isa) {
        let last = self.runs.iter().copied().max().unwrap_or(0);
        assert!(self.rows >= 1);
        assert!(self.width == dense::shape(isa).width || 2 * self.width == dense::shape(isa).width);
        assert!(self.columns >= 1 && self.columns <= self.width);
        assert!(self.c.len() >= (self.rows - 1) * self.ldc + self.columns);
        assert!(self.len == 0 || self.runs.is_empty() || self.a.len() >= last + (self.rows - 1) * self.lda + self.len);
        assert!(self.b.len() >= self.runs.len() * self.len * self.width);
        if let Some(finish) = &self.finish {
            finish.bias.check(0, self.columns);
        }
    }
}

/// Computes one tile, or several behind each other.
#[inline]
pub(super) fn run(isa: Isa, tile: &mut Tile<'_>) {
    tile.check(isa);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx2 {
        isa.require();
        // SAFETY: `require` has shown that this machine has the features it is compiled for; `check` has shown that every element of
        // the tile lies within its slices.
        return unsafe { super::avx2::tile(tile) };
    }
    let Tile { lda, runs, len, b, width, columns, ldc, first, finish, next, .. } = *tile;
    for (start, rows, count) in dense::heights(tile.rows, dense::shape(isa).rows) {
        for row in (0..count).map(|index| start + index * rows) {
            let (a, c) = (tile.a.get(row * lda..).unwrap_or_default(), &mut tile.c[row * ldc..]);
            one(isa, &mut Tile { a, lda, runs, len, b, width, rows, columns, c, ldc, first, finish, next });
        }
    }
}

/// Computes a tile of as many pixels as registers hold.
#[inline]
fn one(isa: Isa, tile: &mut Tile<'_>) {
    tile.check(isa);
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        assert!(tile.rows <= dense::shape(isa).rows);
        isa.require();
        // SAFETY: as above.
        return unsafe { super::avx512::tile(tile) };
    }
    by_runs(isa, tile);
}

/// Elements of the left operand that are put in order for one product, of the greatest number of pixels.
const ORDERED: usize = 256 * dense::ROWS_MAX;

/// A product for each run; partial sums are stored and loaded, which is exact. Short runs, of pictures, are put in order for one product.
fn by_runs(isa: Isa, tile: &mut Tile<'_>) {
    const SHORT: usize = 32;
    let k = tile.runs.len() * tile.len;
    if k == 0 {
        return dense::run(isa, &mut part(tile, &[], dense::Rows::Strided(tile.lda), 0..0, (true, true)));
    }
    if tile.runs.len() > 1 && tile.len < SHORT && k * tile.rows <= ORDERED {
        let mut ordered = [0.0f32; ORDERED];
        for (run, steps) in tile.runs.iter().zip(ordered.chunks_exact_mut(tile.len * tile.rows)) {
            for i in 0..tile.rows {
                let from = &tile.a[run + i * tile.lda..][..tile.len];
                steps[i..].iter_mut().step_by(tile.rows).zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        return dense::run(isa, &mut part(tile, &ordered, dense::Rows::Packed, 0..k, (true, true)));
    }
    for (index, run) in tile.runs.iter().enumerate() {
        let steps = index * tile.len..(index + 1) * tile.len;
        let ends = (index == 0, index + 1 == tile.runs.len());
        let a = &tile.a[*run..];
        dense::run(isa, &mut part(tile, a, dense::Rows::Strided(tile.lda), steps, ends));
    }
}

/// The product of some steps; the ends say whether they are the first and the last.
fn part<'t>(
    tile: &'t mut Tile<'_>,
    a: &'t [f32],
    a_rows: dense::Rows,
    steps: Range<usize>,
    (first, last): (bool, bool),
) -> dense::Tile<'t> {
    dense::Tile {
        a,
        a_rows,
        b: &tile.b[steps.start * tile.width..],
        b_stride: tile.width,
        width: tile.width,
        k: steps.len(),
        rows: tile.rows,
        columns: tile.columns,
        c: tile.c,
        ldc: tile.ldc,
        first: first && tile.first,
        finish: tile.finish.filter(|_| last),
    }
}
