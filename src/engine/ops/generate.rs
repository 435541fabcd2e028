//! Tensors out of sizes and few numbers: Shape, Size, ConstantOfShape, Range, OneHot, Trilu, EyeLike.

use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axis, ints, require, same_type, size};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, from: u16, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Shape", 1, types::ALL, |a| {
        // The range of axes came with opset 15; before, the attributes stay unread and are refused.
        let (start, end) = if a.opset < 15 { (0, None) } else { (a.int_or("start", 0)?, a.int("end")?) };
        Ok(Box::new(ShapeOf { start, end }))
    }),
    def("Size", 1, types::ALL, |_| Ok(Box::new(Size))),
    def("ConstantOfShape", 9, &[DType::I64], constant_of_shape),
    def("Range", 11, types::NUMBERS, |_| Ok(Box::new(Range { needed: 3 }))),
    OpDef { domain: "com.microsoft", ..def("Range", 1, types::NUMBERS, |_| Ok(Box::new(Range { needed: 2 }))) },
    def("OneHot", 9, types::NUMBERS, |a| Ok(Box::new(OneHot { axis: a.int_or("axis", -1)?, from_end: a.opset >= 11 }))),
    def("Trilu", 14, types::ALL, |a| Ok(Box::new(Trilu { upper: a.bool_or("upper", true)? }))),
    OpDef { domain: "com.microsoft", ..def("Trilu", 1, types::ALL, |a| Ok(Box::new(Trilu { upper: a.bool_or("upper", true)? }))) },
    def("EyeLike", 9, types::FIXED_SIZE, eye_like),
];

/// Some dimensions of a tensor.
#[derive(Debug)]
struct ShapeOf {
    start: i64,
    end: Option<i64>,
}

impl ShapeOf {
    fn dims(&self, shape: &[usize]) -> Vec<i64> {
        let rank = shape.len() as i64;
        let clamp = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), self.end.map_or(shape.len(), clamp));
        shape.get(start..end).unwrap_or_default().iter().map(|&n| n as i64).collect()
    }
}

impl Op for ShapeOf {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![smallvec![self.dims(inputs.shape(0)?).len()]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.slice::<i64>()?.copy_from_slice(&self.dims(inputs.at(0)?.shape()));
        Ok(())
    }

    fn values_from_shapes(&self, inputs: &Facts<'_>) -> Option<Vec<Tensor>> {
        Some(vec![Tensor::vector(self.dims(inputs.shape(0).ok()?))])
    }
}

/// The number of elements.
#[derive(Debug)]
struct Size;

impl Op for Size {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        inputs.shape(0)?;
        Ok(vec![Shape::new()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.slice::<i64>()?.fill(inputs.at(0)?.len() as i64);
        Ok(())
    }

    fn values_from_shapes(&self, inputs: &Facts<'_>) -> Option<Vec<Tensor>> {
        Some(vec![Tensor::scalar(inputs.shape(0).ok()?.iter().product::<usize>() as i64)])
    }
}

/// One value in a shape that is input 0.
#[derive(Debug)]
struct ConstantOfShape {
    value: Tensor,
}

fn constant_of_shape(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let value = attrs.tensor("value")?.unwrap_or_else(|| Tensor::vector(vec![0.0_f32]));
    if value.len() != 1 {
        return Err(OpError::Attribute(format!("attribute `value` has {} elements, not one", value.len())));
    }
    Ok(Box::new(ConstantOfShape { value }))
}

impl Op for ConstantOfShape {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(self.value.dtype())])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.ints(0)?.into_iter().map(size).collect::<Result<_, _>>()?])
    }

    fn run(&self, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (value, y) = (self.value.view().bits(), &mut outputs.at(0)?.bits());
        with_bits!(value.dtype(), T => {
            let value = value.slice::<T>()?;
            y.slice::<T>()?.iter_mut().for_each(|y| y.clone_from(&value[0]));
            Ok(())
        })
    }
}

/// Numbers from a start to a limit, by a step.
#[derive(Debug)]
struct Range {
    /// How many of start, limit and step must be given; the step is 1 without an input.
    needed: usize,
}

fn only<T: Element + Copy>(view: View<'_>) -> Result<T, OpError> {
    match view.slice::<T>()? {
        [value] => Ok(*value),
        other => Err(OpError::shape(format!("one number is needed, {} are given", other.len()))),
    }
}

