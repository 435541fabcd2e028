//! gRPC through a tonic client: every call, every error by its kind, and answers equal to REST's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ndserve::api::grpc::proto::health::health_check_response::ServingStatus;
use ndserve::api::grpc::proto::health::{HealthCheckRequest, health_client::HealthClient};
use ndserve::api::grpc::proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use ndserve::api::grpc::proto::inference::infer_parameter::ParameterChoice;
use ndserve::api::grpc::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use ndserve::api::grpc::proto::inference::*;
use ndserve::api::{Limits, ServerOptions};
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Status};

use crate::client::{get, post};
use crate::models;
use crate::server::{Server, shared};

/// A connection as tonic wants it.
#[derive(Clone)]
pub(crate) struct Channel(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut sender = self.0.clone();
        Box::pin(async move {
            sender.ready().await?;
            sender.send_request(request).await
        })
    }
}

pub(crate) type Client = GrpcInferenceServiceClient<Channel>;

async fn channel(address: SocketAddr) -> (Channel, Uri) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (Channel(sender), format!("http://{address}").parse().unwrap())
}

/// A client of the server at `address`, on a connection of its own.
pub(crate) async fn client(address: SocketAddr) -> Client {
    let (channel, origin) = channel(address).await;
    GrpcInferenceServiceClient::with_origin(channel, origin)
}

pub(crate) fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

pub(crate) fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: name.into(), datatype: datatype.into(), shape: shape.to_vec(), ..Default::default() }
}

/// A raw request for `two-features`.
fn two_features() -> ModelInferRequest {
    let bytes = [1.0_f32, 2.0, 5.0, 6.0].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    ModelInferRequest {
        model_name: "two-features".into(),
        inputs: vec![input("x", "FP32", &[2, 2])],
        raw_input_contents: vec![bytes.into()],
        ..Default::default()
    }
}

/// The same with typed contents.
fn typed() -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: vec![1.0, 2.0, 5.0, 6.0], ..Default::default() };
    let mut request = ModelInferRequest { raw_input_contents: Vec::new(), ..two_features() };
    request.inputs[0].contents = Some(contents);
    request
}

fn code(result: Result<impl Sized, Status>) -> (Code, String) {
    let status = result.err().expect("a failure");
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn what_rest_tells_grpc_tells_too() {
    let address = shared();
    let mut client = client(address).await;
    assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    // One of the shared server's models is broken.
    assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    for (name, version, ready) in
        [("digits", "", true), ("digits", "1", true), ("digits", "9", false), ("broken", "", false), ("no", "", false)]
    {
        let request = ModelReadyRequest { name: name.into(), version: version.into() };
        assert_eq!(client.model_ready(request).await.unwrap().into_inner().ready, ready, "{name} {version}");
    }
    let server = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    let rest = get(address, "/v2").json();
    assert_eq!((serde_json::json!(server.name), serde_json::json!(server.extensions)), (rest["name"].clone(), rest["extensions"].clone()));
    let request = ModelMetadataRequest { name: "pair".into(), version: String::new() };
    let model = client.model_metadata(request).await.unwrap().into_inner();
    let rest = get(address, "/v2/models/pair").json();
    assert_eq!(
        (serde_json::json!(model.versions), serde_json::json!(model.platform)),
        (rest["versions"].clone(), rest["platform"].clone())
    );
    for (tensor, rest) in model.inputs.iter().zip(rest["inputs"].as_array().unwrap()) {
        assert_eq!(serde_json::json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}), *rest);
    }
    let request = ModelConfigRequest { name: "pair".into(), version: "1".into() };
    let config = client.model_config(request).await.unwrap().into_inner().config.unwrap();
    let rest = get(address, "/v2/models/pair/versions/1/config").json();
    assert_eq!(serde_json::to_value(&config).unwrap(), rest);
    assert_eq!((rest["max_batch_size"].as_i64(), rest["input"][0]["data_type"].as_str()), (Some(4), Some("TYPE_FP32")));
    assert_eq!((rest["input"][0]["dims"].clone(), rest["instance_group"][0]["kind"].as_str()), (serde_json::json!([2]), Some("KIND_CPU")));
    assert!(rest["dynamic_batching"].is_object() && rest["version_policy"]["all"].is_object(), "{rest}");
}

