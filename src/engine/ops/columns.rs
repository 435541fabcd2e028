//! Convolution over any number of spatial dimensions as a matrix product, and its transpose.
//!
//! The right operand has a row per input channel and kernel tap and a column per output position. It is never built whole,
//! but a block of columns at a time. How the columns are cut into blocks depends on the number of rows alone, and each
//! output element is one chain of multiply-adds over the rows, so that its bits depend on its sample only.

use std::ops::Range;

use super::window::{Axis, AxisList, Meeting, planes, windows, windows_from};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::{PackedB, gemm_packed_b};
use crate::engine::kernels::isa::Isa;
use crate::engine::threads::Threads;

/// Elements of a block of columns: 4 MiB of f32.
const BLOCK: usize = 1 << 20;

/// How many columns of `rows` rows make a block.
pub(crate) fn block(rows: usize) -> usize {
    (BLOCK / rows.max(1)).max(1)
}

/// Sizes of a convolution.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) samples: usize,
    pub(crate) groups: usize,
    /// Input channels of one group.
    pub(crate) c_in: usize,
    /// Output channels of one group.
    pub(crate) c_out: usize,
    pub(crate) axes: AxisList,
}

impl Geometry {
    /// The taps of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.kernel).product()
    }

    /// Rows of the right operand.
    pub(crate) fn depth(&self) -> usize {
        self.c_in * self.taps()
    }

    /// Input and output elements of one channel of one sample.
    pub(crate) fn planes(&self) -> (usize, usize) {
        planes(&self.axes)
    }

    /// Elements of the output.
    pub(crate) fn output_len(&self) -> usize {
        self.samples * self.groups * self.c_out * self.planes().1
    }

    /// Floating-point operations of one run.
    pub(crate) fn flops(&self) -> u64 {
        let channels = [self.samples, self.groups, self.c_out, self.c_in];
        let pixels = self.axes.iter().flat_map(|axis| [axis.output, axis.kernel]);
        channels.into_iter().chain(pixels).fold(2_u64, |product, n| product.saturating_mul(n as u64))
    }

    /// `y = activation(columns * w + bias)`: `fill` writes the columns of some positions of a group of a sample into zeros,
    /// each row as long as there are positions.
    pub(crate) fn multiply(
        &self,
        (isa, threads): (Isa, &Threads),
        w: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        y: &mut [f32],
        fill: impl Fn(usize, usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        let (depth, (_, pixels)) = (self.depth(), self.planes());
        if y.is_empty() {
            return;
        }
        let units = self.samples * self.groups;
        let pieces = threads.parts(self.flops()).div_ceil(units).min(self.c_out);
        let channels = self.c_out.div_ceil(pieces);
        let mut items = Vec::new();
        for (unit, y) in y.chunks_exact_mut(self.c_out * pixels).enumerate() {
            items.extend(y.chunks_mut(channels * pixels).enumerate().map(|(part, y)| (unit, part * channels, y)));
        }
        threads.for_each(items, |(unit, first, y)| {
            let (sample, group, count) = (unit / self.groups, unit % self.groups, y.len() / pixels);
            let channel = group * self.c_out + first;
            let bias = bias.map_or(Bias::None, |bias| Bias::PerRow(&bias[channel..channel + count]));
            let epilogue = Epilogue { alpha: 1.0, bias, activation };
            let rows = &w[channel * depth..(channel + count) * depth];
            let mut columns = Vec::new();
            let mut start = 0;
            while start < pixels {
                let end = (start + block(depth)).min(pixels);
                columns.clear();
                columns.resize(depth * (end - start), 0.0);
                fill(sample, group, start..end, &mut columns);
                let packed = PackedB::pack(isa, &columns, depth, end - start, false);
                gemm_packed_b(rows, depth, count, &packed, &mut y[start..], pixels, &epilogue);
                start = end;
            }
        });
    }

    /// `y = activation(x * w + bias)`.
    pub(crate) fn convolve(&self, on: (Isa, &Threads), x: &[f32], w: &[f32], bias: Option<&[f32]>, activation: Activation, y: &mut [f32]) {
        let (taps, (plane, _)) = (self.taps(), self.planes());
        self.multiply(on, w, bias, activation, y, |sample, group, positions, columns| {
            let count = positions.len();
            segments(&self.axes, positions, |s| {
                for c in 0..self.c_in {
                    let x = &x[((sample * self.groups + group) * self.c_in + c) * plane..][..plane];
                    let to = &mut columns[(c * taps + s.tap) * count + s.column..][..s.len];
                    let from = &x[s.element..];
                    if s.stride == 1 {
                        to.copy_from_slice(&from[..s.len]);
                    } else {
                        to.iter_mut().zip(from.iter().step_by(s.stride)).for_each(|(to, from)| *to = *from);
                    }
                }
            });
        });
    }

    /// The definition, for f64: one sum per output element.
    pub(crate) fn convolve_f64(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>, y: &mut [f64]) {
        let (taps, (from, to)) = (self.taps(), self.planes());
        let (c_in, c_out) = (self.c_in, self.c_out);
        windows(&self.axes, |position, _, list| {
            for n in 0..self.samples {
                for c in 0..self.groups * c_out {
                    let mut sum = bias.map_or(0.0, |bias| bias[c]);
                    for i in 0..c_in {
                        let plane = &x[((n * self.groups + c / c_out) * c_in + i) * from..][..from];
                        let w = &w[(c * c_in + i) * taps..][..taps];
                        list.iter().for_each(|&(tap, element)| sum += plane[element] * w[tap]);
                    }
                    y[(n * self.groups * c_out + c) * to + position] = sum;
                }
            }
        });
    }
}

