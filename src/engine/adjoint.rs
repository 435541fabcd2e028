//! Gradients of operators: the contract between a rule, which stands beside its operator in `ops/`, and the pass that walks the
//! graph ([`differentiate`](super::differentiate)).
//!
//! A rule never sees the graph. It is given names of values and emits operators on them; the pass appends these to the graph.

use super::attrs::Attr;
use super::dtype::DType;
use super::op::{Op, OpDef, OpError};
use super::tensor::{Kind, Tensor};

/// A value of a graph: its position among the graph's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    /// The position in the graph's list of values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The gradients with respect to a node's inputs, in their order; what is missing or `None` is zero.
pub type Gradients = Vec<Option<ValueId>>;

/// A row of the table of gradients: the vector-Jacobian product of one operator.
#[derive(Debug)]
pub struct Rule {
    /// The operator's name.
    pub name: &'static str,
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// Emits the gradients with respect to the inputs that are [wanted](Adjoint::wants).
    ///
    /// # Errors
    /// If this form of the operator has no gradient.
    pub emit: fn(&dyn Op, &Adjoint<'_>, &mut dyn Emit) -> Result<Gradients, OpError>,
}

impl Rule {
    /// A row for an operator of the default domain.
    pub const fn new(name: &'static str, emit: fn(&dyn Op, &Adjoint<'_>, &mut dyn Emit) -> Result<Gradients, OpError>) -> Self {
        Self { name, domain: "", emit }
    }
}

/// The operator as the type that a rule is for.
///
/// # Errors
/// If it is another form of the operator, which has no gradient.
pub(crate) fn concrete<T: Op>(op: &dyn Op) -> Result<&T, OpError> {
    op.downcast::<T>().ok_or_else(|| OpError::unsupported("this form of the operator has no gradient"))
}

/// A node as its rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Adjoint<'a> {
    /// The node's inputs; an omitted one is `None`.
    pub inputs: &'a [Option<ValueId>],
    /// Its outputs.
    pub outputs: &'a [Option<ValueId>],
    /// The gradients with respect to its outputs; `None` where nothing that is differentiated depends on one.
    pub gradients: &'a [Option<ValueId>],
    /// Whether the gradient with respect to each input is wanted.
    pub wanted: &'a [bool],
}

impl Adjoint<'_> {
    /// Input `index`.
    ///
    /// # Errors
    /// If it is omitted.
    pub fn x(&self, index: usize) -> Result<ValueId, OpError> {
        self.inputs.get(index).copied().flatten().ok_or_else(|| OpError::missing_input(index))
    }

    /// Output `index`.
    ///
    /// # Errors
    /// If the node does not list it.
    pub fn y(&self, index: usize) -> Result<ValueId, OpError> {
        let output = self.outputs.get(index).copied().flatten();
        output.ok_or_else(|| OpError::unsupported(format!("the gradient needs output {index}, which the node does not list")))
    }

    /// The gradient with respect to output 0.
    ///
    /// # Errors
    /// If only other outputs are differentiated, for which this operator has no gradient.
    pub fn g(&self) -> Result<ValueId, OpError> {
        let gradient = self.gradients.first().copied().flatten();
        gradient.ok_or_else(|| OpError::unsupported("only output 0 of the operator has a gradient"))
    }

    /// Whether the gradient with respect to input `index` is wanted.
    pub fn wants(&self, index: usize) -> bool {
        self.wanted.get(index).copied().unwrap_or(false)
    }

    /// The gradients of the inputs for which `f` gives them; it is asked only for those that are wanted.
    ///
    /// # Errors
    /// What `f` says.
    pub fn each(&self, mut f: impl FnMut(usize) -> Result<ValueId, OpError>) -> Result<Gradients, OpError> {
        (0..self.inputs.len()).map(|i| if self.wants(i) { f(i).map(Some) } else { Ok(None) }).collect()
    }
}

