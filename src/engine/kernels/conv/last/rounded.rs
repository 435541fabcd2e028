//! Convolution with channels last and both operands rounded to bf16: the product of tiles, whose left operand is packed of runs of
//! neighbours in the image, each filled up to whole steps.

use std::cell::Cell;
use std::ops::Range;

use super::placed;
use super::product::{Lines, runs, strips};
use super::strip::Reading;
use super::{Image, Job};
use crate::engine::kernels::bf16::{
    Multiplier, PANEL, PackedBf16, PackedLeft, Part, ROWS_BLOCK, STEP, STRIP, SumsBlock, finish, left_part,
};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::isa::Isa;

/// Weights of each group, `[runs of whole steps, c_out]`.
#[derive(Clone, Debug)]
pub(super) struct Rounded {
    groups: Vec<PackedBf16>,
    /// Whether a run is a tap, rather than a line of the kernel.
    taps: bool,
    /// Whether tiles read the image where it lies (`placed.rs`).
    placed: bool,
}

impl Rounded {
    /// Packs `weights`, `[c_out, c_in, kernel]`; `taps` says that those of a line do not meet neighbours.
    pub(super) fn pack(
        isa: Isa,
        weights: &[f32],
        (c_out, c_in): (usize, usize),
        kernel: (usize, usize),
        (groups, taps): (usize, bool),
    ) -> Rounded {
        let placed = placed(c_in, kernel.1, groups);
        let taps = taps || placed || groups > 1;
        let (rows, depth) = (c_out / groups, c_in * kernel.0 * kernel.1);
        let len = if taps { c_in } else { kernel.1 * c_in };
        let full = len.next_multiple_of(STEP);
        let k = depth / len * full;
        let group = |weights: &[f32]| {
            let mut ordered = vec![0.0; rows * k];
            let places: Vec<usize> = (0..depth).map(|element| element / len * full + element % len).collect();
            for (row, to) in weights.chunks_exact(depth).zip(ordered.chunks_exact_mut(k)) {
                for (channel, weights) in row.chunks_exact(depth / c_in).enumerate() {
                    for (tap, weight) in weights.iter().enumerate() {
                        to[places[tap * c_in + channel]] = *weight;
                    }
                }
            }
            PackedBf16::pack(isa, &ordered, k, rows, true)
        };
        Rounded { groups: weights.chunks_exact(rows * depth).map(group).collect(), taps, placed }
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.groups.iter().map(PackedBf16::bytes).sum()
    }
}

/// Whether tiles read the image where it lies. Each tap is filled up to whole steps then: half as much again costs less than copying what
/// every tap meets. That pays for short sums, too, but not for those of pictures.
pub(super) fn placed(c_in: usize, kernel_w: usize, groups: usize) -> bool {
    let line = (kernel_w * c_in).next_multiple_of(STEP);
    groups == 1 && 2 * c_in >= STEP && 2 * kernel_w * c_in.next_multiple_of(STEP) <= 3 * line
}

thread_local! {
    /// The packed pixels of the convolution at hand, kept for the next.
    static LEFT: Cell<PackedLeft> = const { Cell::new(PackedLeft::EMPTY) };
}

pub(super) fn run(job: &Job<'_>, weights: &Rounded, x: Image<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    if let (true, [weights]) = (weights.placed, &weights.groups[..]) {
        return placed::run(job, weights, x, y, scratch);
    }
    let reading = Reading::new(shape, &x);
    let (runs, len) = runs(shape, reading.pitch * shape.c_in, weights.taps);
    let product = Product { job, runs: &runs, len, lda: reading.step(shape), multiplier: Multiplier::new(job.isa) };
    let mut left = LEFT.take();
    strips(job, &reading, x, scratch, y, |lines, y| {
        let (pixels, ldc) = (lines.count * lines.pixels, job.channels.len());
        for first in (0..pixels).step_by(ROWS_BLOCK) {
            let block = first..pixels.min(first + ROWS_BLOCK);
            for (group, weights) in weights.groups.iter().enumerate() {
                product.pack(lines, group, block.clone(), &mut left);
                product.multiply(weights, group, &left, &mut y[first * ldc..][..block.len() * ldc]);
            }
        }
    });
    LEFT.set(left);
}

struct Product<'a> {
    job: &'a Job<'a>,
    /// Where the runs that a pixel meets begin, and how long each is.
    runs: &'a [usize],
    len: usize,
    /// From what a pixel meets to what the next one does.
    lda: usize,
    multiplier: Multiplier,
}

impl Product<'_> {
    /// Packs what some pixels of a strip meet in a group.
    fn pack(&self, lines: &Lines<'_>, group: usize, pixels: Range<usize>, left: &mut PackedLeft) {
        let shape = self.job.shape;
        let per_run = self.len.div_ceil(STEP);
        let steps = self.runs.len() * per_run;
        let left = left.reserve(pixels.len(), steps);
        let mut next = pixels.start;
        while next < pixels.end {
            let (line, x) = (next / lines.pixels, next % lines.pixels);
            let count = (lines.pixels - x).min(pixels.end - next);
            let from = line * lines.pitch + x * self.lda + group * (shape.c_in / shape.groups);
            let row = next - pixels.start;
            for (index, run) in self.runs.iter().enumerate() {
                let rows = row..row + count;
                let part = Part { lda: self.lda, len: self.len, rows, step: index * per_run, steps };
                left_part(self.job.isa, &lines.a[from + run..], &part, left);
            }
            next += count;
        }
    }

    /// All channels of a group of the packed pixels, whose output is `y`.
    fn multiply(&self, weights: &PackedBf16, group: usize, left: &PackedLeft, y: &mut [f32]) {
        let (job, ldc) = (self.job, self.job.channels.len());
        let rows = y.len() / ldc;
        let (mut sums, left) = (SumsBlock::ZERO, left.rows(rows));
        let columns = job.columns(group);
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            let channel = group * weights.n() + column;
            let bias = job.epilogue.bias.tile(0, 0, channel, width);
            let (y, epilogue) = (&mut y[channel - job.channels.start..], Epilogue { bias, ..job.epilogue });
            let touch = (y.as_ptr(), ldc);
            self.multiplier.multiply_panel(&left, weights.panel(column), touch, &mut sums, |row, sums| {
                finish(job.isa, sums, 0..STRIP.min(rows - row), &epilogue, &mut y[row * ldc..], (ldc, width));
            });
        }
    }
}
