//! Two-dimensional convolution over images whose channels come last (NHWC).
//!
//! A pixel is a row of channels, so what an output pixel meets in one line of the image are neighbours in memory: `kernel_w * c_in`
//! elements. The convolution is a product of such rows with the weights `[kernel * c_in, c_out]`; its rows are read where they lie
//! (`product.rs`), and only an image with padding is copied, a strip of lines at a time (`strip.rs`). No output column is wasted on
//! images of 7 by 7, as it is where the pixels are the columns. Kernels of 3 by 3 whose pixels and taps are neighbours take less than half of
//! these products (`winograd.rs`). With one channel per group the channels are the lanes
//! (`depthwise/`).
//!
//! Padding is a zero like any other: it is multiplied, so an infinite weight over padding gives NaN.

mod depthwise;
mod placed;
mod product;
mod rounded;
mod strip;
mod winograd;

use std::ops::Range;

use super::{ConvShape, ROUNDED_DEPTH};
use crate::engine::kernels::bf16::PANEL;
use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::gemm::PackedB;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::stored::Source;
use crate::engine::kernels::weights::Precision;

/// Pixels for which a thread may read all weights: of fewer, memory delivers them more slowly than they are multiplied.
const PIXELS_OF_A_PART: usize = 64;

/// Weights for images with channels last, packed once at load for one instruction set.
#[derive(Clone, Debug)]
pub struct PackedConvLast {
    isa: Isa,
    c_out: usize,
    c_in_per_group: usize,
    kernel: (usize, usize),
    groups: usize,
    apart: Apart,
    weights: Weights,
}

/// Whether what a convolution meets may lie apart: taps of the kernel, by a dilation, and pixels, by a stride.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// The taps.
    pub taps: bool,
    /// The pixels.
    pub pixels: bool,
}

#[derive(Clone, Debug)]
enum Weights {
    /// One channel in, one out per group: `[kernel, channels]`.
    Depthwise(Vec<f32>),
    /// Per group the right operand `[kernel * c_in, c_out]`.
    Groups(Vec<PackedB>),
    /// Of 3 by 3, transformed.
    Winograd(winograd::Winograd),
    /// As the groups, rounded to bf16.
    Rounded(rounded::Rounded),
}

impl PackedConvLast {
    /// Packs `weights`, `[c_out, c_in_per_group, kernel_h, kernel_w]`, at a precision; with one channel per group, and where sums are
    /// short, it is f32 in any case. Panics unless the length fits, `groups` divides `c_out` and the instruction set is available.
    pub fn pack(
        (precision, isa): (Precision, Isa),
        weights: &(impl Source + ?Sized),
        (c_out, c_in_per_group): (usize, usize),
        kernel: (usize, usize),
        (groups, apart): (usize, Apart),
    ) -> PackedConvLast {
        isa.require();
        let taps = kernel.0 * kernel.1;
        assert!(groups >= 1 && c_out.is_multiple_of(groups), "groups divide the output channels");
        assert_eq!(weights.count(), c_out * c_in_per_group * taps, "length of the weights");
        let rows = c_out / groups;
        let weights = if c_in_per_group == 1 && rows == 1 && groups > 1 {
            let weights = weights.numbers();
            Weights::Depthwise((0..taps * c_out).map(|at| weights[at % c_out * taps + at / c_out]).collect())
        } else if precision == Precision::Bf16
            && (c_in_per_group * taps >= ROUNDED_DEPTH || rounded::placed(c_in_per_group, kernel.1, groups))
        {
            Weights::Rounded(rounded::Rounded::pack(isa, weights.numbers(), (c_out, c_in_per_group), kernel, (groups, apart.taps)))
        } else if let Some(weights) = (groups == 1 && kernel == (3, 3) && apart == Apart::default())
            .then(|| winograd::Winograd::pack(isa, weights, (c_out, c_in_per_group)))
            .flatten()
        {
            Weights::Winograd(weights)
        } else if groups == 1 {
            Weights::Groups(vec![PackedB::pack_taps(isa, weights, rows, (c_in_per_group, taps))])
        } else {
            let (k, weights) = (c_in_per_group * taps, weights.numbers());
            let group = |index: usize| PackedB::pack_taps(isa, &weights[index * rows * k..][..rows * k], rows, (c_in_per_group, taps));
            Weights::Groups((0..groups).map(group).collect())
        };
        PackedConvLast { isa, c_out, c_in_per_group, kernel, groups, apart, weights }
    }

    /// What the factors of its sums are.
    pub fn arithmetic(&self) -> Arithmetic {
        if matches!(self.weights, Weights::Rounded(_)) { Arithmetic::Bf16 } else { Arithmetic::F32 }
    }

    /// Memory held by the weights, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Depthwise(weights) => size_of_val(weights.as_slice()),
            Weights::Groups(groups) => groups.iter().map(PackedB::bytes).sum(),
            Weights::Winograd(weights) => weights.bytes(),
            Weights::Rounded(weights) => weights.bytes(),
        }
    }
}

impl PackedConvLast {
    /// Lines of the output that are computed together: parts that begin at a multiple of it compute nothing twice.
    pub fn line_step(&self) -> usize {
        if matches!(self.weights, Weights::Winograd(_)) { winograd::LINES } else { 1 }
    }

