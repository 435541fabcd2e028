//! From outputs to an Open Inference response.

use super::super::json::Writer;
use crate::engine::{Port, Value};

/// Encodes the outputs that were asked for, which are tensors, with flat data.
pub(super) fn encode<'a>(model: &str, version: &str, id: &str, outputs: impl Iterator<Item = (&'a Port, &'a Value)> + Clone) -> Vec<u8> {
    let numbers: usize = outputs.clone().filter_map(|(_, value)| value.tensor()).map(|tensor| tensor.len()).sum();
    let mut writer = Writer::with_capacity(192 + numbers * 12);
    writer.raw("{\"model_name\":").string(model).raw(",\"model_version\":").string(version).raw(",\"id\":").string(id);
    let tensors = outputs.filter_map(|(port, value)| value.tensor().map(|tensor| (port, tensor)));
    writer.raw(",\"outputs\":[").list(tensors, |writer, (port, tensor)| {
        writer.raw("{\"name\":").string(&port.name).raw(",\"datatype\":\"").raw(tensor.dtype().oip()).raw("\",\"shape\":[");
        writer.list(tensor.shape(), |writer, &size| {
            writer.integer(i64::try_from(size).unwrap_or(i64::MAX));
        });
        writer.raw("],\"data\":").flat(tensor.data()).raw("}");
    });
    writer.raw("]}");
    writer.into_bytes()
}
