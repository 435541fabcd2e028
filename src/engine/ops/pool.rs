//! Pooling over any number of spatial dimensions: MaxPool, AveragePool, LpPool, and their global forms.
//!
//! A window's elements are taken in row-major order, whatever the size of the batch. A row of outputs is computed by one pass
//! over it per kernel tap, which is a loop that the compiler vectorises.

pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::require;
use super::number::{Number, with_float};
use super::pool_last::greatest;
use super::scalar::Scalar;
use super::window::{Axis, AxisList, Meeting, Window, output_shape, planes, windows};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::pool::{PoolAxis, max_pool};
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::threads::Threads;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::FLOATS, build }
}

const MAX_TYPES: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::U8];

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { types: MAX_TYPES, ..def("MaxPool", 1..=ANY, max_pool_op) },
    def("AveragePool", 1..=ANY, average_pool),
    def("LpPool", 1..=ANY, lp_pool),
    def("GlobalMaxPool", 1..=ANY, |_| Ok(Box::new(GlobalPool { over: Over::Greatest }))),
    def("GlobalAveragePool", 1..=ANY, |_| Ok(Box::new(GlobalPool { over: Over::Mean }))),
    def("GlobalLpPool", 1..=ANY, |a| Ok(Box::new(GlobalPool { over: Over::Norm(Norm::read(a)?) }))),
    OpDef { domain: "com.microsoft", types: &[DType::I8, DType::U8], ..def("NhwcMaxPool", 1..=ANY, |a| Ok(Box::new(NhwcMaxPool { window: window(a)? }))) },
];

/// The window of a pooling, whose kernel must be given.
fn window(attrs: &Attrs) -> Result<Window, OpError> {
    let window = Window::read(attrs)?.rounding_up(attrs.bool_or("ceil_mode", false)?);
    attrs.required("kernel_shape", window.kernel())?;
    Ok(window)
}

fn max_pool_op(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let column_major = attrs.bool_or("storage_order", false)?;
    Ok(Box::new(MaxPool { window: window(attrs)?, column_major, indices: attrs.outputs.len() > 1 }))
}

fn average_pool(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let include_pad = attrs.bool_or("count_include_pad", false)?;
    Ok(Box::new(SumPool { window: window(attrs)?, sum: Sum::Mean { include_pad } }))
}

fn lp_pool(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(SumPool { window: window(attrs)?, sum: Sum::Norm(Norm::read(attrs)?) }))
}

/// The window's axes over an input of `shape`.
fn axes_over(window: &Window, shape: &[usize]) -> Result<AxisList, OpError> {
    if shape.len() < 3 {
        return Err(OpError::shape(format!("pooling of a tensor of shape {shape:?}; its rank must be 3 or more")));
    }
    window.over(&shape[2..], window.kernel().unwrap_or_default())
}

fn pooled(window: &Window, shape: &[usize]) -> Result<Shape, OpError> {
    let axes = axes_over(window, shape)?;
    Ok(output_shape(shape[0], shape[1], &axes))
}

/// Calls `f` with every row of outputs of a plane: its number, its coordinates, and the input rows that its windows meet.
fn rows(axes: &[Axis], f: impl FnMut(usize, &[usize], &[Meeting])) {
    windows(&axes[..axes.len() - 1], f);
}

/// Calls `f` with every plane of the input and the output's, on as many threads as the work is worth.
fn each_plane<T: Sync, Y: Send>(threads: &Threads, axes: &[Axis], x: &[T], y: &mut [Y], f: impl Fn(&[T], &mut [Y]) + Send + Sync) {
    let (from, to) = planes(axes);
    if y.is_empty() {
        return;
    }
    // Windows over nothing but padding.
    if from == 0 {
        return y.chunks_exact_mut(to).for_each(|y| f(&[], y));
    }
    let taps = axes.iter().fold(1_u64, |taps, axis| taps.saturating_mul(axis.kernel.min(axis.input) as u64));
    let count = y.len() / to;
    let per_part = count.div_ceil(threads.parts(taps.saturating_mul(y.len() as u64)));
    let items = x.chunks(per_part * from).zip(y.chunks_mut(per_part * to));
    threads.for_each(items, |(x, y)| x.chunks_exact(from).zip(y.chunks_exact_mut(to)).for_each(|(x, y)| f(x, y)));
}

