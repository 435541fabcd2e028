//! What an operator is: the contract between the graph, the plan and the operator families in `ops/`.
//!
//! An operator never sees the graph. It is asked, in this order: at load its output [kinds](Op::kinds), and whether it
//! wants to [prepack](Op::prepack) constant operands; per concrete shape its output [shapes](Op::shapes); per request to
//! [run](Op::run) from given inputs into given outputs.

use std::any::Any;
use std::fmt;
use std::time::Instant;

use smallvec::SmallVec;

use super::attrs::Attrs;
use super::dtype::DType;
use super::kernels::isa::Isa;
use super::kernels::limits::Arithmetic;
use super::tensor::{Kind, Tensor, Value};
use super::threads::Threads;
use super::view::{View, ViewMut};

/// The dimensions of a tensor.
pub type Shape = SmallVec<[usize; 6]>;

/// What went wrong inside one operator. The caller adds which node it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// The answer depends on data that is not known yet; only [`Op::shapes`] may say so.
    #[error("the output shape depends on the data")]
    Unknown,
    /// Operand shapes that do not fit the operator or each other.
    #[error("{0}")]
    Shape(String),
    /// An element type that the operator does not take.
    #[error("{0}")]
    Type(String),
    /// An attribute that is missing, of the wrong kind, or out of range.
    #[error("{0}")]
    Attribute(String),
    /// An operand whose value is out of range (an index, an axis).
    #[error("{0}")]
    Value(String),
    /// A feature of the operator that the engine does not have.
    #[error("{0}")]
    Unsupported(String),
    /// The run took longer than it may: [`Context::deadline`] is over.
    #[error("the run took longer than it may")]
    Deadline,
}

impl OpError {
    /// A shape error with a formatted message.
    pub fn shape(message: impl Into<String>) -> Self {
        Self::Shape(message.into())
    }

    /// A value error with a formatted message.
    pub fn value(message: impl Into<String>) -> Self {
        Self::Value(message.into())
    }

    /// An unsupported feature with a formatted message.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// An element type other than the wanted one.
    pub fn wrong_type(want: DType, found: DType) -> Self {
        Self::Type(format!("{want} is needed where {found} is given"))
    }

    /// A required operand that the node does not have.
    pub fn missing_input(index: usize) -> Self {
        Self::Shape(format!("input {index} is missing"))
    }
}

/// What is known of a value before it is computed.
#[derive(Clone, Debug)]
pub struct Fact {
    /// Its kind and element type.
    pub kind: Kind,
    /// Its shape, if it is a tensor whose shape does not depend on data.
    pub shape: Option<Shape>,
    /// Its elements, if they are constant or follow from shapes alone. This is how Shape → Gather → Concat → Reshape
    /// chains resolve while planning, without symbolic algebra.
    pub value: Option<Tensor>,
}

impl Fact {
    /// All that is known of a constant.
    pub fn constant(tensor: Tensor) -> Self {
        Self { kind: Kind::Tensor(tensor.dtype()), shape: Some(tensor.shape().into()), value: Some(tensor) }
    }

    /// A tensor of known type and shape.
    pub fn shaped(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { kind: Kind::Tensor(dtype), shape: Some(shape.into()), value: None }
    }
}

/// The facts of a node's inputs; an omitted optional input is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a>(pub &'a [Option<&'a Fact>]);

