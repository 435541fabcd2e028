//! What a client may replace when it asks for a model to be loaded: the settings, and all of the files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;

use crate::error::{Error, Kind};

/// What is to be loaded instead of what is in the repository. It holds until the model is loaded again.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Triton's model configuration as JSON; its fields go before those of the model's own settings.
    pub config: Option<String>,
    /// Files by their path in the model's folder, as `1/model.onnx`. If there are any, nothing of the repository's own folder
    /// is used.
    pub files: BTreeMap<String, Bytes>,
}

impl Overrides {
    /// Adds the file that a parameter `file:<path>` brings.
    ///
    /// # Errors
    /// `InvalidArgument` if the parameter is none, or its path leads out of the model's folder.
    pub fn add_file(&mut self, parameter: &str, bytes: Bytes) -> Result<(), Error> {
        let Some(path) = parameter.strip_prefix("file:") else {
            return Err(Error::invalid(format!("parameter `{parameter}` is not known; known are `config` and `file:<version>/<file>`")));
        };
        inside(path)?;
        self.files.insert(path.to_owned(), bytes);
        Ok(())
    }
}

/// The path if it leads to somewhere below where it starts.
fn inside(path: &str) -> Result<&Path, Error> {
    let relative = Path::new(path);
    let normal = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || path.ends_with('/') || path.contains(['\\', '\0']) || !normal {
        return Err(Error::invalid(format!("file `{path}`: the path must lead into the model's folder, as in `1/model.onnx`")));
    }
    Ok(relative)
}

/// A folder for files that clients sent, removed when it is dropped: whoever may read the files again holds it. What a process that was
/// killed left is removed by the next one that has such files.
#[derive(Debug)]
pub(in crate::serve) struct Scratch {
    folder: PathBuf,
    /// Locked as long as the process lives.
    _lock: File,
}

/// What the names of folders begin with.
const PREFIX: &str = "ndserve-";
/// In such a folder: the file that is locked, and the folder of the files.
const LOCK: &str = "lock";
const FILES: &str = ".files";

impl Scratch {
    /// Writes `files` into a new folder below `parent`.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that leads out; `Unsupported` if the server has no place for files.
    pub(super) fn write(parent: &Path, files: &BTreeMap<String, Bytes>) -> Result<Self, Error> {
        let paths = files.iter().map(|(path, bytes)| Ok((inside(path)?, bytes))).collect::<Result<Vec<_>, Error>>()?;
        sweep(parent);
        let made = Self::new(parent).and_then(|scratch| {
            for (path, bytes) in paths {
                let path = scratch.path().join(path);
                std::fs::create_dir_all(path.parent().expect("below the folder"))?;
                std::fs::write(path, bytes)?;
            }
            Ok(scratch)
        });
        made.map_err(|error| {
            let message = format!("files of a request need a folder that can be written: {}: {error}", parent.display());
            Error::new(Kind::Unsupported, message)
        })
    }

    fn new(parent: &Path) -> io::Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let folder = loop {
            let folder = parent.join(format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)));
            // A process of another container may have the same number.
            match std::fs::create_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => break made.map(|()| folder)?,
            }
        };
        // Under the name that others look at it is locked already.
        let new = folder.join("lock.new");
        let locked = File::create(&new).and_then(|file| {
            file.lock()?;
            std::fs::rename(&new, folder.join(LOCK))?;
            Ok(file)
        });
        match locked {
            Ok(lock) => Ok(Self { folder, _lock: lock }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    /// The folder of the files.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(FILES)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Removes folders whose process is gone. They stand in nobody's way: that one cannot be removed is no error.
fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let gone = || File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if ours && gone() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_is_refused() {
        let mut overrides = Overrides::default();
        for path in ["/etc/passwd", "../model.onnx", "1/../../x", "./1", "", "1/", "a\\..\\b", "1/\0"] {
            let error = overrides.add_file(&format!("file:{path}"), Bytes::new()).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{path}");
            let files = [(path.to_owned(), Bytes::new())].into();
            assert!(Scratch::write(&std::env::temp_dir(), &files).is_err(), "{path}");
        }
        assert!(overrides.add_file("files:1/x", Bytes::new()).unwrap_err().message().contains("`files:1/x` is not known"));
        overrides.add_file("file:1/model.onnx", Bytes::from_static(b"x")).unwrap();
        let scratch = Scratch::write(&std::env::temp_dir(), &overrides.files).unwrap();
        let path = scratch.path();
        assert_eq!(std::fs::read(path.join("1/model.onnx")).unwrap(), b"x");
        drop(scratch);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn folders_of_processes_that_are_gone_are_removed() {
        let parent = std::env::temp_dir().join(format!("sweep-{}", std::process::id()));
        for other in ["ndserve-gone", "ndserve-strange", "other"] {
            std::fs::create_dir_all(parent.join(other).join(FILES)).unwrap();
        }
        for other in ["ndserve-gone", "other"] {
            std::fs::write(parent.join(other).join(LOCK), "").unwrap();
        }
        let write = || Scratch::write(&parent, &[("1/model.onnx".to_owned(), Bytes::new())].into()).unwrap();
        let (first, second) = (write(), write());
        assert!(first.path().join("1/model.onnx").exists() && second.path().exists() && first.path() != second.path());
        let left = ["ndserve-gone", "ndserve-strange", "other"].map(|name| parent.join(name).exists());
        assert_eq!(left, [false, true, true], "what nobody has locked is gone, what is not ours stays");
        drop((first, second));
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
