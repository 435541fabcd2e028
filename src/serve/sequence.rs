//! Requests of different lengths in one forward pass: the shorter ones are padded behind, and their outputs cut back.
//!
//! Requests share a pass only with others of their bucket of lengths, so that what is padded stays within a budget. Whether a
//! padded request gets the bits that it gets alone is the model's doing (an attention mask makes padded positions exact zeros,
//! a mean over all positions does not), so it is tried when the model is loaded, and without that nothing is padded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::loading::same_bits;
use crate::engine::{Buffer, DType, Dim, Session, Shape, Signature, Slice, Tensor, Value};

/// `[sequence]` of `model.toml`: how requests of different lengths are batched.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceSettings {
    /// The name of the free dimension that is the length.
    pub dimension: String,
    /// Longest length of each bucket, ascending. Longer requests share a pass only with those of their own length.
    pub buckets: Vec<usize>,
    /// Most of a bucket's length that may be padding, from 0 to 1. A request that is shorter than that allows shares a pass
    /// only with those of its own length.
    pub max_padding: f64,
    /// By input that has the dimension: the value that is put behind.
    pub padding: BTreeMap<String, f64>,
}

/// How the tensors of one model are padded and cut.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Padding {
    /// By input: the dimension that is the length, and the value to put behind.
    inputs: Vec<Option<(usize, f64)>>,
    /// By output: the dimensions that are the length.
    outputs: Vec<Vec<usize>>,
    buckets: Vec<usize>,
    max_padding: f64,
}

impl Padding {
    /// Finds the dimension in the inputs; [`Padding::verified`] finds it in the outputs.
    ///
    /// # Errors
    /// If the model has no such dimension, or an input that has it has no value to pad with.
    pub(super) fn new(signature: &Signature, settings: &SequenceSettings) -> Result<Self, String> {
        let name = &settings.dimension;
        let mut inputs = Vec::new();
        for port in &signature.inputs {
            let has = |dim: &Dim| matches!(dim, Dim::Free(free) if free == name);
            let axis = port.dims.as_ref().and_then(|dims| dims.iter().skip(1).position(has)).map(|axis| axis + 1);
            let value = settings.padding.get(&port.name);
            inputs.push(match (axis, value) {
                (Some(axis), Some(&value)) => {
                    if port.kind.dtype().is_none_or(|dtype| constant(dtype, value, 0).is_none()) {
                        return Err(format!("[sequence]: the input `{}` is {}, which has no {value} to pad with", port.name, port.kind));
                    }
                    Some((axis, value))
                }
                (None, None) => None,
                (Some(_), None) => return Err(format!("[sequence]: the input `{}` has `{name}` and no value in padding", port.name)),
                (None, Some(_)) => return Err(format!("[sequence]: the input `{}` has no dimension `{name}` to pad", port.name)),
            });
        }
        if let Some(unknown) = settings.padding.keys().find(|name| signature.input(name).is_none()) {
            return Err(format!("[sequence]: padding names `{unknown}`, which is no input"));
        }
        if inputs.iter().all(Option::is_none) {
            return Err(format!("[sequence]: no input has a dimension `{name}`"));
        }
        let outputs = vec![Vec::new(); signature.outputs.len()];
        Ok(Self { inputs, outputs, buckets: settings.buckets.clone(), max_padding: settings.max_padding })
    }

    /// The length of a request; `None` if its inputs do not agree on one.
    pub(super) fn length(&self, inputs: &[Tensor]) -> Option<usize> {
        let mut lengths = self.inputs.iter().zip(inputs).filter_map(|(place, tensor)| tensor.shape().get(place.as_ref()?.0).copied());
        let first = lengths.next()?;
        lengths.all(|length| length == first).then_some(first)
    }

    /// The longest length with which a request of `length` may share a pass.
    fn bucket(&self, length: usize) -> Option<usize> {
        let bucket = self.buckets.iter().copied().find(|&bucket| bucket >= length)?;
        ((bucket - length) as f64 <= self.max_padding * bucket as f64).then_some(bucket)
    }

    /// The sizes by which a request is put into a class: its shapes without the batch, the length standing for its bucket.
    pub(super) fn sizes(&self, inputs: &[Tensor]) -> Vec<usize> {
        let bucket = self.length(inputs).and_then(|length| self.bucket(length));
        let mut sizes = Vec::new();
        for (place, tensor) in self.inputs.iter().zip(inputs) {
            for (axis, &size) in tensor.shape().iter().enumerate().skip(1) {
                match (place, bucket) {
                    // No size: a request of just that length that has no bucket is another class.
                    (Some((length, _)), Some(bucket)) if axis == *length => sizes.extend([usize::MAX - 1, bucket]),
                    _ => sizes.push(size),
                }
            }
            sizes.push(usize::MAX);
        }
        sizes
    }

