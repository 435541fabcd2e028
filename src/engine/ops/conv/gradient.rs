//! The gradients of Conv: of the input a convolution with the weights turned round, or, with strides, the transpose of gathering
//! columns; of the weights a product with the columns; of the bias sums over a channel.

use std::ops::Range;

use super::super::columns::{Geometry, segments};
use super::{Conv, PADDED_ELEMENTS, flat, packed_now, run_packed};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::dtype::DType;
use crate::engine::kernels::conv::weights_gradient::{Part, weights_gradient};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type, size};
use crate::engine::ops::own;
use crate::engine::ops::product::transpose_into;
use crate::engine::ops::residual::End;
use crate::engine::ops::scalar::{Product, Scalar, with_scalar};
use crate::engine::ops::window::Axis;
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] = &[Rule::new("Conv", conv)];

static INPUT: OpDef = own("ConvGradientInput");
static WEIGHTS: OpDef = own("ConvGradientWeights");
static BIAS: OpDef = own("SumPerChannel");

fn conv(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let conv = concrete::<Conv>(op)?;
    if conv.activation != Activation::None {
        return Err(OpError::unsupported("a fused activation has no gradient: differentiate the graph before it is optimised"));
    }
    let (g, x, w) = (at.g()?, at.x(0)?, at.x(1)?);
    at.each(|i| match i {
        0 => {
            let shape = emit.shape(x)?;
            emit.one(&INPUT, OfInput(conv.clone()), &[g, w, shape])
        }
        1 => {
            let shape = emit.shape(w)?;
            emit.one(&WEIGHTS, OfWeights(conv.clone()), &[g, x, shape])
        }
        _ => emit.one(&BIAS, PerChannel, &[g]),
    })
}

/// A shape that is an operand.
fn shape_of(inputs: &Facts<'_>, index: usize) -> Result<Shape, OpError> {
    inputs.ints(index)?.into_iter().map(size).collect()
}

fn check(geometry: &Geometry, g: &[usize]) -> Result<(), OpError> {
    if g.iter().product::<usize>() == geometry.output_len() {
        return Ok(());
    }
    Err(OpError::shape(format!("a gradient of shape {g:?} does not fit the convolution")))
}

/// Output positions that share a product: the samples of small images stand side by side, so that what does not depend on them is
/// packed once for many columns.
const POSITIONS: usize = 512;

/// Elements of columns that a thread gathers before it multiplies them: 1 MiB of f32.
const GATHERED: usize = 1 << 18;

/// Input channels from which on a thread is given some of them: half a panel.
const CHANNELS_PER_PART: usize = 16;

/// The samples that share a product.
fn together(geometry: &Geometry) -> usize {
    POSITIONS.div_ceil(geometry.planes().1.max(1)).clamp(1, geometry.samples.max(1))
}

/// The gradients of one group of some samples side by side, `[c_out, samples * positions]`.
fn side_by_side<'a, T: Scalar>(geometry: &Geometry, g: &'a [T], group: usize, samples: &Range<usize>, store: &'a mut Vec<T>) -> &'a [T] {
    let (c_out, (_, to)) = (geometry.c_out, geometry.planes());
    let start = |sample: usize| (sample * geometry.groups + group) * c_out * to;
    if samples.len() == 1 {
        return &g[start(samples.start)..][..c_out * to];
    }
    store.clear();
    for channel in 0..c_out {
        for sample in samples.clone() {
            store.extend_from_slice(&g[start(sample) + channel * to..][..to]);
        }
    }
    store
}

/// Inputs: the gradient of the output, the weights, the shape of the input.
#[derive(Debug)]
struct OfInput(Conv);

