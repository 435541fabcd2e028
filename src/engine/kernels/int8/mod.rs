//! The product of unsigned and signed 8-bit codes, exact in `i32`, with what follows it (scale, bias, requantising) applied to a
//! tile while it is in the cache.
//!
//! The right operand, the weights, is packed once: panels of 32 columns, in each for every 64 numbers along `k` (a step) two
//! tiles of 16 lines, a line being four neighbours along `k` for 16 columns. That is what the tile unit multiplies (AMX), and what
//! four products at once of a vector instruction (VNNI) want as well. The left operand is read where it lies: a row is bytes at a
//! fixed distance from the row before, and each step of it begins at an offset that all rows share. So one kernel multiplies
//! matrices, and convolves images whose channels are neighbours: there each tap of the kernel has offsets of its own.
//!
//! Signed codes on the left and unsigned ones on the right are the others with the highest bit turned over ([`FLIP`]) and a zero
//! point that is 128 further. Zero points are taken out of the sums afterwards: `Σ (a - za)(b - zb)` is
//! `Σ ab - za Σ (b - zb) - zb Σ a`, where the middle sum is known when the weights are.
//!
//! Integers have no rounding: the bits are the same for every instruction set, number of rows and split of the work.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_finish;
#[cfg(target_arch = "x86_64")]
mod avx2_order;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod conv;
mod dynamic;
mod finish;
mod pack;
pub mod quantize;

use std::cell::Cell;
use std::ops::Range;

pub use dynamic::DynamicInt8;
use finish::Place;
pub use finish::{Codes, Finish, Floats, Output, RowTerms};
pub use pack::{PackedInt8, RightCodes};

use super::isa::Isa;

/// What turns a signed code into an unsigned one that is 128 greater, and back.
pub const FLIP: u8 = 0x80;

/// 64 bytes: of the right operand four neighbours along `k` for each of 16 columns.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([i8; 64]);

/// Numbers along `k` in one step: a row of a left tile.
pub const STEP: usize = 64;

/// Lines of a tile, and rows of a left one.
const TILE_LINES: usize = 16;

/// Columns of a tile.
const TILE_COLUMNS: usize = 16;

/// Columns per panel of the right operand.
pub const PANEL: usize = 2 * TILE_COLUMNS;

/// Rows that are multiplied with a panel at once.
pub const STRIP: usize = 2 * TILE_LINES;

/// Strips that pass by a panel before the next one: their sums are 4 KiB each.
const STRIPS_BLOCK: usize = 4;

/// Steps of `k` at once: the panel's part is then 32 KiB.
const STEPS_BLOCK: usize = 16;

/// Sums of two by two tiles: of rows `i` and columns `j` at `i * 2 + j`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Sums([[[i32; TILE_COLUMNS]; TILE_LINES]; 4]);

impl Sums {
    const ZERO: Sums = Sums([[[0; TILE_COLUMNS]; TILE_LINES]; 4]);
}

/// The left operand: step `s` of row `r` is the 64 bytes from `offsets[s] + r * stride` on. What lies beyond `k` in a row's last
/// step meets zeros on the right; beyond the end of the data it counts as zero.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// All rows.
    pub data: &'a [u8],
    /// Bytes from a row to the next.
    pub stride: usize,
    /// Where each step begins in row 0.
    pub offsets: &'a [usize],
}

/// Up to [`STRIP`] rows that follow each other on the left, and the row of the output for each of them.
#[derive(Clone, Copy, Debug)]
pub struct Strip {
    /// The first row on the left.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// Their rows in the output, or [`Strip::SKIP`].
    pub to: [u32; STRIP],
}

impl Strip {
    /// In place of a row of the output: nobody wants it.
    pub const SKIP: u32 = u32::MAX;

    /// Rows `rows` on the left as rows from 0 on of the output.
    pub fn of(rows: Range<usize>) -> Vec<Strip> {
        let one = |start: usize| {
            let first = (start - rows.start) as u32;
            Strip { start, count: STRIP.min(rows.end - start), to: std::array::from_fn(|i| first + i as u32) }
        };
        rows.clone().step_by(STRIP).map(one).collect()
    }
}

/// The offsets of rows of `k` codes that lie side by side.
pub fn dense(k: usize) -> Vec<usize> {
    (0..k.div_ceil(STEP)).map(|step| step * STEP).collect()
}

