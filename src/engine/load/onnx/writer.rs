//! The ONNX writer: a [`Graph`] to a `ModelProto`.
//!
//! What the engine reads it can write, but for bodies of control flow and for the operators of its own that gradients consist of.

use std::collections::{BTreeMap, HashSet};

use prost::Message;

use crate::engine::append::APPENDED_OPSET;
use crate::engine::attrs::Attr;
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::load::Metadata;
use crate::engine::load::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use crate::engine::load::tensor_proto::encode_tensor;
use crate::engine::ops;
use crate::engine::tensor::Kind;

/// The version of the format that opset 21 came with.
const IR_VERSION: i64 = 10;

/// A serialised `ModelProto` of the graph, which is as it was read or built: not optimised.
///
/// # Errors
/// The node that a file cannot hold, and why.
pub(crate) fn write(graph: &Graph, metadata: &Metadata) -> Result<Vec<u8>, String> {
    let names = names(graph);
    let name = |id: ValueId| names[id.index()].clone();
    let mut opsets: BTreeMap<&str, u16> = BTreeMap::from([("", APPENDED_OPSET)]);
    if let Some(first) = graph.nodes.iter().find(|node| node.def.domain.is_empty()) {
        opsets.insert("", first.opset);
    }
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let opset = *opsets.entry(node.def.domain).or_insert(node.opset);
        nodes.push(write_node(node, opset, &name).map_err(|reason| format!("node `{}` ({}): {reason}", node.name, node.op_type()))?);
    }
    let proto = GraphProto {
        name: Some(if metadata.graph_name.is_empty() { "graph".to_owned() } else { metadata.graph_name.clone() }),
        node: nodes,
        initializer: graph.constants.iter().map(|(id, tensor)| encode_tensor(&name(*id), tensor)).collect(),
        input: graph.inputs.iter().map(|id| info(graph, *id, name(*id))).collect(),
        output: graph.outputs.iter().map(|id| info(graph, *id, name(*id))).collect(),
        ..GraphProto::default()
    };
    let import = |(domain, version): (&str, u16)| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version.into()) };
    let property = |(key, value): (&String, &String)| StringStringEntryProto { key: Some(key.clone()), value: Some(value.clone()) };
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("ndserve".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: (!metadata.description.is_empty()).then(|| metadata.description.clone()),
        opset_import: opsets.into_iter().map(import).collect(),
        metadata_props: metadata.properties.iter().map(property).collect(),
        graph: Some(proto),
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

/// A name for each value, its own where no other has it. Inputs and outputs come first.
fn names(graph: &Graph) -> Vec<String> {
    let mut taken: HashSet<String> = HashSet::new();
    let mut names = vec![String::new(); graph.values.len()];
    let first = graph.inputs.iter().chain(&graph.outputs).map(|id| id.index());
    for index in first.chain(0..graph.values.len()) {
        if !names[index].is_empty() {
            continue;
        }
        let own = &graph.values[index].name;
        let mut name = if own.is_empty() { format!("value{index}") } else { own.clone() };
        while !taken.insert(name.clone()) {
            name = format!("{name}.{index}");
        }
        names[index] = name;
    }
    names
}

fn write_node(node: &Node, opset: u16, name: &dyn Fn(ValueId) -> String) -> Result<NodeProto, String> {
    if node.def.domain == ops::OWN {
        return Err("it is an operator of the engine's own, for gradients, which no file can hold".to_owned());
    }
    if node.opset != opset {
        return Err(format!("it is of opset {}, others of opset {opset}: a file has one", node.opset));
    }
    let list = |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map(name).unwrap_or_default()).collect();
    Ok(NodeProto {
        name: Some(node.name.clone()),
        op_type: Some(node.def.name.to_owned()),
        domain: (!node.def.domain.is_empty()).then(|| node.def.domain.to_owned()),
        input: list(&node.inputs),
        output: list(&node.outputs),
        attribute: node.attributes.iter().map(|(name, value)| attribute(name, value)).collect::<Result<_, _>>()?,
        ..NodeProto::default()
    })
}

fn attribute(name: &str, value: &Attr) -> Result<AttributeProto, String> {
    let mut proto = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match value {
        Attr::Int(value) => {
            proto.i = Some(*value);
            AttributeType::Int
        }
        Attr::Float(value) => {
            proto.f = Some(*value);
            AttributeType::Float
        }
        Attr::String(value) => {
            proto.s = Some(value.clone().into_bytes());
            AttributeType::String
        }
        Attr::Tensor(value) => {
            proto.t = Some(encode_tensor("", value));
            AttributeType::Tensor
        }
        Attr::Ints(values) => {
            proto.ints.clone_from(values);
            AttributeType::Ints
        }
        Attr::Floats(values) => {
            proto.floats.clone_from(values);
            AttributeType::Floats
        }
        Attr::Strings(values) => {
            proto.strings = values.iter().map(|text| text.clone().into_bytes()).collect();
            AttributeType::Strings
        }
        Attr::Graph(_) => return Err(format!("attribute `{name}` is a body, which the writer does not know")),
        Attr::Kind(_) => return Err(format!("attribute `{name}` is a type, which the writer does not know")),
    };
    proto.r#type = Some(kind as i32);
    Ok(proto)
}

