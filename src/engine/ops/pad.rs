//! Pad: elements added, or with negative numbers taken away, at both ends of each axis.

use super::ANY;
use super::axes::{axes, ints, offsets, require, same_type, strides};
use super::cast::convert;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Buffer, Kind, Tensor};
use crate::engine::view::{View, ViewMut};

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Pad", domain: "", opsets: 1..=1, types: types::FLOATS, build: |a| {
        let pads = a.required("paddings", a.ints("paddings")?)?;
        Ok(Box::new(Pad { mode: mode(a)?, attributes: Some((pads, a.float_or("value", 0.0)?)) }))
    } },
    OpDef { name: "Pad", domain: "com.microsoft", opsets: 1..=ANY, types: types::FLOATS, build: |a| {
        Ok(Box::new(Pad { mode: mode(a)?, attributes: None }))
    } },
    OpDef { name: "Pad", domain: "", opsets: 2..=10, types: types::FLOATS, build: |a| {
        let pads = a.required("pads", a.ints("pads")?)?;
        Ok(Box::new(Pad { mode: mode(a)?, attributes: Some((pads, a.float_or("value", 0.0)?)) }))
    } },
    OpDef { name: "Pad", domain: "", opsets: 11..=ANY, types: types::ALL, build: |a| {
        Ok(Box::new(Pad { mode: mode(a)?, attributes: None }))
    } },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// One value everywhere.
    Constant,
    /// The elements mirrored at the outermost one.
    Reflect,
    /// The outermost element repeated.
    Edge,
    /// The elements from the other end.
    Wrap,
}

fn mode(attrs: &Attrs) -> Result<Mode, OpError> {
    match attrs.string_or("mode", "constant")?.as_str() {
        "constant" => Ok(Mode::Constant),
        "reflect" => Ok(Mode::Reflect),
        "edge" => Ok(Mode::Edge),
        // The standard names it from opset 19 on, others know it since the padding is an input.
        "wrap" if attrs.opset >= 11 => Ok(Mode::Wrap),
        other => Err(OpError::Attribute(format!("attribute `mode` is `{other}`"))),
    }
}

#[derive(Debug)]
struct Pad {
    mode: Mode,
    /// Padding and value, if they are no inputs.
    attributes: Option<(Vec<i64>, f32)>,
}

/// What is added before and behind each axis.
type Pads = Vec<(i64, i64)>;

impl Pad {
    fn pads(&self, rank: usize, input: impl Fn(usize) -> Result<Option<Vec<i64>>, OpError>) -> Result<Pads, OpError> {
        let (list, along) = match &self.attributes {
            Some((pads, _)) => (pads.clone(), None),
            None => (input(1)?.ok_or_else(|| OpError::missing_input(1))?, input(3)?),
        };
        let along = match along {
            Some(list) => axes(&list, rank)?,
            None => (0..rank).collect(),
        };
        if list.len() != 2 * along.len() {
            return Err(OpError::shape(format!("{} numbers of padding are given for {} axes", list.len(), along.len())));
        }
        let mut pads = vec![(0, 0); rank];
        for (i, &d) in along.iter().enumerate() {
            pads[d] = (list[i], list[i + along.len()]);
        }
        Ok(pads)
    }

    /// For each output position along an axis the input position, or none for the constant.
    fn sources(&self, size: usize, before: i64, output: usize) -> Vec<Option<usize>> {
        let n = size as i64;
        let period = (2 * (n - 1)).max(1);
        let source = |i: usize| {
            let p = i as i64 - before;
            let p = match self.mode {
                Mode::Constant => p,
                Mode::Edge => p.clamp(0, n - 1),
                Mode::Wrap => p.rem_euclid(n),
                Mode::Reflect => {
                    let p = p.rem_euclid(period);
                    if p < n { p } else { period - p }
                }
            };
            usize::try_from(p).ok().filter(|&p| p < size)
        };
        (0..output).map(source).collect()
    }
}

