//! The ceiling of the HTTP path: hand-written axum handlers that read the tensor of `two-features`, sum it, and answer, over
//! `/predict`, and over the Open Inference Protocol with JSON and with binary tensors.
//! No engine, no limits, no metrics. `scripts/bench_serve.py` measures the server beside it.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

/// Bytes of the JSON before the binary tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

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

#[derive(serde::Deserialize)]
struct InferRequest {
    id: Option<String>,
    inputs: Vec<Input>,
}

#[derive(serde::Deserialize)]
struct Input {
    shape: Vec<usize>,
    data: Option<Vec<f32>>,
}

#[derive(serde::Serialize)]
struct InferAnswer {
    model_name: &'static str,
    model_version: &'static str,
    id: String,
    outputs: [Output; 1],
}

#[derive(serde::Serialize)]
struct Output {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<f32>>,
}

#[derive(serde::Serialize)]
struct Parameters {
    binary_data_size: usize,
}

/// Reads one input, as JSON or binary as the header says, and answers in kind.
async fn infer(headers: HeaderMap, body: Bytes) -> Response {
    answer(&headers, &body).unwrap_or_else(|| StatusCode::BAD_REQUEST.into_response())
}

fn answer(headers: &HeaderMap, body: &[u8]) -> Option<Response> {
    let split = headers.get(HEADER_LENGTH).map(|length| length.to_str().ok()?.parse::<usize>().ok());
    let json = match split {
        Some(length) => body.get(..length?)?,
        None => body,
    };
    let request: InferRequest = serde_json::from_slice(json).ok()?;
    let input = request.inputs.into_iter().next()?;
    let values = match input.data {
        Some(values) => values,
        None => body[json.len()..].chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect(),
    };
    let &[rows, width] = input.shape.as_slice() else { return None };
    let sums: Vec<f32> = values.chunks(width.max(1)).map(|row| row.iter().sum()).collect();
    let binary = split.is_some();
    let output = Output {
        name: "p",
        datatype: "FP32",
        shape: [rows, 1],
        parameters: binary.then_some(Parameters { binary_data_size: 4 * sums.len() }),
        data: (!binary).then(|| sums.clone()),
    };
    let answer = InferAnswer { model_name: "two-features", model_version: "1", id: request.id.unwrap_or_default(), outputs: [output] };
    let mut bytes = serde_json::to_vec(&answer).ok()?;
    if !binary {
        return Some(([(header::CONTENT_TYPE, "application/json")], bytes).into_response());
    }
    let length = bytes.len();
    bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
    let kind = [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (HEADER_LENGTH, length.to_string())];
    Some((kind, bytes).into_response())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: axum_baseline ADDRESS")?.parse()?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    let routes = Router::new().route("/predict", post(predict)).route("/v2/models/two-features/infer", post(infer));
    axum::serve(listener, routes).await?;
    Ok(())
}
