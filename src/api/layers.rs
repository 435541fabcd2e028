//! What every request passes, whatever its protocol. From the outside in:
//!
//! 1. **counts**: accepted, answered, dropped, under way;
//! 2. **request id**: `x-request-id` of the client if it is sane, else a new one; on the answer and in the log;
//! 3. **traces**: `traceparent` in and out, spans of a request whose trace is kept ([`spans`]);
//! 4. **metrics**: duration by route, requests by status, errors by kind, phases by model;
//! 5. **errors**: a failed answer gets its JSON body, or its gRPC status, also the framework's own; it is logged at debug, a bug
//!    at error;
//! 6. **cross-origin requests**: whose page may read the answer;
//! 7. **`Server-Timing`** on answers of a model: parse, queue, compute, serialize;
//! 8. **concurrency limit**: beyond it requests are refused at once, because a queue in front of the model's queue would only
//!    add delay; probes pass;
//! 9. **access**: whether the route is on this listener and the key is enough ([`access`](super::access));
//! 10. **panics** become internal errors;
//! 11. the router, but for the requests that load is made of ([`hot`](super::hot)). Body size and time limits hold where the body is read ([`body`](super::body)), behind the choice of a route.
//!
//! All but the panics are one function and not a tower of middleware: each boxed layer of a router costs an allocation and a
//! copy of the request, and together they would cost more than a small model.

use std::any::Any;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use serde::Serialize;
use tower::{Service as _, ServiceBuilder};
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer};

use super::access::{Guard, Refusal, Surface};
use super::error::{self, Failure, kind_of};
use super::hot::Hot;
use super::metrics::Phases;
use super::route::Route;
use super::spans::{self, Trace, Traced};
use super::{App, Shared, grpc, profile};
use crate::error::{Error, Kind};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Longer ids of clients are replaced: they go into every log line.
const MAX_ID_BYTES: usize = 128;

/// Requests since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: Arc<AtomicU64>,
    pub(super) dropped: AtomicU64,
    pub(super) in_flight: AtomicUsize,
    /// Connections whose TLS handshake failed.
    pub(super) handshakes_failed: AtomicU64,
    /// Changed files of keys or certificates that were not valid.
    pub(super) reloads_failed: AtomicU64,
}

/// Where the time of an answer of a model went; an extension of a response that comes by the router.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured(pub(super) Phases);

/// A request under way. One that is dropped without an answer lost its client.
pub(super) struct InFlight<'a> {
    counts: &'a Counts,
    number: usize,
    answered: bool,
}

impl Counts {
    /// Requests so far, those under way included. Not counted by itself: it would be one more place that all requests write to.
    pub(super) fn accepted(&self) -> u64 {
        self.answered.load(Relaxed) + self.dropped.load(Relaxed) + self.in_flight.load(Relaxed) as u64
    }
}

impl<'a> InFlight<'a> {
    fn enter(counts: &'a Counts) -> Self {
        let number = counts.in_flight.fetch_add(1, Relaxed) + 1;
        Self { counts, number, answered: false }
    }
}

impl InFlight<'_> {
    /// It has its answer.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Shared {
    /// A place for a request that comes by a stream, beside those that [`App::answer`] counts.
    ///
    /// # Errors
    /// `Overloaded` if there is none.
    pub(super) fn admit(&self) -> Result<InFlight<'_>, Error> {
        let under_way = InFlight::enter(&self.counts);
        if under_way.number <= self.limits.max_in_flight {
            return Ok(under_way);
        }
        under_way.answered();
        Err(overloaded(self.limits.max_in_flight))
    }

    /// Counts the failure of a request that came by a stream.
    pub(super) fn refused(&self, error: &Error) {
        self.metrics.failed(error.kind());
        tracing::debug!(kind = error.kind().name(), error = error.message(), "request of a stream refused");
    }
}

fn overloaded(limit: usize) -> Error {
    Error::new(Kind::Overloaded, format!("the server has {limit} requests under way, which is its limit"))
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.counts.in_flight.fetch_sub(1, Relaxed);
        let count = if self.answered { &self.counts.answered } else { &self.counts.dropped };
        count.fetch_add(1, Relaxed);
    }
}

