//! Traces through the public API: a collector in this process receives real OTLP over HTTP.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ndserve::api::grpc::proto::inference::ModelInferRequest;
use ndserve::api::otlp_proto::collector::trace::v1::ExportTraceServiceRequest;
use ndserve::api::otlp_proto::common::v1::any_value::Value;
use ndserve::api::otlp_proto::trace::v1::Span;
use ndserve::api::{AppOptions, Collector, ServerOptions, Surface, export};
use ndserve::config::Endpoint;
use ndserve::trace::Tracer;
use prost::Message;

use crate::client::{Client, get, request};
use crate::grpc;
use crate::models;
use crate::server::Server;

const BODY: &str = r#"{"instances": [[1,2]]}"#;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Answers each message with the next of `statuses`, the last one for ever, and passes on what it took.
fn collector(statuses: &'static [u16]) -> (SocketAddr, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, messages) = mpsc::sync_channel(1000);
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            let end = loop {
                if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end + 4;
                }
                let mut chunk = [0; 4096];
                let count = stream.read(&mut chunk).unwrap();
                assert_ne!(count, 0);
                bytes.extend_from_slice(&chunk[..count]);
            };
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
            assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
            let length: usize = head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
            let mut body = bytes.split_off(end);
            let here = body.len();
            body.resize(length, 0);
            stream.read_exact(&mut body[here..]).unwrap();
            let status = statuses[i.min(statuses.len() - 1)];
            stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).unwrap();
            if status == 200 && send.send(ExportTraceServiceRequest::decode(&body[..]).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, messages)
}

/// A server whose spans go to `collector`; its model waits for others, so that its requests go through the queue.
fn start(collector: SocketAddr, ratio: f64, queue_limit: usize) -> (Server, Arc<Tracer>) {
    start_with("max_delay_ms = 100", collector, ratio, queue_limit)
}

/// The same with these settings of its model.
fn start_with(settings: &str, collector: SocketAddr, ratio: f64, queue_limit: usize) -> (Server, Arc<Tracer>) {
    let folder = models::only(&["digits", "two-features"]);
    std::fs::write(folder.join("two-features/model.toml"), settings).unwrap();
    let (tracer, spans) = Tracer::new(ratio, queue_limit);
    let collector = Collector::parse(&format!("http://{collector}")).unwrap();
    let counting = Arc::clone(&tracer);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(export(collector, "a test".to_owned(), spans, counting, std::future::pending()));
    });
    let app = AppOptions { tracer: Some(Arc::clone(&tracer)), ..AppOptions::default() };
    let endpoint = (Endpoint::Http("127.0.0.1:0".parse().unwrap()), Surface::Whole);
    (Server::start_on(folder, app, ServerOptions::default(), vec![endpoint]), tracer)
}

fn ask(address: SocketAddr, traceparent: &str) -> crate::client::Answer {
    let headers = [format!("traceparent: {traceparent}"), "tracestate: vendor=1".to_owned()];
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    Client::connect(address).send(&request("POST", "/v1/models/two-features:predict", &headers, BODY))
}

