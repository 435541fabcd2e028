//! The trace extension: which requests get a line in the log with the time of each phase.
//!
//! What is kept: on or off, one of how many requests, and how many lines in all, for the server and for each model apart. A
//! file cannot be chosen from afar, tensors are never written down, and lines are not gathered; a setting that asks for these
//! is refused.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use schemars::JsonSchema;
use serde_json::Value;

use super::super::Shared;
use super::super::error::Failure;
use super::super::metrics::Phases;
use super::super::openapi::{Doc, Routes};
use super::super::path::ModelPath;
use super::{TAG, json, object};
use crate::error::Error;
use crate::serve::Servable;

/// Which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    on: bool,
    /// One of so many requests.
    rate: u64,
    /// Lines that may still be written; `None` for any number.
    count: Option<u64>,
}

impl Default for Setting {
    /// Triton's.
    fn default() -> Self {
        Self { on: false, rate: 1000, count: None }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Sampling {
    setting: Setting,
    /// Requests since the setting was changed.
    seen: u64,
}

#[derive(Debug, Default)]
struct Table {
    server: Sampling,
    models: HashMap<String, Sampling>,
}

/// The trace settings of a server and its models.
#[derive(Debug, Default)]
pub(in super::super) struct Traces {
    /// Whether any setting is on: the one thing that an untraced request asks.
    any: AtomicBool,
    table: Mutex<Table>,
}

impl Traces {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the line of an answered request, if it is one of those to be traced.
    pub(in super::super) fn record(&self, handle: &Servable, phases: &Phases) {
        if !self.any.load(Relaxed) || !self.sampled(handle.name()) {
            return;
        }
        let ns = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        tracing::info!(
            target: "ndserve::trace",
            model = handle.name(),
            version = handle.version(),
            parse_ns = ns(phases.parse),
            queue_ns = ns(phases.queue),
            compute_ns = ns(phases.compute),
            serialize_ns = ns(phases.serialize),
            "trace"
        );
    }

    /// Counts a request of a model; tells whether it is traced.
    fn sampled(&self, model: &str) -> bool {
        let mut table = self.lock();
        let Table { server, models } = &mut *table;
        let state = models.get_mut(model).unwrap_or(server);
        if !state.setting.on {
            return false;
        }
        state.seen += 1;
        // The first of each `rate` requests.
        if (state.seen - 1) % state.setting.rate != 0 {
            return false;
        }
        match &mut state.setting.count {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// Takes the settings of the server, or of a model, and tells all. A setting without a value goes back to the server's, or
    /// to what it was at the start.
    fn change(&self, model: Option<&str>, given: &[(String, Vec<String>)]) -> Result<Setting, String> {
        let mut table = self.lock();
        let fallback = if model.is_some() { table.server.setting } else { Setting::default() };
        let now = model.map_or(Some(&table.server), |model| table.models.get(model)).map_or(fallback, |state| state.setting);
        let setting = given.iter().try_fold(now, |setting, (key, values)| set(setting, key, values, &fallback))?;
        if !given.is_empty() {
            let state = Sampling { setting, seen: 0 };
            match model {
                None => table.server = state,
                Some(model) => drop(table.models.insert(model.to_owned(), state)),
            }
            let any = table.server.setting.on || table.models.values().any(|state| state.setting.on);
            self.any.store(any, Relaxed);
        }
        Ok(setting)
    }
}

fn set(mut setting: Setting, key: &str, values: &[String], fallback: &Setting) -> Result<Setting, String> {
    let number = |value: &str| value.parse().map_err(|_| format!("{key} is `{value}` where a whole number is wanted"));
    match (key, values) {
        ("trace_level", []) => setting.on = fallback.on,
        ("trace_level", values) => {
            setting.on = match values.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["OFF"] => false,
                ["TIMESTAMPS"] => true,
                _ => return Err(format!("trace_level is {values:?}; this server has OFF and TIMESTAMPS, and writes no tensors down")),
            };
        }
        ("trace_rate", []) => setting.rate = fallback.rate,
        ("trace_rate", [rate]) => {
            setting.rate = number(rate)?;
            if setting.rate == 0 {
                return Err("trace_rate must be 1 or more".to_owned());
            }
        }
        ("trace_count", []) => setting.count = fallback.count,
        ("trace_count", [count]) if count == "-1" => setting.count = None,
        ("trace_count", [count]) => setting.count = Some(number(count)?),
        ("log_frequency", [] | [_]) if values.iter().all(|value| value == "0") => {}
        ("log_frequency", _) => return Err("log_frequency must be 0: every trace is written at once".to_owned()),
        ("trace_file", [] | [_]) if values.iter().all(String::is_empty) => {}
        ("trace_file", _) => return Err("trace_file cannot be set: traces go to the log".to_owned()),
        ("trace_mode", [] | [_]) if values.iter().all(|value| value == "triton") => {}
        ("trace_mode", _) => return Err("trace_mode must be `triton`; traces of other forms are set up at the start".to_owned()),
        ("trace_rate" | "trace_count", _) => return Err(format!("{key} has {} values where one is wanted", values.len())),
        _ => return Err(format!("`{key}` is no trace setting")),
    }
    Ok(setting)
}

/// Every setting with its values.
fn tell(setting: Setting) -> Vec<(&'static str, Vec<String>)> {
    let count = setting.count.map_or_else(|| "-1".to_owned(), |count| count.to_string());
    vec![
        ("trace_file", vec![String::new()]),
        ("trace_level", vec![if setting.on { "TIMESTAMPS" } else { "OFF" }.to_owned()]),
        ("trace_rate", vec![setting.rate.to_string()]),
        ("trace_count", vec![count]),
        ("log_frequency", vec!["0".to_owned()]),
        ("trace_mode", vec!["triton".to_owned()]),
    ]
}

/// Takes settings and tells all.
///
/// # Errors
/// `InvalidArgument` for one that there is not or that cannot be honoured, in which case none is taken; as `Repository::get` for a
/// model that is not there.
pub(in super::super) fn change(
    shared: &Shared,
    model: Option<&str>,
    given: Vec<(String, Vec<String>)>,
) -> Result<Vec<(&'static str, Vec<String>)>, Error> {
    if let Some(model) = model {
        shared.repository.get(model, None)?;
    }
    shared.traces.change(model, &given).map(tell).map_err(Error::invalid)
}

/// Which requests get a line in the log.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct TraceSettings {
    /// Empty: traces go to the log.
    trace_file: String,
    /// `OFF` or `TIMESTAMPS`.
    trace_level: Vec<String>,
    /// One of so many requests.
    trace_rate: String,
    /// Lines that may still be written; -1 for any number.
    trace_count: String,
    log_frequency: String,
    trace_mode: String,
}

/// Settings of traces to change; null goes back to the server's, or to what it was at the start.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct TraceChange {
    trace_level: Option<Vec<String>>,
    trace_rate: Option<String>,
    trace_count: Option<String>,
}

pub(super) fn routes() -> Routes {
    let mut routes = Routes::new(TAG);
    for path in ["/v2/trace/setting", "/v2/models/{model}/trace/setting"] {
        let read_doc = Doc::new("Which requests get a line in the log with the time of each phase.").json::<TraceSettings>();
        let write_doc = Doc::new("Change which requests get a line in the log.").takes::<TraceChange>().body_optional();
        routes = routes.get(path, read, read_doc).post(path, write, write_doc.json::<TraceSettings>());
    }
    routes
}

fn named(path: &ModelPath) -> Option<&str> {
    Some(&*path.model).filter(|model| !model.is_empty())
}

async fn read(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    answer(change(&shared, named(&path), Vec::new())?)
}

async fn write(State(shared): State<Arc<Shared>>, path: ModelPath, headers: HeaderMap, body: Body) -> Result<Response, Failure> {
    let given = object(&shared, &headers, body).await?;
    let values = |(key, value): (String, Value)| {
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(Error::invalid(format!("{key} is {other} where text is wanted"))),
        };
        let values = match value {
            Value::Null => Vec::new(),
            Value::Array(values) => values.into_iter().map(text).collect::<Result<_, _>>()?,
            one => vec![text(one)?],
        };
        Ok((key, values))
    };
    answer(change(&shared, named(&path), given.into_iter().map(values).collect::<Result<_, Error>>()?)?)
}

