//! The model repository: which models there are, in which versions and states, and who answers for them.
//!
//! Requests only read: [`Repository::get`] takes a clone of what answers, and whoever holds one can be sure of its answer.
//! Every change prepares what is new beside what serves, then exchanges both under one short lock (`change`).

mod change;
mod exchange;
mod label;
mod overrides;
mod pipelines;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::Servable;
use super::compute::Compute;
use super::handle::Handle;
use super::loading::{keep_weights, settle};
use super::settings::{Defaults, ModelSettings};
use super::shadow::{Shadow, ShadowSnapshot, ShadowStats};
use super::worker::panic_text;
use crate::engine::{LoadOptions, Threads, release_memory};
use crate::error::{Error, Kind};
use crate::resources;

pub use change::{LoadCounts, Unload};
pub use label::{Choice, DEFAULT_LABEL, Label, Mirror};
pub use overrides::Overrides;
pub(in crate::serve) use overrides::Scratch;
pub use source::{is_model_name, model_files, version_file, versions};
pub use state::{ModelState, ModelStatus, ReadyWhen, ServerState, State, VersionStatus};
pub use watch::Watch;

use label::Turn;
use source::{Found, Source, version_order};

/// How a repository is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of models, or one model's folder or file.
    pub folder: PathBuf,
    /// The name of the model that `folder` is, if it is one; by default that of the file or folder.
    pub model_name: Option<String>,
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
    /// Which models must serve for the server to be ready.
    pub ready_when: ReadyWhen,
    /// Where files are kept that clients send with a request to load, as long as what they were loaded into serves.
    pub scratch: PathBuf,
    /// A request that waits this long without any worker taking a batch means that the workers are stuck.
    pub stall_limit: Duration,
}

impl Options {
    /// The options for `folder` with defaults for everything else.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            model_name: None,
            default_model: None,
            defaults: Defaults::default(),
            load: LoadOptions::default(),
            threads: Arc::new(Threads::single()),
            compute: Arc::new(Compute::new(resources::usable_cpus())),
            inline_sessions: 2,
            allow_no_models: false,
            ready_when: ReadyWhen::All,
            scratch: std::env::temp_dir(),
            stall_limit: Duration::from_secs(60),
        }
    }
}

/// One model.
#[derive(Debug)]
struct Entry {
    settings: ModelSettings,
    /// Oldest first.
    versions: Vec<VersionStatus>,
    /// Labels that were set or removed (`None`) at run time: they go before those of the settings.
    labels: BTreeMap<String, Option<Label>>,
    /// What copies of requests showed, by label.
    shadows: BTreeMap<String, Arc<ShadowStats>>,
    turn: Turn,
    /// The golden samples of a pipeline.
    golden: Option<PathBuf>,
    /// Held while the model is changed: one change at a time.
    gate: Arc<Mutex<()>>,
}

impl Entry {
    fn new(settings: ModelSettings, versions: Vec<VersionStatus>) -> Self {
        let (labels, shadows) = (BTreeMap::new(), BTreeMap::new());
        let mut entry = Self { settings, versions, labels, shadows, turn: Turn::default(), golden: None, gate: Arc::default() };
        entry.prepare_shadows();
        entry
    }

    /// The entry as it is now, to try a change on.
    fn snapshot(&self) -> Self {
        let Self { settings, versions, labels, shadows, turn: _, golden, gate } = self;
        let (settings, versions, labels) = (settings.clone(), versions.clone(), labels.clone());
        let (shadows, golden, gate) = (shadows.clone(), golden.clone(), Arc::clone(gate));
        Self { settings, versions, labels, shadows, turn: Turn::default(), golden, gate }
    }

    /// Makes a place for what each label's copies will show.
    fn prepare_shadows(&mut self) {
        for (name, _) in self.all_labels().into_iter().filter(|(_, label)| label.mirror.is_some()) {
            self.shadows.entry(name).or_default();
        }
    }

    fn slot(&self, version: &str) -> Option<&VersionStatus> {
        self.versions.iter().find(|known| known.version == version)
    }

