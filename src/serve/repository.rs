//! The model repository: which models there are, in which versions and states, and who answers for them.
//!
//! Layout: `<folder>/<model>/<version>/model.onnx`, with `model.toml` and `golden/` beside the versions. A model folder that
//! holds a model file itself, as a downloaded one does, is its own only version.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::compute::Compute;
use super::handle::Handle;
use super::loading::load_version;
use super::settings::{Defaults, ModelSettings, Versions};
use super::worker::panic_text;
use crate::engine::{FORMATS, LoadOptions, Threads, find_model_file};
use crate::error::{Error, Kind};
use crate::resources;

/// How a repository is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of models.
    pub folder: PathBuf,
    /// The model that answers where a request names none; the only one, if `None`.
    pub default_model: Option<String>,
    /// Settings of models that do not say otherwise.
    pub defaults: Defaults,
    /// How models are loaded.
    pub load: LoadOptions,
    /// The threads that one forward pass may use.
    pub threads: Arc<Threads>,
    /// The processors, which the models share.
    pub compute: Arc<Compute>,
    /// Forward passes of one model that may run on the threads of their requests at once.
    pub inline_sessions: usize,
    /// Whether a repository without models is ready.
    pub allow_no_models: bool,
    /// A request that waits this long without any worker taking a batch means that the workers are stuck.
    pub stall_limit: Duration,
}

impl Options {
    /// The options for `folder` with defaults for everything else.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            default_model: None,
            defaults: Defaults::default(),
            load: LoadOptions::default(),
            threads: Arc::new(Threads::single()),
            compute: Arc::new(Compute::new(resources::usable_cpus())),
            inline_sessions: 2,
            allow_no_models: false,
            stall_limit: Duration::from_secs(60),
        }
    }
}

/// The state of one version.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being loaded, warmed up or verified.
    Loading,
    /// It answers.
    Ready(Arc<Handle>),
    /// It could not be loaded or did not reproduce its golden samples.
    Failed(String),
}

impl State {
    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
        }
    }
}

/// One version as the repository sees it.
#[derive(Clone, Debug)]
pub struct VersionStatus {
    /// The version.
    pub version: String,
    /// Its state.
    pub state: State,
}

/// One model as the repository sees it.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// Its versions, oldest first. A model whose folder cannot be read at all has one failed version without a name.
    pub versions: Vec<VersionStatus>,
}

#[derive(Debug)]
struct Entry {
    folder: PathBuf,
    settings: ModelSettings,
    /// Oldest first.
    versions: Vec<VersionStatus>,
}

impl Entry {
    /// The newest version that is ready.
    fn serving(&self) -> Option<&Arc<Handle>> {
        self.versions.iter().rev().find_map(|version| match &version.state {
            State::Ready(handle) => Some(handle),
            _ => None,
        })
    }
}

/// The models of one folder.
#[derive(Debug)]
pub struct Repository {
    options: Options,
    entries: RwLock<BTreeMap<String, Entry>>,
    draining: AtomicBool,
}

impl Repository {
    /// Finds the models of a folder; [`Repository::load`] loads them.
    ///
    /// # Errors
    /// If the folder cannot be read, or the default model is not in it.
    pub fn open(options: Options) -> Result<Self, String> {
        let entries = scan(&options)?;
        if let Some(name) = &options.default_model
            && !entries.contains_key(name)
        {
            return Err(format!("the default model `{name}` is not in {}; there are {}", options.folder.display(), names(&entries)));
        }
        Ok(Self { options, entries: RwLock::new(entries), draining: AtomicBool::new(false) })
    }

