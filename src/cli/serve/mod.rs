//! `ndserve serve`: from settings to a server, and back down in order.
//!
//! Up: bind, so that a probe is answered from the first moment; load the models while already answering "not ready"; tell the
//! person at the terminal what there is. Down, at the first SIGTERM or SIGINT: not ready at once, serve on for the drain
//! delay, stop accepting, finish what is in flight for at most the drain timeout. A second signal ends the process at once.

mod access;
mod banner;
mod example;
mod signals;
mod vigil;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{Failure, Outcome, progress};
use crate::api::{self, App, AppOptions, Limits, Listeners, ServerOptions, Stats};
use crate::config::{self, Flags, Server, Settings};
use crate::engine::{Threads, purge_with_threads, release_memory};
use crate::serve::{Defaults, Options, ReadyWhen, Repository, State, Watch};
use crate::telemetry;

use banner::Banner;
use signals::Stop;
use vigil::Vigil;

/// Serve the models of a folder over HTTP.
///
/// Every setting may also stand in a file (as a key) or in the environment; a flag goes before the environment, that before
/// the file.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags<Server>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    run(settings)
}

/// Most workers that a model gets by itself: each has memory of its own.
const INSTANCES_MAX: usize = 4;

/// What models get that do not say otherwise.
pub(super) fn defaults(settings: &Settings) -> Defaults {
    Defaults {
        max_batch_rows: settings.max_batch_rows,
        max_delay: settings.max_delay.0,
        queue_limit: settings.queue_limit,
        timeout: Some(settings.request_timeout.0),
        instances: settings.engine_threads().clamp(1, INSTANCES_MAX),
        strict: settings.strict,
    }
}

/// Serves until a signal has come and everything is answered.
fn run(settings: Settings) -> Outcome {
    // A version that goes takes its workers along.
    purge_with_threads();
    let options = options(&settings)?;
    // Before the repository is opened: what changes from here on is seen.
    let watch = if settings.watch.0.is_zero() { None } else { Some(Watch::new(&options)?) };
    let answered = Arc::<AtomicU64>::default();
    let vigil = Arc::new(Vigil::new(settings.spin.0, settings.http_threads(), Arc::clone(&answered), {
        let threads = Arc::clone(&options.threads);
        move |time| threads.stay_awake(time)
    }));
    let repository = Arc::new(Repository::open(options)?);
    let lies_down = Arc::clone(&vigil);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.http_threads())
        .thread_name("http")
        .on_thread_park(move || lies_down.lies_down())
        .on_thread_unpark(move || vigil.gets_up())
        .enable_all()
        .build()
        .map_err(|error| format!("the system cannot start threads: {error}"))?;
    let outcome = runtime.block_on(live(Arc::new(settings), repository, watch, answered));
    // A model that is still loading, or a run that exceeded the drain timeout, must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

fn options(settings: &Settings) -> Result<Options, Failure> {
    let mut options = Options::new(&settings.models);
    options.default_model = settings.default_model.clone();
    options.defaults = defaults(settings);
    options.load = settings.load_options();
    options.threads = Arc::new(Threads::new(settings.engine_threads())?);
    options.inline_sessions = settings.http_threads();
    options.allow_no_models = settings.allow_no_models;
    options.model_name = settings.model_name.clone();
    options.ready_when = match settings.ready_when {
        config::ReadyWhen::All => ReadyWhen::All,
        config::ReadyWhen::Any => ReadyWhen::Any,
        config::ReadyWhen::None => ReadyWhen::None,
    };
    Ok(options)
}

async fn live(settings: Arc<Settings>, repository: Arc<Repository>, watch: Option<Watch>, answered: Arc<AtomicU64>) -> Outcome {
    let tls = access::tls(&settings)?;
    let access = access::access(&settings)?;
    let listeners = access::listen(&settings, tls.as_ref()).await?;
    let banner = Banner::new(settings.log_format, &listeners);
    banner.listening(&settings);
    banner.openness(&access::openness(&settings, &access));
    let (tracer, sending) = access::traces(&settings)?.unzip();
    let options = AppOptions { limits: limits(&settings), access, tls, tracer, triton_metrics: settings.triton_metrics, answered };
    let app = App::new(Arc::clone(&repository), options);
    let stop = Stop::on_signals()?;
    stop.reload_on_hangup(app.clone())?;

    let accepting = tokio::spawn(accept(listeners, app, Arc::clone(&settings), drained(&settings, &repository, &stop)));
    let loading = {
        let repository = Arc::clone(&repository);
        tokio::task::spawn_blocking(move || load(&repository))
    };
    tokio::select! {
        _ = loading => {
            banner.models(&repository);
            let failed = failed(&repository);
            if settings.strict && failed > 0 {
                return Err(format!("{failed} of the models cannot be served, and the server is strict").into());
            }
            banner.example(&repository, &settings);
            // From here on this thread mostly waits.
            release_memory();
            let settling = Arc::clone(&repository);
            tokio::task::spawn_blocking(move || {
                settling.settle();
                release_memory();
            });
            if let Some(watch) = watch {
                repository.watch(watch, settings.watch.0)?;
            }
        }
        // There is no use in loading what nobody will ask.
        () = stop.clone().requested() => {}
    }
    let stats = accepting.await?;
    if let Some(sending) = sending {
        sending.finish().await;
    }
    if stats.dropped == 0 {
        // Only now: every request has its answer, so the queues are empty and the workers end at once.
        let repository = Arc::clone(&repository);
        tokio::task::spawn_blocking(move || repository.close()).await?;
    }
    banner.stopped(stats);
    Ok(ExitCode::SUCCESS)
}

/// Loads every model; shows how far it is on a terminal.
fn load(repository: &Repository) {
    let bar = progress::bar("loading", 0);
    repository.load_models(|name, status, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("{name} {}", status.version));
    });
    bar.finish_and_clear();
}

/// Versions that could not be loaded.
fn failed(repository: &Repository) -> usize {
    let versions = repository.list().into_iter().flat_map(|model| model.versions);
    versions.filter(|version| matches!(version.state, State::Failed(_))).count()
}

/// Ends when no more connections are to be accepted: after the first signal and the drain delay. From the signal on the
/// server is not ready.
fn drained(settings: &Settings, repository: &Arc<Repository>, stop: &Stop) -> impl Future<Output = ()> + Send + 'static {
    let (delay, repository, stop) = (settings.drain_delay.0, Arc::clone(repository), stop.clone());
    async move {
        stop.requested().await;
        repository.start_draining();
        if delay.is_zero() {
            tracing::info!("stopping: not ready any more, finishing what is in flight");
        } else {
            tracing::info!("stopping: not ready any more, serving on for {delay:?}");
        }
        tokio::time::sleep(delay).await;
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        max_body_bytes: settings.max_body.0,
        body_timeout: settings.body_read_timeout.0,
        max_in_flight: settings.max_in_flight,
        max_timeout: settings.request_timeout_max.0,
        max_evaluations: settings.explain_max_evaluations,
        non_finite: settings.json_non_finite,
        compress: settings.compress_answers,
    }
}

/// Serves connections until `stop` ends, then stops accepting and finishes what is in flight for at most the drain timeout.
async fn accept(listeners: Listeners, app: App, settings: Arc<Settings>, stop: impl Future<Output = ()> + Send + 'static) -> Stats {
    let options = ServerOptions {
        header_timeout: settings.header_read_timeout.0,
        max_header_bytes: settings.max_header.0,
        max_connections: settings.max_connections,
        drain_timeout: settings.drain_timeout.0,
        ..ServerOptions::default()
    };
    api::serve(listeners, app, options, stop).await
}
