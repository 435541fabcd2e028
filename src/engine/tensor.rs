//! Owned values: tensors, and the sequences and maps that some operators produce.
//!
//! Invariant: a tensor is row-major and contiguous (`is_standard_layout`), so [`Tensor::view`] is free.

use std::fmt;

use std::sync::Arc;

use half::{bf16, f16};
use ndarray::ArrayD;
use num_complex::Complex;
use smallvec::SmallVec;

use super::dtype::{DType, Element, for_each_dtype, with_narrow};
use super::elements::{InFile, Spare, WeightFile};
use super::kernels::stored::{Source, Stored};
use super::narrow::{F4E2M1, F6E2M3, F6E3M2, F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, I2, I4, Narrow as _, U2, U4};
use super::view::{Slice, SliceMut, View, ViewMut};

/// A shape with its elements, which clones share. Behind one pointer: tensors are moved about with every request.
#[derive(Clone)]
pub struct Dense<T>(Elements<T>);

#[derive(Clone)]
enum Elements<T> {
    Here(Arc<ArrayD<T>>),
    /// In the model's file until somebody looks at them: numbers of type f32, whatever `T` would allow.
    InFile(Box<(SmallVec<[usize; 4]>, Arc<InFile>)>),
}

impl<T: Element> Dense<T> {
    fn here(array: ArrayD<T>) -> Self {
        Self(Elements::Here(Arc::new(array)))
    }

    fn in_file(numbers: Arc<InFile>, shape: &[usize]) -> Self {
        Self(Elements::InFile(Box::new((shape.into(), numbers))))
    }

    /// `None` if there are not as many elements as the shape says.
    fn new(shape: &[usize], values: Vec<T>) -> Option<Self> {
        ArrayD::from_shape_vec(shape, values).ok().map(Self::here)
    }

    fn shape(&self) -> &[usize] {
        match &self.0 {
            Elements::Here(array) => array.shape(),
            Elements::InFile(weight) => &weight.0,
        }
    }

    fn len(&self) -> usize {
        match &self.0 {
            Elements::Here(array) => array.len(),
            Elements::InFile(weight) => weight.1.len(),
        }
    }

    fn slice(&self) -> &[T] {
        match &self.0 {
            Elements::Here(array) => array.as_slice().expect("a tensor is contiguous"),
            Elements::InFile(weight) => T::slice(&Slice::F32(weight.1.get())).expect("only numbers of type f32 are left in files"),
        }
    }

    fn reshape(&self, shape: &[usize]) -> Option<Self> {
        if count(shape) != Some(self.len()) {
            return None;
        }
        match &self.0 {
            _ if shape == self.shape() => Some(self.clone()),
            Elements::Here(_) => Self::new(shape, self.slice().to_vec()),
            Elements::InFile(weight) => Some(Self::in_file(Arc::clone(&weight.1), shape)),
        }
    }
}

/// The number of elements of a shape, if memory could have so many; a dimension of zero makes no other one smaller.
fn count(shape: &[usize]) -> Option<usize> {
    let most = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size.max(1)))?;
    isize::try_from(most).ok()?;
    Some(if shape.contains(&0) { 0 } else { most })
}

