//! Convolution with channels last at bf16 without a copy for each tap: the image is rounded once, and the tiles of the left operand read
//! it where it lies.
//!
//! Its pixels are sorted by their remainders modulo the strides into planes, with the padding around them. What one tap meets for output
//! pixels that follow one another then lies equally far apart, from line to line, too, so that any 16 pixels are a tile. What is
//! computed for the columns of padding between two lines is thrown away.

use std::cell::Cell;
use std::ops::Range;

use super::strip::turn;
use super::{ConvShape, Image, Job};
use crate::engine::kernels::bf16::{
    Line, Multiplier, PANEL, PackedBf16, ROWS_BLOCK, Rows, STEP, STRIP, Sums, SumsBlock, TILE_LINES, finish, round_pixels,
};
use crate::engine::kernels::epilogue::Epilogue;

/// Lines of a strip of the image, 256 KiB: it stays in the second-level cache, beside weights, while all panels pass by.
const STRIP_LINES: usize = 1 << 12;

thread_local! {
    /// The rounded image of the convolution at hand, kept for the next.
    static IMAGE: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

pub(super) fn run(job: &Job<'_>, weights: &PackedBf16, x: Image<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    // Where nothing but a pixel's own place counts, samples with their channels last continue one another.
    let merged = if x.channels_last { continued(job.shape) } else { *job.shape };
    let shape = &merged;
    let job = &Job { shape, isa: job.isa, epilogue: job.epilogue, lines: job.lines.clone(), channels: job.channels.clone() };
    let planes = Planes::new(shape);
    let offsets = planes.offsets(shape);
    let product = Product { job, planes: &planes, weights, offsets: &offsets, multiplier: Multiplier::new(job.isa) };
    let (mut image, line) = (IMAGE.take(), shape.w_out * job.channels.len());
    let mut next = job.lines.start;
    while next < job.lines.end {
        let (sample, first) = (next / shape.h_out, next % shape.h_out);
        let count = planes.lines.min(shape.h_out - first).min(job.lines.end - next);
        planes.round(job, x, (sample, first..first + count), scratch, &mut image);
        product.run(&image, count, &mut y[(next - job.lines.start) * line..][..count * line]);
        next += count;
    }
    IMAGE.set(image);
}

/// The same convolution with all samples as one, if it is one of single pixels.
fn continued(shape: &ConvShape) -> ConvShape {
    let single = (shape.kernel_h, shape.kernel_w, shape.stride_h, shape.stride_w) == (1, 1, 1, 1);
    if single && (shape.pad_top, shape.pad_left, shape.h_out, shape.w_out) == (0, 0, shape.h_in, shape.w_in) {
        return ConvShape { n: 1, h_in: shape.n * shape.h_in, h_out: shape.n * shape.h_out, ..*shape };
    }
    *shape
}

/// Where the pixels of a strip of the padded image lie.
struct Planes {
    /// Lines of the cache per pixel.
    pixel: usize,
    /// Pixels from line to line of a plane, and so of the output.
    pitch: usize,
    /// Lines of a plane more than of the output.
    more: usize,
    /// Planes: by row, by column.
    count: (usize, usize),
    /// Lines of the output at once.
    lines: usize,
}

impl Planes {
    fn new(shape: &ConvShape) -> Planes {
        let (rows, columns) = ((shape.kernel_h - 1) * shape.dilation_h, (shape.kernel_w - 1) * shape.dilation_w);
        let pixel = shape.c_in.div_ceil(STEP);
        // A tile's rows at a distance of 1 KiB and more would meet few sets of the first-level cache.
        let pixel = if pixel.is_multiple_of(16) { pixel + 1 } else { pixel };
        // Remainders that no tap has are left out.
        let count = (if rows == 0 { 1 } else { shape.stride_h }, if columns == 0 { 1 } else { shape.stride_w });
        let (pitch, more) = (shape.w_out + columns / shape.stride_w, rows / shape.stride_h);
        let lines = STRIP_LINES / (count.0 * count.1 * pitch * pixel);
        // As many as fill blocks of rows, where that is a matter of a few.
        let lines = lines.saturating_sub(more).max(ROWS_BLOCK.div_ceil(pitch));
        let strips = shape.h_out.div_ceil(lines);
        Planes { pixel, pitch, more, count, lines: shape.h_out.div_ceil(strips) }
    }

    /// Pixels of each plane, for some lines of the output.
    fn plane(&self, lines: usize) -> usize {
        (lines + self.more) * self.pitch
    }

    /// Bytes from what the first tap meets to each step of the sums.
    fn offsets(&self, shape: &ConvShape) -> Vec<usize> {
        let plane = self.plane(self.lines);
        let taps = (0..shape.kernel_h).flat_map(|ky| (0..shape.kernel_w).map(move |kx| (ky, kx)));
        let pixel = |(ky, kx): (usize, usize)| {
            let (row, column) = (ky * shape.dilation_h, kx * shape.dilation_w);
            let of = row % shape.stride_h * self.count.1 + column % shape.stride_w;
            of * plane + row / shape.stride_h * self.pitch + column / shape.stride_w
        };
        let steps = shape.c_in.div_ceil(STEP);
        taps.flat_map(|tap| (0..steps).map(move |step| (pixel(tap) * self.pixel + step) * size_of::<Line>())).collect()
    }

    /// Rounds what some lines of a sample's output meet.
    fn round(&self, job: &Job<'_>, x: Image<'_>, (sample, lines): (usize, Range<usize>), scratch: &mut Vec<f32>, image: &mut Vec<Line>) {
        let shape = job.shape;
        let len = shape.c_in * shape.h_in * shape.w_in;
        let x = Image { data: &x.data[sample * len..][..len], ..x };
        let plane = self.plane(self.lines) * self.pixel;
        // Behind the last plane tiles read what nobody needs.
        image.resize(image.len().max(self.count.0 * self.count.1 * plane + STRIP * self.pixel), Line::default());
        for (index, image) in image.chunks_exact_mut(plane).take(self.count.0 * self.count.1).enumerate() {
            let (first_row, first_column) = (index / self.count.1, index % self.count.1);
            let image = &mut image[..(lines.len() + self.more) * self.pitch * self.pixel];
            if self.pitch == 1 && shape.w_in == 1 && x.channels_last {
                let from =
                    Pixels { all: x.data, first: lines.start * shape.stride_h + first_row, pad: shape.pad_top, step: shape.stride_h };
                self.place(job, &from, image);
                continue;
            }
            for (row, to) in image.chunks_exact_mut(self.pitch * self.pixel).enumerate() {
                let row = ((lines.start + row) * shape.stride_h + first_row).wrapping_sub(shape.pad_top);
                if row >= shape.h_in {
                    to.fill(Line::default());
                    continue;
                }
                let len = shape.w_in * shape.c_in;
                let all = if x.channels_last {
                    &x.data[row * len..][..len]
                } else {
                    scratch.resize(scratch.len().max(len), 0.0);
                    turn(shape, x.data, row, 1, &mut scratch[..len]);
                    &scratch[..len]
                };
                self.place(job, &Pixels { all, first: first_column, pad: shape.pad_left, step: shape.stride_w }, to);
            }
        }
    }

    /// Rounds pixels into their places, with the padding around them.
    fn place(&self, job: &Job<'_>, from: &Pixels<'_>, to: &mut [Line]) {
        let (channels, places) = (job.shape.c_in, to.len() / self.pixel);
        let skipped = from.pad.saturating_sub(from.first).div_ceil(from.step).min(places);
        let first = (skipped * from.step + from.first).saturating_sub(from.pad);
        let count = (from.all.len() / channels).saturating_sub(first).div_ceil(from.step).min(places - skipped);
        let (left, rest) = to.split_at_mut(skipped * self.pixel);
        let (inside, right) = rest.split_at_mut(count * self.pixel);
        left.fill(Line::default());
        right.fill(Line::default());
        if count > 0 {
            round_pixels(job.isa, &from.all[first * channels..], (from.step * channels, channels), inside, self.pixel);
        }
    }
}

/// Pixels behind each other, of which each `step`-th is wanted, from `first` on with `pad` of them before all.
struct Pixels<'a> {
    all: &'a [f32],
    first: usize,
    pad: usize,
    step: usize,
}

