//! A session: the mutable half of a run. One per worker; the [`Model`] behind it is shared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::error::RunError;
use super::execute::{Given, Limits, Memory, RunInputs, execute};
use super::graph::ValueId;
use super::model::Model;
use super::op::Shape;
use super::program::Program;
use super::signature::{Mismatch, Port};
use super::tensor::{Buffer, Tensor, Value};
use super::threads::Threads;
use super::view::{View, emptied};

/// Storage and working memory for running one model, one run at a time.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    threads: Arc<Threads>,
    memory: Memory,
    /// The memory of runs that replace initialisers: another program.
    overriding: Memory,
    /// Storage for the rows of several requests, one per input.
    gathered: Vec<Buffer>,
    /// Room for the views of outputs, empty between runs.
    views: Vec<View<'static>>,
    profile: Option<Vec<Duration>>,
    time: RunTime,
}

/// Where the time of a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// When the run began; `None` before the first.
    pub started: Option<Instant>,
    /// Checking the inputs and gathering the rows of several requests.
    pub input: Duration,
    /// The operators.
    pub infer: Duration,
    /// Taking the outputs out, and apart.
    pub output: Duration,
}

impl RunTime {
    /// The whole run.
    pub fn total(&self) -> Duration {
        self.input + self.infer + self.output
    }
}

impl Session {
    /// A session for `model` whose operators may use `threads`.
    pub fn new(model: Arc<Model>, threads: Arc<Threads>) -> Self {
        let (memory, overriding) = (Memory::default(), Memory::default());
        Self { model, threads, memory, overriding, gathered: Vec::new(), views: Vec::new(), profile: None, time: RunTime::default() }
    }

