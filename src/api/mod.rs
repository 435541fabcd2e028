//! The protocols: the only place that knows HTTP.
//!
//! A protocol is one file with `routes()`, merged in [`App::new`]; it turns a body into an envelope and the answer into a body,
//! with the one path of `infer` in between. What is common to all (limits, request ids, metrics, errors) is in `layers`;
//! nothing outside [`error`] knows a status code.

mod body;
mod coding;
mod connection;
pub mod error;
mod health;
mod infer;
pub mod json;
mod layers;
mod metrics;
mod path;
pub mod predict;
mod route;
mod server;
mod v2;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use crate::config::NonFinite;
use crate::serve::Repository;

pub use metrics::{METRICS, Metric};
pub use route::Route;
pub use server::{ServerOptions, Stats, serve};

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
            non_finite: NonFinite::Token,
            compress: true,
        }
    }
}

/// What every handler sees.
#[derive(Debug)]
struct Shared {
    repository: Arc<Repository>,
    metrics: metrics::Metrics,
    limits: Limits,
    counts: layers::Counts,
}

/// The HTTP service: all routes under all layers. Cloning shares it.
#[derive(Clone, Debug)]
pub struct App {
    service: layers::Service,
    shared: Arc<Shared>,
}

impl App {
    /// The service for the models of `repository`.
    pub fn new(repository: Arc<Repository>, limits: Limits) -> Self {
        let shared = Arc::new(Shared { repository, metrics: metrics::Metrics::new(), limits, counts: layers::Counts::default() });
        let router = Router::new()
            .merge(predict::routes())
            .merge(v2::routes())
            .merge(health::routes())
            .fallback(path::not_found)
            .method_not_allowed_fallback(path::method_not_allowed)
            .with_state(Arc::clone(&shared));
        Self { service: layers::around(router), shared }
    }
}
