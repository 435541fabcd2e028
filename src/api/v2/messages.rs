//! The messages of the Open Inference protocol: those of models and servers as they are written, those of an inference as the
//! document describes them (their tensors are read and written without these types, by `decode` and `encode`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// What the server is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ServerMetadata {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// Extensions of the protocol that the server has.
    pub(super) extensions: Vec<&'static str>,
    /// Every version of every model.
    pub(super) models: Vec<VersionState>,
}

/// The state of a version.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VersionState {
    pub(super) name: String,
    pub(super) version: String,
    /// `loading`, `ready`, `failed` …
    pub(super) state: &'static str,
    /// Why it is in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

/// Whether a model answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelReady {
    pub(super) name: String,
    pub(super) ready: bool,
}

/// What a model takes and gives.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelMetadata {
    pub(super) name: String,
    /// The versions that answer.
    pub(super) versions: Vec<String>,
    /// `onnx_onnxv1`, or `ndserve_safetensors` for weights.
    pub(super) platform: &'static str,
    pub(super) inputs: Vec<TensorMetadata>,
    pub(super) outputs: Vec<TensorMetadata>,
    /// Inputs that may be left out. Beside the protocol's words: among `inputs` a client would take one as one that it must give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) optional_inputs: Vec<TensorMetadata>,
    /// What else is known: description, labels, producer.
    pub(super) properties: BTreeMap<&'static str, String>,
}

/// An input or an output.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TensorMetadata {
    pub(super) name: String,
    pub(super) datatype: &'static str,
    /// -1 for a size that is free.
    pub(super) shape: Vec<i64>,
}

/// A request for an inference.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct InferenceRequest {
    /// Comes back in the answer.
    id: Option<String>,
    /// `timeout` in microseconds, `priority` (1 is the most urgent), `binary_data_output`, `sequence_id`, `sequence_start`,
    /// `sequence_end`; others are ignored, names that begin with `triton_` are refused.
    parameters: Option<BTreeMap<String, Parameter>>,
    /// Every input of the model once.
    inputs: Vec<InputTensor>,
    /// The outputs that are wanted; none means all.
    outputs: Option<Vec<RequestedOutput>>,
}

/// A parameter.
#[derive(Debug, JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum Parameter {
    /// true or false
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

/// A tensor of a request. It has either `data` or `parameters.binary_data_size`.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct InputTensor {
    name: String,
    datatype: Datatype,
    shape: Vec<u64>,
    /// `binary_data_size`: so many bytes behind the JSON are the values.
    parameters: Option<BTreeMap<String, Parameter>>,
    /// The values, flat or nested like the shape. FP16 and BF16 have a binary form only.
    data: Option<Vec<serde_json::Value>>,
}

/// The type of a tensor's elements.
#[derive(Debug, JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

/// An output that is wanted.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct RequestedOutput {
    name: String,
    /// `binary_data`: the values as bytes behind the JSON. `classification`: so many of the most likely classes instead.
    parameters: Option<BTreeMap<String, Parameter>>,
}

/// The answer to an inference.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct InferenceResponse {
    model_name: String,
    model_version: String,
    /// The request's, or the server's own.
    id: String,
    outputs: Vec<OutputTensor>,
}

/// A tensor of an answer. It has either `data` or `parameters.binary_data_size`.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct OutputTensor {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    /// `binary_data_size`: so many bytes behind the JSON are the values.
    parameters: Option<BTreeMap<String, Parameter>>,
    /// The values, flat. NaN and infinities are bare tokens unless the server is set up otherwise.
    data: Option<Vec<serde_json::Value>>,
}
