//! Compiles the protobuf schemas in `proto/` with a pure-Rust compiler, so that no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/onnx.proto", "proto/onnx-data.proto"], ["proto"])?;
    prost_build::Config::new()
        // A weight's bytes stay a slice of the file's buffer instead of being copied while parsing.
        .bytes([".onnx.TensorProto.raw_data"])
        .compile_fds(descriptors)?;
    let otlp = protox::compile(["proto/opentelemetry/proto/collector/trace/v1/trace_service.proto"], ["proto"])?;
    // One file with the schema's packages as modules; its comments are no documentation in Rust's format.
    prost_build::Config::new().include_file("otlp.rs").disable_comments([".opentelemetry"]).compile_fds(otlp)?;
    services()
}

const JSON_MESSAGES: [&str; 18] = [
    "InferBatchStatistics",
    "InferResponseStatistics",
    "InferStatistics",
    "MemoryUsage",
    "ModelConfig",
    "ModelDynamicBatching",
    "ModelEnsembling",
    "ModelInput",
    "ModelInstanceGroup",
    "ModelOutput",
    "ModelParameter",
    "ModelQueuePolicy",
    "ModelStatistics",
    "ModelStatisticsResponse",
    "ModelTransactionPolicy",
    "ModelVersionPolicy",
    "StatisticDuration",
    "DataType",
];

/// The gRPC services, and the schema that the server answers reflection with.
fn services() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["proto/inference.proto", "proto/health.proto"], ["proto"])?;
    let file = PathBuf::from(std::env::var("OUT_DIR")?).join("services.bin");
    std::fs::write(file, descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure();
    // Of these messages REST answers with the JSON form.
    for message in JSON_MESSAGES {
        builder = builder.type_attribute(format!(".inference.{message}"), "#[derive(serde::Serialize, schemars::JsonSchema)]");
    }
    for oneof in ["ModelVersionPolicy.policy_choice", "ModelConfig.scheduling_choice"] {
        builder = builder
            .type_attribute(format!(".inference.{oneof}"), "#[serde(rename_all = \"snake_case\")]")
            // Without a dot in front the path is the field's alone and not its variants'.
            .field_attribute(oneof, "#[serde(flatten)]");
    }
    for (field, name) in
        [("ModelInput.data_type", "data_type"), ("ModelOutput.data_type", "data_type"), ("ModelInstanceGroup.kind", "kind")]
            .into_iter()
            .chain([("ModelQueuePolicy.timeout_action", "timeout_action")])
    {
        let with = format!("#[serde(serialize_with = \"crate::api::triton::config::{name}\")]");
        builder = builder
            .field_attribute(format!(".inference.{field}"), with)
            // The document says what is written.
            .field_attribute(format!(".inference.{field}"), "#[schemars(with = \"String\")]");
    }
    builder
        // Tests have a client; it is built on any service, so it costs the binary nothing.
        .build_transport(false)
        // A tensor's bytes stay a slice of the message.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .bytes(".inference.InferTensorContents.bytes_contents")
        .compile_fds(descriptors)?;
    Ok(())
}
