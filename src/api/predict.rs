//! The simple protocol: `/predict`, and the `:predict` of TensorFlow Serving and KServe v1.
//!
//! Rows go in as `{"instances": [...]}` and come out as `{"predictions": [...]}`; whole tensors go in as `{"inputs": …}` and
//! come out as `{"outputs": …}`. No content type is asked for.

mod decode;
mod encode;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, header};

use super::Shared;
use super::body::{self, Payload};
use super::error::Failure;
use super::infer::{self, Given, Parameters, off_thread};
use super::json::Writer;
use super::layers::json_response;
use super::path::{ModelPath, wrong_method};
use crate::error::{Error, Kind};
use crate::serve::{Servable, State as ModelState, VersionStatus};

pub use decode::{Decoded, Form, decode};
pub use encode::encode;

/// `/`, `/predict`, `/v1/models` and below.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(alive))
        .route("/predict", post(predict_default))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model).post(predict))
        .route("/v1/models/{model}/versions/{version}", get(model).post(predict))
}

/// KServe's v1 clients read this as liveness.
async fn alive() -> Response {
    json_response(br#"{"status":"alive"}"#.to_vec())
}

async fn predict_default(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Failure> {
    let handle = shared.repository.default_model()?;
    infer(&shared, &handle, request).await
}

async fn predict(State(shared): State<Arc<Shared>>, mut path: ModelPath, request: Request) -> Result<Response, Failure> {
    match path.take_verb().as_deref() {
        Some("predict") => {
            let handle = shared.repository.get(&path.model, path.version.as_deref())?;
            infer(&shared, &handle, request).await
        }
        Some(verb) => Err(Error::new(Kind::Unsupported, format!("`:{verb}` is not offered; `:predict` is")).into()),
        None => Ok(with_allow(wrong_method(request.method(), request.uri().path()), "GET,HEAD")),
    }
}

fn with_allow(failure: Failure, allow: &'static str) -> Response {
    let mut response = failure.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

async fn infer(shared: &Shared, handle: &Servable, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let bytes = body::read(&parts.headers, body, &shared.limits).await?;
    let started = Instant::now();
    let decoded = {
        let handle = handle.clone();
        // The numbers are in the tensors then: the body's memory is not held while the request waits.
        off_thread(bytes.len(), move || decode(&bytes, handle.signature())).await?
    };
    let Decoded { inputs, overrides, form } = decoded;
    let executed = infer::execute(shared, handle, Given { inputs, overrides }, &Parameters::default(), started).await?;
    let measured = executed.clock();
    let payload = {
        let (handle, non_finite) = (handle.clone(), shared.limits.non_finite);
        body::encode(&parts.headers, &shared.limits, executed.bytes(), move |coding| {
            let (signature, labels) = (handle.signature(), &handle.settings().labels);
            let body = encode(&executed.outputs, signature, labels, form, non_finite)?;
            Ok(Payload::new("application/json", vec![body.into()], coding))
        })
        .await?
    };
    Ok(measured.answer(payload, shared, handle))
}

/// `{"models":[…]}`, every configured one.
async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let mut writer = Writer::default();
    writer.raw("{\"models\":[").list(shared.repository.list(), |writer, model| {
        writer.string(&model.name);
    });
    writer.raw("]}");
    json_response(writer.into_bytes())
}

/// KServe's `{"name","ready"}` with TensorFlow Serving's `model_version_status` beside it; 503 while the model is not ready.
async fn model(State(shared): State<Arc<Shared>>, path: ModelPath, request: Request) -> Result<Response, Failure> {
    let ModelPath { model, version } = &path;
    if version.as_ref().unwrap_or(model).ends_with(":predict") {
        return Ok(with_allow(wrong_method(request.method(), request.uri().path()), "POST"));
    }
    let handle = shared.repository.get(model, version.as_deref())?;
    let list = shared.repository.list();
    let versions = list.iter().filter(|known| known.name == *model).flat_map(|known| &known.versions);
    let mut writer = Writer::default();
    writer.raw("{\"name\":").string(handle.name()).raw(",\"ready\":true,\"model_version_status\":[");
    writer.list(versions.filter(|known| version.as_ref().is_none_or(|version| known.version == *version)), version_status).raw("]}");
    Ok(json_response(writer.into_bytes()))
}

fn version_status(writer: &mut Writer, status: &VersionStatus) {
    let (state, code, message) = match &status.state {
        ModelState::Loading => ("LOADING", "OK", ""),
        ModelState::Ready(_) => ("AVAILABLE", "OK", ""),
        ModelState::Failed(reason) => ("END", "UNKNOWN", reason.as_str()),
        ModelState::Unloading => ("UNLOADING", "OK", ""),
        ModelState::Unloaded => ("END", "OK", ""),
    };
    writer.raw("{\"version\":").string(&status.version).raw(",\"state\":\"").raw(state);
    writer.raw("\",\"status\":{\"error_code\":\"").raw(code).raw("\",\"error_message\":").string(message).raw("}}");
}
