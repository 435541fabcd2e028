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
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use serde::Serialize;
use tower::{Service as _, ServiceBuilder};
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer};

use super::access::{Guard, Refusal, Surface};
use super::error::{self, Failure, kind_of};
use super::hot::Hot;
use super::metrics::Phases;
use super::route::Route;
use super::spans::{self, Trace};
use super::{App, Shared, grpc, profile};
use crate::error::{Error, Kind};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Longer ids of clients are replaced: they go into every log line.
const MAX_ID_BYTES: usize = 128;

/// Requests since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) answered: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) in_flight: AtomicUsize,
    /// Connections whose TLS handshake failed.
    pub(super) handshakes_failed: AtomicU64,
    /// Changed files of keys or certificates that were not valid.
    pub(super) reloads_failed: AtomicU64,
}

/// Where the time of an answer of a model went; an extension of the response.
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
    pub async fn answer<B>(&self, surface: Surface, mut request: Request<B>) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let started = Instant::now();
        let shared = &*self.shared;
        let mut under_way = InFlight::enter(&shared.counts);
        let route = Route::of(request.uri().path());
        let id = request_id(request.headers_mut());
        let trace = Trace::begin(shared.tracer.as_ref(), &request);
        let origin = shared.access.cors.allowed(request.headers());
        let http2 = request.version() == Version::HTTP_2;
        let call = grpc::is_grpc(request.headers());

        let gate = gate(shared, surface, &request, route, (under_way.number, started));
        let mut probe = None;
        let mut response = match gate {
            Gate::Shut(response) => response,
            Gate::Open { profile } => {
                probe = spans::probe(trace.as_ref(), shared.tracer.as_ref(), profile);
                if profile {
                    profile::prepare(&mut request);
                }
                match (Hot::of(request.method(), request.uri().path()), &probe) {
                    (Some(hot), None) => hot.answer(shared, &self.inferences, request.map(Body::new)).await,
                    (_, probe) => {
                        // The service is cheap to clone (one reference count) and a call wants `&mut`.
                        let answered = self.service.clone().call(request);
                        let Ok(response) = match probe {
                            Some(probe) => probe.watch(answered).await,
                            None => answered.await,
                        };
                        response.map(Body::new)
                    }
                }
            }
        };

        let mut phases = None;
        let failed = if call { finish_call(&mut response, shared) } else { finish_failure(&mut response) };
        let status = failed.as_ref().map_or(response.status(), |error| error::codes(error.kind()).http);
        if let Some(error) = failed {
            note_failure(&error, shared, route, &id, trace.as_ref());
        } else if let Some(Measured(measured)) = response.extensions_mut().remove() {
            response.headers_mut().insert(SERVER_TIMING, once(server_timing(&measured), http2));
            phases = Some(measured);
        }
        if let Some(probe) = probe {
            response = spans::finish(&probe, route, started, phases, response).await;
        }
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, once(id, http2));
        if let Some(trace) = trace {
            trace.answer(headers);
        }
        if shared.repository.is_draining() && !http2 {
            // The client connects anew, elsewhere if the load balancer has noticed, instead of sending its next request into
            // a connection that is about to be closed. HTTP/2 has a message of its own for that.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(origin) = origin {
            shared.access.cors.allow(&mut response, origin);
        }
        shared.metrics.answered(route, status.as_u16(), started.elapsed());
        under_way.answered = true;
        response
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

fn gate<B>(shared: &Shared, surface: Surface, request: &Request<B>, route: Route, (number, now): (usize, Instant)) -> Gate {
    let headers = request.headers();
    if number > shared.limits.max_in_flight && !route.is_probe() {
        return Gate::Shut(Failure::from(overloaded(shared.limits.max_in_flight)).into_response());
    }
    if let Some(response) = shared.access.cors.preflight(request.method(), headers) {
        return Gate::Shut(response);
    }
    let profile = profile::wanted(request.uri());
    if shared.access.is_open(surface) {
        return Gate::Open { profile };
    }
    let guard = Guard::of(request.uri().path(), profile);
    match shared.access.admit(surface, guard, headers, now) {
        Ok(_) => Gate::Open { profile },
        Err(Refusal { error, header }) => {
            let mut response = Failure::from(error).into_response();
            response.headers_mut().extend(header);
            Gate::Shut(response)
        }
    }
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

/// The client's request id, or a new one, which the handlers then see as if the client had sent it.
fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| (1..=MAX_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    if let Some(id) = headers.get(&REQUEST_ID).filter(sane) {
        return id.clone();
    }
    let id = HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&new_id())).expect("hexadecimal digits");
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// The request id of a request that came through [`App::answer`].
pub(super) fn id_of(headers: &HeaderMap) -> &str {
    headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
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
    let mut text = Vec::with_capacity(96);
    let parts: [(&[u8], Duration); 4] = [
        (b"parse;dur=", phases.parse),
        (b", queue;dur=", phases.queue),
        (b", compute;dur=", phases.compute),
        (b", serialize;dur=", phases.serialize),
    ];
    for (name, duration) in parts {
        text.extend_from_slice(name);
        push_millis(&mut text, duration);
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("letters, digits and punctuation")
}

fn push_millis(text: &mut Vec<u8>, duration: Duration) {
    let micros = duration.as_micros() as u64;
    let mut digits = [b'0'; 24];
    let (mut at, mut rest) = (digits.len(), micros);
    // At least one digit before the three behind the point.
    while rest > 0 || at > digits.len() - 5 {
        at -= 1;
        if at == digits.len() - 4 {
            digits[at] = b'.';
            continue;
        }
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    text.extend_from_slice(&digits[at..]);
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
        for (micros, want) in [(0, "0.000"), (7, "0.007"), (999, "0.999"), (1000, "1.000"), (1_234_567, "1234.567")] {
            let mut text = Vec::new();
            push_millis(&mut text, Duration::from_micros(micros));
            assert_eq!(String::from_utf8(text).unwrap(), want);
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
            let id = request_id(&mut headers);
            assert_eq!(id_of(&headers), id.to_str().unwrap());
            id
        };
        assert_eq!(id(Some(b"abc-1")), "abc-1");
        for insane in [None, Some(&b""[..]), Some(b"a b"), Some(b"\xff"), Some(&[b'a'; 129])] {
            let (first, second) = (id(insane), id(insane));
            assert_eq!(first.len(), 16);
            assert_ne!(first, second);
        }
    }
}
