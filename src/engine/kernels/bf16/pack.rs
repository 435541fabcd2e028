//! Rounding to bf16, and operands in the order of tiles.

use std::ops::Range;

use super::{Line, PANEL, Rows, STEP, TILE_COLUMNS, TILE_LINES};
use crate::engine::kernels::isa::{Isa, instantiate};

/// `x` rounded to bf16, to nearest with ties to even, as the upper 16 bits of an f32; a NaN stays one.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a NaN's mantissa into infinity or zero: it is cut off and made quiet.
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

/// Two neighbours along `k`, rounded.
#[inline(always)]
pub(crate) fn pair(even: f32, odd: f32) -> u32 {
    rounded(even) | rounded(odd) << 16
}

/// A left operand `a[m, k]` in tiles of 16 rows, all steps of one behind each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedLeft {
    lines: Vec<Line>,
    /// Where each step of a row begins.
    offsets: Vec<usize>,
}

impl PackedLeft {
    pub(crate) const EMPTY: PackedLeft = PackedLeft { lines: Vec::new(), offsets: Vec::new() };

    /// Makes room for `m` rows of `steps`, and returns it.
    pub(crate) fn reserve(&mut self, m: usize, steps: usize) -> &mut [Line] {
        const TILE: usize = TILE_LINES * size_of::<Line>();
        // What is left of another operand in the lines of rows beyond `m` makes sums that nobody reads.
        self.lines.resize(m.div_ceil(TILE_LINES) * TILE_LINES * steps, Line::default());
        self.offsets.truncate(steps);
        self.offsets.extend((self.offsets.len()..steps).map(|step| step * TILE));
        &mut self.lines
    }

    /// The first `count` rows.
    pub(crate) fn rows(&self, count: usize) -> Rows<'_> {
        Rows::new(&self.lines, count, (1, TILE_LINES * self.offsets.len()), &self.offsets)
    }
}

/// A constant left operand `a[m, k]`, rounded and packed once: convolution weights.
#[derive(Clone, Debug)]
pub(crate) struct RoundedLeft {
    k: usize,
    packed: PackedLeft,
}

impl RoundedLeft {
    /// Packs `a`, which is `[m, k]` row-major. Panics unless `a.len() == m * k`.
    pub(crate) fn pack(isa: Isa, a: &[f32], m: usize, k: usize) -> RoundedLeft {
        assert_eq!(a.len(), m * k, "length of a against m * k");
        let mut packed = PackedLeft::EMPTY;
        left(isa, a, k, m, k, &mut packed);
        RoundedLeft { k, packed }
    }

    /// Columns: the length of the sums.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn steps(&self) -> usize {
        self.k.div_ceil(STEP)
    }

    /// Some rows from one on that is a multiple of 32.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let PackedLeft { lines, offsets } = &self.packed;
        Rows::new(&lines[rows.start * offsets.len()..], rows.len(), (1, TILE_LINES * offsets.len()), offsets)
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.packed.lines.as_slice())
    }
}

/// Packs a right operand: panels of 32 columns, in each for each step two tiles. What lies beyond `k` and `n` is zero.
pub(super) fn right(b: &[f32], k: usize, n: usize, transposed: bool, lines: &mut [Line]) {
    let steps = k.div_ceil(STEP);
    let at = |row: usize, column: usize| match (row < k && column < n, transposed) {
        (false, _) => 0.0,
        (true, false) => b[row * n + column],
        (true, true) => b[column * k + row],
    };
    for (index, tile) in lines.chunks_exact_mut(TILE_LINES).enumerate() {
        let (panel, step, half) = (index / (2 * steps), index / 2 % steps, index % 2);
        let column = panel * PANEL + half * TILE_COLUMNS;
        let inside = (step + 1) * STEP <= k && column + TILE_COLUMNS <= n;
        for (i, line) in tile.iter_mut().enumerate() {
            let row = step * STEP + 2 * i;
            if inside && !transposed {
                let (even, odd) = (&b[row * n + column..][..TILE_COLUMNS], &b[(row + 1) * n + column..][..TILE_COLUMNS]);
                line.0 = std::array::from_fn(|j| pair(even[j], odd[j]));
            } else {
                line.0 = std::array::from_fn(|j| pair(at(row, column + j), at(row + 1, column + j)));
            }
        }
    }
}

