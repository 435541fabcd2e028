//! The ceiling of the gRPC path: a hand-written tonic handler of `ModelInfer` that reads the raw tensor of `two-features`, sums
//! its rows, and answers. No engine, no limits, no metrics. `scripts/bench_serve.py` measures the server beside it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ndserve::api::grpc::proto::inference::model_infer_response::InferOutputTensor;
use ndserve::api::grpc::proto::inference::{ModelInferRequest, ModelInferResponse};
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

#[derive(Clone)]
struct Infer;

impl UnaryService<ModelInferRequest> for Infer {
    type Response = ModelInferResponse;
    type Future = Ready<Result<Response<ModelInferResponse>, Status>>;

    fn call(&mut self, request: Request<ModelInferRequest>) -> Self::Future {
        ready(answer(request.into_inner()).map(Response::new).ok_or_else(|| Status::invalid_argument("no tensor of two columns")))
    }
}

fn answer(request: ModelInferRequest) -> Option<ModelInferResponse> {
    let (input, bytes) = (request.inputs.first()?, request.raw_input_contents.first()?);
    let &[rows, width] = input.shape.as_slice() else { return None };
    let width = usize::try_from(width).ok()?;
    let values: Vec<f32> = bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
    let sums: Vec<u8> = values.chunks(width.max(1)).flat_map(|row| row.iter().sum::<f32>().to_le_bytes()).collect();
    let output = InferOutputTensor { name: "p".to_owned(), datatype: "FP32".to_owned(), shape: vec![rows, 1], ..Default::default() };
    Some(ModelInferResponse {
        model_name: request.model_name,
        model_version: "1".to_owned(),
        id: request.id,
        outputs: vec![output],
        raw_output_contents: vec![sums.into()],
        ..Default::default()
    })
}

async fn serve(request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
    if request.uri().path() != "/inference.GRPCInferenceService/ModelInfer" {
        return Ok(Status::unimplemented("only ModelInfer").into_http());
    }
    Ok(Grpc::new(tonic_prost::ProstCodec::default()).unary(Infer, request).await)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: tonic_baseline ADDRESS")?.parse()?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service_fn(serve)));
    }
}