impl<'a> Facts<'a> {
    /// The fact of input `index`, if it is given.
    pub fn get(&self, index: usize) -> Option<&'a Fact> {
        self.0.get(index).copied().flatten()
    }

    /// How many inputs the node lists, trailing omitted ones included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the node has no input.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shape of input `index`.
    ///
    /// # Errors
    /// If the input is missing, or [`OpError::Unknown`] if its shape depends on data.
    pub fn shape(&self, index: usize) -> Result<&'a [usize], OpError> {
        let fact = self.get(index).ok_or_else(|| OpError::missing_input(index))?;
        fact.shape.as_deref().ok_or(OpError::Unknown)
    }

    /// Whether the rows of all inputs that are no constants lie along dimension 0 of a result that they are broadcast to.
    pub fn rows_in_line(&self) -> bool {
        let given = || self.0.iter().flatten();
        let rank = |fact: &Fact| fact.shape.as_ref().map_or(0, |shape| shape.len());
        let most = given().map(|fact| rank(fact)).max().unwrap_or(0);
        given().all(|fact| fact.value.is_some() || rank(fact) == most)
    }

    /// The elements of input `index`.
    ///
    /// # Errors
    /// If the input is missing, or [`OpError::Unknown`] if its elements are known only at run time.
    pub fn value(&self, index: usize) -> Result<&'a Tensor, OpError> {
        let fact = self.get(index).ok_or_else(|| OpError::missing_input(index))?;
        fact.value.as_ref().ok_or(OpError::Unknown)
    }

    /// The int64 (or int32) elements of input `index`: axes, shapes, starts.
    ///
    /// # Errors
    /// As [`Facts::value`], and if the input holds another type.
    pub fn ints(&self, index: usize) -> Result<Vec<i64>, OpError> {
        let tensor = self.value(index)?;
        if let Some(values) = tensor.slice::<i64>() {
            return Ok(values.to_vec());
        }
        match tensor.slice::<i32>() {
            Some(values) => Ok(values.iter().map(|&v| i64::from(v)).collect()),
            None => Err(OpError::wrong_type(DType::I64, tensor.dtype())),
        }
    }
}

/// The inputs of a running node; an omitted optional input is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a>(pub &'a [Option<View<'a>>]);

impl<'a> Inputs<'a> {
    /// Input `index`, if it is given.
    pub fn get(&self, index: usize) -> Option<View<'a>> {
        self.0.get(index).copied().flatten()
    }

    /// Input `index`.
    ///
    /// # Errors
    /// If it is missing.
    pub fn at(&self, index: usize) -> Result<View<'a>, OpError> {
        self.get(index).ok_or_else(|| OpError::missing_input(index))
    }

    /// How many inputs the node lists.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the node has no input.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The outputs of a running node; one that nobody reads may be `None`.
#[derive(Debug)]
pub struct Outputs<'a, 'v>(pub &'a mut [Option<ViewMut<'v>>]);

impl<'v> Outputs<'_, 'v> {
    /// Output `index`, if somebody reads it.
    pub fn get(&mut self, index: usize) -> Option<&mut ViewMut<'v>> {
        self.0.get_mut(index).and_then(Option::as_mut)
    }

    /// Output `index`.
    ///
    /// # Errors
    /// If nobody reads it: an operator asks for outputs that it cannot leave out.
    pub fn at(&mut self, index: usize) -> Result<&mut ViewMut<'v>, OpError> {
        self.get(index).ok_or_else(|| OpError::shape(format!("output {index} is missing")))
    }
}

/// What a running operator may use beside its operands.
#[derive(Debug)]
pub struct Context<'a> {
    /// Reusable working memory, kept between runs.
    pub scratch: &'a mut Scratch,
    /// Where independent parts of the work may run side by side.
    pub threads: &'a Threads,
    /// The instruction set to use.
    pub isa: Isa,
    /// Bytes that the operator may still allocate for outputs whose shapes are not planned.
    pub budget: usize,
    /// When the run must end: operators that repeat a body look at it before each turn.
    pub deadline: Option<Instant>,
}

impl Context<'_> {
    /// # Errors
    /// [`OpError::Deadline`] if the time is up.
    pub fn check_deadline(&self) -> Result<(), OpError> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(OpError::Deadline),
            _ => Ok(()),
        }
    }
}

/// Reusable working memory of a session.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Working memory for kernels on f32; its content does not survive the operator.
    pub f32: Vec<f32>,
    lists_f32: Vec<Vec<f32>>,
    lists_f64: Vec<Vec<f64>>,
    lists_usize: Vec<Vec<usize>>,
}

/// A type of which [`Scratch`] keeps lists.
pub trait Spare: Sized {
    /// Those that are not taken.
    fn lists(scratch: &mut Scratch) -> &mut Vec<Vec<Self>>;
}

impl Spare for f32 {
    fn lists(scratch: &mut Scratch) -> &mut Vec<Vec<Self>> {
        &mut scratch.lists_f32
    }
}

impl Spare for f64 {
    fn lists(scratch: &mut Scratch) -> &mut Vec<Vec<Self>> {
        &mut scratch.lists_f64
    }
}

