//! Pipelines: models run after each other as one request, each step batched in its own model's queue.
//!
//! A pipeline is made anew whenever one of its models changes, so a request sees one version of each step from its first to
//! its last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use tokio::task::JoinSet;

use super::request::{InferRequest, InferResponse, Timing};
use super::servable::Servable;
use super::settings::ModelSettings;
use crate::engine::{Dim, Kind, Metadata, Port, Signature, Tensor, Value};
use crate::error::{Error, Kind as ErrorKind};

/// One step, as `[[step]]` of `model.toml` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The model.
    pub model: String,
    /// A version or a label of it; by default what answers requests that name none.
    pub version: Option<String>,
    /// From the model's inputs to the pipeline's values; an input that is not named takes the value of its own name.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// From the model's outputs to the pipeline's values; without any, each output is the value of its own name.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
}

/// What a pipeline may ask for a step: it is made while the repository is locked, and must not ask that.
pub(super) type Resolve<'a> = dyn Fn(&Step) -> Result<Target, Error> + 'a;

/// Who answers for a step.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// What the step is checked against.
    pub(super) first: Servable,
    /// Who is asked where a label splits its requests; empty: `first`.
    pub(super) choose: Option<Arc<dyn Choose>>,
}

/// Chooses among the versions of a label, anew for each request.
pub(super) trait Choose: std::fmt::Debug + Send + Sync {
    /// The one for this request.
    fn choose(&self) -> Servable;
    /// Every one that may be chosen.
    fn all(&self) -> Vec<Servable>;
}

impl Target {
    fn servable(&self) -> Servable {
        self.choose.as_ref().map_or_else(|| self.first.clone(), |choose| choose.choose())
    }
}

/// A pipeline whose steps fit each other.
#[derive(Debug)]
pub struct Pipeline {
    name: String,
    version: String,
    settings: ModelSettings,
    signature: Signature,
    metadata: Metadata,
    steps: Vec<Wired>,
    /// Steps that do not need each other, in the order in which they run.
    stages: Vec<Vec<usize>>,
    /// Where each input and output of the pipeline lies among the values.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    values: usize,
}

/// A step with the places of its values.
#[derive(Debug)]
struct Wired {
    model: String,
    target: Target,
    inputs: Vec<usize>,
    outputs: Vec<Option<usize>>,
}

/// A value that steps hand on.
#[derive(Debug)]
struct Wire {
    name: String,
    port: Port,
    /// The step that makes it; `None` for an input of the pipeline.
    made_by: Option<usize>,
    used: bool,
}

