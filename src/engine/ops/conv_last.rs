//! Conv of one or two dimensions between values whose channels come last, as the pass `channels-last` makes it.

use smallvec::smallvec;

use super::broadcast;
use super::columns::Geometry;
use super::conv::{Conv, flat, flops, with_working_memory};
use super::product::join;
use super::residual::{self, End, Residual};
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::conv::last::{Apart, Image, PackedConvLast, conv2d_last, conv2d_last_channels};
use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::stored::Source;
use crate::engine::op::{Context, Facts, Inputs, Op, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::Tensor;

/// A Conv on f32 whose output is `[n, h, w, channels]` or `[n, w, channels]`, and so is its residual; the weights are as in Conv.
#[derive(Clone, Debug)]
pub(crate) struct ConvLast {
    pub(crate) conv: Conv,
    /// Whether the channels of input 0 come last, too.
    pub(crate) input_last: bool,
}

impl ConvLast {
    fn sizes(&self, x: &[usize], w: &[usize]) -> Result<Geometry, OpError> {
        match (x, self.input_last) {
            (&[n, h, width, c], true) => self.conv.sizes(&[n, c, h, width], w),
            (&[n, width, c], true) => self.conv.sizes(&[n, c, width], w),
            (&[_, _, _, _], false) => self.conv.sizes(x, w),
            _ => Err(OpError::shape(format!("an input of shape {x:?} where images are expected"))),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>, w: &[usize]) -> Result<Vec<Shape>, OpError> {
        let sizes = self.sizes(inputs.shape(0)?, w)?;
        if inputs.get(2).is_some() && inputs.shape(2)? != [w[0]] {
            return Err(OpError::shape(format!("a bias of shape {:?} for {} output channels", inputs.shape(2)?, w[0])));
        }
        let shape = output_shape(&sizes, w);
        match inputs.get(3) {
            Some(_) => Ok(vec![broadcast::shape([&shape[..], inputs.shape(3)?])?]),
            None => Ok(vec![shape]),
        }
    }
}

fn output_shape(sizes: &Geometry, w: &[usize]) -> Shape {
    [sizes.samples].into_iter().chain(sizes.axes.iter().map(|axis| axis.output)).chain([w[0]]).collect()
}

impl Op for ConvLast {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.shapes(inputs, inputs.shape(1)?)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let w = inputs.at(1)?;
        let packed = PackedConvolution::new(self, w.shape(), w.slice::<f32>()?, None, ctx.isa);
        packed.run(inputs, outputs, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, index: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let w = inputs.at(1)?;
        let packed = PackedConvolution::new(self, w.shape(), w.slice::<f32>()?, None, ctx.isa);
        packed.run_in_place(index, inputs, outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let w = constants.get(1).copied().flatten()?;
        let values = w.source()?;
        let bias = constants.get(2).copied().flatten().filter(|bias| bias.shape() == [w.shape()[0]]).and_then(Tensor::slice::<f32>);
        let mut consumed = smallvec![1];
        if bias.is_some() {
            consumed.push(2);
        }
        Some(Prepacked { op: Box::new(PackedConvolution::new(self, w.shape(), &values, bias, isa)), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        inputs.shape(0).and_then(|x| self.sizes(x, inputs.shape(1)?)).map_or(0, |sizes| sizes.flops())
    }
}

/// [`ConvLast`] with constant weights.
#[derive(Debug)]
struct PackedConvolution {
    op: ConvLast,
    w: PackedConvLast,
    w_shape: Shape,
    /// The constant bias; if none, input 2 is added, if it is given.
    bias: Option<Vec<f32>>,
}

impl PackedConvolution {
    fn new(op: &ConvLast, shape: &[usize], values: &(impl Source + ?Sized), bias: Option<&[f32]>, isa: Isa) -> Self {
        let w = PackedConvLast::pack(
            (op.conv.precision, isa),
            values,
            (shape[0], shape[1]),
            (shape[2], shape.get(3).copied().unwrap_or(1)),
            (op.conv.groups, Apart { taps: op.conv.dilated(), pixels: op.conv.strided() }),
        );
        Self { op: op.clone(), w, w_shape: shape.into(), bias: bias.map(<[f32]>::to_vec) }
    }

    /// With input 3, or output 0 in its place.
    fn run_some(
        &self,
        residual: Residual<'_>,
        inputs: &Inputs<'_>,
        outputs: &mut Outputs<'_, '_>,
        ctx: &mut Context<'_>,
    ) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let sizes = self.op.sizes(x.shape(), &self.w_shape)?;
        let flat = standing(&sizes).ok_or_else(|| OpError::shape("an image has two dimensions"))?;
        let given = inputs.get(2).map(|b| b.slice::<f32>()).transpose()?;
        let (bias, image) = (self.bias.as_deref().or(given), Image { data: x.slice()?, channels_last: self.op.input_last });
        if outputs.at(0)?.shape().contains(&0) {
            return Ok(());
        }
        residual::finish(residual, &output_shape(&sizes, &self.w_shape), self.op.conv.activation, outputs, ctx, |y, end, ctx| {
            convolve(&flat, &self.w, image, bias, end, y, ctx);
            Ok(())
        })
    }
}

/// The sizes for the kernel: elements of a sequence are lines of one pixel, which threads can share.
fn standing(sizes: &Geometry) -> Option<ConvShape> {
    let (s, _) = flat(sizes)?;
    let turned = ConvShape {
        h_in: s.w_in,
        w_in: s.h_in,
        h_out: s.w_out,
        w_out: s.h_out,
        kernel_h: s.kernel_w,
        kernel_w: s.kernel_h,
        stride_h: s.stride_w,
        stride_w: s.stride_h,
        pad_top: s.pad_left,
        pad_left: s.pad_top,
        dilation_h: s.dilation_w,
        dilation_w: s.dilation_h,
        ..s
    };
    Some(if sizes.axes.len() == 1 { turned } else { s })
}

/// Lines of the output on as many threads as the work is worth. The bits do not depend on the split.
fn convolve(shape: &ConvShape, w: &PackedConvLast, x: Image<'_>, bias: Option<&[f32]>, end: End, y: &mut [f32], ctx: &mut Context<'_>) {
    let bias = bias.map_or(Bias::None, Bias::PerColumn);
    let epilogue = &Epilogue { bias, adds: end.adds, activation: end.activation, ..Epilogue::default() };
    let lines = shape.n * shape.h_out;
    let parts = ctx.threads.parts(flops(shape));
    if parts <= 1 {
        return conv2d_last(shape, w, x, epilogue, 0..lines, y, &mut ctx.scratch.f32);
    }
    let width = shape.c_out.div_ceil(parts).next_multiple_of(w.channel_step());
    if width < shape.c_out && w.prefers_channels(shape, parts) {
        return by_channels(shape, w, x, epilogue, width, y, ctx);
    }
    let count = lines.div_ceil(parts).next_multiple_of(w.line_step());
    let items = y.chunks_mut((count * shape.w_out * shape.c_out).max(1)).enumerate();
    ctx.threads.for_each(items, |(part, y)| {
        let lines = part * count..lines.min((part + 1) * count);
        with_working_memory(|memory| conv2d_last(shape, w, x, epilogue, lines, y, memory));
    });
}

/// Parts of `width` channels side by side. They lie apart in `y`, so each is put aside, and then all of them into the lines.
fn by_channels(
    shape: &ConvShape,
    w: &PackedConvLast,
    x: Image<'_>,
    epilogue: &Epilogue<'_>,
    width: usize,
    y: &mut [f32],
    ctx: &mut Context<'_>,
) {
    let (lines, columns) = (shape.n * shape.h_out, shape.c_out);
    let pixels = lines * shape.w_out;
    let memory = &mut ctx.scratch.f32;
    memory.resize(memory.len().max(y.len()), 0.0);
    let strips = &mut memory[..y.len()];
    let held = &*y;
    ctx.threads.for_each(strips.chunks_mut(pixels * width).enumerate(), |(part, strip)| {
        let channels = part * width..part * width + strip.len() / pixels;
        if epilogue.adds {
            let rows = strip.chunks_exact_mut(channels.len()).zip(held.chunks_exact(columns));
            rows.for_each(|(strip, held)| strip.copy_from_slice(&held[channels.clone()]));
        }
        with_working_memory(|memory| conv2d_last_channels(shape, w, x, epilogue, (0..lines, channels), strip, memory));
    });
    join(strips, (pixels, columns, width), y, ctx.threads);
}

impl Op for PackedConvolution {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.op.shapes(inputs, &self.w_shape)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(inputs.get(3).map_or(Residual::None, Residual::Given), inputs, outputs, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(Residual::InPlace, inputs, outputs, ctx)
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        inputs.shape(0).and_then(|x| self.op.sizes(x, &self.w_shape)).map_or(0, |sizes| sizes.flops())
    }

    fn arithmetic(&self) -> Arithmetic {
        self.w.arithmetic()
    }

    fn packed_bytes(&self) -> usize {
        self.w.bytes() + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use crate::engine::kernels::epilogue::Activation;
    use crate::engine::kernels::weights::Precision;
    use crate::engine::op::Scratch;
    use crate::engine::threads::Threads;

    /// `c_in` to `c_out` channels of a square image.
    fn square(size: usize, c_in: usize, c_out: usize, kernel: usize) -> ConvShape {
        ConvShape {
            n: 1,
            c_in,
            h_in: size,
            w_in: size,
            c_out,
            h_out: size,
            w_out: size,
            kernel_h: kernel,
            kernel_w: kernel,
            stride_h: 1,
            stride_w: 1,
            pad_top: kernel / 2,
            pad_left: kernel / 2,
            dilation_h: 1,
            dilation_w: 1,
            groups: 1,
        }
    }

    #[test]
    fn parts_of_lines_and_of_channels_have_the_bits_of_one_thread() {
        // The last of the parts of channels is narrower than the others; by Winograd's method and by the definition.
        for (shape, by_channels) in [
            (square(7, 264, 1100, 1), true),
            (square(6, 96, 200, 3), true),
            (square(28, 96, 120, 1), false),
            (square(15, 64, 72, 3), false),
        ] {
            let taps = shape.kernel_h * shape.kernel_w;
            let (x, w) = (noise(shape.input_len(), 1), noise(shape.c_out * shape.c_in * taps, 2));
            let (bias, held) = (noise(shape.c_out, 3), noise(shape.output_len(), 4));
            let kernel = (shape.kernel_h, shape.kernel_w);
            let packed = PackedConvLast::pack((Precision::F32, Isa::best()), &w, (shape.c_out, shape.c_in), kernel, (1, Apart::default()));
            assert_eq!(packed.prefers_channels(&shape, 2), by_channels, "{shape:?}");
            for adds in [false, true] {
                let run = |threads: usize| {
                    let threads = Threads::new(threads).expect("threads");
                    let mut scratch = Scratch::default();
                    scratch.f32.resize(10, f32::NAN);
                    let mut ctx = Context { scratch: &mut scratch, threads: &threads, isa: Isa::best(), budget: 1 << 30, deadline: None };
                    assert_eq!(ctx.threads.parts(flops(&shape)), threads.count(), "it is worth splitting");
                    let mut y = if adds { held.clone() } else { vec![f32::NAN; held.len()] };
                    let end = End { adds, activation: Activation::Relu };
                    convolve(&shape, &packed, Image { data: &x, channels_last: true }, Some(&bias), end, &mut y, &mut ctx);
                    y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
                };
                let one = run(1);
                assert!(one.iter().any(|bits| *bits != 0) && one.iter().all(|bits| f32::from_bits(*bits).is_finite()));
                assert!([2, 3].map(run).iter().all(|some| *some == one), "{shape:?}, adds: {adds}");
            }
        }
    }
}
