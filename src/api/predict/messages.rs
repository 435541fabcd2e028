//! The messages of KServe v1 and TensorFlow Serving: those about models as they are written, those of a prediction as the
//! document describes them (their numbers are read and written without these types, by `decode` and `encode`).

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// KServe's v1 clients read this as liveness.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Alive {
    pub(super) status: &'static str,
}

/// The models that are configured.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::api) struct Models {
    pub(super) models: Vec<String>,
}

/// A model's state: what KServe's clients read, and what TensorFlow Serving's do.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelStatus {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) model_version_status: Vec<VersionStatus>,
}

/// The state of a version.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VersionStatus {
    pub(super) version: String,
    /// `START`, `LOADING`, `AVAILABLE`, `UNLOADING`, `END`
    pub(super) state: &'static str,
    pub(super) status: StatusCode,
}

/// Whether a state is an error.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatusCode {
    /// `OK` or the name of the error.
    pub(super) error_code: &'static str,
    pub(super) error_message: String,
}

/// What a model takes and gives, as TensorFlow Serving tells it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Metadata {
    pub(super) model_spec: ModelSpec,
    pub(super) metadata: Signatures,
}

/// Which version it is.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ModelSpec {
    pub(super) name: String,
    pub(super) signature_name: &'static str,
    pub(super) version: String,
}

/// The signatures by kind.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Signatures {
    pub(super) signature_def: SignatureMap,
}

/// The signatures of a model: here it has one.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SignatureMap {
    pub(super) signature_def: std::collections::BTreeMap<&'static str, SignatureDef>,
}

/// Named inputs and outputs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SignatureDef {
    pub(super) inputs: std::collections::BTreeMap<String, TensorInfo>,
    pub(super) outputs: std::collections::BTreeMap<String, TensorInfo>,
    pub(super) method_name: &'static str,
}

/// A tensor.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// `DT_FLOAT` …
    pub(super) dtype: String,
    pub(super) tensor_shape: TensorShape,
}

/// A shape.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TensorShape {
    pub(super) dim: Vec<TensorDim>,
    pub(super) unknown_rank: bool,
}

/// A size.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TensorDim {
    /// As text, as protobuf writes 64 bits in JSON; `-1` if it is free.
    pub(super) size: String,
    pub(super) name: String,
}

/// A prediction: rows in `instances` or whole tensors in `inputs`, one of the two.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct PredictRequest {
    /// `serving_default`, the only one.
    signature_name: Option<String>,
    /// A row each: an array or, with several inputs, an object with a value per input. Bytes may be `{"b64": "…"}`.
    instances: Option<Vec<Value>>,
    /// The tensor of the one input, or an object of tensors.
    inputs: Option<Value>,
}

/// The answer in the form of the request; with labels also the classes of each row.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct PredictResponse {
    /// For `instances`: one per row.
    predictions: Option<Vec<Value>>,
    /// For `inputs`: the tensor of the one output, or an object of tensors.
    outputs: Option<Value>,
}
