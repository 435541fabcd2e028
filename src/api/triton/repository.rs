//! The model repository extension: which models there are, loading them, or loading them anew, and unloading them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::super::Shared;
use super::super::error::Failure;
use super::super::openapi::{Doc, Routes};
use super::super::path::ModelPath;
use super::{TAG, json, object};
use crate::error::{Error, Kind};
use crate::serve::{Overrides, State as VersionState, Unload, VersionStatus};

/// One version in the index.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RepositoryRow")]
pub(in super::super) struct Row {
    /// The model.
    pub(in super::super) name: String,
    pub(in super::super) version: String,
    /// `READY`, `LOADING`, `UNLOADING`, or `UNAVAILABLE` for what failed or was unloaded.
    pub(in super::super) state: String,
    /// Why it is in this state.
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

/// What the index shows.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct IndexRequest {
    /// Whether only versions that are ready are wanted.
    ready: Option<bool>,
}

/// How to load a model.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct LoadRequest {
    /// `config`: a `ModelConfig` as JSON text, which goes before the model's own settings; `file:<version>/<name>`: the contents
    /// of a file in base64, which needs `config`.
    parameters: Option<BTreeMap<String, String>>,
}

/// How to unload a model.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct UnloadRequest {
    parameters: Option<UnloadParameters>,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct UnloadParameters {
    /// Also the models that a pipeline has as steps.
    unload_dependents: Option<bool>,
}

pub(super) fn routes() -> Routes {
    let index = Doc::new("Every version with its state.").takes::<IndexRequest>().body_optional().json::<Vec<Row>>();
    let load = Doc::new("Load a model, or load it anew; it serves throughout.").takes::<LoadRequest>().body_optional();
    let unload = Doc::new("Take a model out of service.").takes::<UnloadRequest>().body_optional();
    Routes::new(TAG).post("/v2/repository/index", rest_index, index).post("/v2/repository/models/{model}/load", rest_load, load).post(
        "/v2/repository/models/{model}/unload",
        rest_unload,
        unload,
    )
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
