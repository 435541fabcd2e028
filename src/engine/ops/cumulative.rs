//! CumSum and CumProd: each element joined with all that come before it along an axis.

pub(crate) mod gradient;

use super::ANY;
use super::axes::{around, axis, ints, require, same_type};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::with_number;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::ViewMut;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "CumSum", domain: "", opsets: 11..=ANY, types: types::NUMBERS, build: |a| build(a, Join::Sum) },
    OpDef { name: "CumProd", domain: "", opsets: 26..=ANY, types: types::NUMBERS, build: |a| build(a, Join::Product) },
];

#[derive(Clone, Copy, Debug)]
enum Join {
    Sum,
    Product,
}

#[derive(Debug)]
struct Cumulate {
    join: Join,
    /// Whether an element itself does not count.
    exclusive: bool,
    reverse: bool,
}

fn build(attrs: &Attrs, join: Join) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Cumulate { join, exclusive: attrs.bool_or("exclusive", false)?, reverse: attrs.bool_or("reverse", false)? }))
}

impl Cumulate {
    /// Works on `y`, which holds the input; each step is rounded to the element type, as numpy has it.
    fn run_typed<T: Number>(&self, along: i64, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (_, size, inner) = around(y.shape(), axis(along, y.shape().len())?);
        let y = y.slice::<T>()?;
        if y.is_empty() {
            return Ok(());
        }
        let (neutral, join): (T, fn(T, T) -> T) = match self.join {
            Join::Sum => (T::ZERO, T::add),
            Join::Product => (T::ONE, T::mul),
        };
        let mut joined = vec![neutral; inner];
        for slab in y.chunks_exact_mut(size * inner) {
            joined.fill(neutral);
            for step in 0..size {
                let row = if self.reverse { size - 1 - step } else { step };
                for (y, joined) in slab[row * inner..][..inner].iter_mut().zip(&mut joined) {
                    let next = join(*joined, *y);
                    *y = if self.exclusive { *joined } else { next };
                    *joined = next;
                }
            }
        }
        Ok(())
    }

    fn apply(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let along = match *ints(inputs.at(1)?)? {
            [along] => along,
            ref other => return Err(OpError::shape(format!("one axis is needed, {} are given", other.len()))),
        };
        let dtype = y.dtype();
        with_number!(dtype, T => self.run_typed::<T>(along, y), else Err(OpError::Type(format!("{dtype} is no numeric type"))))
    }
}

impl Op for Cumulate {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        y.data().copy_from(0, &inputs.at(0)?.data());
        self.apply(inputs, y)
    }

    fn in_place(&self) -> &'static [usize] {
        &[0]
    }

    fn run_in_place(&self, _: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        self.apply(inputs, outputs.at(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;
    use half::f16;

    #[test]
    fn running_sums() {
        let (x, axis) = (tensor(&[2, 3], &[1_i32, 2, 3, 4, 5, 6]), Tensor::scalar(1_i64));
        assert_eq!(op("CumSum").one(&[&x, &axis]), tensor(&[2, 3], &[1, 3, 6, 4, 9, 15]));
        assert_eq!(op("CumSum").attr("exclusive", 1_i64).one(&[&x, &axis]), tensor(&[2, 3], &[0, 1, 3, 0, 4, 9]));
        assert_eq!(op("CumSum").attr("reverse", 1_i64).one(&[&x, &axis]), tensor(&[2, 3], &[6, 5, 3, 15, 11, 6]));
        assert_eq!(op("CumSum").one(&[&x, &Tensor::scalar(-2_i32)]), tensor(&[2, 3], &[1, 2, 3, 5, 7, 9]));
        for bad in [2, -3, i64::MIN] {
            assert!(matches!(op("CumSum").error(&[&x, &Tensor::scalar(bad)]), OpError::Value(_)));
        }
        assert!(matches!(op("CumSum").error(&[&x, &tensor::<i64>(&[0], &[])]), OpError::Shape(_)));
        assert!(matches!(op("CumSum").error(&[&x, &Tensor::scalar(1.0_f32)]), OpError::Type(_)));
    }

    #[test]
    fn running_products() {
        let product = || op("CumProd").opset(26);
        let (x, axis) = (tensor(&[2, 3], &[1_i64, 2, 3, 4, 5, i64::MAX]), Tensor::scalar(-1_i64));
        assert_eq!(product().one(&[&x, &axis]), tensor(&[2, 3], &[1, 2, 6, 4, 20, i64::MAX.wrapping_mul(20)]));
        let both = product().attr("exclusive", 1_i64).attr("reverse", 1_i64);
        assert_eq!(both.one(&[&x, &Tensor::scalar(0_i32)]), tensor(&[2, 3], &[4, 5, i64::MAX, 1, 1, 1]));
        let half = [2.0, 0.5, 3.0].map(f16::from_f32);
        assert_eq!(product().one(&[&tensor(&[3], &half), &axis]), tensor(&[3], &[2.0, 1.0, 3.0].map(f16::from_f32)));
        assert_eq!(product().one(&[&tensor::<f32>(&[0, 3], &[]), &axis]).shape(), [0, 3]);
    }
}
