//! Bodies. A request's is read whole, under a size limit and a time limit, without copying one that came in one piece, and
//! decompressed. An answer's is sent in the pieces that it was made of, compressed if the client accepts it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::response::Response;
use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::Limits;
use super::coding::Coding;
use super::infer::{Work, off_thread, off_thread_for};
use crate::error::{Error, Kind};
use crate::serve::Servable;

/// Reads the body.
///
/// # Errors
/// - `TooLarge`: it is longer than `max_body_bytes`, announced, counted or decompressed;
/// - `Timeout`: it did not arrive within `body_timeout`;
/// - `InvalidArgument`: the client closed the connection first, or it is not what its `Content-Encoding` says;
/// - `UnsupportedEncoding`: it is compressed in a way that the server does not have.
pub(super) async fn read<B>(headers: &HeaderMap, body: B, limits: &Limits) -> Result<Bytes, Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let coding = Coding::of_body(headers)?;
    let bytes = read_plain(body, (limits, 0)).await?;
    match coding {
        None => Ok(bytes),
        // What it expands to is not known: up to a thousand times as much.
        Some(coding) => {
            let max_bytes = limits.max_body_bytes;
            off_thread(bytes.len() << EXPANSION_BITS, move || coding.decompress(&bytes, max_bytes)).await
        }
    }
}

/// Reads a body of a protocol that does its compression itself, and puts `more` bytes around what the limit is for.
///
/// # Errors
/// As [`read`].
pub(super) async fn read_plain<B>(mut body: B, (limits, more): (&Limits, usize)) -> Result<Bytes, Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let max_bytes = limits.max_body_bytes.saturating_add(more);
    let announced = body.size_hint().lower();
    if announced > max_bytes as u64 {
        return Err(Error::new(Kind::TooLarge, format!("the body has {announced} bytes, the limit is {max_bytes}")));
    }
    // Most bodies came with the head, in one piece: they need no timer, and are not copied.
    let boxed = |frame: Option<Result<Frame<Bytes>, B::Error>>| frame.map(|frame| frame.map_err(Into::into));
    let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx).map(boxed))).await;
    match first {
        Poll::Ready(Some(Ok(frame))) if body.is_end_stream() && frame.is_data() => {
            let bytes = frame.into_data().unwrap_or_default();
            if bytes.len() > max_bytes { Err(too_large(max_bytes)) } else { Ok(bytes) }
        }
        first => Box::pin(rest(first, body, (max_bytes, limits.body_timeout))).await,
    }
}

/// Compressing and decompressing take so many bits more time per byte than parsing.
const EXPANSION_BITS: u32 = 4;

/// The whole of a body that does not come at once; `first` is what was seen of it.
async fn rest<B>(
    first: Poll<Option<Result<Frame<Bytes>, BoxError>>>,
    body: B,
    (max_bytes, timeout): (usize, Duration),
) -> Result<Bytes, Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let collected = tokio::time::timeout(timeout, collect(first, body, max_bytes)).await;
    collected.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, format!("the body did not arrive within {timeout:?}"))))
}

async fn collect<B>(first: Poll<Option<Result<Frame<Bytes>, BoxError>>>, mut body: B, max_bytes: usize) -> Result<Bytes, Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut next = match first {
        Poll::Ready(first) => first,
        Poll::Pending => piece(&mut body).await,
    };
    // Only what came is allocated: a client must not reserve memory by announcing a length.
    let mut all = BytesMut::new();
    while let Some(frame) = next {
        let frame = frame.map_err(|error| Error::invalid(format!("the body ended too early or is malformed: {error}")))?;
        // Trailers are skipped.
        if let Ok(bytes) = frame.into_data() {
            if all.len() + bytes.len() > max_bytes {
                return Err(too_large(max_bytes));
            }
            if all.is_empty() && body.is_end_stream() {
                return Ok(bytes);
            }
            all.extend_from_slice(&bytes);
        }
        next = piece(&mut body).await;
    }
    Ok(all.freeze())
}

async fn piece<B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin>(body: &mut B) -> Option<Result<Frame<Bytes>, BoxError>> {
    body.frame().await.map(|frame| frame.map_err(Into::into))
}

fn too_large(max_bytes: usize) -> Error {
    Error::new(Kind::TooLarge, format!("the body has more bytes than the limit of {max_bytes}"))
}

/// Answers shorter than this are not compressed: it would save no packet.
const COMPRESS_MIN: usize = 1024;
/// Pieces that together are shorter than this are sent as one.
const JOIN_MAX: usize = 16 << 10;

/// The body of an answer, ready to be sent.
#[derive(Debug)]
pub(super) struct Payload {
    content_type: &'static str,
    pieces: Vec<Bytes>,
    coding: Option<Coding>,
}

impl Payload {
    /// A body of `pieces`, compressed if it is worth it.
    pub(super) fn new(content_type: &'static str, pieces: Vec<Bytes>, coding: Option<Coding>) -> Self {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        match coding.filter(|_| length >= COMPRESS_MIN) {
            Some(coding) => Self { content_type, pieces: vec![coding.compress(&pieces)], coding: Some(coding) },
            None if pieces.len() > 1 && length < JOIN_MAX => Self { content_type, pieces: vec![pieces.concat().into()], coding: None },
            None => Self { content_type, pieces, coding: None },
        }
    }

    /// The answer.
    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(match <[Bytes; 1]>::try_from(self.pieces) {
            Ok([only]) => Body::from(only),
            Err(pieces) => Body::new(Pieces { left: pieces.iter().map(Bytes::len).sum(), pieces: pieces.into_iter() }),
        });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if let Some(coding) = self.coding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        response
    }
}

/// Compresses or not, here or on a thread that may block: `make` is given what answers and the coding, and makes about `bytes` bytes.
pub(super) fn encode<T: Send + 'static>(
    (handle, headers): (&Servable, &HeaderMap),
    limits: &Limits,
    bytes: usize,
    make: impl FnOnce(&Servable, Option<Coding>) -> Result<T, Error> + Send + 'static,
) -> Work<T> {
    let coding = if limits.compress { Coding::accepted(headers) } else { None };
    let work = if coding.is_some() { bytes << EXPANSION_BITS } else { bytes };
    off_thread_for(handle, work, move |handle| make(handle, coding))
}

/// Pieces that are sent one after the other.
struct Pieces {
    left: usize,
    pieces: std::vec::IntoIter<Bytes>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.pieces.find(|piece| !piece.is_empty());
        self.left -= next.as_ref().map_or(0, Bytes::len);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}