/// Neighbouring positions that one tap meets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// The tap, counted in row-major order over all axes.
    pub(crate) tap: usize,
    /// The first position, counted from the first one asked for.
    pub(crate) column: usize,
    /// The input element that it meets.
    pub(crate) element: usize,
    /// The distance of the input elements of neighbouring positions.
    pub(crate) stride: usize,
    /// The number of positions.
    pub(crate) len: usize,
}

/// Calls `f` with all that the taps meet at some output positions.
pub(crate) fn segments(axes: &[Axis], positions: Range<usize>, mut f: impl FnMut(Segment)) {
    let Some((last, outer)) = axes.split_last() else { return };
    if last.output == 0 || positions.is_empty() {
        return;
    }
    let (first, end) = (positions.start / last.output, (positions.end - 1) / last.output + 1);
    windows_from(outer, first, end - first, &mut |row, _, list: &[Meeting]| {
        // The columns of this row that are asked for.
        let low = positions.start.saturating_sub(row * last.output);
        let high = (positions.end - row * last.output).min(last.output);
        last.passes(|tap, outputs, element| {
            let (start, end) = (outputs.start.max(low), outputs.end.min(high));
            if start >= end {
                return;
            }
            let element = element + (start - outputs.start) * last.stride;
            let column = row * last.output + start - positions.start;
            for &(outer_tap, outer_element) in list {
                let (tap, element) = (outer_tap * last.kernel + tap, outer_element * last.input + element);
                f(Segment { tap, column, element, stride: last.stride, len: end - start });
            }
        });
    });
}

/// The transpose of gathering columns: adds each element of `columns`, which has a row per tap, to the element of `plane` that
/// its tap meets.
pub(crate) fn scatter<T: Copy>(axes: &[Axis], positions: Range<usize>, columns: &[T], plane: &mut [T], add: impl Fn(T, T) -> T) {
    let count = positions.len();
    segments(axes, positions, |s| {
        let from = &columns[s.tap * count + s.column..][..s.len];
        let to = &mut plane[s.element..];
        if s.stride == 1 {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = add(*to, *from));
        } else {
            to.iter_mut().step_by(s.stride).zip(from).for_each(|(to, from)| *to = add(*to, *from));
        }
    });
}
