//! Checkpoints: an `.npz` archive with all that a training needs to go on to the same bits.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::{Error, Result, in_file};
use super::fit::{Epoch, State};
use crate::engine::{Tensor, npz};

/// Writes under a temporary name first and renames then, so that a kill at any moment leaves the old file or the new one, whole. A
/// folder that is missing is made. What earlier writers of the same file left, because they were killed, is removed.
///
/// # Errors
/// If the file cannot be written; nothing is left behind.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_through(path, |file| file.write_all(bytes).map_err(|error| error.to_string()))
}

/// Files that come into their place together: all are written under temporary names first, so that what one of them lacks (room, a
/// folder) leaves those that were there before as they were.
#[derive(Debug, Default)]
pub struct Staged(Vec<(PathBuf, PathBuf)>);

impl Staged {
    /// Writes one more.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = temporary(path);
        // Before it is written: what is written of it is removed too.
        self.0.push((temporary.clone(), path.to_owned()));
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&temporary, bytes));
        made.map_err(|error| in_file(path, error))
    }

    /// Renames all, in the order in which they came.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn place(mut self) -> Result<()> {
        for (temporary, path) in std::mem::take(&mut self.0) {
            fs::rename(&temporary, &path).map_err(|error| in_file(&path, error))?;
            remove_temporary(&path);
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (temporary, path) in &self.0 {
            let _ = fs::remove_file(temporary);
            // The folder too, if nothing else is in it.
            let _ = path.parent().map(fs::remove_dir);
        }
    }
}

/// The name under which a file is written.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// [`write_whole`] of what `write` writes.
fn write_through(path: &Path, write: impl FnOnce(&mut BufWriter<fs::File>) -> std::result::Result<(), String>) -> Result<()> {
    let temporary = temporary(path);
    let text = |error: std::io::Error| error.to_string();
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::File::create(&temporary)).map_err(text);
    let written = made.and_then(|file| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.flush().map_err(text)
    });
    written.and_then(|()| fs::rename(&temporary, path).map_err(text)).map_err(|error| {
        // That the removal fails too is no news.
        let _ = fs::remove_file(&temporary);
        in_file(path, error)
    })?;
    remove_temporary(path);
    Ok(())
}

/// Removes a file, with what killed writers left of it.
pub fn discard(path: &Path) {
    // That it is not there, or stays, changes no result.
    let _ = fs::remove_file(path);
    remove_temporary(path);
}

/// Removes files named as the temporary ones of a file. They stand in nobody's way: that one cannot be removed is no error.
fn remove_temporary(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let of_a_process = |other: &str| {
        let number = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.strip_suffix(".tmp"));
        number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    // A path without a folder has the empty one as its parent.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(of_a_process) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Names of the archive's arrays.
const HASH: &str = "configuration";
const HISTORY: &str = "history";
const STEP: &str = "step";
const BEST: &str = "best_epoch";

/// Writes the state of a training whose configuration and data have this hash.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, hash: &str, state: &State) -> Result<()> {
    let (step, momentums) = state.optimizer.state();
    let missing = |value: Option<f64>| value.unwrap_or(f64::NAN);
    let history: Vec<f64> = state.history.iter().flat_map(|e| [e.loss, missing(e.validation), missing(e.metric)]).collect();
    let first = [
        (HASH.to_owned(), Tensor::vector(vec![hash.to_owned()])),
        (HISTORY.to_owned(), Tensor::new(&[state.history.len(), 3], history).expect("three numbers of each epoch")),
        (STEP.to_owned(), Tensor::scalar(step as i64)),
        (BEST.to_owned(), Tensor::scalar(state.best.as_ref().map_or(-1, |(epoch, _)| *epoch as i64))),
    ];
    let best = state.best.iter().flat_map(|(_, values)| values).enumerate().map(|at| ("best", at));
    let parameters = state.parameters.iter().map(|p| &p.values).enumerate().map(|at| ("parameter", at));
    let vectors = parameters.chain(momentums.enumerate().map(|at| ("momentum", at))).chain(best);
    // A model's own size more is what nobody has in mind: each vector is copied when its turn comes.
    let vectors = vectors.map(|(kind, (i, values))| (format!("{kind}_{i:04}"), Tensor::vector(values.clone())));
    let arrays = first.into_iter().chain(vectors).map(|(name, tensor)| (name, Cow::Owned(tensor)));
    write_through(path, |file| npz::write_each(file, arrays).map(|_| ()))
}

/// Takes up the state that a file holds.
///
/// # Errors
/// If the file cannot be read, or is of another configuration or other data.
pub fn load(path: &Path, hash: &str, state: &mut State) -> Result<()> {
    let file = fs::File::open(path).map_err(|error| in_file(path, error))?;
    let arrays = npz::read(file, usize::MAX >> 1).map_err(|error| in_file(path, error))?;
    restore(&arrays, hash, state).map_err(|error| in_file(path, error))
}

fn restore(arrays: &BTreeMap<String, Tensor>, hash: &str, state: &mut State) -> Result<()> {
    let array = |name: &str| arrays.get(name).ok_or_else(|| Error(format!("it is no checkpoint: there is no array `{name}`")));
    if array(HASH)?.slice::<String>().and_then(|texts| texts.first()).map(String::as_str) != Some(hash) {
        return Err("it is of another configuration or other data; without --resume the training begins anew".into());
    }
    let number = |name: &str| Ok::<i64, Error>(array(name)?.slice::<i64>().and_then(|v| v.first().copied()).unwrap_or(-1));
    let vectors = |kind: &str| -> Vec<Vec<f32>> {
        let own = arrays
            .iter()
            .filter(|(name, _)| name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('_') && rest[1..].parse::<u32>().is_ok()));
        own.filter_map(|(_, tensor)| tensor.slice::<f32>().map(<[f32]>::to_vec)).collect()
    };
    let parameters = vectors("parameter");
    let fits = |values: &[Vec<f32>]| {
        values.len() == state.parameters.len() && values.iter().zip(&state.parameters).all(|(v, p)| v.len() == p.values.len())
    };
    if !fits(&parameters) {
        return Err("its parameters are not those of the network".into());
    }
    let best = vectors("best");
    let epoch = number(BEST)?;
    state.best = usize::try_from(epoch).ok().filter(|_| fits(&best)).map(|epoch| (epoch, best));
    state.optimizer.restore(number(STEP)?.max(0) as u64, vectors("momentum"))?;
    state.parameters.iter_mut().zip(parameters).for_each(|(p, values)| p.values = values);
    let some = |v: f64| (!v.is_nan()).then_some(v);
    let history = array(HISTORY)?.slice::<f64>().unwrap_or_default();
    state.history = history.chunks_exact(3).map(|e| Epoch { loss: e[0], validation: some(e[1]), metric: some(e[2]) }).collect();
    Ok(())
}
