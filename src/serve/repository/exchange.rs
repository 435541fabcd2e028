//! The exchange of a model's versions: tried in the pipelines that they are a part of, then made at once.

use std::collections::BTreeMap;

use super::change::{Changed, Loaded};
use super::source::Found;
use super::{Entry, Repository, State, pipelines};

impl Repository {
    /// Fails what was loaded if a pipeline that it is a part of would no longer reproduce its golden samples.
    pub(super) fn try_in_pipelines(&self, name: &str, found: &Found, loaded: &mut [Loaded]) {
        if loaded.iter().all(|(_, outcome)| outcome.is_err()) {
            return;
        }
        let (verified, mut trial) = {
            let entries = self.read();
            let verified = pipelines::verified(&entries, name);
            if verified.is_empty() {
                return;
            }
            // As all would be with the new version, beside what serves.
            let trial: BTreeMap<String, Entry> = entries.iter().map(|(name, entry)| (name.clone(), entry.snapshot())).collect();
            (verified, trial)
        };
        drop(exchange(&mut trial, name, found.clone(), loaded.to_vec()));
        for (pipeline, golden) in verified {
            let Some(made) = trial.get(&pipeline).and_then(Entry::newest) else { continue };
            if let Err(reason) = pipelines::reproduce(made, &golden) {
                let reason = format!("pipeline `{pipeline}`: {reason}");
                tracing::warn!(model = name, %reason, "a version failed to load");
                for (_, outcome) in loaded.iter_mut().filter(|(_, outcome)| outcome.is_ok()) {
                    *outcome = Err(reason.clone());
                }
                return;
            }
        }
    }
}

/// Puts what was loaded into service and takes out what is not wanted any more.
pub(super) fn exchange(entries: &mut BTreeMap<String, Entry>, name: &str, found: Found, loaded: Vec<Loaded>) -> Changed {
    let Changed { mut failures, mut retired } = Changed::default();
    let entry = entries.get_mut(name).expect("the gate made it");
    let kept: Vec<String> = loaded.iter().map(|(version, _)| version).chain(&found.wanted).cloned().collect();
    for (version, outcome) in loaded {
        let slot = entry.slot_mut(&version);
        match outcome {
            Ok(servable) => {
                slot.reload_failure.clear();
                if let State::Ready(old) = std::mem::replace(&mut slot.state, State::Ready(servable)) {
                    retired.push((version, old));
                }
            }
            Err(reason) => {
                match &mut slot.state {
                    State::Ready(_) => slot.reload_failure.clone_from(&reason),
                    state => *state = State::Failed(reason.clone()),
                }
                failures.push((version, reason));
            }
        }
    }
    // What is not wanted any more goes only if all that is wanted came: a broken version never costs a good one.
    let replaced = found.wanted.iter().all(|version| entry.slot(version).is_some_and(|slot| slot.state.servable().is_some()));
    entry.versions.retain_mut(|slot| {
        if kept.contains(&slot.version) || (matches!(slot.state, State::Ready(_)) && !replaced) {
            return true;
        }
        match std::mem::replace(&mut slot.state, State::Unloading) {
            State::Ready(old) => {
                retired.push((slot.version.clone(), old));
                true
            }
            state => matches!(state, State::Unloading),
        }
    });
    entry.settings = found.settings;
    entry.prepare_shadows();
    pipelines::rebuild(entries);
    Changed { failures, retired }
}