/// Elements of the longest row with its padding that pooling takes a copy of; what is longer has more padding than image.
const LINE_MAX: usize = 1 << 20;

/// Elements of a row with the padding that its windows meet, at most.
fn line(columns: &Axis) -> usize {
    let windows = columns.output.saturating_mul(columns.stride).saturating_add(columns.kernel.saturating_mul(columns.dilation));
    windows.max(columns.pad_begin.saturating_add(columns.input))
}

/// The greatest element of each window, and where it is.
#[derive(Debug)]
pub(crate) struct MaxPool {
    pub(crate) window: Window,
    /// Whether the indices count the spatial dimensions with the first one innermost.
    column_major: bool,
    pub(crate) indices: bool,
}

impl MaxPool {
    fn plane<T: Number>(axes: &[Axis], x: &[T], y: &mut [T]) {
        let column = axes[axes.len() - 1];
        y.fill(T::LOWEST);
        rows(axes, |row, _, sources| {
            let row = &mut y[row * column.output..][..column.output];
            for &(_, source) in sources {
                let source = &x[source * column.input..][..column.input];
                column.passes(|_, outputs, first| {
                    let (row, source) = (&mut row[outputs], &source[first..]);
                    let take = |y: &mut T, x: &T| *y = Number::greater(*x, *y);
                    if column.stride == 1 {
                        row.iter_mut().zip(source).for_each(|(y, x)| take(y, x));
                    } else {
                        row.iter_mut().zip(source.iter().step_by(column.stride)).for_each(|(y, x)| take(y, x));
                    }
                });
            }
        });
    }

    /// Two-dimensional windows over f32, planes on as many threads as the work is worth.
    fn flat(threads: &Threads, isa: Isa, [rows, columns]: [&Axis; 2], x: &[f32], y: &mut [f32]) {
        let axis = |a: &Axis| PoolAxis { input: a.input, output: a.output, kernel: a.kernel, stride: a.stride, dilation: a.dilation, pad: a.pad_begin };
        let (from, to) = (rows.input * columns.input, rows.output * columns.output);
        let taps = rows.kernel.saturating_add(columns.kernel) as u64;
        let parts = threads.parts(taps.saturating_mul(y.len() as u64));
        if parts <= 1 || from == 0 || to == 0 {
            return max_pool(isa, axis(rows), axis(columns), x, y);
        }
        let planes = (y.len() / to).div_ceil(parts);
        let items = x.chunks(planes * from).zip(y.chunks_mut(planes * to));
        threads.for_each(items, |(x, y)| max_pool(isa, axis(rows), axis(columns), x, y));
    }

    /// The number of an element of a plane with the first dimension innermost.
    fn column_major(axes: &[Axis], mut element: usize) -> usize {
        let (mut number, mut step) = (0, axes.iter().map(|axis| axis.input).product::<usize>());
        for axis in axes.iter().rev() {
            // Without elements, the number is 0.
            let size = axis.input.max(1);
            step /= size;
            number += element % size * step;
            element /= size;
        }
        number
    }

    fn with_indices<T: Number>(&self, axes: &[Axis], x: &[T], outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let (from, to) = planes(axes);
        let y = outputs.at(0)?.slice::<T>()?;
        let mut best = Vec::with_capacity(y.len());
        for plane in 0..y.len().checked_div(to).unwrap_or(0) {
            let x = &x[plane * from..][..from];
            windows(axes, |_, _, list| {
                let greatest = list.iter().map(|&(_, e)| e).reduce(|b, e| if !x[b].nan() && (x[e] > x[b] || x[e].nan()) { e } else { b });
                best.push((plane, greatest));
            });
        }
        for (y, &(plane, element)) in y.iter_mut().zip(&best) {
            *y = element.map_or(T::LOWEST, |e| x[plane * from + e]);
        }
        let Some(indices) = outputs.get(1) else { return Ok(()) };
        for (index, &(plane, element)) in indices.slice::<i64>()?.iter_mut().zip(&best) {
            let element = element.unwrap_or(0);
            let within = if self.column_major { Self::column_major(axes, element) } else { element };
            *index = (plane * from + within) as i64;
        }
        Ok(())
    }
}

