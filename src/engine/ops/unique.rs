//! Unique: the different elements, or the different slices along an axis, and where they are.

use num_complex::Complex;
use smallvec::smallvec;

use super::ANY;
use super::axes::{around, axis, require};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::{Buffer, Kind, Tensor, Value};
use crate::engine::view::Slice;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "Unique", domain: "", opsets: 11..=ANY, types: types::WIDE, build },
    OpDef { name: "Unique", domain: "com.microsoft", opsets: 1..=ANY, types: types::WIDE, build: |_| {
        Ok(Box::new(Unique { axis: None, sorted: false, first: false }))
    } },
];

/// Elements are equal if they are the same number; all NaN are one, and the greatest.
#[derive(Debug)]
struct Unique {
    /// The axis, or none to compare all elements.
    axis: Option<i64>,
    /// Whether the result ascends; otherwise it is in the order of the first occurrences.
    sorted: bool,
    /// Whether output 1 tells the first occurrences; without it the outputs behind move up.
    first: bool,
}

fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(Unique { axis: attrs.int("axis")?, sorted: attrs.bool_or("sorted", true)?, first: true }))
}

/// Which of `count` rows are equal.
struct Groups {
    /// The first row of each group.
    first: Vec<usize>,
    /// The group of each row.
    of: Vec<usize>,
    /// The rows of each group.
    sizes: Vec<usize>,
}

fn groups<K: Ord>(rows: &[K], len: usize, sorted: bool) -> Groups {
    let row = |i: usize| &rows[i * len..][..len];
    let count = rows.len() / len;
    // By row, then by position: the first row of a group is its first occurrence.
    let mut order_of: Vec<usize> = (0..count).collect();
    order_of.sort_unstable_by(|&a, &b| row(a).cmp(row(b)).then(a.cmp(&b)));
    let mut groups = Groups { first: vec![], of: vec![0; count], sizes: vec![] };
    for &i in &order_of {
        match groups.first.last() {
            Some(&first) if row(first) == row(i) => {}
            _ => {
                groups.first.push(i);
                groups.sizes.push(0);
            }
        }
        groups.of[i] = groups.first.len() - 1;
        groups.sizes[groups.first.len() - 1] += 1;
    }
    if !sorted {
        let mut by_occurrence: Vec<usize> = (0..groups.first.len()).collect();
        by_occurrence.sort_unstable_by_key(|&g| groups.first[g]);
        let mut place = vec![0; by_occurrence.len()];
        by_occurrence.iter().enumerate().for_each(|(to, &g)| place[g] = to);
        groups.of.iter_mut().for_each(|g| *g = place[*g]);
        groups.first = by_occurrence.iter().map(|&g| groups.first[g]).collect();
        groups.sizes = by_occurrence.iter().map(|&g| groups.sizes[g]).collect();
    }
    groups
}

impl Unique {
    /// `keys` are what elements are compared by, `width` of them for each.
    fn run_by<K: Ord + Copy>(&self, x: &Tensor, keys: &[K], width: usize, budget: usize) -> Result<Vec<Value>, OpError> {
        let along = self.axis.map(|along| axis(along, x.shape().len())).transpose()?;
        let (outer, size, inner) = along.map_or((1, x.len(), 1), |along| around(x.shape(), along));
        let mut shape: Shape = if along.is_some() { x.shape().into() } else { smallvec![0] };
        let along = along.unwrap_or(0);
        if x.is_empty() {
            // Slices without elements are all equal. There may be more of them than anybody could list.
            let count = if outer == 0 || inner == 0 { size } else { 0 };
            if count.saturating_mul(2 * size_of::<i64>()) > budget {
                return Err(OpError::shape(format!("a list of {count} slices without elements exceeds the memory limit")));
            }
            shape[along] = count.min(1);
            let groups = Groups { first: vec![0; count.min(1)], of: vec![0; count], sizes: vec![count; count.min(1)] };
            return Ok(self.outputs(Tensor::zeros(x.dtype(), &shape), &groups));
        }
        let mut rows = Vec::with_capacity(keys.len());
        for i in 0..size {
            (0..outer).for_each(|o| rows.extend_from_slice(&keys[(o * size + i) * inner * width..][..inner * width]));
        }
        let groups = groups(&rows, outer * inner * width, self.sorted);
        shape[along] = groups.first.len();
        let mut unique = Buffer::new(x.dtype());
        unique.grow(shape.iter().product());
        let (from, mut view) = (x.view().bits(), unique.view_mut(&shape));
        let mut to = view.bits();
        with_bits!(from.dtype(), T => {
            let (from, mut to) = (from.slice::<T>()?, to.slice::<T>()?.chunks_exact_mut(inner));
            for o in 0..outer {
                let rows = groups.first.iter().map(|i| &from[(o * size + i) * inner..][..inner]);
                rows.zip(&mut to).for_each(|(row, to)| to.clone_from_slice(row));
            }
        });
        let unique = unique.into_tensor(&shape).ok_or_else(|| OpError::shape("as many elements as the slices have"))?;
        Ok(self.outputs(unique, &groups))
    }

    fn outputs(&self, unique: Tensor, groups: &Groups) -> Vec<Value> {
        let list = |values: &[usize]| Value::Tensor(Tensor::vector(values.iter().map(|&v| v as i64).collect()));
        let mut outputs = vec![Value::Tensor(unique)];
        outputs.extend(self.first.then(|| list(&groups.first)));
        outputs.extend([list(&groups.of), list(&groups.sizes)]);
        outputs
    }
}