struct Product<'a> {
    job: &'a Job<'a>,
    planes: &'a Planes,
    weights: &'a PackedBf16,
    offsets: &'a [usize],
    multiplier: Multiplier,
}

impl Product<'_> {
    /// Some lines of the output, of a rounded strip.
    fn run(&self, image: &[Line], lines: usize, y: &mut [f32]) {
        let (shape, planes, channels) = (self.job.shape, self.planes, self.job.channels.clone());
        let mut sums = SumsBlock::ZERO;
        // The last line has no padding behind it.
        let pixels = lines * planes.pitch - (planes.pitch - shape.w_out);
        for first in (0..pixels).step_by(ROWS_BLOCK) {
            let (lines, count) = (&image[first * planes.pixel..], ROWS_BLOCK.min(pixels - first));
            let rows = Rows::new(lines, count, (planes.pixel, TILE_LINES * planes.pixel), self.offsets);
            let touch = y[first / planes.pitch * shape.w_out * channels.len()..].as_ptr();
            for column in channels.clone().step_by(PANEL) {
                let touch = (touch.wrapping_add(column - channels.start), channels.len());
                self.multiplier.multiply_panel(&rows, self.weights.panel(column), touch, &mut sums, |row, sums| {
                    self.finish(first + row..first + rows.count().min(row + STRIP), column, sums, y);
                });
            }
        }
    }

    /// Writes a strip's sums of pixels, those between the lines left out, from channel `column` on.
    fn finish(&self, pixels: Range<usize>, column: usize, sums: &Sums, y: &mut [f32]) {
        let (job, pitch, w_out, ldc) = (self.job, self.planes.pitch, self.job.shape.w_out, self.job.channels.len());
        let width = PANEL.min(job.channels.end - column);
        let epilogue = Epilogue { bias: job.epilogue.bias.tile(0, 0, column, width), ..job.epilogue };
        let mut next = pixels.start;
        while next < pixels.end {
            let (line, x) = (next / pitch, next % pitch);
            let count = w_out.saturating_sub(x).min(pixels.end - next);
            if count == 0 {
                next += pitch - x;
                continue;
            }
            let rows = next - pixels.start..next - pixels.start + count;
            finish(job.isa, sums, rows, &epilogue, &mut y[(line * w_out + x) * ldc + column - job.channels.start..], (ldc, width));
            next += count;
        }
    }
}
