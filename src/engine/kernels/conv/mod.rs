//! Two-dimensional convolution (as in most networks: cross-correlation) over NCHW images; one dimension is `h = 1`.
//!
//! A convolution is the product of the weights `[c_out, c_in * kernel]` with a matrix that has a row per input channel and
//! kernel tap and a column per output pixel. That matrix is never built whole: a block of its columns is gathered into panels
//! just before the tiles read it. Pixels of several samples stand side by side, so that small images fill panels together.
//! With one input channel per group (depthwise) there is nothing to reuse, and a direct loop takes over.
//!
//! Padding is a zero like any other: it is multiplied, so an infinite weight over padding gives NaN.

mod depthwise;
mod image;
pub mod last;
mod product;
mod rounded;
pub mod weights_gradient;

use std::ops::Range;

use super::bf16::RoundedLeft;
use super::epilogue::{Bias, Epilogue};
use super::gemm::{PackedA, RowPanel, tile};
use super::isa::Isa;
use super::limits::Arithmetic;
use super::weights::Precision;

/// Sizes of a convolution. The padding at the bottom and on the right follows from the output size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Samples.
    pub n: usize,
    /// Input channels, of all groups together.
    pub c_in: usize,
    /// Input height.
    pub h_in: usize,
    /// Input width.
    pub w_in: usize,
    /// Output channels, of all groups together.
    pub c_out: usize,
    /// Output height.
    pub h_out: usize,
    /// Output width.
    pub w_out: usize,
    /// Kernel height.
    pub kernel_h: usize,
    /// Kernel width.
    pub kernel_w: usize,
    /// Vertical distance between output pixels, in input pixels; at least 1.
    pub stride_h: usize,
    /// Horizontal distance between output pixels, in input pixels; at least 1.
    pub stride_w: usize,
    /// Rows of zeros above the image.
    pub pad_top: usize,
    /// Columns of zeros left of the image.
    pub pad_left: usize,
    /// Vertical distance between kernel taps; at least 1.
    pub dilation_h: usize,
    /// Horizontal distance between kernel taps; at least 1.
    pub dilation_w: usize,
    /// Groups, each of which sees only its own channels; divides both channel counts.
    pub groups: usize,
}

impl ConvShape {
    /// Elements of the input, `[n, c_in, h_in, w_in]`.
    pub fn input_len(&self) -> usize {
        self.n * self.c_in * self.h_in * self.w_in
    }

    /// Elements of the output, `[n, c_out, h_out, w_out]`.
    pub fn output_len(&self) -> usize {
        self.n * self.c_out * self.h_out * self.w_out
    }

    /// Output pixels of one channel of one sample.
    fn pixels(&self) -> usize {
        self.h_out * self.w_out
    }

    fn check(&self) {
        assert!(self.groups >= 1, "a convolution has at least one group");
        assert!(self.c_in.is_multiple_of(self.groups) && self.c_out.is_multiple_of(self.groups), "groups divide the channels");
        assert!(self.stride_h >= 1 && self.stride_w >= 1, "strides are at least 1");
        assert!(self.dilation_h >= 1 && self.dilation_w >= 1, "dilations are at least 1");
    }
}

/// Convolution weights, packed once at load for one instruction set.
#[derive(Clone, Debug)]
pub struct PackedConv {
    isa: Isa,
    c_out: usize,
    c_in_per_group: usize,
    kernel: (usize, usize),
    groups: usize,
    weights: Weights,
}

#[derive(Clone, Debug)]
enum Weights {
    /// One input channel per group: `[c_out, kernel]` as it came.
    Depthwise(Vec<f32>),
    /// A left operand per group.
    Groups(PackedA),
    /// The same, rounded to bf16.
    Rounded(Vec<RoundedLeft>),
}

impl PackedConv {
    /// Packs `weights`, `[c_out, c_in_per_group, kernel_h, kernel_w]`, at a precision. With one input channel per group, and
    /// where sums are short, it is f32 in any case. Panics unless the length fits, `groups` divides `c_out`
    /// and the instruction set is available.
    #[expect(clippy::too_many_arguments, reason = "the sizes of the weights")]
    pub fn pack(
        precision: Precision,
        isa: Isa,
        weights: &[f32],
        c_out: usize,
        c_in_per_group: usize,
        kernel_h: usize,
        kernel_w: usize,
        groups: usize,
    ) -> PackedConv {
        isa.require();
        let k = c_in_per_group * kernel_h * kernel_w;
        assert!(groups >= 1 && c_out.is_multiple_of(groups), "groups divide the output channels");
        assert_eq!(weights.len(), c_out * k, "length of the weights");
        let rows = c_out / groups;
        let weights = if c_in_per_group == 1 && groups > 1 {
            Weights::Depthwise(weights.to_vec())
        } else if precision == Precision::Bf16 && k >= ROUNDED_DEPTH {
            let group =
                |index: usize| rounded::pack(isa, &weights[index * rows * k..][..rows * k], rows, c_in_per_group, kernel_h * kernel_w);
            Weights::Rounded((0..groups).map(group).collect())
        } else {
            Weights::Groups(PackedA::pack(isa, weights, groups, rows, k))
        };
        PackedConv { isa, c_out, c_in_per_group, kernel: (kernel_h, kernel_w), groups, weights }
    }

