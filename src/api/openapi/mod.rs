//! Routes with what they promise: the router and the OpenAPI document are made of the same list, so they cannot drift.
//!
//! A protocol gives each route its handler and a [`Doc`] in one call of [`Routes`]; the schemas come from the types of its
//! messages (`schemars`). `/openapi.json` shows the document with the names and an example of the models that are served,
//! `/docs` shows it to people.

mod document;
mod example;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodFilter, get, on};
use http::{HeaderValue, header};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::Shared;
use super::layers::json_response;
use crate::error::Kind;

/// A method of a path, as the document has it.
#[derive(Clone, Debug)]
struct Operation {
    tag: &'static str,
    method: &'static str,
    path: String,
    doc: Doc,
}

/// What a route takes and gives.
#[derive(Clone, Debug)]
pub(super) struct Doc {
    summary: &'static str,
    request: Vec<Content>,
    answer: Vec<Content>,
    request_headers: &'static [Header],
    answer_headers: &'static [Header],
    errors: Vec<Kind>,
    example: Option<Example>,
    body_required: bool,
}

/// A body of one content type.
#[derive(Clone, Copy, Debug)]
struct Content {
    content_type: &'static str,
    /// `None`: bytes or text that no schema describes.
    schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// A header: its name, and what it says.
pub(super) type Header = (&'static str, &'static str);

/// Which example of a request is made from a model's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Example {
    /// Rows, of one model or of the default one.
    Instances,
    /// Named tensors.
    Tensors,
}

/// What any request may meet: a head over the limit, a server with too much to do, a bug.
const ANY: [Kind; 7] = [
    Kind::HeadersTooLarge,
    Kind::Unauthenticated,
    Kind::PermissionDenied,
    Kind::RateLimited,
    Kind::Overloaded,
    Kind::Unavailable,
    Kind::Internal,
];
/// What a path with names may meet.
const NAMED: [Kind; 2] = [Kind::NotFound, Kind::InvalidArgument];
/// What a request with a body may meet.
const WITH_BODY: [Kind; 6] =
    [Kind::InvalidArgument, Kind::Timeout, Kind::TooLarge, Kind::UnsupportedEncoding, Kind::DeadlineExceeded, Kind::NotFound];

impl Doc {
    /// A route that does what `summary` says.
    pub(super) fn new(summary: &'static str) -> Self {
        let errors = ANY.to_vec();
        let (request, answer, example) = (vec![], vec![], None);
        Self { summary, request, answer, request_headers: &[], answer_headers: &[], errors, example, body_required: true }
    }

    /// It answers with JSON of `T`.
    pub(super) fn json<T: JsonSchema>(self) -> Self {
        self.answers("application/json", Some(|generator| generator.subschema_for::<T>()))
    }

    /// It answers with something that no schema describes.
    pub(super) fn bytes(self, content_type: &'static str) -> Self {
        self.answers(content_type, None)
    }

    fn answers(mut self, content_type: &'static str, schema: Option<fn(&mut SchemaGenerator) -> Schema>) -> Self {
        self.answer.push(Content { content_type, schema });
        self
    }

    /// It takes JSON of `T`.
    pub(super) fn takes<T: JsonSchema>(mut self) -> Self {
        self.request.push(Content { content_type: "application/json", schema: Some(|generator| generator.subschema_for::<T>()) });
        self.fails(&WITH_BODY)
    }

    /// It takes something that no schema describes.
    pub(super) fn takes_bytes(mut self, content_type: &'static str) -> Self {
        self.request.push(Content { content_type, schema: None });
        self.fails(&WITH_BODY)
    }

    /// It does without a body too.
    pub(super) fn body_optional(mut self) -> Self {
        self.body_required = false;
        self
    }

    /// It knows these headers of requests.
    pub(super) fn request_headers(mut self, headers: &'static [Header]) -> Self {
        self.request_headers = headers;
        self
    }

    /// It may set these headers.
    pub(super) fn answer_headers(mut self, headers: &'static [Header]) -> Self {
        self.answer_headers = headers;
        self
    }

