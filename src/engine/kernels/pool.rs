//! Pooling. Max pooling of planes: the greatest of the rows that a window meets, then the greatest along what that gives. With channels
//! last a window is a few rows of channels, and the channels are the lanes.
//!
//! A window costs its height plus its width in vector operations, not their product. For every second window the row is taken
//! apart into even and odd columns first, so that what one tap meets lies side by side.

use std::cell::Cell;
use std::ops::Range;

use super::isa::{Isa, instantiate};
use super::rows::every_second;
use super::vector::math::greater;

/// A window along one axis of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolAxis {
    /// Elements of the input.
    pub input: usize,
    /// Elements of the output.
    pub output: usize,
    /// Taps of the window, at least 1.
    pub kernel: usize,
    /// From window to window, at least 1.
    pub stride: usize,
    /// From tap to tap, at least 1.
    pub dilation: usize,
    /// Elements of padding in front; those behind follow from the output.
    pub pad: usize,
}

impl PoolAxis {
    /// The elements from the first of the padding to the last that a window meets, the input's own at least.
    fn reach(&self) -> usize {
        ((self.output.max(1) - 1) * self.stride + (self.kernel - 1) * self.dilation + 1).max(self.pad + self.input)
    }
}

/// The greatest element of each window: `x` is `[planes, rows.input, columns.input]`, `y` `[planes, rows.output, columns.output]`.
/// NaN if there is one among them; minus infinity for a window of nothing but padding. Panics if the lengths do not fit.
pub fn max_pool(isa: Isa, rows: PoolAxis, columns: PoolAxis, x: &[f32], y: &mut [f32]) {
    for axis in [rows, columns] {
        assert!(axis.kernel >= 1 && axis.stride >= 1 && axis.dilation >= 1, "a window has taps");
    }
    let (from, to) = (rows.input * columns.input, rows.output * columns.output);
    if y.is_empty() {
        return;
    }
    assert!(to > 0 && y.len().is_multiple_of(to) && x.len() == y.len() / to * from, "planes of the input against the output's");
    if from == 0 {
        return y.fill(f32::NEG_INFINITY);
    }
    let reach = columns.reach();
    // Even and odd columns each have a line; a row beyond either is never asked for.
    let half = reach.div_ceil(2);
    let mut kept = LINE.take();
    kept.clear();
    kept.resize(if columns.stride == 2 { reach + 2 * half } else { reach }, f32::NEG_INFINITY);
    let (line, halves) = kept.split_at_mut(reach);
    for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
        for (row, y) in y.chunks_exact_mut(columns.output).enumerate() {
            greatest_rows(isa, rows, row, x, &mut line[columns.pad..][..columns.input]);
            if columns.stride == 2 {
                let (even, odd) = halves.split_at_mut(half);
                every_second(isa, line, even);
                every_second(isa, &line[1..], odd);
                along(isa, columns, [even, odd], y);
            } else {
                along(isa, columns, [line, &[]], y);
            }
        }
    }
    LINE.set(kept);
}

