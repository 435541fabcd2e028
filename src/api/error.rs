//! Errors on the wire: the one table from an error's kind to its HTTP status and gRPC code, and the failed answer.
//!
//! A handler returns a `Failure`; the outermost layer turns it into `{"error": "…"}`, counts and logs it.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use super::json::Writer;
use crate::error::{Error, Kind};

/// What a kind of error is in each protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The HTTP status.
    pub http: StatusCode,
    /// The number of the gRPC status.
    pub grpc: i32,
    /// After how many seconds it makes sense to try again.
    pub retry_after: Option<u32>,
}

/// The table.
pub fn codes(kind: Kind) -> Codes {
    let (http, grpc, retry_after) = match kind {
        Kind::InvalidArgument => (StatusCode::BAD_REQUEST, 3, None),
        Kind::Unauthenticated => (StatusCode::UNAUTHORIZED, 16, None),
        Kind::PermissionDenied => (StatusCode::FORBIDDEN, 7, None),
        // The key's bucket knows when the next request may come.
        Kind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, 8, None),
        Kind::NotFound => (StatusCode::NOT_FOUND, 5, None),
        Kind::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, 12, None),
        Kind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, 8, None),
        Kind::UnsupportedEncoding => (StatusCode::UNSUPPORTED_MEDIA_TYPE, 12, None),
        Kind::HeadersTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 8, None),
        Kind::Timeout => (StatusCode::REQUEST_TIMEOUT, 4, None),
        // Loading takes seconds, a queue is over in less than one.
        Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, 14, Some(2)),
        Kind::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, 14, Some(1)),
        Kind::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, 4, None),
        Kind::Unsupported => (StatusCode::NOT_IMPLEMENTED, 12, None),
        Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, 13, None),
    };
    Codes { http, grpc, retry_after }
}

/// The kind whose status this is, for answers that the framework made.
pub(super) fn kind_of(status: StatusCode) -> Kind {
    let same = |kind: &&Kind| codes(**kind).http == status;
    let fallback = if status.is_client_error() { Kind::InvalidArgument } else { Kind::Internal };
    Kind::ALL.iter().find(same).copied().unwrap_or(fallback)
}

/// A failed request, on its way to the layer that renders it.
#[derive(Clone, Debug)]
pub(super) struct Failure(pub(super) Arc<Error>);

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Arc::new(error.into()))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = codes(self.0.kind()).http;
        response.extensions_mut().insert(self);
        response
    }
}

/// `{"error": message}`.
pub(super) fn body(message: &str) -> Vec<u8> {
    let mut writer = Writer::with_capacity(message.len() + 16);
    writer.raw("{\"error\":").string(message).raw("}");
    writer.into_bytes()
}

/// Gives a failed answer its body and headers.
pub(super) fn render(response: &mut Response, kind: Kind, message: &str) {
    *response.body_mut() = Body::from(body(message));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.remove(header::CONTENT_LENGTH);
    if kind == Kind::UnsupportedEncoding {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(super::coding::READ));
    }
    if let Some(seconds) = codes(kind).retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_an_error_in_both_protocols() {
        for &kind in Kind::ALL {
            let Codes { http, grpc, .. } = codes(kind);
            assert!(http.is_client_error() || http.is_server_error(), "{kind:?}");
            assert!((1..=16).contains(&grpc), "{kind:?}");
            assert_eq!(codes(kind_of(http)).http, http);
        }
    }

    #[test]
    fn only_bugs_are_internal_server_errors() {
        let internal = |kind: &&Kind| codes(**kind).http == StatusCode::INTERNAL_SERVER_ERROR;
        assert_eq!(Kind::ALL.iter().filter(internal).collect::<Vec<_>>(), [&Kind::Internal]);
    }

    #[test]
    fn a_message_is_escaped() {
        assert_eq!(body("no `\"`\n"), br#"{"error":"no `\"`\n"}"#);
    }
}