#[tokio::test]
async fn the_answer_has_the_form_of_the_request_and_the_bits_of_rest() {
    let address = shared();
    let mut client = client(address).await;
    let body = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 5, 6]}]}"#;
    let rest = post(address, "/v2/models/two-features/infer", body).json();
    let want: Vec<f32> = rest["outputs"][0]["data"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect();
    let bytes: Vec<u8> = want.iter().flat_map(|value| value.to_le_bytes()).collect();
    let raw = client.model_infer(two_features()).await.unwrap();
    assert!(raw.metadata().contains_key("server-timing") && raw.metadata().contains_key("x-request-id"), "{:?}", raw.metadata());
    let raw = raw.into_inner();
    assert_eq!((raw.model_name.as_str(), raw.model_version.as_str(), raw.id.as_str()), ("two-features", "1", ""));
    assert_eq!(raw.raw_output_contents, [bytes]);
    assert!(raw.outputs[0].contents.is_none() && raw.outputs[0].shape == [2, 1]);
    let answer = client.model_infer(ModelInferRequest { id: "mine".into(), ..typed() }).await.unwrap().into_inner();
    assert_eq!(answer.id, "mine");
    assert!(answer.raw_output_contents.is_empty());
    let contents = answer.outputs[0].contents.as_ref().unwrap();
    assert!(contents.fp32_contents.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{contents:?} {want:?}");
}

#[tokio::test]
async fn every_datatype_goes_through_raw() {
    let mut client = client(shared()).await;
    let mut request = ModelInferRequest { model_name: "types".into(), ..Default::default() };
    for (datatype, _) in models::TYPES {
        let bytes = match datatype {
            "BYTES" => b"\x02\0\0\0ab\0\0\0\0".to_vec(),
            "BOOL" => vec![1, 0],
            "UINT8" | "INT8" => vec![7, 0xff],
            "FP16" | "BF16" | "INT16" | "UINT16" => vec![1, 2, 3, 4],
            "FP32" | "INT32" | "UINT32" => (1..=8).collect(),
            _ => (1..=16).collect(),
        };
        request.inputs.push(input(datatype, datatype, &[1, 2]));
        request.raw_input_contents.push(bytes.into());
    }
    let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
    let given: HashMap<String, &bytes::Bytes> =
        request.inputs.iter().map(|input| format!("{}_out", input.name)).zip(&request.raw_input_contents).collect();
    for (output, bytes) in answer.outputs.iter().zip(&answer.raw_output_contents) {
        assert_eq!(bytes, given[&output.name], "{}", output.name);
    }
    assert_eq!(answer.outputs.len(), models::TYPES.len());
}

#[tokio::test]
async fn half_floats_are_raw_even_in_answer_to_typed_contents() {
    let mut client = client(shared()).await;
    let request = ModelInferRequest {
        model_name: "half".into(),
        inputs: vec![input("h", "FP16", &[1, 2])],
        raw_input_contents: vec![vec![0, 0x3c, 0, 0x40].into()],
        ..Default::default()
    };
    assert_eq!(client.model_infer(request.clone()).await.unwrap().into_inner().raw_output_contents[0][..], [0, 0x3c, 0, 0x40]);
    let mut typed = ModelInferRequest { raw_input_contents: Vec::new(), ..request };
    typed.inputs[0].contents = Some(InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() });
    let (code, message) = code(client.model_infer(typed).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("which has no typed contents"), "{message}");
}

