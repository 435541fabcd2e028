//! Elementwise operators of com.microsoft on 8-bit codes, with onnxruntime's arithmetic: QLinearAdd, QLinearMul, MulInteger,
//! QLinearSigmoid, QLinearLeakyRelu, QLinearSoftmax, QLinearConcat and QLinearWhere.
//!
//! A function of one operand is a table of 256 codes.

use super::ANY;
use super::axes::{around, axis, product, require};
use super::broadcast::{self, Broadcast, zip};
use super::integer_product::flip_of;
use super::qlinear::{CODES, Code, encode, expect_same, expect_type, scale, with_code, zero_point};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::kernels::int8::quantize;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types: CODES, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("QLinearAdd", |_| Ok(Box::new(Combine { multiply: false }))),
    def("QLinearMul", |_| Ok(Box::new(Combine { multiply: true }))),
    def("MulInteger", |_| Ok(Box::new(MulInteger))),
    def("QLinearSigmoid", |_| Ok(Box::new(Unary { alpha: None }))),
    def("QLinearLeakyRelu", |a| Ok(Box::new(Unary { alpha: Some(a.float_or("alpha", 0.01)?) }))),
    def("QLinearSoftmax", softmax),
    OpDef { types: &[DType::F32], ..def("QLinearConcat", concat) },
    OpDef { types: &[DType::Bool], ..def("QLinearWhere", |_| Ok(Box::new(Choice))) },
];

/// Checks scales to be f32 and zero points to be of the type of input `like`.
fn expect(inputs: &[Option<Kind>], like: usize, scales: &[usize], zeros: &[usize]) -> Result<(), OpError> {
    expect_type(inputs, like, CODES)?;
    scales.iter().try_for_each(|&i| expect_type(inputs, i, &[f32::DTYPE]))?;
    zeros.iter().try_for_each(|&i| expect_same(inputs, like, i))
}

/// A sum or a product of two operands, each with its scale and zero point, as are those of the result.
#[derive(Debug)]
pub(crate) struct Combine {
    pub(crate) multiply: bool,
}

impl Op for Combine {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        for (i, _) in [true, true, false, true, true, false, true].iter().enumerate().filter(|(_, needed)| **needed) {
            inputs.get(i).and_then(Option::as_ref).ok_or_else(|| OpError::missing_input(i))?;
        }
        expect(inputs, 0, &[1, 4, 6], &[2, 3, 5, 7])?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(3)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(3)?, outputs.at(0)?);
        let (a_scale, b_scale, y_scale) = (scale(inputs.at(1)?)?, scale(inputs.at(4)?)?, scale(inputs.at(6)?)?);
        let (a_zero, b_zero, y_zero) = (zero_point(inputs.get(2))?, zero_point(inputs.get(5))?, zero_point(inputs.get(7))?);
        if !self.multiply && a.shape() == b.shape() && a.shape() == y.shape() {
            let (a_ratio, b_ratio) = (a_scale / y_scale, b_scale / y_scale);
            let fixed = y_zero as f32 - (a_ratio * a_zero as f32 + b_ratio * b_zero as f32);
            return add_all((a, b), (a_ratio, b_ratio, fixed), y, ctx);
        }
        let plan = Broadcast::new(y.shape(), [a.shape(), b.shape()]);
        with_code!(a.dtype(), T => {
            let (a, b, y) = (a.slice::<T>()?, b.slice::<T>()?, y.slice::<T>()?);
            if self.multiply {
                let ratio = a_scale * b_scale / y_scale;
                zip(&plan, a, b, y, |a, b| encode::<T>(((a.get() - a_zero) * (b.get() - b_zero)) as f32 * ratio, y_zero));
            } else {
                let (a_ratio, b_ratio) = (a_scale / y_scale, b_scale / y_scale);
                let fixed = y_zero as f32 - (a_ratio * a_zero as f32 + b_ratio * b_zero as f32);
                zip(&plan, a, b, y, |a, b| encode::<T>(a.get() as f32 * a_ratio + (b.get() as f32 * b_ratio + fixed), 0));
            }
            Ok(())
        })
    }
}

/// The sum of tensors of one shape, on as many threads as it is worth.
fn add_all((a, b): (View<'_>, View<'_>), ratios: (f32, f32, f32), y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
    let (flip, isa) = (flip_of(a.dtype()), ctx.isa);
    let (a, b) = (a.bits().slice::<u8>()?, b.bits().slice::<u8>()?);
    let mut y = y.bits();
    let y = y.slice::<u8>()?;
    let part = y.len().div_ceil(ctx.threads.parts(4 * y.len() as u64)).max(1);
    let items = a.chunks(part).zip(b.chunks(part)).zip(y.chunks_mut(part));
    ctx.threads.for_each(items, |((a, b), y)| quantize::add(isa, a, b, ratios, flip, y));
    Ok(())
}

