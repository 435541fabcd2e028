//! States of versions, models and the server, and how they decide readiness.

use crate::serve::Servable;

/// The state of one version.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being loaded, warmed up or verified, and nothing of it serves yet.
    Loading,
    /// It answers.
    Ready(Servable),
    /// It could not be loaded or did not reproduce its golden samples.
    Failed(String),
    /// It takes no new request; those under way are being answered.
    Unloading,
    /// It was unloaded on request and can be loaded again.
    Unloaded,
}

impl State {
    /// Every state's name.
    pub const NAMES: [&'static str; 5] = ["loading", "ready", "failed", "unloading", "unloaded"];

    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Failed(_) => "failed",
            Self::Unloading => "unloading",
            Self::Unloaded => "unloaded",
        }
    }

    /// Who answers, if the version is ready.
    pub fn servable(&self) -> Option<&Servable> {
        match self {
            Self::Ready(servable) => Some(servable),
            _ => None,
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
    /// Why the last attempt to reload it failed, while what was loaded before still serves; empty otherwise.
    pub reload_failure: String,
}

impl VersionStatus {
    pub(super) fn new(version: impl Into<String>, state: State) -> Self {
        Self { version: version.into(), state, reload_failure: String::new() }
    }

    /// Why the version, or its newest contents, does not serve; empty if nothing is wrong.
    pub fn reason(&self) -> &str {
        match &self.state {
            State::Failed(reason) => reason,
            State::Unloaded => "unloaded",
            _ => &self.reload_failure,
        }
    }

    fn is_wrong(&self) -> bool {
        matches!(self.state, State::Failed(_)) || !self.reload_failure.is_empty()
    }
}

/// One model as the repository sees it.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// Its versions, oldest first. A model whose folder cannot be read at all has one failed version without a name.
    pub versions: Vec<VersionStatus>,
}

/// The state of a model, from those of its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// No version serves yet, and one is being loaded.
    Loading,
    /// Some version serves, and every one that is wanted is loaded or being loaded.
    Ready,
    /// Some version serves, and another one, or a newer content of it, failed.
    Degraded,
    /// No version serves, and one failed.
    Failed,
    /// It was unloaded on request, or is just being unloaded.
    Unloaded,
}

impl ModelStatus {
    /// The state of the model as a whole.
    pub fn state(&self) -> ModelState {
        let any = |is: fn(&VersionStatus) -> bool| self.versions.iter().any(is);
        match () {
            () if any(|version| matches!(version.state, State::Ready(_))) => {
                if any(VersionStatus::is_wrong) {
                    ModelState::Degraded
                } else {
                    ModelState::Ready
                }
            }
            () if any(|version| matches!(version.state, State::Loading)) => ModelState::Loading,
            () if any(|version| matches!(version.state, State::Failed(_))) => ModelState::Failed,
            () => ModelState::Unloaded,
        }
    }
}

/// The state of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// The models that were there at the start are still being loaded.
    Starting,
    /// Every model serves what is wanted of it.
    Ready,
    /// A model, or a newer version of one, failed.
    Degraded,
    /// The server is going down: it answers, and wants no new clients.
    Draining,
}

impl ServerState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Degraded, Self::Draining];

    /// The state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }
}

/// Which models must serve for the server to be ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadyWhen {
    /// Every model that was not unloaded on request.
    #[default]
    All,
    /// At least one.
    Any,
    /// None: the server is ready as soon as it listens, as one is whose models are loaded on request.
    None,
}

/// Whether models in these states make a server ready.
///
/// # Errors
/// Why not.
pub(super) fn readiness(when: ReadyWhen, server: ServerState, models: &[ModelStatus], allow_no_models: bool) -> Result<(), String> {
    if server == ServerState::Draining {
        return Err("the server is draining".to_owned());
    }
    if when == ReadyWhen::None {
        return Ok(());
    }
    if models.is_empty() && !allow_no_models {
        return Err("no model is configured".to_owned());
    }
    let wanted = || models.iter().filter(|model| model.state() != ModelState::Unloaded);
    let serves = |model: &&ModelStatus| matches!(model.state(), ModelState::Ready | ModelState::Degraded);
    let why = |model: &ModelStatus| {
        let wrong = model.versions.iter().rev().find(|version| !matches!(version.state, State::Ready(_) | State::Unloaded));
        wrong.map_or_else(
            || format!("model `{}` has no version", model.name),
            |version| match &version.state {
                State::Failed(reason) => format!("model `{}` version {} failed: {reason}", model.name, version.version),
                state => format!("model `{}` version {} is {}", model.name, version.version, state.name()),
            },
        )
    };
    let any = when == ReadyWhen::Any;
    match wanted().find(|model| !serves(model)) {
        _ if any && wanted().any(|model| serves(&model)) => Ok(()),
        Some(model) => Err(why(model)),
        None if any && !models.is_empty() => Err("every model is unloaded".to_owned()),
        None if server == ServerState::Starting && !any => Err("the server is starting".to_owned()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(states: &[&str]) -> ModelStatus {
        let state = |name: &&str| match *name {
            "loading" => State::Loading,
            "failed" => State::Failed("it is broken".into()),
            "unloading" => State::Unloading,
            _ => State::Unloaded,
        };
        ModelStatus { name: "m".into(), versions: states.iter().map(|name| VersionStatus::new("1", state(name))).collect() }
    }

    #[test]
    fn what_serves_decides_readiness() {
        use ServerState::{Degraded, Draining, Ready, Starting};
        let none: &[ModelStatus] = &[];
        for (when, server, models, want) in [
            (ReadyWhen::All, Ready, none, Err("no model is configured")),
            (ReadyWhen::None, Ready, none, Ok(())),
            (ReadyWhen::None, Draining, none, Err("draining")),
            (ReadyWhen::All, Starting, &[model(&["loading"])], Err("version 1 is loading")),
            (ReadyWhen::All, Degraded, &[model(&["failed"])], Err("failed: it is broken")),
            (ReadyWhen::Any, Degraded, &[model(&["failed"])], Err("failed: it is broken")),
            (ReadyWhen::All, Ready, &[model(&["unloaded"])], Ok(())),
            (ReadyWhen::Any, Ready, &[model(&["unloaded"])], Err("every model is unloaded")),
            (ReadyWhen::All, Starting, &[model(&["unloaded"])], Err("starting")),
        ] {
            let got = readiness(when, server, models, false);
            match want {
                Ok(()) => assert_eq!(got, Ok(()), "{when:?} {server:?}"),
                Err(part) => assert!(got.as_ref().is_err_and(|reason| reason.contains(part)), "{when:?} {server:?}: {got:?}"),
            }
        }
        assert_eq!(readiness(ReadyWhen::All, Ready, none, true), Ok(()));
    }

    #[test]
    fn a_models_state_is_that_of_what_can_be_asked() {
        for (versions, want) in [
            (&["failed", "loading"][..], ModelState::Loading),
            (&["failed", "unloading"], ModelState::Failed),
            (&["unloading"], ModelState::Unloaded),
            (&["unloaded"], ModelState::Unloaded),
            (&[], ModelState::Unloaded),
        ] {
            assert_eq!(model(versions).state(), want, "{versions:?}");
        }
    }
}
