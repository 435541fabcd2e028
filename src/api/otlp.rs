//! Sending spans away: OTLP 1.x over HTTP/1.1 with protobuf, to a collector beside the server.
//!
//! Spans are gathered for a moment and sent together. A collector that is busy or away is tried again a few times; then the
//! spans are dropped and counted, while the queue in front fills and drops what finds no place. Requests never wait.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::trace::{self, Attribute, Context, SpanKind, Tracer};

/// The schema of OTLP, as published.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated from the schema")]
#[doc(hidden)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/otlp.rs"));
    pub use opentelemetry::proto::{collector, common, resource, trace};
}

use proto::collector::trace::v1::ExportTraceServiceRequest;
use proto::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use proto::resource::v1::Resource;
use proto::trace::v1::span::{Link, SpanKind as Kind};
use proto::trace::v1::status::StatusCode as Code;
use proto::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

/// Most spans of one message, and how long one waits to be filled: the defaults of OpenTelemetry's own exporters, with a
/// shorter wait.
const BATCH_SPANS: usize = 512;
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Waits before a message is tried again.
const RETRY_DELAYS: [Duration; 3] = [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];
/// For name, connection, request and answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Flags of a span and a link: whether its parent's context came from elsewhere is known, and it did.
const REMOTE: u32 = 0x300;
const LOCAL: u32 = 0x100;

/// Where spans are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    authority: String,
    path: String,
}

impl Collector {
    /// From `http://host:port`, with or without the path `/v1/traces`.
    ///
    /// # Errors
    /// If it is no such address. TLS is not spoken to collectors: one runs beside the server and forwards.
    pub fn parse(endpoint: &str) -> Result<Self, String> {
        let wrong = || format!("otlp-endpoint: `{endpoint}` is not an address such as http://collector:4318");
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(format!("otlp-endpoint: `{endpoint}`: TLS is not spoken to collectors; let one beside the server forward"));
            }
            _ => return Err(wrong()),
        }
        let base = uri.path().trim_end_matches('/');
        let path = if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") };
        let port = if authority.port().is_some() { "" } else { ":4318" };
        Ok(Self { authority: format!("{authority}{port}"), path })
    }
}

/// Sends spans until `stop`, and then those that wait.
pub async fn export(
    collector: Collector,
    service: String,
    mut spans: mpsc::Receiver<trace::Span>,
    tracer: Arc<Tracer>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut reachable = true;
    let mut batch = Vec::with_capacity(BATCH_SPANS);
    loop {
        tokio::select! {
            biased;
            () = &mut stop, if !stopping => {
                stopping = true;
                spans.close();
                continue;
            }
            count = spans.recv_many(&mut batch, BATCH_SPANS) => if count == 0 { return },
        }
        if !stopping {
            tokio::select! {
                () = fill(&mut spans, &mut batch) => {}
                () = &mut stop => {
                    stopping = true;
                    spans.close();
                }
            }
        }
        let count = batch.len();
        let body = Bytes::from(encode(batch.drain(..), &service).encode_to_vec());
        let outcome = send(&collector, body, if stopping { &[] } else { &RETRY_DELAYS }).await;
        tracer.sent(count, outcome.is_ok());
        match &outcome {
            Err(error) if reachable => tracing::warn!(collector = collector.authority, %error, "spans could not be sent and are dropped"),
            Ok(()) if !reachable => tracing::info!(collector = collector.authority, "spans are sent again"),
            _ => {}
        }
        reachable = outcome.is_ok();
    }
}

