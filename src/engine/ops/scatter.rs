//! Elements written at given places of a copy: ScatterElements (first called Scatter), ScatterND.
//!
//! Updates take effect in their order, so that of several for one place the last wins, or all are joined one after the other.

use super::ANY;
use super::axes::{axis, ints, offsets, same_type, strides};
use super::gather::position;
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets, types: types::ALL, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    // Deprecated from opset 11 on, but still written.
    def("Scatter", 9..=ANY, |a| Ok(Box::new(ScatterElements { axis: a.int_or("axis", 0)?, reduction: Reduction::None }))),
    def("ScatterElements", 11..=ANY, |a| Ok(Box::new(ScatterElements { axis: a.int_or("axis", 0)?, reduction: reduction(a)? }))),
    def("ScatterND", 11..=ANY, |a| Ok(Box::new(ScatterNd { reduction: reduction(a)? }))),
];

/// How an update joins what is there.
#[derive(Clone, Copy, Debug)]
enum Reduction {
    /// It takes its place.
    None,
    Add,
    Mul,
    Max,
    Min,
}

fn reduction(attrs: &Attrs) -> Result<Reduction, OpError> {
    if attrs.opset < 16 {
        return Ok(Reduction::None);
    }
    match attrs.string_or("reduction", "none")?.as_str() {
        "none" => Ok(Reduction::None),
        "add" => Ok(Reduction::Add),
        "mul" => Ok(Reduction::Mul),
        "max" if attrs.opset >= 18 => Ok(Reduction::Max),
        "min" if attrs.opset >= 18 => Ok(Reduction::Min),
        other => Err(OpError::Attribute(format!("attribute `reduction` is `{other}`"))),
    }
}

/// Elements per place: places begin at the numbers in `starts`, and updates follow each other.
struct Places {
    starts: Vec<usize>,
    len: usize,
}

impl Places {
    /// Joins `updates` to `y` at the places, which lie within it.
    fn write(&self, reduction: Reduction, updates: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let dtype = y.dtype();
        if let Reduction::None = reduction {
            let (updates, y) = (updates.bits(), &mut y.bits());
            return with_bits!(y.dtype(), T => self.each::<T>(updates, y, |y, x| y.clone_from(x)));
        }
        if dtype == DType::Bool {
            // As numpy adds and multiplies truth values.
            return match reduction {
                Reduction::Add | Reduction::Max => self.each::<bool>(updates, y, |y, x| *y |= x),
                _ => self.each::<bool>(updates, y, |y, x| *y &= x),
            };
        }
        with_number!(dtype, T => {
            let join: fn(T, T) -> T = match reduction {
                Reduction::Add => T::add,
                Reduction::Mul => T::mul,
                Reduction::Max => T::greater,
                _ => T::smaller,
            };
            self.each::<T>(updates, y, |y, x| *y = join(*y, *x))
        }, else Err(OpError::Type(format!("a reduction of {dtype} is not defined"))))
    }

    fn each<T: Element>(&self, updates: View<'_>, y: &mut ViewMut<'_>, join: impl Fn(&mut T, &T)) -> Result<(), OpError> {
        let (x, y) = (updates.slice::<T>()?, y.slice::<T>()?);
        if self.len == 0 {
            return Ok(());
        }
        for (&start, x) in self.starts.iter().zip(x.chunks_exact(self.len)) {
            y[start..start + self.len].iter_mut().zip(x).for_each(|(y, x)| join(y, x));
        }
        Ok(())
    }
}

/// An element per index, which replaces the element's own coordinate along an axis.
#[derive(Debug)]
struct ScatterElements {
    axis: i64,
    reduction: Reduction,
}

impl ScatterElements {
    fn apply(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (indices, updates) = (inputs.at(1)?, inputs.at(2)?);
        let axis = axis(self.axis, y.shape().len())?;
        let (size, to) = (y.shape()[axis], strides(y.shape()));
        let steps: Vec<isize> = to.iter().enumerate().map(|(d, &stride)| if d == axis { 0 } else { stride as isize }).collect();
        let starts: Result<Vec<usize>, OpError> = ints(indices)?.iter().map(|&i| Ok(position(i, size)? * to[axis])).collect();
        let mut places = Places { starts: starts?, len: 1 };
        let mut next = places.starts.iter_mut();
        offsets(indices.shape(), &steps, 0, |at| {
            if let Some(start) = next.next() {
                *start += at as usize;
            }
        });
        places.write(self.reduction, updates, y)
    }
}