    /// From now on operators use `threads`; the answers stay the same to the bit.
    pub fn use_threads(&mut self, threads: Arc<Threads>) {
        self.threads = threads;
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
        let mut clock = Clock::start(&mut self.time);
        self.model.signature().check(inputs)?;
        let views: SmallVec<[View<'_>; 4]> = inputs.iter().map(Tensor::view).collect();
        if let Some(together) = portion(&self.model, &views, &self.memory, &self.threads)? {
            let limits = limits(&self.model, &self.threads, clock.input());
            let found = in_portions(&self.model, &views, together, &mut self.memory, &limits, self.profile.as_mut())?;
            clock.infer();
            let tensor = |(buffer, shape): (Buffer, Shape)| buffer.into_tensor(&shape).expect("as many elements as the rows have");
            return Ok(found.into_iter().map(tensor).map(Value::from).collect());
        }
        let given: SmallVec<[Given<'_>; 4]> = views.into_iter().map(Given::View).collect();
        values((&self.model, self.model.program()), &given, &mut self.memory, &self.threads, (clock, self.profile.as_mut()))
    }

    /// Runs the model on one view per input and lets `f` look at its outputs, in order, where they lie: nothing is copied, and from
    /// the second run of the same shapes on nothing is allocated here.
    ///
    /// # Errors
    /// As [`Session::run`], and if an output is no tensor.
    pub fn run_views<T>(&mut self, inputs: &[View<'_>], f: impl FnOnce(&[View<'_>]) -> T) -> Result<T, RunError> {
        let mut clock = Clock::start(&mut self.time);
        self.model.signature().check_views(inputs)?;
        let limits = limits(&self.model, &self.threads, clock.input());
        let run = execute(self.model.program(), RunInputs::Views(inputs), &mut self.memory, &limits, self.profile.as_mut())?;
        clock.infer();
        let mut outputs = emptied(std::mem::take(&mut self.views));
        for id in &self.model.graph().outputs {
            outputs.push(run.view(&self.memory, *id).ok_or_else(|| Mismatch("an output is no tensor".into()))?);
        }
        let found = f(&outputs);
        self.views = emptied(outputs);
        clock.output();
        Ok(found)
    }

    /// Runs the model on one value per input: [`Session::run`] for models whose inputs are not all tensors.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_values(&mut self, inputs: &[Value]) -> Result<Vec<Value>, RunError> {
        // Their elements are shared, not copied.
        if let Some(tensors) = inputs.iter().map(|value| value.tensor().cloned()).collect::<Option<SmallVec<[Tensor; 4]>>>() {
            return self.run(&tensors);
        }
        let clock = Clock::start(&mut self.time);
        self.model.signature().check_values(inputs)?;
        let given: SmallVec<[Given<'_>; 4]> = inputs.iter().map(Given::from).collect();
        values((&self.model, self.model.program()), &given, &mut self.memory, &self.threads, (clock, self.profile.as_mut()))
    }

    /// [`Session::run_values`] with tensors in the place of optional inputs, by their positions in the signature. The first such
    /// run of a model optimises it anew.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_overriding(&mut self, inputs: &[Value], overrides: &[(usize, Tensor)]) -> Result<Vec<Value>, RunError> {
        let signature = self.model.signature();
        signature.check_overrides(overrides)?;
        let (Some(open), false) = (self.model.overrides(), overrides.is_empty()) else { return self.run_values(inputs) };
        let clock = Clock::start(&mut self.time);
        signature.check_values(inputs)?;
        let open = open.open().map_err(RunError::Overrides)?;
        let mut given: Vec<Given<'_>> = inputs.iter().map(Given::from).collect();
        given.extend(open.defaults.iter().map(|tensor| Given::View(tensor.view())));
        for (position, tensor) in overrides {
            given[inputs.len() + position] = Given::View(tensor.view());
        }
        values((&self.model, &open.program), &given, &mut self.overriding, &self.threads, (clock, None))
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
        let mut clock = Clock::start(&mut self.time);
        let mut rows: SmallVec<[usize; 64]> = SmallVec::with_capacity(requests.len());
        for request in requests {
            signature.check(request)?;
            rows.push(signature.rows(request).expect("checked: all inputs have as many rows"));
        }
        let total: usize = rows.iter().sum();
        let shapes = gather(&mut self.gathered, &signature.inputs, requests, total)?;
        let views: SmallVec<[View<'_>; 4]> =
            self.gathered.iter().zip(&shapes).map(|(buffer, shape)| View::new(buffer.slice(shape.iter().product()), shape)).collect();
        let together = portion(&self.model, &views, &self.memory, &self.threads)?;
        let limits = limits(&self.model, &self.threads, clock.input());
        let (run, found);
        let outputs: SmallVec<[View<'_>; 4]> = match together {
            Some(together) => {
                found = in_portions(&self.model, &views, together, &mut self.memory, &limits, self.profile.as_mut())?;
                found.iter().map(|(buffer, shape)| View::new(buffer.slice(shape.iter().product()), shape)).collect()
            }
            None => {
                run = execute(self.model.program(), RunInputs::Views(&views), &mut self.memory, &limits, self.profile.as_mut())?;
                let output = |id: &ValueId| run.view(&self.memory, *id).expect("every output of a batchable model is a tensor");
                self.model.graph().outputs.iter().map(output).collect()
            }
        };
        clock.infer();

        let mut results: Vec<Vec<Value>> = rows.iter().map(|_| Vec::with_capacity(signature.outputs.len())).collect();
        for view in outputs {
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
        clock.output();
        Ok(results)
    }

    /// Where the time of the last run went; of one that failed, up to where it did.
    pub fn time(&self) -> RunTime {
        self.time
    }

    /// Starts timing every operator; what was timed before is forgotten.
    pub fn start_profile(&mut self) {
        self.profile = Some(vec![Duration::ZERO; self.model.graph().nodes.len()]);
    }

    /// Ends timing every operator and returns what was timed of each node, by position in the graph.
    pub fn end_profile(&mut self) -> Option<Vec<Duration>> {
        self.profile.take()
    }

    /// Bytes that the session holds.
    pub fn bytes(&self) -> usize {
        self.memory.bytes() + self.overriding.bytes() + self.gathered.iter().map(Buffer::bytes).sum::<usize>()
    }
}

/// Writes the time between its calls into a [`RunTime`].
struct Clock<'a> {
    time: &'a mut RunTime,
    last: Instant,
}

impl<'a> Clock<'a> {
    fn start(time: &'a mut RunTime) -> Self {
        let last = Instant::now();
        *time = RunTime { started: Some(last), ..RunTime::default() };
        Self { time, last }
    }

