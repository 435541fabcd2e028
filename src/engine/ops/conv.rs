//! Conv: convolution over any number of dimensions, with groups, dilations and automatic padding.
//!
//! One and two dimensions have a kernel of their own; more go through `columns.rs`. A following Add and an activation may be fused
//! into it (`optimize/fuse_activation.rs`); what is added is then input 3.

pub(crate) mod gradient;

use std::cell::Cell;

use smallvec::smallvec;

use super::ANY;
use super::axes::same_type;
use super::columns::Geometry;
use super::broadcast;
use super::matmul::{narrow, widened};
use super::residual::{self, End, Residual};
use super::window::{Axis, Window, output_shape};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::kernels::conv::{ConvShape, PackedConv, conv2d, conv2d_channels};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::kernels::vector::activation_in_place;
use crate::engine::kernels::weights::Precision;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape, types};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::View;

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "Conv", domain: "", opsets: 1..=ANY, types: types::FLOATS, build }];

/// `activation(x * w + bias + residual)`; the residual, input 3, exists only if it was fused.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    window: Window,
    pub(super) groups: usize,
    pub(crate) activation: Activation,
    pub(super) precision: Precision,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(conv(attrs)?))
}

/// The convolution that the attributes of a Conv describe.
pub(crate) fn conv(attrs: &Attrs) -> Result<Conv, OpError> {
    Ok(Conv { window: Window::read(attrs)?, groups: groups(attrs)?, activation: Activation::None, precision: Precision::F32 })
}

/// Attribute `group`.
pub(crate) fn groups(attrs: &Attrs) -> Result<usize, OpError> {
    let groups = attrs.int_or("group", 1)?;
    match usize::try_from(groups) {
        Ok(groups) if groups >= 1 => Ok(groups),
        _ => Err(OpError::Attribute(format!("attribute `group` is {groups}"))),
    }
}

/// Elements of one padded image that a convolution may copy: 2^31 are 8 GiB.
const PADDED_ELEMENTS: usize = 1 << 31;

/// The elements of an input, of weights with their shape, and of a bias.
type Operands<'a> = (&'a [f32], (&'a [usize], &'a [f32]), Option<&'a [f32]>);

