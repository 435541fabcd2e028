//! `ModelInfer` without a framework: a frame in, a frame out. tonic's streams, codecs and boxes cost more than a small model.
//!
//! Calls that compress their message are tonic's ([`is_plain`]); both ways read and write the same messages, and end in the same
//! [`infer`](super::infer).

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::response::Response;
use bytes::{Buf as _, BufMut as _, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::{Body as HttpBody, Frame};
use prost::Message as _;

use super::super::infer::off_thread;
use super::super::layers::Measured;
use super::super::{Limits, Shared, body};
use super::call::{timeout, within};
use super::infer::infer;
use super::proto::inference::{ModelInferRequest, ModelInferResponse};
use super::status::failed;
use crate::error::{Error, Kind};

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// In front of each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Whether the message of a call is as it is.
pub(in super::super) fn is_plain(head: &Parts) -> bool {
    !head.headers.contains_key(ENCODING)
}

/// The answer to a plain call, and where its time went.
pub(in super::super) async fn answer<B>(shared: &Shared, head: &Parts, body: B) -> (Response, Option<Measured>)
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let outcome = match timeout(&head.headers).map(|timeout| timeout.and_then(|timeout| Instant::now().checked_add(timeout))) {
        Ok(None) => call(shared, body, None).await,
        Ok(Some(deadline)) => Box::pin(within(deadline, call(shared, body, Some(deadline)))).await.and_then(|answer| answer),
        Err(error) => Err(error),
    };
    match outcome {
        Ok((message, measured)) => (answered(message), Some(measured)),
        Err(error) => (failed(error), None),
    }
}

async fn call<B>(shared: &Shared, body: B, deadline: Option<Instant>) -> Result<(Bytes, Measured), Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let frame = body::read_plain(body, (&shared.limits, PREFIX_BYTES)).await.map_err(|error| of_message(error, &shared.limits))?;
    let request = off_thread(frame.len(), move || read(frame)).await?;
    let (response, measured) = infer(shared, request, deadline).await?;
    let length = response.encoded_len();
    let message = off_thread(length, move || write(&response, length)).await?;
    Ok((message, measured))
}

/// The error of a body in the words of a call.
fn of_message(error: Error, limits: &Limits) -> Error {
    let Limits { max_body_bytes, body_timeout, .. } = limits;
    match error.kind() {
        kind @ Kind::TooLarge => {
            Error::new(kind, format!("the message is larger than the limit of {max_body_bytes} bytes (--max-body): {}", error.message()))
        }
        kind @ Kind::Timeout => Error::new(kind, format!("the message did not arrive within {body_timeout:?}")),
        _ => error,
    }
}

/// The one message of a call.
fn read(mut frame: Bytes) -> Result<ModelInferRequest, Error> {
    if frame.len() < PREFIX_BYTES {
        return Err(Error::invalid("the call ended before its message"));
    }
    let (compressed, length) = (frame.get_u8(), frame.get_u32() as usize);
    if compressed != 0 {
        return Err(Error::invalid("the message is marked as compressed, and the call has no grpc-encoding"));
    }
    match frame.len() {
        found if found < length => Err(Error::invalid(format!("the call ended after {found} of the {length} bytes of its message"))),
        found if found > length => Err(Error::invalid(format!("{} bytes are left behind the message of the call", found - length))),
        _ => ModelInferRequest::decode(frame).map_err(|error| Error::invalid(format!("the message cannot be read: {error}"))),
    }
}

fn write(message: &ModelInferResponse, length: usize) -> Result<Bytes, Error> {
    let too_large = |_| Error::new(Kind::TooLarge, format!("the answer has {length} bytes; a message has 4 GiB at most"));
    let prefix = u32::try_from(length).map_err(too_large)?;
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(prefix);
    message.encode(&mut frame).map_err(|error| Error::internal("the answer could not be written", error))?;
    Ok(frame.freeze())
}

fn answered(message: Bytes) -> Response {
    let mut response = Response::new(Body::new(Answer::Message(message)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The body of an answer: a message, and the status behind it.
enum Answer {
    Message(Bytes),
    Status,
    Sent,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (frame, next) = match &mut *self {
            Self::Message(message) => (Frame::data(std::mem::take(message)), Self::Status),
            Self::Status => (Frame::trailers(HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))])), Self::Sent),
            Self::Sent => return Poll::Ready(None),
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(prefix: &[u8], message: &[u8]) -> Bytes {
        [prefix, message].concat().into()
    }

    #[test]
    fn a_broken_frame_is_the_clients() {
        let request = ModelInferRequest { model_name: "m".into(), ..Default::default() };
        let message = request.encode_to_vec();
        assert_eq!(read(frame(&[0, 0, 0, 0, 3], &message)).unwrap(), request);
        for (prefix, message, want) in [
            (&[0, 0, 0][..], &[][..], "ended before its message"),
            (&[1, 0, 0, 0, 3], &message, "marked as compressed"),
            (&[0, 0, 0, 0, 9], &message, "after 3 of the 9 bytes"),
            (&[0, 0, 0, 0, 2], &message, "1 bytes are left"),
            (&[0, 0, 0, 0, 3], &[0xff; 3], "cannot be read"),
        ] {
            let error = read(frame(prefix, message)).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.message().contains(want), "{error}");
        }
    }
}