impl OfInput {
    fn run_typed<T: Scalar>(&self, g: View<'_>, w: View<'_>, y: (&[usize], &mut [T]), ctx: &mut Context<'_>) -> Result<(), OpError> {
        let geometry = self.0.sizes(y.0, w.shape())?;
        let (g, w, y) = (g.slice::<T>()?, w.slice::<T>()?, y.1);
        y.fill(T::zero());
        if g.is_empty() || y.is_empty() {
            return Ok(());
        }
        let (depth, c_out, (from, to)) = (geometry.depth(), geometry.c_out, geometry.planes());
        let (taken, isa) = (geometry.groups * geometry.c_in * from, ctx.isa);
        let samples_of_part = geometry.samples.div_ceil(ctx.threads.parts(geometry.flops()).min(geometry.samples));
        let work = |part: usize, y: &mut [T], [columns, given, scratch]: &mut [Vec<T>; 3]| {
            for (block, y) in y.chunks_mut(together(&geometry) * taken).enumerate() {
                let first = part * samples_of_part + block * together(&geometry);
                let samples = first..first + y.len() / taken;
                let n = samples.len() * to;
                columns.resize(depth * n, T::zero());
                for group in 0..geometry.groups {
                    let left = &w[group * c_out * depth..][..c_out * depth];
                    let right = side_by_side(&geometry, g, group, &samples, given);
                    let product = Product { m: depth, k: c_out, n, left, left_transposed: true, right, right_transposed: false };
                    T::product_here(product, &mut columns[..depth * n], isa, scratch);
                    give(&geometry, group, columns, y);
                }
            }
        };
        let items = y.chunks_mut(samples_of_part * taken).enumerate();
        ctx.threads.for_each(items, |(part, y)| T::with_lists(|lists| work(part, y, lists)));
        Ok(())
    }

    /// The same as a convolution of the gradient with the weights turned round, where neighbouring positions meet neighbouring elements.
    /// `None` where they do not, or the kernel cannot.
    fn as_convolution(&self, g: View<'_>, w: View<'_>, y: (&[usize], &mut [f32]), ctx: &mut Context<'_>) -> Result<Option<()>, OpError> {
        let geometry = self.0.sizes(y.0, w.shape())?;
        let (g, w) = (g.slice::<f32>()?, w.slice::<f32>()?);
        let Some((shape, Some(padded))) = turned(&geometry).as_ref().and_then(flat) else { return Ok(None) };
        if padded > PADDED_ELEMENTS || g.is_empty() || y.1.is_empty() || w.is_empty() {
            return Ok(None);
        }
        let (taps, c_in, c_out) = (geometry.taps(), geometry.c_in, geometry.c_out);
        let around = |channel: usize| {
            let (group, channel) = (channel / c_in, channel % c_in);
            (0..c_out).flat_map(move |out| w[((group * c_out + out) * c_in + channel) * taps..][..taps].iter().rev().copied())
        };
        let packed = packed_now(&shape, around, ctx);
        run_packed(&shape, &packed, g, None, End { adds: false, activation: Activation::None }, y.1, ctx);
        ctx.scratch.give(packed.into_memory());
        Ok(Some(()))
    }
}

/// The convolution from the gradient of the output to that of the input, if the strides are 1 and no padding is wider than the kernel
/// reaches.
fn turned(geometry: &Geometry) -> Option<Geometry> {
    let turn = |axis: &Axis| {
        let reach = axis.dilation * (axis.kernel - 1);
        (axis.stride == 1).then_some(())?;
        Some(Axis {
            input: axis.output,
            output: axis.input,
            pad_begin: reach.checked_sub(axis.pad_begin)?,
            pad_end: reach.checked_sub(axis.pad_end)?,
            ..*axis
        })
    };
    let axes = geometry.axes.iter().map(turn).collect::<Option<_>>()?;
    Some(Geometry { c_in: geometry.c_out, c_out: geometry.c_in, axes, ..*geometry })
}

/// Adds the columns of one group of some samples, `[depth, samples * positions]`, to the elements of their inputs that the taps meet.
fn give<T: Scalar>(geometry: &Geometry, group: usize, columns: &[T], y: &mut [T]) {
    let (taps, (from, to)) = (geometry.taps(), geometry.planes());
    let channels = geometry.groups * geometry.c_in;
    let samples = y.len() / (channels * from);
    let row = samples * to;
    segments(&geometry.axes, 0..to, |s| {
        for c in 0..geometry.c_in {
            for sample in 0..samples {
                let columns = &columns[(c * taps + s.tap) * row + sample * to + s.column..][..s.len];
                let y = &mut y[(sample * channels + group * geometry.c_in + c) * from + s.element..];
                if s.stride == 1 {
                    y.iter_mut().zip(columns).for_each(|(y, &v)| *y += v);
                } else {
                    y.iter_mut().step_by(s.stride).zip(columns).for_each(|(y, &v)| *y += v);
                }
            }
        }
    });
}

