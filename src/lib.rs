//! ndserve: a model server for CPUs.
//!
//! # Layout
//! - [`engine`]: from a model file to answers; synchronous, knows nothing of networks.
//! - [`serve`]: the model repository, the queue in front of each model and the workers behind it.
//! - [`error`]: the error of a request, as it leaves the engine and the queue.
//!
//! Allowed dependencies: `main → cli → api → serve → engine`. `tests/tidy.rs` checks them.

pub mod api;
pub mod engine;
pub mod error;
pub mod serve;
