//! What the server counts and measures, in the Prometheus text format.
//!
//! [`METRICS`] is the one list: the families are made from it, `/metrics` shows exactly it, and the documentation is written
//! from it. What each request adds to is kept by thread ([`Sharded`]).
//!
//! To add a family: a row in [`METRICS`], and where it is read: [`server_metrics`] for the server, [`VERSION_ROWS`] for a counter
//! or gauge of each version.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Shared;
use super::route::Route;
use super::sharded::Sharded;
use crate::error::Kind;
use crate::explain::Method;
use crate::resources;
use crate::serve::{FailReason, Handle, ROWS_BUCKETS, Reason, Repository, SECONDS_BUCKETS, ShadowSnapshot, StatsSnapshot, Times};

/// One family of metrics.
#[derive(Debug)]
pub struct Metric {
    /// Its name; the unit is the last part.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $kind:literal $name:literal $labels:tt $help:literal;)*) => {
        $(const $id: Metric = Metric { name: $name, kind: $kind, labels: &$labels, help: $help };)*

        /// Every family.
        pub const METRICS: &[Metric] = &[$($id),*];
    };
}

metrics! {
    REQUESTS = "counter" "ndserve_requests_total" ["route", "status"] "Answered requests by route and HTTP status";
    ERRORS = "counter" "ndserve_errors_total" ["kind"] "Failed requests by kind of error";
    REQUEST = "histogram" "ndserve_request_seconds" ["route"] "From the head of a request until its answer is handed over, reading the body included";
    PHASE = "histogram" "ndserve_phase_seconds" ["model", "version", "phase"] "Time of an answered inference in each phase: parse, queue, compute, serialize";
    IN_FLIGHT = "gauge" "ndserve_requests_in_flight" [] "Requests under way";
    DROPPED = "counter" "ndserve_requests_dropped_total" [] "Requests whose client went away before the answer";
    BATCH_ROWS = "histogram" "ndserve_batch_rows" ["model", "version"] "Rows of each forward pass";
    COMPUTE = "counter" "ndserve_compute_seconds_total" ["model", "version"] "Time of all forward passes";
    INLINE = "counter" "ndserve_inline_passes_total" ["model", "version"] "Forward passes that ran on the thread of their request, without the queue";
    QUEUE = "gauge" "ndserve_queue_depth" ["model", "version"] "Requests that wait for a worker";
    CANCELLED = "counter" "ndserve_requests_cancelled_total" ["model", "version"] "Requests dropped from the queue: the client went away or the deadline passed";
    DISPATCHED = "counter" "ndserve_batches_dispatched_total" ["model", "version", "reason"] "Forward passes by the reason they began then: full, idle, delay, deadline, inline";
    REFUSED = "counter" "ndserve_requests_refused_total" ["model", "version", "reason"] "Requests refused at once: the queue is full, or the deadline cannot be met (late)";
    BATCH_SECONDS = "gauge" "ndserve_batch_seconds" ["model", "version", "rows"] "The batching curve: time of a forward pass of so many rows, as it is known now";
    BATCH_BEST = "gauge" "ndserve_batch_rows_best" ["model", "version"] "Rows beyond which a larger batch brings no more rows per second";
    MODEL = "gauge" "ndserve_model_state" ["model", "version", "state"] "1 for the state that a version is in: loading, ready, failed, unloading, unloaded";
    KEYS = "counter" "ndserve_key_requests_total" ["key", "outcome"] "Requests that brought a known API key with a role that is enough, by its name: admitted, or limited by its rate";
    HANDSHAKES = "counter" "ndserve_tls_handshakes_failed_total" [] "Connections whose TLS handshake failed";
    EXPIRY = "gauge" "ndserve_tls_certificate_expiry_time_seconds" [] "When the server's certificate ends, in seconds since 1970";
    RELOADS = "counter" "ndserve_reloads_failed_total" [] "Changed files of API keys or certificates that were not valid and changed nothing";
    SPANS = "counter" "ndserve_spans_total" ["outcome"] "Spans by what became of them: exported, or dropped because the collector was away or slow";
    STATE = "gauge" "ndserve_server_state" ["state"] "1 for the state that the server is in: starting, ready, degraded, draining";
    LOADS = "counter" "ndserve_model_loads_total" ["model", "outcome"] "Versions that were loaded: ok, or failed and left what served before";
    SHADOW_REQUESTS = "counter" "ndserve_shadow_requests_total" ["model", "label", "outcome"] "Requests of a label with a mirror: compared, failed in the mirror, or skipped because it had too much to do";
    SHADOW_ROWS = "counter" "ndserve_shadow_rows_total" ["model", "label"] "Rows of which both versions named a class";
    SHADOW_DISAGREEMENTS = "counter" "ndserve_shadow_disagreements_total" ["model", "label"] "Rows for which the mirror names another class first";
    SHADOW_DIFFERENCE = "gauge" "ndserve_shadow_difference_max" ["model", "label"] "Largest absolute difference so far between an answer and its mirror's";
    SHADOW_SECONDS = "histogram" "ndserve_shadow_seconds" ["model", "label", "side"] "Time of the compared requests, in what answered (primary) and in the mirror (shadow)";
    EXPLAINED = "counter" "ndserve_explanations_total" ["model", "version", "method"] "Answered requests for explanations by method";
    EXPLAIN_PASSES = "counter" "ndserve_explain_passes_total" ["model", "version"] "Passes of explanations, which are counted nowhere else";
    EXPLAIN_ROWS = "counter" "ndserve_explain_rows_total" ["model", "version"] "Rows of these passes";
    EXPLAIN_SECONDS = "counter" "ndserve_explain_seconds_total" ["model", "version"] "Time of these passes";
    INFO = "gauge" "ndserve_build_info" ["version"] "1; the label is the server's version";
    START = "gauge" "process_start_time_seconds" [] "When the process started, in seconds since 1970";
    RESIDENT = "gauge" "process_resident_memory_bytes" [] "Resident memory of the process";
}

