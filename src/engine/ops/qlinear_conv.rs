//! Convolutions of 8-bit codes, over any number of spatial dimensions: ConvInteger, and QLinearConv of ai.onnx and of
//! com.microsoft, there also with the channels last.
//!
//! Strips of output positions are gathered into rows, one per position, and multiplied with the filters by the integer
//! product. Padding is the zero point, which is zero once it is subtracted.

use smallvec::{SmallVec, smallvec};

use super::ANY;
use super::axes::require;
use super::columns::Geometry;
use super::product::flops;
use super::qlinear::{CODES, Code, Levels, Rows, codes, encode, expect_same, expect_type, multiply, scale, with_code, zero_point};
use super::qlinear_conv_packed::{Constants, PackedQConv};
use super::window::{Axis, AxisList, Window};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::kernels::integer::padded;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::limits::Arithmetic;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::View;

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: 10..=ANY, types: CODES, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("ConvInteger", |a| build(a, false, false)),
    def("QLinearConv", |a| build(a, true, false)),
    OpDef { domain: "com.microsoft", opsets: 1..=ANY, ..def("QLinearConv", |a| build(a, true, a.bool_or("channels_last", false)?)) },
];

#[derive(Clone, Debug)]
pub(crate) struct QConv {
    window: Window,
    pub(crate) groups: usize,
    /// Whether the result is quantised, the operands having scales; otherwise it is the sums.
    pub(crate) linear: bool,
    /// Whether the channels of the input come last, and those of the output.
    pub(crate) input_last: bool,
    pub(crate) output_last: bool,
}

fn build(attrs: &Attrs, linear: bool, channels_last: bool) -> Result<Box<dyn Op>, OpError> {
    let groups = attrs.int_or("group", 1)?;
    match usize::try_from(groups) {
        Ok(groups) if groups >= 1 => {
            let (input_last, output_last) = (channels_last, channels_last);
            Ok(Box::new(QConv { window: Window::read(attrs)?, groups, linear, input_last, output_last }))
        }
        _ => Err(OpError::Attribute(format!("attribute `group` is {groups}"))),
    }
}

/// A convolution of given sizes.
pub(crate) struct Sizes {
    batch: usize,
    c_in: usize,
    c_out: usize,
    axes: AxisList,
    input_last: bool,
    output_last: bool,
    groups: usize,
}

impl QConv {
    /// The same with the channels of its input last, or those of its output.
    pub(crate) fn in_layouts(self, input_last: bool, output_last: bool) -> Self {
        Self { input_last, output_last, ..self }
    }

    pub(crate) fn sizes(&self, x: &[usize], w: &[usize]) -> Result<Sizes, OpError> {
        if x.len() < 3 || w.len() != x.len() {
            return Err(OpError::shape(format!("an input of shape {x:?} and weights of shape {w:?}")));
        }
        let last = x.len() - 1;
        let (c_in, spatial) = if self.input_last { (x[last], &x[1..last]) } else { (x[1], &x[2..]) };
        if w[1].checked_mul(self.groups) != Some(c_in) || !w[0].is_multiple_of(self.groups) {
            return Err(OpError::shape(format!("an input of shape {x:?}, weights of shape {w:?} and {} groups", self.groups)));
        }
        let axes = self.window.over(spatial, &w[2..])?;
        if self.window.kernel().is_some_and(|kernel| kernel != &w[2..]) {
            return Err(OpError::shape(format!("attribute `kernel_shape` is {:?}, the weights have shape {w:?}", self.window.kernel())));
        }
        Ok(Sizes { batch: x[0], c_in, c_out: w[0], axes, input_last: self.input_last, output_last: self.output_last, groups: self.groups })
    }

    fn weights(&self) -> usize {
        if self.linear { 3 } else { 1 }
    }
}

impl Sizes {
    pub(crate) fn shape(&self) -> Shape {
        let (first, last) = if self.output_last { (None, Some(self.c_out)) } else { (Some(self.c_out), None) };
        let spatial = self.axes.iter().map(|axis| axis.output);
        [self.batch].into_iter().chain(first).chain(spatial).chain(last).collect()
    }

