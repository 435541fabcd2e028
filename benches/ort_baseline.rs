//! The server that one writes by hand: an axum handler that reads the binary tensors of the Open Inference Protocol, runs the model with
//! ONNX Runtime, and answers in binary. No batching, no limits, no metrics. `scripts/peers/served.py` measures the server beside it.
//!
//! Sessions of one thread, as many as processors, serve many clients best; one session on all of them serves one client of a large model
//! best. The library is loaded when the program runs, from `ORT_DYLIB_PATH`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

/// Bytes of the JSON before the binary tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(serde::Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    inputs: Vec<Input<'a>>,
}

#[derive(serde::Deserialize)]
struct Input<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: Vec<i64>,
    parameters: Parameters,
}

#[derive(serde::Serialize)]
struct Answer<'a> {
    model_name: &'a str,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    outputs: Vec<Output<'a>>,
}

#[derive(serde::Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [i64],
    parameters: Parameters,
}

#[derive(serde::Deserialize, serde::Serialize)]
struct Parameters {
    binary_data_size: usize,
}

struct Model {
    name: String,
    /// Each runs one request at a time: ONNX Runtime's own `Run` is not held to be safe on two threads at once.
    sessions: Vec<Mutex<Session>>,
}

impl Model {
    fn load(name: String, path: &str, sessions: usize, threads: usize) -> ort::Result<Self> {
        let session = || Ok(Mutex::new(Session::builder()?.with_intra_threads(threads)?.commit_from_file(path)?));
        Ok(Self { name, sessions: (0..sessions.max(1)).map(|_| session()).collect::<ort::Result<_>>()? })
    }

    /// A session that is free, or else the first, as soon as it is.
    fn session(&self) -> MutexGuard<'_, Session> {
        let free = self.sessions.iter().find_map(|session| session.try_lock().ok());
        free.unwrap_or_else(|| self.sessions[0].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn infer(&self, json_bytes: usize, body: &[u8]) -> Result<Response, Error> {
        let (json, mut data) = body.split_at_checked(json_bytes).ok_or("the header is longer than the body")?;
        let request: Request = serde_json::from_slice(json)?;
        let mut inputs: Vec<(Cow<str>, SessionInputValue)> = Vec::with_capacity(request.inputs.len());
        for input in request.inputs {
            let (raw, rest) = data.split_at_checked(input.parameters.binary_data_size).ok_or("a tensor is longer than the body")?;
            data = rest;
            // Copied, since what lies behind the JSON begins anywhere.
            let value = match &*input.datatype {
                "FP32" => Tensor::from_array((input.shape, bytemuck::pod_collect_to_vec::<u8, f32>(raw)))?.into(),
                "INT64" => Tensor::from_array((input.shape, bytemuck::pod_collect_to_vec::<u8, i64>(raw)))?.into(),
                other => return Err(format!("datatype {other}").into()),
            };
            inputs.push((input.name, value));
        }
        let mut session = self.session();
        let outputs = session.run(inputs)?;
        let values: Vec<_> = outputs.iter().collect();
        let mut tensors: Vec<(&str, &'static str, &[i64], &[u8])> = Vec::with_capacity(values.len());
        for (name, value) in &values {
            tensors.push(match value.try_extract_tensor::<f32>() {
                Ok((shape, data)) => (name, "FP32", shape, bytemuck::cast_slice(data)),
                Err(_) => {
                    let (shape, data) = value.try_extract_tensor::<i64>()?;
                    (name, "INT64", shape, bytemuck::cast_slice(data))
                }
            });
        }
        let described = tensors.iter().map(|&(name, datatype, shape, data)| {
            let parameters = Parameters { binary_data_size: data.len() };
            Output { name, datatype, shape, parameters }
        });
        let answer = Answer { model_name: &self.name, model_version: "1", id: request.id, outputs: described.collect() };
        let mut bytes = serde_json::to_vec(&answer)?;
        let length = bytes.len();
        bytes.reserve_exact(tensors.iter().map(|(.., data)| data.len()).sum());
        for (.., data) in tensors {
            bytes.extend_from_slice(data);
        }
        let kind = [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (HEADER_LENGTH, length.to_string())];
        Ok((kind, bytes).into_response())
    }
}

async fn infer(State(model): State<Arc<Model>>, headers: HeaderMap, body: Bytes) -> Response {
    let length = headers.get(HEADER_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let answer = match length {
        // On the thread that read the request: with a session for each of them none waits, and another thread costs half as much again.
        Some(length) => model.infer(length, &body),
        None => Err("only binary tensors".into()),
    };
    answer.unwrap_or_else(|error| (StatusCode::BAD_REQUEST, error.to_string()).into_response())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, name, path, sessions, threads] = arguments.as_slice() else {
        return Err("usage: ort_baseline ADDRESS NAME FILE.onnx SESSIONS THREADS".into());
    };
    let address: SocketAddr = address.parse()?;
    let model = Arc::new(Model::load(name.clone(), path, sessions.parse()?, threads.parse()?)?);
    let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| drop(stream.set_nodelay(true)));
    let routes = Router::new().route(&format!("/v2/models/{name}/infer"), post(infer)).with_state(model);
    axum::serve(listener, routes).await?;
    Ok(())
}
