//! Settings of one model: `model.toml` in its folder, over Triton's `config.pbtxt`, over the server's defaults.

mod text_format;
mod triton;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::golden::Tolerance;
use super::pipeline::Step;
use super::repository::Label;
use super::sequence::SequenceSettings;
use crate::explain::ExplainSettings;

pub use triton::{Declared, DeclaredPort, Warmup, WarmupData};

use text_format::Fields;

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
    /// Workers of a model.
    pub instances: usize,
    /// Whether what is not understood of a configuration is an error and not a warning.
    pub strict: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { max_batch_rows: 64, max_delay: Duration::ZERO, queue_limit: 1024, timeout: None, instances: 1, strict: false }
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
    #[serde(default)]
    step: Vec<Step>,
    pipeline_outputs: Option<Vec<String>>,
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
    sequence: Option<SequenceFile>,
    explain: Option<ExplainSettings>,
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

/// `[sequence]` of `model.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceFile {
    dimension: String,
    buckets: Vec<usize>,
    max_padding: Option<f64>,
    padding: BTreeMap<String, f64>,
}

impl SequenceFile {
    fn settings(self) -> Result<SequenceSettings, String> {
        let max_padding = self.max_padding.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&max_padding) {
            return Err(format!("[sequence]: max_padding = {max_padding} does not lie within 0 and 1"));
        }
        let ascend = self.buckets.is_sorted_by(|a, b| a < b);
        if self.buckets.is_empty() || self.buckets[0] == 0 || !ascend {
            return Err("[sequence]: buckets must be lengths that ascend".to_owned());
        }
        let Self { dimension, buckets, padding, .. } = self;
        Ok(SequenceSettings { dimension, buckets, max_padding, padding })
    }
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
    /// The steps of a pipeline; empty: the model has a file.
    pub steps: Vec<Step>,
    /// The values that a pipeline answers with; empty: every one that no step takes.
    pub pipeline_outputs: Vec<String>,
    /// Inputs and outputs that the model file must have.
    pub declared: Option<Declared>,
    /// Runs before the model serves, beside those of its own.
    pub model_warmup: Vec<Warmup>,
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
    /// How requests of different lengths are batched; `None`: only those of equal length are.
    pub sequence: Option<SequenceSettings>,
    /// What is declared for explanations.
    pub explain: ExplainSettings,
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
            steps: Vec::new(),
            pipeline_outputs: Vec::new(),
            declared: None,
            model_warmup: Vec::new(),
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
            instances: defaults.instances,
            share: 1.0,
            sequence: None,
            explain: ExplainSettings::default(),
            tolerance: Tolerance::default(),
        }
    }

    /// Reads the settings in a model's folder: `config.pbtxt` of a Triton repository and over it `model.toml`, as far as they are
    /// there.
    ///
    /// # Errors
    /// A message that names the file and the key.
    pub fn read(folder: &Path, defaults: &Defaults) -> Result<Self, String> {
        let read = |name: &str| {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("{}: {error}", path.display())),
            }
        };
        let told = |name: &str, error: String| format!("{}: {error}", folder.join(name).display());
        let mut settings = Self::new(defaults);
        if let Some(text) = read(triton::FILE)? {
            let warnings = Fields::parse(&text).and_then(|fields| triton::apply(&fields, &mut settings, Some(folder)));
            let warnings = warnings.map_err(|error| told(triton::FILE, error))?;
            let file = folder.join(triton::FILE);
            report(&file.display().to_string(), &warnings, defaults.strict).map_err(|error| told(triton::FILE, error))?;
            settings.check().map_err(|error| told(triton::FILE, error))?;
        }
        match read("model.toml")? {
            None => Ok(settings),
            Some(text) => Self::over(&text, settings).map_err(|error| told("model.toml", error)),
        }
    }

    /// Puts the fields of a model configuration, as JSON, over these settings.
    ///
    /// # Errors
    /// What is wrong with it; if `strict`, also what is not understood.
    pub fn apply_json(&mut self, config: &str, strict: bool) -> Result<(), String> {
        let told = |error: String| format!("config: {error}");
        let fields = Fields::parse_json(config).map_err(told)?;
        let warnings = triton::apply(&fields, self, None).map_err(told)?;
        report("config of a request", &warnings, strict).map_err(told)?;
        self.check().map_err(told)
    }

    /// Reads the text of a `model.toml`.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn parse(text: &str, defaults: &Defaults) -> Result<Self, String> {
        Self::over(text, Self::new(defaults))
    }

    /// The settings that the text gives, over `base`.
    fn over(text: &str, base: Self) -> Result<Self, String> {
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
            description: file.description.unwrap_or(base.description),
            labels: file.labels.unwrap_or(base.labels),
            versions: file.versions.unwrap_or(base.versions),
            version_labels: file.version_labels.unwrap_or(base.version_labels),
            file_name: file.file_name.or(base.file_name),
            steps: if file.step.is_empty() { base.steps } else { file.step },
            pipeline_outputs: file.pipeline_outputs.unwrap_or(base.pipeline_outputs),
            declared: base.declared,
            model_warmup: base.model_warmup,
            batching: file.batching.unwrap_or(base.batching),
            max_batch_rows: at_least_one("max_batch_rows", file.max_batch_rows, base.max_batch_rows)?,
            max_delay: millis("max_delay_ms", file.max_delay_ms)?.unwrap_or(base.max_delay),
            queue_limit: at_least_one("queue_limit", file.queue_limit, base.queue_limit)?,
            timeout: millis("timeout_ms", file.timeout_ms)?.or(base.timeout),
            instances: at_least_one("instances", file.instances, base.instances)?,
            tolerance: Tolerance {
                relative: tolerance("golden_relative_tolerance", file.golden_relative_tolerance, base.tolerance.relative)?,
                absolute: tolerance("golden_absolute_tolerance", file.golden_absolute_tolerance, base.tolerance.absolute)?,
            },
            preferred_batch_rows: file.preferred_batch_rows.unwrap_or(base.preferred_batch_rows),
            max_timeout: millis("max_timeout_ms", file.max_timeout_ms)?.or(base.max_timeout),
            priority_levels: at_least_one("priority_levels", file.priority_levels, base.priority_levels)?,
            default_priority: file
                .default_priority
                .unwrap_or_else(|| file.priority_levels.map_or(base.default_priority, |levels| levels.div_ceil(2))),
            priorities: base.priorities.into_iter().map(Ok).chain(levels).collect::<Result<_, String>>()?,
            share: file.share.unwrap_or(base.share),
            sequence: file.sequence.map(SequenceFile::settings).transpose()?.or(base.sequence),
            explain: file.explain.unwrap_or(base.explain),
        };
        settings.check()?;
        Ok(settings)
    }

    /// The level that a request's `priority` stands for: the default one for 0 and for a level that there is not.
    pub fn level(&self, priority: u64) -> usize {
        usize::try_from(priority).ok().filter(|level| (1..=self.priority_levels).contains(level)).unwrap_or(self.default_priority)
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

/// The name that Triton's configuration in a model's folder has for it, if there is one; what is wrong with the file is told by
/// [`ModelSettings::read`].
pub(super) fn configured_name(folder: &Path) -> Option<String> {
    let fields = Fields::parse(&std::fs::read_to_string(folder.join(triton::FILE)).ok()?).ok()?;
    Some(fields.last("name")?.text().ok()?.to_owned()).filter(|name| !name.is_empty())
}

/// Names what was not understood, and where it stands.
fn report(source: &str, warnings: &[String], strict: bool) -> Result<(), String> {
    if strict && !warnings.is_empty() {
        return Err(format!("not understood, and the server is strict: {}", warnings.join(", ")));
    }
    for field in warnings {
        tracing::warn!(source, field, "a field of the model's configuration is not understood and has no effect");
    }
    Ok(())
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
        assert_eq!([0, 1, 3, 4, u64::MAX].map(|priority| settings.level(priority)), [2, 1, 3, 2, 2]);
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
            ("[sequence]\ndimension = 's'\nbuckets = [8, 4]\npadding = {}", "buckets must be lengths that ascend"),
            ("[sequence]\ndimension = 's'\nbuckets = [8]\nmax_padding = 2\npadding = {}", "max_padding = 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
