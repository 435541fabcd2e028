//! Running a plan: the steps of a [`Program`] over the memory of a session, or of a body within a run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::error::RunError;
use super::evaluate::evaluate_values;
use super::graph::{Node, ValueId};
use super::op::{Context, Inputs, Kinds, OpError, Outputs, Scratch, Shape};
use super::plan::{Place, Plan, Step, node_error};
use super::program::Program;
use super::tensor::{Buffer, Tensor, Value};
use super::threads::Threads;
use super::view::{Slice, View, ViewMut};

/// Storage of one program, kept between runs.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    values: Values,
    scratch: Scratch,
    /// The plan of the last run: the next one often has the same shapes.
    last: Option<(SmallVec<[Shape; 4]>, Arc<Plan>)>,
}

/// Storage of a program's values.
#[derive(Debug, Default)]
struct Values {
    slots: Vec<Buffer>,
    dynamic: Vec<Option<Value>>,
    /// Bytes of the values in `dynamic`.
    dynamic_bytes: usize,
}

/// One input of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a> {
    /// A tensor.
    View(View<'a>),
    /// A sequence, a map or an optional value.
    Value(&'a Value),
}

impl<'a> From<&'a Value> for Given<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Tensor(tensor) => Self::View(tensor.view()),
            other => Self::Value(other),
        }
    }
}

/// The inputs of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunInputs<'a> {
    /// Tensors.
    Views(&'a [View<'a>]),
    /// Values of any kind.
    Given(&'a [Given<'a>]),
}

impl<'a> RunInputs<'a> {
    fn len(self) -> usize {
        match self {
            Self::Views(views) => views.len(),
            Self::Given(given) => given.len(),
        }
    }

    fn view(self, position: usize) -> View<'a> {
        match self {
            Self::Views(views) => views[position],
            Self::Given(given) => match given[position] {
                Given::View(view) => view,
                // Its shape in a plan's key; nobody reads it.
                Given::Value(_) => View::new(Slice::U8(&[]), &[0]),
            },
        }
    }

    fn views(self) -> impl Iterator<Item = View<'a>> {
        (0..self.len()).map(move |position| self.view(position))
    }

    /// The input, if it is no tensor.
    fn value(self, position: usize) -> Option<&'a Value> {
        match self {
            Self::Given(given) => match given[position] {
                Given::Value(value) => Some(value),
                Given::View(_) => None,
            },
            Self::Views(_) => None,
        }
    }
}

/// What bounds a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) threads: &'a Threads,
    /// Bytes that values beside the planned slots may take.
    pub(crate) budget: usize,
    pub(crate) deadline: Option<Instant>,
}

impl Memory {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.values.slots.iter().map(Buffer::bytes).sum::<usize>() + self.scratch.bytes()
    }

    /// The plan of the last run, if that had inputs of these shapes.
    pub(crate) fn last(&self, inputs: RunInputs<'_>) -> Option<&Arc<Plan>> {
        let (shapes, plan) = self.last.as_ref()?;
        shapes.iter().zip(inputs.views()).all(|(shape, view)| shape.as_slice() == view.shape()).then_some(plan)
    }

    /// The plan for `inputs`, with room for its slots.
    fn plan(&mut self, program: &Program, inputs: RunInputs<'_>) -> Result<Arc<Plan>, RunError> {
        if let Some(plan) = self.last(inputs) {
            return Ok(Arc::clone(plan));
        }
        let shapes: SmallVec<[Shape; 4]> = inputs.views().map(|view| view.shape().into()).collect();
        let plan = program.plan(&shapes)?;
        self.values.make_room(&plan);
        self.last = Some((shapes, Arc::clone(&plan)));
        Ok(plan)
    }
}

impl Values {
    /// Makes room for the slots of `plan`; keeps what is there and large enough.
    fn make_room(&mut self, plan: &Plan) {
        for (i, spec) in plan.slots.iter().enumerate() {
            if self.slots.len() <= i {
                self.slots.push(Buffer::new(spec.dtype));
            } else if self.slots[i].dtype() != spec.dtype {
                self.slots[i] = Buffer::new(spec.dtype);
            }
            self.slots[i].grow(spec.len);
        }
    }

    /// Forgets the dynamic values of the run before; `count` is how many the program has.
    fn begin(&mut self, count: usize) {
        self.dynamic.clear();
        self.dynamic_bytes = 0;
        self.dynamic.resize(count, None);
    }

