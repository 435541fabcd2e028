//! Pipelines of the repository: made anew, under the lock of the change, whenever what they are made of changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::label::Turn;
use super::state::ModelState;
use super::{Choice, DEFAULT_LABEL, Entry, Label, ModelStatus, State, unavailable, unknown};
use crate::error::Error;
use crate::serve::pipeline::{Choose, Pipeline, Step, Target, Wrong};
use crate::serve::settings::ModelSettings;
use crate::serve::{Golden, InferRequest, Servable};

/// The version of every pipeline.
pub(super) const VERSION: &str = "1";

/// The versions of a label, one of which each request gets.
#[derive(Debug)]
struct Split {
    label: Label,
    turn: Turn,
    ready: Vec<Servable>,
}

impl Choose for Split {
    fn choose(&self) -> Servable {
        let ready = |version: &str| self.ready.iter().find(|servable| servable.version() == version);
        let picked = self.label.pick(&self.turn, |version| ready(version).is_some()).and_then(ready);
        picked.unwrap_or(&self.ready[0]).clone()
    }

    fn all(&self) -> Vec<Servable> {
        self.ready.clone()
    }
}

/// Makes every pipeline of the repository anew. One that cannot be made from what is new goes on with what it was made of, as
/// long as that is not unloaded.
pub(super) fn rebuild(entries: &mut BTreeMap<String, Entry>) {
    let Order { names, cycles } = order(entries);
    for name in names {
        let Some(entry) = entries.get(&name) else { continue };
        if entry.slot(VERSION).is_none_or(|slot| matches!(slot.state, State::Unloaded | State::Unloading)) {
            continue;
        }
        let built = match cycles.get(&name) {
            Some(reason) => Err(Wrong::Misfit(reason.clone())),
            None => Pipeline::new(&name, VERSION, &entry.settings, &|step: &Step| resolve(entries, step)),
        };
        let loading = entry.settings.steps.iter().any(|step| model_state(entries, &step.model) == Some(ModelState::Loading));
        let old = entry.slot(VERSION).and_then(|slot| slot.state.servable()).and_then(Servable::pipeline);
        let old_serves = old.is_some_and(|old| old.models().all(|model| entries.get(model).is_some_and(|entry| entry.newest().is_some())));
        let slot = entries.get_mut(&name).expect("it was there").slot_mut(VERSION);
        match built {
            Ok(pipeline) => {
                slot.state = State::Ready(pipeline.into());
                slot.reload_failure.clear();
            }
            Err(Wrong::Missing(_)) if loading && !old_serves => slot.state = State::Loading,
            Err(wrong) if old_serves => slot.reload_failure = wrong.reason().to_owned(),
            Err(wrong) => slot.state = State::Failed(wrong.reason().to_owned()),
        }
    }
}

/// The pipeline of `settings`, if what it needs serves and fits; it is not put into service.
pub(super) fn candidate(entries: &BTreeMap<String, Entry>, name: &str, settings: &ModelSettings) -> Option<Servable> {
    if order(entries).cycles.contains_key(name) {
        return None;
    }
    Pipeline::new(name, VERSION, settings, &|step: &Step| resolve(entries, step)).ok().map(Servable::from)
}

/// The pipelines that serve, have golden samples and are made of the model, by a step of theirs or of one of their steps; with
/// the folder of the samples.
pub(super) fn verified(entries: &BTreeMap<String, Entry>, model: &str) -> Vec<(String, PathBuf)> {
    let mut made_of = vec![model.to_owned()];
    let mut verified = Vec::new();
    for name in order(entries).names {
        let entry = &entries[&name];
        if entry.settings.steps.iter().any(|step| made_of.contains(&step.model)) {
            if let (Some(golden), Some(_)) = (&entry.golden, entry.newest()) {
                verified.push((name.clone(), golden.clone()));
            }
            made_of.push(name);
        }
    }
    verified
}

/// Runs a pipeline on its golden samples, if it has any in `folder`. Its steps run in their models' queues.
///
/// # Errors
/// What is wrong with the samples, or how the answer differs.
pub(super) fn reproduce(pipeline: &Servable, folder: &Path) -> Result<(), String> {
    let Some(golden) = Golden::read(folder)? else { return Ok(()) };
    let failed = |error: String| format!("the golden samples are not reproduced: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    let request = InferRequest::new(golden.inputs.clone());
    let response = runtime.block_on(pipeline.infer(request)).map_err(|error| failed(error.message().to_owned()))?;
    golden.compare(&response.outputs, pipeline.settings().tolerance).map_err(failed)
}

fn model_state(entries: &BTreeMap<String, Entry>, name: &str) -> Option<ModelState> {
    let entry = entries.get(name)?;
    Some(ModelStatus { name: String::new(), versions: entry.versions.clone() }.state())
}

/// Pipelines in the order in which they can be made.
#[derive(Debug, Default)]
struct Order {
    names: Vec<String>,
    /// Those that are a part of themselves, with the way around.
    cycles: BTreeMap<String, String>,
}

fn order(entries: &BTreeMap<String, Entry>) -> Order {
    let mut order = Order::default();
    for name in entries.keys() {
        order.visit(name, entries, &mut Vec::new());
    }
    order
}

impl Order {
    fn visit<'a>(&mut self, name: &'a str, entries: &'a BTreeMap<String, Entry>, path: &mut Vec<&'a str>) {
        let Some(entry) = entries.get(name).filter(|entry| !entry.settings.steps.is_empty()) else { return };
        if let Some(start) = path.iter().position(|known| *known == name) {
            let around: Vec<&str> = path[start..].iter().copied().chain([name]).collect();
            for name in &path[start..] {
                self.cycles.insert((*name).to_owned(), format!("the pipeline is a part of itself: {}", around.join(" → ")));
            }
            return;
        }
        if self.names.iter().any(|known| known == name) {
            return;
        }
        path.push(name);
        for step in &entry.settings.steps {
            self.visit(&step.model, entries, path);
        }
        path.pop();
        self.names.push(name.to_owned());
    }
}

/// Who answers for a step now.
fn resolve(entries: &BTreeMap<String, Entry>, step: &Step) -> Result<Target, Error> {
    let entry = entries.get(&step.model).ok_or_else(|| unknown(&step.model, entries))?;
    let choice = Choice::from(step.version.as_deref());
    let label = match choice {
        Choice::Default => entry.label(DEFAULT_LABEL),
        Choice::Version(version) if entry.slot(version).is_none() => entry.label(version),
        _ => None,
    };
    if let Some(label) = label {
        let ready: Vec<Servable> = label.split.iter().filter_map(|(version, _)| entry.slot(version)?.state.servable().cloned()).collect();
        let Some(first) = ready.first().cloned() else { return Err(unavailable(&step.model, entry.versions.last())) };
        if ready.len() == 1 {
            return Ok(Target { first, choose: None });
        }
        return Ok(Target { first, choose: Some(Arc::new(Split { label: label.clone(), turn: Turn::default(), ready })) });
    }
    let first = entry.choose(&step.model, choice)?;
    Ok(Target { first, choose: None })
}
