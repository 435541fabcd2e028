//! The simple protocol: `/predict`, and the `:predict` of TensorFlow Serving and KServe v1.
//!
//! Rows go in as `{"instances": [...]}` and come out as `{"predictions": [...]}`; whole tensors go in as `{"inputs": …}` and
//! come out as `{"outputs": …}`. No content type is asked for. Where KServe and TensorFlow Serving answer the same path
//! differently, the answer has the members of both.

mod cloud_event;
mod decode;
mod encode;
mod messages;
mod metadata;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use axum::BoxError;
use axum::body::{Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use super::body::{self, Payload};
use super::error::Failure;
use super::explain;
use super::infer::{self, Answered, Given, Parameters, off_thread_for};
use super::layers::{Call, json};
use super::openapi::{Doc, Example, Routes};
use super::path::{ModelPath, wrong_method};
use super::{Shared, deadline};
use crate::error::{Error, Kind};
use crate::serve::{self, Servable, State as ModelState};

use cloud_event::{Event, STRUCTURED};
pub(super) use messages::Models;
use messages::{Alive, Metadata, ModelStatus, PredictRequest, PredictResponse, StatusCode, VersionStatus};

pub use decode::{Decoded, Form, decode};
pub(super) use decode::{Inputs, dtypes, signature_name};
pub use encode::encode;

const V1: &str = "KServe v1 and TensorFlow Serving";

/// `/`, `/predict`, `/v1/models` and below.
pub(super) fn routes() -> Routes {
    let alive_doc = Doc::new("Whether the server is alive, for KServe's v1 clients.").json::<Alive>();
    let predict_doc = predicts("A prediction by the only model, or the one of `--default-model`.");
    let mut routes = Routes::new(V1).post("/predict", default, predict_doc).get("/", alive, alive_doc).get(
        "/v1/models",
        models,
        Doc::new("The names of the configured models.").json::<Models>(),
    );
    for path in ["/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"] {
        let about = Doc::new("Whether the model is ready, and the states of its versions.").json::<ModelStatus>();
        let signature = Doc::new("What the model takes and gives.").json::<Metadata>();
        routes = routes
            .get(path, status, about)
            .get(&format!("{path}/metadata"), metadata::metadata, signature)
            .post_as(path, &format!("{path}:predict"), predict, predicts("A prediction."))
            .shown(&format!("{path}:explain"), explain::doc());
    }
    routes
}

fn predicts(summary: &'static str) -> Doc {
    Doc::new(summary)
        .takes::<PredictRequest>()
        .json::<PredictResponse>()
        .takes_bytes(STRUCTURED)
        .bytes(STRUCTURED)
        .request_headers(&[(deadline::TIMEOUT, deadline::ABOUT)])
        .example(Example::Instances)
}

async fn alive() -> Result<Response, Failure> {
    Ok(json(&Alive { status: "alive" })?)
}

async fn default(State(shared): State<Arc<Shared>>, request: Request) -> Result<Answered, Failure> {
    let (head, body) = request.into_parts();
    predict_default(&shared, Call::of(&head), body).await
}

/// A prediction by the default model.
pub(super) async fn predict_default<B>(shared: &Shared, call: Call<'_>, body: B) -> Result<Answered, Failure>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let handle = shared.repository.default_model()?;
    infer(shared, &handle, call, body).await
}

/// A prediction by the model that stands at `model` in the path.
pub(super) async fn predict_of<B>(shared: &Shared, model: Range<usize>, call: Call<'_>, body: B) -> Result<Answered, Failure>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let handle = shared.repository.get(&call.head.uri.path()[model], None)?;
    infer(shared, &handle, call, body).await
}

async fn predict(State(shared): State<Arc<Shared>>, mut path: ModelPath, request: Request) -> Result<Response, Failure> {
    match path.take_verb().as_deref() {
        Some("predict") => {
            let handle = path.find(&shared.repository)?;
            let (head, body) = request.into_parts();
            Ok(infer(&shared, &handle, Call::of(&head), body).await?.into_response())
        }
        Some("explain") => {
            let handle = path.find(&shared.repository)?;
            explain::answer(&shared, &handle, request).await
        }
        Some(verb) => Err(Error::new(Kind::Unsupported, format!("`:{verb}` is not offered; `:predict` and `:explain` are")).into()),
        None => Ok(with_allow(wrong_method(request.method(), request.uri().path()), "GET,HEAD")),
    }
}

fn with_allow(failure: Failure, allow: &'static str) -> Response {
    let mut response = failure.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

async fn infer<B>(shared: &Shared, handle: &Servable, call: Call<'_>, body: B) -> Result<Answered, Failure>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let headers = &call.head.headers;
    let event = Event::of(headers);
    let deadline = deadline::of(headers, Instant::now)?;
    let bytes = body::read(headers, body, &shared.limits).await?;
    let started = Instant::now();
    // The numbers are in the tensors then: the body's memory is not held while the request waits.
    let decoded = off_thread_for(handle, bytes.len(), move |handle| decode(&event.data(bytes)?, handle.signature())).await?;
    let Decoded { inputs, overrides, form } = decoded;
    let mut parameters = Parameters::default();
    parameters.end_by(deadline, started);
    let executed = infer::execute(shared, handle, Given { inputs, overrides }, &parameters, started).await?;
    let clock = executed.clock();
    let payload = {
        let (non_finite, id) = (shared.limits.non_finite, call.id().to_owned());
        body::encode((handle, headers), &shared.limits, executed.bytes(), move |handle, coding| {
            let (signature, labels) = (handle.signature(), &handle.settings().labels);
            let body = encode(&executed.outputs, signature, labels, form, non_finite)?;
            let (content_type, pieces) = event.wrap(body, handle.name(), &id);
            Ok(Payload::new(content_type, pieces, coding))
        })
        .await?
    };
    let mut answered = clock.answer(payload, shared, handle);
    event.answer(&mut answered.response, handle.name(), call.id());
    Ok(answered)
}

/// The names of every configured model; KServe's v2 servers answer with the same.
pub(super) async fn models(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    Ok(json(&Models { models: shared.repository.list().into_iter().map(|model| model.name).collect() })?)
}

/// KServe's `{"name","ready"}` with TensorFlow Serving's `model_version_status` beside it; 503 while the model is not ready.
async fn status(State(shared): State<Arc<Shared>>, path: ModelPath, request: Request) -> Result<Response, Failure> {
    if [":predict", ":explain"].iter().any(|verb| path.last().ends_with(verb)) {
        return Ok(with_allow(wrong_method(request.method(), request.uri().path()), "POST"));
    }
    let handle = path.find(&shared.repository)?;
    let one = path.version.is_some() || path.label.is_some();
    let of_model = shared.repository.list().into_iter().filter(|known| known.name == path.model).flat_map(|known| known.versions);
    let versions = of_model.filter(|known| !one || known.version == handle.version()).map(version_status).collect();
    Ok(json(&ModelStatus { name: handle.name().to_owned(), ready: true, model_version_status: versions })?)
}

fn version_status(status: serve::VersionStatus) -> VersionStatus {
    let (state, error_code, error_message) = match status.state {
        ModelState::Loading => ("LOADING", "OK", String::new()),
        ModelState::Ready(_) => ("AVAILABLE", "OK", String::new()),
        ModelState::Failed(reason) => ("END", "UNKNOWN", reason),
        ModelState::Unloading => ("UNLOADING", "OK", String::new()),
        ModelState::Unloaded => ("END", "OK", String::new()),
    };
    VersionStatus { version: status.version, state, status: StatusCode { error_code, error_message } }
}
