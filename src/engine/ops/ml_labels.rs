//! ai.onnx.ml: values exchanged for others by a table. LabelEncoder, CategoryMapper.

use std::collections::HashMap;
use std::hash::Hash;

use super::ANY;
use super::axes::require;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_bits};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{Slice, View, ViewMut};

const LABELS: &[DType] = &[DType::F32, DType::F64, DType::I64, DType::I32, DType::I16, DType::String];

const fn def(name: &'static str, opsets: std::ops::RangeInclusive<u16>, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "ai.onnx.ml", opsets, types: LABELS, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("LabelEncoder", 1..=1, label_encoder_1),
    def("LabelEncoder", 2..=3, |a| label_encoder(a, Repeated::First)),
    def("LabelEncoder", 4..=ANY, |a| label_encoder(a, Repeated::Last)),
    OpDef { types: &[DType::String, DType::I64], ..def("CategoryMapper", 1..=ANY, category_mapper) },
];

/// A table from one value to another.
#[derive(Debug)]
struct LabelEncoder {
    keys: Keys,
    values: Tensor,
    /// What a value without an entry becomes: one element.
    default: Tensor,
}

/// The position of each key; floats by their bits, so that NaN is a key like any other.
#[derive(Debug)]
enum Keys {
    Strings(HashMap<String, usize>),
    I64(HashMap<i64, usize>),
    I32(HashMap<i32, usize>),
    I16(HashMap<i16, usize>),
    F32(HashMap<u32, usize>),
    F64(HashMap<u64, usize>),
}

/// Bits under which equal floats are equal: one zero, one NaN.
fn bits32(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { (value + 0.0).to_bits() }
}

fn bits64(value: f64) -> u64 {
    if value.is_nan() { f64::NAN.to_bits() } else { (value + 0.0).to_bits() }
}

/// Which one counts of several equal keys. Only opset 4 of LabelEncoder says which.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Repeated {
    First,
    Last,
}

fn table<K: Eq + Hash>(keys: impl Iterator<Item = K>, repeated: Repeated) -> HashMap<K, usize> {
    let mut table = HashMap::new();
    for (position, key) in keys.enumerate() {
        let entry = table.entry(key).or_insert(position);
        if repeated == Repeated::Last {
            *entry = position;
        }
    }
    table
}

impl Keys {
    fn new(keys: &Tensor, repeated: Repeated) -> Result<Self, OpError> {
        Ok(match keys.data() {
            Slice::String(keys) => Self::Strings(table(keys.iter().cloned(), repeated)),
            Slice::I64(keys) => Self::I64(table(keys.iter().copied(), repeated)),
            Slice::I32(keys) => Self::I32(table(keys.iter().copied(), repeated)),
            Slice::I16(keys) => Self::I16(table(keys.iter().copied(), repeated)),
            Slice::F32(keys) => Self::F32(table(keys.iter().copied().map(bits32), repeated)),
            Slice::F64(keys) => Self::F64(table(keys.iter().copied().map(bits64), repeated)),
            other => return Err(OpError::Type(format!("keys of type {} are not supported", other.dtype()))),
        })
    }