impl Op for ScatterElements {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 3, [0, 2])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices, updates) = (inputs.shape(0)?, inputs.shape(1)?, inputs.shape(2)?);
        let axis = axis(self.axis, x.len())?;
        let fits = indices == updates && x.len() == indices.len() && (0..x.len()).all(|d| d == axis || indices[d] <= x[d]);
        if fits { Ok(vec![x.into()]) } else { Err(OpError::shape(format!("updates of shape {updates:?} by indices of shape {indices:?} into {x:?}"))) }
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

/// A slice per tuple of indices, which are the leading coordinates of the slice.
#[derive(Debug)]
struct ScatterNd {
    reduction: Reduction,
}

impl ScatterNd {
    fn apply(&self, inputs: &Inputs<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
        let (indices, updates) = (inputs.at(1)?, inputs.at(2)?);
        let shape = y.shape();
        let tuple = indices.shape().last().copied().unwrap_or_default();
        if updates.is_empty() {
            return Ok(());
        }
        let starts = starts(indices, &shape[..tuple], &strides(shape))?;
        Places { starts, len: shape[tuple..].iter().product() }.write(self.reduction, updates, y)
    }
}

/// The element at which the slice of each tuple of indices begins; `sizes` are those of the dimensions that are indexed.
fn starts(indices: View<'_>, sizes: &[usize], strides: &[usize]) -> Result<Vec<usize>, OpError> {
    let count: usize = indices.shape().iter().rev().skip(1).product();
    let indices = ints(indices)?;
    let one = |t: usize| {
        let tuple = indices[t * sizes.len()..][..sizes.len()].iter();
        tuple.zip(sizes).zip(strides).try_fold(0, |sum, ((&i, &size), stride)| Ok(sum + position(i, size)? * stride))
    };
    (0..count).map(one).collect()
}

