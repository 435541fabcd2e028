//! Values as ONNX files: the `.pb` inputs and outputs of golden samples, `predict` and the conformance corpus.

use prost::Message;

use super::error::LoadError;
use super::graph::Graph;
use super::load::proto::{MapProto, OptionalProto, SequenceProto, TensorProto, optional_proto, sequence_proto};
use super::load::{self, Metadata, decode_tensor, encode_tensor};
use super::model::{LoadOptions, Model};
use super::tensor::{Kind, Tensor, Value};
use super::view::Slice;

/// A model from a serialised `ModelProto` without external data.
///
/// # Errors
/// As [`Model::load`].
pub fn read_model(bytes: &[u8], options: &LoadOptions) -> Result<Model, LoadError> {
    Model::build(load::parse_onnx(bytes, options)?, options)
}

/// A serialised `ModelProto` of a graph that is as it was read or built, not optimised.
///
/// # Errors
/// The node that a file cannot hold, and why.
pub fn write_model(graph: &Graph, metadata: &Metadata) -> Result<Vec<u8>, String> {
    load::write_onnx(graph, metadata)
}

/// The name and tensor of a serialised `TensorProto`; it may take at most `limit` bytes.
///
/// # Errors
/// What is wrong with the bytes.
pub fn read_tensor(bytes: &[u8], limit: usize) -> Result<(String, Tensor), String> {
    let proto = TensorProto::decode(bytes).map_err(|e| format!("not a TensorProto: {e}"))?;
    let tensor = decode_tensor(&proto, limit)?;
    Ok((proto.name().to_owned(), tensor))
}

/// The name and value of a serialised proto of `kind`; it may take at most `limit` bytes.
///
/// # Errors
/// What is wrong with the bytes.
pub fn read_value(bytes: &[u8], kind: &Kind, limit: usize) -> Result<(String, Value), String> {
    match kind {
        Kind::Tensor(_) => read_tensor(bytes, limit).map(|(name, tensor)| (name, Value::Tensor(tensor))),
        Kind::Sequence(_) => {
            let proto = SequenceProto::decode(bytes).map_err(|e| format!("not a SequenceProto: {e}"))?;
            Ok((proto.name().to_owned(), decode_sequence(&proto, limit)?))
        }
        Kind::Map { .. } => {
            let proto = MapProto::decode(bytes).map_err(|e| format!("not a MapProto: {e}"))?;
            Ok((proto.name().to_owned(), decode_map(&proto, limit)?))
        }
        Kind::Optional(_) => {
            let proto = OptionalProto::decode(bytes).map_err(|e| format!("not an OptionalProto: {e}"))?;
            Ok((proto.name().to_owned(), decode_optional(&proto, limit)?))
        }
    }
}

/// Takes what a value needs off the budget.
fn spend(left: &mut usize, value: &Value) {
    *left = left.saturating_sub(value.bytes());
}

fn decode_sequence(proto: &SequenceProto, limit: usize) -> Result<Value, String> {
    let mut left = limit;
    let mut values = Vec::new();
    for tensor in &proto.tensor_values {
        values.push(Value::Tensor(decode_tensor(tensor, left)?));
        spend(&mut left, &values[values.len() - 1]);
    }
    for inner in &proto.sequence_values {
        values.push(decode_sequence(inner, left)?);
        spend(&mut left, &values[values.len() - 1]);
    }
    for map in &proto.map_values {
        values.push(decode_map(map, left)?);
        spend(&mut left, &values[values.len() - 1]);
    }
    for optional in &proto.optional_values {
        values.push(decode_optional(optional, left)?);
        spend(&mut left, &values[values.len() - 1]);
    }
    if !proto.sparse_tensor_values.is_empty() {
        return Err("a sequence of sparse tensors is not supported".into());
    }
    Ok(Value::Sequence(values))
}

fn decode_optional(proto: &OptionalProto, limit: usize) -> Result<Value, String> {
    let value = match (&proto.tensor_value, &proto.sequence_value, &proto.map_value, &proto.optional_value) {
        (Some(tensor), ..) => Some(Value::Tensor(decode_tensor(tensor, limit)?)),
        (_, Some(sequence), ..) => Some(decode_sequence(sequence, limit)?),
        (_, _, Some(map), _) => Some(decode_map(map, limit)?),
        (.., Some(inner)) => Some(decode_optional(inner, limit)?),
        _ if proto.sparse_tensor_value.is_some() => return Err("an optional sparse tensor is not supported".into()),
        _ => None,
    };
    Ok(Value::Optional(value.map(Box::new)))
}

fn decode_map(proto: &MapProto, limit: usize) -> Result<Value, String> {
    let keys = if proto.string_keys.is_empty() {
        Tensor::vector(proto.keys.clone())
    } else {
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).map_err(|_| "a key of a map is not UTF-8".to_owned());
        Tensor::vector(proto.string_keys.iter().map(text).collect::<Result<Vec<_>, _>>()?)
    };
    let sequence = proto.values.as_ref().map(|values| decode_sequence(values, limit)).transpose()?;
    let Some(Value::Sequence(values)) = sequence else { return Err("a map without values".into()) };
    let scalars: Vec<&Tensor> = values.iter().filter_map(Value::tensor).filter(|tensor| tensor.len() == 1).collect();
    let uniform = scalars.windows(2).all(|pair| pair[0].dtype() == pair[1].dtype());
    if scalars.len() != values.len() || scalars.len() != keys.len() || !uniform {
        return Err("a map whose values are not one number of one type for each key is not supported".into());
    }
    let Some(first) = scalars.first() else { return Ok(Value::Map { keys, values: Tensor::vector(Vec::<f32>::new()) }) };
    let mut buffer = super::tensor::Buffer::new(first.dtype());
    buffer.grow(scalars.len());
    let mut to = buffer.slice_mut(scalars.len());
    for (i, scalar) in scalars.iter().enumerate() {
        to.copy_from(i, &scalar.data());
    }
    Ok(Value::Map { values: buffer.into_tensor(&[keys.len()]).expect("one value for each key"), keys })
}