impl Pipeline {
    /// Joins the steps of `settings`.
    ///
    /// # Errors
    /// Of [`Wrong::Missing`] if a step's model does not serve; of [`Wrong::Misfit`] if the steps do not fit each other, with the
    /// step, the value and what was wanted.
    pub(super) fn new(name: &str, version: &str, settings: &ModelSettings, resolve: &Resolve<'_>) -> Result<Self, Wrong> {
        let mut targets = Vec::with_capacity(settings.steps.len());
        for step in &settings.steps {
            targets.push(resolve(step).map_err(|error| Wrong::Missing(format!("step `{}`: {}", step.model, error.message())))?);
        }
        let mut wires = Wires::default();
        for (i, (step, target)) in settings.steps.iter().zip(&targets).enumerate() {
            wires.made(i, step, target.first.signature())?;
        }
        let mut steps = Vec::with_capacity(targets.len());
        for (step, target) in settings.steps.iter().zip(targets) {
            same_interface(step, &target)?;
            let signature = target.first.signature();
            let inputs = wires.taken(step, signature)?;
            let outputs = signature.outputs.iter().map(|port| step_output(step, &port.name).and_then(|value| wires.find(value)));
            steps.push(Wired { model: step.model.clone(), inputs, outputs: outputs.collect(), target: target.clone() });
        }
        let stages = stages(&steps, &wires.0)?;
        let inputs: Vec<usize> = (0..wires.0.len()).filter(|&at| wires.0[at].made_by.is_none()).collect();
        let outputs = wires.outputs(&settings.pipeline_outputs)?;
        let batchable = steps.iter().all(|step| step.target.first.signature().batchable);
        let port = |wire: &Wire| Port { name: wire.name.clone(), ..wire.port.clone() };
        let signature = Signature {
            inputs: inputs.iter().map(|&at| port(&wires.0[at])).collect(),
            outputs: outputs.iter().map(|&at| port(&wires.0[at])).collect(),
            // What the steps have of their own is not the pipeline's.
            optional: Vec::new(),
            batchable,
        };
        let mut settings = settings.clone();
        let rows = steps.iter().map(|step| step.target.first.settings().max_batch_rows).min();
        settings.max_batch_rows = rows.unwrap_or(settings.max_batch_rows).min(settings.max_batch_rows);
        if settings.labels.is_empty()
            && let [only] = outputs[..]
            && let Some(step) = wires.0[only].made_by
        {
            settings.labels.clone_from(&steps[step].target.first.settings().labels);
        }
        let metadata = Metadata { format: "pipeline", ..Metadata::default() };
        let (name, version) = (name.to_owned(), version.to_owned());
        Ok(Self { name, version, settings, signature, metadata, steps, stages, inputs, outputs, values: wires.0.len() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn signature(&self) -> &Signature {
        &self.signature
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(super) fn settings(&self) -> &ModelSettings {
        &self.settings
    }

    /// The models of the steps.
    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.model.as_str())
    }

    /// The steps with what each takes and gives, in the order of the settings.
    pub fn steps(&self) -> impl Iterator<Item = (&Step, &Signature)> {
        self.settings.steps.iter().zip(self.steps.iter().map(|step| step.target.first.signature()))
    }

    /// Runs every step once. Steps that do not need each other wait in their queues at the same time.
    pub(super) async fn infer(&self, request: InferRequest) -> Result<InferResponse, Error> {
        self.signature.check(&request.inputs).map_err(|mismatch| Error::invalid(format!("model `{}`: {mismatch}", self.name)))?;
        let deadline = request.deadline.or_else(|| self.settings.timeout.map(|timeout| Instant::now() + timeout));
        let mut values: Vec<Option<Value>> = vec![None; self.values];
        let mut template = InferRequest { deadline, ..request };
        for (&at, tensor) in self.inputs.iter().zip(std::mem::take(&mut template.inputs)) {
            values[at] = Some(Value::Tensor(tensor));
        }
        let mut total = None;
        for stage in &self.stages {
            let responses = self.run_stage(stage, &values, &template).await?;
            let mut slowest = None;
            for (step, response) in responses {
                for (to, value) in self.steps[step].outputs.iter().zip(response.outputs) {
                    if let Some(to) = to {
                        values[*to] = Some(value);
                    }
                }
                slowest = Some(longer(slowest.take(), response.timing));
            }
            total = slowest.map(|slowest| behind(total.take(), slowest));
        }
        let outputs = self.outputs.iter().map(|&at| values[at].clone().expect("every value has been made")).collect();
        Ok(InferResponse { outputs, timing: total.expect("a pipeline has a step"), profile: None })
    }

    async fn run_stage(
        &self,
        stage: &[usize],
        values: &[Option<Value>],
        template: &InferRequest,
    ) -> Result<Vec<(usize, InferResponse)>, Error> {
        let request = |step: &Wired| -> Result<InferRequest, Error> {
            let input = |&at: &usize| match &values[at] {
                Some(Value::Tensor(tensor)) => Ok(tensor.clone()),
                _ => Err(Error::internal("a step's input is missing", "a pipeline ran a step before its inputs were made")),
            };
            let inputs = step.inputs.iter().map(input).collect::<Result<Vec<Tensor>, Error>>()?;
            Ok(InferRequest { inputs, ..template.clone() })
        };
        if let [only] = stage {
            let step = &self.steps[*only];
            let response = step.target.servable().infer_boxed(request(step)?).await;
            return Ok(vec![(*only, response.map_err(|error| in_step(&step.model, error))?)]);
        }
        // Dropping the set gives up the steps that are still under way.
        let mut tasks = JoinSet::new();
        for &at in stage {
            let (servable, request) = (self.steps[at].target.servable(), request(&self.steps[at])?);
            tasks.spawn(async move { (at, servable.infer_boxed(request).await) });
        }
        let mut responses = Vec::with_capacity(stage.len());
        while let Some(joined) = tasks.join_next().await {
            let (at, response) = joined.map_err(|error| Error::internal("a step failed", error))?;
            responses.push((at, response.map_err(|error| in_step(&self.steps[at].model, error))?));
        }
        Ok(responses)
    }
}

/// The timing of the one of two steps side by side that took longer.
fn longer(one: Option<Timing>, other: Timing) -> Timing {
    one.filter(|one| one.queue + one.compute > other.queue + other.compute).unwrap_or(other)
}

/// The timing of two steps behind each other; what cannot be added is that of the second.
fn behind(first: Option<Timing>, second: Timing) -> Timing {
    match first {
        None => second,
        Some(first) => Timing { queue: first.queue + second.queue, compute: first.compute + second.compute, ..second },
    }
}

/// Why a pipeline cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A step's model does not serve now.
    Missing(String),
    /// The steps do not fit each other.
    Misfit(String),
}

impl Wrong {
    pub(super) fn reason(&self) -> &str {
        let (Self::Missing(reason) | Self::Misfit(reason)) = self;
        reason
    }
}

fn in_step(model: &str, error: Error) -> Error {
    if error.kind() == ErrorKind::DeadlineExceeded {
        // The request's deadline, not the step's; and clients know these words.
        return error;
    }
    let message = format!("step `{model}`: {}", error.message());
    error.with_message(message)
}

/// The value that an output of a step's model is, if it is one.
fn step_output<'a>(step: &'a Step, output: &'a str) -> Option<&'a str> {
    if step.outputs.is_empty() { Some(output) } else { step.outputs.get(output).map(String::as_str) }
}

/// The versions that a step may choose from must look alike.
fn same_interface(step: &Step, target: &Target) -> Result<(), Wrong> {
    let Some(choose) = &target.choose else { return Ok(()) };
    match choose.all().iter().find(|servable| servable.signature() != target.first.signature()) {
        None => Ok(()),
        Some(other) => Err(Wrong::Misfit(format!(
            "step `{}`: versions {} and {} of the label have different inputs or outputs",
            step.model,
            target.first.version(),
            other.version()
        ))),
    }
}

#[derive(Debug, Default)]
struct Wires(Vec<Wire>);

impl Wires {
    fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|wire| wire.name == name)
    }

    /// Notes the values that a step makes.
    fn made(&mut self, at: usize, step: &Step, signature: &Signature) -> Result<(), Wrong> {
        if let Some(unknown) = step.outputs.keys().find(|name| signature.output(name).is_none()) {
            return Err(Wrong::Misfit(format!("step `{}`: the model has no output `{unknown}`", step.model)));
        }
        for port in &signature.outputs {
            let Some(name) = step_output(step, &port.name) else { continue };
            if self.find(name).is_some() {
                return Err(Wrong::Misfit(format!("step `{}`: another step makes the value `{name}` already", step.model)));
            }
            self.0.push(Wire { name: name.to_owned(), port: port.clone(), made_by: Some(at), used: false });
        }
        Ok(())
    }

    /// The values that a step takes, in the order of its model's inputs. A value that no step makes is an input of the pipeline.
    fn taken(&mut self, step: &Step, signature: &Signature) -> Result<Vec<usize>, Wrong> {
        if let Some(unknown) = step.inputs.keys().find(|name| signature.input(name).is_none()) {
            return Err(Wrong::Misfit(format!("step `{}`: the model has no input `{unknown}`", step.model)));
        }
        let mut taken = Vec::with_capacity(signature.inputs.len());
        for port in &signature.inputs {
            let name = step.inputs.get(&port.name).unwrap_or(&port.name);
            let at = self.find(name).unwrap_or_else(|| {
                self.0.push(Wire { name: name.clone(), port: open(port), made_by: None, used: false });
                self.0.len() - 1
            });
            let wire = &mut self.0[at];
            wire.used = true;
            let joined = join(&wire.port, port).map_err(|why| {
                Wrong::Misfit(format!("step `{}`: input `{}` cannot take the value `{name}`: {why}", step.model, port.name))
            })?;
            if wire.made_by.is_none() {
                wire.port.dims = joined;
            }
            taken.push(at);
        }
        Ok(taken)
    }

    /// Where the outputs of the pipeline lie: those that are named, or all that no step takes.
    fn outputs(&self, named: &[String]) -> Result<Vec<usize>, Wrong> {
        if named.is_empty() {
            return Ok((0..self.0.len()).filter(|&at| !self.0[at].used).collect());
        }
        let find = |name: &String| self.find(name).filter(|&at| self.0[at].made_by.is_some());
        named.iter().map(|name| find(name).ok_or_else(|| Wrong::Misfit(format!("no step makes the output `{name}`")))).collect()
    }
}

