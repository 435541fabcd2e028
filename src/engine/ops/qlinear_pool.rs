//! Pooling and sums of 8-bit codes, of com.microsoft: QLinearAveragePool, QLinearGlobalAveragePool, ReduceSumInteger.

use super::ANY;
use super::axes::{Axes, axes, offsets, require, strides};
use super::qlinear::{CODES, Code, encode, expect_same, expect_type, scale, with_code, zero_point};
use super::window::{Axis, AxisList, Window};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types: CODES, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("QLinearAveragePool", |a| {
        let window = Window::read(a)?.rounding_up(a.bool_or("ceil_mode", false)?);
        a.required("kernel_shape", window.kernel())?;
        let include_pad = a.bool_or("count_include_pad", false)?;
        Ok(Box::new(AveragePool { window, include_pad, channels_last: a.bool_or("channels_last", false)? }))
    }),
    def("QLinearGlobalAveragePool", |a| {
        let channels_last = a.bool_or("channels_last", false)?;
        Ok(Box::new(GlobalAveragePool { channels_last, output_last: channels_last }))
    }),
    def("ReduceSumInteger", |a| {
        Ok(Box::new(ReduceSum { axes: a.required("axes", a.ints("axes")?)?, keep: a.bool_or("keepdims", true)? }))
    }),
];

/// One operand with its scale and zero point, and those of the result.
fn kinds_of_one(inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
    require(inputs, 2)?;
    inputs.get(3).and_then(Option::as_ref).ok_or_else(|| OpError::missing_input(3))?;
    expect_type(inputs, 0, CODES)?;
    [1, 3].iter().try_for_each(|&i| expect_type(inputs, i, &[f32::DTYPE]))?;
    [2, 4].iter().try_for_each(|&i| expect_same(inputs, 0, i))?;
    Ok(inputs[0].iter().cloned().collect())
}

/// Samples, channels and spatial dimensions of a shape.
fn split(shape: &[usize], channels_last: bool) -> Result<(usize, usize, &[usize]), OpError> {
    match shape {
        [n, spatial @ .., c] if channels_last && !spatial.is_empty() => Ok((*n, *c, spatial)),
        [n, c, spatial @ ..] if !channels_last && !spatial.is_empty() => Ok((*n, *c, spatial)),
        _ => Err(OpError::shape(format!("pooling of a tensor of shape {shape:?}"))),
    }
}

fn join(n: usize, c: usize, spatial: impl Iterator<Item = usize>, channels_last: bool) -> Shape {
    let (first, last) = if channels_last { (None, Some(c)) } else { (Some(c), None) };
    [n].into_iter().chain(first).chain(spatial).chain(last).collect()
}

/// The mean of each window, computed of the numbers that the codes stand for.
#[derive(Debug)]
struct AveragePool {
    window: Window,
    include_pad: bool,
    channels_last: bool,
}

/// The input positions of the window at output position `at`, and how many numbers it is the mean of: with the padding all
/// that the window has, even what lies behind the padding.
fn window(axes: &AxisList, at: usize, include_pad: bool) -> (Vec<usize>, usize) {
    let mut positions = vec![0];
    let mut index = at;
    let mut step = 1;
    for axis in axes.iter().rev() {
        let coordinate = index % axis.output;
        index /= axis.output;
        let met: Vec<usize> = axis.taps(coordinate).map(|(_, position)| position * step).collect();
        positions = met.iter().flat_map(|outer| positions.iter().map(move |inner| outer + inner)).collect();
        step *= axis.input;
    }
    let count = if include_pad { axes.iter().fold(1_usize, |count, axis| count.saturating_mul(axis.kernel)) } else { positions.len() };
    (positions, count)
}

