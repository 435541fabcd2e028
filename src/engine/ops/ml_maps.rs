//! ai.onnx.ml: maps. ZipMap puts them out; DictVectorizer and CastMap make tensors of them.

use std::collections::{BTreeMap, HashMap};

use super::ANY;
use super::axes::{require, size, within};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::{Kind, Tensor, Value};

const fn def(name: &'static str, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "ai.onnx.ml", opsets: 1..=ANY, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("ZipMap", &[DType::F32], zip_map),
    def("DictVectorizer", &[], dict_vectorizer),
    def("CastMap", &[], cast_map),
];

fn no_tensors() -> OpError {
    OpError::unsupported("a map is no tensor")
}

/// Types of keys and values of the map that is input 0.
fn map_kind(inputs: &[Option<Kind>]) -> Result<(DType, DType), OpError> {
    match inputs.first() {
        Some(Some(Kind::Map { keys, values })) => Ok((*keys, *values)),
        Some(Some(other)) => Err(OpError::Type(format!("a map is needed where {other} is given"))),
        _ => Err(OpError::missing_input(0)),
    }
}

fn map<'a>(inputs: &[Option<&'a Value>]) -> Result<(&'a Tensor, &'a Tensor), OpError> {
    match inputs.first() {
        Some(Some(Value::Map { keys, values })) => Ok((keys, values)),
        _ => Err(OpError::missing_input(0)),
    }
}

/// The value of each word of a vocabulary; zero, or an empty string, for a word that the map does not have.
#[derive(Debug)]
struct DictVectorizer {
    /// int64 or string.
    vocabulary: Tensor,
}

fn dict_vectorizer(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let vocabulary = match (attrs.ints("int64_vocabulary")?, attrs.strings("string_vocabulary")?) {
        (Some(ints), None) => Tensor::vector(ints),
        (None, Some(strings)) => Tensor::vector(strings),
        _ => return Err(OpError::Attribute("either `int64_vocabulary` or `string_vocabulary` must be given".into())),
    };
    Ok(Box::new(DictVectorizer { vocabulary }))
}

/// The position in `keys` of each word.
fn positions(keys: &Tensor, words: &Tensor) -> Result<Vec<Option<usize>>, OpError> {
    fn find<T: Element + Eq + std::hash::Hash>(keys: &Tensor, words: &Tensor) -> Result<Vec<Option<usize>>, OpError> {
        let known: HashMap<&T, usize> = keys.view().slice::<T>()?.iter().zip(0..).collect();
        Ok(words.view().slice::<T>()?.iter().map(|word| known.get(word).copied()).collect())
    }
    if words.dtype() == DType::String { find::<String>(keys, words) } else { find::<i64>(keys, words) }
}

impl Op for DictVectorizer {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let (keys, values) = map_kind(inputs)?;
        if keys != self.vocabulary.dtype() {
            return Err(OpError::wrong_type(self.vocabulary.dtype(), keys));
        }
        match values {
            DType::F32 | DType::F64 | DType::I64 | DType::String => Ok(Kinds::from_iter([Kind::Tensor(values)])),
            other => Err(OpError::Type(format!("maps with values of type {other} are not taken"))),
        }
    }

    fn shapes(&self, _: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Err(OpError::Unknown)
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(no_tensors())
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], _: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        fn pick<T: Element>(values: &Tensor, found: &[Option<usize>]) -> Result<Tensor, OpError> {
            let values = values.view().slice::<T>()?;
            let picked: Vec<T> = found.iter().map(|p| p.and_then(|p| values.get(p).cloned()).unwrap_or_default()).collect();
            Tensor::new(&[1, picked.len()], picked).ok_or_else(no_tensors)
        }
        let (keys, values) = map(inputs)?;
        let found = positions(keys, &self.vocabulary)?;
        let row = match values.dtype() {
            DType::F32 => pick::<f32>(values, &found)?,
            DType::F64 => pick::<f64>(values, &found)?,
            DType::I64 => pick::<i64>(values, &found)?,
            _ => pick::<String>(values, &found)?,
        };
        Ok(vec![Value::Tensor(row)])
    }
}

/// The values of a map in the order of its keys.
#[derive(Debug)]
struct CastMap {
    to: DType,
    /// Elements of the output if a key is a position in it, where a key beyond it is passed over; else there are as many as the
    /// map has.
    sparse: Option<usize>,
}