impl Op for MaxPool {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![inputs[0].clone().expect("it is required"), Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let output = pooled(&self.window, inputs.shape(0)?)?;
        Ok(vec![output.clone(), output])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axes = axes_over(&self.window, x.shape())?;
        if let ([rows, columns], DType::F32, false) = (&axes[..], x.dtype(), self.indices)
            && line(columns) <= LINE_MAX
        {
            Self::flat(ctx.threads, ctx.isa, [rows, columns], x.slice()?, outputs.at(0)?.slice()?);
            return Ok(());
        }
        with_number!(x.dtype(), T => {
            if self.indices {
                return self.with_indices::<T>(&axes, x.slice()?, outputs);
            }
            each_plane(ctx.threads, &axes, x.slice::<T>()?, outputs.at(0)?.slice::<T>()?, |x, y| Self::plane(&axes, x, y));
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        !self.indices
    }
}

/// MaxPool with the channels behind the spatial dimensions.
#[derive(Debug)]
struct NhwcMaxPool {
    window: Window,
}

impl NhwcMaxPool {
    fn axes(&self, shape: &[usize]) -> Result<(AxisList, usize), OpError> {
        match shape {
            [_, spatial @ .., channels] if !spatial.is_empty() => {
                Ok((self.window.over(spatial, self.window.kernel().unwrap_or_default())?, *channels))
            }
            _ => Err(OpError::shape(format!("pooling of a tensor of shape {shape:?}; its rank must be 3 or more"))),
        }
    }
}

impl Op for NhwcMaxPool {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let (axes, channels) = self.axes(shape)?;
        Ok(vec![[shape[0]].into_iter().chain(axes.iter().map(|axis| axis.output)).chain([channels]).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (axes, channels) = self.axes(x.shape())?;
        let (from, to) = planes(&axes);
        if let [_, _] = axes[..] {
            let y = outputs.at(0)?;
            match x.dtype() {
                DType::U8 => greatest(&axes, channels, x.slice::<u8>()?, y.slice()?, ctx),
                _ => greatest(&axes, channels, x.slice::<i8>()?, y.slice()?, ctx),
            }
            return Ok(());
        }
        with_number!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, outputs.at(0)?.slice::<T>()?);
            y.fill(T::LOWEST);
            if x.is_empty() || y.is_empty() {
                return Ok(());
            }
            for (x, y) in x.chunks_exact(from * channels).zip(y.chunks_exact_mut(to * channels)) {
                windows(&axes, |position, _, list| {
                    let y = &mut y[position * channels..][..channels];
                    for &(_, element) in list {
                        let x = &x[element * channels..][..channels];
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = Number::greater(*x, *y));
                    }
                });
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::I8, x.dtype())))
    }
}

/// The order of an Lp norm.
#[derive(Clone, Copy, Debug)]
struct Norm {
    p: f64,
}

impl Norm {
    /// Reads `p`, a float in opset 1 and an integer since.
    fn read(attrs: &Attrs) -> Result<Self, OpError> {
        let p = if attrs.opset < 2 { f64::from(attrs.float_or("p", 2.0)?) } else { attrs.int_or("p", 2)? as f64 };
        if p > 0.0 { Ok(Self { p }) } else { Err(OpError::Attribute(format!("attribute `p` is {p}"))) }
    }

    fn power(self, x: f64) -> f64 {
        match self.p {
            1.0 => x.abs(),
            2.0 => x * x,
            p => x.abs().powf(p),
        }
    }

    fn root(self, sum: f64) -> f64 {
        match self.p {
            1.0 => sum,
            2.0 => sum.sqrt(),
            p => sum.powf(1.0 / p),
        }
    }
}

/// What is made of a window by adding up its elements.
#[derive(Clone, Copy, Debug)]
enum Sum {
    /// The mean; padding counts as zeros or not at all.
    Mean { include_pad: bool },
    /// The norm of order p; padding is zero.
    Norm(Norm),
}

