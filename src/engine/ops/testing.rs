//! Running one operator in a test: by name and opset out of the table, in every form that it has.
//!
//! [`Case::run`] computes the plain form, and then demands the same bits of the in-place form, of the prepacked form, of
//! two threads, and of each row alone where the operator says that it computes rows apart.

use std::collections::BTreeMap;

use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::Element;
use crate::engine::evaluate::evaluate_values;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, Fact, Facts, Inputs, Kinds, Op, OpError, Outputs, Scratch};
use crate::engine::tensor::{Kind, Tensor, Value};
use crate::engine::threads::Threads;
use crate::engine::view::View;

/// An operator under test.
pub(crate) struct Case {
    name: &'static str,
    domain: &'static str,
    opset: u16,
    attrs: BTreeMap<String, Attr>,
    outputs: usize,
    threads: Threads,
}

/// An operator of the default domain under opset 21.
pub(crate) fn op(name: &'static str) -> Case {
    Case { name, domain: "", opset: 21, attrs: BTreeMap::new(), outputs: 1, threads: Threads::single() }
}

macro_rules! attr_from {
    ($($t:ty => |$v:ident| $attr:expr;)*) => {$(
        impl From<$t> for Attr {
            fn from($v: $t) -> Self { $attr }
        }
    )*};
}
attr_from! {
    i64 => |v| Self::Int(v);
    f32 => |v| Self::Float(v);
    &str => |v| Self::String(v.to_owned());
    Tensor => |v| Self::Tensor(v);
    &[i64] => |v| Self::Ints(v.to_vec());
    &[f32] => |v| Self::Floats(v.to_vec());
    &[&str] => |v| Self::Strings(v.iter().map(|&s| s.to_owned()).collect());
}

/// A tensor of `shape`.
pub(crate) fn tensor<T: Element>(shape: &[usize], values: &[T]) -> Tensor {
    Tensor::new(shape, values.to_vec()).expect("as many values as the shape has")
}

/// A vector of `n` numbers in [-2, 2) that look random and are always the same.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 22) as f32 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

/// Panics unless the elements differ by at most `tolerance`, relative or absolute.
pub(crate) fn assert_close(found: &Tensor, shape: &[usize], want: &[f32], tolerance: f32) {
    assert_eq!(found.shape(), shape);
    let found = found.slice::<f32>().expect("an f32 tensor");
    for (i, (&a, &b)) in found.iter().zip(want).enumerate() {
        let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs().max(1.0);
        assert!(near, "element {i} is {a}, not {b}: {found:?} against {want:?}");
    }
}

impl Case {
    pub(crate) fn domain(self, domain: &'static str) -> Self {
        Self { domain, ..self }
    }

    pub(crate) fn opset(self, opset: u16) -> Self {
        Self { opset, ..self }
    }