impl App {
    /// Answers a request that came in by a listener with `surface`.
    ///
    /// What most requests need is small, and lies in the future; the rest is in boxes: the future is moved about for every request.
    pub fn answer<B>(&self, surface: Surface, request: Request<B>) -> impl Future<Output = Response> + Send
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        async move {
            let shared = &*self.shared;
            let mut entered = Entered::new(shared, &parts);
            let (mut response, measured) = match entered.gate(shared, surface, &parts) {
                Gate::Shut(response) => (response, None),
                Gate::Open { profile } => {
                    entered.probe = spans::probe(entered.trace.as_ref(), shared.tracer.as_ref(), profile);
                    match (Hot::of(&parts.method, parts.uri.path()), &entered.probe) {
                        (Some(hot), None) => hot.answer(shared, &self.inferences, (&mut parts, &entered.id), body).await,
                        (_, probe) => {
                            let mut request = Request::from_parts(parts, Body::new(body));
                            request.headers_mut().insert(REQUEST_ID, entered.id.clone());
                            (Box::pin(self.route(request, profile, probe.as_ref())).await, None)
                        }
                    }
                }
            };
            let (status, phases) = entered.settle(shared, &mut response, measured);
            if let Some(probe) = &entered.probe {
                response = Box::pin(spans::finish(probe, entered.route, entered.started, phases, response)).await;
            }
            entered.leave(shared, &mut response, status);
            response
        }
    }

    /// The router's answer.
    async fn route(&self, mut request: Request<Body>, profile: bool, probe: Option<&Traced>) -> Response {
        if profile {
            profile::prepare(&mut request);
        }
        // The service is cheap to clone (one reference count) and a call wants `&mut`.
        let answered = self.service.clone().call(request);
        let Ok(response) = match probe {
            Some(probe) => probe.watch(answered).await,
            None => answered.await,
        };
        response.map(Body::new)
    }
}

/// A request as a protocol's handler sees it: its head, and the id that it goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) head: &'a Parts,
    pub(super) id: &'a HeaderValue,
}

impl<'a> Call<'a> {
    /// A request to the router, to which [`App::answer`] gave an id.
    pub(super) fn of(head: &'a Parts) -> Self {
        static NONE: HeaderValue = HeaderValue::from_static("");
        Self { head, id: head.headers.get(&REQUEST_ID).unwrap_or(&NONE) }
    }

    /// The id as text.
    pub(super) fn id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// What is known of a request from its head, until it has its answer.
struct Entered<'a> {
    under_way: InFlight<'a>,
    started: Instant,
    route: Route,
    id: HeaderValue,
    trace: Option<Trace>,
    probe: Option<Traced>,
    origin: Option<HeaderValue>,
    http2: bool,
    /// Whether it is a call of gRPC.
    call: bool,
}

impl<'a> Entered<'a> {
    fn new(shared: &'a Shared, parts: &Parts) -> Self {
        let (started, headers) = (Instant::now(), &parts.headers);
        Self {
            under_way: InFlight::enter(&shared.counts),
            started,
            route: Route::of(parts.uri.path()),
            id: request_id(headers),
            trace: Trace::begin(shared.tracer.as_ref(), headers),
            probe: None,
            origin: shared.access.cors.allowed(headers),
            http2: parts.version == Version::HTTP_2,
            call: grpc::is_grpc(headers),
        }
    }

    fn gate(&self, shared: &Shared, surface: Surface, parts: &Parts) -> Gate {
        let headers = &parts.headers;
        if self.under_way.number > shared.limits.max_in_flight && !self.route.is_probe() {
            return Gate::Shut(Failure::from(overloaded(shared.limits.max_in_flight)).into_response());
        }
        if let Some(response) = shared.access.cors.preflight(&parts.method, headers) {
            return Gate::Shut(response);
        }
        let profile = profile::wanted(&parts.uri);
        if shared.access.is_open(surface) {
            return Gate::Open { profile };
        }
        let guard = Guard::of(parts.uri.path(), profile);
        match shared.access.admit(surface, guard, headers, self.started) {
            Ok(_) => Gate::Open { profile },
            Err(Refusal { error, header }) => {
                let mut response = Failure::from(error).into_response();
                response.headers_mut().extend(header);
                Gate::Shut(response)
            }
        }
    }