macro_rules! define_tensor {
    ($($variant:ident: $t:ty),*) => {
        /// An n-dimensional array of one element type. Cloning shares the elements.
        #[derive(Clone)]
        #[allow(missing_docs, reason = "the variants are named after the types they hold")]
        pub enum Tensor { $($variant(Dense<$t>)),* }

        /// Growable storage of one element type: a slot of a session, or the elements of a tensor under construction.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "the variants are named after the types they hold")]
        pub enum Buffer { $($variant(Vec<$t>)),* }

        impl Tensor {
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(Self::$variant(_) => DType::$variant),* } }
            /// The shape; empty for a scalar.
            pub fn shape(&self) -> &[usize] { match self { $(Self::$variant(a) => a.shape()),* } }
            /// The number of elements.
            pub fn len(&self) -> usize { match self { $(Self::$variant(a) => a.len()),* } }
            /// The elements, type-erased.
            pub fn data(&self) -> Slice<'_> {
                match self { $(Self::$variant(a) => Slice::$variant(a.slice())),* }
            }
            /// The elements under another shape, copied if it is not the same one; `None` if their number differs.
            pub fn reshape(&self, shape: &[usize]) -> Option<Self> {
                match self { $(Self::$variant(a) => a.reshape(shape).map(Self::$variant)),* }
            }
        }

        $(impl From<ArrayD<$t>> for Tensor {
            fn from(array: ArrayD<$t>) -> Self {
                let array = if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() };
                Self::$variant(Dense::here(array))
            }
        })*

        impl Buffer {
            /// An empty buffer of `dtype`.
            pub fn new(dtype: DType) -> Self { match dtype { $(DType::$variant => Self::$variant(Vec::new())),* } }
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(Self::$variant(_) => DType::$variant),* } }
            /// The number of elements.
            pub fn len(&self) -> usize { match self { $(Self::$variant(v) => v.len()),* } }
            /// Whether there is no element.
            pub fn is_empty(&self) -> bool { self.len() == 0 }
            /// Makes room for at least `len` elements; never shrinks.
            pub fn grow(&mut self, len: usize) {
                match self { $(Self::$variant(v) => if v.len() < len { v.resize(len, Default::default()) }),* }
            }
            /// The first `len` elements. Panics if there are fewer.
            pub fn slice(&self, len: usize) -> Slice<'_> { match self { $(Self::$variant(v) => Slice::$variant(&v[..len])),* } }
            /// The first `len` elements, to be written. Panics if there are fewer.
            pub fn slice_mut(&mut self, len: usize) -> SliceMut<'_> {
                match self { $(Self::$variant(v) => SliceMut::$variant(&mut v[..len])),* }
            }
            /// A tensor that owns the elements; `None` if their number is not that of `shape`.
            pub fn into_tensor(self, shape: &[usize]) -> Option<Tensor> {
                match self { $(Self::$variant(v) => Dense::new(shape, v).map(Tensor::$variant)),* }
            }
        }

        impl Slice<'_> {
            /// A copy of the elements.
            pub fn to_buffer(&self) -> Buffer { match self { $(Self::$variant(s) => Buffer::$variant(s.to_vec())),* } }
        }
    };
}
for_each_dtype!(define_tensor);

impl Tensor {
    /// A tensor of `shape` whose numbers of type f32 lie in `file` from `offset` on, to be read when they are looked at; `None` if memory
    /// could not have so many.
    pub(crate) fn in_file(file: &Arc<WeightFile>, offset: u64, shape: &[usize]) -> Option<Self> {
        let numbers = InFile::new(file, offset, count(shape)?, None);
        Some(Self::F32(Dense::in_file(numbers, shape)))
    }

    /// The file in which the elements are, or were.
    pub(crate) fn file(&self) -> Option<&Arc<WeightFile>> {
        match self {
            Self::F32(Dense(Elements::InFile(weight))) => Some(weight.1.file()),
            _ => None,
        }
    }

    /// The same for somebody who looks at it for a short time: elements in a file are read to memory of `spare`, which then has it back.
    pub(crate) fn briefly(&self, spare: &Spare) -> Self {
        match self {
            Self::F32(Dense(Elements::InFile(weight))) => Self::F32(Dense::in_file(weight.1.briefly(spare), &weight.0)),
            other => other.clone(),
        }
    }

