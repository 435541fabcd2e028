//! The spans of a request: `traceparent` in and out, and the records that are made when the answer is there.
//!
//! | span | from | to |
//! |---|---|---|
//! | the request | its head was read | the answer is handed over |
//! | `parse` | the body was read | the tensors are there |
//! | `queue` | the request was queued | its forward pass began |
//! | `compute` | its forward pass began | it ended; links `batch` |
//! | `batch` | the same | the same; a trace of its own, links the requests |
//! | `serialize` | the outputs are there | the answer is written |
//!
//! A call that is a stream has a span until its answer begins. Each of its requests has one below it, `stream_request`, with the
//! same parts.

use std::sync::Arc;
use std::time::Instant;

use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::codes;
use super::layers::Measured;
use super::metrics::Phases;
use super::profile;
use super::route::Route;
use crate::error::Error;
use crate::trace::{Attribute, Context, Pass, Probe, Span, SpanKind, Tracer, WallClock};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The standard lets a state of this length be dropped.
const STATE_BYTES_MAX: usize = 512;

/// The trace that a request belongs to.
#[derive(Debug)]
pub(super) struct Trace {
    context: Context,
    parent: Option<[u8; 8]>,
    state: Option<HeaderValue>,
}

impl Trace {
    /// The trace of the request's `traceparent`, or a new one if there is a tracer.
    pub(super) fn begin(tracer: Option<&Arc<Tracer>>, headers: &HeaderMap) -> Option<Self> {
        let parent = headers.get(TRACEPARENT).and_then(|header| Context::parse(header.as_bytes()));
        let context = match (tracer, &parent) {
            (Some(tracer), parent) => tracer.begin(parent.as_ref()),
            (None, Some(parent)) => parent.child(),
            (None, None) => return None,
        };
        // Without a valid parent its state means nothing.
        let state = parent.and_then(|_| headers.get(TRACESTATE)).filter(|state| state.len() <= STATE_BYTES_MAX).cloned();
        Some(Self { context, parent: parent.map(|parent| parent.span), state })
    }

    /// The trace's id.
    pub(super) fn id(&self) -> String {
        self.context.trace_id()
    }

    /// Tells the client which span its request became.
    pub(super) fn answer(self, headers: &mut HeaderMap) {
        let value = HeaderValue::from_str(&self.context.header()).expect("hexadecimal digits and dashes");
        headers.insert(TRACEPARENT, value);
        if let Some(state) = self.state {
            headers.insert(TRACESTATE, state);
        }
    }
}

/// What the request takes along, if its trace is kept or a profile wanted.
pub(super) fn probe(trace: Option<&Trace>, tracer: Option<&Arc<Tracer>>, profile: bool) -> Option<Traced> {
    let kept = trace.zip(tracer).filter(|(trace, _)| trace.context.sampled);
    if kept.is_none() && !profile {
        return None;
    }
    let parent = kept.and_then(|(trace, _)| trace.parent);
    let state = kept.and_then(|(trace, _)| trace.state.as_ref()?.to_str().ok()).unwrap_or_default().to_owned();
    let probe = Probe::new(kept.map(|(trace, tracer)| (Arc::clone(tracer), trace.context)), profile);
    Some(Traced { probe, parent, state })
}

/// A request that is traced or profiled.
#[derive(Debug)]
pub(super) struct Traced {
    probe: Arc<Probe>,
    parent: Option<[u8; 8]>,
    state: String,
}

impl Traced {
    /// Runs the work on the request.
    pub(super) fn watch<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.probe.watch(work)
    }
}

/// Records the spans of an answered request; adds the profile to its answer.
pub(super) async fn finish(traced: &Traced, route: Route, started: Instant, phases: Option<Phases>, response: Response) -> Response {
    let passes = traced.probe.take_passes();
    if let Some((tracer, context)) = traced.probe.trace() {
        record(tracer, (context, traced), route, (started, Instant::now()), (phases, &passes), &response);
    }
    if traced.probe.wants_profile() && response.status().is_success() {
        return profile::attach(response, &passes).await;
    }
    response
}

