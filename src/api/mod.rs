//! The protocols: the only place that knows HTTP and gRPC.
//!
//! A protocol is one file with `routes()`, merged in [`App::new`], which has the routes' descriptions for OpenAPI too; it turns a body into an envelope and the answer into a body,
//! with the one path of `infer` in between. What is common to all (limits, request ids, metrics, errors) is in `layers`;
//! nothing outside [`error`] knows a status code.

pub mod access;
mod again;
mod body;
mod coding;
mod connection;
mod deadline;
mod describe;
pub mod error;
pub mod explain;
pub mod grpc;
mod health;
mod hot;
mod infer;
pub mod json;
mod labels;
mod layers;
mod listen;
mod metrics;
mod openapi;
mod otlp;
mod path;
pub mod predict;
mod profile;
mod reload;
mod rest;
mod route;
mod server;
mod sharded;
mod spans;
mod streams;
mod tls;
mod triton;
mod v2;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::NonFinite;
use crate::serve::Repository;
use crate::trace::Tracer;

pub use access::{Access, Surface};
pub use describe::described;
pub use infer::raw::{decode as decode_binary, encode as encode_binary};
pub use listen::{Listener, Listeners};
pub use metrics::{METRICS, Metric, triton_metrics};
pub use otlp::{Collector, export, proto as otlp_proto};
pub use reload::{Change, Watched};
pub use route::Route;
pub use server::{ServerOptions, Stats, serve};
pub use tls::{Tls, TlsFiles, open as open_tls};

/// Limits of one request, and how it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a body.
    pub max_body_bytes: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Most requests under way; more are refused at once, probes excepted.
    pub max_in_flight: usize,
    /// Longest deadline that a request may set for itself; more is cut to it.
    pub max_timeout: Duration,
    /// Most rows that one explanation may evaluate, where the model does not say.
    pub max_evaluations: usize,
    /// What JSON answers say for NaN and the infinities.
    pub non_finite: NonFinite,
    /// Whether answers are compressed for clients that accept it.
    pub compress: bool,
}

impl Default for Limits {
    fn default() -> Self {
        // 64 MiB is what Triton takes; the others are far beyond what a healthy client and a CPU need.
        Self {
            max_body_bytes: 64 << 20,
            body_timeout: Duration::from_secs(30),
            max_in_flight: 1024,
            max_timeout: Duration::from_secs(300),
            max_evaluations: 100_000,
            non_finite: NonFinite::Token,
            compress: true,
        }
    }
}

/// What a service is made of beside the models.
#[derive(Debug, Default)]
pub struct AppOptions {
    /// Limits of one request.
    pub limits: Limits,
    /// Who may come in.
    pub access: Access,
    /// The certificates of the listeners, to be read anew when they change.
    pub tls: Option<Arc<Tls>>,
    /// Where spans go; `None`: none are made.
    pub tracer: Option<Arc<Tracer>>,
    /// Whether `/metrics` has Triton's names too.
    pub triton_metrics: bool,
    /// Counts the requests that were answered, with success or an error.
    pub answered: Arc<AtomicU64>,
}

impl From<Limits> for AppOptions {
    /// Open to everybody.
    fn from(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }
}

/// What every handler sees.
#[derive(Debug)]
struct Shared {
    repository: Arc<Repository>,
    metrics: metrics::Metrics,
    limits: Limits,
    counts: layers::Counts,
    access: Access,
    tls: Option<Arc<Tls>>,
    tracer: Option<Arc<Tracer>>,
    traces: triton::trace::Traces,
    /// Whether the server has stopped accepting connections.
    closing: watch::Sender<bool>,
}

impl Shared {
    /// Resolves when the server has stopped accepting connections: what would last for ever ends then.
    fn stopping(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut closing = self.closing.subscribe();
        async move {
            let _ = closing.wait_for(|closing| *closing).await;
        }
    }
}

/// The HTTP service: all routes under all layers. Cloning shares it.
#[derive(Clone, Debug)]
pub struct App {
    service: layers::Service,
    inferences: grpc::Inferences,
    shared: Arc<Shared>,
}

impl App {
    /// The service for the models of `repository`.
    pub fn new(repository: Arc<Repository>, options: impl Into<AppOptions>) -> Self {
        let AppOptions { limits, access, tls, tracer, triton_metrics, answered } = options.into();
        let metrics = metrics::Metrics::new(triton_metrics);
        let shared = Arc::new(Shared {
            repository,
            metrics,
            limits,
            counts: layers::Counts { answered, ..layers::Counts::default() },
            access,
            tls,
            tracer,
            traces: triton::trace::Traces::default(),
            closing: watch::Sender::new(false),
        });
        let inferences = grpc::Inferences::new(&shared);
        let router = v2::routes()
            .merge(predict::routes())
            .merge(health::routes())
            .merge(triton::routes())
            .merge(labels::routes())
            .into_router()
            .merge(grpc::routes(&shared, inferences.clone()))
            .fallback(path::not_found)
            .method_not_allowed_fallback(path::method_not_allowed)
            .with_state(Arc::clone(&shared));
        Self { service: layers::around(router), inferences, shared }
    }

    /// Reads keys and certificates anew if their files changed. What is not valid is logged and changes nothing.
    pub fn reload(&self) {
        let Shared { access, tls, counts, .. } = &*self.shared;
        let keys = access.keys().map(Watched::poll).map(|change| ("API keys", change));
        let tls = tls.as_ref().map(|tls| ("certificates", tls.poll()));
        for (what, change) in keys.into_iter().chain(tls) {
            match change {
                Change::None => {}
                Change::Replaced => tracing::info!("{what} were read anew"),
                Change::Refused(error) => {
                    counts.reloads_failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    tracing::warn!(%error, "{what} stay as they were: the new files are not valid");
                }
            }
        }
    }
}