/// The one element of a value, in the output's type.
fn constant(value: Option<View<'_>>, fallback: f32, like: &ViewMut<'_>) -> Result<Tensor, OpError> {
    match value {
        Some(view) => match view.data().to_buffer().into_tensor(&[1]) {
            Some(tensor) => Ok(tensor),
            None => Err(OpError::shape(format!("the value to pad with has shape {:?}", view.shape()))),
        },
        None if fallback == 0.0 => Ok(Tensor::zeros(like.dtype(), &[1])),
        None => {
            let mut buffer = Buffer::new(like.dtype());
            buffer.grow(1);
            convert(Tensor::vector(vec![fallback]).view(), &mut buffer.view_mut(&[1]))?;
            buffer.into_tensor(&[1]).ok_or_else(|| OpError::shape("one element"))
        }
    }
}

fn fill<T: Element>(x: View<'_>, sources: &[Vec<Option<usize>>], value: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let from = strides(x.shape());
    let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
    let value = value.slice::<T>()?;
    let Some((inner, outer)) = sources.split_last() else {
        y.clone_from_slice(x);
        return Ok(());
    };
    let outer_dims: Vec<usize> = outer.iter().map(Vec::len).collect();
    let mut index = vec![0; outer.len()];
    let mut rows = y.chunks_exact_mut(inner.len().max(1));
    // Walked by position, not by offset: an axis may jump.
    offsets(&outer_dims, &vec![0; outer.len()], 0, |_| {
        let start = index.iter().zip(outer).zip(&from).try_fold(0, |sum, ((&i, sources), stride)| Some(sum + sources[i]? * stride));
        if let Some(row) = rows.next() {
            for (y, source) in row.iter_mut().zip(inner) {
                y.clone_from(match (start, source) {
                    (Some(start), Some(source)) => &x[start + source],
                    _ => &value[0],
                });
            }
        }
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < outer_dims[d] {
                break;
            }
            index[d] = 0;
        }
    });
    Ok(())
}

