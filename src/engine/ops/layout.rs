//! Operators that put elements elsewhere along axes: Transpose, Concat, Split, Expand, Tile.

pub(crate) mod gradient;

use smallvec::SmallVec;

use super::ANY;
use super::axes::{Axes, around, axes, axis, ints, offsets, require, same_type, size, strides};
use super::broadcast::{self, Broadcast};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{Element, with_bits};
use crate::engine::kernels::rows::copy_rows;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Transpose", 1..=ANY, |a| Ok(Box::new(Transpose { perm: a.ints("perm")? }))),
    def("Concat", 1..=3, |a| Ok(Box::new(Concat { axis: a.int_or("axis", 1)? }))),
    def("Concat", 4..=ANY, |a| Ok(Box::new(Concat { axis: a.required("axis", a.int("axis")?)? }))),
    // In opset 1 the sizes may also be an input, of the type of the tensor that is split.
    def("Split", 1..=12, |a| split(a, a.ints("split")?)),
    def("Split", 13..=ANY, |a| split(a, None)),
    def("Expand", 8..=ANY, |_| Ok(Box::new(Expand))),
    def("Tile", 1..=5, |_| Ok(Box::new(TileAxis))),
    def("Tile", 6..=ANY, |_| Ok(Box::new(Tile))),
];

/// Axes in another order; reversed without `perm`.
#[derive(Debug)]
pub(crate) struct Transpose {
    perm: Option<Vec<i64>>,
}

impl Transpose {
    /// Whether it puts the axes of a tensor of this rank into this order.
    pub(crate) fn is(&self, order: &[i64]) -> bool {
        self.perm.as_deref() == Some(order)
    }

    fn order(&self, rank: usize) -> Result<Axes, OpError> {
        match &self.perm {
            None => Ok((0..rank).rev().collect()),
            Some(perm) if perm.len() == rank => axes(perm, rank),
            Some(perm) => Err(OpError::shape(format!("the permutation {perm:?} does not fit a tensor of rank {rank}"))),
        }
    }
}

impl Op for Transpose {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let from = inputs.shape(0)?;
        Ok(vec![self.order(from.len())?.iter().map(|&d| from[d]).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let order = self.order(x.shape().len())?;
        let from = strides(x.shape());
        let strides: Vec<isize> = order.iter().map(|&d| from[d] as isize).collect();
        copy_strided(x, 0, &strides, y)
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.shape(0).is_ok_and(|x| self.order(x.len()).is_ok_and(|order| order.first() == Some(&0)))
    }
}

/// Fills `y` in order from the elements of `x` at `start` and on, which lie `strides` apart; rows that are contiguous in
/// both are copied whole.
pub(crate) fn copy_strided(x: View<'_>, start: isize, strides: &[isize], y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let (x, y) = (x.bits(), &mut y.bits());
    with_bits!(x.dtype(), T => copy_strided_typed::<T>(x, start, strides, y))
}

fn copy_strided_typed<T: Element>(x: View<'_>, start: isize, strides: &[isize], y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let shape = y.shape();
    let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
    if y.is_empty() {
        return Ok(());
    }
    // The trailing dimensions that are contiguous in x form one run.
    let mut outer = shape.len();
    let mut run = 1;
    while outer > 0 && (strides[outer - 1] == run as isize || shape[outer - 1] == 1) {
        run *= shape[outer - 1];
        outer -= 1;
    }
    let mut at = 0;
    if run > 1 || outer == 0 {
        offsets(&shape[..outer], &strides[..outer], start, |from| {
            y[at..at + run].clone_from_slice(&x[from as usize..from as usize + run]);
            at += run;
        });
        return Ok(());
    }
    let (dims, steps) = merged(shape, strides);
    if let ([outer @ .., rows, columns], [outer_steps @ .., 1, step]) = (&dims[..], &steps[..]) {
        let len = rows * columns;
        offsets(outer, outer_steps, start, |from| {
            turn(&x[from as usize..], *step as usize, *columns, &mut y[at..at + len]);
            at += len;
        });
        return Ok(());
    }
    let (len, step) = (shape[outer - 1], strides[outer - 1]);
    offsets(&shape[..outer - 1], &strides[..outer - 1], start, |from| {
        let row = &mut y[at..at + len];
        row.iter_mut().enumerate().for_each(|(i, y)| y.clone_from(&x[(from + i as isize * step) as usize]));
        at += len;
    });
    Ok(())
}

/// The dimensions with those joined that continue one another, and without those of size 1.
fn merged(shape: &[usize], strides: &[isize]) -> (SmallVec<[usize; 6]>, SmallVec<[isize; 6]>) {
    let (mut dims, mut steps) = (SmallVec::<[usize; 6]>::new(), SmallVec::<[isize; 6]>::new());
    for (&n, &step) in shape.iter().zip(strides).filter(|(n, _)| **n != 1) {
        match (dims.last_mut(), steps.last_mut()) {
            (Some(last), Some(before)) if *before == step * n as isize => (*last, *before) = (*last * n, step),
            _ => {
                dims.push(n);
                steps.push(step);
            }
        }
    }
    (dims, steps)
}

/// Rows to columns: `y` is `[rows, columns]`, and row `i` of it the elements `i`, `i + step`, … of `x`. Block by block, so that lines of
/// neither are fetched twice.
fn turn<T: Element>(x: &[T], step: usize, columns: usize, y: &mut [T]) {
    const BLOCK: usize = 16;
    for (block, y) in y.chunks_mut(BLOCK * columns).enumerate() {
        for first in (0..columns).step_by(BLOCK) {
            let last = columns.min(first + BLOCK);
            for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                let from = x[first * step + block * BLOCK + row..].iter().step_by(step);
                y[first..last].iter_mut().zip(from).for_each(|(y, x)| y.clone_from(x));
            }
        }
    }
}

