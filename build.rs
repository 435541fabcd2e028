//! Compiles the protobuf schemas in `proto/` with a pure-Rust compiler, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/onnx.proto", "proto/onnx-data.proto"], ["proto"])?;
    prost_build::Config::new()
        // A weight's bytes stay a slice of the file's buffer instead of being copied while parsing.
        .bytes([".onnx.TensorProto.raw_data"])
        .compile_fds(descriptors)?;
    let otlp = protox::compile(["proto/opentelemetry/proto/collector/trace/v1/trace_service.proto"], ["proto"])?;
    // One file with the schema's packages as modules.
    prost_build::Config::new().include_file("otlp.rs").compile_fds(otlp)?;
    Ok(())
}
