//! Triton's extensions of the Open Inference protocol. Each file has what REST and gRPC share, which is the message of the gRPC
//! protocol or plain values, and the REST routes; the RPCs are in [`grpc`](super::grpc).

pub(super) mod config;
pub(super) mod logging;
pub(super) mod repository;
pub(super) mod statistics;
pub(super) mod trace;

use axum::body::Body;
use http::HeaderMap;
use serde_json::{Map, Value};

use super::layers::json;
use super::openapi::Routes;
use super::{Shared, body};
use crate::error::Error;

/// The extensions that are here complete, by the names that clients look for in the server's metadata.
pub(super) const EXTENSIONS: [&str; 10] = [
    "binary_tensor_data",
    "classification",
    "parameters",
    "statistics",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "logging",
    "trace",
];

/// The heading of these routes in the document.
const TAG: &str = "Triton's extensions";

/// The routes of all extensions.
pub(super) fn routes() -> Routes {
    Routes::new(TAG)
        .merge(statistics::routes())
        .merge(config::routes())
        .merge(repository::routes())
        .merge(logging::routes())
        .merge(trace::routes())
}

/// The object that a body holds; an empty body is an empty object.
async fn object(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Error> {
    let bytes = body::read(headers, body, &shared.limits).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::invalid(format!("the body is no JSON object: {error}")))
}