/// How many steps there are.
fn steps<T: Number>(start: T, limit: T, delta: T) -> Result<usize, OpError> {
    if delta == T::ZERO || delta.nan() {
        return Err(OpError::value("the step of a range is 0"));
    }
    if T::FLOAT {
        // The conversion saturates; what is too large is refused with the output's size.
        return Ok(((limit.to_f64() - start.to_f64()) / delta.to_f64()).ceil().max(0.0) as usize);
    }
    // 128 bits hold every difference of 64-bit numbers, signed or not.
    let wide = |v: T| if T::LOWEST == T::ZERO { i128::from(v.to_i64() as u64) } else { i128::from(v.to_i64()) };
    let (span, delta) = (wide(limit) - wide(start), wide(delta));
    let count = if (span > 0) == (delta > 0) { span.unsigned_abs().div_ceil(delta.unsigned_abs()) } else { 0 };
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

impl Op for Range {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, self.needed, 0..3)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (start, limit) = (inputs.value(0)?.view(), inputs.value(1)?.view());
        let delta = inputs.get(2).map(|_| inputs.value(2)).transpose()?.map(Tensor::view);
        let dtype = start.dtype();
        let count = with_number!(dtype, T => steps::<T>(only(start)?, only(limit)?, delta.map_or(Ok(T::ONE), only)?)?,
            else return Err(OpError::wrong_type(DType::I64, dtype)));
        Ok(vec![smallvec![count]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let start = inputs.at(0)?;
        with_number!(start.dtype(), T => {
            let (start, delta) = (only::<T>(start)?, inputs.get(2).map_or(Ok(T::ONE), only)?);
            for (i, y) in outputs.at(0)?.slice::<T>()?.iter_mut().enumerate() {
                // Floats are rounded once: half precision cannot even count to the length of most ranges.
                *y = if T::FLOAT {
                    T::from_f64(start.to_f64() + i as f64 * delta.to_f64())
                } else {
                    start.add(T::from_i64(i as i64).mul(delta))
                };
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::I64, start.dtype())))
    }
}

/// A new axis on which one element is "on".
#[derive(Debug)]
struct OneHot {
    axis: i64,
    /// Whether negative indices count from the end; before opset 11 they are out of range.
    from_end: bool,
}

/// The one number of a tensor, as an integer.
fn integer(view: View<'_>) -> Result<i64, OpError> {
    with_number!(view.dtype(), T => match view.slice::<T>()? {
        [value] => Ok(value.to_i64()),
        other => Err(OpError::shape(format!("one number is needed, {} are given", other.len()))),
    }, else Err(OpError::wrong_type(DType::I64, view.dtype())))
}

impl Op for OneHot {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, [2])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let axis = axis(self.axis, shape.len() + 1)?;
        if inputs.shape(2)? != [2] {
            return Err(OpError::shape(format!("two values are needed, of shape {:?}", inputs.shape(2)?)));
        }
        shape.insert(axis, size(integer(inputs.value(1)?.view())?)?);
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Element>(on: &[Option<usize>], (depth, inner): (usize, usize), values: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
            let (values, y) = (values.slice::<T>()?, y.slice::<T>()?);
            y.fill(values[0].clone());
            for (i, class) in on.iter().enumerate() {
                if let Some(class) = class {
                    y[(i / inner * depth + class) * inner + i % inner] = values[1].clone();
                }
            }
            Ok(())
        }
        let (x, values, y) = (inputs.at(0)?, inputs.at(2)?, outputs.at(0)?);
        let (_, depth, inner) = around(y.shape(), axis(self.axis, y.shape().len())?);
        // What is out of range is nowhere on.
        let class = |i: i64| {
            let i = if i < 0 && self.from_end { i.saturating_add(depth as i64) } else { i };
            usize::try_from(i).ok().filter(|&i| i < depth)
        };
        let on: Vec<Option<usize>> = with_number!(x.dtype(), T => x.slice::<T>()?.iter().map(|v| class(v.to_i64())).collect(),
            else return Err(OpError::wrong_type(DType::I64, x.dtype())));
        let (values, y) = (values.bits(), &mut y.bits());
        with_bits!(values.dtype(), T => body::<T>(&on, (depth, inner), values, y))
    }
}

