//! Depthwise convolution with channels last: the channels are the lanes, and a few pixels of a line are computed side by side.
//!
//! An image with its channels last is read where it lies, padding or not: what a tap would meet in the padding is a zero in a register. A pixel
//! at the left or right edge is computed alone for that, so where many are there the image is copied with its padding, some channels at a time.

mod tile;

use std::ops::Range;

use super::strip::{Reading, between_padding, reach};
use super::{Image, Job};
use crate::engine::kernels::cache::caches;
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::epilogue::{Activation, Bias};
use crate::engine::kernels::isa::Isa;
use tile::{Operands, SIDE};

pub(super) fn run(job: &Job<'_>, weights: &[f32], x: Image<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    let line = shape.w_out * shape.c_out;
    let (copies, reading) = (!x.channels_last, Reading::new(shape, &x));
    scratch.resize(scratch.len().max(if copies { reading.len(shape) } else { 0 }), 0.0);
    let mut next = job.lines.start;
    while next < job.lines.end {
        let (sample, first) = (next / shape.h_out, next % shape.h_out);
        let most = if copies { reading.lines } else { shape.h_out };
        let count = most.min(shape.h_out - first).min(job.lines.end - next);
        let y = &mut y[(next - job.lines.start) * line..][..count * line];
        if copies {
            let data = reading.strip(shape, x, sample, first..first + count, scratch);
            let size = (data.len() / (reading.pitch * shape.c_in).max(1), reading.pitch);
            Work::new(job, weights, Source::whole(data, size, (0, 0), shape)).lines(0..count, y);
        } else {
            let len = shape.c_in * shape.h_in * shape.w_in;
            let (data, size, pad) = (&x.data[sample * len..][..len], (shape.h_in, shape.w_in), (shape.pad_top, shape.pad_left));
            let work = Work::new(job, weights, Source::whole(data, size, pad, shape));
            if work.is_mostly_edge() {
                work.padded(first..first + count, y, scratch);
            } else {
                work.lines(first..first + count, y);
            }
        }
        next += count;
    }
}

/// An image, or a strip of one with its padding, or some channels of such a strip.
struct Source<'a> {
    data: &'a [f32],
    /// Height and width.
    size: (usize, usize),
    /// Zeros above and on the left that are not in it.
    pad: (usize, usize),
    /// Its channels: the first, and how many there are.
    channels: (usize, usize),
}

impl<'a> Source<'a> {
    /// All channels of an image or a strip.
    fn whole(data: &'a [f32], size: (usize, usize), pad: (usize, usize), shape: &ConvShape) -> Source<'a> {
        Source { data, size, pad, channels: (0, shape.c_out) }
    }
}

struct Work<'a> {
    isa: Isa,
    source: Source<'a>,
    shape: &'a ConvShape,
    /// `[kernel, channels]`.
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    adds: bool,
    activation: Activation,
}

/// Neighbours in a line of the output for which the same columns of the kernel are in the padding.
struct Pixels {
    first: usize,
    count: usize,
    /// Where in a line of the image the first of them meets each column of the kernel.
    columns: Vec<Option<usize>>,
    /// Whether all of them are in the image, and neighbours.
    neighbours: bool,
}

