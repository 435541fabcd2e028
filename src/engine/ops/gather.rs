//! Elements picked by index: Gather, GatherElements, GatherND, Slice.

use super::ANY;
use super::axes::{Axes, around, axes, axis, ints, require, same_type, strides};
use super::layout::copy_strided;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Gather", 1..=ANY, |a| Ok(Box::new(Gather { axis: a.int_or("axis", 0)? }))),
    def("GatherElements", 11..=ANY, |a| Ok(Box::new(GatherElements { axis: a.int_or("axis", 0)? }))),
    // The batch dimensions came with opset 12; before, the attribute stays unread and is refused.
    def("GatherND", 11..=ANY, |a| Ok(Box::new(GatherNd { batch: if a.opset < 12 { 0 } else { a.int_or("batch_dims", 0)? } }))),
    OpDef { domain: "com.microsoft", ..def("GatherND", 1..=ANY, |_| Ok(Box::new(GatherNd { batch: 0 }))) },
    def("Slice", 1..=9, |a| {
        let starts = a.required("starts", a.ints("starts")?)?;
        let ends = a.required("ends", a.ints("ends")?)?;
        Ok(Box::new(Slice { attributes: Some(Bounds { starts, ends, axes: a.ints("axes")?, steps: None }) }))
    }),
    def("Slice", 10..=ANY, |_| Ok(Box::new(Slice { attributes: None }))),
];

/// The position that an index names; negative ones count from the end.
pub(crate) fn position(index: i64, size: usize) -> Result<usize, OpError> {
    let from_end = if index < 0 { index.checked_add(size as i64) } else { Some(index) };
    match from_end.and_then(|i| usize::try_from(i).ok()) {
        Some(i) if i < size => Ok(i),
        _ => Err(OpError::value(format!("index {index} is out of range for {size} elements"))),
    }
}

/// Slices along an axis, one per index.
#[derive(Debug)]
struct Gather {
    axis: i64,
}

impl Op for Gather {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices) = (inputs.shape(0)?, inputs.shape(1)?);
        let axis = axis(self.axis, x.len())?;
        Ok(vec![x[..axis].iter().chain(indices).chain(&x[axis + 1..]).copied().collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, indices, y) = (inputs.at(0)?, ints(inputs.at(1)?)?, outputs.at(0)?);
        let (outer, size, inner) = around(x.shape(), axis(self.axis, x.shape().len())?);
        let indices: Vec<usize> = indices.iter().map(|&i| position(i, size)).collect::<Result<_, _>>()?;
        if inner == 0 || indices.is_empty() {
            return Ok(());
        }
        let starts = (0..outer).flat_map(|o| indices.iter().map(move |i| (o * size + i) * inner));
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => slices::<T>(x, starts, inner, y))
    }
}

/// Fills `y` with the slices of `len` elements that begin at `starts`.
fn slices<T: Element>(x: View<'_>, starts: impl Iterator<Item = usize>, len: usize, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
    if len == 1 {
        y.iter_mut().zip(starts).for_each(|(y, start)| y.clone_from(&x[start]));
    } else {
        y.chunks_exact_mut(len.max(1)).zip(starts).for_each(|(y, start)| y.clone_from_slice(&x[start..start + len]));
    }
    Ok(())
}

/// A slice per tuple of indices, which are the slice's leading coordinates behind those of its batch.
#[derive(Debug)]
struct GatherNd {
    batch: i64,
}

impl GatherNd {
    /// The number of batch dimensions, and how many dimensions a tuple indexes.
    fn dims(&self, x: &[usize], indices: &[usize]) -> Result<(usize, usize), OpError> {
        let batch = usize::try_from(self.batch).unwrap_or(usize::MAX);
        match indices.split_last() {
            Some((&tuple, tuples)) if batch <= tuples.len() && batch <= x.len() && tuple <= x.len() - batch && x[..batch] == tuples[..batch] => {
                Ok((batch, tuple))
            }
            _ => Err(OpError::shape(format!("indices of shape {indices:?} into {x:?} with {} batch dimensions", self.batch))),
        }
    }
}

