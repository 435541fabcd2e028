//! The Open Inference protocol (KServe v2) over REST, with JSON tensors.
//!
//! Not offered yet, and refused by name rather than ignored: binary tensor data, classification, shared memory.

mod decode;
mod encode;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};

use super::error::Failure;
use super::json::Writer;
use super::layers::{Measured, answer, id_of, json_response};
use super::metrics::Phases;
use super::path::ModelPath;
use super::{Shared, body, health};
use crate::engine::{Dim, Port};
use crate::error::Error;
use crate::serve::{InferRequest, State as ModelState};

use decode::Decoded;

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
    writer.raw("{\"name\":\"ndserve\",\"version\":").string(env!("CARGO_PKG_VERSION")).raw(",\"extensions\":[],\"models\":[");
    let versions = shared.repository.list().into_iter().flat_map(|model| {
        let name = model.name;
        model.versions.into_iter().map(move |version| (name.clone(), version))
    });
    writer.list(versions, |writer, (name, version)| {
        writer.raw("{\"name\":").string(&name).raw(",\"version\":").string(&version.version);
        writer.raw(",\"state\":\"").raw(version.state.name()).raw("\"");
        if let ModelState::Failed(reason) = &version.state {
            writer.raw(",\"reason\":").string(reason);
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
    let (signature, settings, file) = (handle.model().signature(), handle.settings(), handle.model().metadata());
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
    if parts.headers.contains_key("inference-header-content-length") {
        let message = "the header Inference-Header-Content-Length announces binary tensor data, which this server does not offer; send JSON \
                       tensors";
        return Err(Error::invalid(message).into());
    }
    let bytes = body::read(&parts.headers, body, shared.limits.max_body_bytes, shared.limits.body_timeout).await?;
    let started = Instant::now();
    let signature = handle.model().signature();
    let Decoded { id, inputs, overrides, outputs, timeout } = decode::decode(&bytes, signature)
        .map_err(|error| Error::new(error.kind(), format!("model `{}`: {}", path.model, error.message())))?;
    let parsed = Instant::now();
    drop(bytes);
    let deadline = timeout.and_then(|timeout| parsed.checked_add(timeout.min(shared.limits.max_timeout)));
    let response = handle.infer(InferRequest { inputs, overrides, deadline }).await?;
    let computed = Instant::now();
    // Clients exist that need an id; the request's is as good as any.
    let id = id.as_deref().unwrap_or_else(|| id_of(&parts.headers));
    let wanted = outputs.iter().map(|&output| (&signature.outputs[output], &response.outputs[output]));
    let body = encode::encode(handle.name(), handle.version(), id, wanted);
    let phases =
        Phases { parse: parsed - started, queue: response.timing.queue, compute: response.timing.compute, serialize: computed.elapsed() };
    Ok(answer(body, Measured { phases, metrics: shared.metrics.model(handle.name(), handle.version()) }))
}
