//! Matrix product `c[m, n] = epilogue(a[m, k] · b[k, n])` in `f32`.
//!
//! Blocking, from the inside out: a tile of registers (`tile`); a block of a panel of `b`, which stays in the first-level cache while
//! the tiles of all packed rows pass by, and while the next block comes from memory; the packed rows, which stay in the second-level
//! cache while all panels pass by. The weights of a model pass through all caches in each run: no panel is read twice for up to
//! some hundred rows.
//!
//! No function spawns threads. To split one product, give each thread disjoint rows of `a` and `c`
//! ([`gemm_packed_b`]) or a range of columns with an output of its own ([`gemm_packed_b_columns`]); the bits are the same.

mod body;
mod generic;
mod pack;
pub(crate) mod tile;

use std::cell::Cell;
use std::ops::Range;

pub use generic::{Number, gemm_generic};
pub use pack::{PackedA, PackedB, RowPanel};

use super::epilogue::Epilogue;
use super::isa::Isa;
use pack::Left;
pub(crate) use pack::Panels;
use tile::{Rows, Shape, Tile};

/// Elements of `a` that are packed at once: 768 KiB of a second-level cache, which all panels pass by.
const A_BLOCK: usize = 192 * 1024;

/// Rows of `a` that are packed at once: enough for the fetching of a panel to take no time.
const M_BLOCK: usize = 384;

/// Panels of `b` from which on packing the rows of `a` costs less than reading them with a stride (a stride that is a
/// multiple of 4 KiB puts all rows into the same cache set).
const PANELS_WORTH_PACKING: usize = 4;

/// `c[m, n] = epilogue(a[m, k] · b)`; row `i` of `a` starts at `i * lda`, row `i` of `c` at `i * ldc`. Elements of `c` between
/// the rows are left alone. Panics if a slice is too short or a stride less than the row's length.
pub fn gemm_packed_b(a: &[f32], lda: usize, m: usize, b: &PackedB, c: &mut [f32], ldc: usize, epilogue: &Epilogue<'_>) {
    gemm_packed_b_columns(a, lda, m, b, 0..b.n(), c, ldc, epilogue);
}

/// Some columns of [`gemm_packed_b`]: `c` holds only those, its column 0 being `columns.start`. The range starts at a multiple
/// of [`PackedB::panel_width`] and ends at one or at `n`. A bias per column still has length `n`.
///
/// With `m = 1` parts of one output row can be given to threads as they are; with more rows each thread writes a strip with
/// `ldc = columns.len()` that the caller copies into place.
#[expect(clippy::too_many_arguments, reason = "the customary GEMM signature; a struct would only rename them")]
pub fn gemm_packed_b_columns(
    a: &[f32],
    lda: usize,
    m: usize,
    b: &PackedB,
    columns: Range<usize>,
    c: &mut [f32],
    ldc: usize,
    epilogue: &Epilogue<'_>,
) {
    let width = b.panel_width();
    assert!(columns.start <= columns.end && columns.end <= b.n(), "column range {columns:?} of {}", b.n());
    assert!(columns.start.is_multiple_of(width), "column range starts inside a panel");
    assert!(columns.end.is_multiple_of(width) || columns.end == b.n(), "column range ends inside a panel");
    epilogue.bias.check(m, b.n());
    if m == 0 || columns.is_empty() {
        return;
    }
    assert!(lda >= b.k() && a.len() >= (m - 1) * lda + b.k(), "a is shorter than m rows");
    assert!(ldc >= columns.len() && c.len() >= (m - 1) * ldc + columns.len(), "c is shorter than m rows");
    multiply(b.isa(), Left::rows(a, lda), m, b.panels(), columns, c, ldc, epilogue);
}

/// `c[m, n] = epilogue(a · b)` with neither operand constant: `a` is `[m, k]`, or `[k, m]` if `a_transposed`; `b` is `[k, n]`,
/// or `[n, k]` if `b_transposed`; all are dense. `b` is packed into `scratch`, which grows as needed and can be reused.
#[expect(clippy::too_many_arguments, reason = "the customary GEMM signature; a struct would only rename them")]
pub fn gemm(
    isa: Isa,
    m: usize,
    k: usize,
    n: usize,
    a: &[f32],
    a_transposed: bool,
    b: &[f32],
    b_transposed: bool,
    c: &mut [f32],
    epilogue: &Epilogue<'_>,
    scratch: &mut Vec<f32>,
) {
    isa.require();
    assert_eq!(a.len(), m * k, "length of a against m * k");
    assert_eq!(b.len(), k * n, "length of b against k * n");
    assert_eq!(c.len(), m * n, "length of c against m * n");
    epilogue.bias.check(m, n);
    if m == 0 || n == 0 {
        return;
    }
    let shape = tile::shape(isa);
    let start = pack::pack_b(shape, b, if b_transposed { k } else { n }, (k, n), b_transposed, scratch);
    let a = if a_transposed { Left::transposed(a, m) } else { Left::rows(a, k) };
    multiply(isa, a, m, Panels { shape, k, n, data: &scratch[start..] }, 0..n, c, n, epilogue);
}