impl Spare for usize {
    fn lists(scratch: &mut Scratch) -> &mut Vec<Vec<Self>> {
        &mut scratch.lists_usize
    }
}

impl Scratch {
    /// A list of anything, to be given back: the last one that was.
    pub fn take<T: Spare>(&mut self) -> Vec<T> {
        T::lists(self).pop().unwrap_or_default()
    }

    /// Gives a list back that [`Scratch::take`] gave. If several are taken, in the reverse order: each then soon has the size that its
    /// use needs. One that is not given back, where an operator fails, costs its allocation only.
    pub fn give<T: Spare>(&mut self, list: Vec<T>) {
        T::lists(self).push(list);
    }

    /// [`Scratch::take`] of several.
    pub fn take_all<T: Spare, const N: usize>(&mut self) -> [Vec<T>; N] {
        std::array::from_fn(|_| self.take())
    }

    /// [`Scratch::give`] of those that [`Scratch::take_all`] gave.
    pub fn give_all<T: Spare, const N: usize>(&mut self, lists: [Vec<T>; N]) {
        lists.into_iter().rev().for_each(|list| self.give(list));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        fn capacity<T>(lists: &[Vec<T>]) -> usize {
            lists.iter().map(|list| list.capacity() * size_of::<T>()).sum()
        }
        let lists = capacity(&self.lists_f32) + capacity(&self.lists_f64) + capacity(&self.lists_usize);
        self.f32.capacity() * size_of::<f32>() + lists
    }
}

/// Several operands of a node at most; more spill to the heap.
pub type Kinds = SmallVec<[Kind; 2]>;

/// Constant operands built into an operator at load.
#[derive(Debug)]
pub struct Prepacked {
    /// The operator that replaces the original one.
    pub op: Box<dyn Op>,
    /// The inputs that it no longer reads.
    pub consumed: SmallVec<[usize; 2]>,
}

/// One operator with its attributes.
///
/// # Invariants
/// - [`run`](Op::run) writes every element of every given output: an output's storage holds old data.
/// - The bits of an output row depend on the same row of the inputs only, never on how many rows there are
///   (batch-invariance): the order of every reduction is fixed.
/// - No panic, whatever the inputs: what is out of range is an [`OpError`].
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// The kinds of the outputs, from the kinds of the inputs. The default: one output of the kind of input 0.
    ///
    /// # Errors
    /// If the operator does not take these kinds.
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        match inputs.first() {
            Some(Some(kind)) => Ok(Kinds::from_iter([kind.clone()])),
            _ => Err(OpError::missing_input(0)),
        }
    }

    /// The shapes of all outputs that [`Op::kinds`] lists.
    ///
    /// # Errors
    /// [`OpError::Unknown`] if they depend on data that is not known yet, another if the operands do not fit.
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError>;

    /// Computes the outputs. Types and shapes are those that `kinds` and `shapes` gave.
    ///
    /// # Errors
    /// If the values of the inputs are out of range.
    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError>;

    /// Computes outputs whose shapes depend on data, or that are no tensors. Called only if [`Op::shapes`] says
    /// `Unknown` although all inputs are known, or if an output is no tensor.
    ///
    /// # Errors
    /// As [`Op::run`].
    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let _ = (inputs, ctx);
        Err(OpError::Unknown)
    }

    /// The input whose elements are the output's elements, unchanged and in order (Reshape, Identity). The plan then
    /// gives the output the storage of the input, and `run` is never called where shapes are known.
    fn alias(&self) -> Option<usize> {
        None
    }

    /// Inputs whose storage may become output 0, if they have its type and shape and nobody reads them later.
    fn in_place(&self) -> &'static [usize] {
        &[]
    }

    /// Like [`Op::run`], where output 0 already holds the elements of input `index` (which is `None` in `inputs`).
    ///
    /// # Errors
    /// As [`Op::run`].
    fn run_in_place(&self, index: usize, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let _ = (index, inputs, outputs, ctx);
        Err(OpError::unsupported("the operator has no in-place form"))
    }

    /// The outputs, where they follow from the shapes of the inputs alone (Shape, Size).
    fn values_from_shapes(&self, inputs: &Facts<'_>) -> Option<Vec<Tensor>> {
        let _ = inputs;
        None
    }

    /// Whether row `i` of every output, along dimension 0, follows from row `i` of the inputs and from constants alone. Asked for inputs of
    /// which those that are no constants have as many rows as the outputs; only such values have no `value` among the facts.
    fn row_wise(&self, inputs: &Facts<'_>) -> bool {
        let _ = inputs;
        false
    }

    /// Whether the same inputs always give the same outputs. One that does not is never computed ahead of a request.
    fn deterministic(&self) -> bool {
        true
    }

    /// An operator with constant inputs built in, in the layout that its kernel wants. `constants[i]` is input `i`, if
    /// it is constant. Called once at load, also if no input is constant: an operator that prepares itself may do it here.
    fn prepack(&self, constants: &[Option<&Tensor>], isa: Isa) -> Option<Prepacked> {
        let _ = (constants, isa);
        None
    }

    /// Whether [`Op::prepack`] binds the values that bodies capture, and orders no weights: that is also done where weights are left in the
    /// order of their file.
    fn binds_bodies(&self) -> bool {
        false
    }

    /// Floating-point operations of one run, for the share of the machine's limit that `bench` prints; 0 if it is not
    /// worth counting.
    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let _ = inputs;
        0
    }

    /// What the operations that [`Op::flops`] counts are on.
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::F32
    }

    /// Bytes of constants that the operator holds itself after [`Op::prepack`].
    fn packed_bytes(&self) -> usize {
        0
    }
}

