//! Tensors in files: folders of `.pb` and `.npz` archives, in and out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Failure;
use crate::engine::npz;
use crate::engine::onnx::{read_tensor, read_value, write_value};
use crate::engine::{Port, Signature, Tensor, Value};

/// The inputs of a model from `path`: an `.npz` archive with arrays named as the inputs, or a folder with `input_0.pb`, …. An optional input
/// may be in an archive; in a folder behind the others, under its name.
/// `limit` is the most bytes that they may take together.
///
/// # Errors
/// If an input is missing or too many, or a file cannot be read.
pub(super) fn read_inputs(path: &Path, signature: &Signature, limit: usize) -> Result<Inputs, Failure> {
    if is_npz(path) { read_npz(path, signature, limit) } else { read_folder(path, signature, limit) }
}

/// What the files hold.
pub(super) struct Inputs {
    /// One value per input, in order.
    pub(super) values: Vec<Value>,
    /// Tensors for optional inputs, by their positions.
    pub(super) overrides: Vec<(usize, Tensor)>,
}

/// Writes the outputs of a model to `path`: an `.npz` archive, or a folder with `output_0.pb`, …. A file that exists
/// afterwards is whole.
///
/// # Errors
/// If a file cannot be written, or an archive cannot hold a value.
pub(super) fn write_outputs(path: &Path, signature: &Signature, outputs: &[Value]) -> Result<(), Failure> {
    let named = || signature.outputs.iter().zip(outputs);
    if is_npz(path) {
        let mut arrays = Vec::with_capacity(outputs.len());
        for (port, value) in named() {
            let Some(tensor) = value.tensor() else {
                return Err(format!("output `{}` is a {}, which an .npz archive cannot hold; name a folder", port.name, port.kind).into());
            };
            arrays.push((port.name.as_str(), tensor));
        }
        let bytes = npz::write(&arrays).map_err(|error| in_file(path, error))?;
        return write_whole(path, &bytes);
    }
    fs::create_dir_all(path).map_err(|error| in_file(path, error))?;
    for (i, (port, value)) in named().enumerate() {
        write_whole(&path.join(format!("output_{i}.pb")), &write_value(&port.name, value))?;
    }
    Ok(())
}

/// Whether a file is an archive of arrays, by its name.
pub(super) fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}

fn in_file(path: &Path, error: impl std::fmt::Display) -> Failure {
    format!("{}: {error}", path.display()).into()
}

fn names(ports: &[Port]) -> String {
    ports.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ")
}

fn read_npz(path: &Path, signature: &Signature, limit: usize) -> Result<Inputs, Failure> {
    let file = fs::File::open(path).map_err(|error| in_file(path, error))?;
    let mut arrays: BTreeMap<String, Tensor> = npz::read(file, limit).map_err(|error| in_file(path, error))?;
    let mut inputs = Vec::with_capacity(signature.inputs.len());
    for port in &signature.inputs {
        let found = arrays.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let array = arrays.remove(&port.name);
        let array = array.ok_or_else(|| in_file(path, format!("there is no array named `{}`; there are {found}", port.name)))?;
        inputs.push(Value::Tensor(array));
    }
    let take = |(position, port): (usize, &Port)| Some((position, arrays.remove(&port.name)?));
    let overrides = signature.optional.iter().enumerate().filter_map(take).collect();
    match arrays.keys().next() {
        None => Ok(Inputs { values: inputs, overrides }),
        Some(extra) => Err(in_file(path, format!("the model has no input `{extra}`; it has {}", names(&signature.inputs)))),
    }
}

fn read_folder(folder: &Path, signature: &Signature, limit: usize) -> Result<Inputs, Failure> {
    if !folder.is_dir() {
        return Err(in_file(folder, "no such folder"));
    }
    let count = signature.inputs.len();
    let mut values = Vec::with_capacity(count);
    let mut left = limit;
    for (i, port) in signature.inputs.iter().enumerate() {
        let path = folder.join(format!("input_{i}.pb"));
        let bytes = fs::read(&path).map_err(|error| in_file(&path, format!("input {i} of the model, `{}`: {error}", port.name)))?;
        let (name, value) = read_value(&bytes, &port.kind, left).map_err(|error| in_file(&path, error))?;
        left = left.saturating_sub(value.bytes());
        values.push((name, value));
    }
    let mut overrides: Vec<(usize, Tensor)> = Vec::new();
    for i in count.. {
        let path = folder.join(format!("input_{i}.pb"));
        if !path.exists() {
            break;
        }
        let bytes = fs::read(&path).map_err(|error| in_file(&path, error))?;
        let (name, tensor) = read_tensor(&bytes, left).map_err(|error| in_file(&path, error))?;
        let position = signature.optional(&name).filter(|position| overrides.iter().all(|(other, _)| other != position));
        let position = position.ok_or_else(|| in_file(&path, format!("the model has {count} inputs: {}", names(&signature.inputs))))?;
        left = left.saturating_sub(tensor.bytes());
        overrides.push((position, tensor));
    }
    Ok(Inputs { values: in_order(values, signature), overrides })
}

/// Files that name all inputs in another order are taken by name; otherwise their numbers count.
fn in_order(values: Vec<(String, Value)>, signature: &Signature) -> Vec<Value> {
    let position = |port: &Port| {
        let mut named = values.iter().enumerate().filter(|(_, (name, _))| *name == port.name);
        named.next().filter(|_| named.next().is_none()).map(|(i, _)| i)
    };
    match signature.inputs.iter().map(position).collect::<Option<Vec<usize>>>() {
        Some(order) => order.into_iter().map(|i| values[i].1.clone()).collect(),
        None => values.into_iter().map(|(_, value)| value).collect(),
    }
}

/// Writes under a temporary name first, so that a reader never sees half a file.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary: PathBuf = path.with_file_name(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nothing is left behind; that the removal fails too is no news.
        let _ = fs::remove_file(&temporary);
        in_file(path, error)
    })
}
