//! Matrix product with operands rounded to bf16 and sums in f32: half the memory of the weights, and on machines with a
//! tile unit (AMX) several times the speed.
//!
//! Both operands are multiplied in tiles of 1 KiB: 16 lines of 16 pairs of neighbours along `k`, a left tile one line per row, a
//! right tile one line per pair of `k` with a pair for each of 16 columns. The right operand is packed once at load, two tiles of
//! columns side by side (a panel) and all steps of `k` behind each other. The left one is rounded for each call, and read where
//! its lines then lie (`Rows`), two tiles of rows (a strip) at a time; its cost is spread over all panels.
//!
//! A row's bits depend on that row and the constants alone, here too: each sum runs over ascending steps of 32, whatever the
//! number of rows. Between instruction sets they differ: the tile unit adds even and odd terms of a step apart.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod finish;
#[cfg(target_arch = "x86_64")]
mod functions;
mod pack;

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

pub(crate) use finish::finish;
pub(crate) use pack::{PackedLeft, Part, RoundedLeft, left_part, pair, round_pixels};

use super::epilogue::Epilogue;
use super::isa::{Isa, instantiate};
use super::stored::{Source, Stored, packed};
use super::vector::math;

/// 16 pairs of bf16, the even one in the low half: a row of a tile, and a line of the cache.
#[derive(Clone, Copy, Debug, Default, Zeroable, Pod)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; 16]);

impl Line {
    /// Pairs in a line.
    pub(crate) const PAIRS: usize = 16;
}

/// Lines of a tile.
pub(crate) const TILE_LINES: usize = 16;

/// Numbers along `k` in one line.
pub(crate) const STEP: usize = 32;

/// Columns of a tile.
const TILE_COLUMNS: usize = 16;

/// Columns per panel of the right operand: two tiles.
pub(crate) const PANEL: usize = 2 * TILE_COLUMNS;

/// Rows per strip of the left operand: two tiles.
pub(crate) const STRIP: usize = 2 * TILE_LINES;

/// Rows of the left operand that are packed at once; their partial sums for a panel are 16 KiB.
pub(crate) const ROWS_BLOCK: usize = 128;

/// A constant right-hand matrix `b[k, n]`, rounded to bf16 and packed once at load.
#[derive(Clone, Debug)]
pub struct PackedBf16 {
    isa: Isa,
    k: usize,
    n: usize,
    lines: Stored,
}

impl PackedBf16 {
    /// Rounds and packs `b`, which is `[k, n]` row-major, or `[n, k]` if `transposed`. Panics unless `b.len() == k * n` and the
    /// instruction set is available.
    pub fn pack(isa: Isa, b: &(impl Source + ?Sized), k: usize, n: usize, transposed: bool) -> PackedBf16 {
        isa.require();
        assert_eq!(b.count(), k * n, "length of b against k * n");
        let lines = packed(b, format_args!("bf16 {k} {n} {transposed}"), pack::right_len(k, n), |b, lines| {
            pack::right(b, k, n, transposed, lines);
        });
        PackedBf16 { isa, k, n, lines }
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.elements::<u8>())
    }

    /// Columns per panel: where column ranges given to [`gemm_bf16_columns`] may start and end.
    pub fn panel_width(&self) -> usize {
        PANEL
    }

    pub(crate) fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    /// The panel that starts at `column`.
    pub(crate) fn panel(&self, column: usize) -> &[Line] {
        let len = self.steps() * 2 * TILE_LINES;
        &self.lines.elements()[column / PANEL * len..][..len]
    }
}

/// `c[m, columns] = epilogue(round(a[m, k]) · round(b)[.., columns])`, as [`super::gemm::gemm_packed_b_columns`] but for the
/// rounding to bf16 (to nearest, ties to even). Panics as that does.
///
/// With exact products, the error of a sum is at most `(k + 2) * 2^-24 * sum(|a * b|)`; subnormal operands count as zero
/// where the tile unit computes.
#[expect(clippy::too_many_arguments, reason = "the customary GEMM signature; a struct would only rename them")]
pub fn gemm_bf16_columns(
    a: &[f32],
    lda: usize,
    m: usize,
    b: &PackedBf16,
    columns: Range<usize>,
    c: &mut [f32],
    ldc: usize,
    epilogue: &Epilogue<'_>,
) {
    assert!(columns.start <= columns.end && columns.end <= b.n, "column range {columns:?} of {}", b.n);
    assert!(columns.start.is_multiple_of(PANEL), "column range starts inside a panel");
    assert!(columns.end.is_multiple_of(PANEL) || columns.end == b.n, "column range ends inside a panel");
    epilogue.bias.check(m, b.n);
    if m == 0 || columns.is_empty() {
        return;
    }
    assert!(lda >= b.k && a.len() >= (m - 1) * lda + b.k, "a is shorter than m rows");
    assert!(ldc >= columns.len() && c.len() >= (m - 1) * ldc + columns.len(), "c is shorter than m rows");
    let multiplier = Multiplier::new(b.isa);
    let (mut sums, mut left) = (SumsBlock::ZERO, LEFT.take());
    for start in (0..m).step_by(ROWS_BLOCK) {
        let count = ROWS_BLOCK.min(m - start);
        pack::left(b.isa, &a[start * lda..], lda, count, b.k, &mut left);
        let rows = left.rows(count);
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            let c = &mut c[start * ldc + column - columns.start..];
            let touch = (c.as_ptr(), ldc);
            multiplier.multiply_panel(&rows, b.panel(column), touch, &mut sums, |row, sums| {
                let rows = STRIP.min(count - row);
                let bias = epilogue.bias.tile(start + row, rows, column, width);
                finish(b.isa, sums, 0..rows, &Epilogue { bias, ..*epilogue }, &mut c[row * ldc..], (ldc, width));
            });
        }
    }
    LEFT.set(left);
}

