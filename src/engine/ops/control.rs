//! Control flow: If, Loop, Scan and SequenceMap. Their bodies are graphs; what a body reads from around it is among the
//! node's inputs, see [`Body`].

use std::sync::Arc;

use smallvec::SmallVec;

use super::ANY;
use super::axes::{axis, present};
use super::sequence::{slice_of, stack};
use crate::engine::attrs::Attrs;
use crate::engine::body::Body;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Shape, types};
use crate::engine::tensor::{Kind, Tensor, Value};

const fn def(name: &'static str, from: u16, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("If", 1, types::BOOL, branch),
    def("Loop", 1, &[DType::I64], repeat),
    OpDef { name: "Scan", domain: "", opsets: 8..=8, types: types::ALL, build: scan },
    def("Scan", 9, types::ALL, scan),
    def("SequenceMap", 17, types::ALL, sequence_map),
];

/// Bodies with the constants that they capture built in, and the inputs that the node no longer reads.
type Bound<const N: usize> = ([Arc<dyn Body>; N], SmallVec<[usize; 2]>);

fn bind<const N: usize>(bodies: [&Arc<dyn Body>; N], constants: &[Option<&Tensor>]) -> Option<Bound<N>> {
    let mut bound = Vec::with_capacity(N);
    let mut consumed = SmallVec::new();
    for body in bodies {
        bound.push(body.bind(constants)?);
        consumed.extend(body.captures().iter().copied().filter(|&i| constants.get(i).is_some_and(Option::is_some)));
    }
    Some((bound.try_into().expect("as many as there were"), consumed))
}

/// Runs where nothing can be planned: shapes are those that the bodies give.
macro_rules! dynamic_only {
    () => {
        fn shapes(&self, _: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
            Err(OpError::Unknown)
        }

        fn run(&self, _: &Inputs<'_>, _: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
            Err(OpError::Unknown)
        }
    };
}
pub(super) use dynamic_only;

fn body(attrs: &Attrs, name: &str) -> Result<Arc<dyn Body>, OpError> {
    attrs.required(name, attrs.graph(name)?)
}

/// The only element of a tensor, which must hold `T`.
pub(super) fn one<T: crate::engine::dtype::Element>(value: Option<&Value>, what: &str) -> Result<Option<T>, OpError> {
    let Some(value) = value else { return Ok(None) };
    let tensor = value.tensor().ok_or_else(|| OpError::Type(format!("{what} must be a tensor")))?;
    match tensor.slice::<T>() {
        Some([only]) => Ok(Some(only.clone())),
        Some(values) => Err(OpError::value(format!("{what} must be one element, and has {}", values.len()))),
        None => Err(OpError::wrong_type(T::DTYPE, tensor.dtype())),
    }
}

/// One of two bodies.
#[derive(Debug)]
struct If {
    then: Arc<dyn Body>,
    otherwise: Arc<dyn Body>,
}

fn branch(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(If { then: body(attrs, "then_branch")?, otherwise: body(attrs, "else_branch")? }))
}

impl Op for If {
    dynamic_only!();

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        present(inputs, 1)?;
        let (then, otherwise) = (self.then.kinds(&[], inputs)?, self.otherwise.kinds(&[], inputs)?);
        if then != otherwise {
            let list = |kinds: &Kinds| kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(OpError::Type(format!("its branches give ({}) and ({})", list(&then), list(&otherwise))));
        }
        Ok(then)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let condition = one::<bool>(inputs.first().copied().flatten(), "the condition")?.ok_or_else(|| OpError::missing_input(0))?;
        let chosen = if condition { &self.then } else { &self.otherwise };
        chosen.runner().run(&[], inputs, 0, ctx)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: crate::engine::kernels::isa::Isa) -> Option<Prepacked> {
        let ([then, otherwise], consumed) = bind([&self.then, &self.otherwise], constants)?;
        Some(Prepacked { op: Box::new(Self { then, otherwise }), consumed })
    }

    fn binds_bodies(&self) -> bool {
        true
    }

    fn packed_bytes(&self) -> usize {
        self.then.weight_bytes() + self.otherwise.weight_bytes()
    }
}

/// A body that turns while a condition holds and a count is not reached.
#[derive(Debug)]
struct Loop {
    body: Arc<dyn Body>,
    /// How many values are carried from turn to turn.
    carried: usize,
}