/// Where a rule's operators go.
pub trait Emit {
    /// Appends an operator of the table by its name in the default domain, and gives its results.
    ///
    /// # Errors
    /// If there is no such operator, or it does not take these operands.
    fn call(&mut self, name: &str, attrs: &[(&str, Attr)], inputs: &[Option<ValueId>], outputs: usize) -> Result<Vec<ValueId>, OpError>;

    /// Appends an operator of the engine's own, which no file can name.
    ///
    /// # Errors
    /// If it does not take these operands.
    fn own(&mut self, def: &'static OpDef, op: Box<dyn Op>, inputs: &[Option<ValueId>], outputs: usize) -> Result<Vec<ValueId>, OpError>;

    /// Adds a constant.
    fn constant(&mut self, tensor: Tensor) -> ValueId;

    /// The kind of a value.
    fn kind(&self, value: ValueId) -> Option<&Kind>;
}

impl dyn Emit + '_ {
    /// The one result of an operator without attributes.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn op(&mut self, name: &str, inputs: &[ValueId]) -> Result<ValueId, OpError> {
        self.with(name, &[], inputs)
    }

    /// The one result of an operator.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn with(&mut self, name: &str, attrs: &[(&str, Attr)], inputs: &[ValueId]) -> Result<ValueId, OpError> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        Ok(self.call(name, attrs, &inputs, 1)?[0])
    }

    /// The one result of an operator of the engine's own.
    ///
    /// # Errors
    /// As [`Emit::own`].
    pub fn one(&mut self, def: &'static OpDef, op: impl Op, inputs: &[ValueId]) -> Result<ValueId, OpError> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        Ok(self.own(def, Box::new(op), &inputs, 1)?[0])
    }

    /// The element type of a value.
    ///
    /// # Errors
    /// If it is no tensor.
    pub fn dtype(&self, value: ValueId) -> Result<DType, OpError> {
        self.kind(value).and_then(Kind::dtype).ok_or_else(|| OpError::Type("a gradient is a tensor's".into()))
    }

    /// A number in the element type of `like`, which is a floating-point type.
    ///
    /// # Errors
    /// If `like` is no tensor.
    pub fn number(&mut self, like: ValueId, value: f64) -> Result<ValueId, OpError> {
        let dtype = self.dtype(like)?;
        let tensor = match dtype {
            DType::F64 => Tensor::scalar(value),
            DType::F32 => Tensor::scalar(value as f32),
            DType::F16 => Tensor::scalar(half::f16::from_f64(value)),
            DType::BF16 => Tensor::scalar(half::bf16::from_f64(value)),
            other => return Err(OpError::wrong_type(DType::F32, other)),
        };
        Ok(self.constant(tensor))
    }

    /// `value * factor`.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn scale(&mut self, value: ValueId, factor: f64) -> Result<ValueId, OpError> {
        if factor == 1.0 {
            return Ok(value);
        }
        let factor = self.number(value, factor)?;
        self.op("Mul", &[value, factor])
    }

    /// The shape of a value, which is known as soon as those of the graph's inputs are: it keeps no value alive.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn shape(&mut self, value: ValueId) -> Result<ValueId, OpError> {
        self.op("Shape", &[value])
    }

    /// `value` with the elements in their order under the shape of `like`.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn reshape_like(&mut self, value: ValueId, like: ValueId) -> Result<ValueId, OpError> {
        let shape = self.shape(like)?;
        self.with("Reshape", &[("allowzero", Attr::Int(1))], &[value, shape])
    }

    /// Zeros in the shape and type of `like`.
    ///
    /// # Errors
    /// As [`Emit::call`].
    pub fn zeros_like(&mut self, like: ValueId) -> Result<ValueId, OpError> {
        let (zero, shape) = (self.number(like, 0.0)?, self.shape(like)?);
        self.op("Expand", &[zero, shape])
    }

    /// A vector of integers: axes, sizes.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(Tensor::vector(values.to_vec()))
    }
}