    fn keep(&mut self, id: ValueId, value: Value) {
        self.dynamic_bytes = self.dynamic_bytes.saturating_add(value.bytes());
        self.dynamic[id.index()] = Some(value);
    }

    fn forget(&mut self, id: ValueId) {
        if let Some(value) = self.dynamic[id.index()].take() {
            self.dynamic_bytes = self.dynamic_bytes.saturating_sub(value.bytes());
        }
    }
}

/// A run that is over: where its values are.
pub(crate) struct Run<'a> {
    program: &'a Program,
    plan: Arc<Plan>,
    inputs: RunInputs<'a>,
}

/// Runs `program` on `inputs`, in the order of the graph's inputs.
///
/// `profile`, if given, has one entry per node of the graph, to which the time spent in it is added.
///
/// # Errors
/// If a node does not take its operands, a limit is exceeded, or the time is up.
pub(crate) fn execute<'a>(
    program: &'a Program,
    inputs: RunInputs<'a>,
    memory: &mut Memory,
    limits: &Limits<'_>,
    mut profile: Option<&mut Vec<Duration>>,
) -> Result<Run<'a>, RunError> {
    let plan = memory.plan(program, inputs)?;
    memory.values.begin(if plan.is_static() { 0 } else { plan.places.len() });
    for (position, id) in program.graph().inputs.iter().enumerate().take(inputs.len()) {
        if let Some(value) = inputs.value(position) {
            memory.values.keep(*id, value.clone());
        }
    }
    let run = Run { program, plan, inputs };
    let Some(budget) = limits.budget.checked_sub(run.plan.bytes()) else {
        return Err(RunError::Memory { need: run.plan.bytes() as u128, limit: limits.budget });
    };
    let limits = &Limits { budget, ..*limits };
    let steps = || {
        for step in &run.plan.steps {
            let node = &program.graph().nodes[step.node];
            let start = profile.is_some().then(Instant::now);
            let outcome = if step.dynamic { run.dynamic(memory, limits, node) } else { run.planned(memory, limits, node, step) };
            if let Err(error) = outcome {
                return Err(node_error(node, &run.operands(memory, node), error));
            }
            if let (Some(profile), Some(start)) = (&mut profile, start) {
                profile[step.node] += start.elapsed();
            }
            for &id in &step.drops {
                memory.values.forget(id);
            }
        }
        Ok(())
    };
    limits.threads.run(run.plan.work(), steps)?;
    Ok(run)
}