    /// Loads every version, on as many threads as the engine may use. `progress` is told each version as it ends, with how
    /// many are done and how many there are.
    pub fn load(&self, progress: impl Fn(&str, &VersionStatus, usize, usize) + Sync) {
        let jobs: Vec<(String, String, PathBuf, ModelSettings)> = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let loading = |(name, entry): (&String, &Entry)| {
                let (name, folder, settings) = (name.clone(), entry.folder.clone(), entry.settings.clone());
                let versions: Vec<String> =
                    entry.versions.iter().filter(|v| matches!(v.state, State::Loading)).map(|v| v.version.clone()).collect();
                versions.into_iter().map(move |version| (name.clone(), version, folder.clone(), settings.clone()))
            };
            entries.iter().flat_map(loading).collect()
        };
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            while let Some((name, version, folder, settings)) = jobs.get(next.fetch_add(1, Relaxed)) {
                // A bug that one model brings out must not keep the others from serving.
                let loaded = catch_unwind(AssertUnwindSafe(|| load_version(name, version, folder, settings.clone(), &self.options)));
                let state = match loaded {
                    Ok(Ok(handle)) => State::Ready(Arc::new(handle)),
                    Ok(Err(reason)) => State::Failed(reason),
                    Err(panic) => State::Failed(panic_text(&*panic)),
                };
                let status = VersionStatus { version: version.clone(), state };
                self.set(name, status.clone());
                progress(name, &status, done.fetch_add(1, Relaxed) + 1, jobs.len());
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.threads.count().min(jobs.len()) {
                scope.spawn(work);
            }
            work();
        });
    }

    fn set(&self, name: &str, status: VersionStatus) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let versions = entries.get_mut(name).map(|entry| &mut entry.versions);
        if let Some(slot) = versions.and_then(|versions| versions.iter_mut().find(|v| v.version == status.version)) {
            *slot = status;
        }
    }

    /// Who answers for a model: the version that is named, else the newest one that is ready.
    ///
    /// # Errors
    /// `NotFound` if there is no such model or version, `Unavailable` if it is loading or failed to load, with the reason.
    pub fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<Handle>, Error> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries
            .get(name)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("model `{name}` is not known; known are {}", names(&entries))))?;
        let Some(version) = version else {
            return entry.serving().cloned().ok_or_else(|| unavailable(name, entry.versions.last()));
        };
        match entry.versions.iter().find(|v| v.version == version) {
            Some(VersionStatus { state: State::Ready(handle), .. }) => Ok(Arc::clone(handle)),
            Some(status) => Err(unavailable(name, Some(status))),
            None => {
                let known = entry.versions.iter().map(|v| v.version.as_str()).collect::<Vec<_>>().join(", ");
                Err(Error::new(Kind::NotFound, format!("model `{name}` has no version `{version}`; its versions are {known}")))
            }
        }
    }

    /// Who answers where a request names no model: the configured default, or the only model.
    ///
    /// # Errors
    /// `InvalidArgument` if there are several and none is the default; otherwise as [`Repository::get`].
    pub fn default_model(&self) -> Result<Arc<Handle>, Error> {
        if let Some(name) = &self.options.default_model {
            return self.get(name, None);
        }
        let only = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            if entries.len() > 1 {
                let message = format!(
                    "there are several models ({}) and no default: name one in the path, or start with --default-model",
                    names(&entries)
                );
                return Err(Error::invalid(message));
            }
            entries.keys().next().cloned()
        };
        only.map_or_else(|| Err(Error::new(Kind::NotFound, "the server has no model")), |name| self.get(&name, None))
    }

    /// Every model and version with its state, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(name, entry)| ModelStatus { name: name.clone(), versions: entry.versions.clone() }).collect()
    }

    /// Whether every configured model is loaded, warmed up and verified, and the server is not going down.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("the server is draining".to_owned());
        }
        let models = self.list();
        if models.is_empty() && !self.options.allow_no_models {
            return Err("no model is configured".to_owned());
        }
        for model in &models {
            for VersionStatus { version, state } in &model.versions {
                match state {
                    State::Ready(_) => {}
                    State::Loading => return Err(format!("model `{}` version {version} is loading", model.name)),
                    State::Failed(reason) => return Err(format!("model `{}` version {version} failed: {reason}", model.name)),
                }
            }
        }
        Ok(())
    }

    /// Whether every queue that has requests makes progress.
    ///
    /// # Errors
    /// Which model is stuck, and for how long.
    pub fn liveness(&self) -> Result<(), String> {
        let now = Instant::now();
        for handle in self.ready() {
            if let Some(stalled) = handle.stalled(now).filter(|&stalled| stalled > self.options.stall_limit) {
                return Err(format!(
                    "model `{}` version {}: no worker has taken a batch for {} s while requests wait",
                    handle.name(),
                    handle.version(),
                    stalled.as_secs()
                ));
            }
        }
        Ok(())
    }

    /// The versions that are ready.
    pub fn ready(&self) -> Vec<Arc<Handle>> {
        let ready = |status: VersionStatus| match status.state {
            State::Ready(handle) => Some(handle),
            _ => None,
        };
        self.list().into_iter().flat_map(|model| model.versions).filter_map(ready).collect()
    }

    /// From now on the server is not ready; requests are still answered.
    pub fn start_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Whether the server is going down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Answers what waits and ends the workers.
    pub fn close(&self) {
        for handle in self.ready() {
            handle.close();
        }
    }
}