    /// Brings an answer into its form; tells its status as an answer over HTTP, and the times of a model's.
    fn settle(&self, shared: &Shared, response: &mut Response, measured: Option<Measured>) -> (StatusCode, Option<Phases>) {
        let failed = if self.call { finish_call(response, shared) } else { finish_failure(response) };
        if let Some(error) = failed {
            note_failure(&error, shared, self.route, &self.id, self.trace.as_ref());
            return (error::codes(error.kind()).http, None);
        }
        let measured = measured.or_else(|| response.extensions_mut().remove());
        let phases = measured.map(|Measured(phases)| phases);
        if let Some(phases) = &phases {
            response.headers_mut().insert(SERVER_TIMING, once(server_timing(phases), self.http2));
        }
        (response.status(), phases)
    }

    /// Adds what every answer has, and counts it.
    fn leave(self, shared: &Shared, response: &mut Response, status: StatusCode) {
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, once(self.id, self.http2));
        if let Some(trace) = self.trace {
            trace.answer(headers);
        }
        if shared.repository.is_draining() && !self.http2 {
            // The client connects anew, elsewhere if the load balancer has noticed, instead of sending its next request into
            // a connection that is about to be closed. HTTP/2 has a message of its own for that.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(origin) = self.origin {
            shared.access.cors.allow(response, origin);
        }
        shared.metrics.answered(self.route, status.as_u16(), self.started.elapsed());
        self.under_way.answered();
    }
}

/// A value that comes but once: over HTTP/2 it is not put into the table of values that may come again, where it would take the
/// place of one that does.
fn once(mut value: HeaderValue, http2: bool) -> HeaderValue {
    value.set_sensitive(http2);
    value
}

/// What happens to a request before the router.
enum Gate {
    /// It goes on.
    Open { profile: bool },
    /// It has its answer.
    Shut(Response),
}

/// The error behind an answer that failed.
fn error_of(response: &mut Response) -> Option<Arc<Error>> {
    let status = response.status();
    if status.is_success() {
        return None;
    }
    Some(match response.extensions_mut().remove::<Failure>() {
        Some(Failure(error)) => error,
        // The framework's own answer.
        None => Arc::new(Error::new(kind_of(status), status.canonical_reason().unwrap_or("the request failed"))),
    })
}

/// Gives a failed answer its body, and tells its error.
fn finish_failure(response: &mut Response) -> Option<Arc<Error>> {
    let error = error_of(response)?;
    let allowed = response.headers().get(header::ALLOW).and_then(|allow| allow.to_str().ok());
    match allowed {
        Some(allowed) if response.status() == StatusCode::METHOD_NOT_ALLOWED => {
            let message = format!("{}; allowed: {allowed}", error.message());
            error::render(response, error.kind(), &message);
        }
        _ => error::render(response, error.kind(), error.message()),
    }
    Some(error)
}

/// The same for a gRPC call, whose failed answers are successes to HTTP.
fn finish_call(response: &mut Response, shared: &Shared) -> Option<Arc<Error>> {
    let refused = error_of(response);
    grpc::settle(response, refused, shared.limits.max_body_bytes)
}

/// Counts and logs a failure.
#[cold]
fn note_failure(error: &Error, shared: &Shared, route: Route, id: &HeaderValue, trace: Option<&Trace>) {
    let kind = error.kind();
    shared.metrics.failed(kind);
    let (id, route) = (id.to_str().unwrap_or_default(), route.name());
    let trace_id = trace.map(|trace| tracing::field::display(trace.id()));
    if kind == Kind::Internal {
        let source = std::error::Error::source(error).map(tracing::field::display);
        tracing::error!(request_id = id, trace_id, route, error = error.message(), source, "request failed");
    } else {
        tracing::debug!(request_id = id, trace_id, route, kind = kind.name(), error = error.message(), "request refused");
    }
}

/// The router behind the layer that turns a handler's panic into an answer.
pub(super) type Service = CatchPanic<Router, fn(Box<dyn Any + Send>) -> Response>;

/// Puts the layer around the router.
pub(super) fn around(router: Router) -> Service {
    ServiceBuilder::new().layer(CatchPanicLayer::custom(panicked as fn(Box<dyn Any + Send>) -> Response)).service(router)
}