/// A right operand `[k, n]` (`[n, k]` if `transposed`) with rows `ldb` apart, packed into memory that is used again.
pub(crate) fn pack_rows<'p>(
    isa: Isa,
    b: &[f32],
    ldb: usize,
    (k, n): (usize, usize),
    transposed: bool,
    panels: &'p mut Vec<f32>,
) -> Panels<'p> {
    isa.require();
    let (rows, columns) = if transposed { (n, k) } else { (k, n) };
    assert!(rows == 0 || (ldb >= columns && b.len() >= (rows - 1) * ldb + columns), "b is shorter than its rows");
    let shape = tile::shape(isa);
    let start = pack::pack_b(shape, b, ldb.max(1), (k, n), transposed, panels);
    Panels { shape, k, n, data: &panels[start..] }
}

/// `c[m, n] = epilogue(a[m, k] · b)`, as [`gemm_packed_b`] with what [`pack_rows`] packed for the same instruction set.
#[expect(clippy::too_many_arguments, reason = "the customary GEMM signature; a struct would only rename them")]
pub(crate) fn gemm_panels(isa: Isa, a: &[f32], lda: usize, m: usize, b: Panels<'_>, c: &mut [f32], ldc: usize, epilogue: &Epilogue<'_>) {
    isa.require();
    epilogue.bias.check(m, b.n);
    if m == 0 || b.n == 0 {
        return;
    }
    assert!(lda >= b.k && a.len() >= (m - 1) * lda + b.k, "a is shorter than m rows");
    assert!(ldc >= b.n && c.len() >= (m - 1) * ldc + b.n, "c is shorter than m rows");
    multiply(isa, Left::rows(a, lda), m, b, 0..b.n, c, ldc, epilogue);
}

/// The blocked loops. Lengths were checked by the caller; `columns` is not empty, `m` not 0.
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
fn multiply(isa: Isa, a: Left<'_>, m: usize, b: Panels<'_>, columns: Range<usize>, c: &mut [f32], ldc: usize, epilogue: &Epilogue<'_>) {
    let block = Block { isa, a, b, origin: columns.start, ldc, epilogue };
    // One row passes by each panel once, and there is nothing to keep for others.
    let in_place = a.in_place().filter(|_| m == 1 || columns.len() < PANELS_WORTH_PACKING * b.shape.width);
    if let Some(lda) = in_place {
        block.run(a.from(0, 0), Rows::Strided(lda), 0..m, columns, c);
    } else {
        multiply_packing(&block, m, columns, c);
    }
}

/// The loops that pack the rows of `a`, apart so that small products do not pay for the buffer.
#[inline(never)]
fn multiply_packing(block: &Block<'_>, m: usize, columns: Range<usize>, c: &mut [f32]) {
    let mut values = PACKED.take();
    for packed in PackedRows::blocks_of(m, block.b.k, block.b.shape, 1) {
        packed.pack(&block.a, &mut values);
        for column in columns.clone().step_by(block.b.shape.width) {
            block.run_panel(&packed, &values, column..columns.end, c);
        }
    }
    PACKED.set(values);
}

/// Rows of `a` for some steps of `k`: blocks of `count` steps behind each other, in them the rows, [`Shape::stride`] apart.
pub(crate) struct PackedRows {
    shape: Shape,
    rows: Range<usize>,
    steps: Range<usize>,
    count: usize,
}

impl PackedRows {
    /// The pieces in which `m` rows of length `k` are packed, one after the other: of all steps of the first rows, then of the next. Blocks
    /// are multiples of `group` steps, which divides [`Shape::steps`], but for the last.
    pub(crate) fn blocks_of(m: usize, k: usize, shape: Shape, group: usize) -> impl Iterator<Item = PackedRows> {
        // Blocks of equal size: a short last one would pay the tile's overhead for little work.
        let count = k.div_ceil(k.div_ceil(shape.steps).max(1)).max(1).next_multiple_of(group);
        let row_count = m.div_ceil(m.div_ceil(M_BLOCK)).next_multiple_of(shape.rows);
        let step_count = (A_BLOCK / row_count / count).max(1) * count;
        (0..m).step_by(row_count).flat_map(move |row| {
            // One pass even if k is 0: the epilogue still applies to the empty sum.
            (0..k.max(1)).step_by(step_count).map(move |step| PackedRows {
                shape,
                rows: row..m.min(row + row_count),
                steps: step..k.min(step + step_count),
                count,
            })
        })
    }