impl<'a> Work<'a> {
    fn new(job: &'a Job<'_>, weights: &'a [f32], source: Source<'a>) -> Work<'a> {
        let bias = match job.epilogue.bias {
            Bias::PerColumn(bias) => Some(bias),
            _ => None,
        };
        Work { isa: job.isa, source, shape: job.shape, weights, bias, adds: job.epilogue.adds, activation: job.epilogue.activation }
    }

    /// All lines of some columns and channels before the next, so that lines which several lines of the output meet are still in the cache.
    fn lines(&self, lines: Range<usize>, y: &mut [f32]) {
        let shape = self.shape;
        let (columns, together) = self.together();
        let mut rows = Vec::with_capacity(shape.kernel_h);
        for first in (0..shape.w_out).step_by(columns) {
            let pixels = self.pixels(first..shape.w_out.min(first + columns));
            for first in (0..shape.c_out).step_by(together) {
                let channels = first..shape.c_out.min(first + together);
                self.compute_lines(lines.clone(), &pixels, channels, y, &mut rows);
            }
        }
    }

    /// Columns of the output, and channels, of which what a line meets stays in the first-level cache for the next: all channels, which are
    /// neighbours in memory, of as many columns as there is room for, or some of as few as make [`SIDE`] pixels.
    fn together(&self) -> (usize, usize) {
        let shape = self.shape;
        let room = |columns: usize| {
            let across = (columns - 1) * shape.stride_w + (shape.kernel_w.max(1) - 1) * shape.dilation_w + 1;
            channels_together(shape.kernel_h * across)
        };
        let least = shape.w_out.div_ceil(SIDE);
        let parts = (1..least).find(|parts| room(shape.w_out.div_ceil(*parts)) >= shape.c_out).unwrap_or(least);
        let columns = shape.w_out.div_ceil(parts);
        (columns, room(columns))
    }

    /// The pixels of a line all of whose taps lie between the left and the right edge.
    fn inside(&self) -> Range<usize> {
        let shape = self.shape;
        let reach = (shape.kernel_w.max(1) - 1) * shape.dilation_w;
        let low = self.source.pad.1.div_ceil(shape.stride_w).min(shape.w_out);
        let high = (self.source.size.1 + self.source.pad.1).checked_sub(reach + 1).map_or(0, |last| last / shape.stride_w + 1);
        low..high.clamp(low, shape.w_out)
    }

    /// Whether so many pixels are at an edge that to copy the image costs less than to compute each of them alone.
    fn is_mostly_edge(&self) -> bool {
        2 * (self.shape.w_out - self.inside().len()) >= self.shape.w_out
    }

    /// As [`Work::lines`], from a copy of the image with its padding, of some channels after the other.
    fn padded(&self, lines: Range<usize>, y: &mut [f32], copy: &mut Vec<f32>) {
        let (shape, (height, width)) = (self.shape, self.source.size);
        let (rows, columns) = reach(shape, lines.len());
        let together = channels_together(rows * columns);
        let mut met = Vec::with_capacity(shape.kernel_h);
        copy.resize(copy.len().max(rows * columns * together), 0.0);
        let (left, top) = (self.source.pad.1, (lines.start * shape.stride_h).wrapping_sub(self.source.pad.0));
        for first in (0..shape.c_out).step_by(together) {
            let channels = first..shape.c_out.min(first + together);
            let count = channels.len();
            let data = &mut copy[..rows * columns * count];
            for (row, to) in data.chunks_exact_mut(columns * count).enumerate() {
                let row = top.wrapping_add(row);
                if row >= height {
                    to.fill(0.0);
                    continue;
                }
                let to = between_padding(to, count, left, width);
                let from = self.source.data[row * width * shape.c_out..].chunks_exact(shape.c_out);
                for (to, from) in to.chunks_exact_mut(count).zip(from) {
                    to.copy_from_slice(&from[channels.clone()]);
                }
            }
            let source = Source { data, size: (rows, columns), pad: (0, 0), channels: (first, count) };
            let work = Work { source, ..*self };
            work.compute_lines(0..lines.len(), &work.pixels(0..shape.w_out), channels, y, &mut met);
        }
    }

    /// Some columns of the output: those at the edges one by one, the others as many side by side as there may be, and none left over.
    fn pixels(&self, columns: Range<usize>) -> Vec<Pixels> {
        let shape = self.shape;
        let inside = self.inside();
        let inside = inside.start.clamp(columns.start, columns.end)..inside.end.clamp(columns.start, columns.end);
        let side = inside.len().div_ceil(inside.len().div_ceil(SIDE).max(1)).max(1);
        let edges = (columns.start..inside.start).chain(inside.end..columns.end).map(|x| (x, 1, false));
        let groups = inside.clone().step_by(side).map(|x| (x, side.min(inside.end - x), shape.dilation_w == 1));
        edges.chain(groups).map(|(first, count, neighbours)| Pixels { first, count, columns: self.columns(first), neighbours }).collect()
    }

    /// Where in a line of the image a pixel meets each column of the kernel.
    fn columns(&self, x: usize) -> Vec<Option<usize>> {
        let (shape, width, channels) = (self.shape, self.source.size.1, self.source.channels.1);
        let met = |kx: usize| (x * shape.stride_w + kx * shape.dilation_w).wrapping_sub(self.source.pad.1);
        (0..shape.kernel_w).map(|kx| Some(met(kx)).filter(|column| *column < width).map(|column| column * channels)).collect()
    }

    /// Where the lines of the image begin that a line of the output meets with each line of the kernel.
    fn rows(&self, line: usize, rows: &mut Vec<Option<usize>>) {
        let (shape, (height, width), channels) = (self.shape, self.source.size, self.source.channels.1);
        let met = |ky: usize| (line * shape.stride_h + ky * shape.dilation_h).wrapping_sub(self.source.pad.0);
        rows.clear();
        rows.extend((0..shape.kernel_h).map(|ky| Some(met(ky)).filter(|row| *row < height).map(|row| row * width * channels)));
    }

    /// Some channels of some pixels in each of some lines; `y` begins with the first of these. `rows` is memory for [`Work::rows`].
    fn compute_lines(&self, lines: Range<usize>, pixels: &[Pixels], channels: Range<usize>, y: &mut [f32], rows: &mut Vec<Option<usize>>) {
        for (line, y) in lines.zip(y.chunks_exact_mut(self.shape.w_out * self.shape.c_out)) {
            self.rows(line, rows);
            for pixels in pixels {
                self.compute(pixels, rows, channels.clone(), &mut y[pixels.first * self.shape.c_out..]);
            }
        }
    }

    fn compute(&self, pixels: &Pixels, rows: &[Option<usize>], channels: Range<usize>, y: &mut [f32]) {
        let operands = Operands {
            x: self.source.data,
            rows,
            columns: &pixels.columns,
            neighbours: pixels.neighbours,
            column: self.source.channels.1,
            stride: self.shape.stride_w,
            first: self.source.channels.0,
            weights: self.weights,
            bias: self.bias,
            adds: self.adds,
            activation: self.activation,
            pitch: self.shape.c_out,
        };
        tile::pixels(self.isa, &operands, pixels.count, channels, y);
    }
}

/// Channels of some pixels that are used together: three quarters of the first-level cache, in whole lines of it.
fn channels_together(pixels: usize) -> usize {
    const LINE: usize = 64 / size_of::<f32>();
    let elements = caches().first / 4 * 3 / size_of::<f32>();
    (elements / pixels.max(1) / LINE * LINE).max(LINE)
}
