//! Values made of files, made anew when the files change: certificates and keys are replaced while the server runs.
//!
//! The files are read and compared, which takes microseconds and finds every change: a Kubernetes mount is a link to a link
//! whose times say nothing, and two writes within a clock's tick have one time. A change that cannot be read, or makes no
//! valid value, leaves the old one in force.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Makes the value from the files' bytes, which stand in the order of the paths, and the value before, if there is one.
type Make<T> = dyn Fn(&[Vec<u8>], Option<&T>) -> Result<T, String> + Send + Sync;

/// A value made of files.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    value: RwLock<Arc<T>>,
    seen: Mutex<Result<Vec<Vec<u8>>, String>>,
}

/// What a look at the files found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// They are as they were.
    None,
    /// They changed, and the new value is in force.
    Replaced,
    /// They changed and make no value: the old one stays. Told once per change.
    Refused(String),
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// If one cannot be read, or they make no value.
    pub fn open(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>], Option<&T>) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let bytes = read(&files)?;
        let value = make(&bytes, None)?;
        Ok(Self { files, make: Box::new(make), value: RwLock::new(Arc::new(value)), seen: Mutex::new(Ok(bytes)) })
    }

    /// The value in force.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether the files changed.
    pub fn poll(&self) -> Change {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = read(&self.files);
        if *seen == now {
            return Change::None;
        }
        *seen = now;
        let made = match &*seen {
            Ok(bytes) => (self.make)(bytes, Some(&self.get())),
            Err(error) => Err(error.clone()),
        };
        match made {
            Ok(value) => {
                *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                Change::Replaced
            }
            Err(error) => Change::Refused(error),
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a secret.
        f.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    files.iter().map(|file| std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_replaces_and_a_broken_one_leaves_the_old_value() {
        let path = std::env::temp_dir().join(format!("ndserve-reload-{}", std::process::id()));
        let number = |bytes: &[Vec<u8>], _: Option<&u32>| {
            std::str::from_utf8(&bytes[0]).ok().and_then(|text| text.parse::<u32>().ok()).ok_or_else(|| "no number".to_owned())
        };
        std::fs::write(&path, "1").unwrap();
        let watched = Watched::open(vec![path.clone()], number).unwrap();
        assert_eq!((*watched.get(), watched.poll()), (1, Change::None));
        std::fs::write(&path, "2").unwrap();
        assert_eq!((watched.poll(), *watched.get(), watched.poll()), (Change::Replaced, 2, Change::None));
        std::fs::write(&path, "x").unwrap();
        assert_eq!((watched.poll(), watched.poll(), *watched.get()), (Change::Refused("no number".into()), Change::None, 2));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(watched.poll(), Change::Refused(error) if error.contains("ndserve-reload")));
        assert_eq!((watched.poll(), *watched.get()), (Change::None, 2));
        std::fs::write(&path, "3").unwrap();
        assert_eq!((watched.poll(), *watched.get()), (Change::Replaced, 3));
        std::fs::remove_file(&path).unwrap();
        assert!(Watched::open(vec![path], number).is_err());
    }
}
