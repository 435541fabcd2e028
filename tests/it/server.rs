//! A server in this process, stopped when it is dropped.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Once, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use ndserve::api::{App, AppOptions, Limits, Listener, Listeners, ServerOptions, Stats, Surface, serve};
use ndserve::config::Endpoint;
use ndserve::serve::{Options, Repository};
use tokio::sync::oneshot;
use tracing::{Level, Metadata, span, subscriber};

use crate::client::get;
use crate::models::{self, Folder};

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    /// That of the first endpoint which has one.
    pub(crate) address: SocketAddr,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) repository: Arc<Repository>,
    folder: Option<Folder>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Stats>>,
}

impl Server {
    /// Serves the models of `folder`, which is removed with the server.
    pub(crate) fn start(folder: Folder, limits: Limits, options: ServerOptions) -> Self {
        let repository = Arc::new(Repository::open(Options::new(&*folder)).unwrap());
        repository.load(|_, _, _, _| {});
        // Explanations read the model's file again.
        let mut server = Self::over(repository, limits, options);
        server.folder = Some(folder);
        server
    }

    /// Serves a repository as it is.
    pub(crate) fn over(repository: Arc<Repository>, limits: Limits, options: ServerOptions) -> Self {
        let anywhere = vec![(Endpoint::Http("127.0.0.1:0".parse().unwrap()), Surface::Whole)];
        Self::over_on(repository, limits.into(), options, anywhere)
    }

    /// As [`Server::start`] on several endpoints, of which `endpoints` then tells the ports.
    pub(crate) fn start_on(folder: Folder, app: AppOptions, options: ServerOptions, endpoints: Vec<(Endpoint, Surface)>) -> Self {
        let repository = Arc::new(Repository::open(Options::new(&*folder)).unwrap());
        repository.load(|_, _, _, _| {});
        drop(folder);
        Self::over_on(repository, app, options, endpoints)
    }

    fn over_on(repository: Arc<Repository>, app: AppOptions, options: ServerOptions, endpoints: Vec<(Endpoint, Surface)>) -> Self {
        count_errors();
        let tls = app.tls.clone();
        let app = App::new(Arc::clone(&repository), app);
        let (stop, stopped) = oneshot::channel();
        let (send_endpoints, bound) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut listeners = Listeners::default();
                for (endpoint, surface) in endpoints {
                    listeners.0.push(Listener::bind(&endpoint, tls.as_ref(), surface).await.unwrap());
                }
                send_endpoints.send(listeners.0.iter().map(Listener::endpoint).collect::<Vec<_>>()).unwrap();
                serve(listeners, app, options, async { stopped.await.unwrap_or(()) }).await
            })
        });
        let endpoints = bound.recv().unwrap();
        let address = endpoints.iter().find_map(Endpoint::address).unwrap_or_else(|| "0.0.0.0:0".parse().unwrap());
        Self { address, endpoints, repository, folder: None, stop: Some(stop), thread: Some(thread) }
    }

    /// A sample of `/metrics`, by its line without the value.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let page = get(self.address, "/metrics").body;
        let found = page.lines().find_map(|known| known.strip_prefix(line)).unwrap_or_else(|| panic!("no {line} in {page}"));
        found.trim().parse().unwrap()
    }

    /// Begins the shutdown.
    pub(crate) fn begin_stop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Shuts down and waits for the end.
    pub(crate) fn stop(mut self) -> Stats {
        self.begin_stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// The server that most tests share: the models of this repository and the ones made for tests, one of them broken.
pub(crate) fn shared() -> SocketAddr {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(models::folder(), Limits::default(), ServerOptions::default())).address
}

/// A server with tight limits and only `two-features`.
pub(crate) fn strict() -> Server {
    let limits = Limits { max_body_bytes: 10_000, body_timeout: Duration::from_millis(200), ..Limits::default() };
    let options = ServerOptions { max_header_bytes: 8192, drain_timeout: Duration::from_secs(5), ..ServerOptions::default() };
    Server::start(models::only(&["two-features"]), limits, options)
}

static ERRORS: AtomicUsize = AtomicUsize::new(0);

/// How many events were logged at error level so far.
pub(crate) fn logged_errors() -> usize {
    ERRORS.load(Relaxed)
}

struct ErrorCounter;

impl tracing::Subscriber for ErrorCounter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &tracing::Event<'_>) {
        ERRORS.fetch_add(1, Relaxed);
        eprintln!("logged at error level: {event:?}");
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn count_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| subscriber::set_global_default(ErrorCounter).unwrap());
}