thread_local! {
    /// The line of a thread's last pooling, kept for the next.
    static LINE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The greatest of the rows that the windows of output row `row` meet.
fn greatest_rows(isa: Isa, rows: PoolAxis, row: usize, x: &[f32], line: &mut [f32]) {
    instantiate!(isa, greatest_rows_body, (rows: PoolAxis, row: usize, x: &[f32], line: &mut [f32]));
}

#[inline(always)]
fn greatest_rows_body<const FMA: bool>(rows: PoolAxis, row: usize, x: &[f32], line: &mut [f32]) {
    let mut first = true;
    for tap in 0..rows.kernel {
        let source = (row * rows.stride + tap * rows.dilation).wrapping_sub(rows.pad);
        if source >= rows.input {
            continue;
        }
        let source = &x[source * line.len()..][..line.len()];
        if first {
            line.copy_from_slice(source);
        } else {
            merge(line, source);
        }
        first = false;
    }
    if first {
        line.fill(f32::NEG_INFINITY);
    }
}

/// The greatest along a row: of the columns in `lines[0]`, or of even and odd ones in both.
fn along(isa: Isa, columns: PoolAxis, lines: [&[f32]; 2], y: &mut [f32]) {
    instantiate!(isa, along_body, (columns: PoolAxis, lines: [&[f32]; 2], y: &mut [f32]));
}

#[inline(always)]
fn along_body<const FMA: bool>(columns: PoolAxis, lines: [&[f32]; 2], y: &mut [f32]) {
    for tap in 0..columns.kernel {
        let at = tap * columns.dilation;
        let source = match columns.stride {
            1 => &lines[0][at..][..y.len()],
            2 => &lines[at % 2][at / 2..][..y.len()],
            stride => {
                let source = lines[0][at..].iter().step_by(stride);
                y.iter_mut().zip(source).for_each(|(y, x)| *y = if tap == 0 { *x } else { greater(*x, *y) });
                continue;
            }
        };
        if tap == 0 {
            y.copy_from_slice(source);
        } else {
            merge(y, source);
        }
    }
}

#[inline(always)]
fn merge<T: Pooled>(y: &mut [T], x: &[T]) {
    for i in 0..y.len().min(x.len()) {
        y[i] = x[i].greater(y[i]);
    }
}

/// Elements that can be compared.
pub trait Pooled: Copy {
    /// What a window of nothing but padding has.
    const LEAST: Self;

    /// The greater of two; NaN if either is.
    fn greater(self, other: Self) -> Self;

    /// The greatest of the windows of a line of pixels.
    fn greatest_pixels(isa: Isa, axes: [PoolAxis; 2], row: usize, x: &[Self], channels: usize, y: &mut [Self]);
}

macro_rules! pooled {
    ($t:ty, $least:expr, $greater:expr) => {
        impl Pooled for $t {
            const LEAST: Self = $least;

            #[inline(always)]
            fn greater(self, other: Self) -> Self {
                $greater(self, other)
            }

            fn greatest_pixels(isa: Isa, axes: [PoolAxis; 2], row: usize, x: &[Self], channels: usize, y: &mut [Self]) {
                #[inline(always)]
                fn body<const FMA: bool>(axes: [PoolAxis; 2], row: usize, x: &[$t], channels: usize, y: &mut [$t]) {
                    greatest_pixels(axes, row, x, channels, y);
                }
                instantiate!(isa, body, (axes: [PoolAxis; 2], row: usize, x: &[$t], channels: usize, y: &mut [$t]));
            }
        }
    };
}
pooled!(f32, f32::NEG_INFINITY, greater);
pooled!(u8, u8::MIN, Ord::max);
pooled!(i8, i8::MIN, Ord::max);

/// As [`max_pool`], with channels last: `x` is `[samples, rows.input, columns.input, channels]`, `y` some lines, counted through all samples, of
/// `[samples, rows.output, columns.output, channels]`.
pub fn max_pool_last<T: Pooled>(isa: Isa, axes: [PoolAxis; 2], channels: usize, x: &[T], lines: Range<usize>, y: &mut [T]) {
    for axis in axes {
        assert!(axis.kernel >= 1 && axis.stride >= 1 && axis.dilation >= 1, "a window has taps");
    }
    let [rows, columns] = axes;
    let (image, line) = (rows.input * columns.input * channels, columns.output * channels);
    if y.is_empty() {
        return;
    }
    assert!(line > 0 && y.len() == lines.len() * line, "lines of the output");
    if image == 0 {
        return y.fill(T::LEAST);
    }
    for (at, y) in lines.zip(y.chunks_exact_mut(line)) {
        let (sample, row) = (at / rows.output, at % rows.output);
        T::greatest_pixels(isa, axes, row, &x[sample * image..][..image], channels, y);
    }
}

/// Channels whose greatest are kept in registers while a window passes by.
const BLOCK: usize = 32;

#[inline(always)]
fn greatest_pixels<T: Pooled>([rows, columns]: [PoolAxis; 2], row: usize, x: &[T], channels: usize, y: &mut [T]) {
    // Taps of a window that lie in the image are one range along each axis.
    let taps = |axis: PoolAxis, at: usize| {
        let first = axis.pad.saturating_sub(at * axis.stride).div_ceil(axis.dilation);
        let end = (axis.input + axis.pad).saturating_sub(at * axis.stride).div_ceil(axis.dilation);
        first..end.min(axis.kernel)
    };
    let down = taps(rows, row);
    for (column, y) in y.chunks_exact_mut(channels).enumerate() {
        let across = taps(columns, column);
        let pixel = |i: usize, j: usize| {
            let (i, j) = (row * rows.stride + i * rows.dilation - rows.pad, column * columns.stride + j * columns.dilation - columns.pad);
            &x[(i * columns.input + j) * channels..][..channels]
        };
        let (blocks, rest) = y.as_chunks_mut::<BLOCK>();
        let done = blocks.len() * BLOCK;
        for (block, y) in blocks.iter_mut().enumerate() {
            let mut greatest = [T::LEAST; BLOCK];
            for i in down.clone() {
                for j in across.clone() {
                    let x: &[T; BLOCK] = pixel(i, j)[block * BLOCK..].first_chunk().expect("a block of channels");
                    for c in 0..BLOCK {
                        greatest[c] = x[c].greater(greatest[c]);
                    }
                }
            }
            *y = greatest;
        }
        if !rest.is_empty() {
            rest.fill(T::LEAST);
            for i in down.clone() {
                for j in across.clone() {
                    merge(rest, &pixel(i, j)[done..]);
                }
            }
        }
    }
}

/// Channels whose sums are kept in registers.
pub const CHANNELS: usize = 64;

/// Pixels that are added up before the sum goes to the others, so that the error grows with the longer of the two counts only.
const PIXELS: usize = 64;

/// The means of the channels from `first` on of an image `[pixels, channels]`, as many as `y` has places, each within
/// `(PIXELS + pixels / PIXELS) * 2^-24` of the mean magnitude. Panics unless there are so many channels and they divide the elements of `x`.
pub fn mean_last(isa: Isa, x: &[f32], channels: usize, first: usize, y: &mut [f32]) {
    assert!(channels > 0 && x.len().is_multiple_of(channels), "whole pixels");
    assert!(first + y.len() <= channels, "channels {first} and {} more of {channels}", y.len());
    instantiate!(isa, mean_last_body, (x: &[f32], channels: usize, first: usize, y: &mut [f32]));
}

#[inline(always)]
fn mean_last_body<const FMA: bool>(x: &[f32], channels: usize, first: usize, y: &mut [f32]) {
    let pixels = x.len() / channels;
    let done = y.len() / CHANNELS * CHANNELS;
    for (block, y) in y.as_chunks_mut::<CHANNELS>().0.iter_mut().enumerate() {
        let mut total = [0.0f32; CHANNELS];
        for part in x.chunks(PIXELS * channels) {
            let mut sums = [0.0f32; CHANNELS];
            for pixel in part.chunks_exact(channels) {
                let values: &[f32; CHANNELS] = pixel[first + block * CHANNELS..].first_chunk().expect("a block of channels");
                for i in 0..CHANNELS {
                    sums[i] += values[i];
                }
            }
            for i in 0..CHANNELS {
                total[i] += sums[i];
            }
        }
        *y = total.map(|sum| sum / pixels as f32);
    }
    let rest = &mut y[done..];
    rest.fill(0.0);
    for part in x.chunks(PIXELS * channels) {
        let mut sums = [0.0f32; CHANNELS];
        for pixel in part.chunks_exact(channels) {
            sums.iter_mut().zip(&pixel[first + done..]).for_each(|(sum, x)| *sum += x);
        }
        rest.iter_mut().zip(&sums).for_each(|(y, sum)| *y += sum);
    }
    rest.iter_mut().for_each(|y| *y /= pixels as f32);
}
