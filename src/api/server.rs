//! The accept loop: connections in, and a shutdown that loses no request.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::App;
use super::connection::Connection;

/// Limits of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// How long the head of a request may take to arrive; an idle connection is closed after as long.
    pub header_timeout: Duration,
    /// Most bytes of a request's head; hyper allows no less than 8192.
    pub max_header_bytes: usize,
    /// Most open connections; further ones wait in the system's backlog.
    pub max_connections: usize,
    /// How long requests under way may take after shutdown began.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 16 << 10,
            max_connections: 4096,
            drain_timeout: Duration::from_secs(8),
        }
    }
}

/// Requests of a server's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests whose head was read.
    pub accepted: u64,
    /// Requests that were answered, with success or an error.
    pub answered: u64,
    /// Requests without an answer: the client went away, or the drain timeout came first.
    pub dropped: u64,
}

/// hyper's smallest buffer.
const MIN_HEADER_BYTES: usize = 8192;

/// Accepts connections until `shutdown` resolves, then finishes the requests under way, at most for the drain timeout.
pub async fn serve(listener: TcpListener, app: App, options: ServerOptions, shutdown: impl Future<Output = ()>) -> Stats {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        // Without `pipeline_flush`: with it hyper keeps its answer to a head that it cannot parse if more bytes came behind.
        .max_buf_size(options.max_header_bytes.max(MIN_HEADER_BYTES));
    let app = Arc::new(app);
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept(), if tasks.len() < options.max_connections => match accepted {
                Ok((stream, _)) => {
                    tasks.spawn(connection(stream, &builder, &app, &graceful));
                }
                Err(error) => {
                    // The connection is gone already, or the process has no file descriptor left: others may free one.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
    drop(listener);
    let finished = tokio::time::timeout(options.drain_timeout, async {
        graceful.shutdown().await;
        while tasks.join_next().await.is_some() {}
    });
    if finished.await.is_err() {
        tracing::warn!(connections = tasks.len(), "the drain timeout passed; open connections are cut");
    }
    tasks.shutdown().await;
    let counts = &app.shared.counts;
    Stats { accepted: counts.accepted.load(Relaxed), answered: counts.answered.load(Relaxed), dropped: counts.dropped.load(Relaxed) }
}

/// Serves one connection.
fn connection(
    stream: TcpStream,
    builder: &http1::Builder,
    app: &Arc<App>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + 'static {
    // Without it an answer in two writes waits for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let app = Arc::clone(app);
    let io = TokioIo::new(Connection::new(stream, Arc::clone(&app.shared)));
    let service = service_fn(move |request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(app.answer(request).await) }
    });
    let served = graceful.watch(builder.serve_connection(io, service));
    async move {
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
