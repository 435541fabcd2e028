//! ai.onnx.ml, as exporters of classical models write it: ArrayFeatureExtractor, Scaler, Normalizer, Imputer,
//! FeatureVectorizer, OneHotEncoder, Binarizer.

use std::collections::HashMap;

use super::ANY;
use super::axes::{product, require, same_type};
use super::number::Number;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;
use crate::engine::view::{View, ViewMut};

const fn def(name: &'static str, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "ai.onnx.ml", opsets: 1..=ANY, types, build }
}

/// Numbers that the older operators of the domain take.
const PLAIN: &[DType] = &[DType::F32, DType::F64, DType::I32, DType::I64];

pub(crate) const DEFS: &[OpDef] = &[
    def("ArrayFeatureExtractor", types::ALL, |_| Ok(Box::new(ArrayFeatureExtractor))),
    def("Scaler", PLAIN, |a| {
        Ok(Box::new(Scaler { offset: a.floats("offset")?.unwrap_or_default(), scale: a.floats("scale")?.unwrap_or_default() }))
    }),
    def("Normalizer", PLAIN, normalizer),
    def("Imputer", PLAIN, imputer),
    def("FeatureVectorizer", PLAIN, |a| Ok(Box::new(FeatureVectorizer { widths: a.sizes("inputdimensions")?.unwrap_or_default() }))),
    def("OneHotEncoder", &[DType::F32, DType::F64, DType::I32, DType::I64, DType::String], one_hot),
    def("Binarizer", PLAIN, |a| Ok(Box::new(Binarizer { threshold: a.float_or("threshold", 0.0)? }))),
];

fn one_of(inputs: &[Option<Kind>], dtype: DType) -> Result<Kinds, OpError> {
    require(inputs, 1)?;
    Ok(Kinds::from_iter([Kind::Tensor(dtype)]))
}

/// Columns of the last axis.
#[derive(Debug)]
struct ArrayFeatureExtractor;

impl Op for ArrayFeatureExtractor {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        same_type(inputs, 2, [0])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (x, indices) = (inputs.shape(0)?, product(inputs.shape(1)?)?);
        match x {
            [] => Err(OpError::shape("a scalar has no columns")),
            // A vector counts as one row.
            [_] => Ok(vec![Shape::from_iter([1, indices])]),
            [rest @ .., _] => Ok(vec![rest.iter().copied().chain([indices]).collect()]),
        }
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Element>(x: View<'_>, columns: &[usize], width: usize, y: &mut ViewMut<'_>) -> Result<(), OpError> {
            if columns.is_empty() || width == 0 {
                return Ok(());
            }
            for (y, x) in y.slice::<T>()?.chunks_exact_mut(columns.len()).zip(x.slice::<T>()?.chunks_exact(width)) {
                y.iter_mut().zip(columns).for_each(|(y, &c)| y.clone_from(&x[c]));
            }
            Ok(())
        }
        let x = inputs.at(0)?;
        let width = x.shape().last().copied().unwrap_or(0);
        let column = |&i: &i64| match usize::try_from(i) {
            Ok(i) if i < width => Ok(i),
            _ => Err(OpError::value(format!("index {i} is out of range for {width} columns"))),
        };
        let columns: Vec<usize> = super::axes::ints(inputs.at(1)?)?.iter().map(column).collect::<Result<_, _>>()?;
        let (x, y) = (x.bits(), &mut outputs.at(0)?.bits());
        with_bits!(x.dtype(), T => body::<T>(x, &columns, width, y))
    }
}

/// `(x - offset) * scale` per column, as f32.
#[derive(Debug)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

/// The elements as f32, whatever numbers they are.
fn floats(x: View<'_>) -> Result<Vec<f32>, OpError> {
    with_number!(x.dtype(), T => Ok(x.slice::<T>()?.iter().map(|v| v.to_f64() as f32).collect()),
        else Err(OpError::wrong_type(DType::F32, x.dtype())))
}

