//! Training from a configuration to a folder that serves.
#![allow(missing_docs, reason = "a test binary has no readers of its documentation page")]

mod commands;
mod data;
mod ended;
mod exported;
mod fixture;
mod models;
mod runs;
mod safetensors;
mod tuned;