fn repeat(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let body = body(attrs, "body")?;
    let carried = attrs.inputs.len().saturating_sub(2);
    if body.outputs() < 1 + carried {
        return Err(OpError::shape(format!("its body has {} outputs, the condition and {carried} carried values are wanted", body.outputs())));
    }
    Ok(Box::new(Loop { body, carried }))
}

impl Loop {
    fn scanned(&self) -> usize {
        self.body.outputs() - 1 - self.carried
    }
}

impl Op for Loop {
    dynamic_only!();

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let mut formals = vec![Kind::Tensor(DType::I64), Kind::Tensor(DType::Bool)];
        for i in 2..2 + self.carried {
            formals.push(inputs[i].clone().ok_or_else(|| OpError::missing_input(i))?);
        }
        let kinds = self.body.kinds(&formals, inputs)?;
        for (i, (given, made)) in formals[1..].iter().zip(&kinds).enumerate() {
            // An optional value may become one that is there, from the first turn on.
            if given != made && *given != Kind::Optional(Box::new(made.clone())) {
                let what = if i == 0 { "the condition".to_owned() } else { format!("carried value {}", i - 1) };
                return Err(OpError::Type(format!("{what} is {given} before a turn of its body and {made} after")));
            }
        }
        if let Some(kind) = kinds[1 + self.carried..].iter().find(|kind| kind.dtype().is_none()) {
            return Err(OpError::Type(format!("a {kind} cannot be collected over the turns of its body")));
        }
        Ok(kinds.into_iter().skip(1).collect())
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let most = one::<i64>(inputs.first().copied().flatten(), "the trip count")?.unwrap_or(i64::MAX);
        let mut condition = one::<bool>(inputs.get(1).copied().flatten(), "the condition")?.unwrap_or(true);
        let mut carried: Vec<Value> = inputs.iter().skip(2).take(self.carried).flatten().map(|&value| value.clone()).collect();
        let mut scanned: Vec<Vec<Tensor>> = vec![Vec::new(); self.scanned()];
        let mut collected = 0_usize;
        let optional: Vec<bool> = carried.iter().map(|value| matches!(value, Value::Optional(_))).collect();
        let mut runner = self.body.runner();
        let mut turn = 0_i64;
        while condition && turn < most {
            let mut formals = vec![Value::Tensor(Tensor::scalar(turn)), Value::Tensor(Tensor::scalar(condition))];
            formals.extend(carried.drain(..).zip(&optional).map(|(value, &optional)| match value {
                value @ Value::Optional(_) => value,
                value if optional => Value::Optional(Some(Box::new(value))),
                value => value,
            }));
            let mut outputs = runner.run(&formals, inputs, collected, ctx)?.into_iter();
            condition = one::<bool>(outputs.next().as_ref(), "the condition")?.unwrap_or(false);
            carried = outputs.by_ref().take(self.carried).collect();
            collect(outputs, &mut scanned, &mut collected, ctx.budget)?;
            turn += 1;
        }
        let kinds = self.body.kinds_known()?;
        for (value, kind) in carried.iter_mut().zip(&kinds[1..]) {
            if matches!(value, Value::Optional(_)) && !matches!(kind, Kind::Optional(_)) {
                let Value::Optional(Some(inner)) = std::mem::replace(value, Value::Optional(None)) else {
                    return Err(OpError::value("a carried value is absent, and its body has not run"));
                };
                *value = *inner;
            }
        }
        for (i, tensors) in scanned.iter().enumerate() {
            let output = 1 + self.carried + i;
            let dtype = kinds[output].dtype().ok_or(OpError::Unknown)?;
            carried.push(Value::Tensor(if tensors.is_empty() { nothing(&*self.body, output, 0, dtype)? } else { stack(tensors, 0, ctx.budget)? }));
        }
        Ok(carried)
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: crate::engine::kernels::isa::Isa) -> Option<Prepacked> {
        let ([body], consumed) = bind([&self.body], constants)?;
        Some(Prepacked { op: Box::new(Self { body, carried: self.carried }), consumed })
    }

    fn binds_bodies(&self) -> bool {
        true
    }

    fn packed_bytes(&self) -> usize {
        self.body.weight_bytes()
    }
}