/// REST has one value as text, and the levels as a list.
fn answer(settings: Vec<(&'static str, Vec<String>)>) -> Result<Response, Failure> {
    let value = |(key, mut values): (&str, Vec<String>)| {
        let value = if key == "trace_level" { Value::from(values) } else { Value::from(values.pop().unwrap_or_default()) };
        (key.to_owned(), value)
    };
    Ok(json(&settings.into_iter().map(value).collect::<serde_json::Map<_, _>>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        pairs.iter().map(|(key, values)| ((*key).to_owned(), values.iter().map(|&value| value.to_owned()).collect())).collect()
    }

    #[test]
    fn one_of_so_many_requests_is_traced_until_the_count_is_used_up() {
        let traces = Traces::default();
        assert!(!traces.any.load(Relaxed));
        traces.change(None, &given(&[("trace_level", &["TIMESTAMPS"]), ("trace_rate", &["3"]), ("trace_count", &["2"])])).unwrap();
        assert!(traces.any.load(Relaxed));
        let sampled: Vec<bool> = (0..10).map(|_| traces.sampled("m")).collect();
        assert_eq!(sampled, [true, false, false, true, false, false, false, false, false, false]);
        assert_eq!(tell(traces.change(None, &[]).unwrap())[3].1, ["0"]);
    }

    #[test]
    fn a_model_has_its_own_settings_until_they_are_cleared() {
        let traces = Traces::default();
        traces.change(None, &given(&[("trace_level", &["TIMESTAMPS"]), ("trace_rate", &["1"])])).unwrap();
        traces.change(Some("quiet"), &given(&[("trace_level", &["OFF"])])).unwrap();
        assert!(traces.sampled("other") && !traces.sampled("quiet"));
        traces.change(Some("quiet"), &given(&[("trace_level", &[])])).unwrap();
        assert!(traces.sampled("quiet"));
        let cleared = traces.change(None, &given(&[("trace_level", &[]), ("trace_rate", &[])])).unwrap();
        assert_eq!(cleared, Setting::default());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_and_nothing_is_taken() {
        let traces = Traces::default();
        for (key, values, want) in [
            ("trace_level", &["TENSORS"][..], "writes no tensors down"),
            ("trace_level", &["OFF", "TIMESTAMPS"], "this server has OFF and TIMESTAMPS"),
            ("trace_rate", &["0"], "trace_rate must be 1 or more"),
            ("trace_rate", &["1", "2"], "trace_rate has 2 values"),
            ("trace_count", &["-2"], "trace_count is `-2`"),
            ("log_frequency", &["10"], "log_frequency must be 0"),
            ("trace_file", &["/etc/passwd"], "trace_file cannot be set"),
            ("trace_mode", &["opentelemetry"], "trace_mode must be `triton`"),
            ("trace_colour", &["red"], "`trace_colour` is no trace setting"),
        ] {
            let message = traces.change(None, &given(&[("trace_level", &["TIMESTAMPS"]), (key, values)])).unwrap_err();
            assert!(message.contains(want), "{message}");
            assert_eq!(traces.change(None, &[]).unwrap(), Setting::default());
        }
    }
}
