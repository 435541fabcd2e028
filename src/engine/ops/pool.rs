//! Pooling: MaxPool and AveragePool over one to three spatial dimensions, and their global forms.
//!
//! A window's elements are taken in row-major order, whatever the size of the batch.

use smallvec::smallvec;

use super::ANY;
use super::axes::require;
use super::number::{Number, with_float};
use super::window::{Axis, AxisList, Window, output_shape};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::FLOATS, build }
}

const MAX_TYPES: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::U8];

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { types: MAX_TYPES, ..def("MaxPool", 1..=ANY, max_pool) },
    def("AveragePool", 1..=ANY, average_pool),
    def("GlobalMaxPool", 1..=ANY, |_| Ok(Box::new(GlobalPool { average: false }))),
    def("GlobalAveragePool", 1..=ANY, |_| Ok(Box::new(GlobalPool { average: true }))),
];

fn max_pool(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let window = Window::read(attrs)?.rounding_up(attrs.bool_or("ceil_mode", false)?);
    let column_major = attrs.bool_or("storage_order", false)?;
    attrs.required("kernel_shape", window.kernel())?;
    Ok(Box::new(MaxPool { window, column_major, indices: attrs.outputs.len() > 1 }))
}

fn average_pool(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let window = Window::read(attrs)?.rounding_up(attrs.bool_or("ceil_mode", false)?);
    attrs.required("kernel_shape", window.kernel())?;
    Ok(Box::new(AveragePool { window, include_pad: attrs.bool_or("count_include_pad", false)? }))
}

/// The window's axes over an input of `shape`, filled up to three.
fn axes_over(window: &Window, shape: &[usize]) -> Result<AxisList, OpError> {
    let kernel = window.kernel().unwrap_or_default();
    match shape.len() {
        3..=5 => window.over(&shape[2..], kernel),
        rank => Err(OpError::unsupported(format!("pooling of a tensor of rank {rank}; supported are 3 to 5"))),
    }
}

/// Three axes, the missing ones in front of size 1.
fn three(axes: &AxisList) -> [Axis; 3] {
    let one = Axis { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, pad_begin: 0, pad_end: 0 };
    let mut three = [one; 3];
    three[3 - axes.len()..].copy_from_slice(axes);
    three
}

/// Calls `f` with every output element's number within its plane and its position.
fn positions(axes: &[Axis; 3], mut f: impl FnMut(usize, [usize; 3])) {
    let mut index = 0;
    for z in 0..axes[0].output {
        for y in 0..axes[1].output {
            for x in 0..axes[2].output {
                f(index, [z, y, x]);
                index += 1;
            }
        }
    }
}

/// Calls `f` with the input element, within its plane, that each tap at `position` meets.
fn elements(axes: &[Axis; 3], position: [usize; 3], mut f: impl FnMut(usize)) {
    for (_, z) in axes[0].taps(position[0]) {
        for (_, y) in axes[1].taps(position[1]) {
            let row = (z * axes[1].input + y) * axes[2].input;
            for (_, x) in axes[2].taps(position[2]) {
                f(row + x);
            }
        }
    }
}

/// Input and output elements of one channel of one sample.
fn planes(axes: &[Axis; 3]) -> (usize, usize) {
    (axes.iter().map(|a| a.input).product(), axes.iter().map(|a| a.output).product())
}

/// The greatest element of each window, and where it is.
#[derive(Debug)]
struct MaxPool {
    window: Window,
    /// Whether the indices count the last two dimensions column by column.
    column_major: bool,
    indices: bool,
}

