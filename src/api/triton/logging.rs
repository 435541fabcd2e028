//! The logging extension: what is logged, changed while the server runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::Shared;
use super::super::error::Failure;
use super::super::openapi::{Doc, Routes};
use super::{TAG, json, object};
use crate::error::{Error, Kind};
use crate::telemetry::{Control, Levels};

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(in super::super) enum Value {
    Bool(bool),
    Number(u32),
    Text(String),
}

/// Every setting with its value.
type Settings = Vec<(&'static str, Value)>;

/// Lines carry the time as ISO 8601 has it; Triton's other format is not offered.
const FORMAT: &str = "ISO8601";

/// What is logged.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct LogSettings {
    /// Empty: the log goes to stderr.
    log_file: String,
    log_info: bool,
    log_warning: bool,
    log_error: bool,
    /// 1 adds debug lines, 2 trace lines.
    log_verbose_level: u32,
    log_format: String,
}

/// Settings of the log to change.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct LogChange {
    log_info: Option<bool>,
    log_warning: Option<bool>,
    log_error: Option<bool>,
    log_verbose_level: Option<u32>,
}

pub(super) fn routes() -> Routes {
    let read_doc = Doc::new("What is logged.").json::<LogSettings>().fails(&[Kind::Unsupported]);
    let write_doc = Doc::new("Change what is logged.").takes::<LogChange>().body_optional().json::<LogSettings>();
    let path = "/v2/logging";
    Routes::new(TAG).get(path, read, read_doc).post(path, write, write_doc.fails(&[Kind::Unsupported]))
}

async fn read() -> Result<Response, Failure> {
    answer(change(Vec::new())?)
}

async fn write(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let given = object(&shared, &headers, body).await?;
    let value = |(key, value): (String, serde_json::Value)| {
        let value = match value {
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Number(number) => {
                let level = number.as_u64().and_then(|number| u32::try_from(number).ok());
                Value::Number(level.ok_or_else(|| Error::invalid(format!("{key} is {number} where a whole number is wanted")))?)
            }
            other => return Err(Error::invalid(format!("{key} is {other} where a plain value is wanted"))),
        };
        Ok((key, value))
    };
    answer(change(given.into_iter().map(value).collect::<Result<_, Error>>()?)?)
}

fn answer(settings: Settings) -> Result<Response, Failure> {
    Ok(json(&settings.into_iter().collect::<BTreeMap<_, _>>())?)
}

/// Takes the settings that are given and tells all.
///
/// # Errors
/// `InvalidArgument` for a setting that there is not, has another type or value, in which case none is taken; `Unsupported` if
/// another part of the process logs.
pub(in super::super) fn change(given: Vec<(String, Value)>) -> Result<Settings, Error> {
    let unsupported = || Error::new(Kind::Unsupported, "the process that the server is a part of does its own logging");
    change_in(Control::global().ok_or_else(unsupported)?, given)
}

fn change_in(control: &Control, given: Vec<(String, Value)>) -> Result<Settings, Error> {
    let changed = given.iter().try_fold(control.levels(), |levels, (key, value)| set(levels, key, value)).map_err(Error::invalid)?;
    if !given.is_empty() {
        control.set(changed).map_err(|error| Error::internal("the log level could not be changed", error))?;
        tracing::info!(?changed, "what is logged was changed by a client");
    }
    let Levels { info, warning, error, verbose } = changed;
    Ok(vec![
        ("log_file", Value::Text(String::new())),
        ("log_info", Value::Bool(info)),
        ("log_warning", Value::Bool(warning)),
        ("log_error", Value::Bool(error)),
        ("log_verbose_level", Value::Number(verbose)),
        ("log_format", Value::Text(FORMAT.to_owned())),
    ])
}

fn set(mut levels: Levels, key: &str, value: &Value) -> Result<Levels, String> {
    match (key, value) {
        ("log_info", Value::Bool(on)) => levels.info = *on,
        ("log_warning", Value::Bool(on)) => levels.warning = *on,
        ("log_error", Value::Bool(on)) => levels.error = *on,
        ("log_verbose_level", Value::Number(level)) => levels.verbose = *level,
        ("log_file", Value::Text(file)) if file.is_empty() => {}
        ("log_file", _) => return Err("log_file cannot be set: the log goes to stderr, for the supervisor to keep".to_owned()),
        ("log_format", Value::Text(format)) if format == FORMAT => {}
        ("log_format", _) => return Err(format!("log_format must be {FORMAT}; `--log-format` chooses text or JSON at the start")),
        ("log_info" | "log_warning" | "log_error", _) => return Err(format!("{key} must be true or false")),
        ("log_verbose_level", _) => return Err("log_verbose_level must be a whole number, 0 or more".to_owned()),
        _ => return Err(format!("`{key}` is no log setting")),
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_taken_all_or_none() {
        let (_layer, control) = Control::new::<tracing_subscriber::Registry>("info").unwrap();
        let given = |pairs: &[(&str, Value)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Vec<_>>();
        let all = change_in(&control, Vec::new()).unwrap();
        assert_eq!(
            all[1..5].iter().map(|pair| pair.1.clone()).collect::<Vec<_>>(),
            [Value::Bool(true), Value::Bool(true), Value::Bool(true), Value::Number(0)]
        );
        let changed = given(&[("log_info", Value::Bool(false)), ("log_verbose_level", Value::Number(1))]);
        change_in(&control, changed).unwrap();
        assert_eq!(control.levels(), Levels { info: false, warning: true, error: true, verbose: 1 });
        for (key, value, want) in [
            ("log_file", Value::Text("/etc/passwd".into()), "log_file cannot be set"),
            ("log_format", Value::Text("default".into()), "log_format must be ISO8601"),
            ("log_info", Value::Number(1), "log_info must be true or false"),
            ("log_verbose_level", Value::Bool(true), "log_verbose_level must be a whole number"),
            ("log_everything", Value::Bool(true), "`log_everything` is no log setting"),
        ] {
            let error = change_in(&control, given(&[("log_info", Value::Bool(true)), (key, value)])).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.message().contains(want), "{error}");
            assert!(!control.levels().info, "nothing is taken of a wrong request");
        }
    }
}
