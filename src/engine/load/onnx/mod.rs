//! The ONNX reader: `ModelProto` to [`Graph`](crate::engine::graph::Graph).
//!
//! Everything that a file may get wrong is an error that names the node or tensor; everything that the engine lacks is
//! collected over the whole model, so that one load tells all of it.

mod functions;
mod gradient;
mod importer;
mod kinds;
mod order;
mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bytes::Buf;
use prost::Message;

use super::passed::Passed;
use super::proto::{ModelProto, OperatorSetIdProto, ValueInfoProto};
use super::tensor_proto::External;
use super::{Loaded, Metadata};
use crate::engine::error::LoadError;
use crate::engine::model::LoadOptions;
use crate::engine::ops::LATEST_OPSET;
use crate::engine::signature::{Port, Signature};
use importer::{Importer, Shared};

/// The message in the file at `path`, with what was passed over of it.
fn message(path: &Path) -> Result<(Result<ModelProto, prost::DecodeError>, Passed), LoadError> {
    let io = |source| LoadError::Io { path: path.display().to_string(), source };
    let mut file = stream::FileBuf::open(path).map_err(io)?;
    let model = ModelProto::decode(&mut file);
    Ok((model, file.end().map_err(io)?))
}

/// What the file at `path` says of itself.
pub(super) fn describe(path: &Path) -> Option<(Metadata, Signature)> {
    let model = message(path).ok()?.0.ok()?;
    let graph = model.graph.as_ref()?;
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    let port = |info: &ValueInfoProto| {
        let proto = info.r#type.as_ref()?;
        Some(Port { name: info.name().to_owned(), kind: kinds::kind(proto).ok()?, dims: kinds::dims(proto) })
    };
    let (optional, inputs): (Vec<_>, Vec<_>) = graph.input.iter().partition(|info| constants.contains(info.name()));
    let ports = |infos: Vec<&ValueInfoProto>| infos.into_iter().filter_map(port).collect();
    let optional = if overridable(&model) { ports(optional) } else { Vec::new() };
    let signature = Signature { inputs: ports(inputs), optional, outputs: ports(graph.output.iter().collect()), batchable: false };
    Some((metadata(&model, graph.name()), signature))
}

/// Reads the file at `path`; external data must lie in its folder.
pub(super) fn read(path: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let (model, passed) = message(path)?;
    let folder = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    import(model, External::new(folder, options.memory_limit).with_passed(passed), options)
}

/// Reads a serialised `ModelProto` without external data.
pub(crate) fn parse(bytes: impl Buf, options: &LoadOptions) -> Result<Loaded, LoadError> {
    import(ModelProto::decode(bytes), External::new(None, options.memory_limit), options)
}

fn import(model: Result<ModelProto, prost::DecodeError>, external: External<'_>, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let mut model = model.map_err(|e| LoadError::format(format!("not an ONNX model: {e}")))?;
    let Some(mut graph) = model.graph.take() else { return Err(LoadError::format("not an ONNX model: it has no graph")) };
    let metadata = metadata(&model, graph.name());
    let opsets = opsets(&model.opset_import)?;
    let shared = Shared::new(&model.functions, external, options);
    let mut importer = Importer::root(&shared, opsets);
    // Each weight leaves the message before the next is converted.
    importer.add_weights(std::mem::take(&mut graph.initializer))?;
    importer.add_sparse_initializers(&graph.sparse_initializer)?;
    importer.add_inputs(&graph.input, overridable(&model))?;
    importer.declare(&graph.value_info);
    importer.add_nodes(&graph.node)?;
    importer.add_outputs(&graph.output)?;
    let graph = importer.finish()?;
    Ok(Loaded { graph, metadata })
}

/// Whether an initialiser among the inputs may be replaced. Before IR version 4 all of them had to be there.
fn overridable(model: &ModelProto) -> bool {
    model.ir_version() >= 4
}

fn metadata(model: &ModelProto, graph_name: &str) -> Metadata {
    let producer = format!("{} {}", model.producer_name(), model.producer_version());
    Metadata {
        format: "ONNX",
        format_version: model.ir_version(),
        producer: producer.trim().to_owned(),
        graph_name: graph_name.to_owned(),
        description: model.doc_string().to_owned(),
        opsets: model.opset_import.iter().map(|o| (domain(o.domain()).to_owned(), o.version())).collect(),
        properties: model.metadata_props.iter().map(|p| (p.key().to_owned(), p.value().to_owned())).collect(),
        labels: Vec::new(),
    }
}

/// The standard gives the default domain two names.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

/// The version of each imported domain.
fn opsets(imports: &[OperatorSetIdProto]) -> Result<HashMap<String, i64>, LoadError> {
    let mut opsets = HashMap::new();
    for import in imports {
        let (name, version) = (domain(import.domain()), import.version());
        if name.is_empty() && !(1..=i64::from(LATEST_OPSET)).contains(&version) {
            return Err(LoadError::format(format!("opset {version} of ai.onnx is not known; the newest known is {LATEST_OPSET}")));
        }
        opsets.insert(name.to_owned(), version);
    }
    // A file without an import is of the time when there was one opset.
    opsets.entry(String::new()).or_insert(1);
    Ok(opsets)
}
