//! The time limits of a call: what the client grants with `grpc-timeout`, and how long the one message of an ordinary call may
//! take to arrive.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderName};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tower::Service;

use super::super::Shared;
use super::status::{failed, status_of};
use crate::error::{Error, Kind};

/// When the client stops waiting; an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// Methods whose requests are a stream: a pause between two messages is none of the server's business.
const STREAMING: [&str; 2] = ["/ModelStreamInfer", "/ServerReflectionInfo"];

/// A gRPC service under the time limits of a call.
#[derive(Clone, Debug)]
pub(super) struct Call<S> {
    shared: Arc<Shared>,
    service: S,
}

impl<S> Call<S> {
    pub(super) fn new(shared: Arc<Shared>, service: S) -> Self {
        Self { shared, service }
    }
}

impl<S> Service<Request> for Call<S>
where
    S: Service<Request, Response = http::Response<tonic::body::Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let timeout = match timeout(request.headers()) {
            Ok(timeout) => timeout,
            Err(error) => return Box::pin(std::future::ready(Ok(failed(error)))),
        };
        let limit = self.shared.limits.body_timeout;
        let streaming = STREAMING.iter().any(|method| request.uri().path().ends_with(method));
        let mut request = if streaming { request } else { request.map(|body| Body::new(Timed::new(body, limit))) };
        let mut service = self.service.clone();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        Box::pin(async move {
            let answer = service.call(request);
            let answer = match deadline {
                None => answer.await,
                Some(deadline) => match within(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(error) => return Ok(failed(error)),
                },
            };
            let Ok(answer) = answer;
            Ok(answer.map(Body::new))
        })
    }
}

/// What `work` gives, if it does by `deadline`.
///
/// # Errors
/// `DeadlineExceeded` if not.
pub(super) async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Error> {
    let late = || Error::new(Kind::DeadlineExceeded, "the call took longer than its grpc-timeout");
    // What is too late to begin with is not begun: it could end at its first poll, before the timer is looked at.
    if deadline <= Instant::now() {
        return Err(late());
    }
    tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| late())
}

/// What `grpc-timeout` says: at most eight digits and a unit.
///
/// # Errors
/// `InvalidArgument` for anything else.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let wrong = || Error::invalid(format!("grpc-timeout {value:?} is not a number of at most eight digits with a unit H, M, S, m, u or n"));
    let text = value.to_str().map_err(|_| wrong())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(wrong()),
    }))
}

/// A body that must arrive within a time.
struct Timed {
    body: Body,
    limit: Duration,
    /// From when the message was first waited for; most come with the head.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(body: Body, limit: Duration) -> Self {
        Self { body, limit, deadline: None }
    }
}

impl hyper::body::Body for Timed {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let limit = self.limit;
        let mut late = || self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx).is_ready();
        match polled {
            Poll::Pending if late() => {
                let error = Error::new(Kind::Timeout, format!("the message did not arrive within {limit:?}"));
                // tonic hands on a status as it is.
                Poll::Ready(Some(Err(status_of(error).into())))
            }
            polled => polled.map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_timeout_is_a_number_with_a_unit() {
        let read = |text: &str| timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_str(text).unwrap())]));
        for (text, micros) in [("1H", 3_600_000_000), ("2M", 120_000_000), ("3S", 3_000_000), ("4m", 4000), ("5u", 5), ("6000n", 6)] {
            assert_eq!(read(text).unwrap(), Some(Duration::from_micros(micros)), "{text}");
        }
        assert_eq!(read("99999999H").unwrap(), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "é"] {
            let kind =
                timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_bytes(text.as_bytes()).unwrap())]));
            assert_eq!(kind.unwrap_err().kind(), Kind::InvalidArgument, "{text}");
        }
        assert!(timeout(&HeaderMap::new()).unwrap().is_none());
    }
}