impl Op for GatherNd {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices) = (inputs.shape(0)?, inputs.shape(1)?);
        let (batch, tuple) = self.dims(x, indices)?;
        Ok(vec![indices[..indices.len() - 1].iter().chain(&x[batch + tuple..]).copied().collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, indices, y) = (inputs.at(0)?, inputs.at(1)?, outputs.at(0)?);
        let (batch, tuple) = self.dims(x.shape(), indices.shape())?;
        if y.shape().contains(&0) {
            return Ok(());
        }
        let tuples = indices.shape()[batch..indices.shape().len() - 1].iter().product::<usize>();
        let count = x.shape()[..batch].iter().product::<usize>() * tuples;
        let (rest, steps) = (&x.shape()[batch..], strides(&x.shape()[batch..]));
        let (size, inner) = (rest.iter().product::<usize>(), rest[tuple..].iter().product());
        let indices = ints(indices)?;
        let start = |t: usize| {
            let mut of = indices[t * tuple..][..tuple].iter().zip(rest).zip(&steps);
            of.try_fold(t / tuples * size, |at, ((&i, &n), step)| Ok::<_, OpError>(at + position(i, n)? * step))
        };
        let starts: Vec<usize> = (0..count).map(start).collect::<Result<_, _>>()?;
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => slices::<T>(x, starts.into_iter(), inner, y))
    }
}

/// An element per index, which replaces the element's own coordinate along an axis.
#[derive(Debug)]
struct GatherElements {
    axis: i64,
}

impl Op for GatherElements {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices) = (inputs.shape(0)?, inputs.shape(1)?);
        let axis = axis(self.axis, x.len())?;
        let fits = x.len() == indices.len() && (0..x.len()).all(|d| d == axis || indices[d] <= x[d]);
        if fits { Ok(vec![indices.into()]) } else { Err(OpError::shape(format!("indices of shape {indices:?} into {x:?}"))) }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Element>(x: View<'_>, axis: usize, indices: &[i64], y: &mut ViewMut<'_>) -> Result<(), OpError> {
            let (shape, from) = (y.shape(), strides(x.shape()));
            let size = x.shape()[axis];
            let steps: Vec<isize> = (0..shape.len()).map(|d| if d == axis { 0 } else { from[d] as isize }).collect();
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            let mut result = Ok(());
            let mut next = 0;
            super::axes::offsets(shape, &steps, 0, |at| {
                match position(indices[next], size) {
                    Ok(i) => y[next].clone_from(&x[at as usize + i * from[axis]]),
                    Err(error) => result = Err(error),
                }
                next += 1;
            });
            result
        }
        let (x, indices) = (inputs.at(0)?, ints(inputs.at(1)?)?);
        let axis = axis(self.axis, x.shape().len())?;
        let (x, y) = (x.bits(), &mut outputs.at(0)?.bits());
        with_bits!(x.dtype(), T => body::<T>(x, axis, &indices, y))
    }
}