/// What no turn has given, collected along `along`: the declared sizes, and zero where they are not known.
fn nothing(body: &dyn Body, output: usize, along: i64, dtype: DType) -> Result<Tensor, OpError> {
    let sizes = body.output_sizes(output).unwrap_or_default();
    let mut shape: Vec<usize> = sizes.into_iter().map(|size| size.unwrap_or(0)).collect();
    shape.insert(axis(along, shape.len() + 1)?, 0);
    // Operators multiply sizes, also where one of them is zero.
    crate::engine::op::checked_len(&shape, dtype.size(), usize::MAX)?;
    Ok(Tensor::zeros(dtype, &shape))
}

/// Keeps what a turn gives, within the budget.
fn collect(
    outputs: impl Iterator<Item = Value>,
    scanned: &mut [Vec<Tensor>],
    collected: &mut usize,
    budget: usize,
) -> Result<(), OpError> {
    for (value, tensors) in outputs.zip(scanned) {
        // Something is kept even of a tensor without elements.
        *collected = collected.saturating_add(value.bytes() + size_of::<Tensor>());
        if *collected > budget {
            return Err(OpError::shape(format!("what its body gives exceeds the memory limit: {budget} bytes are left")));
        }
        let Value::Tensor(tensor) = value else { return Err(OpError::Unknown) };
        tensors.push(tensor);
    }
    Ok(())
}

/// A body that runs over slices of its inputs, and whose outputs are slices of the node's.
#[derive(Debug)]
struct Scan {
    body: Arc<dyn Body>,
    /// Values that are carried from slice to slice.
    states: usize,
    inputs: Vec<Direction>,
    outputs: Vec<Direction>,
    /// Opset 8: a batch dimension before everything, and lengths as input 0.
    batched: bool,
}

/// Along which axis, and whether from its end.
#[derive(Clone, Copy, Debug)]
struct Direction {
    axis: i64,
    backward: bool,
}

fn directions(attrs: &Attrs, which: &str, count: usize) -> Result<Vec<Direction>, OpError> {
    let list = |name: String| match attrs.ints(&name)? {
        None => Ok(vec![0; count]),
        Some(values) if values.len() == count => Ok(values),
        Some(values) => Err(OpError::Attribute(format!("attribute `{name}` has {} entries, not {count}", values.len()))),
    };
    let axes = if attrs.opset == 8 { vec![0; count] } else { list(format!("scan_{which}_axes"))? };
    let name = match (attrs.opset, which) {
        (8, "input") => "directions".to_owned(),
        (8, _) => return Ok(vec![Direction { axis: 0, backward: false }; count]),
        _ => format!("scan_{which}_directions"),
    };
    let backward = list(name.clone())?;
    if let Some(odd) = backward.iter().find(|&&v| v != 0 && v != 1) {
        return Err(OpError::Attribute(format!("attribute `{name}` has {odd}; 0 is forward, 1 backward")));
    }
    Ok(axes.into_iter().zip(backward).map(|(axis, backward)| Direction { axis, backward: backward == 1 }).collect())
}

fn scan(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let body = body(attrs, "body")?;
    let batched = attrs.opset == 8;
    let given = attrs.inputs.len() - usize::from(batched && !attrs.inputs.is_empty());
    let count = attrs.required("num_scan_inputs", attrs.int("num_scan_inputs")?)?;
    let count = usize::try_from(count).ok().filter(|&n| n >= 1 && n <= given);
    let count = count.ok_or_else(|| OpError::Attribute(format!("attribute `num_scan_inputs` does not fit {given} inputs")))?;
    let states = given - count;
    if body.outputs() < states {
        return Err(OpError::shape(format!("its body has {} outputs, {states} carried values are wanted", body.outputs())));
    }
    let outputs = directions(attrs, "output", body.outputs() - states)?;
    Ok(Box::new(Scan { states, inputs: directions(attrs, "input", count)?, outputs, batched, body }))
}

