//! Watching the folder: what is new, changed or gone on disk becomes so in the server.
//!
//! The folder is looked at again and again, which works on every file system. A model is loaded once it looks the same twice in
//! a row, and what was loaded is dropped if it looks different afterwards: so a file that is still being copied is not served.
//! The safe way is to write under a name that starts with a dot or an underscore and to rename.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::source::{self, Source};
use super::{Options, Repository, is_model_name};

/// How a model's files look: a number for each version's folder, one for everything else. All zero: there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    around: u64,
    versions: BTreeMap<String, u64>,
}

/// What was seen of the folder so far.
#[derive(Debug)]
pub struct Watch {
    /// How each model looked when it was loaded.
    known: BTreeMap<String, Look>,
    /// How a model that has changed looked the last time.
    changed: BTreeMap<String, Look>,
}

impl Watch {
    /// Remembers how the folder looks. Call it before the models are loaded: what changes after this is seen.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn new(options: &Options) -> Result<Self, String> {
        Ok(Self { known: looks(options)?, changed: BTreeMap::new() })
    }

    /// Looks once, and changes what has settled since the look before. Blocks while models are loaded.
    pub fn look(&mut self, repository: &Arc<Repository>) {
        let mut now = match looks(&repository.options) {
            Ok(now) => now,
            Err(error) => {
                // An unmounted share must not unload what serves.
                tracing::warn!(%error, "the models cannot be looked at; what is loaded serves on");
                return;
            }
        };
        for name in self.known.keys() {
            now.entry(name.clone()).or_default();
        }
        for (name, look) in now {
            let known = self.known.get(&name);
            if known == Some(&look) {
                self.changed.remove(&name);
            } else if self.changed.get(&name) != Some(&look) {
                self.changed.insert(name, look);
            } else if self.settled(repository, &name, &look) {
                self.changed.remove(&name);
                if look == Look::default() {
                    self.known.remove(&name)
                } else {
                    self.known.insert(name, look)
                };
            }
        }
    }

    /// Whether the change is done with, well or badly; otherwise it is tried again.
    fn settled(&self, repository: &Arc<Repository>, name: &str, look: &Look) -> bool {
        if *look == Look::default() {
            tracing::info!(model = name, "the model's files are gone");
            repository.forget(name);
            return true;
        }
        if repository.is_unloaded(name) {
            return true;
        }
        let known = self.known.get(name);
        let same_around = known.is_some_and(|known| known.around == look.around);
        let fresh = |version: &str| {
            let before = known.and_then(|known| known.versions.get(version));
            !same_around || before.is_none() || before != look.versions.get(version)
        };
        let unchanged = || looks(&repository.options).is_ok_and(|now| now.get(name) == Some(look));
        tracing::info!(model = name, "the model's files have changed");
        repository.follow(name, &fresh, &unchanged)
    }
}

impl Repository {
    /// Looks at the folder every `period` from now on, on a thread of its own, until the server drains.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn watch(self: &Arc<Self>, mut watch: Watch, period: Duration) -> std::io::Result<()> {
        let repository = Arc::downgrade(self);
        let work = move || {
            loop {
                std::thread::sleep(period);
                let Some(repository) = repository.upgrade().filter(|repository| !repository.is_draining()) else { return };
                watch.look(&repository);
            }
        };
        std::thread::Builder::new().name("watch".to_owned()).spawn(work).map(drop)
    }
}

fn looks(options: &Options) -> Result<BTreeMap<String, Look>, String> {
    let sources = source::scan(&options.folder, options.model_name.as_deref())?;
    Ok(sources.into_iter().map(|(name, source)| (name, look(&source))).collect())
}

fn look(source: &Source) -> Look {
    let mut look = Look::default();
    let path = source.path();
    match source {
        Source::File(_) => look.around = file(path),
        Source::Folder(_) => {
            for (name, path) in items(path) {
                if path.is_dir() {
                    look.versions.insert(name, folder(&path, 0));
                } else {
                    look.around = look.around.wrapping_add(hash(&(name, file(&path))));
                }
            }
            // Samples are no version: whoever changes them wants them verified.
            let golden = look.versions.remove("golden").unwrap_or_default();
            look.around = look.around.wrapping_add(golden) | 1;
        }
    }
    look
}

/// The items of a folder that may be of a model.
fn items(path: &Path) -> Vec<(String, std::path::PathBuf)> {
    let Ok(items) = std::fs::read_dir(path) else { return Vec::new() };
    let item = |item: std::io::Result<std::fs::DirEntry>| {
        let path = item.ok()?.path();
        let name = path.file_name()?.to_str()?.to_owned();
        is_model_name(&name).then_some((name, path))
    };
    items.filter_map(item).collect()
}

/// A number for everything below a folder.
fn folder(path: &Path, depth: usize) -> u64 {
    /// A version's folder has few levels; a link to its own parent has no end.
    const DEPTH_MAX: usize = 8;
    let below = |(name, path): (String, std::path::PathBuf)| match () {
        () if !path.is_dir() => hash(&(name, file(&path))),
        () if depth < DEPTH_MAX => hash(&(name, folder(&path, depth + 1))),
        () => 0,
    };
    items(path).into_iter().map(below).fold(1, u64::wrapping_add)
}

/// A number for one file: its size, its time and which file it is.
fn file(path: &Path) -> u64 {
    let Ok(metadata) = path.metadata() else { return 0 };
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    hash(&(metadata.len(), modified, identity(&metadata)))
}

#[cfg(unix)]
fn identity(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> u64 {
    0
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
