//! What a client may replace when it asks for a model to be loaded: the settings, and all of the files.

use std::collections::BTreeMap;
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

/// A folder for files that clients sent, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Writes `files` into a new folder below `parent`.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that leads out; `Unsupported` if the server has no place for files.
    pub(super) fn write(parent: &Path, files: &BTreeMap<String, Bytes>) -> Result<Self, Error> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let paths = files.iter().map(|(path, bytes)| Ok((inside(path)?, bytes))).collect::<Result<Vec<_>, Error>>()?;
        let folder = parent.join(format!("ndserve-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)));
        let scratch = Self(folder);
        let write = |(path, bytes): (&Path, &Bytes)| {
            let path = scratch.0.join(path);
            std::fs::create_dir_all(path.parent().expect("below the folder"))?;
            std::fs::write(path, bytes)
        };
        paths.into_iter().try_for_each(write).map_err(|error| {
            let message = format!("files of a request need a folder that can be written: {}: {error}", parent.display());
            Error::new(Kind::Unsupported, message)
        })?;
        Ok(scratch)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
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
        let path = scratch.path().to_owned();
        assert_eq!(std::fs::read(path.join("1/model.onnx")).unwrap(), b"x");
        drop(scratch);
        assert!(!path.exists());
    }
}
