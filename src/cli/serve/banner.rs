//! What the server says about itself: sentences on stdout for people, or log events where logs are read by machines.

use super::example;
use crate::api::{Listeners, Stats, Surface};
use crate::cli::print;
use crate::config::{Endpoint, LogFormat, Settings};
use crate::engine::Isa;
use crate::serve::{Repository, Servable, State};

/// Where the server says something, and where it is reached.
#[derive(Clone, Debug)]
pub(super) struct Banner {
    format: LogFormat,
    /// Where clients of models come in, and where administrators do.
    public: Vec<Endpoint>,
    admin: Vec<Endpoint>,
}

impl Banner {
    pub(super) fn new(format: LogFormat, listeners: &Listeners) -> Self {
        let (mut public, mut admin) = (Vec::new(), Vec::new());
        for listener in &listeners.0 {
            let list = if listener.surface() == Surface::Admin { &mut admin } else { &mut public };
            list.push(listener.endpoint());
        }
        Self { format, public, admin }
    }

    /// Where it listens, and with what it computes.
    pub(super) fn listening(&self, settings: &Settings) {
        let (address, version) = (list(&self.public), env!("CARGO_PKG_VERSION"));
        let (isa, threads) = (settings.load_options().isa, settings.engine_threads());
        match self.format {
            LogFormat::Text => say(&format!("ndserve {version} listens on {address} · {}\n", engine(threads, isa))),
            LogFormat::Json => tracing::info!(address, version, %isa, threads, "listening"),
        }
        if !self.admin.is_empty() {
            let address = list(&self.admin);
            match self.format {
                LogFormat::Text => say(&format!("  administration listens on {address}\n")),
                LogFormat::Json => tracing::info!(address, "listening for administration"),
            }
        }
    }

    /// What whoever reaches the server may do without a key or a certificate.
    pub(super) fn openness(&self, warnings: &[String]) {
        for warning in warnings {
            match self.format {
                LogFormat::Text => say(&format!("  OPEN: {warning}\n")),
                LogFormat::Json => tracing::warn!("open: {warning}"),
            }
        }
    }

    /// Which models are ready, and which are not and why.
    pub(super) fn models(&self, repository: &Repository) {
        let list = repository.list();
        if list.is_empty() {
            match self.format {
                LogFormat::Text => say("  there is no model\n"),
                LogFormat::Json => tracing::warn!("there is no model"),
            }
        }
        let width = list.iter().map(|model| model.name.len()).max().unwrap_or(0);
        for model in &list {
            let name = model.name.as_str();
            for status in &model.versions {
                let version = status.version.as_str();
                match (self.format, &status.state) {
                    (LogFormat::Text, State::Ready(handle)) => say(&format!("  {name:width$}  version {version} ready{}\n", speed(handle))),
                    (LogFormat::Text, State::Failed(reason)) => say(&format!("  {name:width$}  FAILED: {reason}\n")),
                    (LogFormat::Text, state) => say(&format!("  {name:width$}  version {version} is {}\n", state.name())),
                    (LogFormat::Json, State::Ready(_)) => tracing::info!(model = name, version, "model ready"),
                    (LogFormat::Json, State::Failed(reason)) => tracing::error!(model = name, version, %reason, "model failed"),
                    (LogFormat::Json, state) => tracing::info!(model = name, version, state = state.name(), "model"),
                }
            }
        }
    }

    /// A request that works, for the first model or the one that needs no name.
    pub(super) fn example(&self, repository: &Repository, settings: &Settings) {
        if self.format == LogFormat::Text
            && let Some(line) = example::curl(repository, settings, &self.public)
        {
            say(&format!("\ntry: {line}\n"));
        }
    }

    /// What became of the requests.
    pub(super) fn stopped(&self, stats: Stats) {
        let Stats { accepted, answered, dropped } = stats;
        match self.format {
            LogFormat::Text => say(&format!("stopped: {accepted} requests accepted, {answered} answered, {dropped} dropped\n")),
            LogFormat::Json => tracing::info!(accepted, answered, dropped, "stopped"),
        }
    }
}

fn list(endpoints: &[Endpoint]) -> String {
    endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(", ")
}

fn engine(threads: usize, isa: Isa) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("{threads} engine thread{plural}, {isa}")
}

fn speed(handle: &Servable) -> String {
    handle.row_cost().map(|cost| format!(" ({:.3} ms per row)", cost.as_secs_f64() * 1e3)).unwrap_or_default()
}

fn say(text: &str) {
    // A server goes on without anybody who reads.
    let _ = print(text);
}