fn info(graph: &Graph, id: ValueId, name: String) -> ValueInfoProto {
    let value = &graph.values[id.index()];
    let r#type = value.kind.as_ref().and_then(|kind| match kind {
        Kind::Tensor(dtype) => {
            let shape = value.dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dimension).collect() });
            let tensor = type_proto::Tensor { elem_type: Some(dtype.onnx()), shape };
            Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() })
        }
        _ => None,
    });
    ValueInfoProto { name: Some(name), r#type, ..ValueInfoProto::default() }
}

fn dimension(dim: &Dim) -> tensor_shape_proto::Dimension {
    use tensor_shape_proto::dimension::Value;
    let value = match dim {
        Dim::Fixed(size) => Some(Value::DimValue(i64::try_from(*size).unwrap_or(i64::MAX))),
        Dim::Free(name) if name.is_empty() => None,
        Dim::Free(name) => Some(Value::DimParam(name.clone())),
    };
    tensor_shape_proto::Dimension { value, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adjoint::Emit;
    use crate::engine::append::Appender;
    use crate::engine::differentiate::gradient;
    use crate::engine::dtype::DType;
    use crate::engine::load::parse_onnx;
    use crate::engine::model::LoadOptions;
    use crate::engine::tensor::Tensor;

    /// Two products with the same constant's name, attributes of every kind that operators here take, an omitted input.
    fn network() -> Graph {
        let mut graph = Graph::default();
        let x = graph.add_value("x", Some(Kind::Tensor(DType::F32)), Some(vec![Dim::Free("batch".into()), Dim::Fixed(2)]));
        graph.inputs.push(x);
        let mut emit = Appender::new(&mut graph, "net");
        let emit: &mut dyn Emit = &mut emit;
        let weights = emit.constant(Tensor::new(&[2, 2], vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap());
        let product = emit.with("Gemm", &[("alpha", Attr::Float(0.5)), ("transB", Attr::Int(1))], &[x, weights]).unwrap();
        let upper = emit.constant(Tensor::scalar(3.0_f32));
        let clipped = emit.call("Clip", &[], &[Some(product), None, Some(upper)], 1).unwrap()[0];
        let turned = emit.with("Transpose", &[("perm", Attr::Ints(vec![1, 0]))], &[clipped]).unwrap();
        let y = emit.with("Gelu", &[("approximate", Attr::String("tanh".into()))], &[turned]).unwrap();
        graph.outputs.push(y);
        graph.values[y.index()].name = "x".to_owned();
        graph
    }

    #[test]
    fn what_is_written_reads_back() {
        let graph = network();
        let properties = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
        let metadata = Metadata { description: "words".into(), properties, ..Metadata::default() };
        let bytes = write(&graph, &metadata).unwrap();
        let read = parse_onnx(&bytes[..], &LoadOptions::default()).unwrap();
        assert_eq!((&read.metadata.description, &read.metadata.properties), (&metadata.description, &metadata.properties));
        assert_eq!(read.graph.nodes.len(), graph.nodes.len());
        assert_eq!(read.graph.values[read.graph.inputs[0].index()].dims, graph.values[0].dims);
        assert_eq!(read.graph.constants.len(), 2);
        // The second value named `x` got a name of its own, and what was written twice is the same.
        assert_eq!(read.graph.name(read.graph.inputs[0]), "x");
        assert_ne!(read.graph.name(read.graph.outputs[0]), "x");
        assert_eq!(
            write(&read.graph, &metadata).unwrap(),
            write(&parse_onnx(&bytes[..], &LoadOptions::default()).unwrap().graph, &metadata).unwrap()
        );
    }

    #[test]
    fn what_a_file_cannot_hold_is_named() {
        let graph = network();
        let gradient = gradient(&graph, graph.outputs[0], &[graph.inputs[0]]).unwrap();
        let error = write(&gradient, &Metadata::default()).unwrap_err();
        assert!(error.contains("ndserve.") && error.contains("no file can hold"), "{error}");
        let mut mixed = network();
        mixed.nodes[1].opset = 13;
        assert!(write(&mixed, &Metadata::default()).unwrap_err().contains("opset 13"));
    }
}
