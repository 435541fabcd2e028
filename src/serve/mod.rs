//! Serving: the repository of models, the queue in front of each and the workers behind it.
//!
//! A request takes one hop: [`Handle::infer`] validates it and either runs it at once on the calling thread, where that
//! costs less than waking another, or puts it into the model's queue, from which a worker takes all that fit one
//! forward pass. Which requests those are is decided by the pure [`batcher`].

pub mod batcher;
mod compute;
mod curve;
mod derived;
mod explain;
mod fair;
mod golden;
mod handle;
mod loading;
mod pipeline;
mod queue;
mod repository;
mod request;
mod sequence;
mod servable;
mod settings;
mod shadow;
mod split;
mod stats;
mod worker;

#[cfg(test)]
mod tests;

pub use batcher::Reason;
pub use compute::Compute;
pub use curve::{Curve, Point};
pub use explain::{ExplainLimits, explain};
pub use golden::{Golden, Tolerance};
pub use handle::Handle;
pub use loading::load_version;
pub use pipeline::{Pipeline, Step};
pub use queue::Joining;
pub use repository::{
    Choice, DEFAULT_LABEL, Label, LoadCounts, Mirror, ModelState, ModelStatus, Options, Overrides, ReadyWhen, Repository, ServerState,
    State, Unload, VersionStatus, Watch, is_model_name, model_files, version_file, versions,
};
pub use request::{InferRequest, InferResponse, OperatorTime, Timing};
pub use sequence::SequenceSettings;
pub use servable::Servable;
pub use settings::{Declared, DeclaredPort, Defaults, LevelPolicy, ModelSettings, Versions, Warmup, WarmupData};
pub use shadow::ShadowSnapshot;
pub use stats::{ComputeTally, FailReason, ROWS_BUCKETS, SECONDS_BUCKETS, Stats, StatsSnapshot, Tally, Times};