/// Waits for more spans, until the batch is full or the delay is over.
async fn fill(spans: &mut mpsc::Receiver<trace::Span>, batch: &mut Vec<trace::Span>) {
    let end = Instant::now() + BATCH_DELAY;
    while batch.len() < BATCH_SPANS {
        let left = BATCH_SPANS - batch.len();
        match timeout_at(end, spans.recv_many(batch, left)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

async fn send(collector: &Collector, body: Bytes, delays: &[Duration]) -> Result<(), String> {
    let mut delays = delays.iter();
    loop {
        let (error, again) = match timeout(TIMEOUT, post(collector, body.clone())).await {
            Ok(Ok(status)) if status.is_success() => return Ok(()),
            // By the specification these may be tried again, and no other answer.
            Ok(Ok(status)) => (format!("the collector answers {status}"), matches!(status.as_u16(), 429 | 502 | 503 | 504)),
            Ok(Err(error)) => (error, true),
            Err(_) => (format!("no answer within {TIMEOUT:?}"), true),
        };
        match delays.next() {
            Some(delay) if again => sleep(*delay).await,
            _ => return Err(error),
        }
    }
}

async fn post(collector: &Collector, body: Bytes) -> Result<StatusCode, String> {
    let stream = TcpStream::connect(&collector.authority).await.map_err(|error| error.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let mut request = Request::post(&collector.path).body(Full::new(body)).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_str(&collector.authority).map_err(|error| error.to_string())?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answered = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        // Read to the end, so that the collector does not see its connection reset.
        let _ = response.into_body().collect().await;
        Ok(status)
    };
    let (connection, answered) = tokio::join!(connection, answered);
    let _ = connection;
    answered.map_err(|error: hyper::Error| error.to_string())
}

fn encode(spans: impl Iterator<Item = trace::Span>, service: &str) -> ExportTraceServiceRequest {
    let attributes = [("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))];
    let attributes = attributes.map(|(key, value)| attribute(key, Attribute::Text(value.to_owned()))).into();
    let scope = InstrumentationScope { name: "ndserve".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let scope_spans = ScopeSpans { scope: Some(scope), spans: spans.map(span).collect(), ..Default::default() };
    let resource = Resource { attributes, ..Default::default() };
    let resource_spans = ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans], ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn span(span: trace::Span) -> Span {
    let trace::Span { context, parent, state, name, kind, start, end, attributes, links, error } = span;
    let (kind, remote) = match kind {
        SpanKind::Internal => (Kind::Internal, LOCAL),
        SpanKind::Server => (Kind::Server, REMOTE),
    };
    Span {
        trace_id: context.trace.to_vec(),
        span_id: context.span.to_vec(),
        trace_state: state,
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        flags: flags(&context, if parent.is_some() { remote } else { LOCAL }),
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(end),
        attributes: attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        links: links.iter().map(link).collect(),
        status: error.map(|message| Status { message, code: Code::Error.into() }),
        ..Span::default()
    }
}

fn link(to: &Context) -> Link {
    Link { trace_id: to.trace.to_vec(), span_id: to.span.to_vec(), flags: flags(to, LOCAL), ..Link::default() }
}

fn flags(context: &Context, origin: u32) -> u32 {
    u32::from(context.sampled) | origin
}

fn attribute(key: &str, value: Attribute) -> KeyValue {
    let value = match value {
        Attribute::Text(text) => Value::StringValue(text),
        Attribute::Number(number) => Value::IntValue(number),
    };
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added_where_it_is_missing() {
        let parse = |text: &str| Collector::parse(text).map(|Collector { authority, path }| format!("{authority}{path}"));
        assert_eq!(parse("http://collector:4318").unwrap(), "collector:4318/v1/traces");
        assert_eq!(parse("http://collector/").unwrap(), "collector:4318/v1/traces");
        assert_eq!(parse("http://[::1]:1/otlp/v1/traces").unwrap(), "[::1]:1/otlp/v1/traces");
        assert!(parse("https://collector:4318").unwrap_err().contains("TLS is not spoken"));
        for wrong in ["", "collector:4318", "grpc://collector:4317", "http://user:word@collector:4318", "/v1/traces"] {
            assert!(parse(wrong).unwrap_err().contains("is not an address such as"), "{wrong}");
        }
    }

    #[test]
    fn a_span_is_what_the_schema_says() {
        let context = Context::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let at = UNIX_EPOCH + Duration::from_nanos(5);
        let made = trace::Span {
            kind: SpanKind::Server,
            parent: Some([7; 8]),
            links: vec![context],
            error: Some("no".to_owned()),
            attributes: vec![("n", Attribute::Number(-1))],
            ..trace::Span::internal("work", context, None, (at, at + Duration::from_nanos(1)))
        };
        let encoded = span(made);
        assert_eq!((encoded.trace_id[0], &encoded.span_id[..], encoded.parent_span_id), (0x4b, &context.span[..], vec![7; 8]));
        assert_eq!((encoded.start_time_unix_nano, encoded.end_time_unix_nano), (5, 6));
        assert_eq!((encoded.flags, encoded.kind, encoded.links[0].flags), (0x301, 2, 0x101));
        assert_eq!(encoded.status.unwrap().code, 2);
        assert_eq!(encoded.attributes[0].value.as_ref().unwrap().value, Some(Value::IntValue(-1)));
    }
}
