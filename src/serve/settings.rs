//! Settings of one model: `model.toml` in its folder, over the server's defaults.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::golden::Tolerance;
use super::repository::Label;

/// Most levels of priority: a search for the next request looks at each.
const PRIORITY_LEVELS_MAX: usize = 32;

/// What the server decides for models that do not say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Most rows of one forward pass, and of one request.
    pub max_batch_rows: usize,
    /// Longest time that a request waits for others to share its forward pass.
    pub max_delay: Duration,
    /// Most requests that wait for one model.
    pub queue_limit: usize,
    /// How long a request may take if it does not say.
    pub timeout: Option<Duration>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { max_batch_rows: 64, max_delay: Duration::ZERO, queue_limit: 1024, timeout: None }
    }
}

/// `model.toml` as written. Every key is optional; an unknown key is an error.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    description: Option<String>,
    labels: Option<Vec<String>>,
    versions: Option<Versions>,
    version_labels: Option<BTreeMap<String, Label>>,
    file_name: Option<String>,
    batching: Option<bool>,
    max_batch_rows: Option<usize>,
    preferred_batch_rows: Option<Vec<usize>>,
    max_delay_ms: Option<f64>,
    queue_limit: Option<usize>,
    timeout_ms: Option<f64>,
    max_timeout_ms: Option<f64>,
    priority_levels: Option<usize>,
    default_priority: Option<usize>,
    #[serde(default)]
    priority: BTreeMap<String, LevelFile>,
    instances: Option<usize>,
    share: Option<f64>,
    golden_relative_tolerance: Option<f64>,
    golden_absolute_tolerance: Option<f64>,
    /// The network, if the weights do not say it themselves: the engine's part of the file, which it checks.
    #[serde(rename = "input")]
    _input: Option<IgnoredAny>,
    #[serde(rename = "output")]
    _output: Option<IgnoredAny>,
    #[serde(rename = "layers")]
    _layers: Option<IgnoredAny>,
}

/// `[priority.N]` of `model.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelFile {
    queue_limit: Option<usize>,
    timeout_ms: Option<f64>,
    max_timeout_ms: Option<f64>,
}

/// What one level of priority has of its own; what is `None` is as for the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelPolicy {
    /// Most requests of this level that wait.
    pub queue_limit: Option<usize>,
    /// How long a request of this level may take if it does not say.
    pub timeout: Option<Duration>,
    /// The longest that a request of this level may ask for.
    pub max_timeout: Option<Duration>,
}

/// Which versions of a model are served: `"latest"`, `{ latest = 3 }`, `"all"` or a list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenVersions")]
pub enum Versions {
    /// The newest ones, this many.
    Latest(usize),
    /// Every one.
    All,
    /// Those that are named.
    Only(Vec<String>),
}

impl Default for Versions {
    fn default() -> Self {
        Self::Latest(1)
    }
}

/// The policy as written.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenVersions {
    Word(String),
    Only(Vec<String>),
    Latest(WrittenLatest),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLatest {
    latest: usize,
}

impl TryFrom<WrittenVersions> for Versions {
    type Error = &'static str;

    fn try_from(written: WrittenVersions) -> Result<Self, Self::Error> {
        match written {
            WrittenVersions::Word(word) if word == "latest" => Ok(Self::Latest(1)),
            WrittenVersions::Word(word) if word == "all" => Ok(Self::All),
            WrittenVersions::Latest(WrittenLatest { latest }) if latest > 0 => Ok(Self::Latest(latest)),
            WrittenVersions::Only(versions) if !versions.is_empty() => Ok(Self::Only(versions)),
            _ => Err("versions: \"latest\", { latest = 3 }, \"all\" or a list such as [\"1\", \"2\"] is wanted"),
        }
    }
}

/// The settings of a model, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSettings {
    /// Free text about the model.
    pub description: String,
    /// Names of the classes, by index of the output's last dimension; empty if the model is no classifier.
    pub labels: Vec<String>,
    /// Which versions are served.
    pub versions: Versions,
    /// Names under which versions can be asked for.
    pub version_labels: BTreeMap<String, Label>,
    /// The name of the model file in a version's folder, if it is not the format's usual one.
    pub file_name: Option<String>,
    /// Whether rows of several requests may share a forward pass.
    pub batching: bool,
    /// Most rows of one forward pass, and of one request.
    pub max_batch_rows: usize,
    /// Numbers of rows that are worth a forward pass of their own, ascending: a batch that reaches one does not wait to grow
    /// to the next. Empty: only `max_batch_rows` is one.
    pub preferred_batch_rows: Vec<usize>,
    /// Longest time that a request waits for others. Zero: a free worker takes at once what waits, so an idle server adds
    /// no delay and batches form by themselves under load.
    pub max_delay: Duration,
    /// Most requests that wait, on each level of priority.
    pub queue_limit: usize,
    /// How long a request may take if it does not say.
    pub timeout: Option<Duration>,
    /// The longest that a request may ask for; more is cut to it.
    pub max_timeout: Option<Duration>,
    /// Levels of priority; 1 is the most urgent. A waiting request goes before all of the levels below.
    pub priority_levels: usize,
    /// The level of a request that names none, or one that there is not.
    pub default_priority: usize,
    /// What single levels have of their own, by level.
    pub priorities: BTreeMap<usize, LevelPolicy>,
    /// Workers that run forward passes side by side.
    pub instances: usize,
    /// The model's share of the compute while models compete for it, relative to the others'.
    pub share: f64,
    /// How far an answer to a golden sample may be from the recorded one.
    pub tolerance: Tolerance,
}