/// Tensors behind each other along an axis.
#[derive(Debug)]
struct Concat {
    axis: i64,
}

/// An element that is copied, in floating-point operations: memory bounds it.
const OPERATIONS_PER_ELEMENT: u64 = 4;

impl Op for Concat {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, inputs.len().max(1), 0..inputs.len())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let axis = axis(self.axis, shape.len())?;
        for i in 1..inputs.len() {
            let other = inputs.shape(i)?;
            let fits = other.len() == shape.len() && (0..shape.len()).all(|d| d == axis || other[d] == shape[d]);
            if !fits {
                return Err(OpError::shape(format!("{other:?} cannot be put behind {:?} along axis {axis}", shape.as_slice())));
            }
            shape[axis] = shape[axis].checked_add(other[axis]).ok_or_else(|| OpError::shape("the sum of the sizes is too large"))?;
        }
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        let axis = axis(self.axis, y.shape().len())?;
        let (outer, size, inner) = around(y.shape(), axis);
        if outer * size * inner == 0 {
            return Ok(());
        }
        if let Ok(y) = y.slice::<f32>() {
            let mut rows: SmallVec<[(&[f32], usize); 4]> = SmallVec::new();
            for i in 0..inputs.len() {
                let x = inputs.at(i)?;
                rows.push((x.slice()?, x.shape()[axis] * inner));
            }
            let parts = ctx.threads.parts(OPERATIONS_PER_ELEMENT * y.len() as u64);
            let of_part = outer.div_ceil(parts);
            ctx.threads.for_each(y.chunks_mut(of_part * size * inner).enumerate(), |(part, y)| {
                let (first, count, mut start) = (part * of_part, y.len() / (size * inner), 0);
                for &(x, row) in &rows {
                    if row > 0 {
                        copy_rows(&x[first * row..][..count * row], row, &mut y[start..], size * inner);
                    }
                    start += row;
                }
            });
            return Ok(());
        }
        let mut start = 0;
        for i in 0..inputs.len() {
            let x = inputs.at(i)?;
            let row = x.shape()[axis] * inner;
            for o in 0..outer {
                y.data().copy_from(o * size * inner + start, &x.data().range(o * row..(o + 1) * row));
            }
            start += row;
        }
        Ok(())
    }

    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        inputs.shape(0).is_ok_and(|x| axis(self.axis, x.len()).is_ok_and(|axis| axis > 0))
    }
}

/// Sizes and axes, which opset 1 gives in a floating-point type.
fn whole_numbers(view: View<'_>) -> Result<SmallVec<[i64; 8]>, OpError> {
    let whole = |v: f64| match v {
        v if v.fract() == 0.0 && v.abs() <= i64::from(i32::MAX) as f64 => Ok(v as i64),
        v => Err(OpError::value(format!("{v} is no size or axis"))),
    };
    with_float!(view.dtype(), T => view.slice::<T>()?.iter().map(|v| whole(v.to_f64())).collect(), else ints(view))
}

/// Parts of a tensor along an axis: of given sizes, or as equal as can be.
#[derive(Debug)]
struct Split {
    axis: i64,
    sizes: Option<Vec<i64>>,
    outputs: usize,
}