    /// The requests of one pass, padded to the longest of them, with the length of each; `None` if they are of one length.
    pub(super) fn together(&self, requests: &[&[Tensor]]) -> Option<(Vec<Vec<Tensor>>, Vec<usize>)> {
        let lengths: Vec<usize> = requests.iter().map(|inputs| self.length(inputs)).collect::<Option<_>>()?;
        let longest = *lengths.iter().max()?;
        if lengths.iter().all(|&length| length == longest) {
            return None;
        }
        Some((requests.iter().map(|inputs| self.pad(inputs, longest)).collect(), lengths))
    }

    /// A request with `to` as its length.
    fn pad(&self, inputs: &[Tensor], to: usize) -> Vec<Tensor> {
        let pad = |(place, tensor): (&Option<(usize, f64)>, &Tensor)| match place {
            Some((axis, value)) if tensor.shape()[*axis] < to => resize(tensor, *axis, to, Some(*value)),
            _ => tensor.clone(),
        };
        self.inputs.iter().zip(inputs).map(pad).collect()
    }

    /// A request whose length is cut to `to`.
    fn shorten(&self, inputs: &[Tensor], to: usize) -> Vec<Tensor> {
        let cut = |(place, tensor): (&Option<(usize, f64)>, &Tensor)| match place {
            Some((axis, _)) => resize(tensor, *axis, to, None),
            None => tensor.clone(),
        };
        self.inputs.iter().zip(inputs).map(cut).collect()
    }

    /// The outputs of a request of `length`, which was padded.
    pub(super) fn cut(&self, outputs: Vec<Value>, length: usize) -> Vec<Value> {
        let cut = |(axes, value): (&Vec<usize>, Value)| match value {
            Value::Tensor(tensor) => Value::Tensor(axes.iter().fold(tensor, |tensor, &axis| resize(&tensor, axis, length, None))),
            other => other,
        };
        self.outputs.iter().zip(outputs).map(cut).collect()
    }

    /// Tries whether padding changes nothing: `sample`, one row, is run at some lengths alone and padded to others.
    ///
    /// # Errors
    /// What is different, or that nothing could be tried.
    pub(super) fn verified(mut self, session: &mut Session, sample: &[Tensor]) -> Result<Self, String> {
        /// Part of the time until a model is ready; the first lengths are tried whatever they take.
        const BUDGET: Duration = Duration::from_millis(200);
        /// Lengths beyond a request's own: not only the multiples of a vector.
        const MORE: [usize; 7] = [1, 2, 3, 5, 8, 13, 16];
        const TRIED_MIN: usize = 3;
        let whole = self.length(sample).ok_or("the sample has no length")?;
        let end = Instant::now() + BUDGET;
        let mut tried = 0;
        for length in [whole, whole.div_ceil(2), 1] {
            let inputs = self.shorten(sample, length);
            let Ok(alone) = session.run(&inputs) else { continue };
            for to in MORE.iter().map(|more| length + more).chain(self.buckets.clone()).filter(|&to| to > length) {
                if tried >= TRIED_MIN && Instant::now() > end {
                    return Ok(self);
                }
                // The model may have a longest length of its own.
                let Ok(padded) = session.run(&self.pad(&inputs, to)) else { continue };
                self.learn(&alone, &padded, (length, to))?;
                if !same(&alone, &self.cut(padded, length)) {
                    return Err(format!("a request of length {length} gets another answer when it is padded to {to}"));
                }
                tried += 1;
            }
        }
        if tried == 0 { Err("no padded sample could be run".to_owned()) } else { Ok(self) }
    }

    /// Finds the dimensions of the outputs that follow the length.
    fn learn(&mut self, alone: &[Value], padded: &[Value], (length, to): (usize, usize)) -> Result<(), String> {
        for (i, (alone, padded)) in alone.iter().zip(padded).enumerate() {
            let (Some(alone), Some(padded)) = (alone.tensor(), padded.tensor()) else { return Err("an output is no tensor".into()) };
            let differ = || alone.shape().iter().zip(padded.shape()).enumerate().filter(|(_, (a, b))| a != b);
            if alone.shape().len() != padded.shape().len() || differ().any(|(_, sizes)| sizes != (&length, &to)) {
                let shapes = (alone.shape(), padded.shape());
                return Err(format!("output {i} has shape {:?} for length {length} and {:?} for {to}", shapes.0, shapes.1));
            }
            self.outputs[i] = differ().map(|(axis, _)| axis).collect();
        }
        Ok(())
    }
}