impl ModelSettings {
    /// The settings of a model without `model.toml`.
    pub fn new(defaults: &Defaults) -> Self {
        Self {
            description: String::new(),
            labels: Vec::new(),
            versions: Versions::default(),
            version_labels: BTreeMap::new(),
            file_name: None,
            batching: true,
            max_batch_rows: defaults.max_batch_rows,
            max_delay: defaults.max_delay,
            queue_limit: defaults.queue_limit,
            timeout: defaults.timeout,
            preferred_batch_rows: Vec::new(),
            max_timeout: None,
            priority_levels: 1,
            default_priority: 1,
            priorities: BTreeMap::new(),
            instances: 1,
            share: 1.0,
            tolerance: Tolerance::default(),
        }
    }

    /// Reads `folder/model.toml`, if there is one.
    ///
    /// # Errors
    /// A message that names the file and the key.
    pub fn read(folder: &Path, defaults: &Defaults) -> Result<Self, String> {
        let path = folder.join("model.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(defaults)),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Self::parse(&text, defaults).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Puts the fields of a model configuration, as JSON, over these settings.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn apply_json(&mut self, config: &str) -> Result<(), String> {
        let value: serde_json::Value = serde_json::from_str(config).map_err(|error| format!("config: {error}"))?;
        let Some(fields) = value.as_object() else { return Err("config: a JSON object is wanted".to_owned()) };
        for (key, value) in fields {
            match (key.as_str(), value.as_u64()) {
                ("name" | "platform" | "backend", _) => {}
                ("max_batch_size", Some(rows @ 1..)) => self.max_batch_rows = usize::try_from(rows).map_err(|error| error.to_string())?,
                _ => tracing::warn!(field = key, "config: the field is not understood"),
            }
        }
        Ok(())
    }

    /// Reads the text of a `model.toml`.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn parse(text: &str, defaults: &Defaults) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let at_least_one = |key: &str, value: Option<usize>, default: usize| match value {
            Some(0) => Err(format!("{key} must be at least 1")),
            value => Ok(value.unwrap_or(default)),
        };
        let millis = |key: &str, value: Option<f64>| match value {
            None => Ok(None),
            Some(ms) => Duration::try_from_secs_f64(ms / 1e3).map(Some).map_err(|_| format!("{key} = {ms} is not a duration")),
        };
        let tolerance = |key: &str, value: Option<f64>, default: f64| match value {
            Some(value) if !(value.is_finite() && value >= 0.0) => Err(format!("{key} = {value} is not a tolerance")),
            value => Ok(value.unwrap_or(default)),
        };
        let base = Self::new(defaults);
        let level = |level: &LevelFile| -> Result<LevelPolicy, String> {
            at_least_one("queue_limit", level.queue_limit, 1)?;
            Ok(LevelPolicy {
                queue_limit: level.queue_limit,
                timeout: millis("timeout_ms", level.timeout_ms)?,
                max_timeout: millis("max_timeout_ms", level.max_timeout_ms)?,
            })
        };
        let levels = file.priority.iter().map(|(key, file)| {
            let number = key.parse().map_err(|_| format!("[priority.{key}]: `{key}` is not a level"))?;
            Ok((number, level(file).map_err(|error| format!("[priority.{key}]: {error}"))?))
        });
        let settings = Self {
            description: file.description.unwrap_or_default(),
            labels: file.labels.unwrap_or_default(),
            versions: file.versions.unwrap_or_default(),
            version_labels: file.version_labels.unwrap_or_default(),
            file_name: file.file_name,
            batching: file.batching.unwrap_or(true),
            max_batch_rows: at_least_one("max_batch_rows", file.max_batch_rows, base.max_batch_rows)?,
            max_delay: millis("max_delay_ms", file.max_delay_ms)?.unwrap_or(base.max_delay),
            queue_limit: at_least_one("queue_limit", file.queue_limit, base.queue_limit)?,
            timeout: millis("timeout_ms", file.timeout_ms)?.or(base.timeout),
            instances: at_least_one("instances", file.instances, 1)?,
            tolerance: Tolerance {
                relative: tolerance("golden_relative_tolerance", file.golden_relative_tolerance, base.tolerance.relative)?,
                absolute: tolerance("golden_absolute_tolerance", file.golden_absolute_tolerance, base.tolerance.absolute)?,
            },
            preferred_batch_rows: file.preferred_batch_rows.unwrap_or_default(),
            max_timeout: millis("max_timeout_ms", file.max_timeout_ms)?,
            priority_levels: at_least_one("priority_levels", file.priority_levels, 1)?,
            default_priority: file.default_priority.unwrap_or_else(|| file.priority_levels.unwrap_or(1).div_ceil(2)),
            priorities: levels.collect::<Result<_, String>>()?,
            share: file.share.unwrap_or(1.0),
        };
        settings.check()?;
        Ok(settings)
    }

    /// Checks what one setting says against the others.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn check(&self) -> Result<(), String> {
        let levels = self.priority_levels;
        let (rows, most) = (&self.preferred_batch_rows, self.max_batch_rows);
        if levels > PRIORITY_LEVELS_MAX {
            return Err(format!("priority_levels = {levels} is more than {PRIORITY_LEVELS_MAX}"));
        }
        if !(1..=levels).contains(&self.default_priority) {
            return Err(format!("default_priority = {} is not one of the {levels} levels", self.default_priority));
        }
        if let Some(level) = self.priorities.keys().find(|level| !(1..=levels).contains(*level)) {
            return Err(format!("[priority.{level}]: there are {levels} levels (priority_levels)"));
        }
        if !rows.is_sorted_by(|a, b| a < b) || rows.iter().any(|&rows| rows == 0 || rows > most) {
            return Err(format!("preferred_batch_rows must ascend and lie within 1 and max_batch_rows = {most}"));
        }
        if !(self.share.is_finite() && self.share > 0.0) {
            return Err(format!("share = {} is not a positive number", self.share));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelSettings, String> {
        ModelSettings::parse(text, &Defaults { queue_limit: 7, ..Defaults::default() })
    }

    #[test]
    fn a_key_overrides_the_servers_default_and_the_rest_stays() {
        let settings = parse("labels = ['a', 'b']\nmax_delay_ms = 2.5\nversions = 'all'").unwrap();
        assert_eq!(settings.labels, ["a", "b"]);
        assert_eq!(settings.max_delay, Duration::from_micros(2500));
        assert_eq!(settings.versions, Versions::All);
        assert_eq!((settings.queue_limit, settings.max_batch_rows), (7, 64));
        assert_eq!(parse("queue_limit = 3\n[input]\nshape = [1]\n[[layers]]\nkind = 'flatten'").unwrap().queue_limit, 3);
        assert_eq!(parse("versions = { latest = 3 }").unwrap().versions, Versions::Latest(3));
        assert_eq!(parse("version_labels = { stable = '1' }").unwrap().version_labels["stable"], Label::version("1"));
        assert_eq!(parse("versions = ['1', 'b']").unwrap().versions, Versions::Only(vec!["1".into(), "b".into()]));
    }

    #[test]
    fn levels_of_priority_have_policies_of_their_own() {
        let settings = parse("priority_levels = 3\n[priority.1]\nqueue_limit = 5\n[priority.3]\ntimeout_ms = 20").unwrap();
        assert_eq!((settings.priority_levels, settings.default_priority), (3, 2), "the middle one");
        assert_eq!(settings.priorities[&1], LevelPolicy { queue_limit: Some(5), ..LevelPolicy::default() });
        assert_eq!(settings.priorities[&3].timeout, Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_wrong_key_or_value_is_named() {
        for (text, want) in [
            ("max_batch = 3", "max_batch"),
            ("max_batch_rows = 0", "max_batch_rows must be at least 1"),
            ("max_delay_ms = -1", "max_delay_ms = -1 is not a duration"),
            ("golden_relative_tolerance = nan", "golden_relative_tolerance"),
            ("labels = 3", "labels"),
            ("versions = 'newest'", "versions"),
            ("versions = { latest = 0 }", "versions"),
            ("versions = []", "versions"),
            ("preferred_batch_rows = [8, 4]", "preferred_batch_rows must ascend"),
            ("preferred_batch_rows = [8, 128]", "within 1 and max_batch_rows = 64"),
            ("priority_levels = 2\ndefault_priority = 3", "default_priority = 3 is not one of the 2 levels"),
            ("[priority.2]\nqueue_limit = 1", "[priority.2]: there are 1 levels"),
            ("[priority.high]\nqueue_limit = 1", "`high` is not a level"),
            ("[priority.1]\nqueue_limit = 0", "[priority.1]: queue_limit must be at least 1"),
            ("share = 0", "share = 0"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
