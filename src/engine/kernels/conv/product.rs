//! Convolution as a matrix product whose right operand is gathered panel by panel.

use std::ops::Range;

use super::image::Layout;
use super::{ConvShape, Job};
use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::gemm::PackedA;
use crate::engine::kernels::gemm::tile::{self, ROWS_MAX, Rows, Shape, Tile, WIDTH_MAX};
use crate::engine::kernels::isa::{Isa, instantiate};

/// Steps of `k` per block of panels: with a panel of 256 × 32 × 4 = 32 KiB, of which the first-level cache keeps the part in use.
const K_BLOCK: usize = 256;

/// Columns per block of panels: 256 × 256 × 4 = 256 KiB, a quarter of a 1 MiB second-level cache, beside image and output.
const COLUMN_BLOCK: usize = 256;

/// Columns a run of samples should have: enough to fill panels, few enough for the padded copy to stay in the cache.
const COLUMNS_PER_RUN: usize = 1024;

/// Elements moved by one copy of [`gather`]: one 512-bit or two 256-bit registers.
const COPY: usize = 16;

pub(super) fn run(job: &Job<'_>, weights: &PackedA, x: &[f32], y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    let layout = Layout::new(shape);
    let pixels = shape.pixels();
    let samples = COLUMNS_PER_RUN.div_ceil(pixels).min(shape.n);
    let channels_in = group_channels(shape, &job.channels);
    let sample_in = shape.c_in * shape.h_in * shape.w_in;
    let image_len = if layout.copies { samples * channels_in.len() * layout.plane } else { 0 };
    let panels_len = COLUMN_BLOCK.min((samples * pixels).next_multiple_of(WIDTH_MAX)) * weights.k().min(K_BLOCK) + COPY;
    scratch.resize(scratch.len().max(image_len + panels_len), 0.0);
    let (image, panels) = scratch.split_at_mut(image_len);
    image.fill(0.0);
    let stored = channels_in.len() * layout.plane;
    for (index, y) in y.chunks_mut(samples * job.channels.len() * pixels).enumerate() {
        let count = y.len() / (job.channels.len() * pixels);
        let x = &x[index * samples * sample_in..][..count * sample_in];
        let source = if layout.copies {
            for (at, channel) in (0..count * channels_in.len()).map(|at| (at, at % channels_in.len() + channels_in.start)) {
                let from = at / channels_in.len() * sample_in + channel * shape.h_in * shape.w_in;
                layout.copy(shape, &x[from..][..shape.h_in * shape.w_in], &mut image[at * layout.plane..]);
            }
            Source { data: image, sample: stored, first_channel: channels_in.start, layout }
        } else {
            Source { data: x, sample: sample_in, first_channel: 0, layout }
        };
        run_samples(job, weights, &source, count, y, panels);
    }
}

/// The input channels that some output channels depend on.
fn group_channels(shape: &ConvShape, channels: &Range<usize>) -> Range<usize> {
    let (outputs, inputs) = (shape.c_out / shape.groups, shape.c_in / shape.groups);
    channels.start / outputs * inputs..channels.end.div_ceil(outputs) * inputs
}

/// The images of a run of samples.
struct Source<'a> {
    data: &'a [f32],
    /// From sample to sample.
    sample: usize,
    /// The input channel that lies first in a sample.
    first_channel: usize,
    layout: Layout,
}

fn run_samples(job: &Job<'_>, weights: &PackedA, source: &Source<'_>, samples: usize, y: &mut [f32], panels: &mut [f32]) {
    let shape = job.shape;
    let per_group = shape.c_out / shape.groups;
    let columns = samples * shape.pixels();
    for group in 0..weights.groups() {
        let first = group * per_group;
        let rows = job.channels.start.max(first)..job.channels.end.min(first + per_group);
        if rows.is_empty() {
            continue;
        }
        let bias = match job.epilogue.bias {
            Bias::PerRow(bias) => Bias::PerRow(&bias[first..first + per_group]),
            other => other,
        };
        let product = Product {
            job,
            source,
            weights,
            group,
            rows: rows.start - first..rows.end - first,
            output: rows.start - job.channels.start,
            epilogue: Epilogue { bias, ..job.epilogue },
        };
        for column in (0..columns).step_by(COLUMN_BLOCK) {
            product.run(column..columns.min(column + COLUMN_BLOCK), y, panels);
        }
    }
}

