//! The model repository extension: which models there are, loading them, or loading them anew, and unloading them.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::Shared;
use super::super::error::Failure;
use super::super::path::ModelPath;
use super::{json, object};
use crate::error::{Error, Kind};
use crate::serve::{Overrides, State as VersionState, Unload, VersionStatus};

/// One version in the index.
#[derive(Debug, Serialize)]
pub(in super::super) struct Row {
    pub(in super::super) name: String,
    pub(in super::super) version: String,
    pub(in super::super) state: String,
    pub(in super::super) reason: String,
}

/// A parameter of loading or unloading.
#[derive(Clone, Debug)]
pub(in super::super) enum Parameter {
    Bool(bool),
    Text(String),
    Bytes(Bytes),
}

/// Every version, or those that are ready.
///
/// # Errors
/// If a repository is named.
pub(in super::super) fn index(shared: &Shared, repository: &str, ready: bool) -> Result<Vec<Row>, Error> {
    only_one(repository)?;
    let rows = shared.repository.list().into_iter().flat_map(|model| {
        let name = model.name;
        model.versions.into_iter().map(move |version| row(&name, &version))
    });
    Ok(rows.filter(|row| !ready || row.state == "READY").collect())
}

fn row(name: &str, version: &VersionStatus) -> Row {
    let state = match &version.state {
        VersionState::Ready(_) => "READY",
        VersionState::Loading => "LOADING",
        VersionState::Unloading => "UNLOADING",
        VersionState::Failed(_) | VersionState::Unloaded => "UNAVAILABLE",
    };
    Row { name: name.to_owned(), version: version.version.clone(), state: state.to_owned(), reason: version.reason().to_owned() }
}

fn only_one(repository: &str) -> Result<(), Error> {
    let named = || Error::new(Kind::Unsupported, format!("repository `{repository}`: there is one repository; leave the name out"));
    if repository.is_empty() { Ok(()) } else { Err(named()) }
}

/// Loads a model, or loads it anew. It answers with the new contents by the time this returns.
///
/// # Errors
/// As `Repository::load_model`; `InvalidArgument` for a parameter that there is not.
pub(in super::super) async fn load(
    shared: &Shared,
    repository: &str,
    model: &str,
    parameters: Vec<(String, Parameter)>,
) -> Result<(), Error> {
    only_one(repository)?;
    let mut overrides = Overrides::default();
    for (key, value) in parameters {
        match (key.as_str(), value) {
            ("config", Parameter::Text(text)) => overrides.config = Some(text),
            ("config", _) => return Err(Error::invalid("parameter `config` must be the configuration as JSON text")),
            (_, Parameter::Bytes(bytes)) => overrides.add_file(&key, bytes)?,
            (_, Parameter::Text(text)) => {
                let bytes = BASE64.decode(text).map_err(|error| Error::invalid(format!("parameter `{key}` is no base64: {error}")))?;
                overrides.add_file(&key, bytes.into())?;
            }
            (_, Parameter::Bool(_)) => {
                return Err(Error::invalid(format!("parameter `{key}` is not known; known are `config` and `file:…`")));
            }
        }
    }
    // Triton's rule: without it, the settings that were written for the repository's files would be used for others.
    if !overrides.files.is_empty() && overrides.config.is_none() {
        return Err(Error::invalid("files are given without the parameter `config`, which says what they are"));
    }
    shared.repository.load_model(model, overrides).await
}

/// Takes a model out of service.
///
/// # Errors
/// As `Repository::unload_model`; `InvalidArgument` for a parameter that there is not.
pub(in super::super) async fn unload(
    shared: &Shared,
    repository: &str,
    model: &str,
    parameters: Vec<(String, Parameter)>,
) -> Result<(), Error> {
    only_one(repository)?;
    let mut unload = Unload::default();
    for (key, value) in parameters {
        match (key.as_str(), value) {
            ("unload_dependents", Parameter::Bool(dependents)) => unload.dependents = dependents,
            ("unload_dependents", _) => return Err(Error::invalid("parameter `unload_dependents` must be true or false")),
            _ => return Err(Error::invalid(format!("parameter `{key}` is not known; known is `unload_dependents`"))),
        }
    }
    shared.repository.unload_model(model, unload).await
}

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v2/repository/index", post(rest_index))
        .route("/v2/repository/models/{model}/load", post(rest_load))
        .route("/v2/repository/models/{model}/unload", post(rest_unload))
}

async fn rest_index(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let request = object(&shared, &headers, body).await?;
    let ready = match request.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(other) => return Err(Error::invalid(format!("ready is {other} where true or false is wanted")).into()),
    };
    Ok(json(&index(&shared, "", ready)?)?)
}

async fn rest_load(State(shared): State<Arc<Shared>>, path: ModelPath, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let parameters = parameters(object(&shared, &headers, body).await?)?;
    load(&shared, "", &path.model, parameters).await?;
    Ok(Response::default())
}

async fn rest_unload(State(shared): State<Arc<Shared>>, path: ModelPath, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let parameters = parameters(object(&shared, &headers, body).await?)?;
    unload(&shared, "", &path.model, parameters).await?;
    Ok(Response::default())
}

/// The member `parameters` of a request.
fn parameters(request: Map<String, Value>) -> Result<Vec<(String, Parameter)>, Error> {
    let given = match request.into_iter().find(|(key, _)| key == "parameters") {
        None => return Ok(Vec::new()),
        Some((_, Value::Object(given))) => given,
        Some((_, other)) => return Err(Error::invalid(format!("parameters is {other} where an object is wanted"))),
    };
    let parameter = |(key, value)| match value {
        Value::Bool(value) => Ok((key, Parameter::Bool(value))),
        Value::String(text) => Ok((key, Parameter::Text(text))),
        other => Err(Error::invalid(format!("parameter `{key}` is {other} where text or true or false is wanted"))),
    };
    given.into_iter().map(parameter).collect()
}
