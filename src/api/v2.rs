//! The Open Inference protocol (KServe v2) over REST, with tensors in JSON and in binary.
//!
//! Shared memory is not offered, and refused by name rather than ignored.

mod decode;
mod encode;
mod messages;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use axum::BoxError;
use axum::body::{Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::response::Response;

use super::body::{self, Payload};
use super::error::Failure;
use super::health::{self, Live, Ready};
use super::infer::{Answered, of_model, off_thread_for, prepare};
use super::layers::{Call, json};
use super::openapi::{Doc, Example, Routes};
use super::path::ModelPath;
use super::{Shared, deadline, describe, predict, triton};
use crate::engine::Port;
use crate::serve::{Servable, VersionStatus};

use encode::{Encoded, Head, encode};
use messages::{InferenceRequest, InferenceResponse, ModelMetadata, ModelReady, ServerMetadata, TensorMetadata, VersionState};

const V2: &str = "Open Inference v2";

/// `/v2` and below.
pub(super) fn routes() -> Routes {
    let about = Doc::new("The server: its version, its extensions, and every model with its state.").json::<ServerMetadata>();
    let live = Doc::new("Whether every queue that has requests makes progress.").json::<Live>();
    let ready = Doc::new("Whether the models are ready and the server is not going down.").json::<Ready>();
    Routes::new(V2)
        .get("/v2", server, about)
        .alias("/v2/", server)
        .get("/v2/models", predict::models, Doc::new("The names of the configured models.").json::<predict::Models>())
        .get("/v2/health/live", health::live, live)
        .get("/v2/health/ready", health::ready, ready)
        .merge(model_routes("/v2/models/{model}"))
        .merge(model_routes("/v2/models/{model}/versions/{version}"))
}

fn model_routes(path: &str) -> Routes {
    let infer_doc = Doc::new("An inference: named tensors in JSON, in bytes behind it, or mixed.")
        .takes::<InferenceRequest>()
        .takes_bytes("application/octet-stream")
        .json::<InferenceResponse>()
        .bytes("application/octet-stream")
        .request_headers(&[
            (
                "Inference-Header-Content-Length",
                "How many bytes of the body are JSON; the tensors with `binary_data_size` follow. 0: the body is the one input.",
            ),
            (deadline::TIMEOUT, deadline::ABOUT),
        ])
        .answer_headers(&[("Inference-Header-Content-Length", "How many bytes of the answer are JSON; the binary outputs follow.")])
        .example(Example::Tensors);
    Routes::new(V2)
        .get(path, metadata, Doc::new("What the model takes and gives.").json::<ModelMetadata>())
        .alias(&format!("{path}/"), metadata)
        .get(&format!("{path}/ready"), ready, Doc::new("Whether the model answers.").json::<ModelReady>())
        .post(&format!("{path}/infer"), infer, infer_doc)
}

/// Server metadata. Beyond the protocol, `models` tells the state of every version, and why one failed.
async fn server(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let versions = shared.repository.list().into_iter().flat_map(|model| {
        let name = model.name;
        model.versions.into_iter().map(move |version| (name.clone(), version))
    });
    let state = |(name, version): (String, VersionStatus)| {
        let (state, reason) = (version.state.name(), Some(version.reason().to_owned()).filter(|reason| !reason.is_empty()));
        VersionState { name, version: version.version, state, reason }
    };
    let models = versions.map(state).collect();
    Ok(json(&ServerMetadata { name: "ndserve", version: env!("CARGO_PKG_VERSION"), extensions: triton::EXTENSIONS.to_vec(), models })?)
}

/// 404 for an unknown model, 503 while it is not ready.
async fn ready(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    let handle = path.find(&shared.repository)?;
    Ok(json(&ModelReady { name: handle.name().to_owned(), ready: true })?)
}

/// Model metadata. A free dimension is -1.
async fn metadata(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    let handle = path.find(&shared.repository)?;
    let signature = handle.signature();
    let message = ModelMetadata {
        name: handle.name().to_owned(),
        versions: describe::versions(&shared.repository, &path.model),
        platform: describe::platform(&handle),
        inputs: describe::tensors(&signature.inputs).map(tensor).collect(),
        outputs: describe::tensors(&signature.outputs).map(tensor).collect(),
        optional_inputs: describe::tensors(&signature.optional).map(tensor).collect(),
        properties: describe::properties(&handle).into_iter().collect(),
    };
    Ok(json(&message)?)
}

fn tensor(port: &Port) -> TensorMetadata {
    TensorMetadata { name: port.name.clone(), datatype: describe::datatype(port), shape: describe::shape(port) }
}

async fn infer(State(shared): State<Arc<Shared>>, path: ModelPath, request: Request) -> Result<Answered, Failure> {
    let handle = path.find(&shared.repository)?;
    let (head, body) = request.into_parts();
    infer_by(&shared, &handle, Call::of(&head), body).await
}

/// An inference by the model that stands at `model` in the path.
pub(super) async fn infer_of<B>(shared: &Shared, model: Range<usize>, call: Call<'_>, body: B) -> Result<Answered, Failure>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let handle = shared.repository.get(&call.head.uri.path()[model], None)?;
    infer_by(shared, &handle, call, body).await
}

async fn infer_by<B>(shared: &Shared, handle: &Servable, call: Call<'_>, body: B) -> Result<Answered, Failure>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let headers = &call.head.headers;
    let header = decode::header_length(headers)?;
    let deadline = deadline::of(headers, Instant::now)?;
    let bytes = body::read(headers, body, &shared.limits).await?;
    let received = Instant::now();
    // The body's memory is not held while the request waits.
    let mut prepared = off_thread_for(handle, bytes.len(), move |handle| {
        let mut envelope = decode::decode(&bytes, header, handle.signature()).map_err(|error| of_model(handle, error))?;
        envelope.parameters.end_by(deadline, received);
        prepare(envelope, handle)
    })
    .await?;
    let answer = prepared.run(shared, handle, received).await?;
    let clock = answer.clock();
    // Clients exist that need an id; the request's is as good as any.
    let id = answer.id.clone().unwrap_or_else(|| call.id().to_owned());
    let non_finite = shared.limits.non_finite;
    let (json_bytes, payload) = body::encode((handle, headers), &shared.limits, answer.bytes(), move |handle, coding| {
        let head = Head { model: handle.name(), version: handle.version(), id: &id };
        let Encoded { json, binary } = encode(head, &answer.outputs, non_finite)?;
        let json_bytes = binary.is_some().then_some(json.len());
        let content_type = if binary.is_some() { "application/octet-stream" } else { "application/json" };
        let mut pieces = binary.unwrap_or_default();
        pieces.insert(0, json.into());
        Ok((json_bytes, Payload::new(content_type, pieces, coding)))
    })
    .await?;
    let mut answered = clock.answer(payload, shared, handle);
    if let Some(json_bytes) = json_bytes {
        answered.response.headers_mut().insert(decode::HEADER_LENGTH, json_bytes.into());
    }
    Ok(answered)
}
