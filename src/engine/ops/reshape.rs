//! Operators that give the same elements another shape: Reshape, Flatten, Squeeze, Unsqueeze. The plan elides them.

pub(crate) mod gradient;

use super::ANY;
use super::axes::{axes, product, require, size};
use crate::engine::attrs::Attrs;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Reshape", 1..=4, |a| {
        let shape = a.required("shape", a.ints("shape")?)?;
        Ok(Box::new(Reshaped { rule: Rule::Reshape { shape: Some(shape), allow_zero: false } }))
    }),
    def("Reshape", 5..=ANY, |a| {
        let allow_zero = a.opset >= 14 && a.bool_or("allowzero", false)?;
        Ok(Box::new(Reshaped { rule: Rule::Reshape { shape: None, allow_zero } }))
    }),
    // Before opset 11 a negative axis is not allowed; taking it is harmless.
    def("Flatten", 1..=ANY, |a| Ok(Box::new(Reshaped { rule: Rule::Flatten { axis: a.int_or("axis", 1)? } }))),
    def("Squeeze", 1..=12, |a| Ok(Box::new(Reshaped { rule: Rule::Squeeze { axes: a.ints("axes")?, input: false } }))),
    def("Squeeze", 13..=ANY, |_| Ok(Box::new(Reshaped { rule: Rule::Squeeze { axes: None, input: true } }))),
    def("Unsqueeze", 1..=12, |a| {
        let axes = a.required("axes", a.ints("axes")?)?;
        Ok(Box::new(Reshaped { rule: Rule::Unsqueeze { axes: Some(axes) } }))
    }),
    def("Unsqueeze", 13..=ANY, |_| Ok(Box::new(Reshaped { rule: Rule::Unsqueeze { axes: None } }))),
];

/// The elements of input 0 under a shape that a rule gives.
#[derive(Debug)]
struct Reshaped {
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// The shape is input 1 if it is no attribute.
    Reshape { shape: Option<Vec<i64>>, allow_zero: bool },
    /// Two dimensions: before and from `axis` on.
    Flatten { axis: i64 },
    /// Without the dimensions of size 1 at the axes, or without all such dimensions.
    Squeeze { axes: Option<Vec<i64>>, input: bool },
    /// With dimensions of size 1 at the axes, which are input 1 if they are no attribute.
    Unsqueeze { axes: Option<Vec<i64>> },
}

fn reshape(from: &[usize], wanted: &[i64], allow_zero: bool) -> Result<Shape, OpError> {
    let mut shape = Shape::new();
    let mut inferred = None;
    for (i, &n) in wanted.iter().enumerate() {
        shape.push(match n {
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            -1 => return Err(OpError::value(format!("the shape {wanted:?} has -1 twice"))),
            0 if !allow_zero => {
                *from.get(i).ok_or_else(|| OpError::value(format!("the shape {wanted:?} keeps dimension {i}, which {from:?} does not have")))?
            }
            n => size(n)?,
        });
    }
    let (have, known) = (product(from)?, product(&shape)?);
    if let Some(i) = inferred {
        if allow_zero && wanted.contains(&0) {
            return Err(OpError::value(format!("the shape {wanted:?} has both 0 and -1")));
        }
        // Zero elements under a known product of zero leave the wanted dimension open: it is 0, as ONNX Runtime has it.
        shape[i] = have.checked_div(known).unwrap_or(0);
    }
    if product(&shape)? != have {
        return Err(OpError::shape(format!("{from:?} cannot be reshaped to {wanted:?}")));
    }
    Ok(shape)
}

fn squeeze(from: &[usize], list: Option<&[i64]>) -> Result<Shape, OpError> {
    let Some(list) = list else { return Ok(from.iter().copied().filter(|&n| n != 1).collect()) };
    let gone = axes(list, from.len())?;
    if let Some(&bad) = gone.iter().find(|&&a| from[a] != 1) {
        return Err(OpError::shape(format!("dimension {bad} of {from:?} is not 1 and cannot be removed")));
    }
    Ok(from.iter().enumerate().filter(|(d, _)| !gone.contains(d)).map(|(_, &n)| n).collect())
}

fn unsqueeze(from: &[usize], list: &[i64]) -> Result<Shape, OpError> {
    let rank = from.len() + list.len();
    let new = axes(list, rank)?;
    let mut old = from.iter();
    Ok((0..rank).map(|d| if new.contains(&d) { 1 } else { old.next().copied().unwrap_or(1) }).collect())
}

