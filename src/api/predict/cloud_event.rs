//! CloudEvents around a prediction, as KServe has them: attributes in `ce-` headers with the body as it is (binary mode), or an
//! event in JSON whose `data` is the body (structured mode). The answer comes in the mode of the request.

use axum::body::Bytes;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};

use super::super::json::{JsonError, Reader, Writer};
use crate::error::Error;

/// The content type of structured mode.
pub(super) const STRUCTURED: &str = "application/cloudevents+json";
/// What answers are, by KServe's name.
const TYPE: &str = "io.kserve.inference.response";
/// Where answers come from, before the model's name.
const SOURCE: &str = "io.kserve.inference.";

/// How a request carries an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It does not.
    None,
    Binary,
    Structured,
}

impl Event {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_type.split(';').next().map(str::trim) {
            Some(kind) if kind.eq_ignore_ascii_case(STRUCTURED) => Self::Structured,
            _ if headers.contains_key("ce-specversion") => Self::Binary,
            _ => Self::None,
        }
    }

    /// The request's body without the event around it.
    ///
    /// # Errors
    /// `InvalidArgument` if a structured event is no JSON object with `data` or `data_base64`.
    pub(super) fn data(self, body: Bytes) -> Result<Bytes, Error> {
        if self != Self::Structured {
            return Ok(body);
        }
        let mut data = None;
        let mut reader = Reader::new(&body);
        reader.object(|reader, key| {
            reader.peek()?;
            let start = reader.at();
            match &*key {
                "data" => {
                    reader.skip()?;
                    data = Some(body.slice(start..reader.at()));
                    Ok(())
                }
                "data_base64" => {
                    let wrong = |error| JsonError::value(start, format!("is no base64: {error}")).under("data_base64");
                    data = Some(STANDARD.decode(&*reader.string()?).map_err(wrong)?.into());
                    Ok(())
                }
                _ => reader.skip(),
            }
        })?;
        reader.end()?;
        data.ok_or_else(|| Error::invalid(format!("the event ({STRUCTURED}) has no `data`")))
    }

    /// The content type and the body of an answer.
    pub(super) fn wrap(self, body: Vec<u8>, model: &str, id: &str) -> (&'static str, Vec<Bytes>) {
        if self != Self::Structured {
            return ("application/json", vec![body.into()]);
        }
        let mut head = Writer::with_capacity(192);
        head.raw("{\"specversion\":\"1.0\",\"id\":").string(id).raw(",\"source\":").string(&format!("{SOURCE}{model}"));
        head.raw(",\"type\":").string(TYPE).raw(",\"datacontenttype\":\"application/json\",\"data\":");
        (STRUCTURED, vec![head.into_bytes().into(), body.into(), Bytes::from_static(b"}")])
    }

    /// Sets the attributes of an answer.
    pub(super) fn answer(self, response: &mut Response, model: &str, id: &str) {
        if self != Self::Binary {
            return;
        }
        let attributes = [("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", &format!("{SOURCE}{model}")), ("ce-type", TYPE)];
        for (name, value) in attributes {
            // A name that no header can carry is left out rather than changed.
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_in_the_headers() {
        let of = |name: &'static str, value| {
            Event::of(&HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))]))
        };
        assert_eq!(of("content-type", "application/cloudevents+json; charset=UTF-8"), Event::Structured);
        assert_eq!(of("ce-specversion", "1.0"), Event::Binary);
        assert_eq!(of("content-type", "application/json"), Event::None);
    }

    #[test]
    fn data_is_taken_out_and_answers_are_wrapped() {
        let data = |body: &'static str| Event::Structured.data(Bytes::from_static(body.as_bytes()));
        assert_eq!(data(r#"{"id":"1","data": {"instances":[1]} ,"type":"t"}"#).unwrap(), r#"{"instances":[1]}"#);
        assert_eq!(data(r#"{"data_base64":"e30="}"#).unwrap(), "{}");
        for (body, want) in [
            (r#"{"id":"1"}"#, "has no `data`"),
            (r#"{"data_base64":"?"}"#, "data_base64 is no base64"),
            ("[]", "the body is an array where an object is wanted"),
            (r#"{"data":1} x"#, "expected the end"),
        ] {
            let message = data(body).unwrap_err().message().to_owned();
            assert!(message.contains(want), "{message}");
        }
        assert_eq!(Event::Binary.data(Bytes::from_static(b"x")).unwrap(), "x");
        let (content_type, pieces) = Event::Structured.wrap(b"{}".to_vec(), "m", "7");
        let want = concat!(
            r#"{"specversion":"1.0","id":"7","source":"io.kserve.inference.m","type":"io.kserve.inference.response","#,
            r#""datacontenttype":"application/json","data":{}}"#
        );
        assert_eq!((content_type, pieces.concat()), (STRUCTURED, want.as_bytes().to_vec()));
    }
}