/// The phases of an answered inference.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Phases {
    pub(super) parse: Duration,
    pub(super) queue: Duration,
    pub(super) compute: Duration,
    pub(super) serialize: Duration,
}

/// The names of the phases, in the order of [`OfModel`].
const PHASES: [&str; 4] = ["parse", "queue", "compute", "serialize"];

/// What one thread counted of a route.
#[derive(Clone, Copy, Debug, Default)]
struct RouteCounts {
    /// Answers with status 200.
    ok: u64,
    seconds: Times,
}

/// What one thread measured of a model: a list of its versions, because there are few, with the times of each phase.
type OfModel = Vec<(String, [Times; PHASES.len()])>;

/// What the server counts itself.
#[derive(Debug)]
pub(super) struct Metrics {
    /// By [`Route`].
    routes: Sharded<[RouteCounts; Route::ALL.len()]>,
    /// Answers of a route with another status than 200.
    others: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// By the position in [`Kind::ALL`].
    errors: [AtomicU64; Kind::ALL.len()],
    /// By the model's name.
    phases: Sharded<HashMap<String, OfModel>>,
    started: SystemTime,
    /// Whether the page has Triton's names too.
    triton: bool,
}

impl Metrics {
    pub(super) fn new(triton: bool) -> Self {
        Self {
            routes: Sharded::default(),
            others: Mutex::default(),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            phases: Sharded::default(),
            started: SystemTime::now(),
            triton,
        }
    }

    /// Counts an answered inference.
    pub(super) fn inferred(&self, model: &str, version: &str, &Phases { parse, queue, compute, serialize }: &Phases) {
        self.phases.add(|models| {
            let known = models.get_mut(model).and_then(|of| of.iter_mut().find(|(known, _)| known == version));
            let times = match known {
                Some((_, times)) => times,
                None => {
                    let of = models.entry(model.to_owned()).or_default();
                    of.push((version.to_owned(), Default::default()));
                    &mut of.last_mut().expect("one was pushed").1
                }
            };
            times.iter_mut().zip([parse, queue, compute, serialize]).for_each(|(times, time)| times.add(time));
        });
    }

    /// Counts an answer.
    pub(super) fn answered(&self, route: Route, status: u16, took: Duration) {
        self.routes.add(|routes| {
            routes[route as usize].seconds.add(took);
            routes[route as usize].ok += u64::from(status == 200);
        });
        if status != 200 {
            *self.others.lock().unwrap_or_else(PoisonError::into_inner).entry((route.name(), status)).or_default() += 1;
        }
    }

    /// Counts an error.
    pub(super) fn failed(&self, kind: Kind) {
        let place = Kind::ALL.iter().position(|&known| known == kind).expect("ALL has every kind");
        self.errors[place].fetch_add(1, Relaxed);
    }

