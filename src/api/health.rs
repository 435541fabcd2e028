//! Probes and metrics.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use http::{HeaderValue, header};

use super::Shared;
use super::error::Failure;
use super::layers::json_response;
use crate::error::{Error, Kind};

/// `/livez`, `/readyz` and `/metrics`.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/livez", get(live)).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

/// `{"live":true}`, or 503 with the reason. Open Inference clients read the same answer.
pub(super) async fn live(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    shared.repository.liveness().map_err(|reason| Error::new(Kind::Unavailable, format!("not live: {reason}")))?;
    Ok(json_response(br#"{"live":true}"#.to_vec()))
}

/// `{"live":true,"ready":true}`, or 503 with the reason.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    shared.repository.readiness().map_err(|reason| Error::new(Kind::Unavailable, format!("not ready: {reason}")))?;
    Ok(json_response(br#"{"live":true,"ready":true}"#.to_vec()))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.text(&shared);
    let mut response = Response::new(Body::from(text));
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