/// The length of the last axis; 1 for a scalar.
fn columns(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// Refuses a per-column parameter that has neither one value nor one per column.
fn per_column(name: &str, len: usize, columns: usize) -> Result<(), OpError> {
    if len == 1 || len == columns {
        return Ok(());
    }
    Err(OpError::shape(format!("attribute `{name}` has {len} values for {columns} columns")))
}

impl Op for Scaler {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        one_of(inputs, DType::F32)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        per_column("offset", self.offset.len(), columns(x))?;
        per_column("scale", self.scale.len(), columns(x))?;
        Ok(vec![x.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Number>(op: &Scaler, x: View<'_>, y: &mut [f32]) -> Result<(), OpError> {
            let width = columns(x.shape());
            let per_column = |values: &[f32]| if values.len() == 1 { vec![values[0]; width] } else { values.to_vec() };
            if y.is_empty() {
                return Ok(());
            }
            let (offset, scale) = (per_column(&op.offset), per_column(&op.scale));
            for (y, x) in y.chunks_exact_mut(width).zip(x.slice::<T>()?.chunks_exact(width)) {
                for (((y, x), offset), scale) in y.iter_mut().zip(x).zip(&offset).zip(&scale) {
                    *y = (x.to_f64() as f32 - offset) * scale;
                }
            }
            Ok(())
        }
        let x = inputs.at(0)?;
        let y = outputs.at(0)?.slice::<f32>()?;
        with_number!(x.dtype(), T => body::<T>(self, x, y), else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// Rows divided by their norm, as f32.
#[derive(Debug)]
struct Normalizer {
    norm: Norm,
}

#[derive(Clone, Copy, Debug)]
enum Norm {
    Max,
    L1,
    L2,
}

fn normalizer(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let norm = match attrs.string_or("norm", "MAX")?.as_str() {
        "MAX" => Norm::Max,
        "L1" => Norm::L1,
        "L2" => Norm::L2,
        other => return Err(OpError::Attribute(format!("attribute `norm` is `{other}`"))),
    };
    Ok(Box::new(Normalizer { norm }))
}

impl Op for Normalizer {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        one_of(inputs, DType::F32)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let y = outputs.at(0)?.slice::<f32>()?;
        y.copy_from_slice(&floats(x)?);
        for row in y.chunks_exact_mut(columns(x.shape()).max(1)) {
            let wide = row.iter().map(|&v| f64::from(v));
            let norm = match self.norm {
                // As ONNX Runtime computes it: the greatest value, not the greatest magnitude.
                Norm::Max => wide.fold(f64::NEG_INFINITY, Number::greater),
                Norm::L1 => wide.map(f64::abs).sum(),
                Norm::L2 => wide.map(|v| v * v).sum::<f64>().sqrt(),
            };
            // A row of zeros stays as it is.
            if norm != 0.0 {
                row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
            }
        }
        Ok(())
    }
}

/// Stand-ins for a value that means "missing".
#[derive(Debug)]
struct Imputer {
    floats: Option<(Vec<f32>, f32)>,
    ints: Option<(Vec<i64>, i64)>,
}

fn imputer(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let replaced = (attrs.float_or("replaced_value_float", 0.0)?, attrs.int_or("replaced_value_int64", 0)?);
    let floats = attrs.floats("imputed_value_floats")?.map(|values| (values, replaced.0));
    let ints = attrs.ints("imputed_value_int64s")?.map(|values| (values, replaced.1));
    match (&floats, &ints) {
        (None, None) => Err(OpError::Attribute("neither floats nor integers to put in are given".into())),
        _ => Ok(Box::new(Imputer { floats, ints })),
    }
}

impl Op for Imputer {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let lengths = [self.floats.as_ref().map(|f| f.0.len()), self.ints.as_ref().map(|i| i.0.len())];
        for len in lengths.into_iter().flatten() {
            per_column("imputed_value", len, columns(x))?;
        }
        Ok(vec![x.into()])
    }

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kinds = same_type(inputs, 1, [0])?;
        let floating = kinds[0].dtype().is_some_and(DType::is_float);
        if if floating { self.floats.is_none() } else { self.ints.is_none() } {
            return Err(OpError::Attribute(format!("the values to put in are not of the input's type {}", kinds[0])));
        }
        Ok(kinds)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        fn body<T: Number>(x: View<'_>, (values, missing): (&[T], T), y: &mut ViewMut<'_>) -> Result<(), OpError> {
            if x.is_empty() {
                return Ok(());
            }
            let width = columns(x.shape());
            let values = if let [only] = values { vec![*only; width] } else { values.to_vec() };
            for (y, x) in y.slice::<T>()?.chunks_exact_mut(width).zip(x.slice::<T>()?.chunks_exact(width)) {
                for ((y, &x), &value) in y.iter_mut().zip(x).zip(&values) {
                    *y = if x == missing || (x.nan() && missing.nan()) { value } else { x };
                }
            }
            Ok(())
        }
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let absent = || OpError::Attribute("the values to put in are not of the input's type".into());
        with_number!(x.dtype(), T => {
            let (values, missing): (Vec<T>, T) = if T::FLOAT {
                let (values, missing) = self.floats.as_ref().ok_or_else(absent)?;
                (values.iter().map(|&v| T::from_f64(f64::from(v))).collect(), T::from_f64(f64::from(*missing)))
            } else {
                let (values, missing) = self.ints.as_ref().ok_or_else(absent)?;
                (values.iter().map(|&v| T::from_i64(v)).collect(), T::from_i64(*missing))
            };
            body::<T>(x, (&values, missing), y)
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

/// Rows of several tensors behind each other, as f32.
#[derive(Debug)]
struct FeatureVectorizer {
    /// Columns that each input gets: the rest of a wider one is dropped, a narrower one is filled with zeros. Without
    /// any, each gets what it has.
    widths: Vec<usize>,
}

/// Rows and columns; a vector is one row of features per element.
fn rows_and_columns(shape: &[usize]) -> Result<(usize, usize), OpError> {
    match *shape {
        [rows] => Ok((rows, 1)),
        [rows, columns] => Ok((rows, columns)),
        _ => Err(OpError::shape(format!("{shape:?} is no matrix"))),
    }
}

impl FeatureVectorizer {
    fn width(&self, input: usize, columns: usize) -> usize {
        self.widths.get(input).copied().unwrap_or(columns)
    }
}

impl Op for FeatureVectorizer {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, inputs.len().max(1))?;
        if !self.widths.is_empty() && self.widths.len() != inputs.len() {
            return Err(OpError::Attribute(format!("`inputdimensions` has {} values for {} inputs", self.widths.len(), inputs.len())));
        }
        one_of(inputs, DType::F32)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (rows, _) = rows_and_columns(inputs.shape(0)?)?;
        let mut width = 0_usize;
        for i in 0..inputs.len() {
            let (other, columns) = rows_and_columns(inputs.shape(i)?)?;
            if other != rows {
                return Err(OpError::shape(format!("input {i} has {other} rows, input 0 has {rows}")));
            }
            width = width.checked_add(self.width(i, columns)).ok_or_else(|| OpError::shape("too many columns"))?;
        }
        Ok(vec![Shape::from_iter([rows, width])])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let y = outputs.at(0)?;
        let width = columns(y.shape());
        let y = y.slice::<f32>()?;
        y.fill(0.0);
        let mut start = 0;
        for i in 0..inputs.len() {
            let x = inputs.at(i)?;
            let (_, count) = rows_and_columns(x.shape())?;
            let (values, room) = (floats(x)?, self.width(i, count));
            let taken = count.min(room);
            if taken > 0 && width > 0 {
                for (y, x) in y.chunks_exact_mut(width).zip(values.chunks_exact(count)) {
                    y[start..start + taken].copy_from_slice(&x[..taken]);
                }
            }
            start += room;
        }
        Ok(())
    }
}

/// A column per category, 1 in that of the element.
#[derive(Debug)]
struct OneHotEncoder {
    categories: Categories,
    count: usize,
    zeros: bool,
}

/// The column of each category; of a repeated one the last.
#[derive(Debug)]
enum Categories {
    Ints(HashMap<i64, usize>),
    Strings(HashMap<String, usize>),
}

fn one_hot(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let zeros = attrs.bool_or("zeros", true)?;
    let ints = attrs.ints("cats_int64s")?.filter(|list| !list.is_empty());
    let strings = attrs.strings("cats_strings")?.filter(|list| !list.is_empty());
    let (count, categories) = match (ints, strings) {
        (Some(list), None) => (list.len(), Categories::Ints(list.into_iter().zip(0..).collect())),
        (None, Some(list)) => (list.len(), Categories::Strings(list.into_iter().zip(0..).collect())),
        _ => return Err(OpError::Attribute("either `cats_int64s` or `cats_strings` must be given".into())),
    };
    Ok(Box::new(OneHotEncoder { categories, count, zeros }))
}

impl Op for OneHotEncoder {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kinds = one_of(inputs, DType::F32)?;
        let text = inputs[0].as_ref().and_then(Kind::dtype) == Some(DType::String);
        if text != matches!(self.categories, Categories::Strings(_)) {
            return Err(OpError::Type("the categories are not of the input's type".into()));
        }
        Ok(kinds)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.iter().copied().chain([self.count]).collect()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let found: Vec<Option<usize>> = match &self.categories {
            Categories::Strings(known) => x.slice::<String>()?.iter().map(|v| known.get(v).copied()).collect(),
            // A float is cut to an integer; NaN is of no category.
            Categories::Ints(known) => with_number!(x.dtype(),
                T => x.slice::<T>()?.iter().map(|v| known.get(&v.to_i64()).copied().filter(|_| !v.nan())).collect(),
                else return Err(OpError::wrong_type(DType::I64, x.dtype()))),
        };
        if !self.zeros && found.contains(&None) {
            return Err(OpError::value("an element is of no known category"));
        }
        let y = outputs.at(0)?.slice::<f32>()?;
        y.fill(0.0);
        for (row, category) in y.chunks_exact_mut(self.count).zip(found) {
            if let Some(category) = category {
                row[category] = 1.0;
            }
        }
        Ok(())
    }
}

/// 1 above the threshold, 0 up to it.
#[derive(Debug)]
struct Binarizer {
    threshold: f32,
}

impl Op for Binarizer {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        with_number!(x.dtype(), T => {
            for (y, x) in outputs.at(0)?.slice::<T>()?.iter_mut().zip(x.slice::<T>()?) {
                *y = if x.to_f64() > f64::from(self.threshold) { T::ONE } else { T::ZERO };
            }
            Ok(())
        }, else Err(OpError::wrong_type(DType::F32, x.dtype())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, assert_close, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    fn ml(name: &'static str) -> Case {
        op(name).domain("ai.onnx.ml").opset(1)
    }

    fn words(values: &[&str]) -> Tensor {
        tensor(&[values.len()], &values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn array_feature_extractor_takes_columns() {
        let x = tensor(&[2, 3], &[1_i64, 2, 3, 4, 5, 6]);
        assert_eq!(ml("ArrayFeatureExtractor").one(&[&x, &tensor(&[2], &[2_i64, 0])]), tensor(&[2, 2], &[3_i64, 1, 6, 4]));
        let labels = ml("ArrayFeatureExtractor").one(&[&words(&["a", "b"]), &tensor(&[1, 3], &[1_i64, 0, 1])]);
        assert_eq!(labels, tensor(&[1, 3], &["b", "a", "b"].map(str::to_owned)));
        for bad in [3, -1] {
            assert!(matches!(ml("ArrayFeatureExtractor").error(&[&x, &tensor(&[1], &[bad])]), OpError::Value(_)));
        }
        assert!(ml("ArrayFeatureExtractor").run(&[&Tensor::scalar(1_i64), &tensor(&[1], &[0_i64])]).is_err());
        assert_eq!(ml("ArrayFeatureExtractor").one(&[&x, &tensor::<i64>(&[0], &[])]).shape(), [2, 0]);
    }

    #[test]
    fn scaler_subtracts_before_it_multiplies() {
        let case = |o: &[f32], s: &[f32]| ml("Scaler").attr("offset", o).attr("scale", s);
        let x = tensor(&[2, 2], &[1.0_f64, 2.0, 3.0, 4.0]);
        assert_close(&case(&[1.0, 2.0], &[10.0, 0.5]).one(&[&x]), &[2, 2], &[0.0, 0.0, 20.0, 1.0], 0.0);
        assert_close(&case(&[1.0], &[2.0]).one(&[&x]), &[2, 2], &[0.0, 2.0, 4.0, 6.0], 0.0);
        assert!(matches!(case(&[1.0, 2.0, 3.0], &[1.0]).error(&[&x]), OpError::Shape(_)));
        assert!(matches!(ml("Scaler").error(&[&x]), OpError::Shape(_)));
    }

    #[test]
    fn normalizer_knows_three_norms() {
        let x = tensor(&[2, 2], &[3.0_f32, 4.0, 0.0, 0.0]);
        for (norm, want) in [("MAX", [0.75, 1.0]), ("L1", [3.0 / 7.0, 4.0 / 7.0]), ("L2", [0.6, 0.8])] {
            assert_close(&ml("Normalizer").attr("norm", norm).one(&[&x]), &[2, 2], &[want[0], want[1], 0.0, 0.0], 1e-6);
        }
        assert!(matches!(ml("Normalizer").attr("norm", "L3").error(&[&x]), OpError::Attribute(_)));
    }

    #[test]
    fn imputer_replaces_what_is_missing() {
        let x = tensor(&[2, 2], &[1.0_f32, f32::NAN, f32::NAN, 4.0]);
        let case = ml("Imputer").attr("imputed_value_floats", &[7.0_f32, 8.0][..]).attr("replaced_value_float", f32::NAN);
        assert_close(&case.one(&[&x]), &[2, 2], &[1.0, 8.0, 7.0, 4.0], 0.0);
        let ints = ml("Imputer").attr("imputed_value_int64s", &[9_i64][..]).attr("replaced_value_int64", -1_i64);
        assert_eq!(ints.one(&[&tensor(&[3], &[-1_i64, 0, 1])]), tensor(&[3], &[9_i64, 0, 1]));
        assert!(matches!(ints.error(&[&x]), OpError::Attribute(_)));
        assert!(matches!(ml("Imputer").error(&[&x]), OpError::Attribute(_)));
    }

    #[test]
    fn feature_vectorizer_joins_columns() {
        let (a, b) = (tensor(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]), tensor(&[2], &[5_i64, 6]));
        let case = ml("FeatureVectorizer").attr("inputdimensions", &[2_i64, 1][..]);
        assert_close(&case.one(&[&a, &b]), &[2, 3], &[1.0, 2.0, 5.0, 3.0, 4.0, 6.0], 0.0);
        assert!(matches!(ml("FeatureVectorizer").error(&[&a, &tensor(&[3], &[0_i64; 3])]), OpError::Shape(_)));
    }

    #[test]
    fn one_hot_encoder_and_binarizer() {
        let case = ml("OneHotEncoder").attr("cats_int64s", &[1_i64, 5][..]);
        assert_close(&case.one(&[&tensor(&[3], &[5_i64, 1, 2])]), &[3, 2], &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0], 0.0);
        let strict = ml("OneHotEncoder").attr("cats_strings", &["a", "b"][..]).attr("zeros", 0_i64);
        assert_close(&strict.one(&[&words(&["b"])]), &[1, 2], &[0.0, 1.0], 0.0);
        assert!(matches!(strict.error(&[&words(&["c"])]), OpError::Value(_)));
        assert!(matches!(strict.error(&[&tensor(&[1], &[1_i64])]), OpError::Type(_)));
        assert!(matches!(ml("OneHotEncoder").error(&[&words(&["c"])]), OpError::Attribute(_)));
        let repeated = ml("OneHotEncoder").attr("cats_int64s", &[0_i64, 1, 0][..]).one(&[&tensor(&[2], &[0.9_f32, f32::NAN])]);
        assert_close(&repeated, &[2, 3], &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 0.0);
        let y = ml("Binarizer").attr("threshold", 1.0_f32).one(&[&tensor(&[3], &[0.5_f32, 1.0, 1.5])]);
        assert_close(&y, &[3], &[0.0, 0.0, 1.0], 0.0);
    }
}