/// AveragePool and LpPool.
#[derive(Debug)]
struct SumPool {
    window: Window,
    sum: Sum,
}

impl SumPool {
    /// Sums in f64 cost little and round once.
    fn plane<T: Number>(&self, axes: &[Axis], x: &[T], y: &mut [T]) {
        f64::with_lists(|[sums, counts, _]| self.plane_with(axes, x, y, (sums, counts)));
    }

    fn plane_with<T: Number>(&self, axes: &[Axis], x: &[T], y: &mut [T], (sums, counts): (&mut Vec<f64>, &mut Vec<f64>)) {
        let column = axes[axes.len() - 1];
        sums.resize(column.output, 0.0);
        // How many taps count along the last axis.
        counts.clear();
        match self.sum {
            Sum::Mean { include_pad: true } => counts.extend((0..column.output).map(|at| column.covered(at) as f64)),
            Sum::Mean { include_pad: false } => counts.extend((0..column.output).map(|at| column.taps(at).count() as f64)),
            Sum::Norm(_) => {}
        }
        rows(axes, |row, at, sources| {
            sums.fill(0.0);
            for &(_, source) in sources {
                let source = &x[source * column.input..][..column.input];
                column.passes(|_, outputs, first| {
                    let pairs = sums[outputs].iter_mut().zip(source[first..].iter().step_by(column.stride));
                    match self.sum {
                        Sum::Mean { .. } => pairs.for_each(|(sum, x)| *sum += x.to_f64()),
                        Sum::Norm(norm) => pairs.for_each(|(sum, x)| *sum += norm.power(x.to_f64())),
                    }
                });
            }
            let y = y[row * column.output..][..column.output].iter_mut().zip(&*sums);
            match self.sum {
                Sum::Norm(norm) => y.for_each(|(y, sum)| *y = T::from_f64(norm.root(*sum))),
                Sum::Mean { include_pad } => {
                    let covered = || axes.iter().zip(at).map(|(axis, &at)| axis.covered(at) as f64).product();
                    let outer = if include_pad { covered() } else { sources.len() as f64 };
                    y.zip(&*counts).for_each(|((y, sum), count)| *y = T::from_f64(sum / (outer * count)));
                }
            }
        });
    }
}