impl Op for OfInput {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = shape_of(inputs, 2)?;
        check(&self.0.sizes(&x, inputs.shape(1)?)?, inputs.shape(0)?)?;
        Ok(vec![x])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, w, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let shape = Shape::from(y.shape());
        if g.dtype() == DType::F32 && self.as_convolution(g, w, (&shape, y.slice()?), ctx)?.is_some() {
            return Ok(());
        }
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, w, (&shape, y.slice()?), ctx))
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = shape_of(inputs, 2).and_then(|x| self.0.sizes(&x, inputs.shape(1)?));
        sizes.map_or(0, |sizes| sizes.flops())
    }
}

/// Inputs: the gradient of the output, the input, the shape of the weights.
#[derive(Debug)]
struct OfWeights(Conv);

impl OfWeights {
    /// In one or two dimensions, by a kernel of its own. `None` where the kernel cannot.
    fn flat(&self, g: View<'_>, x: View<'_>, y: (&[usize], &mut [f32]), ctx: &mut Context<'_>) -> Result<Option<()>, OpError> {
        let geometry = self.0.sizes(x.shape(), y.0)?;
        let (g, x, y) = (g.slice::<f32>()?, x.slice::<f32>()?, y.1);
        let Some((shape, Some(_))) = flat(&geometry) else { return Ok(None) };
        if g.is_empty() || x.is_empty() || y.is_empty() {
            return Ok(None);
        }
        let (c_in, c_out, taps) = (geometry.c_in, geometry.c_out, geometry.taps());
        let pieces = ctx.threads.parts(geometry.flops()).div_ceil(geometry.groups);
        // Who gets input channels shares no pixels, but what there is to read of the gradient; few of them fill no panel.
        let (inputs, outputs) =
            if c_in >= CHANNELS_PER_PART * pieces { (c_in.div_ceil(pieces), c_out) } else { (c_in, c_out.div_ceil(pieces)) };
        let parts = || {
            let inputs = move || (0..c_in).step_by(inputs).map(move |first| first..c_in.min(first + inputs));
            let outputs = move || (0..c_out).step_by(outputs).map(move |first| first..c_out.min(first + outputs));
            (0..geometry.groups).flat_map(move |group| {
                inputs().flat_map(move |inputs| outputs().map(move |outputs| Part { group, inputs: inputs.clone(), outputs }))
            })
        };
        ctx.scratch.f32.resize(ctx.scratch.f32.len().max(y.len()), 0.0);
        let sums = &mut ctx.scratch.f32[..y.len()];
        let isa = ctx.isa;
        let mut rest = &mut *sums;
        let items = parts().map(|part| {
            let (sums, left) = std::mem::take(&mut rest).split_at_mut(part.inputs.len() * part.outputs.len() * taps);
            rest = left;
            (part, sums)
        });
        let work = |(part, sums): (Part, &mut [f32])| weights_gradient(&shape, isa, g, x, &part, sums);
        if pieces * geometry.groups > 1 { ctx.threads.for_each(items, work) } else { items.for_each(work) }
        let mut sums = &*sums;
        for part in parts() {
            for output in part.outputs.clone() {
                let (from, left) = sums.split_at(taps * part.inputs.len());
                sums = left;
                let to = &mut y[((part.group * c_out + output) * c_in + part.inputs.start) * taps..];
                transpose_into(from, taps, part.inputs.len(), &mut to[..from.len()]);
            }
        }
        Ok(Some(()))
    }

