//! What a path says: which model, which version, which verb. And the answers to paths that say nothing known.

use std::future::{Ready, ready};

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use http::{HeaderMap, Method, Uri};

use super::error::Failure;
use super::grpc::is_grpc;
use crate::error::{Error, Kind};
use crate::serve::{Choice, Repository, Servable};

/// The model that a path names: the parameters `model`, `version` and `label`, percent-decoded once.
#[derive(Debug)]
pub(super) struct ModelPath {
    pub(super) model: String,
    pub(super) version: Option<String>,
    pub(super) label: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|_| Error::invalid(format!("path {}: the percent-encoding is not UTF-8", parts.uri.path())))?;
        let find = |wanted: &str| params.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.to_owned());
        Ok(Self { model: find("model").unwrap_or_default(), version: find("version"), label: find("label") })
    }
}

impl ModelPath {
    /// Who answers for it.
    ///
    /// # Errors
    /// As [`Repository::get`].
    pub(super) fn find(&self, repository: &Repository) -> Result<Servable, Error> {
        match &self.label {
            Some(label) => repository.get(&self.model, Choice::Label(label)),
            None => repository.get(&self.model, self.version.as_deref()),
        }
    }

    /// The last part of the path: the model's name, or a version or label of it.
    pub(super) fn last(&self) -> &str {
        self.version.as_ref().or(self.label.as_ref()).unwrap_or(&self.model)
    }

    /// Takes the verb of `model:verb`, `versions/version:verb` or `labels/label:verb` off the last parameter. The last colon counts, because a
    /// model's name may have one.
    pub(super) fn take_verb(&mut self) -> Option<String> {
        let last = self.version.as_mut().or(self.label.as_mut()).unwrap_or(&mut self.model);
        let (name, verb) = last.rsplit_once(':')?;
        let (name, verb) = (name.to_owned(), verb.to_owned());
        *last = name;
        Some(verb)
    }
}

/// A client of gRPC learns from its own status, not from 404, that there is no such service: it may then try another one.
pub(super) fn not_found(headers: HeaderMap, uri: Uri) -> Ready<Failure> {
    if is_grpc(&headers) {
        return ready(Error::new(Kind::Unsupported, format!("there is no service of the call {}", uri.path())).into());
    }
    let message = format!("path {} is not known; POST /predict, /v1/models/<model>:predict or /v2/models/<model>/infer", uri.path());
    ready(Error::new(Kind::NotFound, message).into())
}

pub(super) fn method_not_allowed(method: Method, uri: Uri) -> Ready<Failure> {
    ready(wrong_method(&method, uri.path()))
}

/// The layer adds which methods are allowed.
pub(super) fn wrong_method(method: &Method, path: &str) -> Failure {
    Error::new(Kind::MethodNotAllowed, format!("method {method} is not allowed on {path}")).into()
}