fn same(a: &[Value], b: &[Value]) -> bool {
    a.iter().zip(b).all(|(a, b)| match (a.tensor(), b.tensor()) {
        (Some(a), Some(b)) => a.shape() == b.shape() && same_bits(a, b),
        _ => false,
    })
}

/// A tensor whose dimension `axis` is made `to` long: cut, or with `fill` put behind.
fn resize(tensor: &Tensor, axis: usize, to: usize, fill: Option<f64>) -> Tensor {
    let from = tensor.shape()[axis];
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let outer: usize = tensor.shape()[..axis].iter().product();
    let mut shape: Shape = tensor.shape().into();
    shape[axis] = to;
    let len = outer * to * inner;
    let mut buffer = Buffer::new(tensor.dtype());
    buffer.grow(len);
    let kept = from.min(to) * inner;
    let behind = fill.and_then(|value| constant(tensor.dtype(), value, to.saturating_sub(from) * inner));
    let (data, mut target): (Slice<'_>, _) = (tensor.data(), buffer.slice_mut(len));
    for block in 0..outer {
        target.copy_from(block * to * inner, &data.range(block * from * inner..block * from * inner + kept));
        if let Some(behind) = &behind {
            target.copy_from(block * to * inner + kept, &behind.data());
        }
    }
    buffer.into_tensor(&shape).expect("as many elements as the shape has")
}

/// `len` elements of `value`; `None` if the type does not have it: a float takes the nearest, a whole number only itself. Texts
/// and other types that are no numbers have only what is zero to them.
fn constant(dtype: DType, value: f64, len: usize) -> Option<Tensor> {
    macro_rules! whole {
        ($t:ty) => {{
            let element = value as $t;
            // Beyond 2⁵³ a cast may round up to the limit of the type, which it does not reach.
            let holds = element as f64 == value && (value.abs() < 2_f64.powi(53));
            holds.then(|| Tensor::vector(vec![element; len]))
        }};
    }
    let finite = |element: f64| element.is_finite() == value.is_finite();
    match dtype {
        DType::F32 => finite((value as f32).into()).then(|| Tensor::vector(vec![value as f32; len])),
        DType::F64 => Some(Tensor::vector(vec![value; len])),
        DType::F16 => {
            let element = half::f16::from_f64(value);
            finite(element.into()).then(|| Tensor::vector(vec![element; len]))
        }
        DType::BF16 => {
            let element = half::bf16::from_f64(value);
            finite(element.into()).then(|| Tensor::vector(vec![element; len]))
        }
        DType::I64 => whole!(i64),
        DType::I32 => whole!(i32),
        DType::I16 => whole!(i16),
        DType::I8 => whole!(i8),
        DType::U64 => whole!(u64),
        DType::U32 => whole!(u32),
        DType::U16 => whole!(u16),
        DType::U8 => whole!(u8),
        DType::Bool => (value == 0.0 || value == 1.0).then(|| Tensor::vector(vec![value != 0.0; len])),
        other => (value == 0.0).then(|| Tensor::zeros(other, &[len])),
    }
}

/// A row to try padding with, where there is no recorded one: `None` if a dimension beside batch and length is free.
pub(super) fn made_up(signature: &Signature, settings: &SequenceSettings) -> Option<Vec<Tensor>> {
    let length = *settings.buckets.first()?;
    let tensor = |port: &crate::engine::Port| {
        let dims = port.dims.as_ref()?.iter().enumerate();
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Free(_) if axis == 0 => Some(1),
            Dim::Free(name) => (*name == settings.dimension).then_some(length),
        };
        let shape = dims.map(size).collect::<Option<Shape>>()?;
        let len: usize = shape.iter().product();
        // A mask is on, and an index is one that every table has and that is not the padding.
        let value = if settings.padding.get(&port.name) == Some(&1.0) { 0.0 } else { 1.0 };
        match port.kind.dtype()? {
            DType::F32 => Tensor::new(&shape, (0..len).map(|i| ((i * 37 + 11) % 101) as f32 / 50.5 - 1.0).collect()),
            // Ones of a type that has none are zeros.
            other => constant(other, value, len).unwrap_or_else(|| Tensor::zeros(other, &[len])).reshape(&shape),
        }
    };
    signature.inputs.iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Kind, Port};

    fn signature() -> Signature {
        let dims = |dims: &[&str]| dims.iter().map(|name| Dim::Free((*name).into())).collect();
        let port = |name: &str, dims: Vec<Dim>| Port { name: name.into(), kind: Kind::Tensor(DType::I64), dims: Some(dims) };
        let inputs = vec![port("ids", dims(&["batch", "sequence"])), port("topic", dims(&["batch"]))];
        Signature { inputs, outputs: vec![port("y", dims(&["batch", "", ""]))], optional: Vec::new(), batchable: true }
    }

    fn settings(padding: &[(&str, f64)]) -> SequenceSettings {
        let padding = padding.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        SequenceSettings { dimension: "sequence".into(), buckets: vec![4, 8], max_padding: 0.5, padding }
    }

    fn padding() -> Padding {
        Padding::new(&signature(), &settings(&[("ids", 7.0)])).unwrap()
    }

    fn request(ids: &[i64]) -> Vec<Tensor> {
        vec![Tensor::new(&[1, ids.len()], ids.to_vec()).unwrap(), Tensor::vector(vec![5_i64])]
    }

    #[test]
    fn what_is_padded_is_declared() {
        let error = |padding: &[(&str, f64)]| Padding::new(&signature(), &settings(padding)).unwrap_err();
        assert!(error(&[]).contains("`ids` has `sequence` and no value"));
        assert!(error(&[("ids", 0.0), ("topic", 0.0)]).contains("`topic` has no dimension `sequence`"));
        assert!(error(&[("ids", 0.0), ("idz", 0.0)]).contains("`idz`, which is no input"));
        assert!(error(&[("ids", 0.5)]).contains("`ids` is int64, which has no 0.5 to pad with"), "{}", error(&[("ids", 0.5)]));
        let other = SequenceSettings { dimension: "time".into(), ..settings(&[]) };
        assert!(Padding::new(&signature(), &other).unwrap_err().contains("no input has a dimension `time`"));
    }

    #[test]
    fn a_type_pads_with_the_values_that_it_has() {
        for (dtype, has, has_not) in [
            (DType::U8, &[0.0, 255.0][..], &[-1.0, 256.0, 0.5, f64::NAN][..]),
            (DType::I8, &[-128.0, 127.0], &[128.0]),
            (DType::I64, &[-1.0, 2_f64.powi(52)], &[2_f64.powi(63), f64::INFINITY]),
            (DType::U64, &[1.0], &[2_f64.powi(64), -1.0]),
            (DType::Bool, &[0.0, 1.0], &[2.0]),
            (DType::F16, &[0.1, -65504.0, f64::NEG_INFINITY], &[1e6]),
            (DType::F32, &[0.1, f64::NEG_INFINITY], &[1e300]),
            (DType::F64, &[1e300], &[]),
            (DType::String, &[0.0], &[1.0]),
        ] {
            for &value in has {
                assert_eq!(constant(dtype, value, 3).map(|tensor| tensor.len()), Some(3), "{dtype:?} {value}");
            }
            for &value in has_not {
                assert_eq!(constant(dtype, value, 3), None, "{dtype:?} {value}");
            }
        }
    }

    #[test]
    fn a_class_is_a_bucket_within_the_budget() {
        let padding = padding();
        let class = |length: usize| padding.sizes(&request(&vec![1; length]));
        assert_eq!(class(2), class(4));
        assert_eq!(class(5), class(8));
        assert_ne!(class(4), class(5));
        assert_ne!(class(1), class(2), "three quarters of it would be padding");
        assert_ne!(class(9), class(10), "longer than every bucket");
        assert_ne!(class(4), class(1));
    }

    #[test]
    fn the_shorter_are_padded_to_the_longest_and_cut_back() {
        let mut padding = padding();
        padding.outputs = vec![vec![1, 2]];
        let (short, long) = (request(&[1, 2]), request(&[3, 4, 5]));
        assert!(padding.together(&[&short, &short]).is_none(), "one length: nothing to pad");
        let (padded, lengths) = padding.together(&[&short, &long]).unwrap();
        assert_eq!(padded, [request(&[1, 2, 7]), long]);
        assert_eq!(lengths, [2, 3]);
        let output = Tensor::new(&[1, 3, 3], (0..9_i64).collect()).unwrap();
        let cut = padding.cut(vec![output.into()], 2);
        assert_eq!(cut[0].tensor().unwrap(), &Tensor::new(&[1, 2, 2], vec![0_i64, 1, 3, 4]).unwrap());
    }
}
