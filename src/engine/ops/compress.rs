//! Compress: the elements, or slices along an axis, that truth values choose.

use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axis, product, require, same_type};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[OpDef { name: "Compress", domain: "", opsets: 9..=ANY, types: types::ALL, build }];

#[derive(Debug)]
struct Compress {
    /// The axis, or none to choose among all elements.
    axis: Option<i64>,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Compress { axis: attrs.int("axis")? }))
}

impl Compress {
    /// The chosen positions among `size`; what the condition does not reach is not chosen.
    fn chosen(condition: View<'_>, size: usize) -> Result<Vec<usize>, OpError> {
        if condition.shape().len() != 1 {
            return Err(OpError::shape(format!("the condition has shape {:?}; it must be a vector", condition.shape())));
        }
        let condition = condition.slice::<bool>()?;
        let chosen: Vec<usize> = (0..condition.len()).filter(|&i| condition[i]).collect();
        match chosen.last() {
            Some(&last) if last >= size => Err(OpError::value(format!("position {last} is chosen of {size}"))),
            _ => Ok(chosen),
        }
    }
}

fn pick<T: Element>(x: View<'_>, (size, inner): (usize, usize), chosen: &[usize], y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let slabs = x.slice::<T>()?.chunks_exact(size * inner);
    let mut rows = y.slice::<T>()?.chunks_exact_mut(inner);
    for slab in slabs {
        for (&i, row) in chosen.iter().zip(&mut rows) {
            row.clone_from_slice(&slab[i * inner..][..inner]);
        }
    }
    Ok(())
}

impl Op for Compress {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let along = self.axis.map(|along| axis(along, shape.len())).transpose()?;
        let size = along.map_or_else(|| product(&shape), |d| Ok(shape[d]))?;
        let count = Self::chosen(inputs.value(1)?.view(), size)?.len();
        match along {
            Some(d) => shape[d] = count,
            None => shape = smallvec![count],
        }
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        if y.shape().contains(&0) {
            return Ok(());
        }
        let (size, inner) = match self.axis {
            Some(along) => {
                let (_, size, inner) = around(x.shape(), axis(along, x.shape().len())?);
                (size, inner)
            }
            None => (x.len(), 1),
        };
        let chosen = Self::chosen(inputs.at(1)?, size)?;
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => pick::<T>(x, (size, inner), &chosen, y))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    #[test]
    fn truth_values_choose() {
        let x = tensor(&[3, 2], &[1_i64, 2, 3, 4, 5, 6]);
        let truths = |v: &[bool]| tensor(&[v.len()], v);
        let along = |axis: i64| op("Compress").attr("axis", axis);
        assert_eq!(along(0).one(&[&x, &truths(&[false, true, true])]), tensor(&[2, 2], &[3_i64, 4, 5, 6]));
        assert_eq!(along(-1).one(&[&x, &truths(&[false, true])]), tensor(&[3, 1], &[2_i64, 4, 6]));
        assert_eq!(along(0).one(&[&x, &truths(&[true])]), tensor(&[1, 2], &[1_i64, 2]));
        assert_eq!(op("Compress").one(&[&x, &truths(&[false, true, false, false, true])]), tensor(&[2], &[2_i64, 5]));
        assert_eq!(along(1).one(&[&x, &truths(&[])]).shape(), [3, 0]);
        assert_eq!(along(1).one(&[&x, &truths(&[true, false, false])]), tensor(&[3, 1], &[1_i64, 3, 5]));
        let words = tensor(&[2], &["a", "b"].map(str::to_owned));
        assert_eq!(op("Compress").opset(9).one(&[&words, &truths(&[false, true])]), tensor(&[1], &["b".to_owned()]));
        assert_eq!(along(1).one(&[&tensor::<f32>(&[0, 2], &[]), &truths(&[true])]).shape(), [0, 1]);
    }

    #[test]
    fn what_is_not_there_cannot_be_chosen() {
        let x = tensor(&[3, 2], &[0.0_f32; 6]);
        let two = tensor(&[3], &[true, false, true]);
        assert!(matches!(op("Compress").attr("axis", 1_i64).error(&[&x, &two]), OpError::Value(_)));
        assert!(matches!(op("Compress").attr("axis", 2_i64).error(&[&x, &two]), OpError::Value(_)));
        assert!(matches!(op("Compress").error(&[&x, &tensor(&[1, 1], &[true])]), OpError::Shape(_)));
        assert!(matches!(op("Compress").error(&[&x, &tensor(&[1], &[1_i64])]), OpError::Type(_)));
        assert!(op("Compress").run(&[&x]).is_err());
        assert_eq!(op("Compress").shapes_without_values(&[&x, &two]), Err(OpError::Unknown));
        let huge = Tensor::zeros(x.dtype(), &[0, 1 << 40]);
        assert_eq!(op("Compress").attr("axis", 1_i64).one(&[&huge, &two]).shape(), [0, 2]);
    }
}