/// The product of two operands less their zero points, in 32 bits.
#[derive(Debug)]
struct MulInteger;

impl Op for MulInteger {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        inputs.get(2).and_then(Option::as_ref).ok_or_else(|| OpError::missing_input(2))?;
        expect(inputs, 0, &[], &[1, 2, 3])?;
        Ok(Kinds::from_iter([Kind::Tensor(DType::I32)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(2)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (a, b, y) = (inputs.at(0)?, inputs.at(2)?, outputs.at(0)?);
        let (a_zero, b_zero) = (zero_point(inputs.get(1))?, zero_point(inputs.get(3))?);
        let plan = Broadcast::new(y.shape(), [a.shape(), b.shape()]);
        with_code!(a.dtype(), T => {
            zip(&plan, a.slice::<T>()?, b.slice::<T>()?, y.slice::<i32>()?, |a, b| (a.get() - a_zero) * (b.get() - b_zero));
            Ok(())
        })
    }
}

/// The scale and zero point of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    scale: f32,
    zero: i32,
}

impl Level {
    fn read(inputs: &Inputs<'_>, scale_at: usize, zero_at: usize) -> Result<Self, OpError> {
        Ok(Self { scale: scale(inputs.at(scale_at)?)?, zero: zero_point(inputs.get(zero_at))? })
    }
}

/// What every code becomes by way of `f` on the number it stands for; code `c` is at `c` modulo 256.
fn table<T: Code>(from: Level, to: Level, f: impl Fn(f32) -> f32) -> Vec<T> {
    let code = |i: u8| if T::DTYPE == DType::I8 { i32::from(i as i8) } else { i32::from(i) };
    (0..=255).map(|i| encode::<T>(f(from.scale * (code(i) - from.zero) as f32) / to.scale, to.zero)).collect()
}

fn look_up<T: Code>(table: &[T], x: &[T], y: &mut [T]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = table[(x.get() & 255) as usize]);
}

/// A leaky rectifier with a slope, or without one the logistic function.
#[derive(Debug)]
struct Unary {
    alpha: Option<f32>,
}

impl Op for Unary {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        inputs.get(3).and_then(Option::as_ref).ok_or_else(|| OpError::missing_input(3))?;
        expect(inputs, 0, &[1, 3], &[2, 4])?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (from, to) = (Level::read(inputs, 1, 2)?, Level::read(inputs, 3, 4)?);
        with_code!(x.dtype(), T => {
            let table = match self.alpha {
                Some(alpha) => table::<T>(from, to, |v| if v >= 0.0 { v } else { alpha * v }),
                None => table::<T>(from, to, |v| 1.0 / (1.0 + (-v).exp())),
            };
            look_up(&table, x.slice::<T>()?, y.slice::<T>()?);
            Ok(())
        })
    }
}

/// Softmax along an axis, or before opset 13 over everything from the axis on.
#[derive(Debug)]
struct Softmax {
    axis: i64,
    flattens: bool,
}

fn softmax(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let opset = attrs.required("opset", attrs.int("opset")?)?;
    let flattens = opset < 13;
    Ok(Box::new(Softmax { axis: attrs.int_or("axis", if flattens { 1 } else { -1 })?, flattens }))
}

