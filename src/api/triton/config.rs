//! The model configuration extension: a model's signature and settings in the words of Triton's `config.pbtxt`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serializer;

use super::super::error::Failure;
use super::super::grpc::proto::inference::model_config::SchedulingChoice;
use super::super::grpc::proto::inference::model_ensembling;
use super::super::grpc::proto::inference::model_instance_group::Kind;
use super::super::grpc::proto::inference::model_queue_policy::TimeoutAction;
use super::super::grpc::proto::inference::model_version_policy::{All, Latest, PolicyChoice, Specific};
use super::super::grpc::proto::inference::{
    DataType, ModelConfig, ModelDynamicBatching, ModelEnsembling, ModelInput, ModelInstanceGroup, ModelOutput, ModelQueuePolicy,
    ModelTransactionPolicy, ModelVersionPolicy,
};
use super::super::openapi::{Doc, Routes};
use super::super::path::ModelPath;
use super::super::{Shared, describe};
use super::{TAG, json};
use crate::engine::{DType, Port, Signature};
use crate::error::Error;
use crate::serve::{Joining, ModelSettings, Pipeline, Servable, Step, Versions};

pub(super) fn routes() -> Routes {
    let doc = || Doc::new("The model's signature and settings in the words of Triton's configuration.").json::<ModelConfig>();
    Routes::new(TAG).get("/v2/models/{model}/config", config, doc()).get("/v2/models/{model}/versions/{version}/config", config, doc())
}

async fn config(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    Ok(json(&of(&shared, &path.model, path.version.as_deref())?)?)
}

/// The configuration of a model that is ready.
///
/// # Errors
/// As `Repository::get`.
pub(in super::super) fn of(shared: &Shared, model: &str, version: Option<&str>) -> Result<ModelConfig, Error> {
    Ok(configuration(&shared.repository.get(model, version)?))
}

fn configuration(handle: &Servable) -> ModelConfig {
    let (signature, settings) = (handle.signature(), handle.settings());
    let rows = if signature.batchable { i32::try_from(settings.max_batch_rows).unwrap_or(i32::MAX) } else { 0 };
    // Where a batch is declared, its dimension is not among the sizes.
    let dims = |port: &Port| describe::shape(port).split_off(usize::from(signature.batchable));
    let input = |port: &Port| ModelInput { name: port.name.clone(), data_type: of_port(port).into(), dims: dims(port), optional: false };
    let output = |port: &Port| ModelOutput {
        name: port.name.clone(),
        data_type: of_port(port).into(),
        dims: dims(port),
        label_filename: String::new(),
    };
    let group = ModelInstanceGroup {
        name: format!("{}_0", handle.name()),
        count: i32::try_from(settings.instances).unwrap_or(i32::MAX),
        kind: Kind::Cpu.into(),
    };
    let batched = signature.batchable && handle.joining() != Joining::No;
    // A pipeline has no queue of its own: its steps have.
    let scheduling = match handle.pipeline() {
        Some(pipeline) => Some(SchedulingChoice::EnsembleScheduling(ensemble(pipeline))),
        None => batched.then(|| SchedulingChoice::DynamicBatching(batching(settings))),
    };
    ModelConfig {
        name: handle.name().to_owned(),
        platform: describe::platform(handle).to_owned(),
        backend: "ndserve".to_owned(),
        version_policy: Some(ModelVersionPolicy { policy_choice: Some(policy(&settings.versions)) }),
        max_batch_size: rows,
        input: describe::tensors(&signature.inputs).map(input).collect(),
        output: describe::tensors(&signature.outputs).map(output).collect(),
        instance_group: if handle.pipeline().is_some() { Vec::new() } else { vec![group] },
        default_model_filename: settings.file_name.clone().unwrap_or_default(),
        scheduling_choice: scheduling,
        parameters: HashMap::new(),
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
    }
}

