//! Reading model files: bytes to [`Graph`].

mod builder;
mod described;
mod hugging_face;
mod layers;
mod onnx;
mod passed;
pub(crate) mod proto;
mod safetensors;
mod tensor_proto;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::elements::WeightFile;
use super::error::LoadError;
use super::graph::Graph;
use super::model::LoadOptions;
use super::signature::Signature;
use super::tensor::Tensor;
use super::threads::Threads;

pub(crate) use onnx::{parse as parse_onnx, writer::write as write_onnx};
pub(crate) use tensor_proto::{decode_tensor, encode_tensor};

/// A graph as read, with what the file says about itself.
#[derive(Debug)]
pub struct Loaded {
    /// The computation.
    pub graph: Graph,
    /// Everything else.
    pub metadata: Metadata,
}

impl Loaded {
    /// The files in which weights of the graph still lie, each once.
    pub(super) fn files(&self) -> Vec<Arc<WeightFile>> {
        let mut files: Vec<Arc<WeightFile>> = Vec::new();
        for file in self.graph.constants.values().filter_map(Tensor::file) {
            if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
                files.push(Arc::clone(file));
            }
        }
        files
    }
}

/// What a model file says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The format's name in [`FORMATS`].
    pub format: &'static str,
    /// Version of the format; 0 if it has none.
    pub format_version: i64,
    /// The program that wrote the file, with its version.
    pub producer: String,
    /// The graph's name.
    pub graph_name: String,
    /// Free text.
    pub description: String,
    /// Imported operator sets: domain (empty for `ai.onnx`) and version.
    pub opsets: Vec<(String, i64)>,
    /// Free properties.
    pub properties: BTreeMap<String, String>,
    /// Names of the classes, by index of the output's last dimension; empty if the file has none.
    pub labels: Vec<String>,
}

/// A row of the format table.
#[derive(Debug)]
pub struct Format {
    /// The format's name.
    pub name: &'static str,
    /// The file name under which a model folder holds it.
    pub file_name: &'static str,
    /// How a file's name ends, behind a dot.
    pub extension: &'static str,
    /// Reads a file of this format.
    pub read: fn(&Path, &LoadOptions) -> Result<Loaded, LoadError>,
    /// What a file says of itself, if that can be told of one that cannot be loaded.
    pub describe: fn(&Path) -> Option<(Metadata, Signature)>,
}

/// The formats that the engine reads.
pub const FORMATS: &[Format] = &[
    Format { name: "ONNX", file_name: "model.onnx", extension: "onnx", read: onnx::read, describe: onnx::describe },
    Format { name: "safetensors", file_name: "model.safetensors", extension: "safetensors", read: described::read, describe: |_| None },
    Format {
        name: "safetensors in several files",
        file_name: "model.safetensors.index.json",
        extension: "safetensors.index.json",
        read: described::read,
        describe: |_| None,
    },
];

/// The model file of a folder `<folder>/<file name of a format>`, if it has one.
pub fn find_model_file(folder: &Path) -> Option<PathBuf> {
    FORMATS.iter().map(|format| folder.join(format.file_name)).find(|path| path.is_file())
}

fn format(path: &Path) -> Option<&'static Format> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let by_name = FORMATS.iter().find(|format| name.strip_suffix(format.extension).is_some_and(|stem| stem.ends_with('.')));
    by_name.or_else(|| by_content(path))
}

/// The format of a file without an extension, as a model store may mount one: by its first bytes.
fn by_content(path: &Path) -> Option<&'static Format> {
    if path.extension().is_some() {
        return None;
    }
    let mut head = [0; 9];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    let [length @ .., open] = head;
    let name = match open {
        // The length of the header, and the header: a JSON object.
        b'{' if u64::from_le_bytes(length) < 1 << 32 => "safetensors",
        // The tag of the first field, the version of the format.
        _ if head[0] == 0x08 => "ONNX",
        _ => return None,
    };
    FORMATS.iter().find(|format| format.name == name)
}

/// What the file at `path` says of itself, whether it can be loaded or not: an input or output whose type the engine does not
/// know, or the file does not tell, is left out. `None` if the file cannot be read so far.
pub fn describe(path: &Path) -> Option<(Metadata, Signature)> {
    (format(path)?.describe)(path)
}

/// Reads the model at `path` as it is, before anything optimises it; the extension tells the format.
///
/// # Errors
/// As [`Model::load`](super::model::Model::load).
pub fn open(path: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let loaded = open_unread(path, options)?;
    finish(&loaded.files(), &options.threads)?;
    Ok(loaded)
}

/// Reads what is left of the weights in `files` and still in use.
pub(super) fn finish(files: &[Arc<WeightFile>], threads: &Threads) -> Result<(), LoadError> {
    let io = |file: &WeightFile, source| LoadError::Io { path: file.path().to_owned(), source };
    files.iter().try_for_each(|file| file.finish(threads).map_err(|error| io(file, error)))
}

/// As [`open`]; the weights may still lie in the file, of which [`finish`] reads what is left of them.
pub(super) fn open_unread(path: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let Some(format) = format(path) else {
        let known = FORMATS.iter().map(|format| format!(".{}", format.extension)).collect::<Vec<_>>().join(", ");
        return Err(LoadError::format(format!("unknown kind of model file; known are {known}")));
    };
    (format.read)(path, options)
}