    /// The slot of a version, made if there is none.
    fn slot_mut(&mut self, version: &str) -> &mut VersionStatus {
        let at = self.versions.iter().position(|known| known.version == version).unwrap_or_else(|| {
            let at = self.versions.partition_point(|known| version_order(&known.version, version).is_lt());
            self.versions.insert(at, VersionStatus::new(version, State::Loading));
            at
        });
        &mut self.versions[at]
    }

    /// The newest version that is ready.
    fn newest(&self) -> Option<&Servable> {
        self.versions.iter().rev().find_map(|version| version.state.servable())
    }

    fn label(&self, name: &str) -> Option<&Label> {
        match self.labels.get(name) {
            Some(label) => label.as_ref(),
            None => self.settings.version_labels.get(name),
        }
    }

    /// Every label in force.
    fn all_labels(&self) -> BTreeMap<String, Label> {
        let mut labels = self.settings.version_labels.clone();
        for (name, label) in &self.labels {
            match label {
                Some(label) => labels.insert(name.clone(), label.clone()),
                None => labels.remove(name),
            };
        }
        labels
    }

    /// What answers under a label.
    fn labelled(&self, model: &str, name: &str, label: &Label) -> Result<Servable, Error> {
        let ready = |version: &str| self.slot(version).is_some_and(|slot| slot.state.servable().is_some());
        let picked = label.pick(&self.turn, ready).and_then(|version| self.slot(version)?.state.servable());
        picked.map(|servable| self.shadowed(servable, name, label)).ok_or_else(|| {
            let versions = label.split.iter().map(|(version, _)| version.as_str()).collect::<Vec<_>>().join(", ");
            Error::new(Kind::Unavailable, format!("model `{model}`: no version of the label `{name}` is ready: {versions}"))
        })
    }
}

impl Entry {
    /// What answers, with a copy of the request to the label's mirror if it is this request's turn.
    fn shadowed(&self, servable: &Servable, name: &str, label: &Label) -> Servable {
        let mirror = label.mirror.as_ref().filter(|mirror| mirror.version != servable.version());
        let target = mirror.filter(|mirror| self.turn.takes(mirror.share)).and_then(|mirror| self.slot(&mirror.version)?.state.servable());
        match (target, self.shadows.get(name)) {
            (Some(target), Some(stats)) => servable.clone().with_shadow(Shadow { target: target.clone(), stats: Arc::clone(stats) }),
            _ => servable.clone(),
        }
    }

    /// What answers a choice.
    fn choose(&self, model: &str, choice: Choice<'_>) -> Result<Servable, Error> {
        match choice {
            Choice::Default => match self.label(DEFAULT_LABEL) {
                Some(label) => self.labelled(model, DEFAULT_LABEL, label),
                None => self.newest().cloned().ok_or_else(|| unavailable(model, self.versions.last())),
            },
            Choice::Version(version) => match (self.slot(version), self.label(version)) {
                (Some(slot), _) => slot.state.servable().cloned().ok_or_else(|| unavailable(model, Some(slot))),
                (None, Some(label)) => self.labelled(model, version, label),
                (None, None) => {
                    let known = self.versions.iter().map(|v| v.version.as_str()).collect::<Vec<_>>().join(", ");
                    Err(Error::new(Kind::NotFound, format!("model `{model}` has no version `{version}`; its versions are {known}")))
                }
            },
            Choice::Label(label) => match self.label(label) {
                Some(rule) => self.labelled(model, label, rule),
                None => {
                    let labels = self.all_labels();
                    let known = if labels.is_empty() { "none".to_owned() } else { labels.into_keys().collect::<Vec<_>>().join(", ") };
                    Err(Error::new(Kind::NotFound, format!("model `{model}` has no label `{label}`; its labels are {known}")))
                }
            },
        }
    }
}

/// The models of one folder.
#[derive(Debug)]
pub struct Repository {
    options: Options,
    entries: RwLock<BTreeMap<String, Entry>>,
    counts: Mutex<BTreeMap<String, LoadCounts>>,
    /// Changes that may be under way at once, over all models.
    changes: Semaphore,
    started: AtomicBool,
    draining: AtomicBool,
}