/// Complex numbers by their real and then by their imaginary part; if one of them is NaN, all of the number is.
fn complex_keys<T: Number>(values: &[Complex<T>]) -> Vec<u64> {
    values.iter().flat_map(|v| if v.re.nan() || v.im.nan() { [u64::MAX; 2] } else { [v.re.key(), v.im.key()] }).collect()
}

impl Op for Unique {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        let lists = std::iter::repeat_n(Kind::Tensor(DType::I64), if self.first { 3 } else { 2 });
        Ok(inputs[0].iter().cloned().chain(lists).collect())
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let rank = inputs.shape(0)?.len();
        self.axis.map(|along| axis(along, rank)).transpose()?;
        Err(OpError::Unknown)
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(OpError::Unknown)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Some(Some(Value::Tensor(x))) = inputs.first() else { return Err(OpError::missing_input(0)) };
        let budget = ctx.budget;
        let view = x.view();
        match x.data() {
            Slice::String(texts) => self.run_by(x, &texts.iter().map(String::as_str).collect::<Vec<_>>(), 1, budget),
            Slice::Bool(values) => self.run_by(x, values, 1, budget),
            Slice::C64(values) => self.run_by(x, &complex_keys(values), 2, budget),
            Slice::C128(values) => self.run_by(x, &complex_keys(values), 2, budget),
            _ => {
                let keys: Vec<u64> = with_number!(x.dtype(), T => view.slice::<T>()?.iter().map(|v| v.key()).collect(),
                    else return Err(OpError::wrong_type(DType::F32, x.dtype())));
                self.run_by(x, &keys, 1, budget)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{op, tensor};
    use super::*;

    fn list(values: &[i64]) -> Tensor {
        tensor(&[values.len()], values)
    }

    #[test]
    fn elements_in_either_order() {
        let x = tensor(&[2, 3], &[2.0_f32, 1.0, 1.0, 3.0, -1.0, 3.0]);
        let sorted = op("Unique").outputs(4).run(&[&x]).unwrap();
        let want = [tensor(&[4], &[-1.0_f32, 1.0, 2.0, 3.0]), list(&[4, 1, 0, 3]), list(&[2, 1, 1, 3, 0, 3]), list(&[1, 2, 1, 2])];
        assert_eq!(sorted, want);
        let occurring = op("Unique").attr("sorted", 0_i64).outputs(4).run(&[&x]).unwrap();
        let want = [tensor(&[4], &[2.0_f32, 1.0, 3.0, -1.0]), list(&[0, 1, 3, 4]), list(&[0, 1, 1, 2, 3, 2]), list(&[1, 2, 2, 1])];
        assert_eq!(occurring, want);
        let theirs = op("Unique").domain("com.microsoft").opset(1).outputs(3).run(&[&x]).unwrap();
        assert_eq!(theirs, [want[0].clone(), want[2].clone(), want[3].clone()]);
        let words = tensor(&[3], &["b", "a", "b"].map(str::to_owned));
        assert_eq!(op("Unique").one(&[&words]), tensor(&[2], &["a", "b"].map(str::to_owned)));
        assert_eq!(op("Unique").one(&[&tensor(&[3], &[true, false, true])]), tensor(&[2], &[false, true]));
    }

    #[test]
    fn one_nan_and_one_zero() {
        let x = tensor(&[6], &[f32::NAN, -0.0, f32::INFINITY, 0.0, f32::NAN, 1.0]);
        let found = op("Unique").outputs(4).run(&[&x]).unwrap();
        assert_eq!(found[1], list(&[1, 5, 2, 0]));
        assert_eq!(found[2], list(&[3, 0, 2, 0, 3, 1]));
        assert_eq!(found[3], list(&[2, 1, 1, 2]));
        assert!(found[0].slice::<f32>().unwrap()[0].is_sign_negative() && found[0].slice::<f32>().unwrap()[3].is_nan());
    }

    #[test]
    fn slices_along_an_axis() {
        let x = tensor(&[2, 3, 1], &[1_i64, 0, 1, 2, 3, 2]);
        let found = op("Unique").attr("axis", -2_i64).outputs(4).run(&[&x]).unwrap();
        assert_eq!(found, [tensor(&[2, 2, 1], &[0_i64, 1, 3, 2]), list(&[1, 0]), list(&[1, 0, 1]), list(&[1, 2])]);
        let occurring = op("Unique").attr("axis", 1_i64).attr("sorted", 0_i64).outputs(3).run(&[&x]).unwrap();
        assert_eq!(occurring[..3], [tensor(&[2, 2, 1], &[1_i64, 0, 2, 3]), list(&[0, 1]), list(&[0, 1, 0])]);
        for bad in [3, -4, i64::MIN] {
            assert!(matches!(op("Unique").attr("axis", bad).error(&[&x]), OpError::Value(_)));
        }
        let empty = Tensor::zeros(DType::F32, &[1 << 40, 0]);
        assert!(matches!(op("Unique").attr("axis", 0_i64).error(&[&empty]), OpError::Shape(_)));
        assert_eq!(op("Unique").attr("axis", 1_i64).one(&[&empty]).shape(), [1 << 40, 0]);
        let few = op("Unique").attr("axis", 0_i64).outputs(4).run(&[&Tensor::zeros(DType::F32, &[2, 0])]).unwrap();
        assert_eq!(few, [Tensor::zeros(DType::F32, &[1, 0]), list(&[0]), list(&[0, 0]), list(&[2])]);
        assert_eq!(op("Unique").one(&[&empty]).shape(), [0]);
        assert_eq!(op("Unique").one(&[&Tensor::scalar(5_u8)]), tensor(&[1], &[5_u8]));
    }
}