/// Multiplies strips of `left` with some columns of `right` and hands the sums to `finish`. The columns start and end at a
/// multiple of [`PANEL`], or end at the last; rows of the output of `finish` begin with the first of them.
///
/// Panics if the operands do not fit each other, or the output is too small.
pub fn multiply(left: &Left<'_>, strips: &[Strip], right: &PackedInt8, columns: Range<usize>, finish: &mut Finish<'_>) {
    assert!(columns.start <= columns.end && columns.end <= right.n(), "column range {columns:?} of {}", right.n());
    assert!(columns.start.is_multiple_of(PANEL), "column range starts inside a panel");
    assert!(columns.end.is_multiple_of(PANEL) || columns.end == right.n(), "column range ends inside a panel");
    assert_eq!(left.offsets.len(), right.steps(), "steps of the left operand against the right");
    assert!(strips.iter().all(|strip| (1..=STRIP).contains(&strip.count)), "a strip has 1 to {STRIP} rows");
    finish.check(strips, right.n(), columns.len());
    let mut unit = Unit::new(right.isa());
    let mut sums = [Sums::ZERO; STRIPS_BLOCK];
    let mut edge = EDGE.take();
    let edge_offsets: Vec<usize> = (0..left.offsets.len()).map(|step| step * STEP).collect();
    for strips in strips.chunks(STRIPS_BLOCK) {
        // The last rows may lie too close to the end of the data for whole tiles.
        let reach = |strip: &Strip| unit.reach(left, strip.start, strip.count);
        let inside = strips.iter().take_while(|strip| reach(strip) <= left.data.len()).count();
        copy_edge(left, &strips[inside..], &mut edge);
        let copied = Left { data: &edge, stride: left.offsets.len() * STEP, offsets: &edge_offsets };
        let place = |index: usize| match index.checked_sub(inside) {
            None => (left, strips[index].start),
            Some(index) => (&copied, index * STRIP),
        };
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            for steps in blocks(right.steps()) {
                for (index, (strip, sums)) in strips.iter().zip(&mut sums).enumerate() {
                    let (operand, row) = place(index);
                    if index == 0 || index == inside {
                        unit.begin(operand, (right, column), steps.clone());
                    }
                    let next = if index + 1 < strips.len() { Some(place(index + 1)) } else { None };
                    unit.multiply((operand, row, strip), (right, column), steps.clone(), next, sums);
                    if steps.end == right.steps() {
                        let place = Place { from: column, at: column - columns.start, width, ldc: finish.ldc };
                        finish.tile(right.isa(), sums, strip, &place, right);
                    }
                }
            }
        }
    }
    EDGE.set(edge);
}

/// Ranges of steps that are multiplied at once; one that is empty where there are none, so that sums of nothing are zero.
fn blocks(steps: usize) -> impl Iterator<Item = Range<usize>> {
    (0..steps.div_ceil(STEPS_BLOCK).max(1)).map(move |block| block * STEPS_BLOCK..steps.min((block + 1) * STEPS_BLOCK))
}

thread_local! {
    /// Copies of rows at the end of a left operand.
    static EDGE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Copies the rows of some strips, each with room for [`STRIP`].
fn copy_edge(left: &Left<'_>, strips: &[Strip], edge: &mut Vec<u8>) {
    let len = left.offsets.len() * STEP;
    // What is left of other rows makes sums that nobody reads.
    edge.resize(edge.len().max(strips.len() * STRIP * len), 0);
    for (strip, to) in strips.iter().zip(edge.chunks_exact_mut((STRIP * len).max(1))) {
        for (row, to) in (strip.start..strip.start + strip.count).zip(to.chunks_exact_mut(len.max(1))) {
            for (offset, to) in left.offsets.iter().zip(to.chunks_exact_mut(STEP)) {
                let from = left.data.get(offset + row * left.stride..).unwrap_or_default();
                let count = from.len().min(STEP);
                to[..count].copy_from_slice(&from[..count]);
                to[count..].fill(0);
            }
        }
    }
}

/// What multiplies tiles.
#[allow(clippy::large_enum_variant, reason = "there is one in a product, on the stack")]
enum Unit {
    #[cfg(target_arch = "x86_64")]
    Tiles(super::bf16::amx::Configured),
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Places),
    Scalar,
}

impl Unit {
    /// The best that the machine has at this instruction set. Panics if the set is not available.
    fn new(isa: Isa) -> Unit {
        isa.require();
        #[cfg(target_arch = "x86_64")]
        {
            if has_tiles(isa) {
                return Unit::Tiles(super::bf16::amx::Configured::new());
            }
            if has_vnni(isa) {
                return Unit::Vnni;
            }
            if isa >= Isa::Avx2 {
                return Unit::Avx2(avx2::Places::NONE);
            }
        }
        Unit::Scalar
    }