    /// Weights for convolutions of the groups and kernel of `shape`, in f32 and in the memory of `memory`: what `row` gives of each output
    /// channel, `c_in_per_group * kernel_h * kernel_w` values. `each` fills all panels, side by side if it likes. Panics unless `groups`
    /// divides both channel counts and the instruction set is available.
    pub fn fill<I: Iterator<Item = f32>>(
        shape: &ConvShape,
        isa: Isa,
        mut memory: Vec<f32>,
        row: impl Fn(usize) -> I + Sync,
        each: impl FnOnce(&mut (dyn Iterator<Item = RowPanel<'_>> + Send), &(dyn Fn(RowPanel<'_>) + Sync)),
    ) -> PackedConv {
        isa.require();
        shape.check();
        let ConvShape { c_out, groups, .. } = *shape;
        let (c_in_per_group, kernel) = (shape.c_in / groups, (shape.kernel_h, shape.kernel_w));
        let weights = if c_in_per_group == 1 && groups > 1 {
            memory.clear();
            memory.extend((0..c_out).flat_map(row));
            Weights::Depthwise(memory)
        } else {
            let mut packed = PackedA::unfilled(isa, groups, c_out / groups, c_in_per_group * kernel.0 * kernel.1, memory);
            each(&mut packed.row_panels(), &|panel| panel.fill(&row));
            Weights::Groups(packed)
        };
        PackedConv { isa, c_out, c_in_per_group, kernel, groups, weights }
    }

    /// The memory that [`PackedConv::fill`] was given.
    pub fn into_memory(self) -> Vec<f32> {
        match self.weights {
            Weights::Depthwise(memory) => memory,
            Weights::Groups(packed) => packed.into_memory(),
            Weights::Rounded(_) => Vec::new(),
        }
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What the factors of its sums are.
    pub fn arithmetic(&self) -> Arithmetic {
        if matches!(self.weights, Weights::Rounded(_)) { Arithmetic::Bf16 } else { Arithmetic::F32 }
    }

    /// Memory held by the weights, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Depthwise(weights) => size_of_val(weights.as_slice()),
            Weights::Groups(packed) => packed.bytes(),
            Weights::Rounded(groups) => groups.iter().map(RoundedLeft::bytes).sum(),
        }
    }

    /// Ranges given to [`conv2d_channels`] start at multiples of this: a tile's height, or a group's output channels.
    pub fn channel_step(&self) -> usize {
        match &self.weights {
            _ if self.groups > 1 => (self.c_out / self.groups).max(1),
            Weights::Rounded(_) => rounded::CHANNELS,
            _ => tile::shape(self.isa).rows,
        }
    }
}

/// `y = epilogue(x * w)` over a batch: `x` is `[n, c_in, h_in, w_in]`, the bias, per row, `[c_out]`, `y` `[n, c_out, h_out, w_out]`.
///
/// The bits of a sample's output depend on that sample and the constants alone. `scratch` grows as needed and can be reused.
/// To split the work give each thread some samples, or some channels through [`conv2d_channels`]. Panics if a length does
/// not fit the shape, or the shape does not fit the weights.
pub fn conv2d(shape: &ConvShape, w: &PackedConv, x: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32], scratch: &mut Vec<f32>) {
    conv2d_channels(shape, w, x, epilogue, 0..shape.c_out, y, scratch);
}

/// Some output channels of [`conv2d`]: `y` is `[n, channels.len(), h_out, w_out]`. The range starts at a multiple of
/// [`PackedConv::channel_step`] and ends at one or at `c_out`; `bias` still has length `c_out`.
pub fn conv2d_channels(
    shape: &ConvShape,
    w: &PackedConv,
    x: &[f32],
    epilogue: &Epilogue<'_>,
    channels: Range<usize>,
    y: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    shape.check();
    assert_eq!(shape.c_out, w.c_out, "output channels against the weights");
    assert_eq!(shape.c_in, w.c_in_per_group * w.groups, "input channels against the weights");
    assert_eq!((shape.kernel_h, shape.kernel_w, shape.groups), (w.kernel.0, w.kernel.1, w.groups), "kernel against the weights");
    assert_eq!(x.len(), shape.input_len(), "length of the input");
    assert!(channels.start <= channels.end && channels.end <= shape.c_out, "channel range {channels:?} of {}", shape.c_out);
    let step = w.channel_step();
    assert!(channels.start.is_multiple_of(step), "channel range starts inside a tile or group");
    assert!(channels.end.is_multiple_of(step) || channels.end == shape.c_out, "channel range ends inside a tile or group");
    assert_eq!(y.len(), shape.n * channels.len() * shape.pixels(), "length of the output");
    assert!(epilogue.alpha == 1.0 && !matches!(epilogue.bias, Bias::PerColumn(_)), "a bias per channel, and no factor");
    epilogue.bias.check(shape.c_out, 0);
    if y.is_empty() {
        return;
    }
    let job = Job { shape, isa: w.isa, epilogue: *epilogue, channels };
    match &w.weights {
        Weights::Depthwise(weights) => depthwise::run(&job, weights, x, y, scratch),
        Weights::Groups(packed) => product::run(&job, packed, x, y, scratch),
        Weights::Rounded(groups) => rounded::run(&job, groups, x, y),
    }
}

/// Length of the sums from which on rounding pays: below, lines of 32 are half empty, and what it costs to write the output is
/// all that counts (16 channels of 112 × 112 to 96, 1 × 1: 400 µs in f32, 820 µs in bf16).
const ROUNDED_DEPTH: usize = 48;

/// What both ways of computing a convolution need; all lengths are checked.
struct Job<'a> {
    shape: &'a ConvShape,
    isa: Isa,
    epilogue: Epilogue<'a>,
    /// Output channels to compute; `y` holds these only.
    channels: Range<usize>,
}
