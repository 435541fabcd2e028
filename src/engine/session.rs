//! A session: the mutable half of a run. One per worker; the [`Model`] behind it is shared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::error::RunError;
use super::evaluate::evaluate_values;
use super::graph::{Node, ValueId};
use super::model::Model;
use super::op::{Context, Inputs, Kinds, OpError, Outputs, Scratch, Shape};
use super::plan::{Place, Plan, Step, node_error};
use super::signature::{Mismatch, Port};
use super::tensor::{Buffer, Tensor, Value};
use super::threads::Threads;
use super::view::{View, ViewMut};

/// Storage and working memory for running one model, one run at a time.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    threads: Arc<Threads>,
    memory: Memory,
    /// Storage for the rows of several requests, one per input.
    gathered: Vec<Buffer>,
    /// The plan of the last run: the next one often has the same shapes.
    last: Option<(SmallVec<[Shape; 4]>, Arc<Plan>)>,
    profile: Option<Vec<Duration>>,
}

#[derive(Debug, Default)]
struct Memory {
    slots: Vec<Buffer>,
    dynamic: Vec<Option<Value>>,
    scratch: Scratch,
}

impl Memory {
    /// Makes room for the slots of `plan`; keeps what is there and large enough.
    fn prepare(&mut self, plan: &Plan) {
        for (i, spec) in plan.slots.iter().enumerate() {
            if self.slots.len() <= i {
                self.slots.push(Buffer::new(spec.dtype));
            } else if self.slots[i].dtype() != spec.dtype {
                self.slots[i] = Buffer::new(spec.dtype);
            }
            self.slots[i].grow(spec.len);
        }
        self.dynamic.clear();
        if !plan.is_static() {
            self.dynamic.resize(plan.places.len(), None);
        }
    }
}

/// What a run reads beside the session's own memory.
struct Sources<'a> {
    model: &'a Model,
    plan: &'a Plan,
    inputs: &'a [View<'a>],
}