/// Lines of a packed right operand.
pub(super) fn right_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * k.div_ceil(STEP) * 2 * TILE_LINES
}

/// Rounds and packs `m` rows of a left operand, `lda` apart. What lies beyond `k` is zero.
pub(super) fn left(isa: Isa, a: &[f32], lda: usize, m: usize, k: usize, to: &mut PackedLeft) {
    let steps = k.div_ceil(STEP);
    let lines = to.reserve(m, steps);
    left_part(isa, a, &Part { lda, len: k, rows: 0..m, step: 0, steps }, lines);
}

/// A part of a left operand: neighbours along `k` of some rows.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// From row to row.
    pub(crate) lda: usize,
    /// Elements of a row, filled up with zeros to whole steps.
    pub(crate) len: usize,
    /// Which rows it is.
    pub(crate) rows: Range<usize>,
    /// The step at which it begins, of how many.
    pub(crate) step: usize,
    pub(crate) steps: usize,
}

impl Part {
    /// The first line of a row; that of the next step is a tile further.
    #[inline(always)]
    pub(super) fn place(&self, row: usize) -> usize {
        (row / TILE_LINES * self.steps + self.step) * TILE_LINES + row % TILE_LINES
    }
}

/// Rounds and packs a part of a left operand in which there is room for all of it ([`PackedLeft::reserve`]).
pub(crate) fn left_part(isa: Isa, a: &[f32], part: &Part, lines: &mut [Line]) {
    if part.len == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        return unsafe { super::avx512::pack_left(a, part, lines) };
    }
    instantiate!(isa, left_body, (a: &[f32], part: &Part, lines: &mut [Line]));
}

#[inline(always)]
fn left_body<const FMA: bool>(a: &[f32], part: &Part, lines: &mut [Line]) {
    for (index, row) in part.rows.clone().enumerate() {
        let first = part.place(row);
        let (whole, rest) = a[index * part.lda..][..part.len].as_chunks::<STEP>();
        for (at, values) in whole.iter().enumerate() {
            lines[first + at * TILE_LINES].0 = packed(values);
        }
        if !rest.is_empty() {
            let mut values = [0.0; STEP];
            values[..rest.len()].copy_from_slice(rest);
            lines[first + whole.len() * TILE_LINES].0 = packed(&values);
        }
    }
}

/// A line of a left tile.
#[inline(always)]
fn packed(values: &[f32; STEP]) -> [u32; 16] {
    let halves = values.map(|v| rounded(v) as u16);
    std::array::from_fn(|i| u32::from(halves[2 * i]) | u32::from(halves[2 * i + 1]) << 16)
}

/// Rounds rows of `len` elements, `step` apart, to lines, `stride` apart, as many as `to` has room for. The last line of a row is filled
/// up with zeros.
pub(crate) fn round_pixels(isa: Isa, from: &[f32], (step, len): (usize, usize), to: &mut [Line], stride: usize) {
    type Size = (usize, usize);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        return unsafe { super::avx512::round_pixels(from, (step, len), to, stride) };
    }
    let size = (step, len);
    instantiate!(isa, round_pixels_body, (from: &[f32], size: Size, to: &mut [Line], stride: usize));
}

#[inline(always)]
fn round_pixels_body<const FMA: bool>(from: &[f32], (step, len): (usize, usize), to: &mut [Line], stride: usize) {
    for (index, lines) in to.chunks_exact_mut(stride).enumerate() {
        let (whole, rest) = from[index * step..][..len].as_chunks::<STEP>();
        for (to, values) in lines.iter_mut().zip(whole) {
            to.0 = packed(values);
        }
        if !rest.is_empty() {
            let mut values = [0.0; STEP];
            values[..rest.len()].copy_from_slice(rest);
            lines[whole.len()].0 = packed(&values);
        }
    }
}