thread_local! {
    /// The packed left operand of the product at hand: as much as a block of rows takes, kept for the next.
    static LEFT: Cell<PackedLeft> = const { Cell::new(PackedLeft::EMPTY) };
}

/// Some rows of a left operand of bf16, where tiles read them: a line for each step, `offsets` from the row's first on. That all of
/// them lie within the lines is checked where it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// From the first row on; of a tile's 16 rows all are read, but those beyond `count` to no end.
    lines: &'a [Line],
    count: usize,
    /// Lines from row to row of a tile.
    stride: usize,
    /// Lines from tile to tile.
    tile: usize,
    /// Bytes from the beginning of a row to each step.
    offsets: &'a [usize],
}

impl<'a> Rows<'a> {
    /// `count` rows, at least one, of tiles whose rows are `stride` lines apart, and they themselves `tile`. Panics unless they lie within
    /// the lines, and each step begins with one.
    pub(crate) fn new(lines: &'a [Line], count: usize, (stride, tile): (usize, usize), offsets: &'a [usize]) -> Rows<'a> {
        let greatest = offsets.iter().fold(0, |greatest: usize, offset| greatest.max(*offset));
        let whole = offsets.iter().all(|offset| offset.is_multiple_of(size_of::<Line>()));
        let last = (count.div_ceil(TILE_LINES) - 1) * tile + (TILE_LINES - 1) * stride + greatest / size_of::<Line>();
        assert!(offsets.is_empty() || whole && last < lines.len(), "tiles of {count} rows, the last line {last} of {}", lines.len());
        Rows { lines, count, stride, tile, offsets }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The rows of the strip from `row` on, a multiple of 32.
    fn strip(&self, row: usize) -> Rows<'a> {
        Rows { lines: &self.lines[row / TILE_LINES * self.tile..], count: STRIP.min(self.count - row), ..*self }
    }
}

/// Sums of two by two tiles: of rows `i` and columns `j` at `i * 2 + j`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Sums([[[f32; TILE_COLUMNS]; TILE_LINES]; 4]);

/// The sums of a block of rows.
pub(crate) struct SumsBlock([Sums; ROWS_BLOCK / STRIP]);

impl SumsBlock {
    pub(crate) const ZERO: SumsBlock = SumsBlock([Sums([[[0.0; TILE_COLUMNS]; TILE_LINES]; 4]); ROWS_BLOCK / STRIP]);
}

/// What multiplies tiles.
pub(crate) enum Multiplier {
    #[cfg(target_arch = "x86_64")]
    Unit(amx::Configured),
    Portable(Isa),
}

impl Multiplier {
    pub(crate) fn new(isa: Isa) -> Multiplier {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Multiplier::Unit(amx::Configured::new()),
            other => Multiplier::Portable(other),
        }
    }

    /// The products of some rows, at most [`ROWS_BLOCK`], with a panel. `finish` is called with the first row of each strip and its sums,
    /// once they are complete. `touch` is where it writes the first row, and elements to the next: they are fetched before.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "a hint that other processors do not take"))]
    pub(crate) fn multiply_panel(
        &self,
        rows: &Rows<'_>,
        panel: &[Line],
        touch: (*const f32, usize),
        sums: &mut SumsBlock,
        mut finish: impl FnMut(usize, &Sums),
    ) {
        let strips = (0..rows.count).step_by(STRIP);
        match self {
            #[cfg(target_arch = "x86_64")]
            Multiplier::Unit(unit) => {
                let steps = rows.offsets.len();
                let step = steps_at_once(steps).max(1);
                for from in (0..steps.max(1)).step_by(step) {
                    let steps = from..steps.min(from + step);
                    for (row, sums) in strips.clone().zip(&mut sums.0) {
                        let last = steps.end == rows.offsets.len();
                        unit.multiply(&piece(rows, row, panel, steps.clone(), touch), sums);
                        if last {
                            finish(row, sums);
                        }
                    }
                }
            }
            Multiplier::Portable(isa) => {
                for (row, sums) in strips.zip(&mut sums.0) {
                    portable(*isa, &rows.strip(row), panel, sums);
                    finish(row, sums);
                }
            }
        }
    }
}