/// The upper or lower triangle of matrices.
#[derive(Debug)]
struct Trilu {
    upper: bool,
}

impl Op for Trilu {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        if shape.len() < 2 { Err(OpError::shape(format!("{shape:?} is no matrix"))) } else { Ok(vec![shape.into()]) }
    }

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, [0])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Element>(x: View<'_>, y: &mut ViewMut<'_>, keep: impl Fn(i64, i64) -> bool) -> Result<(), OpError> {
            let [.., rows, columns] = *x.shape() else { return Err(OpError::shape("no matrix")) };
            for (i, (y, x)) in y.slice::<T>()?.iter_mut().zip(x.slice::<T>()?).enumerate() {
                let (row, column) = (i / columns % rows, i % columns);
                *y = if keep(row as i64, column as i64) { x.clone() } else { T::default() };
            }
            Ok(())
        }
        let x = inputs.at(0)?;
        let k = match inputs.get(1).map(ints).transpose()?.as_deref() {
            None => 0,
            Some([k]) => *k,
            Some(other) => return Err(OpError::shape(format!("one number is needed, {} are given", other.len()))),
        };
        let keep = |row: i64, column: i64| {
            let diagonal = row.saturating_add(k);
            if self.upper { column >= diagonal } else { column <= diagonal }
        };
        let (x, y) = (x.bits(), &mut outputs.at(0)?.bits());
        with_bits!(x.dtype(), T => body::<T>(x, y, keep))
    }
}

/// Ones on a diagonal, in the shape of input 0.
#[derive(Debug)]
struct EyeLike {
    dtype: Option<DType>,
    k: i64,
}

fn eye_like(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let dtype = match attrs.int("dtype")? {
        None => None,
        Some(number) => match i32::try_from(number).ok().and_then(DType::from_onnx) {
            Some(DType::String) | None => return Err(OpError::unsupported(format!("element type {number} is not supported"))),
            known => known,
        },
    };
    Ok(Box::new(EyeLike { dtype, k: attrs.int_or("k", 0)? }))
}