impl Op for AveragePool {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        kinds_of_one(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (n, c, spatial) = split(inputs.shape(0)?, self.channels_last)?;
        let axes = self.window.over(spatial, self.window.kernel().unwrap_or_default())?;
        Ok(vec![join(n, c, axes.iter().map(|axis| axis.output), self.channels_last)])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        if y.shape().contains(&0) {
            return Ok(());
        }
        let (n, c, spatial) = split(x.shape(), self.channels_last)?;
        let axes = self.window.over(spatial, self.window.kernel().unwrap_or_default())?;
        let product = |of: fn(&Axis) -> usize| axes.iter().map(of).product::<usize>();
        let (from, to) = (product(|a| a.input), product(|a| a.output));
        let (x_scale, x_zero) = (scale(inputs.at(1)?)?, zero_point(inputs.get(2))?);
        let (y_scale, y_zero) = (scale(inputs.at(3)?)?, zero_point(inputs.get(4))?);
        let element = |n: usize, channel: usize, at: usize, positions: usize| {
            if self.channels_last { (n * positions + at) * c + channel } else { (n * c + channel) * positions + at }
        };
        with_code!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            for at in 0..to {
                let (positions, count) = window(&axes, at, self.include_pad);
                for (n, channel) in (0..n).flat_map(|n| (0..c).map(move |channel| (n, channel))) {
                    let number = |&p: &usize| (x[element(n, channel, p, from)].get() - x_zero) as f32 * x_scale;
                    let sum: f32 = positions.iter().map(number).sum();
                    y[element(n, channel, at, to)] = encode::<T>(sum / count as f32 / y_scale, y_zero);
                }
            }
            Ok(())
        })
    }
}

/// The mean of each channel.
#[derive(Debug)]
pub(crate) struct GlobalAveragePool {
    pub(crate) channels_last: bool,
    /// Of the result.
    pub(crate) output_last: bool,
}

impl Op for GlobalAveragePool {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        kinds_of_one(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (n, c, spatial) = split(inputs.shape(0)?, self.channels_last)?;
        Ok(vec![join(n, c, spatial.iter().map(|_| 1), self.output_last)])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        if y.shape().contains(&0) {
            return Ok(());
        }
        let (n, c, spatial) = split(x.shape(), self.channels_last)?;
        let size: usize = spatial.iter().product();
        let (x_zero, y_zero) = (zero_point(inputs.get(2))?, zero_point(inputs.get(4))?);
        let factor = scale(inputs.at(1)?)? / (scale(inputs.at(3)?)? * size as f32);
        with_code!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            if self.channels_last {
                // Sums of all channels beside each other: neighbours in memory.
                for (x, y) in x.chunks_exact((size * c).max(1)).zip(y.chunks_exact_mut(c)) {
                    let mut sums = vec![0_i64; c];
                    x.chunks_exact(c).for_each(|x| sums.iter_mut().zip(x).for_each(|(sum, v)| *sum += i64::from(v.get() - x_zero)));
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = encode::<T>(sum as f32 * factor, y_zero));
                }
                return Ok(());
            }
            for (i, y) in y.iter_mut().enumerate().take(n * c) {
                let codes = x.get(i * size..).unwrap_or_default().iter().take(size);
                let sum: i64 = codes.map(|v| i64::from(v.get() - x_zero)).sum();
                *y = encode::<T>(sum as f32 * factor, y_zero);
            }
            Ok(())
        })
    }
}

/// The sum along axes in 32 bits, of the sign of the codes.
#[derive(Debug)]
struct ReduceSum {
    axes: Vec<i64>,
    keep: bool,
}

impl ReduceSum {
    /// The axes, all of them if none is named.
    fn axes(&self, rank: usize) -> Result<Axes, OpError> {
        if self.axes.is_empty() { Ok((0..rank).collect()) } else { axes(&self.axes, rank) }
    }
}