    /// Which rows.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The blocks, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        (self.steps.start..self.steps.end.max(self.steps.start + 1))
            .step_by(self.count)
            .map(|step| step..self.steps.end.min(step + self.count))
    }

    fn block_count(&self) -> usize {
        self.steps.len().div_ceil(self.count).max(1)
    }

    /// Packs rows of `a`, `lda` apart.
    pub(crate) fn pack_rows(&self, a: &[f32], lda: usize, values: &mut Vec<f32>) {
        self.pack(&Left::rows(a, lda), values);
    }

    fn pack(&self, a: &Left<'_>, values: &mut Vec<f32>) {
        let stride = self.shape.stride();
        values.resize(values.len().max(self.rows.len() * self.block_count() * stride), 0.0);
        let mut rows = values.chunks_exact_mut(stride);
        for steps in self.blocks() {
            for (row, to) in self.rows.clone().zip(&mut rows) {
                a.copy(row, steps.clone(), to);
            }
        }
    }

    /// Where the rows from `row` on begin, in block `index`.
    pub(crate) fn start(&self, row: usize, index: usize) -> usize {
        (index * self.rows.len() + row - self.rows.start) * self.shape.stride()
    }
}

thread_local! {
    /// The packed rows of the product at hand, kept for the next.
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// What stays the same for all tiles of a product.
struct Block<'a> {
    isa: Isa,
    a: Left<'a>,
    b: Panels<'a>,
    /// The column of `b` that is column 0 of `c`.
    origin: usize,
    ldc: usize,
    epilogue: &'a Epilogue<'a>,
}

impl Block<'_> {
    /// Multiplies packed rows with the panel at the beginning of `columns`, and fetches what comes next: memory is the slower, the
    /// fewer rows there are.
    fn run_panel(&self, packed: &PackedRows, values: &[f32], columns: Range<usize>, c: &mut [f32]) {
        let (rows, column) = (&packed.rows, columns.start);
        let mut blocks = packed.blocks().enumerate().peekable();
        while let Some((index, steps)) = blocks.next() {
            let next = match blocks.peek() {
                Some((_, steps)) => self.b.panel(column, steps.clone()).0,
                None if column + self.b.shape.width >= columns.end => &[],
                None => self.b.panel(column + self.b.shape.width, packed.blocks().next().unwrap_or_default()).0,
            };
            let a = &values[packed.start(rows.start, index)..];
            self.tile(a, Rows::Blocked, rows.clone(), steps, (column, columns.end), next, c);
        }
    }

    /// Multiplies rows, given in `a`, with the panels of `columns`.
    #[inline]
    fn run(&self, a: &[f32], a_rows: Rows<'_>, rows: Range<usize>, columns: Range<usize>, c: &mut [f32]) {
        for column in columns.clone().step_by(self.b.shape.width) {
            // With AVX2 that gains nothing: what a single row reads it uses at once.
            let ahead = if self.isa == Isa::Avx2 { &[] } else { self.b.ahead(column) };
            self.tile(a, a_rows, rows.clone(), 0..self.b.k, (column, columns.end), ahead, c);
        }
    }

    /// One tile, or several below each other, over `steps` of `k`; fetches `next`.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the sides of a tile")]
    fn tile(
        &self,
        a: &[f32],
        a_rows: Rows<'_>,
        rows: Range<usize>,
        steps: Range<usize>,
        (column, end): (usize, usize),
        next: &[f32],
        c: &mut [f32],
    ) {
        let (panel, width) = self.b.panel(column, steps.clone());
        let count = width.min(end - column);
        let finish = (steps.end == self.b.k)
            .then(|| Epilogue { bias: self.epilogue.bias.tile(rows.start, rows.len(), column, count), ..*self.epilogue });
        let mut tile = Tile {
            a,
            a_rows,
            b: panel,
            b_stride: width,
            width,
            k: steps.len(),
            rows: rows.len(),
            columns: count,
            c: &mut c[rows.start * self.ldc + column - self.origin..],
            ldc: self.ldc,
            first: steps.start == 0 && !self.epilogue.adds,
            finish,
        };
        tile::run_fetching(self.isa, &mut tile, next);
    }
}
