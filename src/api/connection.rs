//! A client's connection, with three things that hyper leaves out.
//!
//! - Which HTTP a client without TLS speaks is seen by its first bytes: HTTP/2 begins with a sentence that is no request of
//!   HTTP/1.1 (RFC 9113, 3.4). They are read here and given to hyper again.
//! - hyper itself answers a head that it cannot parse, or that is too long, without a body. Clients of this server are promised
//!   a JSON body with every error, so the head of such an answer is replaced as it is written.
//! - When an answer is sent before the whole request was read (a body over the limit), closing at once makes the system reset
//!   the connection, and the client may lose the answer. So the connection is closed for writing first, and what still comes
//!   is read and forgotten for a moment, as nginx does (`lingering_close`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::error::body;
use super::listen::Stream;
use super::route::Route;
use super::server::Activity;
use super::{Shared, error};
use crate::error::Kind;

/// The first bytes of a client that speaks HTTP/2.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may go on sending after the answer.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read at most.
const LINGER_BYTES: usize = 128 << 20;

/// The answers that hyper makes itself: the start of their head, the kind of error, and the message.
const BARE_ANSWERS: [(&[u8], Kind, &str); 3] = [
    (b"HTTP/1.1 431 ", Kind::HeadersTooLarge, "the head of the request (line and headers) is longer than the limit"),
    (b"HTTP/1.1 414 ", Kind::HeadersTooLarge, "the path of the request is longer than the limit"),
    (b"HTTP/1.1 400 ", Kind::InvalidArgument, "the head of the request is no valid HTTP/1.1"),
];

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// What was read to see which HTTP it is, and hyper did not read yet.
    first: Vec<u8>,
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    /// What is left to write of an answer that replaces hyper's.
    replacement: Vec<u8>,
    /// Whether the last answer was an error: only then can a part of the request be unread.
    failed: bool,
    linger: Option<Linger>,
}

#[derive(Debug)]
struct Linger {
    deadline: Pin<Box<Sleep>>,
    bytes: usize,
}

impl Connection {
    pub(super) fn new(stream: Stream, shared: Arc<Shared>, activity: Arc<Activity>) -> Self {
        Self { stream, first: Vec::new(), shared, activity, replacement: Vec::new(), failed: false, linger: None }
    }

    /// Whether the client speaks HTTP/2; waits for its first bytes.
    pub(super) async fn speaks_http2(&mut self) -> io::Result<bool> {
        if self.stream.chose_http2() {
            return Ok(true);
        }
        let mut bytes = [0; HTTP2_PREFACE.len()];
        while self.first.len() < HTTP2_PREFACE.len() {
            let left = HTTP2_PREFACE.len() - self.first.len();
            let count = self.stream.read(&mut bytes[..left]).await?;
            self.first.extend_from_slice(&bytes[..count]);
            if count == 0 || !HTTP2_PREFACE.starts_with(&self.first) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// If `written` is an answer that hyper made itself: the answer to send instead.
    fn replace(&self, written: &[u8]) -> Option<Vec<u8>> {
        // Every answer of ours has a content type.
        let (start, kind, message) = BARE_ANSWERS.iter().find(|(start, ..)| written.starts_with(start))?;
        if !written.ends_with(b"\r\n\r\n") || written.windows(13).any(|window| window.eq_ignore_ascii_case(b"content-type:")) {
            return None;
        }
        let metrics = &self.shared.metrics;
        metrics.failed(*kind);
        metrics.answered(Route::Other, error::codes(*kind).http.as_u16(), Duration::ZERO);
        let status = std::str::from_utf8(start).unwrap_or_default();
        let (body, reason) = (body(message), error::codes(*kind).http.canonical_reason().unwrap_or_default());
        let length = body.len();
        let mut answer =
            format!("{status}{reason}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
                .into_bytes();
        answer.extend_from_slice(&body);
        Some(answer)
    }

    /// Notes whether the answer whose head is written is an error.
    fn note_status(&mut self, written: &[u8]) {
        if let Some(status) = written.strip_prefix(b"HTTP/1.1 ") {
            self.failed = matches!(status.first(), Some(b'4' | b'5'));
        }
    }

    /// Writes what is left of a replacement.
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replacement.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.replacement))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.note_status(buf);
        if buf.starts_with(b"HTTP/1.1 4")
            && let Some(replacement) = self.replace(buf)
        {
            // Said to be written; flushing and shutting down wait until it is.
            self.replacement = replacement;
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_replacement(cx))?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.activity.wrote();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(this.poll_replacement(cx))?;
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.failed {
                return Poll::Ready(Ok(()));
            }
        }
        let linger = this.linger.get_or_insert_with(|| Linger { deadline: Box::pin(sleep(LINGER)), bytes: 0 });
        let mut scratch = [0; 4096];
        while linger.bytes < LINGER_BYTES && linger.deadline.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => linger.bytes += buf.filled().len(),
                // The client closed its side, or the connection is broken: nothing is left to lose.
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        self.note_status(bufs.first().map_or(&[], |first| first));
        ready!(self.poll_replacement(cx))?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.activity.wrote();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