    /// The document shows a request for a model that is served.
    pub(super) fn example(mut self, example: Example) -> Self {
        self.example = Some(example);
        self
    }

    /// It may fail in these ways too.
    pub(super) fn fails(mut self, kinds: &[Kind]) -> Self {
        self.errors.extend_from_slice(kinds);
        self
    }
}

/// Routes of one protocol, or of all.
#[derive(Debug)]
pub(super) struct Routes {
    tag: &'static str,
    router: Router<Arc<Shared>>,
    operations: Vec<Operation>,
}

impl Routes {
    /// No routes yet; `tag` is the heading under which they stand in the document.
    pub(super) fn new(tag: &'static str) -> Self {
        Self { tag, router: Router::new(), operations: Vec::new() }
    }

    fn documented(&mut self, method: &'static str, path: &str, mut doc: Doc) {
        if path.contains('{') {
            doc.errors.extend(NAMED);
        }
        self.operations.push(Operation { tag: self.tag, method, path: path.to_owned(), doc });
    }

    fn on<H: Handler<T, Arc<Shared>>, T: 'static>(mut self, filter: MethodFilter, path: &str, handler: H) -> Self {
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    /// `GET path`.
    pub(super) fn get<H: Handler<T, Arc<Shared>>, T: 'static>(mut self, path: &str, handler: H, doc: Doc) -> Self {
        self.documented("get", path, doc);
        self.on(MethodFilter::GET, path, handler)
    }

    /// `POST path`.
    pub(super) fn post<H: Handler<T, Arc<Shared>>, T: 'static>(self, path: &str, handler: H, doc: Doc) -> Self {
        self.post_as(path, path, handler, doc)
    }

    /// `PUT path`.
    pub(super) fn put<H: Handler<T, Arc<Shared>>, T: 'static>(mut self, path: &str, handler: H, doc: Doc) -> Self {
        self.documented("put", path, doc);
        self.on(MethodFilter::PUT, path, handler)
    }

    /// `DELETE path`.
    pub(super) fn delete<H: Handler<T, Arc<Shared>>, T: 'static>(mut self, path: &str, handler: H, doc: Doc) -> Self {
        self.documented("delete", path, doc);
        self.on(MethodFilter::DELETE, path, handler)
    }

    /// `POST path`, which the document calls `shown`: what follows a parameter within a segment is the handler's to read.
    pub(super) fn post_as<H: Handler<T, Arc<Shared>>, T: 'static>(mut self, path: &str, shown: &str, handler: H, doc: Doc) -> Self {
        self.documented("post", shown, doc);
        self.on(MethodFilter::POST, path, handler)
    }

    /// What else a path of [`Routes::post_as`] does, under the name `shown`.
    pub(super) fn shown(mut self, shown: &str, doc: Doc) -> Self {
        self.documented("post", shown, doc);
        self
    }

    /// A second spelling of a path that is in the document already.
    pub(super) fn alias<H: Handler<T, Arc<Shared>>, T: 'static>(self, path: &str, handler: H) -> Self {
        self.on(MethodFilter::GET, path, handler)
    }

    /// These routes and those.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.operations.extend(other.operations);
        self
    }

    /// The router, with `/openapi.json` and `/docs`, which are in the document too.
    pub(super) fn into_router(self) -> Router<Arc<Shared>> {
        let own = Self::new("Description").get("/docs", docs, Doc::new("This page: the document for people.").bytes("text/html"));
        let mut all = self.merge(own);
        all.tag = "Description";
        all.documented("get", "/openapi.json", Doc::new("This document: every route with its messages.").json::<serde_json::Value>());
        let operations = Arc::new(all.operations);
        let show = move |State(shared): State<Arc<Shared>>| {
            let document = document::document(&operations, &shared.repository);
            std::future::ready(json_response(document.to_string().into_bytes()))
        };
        all.router.route("/openapi.json", get(show))
    }
}

/// A page of ours that needs nothing but `/openapi.json`.
async fn docs() -> Response {
    let mut response = Response::new(Body::from(include_str!("docs.html")));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    // Nothing is loaded from elsewhere, and the browser holds the page to it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}
