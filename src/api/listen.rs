//! Listeners: a small table of sockets, each with what it speaks and which routes it has.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::Surface;
use super::tls::Tls;
use crate::config::Endpoint;

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Arc<Tls>>,
    surface: Surface,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener, Unlink),
}

/// Removes a socket's path when the listener goes.
#[cfg(unix)]
#[derive(Debug)]
struct Unlink(std::path::PathBuf);

#[cfg(unix)]
impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The listeners of a server.
#[derive(Debug, Default)]
pub struct Listeners(pub Vec<Listener>);

impl From<TcpListener> for Listeners {
    /// One without TLS, with every route.
    fn from(listener: TcpListener) -> Self {
        Self(vec![Listener { socket: Socket::Tcp(listener), tls: None, surface: Surface::Whole }])
    }
}

impl Listener {
    /// Listens at `endpoint`.
    ///
    /// # Errors
    /// If that is not possible; the message names the endpoint.
    pub async fn bind(endpoint: &Endpoint, tls: Option<&Arc<Tls>>, surface: Surface) -> Result<Self, String> {
        let named = |error: io::Error| format!("{endpoint}: {error}");
        let (socket, tls) = match endpoint {
            Endpoint::Http(address) => (Socket::Tcp(TcpListener::bind(address).await.map_err(named)?), None),
            Endpoint::Https(address) => {
                let tls = tls.ok_or_else(|| format!("{endpoint}: TLS needs tls-cert and tls-key"))?;
                (Socket::Tcp(TcpListener::bind(address).await.map_err(named)?), Some(Arc::clone(tls)))
            }
            Endpoint::Unix(path) => (bind_unix(path).await.map_err(|error| format!("{endpoint}: {error}"))?, None),
        };
        Ok(Self { socket, tls, surface })
    }

    /// Where it listens: with the port that the system chose, if that was left to it.
    pub fn endpoint(&self) -> Endpoint {
        match &self.socket {
            Socket::Tcp(listener) => {
                let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
                if self.tls.is_some() { Endpoint::Https(address) } else { Endpoint::Http(address) }
            }
            #[cfg(unix)]
            Socket::Unix(_, Unlink(path)) => Endpoint::Unix(path.clone()),
        }
    }

    /// Which routes it has.
    pub fn surface(&self) -> Surface {
        self.surface
    }

    pub(super) fn tls(&self) -> Option<TlsAcceptor> {
        self.tls.as_ref().map(|tls| TlsAcceptor::from(Arc::clone(&tls.get().config)))
    }

    /// The next connection, before any handshake.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match &self.socket {
            Socket::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, _)| {
                // Without it an answer in two writes waits for the client's delayed acknowledgement.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream)
            }),
            #[cfg(unix)]
            Socket::Unix(listener, _) => listener.poll_accept(cx).map_ok(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// Listens at a path. The socket of a server that died is replaced; anything else that is there stays.
#[cfg(unix)]
async fn bind_unix(path: &Path) -> Result<Socket, String> {
    use std::os::unix::fs::FileTypeExt;
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return Err("there is something at this path, and it is no socket".to_owned());
        }
        match UnixStream::connect(path).await {
            Ok(_) => return Err("another process listens at this path".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| format!("the socket of a server that is gone: {error}"))?;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    Ok(Socket::Unix(listener, Unlink(path.to_owned())))
}

#[cfg(not(unix))]
async fn bind_unix(_: &Path) -> Result<Socket, String> {
    Err("this system has no Unix-domain sockets".to_owned())
}

/// A client's bytes. One type for all, so that HTTP is compiled once.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    /// Whether the handshake chose HTTP/2.
    pub(super) fn chose_http2(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2"))
    }

    /// Does the handshake, on a listener that has TLS.
    pub(super) async fn handshake(self, acceptor: Option<TlsAcceptor>) -> io::Result<Self> {
        match (self, acceptor) {
            (Self::Tcp(stream), Some(acceptor)) => Ok(Self::Tls(Box::new(acceptor.accept(stream).await?))),
            (stream, _) => Ok(stream),
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
            #[cfg(unix)]
            Stream::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }
}