/// Spans as they arrive, until there are `count`.
fn spans(messages: &mpsc::Receiver<ExportTraceServiceRequest>, count: usize) -> Vec<Span> {
    let mut all = Vec::new();
    while all.len() < count {
        let message = messages.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{count} spans are wanted: {all:#?}"));
        for resource in message.resource_spans {
            let service = &resource.resource.unwrap().attributes[0];
            assert_eq!(service.key, "service.name");
            assert_eq!(service.value.as_ref().unwrap().value, Some(Value::StringValue("a test".to_owned())));
            all.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn requests_that_share_a_pass_are_linked_by_its_span() {
    let (address, messages) = collector(&[200]);
    // The pass begins when both are there, however long that takes.
    let (server, _) = start_with("max_delay_ms = 600000\npreferred_batch_rows = [2]", address, 0.0, 1000);
    let parents = [PARENT.to_owned(), PARENT.replace(TRACE, "0000000000000000000000000000000a")];
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = parents.iter().map(|parent| scope.spawn(|| ask(server.address, parent))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Each has a span of its own, and parse, queue, compute, serialize; the pass has one for both.
    let all = spans(&messages, 11);
    assert_eq!(all.len(), 11, "{all:#?}");
    let named = |name: &str| all.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let batch = named("batch");
    let [batch] = batch[..] else { panic!("one pass, one span: {batch:?}") };
    let requests: Vec<&Span> = all.iter().filter(|span| span.name == "v1_predict").collect();
    let ids: HashSet<_> = requests.iter().map(|span| (&span.trace_id, &span.span_id)).collect();
    assert_eq!(batch.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect::<HashSet<_>>(), ids);
    for (parent, answer) in parents.iter().zip(&answers) {
        let request = requests.iter().find(|span| hex(&span.trace_id) == parent[3..35]).unwrap();
        assert_eq!((hex(&request.parent_span_id), request.kind, &request.trace_state[..]), (parent[36..52].to_owned(), 2, "vendor=1"));
        let out = format!("00-{}-{}-01", hex(&request.trace_id), hex(&request.span_id));
        assert_eq!((answer.header("traceparent"), answer.header("tracestate")), (Some(&*out), Some("vendor=1")));
        let mut before = request.start_time_unix_nano;
        for name in ["parse", "queue", "compute", "serialize"] {
            let part = named(name).into_iter().find(|span| span.parent_span_id == request.span_id).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(part.trace_id, request.trace_id);
            assert!(before <= part.start_time_unix_nano && part.start_time_unix_nano <= part.end_time_unix_nano, "{name}: {all:#?}");
            before = part.end_time_unix_nano;
            if name == "compute" {
                assert_eq!(part.links[0].span_id, batch.span_id);
                let rows = part.attributes.iter().find(|attribute| attribute.key == "ndserve.batch_rows").unwrap();
                assert_eq!(rows.value.as_ref().unwrap().value, Some(Value::IntValue(2)));
            }
        }
        assert!(before <= request.end_time_unix_nano);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_of_a_stream_has_its_spans() {
    use futures_util::{StreamExt as _, stream};
    let (address, messages) = collector(&[200]);
    let (server, _) = start(address, 0.0, 1000);
    let row = ModelInferRequest {
        model_name: "two-features".into(),
        inputs: vec![grpc::input("x", "FP32", &[1, 2])],
        raw_input_contents: vec![vec![0; 8].into()],
        ..Default::default()
    };
    let mut call = tonic::Request::new(stream::iter([row.clone(), row]));
    call.metadata_mut().insert("traceparent", PARENT.parse().unwrap());
    let mut client = grpc::client(server.address).await;
    let mut answers = client.model_stream_infer(call).await.unwrap().into_inner();
    while let Some(answer) = answers.next().await {
        assert_eq!(answer.unwrap().error_message, "");
    }
    // That of the call, for each request its own and its four parts, and one or two passes.
    let all = tokio::task::spawn_blocking(move || spans(&messages, 12)).await.unwrap();
    let [call] = all.iter().filter(|span| span.name == "grpc_infer").collect::<Vec<_>>()[..] else { panic!("one call: {all:#?}") };
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.to_owned(), PARENT[36..52].to_owned()));
    let requests: Vec<&Span> = all.iter().filter(|span| span.name == "stream_request").collect();
    assert_eq!(requests.len(), 2, "{all:#?}");
    let linked: HashSet<_> =
        all.iter().filter(|span| span.name == "batch").flat_map(|span| &span.links).map(|link| &link.span_id).collect();
    for request in requests {
        assert_eq!((&request.trace_id, &request.parent_span_id), (&call.trace_id, &call.span_id));
        assert!(linked.contains(&request.span_id), "a pass links it: {all:#?}");
        let parts: HashSet<&str> = all.iter().filter(|span| span.parent_span_id == request.span_id).map(|span| &*span.name).collect();
        assert_eq!(parts, HashSet::from(["parse", "queue", "compute", "serialize"]));
    }
}

#[test]
fn what_a_client_does_not_keep_makes_no_spans() {
    let (address, messages) = collector(&[200]);
    let (server, _) = start(address, 1.0, 1000);
    let unsampled = PARENT.replace("-01", "-00");
    let answer = ask(server.address, &unsampled);
    let out = answer.header("traceparent").unwrap();
    assert!(out.starts_with(&unsampled[..36]) && out.ends_with("-00") && out != unsampled, "{out}");
    // A broken header is none: the trace begins here, and without its state.
    let fresh = ask(server.address, "00-nonsense");
    assert_eq!((fresh.status, fresh.header("tracestate")), (200, None));
    let trace = fresh.header("traceparent").unwrap()[3..35].to_owned();
    assert!(spans(&messages, 6).iter().all(|span| hex(&span.trace_id) == trace || span.name == "batch"));
    // The server's fault is the span's, the client's is not.
    let wrong = Client::connect(server.address).send(&request("POST", "/predict", &[], "{"));
    assert!((400..500).contains(&wrong.status));
    assert!(spans(&messages, 1)[0].status.is_none());
}

#[test]
fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let (address, messages) = collector(&[503, 200, 400, 200]);
    let (server, tracer) = start(address, 1.0, 1000);
    assert_eq!(get(server.address, "/livez").status, 200);
    assert_eq!(spans(&messages, 1).len(), 1);
    assert_eq!(get(server.address, "/livez").status, 200);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while tracer.counts() != (1, 1) {
        assert!(std::time::Instant::now() < end, "{:?}", tracer.counts());
        std::thread::yield_now();
    }
    let page = get(server.address, "/metrics").body;
    assert!(
        page.contains("ndserve_spans_total{outcome=\"exported\"} 1\n") && page.contains("ndserve_spans_total{outcome=\"dropped\"} 1\n")
    );
}

#[test]
fn without_a_collector_requests_go_on_and_spans_are_counted_as_dropped() {
    // A port that nobody listens at.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (server, tracer) = start(nobody, 1.0, 4);
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while tracer.counts().1 < 10 {
        assert!(std::time::Instant::now() < end, "{:?}", tracer.counts());
        assert_eq!(get(server.address, "/livez").status, 200);
    }
    assert_eq!(tracer.counts().0, 0);
}
