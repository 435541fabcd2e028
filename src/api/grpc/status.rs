//! Errors as gRPC statuses, and what the layers need to know of an answer: whether it failed, and with what.

use std::error::Error as _;
use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tonic::{Code, Status};

use super::super::error::codes;
use crate::error::{Error, Kind};

/// Whether a request is a gRPC call. gRPC-Web is none: its answers have another form.
pub(in super::super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// An error as a status; the error goes along as its source, for the layer that counts and logs it.
pub(super) fn status_of(error: Error) -> Status {
    let mut status = Status::new(Code::from(codes(error.kind()).grpc), error.message());
    status.set_source(Arc::new(error));
    status
}

/// The answer of a call that fails before its service is asked.
pub(super) fn failed(error: Error) -> Response {
    status_of(error).into_http()
}

/// The kind of a status that tonic made.
fn kind_of(code: Code) -> Kind {
    match code {
        Code::NotFound => Kind::NotFound,
        Code::ResourceExhausted | Code::OutOfRange => Kind::TooLarge,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Unavailable => Kind::Unavailable,
        Code::Unimplemented => Kind::Unsupported,
        // A message that cannot be read: tonic calls that internal, but it is the client's.
        _ => Kind::InvalidArgument,
    }
}

/// Brings an answer to a gRPC call into its form and tells the error if it is a failure: `grpc-status` in the head, HTTP
/// status 200, no body.
pub(in super::super) fn settle(response: &mut Response, refused: Option<Arc<Error>>, max_body_bytes: usize) -> Option<Arc<Error>> {
    if let Some(error) = refused {
        *response = refusal(&error);
        return Some(error);
    }
    let told = response.extensions_mut().remove::<Status>();
    // What tonic answers for a call that its service does not have is in the head alone.
    let status = told.or_else(|| Status::from_header_map(response.headers())).filter(|status| status.code() != Code::Ok)?;
    if let Some(error) = status.source().and_then(|source| source.downcast_ref::<Error>()) {
        let source = error.source().map(ToString::to_string);
        return Some(Arc::new(match source {
            Some(source) => Error::internal(error.message(), source),
            None => Error::new(error.kind(), error.message()),
        }));
    }
    let kind = kind_of(status.code());
    let message = match kind {
        Kind::TooLarge => format!("the message is larger than the limit of {max_body_bytes} bytes (--max-body): {}", status.message()),
        Kind::Unsupported if status.message().is_empty() => "the service has no such call".to_owned(),
        _ => status.message().to_owned(),
    };
    let error = Arc::new(Error::new(kind, message));
    *response = refusal(&error);
    Some(error)
}

/// The answer that says `error`.
fn refusal(error: &Error) -> Response {
    let mut response: Response = Status::new(Code::from(codes(error.kind()).grpc), error.message()).into_http();
    *response.status_mut() = StatusCode::OK;
    response.extensions_mut().remove::<Status>();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(response: &Response) -> (&str, &str) {
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
        (header("grpc-status"), header("grpc-message"))
    }

    #[test]
    fn only_grpc_is_grpc() {
        for (kind, grpc) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false), ("application/json", false)]
        {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), grpc, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn the_error_behind_a_status_is_told_with_its_kind_and_source() {
        for &kind in Kind::ALL {
            let mut response = failed(Error::new(kind, "why"));
            let error = settle(&mut response, None, 1).unwrap();
            assert_eq!((error.kind(), error.message()), (kind, "why"));
            assert_eq!(status(&response), (&*codes(kind).grpc.to_string(), "why"));
        }
        let mut response = failed(Error::internal("public", "secret"));
        assert_eq!(settle(&mut response, None, 1).unwrap().source().unwrap().to_string(), "secret");
        assert_eq!(status(&response), ("13", "public"));
    }

    #[test]
    fn tonics_own_statuses_become_errors_that_name_the_limit() {
        let mut response: Response = Status::out_of_range("found 9 bytes").into_http();
        let error = settle(&mut response, None, 5).unwrap();
        assert_eq!(error.kind(), Kind::TooLarge);
        let (code, message) = status(&response);
        assert_eq!(code, "8");
        assert!(message.contains("--max-body") && message.contains("found%209%20bytes"), "{message}");
        let mut response: Response = Status::internal("failed to decode Protobuf message").into_http();
        assert_eq!(settle(&mut response, None, 5).unwrap().kind(), Kind::InvalidArgument);
        assert_eq!(status(&response).0, "3");
    }

    #[test]
    fn what_the_layers_refuse_is_an_answer_too() {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_FOUND;
        settle(&mut response, Some(Arc::new(Error::new(Kind::Overloaded, "full"))), 1).unwrap();
        assert_eq!((response.status(), status(&response)), (StatusCode::OK, ("14", "full")));
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/grpc");
        assert!(settle(&mut Response::default(), None, 1).is_none());
    }
}
