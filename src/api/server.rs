//! The accept loop: connections in from every listener, and a shutdown that loses no request.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::App;
use super::access::Surface;
use super::again::Again;
use super::connection::Connection;
use super::listen::{Listener, Listeners, Stream};
use super::rest;
use super::streams::Streams;

/// Limits of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// How long a handshake and the head of a request may take to arrive; an idle connection is closed after as long.
    pub header_timeout: Duration,
    /// Most bytes of a request's head; hyper allows no less than 8192.
    pub max_header_bytes: usize,
    /// Most open connections; further ones wait in the system's backlog. The admin listeners have as many places of their own,
    /// so that a server whose clients took all can still be looked into.
    pub max_connections: usize,
    /// How long requests under way may take after shutdown began.
    pub drain_timeout: Duration,
    /// How often files of keys and certificates are looked at.
    pub reload_interval: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 16 << 10,
            max_connections: 4096,
            drain_timeout: Duration::from_secs(8),
            reload_interval: Duration::from_secs(2),
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
/// Most requests at once on a connection of HTTP/2; gRPC's libraries open another one beyond 100.
const MAX_STREAMS: u32 = 256;
/// What a client of HTTP/2 may send before the server has taken it: tensors are large, and each window is a round trip.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How long a client of HTTP/2 may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What every connection needs.
#[derive(Debug)]
struct Server {
    app: App,
    http1: http1::Builder,
    http2: http2::Builder<Streams>,
    streams: Streams,
    header_timeout: Duration,
    /// Connections of public and of admin listeners.
    open: [AtomicUsize; 2],
}

impl Server {
    fn new(app: App, options: &ServerOptions, streams: Streams) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            // hyper's timer for the head is set anew for each request; `serve_http1` has one for the connection.
            .header_read_timeout(None)
            // Without `pipeline_flush`: with it hyper keeps its answer to a head that it cannot parse if more bytes came behind.
            .max_buf_size(options.max_header_bytes.max(MIN_HEADER_BYTES));
        let mut http2 = http2::Builder::new(streams.clone());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(options.max_header_bytes.max(MIN_HEADER_BYTES)).unwrap_or(u32::MAX))
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(options.header_timeout)
            .keep_alive_timeout(PING_TIMEOUT);
        Self { app, http1, http2, streams, header_timeout: options.header_timeout, open: [AtomicUsize::new(0), AtomicUsize::new(0)] }
    }

    fn open(&self, surface: Surface) -> &AtomicUsize {
        &self.open[usize::from(surface == Surface::Admin)]
    }
}

/// A place among the open connections.
struct Place(Arc<Server>, Surface);

impl Place {
    fn take(server: &Arc<Server>, surface: Surface) -> Self {
        server.open(surface).fetch_add(1, Relaxed);
        Self(Arc::clone(server), surface)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open(self.1).fetch_sub(1, Relaxed);
    }
}

/// Accepts connections until `shutdown` resolves, then finishes the requests under way, at most for the drain timeout.
pub async fn serve(listeners: impl Into<Listeners>, app: App, options: ServerOptions, shutdown: impl Future<Output = ()>) -> Stats {
    let listeners = listeners.into().0;
    let (close, closing) = watch::channel(false);
    let (cut, cutting) = watch::channel(false);
    let (running, mut ended) = mpsc::channel(1);
    let server = Arc::new(Server::new(app, &options, Streams::new(cutting, running)));
    let watching = [tokio::spawn(watch_files(server.app.clone(), options.reload_interval)), tokio::spawn(rest::watch(server.app.clone()))];
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut first = 0;
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => {}
            (from, accepted) = accept(&listeners, &server, options.max_connections, &mut first) => match accepted {
                Ok(stream) => {
                    let place = Place::take(&server, from.surface());
                    tasks.spawn(Again::new(connection(place, stream, from.tls(), closing.clone())));
                }
                Err(error) => {
                    // The connection is gone already, or the process has no file descriptor left: others may free one.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
        }
    }
    drop(listeners);
    watching.iter().for_each(JoinHandle::abort);
    let _ = close.send(true);
    server.app.shared.closing.send_replace(true);
    let finished = tokio::time::timeout(options.drain_timeout, async { while tasks.join_next().await.is_some() {} });
    if finished.await.is_err() {
        tracing::warn!(connections = tasks.len(), "the drain timeout passed; open connections are cut");
    }
    tasks.shutdown().await;
    // Requests of HTTP/2 are tasks of their own; with the last of them goes the last sender.
    let _ = cut.send(true);
    let app = server.app.clone();
    drop(server);
    let _ = ended.recv().await;
    let counts = &app.shared.counts;
    Stats { accepted: counts.accepted(), answered: counts.answered.load(Relaxed), dropped: counts.dropped.load(Relaxed) }
}

