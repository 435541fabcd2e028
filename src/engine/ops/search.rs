//! Where elements are: ArgMax, ArgMin, TopK, NonZero.

use std::cmp::Ordering;

use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axis, require, size};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_bits, with_dtype, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Kind, Tensor, Value};
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::NUMBERS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("ArgMax", 1..=ANY, |a| arg(a, Ordering::Greater)),
    def("ArgMin", 1..=ANY, |a| arg(a, Ordering::Less)),
    def("TopK", 1..=9, |a| {
        let k = a.required("k", a.int("k")?)?;
        Ok(Box::new(TopK { k: Some(k), axis: a.int_or("axis", -1)?, largest: true }))
    }),
    def("TopK", 10..=ANY, |a| {
        // The order of the result is free if it need not be sorted; here it always is.
        a.ignore(&["sorted"]);
        Ok(Box::new(TopK { k: None, axis: a.int_or("axis", -1)?, largest: a.bool_or("largest", true)? }))
    }),
    OpDef { types: types::WIDE, ..def("NonZero", 9..=ANY, |_| Ok(Box::new(NonZero))) },
];

/// The order of two numbers, in which NaN is the greatest.
fn order<T: Number>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.nan().cmp(&b.nan()))
}

/// The position of the greatest or smallest element along an axis; NaN wins either.
#[derive(Debug)]
struct Arg {
    wanted: Ordering,
    axis: i64,
    keep: bool,
    last: bool,
}

fn arg(attrs: &Attrs, wanted: Ordering) -> Result<Box<dyn Op>, OpError> {
    let last = attrs.opset >= 12 && attrs.bool_or("select_last_index", false)?;
    Ok(Box::new(Arg { wanted, axis: attrs.int_or("axis", 0)?, keep: attrs.bool_or("keepdims", true)?, last }))
}

impl Arg {
    fn better<T: Number>(&self, a: T, b: T) -> bool {
        match (a.nan(), b.nan()) {
            (true, true) => self.last,
            (true, false) => true,
            (false, true) => false,
            _ => {
                let order = order(a, b);
                order == self.wanted || (self.last && order == Ordering::Equal)
            }
        }
    }

    fn run_typed<T: Number>(&self, x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (_, size, inner) = around(x.shape(), axis(self.axis, x.shape().len())?);
        let (x, y) = (x.slice::<T>()?, y.slice::<i64>()?);
        for (i, y) in y.iter_mut().enumerate() {
            let start = i / inner * size * inner + i % inner;
            let mut best = 0;
            for j in 1..size {
                if self.better(x[start + j * inner], x[start + best * inner]) {
                    best = j;
                }
            }
            *y = best as i64;
        }
        Ok(())
    }
}

