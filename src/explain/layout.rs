//! The elements of a row: one after the other over all inputs of the model. Rows are made of elements of other rows.

use std::ops::Range;

use crate::engine::{Buffer, DType, Signature, Slice, Tensor};
use crate::error::{Error, Kind};

/// One input.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    name: String,
    dtype: DType,
    /// The shape of a row.
    shape: Vec<usize>,
    start: usize,
    size: usize,
}

/// Where each input lies among the elements of a row, and what the elements are called.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    parts: Vec<Part>,
    len: usize,
    names: Vec<String>,
}

impl Layout {
    /// The layout of rows such as those of `inputs`. `names` are those of all elements, in order, or none.
    ///
    /// # Errors
    /// If an input has no dimension of rows, the inputs differ in their number of rows, or there are not as many names as
    /// elements.
    pub fn new(signature: &Signature, inputs: &[Tensor], names: &[String]) -> Result<Self, Error> {
        let (mut parts, mut len) = (Vec::with_capacity(inputs.len()), 0);
        let rows = inputs.first().and_then(|tensor| tensor.shape().first()).copied();
        for (port, tensor) in signature.inputs.iter().zip(inputs) {
            if tensor.shape().first().copied() != rows || rows.is_none() {
                let message = format!("input `{}` has shape {:?}: its first dimension is not the rows", port.name, tensor.shape());
                return Err(Error::new(Kind::Unsupported, message));
            }
            let shape = tensor.shape()[1..].to_vec();
            let size = shape.iter().product();
            parts.push(Part { name: port.name.clone(), dtype: tensor.dtype(), shape, start: len, size });
            len += size;
        }
        if !names.is_empty() && names.len() != len {
            return Err(Error::invalid(format!("there are {} names of features for {len} elements of a row", names.len())));
        }
        Ok(Self { parts, len, names: names.to_vec() })
    }

    /// Elements of a row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether a row has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The name of an element: what it is called, else its input with its place there.
    pub fn name(&self, element: usize) -> String {
        if let Some(name) = self.names.get(element) {
            return name.clone();
        }
        let (_, part) = self.part(element);
        if part.size == 1 && self.parts.len() > 1 {
            return part.name.clone();
        }
        let (mut at, mut places) = (element - part.start, Vec::new());
        for &size in part.shape.iter().rev() {
            places.push((at % size).to_string());
            at /= size;
        }
        places.reverse();
        if places.is_empty() { part.name.clone() } else { format!("{}[{}]", part.name, places.join(",")) }
    }

    /// The input that an element belongs to, with its position.
    fn part(&self, element: usize) -> (usize, &Part) {
        let at = self.parts.partition_point(|part| part.start + part.size <= element);
        (at, &self.parts[at])
    }

    /// Each input: its name, the shape of a row of it, and which elements are its.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &[usize], Range<usize>)> {
        self.parts.iter().map(|part| (part.name.as_str(), part.shape.as_slice(), part.start..part.start + part.size))
    }

    /// Each input with its element type.
    pub(super) fn types(&self) -> impl Iterator<Item = (&str, DType)> {
        self.parts.iter().map(|part| (part.name.as_str(), part.dtype))
    }

    /// Bytes of a row; of text without the text.
    pub fn row_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.size * part.dtype.size()).sum()
    }

    /// The value of an element as a number; `None` for text and what else is none.
    pub fn number(&self, tensors: &[Tensor], row: usize, element: usize) -> Option<f64> {
        let (at, part) = self.part(element);
        number(tensors[at].data(), row * part.size + element - part.start)
    }

    /// The value of an element as text, for people.
    pub fn show(&self, tensors: &[Tensor], row: usize, element: usize) -> Option<String> {
        let (at, part) = self.part(element);
        tensors[at].slice::<String>().map(|texts| texts[row * part.size + element - part.start].clone())
    }

    /// Rows to be filled.
    pub(super) fn rows(&self, count: usize) -> Rows<'_> {
        let buffer = |part: &Part| {
            let mut buffer = Buffer::new(part.dtype);
            buffer.grow(part.size * count);
            buffer
        };
        Rows { layout: self, buffers: self.parts.iter().map(buffer).collect(), count, next: 0 }
    }
}