#[tokio::test]
async fn wrong_requests_are_refused_by_their_kind() {
    let mut client = client(shared()).await;
    let both = ModelInferRequest { inputs: typed().inputs, ..two_features() };
    let mut counts = two_features();
    counts.raw_input_contents.push(vec![0].into());
    let with = |change: fn(&mut ModelInferRequest)| {
        let mut request = two_features();
        change(&mut request);
        request
    };
    let named = |name: &str| InferRequestedOutputTensor { name: name.into(), parameters: HashMap::new() };
    for (request, code, part) in [
        (with(|r| r.model_name = "absent".into()), Code::NotFound, "absent"),
        (with(|r| r.model_version = "9".into()), Code::NotFound, "`9`"),
        (with(|r| r.model_name = "broken".into()), Code::Unavailable, "broken"),
        (both, Code::InvalidArgument, "contents field must not be specified when using raw_input_contents for input `x`"),
        (counts, Code::InvalidArgument, "the number of inputs (1) does not match the number of raw_input_contents (2)"),
        (with(|r| r.inputs[0].datatype = "FLOAT".into()), Code::InvalidArgument, "`FLOAT`"),
        (with(|r| r.inputs[0].datatype = "INT32".into()), Code::InvalidArgument, "float32"),
        (with(|r| r.inputs[0].shape = vec![2, -2]), Code::InvalidArgument, "must not be negative"),
        (with(|r| r.inputs[0].shape = vec![4]), Code::InvalidArgument, "wants shape"),
        (with(|r| r.inputs[0].shape = vec![3, 2]), Code::InvalidArgument, "wants 24"),
        (with(|r| r.inputs[0].name = "y".into()), Code::InvalidArgument, "`y`"),
        (with(|r| r.inputs.clear()), Code::InvalidArgument, "does not match"),
        (ModelInferRequest { outputs: vec![named("none")], ..two_features() }, Code::InvalidArgument, "`none`"),
        (
            with(|r| drop(r.parameters.insert("triton_x".into(), parameter(ParameterChoice::BoolParam(true))))),
            Code::InvalidArgument,
            "`triton_x` is reserved",
        ),
        (
            with(|r| {
                drop(r.inputs[0].parameters.insert("shared_memory_region".into(), parameter(ParameterChoice::StringParam("r".into()))))
            }),
            Code::InvalidArgument,
            "shared memory",
        ),
    ] {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{part}: {status:?}");
    }
    let status = client.system_shared_memory_status(SystemSharedMemoryStatusRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("SystemSharedMemoryStatus is not offered"), "{status:?}");
    let mut late = Request::new(two_features());
    late.metadata_mut().insert("grpc-timeout", "1n".parse().unwrap());
    assert_eq!(client.model_infer(late).await.unwrap_err().code(), Code::DeadlineExceeded);
    let mut wrong = Request::new(two_features());
    wrong.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(client.model_infer(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

/// By the code that there is for it clients know to try an older service.
#[tokio::test]
async fn services_and_calls_that_are_not_there_are_unimplemented() {
    let (channel, origin) = channel(shared()).await;
    for (call, part) in
        [("/inference.GRPCInferenceService/Absent", "no such call"), ("/tensorflow.serving.PredictionService/Predict", "no service")]
    {
        let mut client = tonic::client::Grpc::with_origin(channel.clone(), origin.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        let status = client.unary(Request::new(HealthCheckRequest::default()), call.parse().unwrap(), codec).await.unwrap_err();
        assert!(status.code() == Code::Unimplemented && status.message().contains(part), "{status:?}");
    }
}

#[tokio::test]
async fn limits_are_those_of_every_request() {
    let limits = Limits { max_body_bytes: 10_000, ..Limits::default() };
    let server = Server::start(models::only(&["two-features"]), limits, ServerOptions::default());
    let mut client = client(server.address).await;
    let large = ModelInferRequest { raw_input_contents: vec![vec![0; 10_001].into()], ..two_features() };
    let (code_, message) = code(client.model_infer(large.clone()).await);
    assert_eq!(code_, Code::ResourceExhausted);
    assert!(message.contains("10000 bytes (--max-body)"), "{message}");
    // Small on the wire, large when unpacked.
    let mut packed = client.clone().send_compressed(CompressionEncoding::Gzip);
    assert_eq!(code(packed.model_infer(large).await).0, Code::ResourceExhausted);
    assert!(client.model_infer(two_features()).await.is_ok(), "the connection goes on");
    let text = get(server.address, "/metrics").body;
    assert!(text.contains(r#"ndserve_errors_total{kind="too_large"} 2"#), "{text}");
    assert!(text.contains(r#"route="grpc_infer",status="413"} 2"#), "{text}");
    assert!(text.contains(r#"route="grpc_infer",status="200"} 1"#), "{text}");

    let full = Limits { max_in_flight: 0, ..Limits::default() };
    let server = Server::start(models::only(&["two-features"]), full, ServerOptions::default());
    let mut client = super::grpc::client(server.address).await;
    assert_eq!(code(client.model_infer(two_features()).await).0, Code::Unavailable);
    assert!(client.server_live(ServerLiveRequest {}).await.is_ok(), "a probe passes");
}

#[tokio::test]
async fn a_message_that_does_not_arrive_in_time_is_refused() {
    let limits = Limits { body_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = Server::start(models::only(&["two-features"]), limits, ServerOptions::default());
    let (mut channel, _) = channel(server.address).await;
    // A body that never ends and says nothing.
    let body = Body::new(http_body_util::StreamBody::new(stream::pending::<Result<hyper::body::Frame<bytes::Bytes>, Status>>()));
    let request = http::Request::post(format!("http://{}/inference.GRPCInferenceService/ModelInfer", server.address));
    let request = request.header("content-type", "application/grpc").body(body).unwrap();
    let response = tower::Service::call(&mut channel, request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4", "{:?}", response.headers());
}

#[tokio::test]
async fn compressed_messages_are_read_and_answered_in_kind() {
    let client = client(shared()).await;
    let want = client.clone().model_infer(two_features()).await.unwrap().into_inner();
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = client.clone().send_compressed(encoding).accept_compressed(encoding);
        let answer = client.model_infer(two_features()).await.unwrap();
        assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), if encoding == CompressionEncoding::Gzip { "gzip" } else { "deflate" });
        assert_eq!(answer.into_inner(), want);
    }
}

#[tokio::test]
async fn a_stream_answers_in_order_and_goes_on_after_a_failure() {
    let mut client = client(shared()).await;
    let requests = (0..200).map(|count| {
        let model_name = if count == 7 { "absent" } else { "two-features" };
        ModelInferRequest { id: count.to_string(), model_name: model_name.into(), ..two_features() }
    });
    let answers = client.model_stream_infer(stream::iter(requests.collect::<Vec<_>>())).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    assert_eq!(answers.len(), 200);
    let want = client.model_infer(two_features()).await.unwrap().into_inner().raw_output_contents;
    for (count, answer) in answers.iter().enumerate() {
        let response = answer.infer_response.as_ref().unwrap();
        assert_eq!(response.id, count.to_string());
        if count == 7 {
            assert!(answer.error_message.contains("absent") && response.outputs.is_empty());
        } else {
            assert_eq!((answer.error_message.as_str(), &response.raw_output_contents), ("", &want));
        }
    }
}

#[tokio::test]
async fn health_is_told_for_the_server_and_each_model() {
    let address = shared();
    let (channel, origin) = channel(address).await;
    let mut health = HealthClient::with_origin(channel, origin);
    for (service, want) in [
        ("", ServingStatus::NotServing),
        ("inference.GRPCInferenceService", ServingStatus::NotServing),
        ("readiness", ServingStatus::NotServing),
        ("liveness", ServingStatus::Serving),
        ("digits", ServingStatus::Serving),
        ("digits/1", ServingStatus::Serving),
        ("broken", ServingStatus::NotServing),
    ] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), want, "{service}");
    }
    assert_eq!(code(health.check(HealthCheckRequest { service: "absent".into() }).await).0, Code::NotFound);
    let mut watch = health.watch(HealthCheckRequest { service: "absent".into() }).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn calls_that_would_last_for_ever_end_when_the_server_stops() {
    let mut server = Server::start(models::only(&["two-features"]), Limits::default(), ServerOptions::default());
    let mut client = client(server.address).await;
    let (channel, origin) = channel(server.address).await;
    let mut health = HealthClient::with_origin(channel, origin);
    let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    // A stream whose client has nothing more to say and does not say so.
    let requests = stream::iter([two_features()]).chain(stream::pending());
    let mut answers = client.model_stream_infer(requests).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().is_ok());
    server.repository.start_draining();
    assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    server.begin_stop();
    assert!(watch.next().await.is_none());
    assert!(answers.next().await.is_none());
    drop((client, health));
    let stats = tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
    assert_eq!(stats.dropped, 0, "{stats:?}");
}

#[tokio::test]
async fn the_schema_can_be_asked_for() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};
    let (channel, origin) = channel(shared()).await;
    let mut client = ServerReflectionClient::with_origin(channel, origin);
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(MessageRequest::ListServices(String::new())) };
    let mut answers = client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.next().await.unwrap().unwrap().message_response else { panic!() };
    let names: Vec<String> = list.service.into_iter().map(|ServiceResponse { name }| name).collect();
    assert!(names.contains(&"inference.GRPCInferenceService".to_owned()), "{names:?}");
}