impl dyn Op {
    /// The operator as its concrete type, for the passes that look inside.
    pub fn downcast<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// A row of the operator table: one operator of one range of opsets.
#[derive(Debug)]
pub struct OpDef {
    /// The operator's name in the standard.
    pub name: &'static str,
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// The first and last opset of the domain in which this form of the operator is valid.
    pub opsets: std::ops::RangeInclusive<u16>,
    /// Element types of input 0 that the kernel computes; empty for an operator without inputs.
    pub types: &'static [DType],
    /// Makes the operator from a node's attributes.
    pub build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>,
}

/// The number of elements of a shape.
///
/// Sizes of zero do not excuse the others: operators multiply some of the dimensions, and no such product may overflow.
///
/// # Errors
/// If the dimensions that are not zero exceed an `isize`, or the bytes `limit`.
pub(crate) fn checked_len(shape: &[usize], element: usize, limit: usize) -> Result<usize, OpError> {
    let most = shape.iter().try_fold(1_usize, |len, &n| len.checked_mul(n.max(1)));
    let representable = most.and_then(|len| len.checked_mul(element.max(1))).is_some_and(|bytes| isize::try_from(bytes).is_ok());
    match most.map(|most| if shape.contains(&0) { 0 } else { most }) {
        Some(len) if representable && len.checked_mul(element.max(1)).is_some_and(|bytes| bytes <= limit) => Ok(len),
        _ => Err(OpError::shape(format!("a tensor of shape {shape:?} exceeds the memory limit of {limit} bytes"))),
    }
}

/// Sets of element types for [`OpDef::types`].
pub(crate) mod types {
    use super::DType;

    /// Every element type.
    pub(crate) const ALL: &[DType] = DType::ALL;
    /// Every element type but those of less than 8 bits and the floats of 8.
    pub(crate) const WIDE: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
        DType::String,
        DType::C64,
        DType::C128,
    ];
    /// Every numeric type.
    pub(crate) const NUMBERS: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
    ];
    /// Every numeric type and bool.
    pub(crate) const FIXED_SIZE: &[DType] = &[
        DType::F32,
        DType::F64,
        DType::F16,
        DType::BF16,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];
    /// The floating-point types.
    pub(crate) const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];
    /// bool.
    pub(crate) const BOOL: &[DType] = &[DType::Bool];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_product_of_dimensions_overflows() {
        assert_eq!(checked_len(&[2, 3], 4, 24), Ok(6));
        assert_eq!(checked_len(&[], 4, 4), Ok(1));
        assert_eq!(checked_len(&[0, 1 << 20], 4, 0), Ok(0));
        for shape in [&[2_usize, 4][..], &[0, 1 << 40, 1 << 40], &[1 << 40, 1 << 40, 0], &[usize::MAX]] {
            assert!(matches!(checked_len(shape, 4, 24), Err(OpError::Shape(_))), "{shape:?}");
        }
    }
}
