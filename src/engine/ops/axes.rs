//! Axes, and the checks of operands that all families share.

use smallvec::SmallVec;

use crate::engine::op::{Kinds, OpError};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

/// A list of axes or dimensions.
pub(crate) type Axes = SmallVec<[usize; 6]>;

/// The axis that `axis` names in a tensor of `rank`; negative ones count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let from_end = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    match from_end.and_then(|a| usize::try_from(a).ok()) {
        Some(a) if a < rank => Ok(a),
        _ => Err(OpError::value(format!("axis {axis} is out of range for a tensor of rank {rank}"))),
    }
}

/// The axes that `list` names, in its order; naming one twice is an error.
pub(crate) fn axes(list: &[i64], rank: usize) -> Result<Axes, OpError> {
    let mut found = Axes::new();
    for &item in list {
        let item = axis(item, rank)?;
        if found.contains(&item) {
            return Err(OpError::value(format!("axis {item} is named twice in {list:?}")));
        }
        found.push(item);
    }
    Ok(found)
}

/// The sizes before, at and after an axis.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// The distances between neighbours along each axis of a contiguous tensor.
pub(crate) fn strides(shape: &[usize]) -> Axes {
    let mut strides = Axes::from_elem(1, shape.len());
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

/// Calls `f` with the offset of every index of `dims` in row-major order, each index moving by its stride.
pub(crate) fn offsets(dims: &[usize], strides: &[isize], start: isize, mut f: impl FnMut(isize)) {
    if dims.contains(&0) {
        return;
    }
    let Some((&len, outer)) = dims.split_last() else { return f(start) };
    let step = strides[outer.len()];
    let mut index = Axes::from_elem(0, outer.len());
    let mut row = Some(start);
    while let Some(begin) = row {
        (0..len as isize).for_each(|i| f(begin + i * step));
        row = next_row(outer, strides, &mut index, begin);
    }
}

/// Moves `index` to the next one of `dims` and `offset` with it; none behind the last. Apart from [`offsets`], so that it is
/// compiled once.
fn next_row(dims: &[usize], strides: &[isize], index: &mut [usize], mut offset: isize) -> Option<isize> {
    for d in (0..dims.len()).rev() {
        index[d] += 1;
        offset += strides[d];
        if index[d] < dims[d] {
            return Some(offset);
        }
        offset -= strides[d] * dims[d] as isize;
        index[d] = 0;
    }
    None
}

/// The elements of an int64 or int32 operand.
pub(crate) fn ints(view: View<'_>) -> Result<SmallVec<[i64; 8]>, OpError> {
    match view.slice::<i64>() {
        Ok(values) => Ok(values.into()),
        Err(error) => view.slice::<i32>().map(|values| values.iter().map(|&v| i64::from(v)).collect()).map_err(|_| error),
    }
}

/// The first `count` inputs must be given, whatever they are.
pub(crate) fn present(inputs: &[Option<Kind>], count: usize) -> Result<(), OpError> {
    match (0..count).find(|&i| inputs.get(i).is_none_or(Option::is_none)) {
        Some(missing) => Err(OpError::missing_input(missing)),
        None => Ok(()),
    }
}

/// Checks that the first `count` inputs are given, and that all inputs are tensors.
pub(crate) fn require(inputs: &[Option<Kind>], count: usize) -> Result<(), OpError> {
    if let Some(missing) = (0..count).find(|&i| inputs.get(i).is_none_or(Option::is_none)) {
        return Err(OpError::missing_input(missing));
    }
    match inputs.iter().flatten().find(|kind| kind.dtype().is_none()) {
        Some(kind) => Err(OpError::Type(format!("a tensor is needed where a {kind} is given"))),
        None => Ok(()),
    }
}

/// One output of the type that all of the inputs at `same` have; the first `count` inputs must be given.
pub(crate) fn same_type(inputs: &[Option<Kind>], count: usize, same: impl IntoIterator<Item = usize>) -> Result<Kinds, OpError> {
    require(inputs, count)?;
    let mut given = same.into_iter().filter_map(|i| inputs.get(i).and_then(Option::as_ref));
    let Some(first) = given.next() else { return Err(OpError::missing_input(0)) };
    match given.find(|kind| *kind != first) {
        Some(other) => Err(OpError::Type(format!("the inputs must have one element type; they have {first} and {other}"))),
        None => Ok(Kinds::from_iter([first.clone()])),
    }
}

/// The product of dimensions that nobody has checked yet.
pub(crate) fn product(dims: &[usize]) -> Result<usize, OpError> {
    let product = dims.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
    product.ok_or_else(|| OpError::shape(format!("the product of {dims:?} is too large")))
}

/// Checks that `count` elements of `bytes` each fit into a budget.
pub(crate) fn within(budget: usize, count: usize, bytes: usize) -> Result<(), OpError> {
    match count.checked_mul(bytes) {
        Some(need) if need <= budget => Ok(()),
        _ => Err(OpError::shape(format!("{count} elements of {bytes} bytes exceed the memory limit: {budget} bytes are left"))),
    }
}

/// A size that a model asks for.
pub(crate) fn size(value: i64) -> Result<usize, OpError> {
    usize::try_from(value).map_err(|_| OpError::value(format!("{value} is not a size")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_axes_count_from_the_end() {
        assert_eq!(axis(-1, 3), Ok(2));
        assert_eq!(axis(2, 3), Ok(2));
        for bad in [3, -4, i64::MIN, i64::MAX] {
            assert!(matches!(axis(bad, 3), Err(OpError::Value(_))), "{bad}");
        }
        assert!(axis(0, 0).is_err());
        assert!(axes(&[0, -3], 3).is_err());
    }

    #[test]
    fn offsets_follow_the_strides() {
        let mut seen = vec![];
        offsets(&[2, 3], &[1, 2], 10, |o| seen.push(o));
        assert_eq!(seen, [10, 12, 14, 11, 13, 15]);
        offsets(&[2, 0], &[1, 2], 0, |_| panic!("nothing to visit"));
        seen.clear();
        offsets(&[], &[], 7, |o| seen.push(o));
        assert_eq!(seen, [7]);
    }
}