/// The steps of a pipeline, with every input and output named. The message has no room for a label: -1 is the model's choice.
fn ensemble(pipeline: &Pipeline) -> ModelEnsembling {
    let step = |(step, signature): (&Step, &Signature)| {
        let name = |port: &Port| port.name.clone();
        let value = |map: &BTreeMap<String, String>, name: String| (name.clone(), map.get(&name).cloned().unwrap_or(name));
        let inputs = signature.inputs.iter().map(name).map(|name| value(&step.inputs, name));
        // Without any, each output is the value of its own name; with some, the others are dropped.
        let outputs = signature.outputs.iter().map(name).filter(|name| step.outputs.is_empty() || step.outputs.contains_key(name));
        model_ensembling::Step {
            model_name: step.model.clone(),
            model_version: step.version.as_ref().and_then(|version| version.parse().ok()).unwrap_or(-1),
            input_map: inputs.chain(step.inputs.clone()).collect(),
            output_map: outputs.map(|name| value(&step.outputs, name)).collect(),
        }
    };
    ModelEnsembling { step: pipeline.steps().map(step).collect() }
}

fn batching(settings: &ModelSettings) -> ModelDynamicBatching {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let queue = |timeout: Option<Duration>, limit: usize| ModelQueuePolicy {
        timeout_action: TimeoutAction::Reject.into(),
        default_timeout_microseconds: timeout.map_or(0, micros),
        allow_timeout_override: true,
        max_queue_size: u32::try_from(limit).unwrap_or(u32::MAX),
    };
    let levels = settings.priorities.iter().map(|(&level, policy)| {
        let timeout = policy.timeout.or(settings.timeout);
        (level as u64, queue(timeout, policy.queue_limit.unwrap_or(settings.queue_limit)))
    });
    ModelDynamicBatching {
        preferred_batch_size: settings.preferred_batch_rows.iter().map(|&rows| i32::try_from(rows).unwrap_or(i32::MAX)).collect(),
        max_queue_delay_microseconds: micros(settings.max_delay),
        preserve_ordering: false,
        // One level is none to Triton.
        priority_levels: if settings.priority_levels > 1 { settings.priority_levels as u64 } else { 0 },
        default_priority_level: if settings.priority_levels > 1 { settings.default_priority as u64 } else { 0 },
        default_queue_policy: Some(queue(settings.timeout, settings.queue_limit)),
        priority_queue_policy: levels.collect(),
    }
}

/// Which versions are served. The message has no room for a version that is no number.
fn policy(versions: &Versions) -> PolicyChoice {
    match versions {
        Versions::Latest(count) => PolicyChoice::Latest(Latest { num_versions: u32::try_from(*count).unwrap_or(u32::MAX) }),
        Versions::All => PolicyChoice::All(All {}),
        Versions::Only(names) => PolicyChoice::Specific(Specific { versions: names.iter().filter_map(|name| name.parse().ok()).collect() }),
    }
}

fn of_port(port: &Port) -> DataType {
    match port.kind.dtype() {
        Some(DType::Bool) => DataType::TypeBool,
        Some(DType::U8) => DataType::TypeUint8,
        Some(DType::U16) => DataType::TypeUint16,
        Some(DType::U32) => DataType::TypeUint32,
        Some(DType::U64) => DataType::TypeUint64,
        Some(DType::I8) => DataType::TypeInt8,
        Some(DType::I16) => DataType::TypeInt16,
        Some(DType::I32) => DataType::TypeInt32,
        Some(DType::I64) => DataType::TypeInt64,
        Some(DType::F16) => DataType::TypeFp16,
        Some(DType::BF16) => DataType::TypeBf16,
        Some(DType::F32) => DataType::TypeFp32,
        Some(DType::F64) => DataType::TypeFp64,
        Some(DType::String) => DataType::TypeString,
        // Types that Triton does not know.
        _ => DataType::TypeInvalid,
    }
}

/// The number of an enumeration's value as its name, for the JSON form of the messages.
macro_rules! by_name {
    ($($function:ident: $of:ty),*) => {
        $(pub(in super::super) fn $function<S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(<$of>::try_from(*number).unwrap_or_default().as_str_name())
        })*
    };
}
by_name!(data_type: DataType, kind: Kind, timeout_action: TimeoutAction);