impl Op for SumPool {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![pooled(&self.window, inputs.shape(0)?)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axes = axes_over(&self.window, x.shape())?;
        with_float!(x.dtype(), T => {
            each_plane(ctx.threads, &axes, x.slice::<T>()?, outputs.at(0)?.slice::<T>()?, |x, y| self.plane(&axes, x, y));
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}

#[derive(Clone, Copy, Debug)]
enum Over {
    Greatest,
    Mean,
    Norm(Norm),
}

/// One number per channel.
#[derive(Debug)]
pub(crate) struct GlobalPool {
    over: Over,
}

impl GlobalPool {
    /// Whether the number is the mean.
    pub(crate) fn is_mean(&self) -> bool {
        matches!(self.over, Over::Mean)
    }

    fn run_wide<T: Number>(&self, x: View<'_>, size: usize, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let x = x.slice::<T>()?;
        for (i, y) in y.slice::<T>()?.iter_mut().enumerate() {
            let plane = x[i * size..(i + 1) * size].iter().map(|v| v.to_f64());
            *y = T::from_f64(match self.over {
                Over::Greatest => plane.fold(f64::NEG_INFINITY, Number::greater),
                Over::Mean => plane.sum::<f64>() / size as f64,
                Over::Norm(norm) => norm.root(plane.map(|x| norm.power(x)).sum()),
            });
        }
        Ok(())
    }
}

impl Op for GlobalPool {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        if shape.len() < 2 {
            return Err(OpError::shape(format!("pooling of a tensor of shape {shape:?}")));
        }
        Ok(vec![shape[..2].iter().copied().chain(shape[2..].iter().map(|_| 1)).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let size: usize = x.shape()[2..].iter().product();
        let reduce: Option<fn(Isa, &[f32]) -> f32> = match self.over {
            Over::Greatest => Some(vector::max),
            Over::Mean => Some(|isa, plane| vector::sum(isa, plane) / plane.len() as f32),
            Over::Norm(_) => None,
        };
        if let (DType::F32, Some(reduce)) = (x.dtype(), reduce) {
            let x = x.slice::<f32>()?;
            for (i, y) in y.slice::<f32>()?.iter_mut().enumerate() {
                *y = reduce(ctx.isa, &x[i * size..(i + 1) * size]);
            }
            return Ok(());
        }
        with_float!(x.dtype(), T => self.run_wide::<T>(x, size, y), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }

    fn row_wise(&self, _: &Facts<'_>) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    fn pool(name: &'static str, kernel: &[i64]) -> Case {
        op(name).attr("kernel_shape", kernel)
    }

    fn counted(shape: &[usize]) -> Tensor {
        tensor(shape, &(1..=shape.iter().product::<usize>()).map(|v| v as f32).collect::<Vec<_>>())
    }

    #[test]
    fn max_pool_by_hand() {
        let x = counted(&[1, 1, 4, 4]);
        let case = pool("MaxPool", &[2, 2]).attr("strides", &[2_i64, 2][..]);
        assert_close(&case.one(&[&x]), &[1, 1, 2, 2], &[6.0, 8.0, 14.0, 16.0], 0.0);
        let padded = pool("MaxPool", &[3, 3]).attr("strides", &[2_i64, 2][..]).attr("pads", &[1_i64, 1, 1, 1][..]);
        assert_close(&padded.one(&[&x]), &[1, 1, 2, 2], &[6.0, 8.0, 14.0, 16.0], 0.0);
        let dilated = pool("MaxPool", &[2, 2]).attr("dilations", &[2_i64, 2][..]);
        assert_close(&dilated.one(&[&x]), &[1, 1, 2, 2], &[11.0, 12.0, 15.0, 16.0], 0.0);
        let ints = tensor(&[1, 1, 3], &[-5_i8, -7, -6]);
        assert_eq!(pool("MaxPool", &[2]).one(&[&ints]), tensor(&[1, 1, 2], &[-5_i8, -6]));
    }

    #[test]
    fn the_fast_path_agrees_with_the_plain_one() {
        for (kernel, stride, pad, dilation, ceil) in [(2, 2, 0, 1, 0), (2, 2, 1, 1, 0), (3, 2, 1, 1, 1), (3, 1, 2, 2, 0), (5, 3, 2, 1, 1), (1, 2, 0, 1, 0)] {
            let (height, width) = if (kernel, stride) == (2, 2) { (12, 10) } else { (13, 11) };
            let x = tensor(&[2, 3, height, width], &noise(6 * height * width, 5));
            let case = |outputs| {
                pool("MaxPool", &[kernel, kernel])
                    .attr("strides", &[stride, stride][..])
                    .attr("pads", &[pad; 4][..])
                    .attr("dilations", &[dilation, dilation][..])
                    .attr("ceil_mode", ceil)
                    .outputs(outputs)
            };
            let plain = case(2).run(&[&x]).unwrap();
            assert_eq!(case(1).one(&[&x]), plain[0]);
            let (values, source) = (plain[0].slice::<f32>().unwrap(), x.slice::<f32>().unwrap());
            for (value, &index) in values.iter().zip(plain[1].slice::<i64>().unwrap()) {
                assert_eq!(*value, source[index as usize]);
            }
        }
    }

    #[test]
    fn indices_may_count_by_columns() {
        let case = pool("MaxPool", &[2, 2]).attr("strides", &[2_i64, 2][..]).attr("storage_order", 1_i64).outputs(2);
        let found = case.run(&[&counted(&[1, 1, 4, 4])]).unwrap();
        assert_eq!(found[1], tensor(&[1, 1, 2, 2], &[5_i64, 13, 7, 15]));
    }

    #[test]
    fn nan_wins_a_maximum() {
        let x = tensor(&[1, 1, 4], &[1.0_f32, f32::NAN, 3.0, 2.0]);
        assert_close(&pool("MaxPool", &[2]).one(&[&x]), &[1, 1, 3], &[f32::NAN, f32::NAN, 3.0], 0.0);
        let square = tensor(&[1, 4, 2, 2], &[f32::NAN, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, f32::NAN]);
        let halved = pool("MaxPool", &[2, 2]).attr("strides", &[2_i64, 2][..]).one(&[&square]);
        assert_close(&halved, &[1, 4, 1, 1], &[f32::NAN; 4], 0.0);
    }

    #[test]
    fn averages_count_padding_or_not() {
        let x = counted(&[1, 1, 2, 2]);
        let case = || pool("AveragePool", &[3, 3]).attr("pads", &[1_i64, 1, 1, 1][..]);
        assert_close(&case().one(&[&x]), &[1, 1, 2, 2], &[2.5; 4], 0.0);
        assert_close(&case().attr("count_include_pad", 1_i64).one(&[&x]), &[1, 1, 2, 2], &[10.0 / 9.0; 4], 1e-6);
        // Windows that rounding up adds end with the padding.
        let long = tensor(&[1, 1, 3], &[1.0_f32, 2.0, 3.0]);
        let ceil = pool("AveragePool", &[2]).attr("strides", &[2_i64][..]).attr("ceil_mode", 1_i64).attr("count_include_pad", 1_i64);
        assert_close(&ceil.one(&[&long]), &[1, 1, 2], &[1.5, 3.0], 0.0);
        let half = tensor(&[1, 1, 2], &[f16::ONE, f16::ZERO]);
        assert_eq!(pool("AveragePool", &[2]).one(&[&half]), tensor(&[1, 1, 1], &[f16::from_f32(0.5)]));
    }

    #[test]
    fn norms_of_windows() {
        let x = tensor(&[1, 1, 3], &[3.0_f32, -4.0, 0.0]);
        assert_close(&pool("LpPool", &[2]).one(&[&x]), &[1, 1, 2], &[5.0, 4.0], 0.0);
        assert_close(&pool("LpPool", &[2]).attr("p", 1_i64).one(&[&x]), &[1, 1, 2], &[7.0, 4.0], 0.0);
        assert_close(&pool("LpPool", &[2]).attr("p", 3_i64).attr("pads", &[1_i64, 0][..]).one(&[&x]), &[1, 1, 3], &[3.0, 91.0_f32.cbrt(), 4.0], 1e-6);
        assert_close(&pool("LpPool", &[3]).opset(1).attr("p", 0.5_f32).one(&[&x]), &[1, 1, 1], &[(3.0_f32.sqrt() + 2.0).powi(2)], 1e-6);
        assert_close(&op("GlobalLpPool").one(&[&x]), &[1, 1, 1], &[5.0], 0.0);
        assert_close(&op("GlobalLpPool").opset(1).attr("p", 1.0_f32).one(&[&x]), &[1, 1, 1], &[7.0], 0.0);
    }

    fn nhwc(kernel: &[i64]) -> Case {
        op("NhwcMaxPool").domain("com.microsoft").attr("kernel_shape", kernel)
    }

    #[test]
    fn channels_may_come_last() {
        let x = tensor(&[1, 3, 2], &[1_i8, -1, -5, -3, 4, -2]);
        assert_eq!(nhwc(&[2]).one(&[&x]), tensor(&[1, 2, 2], &[1_i8, -1, 4, -2]));
        assert_eq!(nhwc(&[2]).attr("pads", &[1_i64, 0][..]).attr("strides", &[2_i64][..]).one(&[&x]), tensor(&[1, 2, 2], &[1_i8, -1, 4, -2]));
    }

    #[test]
    fn four_dimensions_and_large_planes() {
        let x = counted(&[1, 1, 2, 2, 2, 2]);
        assert_close(&pool("MaxPool", &[2, 2, 2, 2]).one(&[&x]), &[1, 1, 1, 1, 1, 1], &[16.0], 0.0);
        let (values, indices) = (pool("MaxPool", &[1, 2, 1, 2]).one(&[&x]), pool("MaxPool", &[1, 2, 1, 2]).attr("storage_order", 1_i64).outputs(2).run(&[&x]).unwrap().remove(1));
        assert_close(&values, &[1, 1, 2, 1, 2, 1], &[6.0, 8.0, 14.0, 16.0], 0.0);
        assert_eq!(indices.slice::<i64>().unwrap(), [10, 14, 11, 15]);
        // The harness compares with two threads.
        let large = tensor(&[2, 8, 90, 90], &noise(129_600, 3));
        pool("AveragePool", &[5, 5]).one(&[&large]);
        pool("MaxPool", &[5, 5]).one(&[&large]);
    }

    #[test]
    fn three_dimensions_and_global_forms() {
        let x = counted(&[1, 2, 2, 2, 2]);
        assert_close(&pool("MaxPool", &[2, 2, 2]).one(&[&x]), &[1, 2, 1, 1, 1], &[8.0, 16.0], 0.0);
        assert_close(&pool("AveragePool", &[2, 2, 2]).one(&[&x]), &[1, 2, 1, 1, 1], &[4.5, 12.5], 0.0);
        assert_close(&op("GlobalMaxPool").one(&[&x]), &[1, 2, 1, 1, 1], &[8.0, 16.0], 0.0);
        assert_close(&op("GlobalAveragePool").one(&[&x]), &[1, 2, 1, 1, 1], &[4.5, 12.5], 0.0);
        let wide = tensor(&[1, 1, 2], &[1.0_f64, 2.0]);
        assert_eq!(op("GlobalAveragePool").one(&[&wide]), tensor(&[1, 1, 1], &[1.5_f64]));
    }

    #[test]
    fn sizes_of_zero_and_what_does_not_fit() {
        let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
        assert_eq!(pool("MaxPool", &[2]).one(&[&zeros(&[0, 1, 4])]).shape(), [0, 1, 3]);
        assert_eq!(op("GlobalAveragePool").one(&[&zeros(&[0, 3, 2])]).shape(), [0, 3, 1]);
        // Windows over nothing but padding.
        let padded = |name| pool(name, &[1]).attr("pads", &[1_i64, 1][..]);
        for outputs in [1, 2] {
            let found = padded("MaxPool").outputs(outputs).run(&[&zeros(&[1, 1, 0])]).unwrap();
            assert_close(&found[0], &[1, 1, 2], &[f32::NEG_INFINITY; 2], 0.0);
        }
        assert_close(&padded("AveragePool").one(&[&zeros(&[1, 1, 0])]), &[1, 1, 2], &[f32::NAN; 2], 0.0);
        assert_close(&padded("LpPool").one(&[&zeros(&[1, 1, 0])]), &[1, 1, 2], &[0.0; 2], 0.0);
        assert!(matches!(op("MaxPool").error(&[&zeros(&[1, 1, 4])]), OpError::Attribute(_)));
        assert!(matches!(pool("MaxPool", &[5]).error(&[&zeros(&[1, 1, 4])]), OpError::Shape(_)));
        assert!(matches!(pool("AveragePool", &[2]).error(&[&zeros(&[1, 1, 4, 4])]), OpError::Shape(_)));
        assert!(matches!(pool("MaxPool", &[2]).error(&[&zeros(&[4])]), OpError::Shape(_)));
        assert!(matches!(pool("LpPool", &[2]).attr("p", 0_i64).error(&[&zeros(&[1, 1, 4])]), OpError::Attribute(_)));
        assert!(matches!(nhwc(&[2]).error(&[&tensor(&[1, 2], &[1_i8, 2])]), OpError::Shape(_)));
        // A kernel much larger than its input, padded as much: only what is there is visited.
        let vast = pool("AveragePool", &[1 << 31]).attr("pads", &[1_i64 << 30, 1 << 30][..]).attr("count_include_pad", 1_i64);
        assert_close(&vast.one(&[&tensor(&[1, 1, 1], &[1.0_f32])]), &[1, 1, 2], &[0.5_f32.powi(31); 2], 0.0);
        assert!(matches!(op("GlobalMaxPool").error(&[&zeros(&[4])]), OpError::Shape(_)));
        assert!(matches!(pool("AveragePool", &[2]).error(&[&tensor(&[1, 1, 2], &[1_i64, 2])]), OpError::Type(_)));
        assert!(pool("MaxPool", &[2]).error(&[&Tensor::scalar(1.0_f32)]) != OpError::Unknown);
    }
}
