//! Cross-origin requests: which web pages of other origins may read this server's answers. None, unless configured.
//!
//! By the Fetch standard: a browser asks before a request that a form could not have sent (the preflight, `OPTIONS`), and
//! shows an answer to the page only if the answer names the page's origin.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

/// How long a browser may remember the answer to a preflight, in seconds; browsers cut it to two hours or less.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS");
/// What a client of the protocols sends beyond what is always allowed.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-encoding, content-type, inference-header-content-length, traceparent, tracestate, x-api-key, \
     x-request-id, x-request-timeout-ms",
);
/// What a page may read of an answer beyond what is always allowed.
const ANSWER_HEADERS: HeaderValue =
    HeaderValue::from_static("inference-header-content-length, retry-after, server-timing, traceparent, x-request-id");

/// The origins that may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// From origins such as `https://example.com`; `*` is any.
    ///
    /// # Errors
    /// Names what is no origin.
    pub fn new(origins: &[String]) -> Result<Self, String> {
        let mut cors = Self::default();
        for origin in origins {
            if origin == "*" {
                cors.any = true;
                continue;
            }
            // A browser sends scheme, host and port, never a path: with one it would silently match nothing.
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let valid =
                rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '*', ' '])) && !origin.contains(char::is_uppercase);
            match HeaderValue::from_str(origin) {
                Ok(value) if valid => cors.origins.push(value),
                _ => {
                    return Err(format!(
                        "`{origin}` is neither `*` nor an origin such as https://example.com, in lower case and without a path"
                    ));
                }
            }
        }
        Ok(cors)
    }

    /// The value of `Access-Control-Allow-Origin` for a request, if its page may read the answer.
    pub(in crate::api) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if !self.any && self.origins.is_empty() {
            return None;
        }
        let origin = headers.get(header::ORIGIN)?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.iter().find(|known| *known == origin).cloned()
    }

    /// The answer, if the request is a preflight of a page that may.
    pub(in crate::api) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        if method != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        self.allowed(headers)?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        Some(response)
    }

    /// Tells the browser that the page of `origin` may read the answer.
    pub(in crate::api) fn allow(&self, response: &mut Response, origin: HeaderValue) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ANSWER_HEADERS);
        if !self.any {
            // A cache must not show the answer for one origin to another.
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str]) -> Result<Cors, String> {
        Cors::new(&origins.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>())
    }

    fn from(origin: &'static str) -> HeaderMap {
        [(header::ORIGIN, HeaderValue::from_static(origin))].into_iter().collect()
    }

    #[test]
    fn only_configured_origins_may_read() {
        let some = cors(&["https://a.example", "http://localhost:3000"]).unwrap();
        assert_eq!(some.allowed(&from("https://a.example")).unwrap(), "https://a.example");
        for other in ["https://b.example", "http://a.example", "https://a.example:444", "https://a.example.evil.org", "null"] {
            assert_eq!(some.allowed(&from(other)), None, "{other}");
        }
        assert_eq!(some.allowed(&HeaderMap::new()), None, "no browser");
        assert_eq!(cors(&["*"]).unwrap().allowed(&from("https://b.example")).unwrap(), "*");
        assert_eq!(Cors::default().allowed(&from("https://a.example")), None);
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for wrong in ["example.com", "https://a.example/", "https://*.example.com", "ftp://a", "https://A.example", "https://", ""] {
            assert!(cors(&[wrong]).unwrap_err().starts_with(&format!("`{wrong}` is neither")), "{wrong}");
        }
    }

    #[test]
    fn a_preflight_is_one_only_if_it_asks() {
        let any = cors(&["*"]).unwrap();
        let mut headers = from("https://a.example");
        assert!(any.preflight(&Method::OPTIONS, &headers).is_none());
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
        assert!(any.preflight(&Method::POST, &headers).is_none());
        assert_eq!(any.preflight(&Method::OPTIONS, &headers).unwrap().status(), StatusCode::NO_CONTENT);
        assert!(Cors::default().preflight(&Method::OPTIONS, &headers).is_none());
    }
}
