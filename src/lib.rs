//! ndserve: a model server for CPUs.
pub mod engine;
