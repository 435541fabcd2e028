//! What explanations run beside a model: its gradients, the Shapley values of its trees. Made of the model's file when they are
//! first asked for, and kept with the version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::repository::Scratch;
use crate::engine::{LoadError, LoadOptions, Model, Signature, read_graph};
use crate::error::{Error, Kind};
use crate::explain::Program;

/// See the module.
#[derive(Debug)]
pub(super) struct Derived {
    file: PathBuf,
    stamp: Option<Stamp>,
    options: LoadOptions,
    /// By the program and the output that it explains.
    made: Mutex<HashMap<(Program, usize), Arc<Model>>>,
    /// The folder of the file, if it is there only as long as somebody holds it.
    scratch: Mutex<Option<Arc<Scratch>>>,
}

/// What tells one content of a file from another.
type Stamp = (u64, SystemTime);

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

impl Derived {
    /// Of the model that is about to be loaded from `file`.
    pub(super) fn new(file: &Path, options: &LoadOptions) -> Self {
        Self { file: file.to_owned(), stamp: stamp(file), options: options.clone(), made: Mutex::default(), scratch: Mutex::default() }
    }

    /// Holds the folder of the file; `None` lets go of it.
    pub(super) fn hold(&self, scratch: Option<Arc<Scratch>>) {
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = scratch;
    }

    /// The program that explains output `output`, made now if this is the first time. Blocks as long as loading takes.
    ///
    /// # Errors
    /// `Unsupported` if the model has none, by the node in the way; `Unavailable` if the file is no longer what was loaded.
    pub(super) fn get(&self, program: Program, output: usize, served: &Signature) -> Result<Arc<Model>, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = made.get(&(program, output)) {
            return Ok(Arc::clone(model));
        }
        if self.stamp.is_none() || stamp(&self.file) != self.stamp {
            let message = format!("{} explains by the model's file, which is gone or has changed since it was loaded", program.name());
            return Err(Error::new(Kind::Unavailable, message));
        }
        let derive = || program.derive(read_graph(&self.file, &self.options)?, served, output, &self.options);
        let model = Arc::new(derive().map_err(|error| match error {
            LoadError::Io { .. } => Error::internal("the model's file cannot be read", error),
            error => Error::new(Kind::Unsupported, error.to_string()),
        })?);
        made.insert((program, output), Arc::clone(&model));
        Ok(model)
    }
}
