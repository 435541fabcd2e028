//! Values as ONNX files: the `.pb` inputs and outputs of golden samples, `predict` and the conformance corpus.

use prost::Message;

use super::load::proto::{MapProto, SequenceProto, TensorProto, sequence_proto};
use super::load::{decode_tensor, encode_tensor};
use super::tensor::{Tensor, Value};
use super::view::Slice;

/// The name and tensor of a serialised `TensorProto`; it may take at most `limit` bytes.
///
/// # Errors
/// What is wrong with the bytes.
pub fn read_tensor(bytes: &[u8], limit: usize) -> Result<(String, Tensor), String> {
    let proto = TensorProto::decode(bytes).map_err(|e| format!("not a TensorProto: {e}"))?;
    let tensor = decode_tensor(&proto, None, limit)?;
    Ok((proto.name().to_owned(), tensor))
}

/// A value as serialised `TensorProto`, `SequenceProto` or `MapProto`.
pub fn write_value(name: &str, value: &Value) -> Vec<u8> {
    match value {
        Value::Tensor(tensor) => encode_tensor(name, tensor).encode_to_vec(),
        Value::Sequence(values) => encode_sequence(name, values).encode_to_vec(),
        Value::Map { keys, values } => encode_map(name, keys, values).encode_to_vec(),
    }
}

fn encode_sequence(name: &str, values: &[Value]) -> SequenceProto {
    let mut proto = SequenceProto { name: Some(name.to_owned()), ..SequenceProto::default() };
    let kind = match values.first() {
        None => sequence_proto::DataType::Undefined,
        Some(Value::Tensor(_)) => sequence_proto::DataType::Tensor,
        Some(Value::Sequence(_)) => sequence_proto::DataType::Sequence,
        Some(Value::Map { .. }) => sequence_proto::DataType::Map,
    };
    proto.elem_type = Some(kind as i32);
    for value in values {
        match value {
            Value::Tensor(tensor) => proto.tensor_values.push(encode_tensor("", tensor)),
            Value::Sequence(inner) => proto.sequence_values.push(encode_sequence("", inner)),
            Value::Map { keys, values } => proto.map_values.push(encode_map("", keys, values)),
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
