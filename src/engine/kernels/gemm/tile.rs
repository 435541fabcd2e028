//! The tile: the innermost piece of every product, a few rows times one column panel, in registers; and many rows times that panel, which
//! are cut into such tiles.
//!
//! A tile computes `c = finish(c0 + a · b)` for `rows × columns` elements, each as one chain of multiply-adds over ascending
//! `k`. Splitting `k` over several calls stores and reloads the partial sum, which is exact, so neither the blocking nor the
//! tile height changes a bit of the result.

use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue, activate_each};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector::math;

/// How the left operand of a tile lies in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows {
    /// `a[k][rows]`: for each step of `k` the values of all rows, contiguous.
    Packed,
    /// `a[rows][..]` with [`Shape::stride`] from row to row.
    Blocked,
    /// `a[rows][..]` with this distance from row to row.
    Strided(usize),
}

/// One tile to compute.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Left operand.
    pub a: &'a [f32],
    /// Layout of `a`.
    pub a_rows: Rows,
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
    /// Panics unless every element the tile touches lies within its slices. Each implementation relies on this.
    #[inline]
    fn check(&self, shape: Shape) {
        assert!(self.rows >= 1 && (self.rows <= shape.rows || !matches!(self.a_rows, Rows::Packed)));
        assert!(self.width == shape.width || 2 * self.width == shape.width);
        assert!(self.columns >= 1 && self.columns <= self.width);
        assert!(self.c.len() >= (self.rows - 1) * self.ldc + self.columns);
        if self.k > 0 {
            assert!(self.b.len() >= (self.k - 1) * self.b_stride + self.width);
            match self.a_rows {
                Rows::Packed => assert!(self.a.len() >= self.k * self.rows),
                Rows::Blocked => assert!(self.a.len() >= (self.rows - 1) * shape.stride() + self.k),
                Rows::Strided(lda) => assert!(self.a.len() >= (self.rows - 1) * lda + self.k),
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
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "a hint that other processors do not take"))]
pub(crate) fn run_fetching(isa: Isa, tile: &mut Tile<'_>, next: &[f32]) {
    let shape = shape(isa);
    tile.check(shape);
    if isa != Isa::Avx2 && tile.rows > shape.rows {
        return one_by_one(isa, tile, next);
    }
    match isa {
        Isa::Scalar => scalar(tile),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            isa.require();
            // SAFETY: `require` has shown that this machine has the features it is compiled for; `check` has shown that
            // every element of the tile lies within its slices.
            unsafe { super::avx2::tile(tile, next) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => {
            isa.require();
            // SAFETY: as above.
            unsafe { super::avx512::tile(tile, next) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => {
            isa.require();
            scalar(tile)
        }
    }
}

/// The tiles that cover the rows, where the instruction set's body computes one.
fn one_by_one(isa: Isa, whole: &mut Tile<'_>, next: &[f32]) {
    let Tile { a_rows, b, b_stride, width, k, columns, ldc, first, finish, .. } = *whole;
    let lda = match a_rows {
        Rows::Strided(lda) => lda,
        _ => shape(isa).stride(),
    };
    let mut next = next.chunks(next.len().div_ceil(whole.rows.div_ceil(shape(isa).rows)).max(1));
    for (start, rows, count) in heights(whole.rows, shape(isa).rows) {
        for row in (0..count).map(|index| start + index * rows) {
            let finish = finish.map(|finish| Epilogue { bias: finish.bias.tile(row, rows, 0, columns), ..finish });
            let a = whole.a.get(row * lda..).unwrap_or_default();
            let c = &mut whole.c[row * ldc..];
            let mut tile = Tile { a, a_rows, b, b_stride, width, k, rows, columns, c, ldc, first, finish };
            run_fetching(isa, &mut tile, next.next().unwrap_or_default());
        }
    }
}

fn scalar(tile: &mut Tile<'_>) {
    scalar_product(tile);
    let activation = tile.finish.map_or(Activation::None, |finish| finish.activation);
    if activation != Activation::None {
        activate_each::<false>(activation, tile.c, (tile.rows, tile.ldc), 0..tile.columns);
    }
}

fn scalar_product(tile: &mut Tile<'_>) {
    match (tile.width, tile.rows) {
        (8, 1) => portable::<false, 1, 8>(tile),
        (8, 2) => portable::<false, 2, 8>(tile),
        (8, 3) => portable::<false, 3, 8>(tile),
        (8, _) => portable::<false, 4, 8>(tile),
        (_, 1) => portable::<false, 1, 4>(tile),
        (_, 2) => portable::<false, 2, 4>(tile),
        (_, 3) => portable::<false, 3, 4>(tile),
        (_, _) => portable::<false, 4, 4>(tile),
    }
}

/// The tile in plain Rust: the arrays of accumulators become registers.
#[inline(always)]
fn portable<const FMA: bool, const R: usize, const W: usize>(tile: &mut Tile<'_>) {
    let mut acc = [[0.0f32; W]; R];
    if !tile.first {
        for i in 0..R {
            acc[i][..tile.columns].copy_from_slice(&tile.c[i * tile.ldc..][..tile.columns]);
        }
    }
    // With k = 0 there is no row of b; a stride of 0 is not a chunk length.
    let b_rows = tile.b.chunks(tile.b_stride.max(1)).take(tile.k);
    match tile.a_rows {
        Rows::Packed => {
            for (b, a) in b_rows.zip(tile.a.as_chunks::<R>().0) {
                accumulate::<FMA, R, W>(&mut acc, *a, b);
            }
        }
        rows @ (Rows::Blocked | Rows::Strided(_)) => {
            let lda = if let Rows::Strided(lda) = rows { lda } else { const { shape(Isa::Scalar).stride() } };
            let a: [&[f32]; R] = std::array::from_fn(|i| &tile.a[i * lda..][..tile.k]);
            for (step, b) in b_rows.enumerate() {
                accumulate::<FMA, R, W>(&mut acc, std::array::from_fn(|i| a[i][step]), b);
            }
        }
    }
    for i in 0..R {
        let row = &mut tile.c[i * tile.ldc..][..tile.columns];
        if let Some(finish) = &tile.finish {
            scale_and_bias::<FMA, W>(&mut acc[i], finish, i);
        }
        row.copy_from_slice(&acc[i][..tile.columns]);
    }
}

#[inline(always)]
fn accumulate<const FMA: bool, const R: usize, const W: usize>(acc: &mut [[f32; W]; R], a: [f32; R], b: &[f32]) {
    let b: &[f32; W] = b.first_chunk().expect("checked: a row of b has at least the panel's width");
    for i in 0..R {
        for j in 0..W {
            acc[i][j] = math::fma::<FMA>(a[i], b[j], acc[i][j]);
        }
    }
}

#[inline(always)]
fn scale_and_bias<const FMA: bool, const W: usize>(acc: &mut [f32; W], finish: &Epilogue<'_>, row: usize) {
    match finish.bias {
        Bias::None => acc.iter_mut().for_each(|v| *v *= finish.alpha),
        Bias::PerColumn(bias) => {
            acc.iter_mut().zip(bias).for_each(|(v, bias)| *v = math::fma::<FMA>(finish.alpha, *v, *bias));
        }
        Bias::PerRow(bias) => acc.iter_mut().for_each(|v| *v = math::fma::<FMA>(finish.alpha, *v, bias[row])),
    }
}
