//! Operands rearranged so that a tile reads them in the order it needs them.
//!
//! A right operand `b[k, n]` becomes column panels, each `[k][width]`, one after the other. A left operand `a[m, k]` becomes
//! row panels, each `[k][rows]`. A block of `k` is a contiguous part of a panel.

use std::fmt;
use std::ops::Range;

use smallvec::SmallVec;

use super::tile::{self, Shape};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::stored::{Source, Stored, packed, packed_if};

/// A constant right-hand matrix `b[k, n]`, packed once at load into column panels for one instruction set.
#[derive(Clone, Debug)]
pub struct PackedB {
    isa: Isa,
    k: usize,
    n: usize,
    panels: Stored,
}

impl PackedB {
    /// Packs `b`, which is `[k, n]` row-major, or `[n, k]` if `transposed`. Panics unless `b.len() == k * n` and the
    /// instruction set is available.
    pub fn pack(isa: Isa, b: &(impl Source + ?Sized), k: usize, n: usize, transposed: bool) -> PackedB {
        isa.require();
        assert_eq!(b.count(), k * n, "length of b against k * n");
        let (shape, ldb) = (tile::shape(isa), if transposed { k } else { n });
        let panels = packed(b, format_args!("matrix {k} {n} {transposed}"), panels_len(shape, (k, n)), |b, panels| {
            fill(shape, b, ldb, (k, n), transposed, panels);
        });
        PackedB { isa, k, n, panels }
    }

    /// Packs the weights of a convolution, `[n, channels, taps]`, as the matrix `[taps * channels, n]`. Panics unless the length fits and
    /// the instruction set is available.
    pub fn pack_taps(isa: Isa, weights: &(impl Source + ?Sized), n: usize, (channels, taps): (usize, usize)) -> PackedB {
        isa.require();
        let k = channels * taps;
        assert_eq!(weights.count(), k * n, "length of the weights");
        let shape = tile::shape(isa);
        let panels = packed(weights, format_args!("taps {channels} {taps} {n}"), panels_len(shape, (k, n)), |weights, panels| {
            for (column, panel) in panels_of(shape, panels, (k, n)) {
                turn(panel, |j| &weights[(column + j) * k..][..k], taps);
            }
        });
        PackedB { isa, k, n, panels }
    }

    /// Packs a matrix `[k, n]` that is made of `source`, panel by panel: `fill` is given the numbers, the first column of each, its width, how
    /// many columns there are, and zeros for `[k][width]`. `None` if it says once that there is no such matrix. `form` is its name, with all
    /// that it depends on beside the numbers.
    pub(crate) fn pack_with(
        isa: Isa,
        (k, n): (usize, usize),
        source: &(impl Source + ?Sized),
        form: fmt::Arguments<'_>,
        mut fill: impl FnMut(&[f32], usize, usize, usize, &mut [f32]) -> bool,
    ) -> Option<PackedB> {
        isa.require();
        let shape = tile::shape(isa);
        let panels = packed_if(source, form, panels_len(shape, (k, n)), |numbers, panels| {
            let mut panels = panels_of(shape, panels, (k, n));
            panels.all(|(column, panel)| fill(numbers, column, panel.width, panel.columns, panel.values))
        })?;
        Some(PackedB { isa, k, n, panels })
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory held by the panels, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.elements::<u8>())
    }

    /// Columns per panel: where column ranges given to [`super::gemm_packed_b_columns`] may start and end.
    pub fn panel_width(&self) -> usize {
        tile::shape(self.isa).width
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels { shape: tile::shape(self.isa), k: self.k, n: self.n, data: self.panels.elements() }
    }
}

/// Column panels of a packed right operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    pub shape: Shape,
    pub k: usize,
    pub n: usize,
    pub data: &'a [f32],
}

impl<'a> Panels<'a> {
    /// The part of the panel starting at `column` that holds the given steps of `k`, and its width.
    #[inline]
    pub(crate) fn panel(&self, column: usize, steps: Range<usize>) -> (&'a [f32], usize) {
        let width = panel_width(self.shape, self.n - column);
        let start = column * self.k;
        (&self.data[start + steps.start * width..start + steps.end * width], width)
    }
}

impl<'a> Panels<'a> {
    /// As much as the panel starting at `column`, but from some way behind its beginning on: what one that is read once is to fetch.
    #[inline]
    pub(crate) fn ahead(&self, column: usize) -> &'a [f32] {
        /// 1 KiB. From 4 KiB on it is worth nothing, and less than what hardware foresees was not tried.
        const DISTANCE: usize = 256;
        let start = column * self.k + DISTANCE;
        let len = panel_width(self.shape, self.n - column) * self.k;
        self.data.get(start..start + len).unwrap_or_default()
    }
}

