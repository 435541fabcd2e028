//! Traces and profiles: what is known of one request beyond its answer.
//!
//! A [`Probe`] goes with a request that is traced or profiled, as a value of its task: the layer in front of the protocols makes
//! it, the queue and the worker note in it, the layer reads it when the answer is there. A request without a probe costs one
//! look. Spans are records that are made when all times are known, and go through a bounded queue to an exporter: what finds
//! the queue full is dropped and counted, so that nothing waits for a collector.

mod context;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

pub use context::Context;

/// What a span is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A part of the server's work.
    Internal,
    /// The answer to a request.
    Server,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// A piece of work with a beginning and an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its identity.
    pub context: Context,
    /// The span that caused it, in the same trace.
    pub parent: Option<[u8; 8]>,
    /// The `tracestate` that came with the request.
    pub state: String,
    /// What was done.
    pub name: &'static str,
    /// What it is to the others.
    pub kind: SpanKind,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What else is known.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Spans that it has to do with, of any trace.
    pub links: Vec<Context>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Span {
    /// A span of the server's own work.
    pub fn internal(name: &'static str, context: Context, parent: Option<[u8; 8]>, (start, end): (SystemTime, SystemTime)) -> Self {
        let (state, attributes, links) = (String::new(), Vec::new(), Vec::new());
        Self { context, parent, state, name, kind: SpanKind::Internal, start, end, attributes, links, error: None }
    }
}

/// Wall-clock time of moments: the offset as it is now, since the wall clock may be set while the server runs.
#[derive(Clone, Copy, Debug)]
pub struct WallClock(Instant, SystemTime);

impl WallClock {
    /// The offset now.
    pub fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    /// The wall-clock time of a moment.
    pub fn at(&self, moment: Instant) -> SystemTime {
        self.1 - self.0.saturating_duration_since(moment)
    }
}

/// Where spans go.
#[derive(Debug)]
pub struct Tracer {
    queue: mpsc::Sender<Span>,
    /// Of 2⁵⁶ traces that begin here, how many are kept.
    kept: u64,
    dropped: AtomicU64,
    exported: AtomicU64,
}

impl Tracer {
    /// A tracer that keeps the part `ratio` of the traces that begin here, and the end of its queue.
    pub fn new(ratio: f64, queue_limit: usize) -> (Arc<Self>, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(queue_limit);
        let kept = (ratio.clamp(0.0, 1.0) * (1_u64 << 56) as f64) as u64;
        (Arc::new(Self { queue, kept, dropped: AtomicU64::new(0), exported: AtomicU64::new(0) }), spans)
    }

    /// The context of a request's span: what its client decided holds; a trace that begins here is kept by chance.
    pub fn begin(&self, parent: Option<&Context>) -> Context {
        parent.map_or_else(
            || {
                let root = Context::root(false);
                Context { sampled: root.lot() < self.kept, ..root }
            },
            Context::child,
        )
    }

    /// Hands a span over.
    pub fn record(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Counts spans that the collector has, or that did not reach it.
    pub fn sent(&self, spans: usize, arrived: bool) {
        let count = if arrived { &self.exported } else { &self.dropped };
        count.fetch_add(spans as u64, Relaxed);
    }

    /// Spans that the collector has, and those that were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.exported.load(Relaxed), self.dropped.load(Relaxed))
    }
}

/// Time that one operator took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorTime {
    /// The node's name.
    pub node: String,
    /// The operator's name, with its domain if that is not ONNX's own.
    pub operator: String,
    /// Time of all its runs in the forward pass.
    pub time: Duration,
}

/// A forward pass, as one of its requests saw it.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The model and its version.
    pub model: (String, String),
    /// When the request was queued.
    pub queued: Instant,
    /// When the pass began and ended; `None` if it never ran.
    pub ran: Option<(Instant, Instant)>,
    /// Rows of the pass, those of other requests included.
    pub rows: usize,
    /// The span of the batch, if it is kept.
    pub batch: Option<Context>,
    /// Time per operator, if the request asked for it; then no other request shared the pass.
    pub operators: Option<Vec<OperatorTime>>,
}

/// What goes with a request that is traced or profiled.
#[derive(Debug)]
pub struct Probe {
    trace: Option<(Arc<Tracer>, Context)>,
    profile: bool,
    passes: Mutex<Vec<Pass>>,
}

tokio::task_local! {
    static CURRENT: Arc<Probe>;
}

impl Probe {
    /// A probe of a request whose span is `trace`, or that wants a profile.
    pub fn new(trace: Option<(Arc<Tracer>, Context)>, profile: bool) -> Arc<Self> {
        Arc::new(Self { trace, profile, passes: Mutex::default() })
    }

    /// Runs the work on a request, with the probe.
    pub fn watch<F: Future>(self: &Arc<Self>, work: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(Arc::clone(self), work)
    }

    /// The probe of the request that this task works on.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// The request's span, if its trace is kept.
    pub fn trace(&self) -> Option<(&Arc<Tracer>, Context)> {
        self.trace.as_ref().map(|(tracer, context)| (tracer, *context))
    }

    /// Whether the request wants the time per operator.
    pub fn wants_profile(&self) -> bool {
        self.profile
    }