    /// Whether an image of which each of `parts` threads had some lines would meet too little of the weights, which all of them read: then
    /// each is better given some of the channels, although it puts them aside first.
    pub fn prefers_channels(&self, shape: &ConvShape, parts: usize) -> bool {
        let pixels = shape.n * shape.h_out * shape.w_out;
        match self.weights {
            Weights::Rounded(_) => shape.c_in * shape.kernel_h * shape.kernel_w > pixels,
            _ => pixels < parts * PIXELS_OF_A_PART,
        }
    }

    /// Ranges given to [`conv2d_last_channels`] start at multiples of this.
    pub fn channel_step(&self) -> usize {
        match &self.weights {
            Weights::Groups(groups) if self.groups == 1 => groups[0].panel_width(),
            Weights::Winograd(weights) => weights.panel_width(),
            Weights::Rounded(_) if self.groups == 1 => PANEL,
            _ => self.c_out.max(1),
        }
    }
}

/// The input of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// `[n, c_in, h_in, w_in]`, or `[n, h_in, w_in, c_in]`.
    pub data: &'a [f32],
    /// Whether the channels come last.
    pub channels_last: bool,
}

/// Some lines (of `n * h_out`) of `epilogue(x * w)`: `y` is `[lines, w_out, c_out]`, the bias, per column, `[c_out]`.
///
/// The bits of a pixel depend on what it meets of the input and on the constants alone, not on how lines are split. `scratch` grows as
/// needed and can be reused. Panics if a length does not fit the shape, or the shape does not fit the weights.
pub fn conv2d_last(
    shape: &ConvShape,
    w: &PackedConvLast,
    x: Image<'_>,
    epilogue: &Epilogue<'_>,
    lines: Range<usize>,
    y: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    conv2d_last_channels(shape, w, x, epilogue, (lines, 0..shape.c_out), y, scratch);
}

/// Some lines and output channels of [`conv2d_last`]: `y` is `[lines, w_out, channels]`. The channels start at a multiple of
/// [`PackedConvLast::channel_step`] and end at one or at `c_out`; the bias still has length `c_out`.
pub fn conv2d_last_channels(
    shape: &ConvShape,
    w: &PackedConvLast,
    x: Image<'_>,
    epilogue: &Epilogue<'_>,
    (lines, channels): (Range<usize>, Range<usize>),
    y: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    shape.check();
    assert_eq!(shape.c_out, w.c_out, "output channels against the weights");
    assert_eq!(shape.c_in, w.c_in_per_group * w.groups, "input channels against the weights");
    assert_eq!((shape.kernel_h, shape.kernel_w, shape.groups), (w.kernel.0, w.kernel.1, w.groups), "kernel against the weights");
    assert!(w.apart.pixels || (shape.stride_h, shape.stride_w) == (1, 1), "weights packed for pixels side by side");
    assert!(w.apart.taps || (shape.dilation_h, shape.dilation_w) == (1, 1), "weights packed for taps side by side");
    assert_eq!(x.data.len(), shape.input_len(), "length of the input");
    assert!(lines.start <= lines.end && lines.end <= shape.n * shape.h_out, "lines {lines:?}");
    assert!(channels.start <= channels.end && channels.end <= shape.c_out, "channels {channels:?} of {}", shape.c_out);
    let step = w.channel_step();
    assert!(channels.start.is_multiple_of(step), "channel range starts inside a panel or group");
    assert!(channels.end.is_multiple_of(step) || channels.end == shape.c_out, "channel range ends inside a panel or group");
    assert_eq!(y.len(), lines.len() * shape.w_out * channels.len(), "length of the output");
    assert!(epilogue.alpha == 1.0 && !matches!(epilogue.bias, Bias::PerRow(_)), "a bias per channel, and no factor");
    epilogue.bias.check(0, shape.c_out);
    if y.is_empty() {
        return;
    }
    let job = Job { shape, isa: w.isa, epilogue: *epilogue, lines, channels };
    match &w.weights {
        Weights::Depthwise(weights) => depthwise::run(&job, weights, x, y, scratch),
        Weights::Groups(groups) => product::run(&job, groups, x, y, scratch),
        Weights::Winograd(weights) => winograd::run(&job, weights, x, y),
        Weights::Rounded(weights) => rounded::run(&job, weights, x, y, scratch),
    }
}

/// What both ways of computing a convolution need; all lengths are checked.
struct Job<'a> {
    shape: &'a ConvShape,
    isa: Isa,
    epilogue: Epilogue<'a>,
    /// Lines of the output to compute; `y` holds these only.
    lines: Range<usize>,
    /// Output channels to compute, all of them if there are groups; `y` holds these only.
    channels: Range<usize>,
}

impl Job<'_> {
    /// The output channels to compute of a group, counted from its first.
    fn columns(&self, group: usize) -> Range<usize> {
        let per_group = self.shape.c_out / self.shape.groups;
        let first = group * per_group;
        self.channels.start.max(first) - first..self.channels.end.min(first + per_group) - first
    }
}