/// Where a slice begins and ends along some axes, as the model says it.
#[derive(Debug)]
struct Bounds {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

/// Along each axis the first element, the distance to the next, and how many there are.
type Ranges = Vec<(usize, isize, usize)>;

impl Bounds {
    fn over(&self, shape: &[usize]) -> Result<Ranges, OpError> {
        let count = self.starts.len();
        let lists = [Some(&self.ends), self.axes.as_ref(), self.steps.as_ref()];
        if lists.into_iter().flatten().any(|list| list.len() != count) || (self.axes.is_none() && count > shape.len()) {
            return Err(OpError::shape(format!("{count} starts of a slice of {shape:?}; ends, axes and steps must be as many")));
        }
        let along: Axes = match &self.axes {
            Some(list) => axes(list, shape.len())?,
            None => (0..count).collect(),
        };
        let mut ranges: Ranges = shape.iter().map(|&n| (0, 1, n)).collect();
        for (i, d) in along.into_iter().enumerate() {
            let step = self.steps.as_ref().map_or(1, |steps| steps[i]);
            ranges[d] = range(self.starts[i], self.ends[i], step, shape[d])?;
        }
        Ok(ranges)
    }
}

/// The elements of `start..end` with a step. Unlike in Python, a backward slice that starts before the first element has that one.
fn range(start: i64, end: i64, step: i64, size: usize) -> Result<(usize, isize, usize), OpError> {
    let n = size as i64;
    let from_end = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = (from_end(start), from_end(end));
    let (start, span) = match step {
        0 => return Err(OpError::value("the step of a slice is 0")),
        1.. => {
            let start = start.clamp(0, n);
            (start, end.clamp(0, n) - start)
        }
        _ => {
            let start = start.max(0).min(n - 1);
            (start, start - end.clamp(-1, n - 1))
        }
    };
    let count = span.max(0).unsigned_abs().div_ceil(step.unsigned_abs()) as usize;
    // A step counts only if there is a second element, and is then smaller than the size.
    let step = if count > 1 { step as isize } else { 1 };
    Ok((if count == 0 { 0 } else { start as usize }, step, count))
}

/// A box of elements, with a step along each axis.
#[derive(Debug)]
struct Slice {
    /// The bounds, if they are no inputs.
    attributes: Option<Bounds>,
}

impl Slice {
    fn ranges(&self, shape: &[usize], input: impl Fn(usize) -> Result<Option<Vec<i64>>, OpError>) -> Result<Ranges, OpError> {
        if let Some(bounds) = &self.attributes {
            return bounds.over(shape);
        }
        let needed = |i| input(i)?.ok_or_else(|| OpError::missing_input(i));
        Bounds { starts: needed(1)?, ends: needed(2)?, axes: input(3)?, steps: input(4)? }.over(shape)
    }
}

impl Op for Slice {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, if self.attributes.is_some() { 1 } else { 3 })?;
        same_type(inputs, 1, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let ranges = self.ranges(inputs.shape(0)?, |i| inputs.get(i).map(|_| inputs.ints(i)).transpose())?;
        Ok(vec![ranges.iter().map(|r| r.2).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let ranges = self.ranges(x.shape(), |i| inputs.get(i).map(|v| ints(v).map(|v| v.to_vec())).transpose())?;
        let from = strides(x.shape());
        let start: usize = ranges.iter().zip(&from).map(|(r, s)| r.0 * s).sum();
        let steps: Vec<isize> = ranges.iter().zip(&from).map(|(r, s)| r.1 * *s as isize).collect();
        copy_strided(x, start as isize, &steps, outputs.at(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn count(shape: &[usize]) -> Tensor {
        tensor(shape, &(0..shape.iter().product::<usize>() as i64).collect::<Vec<_>>())
    }

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn gather_along_any_axis() {
        let x = count(&[2, 3]);
        let gather = |axis: i64| op("Gather").attr("axis", axis);
        assert_eq!(gather(0).one(&[&x, &list(&[1, 0, -1])]), tensor(&[3, 3], &[3_i64, 4, 5, 0, 1, 2, 3, 4, 5]));
        assert_eq!(gather(-1).one(&[&x, &tensor(&[1, 2], &[2_i32, 0])]), tensor(&[2, 1, 2], &[2_i64, 0, 5, 3]));
        assert_eq!(op("Gather").one(&[&x, &Tensor::scalar(1_i64)]), list(&[3, 4, 5]));
        assert_eq!(gather(1).one(&[&x, &list(&[])]).shape(), [2, 0]);
        for bad in [2, -3, i64::MIN] {
            assert!(matches!(gather(0).error(&[&x, &list(&[bad])]), OpError::Value(_)));
        }
        assert!(matches!(gather(2).error(&[&x, &list(&[0])]), OpError::Value(_)));
        assert!(matches!(gather(0).error(&[&x, &tensor(&[1], &[0.0_f32])]), OpError::Type(_)));
        assert!(matches!(gather(0).error(&[&Tensor::scalar(1_i64), &list(&[0])]), OpError::Value(_)));
        let words = tensor(&[2], &["a", "b"].map(str::to_owned));
        assert_eq!(op("Gather").one(&[&words, &list(&[1])]), tensor(&[1], &["b".to_owned()]));
    }

    #[test]
    fn tuples_of_indices_name_slices() {
        let x = count(&[2, 2, 2]);
        let gather = |batch: i64| op("GatherND").attr("batch_dims", batch);
        let tuples = tensor(&[2, 2], &[0_i64, 1, -1, 0]);
        assert_eq!(gather(0).one(&[&x, &tuples]), tensor(&[2, 2], &[2_i64, 3, 4, 5]));
        assert_eq!(gather(1).one(&[&x, &tuples]), list(&[1, 6]));
        assert_eq!(gather(1).one(&[&x, &tensor(&[2, 1], &[1_i64, 0])]), tensor(&[2, 2], &[2_i64, 3, 4, 5]));
        assert_eq!(op("GatherND").opset(11).one(&[&x, &list(&[1])]), tensor(&[2, 2], &[4_i64, 5, 6, 7]));
        assert_eq!(op("GatherND").domain("com.microsoft").opset(1).one(&[&x, &list(&[1, 1, 1])]), Tensor::scalar(7_i64));
        assert_eq!(gather(0).one(&[&x, &tensor::<i64>(&[0, 3], &[])]).shape(), [0]);
        assert_eq!(gather(0).one(&[&x, &tensor::<i64>(&[2, 0], &[])]).shape(), [2, 2, 2, 2]);
        for bad in [2, -3, i64::MIN] {
            assert!(matches!(gather(0).error(&[&x, &list(&[bad])]), OpError::Value(_)));
        }
        for bad in [2, -1, i64::MAX] {
            assert!(matches!(gather(bad).error(&[&x, &tuples]), OpError::Shape(_)), "{bad}");
        }
        assert!(matches!(gather(0).error(&[&x, &list(&[0, 0, 0, 0])]), OpError::Shape(_)));
        assert!(matches!(gather(0).error(&[&x, &Tensor::scalar(0_i64)]), OpError::Shape(_)));
        assert!(matches!(op("GatherND").opset(11).attr("batch_dims", 0_i64).error(&[&x, &tuples]), OpError::Attribute(_)));
    }

    #[test]
    fn gather_elements_replaces_one_coordinate() {
        let x = tensor(&[2, 2], &[1_i64, 2, 3, 4]);
        let indices = tensor(&[2, 2], &[0_i64, 0, 1, -2]);
        assert_eq!(op("GatherElements").attr("axis", 1_i64).one(&[&x, &indices]), tensor(&[2, 2], &[1_i64, 1, 4, 3]));
        assert_eq!(op("GatherElements").one(&[&x, &tensor(&[1, 2], &[1_i64, 0])]), tensor(&[1, 2], &[3_i64, 2]));
        assert!(matches!(op("GatherElements").error(&[&x, &tensor(&[1, 1], &[2_i64])]), OpError::Value(_)));
        assert!(matches!(op("GatherElements").error(&[&x, &tensor(&[1, 3], &[0_i64; 3])]), OpError::Shape(_)));
        assert!(matches!(op("GatherElements").error(&[&x, &list(&[0])]), OpError::Shape(_)));
    }

    #[test]
    fn slices_are_clamped_to_the_axis() {
        let x = count(&[10]);
        let slice = |start, end, step| op("Slice").one(&[&x, &list(&[start]), &list(&[end]), &list(&[0]), &list(&[step])]);
        let cases: &[(i64, i64, i64, &[i64])] = &[
            (2, 5, 1, &[2, 3, 4]),
            (-3, i64::MAX, 1, &[7, 8, 9]),
            (0, 10, 4, &[0, 4, 8]),
            (5, 2, 1, &[]),
            (20, 30, 1, &[]),
            (8, 2, -3, &[8, 5]),
            (i64::MAX, i64::MIN, -4, &[9, 5, 1]),
            (-1, -11, -9, &[9, 0]),
            (0, 10, i64::MAX, &[0]),
            (9, -11, i64::MIN, &[9]),
            (i64::MIN, 2, 1, &[0, 1]),
            // Both ends lie before the axis: the standard clamps the start to 0 and the end to -1, and one element is between.
            (-12, -20, -1, &[0]),
            (-12, i64::MIN, -2, &[0]),
        ];
        for &(start, end, step, want) in cases {
            assert_eq!(slice(start, end, step), list(want), "{start}:{end}:{step}");
        }
        assert!(op("Slice").run(&[&x, &list(&[0]), &list(&[1]), &list(&[0]), &list(&[0])]).is_err());
    }

    #[test]
    fn slices_of_several_axes() {
        let x = count(&[3, 4]);
        let both = op("Slice").one(&[&x, &list(&[1, 0]), &list(&[3, 4]), &list(&[0, 1]), &list(&[1, 2])]);
        assert_eq!(both, tensor(&[2, 2], &[4_i64, 6, 8, 10]));
        let back = op("Slice").one(&[&x, &list(&[-1]), &list(&[i64::MIN]), &list(&[-1]), &list(&[-1])]);
        assert_eq!(back, tensor(&[3, 4], &[3_i64, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]));
        let old = op("Slice").opset(9).attr("starts", &[1_i64][..]).attr("ends", &[2_i64][..]).attr("axes", &[1_i64][..]);
        assert_eq!(old.one(&[&x]), tensor(&[3, 1], &[1_i64, 5, 9]));
        let first = op("Slice").run_some(&[Some(&x), Some(&list(&[1])), Some(&list(&[2])), None, None]).unwrap();
        assert_eq!(first[0], tensor(&[1, 4], &[4_i64, 5, 6, 7]));
        assert!(op("Slice").run(&[&x, &list(&[0, 0, 0]), &list(&[1, 1, 1])]).is_err());
        assert!(op("Slice").run(&[&x, &list(&[0]), &list(&[1, 1])]).is_err());
        assert!(op("Slice").run(&[&x, &list(&[0, 0]), &list(&[1, 1]), &list(&[0, 0])]).is_err());
        assert!(op("Slice").run(&[&x, &list(&[0])]).is_err());
        assert!(op("Slice").opset(9).run(&[&x]).is_err());
        assert_eq!(op("Slice").shapes_without_values(&[&x, &list(&[0]), &list(&[1])]), Err(OpError::Unknown));
        assert_eq!(op("Slice").one(&[&Tensor::zeros(x.dtype(), &[0, 4]), &list(&[-1]), &list(&[i64::MIN]), &list(&[0]), &list(&[-1])]).shape(), [0, 4]);
    }
}