impl MaxPool {
    /// One pass per kernel tap over an output row: each is a loop that the compiler vectorises.
    fn fast(axes: &[Axis; 3], x: &[f32], y: &mut [f32]) {
        let column = axes[2];
        let mut rows = y.chunks_exact_mut(column.output);
        for z in 0..axes[0].output {
            for oy in 0..axes[1].output {
                let Some(row) = rows.next() else { return };
                row.fill(f32::NEG_INFINITY);
                for (_, iz) in axes[0].taps(z) {
                    for (_, iy) in axes[1].taps(oy) {
                        let source = &x[(iz * axes[1].input + iy) * column.input..][..column.input];
                        (0..column.kernel).for_each(|tap| max_tap(&column, tap, source, row));
                    }
                }
            }
        }
    }

    /// Whether windows of 2×2 tile the input exactly, the usual way to halve a feature map.
    fn halves(axes: &[Axis; 3]) -> bool {
        let halves = |a: &Axis| (a.kernel, a.stride, a.dilation, a.pad_begin) == (2, 2, 1, 0) && a.input == 2 * a.output;
        axes[0].kernel == 1 && axes[0].input == axes[0].output && halves(&axes[1]) && halves(&axes[2])
    }

    /// Two input rows to an output row; the planes of all channels and samples follow each other without a gap, so that
    /// small maps cost no more per element than large ones.
    fn halve(width: usize, x: &[f32], y: &mut [f32]) {
        let greater = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
        for (rows, y) in x.chunks_exact(4 * width).zip(y.chunks_exact_mut(width)) {
            let (top, bottom) = rows.split_at(2 * width);
            for ((y, t), b) in y.iter_mut().zip(top.chunks_exact(2)).zip(bottom.chunks_exact(2)) {
                *y = greater(greater(t[0], t[1]), greater(b[0], b[1]));
            }
        }
    }

    fn run_typed<T: Number>(&self, axes: &[Axis; 3], x: View<'_>, outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let (from, to) = planes(axes);
        let x = x.slice::<T>()?;
        if from == 0 || to == 0 {
            return Ok(());
        }
        let (height, width) = (axes[1].input, axes[2].input);
        let mut indices = vec![0_i64; if self.indices { x.len() / from * to } else { 0 }];
        let y = outputs.at(0)?.slice::<T>()?;
        for (plane, (x, y)) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)).enumerate() {
            positions(axes, |i, position| {
                let mut best: Option<usize> = None;
                elements(axes, position, |e| {
                    if best.is_none_or(|b| !x[b].nan() && (x[e] > x[b] || x[e].nan())) {
                        best = Some(e);
                    }
                });
                y[i] = best.map_or(T::LOWEST, |b| x[b]);
                if self.indices {
                    let e = best.unwrap_or(0);
                    let (z, row, column) = (e / (height * width), e / width % height, e % width);
                    let within = if self.column_major { (z * width + column) * height + row } else { e };
                    indices[plane * to + i] = (plane * from + within) as i64;
                }
            });
        }
        if let Some(output) = outputs.get(1) {
            output.slice::<i64>()?.copy_from_slice(&indices);
        }
        Ok(())
    }
}

/// Takes the elements that one tap meets along a row into the row of maxima.
fn max_tap(axis: &Axis, tap: usize, source: &[f32], row: &mut [f32]) {
    let shift = tap * axis.dilation;
    // The outputs whose tap lies inside the input.
    let first = axis.pad_begin.saturating_sub(shift).div_ceil(axis.stride);
    let Some(last) = (axis.input + axis.pad_begin).checked_sub(shift + 1) else { return };
    let end = (last / axis.stride + 1).min(axis.output);
    if first >= end {
        return;
    }
    let start = first * axis.stride + shift - axis.pad_begin;
    let take = |y: &mut f32, x: &f32| *y = if *x > *y || x.is_nan() { *x } else { *y };
    if axis.stride == 1 {
        row[first..end].iter_mut().zip(&source[start..]).for_each(|(y, x)| take(y, x));
    } else {
        row[first..end].iter_mut().zip(source[start..].iter().step_by(axis.stride)).for_each(|(y, x)| take(y, x));
    }
}

