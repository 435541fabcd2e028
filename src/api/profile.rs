//! `?profile=1`: the answer of a model with the time per operator of that request.
//!
//! The member `profile` is put at the end of the answer's JSON object: a client that does not know it reads on as before.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::BodyExt;

use super::error::Failure;
use super::json::Writer;
use crate::error::{Error, Kind};
use crate::trace::Pass;

/// Where the JSON of a binary answer ends.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Whether the request wants a profile.
pub(super) fn wanted(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| matches!(pair, "profile=1" | "profile=true")))
}

/// Asks for an answer that can be added to.
pub(super) fn prepare<B>(request: &mut Request<B>) {
    request.headers_mut().remove(header::ACCEPT_ENCODING);
}

/// Puts the times of `passes` into the answer.
pub(super) async fn attach(response: Response, passes: &[Pass]) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return failed("the answer could not be read");
    };
    let json_length = parts.headers.get(JSON_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let json = json_length.unwrap_or(body.len());
    let Some(end) = body.get(..json).and_then(end_of_object) else {
        return failed("the answer of this route is no JSON object, so that it cannot hold a profile");
    };
    if !passes.iter().any(|pass| pass.operators.is_some()) {
        return failed("this route runs no model, so that there is no profile");
    }
    let member = write(passes);
    let mut all = BytesMut::with_capacity(body.len() + member.len());
    for part in [&body[..end], &member, &body[end..]] {
        all.extend_from_slice(part);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    if json_length.is_some() {
        parts.headers.insert(JSON_LENGTH, HeaderValue::from(json + member.len()));
    }
    Response::from_parts(parts, Body::from(all.freeze()))
}

fn failed(message: &str) -> Response {
    let failure = Failure(Arc::new(Error::new(Kind::Unsupported, message)));
    let mut response = failure.into_response();
    super::error::render(&mut response, Kind::Unsupported, message);
    response
}

/// Where the brace is that ends the object, if it is one with members.
fn end_of_object(json: &[u8]) -> Option<usize> {
    let text = json.trim_ascii_end();
    (text.first() == Some(&b'{') && text.len() > 2 && text.last() == Some(&b'}')).then(|| text.len() - 1)
}

/// `,"profile":[{"model","version","queue_ms","compute_ms","operators":[{"node","operator","ms"}]}]`, the slowest first.
fn write(passes: &[Pass]) -> Bytes {
    let mut writer = Writer::default();
    writer.raw(",\"profile\":[").list(passes, |writer, pass| {
        let (model, version) = &pass.model;
        let (from, to) = pass.ran.unwrap_or((pass.queued, pass.queued));
        writer.raw("{\"model\":").string(model).raw(",\"version\":").string(version);
        writer.raw(",\"queue_ms\":").raw(&millis(from.saturating_duration_since(pass.queued)));
        writer.raw(",\"compute_ms\":").raw(&millis(to.saturating_duration_since(from)));
        let mut operators = pass.operators.clone().unwrap_or_default();
        operators.sort_by_key(|operator| std::cmp::Reverse(operator.time));
        writer.raw(",\"operators\":[").list(operators, |writer, operator| {
            writer.raw("{\"node\":").string(&operator.node).raw(",\"operator\":").string(&operator.operator);
            writer.raw(",\"ms\":").raw(&millis(operator.time)).raw("}");
        });
        writer.raw("]}");
    });
    writer.raw("]");
    writer.into_bytes().into()
}

fn millis(duration: Duration) -> String {
    format!("{:.6}", duration.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parameter_itself_asks() {
        for (uri, want) in [
            ("/predict?profile=1", true),
            ("/predict?a=b&profile=true", true),
            ("/predict", false),
            ("/predict?profile=0", false),
            ("/predict?noprofile=1", false),
            ("/profile=1", false),
        ] {
            assert_eq!(wanted(&uri.parse().unwrap()), want, "{uri}");
        }
    }

    #[test]
    fn the_end_of_an_object_is_found() {
        for (json, want) in [("{\"a\":1}", Some(6)), ("{\"a\":{}}\n", Some(7)), ("[1]", None), ("{}", None), ("", None)] {
            assert_eq!(end_of_object(json.as_bytes()), want, "{json}");
        }
    }
}
