//! The gradients of Conv, as products of matrices: of the input by the transpose of gathering columns, of the weights by a product
//! with the columns, of the bias by sums over a channel.

use super::super::columns::{Geometry, scatter, segments};
use super::Conv;
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type, size};
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Product, Scalar, with_scalar};
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

/// The columns of one group of one sample, `[depth, positions]`, into zeros.
fn gather<T: Scalar>(geometry: &Geometry, x: &[T], columns: &mut [T]) {
    let (taps, (from, to)) = (geometry.taps(), geometry.planes());
    columns.fill(T::zero());
    segments(&geometry.axes, 0..to, |s| {
        for (c, x) in x.chunks_exact(from).enumerate() {
            let to = &mut columns[(c * taps + s.tap) * to + s.column..][..s.len];
            if s.stride == 1 {
                to.copy_from_slice(&x[s.element..][..s.len]);
            } else {
                to.iter_mut().zip(x[s.element..].iter().step_by(s.stride)).for_each(|(to, from)| *to = *from);
            }
        }
    });
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
        let (taken, given) = (geometry.c_in * from, c_out * to);
        let isa = ctx.isa;
        let work = |first: usize, y: &mut [T], columns: &mut Vec<T>, scratch: &mut Vec<T>| {
            columns.resize(depth * to, T::zero());
            for (i, y) in y.chunks_exact_mut(taken).enumerate() {
                let unit = first + i;
                let w = &w[unit % geometry.groups * c_out * depth..][..c_out * depth];
                let g = &g[unit * given..][..given];
                let product = Product { m: depth, k: c_out, n: to, left: w, left_transposed: true, right: g, right_transposed: false };
                T::product_here(product, columns, isa, scratch);
                for (y, columns) in y.chunks_exact_mut(from).zip(columns.chunks_exact(geometry.taps() * to)) {
                    scatter(&geometry.axes, 0..to, columns, y, |a, b| a + b);
                }
            }
        };
        let units = geometry.samples * geometry.groups;
        let parts = ctx.threads.parts(geometry.flops()).min(units);
        let per_part = units.div_ceil(parts);
        let items: Vec<_> = y.chunks_mut(per_part * taken).enumerate().collect();
        ctx.threads.for_each(items, |(part, y)| work(part * per_part, y, &mut Vec::new(), &mut Vec::new()));
        Ok(())
    }
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
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, w, (&shape, y.slice()?), ctx))
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = shape_of(inputs, 2).and_then(|x| self.0.sizes(&x, inputs.shape(1)?));
        sizes.map_or(0, |sizes| sizes.flops())
    }
}

/// Samples are added up in as many parts as there are, at most this many, whatever the threads: the bits depend on no split.
const PARTS: usize = 4;

/// Inputs: the gradient of the output, the input, the shape of the weights.
#[derive(Debug)]
struct OfWeights(Conv);

impl OfWeights {
    fn run_typed<T: Scalar>(&self, g: View<'_>, x: View<'_>, y: (&[usize], &mut [T]), ctx: &mut Context<'_>) -> Result<(), OpError> {
        let geometry = self.0.sizes(x.shape(), y.0)?;
        let (g, x, y) = (g.slice::<T>()?, x.slice::<T>()?, y.1);
        if g.is_empty() || x.is_empty() || y.is_empty() {
            y.fill(T::zero());
            return Ok(());
        }
        let per_part = geometry.samples.div_ceil(PARTS);
        let count = geometry.samples.div_ceil(per_part);
        let mut sums = vec![T::zero(); (count - 1) * y.len()];
        let (first, isa) = (y.len(), ctx.isa);
        let mut items: Vec<(usize, &mut [T])> = vec![(0, y)];
        items.extend(sums.chunks_exact_mut(first).enumerate().map(|(i, sum)| (i + 1, sum)));
        let add = |(part, sum): (usize, &mut [T])| {
            let samples = part * per_part..((part + 1) * per_part).min(geometry.samples);
            accumulate(&geometry, samples, (g, x), sum, isa);
        };
        if ctx.threads.parts(geometry.flops()) > 1 { ctx.threads.for_each(items, add) } else { items.into_iter().for_each(add) }
        for sum in sums.chunks_exact(first) {
            y.iter_mut().zip(sum).for_each(|(y, &sum)| *y += sum);
        }
        Ok(())
    }
}

/// `sum = Σ G · columnsᵀ` over some samples.
fn accumulate<T: Scalar>(geometry: &Geometry, samples: std::ops::Range<usize>, (g, x): (&[T], &[T]), sum: &mut [T], isa: Isa) {
    let (depth, c_out, (from, to)) = (geometry.depth(), geometry.c_out, geometry.planes());
    let mut columns = vec![T::zero(); depth * to];
    let mut product = vec![T::zero(); c_out * depth];
    let mut scratch = Vec::new();
    sum.fill(T::zero());
    for sample in samples {
        for (group, sum) in sum.chunks_exact_mut(c_out * depth).enumerate() {
            let unit = sample * geometry.groups + group;
            gather(geometry, &x[unit * geometry.c_in * from..][..geometry.c_in * from], &mut columns);
            let left = &g[unit * c_out * to..][..c_out * to];
            let operands = Product { m: c_out, k: to, n: depth, left, left_transposed: false, right: &columns, right_transposed: true };
            T::product_here(operands, &mut product, isa, &mut scratch);
            sum.iter_mut().zip(&product).for_each(|(sum, &product)| *sum += product);
        }
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