impl Op for Scan {
    dynamic_only!();

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let first = usize::from(self.batched);
        let mut formals = Vec::new();
        for i in first..first + self.states + self.inputs.len() {
            formals.push(inputs[i].clone().ok_or_else(|| OpError::missing_input(i))?);
        }
        let kinds = self.body.kinds(&formals, inputs)?;
        if let Some(kind) = kinds.iter().chain(&formals).find(|kind| kind.dtype().is_none()) {
            return Err(OpError::Type(format!("a {kind} is no operand of Scan: tensors are")));
        }
        if let Some(i) = (0..self.states).find(|&i| kinds[i] != formals[i]) {
            return Err(OpError::Type(format!("carried value {i} is {} before a turn of its body and {} after", formals[i], kinds[i])));
        }
        Ok(kinds)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let first = usize::from(self.batched);
        let operands: Vec<&Tensor> = inputs[first..first + self.states + self.inputs.len()]
            .iter()
            .map(|value| value.and_then(Value::tensor).ok_or(OpError::Unknown))
            .collect::<Result<_, _>>()?;
        let outputs = if self.batched { self.run_batch(&operands, inputs, ctx)? } else { self.run_one(&operands, None, inputs, ctx)? };
        Ok(outputs.into_iter().map(Value::Tensor).collect())
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: crate::engine::kernels::isa::Isa) -> Option<Prepacked> {
        let ([body], consumed) = bind([&self.body], constants)?;
        let op = Self { body, states: self.states, inputs: self.inputs.clone(), outputs: self.outputs.clone(), batched: self.batched };
        Some(Prepacked { op: Box::new(op), consumed })
    }

    fn binds_bodies(&self) -> bool {
        true
    }

    fn packed_bytes(&self) -> usize {
        self.body.weight_bytes()
    }
}

impl Scan {
    /// One pass over the slices; `length` shortens it.
    fn run_one(
        &self,
        operands: &[&Tensor],
        length: Option<usize>,
        node: &[Option<&Value>],
        ctx: &mut Context<'_>,
    ) -> Result<Vec<Tensor>, OpError> {
        let (states, scanned) = operands.split_at(self.states);
        let mut states: Vec<Value> = states.iter().map(|&tensor| Value::Tensor(tensor.clone())).collect();
        let mut axes = Vec::with_capacity(scanned.len());
        let mut lengths = Vec::with_capacity(scanned.len());
        for (tensor, direction) in scanned.iter().zip(&self.inputs) {
            let axis = axis(direction.axis, tensor.shape().len())?;
            axes.push(axis);
            lengths.push(tensor.shape()[axis]);
        }
        if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(OpError::shape(format!("the scanned inputs have different lengths: {lengths:?}")));
        }
        let length = length.unwrap_or(lengths[0]);
        let mut collected = 0_usize;
        let mut outputs: Vec<Vec<Tensor>> = vec![Vec::new(); self.outputs.len()];
        let mut runner = self.body.runner();
        for turn in 0..length {
            let mut formals = std::mem::take(&mut states);
            for ((tensor, direction), &axis) in scanned.iter().zip(&self.inputs).zip(&axes) {
                let at = if direction.backward { length - 1 - turn } else { turn };
                formals.push(Value::Tensor(slice_of(tensor, axis, at)));
            }
            let mut results = runner.run(&formals, node, collected, ctx)?.into_iter();
            states = results.by_ref().take(self.states).collect();
            collect(results, &mut outputs, &mut collected, ctx.budget)?;
        }
        let mut results: Vec<Tensor> = states.into_iter().filter_map(|state| state.tensor().cloned()).collect();
        let kinds = self.body.kinds_known()?;
        for (i, (mut tensors, direction)) in outputs.into_iter().zip(&self.outputs).enumerate() {
            if direction.backward {
                tensors.reverse();
            }
            results.push(match tensors.first() {
                Some(first) => {
                    let axis = axis(direction.axis, first.shape().len() + 1)?;
                    stack(&tensors, axis, ctx.budget)?
                }
                None => nothing(&*self.body, self.states + i, direction.axis, kinds[self.states + i].dtype().ok_or(OpError::Unknown)?)?,
            });
        }
        Ok(results)
    }

    /// Opset 8: one pass per element of the batch, over as many slices as `sequence_lens` (input 0) says.
    fn run_batch(&self, operands: &[&Tensor], node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Tensor>, OpError> {
        let batch = operands[0].shape().first().copied().unwrap_or(0);
        let scanned = &operands[self.states..];
        if operands.iter().any(|tensor| tensor.shape().first() != Some(&batch)) || scanned.iter().any(|tensor| tensor.shape().len() < 2) || batch == 0 {
            return Err(OpError::shape("its inputs must have one batch dimension of at least 1, and scanned ones a second one"));
        }
        let longest = scanned[0].shape()[1];
        let lengths = match node[0].and_then(Value::tensor) {
            None => vec![longest; batch],
            Some(tensor) => {
                let given = tensor.slice::<i64>().ok_or_else(|| OpError::wrong_type(DType::I64, tensor.dtype()))?;
                let length = |&n: &i64| usize::try_from(n).ok().filter(|&n| n <= longest);
                let lengths: Option<Vec<usize>> = given.iter().map(length).collect();
                lengths.filter(|l| l.len() == batch).ok_or_else(|| OpError::value(format!("sequence_lens {given:?} does not fit")))?
            }
        };
        let mut rows: Vec<Vec<Tensor>> = Vec::with_capacity(batch);
        for (row, &length) in lengths.iter().enumerate() {
            let slices: Vec<Tensor> = operands.iter().map(|tensor| slice_of(tensor, 0, row)).collect();
            let mut results = self.run_one(&slices.iter().collect::<Vec<_>>(), Some(length), node, ctx)?;
            for output in &mut results[self.states..] {
                *output = padded(output, longest, ctx.budget)?;
            }
            rows.push(results);
        }
        let column = |i: usize| rows.iter().map(|row| row[i].clone()).collect::<Vec<_>>();
        (0..rows[0].len()).map(|i| stack(&column(i), 0, ctx.budget)).collect()
    }
}

