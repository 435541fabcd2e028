//! Matrix product `c[m, n] = epilogue(a[m, k] · b[k, n])` in `f32`.
//!
//! Blocking, from the inside out: a tile of registers (`tile`); a stack buffer with the packed rows of one tile, which stays
//! in the first-level cache while all panels of a block of `b` pass by; a block of `b` that all rows pass by.
//!
//! No function spawns threads. To split one product, give each thread disjoint rows of `a` and `c`
//! ([`gemm_packed_b`]) or a range of columns with an output of its own ([`gemm_packed_b_columns`]); the bits are the same.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod generic;
mod pack;
pub(crate) mod tile;

use std::ops::Range;

pub use generic::{Number, gemm_generic};
pub use pack::{PackedA, PackedB};

use super::epilogue::Epilogue;
use super::isa::Isa;
use pack::{Left, Panels};
use tile::{ROWS_MAX, Rows, Tile};

/// Steps of `k` per block. The packed rows of a tile (12 × 384 × 4 = 18 KiB) stay in a 32 KiB first-level cache while panels
/// stream past. Measured on Zen 4 (32 KiB, 1 MiB) with `N_BLOCK`, as shares of the peak at 1024³ and 128×768×3072 (medians of
/// three runs): 256 by 512 83 and 85 %, 384 by 1024 85 and 88 %, 512 by 512 81 and 84 %, 768 by 512 83 and 87 %.
const K_BLOCK: usize = 384;

/// Columns per block of `b`: 384 × 1024 × 4 = 1.5 MiB. More than the second-level cache, but panels are read in order and
/// fetched ahead from the third; what more columns save is packing the rows of `a` again.
const N_BLOCK: usize = 1024;

/// Panels of `b` from which on packing the rows of `a` costs less than reading them with a stride (a stride that is a
/// multiple of 4 KiB puts all rows into the same cache set).
const PANELS_WORTH_PACKING: usize = 4;

/// `c[m, n] = epilogue(a[m, k] · b)`; row `i` of `a` starts at `i * lda`, row `i` of `c` at `i * ldc`. Elements of `c` between
/// the rows are left alone. Allocates nothing. Panics if a slice is too short or a stride less than the row's length.
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
    pack::pack_b(shape, b, k, n, b_transposed, scratch);
    let a = if a_transposed { Left::transposed(a, m) } else { Left::rows(a, k) };
    multiply(isa, a, m, Panels { shape, k, n, data: scratch }, 0..n, c, n, epilogue);
}

/// The blocked loops. Lengths were checked by the caller; `columns` is not empty, `m` not 0.
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
fn multiply(isa: Isa, a: Left<'_>, m: usize, b: Panels<'_>, columns: Range<usize>, c: &mut [f32], ldc: usize, epilogue: &Epilogue<'_>) {
    let block = Block { isa, a, b, origin: columns.start, ldc, epilogue };
    let in_place = a.in_place().filter(|_| columns.len() < PANELS_WORTH_PACKING * b.shape.width);
    if let Some(lda) = in_place {
        for row in (0..m).step_by(b.shape.rows) {
            let rows = b.shape.rows.min(m - row);
            block.run(a.from(row, 0), Rows::Strided(lda), row..row + rows, 0..b.k, columns.clone(), c);
        }
    } else {
        multiply_packing(&block, m, columns, c);
    }
}

/// The loops that pack the rows of `a`, apart so that small products do not pay for the buffer.
#[inline(never)]
fn multiply_packing(block: &Block<'_>, m: usize, columns: Range<usize>, c: &mut [f32]) {
    let mut packed = [0.0f32; ROWS_MAX * K_BLOCK];
    let height = block.b.shape.rows;
    let k = block.b.k;
    for column in columns.clone().step_by(N_BLOCK) {
        let column_block = column..columns.end.min(column + N_BLOCK);
        // One pass even if k is 0: the epilogue still applies to the empty sum.
        for step in (0..k.max(1)).step_by(K_BLOCK) {
            let steps = step..k.min(step + K_BLOCK);
            for row in (0..m).step_by(height) {
                let rows = row..m.min(row + height);
                let buffer = &mut packed[..rows.len() * steps.len()];
                block.a.pack(rows.clone(), steps.clone(), buffer);
                block.run(buffer, Rows::Packed, rows, steps.clone(), column_block.clone(), c);
            }
        }
    }
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
    /// Multiplies at most a tile's height of rows, given in `a`, with the panels of `columns`, over `steps` of `k`.
    #[inline]
    fn run(&self, a: &[f32], a_rows: Rows, rows: Range<usize>, steps: Range<usize>, columns: Range<usize>, c: &mut [f32]) {
        for column in columns.clone().step_by(self.b.shape.width) {
            let (panel, width) = self.b.panel(column, steps.clone());
            let count = width.min(columns.end - column);
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
            tile::run(self.isa, &mut tile);
        }
    }
}
