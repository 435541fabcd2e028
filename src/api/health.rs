//! Probes and metrics.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::Shared;
use super::error::Failure;
use super::layers::json;
use super::openapi::{Doc, Routes};
use crate::error::{Error, Kind};

/// The server makes progress.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Live {
    live: bool,
}

/// The server is ready.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ready {
    live: bool,
    ready: bool,
}

/// `/livez`, `/readyz` and `/metrics`.
pub(super) fn routes() -> Routes {
    Routes::new("Health and metrics")
        .get("/livez", live, Doc::new("Whether every queue that has requests makes progress.").json::<Live>())
        .get("/readyz", ready, Doc::new("Whether the models are ready and the server is not going down.").json::<Ready>())
        .get("/metrics", metrics, Doc::new("Counters and histograms in the Prometheus text format.").bytes("text/plain"))
}

/// `{"live":true}`, or 503 with the reason. Open Inference clients read the same answer.
pub(super) async fn live(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    shared.repository.liveness().map_err(|reason| Error::new(Kind::Unavailable, format!("not live: {reason}")))?;
    Ok(json(&Live { live: true })?)
}

/// `{"live":true,"ready":true}`, or 503 with the reason.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    shared.repository.readiness().map_err(|reason| Error::new(Kind::Unavailable, format!("not ready: {reason}")))?;
    Ok(json(&Ready { live: true, ready: true })?)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.text(&shared);
    let mut response = Response::new(Body::from(text));
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