    /// Everything in the text format. What others count is read now.
    pub(super) fn text(&self, shared: &Shared) -> String {
        let mut page = Page(String::new());
        self.request_metrics(&mut page);
        self.server_metrics(&mut page, shared);
        let handles: Vec<_> = shared.repository.ready().into_iter().map(|handle| (handle.stats(), handle)).collect();
        repository_metrics(&mut page, &shared.repository, &handles);
        change_metrics(&mut page, &shared.repository);
        shadow_metrics(&mut page, &shared.repository);
        if self.triton {
            triton_page(&mut page, &handles);
        }
        page.0
    }

    fn request_metrics(&self, page: &mut Page) {
        let mut routes = [RouteCounts::default(); Route::ALL.len()];
        self.routes.each(|shard| {
            for (sum, counts) in routes.iter_mut().zip(shard) {
                sum.ok += counts.ok;
                sum.seconds += counts.seconds;
            }
        });
        page.family(&REQUESTS);
        for (route, counts) in Route::ALL.iter().zip(&routes) {
            page.sample(&REQUESTS, "", &[route.name(), "200"], counts.ok as f64);
        }
        for ((route, status), &count) in &*self.others.lock().unwrap_or_else(PoisonError::into_inner) {
            page.sample(&REQUESTS, "", &[route, &status.to_string()], count as f64);
        }
        page.family(&ERRORS);
        for (kind, count) in Kind::ALL.iter().zip(&self.errors) {
            page.sample(&ERRORS, "", &[kind.name()], count.load(Relaxed) as f64);
        }
        page.family(&REQUEST);
        for (route, counts) in Route::ALL.iter().zip(&routes) {
            page.times(&REQUEST, &[route.name()], &counts.seconds);
        }
        page.family(&PHASE);
        let mut sums: BTreeMap<(String, String), [Times; PHASES.len()]> = BTreeMap::new();
        self.phases.each(|models| {
            for (model, version, times) in
                models.iter().flat_map(|(model, of)| of.iter().map(move |(version, times)| (model, version, times)))
            {
                let sums = sums.entry((model.clone(), version.clone())).or_default();
                sums.iter_mut().zip(times).for_each(|(sum, times)| *sum += *times);
            }
        });
        for ((model, version), phases) in &sums {
            for (phase, times) in PHASES.iter().zip(phases) {
                page.times(&PHASE, &[model, version, phase], times);
            }
        }
    }

    fn server_metrics(&self, page: &mut Page, shared: &Shared) {
        let counts = &shared.counts;
        let rows = [
            (&IN_FLIGHT, counts.in_flight.load(Relaxed) as f64),
            (&DROPPED, counts.dropped.load(Relaxed) as f64),
            (&HANDSHAKES, counts.handshakes_failed.load(Relaxed) as f64),
            (&RELOADS, counts.reloads_failed.load(Relaxed) as f64),
            (&START, self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()),
        ];
        for (metric, value) in rows {
            page.family(metric).sample(metric, "", &[], value);
        }
        page.family(&INFO).sample(&INFO, "", &[env!("CARGO_PKG_VERSION")], 1.0);
        page.family(&KEYS);
        if let Some(keys) = shared.access.keys() {
            for key in keys.get().iter() {
                page.sample(&KEYS, "", &[key.name(), "admitted"], key.admitted.load(Relaxed) as f64);
                page.sample(&KEYS, "", &[key.name(), "limited"], key.limited.load(Relaxed) as f64);
            }
        }
        let expiry = shared.tls.as_ref().and_then(|tls| tls.get().expiry);
        page.family(&EXPIRY);
        if let Some(expiry) = expiry.and_then(|expiry| expiry.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            page.sample(&EXPIRY, "", &[], expiry.as_secs_f64());
        }
        page.family(&SPANS);
        if let Some(tracer) = &shared.tracer {
            let (exported, dropped) = tracer.counts();
            page.sample(&SPANS, "", &["exported"], exported as f64).sample(&SPANS, "", &["dropped"], dropped as f64);
        }
        // The system may not tell.
        let bytes = resources::resident_bytes();
        page.family(&RESIDENT);
        if bytes > 0 {
            page.sample(&RESIDENT, "", &[], bytes as f64);
        }
    }
}

/// The counters of every ready version under Triton's names.
fn triton_page(page: &mut Page, handles: &[(StatsSnapshot, Arc<Handle>)]) {
    for (metric, read) in TRITON_ROWS {
        page.family(metric);
        for (stats, handle) in handles {
            page.sample(metric, "", &[handle.name(), handle.version()], read(stats));
        }
    }
    page.family(&TRITON_FAILURE);
    for (stats, handle) in handles {
        for reason in FailReason::ALL {
            page.sample(&TRITON_FAILURE, "", &[handle.name(), handle.version(), reason.name()], stats.failed(reason) as f64);
        }
    }
}