/// The stored width of a panel with this many columns left from its start.
#[inline]
pub(crate) fn panel_width(shape: Shape, columns_left: usize) -> usize {
    if 2 * columns_left <= shape.width { shape.width / 2 } else { shape.width }
}

/// Packs `b`, whose rows are `ldb` apart, into `panels`, replacing what it held, and returns where in it the panels begin; columns
/// beyond `n` are zero and never stored by a tile.
pub(crate) fn pack_b(shape: Shape, b: &[f32], ldb: usize, (k, n): (usize, usize), transposed: bool, panels: &mut Vec<f32>) -> usize {
    // What it held is written over, but for the columns beyond `n`.
    panels.resize(panels_len(shape, (k, n)) + LINE, 0.0);
    let start = panels_start(panels);
    fill(shape, b, ldb, (k, n), transposed, &mut panels[start..]);
    start
}

/// Packs `b`, whose rows are `ldb` apart.
fn fill(shape: Shape, b: &[f32], ldb: usize, (k, n): (usize, usize), transposed: bool, panels: &mut [f32]) {
    for (column, panel) in panels_of(shape, panels, (k, n)) {
        if panel.columns < panel.width {
            panel.values.fill(0.0);
        }
        if transposed {
            turn(panel, |j| &b[(column + j) * ldb..][..k], 1);
        } else {
            for (row, source) in panel.values.chunks_exact_mut(panel.width).zip(b.chunks(ldb)) {
                copy(&source[column..column + panel.columns], row);
            }
        }
    }
}

/// Elements of packed panels.
fn panels_len(shape: Shape, (k, n): (usize, usize)) -> usize {
    let full = n / shape.width * shape.width;
    let last = if full < n { panel_width(shape, n - full) } else { 0 };
    (full + last) * k
}

/// Where panels begin: at a line of the cache, so that no load of a tile touches two.
fn panels_start(panels: &[f32]) -> usize {
    panels.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE)
}

/// A column panel that is to be filled: `[k][width]`.
#[derive(Debug)]
struct ColumnPanel<'a> {
    values: &'a mut [f32],
    width: usize,
    /// Columns that there are; the others stay zero.
    columns: usize,
}

/// The column panels of a matrix `[k, n]`, each with its first column.
fn panels_of(shape: Shape, panels: &mut [f32], (k, n): (usize, usize)) -> impl Iterator<Item = (usize, ColumnPanel<'_>)> {
    let mut rest = panels;
    (0..n).step_by(shape.width).map(move |column| {
        let width = panel_width(shape, n - column);
        let (values, behind) = std::mem::take(&mut rest).split_at_mut(width * k);
        rest = behind;
        (column, ColumnPanel { values, width, columns: width.min(n - column) })
    })
}

/// Fills a panel whose columns lie as rows, `[channels, taps]`, of which the panel is to have `[taps, channels]`. Some channels of all columns
/// at a time: what is written to stays in the first-level cache until its lines are whole.
fn turn<'b>(panel: ColumnPanel<'_>, column: impl Fn(usize) -> &'b [f32], taps: usize) {
    const CHANNELS: usize = 16;
    let ColumnPanel { values, width, columns } = panel;
    let channels = values.len() / width / taps.max(1);
    for first in (0..channels).step_by(CHANNELS) {
        let count = CHANNELS.min(channels - first);
        for j in 0..columns {
            let source = &column(j)[first * taps..(first + count) * taps];
            for tap in 0..taps {
                let rows = &mut values[(tap * channels + first) * width..][..count * width];
                for (row, value) in rows.chunks_exact_mut(width).zip(source[tap..].iter().step_by(taps)) {
                    row[j] = *value;
                }
            }
        }
    }
}

/// Copies a row of a panel; one of whole lines without a call.
#[inline]
fn copy(from: &[f32], to: &mut [f32]) {
    if from.len().is_multiple_of(LINE) {
        for (to, from) in to.as_chunks_mut::<LINE>().0.iter_mut().zip(from.as_chunks::<LINE>().0) {
            *to = *from;
        }
    } else {
        to[..from.len()].copy_from_slice(from);
    }
}

/// Elements of a line of the cache.
pub(in crate::engine::kernels) const LINE: usize = 16;

/// Left-hand matrices `a[m, k]`, one for each group, packed into row panels for one instruction set: convolution weights.
#[derive(Clone, Debug)]
pub struct PackedA {
    isa: Isa,
    groups: usize,
    m: usize,
    k: usize,
    panels: Vec<f32>,
}

/// A row panel that is to be filled.
#[derive(Debug)]
pub struct RowPanel<'a> {
    /// Its rows, counted through all groups.
    pub rows: Range<usize>,
    k: usize,
    values: &'a mut [f32],
}

