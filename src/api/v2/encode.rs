//! From outputs to an Open Inference response: JSON, and behind it the raw tensors that the client wants so.

use axum::body::Bytes;

use super::super::infer::{Output, raw};
use super::super::json::Writer;
use crate::config::NonFinite;
use crate::error::Error;

/// An encoded response.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The JSON.
    pub(super) json: Vec<u8>,
    /// What follows it; `None` if no output is wanted as bytes.
    pub(super) binary: Option<Vec<Bytes>>,
}

/// Whose response it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) model: &'a str,
    pub(super) version: &'a str,
    pub(super) id: &'a str,
}

/// Encodes the outputs: numbers flat in JSON, or their bytes as they lie in memory.
///
/// # Errors
/// If a value is not finite and `non_finite` refuses that.
pub(super) fn encode(head: Head<'_>, outputs: &[Output], non_finite: NonFinite) -> Result<Encoded, Error> {
    let numbers: usize = outputs.iter().filter(|output| !output.binary).map(|output| output.tensor.len()).sum();
    let mut binary: Option<Vec<Bytes>> = None;
    let mut writer = Writer::with_capacity(192 + numbers * 12).non_finite(non_finite);
    writer.raw("{\"model_name\":").string(head.model).raw(",\"model_version\":").string(head.version).raw(",\"id\":").string(head.id);
    writer.raw(",\"outputs\":[").list(outputs, |writer, Output { name, tensor, binary: as_bytes }| {
        writer.raw("{\"name\":").string(name).raw(",\"datatype\":\"").raw(tensor.dtype().oip()).raw("\",\"shape\":[");
        writer.list(tensor.shape(), |writer, &size| {
            writer.integer(i64::try_from(size).unwrap_or(i64::MAX));
        });
        match as_bytes.then(|| raw::encode(tensor)).flatten() {
            Some(bytes) => {
                writer.raw("],\"parameters\":{\"binary_data_size\":").integer(i64::try_from(bytes.len()).unwrap_or(i64::MAX)).raw("}}");
                binary.get_or_insert_default().push(bytes);
            }
            None => drop(writer.raw("],\"data\":").flat(tensor.data()).raw("}")),
        }
    });
    writer.raw("]}");
    Ok(Encoded { json: writer.finish()?, binary })
}