impl Repository {
    /// Finds the models of a folder; [`Repository::load`] loads them.
    ///
    /// # Errors
    /// If the folder cannot be read, or the default model is not in it.
    pub fn open(options: Options) -> Result<Self, String> {
        let sources = source::scan(&options.folder, options.model_name.as_deref())?;
        let entry = |(name, source): (String, Source)| {
            let entry = match find(&name, source, &options) {
                Ok(Found { settings, wanted, .. }) => {
                    Entry::new(settings, wanted.into_iter().map(|version| VersionStatus::new(version, State::Loading)).collect())
                }
                Err(reason) => Entry::new(ModelSettings::new(&options.defaults), vec![VersionStatus::new("", State::Failed(reason))]),
            };
            (name, entry)
        };
        let entries: BTreeMap<String, Entry> = sources.into_iter().map(entry).collect();
        if let Some(name) = &options.default_model
            && !entries.contains_key(name)
        {
            return Err(format!("the default model `{name}` is not in {}; there are {}", options.folder.display(), names(&entries)));
        }
        /// Loading is given what is left of the CPUs; more at once would only take memory.
        const CHANGES_MAX: usize = 2;
        Ok(Self {
            started: AtomicBool::new(entries.is_empty()),
            options,
            entries: RwLock::new(entries),
            counts: Mutex::default(),
            changes: Semaphore::new(CHANGES_MAX),
            draining: AtomicBool::new(false),
        })
    }

    /// Has the engine's threads give back memory that runs left to their parts of the allocator, once they have nothing else to do.
    pub fn release_memory(&self) {
        self.options.threads.before_sleep(release_memory);
    }

    /// [`Repository::load_models`] and [`Repository::settle`].
    pub fn load(&self, progress: impl Fn(&str, &VersionStatus, usize, usize) + Sync) {
        self.load_models(progress);
        self.settle();
    }

    /// Finds out what loading left of models that take long: whether their requests may share passes, and how time grows with rows. They
    /// serve meanwhile, and requests go before.
    pub fn settle(&self) {
        let left: Vec<Arc<Handle>> = self.ready().into_iter().filter(|handle| handle.left().is_some()).collect();
        if !left.is_empty()
            && let Err(reason) = self.settle_in_background(&left)
        {
            tracing::warn!(reason, "requests of models that take long are not batched");
        }
        keep_weights(self.ready());
        self.release_memory();
    }