/// The tensor with zeros behind it up to `length` along axis 0.
fn padded(tensor: &Tensor, length: usize, budget: usize) -> Result<Tensor, OpError> {
    let mut shape = tensor.shape().to_vec();
    if shape[0] == length {
        return Ok(tensor.clone());
    }
    shape[0] = length;
    let len = crate::engine::op::checked_len(&shape, tensor.dtype().size(), budget)?;
    let mut buffer = crate::engine::tensor::Buffer::new(tensor.dtype());
    buffer.grow(len);
    buffer.slice_mut(len).copy_from(0, &tensor.data());
    Ok(buffer.into_tensor(&shape).expect("grown to the shape's length"))
}

/// A body for each element of a sequence.
#[derive(Debug)]
struct SequenceMap {
    body: Arc<dyn Body>,
    inputs: usize,
}

fn sequence_map(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(SequenceMap { body: body(attrs, "body")?, inputs: attrs.inputs.len() }))
}

impl Op for SequenceMap {
    dynamic_only!();

    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        present(inputs, 1)?;
        let mut formals = Vec::new();
        for (i, kind) in inputs[..self.inputs].iter().enumerate() {
            formals.push(match kind {
                Some(Kind::Sequence(element)) => (**element).clone(),
                Some(kind) if i > 0 => kind.clone(),
                Some(kind) => return Err(OpError::Type(format!("a sequence is needed where {kind} is given"))),
                None => return Err(OpError::missing_input(i)),
            });
        }
        let kinds = self.body.kinds(&formals, inputs)?;
        Ok(kinds.into_iter().map(|kind| Kind::Sequence(Box::new(kind))).collect())
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let Some(Value::Sequence(first)) = inputs[0] else { return Err(OpError::missing_input(0)) };
        let mut results: Vec<Vec<Value>> = vec![Vec::new(); self.body.outputs()];
        let mut collected = 0_usize;
        let mut runner = self.body.runner();
        for turn in 0..first.len() {
            let mut formals = Vec::with_capacity(self.inputs);
            for (i, value) in inputs[..self.inputs].iter().enumerate() {
                formals.push(match value {
                    Some(Value::Sequence(values)) => values.get(turn).cloned().ok_or_else(|| {
                        OpError::shape(format!("input {i} has {} elements, input 0 has {}", values.len(), first.len()))
                    })?,
                    Some(value) => (*value).clone(),
                    None => return Err(OpError::missing_input(i)),
                });
            }
            for (value, results) in runner.run(&formals, inputs, collected, ctx)?.into_iter().zip(&mut results) {
                collected = collected.saturating_add(value.bytes());
                if collected > ctx.budget {
                    return Err(OpError::shape(format!("what its body gives exceeds the memory limit: {} bytes are left", ctx.budget)));
                }
                results.push(value);
            }
        }
        Ok(results.into_iter().map(Value::Sequence).collect())
    }

    fn prepack(&self, constants: &[Option<&Tensor>], _: crate::engine::kernels::isa::Isa) -> Option<Prepacked> {
        let ([body], consumed) = bind([&self.body], constants)?;
        Some(Prepacked { op: Box::new(Self { body, inputs: self.inputs }), consumed })
    }

    fn binds_bodies(&self) -> bool {
        true
    }

    fn packed_bytes(&self) -> usize {
        self.body.weight_bytes()
    }
}