impl Run<'_> {
    /// The tensor of a value, or `None` if it is another kind of value.
    pub(crate) fn view<'m>(&'m self, memory: &'m Memory, id: ValueId) -> Option<View<'m>> {
        self.find(&memory.values, id)
    }

    fn find<'m>(&'m self, values: &'m Values, id: ValueId) -> Option<View<'m>> {
        let planned = || self.plan.shape(id).expect("a planned value has a shape");
        match &self.plan.places[id.index()] {
            Place::Input(position) => Some(View::new(self.inputs.view(*position).data(), planned())),
            Place::Constant(source) => Some(View::new(self.program.constant(*source).data(), planned())),
            Place::Computed(tensor) => Some(View::new(tensor.data(), planned())),
            Place::Slot(slot) => {
                let shape = planned();
                Some(View::new(values.slots[*slot].slice(shape.iter().product()), shape))
            }
            Place::Dynamic => values.dynamic[id.index()].as_ref().and_then(Value::tensor).map(Tensor::view),
            Place::Nowhere => None,
        }
    }

    /// The slot of an output, if somebody reads it.
    fn slot(&self, id: Option<ValueId>) -> Option<usize> {
        match self.plan.places[id?.index()] {
            Place::Slot(slot) => Some(slot),
            _ => None,
        }
    }

    /// An owned copy of a value; constants and dynamic values are shared instead of copied.
    pub(crate) fn value(&self, memory: &Memory, id: ValueId) -> Option<Value> {
        match &self.plan.places[id.index()] {
            Place::Dynamic => memory.values.dynamic[id.index()].clone(),
            Place::Constant(source) => self.program.constant(*source).reshape(self.plan.shape(id)?).map(Value::Tensor),
            Place::Computed(tensor) => tensor.reshape(self.plan.shape(id)?).map(Value::Tensor),
            _ => {
                let view = self.view(memory, id)?;
                view.data().to_buffer().into_tensor(view.shape()).map(Value::Tensor)
            }
        }
    }

    /// Owned copies of the program's outputs.
    pub(crate) fn outputs(&self, memory: &Memory) -> Vec<Value> {
        let outputs = self.program.graph().outputs.iter();
        outputs.map(|&id| self.value(memory, id).expect("a run computes every output")).collect()
    }

    fn planned(&self, memory: &mut Memory, limits: &Limits<'_>, node: &Node, step: &Step) -> Result<(), OpError> {
        let Memory { values, scratch, .. } = memory;
        // The output storage is moved out of the session while the inputs are borrowed from it. The lists are filled where they lie:
        // to move one costs as much as a small operator.
        let mut taken: SmallVec<[Option<Buffer>; 6]> = SmallVec::new();
        for &id in &node.outputs {
            taken.push(self.slot(id).map(|slot| std::mem::take(&mut values.slots[slot])));
        }
        let outcome = {
            let mut inputs: SmallVec<[Option<View<'_>>; 6]> = SmallVec::new();
            for (i, id) in node.inputs.iter().enumerate() {
                inputs.push(id.filter(|_| step.in_place != Some(i)).and_then(|id| self.find(values, id)));
            }
            let mut outputs: SmallVec<[Option<ViewMut<'_>>; 6]> = SmallVec::new();
            for (buffer, id) in taken.iter_mut().zip(&node.outputs) {
                outputs.push(match (buffer, id) {
                    (Some(buffer), Some(id)) => Some(buffer.view_mut(self.plan.shape(*id).expect("a planned value has a shape"))),
                    _ => None,
                });
            }
            let mut ctx = self.context(scratch, limits, values.dynamic_bytes);
            match step.in_place {
                Some(input) => node.op.run_in_place(input, &Inputs(&inputs), &mut Outputs(&mut outputs), &mut ctx),
                None => node.op.run(&Inputs(&inputs), &mut Outputs(&mut outputs), &mut ctx),
            }
        };
        for (buffer, &id) in taken.iter_mut().zip(&node.outputs) {
            if let (Some(buffer), Some(slot)) = (buffer.take(), self.slot(id)) {
                values.slots[slot] = buffer;
            }
        }
        outcome
    }

    fn context<'c>(&self, scratch: &'c mut Scratch, limits: &Limits<'c>, used: usize) -> Context<'c> {
        Context {
            scratch,
            threads: limits.threads,
            isa: self.program.isa(),
            budget: limits.budget.saturating_sub(used),
            deadline: limits.deadline,
        }
    }

    fn dynamic(&self, memory: &mut Memory, limits: &Limits<'_>, node: &Node) -> Result<(), OpError> {
        let inputs: SmallVec<[Option<Value>; 4]> = node.inputs.iter().map(|id| id.and_then(|id| self.value(memory, id))).collect();
        let refs: SmallVec<[Option<&Value>; 4]> = inputs.iter().map(Option::as_ref).collect();
        let graph = self.program.graph();
        let kind = |id: &Option<ValueId>| id.and_then(|id| graph.values[id.index()].kind.clone());
        let kinds: Kinds = node.outputs.iter().map_while(kind).collect();
        let mut ctx = self.context(&mut memory.scratch, limits, memory.values.dynamic_bytes);
        let budget = ctx.budget;
        let outputs = evaluate_values(&*node.op, &refs, &kinds, budget, &mut ctx)?;
        for (id, value) in node.outputs.iter().zip(outputs) {
            if let Some(id) = id {
                memory.values.keep(*id, value);
            }
        }
        if memory.values.dynamic_bytes > limits.budget {
            return Err(OpError::shape(format!("the values of the run exceed the memory limit of {} bytes", limits.budget)));
        }
        Ok(())
    }

    /// Types and shapes of a node's inputs, for an error message.
    fn operands(&self, memory: &Memory, node: &Node) -> String {
        let kinds = &self.program.graph().values;
        let one = |id: &Option<ValueId>| match id {
            None => "-".to_owned(),
            Some(id) => match (self.view(memory, *id), &kinds[id.index()].kind) {
                (Some(view), _) => format!("{}{:?}", view.dtype(), view.shape()),
                (None, Some(kind)) => format!("a {kind}"),
                (None, None) => "-".to_owned(),
            },
        };
        node.inputs.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}
