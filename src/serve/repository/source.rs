//! Where models lie on disk: the layouts of a repository, and which versions of a model are wanted.
//!
//! | path | what it is |
//! |---|---|
//! | `<repository>/<model>/<version>/model.onnx` | a version; beside it `model.toml` and `golden/` |
//! | `<repository>/<model>/model.onnx` | a model folder that is its own only version, as a downloaded one |
//! | `<repository>/<model>.onnx` | a model of one file |
//! | `<model>.onnx`, or a model folder, as the repository itself | a repository of this one model |

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::label::is_path_segment;
use super::overrides::Scratch;
use crate::engine::{FORMATS, find_model_file};
use crate::serve::settings::{Defaults, ModelSettings, Versions, configured_name};

/// Where one model lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A folder of versions, or one that holds a model itself.
    Folder(PathBuf),
    /// One file without settings.
    File(PathBuf),
}

/// What is found on disk of one model.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) source: Source,
    pub(super) settings: ModelSettings,
    /// The versions that are to be served, oldest first. They need not be there.
    pub(super) wanted: Vec<String>,
    /// The other versions that are there, newest first.
    pub(super) spare: Vec<String>,
    /// Where the files are, if a client sent them.
    pub(super) scratch: Option<Arc<Scratch>>,
}

impl Source {
    /// Reads the settings of the model that is served as `name`.
    ///
    /// # Errors
    /// What is wrong with them; if `defaults` are strict, also that a folder's configuration names another model.
    pub(super) fn settings(&self, name: &str, defaults: &Defaults) -> Result<ModelSettings, String> {
        let Self::Folder(folder) = self else { return Ok(ModelSettings::new(defaults)) };
        let settings = ModelSettings::read(folder, defaults)?;
        // Whoever names a model otherwise than its folder did so on purpose.
        let other = configured_name(folder).filter(|other| other != name && folder.file_name() == Some(name.as_ref()));
        match other {
            Some(other) if defaults.strict => Err(format!("{}: `{other}` is configured where the folder is `{name}`", folder.display())),
            Some(other) => {
                tracing::warn!(model = name, configured = other, "the configuration names another model; the folder's name is served");
                Ok(settings)
            }
            None => Ok(settings),
        }
    }

    /// The model file of a version.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn file(&self, version: &str, settings: &ModelSettings) -> Result<PathBuf, String> {
        match self {
            Self::File(file) => Ok(file.clone()),
            Self::Folder(folder) => version_file(folder, version, settings),
        }
    }

    /// The folder of golden samples.
    pub(super) fn golden(&self) -> Option<PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder.join("golden")),
            Self::File(_) => None,
        }
    }

    fn versions(&self, settings: &ModelSettings) -> Result<Vec<String>, String> {
        match self {
            Self::File(_) => Ok(vec![OWN_VERSION.to_owned()]),
            Self::Folder(folder) => versions(folder, settings).map_err(|error| format!("{}: {error}", folder.display())),
        }
    }

    /// Which versions are there and which of them are wanted: those of the policy, and those that a label names.
    ///
    /// # Errors
    /// If the folder cannot be read or has no version.
    pub(super) fn find<'a>(self, settings: ModelSettings, labelled: impl Iterator<Item = &'a str>) -> Result<Found, String> {
        if !settings.steps.is_empty() {
            return Ok(Found {
                source: self,
                settings,
                wanted: vec![super::pipelines::VERSION.to_owned()],
                spare: Vec::new(),
                scratch: None,
            });
        }
        let there = self.versions(&settings)?;
        let mut wanted: Vec<String> = match &settings.versions {
            Versions::Latest(count) => there[there.len().saturating_sub(*count)..].to_vec(),
            Versions::All => there.clone(),
            Versions::Only(versions) => versions.clone(),
        };
        wanted.extend(labelled.filter(|version| there.iter().any(|known| known == version)).map(str::to_owned));
        wanted.sort_by(|a, b| version_order(a, b));
        wanted.dedup();
        if wanted.is_empty() {
            return Err(format!("{}: there is no version, a folder with a model file: {}", self.path().display(), model_files()));
        }
        let spare = there.into_iter().rev().filter(|version| !wanted.contains(version)).collect();
        Ok(Found { source: self, settings, wanted, spare, scratch: None })
    }

    pub(super) fn path(&self) -> &Path {
        let (Self::Folder(path) | Self::File(path)) = self;
        path
    }
}

