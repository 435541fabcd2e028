//! The statistics extension: what a version has answered since it was loaded, and where the time went.
//!
//! `inference_count` counts rows and `execution_count` forward passes, so their quotient is the mean batch. Nothing is cached,
//! so the two counters of the cache stay zero.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::State;
use axum::response::Response;

use super::super::Shared;
use super::super::error::Failure;
use super::super::grpc::proto::inference::{
    InferBatchStatistics, InferStatistics, MemoryUsage, ModelStatistics, ModelStatisticsResponse, StatisticDuration,
};
use super::super::openapi::{Doc, Routes};
use super::super::path::ModelPath;
use super::{TAG, json};
use crate::error::Error;
use crate::serve::{Handle, Tally};

pub(super) fn routes() -> Routes {
    let doc = |summary| Doc::new(summary).json::<ModelStatisticsResponse>();
    let (every, model) = ("What every version has answered since it was loaded.", "What a model has answered since it was loaded.");
    Routes::new(TAG).get("/v2/models/stats", all, doc(every)).get("/v2/models/{model}/stats", one, doc(model)).get(
        "/v2/models/{model}/versions/{version}/stats",
        one,
        doc(model),
    )
}

async fn all(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    Ok(json(&ModelStatisticsResponse { model_stats: of(&shared, None, None)? })?)
}

async fn one(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    Ok(json(&ModelStatisticsResponse { model_stats: of(&shared, Some(&path.model), path.version.as_deref())? })?)
}

/// The statistics of every version that is ready, of those of one model, or of one version.
///
/// # Errors
/// As `Repository::get`, if a model is named.
pub(in super::super) fn of(shared: &Shared, model: Option<&str>, version: Option<&str>) -> Result<Vec<ModelStatistics>, Error> {
    let Some(model) = model else { return Ok(shared.repository.ready().iter().map(|handle| statistics(handle)).collect()) };
    let named = shared.repository.get(model, version)?;
    if version.is_some() {
        return Ok(named.handle().map(|handle| statistics(handle)).into_iter().collect());
    }
    let handles = shared.repository.ready().into_iter().filter(|handle| handle.name() == named.name());
    Ok(handles.map(|handle| statistics(&handle)).collect())
}

fn duration(tally: Tally) -> Option<StatisticDuration> {
    Some(StatisticDuration { count: tally.count, ns: tally.ns() })
}

fn statistics(handle: &Handle) -> ModelStatistics {
    let stats = handle.stats();
    let since_epoch = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let batch_stats = stats.batch_stats.iter().map(|(&rows, compute)| InferBatchStatistics {
        batch_size: rows as u64,
        compute_input: duration(compute.input),
        compute_infer: duration(compute.infer),
        compute_output: duration(compute.output),
    });
    ModelStatistics {
        name: handle.name().to_owned(),
        version: handle.version().to_owned(),
        last_inference: stats.last_inference.map_or(0, |time| u64::try_from(since_epoch(time)).unwrap_or(u64::MAX)),
        inference_count: stats.inference_count,
        execution_count: stats.execution_count,
        inference_stats: Some(InferStatistics {
            success: duration(stats.success),
            fail: duration(stats.fail),
            queue: duration(stats.queue),
            compute_input: duration(stats.compute.input),
            compute_infer: duration(stats.compute.infer),
            compute_output: duration(stats.compute.output),
            cache_hit: duration(Tally::default()),
            cache_miss: duration(Tally::default()),
        }),
        batch_stats: batch_stats.collect(),
        memory_usage: vec![MemoryUsage { r#type: "CPU".to_owned(), id: 0, byte_size: handle.model().summary().weight_bytes as u64 }],
        response_stats: HashMap::new(),
    }
}