/// A value as serialised `TensorProto`, `SequenceProto`, `MapProto` or `OptionalProto`.
pub fn write_value(name: &str, value: &Value) -> Vec<u8> {
    match value {
        Value::Tensor(tensor) => encode_tensor(name, tensor).encode_to_vec(),
        Value::Sequence(values) => encode_sequence(name, values).encode_to_vec(),
        Value::Map { keys, values } => encode_map(name, keys, values).encode_to_vec(),
        Value::Optional(value) => encode_optional(name, value.as_deref()).encode_to_vec(),
    }
}

fn encode_optional(name: &str, value: Option<&Value>) -> OptionalProto {
    use optional_proto::DataType;
    let mut proto = OptionalProto { name: Some(name.to_owned()), ..OptionalProto::default() };
    let kind = match value {
        None => DataType::Undefined,
        Some(Value::Tensor(tensor)) => {
            proto.tensor_value = Some(encode_tensor("", tensor));
            DataType::Tensor
        }
        Some(Value::Sequence(values)) => {
            proto.sequence_value = Some(encode_sequence("", values));
            DataType::Sequence
        }
        Some(Value::Map { keys, values }) => {
            proto.map_value = Some(encode_map("", keys, values));
            DataType::Map
        }
        Some(Value::Optional(inner)) => {
            proto.optional_value = Some(Box::new(encode_optional("", inner.as_deref())));
            DataType::Optional
        }
    };
    proto.elem_type = Some(kind as i32);
    proto
}

fn encode_sequence(name: &str, values: &[Value]) -> SequenceProto {
    let mut proto = SequenceProto { name: Some(name.to_owned()), ..SequenceProto::default() };
    let kind = match values.first() {
        None => sequence_proto::DataType::Undefined,
        Some(Value::Tensor(_)) => sequence_proto::DataType::Tensor,
        Some(Value::Sequence(_)) => sequence_proto::DataType::Sequence,
        Some(Value::Map { .. }) => sequence_proto::DataType::Map,
        Some(Value::Optional(_)) => sequence_proto::DataType::Optional,
    };
    proto.elem_type = Some(kind as i32);
    for value in values {
        match value {
            Value::Tensor(tensor) => proto.tensor_values.push(encode_tensor("", tensor)),
            Value::Sequence(inner) => proto.sequence_values.push(encode_sequence("", inner)),
            Value::Map { keys, values } => proto.map_values.push(encode_map("", keys, values)),
            Value::Optional(value) => proto.optional_values.push(encode_optional("", value.as_deref())),
        }
    }
    proto
}

fn encode_map(name: &str, keys: &Tensor, values: &Tensor) -> MapProto {
    let mut proto = MapProto { name: Some(name.to_owned()), key_type: Some(keys.dtype().onnx()), ..MapProto::default() };
    match keys.data() {
        Slice::String(keys) => proto.string_keys = keys.iter().map(|k| k.clone().into_bytes()).collect(),
        Slice::I64(keys) => proto.keys = keys.to_vec(),
        _ => {}
    }
    // The schema wants one sequence whose elements belong to the keys in order.
    let scalars: Vec<Value> = (0..values.len()).map(|i| Value::Tensor(values.rows(i..i + 1).reshape(&[]).expect("one element"))).collect();
    proto.values = Some(encode_sequence("", &scalars));
    proto
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::dtype::DType;

    #[test]
    fn values_of_every_kind_survive_a_round_trip() {
        let tensor = || Value::Tensor(Tensor::vector(vec![1.5_f32, -2.0]));
        let text = Kind::Map { keys: DType::String, values: DType::I64 };
        let map = Value::Map { keys: Tensor::vector(vec!["a".to_owned(), "b".to_owned()]), values: Tensor::vector(vec![1_i64, 2]) };
        let sequence = |kind: Kind| Kind::Sequence(Box::new(kind));
        let optional = |kind: Kind| Kind::Optional(Box::new(kind));
        let float = Kind::Tensor(DType::F32);
        for (value, kind) in [
            (tensor(), float.clone()),
            (Value::Sequence(vec![tensor(), tensor()]), sequence(float.clone())),
            (Value::Sequence(vec![]), sequence(float.clone())),
            (Value::Sequence(vec![map.clone()]), sequence(text.clone())),
            (map, text),
            (Value::Optional(None), optional(float.clone())),
            (Value::Optional(Some(Box::new(Value::Sequence(vec![tensor()])))), optional(sequence(float))),
        ] {
            assert!(value.is(&kind), "{value:?} {kind}");
            assert_eq!(read_value(&write_value("v", &value), &kind, 1 << 20), Ok(("v".into(), value)));
        }
        assert!(
            read_value(&write_value("v", &Value::Sequence(vec![tensor(), tensor()])), &sequence(Kind::Tensor(DType::F32)), 12).is_err()
        );
    }
}
