//! Labels of a model's versions, read and set while the server runs. No protocol of others has this; it stands beside loading
//! and unloading, and needs what these need.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use schemars::JsonSchema;
use serde::Serialize;

use super::error::Failure;
use super::layers::json;
use super::openapi::{Doc, Routes};
use super::path::ModelPath;
use super::{Shared, body};
use crate::error::Error;
use crate::serve::Label;

/// What a label stands for: either `version` or `split`.
#[derive(Debug, Serialize, JsonSchema)]
struct LabelRule {
    /// The version that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Versions with the share of requests that each gets, in proportion to the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<BTreeMap<String, u32>>,
    /// Another version that is asked the same, without its answer being used.
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<LabelMirror>,
}

/// The version that gets copies of a label's requests.
#[derive(Debug, Serialize, JsonSchema)]
struct LabelMirror {
    version: String,
    /// The part of the requests that is copied: above 0, at most 1. Without it all.
    #[serde(default)]
    share: Option<f64>,
}

impl From<Label> for LabelRule {
    fn from(Label { split, mirror }: Label) -> Self {
        let mirror = mirror.map(|mirror| LabelMirror { version: mirror.version, share: Some(mirror.share) });
        match split.as_slice() {
            [(version, _)] => Self { version: Some(version.clone()), split: None, mirror },
            _ => Self { version: None, split: Some(split.into_iter().collect()), mirror },
        }
    }
}

/// The labels of a model, by name.
type Labels = BTreeMap<String, LabelRule>;

/// `/v2/repository/models/{model}/labels` and below: what begins with `/v2/repository/` is administration.
pub(super) fn routes() -> Routes {
    let all = "/v2/repository/models/{model}/labels";
    let one = "/v2/repository/models/{model}/labels/{label}";
    let doc = |summary| Doc::new(summary).json::<Labels>();
    Routes::new("Labels")
        .get(all, read, doc("The labels of a model, each with what it stands for."))
        .put(
            one,
            set,
            doc("Set what a label stands for. It holds until the server ends, before the model's settings.").takes::<LabelRule>(),
        )
        .delete(one, remove, doc("Remove a label, also one of the model's settings. It holds until the server ends."))
}

async fn read(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    answer(&shared, &path)
}

async fn set(State(shared): State<Arc<Shared>>, path: ModelPath, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let bytes = body::read(&headers, body, &shared.limits).await?;
    let rule: Label = serde_json::from_slice(&bytes).map_err(|error| {
        let wanted =
            r#"{"version": "2"} or {"split": {"1": 90, "2": 10}} is wanted, with or without "mirror": {"version": "3", "share": 0.1}"#;
        Error::invalid(format!("the body is no rule for a label: {error}; {wanted}"))
    })?;
    change(&shared, &path, Some(rule))
}

async fn remove(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    change(&shared, &path, None)
}

fn change(shared: &Shared, path: &ModelPath, rule: Option<Label>) -> Result<Response, Failure> {
    let label = path.label.as_deref().unwrap_or_default();
    shared.repository.set_label(&path.model, label, rule.clone())?;
    tracing::info!(model = path.model, label, ?rule, "a label was changed by a client");
    answer(shared, path)
}

fn answer(shared: &Shared, path: &ModelPath) -> Result<Response, Failure> {
    let labels: Labels = shared.repository.labels(&path.model)?.into_iter().map(|(name, label)| (name, label.into())).collect();
    Ok(json(&labels)?)
}