/// The product of one group's weights with the pixels of a run of samples.
struct Product<'a> {
    job: &'a Job<'a>,
    source: &'a Source<'a>,
    weights: &'a PackedA,
    group: usize,
    /// Rows of `weights` to compute.
    rows: Range<usize>,
    /// The channel of `y` that the first of `rows` is.
    output: usize,
    epilogue: Epilogue<'a>,
}

impl Product<'_> {
    /// Computes a block of columns.
    fn run(&self, columns: Range<usize>, y: &mut [f32], panels: &mut [f32]) {
        let shape = tile::shape(self.job.isa);
        let k = self.weights.k();
        // Blocks of equal size: a short last one would pay the tile's overhead for little work.
        let block = k.div_ceil(k.div_ceil(K_BLOCK).max(1)).max(1);
        for step in (0..k.max(1)).step_by(block) {
            let steps = step..k.min(step + block);
            self.gather_block(shape, columns.clone(), steps.clone(), panels);
            for row in self.rows.clone().step_by(shape.rows) {
                let (a, rows) = self.weights.panel(self.group, row, steps.clone());
                for column in columns.clone().step_by(shape.width) {
                    let count = shape.width.min(columns.end - column);
                    let mut tile = Tile {
                        a,
                        a_rows: Rows::Packed,
                        b: &panels[(column - columns.start) * steps.len()..][..shape.width * steps.len()],
                        b_stride: shape.width,
                        width: shape.width,
                        k: steps.len(),
                        rows,
                        columns: count,
                        c: &mut [],
                        ldc: 0,
                        first: step == 0 && !self.epilogue.adds,
                        finish: (steps.end == k).then(|| Epilogue { bias: self.epilogue.bias.tile(row, rows, 0, 0), ..self.epilogue }),
                    };
                    self.store(&mut tile, self.output + row - self.rows.start, column, y);
                }
            }
        }
    }

    /// Runs a tile with its place in `y` as the output: directly, or by way of a buffer if its columns span samples.
    fn store<'t>(&self, tile: &mut Tile<'t>, channel: usize, column: usize, y: &'t mut [f32]) {
        let pixels = self.job.shape.pixels();
        let sample_len = self.job.channels.len() * pixels;
        let (sample, pixel) = (column / pixels, column % pixels);
        if pixel + tile.columns <= pixels {
            tile.c = &mut y[sample * sample_len + channel * pixels + pixel..];
            tile.ldc = pixels;
            tile::run(self.job.isa, tile);
            return;
        }
        let mut buffer = [0.0f32; ROWS_MAX * WIDTH_MAX];
        let spans = || Spans { pixels, next: column, end: column + tile.columns };
        let place = |row: usize, at: usize| at / pixels * sample_len + (channel + row) * pixels + at % pixels;
        if !tile.first {
            for row in 0..tile.rows {
                for span in spans() {
                    let held = &y[place(row, span.start)..][..span.len()];
                    buffer[row * WIDTH_MAX + span.start - column..][..span.len()].copy_from_slice(held);
                }
            }
        }
        let mut buffered = Tile { c: &mut buffer, ldc: WIDTH_MAX, finish: tile.finish, ..*tile };
        tile::run(self.job.isa, &mut buffered);
        for row in 0..tile.rows {
            for span in spans() {
                let done = &buffer[row * WIDTH_MAX + span.start - column..][..span.len()];
                y[place(row, span.start)..][..span.len()].copy_from_slice(done);
            }
        }
    }

    /// Fills the panels of a block of columns for some steps of `k`.
    fn gather_block(&self, shape: Shape, columns: Range<usize>, steps: Range<usize>, panels: &mut [f32]) {
        for column in columns.clone().step_by(shape.width) {
            let mut copies = [Copy::default(); WIDTH_MAX];
            let count = self.plan_copies(column..columns.end.min(column + shape.width), &mut copies);
            let taps = Taps { source: self.source, shape: self.job.shape, group: self.group, steps: steps.clone() };
            let panel = &mut panels[(column - columns.start) * steps.len()..];
            gather(self.job.isa, &taps, &copies[..count], shape.width, panel);
        }
    }

    /// Cuts the columns of a panel into copies of neighbours in the image; returns how many there are.
    fn plan_copies(&self, columns: Range<usize>, copies: &mut [Copy; WIDTH_MAX]) -> usize {
        let (width, pixels) = (self.job.shape.w_out, self.job.shape.pixels());
        let (start, mut count) = (columns.start, 0);
        let mut column = start;
        let mut after = usize::MAX;
        while column < columns.end {
            let (sample, pixel) = (column / pixels, column % pixels);
            let (row, x) = (pixel / width, pixel % width);
            let from = sample * self.source.sample + row * self.source.layout.output_row + x;
            let mut len = (width - x).min(columns.end - column);
            column += len;
            let to = column - len - start;
            if from == after {
                // Rows without padding continue one another: fill up the last copy first.
                let last = &mut copies[count - 1];
                let more = len.min(COPY - last.len);
                last.len += more;
                len -= more;
            }
            after = from + (column - start - to);
            let mut moved = column - start - to - len;
            while len > 0 {
                let piece = len.min(COPY);
                copies[count] = Copy { from: from + moved, to: to + moved, len: piece };
                count += 1;
                moved += piece;
                len -= piece;
            }
        }
        count
    }
}

