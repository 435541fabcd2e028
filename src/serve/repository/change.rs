//! Changes of what is served: load, reload and unload.
//!
//! What is new is loaded, planned, warmed and verified beside what serves, on a thread that only gets the CPU time that
//! requests leave. Then both are exchanged under one short lock, by a thread of normal priority: a lock must not be held by
//! one that may have to wait for the CPU. What served before answers the requests that hold it and is taken apart after the
//! last of them. A version that fails changes nothing but the index.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use super::exchange::exchange;
use super::overrides::Scratch;
use super::source::{self, Found, Source};
use super::{Entry, Label, Overrides, Repository, State, VersionStatus, find, pipelines, unknown};
use crate::engine::{Threads, release_memory};
use crate::error::{Error, Kind};
use crate::resources;
use crate::serve::Servable;
use crate::serve::handle::{Handle, Parts};
use crate::serve::loading::{Task, keep_weights, prepare};
use crate::serve::settings::ModelSettings;
use crate::serve::worker::panic_text;

/// How often versions of a model were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadCounts {
    /// Versions that became ready.
    pub ok: u64,
    /// Versions that failed.
    pub failed: u64,
}

/// What to unload with a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unload {
    /// Also the models that it uses as steps.
    pub dependents: bool,
}

/// What a change brought.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Versions that failed, and why.
    pub(super) failures: Vec<(String, String)>,
    /// What served before and does not any more.
    pub(super) retired: Vec<(String, Servable)>,
}

/// What became of one version.
pub(super) type Loaded = (String, Result<Servable, String>);

/// What is loaded, and when it counts.
struct Terms<'a> {
    pace: Pace,
    /// Whether the version is to be loaded although it is ready, or failed before.
    fresh: &'a dyn Fn(&str) -> bool,
    /// Whether the files are still those that were loaded.
    unchanged: &'a dyn Fn() -> bool,
    /// Is told each version as it ends.
    progress: &'a dyn Fn(&VersionStatus),
}

impl Terms<'_> {
    /// Everything, whatever becomes of the files.
    fn all(pace: Pace) -> Self {
        Self { pace, fresh: &|_| true, unchanged: &|| true, progress: &|_| {} }
    }
}

/// How much of the machine loading may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Nobody is served yet.
    Startup,
    /// What requests leave.
    Background,
}

impl Repository {
    /// Loads a model of the repository, or loads it anew. It serves throughout: by the time this returns the new contents
    /// answer. Dropping the future does not stop it.
    ///
    /// # Errors
    /// `NotFound` if the repository has no such model; `InvalidArgument` if the overrides or the model are wrong, with the
    /// reason: then what served before still does. `Unavailable` while the server is going down.
    pub async fn load_model(self: &Arc<Self>, name: &str, overrides: Overrides) -> Result<(), Error> {
        if self.is_draining() {
            return Err(Error::new(Kind::Unavailable, "the server is draining"));
        }
        self.change(name, move |repository, name| repository.load_now(name, &overrides, &Terms::all(Pace::Background))).await
    }

    /// Takes a model out of service. Requests that hold it are still answered. Dropping the future does not stop it.
    ///
    /// # Errors
    /// `NotFound` if there is no such model.
    pub async fn unload_model(self: &Arc<Self>, name: &str, unload: Unload) -> Result<(), Error> {
        self.change(name, move |repository, name| repository.unload_now(name, unload)).await
    }

    /// Runs a change where it may block.
    async fn change(
        self: &Arc<Self>,
        name: &str,
        change: impl FnOnce(&Arc<Self>, &str) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (repository, name) = (Arc::clone(self), name.to_owned());
        let task = async move {
            let _turn = repository.changes.acquire().await;
            let repository = Arc::clone(&repository);
            let work = move || {
                let changed = change(&repository, &name);
                // This thread may wait for long for its next task, or end.
                release_memory();
                changed
            };
            let changed = tokio::task::spawn_blocking(work).await;
            changed.unwrap_or_else(|error| Err(Error::internal("the change failed", error)))
        };
        // As a task of its own it goes on when the client goes away.
        tokio::spawn(task).await.unwrap_or_else(|error| Err(Error::internal("the change failed", error)))
    }