/// A family whose samples have the labels of a version, and where a sample is read.
type Row<T> = (&'static Metric, fn(&T) -> f64);

/// A family with Triton's name; Triton's labels of a model are `model` and `version` too.
const fn triton(name: &'static str, kind: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, labels: &["model", "version"], help }
}

fn micros(time: Duration) -> f64 {
    time.as_micros() as f64
}

/// Triton's counters, each with where it is read. Its units stay: microseconds.
const TRITON_ROWS: &[Row<StatsSnapshot>] = &[
    (&triton("nv_inference_request_success", "counter", "Answered inferences"), |stats| stats.success.count as f64),
    (&triton("nv_inference_count", "counter", "Rows that were answered"), |stats| stats.inference_count as f64),
    (&triton("nv_inference_exec_count", "counter", "Forward passes that did not fail"), |stats| stats.execution_count as f64),
    (&triton("nv_inference_pending_request_count", "gauge", "Requests that wait for a worker"), |stats| stats.waiting as f64),
    (
        &triton("nv_inference_request_duration_us", "counter", "Time of answered inferences, from entering the queue to the answer"),
        |stats| micros(stats.success.time),
    ),
    (&triton("nv_inference_queue_duration_us", "counter", "Time in the queue"), |stats| micros(stats.queue.time)),
    (&triton("nv_inference_compute_input_duration_us", "counter", "Time of gathering inputs"), |stats| micros(stats.compute.input.time)),
    (&triton("nv_inference_compute_infer_duration_us", "counter", "Time of the operators, counted for each request"), |stats| {
        micros(stats.compute.infer.time)
    }),
    (&triton("nv_inference_compute_output_duration_us", "counter", "Time of taking outputs apart"), |stats| {
        micros(stats.compute.output.time)
    }),
];

const TRITON_FAILURE: Metric = Metric {
    name: "nv_inference_request_failure",
    kind: "counter",
    labels: &["model", "version", "reason"],
    help: "Failed inferences by reason: REJECTED, CANCELED, BACKEND, OTHER",
};

/// The families that `triton-metrics` adds.
pub fn triton_metrics() -> impl Iterator<Item = &'static Metric> {
    TRITON_ROWS.iter().map(|(metric, _)| *metric).chain([&TRITON_FAILURE])
}

/// Counters and gauges that each version has.
const VERSION_ROWS: &[Row<StatsSnapshot>] = &[
    (&COMPUTE, |stats| stats.compute_time.as_secs_f64()),
    (&INLINE, |stats| stats.inline as f64),
    (&QUEUE, |stats| stats.waiting as f64),
    (&CANCELLED, |stats| (stats.cancelled + stats.expired) as f64),
    (&EXPLAIN_PASSES, |stats| stats.explain_passes as f64),
    (&EXPLAIN_ROWS, |stats| stats.explain_rows as f64),
    (&EXPLAIN_SECONDS, |stats| stats.explain_time.as_secs_f64()),
];

fn repository_metrics(page: &mut Page, repository: &Repository, handles: &[(StatsSnapshot, Arc<Handle>)]) {
    page.family(&MODEL);
    for model in repository.list() {
        for version in &model.versions {
            page.sample(&MODEL, "", &[&model.name, &version.version, version.state.name()], 1.0);
        }
    }
    page.family(&BATCH_ROWS);
    for (stats, handle) in handles {
        page.histogram(&BATCH_ROWS, &[handle.name(), handle.version()], (&ROWS_BUCKETS, &stats.batches_by_rows), stats.rows as f64);
    }
    for (metric, value) in VERSION_ROWS {
        page.family(metric);
        for (stats, handle) in handles {
            page.sample(metric, "", &[handle.name(), handle.version()], value(stats));
        }
    }
    let curves: Vec<_> = handles.iter().filter_map(|(_, handle)| Some((handle, handle.curve()?))).collect();
    page.family(&BATCH_SECONDS);
    for (handle, curve) in &curves {
        for (rows, time) in curve.points().iter().filter_map(|point| Some((point.rows, point.time?))) {
            page.sample(&BATCH_SECONDS, "", &[handle.name(), handle.version(), &rows.to_string()], time.as_secs_f64());
        }
    }
    page.family(&BATCH_BEST);
    for (handle, curve) in &curves {
        page.sample(&BATCH_BEST, "", &[handle.name(), handle.version()], curve.best_rows() as f64);
    }
    page.family(&DISPATCHED);
    for (stats, handle) in handles {
        for reason in Reason::ALL {
            page.sample(&DISPATCHED, "", &[handle.name(), handle.version(), reason.name()], stats.dispatched(reason) as f64);
        }
    }
    page.family(&EXPLAINED);
    for (stats, handle) in handles {
        for method in Method::ALL {
            page.sample(&EXPLAINED, "", &[handle.name(), handle.version(), method.name()], stats.explained(method) as f64);
        }
    }
    page.family(&REFUSED);
    for (stats, handle) in handles {
        for (reason, count) in [("full", stats.refused_full), ("late", stats.refused_late)] {
            page.sample(&REFUSED, "", &[handle.name(), handle.version(), reason], count as f64);
        }
    }
}