    pub(crate) fn attr(mut self, name: &str, value: impl Into<Attr>) -> Self {
        self.attrs.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn outputs(self, outputs: usize) -> Self {
        Self { outputs, ..self }
    }

    /// The operator for inputs that are given or not.
    pub(crate) fn build(&self, inputs: &[Option<&Tensor>]) -> Result<Box<dyn Op>, OpError> {
        let def = super::find(self.domain, self.name, self.opset).map_err(OpError::Unsupported)?;
        let given = inputs.iter().map(Option::is_some).collect();
        let attrs = Attrs::new(self.attrs.clone(), self.opset, given, vec![true; self.outputs]);
        let op = (def.build)(&attrs)?;
        if !attrs.unread().is_empty() {
            return Err(OpError::Attribute(format!("unread: {:?}", attrs.unread())));
        }
        if let Some(first) = inputs.first().copied().flatten()
            && !def.types.is_empty()
            && !def.types.contains(&first.dtype())
        {
            return Err(OpError::Type(format!("{} is not in the operator's row", first.dtype())));
        }
        Ok(op)
    }

    /// Runs the operator on tensors, all given.
    pub(crate) fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, OpError> {
        let inputs: Vec<_> = inputs.iter().map(|t| Some(*t)).collect();
        self.run_some(&inputs)
    }

    /// Output 0 of [`Case::run`]; panics with the operator's error.
    pub(crate) fn one(&self, inputs: &[&Tensor]) -> Tensor {
        self.run(inputs).unwrap_or_else(|error| panic!("{}: {error}", self.name)).swap_remove(0)
    }

    /// The error of [`Case::run`].
    pub(crate) fn error(&self, inputs: &[&Tensor]) -> OpError {
        match self.run(inputs) {
            Err(error) => error,
            Ok(outputs) => panic!("{}: an error was expected, not {outputs:?}", self.name),
        }
    }

    /// Runs the operator on tensors of which optional ones may be omitted.
    pub(crate) fn run_some(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
        let values = self.values(inputs)?;
        values.into_iter().map(|v| v.tensor().cloned().ok_or_else(|| OpError::shape("not a tensor"))).collect()
    }

    /// Runs the operator, whatever it produces.
    pub(crate) fn values(&self, inputs: &[Option<&Tensor>]) -> Result<Vec<Value>, OpError> {
        let op = self.build(inputs)?;
        let kinds: Vec<Option<Kind>> = inputs.iter().map(|t| t.map(|t| Kind::Tensor(t.dtype()))).collect();
        let mut kinds = op.kinds(&kinds)?;
        assert!(kinds.len() >= self.outputs, "{}: kinds of {} outputs, {} are wanted", self.name, kinds.len(), self.outputs);
        kinds.truncate(self.outputs);
        let outputs = self.evaluate(&*op, inputs, &kinds)?;
        for (output, kind) in outputs.iter().zip(&kinds) {
            if let (Value::Tensor(t), Kind::Tensor(dtype)) = (output, kind) {
                assert_eq!(t.dtype(), *dtype, "{}", self.name);
            }
        }
        self.same_in_place(&*op, inputs, &outputs)?;
        self.same_packed(&*op, inputs, &kinds, &outputs)?;
        self.same_by_rows(&*op, inputs, &kinds, &outputs)?;
        Ok(outputs)
    }

    fn evaluate(&self, op: &dyn Op, inputs: &[Option<&Tensor>], kinds: &Kinds) -> Result<Vec<Value>, OpError> {
        let values: Vec<Option<Value>> = inputs.iter().map(|t| t.map(|t| Value::Tensor(t.clone()))).collect();
        let refs: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
        let run = |threads: &Threads| {
            let mut scratch = Scratch::default();
            let mut ctx = Context { scratch: &mut scratch, threads, isa: Isa::best(), budget: 1 << 30, deadline: None };
            evaluate_values(op, &refs, kinds, 1 << 30, &mut ctx)
        };
        let outputs = run(&self.threads)?;
        let two = run(&Threads::new(2).expect("two threads"))?;
        assert_same(&outputs, &two, "two threads");
        Ok(outputs)
    }

    fn same_in_place(&self, op: &dyn Op, inputs: &[Option<&Tensor>], outputs: &[Value]) -> Result<(), OpError> {
        for &index in op.in_place() {
            let (Some(Some(source)), [Value::Tensor(output), ..]) = (inputs.get(index), outputs) else { continue };
            if (source.dtype(), source.len()) != (output.dtype(), output.len()) {
                continue;
            }
            let mut buffer = source.data().to_buffer();
            let views: Vec<Option<View<'_>>> = inputs.iter().enumerate().map(|(i, t)| t.filter(|_| i != index).map(Tensor::view)).collect();
            let mut scratch = Scratch::default();
            let mut ctx = Context { scratch: &mut scratch, threads: &self.threads, isa: Isa::best(), budget: 1 << 30, deadline: None };
            let mut views_mut = [Some(buffer.view_mut(output.shape()))];
            op.run_in_place(index, &Inputs(&views), &mut Outputs(&mut views_mut), &mut ctx)?;
            let found = buffer.into_tensor(output.shape()).expect("the output's length");
            assert_same(&[Value::Tensor(found)], &outputs[..1], "in place");
        }
        Ok(())
    }

    /// Every input but the first is a constant.
    fn same_packed(&self, op: &dyn Op, inputs: &[Option<&Tensor>], kinds: &Kinds, outputs: &[Value]) -> Result<(), OpError> {
        let constants: Vec<Option<&Tensor>> = inputs.iter().enumerate().map(|(i, t)| t.filter(|_| i > 0)).collect();
        let Some(packed) = op.prepack(&constants, Isa::best()) else { return Ok(()) };
        let left: Vec<Option<&Tensor>> = inputs.iter().enumerate().map(|(i, t)| t.filter(|_| !packed.consumed.contains(&i))).collect();
        let found = self.evaluate(&*packed.op, &left, kinds)?;
        assert_same(&found, outputs, "prepacked");
        self.same_by_rows(&*packed.op, &left, kinds, outputs)
    }

    /// What has as many rows as input 0 comes from a request, and the rest is constant.
    fn same_by_rows(&self, op: &dyn Op, inputs: &[Option<&Tensor>], kinds: &Kinds, outputs: &[Value]) -> Result<(), OpError> {
        let rows_of = |tensor: &Tensor| tensor.shape().first().copied();
        /// More of them, all empty, are there to be computed at once.
        const MANY: usize = 64;
        let rows = inputs.first().copied().flatten().and_then(rows_of).filter(|rows| (2..=MANY).contains(rows));
        let Some(rows) = rows else { return Ok(()) };
        let fact = |tensor: &Tensor| {
            if rows_of(tensor) == Some(rows) { Fact::shaped(tensor.dtype(), tensor.shape()) } else { Fact::constant(tensor.clone()) }
        };
        let facts: Vec<Option<Fact>> = inputs.iter().map(|tensor| tensor.map(fact)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let outputs: Option<Vec<&Tensor>> = outputs.iter().map(|value| value.tensor().filter(|t| rows_of(t) == Some(rows))).collect();
        let (Some(outputs), true) = (outputs, op.row_wise(&Facts(&facts))) else { return Ok(()) };
        let part = |tensor: &Tensor, row: usize| {
            let shape = [&[1], &tensor.shape()[1..]].concat();
            let len: usize = shape.iter().product();
            tensor.data().range(row * len..(row + 1) * len).to_buffer().into_tensor(&shape).expect("a row")
        };
        for row in 0..rows {
            let own = |tensor: &Tensor| if rows_of(tensor) == Some(rows) { part(tensor, row) } else { tensor.clone() };
            let given: Vec<Option<Tensor>> = inputs.iter().map(|tensor| tensor.map(own)).collect();
            let given: Vec<Option<&Tensor>> = given.iter().map(Option::as_ref).collect();
            let want: Vec<Value> = outputs.iter().map(|tensor| part(tensor, row).into()).collect();
            assert_same(&self.evaluate(op, &given, kinds)?, &want, "a row alone");
        }
        Ok(())
    }

    /// What the operator says of its outputs' shapes if it knows the inputs' shapes only.
    pub(crate) fn shapes_without_values(&self, inputs: &[&Tensor]) -> Result<Vec<Vec<usize>>, OpError> {
        let given: Vec<_> = inputs.iter().map(|t| Some(*t)).collect();
        let op = self.build(&given)?;
        let facts: Vec<Fact> = inputs.iter().map(|t| Fact::shaped(t.dtype(), t.shape())).collect();
        let refs: Vec<Option<&Fact>> = facts.iter().map(Some).collect();
        Ok(op.shapes(&Facts(&refs))?.iter().map(|s| s.to_vec()).collect())
    }
}

/// Equality to the bit, so that NaN equals itself.
fn assert_same(found: &[Value], want: &[Value], form: &str) {
    for (found, want) in found.iter().zip(want) {
        let same = format!("{found:?}") == format!("{want:?}") && bits(found) == bits(want);
        assert!(same, "{form}: {found:?} against {want:?}");
    }
}

fn bits(value: &Value) -> Option<Vec<u64>> {
    let tensor = value.tensor()?;
    if let Some(values) = tensor.slice::<f32>() {
        return Some(values.iter().map(|v| u64::from(v.to_bits())).collect());
    }
    tensor.slice::<f64>().map(|values| values.iter().map(|v| v.to_bits()).collect())
}