impl Op for Reshaped {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let needs_second = matches!(self.rule, Rule::Reshape { shape: None, .. } | Rule::Unsqueeze { axes: None });
        require(inputs, if needs_second { 2 } else { 1 })?;
        Ok(Kinds::from_iter(inputs[0].clone()))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let from = inputs.shape(0)?;
        let shape = match &self.rule {
            Rule::Reshape { shape: Some(shape), .. } => reshape(from, shape, false)?,
            Rule::Reshape { shape: None, allow_zero } => reshape(from, &inputs.ints(1)?, *allow_zero)?,
            Rule::Flatten { axis } => {
                // The rank itself is a legal axis here.
                let axis = if *axis == from.len() as i64 { from.len() } else { super::axes::axis(*axis, from.len())? };
                Shape::from_iter([from[..axis].iter().product(), from[axis..].iter().product()])
            }
            Rule::Squeeze { input: true, .. } if inputs.get(1).is_some() => squeeze(from, Some(&inputs.ints(1)?))?,
            Rule::Squeeze { axes, .. } => squeeze(from, axes.as_deref())?,
            Rule::Unsqueeze { axes: Some(axes) } => unsqueeze(from, axes)?,
            Rule::Unsqueeze { axes: None } => unsqueeze(from, &inputs.ints(1)?)?,
        };
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        outputs.at(0)?.data().copy_from(0, &inputs.at(0)?.data());
        Ok(())
    }

    fn alias(&self) -> Option<usize> {
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn ints(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn reshape_keeps_and_infers_dimensions() {
        let x = tensor(&[2, 3, 4], &(0..24).collect::<Vec<i32>>());
        for (wanted, shape) in [
            (&[4, 6][..], &[4, 6][..]),
            (&[0, -1], &[2, 12]),
            (&[-1], &[24]),
            (&[0, 0, 2, -1], &[2, 3, 2, 2]),
            (&[24, 1, 1], &[24, 1, 1]),
        ] {
            let y = op("Reshape").one(&[&x, &ints(wanted)]);
            assert_eq!(y.shape(), shape);
            assert_eq!(y.slice::<i32>(), x.slice::<i32>());
        }
        for bad in [&[5, 5][..], &[-1, -1], &[5, -1], &[0, 0, 0, 0, -1], &[-2, 12], &[i64::MAX, i64::MAX], &[]] {
            assert!(op("Reshape").run(&[&x, &ints(bad)]).is_err(), "{bad:?}");
        }
        assert_eq!(op("Reshape").opset(1).attr("shape", &[0_i64, -1][..]).one(&[&x]).shape(), [2, 12]);
        assert!(matches!(op("Reshape").opset(4).error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(op("Reshape").opset(13).attr("allowzero", 1_i64).error(&[&x, &ints(&[24])]), OpError::Attribute(_)));
        assert_eq!(op("Reshape").shapes_without_values(&[&x, &ints(&[24])]), Err(OpError::Unknown));
        assert!(matches!(op("Reshape").error(&[&x, &tensor(&[1], &[24.0_f32])]), OpError::Type(_)));
    }

    #[test]
    fn reshape_of_no_elements() {
        let empty = tensor::<f32>(&[0, 3], &[]);
        assert_eq!(op("Reshape").one(&[&empty, &ints(&[0, -1])]).shape(), [0, 0]);
        assert_eq!(op("Reshape").one(&[&empty, &ints(&[3, -1])]).shape(), [3, 0]);
        assert_eq!(op("Reshape").attr("allowzero", 1_i64).one(&[&empty, &ints(&[5, 0])]).shape(), [5, 0]);
        assert!(op("Reshape").attr("allowzero", 1_i64).run(&[&empty, &ints(&[0, -1])]).is_err());
        let one = tensor(&[1], &[7_i64]);
        assert_eq!(op("Reshape").one(&[&one, &ints(&[])]).shape(), [0_usize; 0]);
    }

    #[test]
    fn flatten_makes_two_dimensions() {
        let x = tensor(&[2, 3, 4], &[0.0_f32; 24]);
        for (axis, shape) in [(0, [1, 24]), (1, [2, 12]), (3, [24, 1]), (-1, [6, 4])] {
            assert_eq!(op("Flatten").attr("axis", axis).one(&[&x]).shape(), shape);
        }
        assert_eq!(op("Flatten").one(&[&x]).shape(), [2, 12]);
        assert!(op("Flatten").attr("axis", 4_i64).run(&[&x]).is_err());
        assert!(op("Flatten").attr("axis", 1_i64).run(&[&Tensor::scalar(1.0_f32)]).is_err());
        assert_eq!(op("Flatten").attr("axis", 0_i64).one(&[&Tensor::scalar(1.0_f32)]).shape(), [1, 1]);
    }

    #[test]
    fn squeeze_takes_axes_as_attribute_and_later_as_input() {
        let x = tensor(&[1, 3, 1], &[1_i64, 2, 3]);
        assert_eq!(op("Squeeze").one(&[&x]).shape(), [3]);
        assert_eq!(op("Squeeze").opset(11).one(&[&x]).shape(), [3]);
        assert_eq!(op("Squeeze").opset(11).attr("axes", &[0_i64][..]).one(&[&x]).shape(), [3, 1]);
        assert_eq!(op("Squeeze").one(&[&x, &ints(&[-1])]).shape(), [1, 3]);
        assert!(op("Squeeze").run(&[&x, &ints(&[1])]).is_err());
        assert!(op("Squeeze").run(&[&x, &ints(&[0, -3])]).is_err());
        assert!(op("Squeeze").opset(13).attr("axes", &[0_i64][..]).run(&[&x]).is_err());
    }

    #[test]
    fn unsqueeze_takes_axes_as_attribute_and_later_as_input() {
        let x = tensor(&[2, 3], &["a", "b", "c", "d", "e", "f"].map(str::to_owned));
        assert_eq!(op("Unsqueeze").one(&[&x, &ints(&[0, -1])]).shape(), [1, 2, 3, 1]);
        assert_eq!(op("Unsqueeze").opset(12).attr("axes", &[1_i64][..]).one(&[&x]).shape(), [2, 1, 3]);
        assert!(op("Unsqueeze").run(&[&x, &ints(&[3])]).is_err());
        assert!(op("Unsqueeze").run(&[&x, &ints(&[0, 0])]).is_err());
        assert!(op("Unsqueeze").run(&[&x]).is_err());
        assert!(op("Unsqueeze").opset(12).run(&[&x]).is_err());
    }
}
