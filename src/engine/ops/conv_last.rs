//! Conv of one or two dimensions between values whose channels come last, as the pass `channels-last` makes it.

use smallvec::smallvec;

use super::broadcast;
use super::columns::Geometry;
use super::conv::{Conv, flat, flops};
use super::residual::{self, End, Residual};
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::conv::last::{Apart, Image, PackedConvLast, conv2d_last, conv2d_last_channels};
use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
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
        let packed = PackedConvolution::new(self, w.shape(), w.slice()?, None, ctx.isa);
        packed.run(inputs, outputs, ctx)
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, index: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let w = inputs.at(1)?;
        let packed = PackedConvolution::new(self, w.shape(), w.slice()?, None, ctx.isa);
        packed.run_in_place(index, inputs, outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let w = constants.get(1).copied().flatten()?;
        let values = w.slice::<f32>()?;
        let bias = constants.get(2).copied().flatten().filter(|bias| bias.shape() == [w.shape()[0]]).and_then(Tensor::slice::<f32>);
        let mut consumed = smallvec![1];
        if bias.is_some() {
            consumed.push(2);
        }
        Some(Prepacked { op: Box::new(PackedConvolution::new(self, w.shape(), values, bias, isa)), consumed })
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
    fn new(op: &ConvLast, shape: &[usize], values: &[f32], bias: Option<&[f32]>, isa: Isa) -> Self {
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
    let pixels = lines * shape.w_out;
    let width = shape.c_out.div_ceil(parts).next_multiple_of(w.channel_step());
    if width < shape.c_out && w.prefers_channels(shape, parts) {
        let mut strips = vec![0.0; pixels * shape.c_out];
        if epilogue.adds {
            exchange(y, &mut strips, (shape.c_out, width), |held, strip| strip.copy_from_slice(held));
        }
        let items: Vec<_> = strips.chunks_mut(pixels * width).enumerate().collect();
        ctx.threads.for_each(items, |(part, y)| {
            let channels = part * width..part * width + y.len() / pixels;
            conv2d_last_channels(shape, w, x, epilogue, (0..lines, channels), y, &mut Vec::new());
        });
        return exchange(y, &mut strips, (shape.c_out, width), |to, strip| to.copy_from_slice(strip));
    }
    let count = lines.div_ceil(parts).next_multiple_of(w.line_step());
    let items = y.chunks_mut((count * shape.w_out * shape.c_out).max(1)).enumerate();
    ctx.threads.for_each(items, |(part, y)| {
        let lines = part * count..lines.min((part + 1) * count);
        conv2d_last(shape, w, x, epilogue, lines, y, &mut Vec::new());
    });
}

/// Calls `f` with every part of `width` of the rows of `y`, and with its place in the strips that hold each part of all rows.
fn exchange(y: &mut [f32], strips: &mut [f32], (columns, width): (usize, usize), f: impl Fn(&mut [f32], &mut [f32])) {
    let rows = y.len() / columns;
    for (part, strip) in strips.chunks_mut(rows * width).enumerate() {
        let count = strip.len() / rows;
        for (row, strip) in y.chunks_exact_mut(columns).zip(strip.chunks_exact_mut(count)) {
            f(&mut row[part * width..][..count], strip);
        }
    }
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