fn change_metrics(page: &mut Page, repository: &Repository) {
    page.family(&STATE).sample(&STATE, "", &[repository.state().name()], 1.0);
    page.family(&LOADS);
    for (model, counts) in repository.load_counts() {
        page.sample(&LOADS, "", &[&model, "ok"], counts.ok as f64);
        page.sample(&LOADS, "", &[&model, "failed"], counts.failed as f64);
    }
}

fn shadow_metrics(page: &mut Page, repository: &Repository) {
    let shadows = repository.shadows();
    page.family(&SHADOW_REQUESTS);
    for (model, label, shadow) in &shadows {
        for (outcome, count) in [("compared", shadow.compared), ("failed", shadow.failed), ("skipped", shadow.skipped)] {
            page.sample(&SHADOW_REQUESTS, "", &[model, label, outcome], count as f64);
        }
    }
    type Read = fn(&ShadowSnapshot) -> f64;
    let values: [(&Metric, Read); 3] = [
        (&SHADOW_ROWS, |shadow| shadow.rows as f64),
        (&SHADOW_DISAGREEMENTS, |shadow| shadow.disagreements as f64),
        (&SHADOW_DIFFERENCE, |shadow| shadow.difference_max),
    ];
    for (metric, value) in values {
        page.family(metric);
        for (model, label, shadow) in &shadows {
            page.sample(metric, "", &[model, label], value(shadow));
        }
    }
    page.family(&SHADOW_SECONDS);
    for (model, label, shadow) in &shadows {
        page.times(&SHADOW_SECONDS, &[model, label, "primary"], &shadow.primary);
        page.times(&SHADOW_SECONDS, &[model, label, "shadow"], &shadow.shadow);
    }
}

/// Text in the exposition format.
struct Page(String);

impl Page {
    fn family(&mut self, metric: &Metric) -> &mut Self {
        let Metric { name, help, kind, .. } = metric;
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self
    }

    fn sample(&mut self, metric: &Metric, suffix: &str, values: &[&str], value: f64) -> &mut Self {
        self.labelled(metric, suffix, values, None, value);
        self
    }

    /// A histogram of times.
    fn times(&mut self, metric: &Metric, values: &[&str], times: &Times) {
        self.histogram(metric, values, (&SECONDS_BUCKETS, &times.counts), times.total.as_secs_f64());
    }

    /// A histogram: the buckets' upper bounds, how many there are in each and beyond the last, and the sum of all.
    fn histogram<B: ToString>(&mut self, metric: &Metric, values: &[&str], (bounds, counts): (&[B], &[u64]), sum: f64) {
        let bounds = bounds.iter().map(B::to_string).chain(["+Inf".to_owned()]);
        let mut below = 0;
        for (bound, count) in bounds.zip(counts) {
            below += count;
            self.labelled(metric, "_bucket", values, Some(&bound), below as f64);
        }
        self.sample(metric, "_sum", values, sum).sample(metric, "_count", values, below as f64);
    }

    fn labelled(&mut self, metric: &Metric, suffix: &str, values: &[&str], bound: Option<&str>, value: f64) {
        let out = &mut self.0;
        let _ = write!(out, "{}{suffix}", metric.name);
        let labels = metric.labels.iter().copied().zip(values.iter().copied()).chain(bound.map(|bound| ("le", bound)));
        for (i, (label, value)) in labels.enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(out, "{}{label}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        let close = if values.is_empty() && bound.is_none() { "" } else { "}" };
        let _ = writeln!(out, "{close} {value}");
    }
}