    /// On threads of their own, for a low priority is for good. Where requests leave them no time, the engine's threads do it after all.
    fn settle_in_background(&self, left: &[Arc<Handle>]) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let find_out = |threads: &Arc<Threads>| {
            left.iter().take_while(|_| !self.is_draining()).for_each(|handle| settle(handle, threads));
        };
        std::thread::scope(|scope| {
            let (done, ended) = mpsc::sync_channel::<()>(0);
            let work = |threads: Arc<Threads>| {
                let _done = done;
                find_out(&threads);
            };
            let thread = self.spawn_beside(scope, "settle", work)?;
            if ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                find_out(&self.options.threads);
            }
            thread.join().unwrap_or_else(|panic| Err(panic_text(&*panic)))
        })
    }

    /// Loads every version that was found, on as many threads as the engine may use. `progress` is told each version as it
    /// ends, with how many are done and how many there are.
    pub fn load_models(&self, progress: impl Fn(&str, &VersionStatus, usize, usize) + Sync) {
        let (jobs, total): (Vec<String>, usize) = {
            let entries = self.read();
            let loading = |entry: &Entry| entry.versions.iter().filter(|version| matches!(version.state, State::Loading)).count();
            let jobs = entries.iter().filter(|(_, entry)| loading(entry) > 0).map(|(name, _)| name.clone()).collect();
            (jobs, entries.values().map(loading).sum())
        };
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            while let Some(name) = jobs.get(next.fetch_add(1, Relaxed)) {
                self.load_at_start(name, |status| {
                    let done = done.fetch_add(1, Relaxed) + 1;
                    progress(name, status, done, total.max(done));
                });
            }
        };
        std::thread::scope(|scope| {
            // What they keep of the allocator goes back to the system when they end.
            let start = |i: usize| std::thread::Builder::new().name(format!("load-{i}")).spawn_scoped(scope, work).is_ok();
            if (0..self.options.threads.count()).filter(|&i| start(i)).count() == 0 {
                work();
            }
        });
        let pipelines: Vec<String> = {
            let mut entries = self.write();
            pipelines::rebuild(&mut entries);
            entries.iter().filter(|(_, entry)| !entry.settings.steps.is_empty()).map(|(name, _)| name.clone()).collect()
        };
        self.verify_pipelines();
        let ended: Vec<(String, VersionStatus)> = {
            let mut entries = self.write();
            pipelines::rebuild(&mut entries);
            let pipelines = entries.iter().filter(|(name, _)| pipelines.contains(name));
            pipelines.flat_map(|(name, entry)| entry.versions.iter().map(|status| (name.clone(), status.clone()))).collect()
        };
        for (name, status) in ended {
            self.count(&name, status.state.servable().is_some());
            let done = done.fetch_add(1, Relaxed) + 1;
            progress(&name, &status, done, total.max(done));
        }
        self.started.store(true, Relaxed);
    }

    /// Takes pipelines out again that do not reproduce their golden samples.
    fn verify_pipelines(&self) {
        let made: Vec<(String, Servable, PathBuf)> = {
            let entries = self.read();
            let made = |(name, entry): (&String, &Entry)| Some((name.clone(), entry.newest()?.clone(), entry.golden.clone()?));
            entries.iter().filter(|(_, entry)| !entry.settings.steps.is_empty()).filter_map(made).collect()
        };
        for (name, pipeline, golden) in made {
            let Err(reason) = pipelines::reproduce(&pipeline, &golden) else { continue };
            tracing::warn!(model = name, %reason, "a pipeline failed to load");
            if let Some(entry) = self.write().get_mut(&name) {
                // Without its steps it is not made again before it is loaded anew.
                entry.settings.steps.clear();
                entry.slot_mut(pipelines::VERSION).state = State::Failed(reason);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who answers for a model. `None` for a version is [`Choice::Default`].
    ///
    /// # Errors
    /// `NotFound` if there is no such model, version or label, or it was unloaded; `Unavailable` if it is loading or failed to
    /// load, with the reason.
    pub fn get<'a>(&self, name: &str, choice: impl Into<Choice<'a>>) -> Result<Servable, Error> {
        let entries = self.read();
        let entry = entries.get(name).ok_or_else(|| unknown(name, &entries))?;
        entry.choose(name, choice.into())
    }

    /// Who answers where a request names no model: the configured default, or the only model.
    ///
    /// # Errors
    /// `InvalidArgument` if there are several and none is the default; otherwise as [`Repository::get`].
    pub fn default_model(&self) -> Result<Servable, Error> {
        if let Some(name) = &self.options.default_model {
            return self.get(name, None);
        }
        let only = {
            let entries = self.read();
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

    /// The labels of a model.
    ///
    /// # Errors
    /// `NotFound` if there is no such model.
    pub fn labels(&self, name: &str) -> Result<BTreeMap<String, Label>, Error> {
        let entries = self.read();
        entries.get(name).map(Entry::all_labels).ok_or_else(|| unknown(name, &entries))
    }

    /// Sets what a label of a model stands for, or removes it. It holds until the server ends, before the model's settings.
    ///
    /// # Errors
    /// `NotFound` if there is no such model, no such label to remove, or a version of the rule is not ready; `InvalidArgument` if
    /// the label is no name or the rule cannot be followed.
    pub fn set_label(&self, name: &str, label: &str, rule: Option<Label>) -> Result<(), Error> {
        if !label::is_path_segment(label) {
            return Err(Error::invalid(format!("`{label}` is no name for a label")));
        }
        let mut entries = self.write();
        let Some(entry) = entries.get_mut(name) else { return Err(unknown(name, &entries)) };
        if rule.is_none() && entry.label(label).is_none() {
            return Err(Error::new(Kind::NotFound, format!("model `{name}` has no label `{label}`")));
        }
        if let Some(rule) = &rule {
            rule.check().map_err(|reason| Error::invalid(format!("model `{name}`: label `{label}`: {reason}")))?;
            for version in rule.versions() {
                if entry.slot(version).is_none_or(|slot| slot.state.servable().is_none()) {
                    let message = format!("model `{name}`: label `{label}`: version `{version}` is not ready");
                    return Err(Error::new(Kind::NotFound, message));
                }
            }
        }
        entry.labels.insert(label.to_owned(), rule);
        entry.prepare_shadows();
        pipelines::rebuild(&mut entries);
        Ok(())
    }

    /// Every model and version with its state, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.read().iter().map(|(name, entry)| ModelStatus { name: name.clone(), versions: entry.versions.clone() }).collect()
    }

    /// The state of the server.
    pub fn state(&self) -> ServerState {
        self.state_with(&self.list())
    }

    fn state_with(&self, models: &[ModelStatus]) -> ServerState {
        let wrong = |model: &ModelStatus| matches!(model.state(), ModelState::Degraded | ModelState::Failed);
        match () {
            () if self.is_draining() => ServerState::Draining,
            () if !self.started.load(Relaxed) => ServerState::Starting,
            () if models.iter().any(wrong) => ServerState::Degraded,
            () => ServerState::Ready,
        }
    }

    /// Whether the models serve that must, and the server is not going down.
    ///
    /// # Errors
    /// Why not.
    pub fn readiness(&self) -> Result<(), String> {
        let models = self.list();
        state::readiness(self.options.ready_when, self.state_with(&models), &models, self.options.allow_no_models)
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

    /// The models behind the versions that are ready.
    pub fn ready(&self) -> Vec<Arc<Handle>> {
        let entries = self.read();
        let servables = entries.values().flat_map(|entry| &entry.versions).filter_map(|version| version.state.servable());
        servables.filter_map(|servable| servable.handle().cloned()).collect()
    }

    /// What copies of requests showed, by model and label.
    pub fn shadows(&self) -> Vec<(String, String, ShadowSnapshot)> {
        let entries = self.read();
        let of = |(name, entry): (&String, &Entry)| {
            let name = name.clone();
            let all: Vec<_> = entry.shadows.iter().map(|(label, stats)| (name.clone(), label.clone(), stats.snapshot())).collect();
            all
        };
        entries.iter().flat_map(of).collect()
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

/// What there is of a model at the start.
fn find(name: &str, source: Source, options: &Options) -> Result<Found, String> {
    let settings = source.settings(name, &options.defaults)?;
    let labels = settings.version_labels.clone();
    source.find(settings, labels.values().flat_map(Label::versions))
}

fn names(entries: &BTreeMap<String, Entry>) -> String {
    if entries.is_empty() { "none".to_owned() } else { entries.keys().map(String::as_str).collect::<Vec<_>>().join(", ") }
}

fn unknown(name: &str, entries: &BTreeMap<String, Entry>) -> Error {
    Error::new(Kind::NotFound, format!("model `{name}` is not known; known are {}", names(entries)))
}

fn unavailable(name: &str, status: Option<&VersionStatus>) -> Error {
    let Some(VersionStatus { version, state, .. }) = status else {
        return Error::new(Kind::Unavailable, format!("model `{name}` has no version"));
    };
    match state {
        State::Failed(reason) => Error::new(Kind::Unavailable, format!("model `{name}` version {version} failed to load: {reason}")),
        State::Unloaded | State::Unloading => Error::new(Kind::NotFound, format!("model `{name}` version {version} is unloaded")),
        State::Loading | State::Ready(_) => Error::new(Kind::Unavailable, format!("model `{name}` version {version} is loading")),
    }
}
