//! Queues as clients see them: places that are freed, requests that are refused at once, over HTTP and gRPC.

use ndserve::api::grpc::proto::inference::ModelInferRequest;
use ndserve::api::{Limits, ServerOptions};
use tonic::Code;

use crate::client::{Answer, Client, request, request_of};
use crate::grpc;
use crate::models::{self, scaled};
use crate::server::Server;

/// Serves a model `m`, a factor of 2. With a delay and a preferred size, what is smaller waits in the queue.
fn waiting(settings: &str) -> Server {
    let folder = models::new_folder();
    scaled(&folder.join("m"), "1", 2.0);
    let wait = "max_batch_rows = 4\npreferred_batch_rows = [4]\nmax_delay_ms = 600000\n";
    std::fs::write(folder.join("m/model.toml"), format!("{wait}{settings}")).unwrap();
    Server::start(folder, Limits::default(), ServerOptions::default())
}

/// A request of `m` over gRPC.
fn call(rows: usize) -> ModelInferRequest {
    let bytes: Vec<u8> = (0..rows * 2).flat_map(|_| 1_f32.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![grpc::input("x", "FP32", &[rows as i64, 2])],
        raw_input_contents: vec![bytes.into()],
        ..Default::default()
    }
}

/// Waits until so many requests of `m` are in the queue.
async fn queued(server: &Server, count: usize) {
    while server.metric(r#"ndserve_queue_depth{model="m",version="1"}"#) != count as f64 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_over_grpc_and_a_cancelled_call_frees_its_place() {
    let server = waiting("queue_limit = 1");
    let mut client = grpc::client(server.address).await;
    let mut other = client.clone();
    let first = tokio::spawn(async move { other.model_infer(call(1)).await });
    queued(&server, 1).await;

    let full = client.model_infer(call(1)).await.unwrap_err();
    assert_eq!(full.code(), Code::Unavailable);
    assert!(full.message().contains("Exceeds maximum queue size"), "{full:?}");
    assert_eq!(server.metric(r#"ndserve_requests_refused_total{model="m",version="1",reason="full"}"#), 1.0);

    // What is dropped is reset on the wire.
    first.abort();
    queued(&server, 0).await;
    assert_eq!(server.metric(r#"ndserve_requests_cancelled_total{model="m",version="1"}"#), 1.0);
    let answer = client.model_infer(call(4)).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0][..4], 2_f32.to_le_bytes(), "a full batch goes at once");
    assert_eq!(server.metric("ndserve_batch_rows_count{model=\"m\",version=\"1\"}"), 1.0, "the cancelled one was never run");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_stream_whose_call_is_cancelled_frees_its_place() {
    let server = waiting("queue_limit = 2");
    let mut client = grpc::client(server.address).await;
    let requests = futures_util::stream::iter([call(1), call(1)]);
    let mut other = client.clone();
    let stream = tokio::spawn(async move {
        use futures_util::StreamExt as _;
        let mut answers = other.model_stream_infer(requests).await.unwrap().into_inner();
        answers.next().await
    });
    queued(&server, 2).await;
    stream.abort();
    queued(&server, 0).await;
    assert!(client.model_infer(call(4)).await.is_ok());
}

/// Posts rows of `m` as bytes.
fn post(server: &Server, rows: usize, parameters: &str, headers: &[&str]) -> Answer {
    Client::connect(server.address).send(&zeros("m", ("x", &[rows, 2]), parameters, headers))
}

/// A request of a model whose one input is all zeros, as bytes.
fn zeros(model: &str, (name, shape): (&str, &[usize]), parameters: &str, headers: &[&str]) -> Vec<u8> {
    let bytes = 4 * shape.iter().product::<usize>();
    let json = format!(
        r#"{{"parameters":{{{parameters}}},"inputs":[{{"name":"{name}","datatype":"FP32","shape":{shape:?},"parameters":{{"binary_data_size":{bytes}}}}}]}}"#
    );
    let head = format!("Inference-Header-Content-Length: {}", json.len());
    let headers: Vec<&str> = headers.iter().copied().chain([head.as_str()]).collect();
    request_of("POST", &format!("/v2/models/{model}/infer"), &headers, &[json.into_bytes(), vec![0; bytes]].concat())
}

#[test]
fn a_deadline_is_given_by_a_header_too() {
    let server = waiting("");
    // The batch is not filled, and the delay is ten minutes: the deadline has it begin before, or the timer answers.
    let v1 = request("POST", "/v1/models/m:predict", &["x-envoy-expected-rq-timeout-ms: 30"], r#"{"instances": [[1, 2]]}"#);
    for answer in [
        post(&server, 1, "", &["x-request-timeout-ms: 30"]),
        // The earlier one counts.
        post(&server, 1, r#""timeout":30000"#, &["x-request-timeout-ms: 600000"]),
        post(&server, 1, r#""timeout":600000000"#, &["x-request-timeout-ms: 30"]),
        Client::connect(server.address).send(&v1),
    ] {
        assert!([200, 504].contains(&answer.status), "{answer:?}");
    }
    let wrong = post(&server, 1, "", &["x-request-timeout-ms: soon"]);
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("x-request-timeout-ms is \"soon\" where a whole number of milliseconds is wanted"), "{wrong:?}");
    assert_eq!(post(&server, 4, "", &["x-request-timeout-ms: 0"]).status, 200, "0 is none");
}

/// A request of `digits` with black images.
fn images(rows: usize, parameters: &str) -> Vec<u8> {
    zeros("digits", ("image", &[rows, 1, 8, 8]), parameters, &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_in_time_is_refused_at_once_unless_it_goes_before_the_others() {
    const WAITING: usize = 32;
    const ROWS: usize = 8;
    let folder = models::only(&["digits"]);
    let settings = "max_batch_rows = 40\npreferred_batch_rows = [40]\nmax_delay_ms = 600000\npriority_levels = 2\n";
    std::fs::write(folder.join("digits/model.toml"), settings).unwrap();
    let server = Server::start(folder, Limits::default(), ServerOptions::default());
    let curve = server.repository.get("digits", None).unwrap().handle().unwrap().curve().unwrap();
    let (pass, best) = (curve.time(ROWS).unwrap(), curve.best_rows());
    let ahead = curve.time(best).unwrap().mul_f64(WAITING as f64 / best as f64);
    // Enough for the pass, not for what waits as well.
    let timeout = format!(r#""timeout":{}"#, (pass + ahead / 2).as_micros());

    let mut first = Client::connect(server.address);
    first.write(&images(WAITING, r#""priority":2"#));
    while server.metric(r#"ndserve_queue_depth{model="digits",version="1"}"#) != 1.0 {
        tokio::task::yield_now().await;
    }
    let refused = Client::connect(server.address).send(&images(ROWS, &format!(r#""priority":2,{timeout}"#)));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.error().contains("the deadline cannot be met"), "{refused:?}");
    assert_eq!(server.metric(r#"ndserve_requests_refused_total{model="digits",version="1",reason="late"}"#), 1.0);
    // The urgent one fills the batch. A machine that is busy with other things may still be too slow for it.
    let urgent = Client::connect(server.address).send(&images(ROWS, &format!(r#""priority":1,{timeout}"#)));
    assert!([200, 504].contains(&urgent.status), "{urgent:?}");
    assert_eq!(server.metric(r#"ndserve_requests_refused_total{model="digits",version="1",reason="late"}"#), 1.0);
    // Whether the pass was too slow for it, or it expired before, is not to be seen: then what waits may still wait.
    if urgent.status == 200 {
        assert_eq!(first.read().unwrap().status, 200, "it rode along");
    }
}
