//! The protocol's messages and services as Rust types, generated from `proto/` by the build script.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated code")]

/// The Open Inference protocol with Triton's extensions.
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// gRPC's health checks.
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// The schema of both, which the server answers reflection with.
pub(super) const SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));