fn cast_map(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let to = match attrs.string_or("cast_to", "TO_FLOAT")?.as_str() {
        "TO_FLOAT" => DType::F32,
        "TO_STRING" => DType::String,
        "TO_INT64" => DType::I64,
        other => return Err(OpError::Attribute(format!("attribute `cast_to` is `{other}`"))),
    };
    let length = attrs.int_or("max_map", 1)?;
    let sparse = match attrs.string_or("map_form", "DENSE")?.as_str() {
        "DENSE" => None,
        "SPARSE" => Some(size(length)?),
        other => return Err(OpError::Attribute(format!("attribute `map_form` is `{other}`"))),
    };
    Ok(Box::new(CastMap { to, sparse }))
}

/// An element of the map.
#[derive(Clone, Copy, Debug)]
enum Entry<'a> {
    Number(f32),
    Text(&'a str),
}

impl Entry<'_> {
    fn number<T: std::str::FromStr>(self, cast: impl Fn(f32) -> T) -> Result<T, OpError> {
        match self {
            Self::Number(v) => Ok(cast(v)),
            Self::Text(text) => text.trim().parse().map_err(|_| OpError::value(format!("`{text}` is not a number of the wanted type"))),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Number(v) if v.is_nan() => "nan".to_owned(),
            Self::Number(v) => format!("{v:.6}"),
            Self::Text(text) => text.to_owned(),
        }
    }
}

impl CastMap {
    /// The elements of the output; `None` where the map has none.
    fn row<'a>(&self, keys: &'a Tensor, values: &'a Tensor, budget: usize) -> Result<Vec<Option<Entry<'a>>>, OpError> {
        let entries: Vec<Entry<'a>> = match values.slice::<f32>() {
            Some(values) => values.iter().map(|&v| Entry::Number(v)).collect(),
            None => values.view().slice::<String>()?.iter().map(|v| Entry::Text(v)).collect(),
        };
        let sorted: BTreeMap<i64, Entry<'a>> = keys.view().slice::<i64>()?.iter().copied().zip(entries).collect();
        let Some(length) = self.sparse else { return Ok(sorted.into_values().map(Some).collect()) };
        within(budget, length, size_of::<Option<Entry<'_>>>() + self.to.size())?;
        let mut row = vec![None; length];
        for (key, entry) in sorted {
            let position = u64::try_from(key).map_err(|_| OpError::value(format!("key {key} is negative, and no position")))?;
            if let Some(place) = usize::try_from(position).ok().and_then(|position| row.get_mut(position)) {
                *place = Some(entry);
            }
        }
        Ok(row)
    }
}

impl Op for CastMap {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        match map_kind(inputs)? {
            (DType::I64, DType::F32 | DType::String) => Ok(Kinds::from_iter([Kind::Tensor(self.to)])),
            (keys, values) => Err(OpError::Type(format!("maps from {keys} to {values} are not taken"))),
        }
    }

    fn shapes(&self, _: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Err(OpError::Unknown)
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(no_tensors())
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let (keys, values) = map(inputs)?;
        let row = self.row(keys, values, ctx.budget)?;
        let shape = [1, row.len()];
        let tensor = match self.to {
            DType::F32 => {
                let cast = |e: Option<Entry<'_>>| e.map_or(Ok(0.0), |e| e.number(|v| v));
                Tensor::new::<f32>(&shape, row.into_iter().map(cast).collect::<Result<_, _>>()?)
            }
            DType::I64 => {
                let cast = |e: Option<Entry<'_>>| e.map_or(Ok(0), |e| e.number(|v| v as i64));
                Tensor::new::<i64>(&shape, row.into_iter().map(cast).collect::<Result<_, _>>()?)
            }
            // The text of a missing element is ONNX Runtime's.
            _ => Tensor::new::<String>(&shape, row.into_iter().map(|e| e.map_or_else(|| "0.f".to_owned(), Entry::text)).collect()),
        };
        Ok(vec![Value::Tensor(tensor.ok_or_else(no_tensors)?)])
    }
}

/// A map from class to score per row.
#[derive(Debug)]
struct ZipMap {
    /// int64 or string labels.
    keys: Tensor,
}