    /// In any number of dimensions, and f64: a product with gathered columns.
    fn run_typed<T: Scalar>(&self, g: View<'_>, x: View<'_>, y: (&[usize], &mut [T]), ctx: &mut Context<'_>) -> Result<(), OpError> {
        let geometry = self.0.sizes(x.shape(), y.0)?;
        let (g, x, y) = (g.slice::<T>()?, x.slice::<T>()?, y.1);
        if g.is_empty() || x.is_empty() || y.is_empty() {
            y.fill(T::zero());
            return Ok(());
        }
        let (taps, depth, c_out, (_, to)) = (geometry.taps(), geometry.depth(), geometry.c_out, geometry.planes());
        // A row for each input channel and tap: threads get channels, whose columns nobody else gathers.
        let mut sums = vec![T::zero(); y.len()];
        let channels = geometry.c_in.div_ceil(ctx.threads.parts(geometry.flops()).div_ceil(geometry.groups));
        let channels = channels.min(GATHERED / (taps * together(&geometry) * to)).max(1);
        let mut items = Vec::new();
        for (group, sums) in sums.chunks_exact_mut(depth * c_out).enumerate() {
            items.extend(sums.chunks_mut(channels * taps * c_out).enumerate().map(|(part, sums)| (group, part * channels, sums)));
        }
        let isa = ctx.isa;
        ctx.threads.for_each(items, |(group, first, sums)| accumulate(&geometry, (group, first), (g, x), sums, isa));
        for (sums, y) in sums.chunks_exact(depth * c_out).zip(y.chunks_exact_mut(depth * c_out)) {
            transpose_into(sums, depth, c_out, y);
        }
        Ok(())
    }
}

/// `sums = columns · Gᵀ` over all samples, `[channels * taps, c_out]`: some channels of a group, from `first` on.
fn accumulate<T: Scalar>(geometry: &Geometry, (group, first): (usize, usize), (g, x): (&[T], &[T]), sums: &mut [T], isa: Isa) {
    let (taps, c_out, (from, to)) = (geometry.taps(), geometry.c_out, geometry.planes());
    let (rows, block) = (sums.len() / c_out, together(geometry));
    let (mut columns, mut given, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    let mut product = vec![T::zero(); sums.len()];
    for start in (0..geometry.samples).step_by(block) {
        let samples = start..geometry.samples.min(start + block);
        let k = samples.len() * to;
        // What is padding is so in every block.
        if columns.len() != rows * k {
            columns.clear();
            columns.resize(rows * k, T::zero());
        }
        segments(&geometry.axes, 0..to, |s| {
            for channel in 0..rows / taps {
                for sample in samples.clone() {
                    let x = &x[((sample * geometry.groups + group) * geometry.c_in + first + channel) * from + s.element..];
                    let to = &mut columns[(channel * taps + s.tap) * k + (sample - start) * to + s.column..][..s.len];
                    if s.stride == 1 {
                        to.copy_from_slice(&x[..s.len]);
                    } else {
                        to.iter_mut().zip(x.iter().step_by(s.stride)).for_each(|(to, from)| *to = *from);
                    }
                }
            }
        });
        let right = side_by_side(geometry, g, group, &samples, &mut given);
        let operands = Product { m: rows, k, n: c_out, left: &columns, left_transposed: false, right, right_transposed: true };
        if start == 0 {
            T::product_here(operands, sums, isa, &mut scratch);
            continue;
        }
        T::product_here(operands, &mut product, isa, &mut scratch);
        sums.iter_mut().zip(&product).for_each(|(sum, &product)| *sum += product);
    }
}

impl Op for OfWeights {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let w = shape_of(inputs, 2)?;
        check(&self.0.sizes(inputs.shape(1)?, &w)?, inputs.shape(0)?)?;
        Ok(vec![w])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, x, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let shape = Shape::from(y.shape());
        if g.dtype() == DType::F32 && self.flat(g, x, (&shape, y.slice()?), ctx)?.is_some() {
            return Ok(());
        }
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, x, (&shape, y.slice()?), ctx))
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = shape_of(inputs, 2).and_then(|w| self.0.sizes(inputs.shape(1)?, &w));
        sizes.map_or(0, |sizes| sizes.flops())
    }
}

/// The sum over everything but dimension 1.
#[derive(Debug)]
struct PerChannel;

impl Op for PerChannel {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        match inputs.shape(0)? {
            [_, channels, ..] => Ok(vec![Shape::from_iter([*channels])]),
            other => Err(OpError::shape(format!("{other:?} has no channels"))),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, y) = (inputs.at(0)?, outputs.at(0)?);
        let (channels, plane) = (g.shape()[1], g.shape()[2..].iter().product::<usize>());
        with_scalar!(g.dtype(), T => {
            let (g, y) = (g.slice::<T>()?, y.slice::<T>()?);
            y.fill(num_traits::Zero::zero());
            for (i, g) in g.chunks_exact(plane.max(1)).enumerate() {
                y[i % channels] += T::total(ctx.isa, g);
            }
            Ok(())
        })
    }
}
