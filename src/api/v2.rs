//! The Open Inference protocol (KServe v2) over REST, with tensors in JSON and in binary.
//!
//! Shared memory is not offered, and refused by name rather than ignored.

mod decode;
mod encode;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};

use super::body::{self, Payload};
use super::error::Failure;
use super::infer::{of_model, off_thread, prepare};
use super::json::Writer;
use super::layers::{id_of, json_response};
use super::path::ModelPath;
use super::{Shared, health};
use crate::engine::{Dim, Port};
use crate::serve::State as ModelState;

use encode::{Encoded, Head, encode};

/// The extensions of the protocol that are here complete, by the names that clients look for.
const EXTENSIONS: [&str; 3] = ["binary_tensor_data", "classification", "parameters"];

/// `/v2` and below.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(health::live))
        .route("/v2/health/ready", get(health::ready))
        .merge(model_routes("/v2/models/{model}"))
        .merge(model_routes("/v2/models/{model}/versions/{version}"))
}

fn model_routes(path: &str) -> Router<Arc<Shared>> {
    Router::new()
        .route(path, get(metadata))
        .route(&format!("{path}/"), get(metadata))
        .route(&format!("{path}/ready"), get(ready))
        .route(&format!("{path}/infer"), post(infer))
}

/// Server metadata. Beyond the protocol, `models` tells the state of every version, and why one failed.
async fn server(State(shared): State<Arc<Shared>>) -> Response {
    let mut writer = Writer::default();
    writer.raw("{\"name\":\"ndserve\",\"version\":").string(env!("CARGO_PKG_VERSION")).raw(",\"extensions\":[");
    writer.list(EXTENSIONS, |writer, extension| {
        writer.string(extension);
    });
    writer.raw("],\"models\":[");
    let versions = shared.repository.list().into_iter().flat_map(|model| {
        let name = model.name;
        model.versions.into_iter().map(move |version| (name.clone(), version))
    });
    writer.list(versions, |writer, (name, version)| {
        writer.raw("{\"name\":").string(&name).raw(",\"version\":").string(&version.version);
        writer.raw(",\"state\":\"").raw(version.state.name()).raw("\"");
        if !version.reason().is_empty() {
            writer.raw(",\"reason\":").string(version.reason());
        }
        writer.raw("}");
    });
    writer.raw("]}");
    json_response(writer.into_bytes())
}

/// `{"name","ready":true}`; 404 for an unknown model, 503 while it is not ready.
async fn ready(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    let handle = shared.repository.get(&path.model, path.version.as_deref())?;
    let mut writer = Writer::default();
    writer.raw("{\"name\":").string(handle.name()).raw(",\"ready\":true}");
    Ok(json_response(writer.into_bytes()))
}

/// Model metadata. A free dimension is -1.
async fn metadata(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    let handle = shared.repository.get(&path.model, path.version.as_deref())?;
    let versions: Vec<String> = shared
        .repository
        .list()
        .into_iter()
        .filter(|model| model.name == path.model)
        .flat_map(|model| model.versions)
        .filter(|version| matches!(version.state, ModelState::Ready(_)))
        .map(|version| version.version)
        .collect();
    let (signature, settings, file) = (handle.signature(), handle.settings(), handle.metadata());
    let mut writer = Writer::default();
    writer.raw("{\"name\":").string(handle.name()).raw(",\"versions\":[").list(versions, |writer, version| {
        writer.string(&version);
    });
    // The name that the protocol's list of platforms has for ONNX; it has none for weights.
    let platform = if file.format == "ONNX" { "onnx_onnxv1" } else { "ndserve_safetensors" };
    writer.raw("],\"platform\":").string(platform).raw(",\"inputs\":[").list(tensors(&signature.inputs), port);
    writer.raw("],\"outputs\":[").list(tensors(&signature.outputs), port).raw("],");
    if !signature.optional.is_empty() {
        // Beside the protocol's words: among `inputs` a client would take it as one that it must give.
        writer.raw("\"optional_inputs\":[").list(&signature.optional, port).raw("],");
    }
    writer.raw("\"properties\":{");
    let description = if settings.description.is_empty() { &file.description } else { &settings.description };
    let labels = settings.labels.join(",");
    let properties = [("description", description), ("labels", &labels), ("producer", &file.producer)];
    writer.list(properties.iter().filter(|(_, value)| !value.is_empty()), |writer, (key, value)| {
        writer.key(key).string(value);
    });
    writer.raw("}}");
    Ok(json_response(writer.into_bytes()))
}

/// The ports that the protocol can name: it has tensors only.
fn tensors(ports: &[Port]) -> impl Iterator<Item = &Port> {
    ports.iter().filter(|port| port.kind.dtype().is_some())
}

fn port(writer: &mut Writer, port: &Port) {
    let datatype = port.kind.dtype().map_or("", |dtype| dtype.oip());
    writer.raw("{\"name\":").string(&port.name).raw(",\"datatype\":\"").raw(datatype).raw("\",\"shape\":[");
    match &port.dims {
        // Not even the rank is known; the protocol has no word for that.
        None => writer.raw("-1"),
        Some(dims) => writer.list(dims, |writer, dim| {
            writer.integer(match dim {
                Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
                Dim::Free(_) => -1,
            });
        }),
    };
    writer.raw("]}");
}

async fn infer(State(shared): State<Arc<Shared>>, path: ModelPath, request: Request) -> Result<Response, Failure> {
    let handle = shared.repository.get(&path.model, path.version.as_deref())?;
    let (parts, body) = request.into_parts();
    let header = decode::header_length(&parts.headers)?;
    let bytes = body::read(&parts.headers, body, &shared.limits).await?;
    let received = Instant::now();
    let prepared = {
        let handle = handle.clone();
        // The body's memory is not held while the request waits.
        off_thread(bytes.len(), move || {
            let envelope = decode::decode(&bytes, header, handle.signature()).map_err(|error| of_model(&handle, error))?;
            prepare(envelope, &handle)
        })
        .await?
    };
    let answer = prepared.run(&shared, &handle, received).await?;
    let clock = answer.clock();
    // Clients exist that need an id; the request's is as good as any.
    let id = answer.id.clone().unwrap_or_else(|| id_of(&parts.headers).to_owned());
    let (non_finite, same) = (shared.limits.non_finite, handle.clone());
    let (json_bytes, payload) = body::encode(&parts.headers, &shared.limits, answer.bytes(), move |coding| {
        let head = Head { model: same.name(), version: same.version(), id: &id };
        let Encoded { json, binary } = encode(head, &answer.outputs, non_finite)?;
        let json_bytes = binary.is_some().then_some(json.len());
        let content_type = if binary.is_some() { "application/octet-stream" } else { "application/json" };
        let pieces = [vec![json.into()], binary.unwrap_or_default()].concat();
        Ok((json_bytes, Payload::new(content_type, pieces, coding)))
    })
    .await?;
    let mut response = clock.answer(payload, &shared, &handle);
    if let Some(json_bytes) = json_bytes {
        response.headers_mut().insert(decode::HEADER_LENGTH, json_bytes.into());
    }
    Ok(response)
}
