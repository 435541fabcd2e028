//! ndserve: a model server for CPUs.
//!
//! # Layout
//! - [`engine`]: from a model file to answers; synchronous, knows nothing of networks.
//! - [`serve`]: the model repository, the queue in front of each model and the workers behind it.
//! - [`api`]: the protocols.
//! - [`explain`]: what of its inputs brought a model's answer about.
//! - [`train`]: from data to a model folder.
//! - [`cli`]: the commands.
//! - [`trace`]: traces and profiles of requests.
//! - [`config`], [`telemetry`], [`resources`]: settings, logs, and what the process may use.
//! - [`error`]: the error of a request, as it leaves the engine and the queue.
//!
//! Allowed dependencies: `main → cli → api → serve → engine`. `tests/tidy.rs` checks them.

pub mod api;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod explain;
pub mod resources;
pub mod serve;
pub mod telemetry;
pub mod trace;
pub mod train;