impl Op for Softmax {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        (3..5).try_for_each(|i| inputs.get(i).and_then(Option::as_ref).map(|_| ()).ok_or_else(|| OpError::missing_input(i)))?;
        expect(inputs, 0, &[1, 3], &[2, 4])?;
        Ok(inputs[0].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        axis(self.axis, shape.len())?;
        Ok(vec![shape.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let axis = axis(self.axis, x.shape().len())?;
        let (x_scale, to) = (scale(inputs.at(1)?)?, Level::read(inputs, 3, 4)?);
        if x.is_empty() {
            return Ok(());
        }
        let (_, size, inner) = around(x.shape(), axis);
        let (size, inner) = if self.flattens { (size * inner, 1) } else { (size, inner) };
        // The zero point cancels; what is left of a code is its distance from the greatest.
        let powers: Vec<f32> = (0..256).map(|distance| (f64::from(x_scale) * -f64::from(distance)).exp() as f32).collect();
        with_code!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            for (x, y) in x.chunks_exact(size * inner).zip(y.chunks_exact_mut(size * inner)) {
                for i in 0..inner {
                    let row = || x[i..].iter().step_by(inner);
                    let greatest = row().map(|v| v.get()).max().unwrap_or(0);
                    let power = |v: &T| powers[(greatest - v.get()) as usize & 255];
                    let sum: f32 = row().map(power).sum();
                    for (y, v) in y[i..].iter_mut().step_by(inner).zip(row()) {
                        *y = encode::<T>(power(v) / to.scale / sum, to.zero);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Tensors one after the other along an axis, each requantised: the inputs are the result's scale and zero point, and then
/// those of every tensor after it.
#[derive(Debug)]
struct Concat {
    axis: i64,
}

fn concat(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Concat { axis: attrs.required("axis", attrs.int("axis")?)? }))
}

impl Op for Concat {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 5)?;
        require(inputs, inputs.len())?;
        if inputs.len() % 3 != 2 {
            return Err(OpError::shape(format!("{} inputs; every tensor has a scale and a zero point", inputs.len())));
        }
        expect_type(inputs, 0, &[f32::DTYPE])?;
        for i in (2..inputs.len()).step_by(3) {
            expect(inputs, i, &[i + 1], &[1, i + 2])?;
        }
        Ok(inputs[1].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(2)?.into();
        let axis = axis(self.axis, shape.len())?;
        for i in (5..inputs.len()).step_by(3) {
            let next = inputs.shape(i)?;
            let fits = next.len() == shape.len() && (0..next.len()).all(|d| d == axis || next[d] == shape[d]);
            let sum = next.get(axis).and_then(|n| shape[axis].checked_add(*n)).filter(|_| fits);
            shape[axis] = sum.ok_or_else(|| OpError::shape(format!("shape {next:?} does not continue {:?} along axis {axis}", shape.as_slice())))?;
        }
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        let axis = axis(self.axis, y.shape().len())?;
        if y.shape().contains(&0) {
            return Ok(());
        }
        let row = product(&y.shape()[axis..])?;
        let to = Level::read(inputs, 0, 1)?;
        let mut offset = 0;
        for i in (2..inputs.len()).step_by(3) {
            let x = inputs.at(i)?;
            let from = Level::read(inputs, i + 1, i + 2)?;
            let width = product(&x.shape()[axis..])?;
            write_part(x, (from, to), (offset, width, row), y)?;
            offset += width;
        }
        Ok(())
    }
}

/// Writes the rows of `x`, requantised, into rows of `y` from an offset on.
fn write_part(x: View<'_>, (from, to): (Level, Level), (offset, width, row): (usize, usize, usize), y: &mut ViewMut<'_>) -> Result<(), OpError> {
    if width == 0 {
        return Ok(());
    }
    with_code!(x.dtype(), T => {
        let table = (from != to).then(|| table::<T>(from, to, |v| v));
        for (x, y) in x.slice::<T>()?.chunks_exact(width).zip(y.slice::<T>()?.chunks_exact_mut(row)) {
            let y = &mut y[offset..offset + width];
            match &table {
                Some(table) => look_up(table, x, y),
                None => y.copy_from_slice(x),
            }
        }
        Ok(())
    })
}

/// One of two operands, requantised, by a condition.
#[derive(Debug)]
struct Choice;

impl Op for Choice {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 9)?;
        expect(inputs, 1, &[2, 5, 7], &[3, 4, 6, 8])?;
        Ok(inputs[1].iter().cloned().collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![broadcast::shape([inputs.shape(0)?, inputs.shape(1)?, inputs.shape(4)?])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (condition, a, b, y) = (inputs.at(0)?, inputs.at(1)?, inputs.at(4)?, outputs.at(0)?);
        let (a_level, b_level, to) = (Level::read(inputs, 2, 3)?, Level::read(inputs, 5, 6)?, Level::read(inputs, 7, 8)?);
        let plan = Broadcast::new(y.shape(), [condition.shape(), a.shape(), b.shape()]);
        let condition = condition.slice::<bool>()?;
        with_code!(a.dtype(), T => {
            let (a, b, y) = (a.slice::<T>()?, b.slice::<T>()?, y.slice::<T>()?);
            let (a_table, b_table) = (table::<T>(a_level, to, |v| v), table::<T>(b_level, to, |v| v));
            plan.for_each(|run| {
                let at = |operand: usize, i: usize| run.from[operand] + if run.moves[operand] { i } else { 0 };
                for (i, y) in y[run.start..run.start + run.len].iter_mut().enumerate() {
                    let (table, code) = if condition[at(0, i)] { (&a_table, a[at(1, i)]) } else { (&b_table, b[at(2, i)]) };
                    *y = table[(code.get() & 255) as usize];
                }
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn ms(name: &'static str) -> Case {
        op(name).domain("com.microsoft")
    }

    fn level<T: Element>(scale: f32, zero: T) -> [Tensor; 2] {
        [Tensor::scalar(scale), Tensor::scalar(zero)]
    }

    #[test]
    fn sums_and_products() {
        let (a, b) = (tensor(&[2, 2], &[10_u8, 20, 30, 255]), tensor(&[2], &[1_u8, 255]));
        let ([a_scale, a_zero], [b_scale, b_zero], [y_scale, y_zero]) = (level(0.5, 10_u8), level(1.0, 1_u8), level(2.0, 100_u8));
        let inputs = [&a, &a_scale, &a_zero, &b, &b_scale, &b_zero, &y_scale, &y_zero];
        assert_eq!(ms("QLinearAdd").one(&inputs), tensor(&[2, 2], &[100_u8, 230, 105, 255]));
        assert_eq!(ms("QLinearMul").one(&inputs), tensor(&[2, 2], &[100_u8, 255, 100, 255]));
        let plain = ms("MulInteger").one(&[&a, &a_zero, &b, &b_zero]);
        assert_eq!(plain, tensor(&[2, 2], &[0, 2540, 0, 245 * 254]));
        assert!(matches!(ms("QLinearAdd").error(&[&a, &a_scale, &Tensor::scalar(0_i8), &b, &b_scale, &b_zero, &y_scale]), OpError::Type(_)));
        assert!(ms("QLinearAdd").run(&inputs[..5]).is_err());
    }

    #[test]
    fn functions_of_one_operand() {
        let x = tensor(&[3], &[-128_i8, 0, 127]);
        let ([x_scale, x_zero], [y_scale, y_zero]) = (level(0.1, 0_i8), level(1.0 / 256.0, -128_i8));
        let inputs = [&x, &x_scale, &x_zero, &y_scale, &y_zero];
        assert_eq!(ms("QLinearSigmoid").one(&inputs), tensor(&[3], &[-128_i8, 0, 127]));
        let [y_scale, y_zero] = level(0.1, 0_i8);
        let leaky = ms("QLinearLeakyRelu").attr("alpha", 0.5_f32).one(&[&x, &x_scale, &x_zero, &y_scale, &y_zero]);
        assert_eq!(leaky, tensor(&[3], &[-64_i8, 0, 127]));
    }

    #[test]
    fn softmax_of_codes() {
        let x = tensor(&[2, 2], &[200_u8, 200, 0, 255]);
        let ([x_scale, zero], [y_scale, y_zero]) = (level(1.0, 9_u8), level(1.0 / 256.0, 0_u8));
        let run = |opset: i64, axis: i64| ms("QLinearSoftmax").attr("opset", opset).attr("axis", axis).one(&[&x, &x_scale, &zero, &y_scale, &y_zero]);
        assert_eq!(run(13, -1), tensor(&[2, 2], &[128_u8, 128, 0, 255]));
        assert_eq!(run(13, 0), tensor(&[2, 2], &[255_u8, 0, 0, 255]));
        assert_eq!(run(12, 0), tensor(&[2, 2], &[0_u8, 0, 0, 255]));
        let none = ms("QLinearSoftmax").error(&[&x, &x_scale, &zero, &y_scale, &y_zero]);
        assert!(matches!(none, OpError::Attribute(_)));
    }

    #[test]
    fn concatenation_and_choice_requantise() {
        let (a, b) = (tensor(&[1, 2], &[0_u8, 10]), tensor(&[1, 1], &[20_u8]));
        let ([one, zero], [double, five]) = (level(1.0, 0_u8), level(2.0, 5_u8));
        let joined = ms("QLinearConcat").attr("axis", 1_i64).one(&[&double, &five, &a, &one, &zero, &b, &double, &five]);
        assert_eq!(joined, tensor(&[1, 3], &[5_u8, 10, 20]));
        let across = ms("QLinearConcat").attr("axis", 0_i64);
        assert!(matches!(across.error(&[&double, &five, &a, &one, &zero, &b, &one, &zero]), OpError::Shape(_)));
        assert!(matches!(across.error(&[&double, &five, &a, &one, &zero, &b]), OpError::Shape(_)));
        let condition = tensor(&[2, 1], &[true, false]);
        let chosen = ms("QLinearWhere").one(&[&condition, &a, &one, &zero, &b, &double, &five, &double, &five]);
        assert_eq!(chosen, tensor(&[2, 2], &[5_u8, 10, 20, 20]));
    }
}