    fn passes(&self) -> MutexGuard<'_, Vec<Pass>> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The forward passes that were noted.
    pub fn take_passes(&self) -> Vec<Pass> {
        std::mem::take(&mut self.passes())
    }
}

/// A forward pass that a request waits for, to be noted when it has run.
#[derive(Clone, Debug)]
pub struct PassNote {
    probe: Arc<Probe>,
    index: usize,
}

impl PassNote {
    /// For the request that this task works on, as it is queued; `None` if it has no probe.
    pub fn current(model: &str, version: &str) -> Option<Self> {
        let probe = Probe::current()?;
        let index = {
            let mut passes = probe.passes();
            let model = (model.to_owned(), version.to_owned());
            passes.push(Pass { model, queued: Instant::now(), ran: None, rows: 0, batch: None, operators: None });
            passes.len() - 1
        };
        Some(Self { probe, index })
    }

    /// Whether the request wants the time per operator.
    pub fn wants_profile(&self) -> bool {
        self.probe.profile
    }

    /// The pass has run, from a moment to another, with so many rows.
    pub fn ran(&self, ran: (Instant, Instant), rows: usize, batch: Option<Context>) {
        // The request may have ended in the meantime: then nobody reads it.
        if let Some(pass) = self.probe.passes().get_mut(self.index) {
            (pass.ran, pass.rows, pass.batch) = (Some(ran), rows, batch);
        }
    }

    /// How long each operator of the pass took, if it was timed.
    pub fn profiled(&self, operators: Option<Vec<OperatorTime>>) {
        if let Some(pass) = self.probe.passes().get_mut(self.index) {
            pass.operators = operators;
        }
    }
}

/// Tells the requests of a batch that it has run, and records its span if the trace of one of them is kept.
pub fn batch_ran<'a>(notes: impl Iterator<Item = &'a PassNote> + Clone, ran: (Instant, Instant), rows: usize) {
    let kept = notes.clone().filter_map(|note| note.probe.trace());
    let links: Vec<Context> = kept.clone().map(|(_, context)| context).collect();
    let batch = kept.last().map(|(tracer, _)| {
        let clock = WallClock::now();
        // A batch belongs to several traces, so it begins one of its own and links theirs.
        let context = Context::root(true);
        let span = Span::internal("batch", context, None, (clock.at(ran.0), clock.at(ran.1)));
        let attributes = vec![("ndserve.batch_rows", Attribute::Number(i64::try_from(rows).unwrap_or(i64::MAX)))];
        tracer.record(Span { attributes, links, ..span });
        context
    });
    notes.for_each(|note| note.ran(ran, rows, batch));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        let now = SystemTime::now();
        Span::internal("work", Context::root(true), None, (now, now))
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (tracer, mut spans) = Tracer::new(1.0, 2);
        for _ in 0..5 {
            tracer.record(span());
        }
        assert_eq!(tracer.counts(), (0, 3));
        assert!(spans.try_recv().is_ok() && spans.try_recv().is_ok() && spans.try_recv().is_err());
    }

    #[test]
    fn a_client_decides_for_its_trace_and_chance_for_new_ones() {
        let (never, _spans) = Tracer::new(0.0, 1);
        let (always, _spans) = Tracer::new(1.0, 1);
        let (half, _spans) = Tracer::new(0.5, 1);
        assert!(always.begin(None).sampled && !never.begin(None).sampled);
        let kept = (0..1000).filter(|_| half.begin(None).sampled).count();
        // Nine standard deviations of a fair coin: 1000 / 2 ± 9 · √1000 / 2.
        assert!((358..=642).contains(&kept), "{kept}");
        for sampled in [true, false] {
            let parent = Context::root(sampled);
            let child = never.begin(Some(&parent));
            assert_eq!((child.trace, child.sampled), (parent.trace, sampled));
        }
    }

    #[tokio::test]
    async fn the_probe_of_a_task_is_found_and_no_other() {
        let probe = Probe::new(None, true);
        assert!(Probe::current().is_none());
        probe.watch(async { assert!(Probe::current().unwrap().wants_profile()) }).await;
        assert!(Probe::current().is_none());
    }

    #[tokio::test]
    async fn a_batch_links_the_requests_that_are_traced() {
        let (tracer, mut spans) = Tracer::new(1.0, 8);
        let traced = || Probe::new(Some((Arc::clone(&tracer), Context::root(true))), false);
        let probes = [traced(), Probe::new(None, true), traced()];
        let mut notes = Vec::new();
        for probe in &probes {
            notes.push(probe.watch(async { PassNote::current("model", "1").unwrap() }).await);
        }
        let now = Instant::now();
        batch_ran(notes.iter(), (now, now), 3);
        let span = spans.try_recv().unwrap();
        assert_eq!((span.name, span.parent), ("batch", None));
        assert_eq!(span.links, [probes[0].trace().unwrap().1, probes[2].trace().unwrap().1]);
        assert!(spans.try_recv().is_err(), "one pass, one span");
        for probe in &probes {
            let passes = probe.take_passes();
            assert_eq!((passes.len(), passes[0].rows, passes[0].batch), (1, 3, Some(span.context)));
        }
        batch_ran(notes[1..2].iter(), (now, now), 1);
        assert!(spans.try_recv().is_err(), "nobody keeps it");
    }
}
