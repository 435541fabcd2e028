//! What a training could not do, in words for the person who asked: they name the file, row, column or key.

use crate::engine::{LoadError, OpError, RunError};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// The outcome of a step of training.
pub type Result<T> = std::result::Result<T, Error>;

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

macro_rules! from {
    ($($source:ty),*) => {$(
        impl From<$source> for Error {
            fn from(source: $source) -> Self {
                Self(source.to_string())
            }
        }
    )*};
}
from!(LoadError, OpError, RunError);

/// An error about a file.
pub(super) fn in_file(path: &std::path::Path, error: impl std::fmt::Display) -> Error {
    Error(format!("{}: {error}", path.display()))
}