fn zip_map(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let keys = match (attrs.ints("classlabels_int64s")?, attrs.strings("classlabels_strings")?) {
        (Some(ints), None) => Tensor::vector(ints),
        (None, Some(strings)) => Tensor::vector(strings),
        _ => return Err(OpError::Attribute("either `classlabels_int64s` or `classlabels_strings` must be given".into())),
    };
    Ok(Box::new(ZipMap { keys }))
}

impl Op for ZipMap {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        let map = Kind::Map { keys: self.keys.dtype(), values: DType::F32 };
        Ok(Kinds::from_iter([Kind::Sequence(Box::new(map))]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let x = inputs.shape(0)?;
        let columns = x.last().copied().unwrap_or(1);
        if x.len() > 2 || columns != self.keys.len() {
            return Err(OpError::shape(format!("scores of shape {x:?} for {} classes", self.keys.len())));
        }
        Err(OpError::Unknown)
    }

    fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        Err(OpError::unsupported("the output is no tensor"))
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], _: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Some(Some(Value::Tensor(x))) = inputs.first() else { return Err(OpError::missing_input(0)) };
        let columns = x.shape().last().copied().unwrap_or(1);
        if x.shape().len() > 2 || columns != self.keys.len() {
            return Err(OpError::shape(format!("scores of shape {:?} for {} classes", x.shape(), self.keys.len())));
        }
        let rows = x.view().slice::<f32>()?.chunks(columns.max(1));
        let map = |row: &[f32]| Value::Map { keys: self.keys.clone(), values: Tensor::vector(row.to_vec()) };
        Ok(vec![Value::Sequence(rows.map(map).collect())])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, op, tensor};
    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::evaluate::evaluate_values;
    use crate::engine::kernels::isa::Isa;
    use crate::engine::op::Scratch;
    use crate::engine::threads::Threads;

    fn ml(name: &'static str) -> Case {
        op(name).domain("ai.onnx.ml").opset(3)
    }

    fn words(values: &[&str]) -> Tensor {
        Tensor::vector(values.iter().map(|&v| v.to_owned()).collect::<Vec<_>>())
    }

    /// Runs an operator of [`DEFS`] on a map.
    fn on_map(name: &str, attrs: Vec<(&str, Attr)>, keys: Tensor, values: Tensor) -> Result<Tensor, OpError> {
        let def = DEFS.iter().find(|def| def.name == name).expect("a row");
        let attrs = attrs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let op = (def.build)(&Attrs::new(attrs, 1, vec![true], vec![true]))?;
        let kinds = op.kinds(&[Some(Kind::Map { keys: keys.dtype(), values: values.dtype() })])?;
        let mut scratch = Scratch::default();
        let mut ctx = Context { scratch: &mut scratch, threads: &Threads::single(), isa: Isa::best(), budget: 1 << 20, deadline: None };
        let found = evaluate_values(&*op, &[Some(&Value::Map { keys, values })], &kinds, 1 << 20, &mut ctx)?;
        assert_eq!(found[0].tensor().map(Tensor::dtype), kinds[0].dtype());
        Ok(found[0].tensor().cloned().expect("a tensor"))
    }

    #[test]
    fn dict_vectorizer_looks_words_up() {
        let vocabulary = || vec![("string_vocabulary", Attr::from(&["a", "c", "b", "z"][..]))];
        let found = on_map("DictVectorizer", vocabulary(), words(&["c", "a", "q"]), Tensor::vector(vec![8_i64, 4, 1]));
        assert_eq!(found, Ok(tensor(&[1, 4], &[4_i64, 8, 0, 0])));
        let numbers = vec![("int64_vocabulary", Attr::from(&[7_i64, 1][..]))];
        let found = on_map("DictVectorizer", numbers, Tensor::vector(vec![1_i64]), words(&["one"]));
        assert_eq!(found, Ok(tensor(&[1, 2], &["".to_owned(), "one".to_owned()])));
        assert!(matches!(on_map("DictVectorizer", vocabulary(), Tensor::vector(vec![1_i64]), words(&["x"])), Err(OpError::Type(_))));
        assert!(matches!(on_map("DictVectorizer", vec![], words(&[]), words(&[])), Err(OpError::Attribute(_))));
        assert!(matches!(ml("DictVectorizer").attr("int64_vocabulary", &[1_i64][..]).error(&[&words(&["x"])]), OpError::Type(_)));
    }

    #[test]
    fn cast_map_orders_by_key() {
        let run = |attrs: &[(&'static str, &str)], length: i64, values: Tensor| {
            let mut attrs: Vec<_> = attrs.iter().map(|&(name, value)| (name, Attr::from(value))).collect();
            attrs.push(("max_map", Attr::from(length)));
            on_map("CastMap", attrs, Tensor::vector(vec![3_i64, 0]), values)
        };
        let floats = || Tensor::vector(vec![3.5_f32, -1.25]);
        assert_eq!(run(&[], 1, floats()), Ok(tensor(&[1, 2], &[-1.25_f32, 3.5])));
        let sparse = ("map_form", "SPARSE");
        assert_eq!(run(&[sparse, ("cast_to", "TO_INT64")], 5, floats()), Ok(tensor(&[1, 5], &[-1_i64, 0, 0, 3, 0])));
        let texts = ["-1.250000", "0.f", "0.f", "3.500000"].map(str::to_owned);
        assert_eq!(run(&[sparse, ("cast_to", "TO_STRING")], 4, floats()), Ok(tensor(&[1, 4], &texts)));
        assert_eq!(run(&[], 1, words(&["2.5", "-7"])), Ok(tensor(&[1, 2], &[-7.0_f32, 2.5])));
        assert!(matches!(run(&[], 1, words(&["2.5", "x"])), Err(OpError::Value(_))));
        for length in [-1, 1 << 20, i64::MAX] {
            assert!(run(&[sparse], length, floats()).is_err());
        }
    }

    /// As ONNX Runtime has it; by scripts/differential_maps.py.
    #[test]
    fn cast_map_passes_over_keys_beyond_the_length_and_writes_nan_as_c_does() {
        let run = |keys: &[i64], to: &str| {
            let attrs = vec![("map_form", Attr::from("SPARSE")), ("max_map", Attr::from(2_i64)), ("cast_to", Attr::from(to))];
            on_map("CastMap", attrs, Tensor::vector(keys.to_vec()), Tensor::vector(vec![f32::NAN, -1.25]))
        };
        assert_eq!(run(&[2, 1], "TO_FLOAT"), Ok(tensor(&[1, 2], &[0.0_f32, -1.25])));
        assert_eq!(run(&[i64::MAX, 0], "TO_INT64"), Ok(tensor(&[1, 2], &[-1_i64, 0])));
        assert_eq!(run(&[1, 7], "TO_STRING"), Ok(tensor(&[1, 2], &["0.f".to_owned(), "nan".to_owned()])));
        assert!(matches!(run(&[-1, 0], "TO_FLOAT"), Err(OpError::Value(_))));
    }

    #[test]
    fn zip_map_makes_a_map_per_row() {
        let x = tensor(&[2, 2], &[0.25_f32, 0.75, 1.0, 0.0]);
        let map = |keys: &Tensor, values: &[f32]| Value::Map { keys: keys.clone(), values: Tensor::vector(values.to_vec()) };
        let ints = ml("ZipMap").opset(1).attr("classlabels_int64s", &[3_i64, 4][..]);
        let keys = tensor(&[2], &[3_i64, 4]);
        let want = Value::Sequence(vec![map(&keys, &[0.25, 0.75]), map(&keys, &[1.0, 0.0])]);
        assert_eq!(ints.values(&[Some(&x)]).unwrap(), [want]);
        let text = ml("ZipMap").opset(1).attr("classlabels_strings", &["no", "yes"][..]);
        let Value::Sequence(maps) = &text.values(&[Some(&x)]).unwrap()[0] else { panic!("a sequence") };
        assert_eq!(maps[1], map(&words(&["no", "yes"]), &[1.0, 0.0]));
        assert!(ints.values(&[Some(&tensor(&[1, 3], &[0.0_f32; 3]))]).is_err());
        assert_eq!(ints.values(&[Some(&tensor::<f32>(&[0, 2], &[]))]).unwrap(), [Value::Sequence(vec![])]);
        assert!(matches!(ml("ZipMap").values(&[Some(&x)]), Err(OpError::Attribute(_))));
    }}