    fn dtype(&self) -> DType {
        match self {
            Self::Strings(_) => DType::String,
            Self::I64(_) => DType::I64,
            Self::I32(_) => DType::I32,
            Self::I16(_) => DType::I16,
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    /// The position of each element's key.
    fn positions(&self, x: Slice<'_>) -> Result<Vec<Option<usize>>, OpError> {
        Ok(match (self, x) {
            (Self::Strings(keys), Slice::String(x)) => x.iter().map(|v| keys.get(v).copied()).collect(),
            (Self::I64(keys), Slice::I64(x)) => x.iter().map(|v| keys.get(v).copied()).collect(),
            (Self::I32(keys), Slice::I32(x)) => x.iter().map(|v| keys.get(v).copied()).collect(),
            (Self::I16(keys), Slice::I16(x)) => x.iter().map(|v| keys.get(v).copied()).collect(),
            (Self::F32(keys), Slice::F32(x)) => x.iter().map(|v| keys.get(&bits32(*v)).copied()).collect(),
            (Self::F64(keys), Slice::F64(x)) => x.iter().map(|v| keys.get(&bits64(*v)).copied()).collect(),
            (keys, x) => return Err(OpError::wrong_type(keys.dtype(), x.dtype())),
        })
    }
}

/// Between strings and numbers: which way is for the input's type to say.
#[derive(Debug)]
struct TwoWays {
    to_text: LabelEncoder,
    to_number: LabelEncoder,
}

fn two_ways(attrs: &Attrs, texts: Vec<String>, numbers: Vec<i64>, repeated: Repeated) -> Result<Box<dyn Op>, OpError> {
    let (text, number) = (attrs.string_or("default_string", "_Unused")?, attrs.int_or("default_int64", -1)?);
    let (texts, numbers) = (Tensor::vector(texts), Tensor::vector(numbers));
    let to_text = LabelEncoder { keys: Keys::new(&numbers, repeated)?, values: texts.clone(), default: Tensor::vector(vec![text]) };
    let to_number = LabelEncoder { keys: Keys::new(&texts, repeated)?, values: numbers, default: Tensor::vector(vec![number]) };
    Ok(Box::new(TwoWays { to_text, to_number }))
}

/// Opset 1: strings to their positions in a list, or positions to the strings.
fn label_encoder_1(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let classes = attrs.required("classes_strings", attrs.strings("classes_strings")?)?;
    let numbers = (0..classes.len() as i64).collect();
    two_ways(attrs, classes, numbers, Repeated::First)
}

fn category_mapper(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let strings = attrs.required("cats_strings", attrs.strings("cats_strings")?)?;
    let numbers = attrs.required("cats_int64s", attrs.ints("cats_int64s")?)?;
    if strings.len() != numbers.len() {
        return Err(OpError::Attribute(format!("{} strings and {} numbers are given", strings.len(), numbers.len())));
    }
    two_ways(attrs, strings, numbers, Repeated::Last)
}

fn label_encoder(attrs: &Attrs, repeated: Repeated) -> Result<Box<dyn Op>, OpError> {
    let list = |prefix: &str| -> Result<Option<Tensor>, OpError> {
        let of = |kind: &str| format!("{prefix}_{kind}");
        let found = [
            attrs.strings(&of("strings"))?.map(Tensor::vector),
            attrs.ints(&of("int64s"))?.map(Tensor::vector),
            attrs.floats(&of("floats"))?.map(Tensor::vector),
            attrs.tensor(&of("tensor"))?,
        ];
        let mut found = found.into_iter().flatten();
        Ok(found.next().filter(|_| found.next().is_none()))
    };
    let missing = |what: &str| OpError::Attribute(format!("exactly one attribute with {what} must be given"));
    let keys = list("keys")?.ok_or_else(|| missing("keys"))?;
    let values = list("values")?.ok_or_else(|| missing("values"))?;
    if keys.len() != values.len() {
        return Err(OpError::Attribute(format!("{} keys and {} values are given", keys.len(), values.len())));
    }
    let named = (attrs.string("default_string")?, attrs.int("default_int64")?, attrs.float("default_float")?);
    let default = match (attrs.tensor("default_tensor")?, values.dtype()) {
        (Some(tensor), dtype) if tensor.dtype() == dtype && tensor.len() == 1 => tensor,
        (Some(_), _) => return Err(OpError::Attribute("attribute `default_tensor` must be one value of the values' type".into())),
        (None, DType::String) => Tensor::vector(vec![named.0.unwrap_or_else(|| "_Unused".into())]),
        (None, DType::I64) => Tensor::vector(vec![named.1.unwrap_or(-1)]),
        (None, DType::F32) => Tensor::vector(vec![named.2.unwrap_or(-0.0)]),
        (None, DType::F64) => Tensor::vector(vec![-0.0_f64]),
        (None, DType::I32) => Tensor::vector(vec![-1_i32]),
        (None, DType::I16) => Tensor::vector(vec![-1_i16]),
        (None, other) => return Err(OpError::Type(format!("values of type {other} are not supported"))),
    };
    Ok(Box::new(LabelEncoder { keys: Keys::new(&keys, repeated)?, values, default }))
}

fn pick<T: Element>(positions: &[Option<usize>], values: View<'_>, default: View<'_>, y: &mut ViewMut<'_>) -> Result<(), OpError> {
    let (values, default) = (values.slice::<T>()?, default.slice::<T>()?);
    for (y, position) in y.slice::<T>()?.iter_mut().zip(positions) {
        y.clone_from(position.map_or(&default[0], |p| &values[p]));
    }
    Ok(())
}

impl Op for LabelEncoder {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        match inputs[0].as_ref().and_then(Kind::dtype) {
            Some(dtype) if dtype != self.keys.dtype() => Err(OpError::wrong_type(self.keys.dtype(), dtype)),
            _ => Ok(Kinds::from_iter([Kind::Tensor(self.values.dtype())])),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let positions = self.keys.positions(inputs.at(0)?.data())?;
        let (values, default) = (self.values.view().bits(), self.default.view().bits());
        let y = &mut outputs.at(0)?.bits();
        with_bits!(values.dtype(), T => pick::<T>(&positions, values, default, y))
    }
}

impl TwoWays {
    fn direction(&self, input: DType) -> &LabelEncoder {
        if input == DType::String { &self.to_number } else { &self.to_text }
    }
}

impl Op for TwoWays {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        self.direction(inputs[0].as_ref().and_then(Kind::dtype).unwrap_or(DType::I64)).kinds(inputs)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.direction(inputs.at(0)?.dtype()).run(inputs, outputs, ctx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;

    fn ml(name: &'static str) -> Case {
        op(name).domain("ai.onnx.ml").opset(3)
    }

    fn words(values: &[&str]) -> Tensor {
        tensor(&[values.len()], &values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn labels_map_between_types() {
        let case = ml("LabelEncoder").attr("keys_strings", &["a", "b"][..]).attr("values_int64s", &[10_i64, 20][..]).attr("default_int64", 7_i64);
        assert_eq!(case.one(&[&words(&["b", "c", "a"])]), tensor(&[3], &[20_i64, 7, 10]));
        assert!(matches!(case.error(&[&tensor(&[1], &[1_i64])]), OpError::Type(_)));
        let back = ml("LabelEncoder").attr("keys_int64s", &[1_i64][..]).attr("values_strings", &["one"][..]);
        assert_eq!(back.one(&[&tensor(&[2], &[1_i64, 2])]), words(&["one", "_Unused"]));
        let floats = ml("LabelEncoder").attr("keys_floats", &[f32::NAN, 0.0][..]).attr("values_floats", &[1.0_f32, 2.0][..]);
        assert_eq!(floats.one(&[&tensor(&[3], &[f32::NAN, -0.0, 5.0])]), tensor(&[3], &[1.0_f32, 2.0, 0.0]));
    }

    #[test]
    fn tables_may_be_tensors() {
        let case = ml("LabelEncoder")
            .opset(4)
            .attr("keys_tensor", tensor(&[2], &[1_i16, 2]))
            .attr("values_tensor", tensor(&[2], &[0.5_f64, 1.5]))
            .attr("default_tensor", tensor(&[1], &[9.0_f64]));
        assert_eq!(case.one(&[&tensor(&[2, 1], &[2_i16, 3])]), tensor(&[2, 1], &[1.5_f64, 9.0]));
        let wrong = ml("LabelEncoder").attr("keys_int64s", &[1_i64, 2][..]).attr("values_int64s", &[1_i64][..]);
        assert!(matches!(wrong.error(&[&tensor(&[1], &[1_i64])]), OpError::Attribute(_)));
        assert!(matches!(ml("LabelEncoder").error(&[&tensor(&[1], &[1_i64])]), OpError::Attribute(_)));
    }

    #[test]
    fn the_first_opset_has_a_list_of_classes() {
        let case = || ml("LabelEncoder").opset(1).attr("classes_strings", &["x", "y"][..]);
        assert_eq!(case().one(&[&words(&["y", "z"])]), tensor(&[2], &[1_i64, -1]));
        assert_eq!(case().one(&[&tensor(&[2], &[0_i64, 5])]), words(&["x", "_Unused"]));
    }

    #[test]
    fn of_equal_keys_one_counts() {
        let case = |opset| ml("LabelEncoder").opset(opset).attr("keys_int64s", &[1_i64, 1][..]).attr("values_int64s", &[5_i64, 6][..]);
        assert_eq!(case(2).one(&[&tensor(&[1], &[1_i64])]), tensor(&[1], &[5_i64]));
        assert_eq!(case(4).one(&[&tensor(&[1], &[1_i64])]), tensor(&[1], &[6_i64]));
    }

    #[test]
    fn category_mapper_goes_both_ways() {
        let case = ml("CategoryMapper").opset(1).attr("cats_strings", &["x", "y", "x"][..]).attr("cats_int64s", &[3_i64, 9, 4][..]);
        assert_eq!(case.one(&[&words(&["y", "x", "z"])]), tensor(&[3], &[9_i64, 4, -1]));
        assert_eq!(case.one(&[&tensor(&[3, 1], &[3_i64, 9, 1])]), tensor(&[3, 1], &["x", "y", "_Unused"].map(str::to_owned)));
        assert!(matches!(ml("CategoryMapper").attr("cats_strings", &["x"][..]).error(&[&words(&["x"])]), OpError::Attribute(_)));
    }
}