impl Op for ScatterNd {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 3, [0, 2])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices, updates) = (inputs.shape(0)?, inputs.shape(1)?, inputs.shape(2)?);
        let fits = indices.split_last().is_some_and(|(&tuple, tuples)| {
            x.get(tuple..).is_some_and(|slice| tuples.iter().chain(slice).eq(updates))
        });
        if fits { Ok(vec![x.into()]) } else { Err(OpError::shape(format!("updates of shape {updates:?} by indices of shape {indices:?} into {x:?}"))) }
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

    fn words(values: &[&str]) -> Tensor {
        tensor(&[values.len()], &values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn elements_are_written_along_an_axis() {
        let x = tensor(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let (indices, updates) = (tensor(&[1, 2], &[1_i64, -3]), tensor(&[1, 2], &[9.0_f32, 8.0]));
        let along = |axis: i64| op("ScatterElements").attr("axis", axis);
        let want = tensor(&[2, 3], &[8.0_f32, 9.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(along(1).one(&[&x, &indices, &updates]), want);
        assert_eq!(op("Scatter").opset(9).attr("axis", -1_i64).one(&[&x, &indices, &updates]), want);
        let rows = tensor(&[1, 2], &[1_i32, 0]);
        assert_eq!(op("ScatterElements").one(&[&x, &rows, &updates]), tensor(&[2, 3], &[1.0_f32, 8.0, 3.0, 9.0, 5.0, 6.0]));
        let text = op("ScatterElements").one(&[&words(&["a", "b"]), &tensor(&[1], &[-1_i64]), &words(&["c"])]);
        assert_eq!(text, words(&["a", "c"]));
        for bad in [3, -4, i64::MIN] {
            assert!(matches!(along(1).error(&[&x, &tensor(&[1, 1], &[bad]), &tensor(&[1, 1], &[0.0_f32])]), OpError::Value(_)));
        }
        assert!(matches!(along(2).error(&[&x, &indices, &updates]), OpError::Value(_)));
        assert!(matches!(along(0).error(&[&x, &tensor(&[2], &[0_i64; 2]), &tensor(&[2], &[0.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(along(1).error(&[&x, &tensor(&[3, 1], &[0_i64; 3]), &tensor(&[3, 1], &[0.0_f32; 3])]), OpError::Shape(_)));
        assert!(matches!(along(1).error(&[&x, &indices, &tensor(&[1, 2], &[0_i64; 2])]), OpError::Type(_)));
        let empty = tensor::<f32>(&[2, 0], &[]);
        assert_eq!(along(1).one(&[&x, &tensor::<i64>(&[2, 0], &[]), &empty]), x);
        assert!(matches!(along(1).error(&[&empty, &indices, &updates]), OpError::Value(_)));
    }

    #[test]
    fn updates_of_one_place_take_effect_in_order() {
        let (x, indices) = (tensor(&[2], &[2_i32, 7]), tensor(&[3], &[0_i64, 0, 0]));
        let updates = tensor(&[3], &[5_i32, -3, 4]);
        let by = |reduction: &str| op("ScatterElements").attr("reduction", reduction);
        for (reduction, want) in [("none", 4), ("add", 8), ("mul", -120), ("max", 5), ("min", -3)] {
            assert_eq!(by(reduction).one(&[&x, &indices, &updates]), tensor(&[2], &[want, 7]), "{reduction}");
            let nd = op("ScatterND").attr("reduction", reduction).one(&[&x, &tensor(&[3, 1], &[0_i64; 3]), &updates]);
            assert_eq!(nd, tensor(&[2], &[want, 7]), "{reduction}");
        }
        let nan = by("max").one(&[&tensor(&[1], &[1.0_f32]), &tensor(&[2], &[0_i64, 0]), &tensor(&[2], &[f32::NAN, 2.0])]);
        assert!(nan.slice::<f32>().unwrap()[0].is_nan());
        let truth = |reduction: &str, a, b| by(reduction).one(&[&tensor(&[1], &[a]), &tensor(&[1], &[0_i64]), &tensor(&[1], &[b])]);
        assert_eq!(truth("add", false, true), tensor(&[1], &[true]));
        assert_eq!(truth("mul", false, true), tensor(&[1], &[false]));
        assert_eq!(truth("max", true, false), tensor(&[1], &[true]));
        assert_eq!(truth("min", true, false), tensor(&[1], &[false]));
        let texts = [&words(&["a"]), &tensor(&[1], &[0_i64]), &words(&["b"])];
        assert!(matches!(by("add").error(&texts), OpError::Type(_)));
        assert!(matches!(by("mean").error(&[&x, &indices, &updates]), OpError::Attribute(_)));
        assert!(matches!(by("max").opset(17).error(&[&x, &indices, &updates]), OpError::Attribute(_)));
        assert!(matches!(by("add").opset(13).error(&[&x, &indices, &updates]), OpError::Attribute(_)));
    }

    #[test]
    fn slices_are_written_at_tuples() {
        let x = tensor(&[2, 2, 2], &[1_i64, 2, 3, 4, 5, 6, 7, 8]);
        let nd = |indices: &Tensor, updates: &Tensor| op("ScatterND").run(&[&x, indices, updates]);
        let rows = nd(&tensor(&[1, 2], &[-1_i64, 0]), &tensor(&[1, 2], &[0_i64, 9])).unwrap();
        assert_eq!(rows[0], tensor(&[2, 2, 2], &[1_i64, 2, 3, 4, 0, 9, 7, 8]));
        let one = nd(&tensor(&[3], &[0_i64, 1, 1]), &Tensor::scalar(0_i64)).unwrap();
        assert_eq!(one[0], tensor(&[2, 2, 2], &[1_i64, 2, 3, 0, 5, 6, 7, 8]));
        assert_eq!(nd(&tensor::<i64>(&[0, 1], &[]), &tensor::<i64>(&[0, 2, 2], &[])).unwrap()[0], x);
        assert_eq!(nd(&tensor::<i64>(&[0], &[]), &tensor(&[2, 2, 2], &[0_i64; 8])).unwrap()[0], tensor(&[2, 2, 2], &[0_i64; 8]));
        assert!(matches!(nd(&tensor(&[1, 1], &[2_i64]), &tensor(&[1, 2, 2], &[0_i64; 4])), Err(OpError::Value(_))));
        assert!(matches!(nd(&tensor(&[1, 1], &[0_i64]), &tensor(&[1, 2], &[0_i64; 2])), Err(OpError::Shape(_))));
        assert!(matches!(nd(&tensor(&[1, 4], &[0_i64; 4]), &tensor(&[1], &[0_i64])), Err(OpError::Shape(_))));
        assert!(matches!(nd(&Tensor::scalar(0_i64), &x), Err(OpError::Shape(_))));
    }
}