impl Op for EyeLike {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let like = same_type(inputs, 1, [0])?;
        Ok(self.dtype.map_or(like, |dtype| smallvec![Kind::Tensor(dtype)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        match inputs.shape(0)? {
            shape @ [_, _] => Ok(vec![shape.into()]),
            other => Err(OpError::shape(format!("{other:?} is no matrix"))),
        }
    }

    fn run(&self, _: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        let columns = y.shape().get(1).copied().unwrap_or(1).max(1);
        let on = |i: usize| ((i / columns) as i64).checked_add(self.k) == Some((i % columns) as i64);
        let dtype = y.dtype();
        if dtype == DType::Bool {
            y.slice::<bool>()?.iter_mut().enumerate().for_each(|(i, y)| *y = on(i));
            return Ok(());
        }
        with_number!(dtype, T => {
            y.slice::<T>()?.iter_mut().enumerate().for_each(|(i, y)| *y = if on(i) { T::ONE } else { T::ZERO });
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, dtype)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn shapes_and_sizes() {
        let x = Tensor::zeros(DType::String, &[2, 0, 4]);
        assert_eq!(op("Shape").one(&[&x]), list(&[2, 0, 4]));
        assert_eq!(op("Shape").attr("start", 1_i64).one(&[&x]), list(&[0, 4]));
        assert_eq!(op("Shape").attr("start", -9_i64).attr("end", -1_i64).one(&[&x]), list(&[2, 0]));
        assert_eq!(op("Shape").attr("start", 2_i64).attr("end", 1_i64).one(&[&x]), list(&[]));
        assert!(op("Shape").opset(14).attr("start", 1_i64).run(&[&x]).is_err());
        assert_eq!(op("Shape").one(&[&Tensor::scalar(1.0_f32)]), list(&[]));
        assert_eq!(op("Size").one(&[&x]), Tensor::scalar(0_i64));
        assert_eq!(op("Size").one(&[&Tensor::zeros(DType::F32, &[2, 3])]), Tensor::scalar(6_i64));
    }

    #[test]
    fn constants_of_a_shape() {
        assert_eq!(op("ConstantOfShape").one(&[&list(&[2])]), tensor(&[2], &[0.0_f32; 2]));
        let five = op("ConstantOfShape").attr("value", tensor(&[1], &[5_i64]));
        assert_eq!(five.one(&[&list(&[1, 2])]), tensor(&[1, 2], &[5_i64, 5]));
        assert_eq!(five.one(&[&list(&[])]), Tensor::scalar(5_i64));
        assert!(matches!(five.error(&[&list(&[-1])]), OpError::Value(_)));
        assert!(matches!(five.error(&[&list(&[1 << 40, 1 << 40])]), OpError::Shape(_)));
        assert!(matches!(op("ConstantOfShape").attr("value", list(&[1, 2])).error(&[&list(&[1])]), OpError::Attribute(_)));
    }

    #[test]
    fn ranges_of_any_type() {
        let range = |a: i64, b: i64, c: i64| op("Range").run(&[&Tensor::scalar(a), &Tensor::scalar(b), &Tensor::scalar(c)]);
        assert_eq!(range(1, 6, 2).unwrap()[0], list(&[1, 3, 5]));
        assert_eq!(range(6, 1, -3).unwrap()[0], list(&[6, 3]));
        assert_eq!(range(1, 1, 1).unwrap()[0], list(&[]));
        assert_eq!(range(1, 0, 1).unwrap()[0], list(&[]));
        assert!(range(0, 1, 0).is_err());
        assert!(range(i64::MIN, i64::MAX, 1).is_err());
        let floats = [0.0_f32, 1.0, 0.25].map(Tensor::scalar);
        assert_eq!(op("Range").one(&[&floats[0], &floats[1], &floats[2]]), tensor(&[4], &[0.0_f32, 0.25, 0.5, 0.75]));
        let nan = Tensor::scalar(f32::NAN);
        assert!(op("Range").run(&[&floats[0], &floats[1], &nan]).is_err());
        assert_eq!(op("Range").one(&[&nan, &floats[1], &floats[2]]).len(), 0);
        assert_eq!(op("Range").shapes_without_values(&[&nan, &nan, &nan]), Err(OpError::Unknown));
    }

    #[test]
    fn one_hot_along_any_axis() {
        let (x, depth, values) = (list(&[0, 2, -1, 9]), Tensor::scalar(3_i64), tensor(&[2], &[0_i32, 1]));
        let y = op("OneHot").one(&[&x, &depth, &values]);
        assert_eq!(y, tensor(&[4, 3], &[1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]));
        let first = op("OneHot").attr("axis", 0_i64).one(&[&list(&[0, 1]), &Tensor::scalar(2.0_f32), &values]);
        assert_eq!(first, tensor(&[2, 2], &[1, 0, 0, 1]));
        assert!(op("OneHot").attr("axis", 2_i64).run(&[&x, &depth, &values]).is_err());
        assert!(op("OneHot").run(&[&x, &Tensor::scalar(-1_i64), &values]).is_err());
        assert!(op("OneHot").run(&[&x, &depth, &x]).is_err());
    }

    #[test]
    fn triangles_and_diagonals() {
        let x = tensor(&[2, 3], &[1_i64, 2, 3, 4, 5, 6]);
        assert_eq!(op("Trilu").one(&[&x]), tensor(&[2, 3], &[1_i64, 2, 3, 0, 5, 6]));
        assert_eq!(op("Trilu").attr("upper", 0_i64).one(&[&x, &Tensor::scalar(1_i64)]), tensor(&[2, 3], &[1_i64, 2, 0, 4, 5, 6]));
        assert_eq!(op("Trilu").one(&[&x, &Tensor::scalar(i64::MIN)]), x);
        assert!(op("Trilu").run(&[&list(&[1])]).is_err());
        assert_eq!(op("EyeLike").attr("k", 1_i64).one(&[&x]), tensor(&[2, 3], &[0_i64, 1, 0, 0, 0, 1]));
        assert_eq!(op("EyeLike").attr("dtype", 9_i64).one(&[&x]), tensor(&[2, 3], &[true, false, false, false, true, false]));
        assert!(op("EyeLike").run(&[&list(&[1])]).is_err());
        assert!(op("EyeLike").attr("dtype", 8_i64).run(&[&x]).is_err());
    }
}
