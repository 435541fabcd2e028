//! `:explain` of KServe's v1 protocol: what of its inputs brought a model's answer about.

mod decode;
mod encode;

use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use schemars::JsonSchema;
use serde_json::Value;

use super::body::{self, Payload};
use super::error::Failure;
use super::infer::{Parameters, of_model, off_thread_for};
use super::openapi::{Doc, Example};
use super::{Shared, deadline};
use crate::error::Kind;
use crate::explain::Explained;
use crate::serve::{ExplainLimits, Servable, explain};

pub use encode::{Shown, encode};

use decode::{Asked, decode};

/// What the document says of the route.
pub(super) fn doc() -> Doc {
    Doc::new("An explanation: what each feature of the rows contributed to the answer.")
        .takes::<ExplainRequest>()
        .json::<ExplainResponse>()
        .request_headers(&[(deadline::TIMEOUT, deadline::ABOUT)])
        .example(Example::Instances)
        .fails(&[Kind::Unsupported])
}

/// Explains the rows of a request.
pub(super) async fn answer(shared: &Shared, handle: &Servable, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let deadline = deadline::of(&parts.headers, Instant::now)?;
    let bytes = body::read(&parts.headers, body, &shared.limits).await?;
    let started = Instant::now();
    let asked = off_thread_for(handle, bytes.len(), move |handle| decode(&bytes, handle.signature())).await?;
    let Asked { question, shown, timeout } = asked;
    let mut parameters = Parameters { timeout, ..Parameters::default() };
    parameters.end_by(deadline, started);
    let most = shared.limits.max_timeout;
    let timeout = parameters.timeout.unwrap_or(most).min(most);
    let limits = ExplainLimits { evaluations: shared.limits.max_evaluations, deadline: started + timeout };
    let explained = explain(handle, question, limits).await.map_err(|error| of_model(handle, error))?;
    let (non_finite, size) = (shared.limits.non_finite, size(&explained));
    let payload = body::encode((handle, &parts.headers), &shared.limits, size, move |_, coding| {
        let body = encode(&explained, shown, non_finite)?;
        Ok(Payload::new("application/json", vec![body.into()], coding))
    })
    .await?;
    Ok(payload.into_response())
}

/// About how many bytes the answer takes.
fn size(explained: &Explained) -> usize {
    64 * explained.layout.len() * explained.explanations.len()
}

/// Rows to explain, in `instances` or `inputs` as for a prediction, and how.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ExplainRequest {
    /// A row each: an array or, with several inputs, an object with a value per input.
    instances: Option<Vec<Value>>,
    /// The tensor of the one input, or an object of tensors.
    inputs: Option<Value>,
    /// `integrated_gradients`, `gradient_input`, `shapley`, `tree_shap`, `occlusion` or `permutation_importance`; by default what the
    /// model declares, else what fits it.
    method: Option<String>,
    /// The output that is explained.
    output: Option<String>,
    /// The class that is explained: a label or a position; by default of each row the one with the greatest score.
    target: Option<Value>,
    /// The right answers, for `permutation_importance`: labels, positions of classes, or numbers.
    targets: Option<Vec<Value>>,
    /// Rows against which is explained; by default what the model declares, else a row of zeros.
    background: Option<Vec<Value>>,
    /// Points of the integral of `integrated_gradients`.
    steps: Option<u64>,
    /// Orders in which the features join for `shapley`.
    samples: Option<u64>,
    /// How often `permutation_importance` lets values change places.
    repeats: Option<u64>,
    /// What everything random follows from.
    seed: Option<u64>,
    /// The part that `occlusion` covers: a size for each dimension of a row.
    window: Option<Vec<u64>>,
    /// How far the part moves.
    stride: Option<Vec<u64>>,
    /// Most contributions of a row.
    top: Option<u64>,
    /// Whether images come with heat maps; they do by default.
    heat_map: Option<bool>,
    /// How long the client waits; 0 for as long as the server allows.
    timeout_ms: Option<u64>,
}

/// The explanations, and what they took.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ExplainResponse {
    /// One for each row; of `permutation_importance` one for all.
    explanations: Vec<OneExplanation>,
    background: Background,
    /// Rows of the model that were evaluated, or as much work.
    evaluations: u64,
}

/// Against what was explained.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Background {
    /// `request`, `model` or `zeros`.
    source: String,
    rows: u64,
}

/// The explanation of a row.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct OneExplanation {
    method: String,
    /// `{"output", "index", "label"}`: what is explained.
    target: Value,
    /// The model's answer.
    answer: Option<f64>,
    /// What the contributions begin at.
    base_value: Option<f64>,
    /// What they end at: the answer; for `tree_shap` the score before its transform.
    value: Option<f64>,
    /// How far base value and contributions together are from the value.
    completeness_error: Option<f64>,
    /// `{"name", "value"}`, of `permutation_importance`.
    measure: Option<Value>,
    /// `{"feature", "value", "contribution"}`, the greatest first; sampled ones with `standard_error`.
    contributions: Option<Vec<Value>>,
    /// By input, for inputs with more than one dimension in a row: contributions in their shape.
    attributions: Option<Value>,
    /// By input, for images: `{"b64"}`, a PNG picture.
    heat_maps: Option<Value>,
}