impl Op for Arg {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let axis = axis(self.axis, shape.len())?;
        // Where the result has no element either, none is missing.
        if shape[axis] == 0 && shape.iter().enumerate().all(|(at, &size)| at == axis || size > 0) {
            return Err(OpError::shape(format!("axis {axis} of {:?} has no element", shape.as_slice())));
        }
        if self.keep {
            shape[axis] = 1;
        } else {
            shape.remove(axis);
        }
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        with_number!(x.dtype(), T => self.run_typed::<T>(x, outputs.at(0)?), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// The k greatest or smallest elements along an axis, best first, and their positions.
#[derive(Debug)]
struct TopK {
    /// How many, if it is no input.
    k: Option<i64>,
    axis: i64,
    largest: bool,
}

/// An element's key, in the order that is asked for, and its position.
type Ranked = (u64, usize);

impl TopK {
    /// Fills `line` with the elements that begin at `start`, in steps of `step`.
    fn rank(&self, x: View<'_>, start: usize, step: usize, line: &mut [Ranked]) -> Result<(), OpError> {
        let flip = if self.largest { u64::MAX } else { 0 };
        with_number!(x.dtype(), T => {
            let elements = x.slice::<T>()?[start..].iter().step_by(step);
            line.iter_mut().zip(elements.enumerate()).for_each(|(to, (j, v))| *to = (v.key() ^ flip, j));
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }

    fn select(&self, x: View<'_>, k: usize, outputs: &mut Outputs<'_, '_>) -> Result<(), OpError> {
        let (outer, size, inner) = around(x.shape(), axis(self.axis, x.shape().len())?);
        let mut best = vec![0; outer * k * inner];
        let mut line: Vec<Ranked> = vec![(0, 0); size];
        for o in 0..outer {
            for i in 0..inner {
                self.rank(x, o * size * inner + i, inner, &mut line)?;
                // Of equal elements the first comes first: the position is part of what is compared.
                if k < size {
                    line.select_nth_unstable(k - 1);
                }
                line[..k].sort_unstable();
                for (rank, &(_, j)) in line[..k].iter().enumerate() {
                    best[(o * k + rank) * inner + i] = j;
                }
            }
        }
        if let Some(values) = outputs.get(0) {
            let (x, mut values) = (x.bits(), values.bits());
            with_bits!(x.dtype(), T => {
                let x = x.slice::<T>()?;
                for (i, (y, &j)) in values.slice::<T>()?.iter_mut().zip(&best).enumerate() {
                    y.clone_from(&x[(i / (k * inner) * size + j) * inner + i % inner]);
                }
            });
        }
        if let Some(indices) = outputs.get(1) {
            indices.slice::<i64>()?.iter_mut().zip(&best).for_each(|(y, &j)| *y = j as i64);
        }
        Ok(())
    }
}

impl Op for TopK {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, if self.k.is_some() { 1 } else { 2 })?;
        Ok(smallvec![inputs[0].clone().expect("it is required"), Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let axis = axis(self.axis, shape.len())?;
        let k = match self.k {
            Some(k) => k,
            None => *inputs.ints(1)?.first().ok_or_else(|| OpError::shape("input 1 has no element"))?,
        };
        let k = size(k)?;
        if k > shape[axis] {
            return Err(OpError::value(format!("the best {k} of {} elements", shape[axis])));
        }
        shape[axis] = k;
        Ok(vec![shape.clone(), shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axis = axis(self.axis, x.shape().len())?;
        let shape = outputs.get(0).map(|y| y.shape()).or(outputs.get(1).map(|y| y.shape()));
        let Some(k) = shape.map(|shape| shape[axis]) else { return Ok(()) };
        if k == 0 || x.is_empty() {
            return Ok(());
        }
        self.select(x, k, outputs)
    }
}

/// The coordinates of all elements that are not zero: a row per axis, a column per element.
#[derive(Debug)]
struct NonZero;

impl Op for NonZero {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(smallvec![Kind::Tensor(DType::I64)])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        inputs.shape(0)?;
        Err(OpError::Unknown)
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(OpError::Unknown)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], _: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Some(Some(Value::Tensor(x))) = inputs.first() else { return Err(OpError::missing_input(0)) };
        let view = x.view();
        // Zero is the default of every type: `false`, and the empty text.
        let found: Vec<usize> = with_dtype!(x.dtype(), T => {
            let (values, zero) = (view.slice::<T>()?, T::default());
            (0..values.len()).filter(|&i| values[i] != zero).collect()
        });
        let mut coordinates = Vec::with_capacity(found.len() * x.shape().len());
        for (n, stride) in x.shape().iter().zip(super::axes::strides(x.shape())) {
            coordinates.extend(found.iter().map(|i| (i / stride % n) as i64));
        }
        let shape = [x.shape().len(), found.len()];
        let tensor = Tensor::new(&shape, coordinates).ok_or_else(|| OpError::shape("as many coordinates as elements and axes"))?;
        Ok(vec![Value::Tensor(tensor)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, op, tensor};
    use super::*;
    use half::f16;

    #[test]
    fn positions_of_extremes() {
        let x = tensor(&[2, 3], &[2.0_f32, 5.0, 5.0, 1.0, 0.0, 0.0]);
        assert_eq!(op("ArgMax").attr("axis", 1_i64).one(&[&x]), tensor(&[2, 1], &[1_i64, 0]));
        assert_eq!(op("ArgMin").attr("axis", -1_i64).attr("keepdims", 0_i64).one(&[&x]), tensor(&[2], &[0_i64, 1]));
        assert_eq!(op("ArgMax").one(&[&x]), tensor(&[1, 3], &[0_i64, 0, 0]));
        let last = |name| op(name).attr("axis", 1_i64).attr("select_last_index", 1_i64);
        assert_eq!(last("ArgMax").one(&[&x]), tensor(&[2, 1], &[2_i64, 0]));
        assert_eq!(last("ArgMin").one(&[&x]), tensor(&[2, 1], &[0_i64, 2]));
        assert!(last("ArgMax").opset(11).run(&[&x]).is_err());
        let nan = tensor(&[3], &[1.0_f32, f32::NAN, 3.0]);
        assert_eq!(op("ArgMax").one(&[&nan]), tensor(&[1], &[1_i64]));
        assert_eq!(op("ArgMin").one(&[&nan]), tensor(&[1], &[1_i64]));
        assert_eq!(op("ArgMax").one(&[&tensor(&[2], &[f16::ZERO, f16::ONE])]), tensor(&[1], &[1_i64]));
        assert!(matches!(op("ArgMax").error(&[&tensor::<f32>(&[0], &[])]), OpError::Shape(_)));
        assert!(matches!(op("ArgMax").attr("axis", 2_i64).error(&[&x]), OpError::Value(_)));
        assert_eq!(op("ArgMax").attr("axis", 1_i64).one(&[&tensor::<f32>(&[0, 2], &[])]).shape(), [0, 1]);
        assert_eq!(op("ArgMax").attr("axis", 1_i64).one(&[&tensor::<i64>(&[3, 0, 0], &[])]).shape(), [3, 1, 0]);
    }

    #[test]
    fn the_best_come_first() {
        let x = tensor(&[2, 4], &[3.0_f32, 1.0, 4.0, 4.0, f32::NAN, 0.0, -1.0, 2.0]);
        let k = tensor(&[1], &[2_i64]);
        let top = op("TopK").outputs(2).run(&[&x, &k]).unwrap();
        assert_close(&top[0], &[2, 2], &[4.0, 4.0, f32::NAN, 2.0], 0.0);
        assert_eq!(top[1], tensor(&[2, 2], &[2_i64, 3, 0, 3]));
        let low = op("TopK").attr("largest", 0_i64).outputs(2).run(&[&x, &k]).unwrap();
        assert_eq!(low[1], tensor(&[2, 2], &[1_i64, 0, 2, 1]));
        let old = op("TopK").opset(9).attr("k", 1_i64).attr("axis", 0_i64).outputs(2).run(&[&tensor(&[2, 2], &[1.0_f32, 9.0, 5.0, 3.0])]);
        assert_eq!(old.unwrap(), [tensor(&[1, 2], &[5.0_f32, 9.0]), tensor(&[1, 2], &[1_i64, 0])]);
        assert!(matches!(op("TopK").outputs(2).error(&[&x, &tensor(&[1], &[5_i64])]), OpError::Value(_)));
        assert!(matches!(op("TopK").outputs(2).error(&[&x, &tensor(&[1], &[-1_i64])]), OpError::Value(_)));
        assert!(matches!(op("TopK").outputs(2).error(&[&x, &tensor::<i64>(&[0], &[])]), OpError::Shape(_)));
        assert_eq!(op("TopK").outputs(2).run(&[&x, &tensor(&[1], &[0_i64])]).unwrap()[0].shape(), [2, 0]);
        assert_eq!(op("TopK").shapes_without_values(&[&x, &k]), Err(OpError::Unknown));
    }

    #[test]
    fn non_zero_gives_coordinates() {
        let x = tensor(&[2, 2], &[1.0_f32, 0.0, f32::NAN, 4.0]);
        assert_eq!(op("NonZero").one(&[&x]), tensor(&[2, 3], &[0_i64, 1, 1, 0, 0, 1]));
        assert_eq!(op("NonZero").one(&[&tensor(&[3], &[false, true, false])]), tensor(&[1, 1], &[1_i64]));
        assert_eq!(op("NonZero").one(&[&tensor(&[2], &["", "a"].map(str::to_owned))]), tensor(&[1, 1], &[1_i64]));
        assert_eq!(op("NonZero").one(&[&tensor::<i64>(&[0, 3], &[])]).shape(), [2, 0]);
        assert_eq!(op("NonZero").one(&[&Tensor::scalar(5_i64)]).shape(), [0, 1]);
    }
}