impl Conv {
    /// The same followed by an activation.
    pub(crate) fn with(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// The same with operands rounded to a precision, where one is constant.
    pub(crate) fn at(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// How many groups of channels there are.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Whether taps may lie apart.
    pub(super) fn dilated(&self) -> bool {
        self.window.dilations().is_some_and(|all| all.iter().any(|&d| d > 1))
    }

    /// Whether pixels may lie apart.
    pub(super) fn strided(&self) -> bool {
        self.window.strides().is_some_and(|all| all.iter().any(|&d| d > 1))
    }

    /// Sizes for an input `x` and weights of shape `w`.
    pub(super) fn sizes(&self, x: &[usize], w: &[usize]) -> Result<Geometry, OpError> {
        if x.len() < 3 || w.len() != x.len() {
            return Err(OpError::shape(format!("an input of shape {x:?} and weights of shape {w:?}")));
        }
        let (groups, c_in, c_out) = (self.groups, x[1], w[0]);
        if w[1].checked_mul(groups) != Some(c_in) || !c_out.is_multiple_of(groups) {
            return Err(OpError::shape(format!("an input of shape {x:?}, weights of shape {w:?} and {groups} groups")));
        }
        if let Some(kernel) = self.window.kernel()
            && kernel != &w[2..]
        {
            return Err(OpError::shape(format!("attribute `kernel_shape` is {kernel:?}, the weights have shape {w:?}")));
        }
        let axes = self.window.over(&x[2..], &w[2..])?;
        let geometry = Geometry { samples: x[0], groups, c_in: w[1], c_out: c_out / groups, axes };
        match flat(&geometry) {
            Some((_, padded)) if padded.is_none_or(|padded| padded > PADDED_ELEMENTS) => {
                Err(OpError::shape(format!("an input of shape {x:?} is too large with its padding")))
            }
            _ => Ok(geometry),
        }
    }

    /// The shape of the result for an input `x` and weights `w`, with what bias and residual add to it.
    fn output(&self, x: &[usize], w: &[usize], inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let geometry = self.sizes(x, w)?;
        if inputs.get(2).is_some() && inputs.shape(2)? != [w[0]] {
            return Err(OpError::shape(format!("a bias of shape {:?} for {} output channels", inputs.shape(2)?, w[0])));
        }
        let shape = output_shape(x[0], w[0], &geometry.axes);
        match inputs.get(3) {
            Some(_) => Ok(vec![broadcast::shape([&shape[..], inputs.shape(3)?])?]),
            None => Ok(vec![shape]),
        }
    }

    /// `x`, weights with their shape, and a bias; `end` says what becomes of the sums.
    fn run_f32(&self, sizes: &Geometry, (x, w, bias): Operands<'_>, end: End, y: &mut [f32], ctx: &mut Context<'_>) {
        match flat(sizes) {
            Some((shape, _)) if self.precision == Precision::F32 => {
                let depth = sizes.depth();
                let packed = packed_now(&shape, |channel| w.1[channel * depth..][..depth].iter().copied(), ctx);
                run_packed(&shape, &packed, x, bias, end, y, ctx);
                ctx.scratch.give(packed.into_memory());
            }
            Some((shape, _)) => run_packed(&shape, &self.pack(ctx.isa, w.0, w.1), x, bias, end, y, ctx),
            None if end.adds => {
                let mut product = vec![0.0; y.len()];
                sizes.convolve((ctx.isa, ctx.threads), x, w.1, bias, Activation::None, &mut product);
                y.iter_mut().zip(product).for_each(|(y, product)| *y += product);
                activation_in_place(ctx.isa, end.activation, y);
            }
            None => sizes.convolve((ctx.isa, ctx.threads), x, w.1, bias, end.activation, y),
        }
    }

    /// Input 3, or output 0 in its place.
    fn run_some(&self, residual: Residual<'_>, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, w) = (inputs.at(0)?, inputs.at(1)?);
        let sizes = self.sizes(x.shape(), w.shape())?;
        if outputs.at(0)?.shape().contains(&0) {
            return Ok(());
        }
        let bias = inputs.get(2).map(|b| b.slice::<f32>()).transpose()?;
        let (x, w) = (x.slice()?, (w.shape(), w.slice()?));
        let shape = output_shape(sizes.samples, w.0[0], &sizes.axes);
        residual::finish(residual, &shape, self.activation, outputs, ctx, |y, end, ctx| {
            self.run_f32(&sizes, (x, w, bias), end, y, ctx);
            Ok(())
        })
    }

    fn pack(&self, isa: Isa, w: &[usize], values: &[f32]) -> PackedConv {
        let (kernel_h, kernel_w) = if w.len() == 4 { (w[2], w[3]) } else { (1, w[2]) };
        PackedConv::pack(self.precision, isa, values, w[0], w[1], kernel_h, kernel_w, self.groups)
    }
}

/// The sizes for the kernel, if there are one or two dimensions, and the elements of an image with its padding.
pub(crate) fn flat(sizes: &Geometry) -> Option<(ConvShape, Option<usize>)> {
    let one = Axis { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, pad_begin: 0, pad_end: 0 };
    let (row, column) = match sizes.axes[..] {
        [column] => (one, column),
        [row, column] => (row, column),
        _ => return None,
    };
    let c_in = sizes.c_in * sizes.groups;
    let padded = [row, column].iter().try_fold(c_in, |product, axis| product.checked_mul(axis.input + axis.pad_begin + axis.pad_end));
    let shape = ConvShape {
        n: sizes.samples,
        c_in,
        h_in: row.input,
        w_in: column.input,
        c_out: sizes.c_out * sizes.groups,
        h_out: row.output,
        w_out: column.output,
        kernel_h: row.kernel,
        kernel_w: column.kernel,
        stride_h: row.stride,
        stride_w: column.stride,
        pad_top: row.pad_begin,
        pad_left: column.pad_begin,
        dilation_h: row.dilation,
        dilation_w: column.dilation,
        groups: sizes.groups,
    };
    Some((shape, padded))
}

pub(super) fn flops(shape: &ConvShape) -> u64 {
    let taps = (shape.c_in / shape.groups * shape.kernel_h * shape.kernel_w) as u64;
    (shape.output_len() as u64).saturating_mul(2).saturating_mul(taps)
}

/// Weights that are packed for one run, in memory of the scratch: `row` gives those of an output channel.
fn packed_now<I: Iterator<Item = f32>>(shape: &ConvShape, row: impl Fn(usize) -> I + Sync, ctx: &mut Context<'_>) -> PackedConv {
    /// Operations for each weight, memory counted by its time.
    const COST: u64 = 8;
    let weights = shape.c_out * (shape.c_in / shape.groups) * shape.kernel_h * shape.kernel_w;
    let split = ctx.threads.parts(COST * weights as u64) > 1;
    let memory = ctx.scratch.take();
    PackedConv::fill(shape, ctx.isa, memory, row, |panels, fill| if split { ctx.threads.for_each(panels, fill) } else { panels.for_each(fill) })
}

thread_local! {
    /// Padded images and panels of a thread that has a part of a convolution, kept for the next.
    static WORKING: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with the working memory of this thread.
pub(super) fn with_working_memory(work: impl FnOnce(&mut Vec<f32>)) {
    let mut memory = WORKING.take();
    work(&mut memory);
    WORKING.set(memory);
}

/// Samples, or output channels of samples, on as many threads as the work is worth. The bits do not depend on the split.
fn run_packed(shape: &ConvShape, w: &PackedConv, x: &[f32], bias: Option<&[f32]>, end: End, y: &mut [f32], ctx: &mut Context<'_>) {
    let bias = bias.map_or(Bias::None, Bias::PerRow);
    let epilogue = &Epilogue { bias, adds: end.adds, activation: end.activation, ..Epilogue::default() };
    let parts = ctx.threads.parts(flops(shape));
    if parts <= 1 || y.is_empty() || x.is_empty() {
        return conv2d(shape, w, x, epilogue, y, &mut ctx.scratch.f32);
    }
    let (from, to) = (shape.input_len() / shape.n, shape.output_len() / shape.n);
    if shape.n >= parts {
        let samples = shape.n.div_ceil(parts);
        let items = x.chunks(samples * from).zip(y.chunks_mut(samples * to));
        ctx.threads.for_each(items, |(x, y)| {
            let shape = ConvShape { n: x.len() / from, ..*shape };
            with_working_memory(|memory| conv2d(&shape, w, x, epilogue, y, memory));
        });
        return;
    }
    let channels = shape.c_out.div_ceil(parts).next_multiple_of(w.channel_step());
    let pixels = to / shape.c_out;
    let items = x.chunks(from).zip(y.chunks_mut(to)).flat_map(|(x, y)| {
        y.chunks_mut(channels * pixels).enumerate().map(move |(part, y)| (part * channels, x, y))
    });
    let one = ConvShape { n: 1, ..*shape };
    ctx.threads.for_each(items, |(start, x, y)| {
        let range = start..start + y.len() / pixels;
        with_working_memory(|memory| conv2d_channels(&one, w, x, epilogue, range, y, memory));
    });
}

impl Op for Conv {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..4)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.output(inputs.shape(0)?, inputs.shape(1)?, inputs)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        if inputs.at(0)?.dtype() == DType::F32 {
            return self.run_some(inputs.get(3).map_or(Residual::None, Residual::Given), inputs, outputs, ctx);
        }
        let (x, w, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let sizes = self.sizes(x.shape(), w.shape())?;
        if y.shape().contains(&0) {
            return Ok(());
        }
        match x.dtype() {
            DType::F64 => {
                let bias = inputs.get(2).map(|b| b.slice::<f64>()).transpose()?;
                sizes.convolve_f64(x.slice()?, w.slice()?, bias, y.slice()?);
                Ok(())
            }
            _ => {
                let bias = inputs.get(2).map(widened).transpose()?;
                let mut wide = vec![0.0; sizes.output_len()];
                let end = End { adds: false, activation: self.activation };
                self.run_f32(&sizes, (&widened(x)?, (w.shape(), &widened(w)?), bias.as_deref()), end, &mut wide, ctx);
                narrow(&wide, y)
            }
        }
    }

    fn in_place(&self) -> &'static [usize] {
        &[3]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.run_some(Residual::InPlace, inputs, outputs, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let w = constants.get(1).copied().flatten()?;
        let values = w.slice::<f32>()?;
        if values.is_empty() || !matches!(w.shape().len(), 3 | 4) || !w.shape()[0].is_multiple_of(self.groups) {
            return None;
        }
        let mut consumed = smallvec![1];
        let bias = constants.get(2).copied().flatten().filter(|bias| bias.shape() == [w.shape()[0]]).and_then(Tensor::slice::<f32>);
        if bias.is_some() {
            consumed.push(2);
        }
        let packed = self.pack(isa, w.shape(), values);
        let op = PackedConvolution { conv: self.clone(), w: packed, w_shape: w.shape().into(), bias: bias.map(<[f32]>::to_vec) };
        Some(Prepacked { op: Box::new(op), consumed })
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        inputs.shape(0).and_then(|x| self.sizes(x, inputs.shape(1)?)).map_or(0, |sizes| sizes.flops())
    }
}

/// Conv with constant weights.
#[derive(Debug)]
struct PackedConvolution {
    conv: Conv,
    w: PackedConv,
    w_shape: Shape,
    /// The constant bias; if none, input 2 is added, if it is given.
    bias: Option<Vec<f32>>,
}

impl PackedConvolution {
    /// As [`Conv::run_some`].
    fn run_some(&self, residual: Residual<'_>, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x: View<'_> = inputs.at(0)?;
        let sizes = self.conv.sizes(x.shape(), &self.w_shape)?;
        let (flat, _) = flat(&sizes).ok_or_else(|| OpError::shape("packed weights are for one or two dimensions"))?;
        let given = inputs.get(2).map(|b| b.slice::<f32>()).transpose()?;
        let (bias, x) = (self.bias.as_deref().or(given), x.slice()?);
        let shape = output_shape(sizes.samples, self.w_shape[0], &sizes.axes);
        residual::finish(residual, &shape, self.conv.activation, outputs, ctx, |y, end, ctx| {
            run_packed(&flat, &self.w, x, bias, end, y, ctx);
            Ok(())
        })
    }
}

impl Op for PackedConvolution {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.conv.output(inputs.shape(0)?, &self.w_shape, inputs)
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
        inputs.shape(0).and_then(|x| self.conv.sizes(x, &self.w_shape)).map_or(0, |sizes| sizes.flops())
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
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;
    use half::f16;

    /// The same in f64, where the body is the definition.
    fn agrees(case: &Case, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let wide = |t: &Tensor| tensor(t.shape(), &t.slice::<f32>().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
        let y = case.run_some(&[Some(x), Some(w), bias]).unwrap().remove(0);
        let want = case.run_some(&[Some(&wide(x)), Some(&wide(w)), bias.map(wide).as_ref()]).unwrap().remove(0);
        let want: Vec<f32> = want.slice::<f64>().unwrap().iter().map(|&v| v as f32).collect();
        assert_close(&y, y.shape(), &want, 1e-5);
        y
    }

    #[test]
    fn a_small_convolution_by_hand() {
        let x = tensor(&[1, 1, 3, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let w = tensor(&[1, 1, 2, 2], &[1.0_f32, 0.0, 0.0, -1.0]);
        let y = op("Conv").one(&[&x, &w, &tensor(&[1], &[0.5_f32])]);
        assert_close(&y, &[1, 1, 2, 2], &[-3.5; 4], 1e-6);
        let half = |t: &Tensor| tensor(t.shape(), &t.slice::<f32>().unwrap().iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
        let y = op("Conv").one(&[&half(&x), &half(&w)]);
        assert_eq!(y, tensor(&[1, 1, 2, 2], &[f16::from_f32(-4.0); 4]));
    }

    #[test]
    fn strides_pads_dilations_and_groups() {
        type Row = (&'static [i64], &'static [i64], &'static [i64], i64);
        let cases: &[Row] = &[
            (&[1, 1], &[0, 0, 0, 0], &[1, 1], 1),
            (&[2, 1], &[1, 1, 1, 1], &[1, 1], 1),
            (&[1, 2], &[0, 1, 2, 3], &[1, 1], 2),
            (&[1, 1], &[2, 2, 2, 2], &[2, 2], 1),
            (&[2, 2], &[1, 1, 1, 1], &[1, 1], 4),
            (&[3, 3], &[4, 4, 4, 4], &[1, 2], 4),
        ];
        for &(strides, pads, dilations, group) in cases {
            let x = tensor(&[2, 4, 9, 8], &noise(2 * 4 * 9 * 8, 1));
            let w = tensor(&[8, 4 / group as usize, 3, 2], &noise(8 * 4 / group as usize * 6, 2));
            let case = op("Conv").attr("strides", strides).attr("pads", pads).attr("dilations", dilations).attr("group", group);
            let y = agrees(&case, &x, &w, Some(&tensor(&[8], &noise(8, 3))));
            // Every sample alone gives the same bits.
            for n in 0..2 {
                let alone = case.one(&[&x.rows(n..n + 1), &w, &tensor(&[8], &noise(8, 3))]);
                assert_eq!(alone, y.rows(n..n + 1));
            }
        }
    }

    #[test]
    fn one_dimension_and_automatic_padding() {
        let (x, w) = (tensor(&[2, 3, 7], &noise(42, 1)), tensor(&[5, 3, 4], &noise(60, 2)));
        assert_eq!(agrees(&op("Conv"), &x, &w, None).shape(), [2, 5, 4]);
        for auto in ["SAME_UPPER", "SAME_LOWER"] {
            let case = op("Conv").attr("auto_pad", auto).attr("strides", &[2_i64][..]);
            assert_eq!(agrees(&case, &x, &w, None).shape(), [2, 5, 4], "{auto}");
        }
        assert_eq!(agrees(&op("Conv").attr("auto_pad", "VALID"), &x, &w, None).shape(), [2, 5, 4]);
    }

    #[test]
    fn large_convolutions_are_the_same_on_two_threads() {
        // The harness compares; the sizes are such that the work is split by samples, by channels, and by both.
        for (n, c_out, group) in [(1, 32, 1), (2, 24, 1), (1, 32, 32), (3, 24, 2)] {
            let x = tensor(&[n, 32, 40, 40], &noise(n * 32 * 1600, 1));
            let w = tensor(&[c_out, 32 / group, 5, 5], &noise(c_out * 32 / group * 25, 2));
            op("Conv").attr("group", group as i64).one(&[&x, &w]);
        }
    }

    #[test]
    fn three_dimensions_and_more() {
        let case = || op("Conv").attr("pads", &[1_i64, 0, 2, 0, 1, 3][..]).attr("strides", &[2_i64, 1, 3][..]).attr("dilations", &[1_i64, 2, 1][..]);
        for group in [1, 2] {
            let x = tensor(&[2, 4, 5, 6, 7], &noise(1680, 1));
            let w = tensor(&[6, 4 / group, 3, 2, 2], &noise(24 * 12 / group, 2));
            let case = case().attr("group", group as i64);
            let y = agrees(&case, &x, &w, Some(&tensor(&[6], &noise(6, 3))));
            assert_eq!(y.shape(), [2, 6, 2, 5, 4]);
            let alone = case.one(&[&x.rows(1..2), &w, &tensor(&[6], &noise(6, 3))]);
            assert_eq!(alone, y.rows(1..2));
        }
        // Depth of 1 is the convolution in two dimensions.
        let (x, w) = (tensor(&[1, 2, 5, 6], &noise(60, 1)), tensor(&[3, 2, 2, 3], &noise(36, 2)));
        let deep = agrees(&op("Conv"), &x.reshape(&[1, 2, 1, 5, 6]).unwrap(), &w.reshape(&[3, 2, 1, 2, 3]).unwrap(), None);
        assert_close(&deep.reshape(&[1, 3, 4, 4]).unwrap(), &[1, 3, 4, 4], op("Conv").one(&[&x, &w]).slice::<f32>().unwrap(), 1e-5);
        let (x, w) = (tensor(&[1, 1, 2, 2, 2, 2], &[1.0_f32; 16]), tensor(&[1, 1, 2, 2, 2, 2], &[0.5_f32; 16]));
        assert_close(&op("Conv").one(&[&x, &w]), &[1, 1, 1, 1, 1, 1], &[8.0], 0.0);
        // More columns than a block has.
        let quarter: Vec<f32> = noise(48_000, 4).iter().map(|v| v / 4.0).collect();
        let (x, w) = (tensor(&[1, 10, 3, 40, 40], &quarter), tensor(&[2, 10, 3, 3, 3], &noise(540, 5)));
        agrees(&op("Conv").attr("pads", &[1_i64; 6][..]), &x, &w, None);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        let (x, w) = (zeros(&[1, 4, 5, 5]), zeros(&[8, 4, 3, 3]));
        let shape_error = |case: Case, inputs: &[&Tensor]| assert!(matches!(case.error(inputs), OpError::Shape(_)));
        shape_error(op("Conv"), &[&x, &zeros(&[8, 3, 3, 3])]);
        shape_error(op("Conv"), &[&x, &zeros(&[8, 4, 3])]);
        shape_error(op("Conv"), &[&x, &zeros(&[8, 4, 6, 6])]);
        shape_error(op("Conv"), &[&x, &w, &zeros(&[7])]);
        shape_error(op("Conv").attr("kernel_shape", &[2_i64, 2][..]), &[&x, &w]);
        shape_error(op("Conv").attr("group", 3_i64), &[&x, &w]);
        shape_error(op("Conv").attr("pads", &[1_i64 << 30; 4][..]).attr("strides", &[1_i64 << 30, 1 << 30][..]), &[&x, &w]);
        shape_error(op("Conv"), &[&zeros(&[1, 4]), &zeros(&[8, 4])]);
        assert!(matches!(op("Conv").attr("group", 0_i64).error(&[&x, &w]), OpError::Attribute(_)));
        shape_error(op("Conv"), &[&zeros(&[1, 1, 4, 4, 4]), &zeros(&[1, 1, 2, 5, 2])]);
        assert_eq!(op("Conv").one(&[&zeros(&[0, 4, 5, 5]), &w]).shape(), [0, 8, 3, 3]);
        assert_eq!(op("Conv").one(&[&x, &zeros(&[0, 4, 3, 3])]).shape(), [1, 0, 3, 3]);
    }
}
