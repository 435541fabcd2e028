//! The ceiling of the HTTP path: a hand-written axum handler that parses the JSON of `two-features`, sums it, and answers.
//! No engine, no limits, no metrics. `scripts/bench_serve.py` measures the server beside it.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

#[derive(serde::Deserialize)]
struct Request {
    instances: Vec<Vec<f32>>,
}

#[derive(serde::Serialize)]
struct Answer {
    predictions: Vec<[f32; 1]>,
}

async fn predict(body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Request>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let predictions = request.instances.iter().map(|row| [row.iter().sum()]).collect();
    let Ok(body) = serde_json::to_vec(&Answer { predictions }) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: axum_baseline ADDRESS")?.parse()?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, Router::new().route("/predict", post(predict))).await?;
    Ok(())
}
