//! Explanations over the queue: passes of the model, and of what explains it, behind all requests for predictions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use super::queue::Joining;
use super::request::InferRequest;
use super::servable::Servable;
use crate::engine::{Model, Value, has_trees};
use crate::error::{Error, Kind};
use crate::explain::{Explained, Explainer, Program, Question, Subject};

/// A prediction waits for one pass of an explanation at most: about so long, if the model takes less for a row.
const PASS: Duration = Duration::from_millis(20);
/// How many times that of the model a pass of gradients takes: forward, and back with respect to inputs and activations.
const GRADIENT: u32 = 3;

/// What bounds an explanation.
#[derive(Clone, Copy, Debug)]
pub struct ExplainLimits {
    /// Most rows that may be evaluated, where the model does not say.
    pub evaluations: usize,
    /// When it must be done.
    pub deadline: Instant,
}

/// Explains answers of `servable`.
///
/// # Errors
/// - `InvalidArgument`: the question does not fit the model, or takes more evaluations than the limit;
/// - `Unsupported`: the method cannot explain the model; what is in the way is named;
/// - as [`Servable::infer`] for its passes.
pub async fn explain(servable: &Servable, question: Question, limits: ExplainLimits) -> Result<Explained, Error> {
    let (settings, handle) = (servable.settings(), servable.handle());
    let subject = Subject {
        signature: servable.signature(),
        labels: &settings.labels,
        settings: &settings.explain,
        background: handle.and_then(|handle| handle.background()),
        has_trees: handle.is_some_and(|handle| has_trees(handle.model())),
    };
    let mut explainer = Explainer::new(&subject, question)?;
    let (wanted, most) = (explainer.evaluations(), settings.explain.max_evaluations.unwrap_or(limits.evaluations));
    if wanted > most {
        let message = format!(
            "{} takes {wanted} evaluations, the limit is {most} (max_evaluations): fewer rows, samples, steps or repeats, or a smaller background, \
             take less",
            explainer.method().name()
        );
        return Err(Error::invalid(message));
    }
    let ahead = settings.instances + 1;
    while explainer.rows() > 0 {
        let derived = derived(servable, &explainer).await?;
        let (rows, per_pass) = (explainer.rows(), explainer.rows_per_pass(rows_of_a_pass(servable, explainer.program())));
        let mut starts = (0..rows).step_by(per_pass);
        let mut running = FuturesOrdered::new();
        loop {
            while running.len() < ahead
                && let Some(start) = starts.next()
            {
                let range = start..(start + per_pass).min(rows);
                let inputs = explainer.inputs(range.clone());
                let request = InferRequest { deadline: Some(limits.deadline), background: true, ..InferRequest::new(inputs) };
                let derived = derived.clone();
                running.push_back(async move { (range, pass(servable, derived, request).await) });
            }
            let Some((range, outputs)) = running.next().await else { break };
            explainer.take(range, &outputs?)?;
            // Passes that are done already are no pause: without one, a hundred of them hold a thread that requests arrive on.
            tokio::task::yield_now().await;
        }
        explainer.advance()?;
    }
    if let Some(handle) = handle {
        handle.count_explanation(explainer.method());
    }
    Ok(explainer.finish())
}

/// What the next passes run, if it is not the model itself.
async fn derived(servable: &Servable, explainer: &Explainer) -> Result<Option<Arc<Model>>, Error> {
    let (program, output) = (explainer.program(), explainer.output());
    if program == Program::Model {
        return Ok(None);
    }
    let Some(handle) = servable.handle() else {
        let message = format!("{} does not explain pipelines; `shapley` does", explainer.method().name());
        return Err(Error::new(Kind::Unsupported, message));
    };
    let handle = Arc::clone(handle);
    let made = tokio::task::spawn_blocking(move || handle.derived(program, output)).await;
    made.unwrap_or_else(|panic| Err(Error::internal("the explanation failed", panic))).map(Some)
}

async fn pass(servable: &Servable, derived: Option<Arc<Model>>, request: InferRequest) -> Result<Vec<Value>, Error> {
    let response = match (derived, servable.handle()) {
        (Some(model), Some(handle)) => handle.infer_derived(model, request).await?,
        _ => servable.infer(request).await?,
    };
    Ok(response.outputs)
}

/// So many rows that a pass is worth it and does not take long.
fn rows_of_a_pass(servable: &Servable, program: Program) -> usize {
    let settings = servable.settings();
    if servable.joining() != Joining::Yes {
        return 1;
    }
    let most = settings.max_batch_rows;
    let Some(curve) = servable.handle().and_then(|handle| handle.curve()) else { return most };
    let times = if program == Program::Gradient { GRADIENT } else { 1 };
    let mut rows = curve.best_rows().clamp(1, most);
    while rows > 1 && curve.time(rows).is_some_and(|time| times * time > PASS) {
        rows /= 2;
    }
    rows
}