/// An element as a number; `None` of text and what else is none.
pub fn number(slice: Slice<'_>, at: usize) -> Option<f64> {
    Some(match slice {
        Slice::F32(values) => values[at].into(),
        Slice::F64(values) => values[at],
        Slice::F16(values) => values[at].into(),
        Slice::BF16(values) => values[at].into(),
        Slice::I64(values) => values[at] as f64,
        Slice::I32(values) => values[at].into(),
        Slice::I16(values) => values[at].into(),
        Slice::I8(values) => values[at].into(),
        Slice::U64(values) => values[at] as f64,
        Slice::U32(values) => values[at].into(),
        Slice::U16(values) => values[at].into(),
        Slice::U8(values) => values[at].into(),
        Slice::Bool(values) => f64::from(u8::from(values[at])),
        _ => return None,
    })
}

/// Rows under construction.
pub(super) struct Rows<'l> {
    layout: &'l Layout,
    buffers: Vec<Buffer>,
    count: usize,
    next: usize,
}

impl Rows<'_> {
    /// Appends a copy of row `row` of `source`.
    pub(super) fn push(&mut self, source: &[Tensor], row: usize) {
        for ((part, buffer), tensor) in self.layout.parts.iter().zip(&mut self.buffers).zip(source) {
            let from = tensor.data().range(row * part.size..(row + 1) * part.size);
            buffer.slice_mut(part.size * self.count).copy_from(self.next * part.size, &from);
        }
        self.next += 1;
    }

    /// Replaces an element of the last row by that of row `row` of `source`.
    pub(super) fn set(&mut self, element: usize, source: &[Tensor], row: usize) {
        let (at, part) = self.layout.part(element);
        let place = element - part.start;
        let from = source[at].data().range(row * part.size + place..row * part.size + place + 1);
        self.buffers[at].slice_mut(part.size * self.count).copy_from((self.next - 1) * part.size + place, &from);
    }

    /// One tensor per input.
    pub(super) fn tensors(self) -> Vec<Tensor> {
        let count = self.count;
        let tensor = |(part, buffer): (&Part, Buffer)| {
            let shape: Vec<usize> = [&[count], &part.shape[..]].concat();
            buffer.into_tensor(&shape).expect("grown to the rows")
        };
        self.layout.parts.iter().zip(self.buffers).map(tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Dim, Kind, Port};

    fn signature() -> Signature {
        let port = |name: &str, dtype| Port { name: name.into(), kind: Kind::Tensor(dtype), dims: Some(vec![Dim::Free("n".into())]) };
        Signature { inputs: vec![port("x", DType::F32), port("kind", DType::String)], batchable: true, ..Signature::default() }
    }

    fn inputs() -> Vec<Tensor> {
        let texts = Tensor::new(&[2, 1], vec!["a".to_owned(), "b".to_owned()]).unwrap();
        vec![Tensor::new(&[2, 1, 2], vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap(), texts]
    }

    #[test]
    fn rows_are_mixed_of_elements_of_any_type() {
        let layout = Layout::new(&signature(), &inputs(), &[]).unwrap();
        let mut rows = layout.rows(2);
        rows.push(&inputs(), 0);
        rows.push(&inputs(), 1);
        rows.set(0, &inputs(), 0);
        rows.set(2, &inputs(), 0);
        let tensors = rows.tensors();
        assert_eq!(tensors[0].slice::<f32>().unwrap(), [1.0, 2.0, 1.0, 4.0]);
        assert_eq!(tensors[1].slice::<String>().unwrap(), ["a", "a"]);
        assert_eq!((layout.number(&inputs(), 1, 1), layout.number(&inputs(), 1, 2)), (Some(4.0), None));
        assert_eq!(layout.show(&inputs(), 1, 2).as_deref(), Some("b"));
    }

    #[test]
    fn elements_have_names() {
        let layout = Layout::new(&signature(), &inputs(), &[]).unwrap();
        assert_eq!((0..3).map(|i| layout.name(i)).collect::<Vec<_>>(), ["x[0,0]", "x[0,1]", "kind"]);
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        assert_eq!(Layout::new(&signature(), &inputs(), &names).unwrap().name(2), "c");
        let error = Layout::new(&signature(), &inputs(), &names[..2]).unwrap_err();
        assert_eq!(error.message(), "there are 2 names of features for 3 elements of a row");
        let uneven = [inputs().remove(0), Tensor::vector(vec![String::new()])];
        let error = Layout::new(&signature(), &uneven, &[]).unwrap_err();
        assert!(error.message().starts_with("input `kind` has shape [1]"), "{error}");
    }
}