    /// Input and output positions of one channel, and taps of the kernel. Weights without elements may have a kernel of any
    /// size, which then counts for nothing.
    fn counts(&self) -> (usize, usize, usize) {
        let product = |of: fn(&Axis) -> usize| self.axes.iter().fold(1_usize, |product, axis| product.saturating_mul(of(axis)));
        (product(|a| a.input), product(|a| a.output), product(|a| a.kernel))
    }

    /// Operations of the whole convolution.
    pub(crate) fn flops(&self) -> u64 {
        let taps = self.axes.iter().fold(1_usize, |taps, axis| taps.saturating_mul(axis.kernel));
        let outputs = self.shape().iter().fold(1_usize, |len, &n| len.saturating_mul(n));
        flops(outputs, taps, self.c_in / self.groups)
    }

    /// The same as a convolution of floats has it.
    pub(crate) fn geometry(&self) -> Geometry {
        let (c_in, c_out) = (self.c_in / self.groups, self.c_out / self.groups);
        Geometry { samples: self.batch, groups: self.groups, c_in, c_out, axes: self.axes.clone() }
    }

    /// The first element of a channel of a sample and the distance to the next, among `channels` of `positions`.
    fn channel(last: bool, channel: usize, channels: usize, positions: usize) -> (usize, usize) {
        if last { (channel, channels) } else { (channel * positions, 1) }
    }
}

/// What a tap of the kernel meets in the padding.
const PADDING: usize = usize::MAX;

/// Appends the input position that every tap of the kernel meets at output position `at`.
fn taps(axes: &[Axis], at: usize, met: &mut Vec<usize>) {
    let mut index = at;
    let mut coordinates: SmallVec<[usize; 4]> = axes.iter().map(|_| 0).collect();
    for (coordinate, axis) in coordinates.iter_mut().zip(axes).rev() {
        *coordinate = index % axis.output;
        index /= axis.output;
    }
    let mut outer: SmallVec<[usize; 32]> = smallvec![0];
    for (axis, &coordinate) in axes.iter().zip(&coordinates) {
        let mut inner = SmallVec::from_elem(PADDING, outer.len() * axis.kernel);
        for (tap, position) in axis.taps(coordinate) {
            for (before, &start) in outer.iter().enumerate().filter(|(_, start)| **start != PADDING) {
                inner[before * axis.kernel + tap] = start * axis.input + position;
            }
        }
        outer = inner;
    }
    met.extend_from_slice(&outer);
}

/// Numbers gathered at once: 1 MiB of 16 bits.
const STRIP: usize = 512 << 10;

/// Calls `finish` with the output channel, the element of the output and the sum of everything.
fn convolve<T: Code>(s: &Sizes, (x, x_zero): (&[T], i32), filters: &[Rows], ctx: &Context<'_>, mut finish: impl FnMut(usize, usize, i32)) {
    let (inputs, outputs, kernel) = s.counts();
    let (c_in, c_out) = (s.c_in / s.groups, s.c_out / s.groups);
    let k = c_in.saturating_mul(kernel);
    let strip = (STRIP / padded(k).max(1)).clamp(1, outputs.max(1));
    let mut met = vec![];
    let x_zero = x_zero as i16;
    for start in (0..outputs).step_by(strip) {
        let end = outputs.min(start + strip);
        let mut rows = Rows { count: end - start, k, data: vec![0; (end - start) * padded(k)] };
        met.clear();
        if k > 0 {
            (start..end).for_each(|at| taps(&s.axes, at, &mut met));
        }
        for n in 0..s.batch {
            let x = &x[n * s.c_in * inputs..(n + 1) * s.c_in * inputs];
            for (group, filters) in filters.iter().enumerate() {
                for (met, row) in met.chunks_exact(kernel).zip(rows.data.chunks_exact_mut(padded(k).max(1))) {
                    for (channel, row) in (group * c_in..).zip(row[..k].chunks_exact_mut(kernel)) {
                        let (first, step) = Sizes::channel(s.input_last, channel, s.c_in, inputs);
                        for (value, &position) in row.iter_mut().zip(met) {
                            *value = if position == PADDING { 0 } else { x[first + position * step].get() as i16 - x_zero };
                        }
                    }
                }
                let sums = multiply(filters, &rows, ctx);
                for (channel, sums) in (group * c_out..).zip(sums.chunks_exact(end - start)) {
                    let (first, step) = Sizes::channel(s.output_last, channel, s.c_out, outputs);
                    let first = n * s.c_out * outputs + first;
                    for (at, &sum) in (start..end).zip(sums) {
                        finish(channel, first + at * step, sum);
                    }
                }
            }
        }
    }
}