    fn load_now(self: &Arc<Self>, name: &str, overrides: &Overrides, terms: &Terms<'_>) -> Result<(), Error> {
        let (source, scratch) = self.source(name, overrides)?;
        let gate = self.gate(name);
        let _turn = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.find(name, source, overrides.config.as_deref());
        let found = found.map_err(|reason| {
            self.fail(name, &reason);
            Error::invalid(format!("model `{name}`: {reason}"))
        })?;
        let found = Found { scratch: scratch.map(Arc::new), ..found };
        let Changed { failures, retired } = self.apply(name, found, terms);
        self.drain_later(name, retired);
        match failures.first() {
            None => Ok(()),
            Some((version, reason)) => Err(Error::invalid(format!("failed to load model `{name}` version {version}: {reason}"))),
        }
    }

    /// Where the model's files are: in the repository, or in a folder for what the client sent.
    fn source(&self, name: &str, overrides: &Overrides) -> Result<(Source, Option<Scratch>), Error> {
        if !source::is_model_name(name) {
            return Err(Error::invalid(format!("`{name}` is no name for a model")));
        }
        if !overrides.files.is_empty() {
            let scratch = Scratch::write(&self.options.scratch, &overrides.files)?;
            return Ok((Source::Folder(scratch.path()), Some(scratch)));
        }
        let found = source::find(&self.options.folder, self.options.model_name.as_deref(), name);
        let found = found.map_err(|reason| Error::internal("the repository cannot be read", reason))?;
        found.map_or_else(|| Err(unknown(name, &self.read())), |source| Ok((source, None)))
    }

    /// What there is of a model now, its labels of the run time counted.
    fn find(&self, name: &str, source: Source, config: Option<&str>) -> Result<Found, String> {
        let mut settings = source.settings(name, &self.options.defaults)?;
        if let Some(config) = config {
            settings.apply_json(config, self.options.defaults.strict)?;
        }
        let labels = {
            let entries = self.read();
            entries.get(name).map(|entry| entry.labels.clone()).unwrap_or_default()
        };
        let mut named = settings.version_labels.clone();
        for (label, rule) in labels {
            match rule {
                Some(rule) => named.insert(label, rule),
                None => named.remove(&label),
            };
        }
        source.find(settings, named.values().flat_map(Label::versions))
    }

    /// The lock of a model's changes; the model is made known if it is not.
    fn gate(&self, name: &str) -> Arc<std::sync::Mutex<()>> {
        let mut entries = self.write();
        let entry = entries.entry(name.to_owned()).or_insert_with(|| Entry::new(ModelSettings::new(&self.options.defaults), vec![]));
        Arc::clone(&entry.gate)
    }