    /// The numbers to pack, which are read from the model's file only if nobody remembers what they became; `None` if they are of another
    /// type than f32.
    pub(crate) fn source(&self) -> Option<Numbers<'_>> {
        match self {
            Self::F32(numbers) => Some(Numbers(numbers)),
            _ => None,
        }
    }

    /// A tensor of `shape` with `values` in row-major order; `None` if their number differs.
    pub fn new<T: Element>(shape: &[usize], values: Vec<T>) -> Option<Self> {
        T::buffer(values).into_tensor(shape)
    }

    /// A tensor without dimensions.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::new(&[], vec![value]).expect("one element")
    }

    /// A one-dimensional tensor.
    pub fn vector<T: Element>(values: Vec<T>) -> Self {
        Self::new(&[values.len()], values).expect("as many elements as the dimension")
    }

    /// A tensor of zeros (`false`, empty strings).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let mut buffer = Buffer::new(dtype);
        buffer.grow(shape.iter().product());
        buffer.into_tensor(shape).expect("grown to the shape's length")
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the elements take; for strings without the text.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().size()
    }

    /// Bytes of text beside the elements; 0 for other types than strings.
    pub fn text_bytes(&self) -> usize {
        self.slice::<String>().map_or(0, |texts| texts.iter().map(String::len).sum())
    }

    /// The tensor as an operator reads it.
    pub fn view(&self) -> View<'_> {
        View::new(self.data(), self.shape())
    }

    /// The elements in row-major order; `None` if the tensor does not hold `T`.
    pub fn slice<T: Element>(&self) -> Option<&[T]> {
        T::slice(&self.data())
    }

    /// The values in a type that programs elsewhere know, exactly: small floats as f32, small integers as int8 or uint8,
    /// complex numbers as pairs along one more dimension; other tensors as they are.
    pub fn widen(&self) -> Self {
        let pairs = || [self.shape(), &[2]].concat();
        let widened = match self.data() {
            Slice::C64(values) => Self::new(&pairs(), values.iter().flat_map(|c| [c.re, c.im]).collect()),
            Slice::C128(values) => Self::new(&pairs(), values.iter().flat_map(|c| [c.re, c.im]).collect()),
            slice => with_narrow!(self.dtype(), T => {
                let values = T::slice(&slice).expect("matched on the type").iter().map(|v| v.widen());
                match self.dtype() {
                    DType::I4 | DType::I2 => Self::new(self.shape(), values.map(|v| v as i8).collect()),
                    DType::U4 | DType::U2 => Self::new(self.shape(), values.map(|v| v as u8).collect()),
                    _ => Self::new(self.shape(), values.map(|v| v as f32).collect()),
                }
            }, else return self.clone()),
        };
        widened.expect("as many values as before")
    }

    /// Rows `range` along the first dimension, copied.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let mut shape = self.shape().to_vec();
        let row: usize = shape[1..].iter().product();
        shape[0] = range.len();
        let slice = self.data().range(range.start * row..range.end * row);
        slice.to_buffer().into_tensor(&shape).expect("as many elements as the rows have")
    }
}

/// The elements of a tensor of type f32, as what packs them takes them.
pub(crate) struct Numbers<'a>(&'a Dense<f32>);

impl Source for Numbers<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn numbers(&self) -> &[f32] {
        self.0.slice()
    }

    fn kept(&self, form: fmt::Arguments<'_>, lines: usize) -> Option<Stored> {
        match &self.0.0 {
            Elements::Here(_) => None,
            Elements::InFile(weight) => weight.1.kept(form, lines),
        }
    }

    fn keep(&self, form: fmt::Arguments<'_>, stored: &Stored) {
        if let Elements::InFile(weight) = &self.0.0 {
            weight.1.keep(form, stored);
        }
    }
}

/// Of one type and shape, with elements that are equal as numbers are: NaN equals nothing, the two zeros each other.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape() == other.shape() && self.data() == other.data()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "{}{:?} ", self.dtype(), self.shape())?;
        let shown = self.data().range(0..self.len().min(SHOWN));
        write!(f, "{shown:?}")?;
        if self.len() > SHOWN { write!(f, "…") } else { Ok(()) }
    }
}

impl Buffer {
    /// The first elements as a tensor of `shape`, to be written.
    pub fn view_mut<'a>(&'a mut self, shape: &'a [usize]) -> ViewMut<'a> {
        let len = shape.iter().product();
        ViewMut::new(self.slice_mut(len), shape)
    }

    /// Appends the nearest values of a type of [`narrow`](super::narrow); a buffer of another type stays as it is.
    pub fn extend_narrow(&mut self, values: &[f64]) {
        with_narrow!(self.dtype(), T => {
            let mut all = T::into_vec(std::mem::take(self)).expect("matched on the type");
            all.extend(values.iter().map(|&v| T::narrow(v)));
            *self = T::buffer(all);
        }, else ());
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().size()
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::U8(Vec::new())
    }
}

/// What flows along an edge of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// An ordered list of values of one kind.
    Sequence(Vec<Value>),
    /// A map with integer or string keys; `keys` and `values` are vectors of equal length, in insertion order.
    Map {
        /// int64 or string keys.
        keys: Tensor,
        /// The value of each key.
        values: Tensor,
    },
    /// A value that may be absent.
    Optional(Option<Box<Value>>),
}