impl Op for ReduceSum {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        let signed = inputs[0].as_ref().and_then(Kind::dtype) == Some(DType::I8);
        Ok(Kinds::from_iter([Kind::Tensor(if signed { DType::I32 } else { DType::U32 })]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let axes = self.axes(shape.len())?;
        let sizes = shape.iter().enumerate().filter(|(i, _)| self.keep || !axes.contains(i));
        Ok(vec![sizes.map(|(i, &n)| if axes.contains(&i) { 1 } else { n }).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let axes = self.axes(x.shape().len())?;
        let mut kept: Shape = x.shape().into();
        axes.iter().for_each(|&axis| kept[axis] = 1);
        let mut sums = vec![0_i32; if y.shape().contains(&0) { 0 } else { y.shape().iter().product() }];
        // Walking the input, the output stays where an axis is summed.
        let steps: Vec<isize> =
            strides(&kept).iter().enumerate().map(|(i, &step)| if axes.contains(&i) { 0 } else { step as isize }).collect();
        with_code!(x.dtype(), T => {
            let mut x = x.slice::<T>()?.iter();
            if x.len() > 0 {
                offsets(inputs.at(0)?.shape(), &steps, 0, |at| {
                    if let (Some(sum), Some(v)) = (sums.get_mut(at as usize), x.next()) {
                        *sum = sum.wrapping_add(v.get());
                    }
                });
            }
            Ok(())
        })?;
        match y.dtype() {
            DType::I32 => y.slice::<i32>()?.copy_from_slice(&sums),
            _ => y.slice::<u32>()?.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum as u32),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn pool(name: &'static str) -> Case {
        op(name).domain("com.microsoft")
    }

    #[test]
    fn means_of_windows() {
        let x = tensor(&[1, 1, 2, 3], &[10_u8, 20, 30, 40, 50, 60]);
        let (scale, zero, one) = (Tensor::scalar(2.0_f32), Tensor::scalar(10_u8), Tensor::scalar(1.0_f32));
        let inputs = [&x, &scale, &zero, &one, &zero];
        let case = || pool("QLinearAveragePool").attr("kernel_shape", &[2_i64, 2][..]);
        assert_eq!(case().one(&inputs), tensor(&[1, 1, 1, 2], &[50_u8, 70]));
        let padded = || case().attr("pads", &[1_i64, 1, 0, 0][..]).attr("strides", &[2_i64, 2][..]);
        assert_eq!(padded().one(&inputs), tensor(&[1, 1, 1, 2], &[10_u8, 40]));
        assert_eq!(padded().attr("count_include_pad", 1_i64).one(&inputs), tensor(&[1, 1, 1, 2], &[10_u8, 25]));
        let last = x.reshape(&[1, 2, 3, 1]).unwrap();
        let y = case().attr("channels_last", 1_i64).one(&[&last, &scale, &zero, &one, &zero]);
        assert_eq!(y, tensor(&[1, 1, 2, 1], &[50_u8, 70]));
        assert!(pool("QLinearAveragePool").run(&inputs).is_err());
    }

    #[test]
    fn means_of_channels_and_sums_of_axes() {
        let x = tensor(&[1, 2, 2, 1], &[1_u8, 3, 100, 200]);
        let (one, zero) = (Tensor::scalar(1.0_f32), Tensor::scalar(0_u8));
        let case = || pool("QLinearGlobalAveragePool");
        assert_eq!(case().one(&[&x, &one, &zero, &one, &zero]), tensor(&[1, 2, 1, 1], &[2_u8, 150]));
        let y = case().attr("channels_last", 1_i64).one(&[&x, &one, &zero, &one, &zero]);
        assert_eq!(y, tensor(&[1, 1, 1, 1], &[76_u8]));
        assert!(case().run(&[&tensor(&[2], &[1_u8, 2]), &one, &zero, &one, &zero]).is_err());

        let sum = |axes: &[i64], keep: i64| pool("ReduceSumInteger").attr("axes", axes).attr("keepdims", keep);
        assert_eq!(sum(&[2, -1], 0).one(&[&x]), tensor(&[1, 2], &[4_u32, 300]));
        assert_eq!(sum(&[1], 1).one(&[&x]), tensor(&[1, 1, 2, 1], &[101_u32, 203]));
        assert_eq!(sum(&[0], 0).one(&[&tensor(&[2], &[-128_i8, -128])]), tensor(&[], &[-256_i32]));
        assert_eq!(sum(&[0], 0).one(&[&Tensor::zeros(DType::I8, &[0, 2])]), tensor(&[2], &[0_i32, 0]));
        assert!(sum(&[4], 0).run(&[&x]).is_err());
    }
}
