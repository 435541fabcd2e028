//! Training: from data and a configuration to a model folder that serves, on the engine that serves it.
//!
//! `data → prepare → network → loss → gradients (a pass of the engine) → optimiser → folder`. Synchronous and offline; everything
//! random follows from one seed.

pub mod augment;
pub mod base;
pub mod batches;
pub mod chart;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod evaluation;
pub mod fit;
pub mod folder;
mod known;
pub mod loss;
pub mod metrics;
pub mod network;
pub mod optimizer;
pub mod page;
pub mod prepare;
pub mod random;
pub mod report;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod search;
pub mod split;
pub mod statistics;
pub mod summary;
pub mod weights;

pub use config::Config;
pub use error::Error;
pub use run::{Controls, Ended, Progress, Report, hash, run};
