//! The RPCs of `inference.GRPCInferenceService`: each reads its message, asks what answers REST too, and writes the answer.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::super::{Shared, describe, triton};
use super::call::Deadline;
use super::proto::inference::grpc_inference_service_server::GrpcInferenceService;
use super::proto::inference::model_metadata_response::TensorMetadata;
use super::proto::inference::model_repository_parameter::ParameterChoice;
use super::proto::inference::repository_index_response::ModelIndex;
use super::proto::inference::*;
use super::status::status_of;
use super::{infer, stream};
use crate::engine::Port;
use crate::error::{Error, Kind};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone, Debug)]
pub(super) struct Inference(pub(super) Arc<Shared>);

/// The version that a message names; the empty one leaves it to the server.
fn version(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn ok<T>(message: Result<T, Error>) -> Answer<T> {
    message.map(Response::new).map_err(status_of)
}

fn tensor(port: &Port) -> TensorMetadata {
    TensorMetadata { name: port.name.clone(), datatype: describe::datatype(port).to_owned(), shape: describe::shape(port) }
}

/// Shared memory would let a client name memory of the server's machine.
fn no_shared_memory<T>(method: &str) -> Answer<T> {
    let message = format!("{method} is not offered: this server has no shared memory; send and take the tensors themselves");
    Err(status_of(Error::new(Kind::Unsupported, message)))
}

impl Inference {
    async fn metadata(&self, request: ModelMetadataRequest) -> Result<ModelMetadataResponse, Error> {
        let handle = self.0.repository.get(&request.name, version(&request.version))?;
        let signature = handle.signature();
        Ok(ModelMetadataResponse {
            name: handle.name().to_owned(),
            versions: describe::versions(&self.0.repository, &request.name),
            platform: describe::platform(&handle).to_owned(),
            inputs: describe::tensors(&signature.inputs).map(tensor).collect(),
            outputs: describe::tensors(&signature.outputs).map(tensor).collect(),
            properties: describe::properties(&handle).into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        })
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        ok(Ok(ServerLiveResponse { live: self.0.repository.liveness().is_ok() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        ok(Ok(ServerReadyResponse { ready: self.0.repository.readiness().is_ok() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let request = request.into_inner();
        // A model that does not exist is not ready: so Triton, and so its clients expect.
        ok(Ok(ModelReadyResponse { ready: self.0.repository.get(&request.name, version(&request.version)).is_ok() }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        let extensions = triton::EXTENSIONS.iter().map(|&name| name.to_owned()).collect();
        ok(Ok(ServerMetadataResponse { name: "ndserve".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned(), extensions }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        ok(self.metadata(request.into_inner()).await)
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        // Clients say that they understand compression whether or not they want it; one that compresses its message wants it.
        let compressed = request.metadata().contains_key("grpc-encoding");
        let (message, measured) = infer::infer(&self.0, request.into_inner(), deadline).await.map_err(status_of)?;
        let mut response = Response::new(message);
        response.extensions_mut().insert(measured);
        if !compressed {
            response.disable_compression();
        }
        Ok(response)
    }

    type ModelStreamInferStream = stream::Answers;

    async fn model_stream_infer(&self, request: Request<Streaming<ModelInferRequest>>) -> Answer<stream::Answers> {
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let compressed = request.metadata().contains_key("grpc-encoding");
        let mut response = Response::new(stream::answers(Arc::clone(&self.0), request.into_inner(), deadline));
        if !compressed {
            response.disable_compression();
        }
        Ok(response)
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Answer<ModelConfigResponse> {
        let request = request.into_inner();
        let config = triton::config::of(&self.0, &request.name, version(&request.version));
        ok(config.map(|config| ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Answer<ModelStatisticsResponse> {
        let request = request.into_inner();
        let statistics = triton::statistics::of(&self.0, version(&request.name), version(&request.version));
        ok(statistics.map(|model_stats| ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Answer<RepositoryIndexResponse> {
        let request = request.into_inner();
        let index = triton::repository::index(&self.0, &request.repository_name, request.ready);
        let models = index.map(|index| {
            let model =
                |row: triton::repository::Row| ModelIndex { name: row.name, version: row.version, state: row.state, reason: row.reason };
            index.into_iter().map(model).collect()
        });
        ok(models.map(|models| RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(&self, request: Request<RepositoryModelLoadRequest>) -> Answer<RepositoryModelLoadResponse> {
        let RepositoryModelLoadRequest { repository_name, model_name, parameters } = request.into_inner();
        let parameters = parameters.into_iter().map(|(key, value)| (key, parameter(value))).collect();
        let loaded = triton::repository::load(&self.0, &repository_name, &model_name, parameters).await;
        ok(loaded.map(|()| RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(&self, request: Request<RepositoryModelUnloadRequest>) -> Answer<RepositoryModelUnloadResponse> {
        let RepositoryModelUnloadRequest { repository_name, model_name, parameters } = request.into_inner();
        let parameters = parameters.into_iter().map(|(key, value)| (key, parameter(value))).collect();
        let unloaded = triton::repository::unload(&self.0, &repository_name, &model_name, parameters).await;
        ok(unloaded.map(|()| RepositoryModelUnloadResponse {}))
    }

    async fn trace_setting(&self, request: Request<TraceSettingRequest>) -> Answer<TraceSettingResponse> {
        let TraceSettingRequest { settings, model_name } = request.into_inner();
        let changes = settings.into_iter().map(|(key, value)| (key, value.value)).collect();
        let now = triton::trace::change(&self.0, version(&model_name), changes);
        let value = |(key, value): (&str, Vec<String>)| (key.to_owned(), trace_setting_response::SettingValue { value });
        ok(now.map(|now| TraceSettingResponse { settings: now.into_iter().map(value).collect() }))
    }

    async fn log_settings(&self, request: Request<LogSettingsRequest>) -> Answer<LogSettingsResponse> {
        use log_settings_request::setting_value::ParameterChoice as Given;
        use log_settings_response::setting_value::ParameterChoice as Told;
        use triton::logging::Value;
        let given = |(key, value): (String, log_settings_request::SettingValue)| {
            let value = match value.parameter_choice {
                Some(Given::BoolParam(value)) => Value::Bool(value),
                Some(Given::Uint32Param(value)) => Value::Number(value),
                Some(Given::StringParam(text)) => Value::Text(text),
                None => Value::Text(String::new()),
            };
            (key, value)
        };
        let told = |(key, value): (&str, Value)| {
            let choice = match value {
                Value::Bool(value) => Told::BoolParam(value),
                Value::Number(value) => Told::Uint32Param(value),
                Value::Text(text) => Told::StringParam(text),
            };
            (key.to_owned(), log_settings_response::SettingValue { parameter_choice: Some(choice) })
        };
        let now = triton::logging::change(request.into_inner().settings.into_iter().map(given).collect());
        ok(now.map(|now| LogSettingsResponse { settings: now.into_iter().map(told).collect() }))
    }

    async fn system_shared_memory_status(&self, _: Request<SystemSharedMemoryStatusRequest>) -> Answer<SystemSharedMemoryStatusResponse> {
        no_shared_memory("SystemSharedMemoryStatus")
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        no_shared_memory("SystemSharedMemoryRegister")
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        no_shared_memory("SystemSharedMemoryUnregister")
    }

    async fn cuda_shared_memory_status(&self, _: Request<CudaSharedMemoryStatusRequest>) -> Answer<CudaSharedMemoryStatusResponse> {
        no_shared_memory("CudaSharedMemoryStatus")
    }

    async fn cuda_shared_memory_register(&self, _: Request<CudaSharedMemoryRegisterRequest>) -> Answer<CudaSharedMemoryRegisterResponse> {
        no_shared_memory("CudaSharedMemoryRegister")
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        no_shared_memory("CudaSharedMemoryUnregister")
    }
}

fn parameter(value: ModelRepositoryParameter) -> triton::repository::Parameter {
    use triton::repository::Parameter;
    match value.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
        Some(ParameterChoice::StringParam(text)) => Parameter::Text(text),
        Some(ParameterChoice::BytesParam(bytes)) => Parameter::Bytes(bytes.into()),
        Some(ParameterChoice::Int64Param(number)) => Parameter::Text(number.to_string()),
        None => Parameter::Bool(false),
    }
}