/// The port as an input of the pipeline: a free dimension behind the first has no name, because models use the same names for
/// different things.
fn open(port: &Port) -> Port {
    let mut port = port.clone();
    for dim in port.dims.iter_mut().flatten().skip(1) {
        if let Dim::Free(name) = dim {
            name.clear();
        }
    }
    port
}

/// The dimensions of a value of `from` that goes into `to`.
fn join(from: &Port, to: &Port) -> Result<Option<Vec<Dim>>, String> {
    if from.kind != to.kind || !matches!(to.kind, Kind::Tensor(_)) {
        return Err(format!("it is a {}, a {} is wanted", from.kind, to.kind));
    }
    let (Some(a), Some(b)) = (&from.dims, &to.dims) else { return Ok(from.dims.clone().or_else(|| to.dims.clone())) };
    let misfit = || format!("its shape is {}, {} is wanted", from.dims_text(), to.dims_text());
    if a.len() != b.len() {
        return Err(misfit());
    }
    let dim = |(a, b): (&Dim, &Dim)| match (a, b) {
        (Dim::Fixed(a), Dim::Fixed(b)) if a != b => Err(misfit()),
        (Dim::Free(_), Dim::Fixed(_)) => Ok(b.clone()),
        _ => Ok(a.clone()),
    };
    a.iter().zip(b).map(dim).collect::<Result<Vec<_>, _>>().map(Some)
}

/// Groups the steps so that each comes after those whose values it takes.
fn stages(steps: &[Wired], wires: &[Wire]) -> Result<Vec<Vec<usize>>, Wrong> {
    let mut left: Vec<usize> = (0..steps.len()).collect();
    let mut stages: Vec<Vec<usize>> = Vec::new();
    while !left.is_empty() {
        let waits = |&step: &usize| steps[step].inputs.iter().any(|&value| wires[value].made_by.is_some_and(|maker| left.contains(&maker)));
        let (later, now): (Vec<usize>, Vec<usize>) = left.iter().copied().partition(|step| waits(step));
        if now.is_empty() {
            let names: Vec<_> = later.iter().map(|&step| format!("`{}`", steps[step].model)).collect();
            return Err(Wrong::Misfit(format!("the steps wait for each other: {}", names.join(", "))));
        }
        stages.push(now);
        left = later;
    }
    Ok(stages)
}