fn names(entries: &BTreeMap<String, Entry>) -> String {
    if entries.is_empty() { "none".to_owned() } else { entries.keys().map(String::as_str).collect::<Vec<_>>().join(", ") }
}

fn unavailable(name: &str, status: Option<&VersionStatus>) -> Error {
    let message = match status {
        Some(VersionStatus { version, state: State::Failed(reason) }) => {
            format!("model `{name}` version {version} failed to load: {reason}")
        }
        Some(VersionStatus { version, .. }) => format!("model `{name}` version {version} is loading"),
        None => format!("model `{name}` has no version"),
    };
    Error::new(Kind::Unavailable, message)
}

/// Whether a repository's subfolder of this name is a model.
pub fn is_model_name(name: &str) -> bool {
    !name.starts_with(['.', '_'])
}

/// The folders of models; names that start with a dot or an underscore are not models.
fn scan(options: &Options) -> Result<BTreeMap<String, Entry>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", options.folder.display());
    let mut entries = BTreeMap::new();
    for item in std::fs::read_dir(&options.folder).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !path.is_dir() || !is_model_name(name) {
            continue;
        }
        entries.insert(name.to_owned(), entry(&path, options));
    }
    Ok(entries)
}

fn entry(folder: &Path, options: &Options) -> Entry {
    let failed = |reason: String, settings: ModelSettings| Entry {
        folder: folder.to_owned(),
        settings,
        versions: vec![VersionStatus { version: String::new(), state: State::Failed(reason) }],
    };
    let settings = match ModelSettings::read(folder, &options.defaults) {
        Ok(settings) => settings,
        Err(reason) => return failed(reason, ModelSettings::new(&options.defaults)),
    };
    let found = match versions(folder) {
        Ok(found) => found,
        Err(error) => return failed(format!("{}: {error}", folder.display()), settings),
    };
    let loading = |version: String| VersionStatus { version, state: State::Loading };
    let versions: Vec<VersionStatus> = match &settings.versions {
        Versions::Latest => found.into_iter().last().map(loading).into_iter().collect(),
        Versions::All => found.into_iter().map(loading).collect(),
        Versions::Only(wanted) => wanted.iter().cloned().map(loading).collect(),
    };
    if versions.is_empty() {
        return failed(format!("{}: there is no version, a folder with a model file: {}", folder.display(), model_files()), settings);
    }
    Entry { folder: folder.to_owned(), settings, versions }
}

/// The names of model files, for messages.
pub fn model_files() -> String {
    FORMATS.iter().map(|format| format.file_name).collect::<Vec<_>>().join(" or ")
}

/// The name of the version of a model folder that holds a model file itself.
const OWN_VERSION: &str = "1";

/// The folder of a version.
pub(super) fn version_folder(folder: &Path, version: &str) -> PathBuf {
    if version == OWN_VERSION && find_model_file(folder).is_some() { folder.to_owned() } else { folder.join(version) }
}

/// The versions of a model folder: its subfolders that hold a model file, oldest first. Is there one in the folder itself, then
/// its subfolders are no versions: a downloaded folder may have the same model in other formats there.
///
/// # Errors
/// If the folder cannot be read.
pub fn versions(folder: &Path) -> std::io::Result<Vec<String>> {
    if find_model_file(folder).is_some() {
        return Ok(vec![OWN_VERSION.to_owned()]);
    }
    let mut versions = Vec::new();
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && path.is_dir()
            && find_model_file(&path).is_some()
        {
            versions.push(name.to_owned());
        }
    }
    versions.sort_by(|a, b| version_order(a, b));
    Ok(versions)
}

/// Numbers by value, before other names in alphabetical order.
fn version_order(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(x), Ok(y)) => x.cmp(&y).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_and_then_by_name() {
        let mut versions = ["v1.2", "10", "9", "beta"];
        versions.sort_by(|a, b| version_order(a, b));
        assert_eq!(versions, ["9", "10", "beta", "v1.2"]);
    }
}
