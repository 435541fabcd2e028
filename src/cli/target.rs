//! What a path on the command line means: a model file, a model folder, or a repository of models.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Failure;
use crate::config::Settings;
use crate::engine::{LoadError, LoadOptions, Model, find_model_file};
use crate::serve::{Defaults, ModelSettings, is_model_name, model_files, version_file, versions};

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// What to call it.
    pub(super) name: String,
    /// The model file, or why there is none.
    pub(super) file: Result<PathBuf, String>,
    /// The folder with `model.toml` and `golden/`, if the path led to one.
    pub(super) folder: Option<PathBuf>,
}

impl Target {
    /// The one model at `path`: a model file, a version's folder, or a model folder, of which the newest version is taken.
    pub(super) fn one(path: &Path) -> Result<Self, Failure> {
        if path.is_file() {
            return Ok(Self { name: name(path), file: Ok(path.to_owned()), folder: None });
        }
        if !path.is_dir() {
            return Err(format!("{}: no such file or folder", path.display()).into());
        }
        Ok(Self { name: name(path), file: Ok(newest(path)?), folder: Some(path.to_owned()) })
    }

    /// All models at `path`: as [`Target::one`], or one per subfolder of a repository.
    pub(super) fn all(path: &Path) -> Result<Vec<Self>, Failure> {
        let not_one = match Self::one(path) {
            Ok(target) => return Ok(vec![target]),
            Err(error) if !path.is_dir() => return Err(error),
            Err(error) => error,
        };
        let folders = models(path)?;
        let targets: Vec<Self> = folders
            .into_iter()
            .map(|folder| Self { name: name(&folder), file: newest(&folder).map_err(|error| error.0), folder: Some(folder) })
            .collect();
        if targets.iter().any(|target| target.file.is_ok()) { Ok(targets) } else { Err(not_one) }
    }

    /// Loads the model; the milliseconds that it took come with it.
    pub(super) fn load(&self, options: &LoadOptions) -> Result<(Model, f64), LoadError> {
        let file = self.file.as_ref().map_err(|reason| LoadError::Format(reason.clone()))?;
        let start = Instant::now();
        let model = Model::load(file, options)?;
        Ok((model, start.elapsed().as_secs_f64() * 1e3))
    }

    /// What its folder declares; of a lone file what holds where nothing is declared.
    pub(super) fn settings(&self, settings: &Settings) -> Result<ModelSettings, Failure> {
        let defaults = super::serve::defaults(settings);
        Ok(match &self.folder {
            Some(folder) => ModelSettings::read(folder, &defaults)?,
            None => ModelSettings::new(&defaults),
        })
    }

    /// The error with the file that it is about.
    pub(super) fn failed(&self, error: &LoadError) -> Failure {
        match (&self.file, error) {
            // These name it themselves.
            (Err(_), _) | (_, LoadError::Io { .. }) => error.into(),
            (Ok(file), error) => format!("{}: {error}", file.display()).into(),
        }
    }
}

/// The name of a model: its folder's, or for `folder/model.onnx` and `folder/1/model.onnx` that of the first telling part.
fn name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let telling = absolute.ancestors().find_map(|part| {
        let stem = if part.is_dir() { part.file_name() } else { part.file_stem() }?.to_string_lossy().into_owned();
        (stem != "model" && stem.parse::<u64>().is_err()).then_some(stem)
    });
    telling.unwrap_or_else(|| path.display().to_string())
}

/// The model file of a folder: its own, or that of its newest version.
fn newest(folder: &Path) -> Result<PathBuf, Failure> {
    if let Some(file) = find_model_file(folder) {
        return Ok(file);
    }
    // Wrong settings are told when the model is loaded.
    let settings = ModelSettings::read(folder, &Defaults::default()).unwrap_or_else(|_| ModelSettings::new(&Defaults::default()));
    if !settings.steps.is_empty() {
        let steps: Vec<&str> = settings.steps.iter().map(|step| step.model.as_str()).collect();
        let steps = steps.join(" → ");
        return Err(format!(
            "{}: it is a pipeline, {steps}: only a server runs one; name the folder of one of its models",
            folder.display()
        )
        .into());
    }
    let versions = versions(folder, &settings).map_err(|error| format!("{}: {error}", folder.display()))?;
    let newest = versions.last().and_then(|version| version_file(folder, version, &settings).ok());
    newest.ok_or_else(|| format!("{}: there is no model file in it or in a <version> folder: {}", folder.display(), model_files()).into())
}

/// The model folders of a repository, in the order of their names.
fn models(repository: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(repository).map_err(|error| format!("{}: {error}", repository.display()))?;
    let is_model = |path: &PathBuf| path.is_dir() && path.file_name().and_then(|name| name.to_str()).is_some_and(is_model_name);
    let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_model).collect();
    folders.sort();
    Ok(folders)
}