impl QConv {
    /// The filters of each group less their zero points, one per tensor or per output channel.
    fn filters(&self, w: View<'_>, zero: Option<View<'_>>) -> Result<Vec<Rows>, OpError> {
        let (filters, k) = (w.shape()[0], w.len().checked_div(w.shape()[0]).unwrap_or(0));
        let zeros = match zero {
            None => Levels::one(0),
            Some(zero) => Levels::new(codes(zero)?, zero.shape(), &[filters], 1)?,
        };
        let count = filters / self.groups;
        (0..self.groups)
            .map(|group| {
                let range = group * count * k..(group + 1) * count * k;
                Rows::left(w, range, (count, k), |i| zeros.at(0, group * count + i))
            })
            .collect()
    }

    fn run_typed<T: Code>(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &Context<'_>) -> Result<(), OpError> {
        let (x, w, y) = (inputs.at(0)?, inputs.at(self.weights())?, outputs.at(0)?);
        let s = self.sizes(x.shape(), w.shape())?;
        let x = x.slice::<T>()?;
        if !self.linear {
            let filters = self.filters(w, inputs.get(3))?;
            let y = y.slice::<i32>()?;
            convolve(&s, (x, zero_point(inputs.get(2))?), &filters, ctx, |_, at, sum| y[at] = sum);
            return Ok(());
        }
        let filters = self.filters(w, inputs.get(5))?;
        let (x_scale, y_scale) = (scale(inputs.at(1)?)?, scale(inputs.at(6)?)?);
        let w_scale = Levels::new(inputs.at(4)?.slice::<f32>()?.to_vec(), inputs.at(4)?.shape(), &[s.c_out], 1)?;
        let factors: Vec<f32> = (0..s.c_out).map(|channel| x_scale * w_scale.at(0, channel) / y_scale).collect();
        let bias = inputs.get(8).map(|bias| bias.slice::<i32>()).transpose()?;
        let y_zero = zero_point(inputs.get(7))?;
        let x_zero = zero_point(inputs.get(2))?;
        with_code!(y.dtype(), Y => {
            let y = y.slice::<Y>()?;
            convolve(&s, (x, x_zero), &filters, ctx, |channel, at, sum| {
                let sum = bias.map_or(sum, |bias| sum.wrapping_add(bias[channel]));
                y[at] = encode::<Y>(sum as f32 * factors[channel], y_zero);
            });
            Ok(())
        })
    }
}