impl RowPanel<'_> {
    /// Fills it with what `row` gives of each of its rows: `k` values.
    pub fn fill<I: Iterator<Item = f32>>(self, row: impl Fn(usize) -> I) {
        /// Steps that are filled row by row: so many lines of the panel stay in the first-level cache.
        const STEPS: usize = 16;
        let height = self.rows.len();
        let mut rows: SmallVec<[I; tile::ROWS_MAX]> = self.rows.map(row).collect();
        for values in self.values[..height * self.k].chunks_mut(STEPS * height) {
            for (i, row) in rows.iter_mut().enumerate() {
                values[i..].iter_mut().step_by(height).zip(row).for_each(|(to, value)| *to = value);
            }
        }
    }
}

impl PackedA {
    /// Packs `a`, which is `[groups, m, k]` row-major. Panics unless `a.len() == groups * m * k` and the instruction set is
    /// available.
    pub fn pack(isa: Isa, a: &[f32], groups: usize, m: usize, k: usize) -> PackedA {
        assert_eq!(a.len(), groups * m * k, "length of a against groups * m * k");
        let mut packed = PackedA::unfilled(isa, groups, m, k, Vec::new());
        packed.row_panels().for_each(|panel| panel.fill(|row| a[row * k..(row + 1) * k].iter().copied()));
        packed
    }

    /// Matrices of numbers that mean nothing until all of [`PackedA::row_panels`] are filled, in the memory of `panels`.
    pub fn unfilled(isa: Isa, groups: usize, m: usize, k: usize, mut panels: Vec<f32>) -> PackedA {
        isa.require();
        panels.resize(groups * m * k, 0.0);
        PackedA { isa, groups, m, k, panels }
    }

    /// All row panels.
    pub fn row_panels(&mut self) -> impl Iterator<Item = RowPanel<'_>> {
        let (m, k, height) = (self.m, self.k, tile::shape(self.isa).rows);
        let groups = self.panels.chunks_mut((m * k).max(1)).enumerate();
        groups.flat_map(move |(group, panels)| {
            let first = group * m;
            panels.chunks_mut((height * k).max(1)).enumerate().map(move |(panel, values)| {
                let start = panel * height;
                RowPanel { rows: first + start..first + m.min(start + height), k, values }
            })
        })
    }

    /// The memory, for [`PackedA::unfilled`].
    pub fn into_memory(self) -> Vec<f32> {
        self.panels
    }

    /// How many matrices there are.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Rows of each.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory held by the panels, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.panels.as_slice())
    }

    /// The part of the panel starting at `row` (a multiple of the tile height) of a group that holds the given steps of `k`, and its
    /// number of rows.
    #[inline]
    pub(crate) fn panel(&self, group: usize, row: usize, steps: Range<usize>) -> (&[f32], usize) {
        let rows = tile::shape(self.isa).rows.min(self.m - row);
        let start = (group * self.m + row) * self.k;
        (&self.panels[start + steps.start * rows..start + steps.end * rows], rows)
    }
}

/// A left operand that is not packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    data: &'a [f32],
    /// Distance from row to row.
    row_stride: usize,
    /// Distance from one step of `k` to the next.
    step_stride: usize,
}

impl<'a> Left<'a> {
    /// Row-major with the given distance from row to row.
    pub(crate) fn rows(data: &'a [f32], lda: usize) -> Left<'a> {
        Left { data, row_stride: lda, step_stride: 1 }
    }

    /// Column-major: `[k, m]` with rows of length `m`.
    pub(crate) fn transposed(data: &'a [f32], m: usize) -> Left<'a> {
        Left { data, row_stride: 1, step_stride: m }
    }

    /// Whether a tile can read it in place, and if so with which distance from row to row.
    pub(crate) fn in_place(&self) -> Option<usize> {
        (self.step_stride == 1).then_some(self.row_stride)
    }

    /// The elements from `(row, step)` on.
    #[inline]
    pub(crate) fn from(&self, row: usize, step: usize) -> &'a [f32] {
        &self.data[row * self.row_stride + step * self.step_stride..]
    }

    /// Copies a part of a row.
    #[inline]
    pub(crate) fn copy(&self, row: usize, steps: Range<usize>, to: &mut [f32]) {
        if steps.is_empty() {
            return;
        }
        if self.step_stride == 1 {
            to[..steps.len()].copy_from_slice(&self.from(row, steps.start)[..steps.len()]);
        } else {
            let values = self.from(row, steps.start).iter().step_by(self.step_stride);
            to[..steps.len()].iter_mut().zip(values).for_each(|(to, value)| *to = *value);
        }
    }
}