impl Op for Pad {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        if self.attributes.is_some() {
            return same_type(inputs, 1, [0]);
        }
        require(inputs, 2)?;
        same_type(inputs, 2, [0, 2])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let pads = self.pads(x.len(), |i| inputs.get(i).map(|_| inputs.ints(i)).transpose())?;
        let size = |(&n, &(before, behind)): (&usize, &(i64, i64))| {
            let size = i64::try_from(n).ok().and_then(|n| n.checked_add(before)?.checked_add(behind));
            let size = size.and_then(|size| usize::try_from(size).ok());
            match size {
                Some(size) if n == 0 && size > 0 && self.mode != Mode::Constant => {
                    Err(OpError::shape(format!("an axis without elements cannot be padded to {size} with its own")))
                }
                Some(size) => Ok(size),
                None => Err(OpError::value(format!("{n} elements with {before} before and {behind} behind"))),
            }
        };
        Ok(vec![x.iter().zip(&pads).map(size).collect::<Result<_, _>>()?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let pads = self.pads(x.shape().len(), |i| inputs.get(i).map(|v| ints(v).map(|v| v.to_vec())).transpose())?;
        if y.shape().contains(&0) {
            return Ok(());
        }
        let value = match &self.attributes {
            Some((_, value)) => constant(None, *value, y)?,
            None => constant(inputs.get(2), 0.0, y)?,
        };
        let axes = x.shape().iter().zip(&pads).zip(y.shape());
        let sources: Vec<_> = axes.map(|((&n, &(before, _)), &m)| self.sources(n, before, m)).collect();
        let (x, value, y) = (x.bits(), value.view().bits(), &mut y.bits());
        with_bits!(x.dtype(), T => fill::<T>(x, &sources, value, y))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    fn pad(mode: &str) -> Case {
        op("Pad").attr("mode", mode)
    }

    #[test]
    fn modes_along_one_axis() {
        let x = list(&[1, 2, 3]);
        for (mode, want) in [
            ("constant", [0, 0, 1, 2, 3, 0, 0, 0]),
            ("reflect", [3, 2, 1, 2, 3, 2, 1, 2]),
            ("edge", [1, 1, 1, 2, 3, 3, 3, 3]),
            ("wrap", [2, 3, 1, 2, 3, 1, 2, 3]),
        ] {
            assert_eq!(pad(mode).one(&[&x, &list(&[2, 3])]), list(&want), "{mode}");
        }
        assert_eq!(pad("reflect").one(&[&list(&[5]), &list(&[1, 1])]), list(&[5, 5, 5]));
        assert_eq!(pad("constant").one(&[&x, &list(&[-1, 1]), &Tensor::scalar(9_i64)]), list(&[2, 3, 9]));
        assert!(matches!(pad("mirror").error(&[&x, &list(&[0, 0])]), OpError::Attribute(_)));
        assert!(matches!(pad("wrap").opset(10).attr("pads", &[0_i64, 0][..]).error(&[&x]), OpError::Attribute(_)));
    }

    #[test]
    fn several_axes_and_other_types() {
        let x = tensor(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]);
        let want = tensor(&[3, 3], &[7.0_f32, 7.0, 7.0, 7.0, 1.0, 2.0, 7.0, 3.0, 4.0]);
        assert_eq!(op("Pad").one(&[&x, &list(&[1, 1, 0, 0]), &Tensor::scalar(7.0_f32)]), want);
        let old = op("Pad").opset(10).attr("pads", &[1_i64, 1, 0, 0][..]).attr("value", 7.0_f32);
        assert_eq!(old.one(&[&x]), want);
        let first = op("Pad").opset(1).attr("paddings", &[1_i64, 1, 0, 0][..]).attr("value", 7.0_f32);
        assert_eq!(first.one(&[&x]), want);
        let theirs = op("Pad").domain("com.microsoft").opset(1);
        assert_eq!(theirs.one(&[&x, &tensor(&[1, 4], &[1_i64, 1, 0, 0]), &tensor(&[1], &[7.0_f32])]), want);
        let one_axis = op("Pad").run_some(&[Some(&x), Some(&list(&[1, 0])), None, Some(&list(&[-1]))]).unwrap();
        assert_eq!(one_axis[0], tensor(&[2, 3], &[0.0_f32, 1.0, 2.0, 0.0, 3.0, 4.0]));
        let words = tensor(&[1], &["a".to_owned()]);
        assert_eq!(op("Pad").one(&[&words, &list(&[0, 1])]), tensor(&[2], &["a".to_owned(), String::new()]));
        let edge = pad("edge").one(&[&x, &list(&[1, 0, 0, 1])]);
        assert_eq!(edge, tensor(&[3, 3], &[1.0_f32, 2.0, 2.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = list(&[1, 2, 3]);
        for bad in [&[-4_i64, 0][..], &[1], &[i64::MAX, i64::MAX], &[i64::MIN, 0]] {
            assert!(op("Pad").run(&[&x, &list(bad)]).is_err(), "{bad:?}");
        }
        assert!(matches!(op("Pad").error(&[&x, &list(&[1, 1]), &list(&[1, 2])]), OpError::Shape(_)));
        assert!(matches!(op("Pad").error(&[&x, &list(&[1, 1]), &Tensor::scalar(0.0_f32)]), OpError::Type(_)));
        let empty = tensor::<f32>(&[0], &[]);
        assert!(pad("edge").run(&[&empty, &list(&[1, 1])]).is_err());
        assert_eq!(op("Pad").one(&[&empty, &list(&[1, 1])]), tensor(&[2], &[0.0_f32; 2]));
        assert_eq!(op("Pad").one(&[&x, &list(&[-3, 0])]).shape(), [0]);
        assert_eq!(op("Pad").one(&[&Tensor::scalar(1_i64), &list(&[])]), Tensor::scalar(1_i64));
        assert_eq!(op("Pad").shapes_without_values(&[&x, &list(&[1, 1])]), Err(OpError::Unknown));
    }
}