impl Value {
    /// The tensor, if it is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// The kind; of an empty sequence or an absent value only as far as it can be told, so `None` where it cannot.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Tensor(tensor) => Some(Kind::Tensor(tensor.dtype())),
            Self::Sequence(values) => Some(Kind::Sequence(Box::new(values.first()?.kind()?))),
            Self::Map { keys, values } => Some(Kind::Map { keys: keys.dtype(), values: values.dtype() }),
            Self::Optional(value) => Some(Kind::Optional(Box::new(value.as_ref()?.kind()?))),
        }
    }

    /// Whether the value is of `kind`.
    pub fn is(&self, kind: &Kind) -> bool {
        match (self, kind) {
            (Self::Tensor(tensor), Kind::Tensor(dtype)) => tensor.dtype() == *dtype,
            (Self::Sequence(values), Kind::Sequence(kind)) => values.iter().all(|value| value.is(kind)),
            (Self::Map { keys, values }, Kind::Map { keys: k, values: v }) => (keys.dtype(), values.dtype()) == (*k, *v),
            (Self::Optional(value), Kind::Optional(kind)) => value.as_ref().is_none_or(|value| value.is(kind)),
            _ => false,
        }
    }

    /// Bytes that the elements take, text included; what several values share is counted for each.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Tensor(tensor) => tensor.bytes() + tensor.text_bytes(),
            Self::Sequence(values) => values.iter().map(|value| value.bytes() + size_of::<Self>()).sum(),
            Self::Map { keys, values } => keys.bytes() + keys.text_bytes() + values.bytes() + values.text_bytes(),
            Self::Optional(value) => value.as_ref().map_or(0, |value| value.bytes()),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

/// The kind of a [`Value`], known before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A tensor of an element type.
    Tensor(DType),
    /// A sequence of one kind.
    Sequence(Box<Kind>),
    /// A map from keys (int64 or string) to numbers.
    Map {
        /// Type of the keys.
        keys: DType,
        /// Type of the values.
        values: DType,
    },
    /// A value of one kind that may be absent.
    Optional(Box<Kind>),
}

impl Kind {
    /// The element type, if it is a tensor.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::Tensor(dtype) => Some(*dtype),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(dtype) => write!(f, "{dtype}"),
            Self::Sequence(kind) => write!(f, "sequence of {kind}"),
            Self::Map { keys, values } => write!(f, "map from {keys} to {values}"),
            Self::Optional(kind) => write!(f, "optional {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_row_major_whatever_it_is_made_of() {
        let array = ArrayD::from_shape_vec(vec![2, 3], vec![1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let transposed: Tensor = array.reversed_axes().into();
        assert_eq!(transposed.shape(), [3, 2]);
        assert_eq!(transposed.slice::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn an_array_that_was_cut_becomes_what_is_left_of_it() {
        let mut array = ArrayD::from_shape_vec(vec![4, 2], (0..8).collect::<Vec<i64>>()).unwrap();
        array.slice_axis_inplace(ndarray::Axis(0), ndarray::Slice::from(1..3));
        assert_eq!(Tensor::from(array), Tensor::new(&[2, 2], vec![2_i64, 3, 4, 5]).unwrap());
    }

    #[test]
    fn rows_are_taken_along_the_first_dimension() {
        let tensor = Tensor::new(&[3, 2], vec![1_i64, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(tensor.rows(1..3), Tensor::new(&[2, 2], vec![3_i64, 4, 5, 6]).unwrap());
        assert!(tensor.rows(1..1).is_empty());
    }

    #[test]
    fn a_shape_with_another_number_of_elements_is_refused() {
        assert!(Tensor::new(&[2, 2], vec![1_i64]).is_none());
        assert!(Tensor::new::<i64>(&[0, usize::MAX, usize::MAX], vec![]).is_none());
        assert!(Tensor::new::<i64>(&[usize::MAX, 0], vec![]).is_none());
        assert_eq!(Tensor::new::<i64>(&[3, 0], vec![]).unwrap().len(), 0);
        assert!(Tensor::vector(vec![1_i64, 2]).reshape(&[3]).is_none());
    }
}
