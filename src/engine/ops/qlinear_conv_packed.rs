//! QLinearConv with everything but its input constant: weights, scales and bias ready for the kernel.

use super::conv::flat;
use super::integer_product::{OPERATIONS_PER_FLOP, flip_of, shift_of};
use super::product::join;
use super::qlinear_conv::{QConv, Sizes};
use crate::engine::dtype::DType;
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::int8::conv::{Image, Prepared, pack, prepare, run};
use crate::engine::kernels::int8::{Codes, Finish, Output, PANEL, PackedInt8, RightCodes};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::op::{Context, Facts, Inputs, Op, OpError, Outputs, Shape};
use crate::engine::tensor::Tensor;
use crate::engine::threads::Threads;

/// See the module.
#[derive(Debug)]
pub(crate) struct PackedQConv {
    conv: QConv,
    shape: Shape,
    weights: PackedInt8,
    /// The zero points of input and output as unsigned codes.
    zeros: (u8, i16),
    /// The scale of each channel's sums, and what is added to them before.
    factors: Vec<f32>,
    shift: Vec<i32>,
    output: DType,
}

/// The constants of a convolution.
pub(crate) struct Constants<'a> {
    pub(crate) weights: &'a Tensor,
    /// Of the weights, one or one per channel.
    pub(crate) weight_zeros: Vec<i32>,
    pub(crate) input: (DType, i32),
    pub(crate) output: (DType, i32),
    pub(crate) factors: Vec<f32>,
    pub(crate) bias: Option<&'a [i32]>,
}

impl PackedQConv {
    /// `None` if the kernel has no form for it.
    pub(crate) fn new(conv: &QConv, isa: Isa, with: Constants<'_>) -> Option<Self> {
        let shape: Shape = with.weights.shape().into();
        let (c_out, c_in, taps) = match shape[..] {
            [c_out, c_in, w] => (c_out, c_in, w),
            [c_out, c_in, h, w] => (c_out, c_in, h * w),
            _ => return None,
        };
        if conv.groups != 1 || c_out == 0 || c_in * taps == 0 {
            return None;
        }
        let codes = match (with.weights.slice::<i8>(), with.weights.slice::<u8>()) {
            (Some(codes), _) => RightCodes::Signed(codes),
            (_, Some(codes)) => RightCodes::Unsigned(codes),
            _ => return None,
        };
        let weights = pack(isa, codes, (c_out, c_in, taps), &with.weight_zeros);
        // Their products need sums of rows, which no exporter asks for.
        if weights.zeros().is_some() {
            return None;
        }
        let x_zero = u8::try_from(with.input.1 + shift_of(with.input.0)).ok()?;
        let bias = |channel: usize| with.bias.map_or(0, |bias| bias[channel]);
        let shift = weights.column_sums().iter().enumerate();
        let shift = shift.map(|(channel, sum)| bias(channel).wrapping_sub(sum.wrapping_mul(i32::from(x_zero)))).collect();
        let zeros = (x_zero, (with.output.1 + shift_of(with.output.0)) as i16);
        Some(Self { conv: conv.clone(), shape, weights, zeros, factors: with.factors, shift, output: with.output.0 })
    }

    fn finish<'a>(&'a self, y: &'a mut [u8], ldc: usize) -> Finish<'a> {
        let codes = Codes { y, factors: &self.factors, offsets: None, zero: self.zeros.1, low: 0, high: 255, flip: flip_of(self.output) };
        Finish { shift: &self.shift, rows: None, ldc, output: Output::Codes(codes) }
    }

    /// The result with channels last, on as many threads as the work is worth.
    fn convolve(&self, prepared: &Prepared<'_>, shape: &ConvShape, y: &mut [u8], threads: &Threads) {
        let (lines, n) = (shape.n * shape.h_out, shape.c_out);
        let flops = (shape.output_len() as u64).saturating_mul(2 * self.weights.k() as u64);
        let parts = threads.parts(flops / OPERATIONS_PER_FLOP);
        if parts <= 1 {
            return run(prepared, &self.weights, 0..lines, 0..n, &mut self.finish(y, n));
        }
        // With few pixels every thread would read all weights for little.
        const PIXELS_PER_PART: usize = 96;
        if lines * shape.w_out >= parts * PIXELS_PER_PART && lines >= parts {
            let count = lines.div_ceil(parts);
            let items = y.chunks_mut(count * shape.w_out * n).enumerate();
            return threads.for_each(items, |(part, y)| {
                let lines = part * count..lines.min((part + 1) * count);
                run(prepared, &self.weights, lines, 0..n, &mut self.finish(y, n));
            });
        }
        let width = n.div_ceil(parts).next_multiple_of(PANEL);
        let pixels = lines * shape.w_out;
        let mut strips = vec![0; pixels * n];
        let items = strips.chunks_mut(pixels * width).enumerate();
        threads.for_each(items, |(part, strip)| {
            let channels = part * width..n.min((part + 1) * width);
            let ldc = channels.len();
            run(prepared, &self.weights, 0..lines, channels, &mut self.finish(strip, ldc));
        });
        join(&strips, (pixels, n, width), y, threads);
    }
}

impl Op for PackedQConv {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![self.conv.sizes(inputs.shape(0)?, &self.shape)?.shape()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        if y.shape().contains(&0) {
            return Ok(());
        }
        let sizes = self.conv.sizes(x.shape(), &self.shape)?;
        let shape = shape_of(&sizes)?;
        let mut y = y.bits();
        let y = y.slice::<u8>()?;
        let (channels_last, flip) = (self.conv.input_last, flip_of(x.dtype()));
        let mut buffer = vec![];
        let prepared = prepare(&shape, &Image { data: x.bits().slice()?, channels_last, flip, zero: self.zeros.0 }, &mut buffer);
        if self.conv.output_last {
            self.convolve(&prepared, &shape, y, ctx.threads);
            return Ok(());
        }
        let mut last = vec![0; y.len()];
        self.convolve(&prepared, &shape, &mut last, ctx.threads);
        let pixels = shape.h_out * shape.w_out;
        for (from, to) in last.chunks_exact(pixels * shape.c_out).zip(y.chunks_exact_mut(pixels * shape.c_out)) {
            for (channel, to) in to.chunks_exact_mut(pixels).enumerate() {
                to.iter_mut().zip(from[channel..].iter().step_by(shape.c_out)).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(())
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        inputs.shape(0).and_then(|x| self.conv.sizes(x, &self.shape)).map_or(0, |sizes| sizes.flops())
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Int8
    }

    fn packed_bytes(&self) -> usize {
        self.weights.bytes() + size_of_val(self.factors.as_slice()) + size_of_val(self.shift.as_slice())
    }
}

fn shape_of(sizes: &Sizes) -> Result<ConvShape, OpError> {
    let (shape, padded) = flat(&sizes.geometry()).ok_or_else(|| OpError::shape("packed weights are for one or two dimensions"))?;
    match padded {
        Some(_) => Ok(shape),
        None => Err(OpError::shape("the input is too large with its padding")),
    }
}