/// The models of a repository by name; `alone` is the name of a model that is the whole repository, which else its configuration has.
///
/// # Errors
/// If the path cannot be read.
pub(super) fn scan(path: &Path, alone: Option<&str>) -> Result<BTreeMap<String, Source>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let configured = || configured_name(path).filter(|name| is_model_name(name));
    let named = || alone.map(str::to_owned).or_else(configured).unwrap_or_else(|| path_name(path));
    if path.is_file() {
        return Ok([(named(), Source::File(path.to_owned()))].into());
    }
    if is_model_folder(path).map_err(failed)? {
        return Ok([(named(), Source::Folder(path.to_owned()))].into());
    }
    let mut models = BTreeMap::new();
    for item in std::fs::read_dir(path).map_err(failed)? {
        let path = item.map_err(failed)?.path();
        let Some((name, source)) = model_at(&path) else { continue };
        match models.entry(name) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(source);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                tracing::warn!(model = slot.key(), "there is a folder and a file of this name; the folder is served");
                if matches!(source, Source::Folder(_)) {
                    slot.insert(source);
                }
            }
        }
    }
    Ok(models)
}

/// The model called `name` of a repository, if there is one.
pub(super) fn find(path: &Path, alone: Option<&str>, name: &str) -> Result<Option<Source>, String> {
    Ok(scan(path, alone)?.remove(name))
}

/// The model that an item of a repository is. Names that start with a dot or an underscore are not models.
fn model_at(path: &Path) -> Option<(String, Source)> {
    let file_name = path.file_name()?.to_str()?;
    if !is_model_name(file_name) {
        return None;
    }
    if path.is_dir() {
        return Some((file_name.to_owned(), Source::Folder(path.to_owned())));
    }
    // Weights in parts are of a folder, with what describes them.
    let stem = FORMATS.iter().find_map(|format| file_name.strip_suffix(format.extension)?.strip_suffix('.'))?;
    (!stem.is_empty() && path.is_file()).then(|| (stem.to_owned(), Source::File(path.to_owned())))
}

/// Whether the folder is one model and not a repository: it holds a model file or settings itself, or its subfolders with
/// models are numbers, as only versions are called.
fn is_model_folder(path: &Path) -> std::io::Result<bool> {
    if find_model_file(path).is_some() || SETTINGS_FILES.iter().any(|name| path.join(name).is_file()) {
        return Ok(true);
    }
    let mut versions = false;
    for item in std::fs::read_dir(path)? {
        let path = item?.path();
        if !path.is_dir() || find_model_file(&path).is_none() {
            continue;
        }
        let number = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u64>().is_ok());
        if !number {
            return Ok(false);
        }
        versions = true;
    }
    Ok(versions)
}

/// Files that only a model folder has.
const SETTINGS_FILES: [&str; 2] = ["model.toml", "config.pbtxt"];

/// The name of the model at a path: its file's or folder's; for `folder/model.onnx` the folder's.
fn path_name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let telling = absolute.ancestors().find_map(|part| {
        let stem = if part.is_dir() { part.file_name() } else { part.file_stem() }?.to_str()?;
        (stem != "model" && stem.parse::<u64>().is_err()).then(|| stem.to_owned())
    });
    telling.unwrap_or_else(|| "model".to_owned())
}

/// Whether a repository's item of this name may be a model.
pub fn is_model_name(name: &str) -> bool {
    is_path_segment(name) && !name.starts_with(['.', '_'])
}

/// The names of model files, for messages.
pub fn model_files() -> String {
    FORMATS.iter().map(|format| format.file_name).collect::<Vec<_>>().join(" or ")
}

/// The name of the version of a model that has no folder per version.
const OWN_VERSION: &str = "1";

/// The model file in a version's folder.
fn model_file(folder: &Path, settings: &ModelSettings) -> Option<PathBuf> {
    match &settings.file_name {
        Some(name) => Some(folder.join(name)).filter(|path| path.is_file()),
        None => find_model_file(folder),
    }
}

/// The model file of a version of a model folder.
///
/// # Errors
/// If there is none.
pub fn version_file(folder: &Path, version: &str, settings: &ModelSettings) -> Result<PathBuf, String> {
    let own = if version == OWN_VERSION { model_file(folder, settings) } else { None };
    let below = || if is_path_segment(version) { model_file(&folder.join(version), settings) } else { None };
    own.or_else(below).ok_or_else(|| format!("{}: there is no model file", folder.join(version).display()))
}

/// The versions of a model folder: its subfolders that hold a model file, oldest first. Is there one in the folder itself, then
/// its subfolders are no versions: a downloaded folder may have the same model in other formats there.
///
/// # Errors
/// If the folder cannot be read.
pub fn versions(folder: &Path, settings: &ModelSettings) -> std::io::Result<Vec<String>> {
    if model_file(folder, settings).is_some() {
        return Ok(vec![OWN_VERSION.to_owned()]);
    }
    let mut versions = Vec::new();
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && is_model_name(name)
            && path.is_dir()
            && model_file(&path, settings).is_some()
        {
            versions.push(name.to_owned());
        }
    }
    versions.sort_by(|a, b| version_order(a, b));
    Ok(versions)
}

