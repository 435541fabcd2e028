//! Depthwise convolution with channels last: the channels are the lanes, and a few pixels of a line are computed side by side.
//!
//! An image with its channels last is read where it lies, padding or not: what a tap would meet in the padding is a zero in a register. A pixel
//! at the left or right edge is computed alone for that, so where many are there the image is copied with its padding, some channels at a time.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::strip::{Reading, between_padding, reach};
use super::{Image, Job};
use crate::engine::kernels::cache::caches;
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::epilogue::{Activation, Bias, activate};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::vector::math::{self, LANES};

pub(super) fn run(job: &Job<'_>, weights: &[f32], x: Image<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    let shape = job.shape;
    let line = shape.w_out * shape.c_out;
    let (copies, reading) = (!x.channels_last, Reading::new(shape, &x));
    scratch.resize(scratch.len().max(if copies { reading.len(shape) } else { 0 }), 0.0);
    let mut taps = Vec::with_capacity(shape.kernel_h * shape.kernel_w);
    let mut next = job.lines.start;
    while next < job.lines.end {
        let (sample, first) = (next / shape.h_out, next % shape.h_out);
        let most = if copies { reading.lines } else { shape.h_out };
        let count = most.min(shape.h_out - first).min(job.lines.end - next);
        let y = &mut y[(next - job.lines.start) * line..][..count * line];
        if copies {
            let data = reading.strip(shape, x, sample, first..first + count, scratch);
            let size = (data.len() / (reading.pitch * shape.c_in).max(1), reading.pitch);
            Work::new(job, weights, Source::whole(data, size, (0, 0), shape)).lines(0..count, y, &mut taps);
        } else {
            let len = shape.c_in * shape.h_in * shape.w_in;
            let (data, size, pad) = (&x.data[sample * len..][..len], (shape.h_in, shape.w_in), (shape.pad_top, shape.pad_left));
            let work = Work::new(job, weights, Source::whole(data, size, pad, shape));
            if work.is_mostly_edge() {
                work.padded(first..first + count, y, (&mut taps, scratch));
            } else {
                work.lines(first..first + count, y, &mut taps);
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

/// Where in the image a pixel meets each tap, if that is not padding.
type Taps = Vec<Option<usize>>;

impl<'a> Work<'a> {
    fn new(job: &'a Job<'_>, weights: &'a [f32], source: Source<'a>) -> Work<'a> {
        let bias = match job.epilogue.bias {
            Bias::PerColumn(bias) => Some(bias),
            _ => None,
        };
        Work { isa: job.isa, source, shape: job.shape, weights, bias, adds: job.epilogue.adds, activation: job.epilogue.activation }
    }

    /// All lines of some channels before the next channels, so that lines which several lines of the output meet are still there.
    fn lines(&self, lines: Range<usize>, y: &mut [f32], taps: &mut Taps) {
        let shape = self.shape;
        let line = (shape.kernel_h + 1) * self.source.size.1;
        let channels = if self.source.data.len() <= image_in_cache() { channels_together(line) } else { shape.c_out };
        for first in (0..shape.c_out).step_by(channels) {
            let channels = first..shape.c_out.min(first + channels);
            for (line, y) in lines.clone().zip(y.chunks_exact_mut(shape.w_out * shape.c_out)) {
                self.line(line, channels.clone(), y, taps);
            }
        }
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
        4 * (self.shape.w_out - self.inside().len()) >= self.shape.w_out
    }

    /// As [`Work::lines`], from a copy of the image with its padding, of some channels after the other.
    fn padded(&self, lines: Range<usize>, y: &mut [f32], (taps, copy): (&mut Taps, &mut Vec<f32>)) {
        let (shape, (height, width)) = (self.shape, self.source.size);
        let (rows, columns) = reach(shape, lines.len());
        let together = channels_together(rows * columns);
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
            for (line, y) in y.chunks_exact_mut(shape.w_out * shape.c_out).take(lines.len()).enumerate() {
                work.line(line, channels.clone(), y, taps);
            }
        }
    }

    fn line(&self, line: usize, channels: Range<usize>, y: &mut [f32], taps: &mut Taps) {
        let shape = self.shape;
        let inside = self.inside();
        for x in (0..inside.start).chain(inside.end..shape.w_out) {
            self.taps(line, x, taps);
            pixels(self, taps, 0, 1, channels.clone(), &mut y[x * shape.c_out..]);
        }
        if inside.is_empty() {
            return;
        }
        self.taps(line, inside.start, taps);
        // As many side by side as there may be, and none left over.
        let side = inside.len().div_ceil(inside.len().div_ceil(SIDE));
        for x in inside.clone().step_by(side) {
            let base = (x - inside.start) * shape.stride_w * self.source.channels.1;
            pixels(self, taps, base, side.min(inside.end - x), channels.clone(), &mut y[x * shape.c_out..]);
        }
    }

    fn taps(&self, line: usize, x: usize, taps: &mut Taps) {
        let (shape, (height, width), channels) = (self.shape, self.source.size, self.source.channels.1);
        taps.clear();
        for ky in 0..shape.kernel_h {
            let row = (line * shape.stride_h + ky * shape.dilation_h).wrapping_sub(self.source.pad.0);
            for kx in 0..shape.kernel_w {
                let column = (x * shape.stride_w + kx * shape.dilation_w).wrapping_sub(self.source.pad.1);
                taps.push((row < height && column < width).then(|| (row * width + column) * channels));
            }
        }
    }
}

/// Channels of some pixels that are used together: two thirds of the first-level cache.
fn channels_together(pixels: usize) -> usize {
    let elements = caches().first / 3 * 2 / size_of::<f32>();
    (elements / pixels.max(1)).next_multiple_of(LANES).max(LANES)
}

/// Elements of an image above which its lines are read whole, half of the second-level cache: it comes from the third then, for which the
/// order in memory counts more (2 MiB; 96 channels of 112 × 112, stride 2: 280 µs whole, 420 in parts; 960 of 7 × 7: 38 µs whole, 27 in parts).
fn image_in_cache() -> usize {
    caches().second / 2 / size_of::<f32>()
}

/// Pixels that are computed side by side at most: chains of multiply-adds enough to keep the units busy.
const SIDE: usize = 8;

/// Operands of a depthwise convolution over some pixels of a line.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug)]
pub(super) struct Operands<'a> {
    /// The image.
    pub(super) x: &'a [f32],
    /// Where in `x` the first pixel meets a tap, `base` left out; none if it is padding for all of them.
    pub(super) taps: &'a [Option<usize>],
    pub(super) base: usize,
    /// From what a pixel meets to what the next one does.
    pub(super) step: usize,
    /// The channel that `x` begins with.
    pub(super) first: usize,
    /// `[taps, pitch]`.
    pub(super) weights: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    /// Whether the sums start from what `y` holds.
    pub(super) adds: bool,
    /// Channels to compute.
    pub(super) channels: Range<usize>,
    /// All channels: from pixel to pixel of the output.
    pub(super) pitch: usize,
}

/// Some channels of some pixels, up to [`SIDE`], which have the same taps in the padding and meet the others `base` behind
/// what `taps` says. `y` begins with the first pixel.
fn pixels(work: &Work<'_>, taps: &[Option<usize>], base: usize, count: usize, channels: Range<usize>, y: &mut [f32]) {
    let (first, count_in) = work.source.channels;
    let (step, pitch) = (work.shape.stride_w * count_in, work.shape.c_out);
    let mut rest = channels.clone();
    #[cfg(target_arch = "x86_64")]
    if work.isa >= Isa::Avx2 {
        work.isa.require();
        let last = taps.iter().flatten().max().map_or(0, |from| from + base + (count - 1) * step + channels.end - first);
        assert!(last <= work.source.data.len(), "what the pixels meet is in the image");
        assert!(
            channels.start >= first
                && channels.end <= pitch
                && y.len() >= (count - 1) * pitch + channels.end
                && work.weights.len() >= taps.len() * pitch
        );
        assert!(work.bias.is_none_or(|bias| bias.len() == pitch));
        let (x, weights, bias, adds) = (work.source.data, work.weights, work.bias, work.adds);
        let operands = |channels| Operands { x, base, step, first, taps, weights, bias, adds, channels, pitch };
        if work.isa >= Isa::Avx512 {
            // SAFETY: `require` has shown that this machine has the features it is compiled for; the assertions are what it asks for.
            return unsafe { super::avx512::depthwise(&operands(channels), count, work.activation, y) };
        }
        rest.start += channels.len() / avx2::LANES * avx2::LANES;
        // SAFETY: the same, and the channels are whole registers.
        unsafe { avx2::depthwise(&operands(channels.start..rest.start), count, work.activation, y) };
    }
    if rest.is_empty() {
        return;
    }
    for (pixel, y) in y.chunks_mut(pitch).take(count).enumerate() {
        plain(work.isa, work, taps, base + pixel * step + rest.start - first, rest.start, &mut y[rest.clone()]);
    }
}

fn plain(isa: Isa, work: &Work<'_>, taps: &[Option<usize>], base: usize, channel: usize, y: &mut [f32]) {
    instantiate!(isa, plain_body, (work: &Work<'_>, taps: &[Option<usize>], base: usize, channel: usize, y: &mut [f32]));
}

/// The channels of one pixel from `channel` on, tap by tap: plain loops, which become vector code.
#[inline(always)]
fn plain_body<const FMA: bool>(work: &Work<'_>, taps: &[Option<usize>], base: usize, channel: usize, y: &mut [f32]) {
    if !work.adds {
        y.fill(0.0);
    }
    for (tap, weights) in taps.iter().zip(work.weights.chunks_exact(work.shape.c_out)) {
        let weights = &weights[channel..][..y.len()];
        match tap {
            Some(from) => {
                let values = &work.source.data[from + base..][..y.len()];
                for ((y, value), weight) in y.iter_mut().zip(values).zip(weights) {
                    *y = math::fma::<FMA>(*weight, *value, *y);
                }
            }
            None => y.iter_mut().zip(weights).for_each(|(y, weight)| *y = math::fma::<FMA>(*weight, 0.0, *y)),
        }
    }
    if let Some(bias) = work.bias {
        y.iter_mut().zip(&bias[channel..]).for_each(|(y, bias)| *y += bias);
    }
    activate::<FMA>(work.activation, y);
}