impl Op for QConv {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let (w, zeros) = if self.linear { (3, [2, 5]) } else { (1, [2, 3]) };
        require(inputs, if self.linear { 8 } else { 2 })?;
        expect_type(inputs, 0, CODES)?;
        expect_type(inputs, w, CODES)?;
        expect_same(inputs, 0, zeros[0])?;
        expect_same(inputs, w, zeros[1])?;
        if !self.linear {
            return Ok(Kinds::from_iter([Kind::Tensor(DType::I32)]));
        }
        for scale in [1, 4, 6] {
            expect_type(inputs, scale, &[f32::DTYPE])?;
        }
        expect_type(inputs, 7, CODES)?;
        expect_type(inputs, 8, &[DType::I32])?;
        Ok(inputs[7].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let sizes = self.sizes(inputs.shape(0)?, inputs.shape(self.weights())?)?;
        if self.linear && inputs.get(8).is_some() && inputs.shape(8)? != [sizes.c_out] {
            return Err(OpError::shape(format!("a bias of shape {:?} for {} output channels", inputs.shape(8)?, sizes.c_out)));
        }
        Ok(vec![sizes.shape()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        if outputs.at(0)?.shape().contains(&0) {
            return Ok(());
        }
        with_code!(inputs.at(0)?.dtype(), T => self.run_typed::<T>(inputs, outputs, ctx))
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = inputs.shape(0).and_then(|x| self.sizes(x, inputs.shape(self.weights())?));
        sizes.map_or(0, |sizes| sizes.flops())
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Int8
    }

    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let constant = |i: usize| constants.get(i).copied().flatten();
        let all = (1..constants.len()).filter(|&i| constants[i].is_some()).collect();
        if !self.linear || (1..8).any(|i| constant(i).is_none()) {
            return None;
        }
        let weights = constant(3)?;
        let c_out = *weights.shape().first()?;
        let level = |scale_at: usize, zero_at: usize| {
            let zero = constant(zero_at)?;
            Some((scale(constant(scale_at)?.view()).ok()?, (zero.dtype(), zero_point(Some(zero.view())).ok()?)))
        };
        let ((x_scale, input), (y_scale, output)) = (level(1, 2)?, level(6, 7)?);
        let zeros = Levels::new(codes(constant(5)?.view()).ok()?, constant(5)?.shape(), &[c_out], 1).ok()?;
        let w_scale = Levels::new(constant(4)?.slice::<f32>()?.to_vec(), constant(4)?.shape(), &[c_out], 1).ok()?;
        let bias = match (constants.get(8), constant(8)) {
            (_, Some(bias)) if bias.shape() == [c_out] => Some(bias.slice::<i32>()?),
            (_, Some(_)) => return None,
            _ if constants.len() > 8 => return None,
            _ => None,
        };
        let with = Constants {
            weights,
            weight_zeros: (0..c_out).map(|channel| zeros.at(0, channel)).collect(),
            input,
            output,
            factors: (0..c_out).map(|channel| x_scale * w_scale.at(0, channel) / y_scale).collect(),
            bias,
        };
        Some(Prepacked { op: Box::new(PackedQConv::new(self, isa, with)?), consumed: all })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;

    /// The same convolution of f64 numbers.
    fn exact(x: &Tensor, w: &Tensor, zeros: (i32, &[i32]), attrs: &[(&str, &[i64])], group: i64) -> Vec<i32> {
        let wide = |t: &Tensor, zero: &dyn Fn(usize) -> i32| {
            let values = codes(t.view()).unwrap();
            let numbers: Vec<f32> = values.iter().enumerate().map(|(i, v)| (v - zero(i)) as f32).collect();
            tensor(t.shape(), &numbers)
        };
        let per = w.len() / w.shape()[0];
        let case = attrs.iter().fold(op("Conv").attr("group", group), |case, (name, values)| case.attr(name, *values));
        let y = case.one(&[&wide(x, &|_| zeros.0), &wide(w, &|i| zeros.1[i / per % zeros.1.len()])]);
        y.slice::<f32>().unwrap().iter().map(|&v| v as i32).collect()
    }

    fn bytes(shape: &[usize], step: usize) -> Tensor {
        tensor(shape, &(0..shape.iter().product()).map(|i| (i * step % 256) as u8).collect::<Vec<_>>())
    }

    #[test]
    fn sums_are_those_of_a_convolution_of_floats() {
        type Row = (usize, usize, i64, &'static [(&'static str, &'static [i64])]);
        let rows: &[Row] = &[
            (4, 6, 1, &[]),
            (4, 6, 2, &[("pads", &[1, 0, 2, 1]), ("strides", &[2, 1])]),
            (4, 4, 4, &[("pads", &[1, 1, 1, 1]), ("dilations", &[1, 2])]),
        ];
        for &(c_in, c_out, group, attrs) in rows {
            let x = bytes(&[2, c_in, 7, 6], 37);
            let w = bytes(&[c_out, c_in / group as usize, 3, 2], 91);
            let zeros: Vec<u8> = (0..c_out).map(|i| (i * 50) as u8).collect();
            let case = attrs.iter().fold(op("ConvInteger").attr("group", group), |case, (name, values)| case.attr(name, *values));
            let y = case.one(&[&x, &w, &Tensor::scalar(9_u8), &tensor(&[c_out], &zeros)]);
            let zeros: Vec<i32> = zeros.iter().map(|&z| i32::from(z)).collect();
            assert_eq!(y.slice::<i32>().unwrap(), exact(&x, &w, (9, &zeros), attrs, group));
        }
    }

    #[test]
    fn one_and_three_dimensions_and_channels_last() {
        let line = op("ConvInteger").attr("pads", &[1_i64, 0][..]).one(&[&tensor(&[1, 1, 3], &[1_u8, 2, 3]), &tensor(&[1, 1, 2], &[1_i8, -1])]);
        assert_eq!(line, tensor(&[1, 1, 3], &[-1, -1, -1]));
        let cube = op("ConvInteger").one(&[&tensor(&[1, 1, 2, 2, 2], &[1_u8; 8]), &tensor(&[1, 1, 2, 2, 2], &[2_i8; 8])]);
        assert_eq!(cube, tensor(&[1, 1, 1, 1, 1], &[16]));
        let (one, zero) = (Tensor::scalar(1.0_f32), Tensor::scalar(0_u8));
        let w = tensor(&[1, 2, 1, 1], &[1_u8, 10]);
        let x = tensor(&[1, 1, 2, 2], &[1_u8, 2, 3, 4]);
        let y = op("QLinearConv").domain("com.microsoft").attr("channels_last", 1_i64).one(&[&x, &one, &zero, &w, &one, &zero, &one, &zero]);
        assert_eq!(y, tensor(&[1, 1, 2, 1], &[21_u8, 43]));
    }

    #[test]
    fn results_are_scaled_per_channel() {
        let (one, zero) = (Tensor::scalar(1.0_f32), Tensor::scalar(0_u8));
        let x = tensor(&[1, 1, 1, 3], &[1_u8, 2, 255]);
        let w = tensor(&[2, 1, 1, 1], &[1_i8, -1]);
        let (scales, zeros) = (tensor(&[2], &[0.5_f32, 1.0]), tensor(&[2], &[0_i8, 0]));
        let bias = tensor(&[2], &[0, 7]);
        let run = |bias: &Tensor| op("QLinearConv").run(&[&x, &one, &zero, &w, &scales, &zeros, &one, &Tensor::scalar(-2_i8), bias]);
        assert_eq!(run(&bias).unwrap()[0], tensor(&[1, 2, 1, 3], &[-2_i8, -1, 126, 4, 3, -128]));
        assert!(matches!(run(&tensor(&[1], &[0])), Err(OpError::Shape(_))));
        assert!(matches!(op("ConvInteger").error(&[&x, &tensor(&[2, 2, 1, 1], &[0_i8; 4])]), OpError::Shape(_)));
        assert!(matches!(op("ConvInteger").error(&[&x, &w, &Tensor::scalar(0_i8)]), OpError::Type(_)));
        assert!(matches!(op("ConvInteger").attr("group", 0_i64).error(&[&x, &w]), OpError::Attribute(_)));
        // Weights without channels may claim any kernel.
        let hollow = (Tensor::zeros(DType::U8, &[1, 0, 1, 3]), Tensor::zeros(DType::I8, &[2, 0, 1, 2]));
        assert_eq!(op("ConvInteger").one(&[&hollow.0, &hollow.1]), Tensor::zeros(DType::I32, &[1, 2, 1, 2]));
    }
}