/// Steps of `k` for which all strips of a block pass by a panel, so that its part stays in the first-level cache, with what they read
/// beside it; then partial sums are stored and loaded. Few steps are worth no parts.
fn steps_at_once(steps: usize) -> usize {
    const WHOLE: usize = 16;
    const PART: usize = 8;
    if steps <= WHOLE { steps } else { steps.div_ceil(steps.div_ceil(PART)) }
}

/// Lines ahead of its use at which a panel is fetched into the first-level cache, for one strip, and into the second, for several, which
/// read it more than once.
#[cfg(target_arch = "x86_64")]
const NEAR: usize = 8 * STRIP;
#[cfg(target_arch = "x86_64")]
const FAR: usize = 40 * STRIP;

/// What the unit is to do for the strip from `row` on.
#[cfg(target_arch = "x86_64")]
fn piece<'a>(rows: &Rows<'a>, row: usize, panel: &'a [Line], steps: Range<usize>, (c, ldc): (*const f32, usize)) -> amx::Piece<'a> {
    // The strips share what is to be fetched: as much as the panel has for these steps.
    let (pace, ahead) = match rows.count.div_ceil(STRIP) {
        1 => (amx::Pace::All, NEAR),
        2 => (amx::Pace::Half, FAR),
        _ => (amx::Pace::Quarter, FAR),
    };
    let ahead = steps.start * STRIP + ahead + row / STRIP * pace.lines() * steps.len();
    // The loop asks for a strip's output whole, however many rows it has.
    let touch = steps.start == 0 && 4 * (rows.count - row) >= 3 * STRIP;
    amx::Piece {
        rows: rows.strip(row),
        panel,
        first: steps.start == 0,
        fetch: (panel.as_ptr().wrapping_add(ahead), pace),
        touch: touch.then_some((c.wrapping_add(row * ldc), ldc)),
        steps,
    }
}

fn portable(isa: Isa, rows: &Rows<'_>, panel: &[Line], sums: &mut Sums) {
    instantiate!(isa, portable_body, (rows: &Rows<'_>, panel: &[Line], sums: &mut Sums));
}

/// The same on any machine: a bf16 is the upper half of an f32.
#[inline(always)]
fn portable_body<const FMA: bool>(rows: &Rows<'_>, panel: &[Line], sums: &mut Sums) {
    let tiles = rows.count.div_ceil(TILE_LINES);
    for (at, sums) in sums.0.iter_mut().enumerate().take(2 * tiles) {
        let (i, j) = (at / 2, at % 2);
        let count = TILE_LINES.min(rows.count - i * TILE_LINES);
        for first in (0..count).step_by(if count == 1 { 1 } else { ROWS }) {
            let left = &rows.lines[i * rows.tile + first * rows.stride..];
            let (rows, right) = (&Rows { lines: left, ..*rows }, &panel[(j * TILE_LINES).min(panel.len())..]);
            if count == 1 {
                portable_rows::<FMA, 1>(rows, right, &mut sums[first..]);
            } else {
                portable_rows::<FMA, ROWS>(rows, right, &mut sums[first..]);
            }
        }
    }
}

/// Rows at a time without a tile unit: as many sums as chains of multiply-adds need to overlap.
const ROWS: usize = 8;

#[inline(always)]
fn portable_rows<const FMA: bool, const R: usize>(rows: &Rows<'_>, right: &[Line], sums: &mut [[f32; TILE_COLUMNS]]) {
    let mut acc = [[0.0f32; TILE_COLUMNS]; R];
    for (offset, right) in rows.offsets.iter().zip(right.chunks(2 * TILE_LINES)) {
        let left: [&Line; R] = std::array::from_fn(|i| &rows.lines[i * rows.stride + offset / size_of::<Line>()]);
        for pair in 0..TILE_LINES {
            let (even, odd) = (right[pair].0.map(|v| f32::from_bits(v << 16)), right[pair].0.map(|v| f32::from_bits(v & 0xffff_0000)));
            for i in 0..R {
                let value = left[i].0[pair];
                let (a, b) = (f32::from_bits(value << 16), f32::from_bits(value & 0xffff_0000));
                for j in 0..TILE_COLUMNS {
                    acc[i][j] = math::fma::<FMA>(b, odd[j], math::fma::<FMA>(a, even[j], acc[i][j]));
                }
            }
        }
    }
    sums[..R].copy_from_slice(&acc);
}