/// Numbers by value, before other names in alphabetical order.
pub(super) fn version_order(a: &str, b: &str) -> Ordering {
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
    use crate::serve::tests::Folder;

    #[test]
    fn versions_are_ordered_by_number_and_then_by_name() {
        let mut versions = ["v1.2", "10", "9", "beta"];
        versions.sort_by(|a, b| version_order(a, b));
        assert_eq!(versions, ["9", "10", "beta", "v1.2"]);
    }

    /// Files to create, the name for a model alone, and the models that are found, `/` behind a folder's.
    type Case<'a> = (&'a [&'a str], Option<&'a str>, &'a [&'a str]);

    #[test]
    fn every_layout_is_found() {
        let cases: &[Case<'_>] = &[
            (&["a/1/model.onnx", "b/model.onnx", "c.onnx", "README.md"], None, &["a/", "b/", "c"]),
            (&["a/1/model.onnx", "a.onnx", ".b/model.onnx", "_c.onnx", "d.onnx.tmp"], None, &["a/"]),
            (&["1/model.onnx", "12/model.onnx"], Some("x"), &["x/"]),
            (&["model.onnx", "onnx/model.onnx"], Some("x"), &["x/"]),
            (&["model.toml", "v1/model.onnx"], Some("x"), &["x/"]),
            (&["config.pbtxt", "1/other.onnx"], Some("x"), &["x/"]),
            (&["1/model.onnx", "two/model.onnx"], Some("x"), &["1/", "two/"]),
            (&["model.safetensors.index.json"], Some("x"), &["x/"]),
            (&[], None, &[]),
        ];
        for (files, alone, want) in cases {
            let folder = Folder::new("layout");
            for file in *files {
                let path = folder.0.join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, b"").unwrap();
            }
            let kind = |(name, source): (String, Source)| format!("{name}{}", if matches!(source, Source::Folder(_)) { "/" } else { "" });
            let found: Vec<String> = scan(&folder.0, *alone).unwrap().into_iter().map(kind).collect();
            assert_eq!(found, *want, "{files:?}");
        }
        assert!(scan(Path::new("nothing"), None).unwrap_err().starts_with("nothing: "));
    }

    #[test]
    fn a_model_alone_is_called_like_its_file_or_folder() {
        let folder = Folder::new("alone");
        let model = folder.0.join("iris");
        std::fs::create_dir_all(model.join("1")).unwrap();
        for (file, path) in [("1/model.onnx", ""), ("1/model.onnx", "1/model.onnx"), ("iris.onnx", "iris.onnx")] {
            std::fs::write(model.join(file), b"").unwrap();
            assert_eq!(scan(&model.join(path), None).unwrap().keys().collect::<Vec<_>>(), ["iris"], "{path}");
        }
    }

    #[test]
    fn the_policy_and_the_labels_choose_versions() {
        let folder = Folder::new("policy");
        for version in ["1", "2", "10", "v3"] {
            std::fs::create_dir_all(folder.0.join(version)).unwrap();
            std::fs::write(folder.0.join(version).join("model.onnx"), b"").unwrap();
        }
        for (text, label, wanted, spare) in [
            ("", None, &["v3"][..], &["10", "2", "1"][..]),
            ("versions = { latest = 2 }", None, &["10", "v3"], &["2", "1"]),
            ("versions = { latest = 2 }", Some("1"), &["1", "10", "v3"], &["2"]),
            ("versions = 'all'", Some("v3"), &["1", "2", "10", "v3"], &[]),
            ("versions = ['2', '7']", Some("9"), &["2", "7"], &["v3", "10", "1"]),
        ] {
            let settings = ModelSettings::parse(text, &Defaults::default()).unwrap();
            let found = Source::Folder(folder.0.clone()).find(settings, label.into_iter()).unwrap();
            assert_eq!(
                (found.wanted, found.spare),
                (wanted.iter().map(|v| v.to_string()).collect(), spare.iter().map(|v| v.to_string()).collect()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_version_leads_nowhere_else() {
        let folder = Folder::new("elsewhere");
        std::fs::create_dir_all(folder.0.join("a/1")).unwrap();
        std::fs::write(folder.0.join("model.onnx"), b"").unwrap();
        let settings = ModelSettings::new(&Defaults::default());
        for version in ["..", "../..", "1/../..", "", "1"] {
            assert!(version_file(&folder.0.join("a"), version, &settings).is_err(), "{version}");
        }
    }
}