fn split(attrs: &Attrs, sizes: Option<Vec<i64>>) -> Result<Box<dyn Op>, OpError> {
    let outputs = attrs.outputs.len();
    if let Some(count) = attrs.int("num_outputs")?
        && (attrs.opset < 18 || usize::try_from(count) != Ok(outputs))
    {
        return Err(OpError::Attribute(format!("attribute `num_outputs` is {count}; the node has {outputs} outputs")));
    }
    Ok(Box::new(Split { axis: attrs.int_or("axis", 0)?, sizes, outputs }))
}

impl Split {
    fn sizes(&self, total: usize, given: Option<&[i64]>) -> Result<Axes, OpError> {
        let Some(given) = given else {
            // Opset 18: the last part is smaller if they cannot be equal; before, they must be.
            let part = total.div_ceil(self.outputs.max(1));
            return Ok((0..self.outputs).map(|i| part.min(total.saturating_sub(i * part))).collect());
        };
        let sizes: Axes = given.iter().map(|&n| size(n)).collect::<Result<_, _>>()?;
        let sum = sizes.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
        if sizes.len() != self.outputs || sum != Some(total) {
            return Err(OpError::shape(format!("{total} cannot be split into {} parts of sizes {given:?}", self.outputs)));
        }
        Ok(sizes)
    }
}

impl Op for Split {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(Kinds::from_elem(inputs[0].clone().expect("it is required"), self.outputs))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let from = inputs.shape(0)?;
        let axis = axis(self.axis, from.len())?;
        let given = match inputs.get(1) {
            Some(_) => Some(whole_numbers(inputs.value(1)?.view())?),
            None => self.sizes.clone().map(Into::into),
        };
        let part = |n| {
            let mut shape: Shape = from.into();
            shape[axis] = n;
            shape
        };
        Ok(self.sizes(from[axis], given.as_deref())?.into_iter().map(part).collect())
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let axis = axis(self.axis, x.shape().len())?;
        let (outer, total, inner) = around(x.shape(), axis);
        if x.is_empty() {
            return Ok(());
        }
        let given = match inputs.get(1) {
            Some(sizes) => Some(whole_numbers(sizes)?),
            None => self.sizes.clone().map(Into::into),
        };
        let mut start = 0;
        for (i, n) in self.sizes(total, given.as_deref())?.into_iter().enumerate() {
            if let Some(y) = outputs.get(i) {
                for o in 0..outer {
                    let from = (o * total + start) * inner;
                    y.data().copy_from(o * n * inner, &x.data().range(from..from + n * inner));
                }
            }
            start += n;
        }
        Ok(())
    }
}

/// Repetition of dimensions of size 1.
#[derive(Debug)]
struct Expand;

impl Op for Expand {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let wanted: Axes = inputs.ints(1)?.into_iter().map(size).collect::<Result<_, _>>()?;
        Ok(vec![broadcast::shape([inputs.shape(0)?, &wanted])?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let plan = Broadcast::new(y.shape(), [x.shape()]);
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => {
            broadcast::map(&plan, x.slice::<T>()?, y.slice::<T>()?, |x, y| y.clone_from(x));
            Ok(())
        })
    }
}

/// Repetition of the whole tensor along each axis.
#[derive(Debug)]
struct Tile;

/// Repetition along one axis: the number and the axis are inputs 1 and 2.
#[derive(Debug)]
struct TileAxis;

impl TileAxis {
    /// The axis and how often it is repeated.
    fn repeats(rank: usize, tiles: View<'_>, along: View<'_>) -> Result<(usize, usize), OpError> {
        match (whole_numbers(tiles)?.as_slice(), whole_numbers(along)?.as_slice()) {
            (&[tiles], &[along]) => Ok((axis(along, rank)?, size(tiles)?)),
            (tiles, along) => Err(OpError::shape(format!("one number and one axis are needed, {} and {} are given", tiles.len(), along.len()))),
        }
    }
}

impl Op for TileAxis {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        same_type(inputs, 3, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let mut shape: Shape = inputs.shape(0)?.into();
        let (axis, tiles) = Self::repeats(shape.len(), inputs.value(1)?.view(), inputs.value(2)?.view())?;
        shape[axis] = shape[axis].checked_mul(tiles).ok_or_else(|| OpError::shape("a size is too large"))?;
        Ok(vec![shape])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (axis, tiles) = Self::repeats(x.shape().len(), inputs.at(1)?, inputs.at(2)?)?;
        let (outer, size, inner) = around(x.shape(), axis);
        if y.shape().contains(&0) {
            return Ok(());
        }
        let row = size * inner;
        for o in 0..outer {
            for copy in 0..tiles {
                y.data().copy_from((o * tiles + copy) * row, &x.data().range(o * row..(o + 1) * row));
            }
        }
        Ok(())
    }
}