    /// Bytes of the left operand's data up to the last that a product of some rows reads.
    fn reach(&self, left: &Left<'_>, start: usize, count: usize) -> usize {
        let rows = match self {
            #[cfg(target_arch = "x86_64")]
            Unit::Tiles(_) => count.next_multiple_of(TILE_LINES),
            _ => count,
        };
        let Some(last) = left.offsets.iter().copied().max() else { return 0 };
        last.saturating_add((start + rows - 1).saturating_mul(left.stride)).saturating_add(STEP)
    }

    /// What the products of some steps with rows of an operand have in common.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "only AVX2 has something to look up"))]
    fn begin(&mut self, left: &Left<'_>, (right, column): (&PackedInt8, usize), steps: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if let Unit::Avx2(places) = self {
            places.look_up(right.orders(column), left.offsets, steps);
        }
    }

    /// `sums += rows · panel` over some steps, or `sums =` if they are the first. `next` is fetched meanwhile.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "a hint that other processors do not take"))]
    fn multiply(
        &mut self,
        (left, start, strip): (&Left<'_>, usize, &Strip),
        (right, column): (&PackedInt8, usize),
        steps: Range<usize>,
        next: Option<(&Left<'_>, usize)>,
        sums: &mut Sums,
    ) {
        let panel = right.panel(column);
        let wanted = (0..strip.count).filter(|&row| strip.to[row] != Strip::SKIP).fold(0, |rows, row| rows | 1 << row);
        let rows = Rows { left, start, count: strip.count, wanted, first: steps.start == 0 };
        assert!(panel.len() >= steps.end * 2 * TILE_LINES && left.offsets.len() >= steps.end, "operands of {} steps", steps.end);
        assert!(self.reach(left, start, strip.count) <= left.data.len(), "a strip reaches beyond the data");
        match self {
            #[cfg(target_arch = "x86_64")]
            Unit::Tiles(unit) => amx::multiply(unit, &rows, panel, steps, next, sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the unit is made where the machine has the instructions; the assertions above are what it needs.
            Unit::Vnni => unsafe { avx512::multiply(&rows, panel, steps, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above; the operand was packed for the same instruction set, steps are those of a block, and `begin` was called for
            // this operand's offsets, the panel and them.
            Unit::Avx2(places) => unsafe { avx2::multiply(&rows, panel, (right.orders(column), places), steps, sums) },
            Unit::Scalar => scalar(&rows, panel, steps, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_tiles(isa: Isa) -> bool {
    isa >= Isa::Amx && amx::available()
}

#[cfg(target_arch = "x86_64")]
fn has_vnni(isa: Isa) -> bool {
    isa >= Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whether lines are sorted for the product with AVX2.
#[cfg(target_arch = "x86_64")]
fn sorts_lines(isa: Isa) -> bool {
    isa >= Isa::Avx2 && !has_tiles(isa) && !has_vnni(isa)
}

/// Some rows of a left operand.
struct Rows<'a> {
    left: &'a Left<'a>,
    start: usize,
    count: usize,
    /// A bit for each row that somebody wants: the sums of others need not be right.
    wanted: u32,
    /// Whether the sums begin here.
    first: bool,
}

/// The definition that the other bodies are compared with.
fn scalar(rows: &Rows<'_>, panel: &[Line], steps: Range<usize>, sums: &mut Sums) {
    for row in 0..rows.count {
        let (tile, line) = (row / TILE_LINES * 2, row % TILE_LINES);
        for half in 0..2 {
            let acc = &mut sums.0[tile + half][line];
            if rows.first {
                *acc = [0; TILE_COLUMNS];
            }
            for step in steps.clone() {
                let from = rows.left.offsets[step] + (rows.start + row) * rows.left.stride;
                let codes = &rows.left.data[from..from + STEP];
                for (quad, line) in codes.as_chunks::<4>().0.iter().zip(&panel[(step * 2 + half) * TILE_LINES..]) {
                    for (acc, column) in acc.iter_mut().zip(line.0.as_chunks::<4>().0) {
                        for (a, b) in quad.iter().zip(column) {
                            *acc = acc.wrapping_add(i32::from(*a) * i32::from(*b));
                        }
                    }
                }
            }
        }
    }
}