    /// Loads what was found of a model before the server serves.
    pub(super) fn load_at_start(&self, name: &str, progress: impl Fn(&VersionStatus)) {
        let source = source::find(&self.options.folder, self.options.model_name.as_deref(), name);
        let found = source.and_then(|source| find(name, source.ok_or("it is not there any more")?, &self.options));
        let gate = self.gate(name);
        let _turn = gate.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Err(reason) => self.fail(name, &reason),
            Ok(found) => {
                let Changed { retired, .. } = self.apply(name, found, &Terms { progress: &progress, ..Terms::all(Pace::Startup) });
                self.drain(name, retired);
            }
        }
    }

    /// Loads the wanted versions and exchanges them for what served.
    fn apply(&self, name: &str, found: Found, terms: &Terms<'_>) -> Changed {
        if !found.settings.steps.is_empty() {
            return self.exchange_pipeline(name, found, terms);
        }
        let (serves, to_load) = {
            let mut entries = self.write();
            let entry = entries.get_mut(name).expect("the gate made it");
            entry.versions.retain(|slot| !slot.version.is_empty());
            let mut to_load = Vec::new();
            for version in found.wanted.iter().rev() {
                let slot = entry.slot_mut(version);
                if (terms.fresh)(version) || !matches!(slot.state, State::Ready(_) | State::Failed(_)) {
                    to_load.push(version.clone());
                    if slot.state.servable().is_none() {
                        slot.state = State::Loading;
                    }
                }
            }
            (entry.newest().is_some(), to_load)
        };
        let mut loaded: Vec<Loaded> = Vec::new();
        for version in to_load {
            let outcome = self.load_one(name, &version, &found, terms.pace);
            (terms.progress)(&VersionStatus::new(&version, outcome.clone().map_or_else(State::Failed, State::Ready)));
            loaded.push((version, outcome));
        }
        // Better an older version than none: what is newest on disk may be broken while the server starts.
        if !serves && loaded.iter().all(|(_, outcome)| outcome.is_err()) {
            for version in &found.spare {
                let outcome = self.load_one(name, version, &found, terms.pace);
                let done = outcome.is_ok();
                loaded.push((version.clone(), outcome));
                if done {
                    tracing::warn!(model = name, version = %version, "an older version serves instead");
                    break;
                }
            }
        }
        if terms.pace == Pace::Background {
            self.try_in_pipelines(name, &found, &mut loaded);
        }
        for (_, outcome) in &loaded {
            self.count(name, outcome.is_ok());
        }
        if !(terms.unchanged)() {
            for (_, outcome) in &mut loaded {
                *outcome = Err("its files changed while they were read".to_owned());
            }
        }
        let mut entries = self.write();
        exchange(&mut entries, name, found, loaded)
    }

    fn load_one(&self, name: &str, version: &str, found: &Found, pace: Pace) -> Result<Servable, String> {
        let prepared = match pace {
            Pace::Startup => self.prepare((name, version), found, Arc::clone(&self.options.threads), (None, true)),
            Pace::Background => std::thread::scope(|scope| {
                let load = |threads| self.prepare((name, version), found, threads, (self.serving(name, version).as_deref(), false));
                let thread = self.spawn_beside(scope, "load", load)?;
                thread.join().unwrap_or_else(|panic| Err(panic_text(&*panic)))?
            }),
        };
        // The workers inherit this thread's priority, not that of the one that loaded.
        let started = prepared.and_then(|parts| {
            let handle = Handle::start(parts).map_err(|error| format!("the system cannot start a worker: {error}"))?;
            let handle = Arc::new(handle);
            // Behind the start this is done for all models at once; what came with a request is gone with the process.
            if pace == Pace::Background && found.scratch.is_none() {
                keep_weights(vec![Arc::clone(&handle)]);
            }
            Ok(Servable::from(handle))
        });
        match &started {
            Ok(_) => tracing::info!(model = name, version, "loaded"),
            Err(reason) => tracing::warn!(model = name, version, %reason, "a version failed to load"),
        }
        started
    }

    /// What serves as this version now, else as the newest.
    fn serving(&self, name: &str, version: &str) -> Option<Arc<Handle>> {
        let entries = self.read();
        let entry = entries.get(name)?;
        let same = entry.slot(version).and_then(|slot| slot.state.servable());
        same.or(entry.newest()).and_then(Servable::handle).cloned()
    }

    /// Does `work`, given threads to split it over, on a thread beside those that serve: all of them only get the CPU time that requests
    /// leave. Work for another version gets others: what a thread keeps of its part of the allocator goes back to the system when it ends;
    /// one that loaded version after version would hold the holes that each left.
    pub(super) fn spawn_beside<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        name: &str,
        work: impl FnOnce(Arc<Threads>) -> T + Send + 'scope,
    ) -> Result<ScopedJoinHandle<'scope, Result<T, String>>, String> {
        let begin = || {
            resources::lower_priority();
            let threads = Threads::new(self.options.threads.count());
            let threads = threads.map_err(|error| format!("the system cannot start threads: {error}"))?;
            Ok(work(Arc::new(threads)))
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, begin);
        thread.map_err(|error| format!("the system cannot start a thread: {error}"))
    }

    pub(super) fn count(&self, name: &str, ok: bool) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.entry(name.to_owned()).or_default();
        if ok { counts.ok += 1 } else { counts.failed += 1 }
    }

    /// Loads, warms and verifies. A bug that one model brings out must not keep others from serving.
    fn prepare(
        &self,
        (name, version): (&str, &str),
        found: &Found,
        threads: Arc<Threads>,
        (before, hurry): (Option<&Handle>, bool),
    ) -> Result<Parts, String> {
        let Found { source, settings, scratch, .. } = found;
        let golden = source.golden();
        let load = || {
            let file = source.file(version, settings)?;
            let golden = golden.as_deref().map(Path::new);
            let task =
                Task { name, version, file: &file, golden, settings: settings.clone(), options: &self.options, threads, before, hurry };
            let parts = prepare(task)?;
            parts.derived.hold(scratch.clone());
            Ok(parts)
        };
        catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|panic| Err(panic_text(&*panic)))
    }

    /// Puts a pipeline into service, if its steps are.
    fn exchange_pipeline(&self, name: &str, found: Found, terms: &Terms<'_>) -> Changed {
        let mut changed = Changed::default();
        let golden = found.source.golden();
        // While the server starts its steps are not there yet; then this is done when they are.
        let candidate = pipelines::candidate(&self.read(), name, &found.settings);
        if let (Pace::Background, Some(candidate), Some(golden)) = (terms.pace, candidate, &golden)
            && let Err(reason) = pipelines::reproduce(&candidate, golden)
        {
            self.fail(name, &reason);
            changed.failures.push((pipelines::VERSION.to_owned(), reason));
            return changed;
        }
        let status = {
            let mut entries = self.write();
            let entry = entries.get_mut(name).expect("the gate made it");
            entry.golden = golden;
            entry.settings = found.settings;
            entry.prepare_shadows();
            entry.versions.retain(|slot| slot.version == pipelines::VERSION);
            let slot = entry.slot_mut(pipelines::VERSION);
            match std::mem::replace(&mut slot.state, State::Loading) {
                // What was a model until now.
                State::Ready(old) if old.handle().is_some() => changed.retired.push((pipelines::VERSION.to_owned(), old)),
                State::Ready(old) => slot.state = State::Ready(old),
                _ => {}
            }
            pipelines::rebuild(&mut entries);
            entries[name].slot(pipelines::VERSION).cloned()
        };
        if let Some(status) = status {
            if !status.reason().is_empty() {
                tracing::warn!(model = name, reason = status.reason(), "a pipeline failed to load");
                changed.failures.push((status.version.clone(), status.reason().to_owned()));
            }
            if terms.pace == Pace::Background {
                self.count(name, status.reason().is_empty());
            }
        }
        changed
    }

    /// Notes why a model as a whole could not be loaded; what serves goes on.
    fn fail(&self, name: &str, reason: &str) {
        tracing::warn!(model = name, %reason, "a model failed to load");
        self.count(name, false);
        let mut entries = self.write();
        let Some(entry) = entries.get_mut(name) else { return };
        match entry.versions.iter_mut().rev().find(|slot| slot.state.servable().is_some()) {
            Some(slot) => slot.reload_failure = reason.to_owned(),
            None => entry.versions = vec![VersionStatus::new("", State::Failed(reason.to_owned()))],
        }
    }

    fn unload_now(self: &Arc<Self>, name: &str, unload: Unload) -> Result<(), Error> {
        let (gate, steps) = {
            let entries = self.read();
            let entry = entries.get(name).ok_or_else(|| unknown(name, &entries))?;
            let steps: Vec<String> = entry.settings.steps.iter().map(|step| step.model.clone()).collect();
            (Arc::clone(&entry.gate), steps)
        };
        self.take_out(name, &gate);
        if unload.dependents {
            for step in steps.iter().filter(|step| !self.is_unloaded(step)) {
                self.unload_now(step, unload)?;
            }
        }
        Ok(())
    }

    /// Takes every version of a model out of service.
    fn take_out(self: &Arc<Self>, name: &str, gate: &std::sync::Mutex<()>) {
        let _turn = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retired = Vec::new();
        let mut entries = self.write();
        if let Some(entry) = entries.get_mut(name) {
            entry.versions.retain(|slot| !slot.version.is_empty());
            for slot in &mut entry.versions {
                slot.reload_failure.clear();
                match std::mem::replace(&mut slot.state, State::Unloaded) {
                    State::Ready(old) => {
                        slot.state = State::Unloading;
                        retired.push((slot.version.clone(), old));
                    }
                    State::Unloading => slot.state = State::Unloading,
                    _ => {}
                }
            }
        }
        pipelines::rebuild(&mut entries);
        drop(entries);
        tracing::info!(model = name, "unloaded");
        self.drain_later(name, retired);
    }

    /// Whether the model was unloaded on request.
    pub(super) fn is_unloaded(&self, name: &str) -> bool {
        let unloaded = |slot: &VersionStatus| matches!(slot.state, State::Unloaded | State::Unloading);
        self.read().get(name).is_some_and(|entry| !entry.versions.is_empty() && entry.versions.iter().all(unloaded))
    }

    /// Loads what has changed of a model's files. `false` if they changed again meanwhile: then nothing else has.
    pub(super) fn follow(self: &Arc<Self>, name: &str, fresh: &dyn Fn(&str) -> bool, unchanged: &dyn Fn() -> bool) -> bool {
        let terms = Terms { fresh, unchanged, ..Terms::all(Pace::Background) };
        // A failure is in the index and the log.
        let _ = self.load_now(name, &Overrides::default(), &terms);
        unchanged()
    }

    /// Unloads a model whose files are gone, and no longer knows it.
    pub(super) fn forget(self: &Arc<Self>, name: &str) {
        if self.unload_now(name, Unload::default()).is_ok() {
            let mut entries = self.write();
            entries.remove(name);
            pipelines::rebuild(&mut entries);
        }
    }

    /// [`Repository::drain`] on a thread of its own: the change is done, what is left is waiting.
    fn drain_later(self: &Arc<Self>, name: &str, retired: Vec<(String, Servable)>) {
        if retired.is_empty() {
            return;
        }
        let (repository, owned) = (Arc::clone(self), name.to_owned());
        let spawned = std::thread::Builder::new().name("drain".to_owned()).spawn(move || repository.drain(&owned, retired));
        if let Err(error) = spawned {
            tracing::warn!(model = name, %error, "the system cannot start a thread; the last request takes the version apart");
        }
    }

    /// Waits until nobody holds what was retired, and takes it apart here rather than on the thread of a request.
    fn drain(&self, name: &str, retired: Vec<(String, Servable)>) {
        /// How often it is looked whether the last request has gone: nothing waits for it but memory.
        const LOOK: Duration = Duration::from_millis(2);
        for (version, servable) in retired {
            while servable.is_held() {
                std::thread::sleep(LOOK);
            }
            servable.close();
            // Freeing is work too, and requests come first. Where the system has no thread for it, there is this one.
            let free = move || {
                resources::lower_priority();
                drop(servable);
            };
            if let Ok(freed) = std::thread::Builder::new().name("free".to_owned()).spawn(free) {
                let _ = freed.join();
            }
            // What threads left that have ended nobody else gives back.
            release_memory();
            let mut entries = self.write();
            let Some(entry) = entries.get_mut(name) else { continue };
            let unloaded = entry.newest().is_none();
            if let Some(at) = entry.versions.iter().position(|slot| slot.version == version && matches!(slot.state, State::Unloading)) {
                if unloaded {
                    entry.versions[at].state = State::Unloaded;
                } else {
                    entry.versions.remove(at);
                }
            }
        }
    }

    /// How often versions were loaded, by model.
    pub fn load_counts(&self) -> Vec<(String, LoadCounts)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(name, counts)| (name.clone(), *counts)).collect()
    }
}