impl Op for Tile {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (from, repeats) = (inputs.shape(0)?, inputs.ints(1)?);
        if repeats.len() != from.len() {
            return Err(OpError::shape(format!("{} repeats are given for a tensor of rank {}", repeats.len(), from.len())));
        }
        let sizes = from.iter().zip(repeats).map(|(&n, r)| n.checked_mul(size(r)?).ok_or_else(|| OpError::shape("a size is too large")));
        Ok(vec![sizes.collect::<Result<_, _>>()?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (from, to) = (x.shape(), y.shape());
        // Each axis is two: the repeats, which do not move in x, and the elements.
        let mut dims = Axes::new();
        let mut steps: Vec<isize> = Vec::new();
        for ((&n, &m), stride) in from.iter().zip(to).zip(strides(from)) {
            dims.extend([m.checked_div(n).unwrap_or(0), n]);
            steps.extend([0, stride as isize]);
        }
        let (x, y) = (x.bits(), &mut y.bits());
        with_bits!(x.dtype(), T => {
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            let mut y = y.iter_mut();
            offsets(&dims, &steps, 0, |from| {
                if let Some(y) = y.next() {
                    y.clone_from(&x[from as usize]);
                }
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn count(shape: &[usize]) -> Tensor {
        tensor(shape, &(0..shape.iter().product::<usize>() as i64).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_large_is_put_together_by_several_threads() {
        let (rows, len) = (65, 8192);
        let part = |count: usize, seed: u32| tensor(&[rows, count, len], &noise(rows * count * len, seed));
        let (a, b) = (part(1, 1), part(3, 2));
        let whole = op("Concat").attr("axis", 1_i64).one(&[&a, &b]);
        assert_eq!(whole.shape(), [rows, 4, len]);
        let slice = |tensor: &Tensor, range: std::ops::Range<usize>| tensor.slice::<f32>().expect("numbers")[range].to_vec();
        for row in 0..rows {
            let at = row * 4 * len;
            assert_eq!(slice(&whole, at..at + len), slice(&a, row * len..(row + 1) * len), "row {row}");
            assert_eq!(slice(&whole, at + len..at + 4 * len), slice(&b, row * 3 * len..(row + 1) * 3 * len), "row {row}");
        }
    }

    #[test]
    fn transposition_follows_the_permutation() {
        let x = count(&[2, 3, 4]);
        for perm in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let y = op("Transpose").attr("perm", &perm.map(|p| p as i64)[..]).one(&[&x]);
            let want = x.view().array::<i64>().unwrap().permuted_axes(perm.to_vec());
            assert_eq!(y.view().array::<i64>().unwrap(), want, "{perm:?}");
        }
        assert_eq!(op("Transpose").one(&[&x]).shape(), [4, 3, 2]);
        assert_eq!(op("Transpose").one(&[&Tensor::scalar(1_i64)]), Tensor::scalar(1_i64));
        assert_eq!(op("Transpose").one(&[&tensor::<f32>(&[0, 3], &[])]).shape(), [3, 0]);
        let words = tensor(&[1, 2], &["a", "b"].map(str::to_owned));
        assert_eq!(op("Transpose").one(&[&words]), tensor(&[2, 1], &["a", "b"].map(str::to_owned)));
        for bad in [&[0_i64, 1][..], &[0, 1, 1], &[0, 1, 3]] {
            assert!(op("Transpose").attr("perm", bad).run(&[&x]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn concatenation_along_any_axis() {
        let (a, b) = (tensor(&[2, 1], &[1_i64, 2]), tensor(&[2, 2], &[3_i64, 4, 5, 6]));
        let concat = |axis: i64| op("Concat").attr("axis", axis);
        assert_eq!(concat(1).one(&[&a, &b]), tensor(&[2, 3], &[1_i64, 3, 4, 2, 5, 6]));
        assert_eq!(concat(-1).one(&[&a, &b]).shape(), [2, 3]);
        assert_eq!(concat(0).one(&[&a, &a]).shape(), [4, 1]);
        assert_eq!(concat(0).one(&[&a]), a);
        assert_eq!(concat(1).one(&[&a, &tensor::<i64>(&[2, 0], &[])]), a);
        assert!(matches!(concat(0).error(&[&a, &b]), OpError::Shape(_)));
        assert!(matches!(concat(2).error(&[&a, &b]), OpError::Value(_)));
        assert!(matches!(concat(1).error(&[&a, &tensor(&[2, 1], &[0.0_f32; 2])]), OpError::Type(_)));
        assert!(matches!(op("Concat").error(&[&a]), OpError::Attribute(_)));
        assert!(concat(0).run(&[]).is_err());
    }

    #[test]
    fn split_sizes_are_given_or_equal() {
        let x = count(&[2, 5]);
        let halves = op("Split").attr("axis", 1_i64).outputs(2).run(&[&x]).unwrap();
        assert_eq!(halves[0], tensor(&[2, 3], &[0_i64, 1, 2, 5, 6, 7]));
        assert_eq!(halves[1], tensor(&[2, 2], &[3_i64, 4, 8, 9]));
        let given = op("Split").attr("axis", -1_i64).outputs(3).run(&[&x, &tensor(&[3], &[1_i64, 0, 4])]).unwrap();
        assert_eq!(given.iter().map(|t| t.shape()[1]).collect::<Vec<_>>(), [1, 0, 4]);
        let old = op("Split").opset(11).attr("axis", 1_i64).attr("split", &[4_i64, 1][..]).outputs(2).run(&[&x]).unwrap();
        assert_eq!(old[1], tensor(&[2, 1], &[4_i64, 9]));
        assert!(op("Split").outputs(2).attr("axis", 1_i64).run(&[&x, &tensor(&[2], &[1_i64, 1])]).is_err());
        assert!(op("Split").outputs(2).attr("axis", 1_i64).run(&[&x, &tensor(&[2], &[6_i64, -1])]).is_err());
        assert!(op("Split").outputs(2).attr("num_outputs", 3_i64).run(&[&x]).is_err());
        assert!(op("Split").outputs(2).attr("axis", 2_i64).run(&[&x]).is_err());
        assert_eq!(op("Split").outputs(2).attr("num_outputs", 2_i64).run(&[&x]).unwrap().len(), 2);
    }

    #[test]
    fn the_first_opset_gives_sizes_and_axes_as_floats() {
        let x = count(&[2, 3]);
        let x = op("Cast").attr("to", 1_i64).one(&[&x]);
        let parts = op("Split").opset(1).attr("axis", 1_i64).outputs(2).run(&[&x, &tensor(&[2], &[1.0_f32, 2.0])]).unwrap();
        assert_eq!(parts, [tensor(&[2, 1], &[0.0_f32, 3.0]), tensor(&[2, 2], &[1.0_f32, 2.0, 4.0, 5.0])]);
        let tile = |tiles: f32, axis: f32| op("Tile").opset(5).run(&[&x, &Tensor::scalar(tiles), &Tensor::scalar(axis)]);
        assert_eq!(tile(2.0, 0.0).unwrap()[0].shape(), [4, 3]);
        assert_eq!(tile(2.0, 1.0).unwrap()[0], tensor(&[2, 6], &[0.0_f32, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 3.0, 4.0, 5.0]));
        assert_eq!(tile(0.0, 1.0).unwrap()[0].shape(), [2, 0]);
        for (tiles, axis) in [(-1.0, 0.0), (1.5, 0.0), (f32::NAN, 0.0), (1e30, 0.0), (1.0, 2.0)] {
            assert!(matches!(tile(tiles, axis), Err(OpError::Value(_))), "{tiles} {axis}");
        }
        assert!(matches!(op("Tile").opset(5).error(&[&x, &tensor(&[2], &[1.0_f32; 2]), &Tensor::scalar(0.0_f32)]), OpError::Shape(_)));
        assert_eq!(op("Concat").opset(1).one(&[&x, &x]).shape(), [2, 6]);
    }

    #[test]
    fn expand_and_tile_repeat() {
        let x = tensor(&[2, 1], &[1_i64, 2]);
        let ints = |v: &[i64]| tensor(&[v.len()], v);
        assert_eq!(op("Expand").one(&[&x, &ints(&[2, 1, 3])]), tensor(&[2, 2, 3], &[1_i64, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2]));
        assert_eq!(op("Expand").one(&[&x, &ints(&[1])]), x);
        assert_eq!(op("Expand").one(&[&x, &ints(&[0])]).shape(), [2, 0]);
        assert!(op("Expand").run(&[&x, &ints(&[3, 1])]).is_err());
        assert!(op("Expand").run(&[&x, &ints(&[-1])]).is_err());
        assert_eq!(op("Tile").one(&[&x, &ints(&[2, 2])]), tensor(&[4, 2], &[1_i64, 1, 2, 2, 1, 1, 2, 2]));
        assert_eq!(op("Tile").one(&[&x, &ints(&[1, 0])]).shape(), [2, 0]);
        assert!(op("Tile").run(&[&x, &ints(&[2])]).is_err());
        assert!(op("Tile").run(&[&x, &ints(&[2, -1])]).is_err());
        assert!(op("Tile").run(&[&x, &ints(&[i64::MAX, i64::MAX])]).is_err());
    }
}