impl<'a> Sources<'a> {
    /// The tensor of a value, or `None` if it is a sequence or map.
    fn view(&self, memory: &'a Memory, id: ValueId) -> Option<View<'a>> {
        let planned = || self.plan.shape(id).expect("a planned value has a shape");
        match &self.plan.places[id.index()] {
            Place::Input(position) => Some(View::new(self.inputs[*position].data(), planned())),
            Place::Constant(source) => Some(View::new(self.model.constant(*source).data(), planned())),
            Place::Computed(tensor) => Some(View::new(tensor.data(), planned())),
            Place::Slot(slot) => {
                let shape = planned();
                Some(View::new(memory.slots[*slot].slice(shape.iter().product()), shape))
            }
            Place::Dynamic => memory.dynamic[id.index()].as_ref().and_then(Value::tensor).map(Tensor::view),
            Place::Nowhere => None,
        }
    }

    /// An owned copy of a value; constants and dynamic values are shared instead of copied.
    fn value(&self, memory: &Memory, id: ValueId) -> Option<Value> {
        match &self.plan.places[id.index()] {
            Place::Dynamic => memory.dynamic[id.index()].clone(),
            Place::Constant(source) => self.model.constant(*source).reshape(self.plan.shape(id)?).map(Value::Tensor),
            Place::Computed(tensor) => tensor.reshape(self.plan.shape(id)?).map(Value::Tensor),
            _ => {
                let view = self.view(memory, id)?;
                view.data().to_buffer().into_tensor(view.shape()).map(Value::Tensor)
            }
        }
    }
}

impl Session {
    /// A session for `model` whose operators may use `threads`.
    pub fn new(model: Arc<Model>, threads: Arc<Threads>) -> Self {
        Self { model, threads, memory: Memory::default(), gathered: Vec::new(), last: None, profile: None }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the model on one tensor per input, in the order of the signature, and returns its outputs in order.
    ///
    /// # Errors
    /// If the inputs do not fit the signature or each other, or an operator finds a value out of range.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Value>, RunError> {
        self.model.signature().check(inputs)?;
        let views: SmallVec<[View<'_>; 4]> = inputs.iter().map(Tensor::view).collect();
        let plan = plan_for(&self.model, &mut self.last, &views)?;
        let sources = Sources { model: &self.model, plan: &plan, inputs: &views };
        execute(&sources, &mut self.memory, &self.threads, self.profile.as_mut())?;
        let outputs = self.model.graph().outputs.iter();
        Ok(outputs.map(|&id| sources.value(&self.memory, id).expect("a run computes every output")).collect())
    }

    /// Runs the rows of several requests together and takes the outputs apart again: `result[r]` is what [`Session::run`]
    /// gives for `requests[r]`, to the bit.
    ///
    /// # Errors
    /// As [`Session::run`], for all requests together; also if the model is not batchable and there are several.
    pub fn run_rows(&mut self, requests: &[&[Tensor]]) -> Result<Vec<Vec<Value>>, RunError> {
        if let [only] = requests {
            return Ok(vec![self.run(only)?]);
        }
        let signature = self.model.signature();
        if !signature.batchable {
            return Err(Mismatch("rows of several requests cannot be run together: the model has no batch dimension".into()).into());
        }
        let mut rows: SmallVec<[usize; 64]> = SmallVec::with_capacity(requests.len());
        for request in requests {
            signature.check(request)?;
            rows.push(signature.rows(request).expect("checked: all inputs have as many rows"));
        }
        let total: usize = rows.iter().sum();
        let shapes = gather(&mut self.gathered, &signature.inputs, requests, total)?;
        let views: SmallVec<[View<'_>; 4]> =
            self.gathered.iter().zip(&shapes).map(|(b, s)| View::new(b.slice(s.iter().product()), s)).collect();
        let plan = plan_for(&self.model, &mut self.last, &views)?;
        let sources = Sources { model: &self.model, plan: &plan, inputs: &views };
        execute(&sources, &mut self.memory, &self.threads, self.profile.as_mut())?;

        let mut results: Vec<Vec<Value>> = rows.iter().map(|_| Vec::with_capacity(signature.outputs.len())).collect();
        for &id in &self.model.graph().outputs {
            let view = sources.view(&self.memory, id).expect("every output of a batchable model is a tensor");
            let mut shape: Shape = view.shape().into();
            let row: usize = shape[1..].iter().product();
            let mut start = 0;
            for (result, &count) in results.iter_mut().zip(&rows) {
                shape[0] = count;
                let part = view.data().range(start * row..(start + count) * row);
                start += count;
                result.push(part.to_buffer().into_tensor(&shape).expect("as many elements as the rows have").into());
            }
        }
        Ok(results)
    }

    /// Starts timing every operator; what was timed before is forgotten.
    pub fn start_profile(&mut self) {
        self.profile = Some(vec![Duration::ZERO; self.model.graph().nodes.len()]);
    }

    /// Time spent in each node since [`Session::start_profile`], by position in the graph.
    pub fn profile(&self) -> Option<&[Duration]> {
        self.profile.as_deref()
    }

    /// Bytes that the session holds.
    pub fn bytes(&self) -> usize {
        let slots: usize = self.memory.slots.iter().chain(&self.gathered).map(Buffer::bytes).sum();
        slots + self.memory.scratch.f32.capacity() * size_of::<f32>()
    }
}

/// Copies the rows of all requests behind each other into the input storage.
fn gather(gathered: &mut Vec<Buffer>, ports: &[Port], requests: &[&[Tensor]], total: usize) -> Result<SmallVec<[Shape; 4]>, RunError> {
    let mut shapes = SmallVec::with_capacity(ports.len());
    for (i, port) in ports.iter().enumerate() {
        let mut shape: Shape = requests[0][i].shape().into();
        shape[0] = total;
        let dtype = requests[0][i].dtype();
        if gathered.len() <= i {
            gathered.push(Buffer::new(dtype));
        }
        let buffer = &mut gathered[i];
        let len = shape.iter().product();
        buffer.grow(len);
        let mut to = buffer.slice_mut(len);
        let mut offset = 0;
        for request in requests {
            let tensor = &request[i];
            if tensor.shape()[1..] != shape[1..] {
                let message =
                    format!("input `{}` has shape {:?} in one request and {:?} in another", port.name, &shape[1..], &tensor.shape()[1..]);
                return Err(Mismatch(message).into());
            }
            to.copy_from(offset, &tensor.data());
            offset += tensor.len();
        }
        shapes.push(shape);
    }
    Ok(shapes)
}

fn plan_for(model: &Model, last: &mut Option<(SmallVec<[Shape; 4]>, Arc<Plan>)>, inputs: &[View<'_>]) -> Result<Arc<Plan>, RunError> {
    if let Some((shapes, plan)) = last
        && shapes.iter().zip(inputs).all(|(shape, view)| shape.as_slice() == view.shape())
    {
        return Ok(Arc::clone(plan));
    }
    let shapes: SmallVec<[Shape; 4]> = inputs.iter().map(|view| view.shape().into()).collect();
    let plan = model.plan(&shapes)?;
    *last = Some((shapes, Arc::clone(&plan)));
    Ok(plan)
}

fn execute(sources: &Sources<'_>, memory: &mut Memory, threads: &Threads, mut profile: Option<&mut Vec<Duration>>) -> Result<(), RunError> {
    memory.prepare(sources.plan);
    for step in &sources.plan.steps {
        let node = &sources.model.graph().nodes[step.node];
        let start = profile.is_some().then(Instant::now);
        let outcome =
            if step.dynamic { run_dynamic(sources, memory, threads, node) } else { run_planned(sources, memory, threads, node, step) };
        if let Err(error) = outcome {
            return Err(node_error(node, &operands(sources, memory, node), error));
        }
        if let (Some(profile), Some(start)) = (&mut profile, start) {
            profile[step.node] += start.elapsed();
        }
        for id in &step.drops {
            memory.dynamic[id.index()] = None;
        }
    }
    Ok(())
}

fn run_planned(sources: &Sources<'_>, memory: &mut Memory, threads: &Threads, node: &Node, step: &Step) -> Result<(), OpError> {
    // The output storage is moved out of the session while the inputs are borrowed from it.
    let slot = |id: &Option<ValueId>| match id.map(|id| &sources.plan.places[id.index()]) {
        Some(Place::Slot(slot)) => Some(*slot),
        _ => None,
    };
    let slots: SmallVec<[Option<usize>; 2]> = node.outputs.iter().map(slot).collect();
    let mut taken: SmallVec<[Option<Buffer>; 2]> =
        slots.iter().map(|slot| slot.map(|slot| std::mem::take(&mut memory.slots[slot]))).collect();
    let mut scratch = std::mem::take(&mut memory.scratch);
    let outcome = {
        let readable: &Memory = memory;
        let view = |(i, id): (usize, &Option<ValueId>)| match id {
            Some(_) if step.in_place == Some(i) => None,
            Some(id) => sources.view(readable, *id),
            None => None,
        };
        let inputs: SmallVec<[Option<View<'_>>; 4]> = node.inputs.iter().enumerate().map(view).collect();
        let mut outputs: SmallVec<[Option<ViewMut<'_>>; 2]> = SmallVec::new();
        for (buffer, id) in taken.iter_mut().zip(&node.outputs) {
            outputs.push(match (buffer, id) {
                (Some(buffer), Some(id)) => Some(buffer.view_mut(sources.plan.shape(*id).expect("a planned value has a shape"))),
                _ => None,
            });
        }
        let mut ctx = Context { scratch: &mut scratch, threads, isa: sources.model.isa() };
        match step.in_place {
            Some(input) => node.op.run_in_place(input, &Inputs(&inputs), &mut Outputs(&mut outputs), &mut ctx),
            None => node.op.run(&Inputs(&inputs), &mut Outputs(&mut outputs), &mut ctx),
        }
    };
    memory.scratch = scratch;
    for (slot, buffer) in slots.iter().zip(taken) {
        if let (Some(slot), Some(buffer)) = (slot, buffer) {
            memory.slots[*slot] = buffer;
        }
    }
    outcome
}

fn run_dynamic(sources: &Sources<'_>, memory: &mut Memory, threads: &Threads, node: &Node) -> Result<(), OpError> {
    let inputs: SmallVec<[Option<Value>; 4]> = node.inputs.iter().map(|id| id.and_then(|id| sources.value(memory, id))).collect();
    let refs: SmallVec<[Option<&Value>; 4]> = inputs.iter().map(Option::as_ref).collect();
    let graph = sources.model.graph();
    let kind = |id: &Option<ValueId>| id.and_then(|id| graph.values[id.index()].kind.clone());
    let kinds: Kinds = node.outputs.iter().map_while(kind).collect();
    let mut ctx = Context { scratch: &mut memory.scratch, threads, isa: sources.model.isa() };
    let outputs = evaluate_values(&*node.op, &refs, &kinds, sources.model.memory_limit(), &mut ctx)?;
    for (id, value) in node.outputs.iter().zip(outputs) {
        if let Some(id) = id {
            memory.dynamic[id.index()] = Some(value);
        }
    }
    Ok(())
}

/// Types and shapes of a node's inputs, for an error message.
fn operands(sources: &Sources<'_>, memory: &Memory, node: &Node) -> String {
    let one = |id: &Option<ValueId>| match id.and_then(|id| sources.view(memory, id)) {
        Some(view) => format!("{}{:?}", view.dtype(), view.shape()),
        None => "-".to_owned(),
    };
    node.inputs.iter().map(one).collect::<Vec<_>>().join(", ")
}