/// The parts of a range of columns that lie in one sample each.
struct Spans {
    pixels: usize,
    next: usize,
    end: usize,
}

impl Iterator for Spans {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.next;
        self.next = self.end.min((start / self.pixels + 1) * self.pixels);
        (start < self.end).then_some(start..self.next)
    }
}

/// Columns that lie side by side in the image.
#[derive(Clone, Copy, Debug, Default)]
struct Copy {
    /// Offset in the image.
    from: usize,
    /// Column of the panel.
    to: usize,
    /// At most [`COPY`].
    len: usize,
}

/// Which rows of the right operand a panel holds.
struct Taps<'a> {
    source: &'a Source<'a>,
    shape: &'a ConvShape,
    group: usize,
    steps: Range<usize>,
}

/// Writes the panel `[steps][width]`. `panel` has [`COPY`] elements more, which may be overwritten.
fn gather(isa: Isa, taps: &Taps<'_>, copies: &[Copy], width: usize, panel: &mut [f32]) {
    instantiate!(isa, gather_body, (taps: &Taps<'_>, copies: &[Copy], width: usize, panel: &mut [f32]));
}

#[inline(always)]
fn gather_body<const FMA: bool>(taps: &Taps<'_>, copies: &[Copy], width: usize, panel: &mut [f32]) {
    let (shape, layout) = (taps.shape, &taps.source.layout);
    let kernel = (shape.kernel_h * shape.kernel_w).max(1);
    let (channel, tap) = (taps.steps.start / kernel, taps.steps.start % kernel);
    let first_channel = taps.group * (shape.c_in / shape.groups) - taps.source.first_channel;
    let mut plane = (first_channel + channel) * layout.plane;
    // Counters rather than divisions: with few output channels this loop is as long as the product itself.
    let (mut ky, mut kx) = (tap / shape.kernel_w.max(1), tap % shape.kernel_w.max(1));
    let reach = copies.iter().map(|copy| copy.from + COPY).max().unwrap_or(0);
    let mut rows = panel;
    for _ in taps.steps.clone() {
        let image = &taps.source.data[plane + layout.tap(shape, ky, kx)..];
        if image.len() >= reach {
            // Always a full register: what is too much is overwritten by the next copy, in this row or the next.
            for copy in copies {
                let from: &[f32; COPY] = image[copy.from..].first_chunk().expect("within reach");
                *rows[copy.to..].first_chunk_mut().expect("a panel has slack behind it") = *from;
            }
        } else {
            for copy in copies {
                let from = &image[copy.from..][..copy.len];
                rows[copy.to..][..copy.len].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        rows = &mut rows[width..];
        kx += 1;
        if kx == shape.kernel_w {
            (kx, ky) = (0, ky + 1);
            if ky == shape.kernel_h {
                (ky, plane) = (0, plane + layout.plane);
            }
        }
    }
}