/// The client learns that it is a bug, the log learns which.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned());
    Failure::from(Error::internal("the server failed to handle the request", text)).into_response()
}

/// The client's request id, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| (1..=MAX_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    let id = headers.get(&REQUEST_ID).filter(sane);
    id.cloned().unwrap_or_else(|| HeaderValue::from_bytes(&new_id()).expect("hexadecimal digits"))
}

/// Sixteen hexadecimal digits: a counter from a seed, mixed so that ids do not look alike.
fn new_id() -> [u8; 16] {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // A restarted server goes on elsewhere; ids need not be secret.
    static SEED: LazyLock<u64> = LazyLock::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64);
    // The golden ratio in 64 bits: SplitMix64's step, which visits every number once.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = SEED.wrapping_add(NEXT.fetch_add(STEP, Relaxed));
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^= state >> 31;
    std::array::from_fn(|i| b"0123456789abcdef"[(state >> (60 - 4 * i)) as usize & 15])
}

/// The phases in milliseconds with microseconds behind the point.
fn server_timing(phases: &Phases) -> HeaderValue {
    let mut text = Text { bytes: [0; 192], len: 0 };
    text.push(b"parse;dur=").push_millis(phases.parse);
    text.push(b", queue;dur=").push_millis(phases.queue);
    text.push(b", compute;dur=").push_millis(phases.compute);
    text.push(b", serialize;dur=").push_millis(phases.serialize);
    HeaderValue::from_bytes(text.as_bytes()).expect("letters, digits and punctuation")
}

/// A short text under construction: four names and four numbers of at most 24 characters.
struct Text {
    bytes: [u8; 192],
    len: usize,
}

impl Text {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push<const N: usize>(&mut self, part: &[u8; N]) -> &mut Self {
        self.bytes[self.len..self.len + N].copy_from_slice(part);
        self.len += N;
        self
    }

    fn push_millis(&mut self, duration: Duration) {
        let micros = duration.as_micros() as u64;
        let (mut whole, part) = (micros / 1000, micros % 1000);
        let digit = |number: u64| b'0' + (number % 10) as u8;
        let count = whole.checked_ilog10().map_or(1, |log| log as usize + 1);
        for at in (self.len..self.len + count).rev() {
            self.bytes[at] = digit(whole);
            whole /= 10;
        }
        self.len += count;
        self.push(&[b'.', digit(part / 100), digit(part / 10), digit(part)]);
    }
}

/// A message as a JSON answer.
///
/// # Errors
/// `Internal` if it has no JSON.
pub(super) fn json(message: &impl Serialize) -> Result<Response, Error> {
    serde_json::to_vec(message).map(json_response).map_err(|error| Error::internal("the answer could not be written", error))
}

/// A JSON answer.
pub(super) fn json_response(body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_in_milliseconds() {
        for (micros, want) in
            [(0, "0.000"), (7, "0.007"), (999, "0.999"), (1000, "1.000"), (1_234_567, "1234.567"), (u64::MAX, "18446744073709551.615")]
        {
            let mut text = Text { bytes: [0; 192], len: 0 };
            text.push_millis(Duration::from_micros(micros));
            assert_eq!(std::str::from_utf8(text.as_bytes()).unwrap(), want);
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_without_its_message() {
        async fn panics() {
            panic!("secret")
        }
        let mut service = around(Router::new().route("/", axum::routing::get(panics)));
        let Ok(response) = service.call(Request::new(Body::empty())).await;
        let Failure(error) = response.extensions().get::<Failure>().unwrap();
        assert_eq!((error.kind(), error.message()), (Kind::Internal, "the server failed to handle the request"));
        assert_eq!(std::error::Error::source(&**error).unwrap().to_string(), "secret");
    }

    #[test]
    fn ids_are_kept_if_sane_and_made_if_not() {
        let id = |value: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            }
            request_id(&headers)
        };
        assert_eq!(id(Some(b"abc-1")), "abc-1");
        for insane in [None, Some(&b""[..]), Some(b"a b"), Some(b"\xff"), Some(&[b'a'; 129])] {
            let (first, second) = (id(insane), id(insane));
            assert_eq!(first.len(), 16);
            assert_ne!(first, second);
        }
    }
}
