//! Reductions over axes: ReduceSum, Mean, Max, Min, Prod, L1, L2, LogSum, LogSumExp, SumSquare.
//!
//! The elements of each reduction are first laid out as a row, in row-major order, so that a result depends on their
//! sequence alone and not on where they lie.

pub(crate) mod gradient;

use smallvec::SmallVec;

use super::ANY;
use super::axes::{Axes, axes, ints, offsets, same_type, strides};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_number};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

/// The rows of a reduction whose axes are an attribute up to an opset, and an input after it.
macro_rules! rows {
    ($($name:literal, $function:ident, $last:literal, $types:expr;)*) => {
        &[$(
            OpDef { name: $name, domain: "", opsets: 1..=$last, types: $types, build: |a| {
                Ok(Box::new(Reduce { axes: Some(a.ints("axes")?.unwrap_or_default()), ..reduce(a, Function::$function)? }))
            } },
            OpDef { name: $name, domain: "", opsets: $last + 1..=ANY, types: $types, build: |a| {
                let noop = a.bool_or("noop_with_empty_axes", false)?;
                Ok(Box::new(Reduce { noop, ..reduce(a, Function::$function)? }))
            } },
        )*]
    };
}

pub(crate) const DEFS: &[OpDef] = rows! {
    "ReduceSum", Sum, 12, types::NUMBERS;
    "ReduceMean", Mean, 17, types::NUMBERS;
    "ReduceMax", Max, 17, types::FIXED_SIZE;
    "ReduceMin", Min, 17, types::FIXED_SIZE;
    "ReduceProd", Prod, 17, types::NUMBERS;
    "ReduceL1", L1, 17, types::NUMBERS;
    "ReduceL2", L2, 17, types::NUMBERS;
    "ReduceLogSum", LogSum, 17, types::NUMBERS;
    "ReduceLogSumExp", LogSumExp, 17, types::NUMBERS;
    "ReduceSumSquare", SumSquare, 17, types::NUMBERS;
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

#[derive(Debug)]
struct Reduce {
    function: Function,
    /// The axes, if they are an attribute; empty for all. If none, they are input 1.
    axes: Option<Vec<i64>>,
    keep: bool,
    /// Whether no axes mean that each element is reduced on its own.
    noop: bool,
}

fn reduce(attrs: &Attrs, function: Function) -> Result<Reduce, OpError> {
    Ok(Reduce { function, axes: None, keep: attrs.bool_or("keepdims", true)?, noop: false })
}

impl Function {
    fn f32(self, isa: Isa, row: &[f32]) -> f32 {
        match self {
            Self::Sum => vector::sum(isa, row),
            Self::Mean => vector::sum(isa, row) / row.len() as f32,
            Self::Max => vector::max(isa, row),
            Self::LogSum => vector::sum(isa, row).ln(),
            other => other.number(row),
        }
    }

    /// Floats in f64, rounded once; integers wrap.
    fn number<T: Number>(self, row: &[T]) -> T {
        let wide = || row.iter().map(|v| v.to_f64());
        // Not `Iterator::sum`, for which nothing adds up to −0.
        let total = |f: fn(f64) -> f64| wide().map(f).fold(0.0, |sum: f64, v| sum + v);
        let exact = |f: fn(T) -> T| row.iter().fold(T::ZERO, |sum, &v| sum.add(f(v)));
        match self {
            Self::Max => row.iter().copied().fold(T::LOWEST, T::greater),
            Self::Min => row.iter().copied().fold(T::HIGHEST, T::smaller),
            Self::Sum if !T::FLOAT => exact(|v| v),
            Self::SumSquare if !T::FLOAT => exact(|v| v.mul(v)),
            Self::L1 if !T::FLOAT => exact(T::abs),
            Self::Prod if !T::FLOAT => row.iter().fold(T::ONE, |product, &v| product.mul(v)),
            Self::Sum => T::from_f64(total(|v| v)),
            Self::Mean => T::from_f64(total(|v| v) / row.len() as f64),
            Self::Prod => T::from_f64(wide().product()),
            Self::L1 => T::from_f64(total(f64::abs)),
            Self::L2 => T::from_f64(total(|v| v * v).sqrt()),
            Self::SumSquare => T::from_f64(total(|v| v * v)),
            Self::LogSum => T::from_f64(total(|v| v).ln()),
            Self::LogSumExp => {
                let greatest = wide().fold(f64::NEG_INFINITY, Number::greater);
                // An infinite maximum is the answer itself; subtracting it would give NaN.
                if greatest.is_infinite() {
                    return T::from_f64(greatest);
                }
                T::from_f64(greatest + wide().map(|v| (v - greatest).exp()).sum::<f64>().ln())
            }
        }
    }
}

impl Reduce {
    /// Which axes are reduced.
    fn reduced(&self, rank: usize, given: Option<&[i64]>) -> Result<Axes, OpError> {
        let list = self.axes.as_deref().or(given).unwrap_or_default();
        if list.is_empty() {
            return Ok(if self.noop { Axes::new() } else { (0..rank).collect() });
        }
        axes(list, rank)
    }

    fn run_typed<T: Number>(
        &self,
        reduced: &[usize],
        x: View<'_>,
        y: &mut ViewMut<'_>,
        (inside, row): (&mut Vec<usize>, &mut Vec<T>),
        f: impl Fn(&[T]) -> T,
    ) -> Result<(), OpError> {
        let shape = x.shape();
        let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
        // Without outputs there may be any number of positions to reduce over.
        if y.is_empty() {
            return Ok(());
        }
        let all = strides(shape);
        let pick = |wanted: bool| -> (Axes, SmallVec<[isize; 6]>) {
            let axes = (0..shape.len()).filter(|d| reduced.contains(d) == wanted);
            axes.map(|d| (shape[d], all[d] as isize)).unzip()
        };
        let ((kept, kept_strides), (gone, gone_strides)) = (pick(false), pick(true));
        inside.clear();
        offsets(&gone, &gone_strides, 0, |at| inside.push(at as usize));
        let contiguous = inside.iter().enumerate().all(|(i, &at)| i == at);
        row.clear();
        row.resize(if contiguous { 0 } else { inside.len() }, T::ZERO);
        let mut y = y.iter_mut();
        offsets(&kept, &kept_strides, 0, |start| {
            let start = start as usize;
            let Some(y) = y.next() else { return };
            *y = if contiguous {
                f(x.get(start..start + inside.len()).unwrap_or_default())
            } else {
                row.iter_mut().zip(&*inside).for_each(|(to, &at)| *to = x[start + at]);
                f(row)
            };
        });
        Ok(())
    }
}

impl Op for Reduce {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = inputs.shape(0)?;
        let given = inputs.get(1).map(|_| inputs.ints(1)).transpose()?;
        let reduced = self.reduced(shape.len(), given.as_deref())?;
        let dims = shape.iter().enumerate().filter_map(|(d, &n)| match reduced.contains(&d) {
            false => Some(n),
            true => self.keep.then_some(1),
        });
        Ok(vec![dims.collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let given = inputs.get(1).map(ints).transpose()?;
        let reduced = self.reduced(x.shape().len(), given.as_deref())?;
        let isa = ctx.isa;
        match x.dtype() {
            DType::F32 => {
                let (mut inside, mut row) = (ctx.scratch.take(), ctx.scratch.take());
                self.run_typed::<f32>(&reduced, x, y, (&mut inside, &mut row), |row| self.function.f32(isa, row))?;
                ctx.scratch.give(row);
                ctx.scratch.give(inside);
                Ok(())
            }
            DType::Bool => self.run_bool(&reduced, x, y),
            dtype => with_number!(dtype, T => self.run_typed::<T>(&reduced, x, y, (&mut vec![], &mut vec![]), |row| self.function.number(row)),
                else Err(OpError::wrong_type(DType::F32, dtype))),
        }
    }
}

impl Reduce {
    /// Whether any is true (maximum), or all are (minimum).
    fn run_bool(&self, reduced: &[usize], x: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        use crate::engine::tensor::{Buffer, Tensor};
        let numbers: Vec<u8> = x.slice::<bool>()?.iter().map(|&v| u8::from(v)).collect();
        let numbers = Tensor::new(x.shape(), numbers).ok_or_else(|| OpError::shape("the input does not fit its shape"))?;
        let mut result = Buffer::U8(vec![0; y.shape().iter().product()]);
        let shape = y.shape();
        let mut view = result.view_mut(shape);
        self.run_typed::<u8>(reduced, numbers.view(), &mut view, (&mut vec![], &mut vec![]), |row| self.function.number(row).min(1))?;
        y.slice::<bool>()?.iter_mut().zip(view.slice::<u8>()?).for_each(|(y, v)| *y = *v != 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn every_function_by_definition() {
        let x = tensor(&[2, 3], &[1.0_f32, -2.0, 3.0, 0.5, 4.0, 2.0]);
        let e = |v: [f32; 3]| v.iter().map(|v| v.exp()).sum::<f32>().ln();
        let cases: &[(&'static str, [f32; 2])] = &[
            ("ReduceSum", [2.0, 6.5]),
            ("ReduceMean", [2.0 / 3.0, 6.5 / 3.0]),
            ("ReduceMax", [3.0, 4.0]),
            ("ReduceMin", [-2.0, 0.5]),
            ("ReduceProd", [-6.0, 4.0]),
            ("ReduceL1", [6.0, 6.5]),
            ("ReduceL2", [14.0_f32.sqrt(), 20.25_f32.sqrt()]),
            ("ReduceLogSum", [2.0_f32.ln(), 6.5_f32.ln()]),
            ("ReduceLogSumExp", [e([1.0, -2.0, 3.0]), e([0.5, 4.0, 2.0])]),
            ("ReduceSumSquare", [14.0, 20.25]),
        ];
        for (name, want) in cases {
            assert_close(&op(name).one(&[&x, &list(&[1])]), &[2, 1], want, 1e-6);
            assert_close(&op(name).attr("keepdims", 0_i64).one(&[&x, &list(&[-1])]), &[2], want, 1e-6);
            assert_close(&op(name).opset(11).attr("axes", &[1_i64][..]).one(&[&x]), &[2, 1], want, 1e-6);
            let wide = tensor(&[2, 3], &x.slice::<f32>().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            let wide = op(name).one(&[&wide, &list(&[1])]);
            let narrowed: Vec<f32> = wide.slice::<f64>().unwrap().iter().map(|&v| v as f32).collect();
            assert_close(&tensor(&[2, 1], &narrowed), &[2, 1], want, 1e-6);
            let half = tensor(&[2, 3], &x.slice::<f32>().unwrap().iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>());
            assert_eq!(op(name).one(&[&half, &list(&[1])]).dtype(), DType::F16);
            assert!(op(name).run(&[&x, &list(&[2])]).is_err());
            assert!(op(name).run(&[&x, &list(&[0, -2])]).is_err());
        }
    }

    #[test]
    fn any_axes_and_none() {
        let x = tensor(&[2, 3, 4], &noise(24, 1));
        let array = x.view().array::<f32>().unwrap().to_owned();
        let want = array.sum_axis(ndarray::Axis(1)).sum_axis(ndarray::Axis(0));
        assert_close(&op("ReduceSum").one(&[&x, &list(&[0, 1])]), &[1, 1, 4], want.as_slice().unwrap(), 1e-5);
        let middle = array.sum_axis(ndarray::Axis(1));
        assert_close(&op("ReduceSum").one(&[&x, &list(&[1])]), &[2, 1, 4], middle.as_slice().unwrap(), 1e-5);
        assert_close(&op("ReduceSum").one(&[&x]), &[1, 1, 1], &[array.sum()], 1e-5);
        assert_close(&op("ReduceSum").attr("keepdims", 0_i64).one(&[&x, &list(&[])]), &[], &[array.sum()], 1e-5);
        assert_eq!(op("ReduceSum").attr("noop_with_empty_axes", 1_i64).one(&[&x]), x);
        let squares = op("ReduceSumSquare").attr("noop_with_empty_axes", 1_i64).one(&[&x]);
        assert_close(&squares, &[2, 3, 4], array.mapv(|v| v * v).as_slice().unwrap(), 1e-6);
        assert_close(&op("ReduceMax").one(&[&Tensor::scalar(3.0_f32)]), &[], &[3.0], 0.0);
        assert_eq!(op("ReduceSum").shapes_without_values(&[&x, &list(&[1])]), Err(OpError::Unknown));
        assert!(matches!(op("ReduceSum").opset(11).error(&[&tensor(&[1], &[true])]), OpError::Type(_)));
    }

    #[test]
    fn nothing_to_reduce_gives_the_neutral_element() {
        let empty = tensor::<f32>(&[2, 0], &[]);
        for (name, neutral) in [
            ("ReduceSum", 0.0),
            ("ReduceL1", 0.0),
            ("ReduceL2", 0.0),
            ("ReduceSumSquare", 0.0),
            ("ReduceProd", 1.0),
            ("ReduceMax", f32::NEG_INFINITY),
            ("ReduceMin", f32::INFINITY),
            ("ReduceLogSum", f32::NEG_INFINITY),
            ("ReduceLogSumExp", f32::NEG_INFINITY),
        ] {
            let found = op(name).one(&[&empty, &list(&[1])]);
            assert_close(&found, &[2, 1], &[neutral; 2], 0.0);
            assert_eq!(found.slice::<f32>().unwrap()[0].is_sign_negative(), neutral < 0.0, "{name}");
            assert_eq!(op(name).one(&[&empty, &list(&[0])]).shape(), [1, 0]);
        }
    }

    #[test]
    fn integers_bools_and_nan() {
        let ints = tensor(&[3], &[i32::MAX, 1, -5]);
        assert_eq!(op("ReduceSum").one(&[&ints]), tensor(&[1], &[i32::MAX.wrapping_add(1).wrapping_sub(5)]));
        assert_eq!(op("ReduceMin").one(&[&ints]), tensor(&[1], &[-5]));
        assert_eq!(op("ReduceMean").one(&[&tensor(&[2], &[1_i64, 4])]), tensor(&[1], &[2_i64]));
        let bools = tensor(&[2, 2], &[true, false, true, true]);
        assert_eq!(op("ReduceMax").one(&[&bools, &list(&[1])]), tensor(&[2, 1], &[true, true]));
        assert_eq!(op("ReduceMin").one(&[&bools, &list(&[1])]), tensor(&[2, 1], &[false, true]));
        let nan = tensor(&[2], &[1.0_f32, f32::NAN]);
        for name in ["ReduceMax", "ReduceMin", "ReduceSum", "ReduceLogSumExp"] {
            assert!(op(name).one(&[&nan]).slice::<f32>().unwrap()[0].is_nan(), "{name}");
        }
        let infinite = tensor(&[2], &[f32::INFINITY, 1.0]);
        assert_close(&op("ReduceLogSumExp").one(&[&infinite]), &[1], &[f32::INFINITY], 0.0);
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        let x = tensor(&[5, 33, 3], &noise(495, 2));
        for axes in [&[1_i64][..], &[2], &[1, 2]] {
            let all = op("ReduceMean").one(&[&x, &list(axes)]);
            for row in 0..5 {
                assert_eq!(op("ReduceMean").one(&[&x.rows(row..row + 1), &list(axes)]), all.rows(row..row + 1));
            }
        }
    }
}