    fn lap(&mut self) -> Duration {
        let before = std::mem::replace(&mut self.last, Instant::now());
        self.last - before
    }

    /// The inputs are there; returns the moment.
    fn input(&mut self) -> Instant {
        self.time.input = self.lap();
        self.last
    }

    fn infer(&mut self) {
        self.time.infer = self.lap();
    }

    fn output(&mut self) {
        self.time.output = self.lap();
    }
}

/// Runs a program of the model on what is given, which `clock` has timed until now, and returns copies of its outputs.
fn values(
    (model, program): (&Model, &Program),
    given: &[Given<'_>],
    memory: &mut Memory,
    threads: &Threads,
    (mut clock, profile): (Clock<'_>, Option<&mut Vec<Duration>>),
) -> Result<Vec<Value>, RunError> {
    let limits = limits(model, threads, clock.input());
    let run = execute(program, RunInputs::Given(given), memory, &limits, profile)?;
    clock.infer();
    let outputs = run.outputs(memory);
    clock.output();
    Ok(outputs)
}

/// How many rows of the inputs are computed together, if not all. As many as last time were all then.
fn portion(model: &Model, inputs: &[View<'_>], memory: &Memory, threads: &Threads) -> Result<Option<usize>, RunError> {
    let Some(&rows) = inputs.first().and_then(|view| view.shape().first()).filter(|rows| **rows > 1) else { return Ok(None) };
    if memory.last(RunInputs::Views(inputs)).is_some() {
        return Ok(None);
    }
    let shapes: SmallVec<[Shape; 4]> = inputs.iter().map(|view| view.shape().into()).collect();
    Ok(Some(model.rows_together(&shapes, threads.count())?).filter(|together| *together < rows))
}

/// Runs the model on at most `together` rows at once, and returns the outputs of all with their shapes.
fn in_portions(
    model: &Model,
    inputs: &[View<'_>],
    together: usize,
    memory: &mut Memory,
    limits: &Limits<'_>,
    mut profile: Option<&mut Vec<Duration>>,
) -> Result<Vec<(Buffer, Shape)>, RunError> {
    let rows = inputs[0].shape()[0];
    let mut found: Vec<(Buffer, Shape)> = Vec::with_capacity(model.graph().outputs.len());
    for start in (0..rows).step_by(together) {
        let count = together.min(rows - start);
        let shapes: SmallVec<[Shape; 4]> =
            inputs.iter().map(|view| std::iter::once(count).chain(view.shape()[1..].iter().copied()).collect()).collect();
        let mut views: SmallVec<[View<'_>; 4]> = SmallVec::new();
        for (view, shape) in inputs.iter().zip(&shapes) {
            let row: usize = shape[1..].iter().product();
            views.push(View::new(view.data().range(start * row..(start + count) * row), shape));
        }
        let run = execute(model.program(), RunInputs::Views(&views), memory, limits, profile.as_deref_mut())?;
        for (position, id) in model.graph().outputs.iter().enumerate() {
            let view = run.view(memory, *id).expect("every output of a batchable model is a tensor");
            let row: usize = view.shape()[1..].iter().product();
            if start == 0 {
                let mut buffer = Buffer::new(view.dtype());
                buffer.grow(rows * row);
                found.push((buffer, std::iter::once(rows).chain(view.shape()[1..].iter().copied()).collect()));
            }
            found[position].0.slice_mut(rows * row).copy_from(start * row, &view.data());
        }
    }
    Ok(found)
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

/// What bounds a run that begins `now`.
fn limits<'t>(model: &Model, threads: &'t Threads, now: Instant) -> Limits<'t> {
    let deadline = model.run_limit().and_then(|limit| now.checked_add(limit));
    Limits { threads, budget: model.memory_limit(), deadline }
}