/// A call whose requests come by a stream, if its trace is kept.
#[derive(Clone, Debug)]
pub(super) struct StreamTrace {
    tracer: Arc<Tracer>,
    call: Context,
}

impl StreamTrace {
    /// That of the call that this task works on.
    pub(super) fn current() -> Option<Self> {
        let probe = Probe::current()?;
        let (tracer, call) = probe.trace()?;
        Some(Self { tracer: Arc::clone(tracer), call })
    }

    /// Runs the work on one request, and records its spans.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = Result<(T, Measured), Error>>) -> Result<(T, Measured), Error> {
        let (context, started) = (self.call.child(), Instant::now());
        let probe = Probe::new(Some((Arc::clone(&self.tracer), context)), false);
        let outcome = probe.watch(work).await;
        let ended = Instant::now();
        let clock = WallClock::now();
        let failed = |error: &&Error| codes(error.kind()).http.is_server_error();
        self.tracer.record(Span {
            error: outcome.as_ref().err().filter(failed).map(|error| error.kind().name().to_owned()),
            ..Span::internal("stream_request", context, Some(self.call.span), (clock.at(started), clock.at(ended)))
        });
        let phases = outcome.as_ref().ok().map(|(_, measured)| measured.0);
        record_parts(&self.tracer, context, &clock, (started, ended), (phases, &probe.take_passes()));
        outcome
    }
}

fn record(
    tracer: &Tracer,
    (context, traced): (Context, &Traced),
    route: Route,
    (started, ended): (Instant, Instant),
    (phases, passes): (Option<Phases>, &[Pass]),
    response: &Response,
) {
    let clock = WallClock::now();
    let status = response.status();
    tracer.record(Span {
        parent: traced.parent,
        state: traced.state.clone(),
        kind: SpanKind::Server,
        attributes: vec![
            ("http.route", Attribute::Text(route.name().to_owned())),
            ("http.response.status_code", Attribute::Number(status.as_u16().into())),
        ],
        // By the semantic conventions the server's span failed only if the server did.
        error: status.is_server_error().then(|| status.canonical_reason().unwrap_or_default().to_owned()),
        ..Span::internal(route.name(), context, None, (clock.at(started), clock.at(ended)))
    });
    record_parts(tracer, context, &clock, (started, ended), (phases, passes));
}

/// Records what a request was made of, as children of its span. `clock` is the one that the request's own span was told by: by
/// another, read a moment later, a part may seem to end after the whole.
fn record_parts(
    tracer: &Tracer,
    context: Context,
    clock: &WallClock,
    (started, ended): (Instant, Instant),
    (phases, passes): (Option<Phases>, &[Pass]),
) {
    let child = |name, from, to| Span::internal(name, context.child(), Some(context.span), (clock.at(from), clock.at(to)));
    if let (Some(phases), Some(first)) = (phases, passes.first()) {
        tracer.record(child("parse", first.queued.checked_sub(phases.parse).unwrap_or(started).max(started), first.queued));
    }
    for pass in passes {
        let (model, version) = pass.model.clone();
        let attributes = vec![
            ("ndserve.model", Attribute::Text(model)),
            ("ndserve.version", Attribute::Text(version)),
            ("ndserve.batch_rows", Attribute::Number(i64::try_from(pass.rows).unwrap_or(i64::MAX))),
        ];
        let Some((from, to)) = pass.ran else {
            tracer.record(child("queue", pass.queued, ended));
            continue;
        };
        tracer.record(child("queue", pass.queued, from));
        tracer.record(Span { attributes, links: pass.batch.into_iter().collect(), ..child("compute", from, to) });
    }
    if let Some(phases) = phases {
        tracer.record(child("serialize", ended.checked_sub(phases.serialize).unwrap_or(started), ended));
    }
}