impl Op for MaxPool {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![inputs[0].clone().expect("it is required"), Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let axes = axes_over(&self.window, shape)?;
        let output = output_shape(shape[0], shape[1], &axes);
        Ok(vec![output.clone(), output])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axes = three(&axes_over(&self.window, x.shape())?);
        if x.dtype() == DType::F32 && !self.indices {
            let (from, to) = planes(&axes);
            if from == 0 || to == 0 {
                return Ok(());
            }
            let y = outputs.at(0)?.slice::<f32>()?;
            if Self::halves(&axes) {
                Self::halve(axes[2].output, x.slice()?, y);
                return Ok(());
            }
            x.slice::<f32>()?.chunks_exact(from).zip(y.chunks_exact_mut(to)).for_each(|(x, y)| Self::fast(&axes, x, y));
            return Ok(());
        }
        with_number!(x.dtype(), T => self.run_typed::<T>(&axes, x, outputs), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// The mean of each window; padding counts as zeros or not at all.
#[derive(Debug)]
struct AveragePool {
    window: Window,
    include_pad: bool,
}

impl AveragePool {
    fn run_typed<T: Number>(&self, axes: &[Axis; 3], x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (from, to) = planes(axes);
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        if from == 0 || to == 0 {
            return Ok(());
        }
        for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
            positions(axes, |i, position| {
                // Sums in f64 cost nothing here and round once.
                let (mut sum, mut count) = (0.0, 0);
                elements(axes, position, |e| {
                    sum += x[e].to_f64();
                    count += 1;
                });
                if self.include_pad {
                    count = (0..3).map(|d| axes[d].covered(position[d])).product();
                }
                y[i] = T::from_f64(sum / count as f64);
            });
        }
        Ok(())
    }
}

impl Op for AveragePool {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let axes = axes_over(&self.window, shape)?;
        Ok(vec![output_shape(shape[0], shape[1], &axes)])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axes = three(&axes_over(&self.window, x.shape())?);
        with_float!(x.dtype(), T => self.run_typed::<T>(&axes, x, outputs.at(0)?), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// One number per channel.
#[derive(Debug)]
struct GlobalPool {
    average: bool,
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
        if x.dtype() == DType::F32 {
            let x = x.slice::<f32>()?;
            for (i, y) in y.slice::<f32>()?.iter_mut().enumerate() {
                let plane = &x[i * size..(i + 1) * size];
                *y = if self.average { vector::sum(ctx.isa, plane) / size as f32 } else { vector::max(ctx.isa, plane) };
            }
            return Ok(());
        }
        with_float!(x.dtype(), T => {
            let x = x.slice::<T>()?;
            for (i, y) in y.slice::<T>()?.iter_mut().enumerate() {
                let plane = x[i * size..(i + 1) * size].iter().map(|v| v.to_f64());
                *y = T::from_f64(if self.average { plane.sum::<f64>() / size as f64 } else { plane.fold(f64::NEG_INFINITY, Number::greater) });
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
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
        assert!(matches!(op("MaxPool").error(&[&zeros(&[1, 1, 4])]), OpError::Attribute(_)));
        assert!(matches!(pool("MaxPool", &[5]).error(&[&zeros(&[1, 1, 4])]), OpError::Shape(_)));
        assert!(matches!(pool("AveragePool", &[2]).error(&[&zeros(&[1, 1, 4, 4])]), OpError::Shape(_)));
        assert!(matches!(pool("MaxPool", &[2]).error(&[&zeros(&[4])]), OpError::Unsupported(_)));
        assert!(matches!(op("GlobalMaxPool").error(&[&zeros(&[4])]), OpError::Shape(_)));
        assert!(matches!(pool("AveragePool", &[2]).error(&[&tensor(&[1, 1, 2], &[1_i64, 2])]), OpError::Type(_)));
        assert!(pool("MaxPool", &[2]).error(&[&Tensor::scalar(1.0_f32)]) != OpError::Unknown);
    }
}