/// The next connection of any listener that has places left. `first` is the listener that is asked first: each in turn.
async fn accept<'a>(
    listeners: &'a [Listener],
    server: &Server,
    max_connections: usize,
    first: &mut usize,
) -> (&'a Listener, io::Result<Stream>) {
    *first = (*first + 1) % listeners.len().max(1);
    let turn = || listeners.iter().cycle().skip(*first).take(listeners.len());
    poll_fn(|cx| {
        let mut free = turn().filter(|listener| server.open(listener.surface()).load(Relaxed) < max_connections);
        // A listener without places is asked again when a connection ends: that wakes the loop.
        free.find_map(|listener| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Some((listener, accepted)),
            Poll::Pending => None,
        })
        .map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Looks for changed keys and certificates, for ever.
async fn watch_files(app: App, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let app = app.clone();
        let _ = tokio::task::spawn_blocking(move || app.reload()).await;
    }
}

/// Serves one connection.
async fn connection(place: Place, stream: Stream, tls: Option<TlsAcceptor>, mut closing: watch::Receiver<bool>) {
    let Place(server, surface) = &place;
    let activity = Arc::new(Activity::default());
    let begin = async {
        let stream = stream.handshake(tls).await.inspect_err(|error| {
            server.app.shared.counts.handshakes_failed.fetch_add(1, Relaxed);
            tracing::debug!(%error, "a TLS handshake failed");
        })?;
        let mut connection = Connection::new(stream, Arc::clone(&server.app.shared), Arc::clone(&activity));
        let http2 = connection.speaks_http2().await?;
        io::Result::Ok((connection, http2))
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(server.header_timeout, begin) => begun,
        // Nothing was asked yet.
        () = closed(&mut closing) => return,
    };
    let Ok(Ok((connection, http2))) = begun else { return };
    // One for the connection: what all connections share is counted at one place in memory for all processors.
    let client = Arc::new(Client { app: server.app.clone(), activity: Arc::clone(&activity), surface: *surface });
    let service = service_fn(move |request: Request<Incoming>| {
        let client = Arc::clone(&client);
        // In a box, because hyper and tokio move it several times, and it is some kilobytes.
        Box::pin(async move {
            let _under_way = client.activity.enter();
            Ok::<_, Infallible>(client.app.answer(client.surface, request).await)
        })
    });
    let io = TokioIo::new(connection);
    let served = if http2 {
        serve_http2(server.http2.serve_connection(io, service), &server.streams, &activity, server.header_timeout, &mut closing).await
    } else {
        serve_http1(server.http1.serve_connection(io, service), &activity, server.header_timeout, &mut closing).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Serves a connection of HTTP/1.1 until nothing has happened on it for `idle`, or a quarter longer.
async fn serve_http1<S>(
    connection: http1::Connection<TokioIo<Connection>, S>,
    activity: &Activity,
    idle: Duration,
    closing: &mut watch::Receiver<bool>,
) -> hyper::Result<()>
where
    S: hyper::service::HttpService<Incoming, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    S::ResBody: hyper::body::Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    /// Looks at the connection in the time after which it is closed.
    const LOOKS: u32 = 4;
    let mut connection = pin!(connection);
    let (mut before, mut quiet) = (None, 0);
    loop {
        let mut other = closed_or_after(idle / LOOKS, closing);
        let is_closing = tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            closing = other.next() => closing.unwrap_or(true),
        };
        if is_closing {
            break;
        }
        let now = activity.so_far();
        quiet = if Some(now) == before && activity.under_way.load(Relaxed) == 0 { quiet + 1 } else { 0 };
        before = Some(now);
        if quiet == LOOKS {
            return Ok(());
        }
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Serves a connection of HTTP/2, which has no timeout for one that is idle.
async fn serve_http2<S>(
    connection: http2::Connection<TokioIo<Connection>, S, Streams>,
    streams: &Streams,
    activity: &Activity,
    idle: Duration,
    closing: &mut watch::Receiver<bool>,
) -> hyper::Result<()>
where
    S: hyper::service::HttpService<Incoming, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
    S::Future: Send + 'static,
    S::ResBody: hyper::body::Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    Streams: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    let mut connection = pin!(connection);
    let mut begun = 0;
    loop {
        let mut other = closed_or_after(idle, closing);
        let is_closing = tokio::select! {
            biased;
            ended = poll_fn(|cx| streams.poll(connection.as_mut(), cx)) => return ended,
            closing = other.next() => closing.unwrap_or(true),
        };
        let before = std::mem::replace(&mut begun, activity.begun.load(Relaxed));
        if is_closing || (before == begun && activity.under_way.load(Relaxed) == 0) {
            break;
        }
    }
    connection.as_mut().graceful_shutdown();
    poll_fn(|cx| streams.poll(connection.as_mut(), cx)).await
}

/// Whether the server closes, or so much time has passed, beside a connection: what is seldom ready is in a set that asks only what was
/// woken. A request wakes the connection, and asking the others with it costs as much as reading its head.
fn closed_or_after(time: Duration, closing: &mut watch::Receiver<bool>) -> FuturesUnordered<impl Future<Output = bool>> {
    let other = async move {
        tokio::select! {
            () = closed(closing) => true,
            () = tokio::time::sleep(time) => false,
        }
    };
    FuturesUnordered::from_iter([other])
}

pub(super) async fn closed(closing: &mut watch::Receiver<bool>) {
    // A sender that is gone says the same.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// What happens on a connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicUsize,
    under_way: AtomicUsize,
    /// Pieces of answers that the system took.
    written: AtomicUsize,
}

struct UnderWay<'a>(&'a Activity);

/// What the requests of a connection are answered by.
struct Client {
    app: App,
    activity: Arc<Activity>,
    surface: Surface,
}

impl Activity {
    /// A piece of an answer was written.
    pub(super) fn wrote(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    /// How much has happened: a number that changes with each request and each piece of an answer.
    fn so_far(&self) -> (usize, usize) {
        (self.begun.load(Relaxed), self.written.load(Relaxed))
    }

    fn enter(&self) -> UnderWay<'_> {
        self.begun.fetch_add(1, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        UnderWay(self)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}
