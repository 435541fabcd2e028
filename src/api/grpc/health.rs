//! gRPC's health checks. The names: `""` and the inference service for the whole server, `readiness` and `liveness` as the
//! probes of Kubernetes ask, and each model's name, or name and version with a slash between them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use super::super::Shared;
use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse, health_server};
use super::proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use super::service::Inference;
use super::status::status_of;
use crate::error::{Error, Kind};

/// How often a watched state is looked at; it changes when models come and go.
const WATCH_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(super) struct Health(pub(super) Arc<Shared>);

/// The state of a service; `None` if there is none of this name.
fn state(shared: &Shared, service: &str) -> Option<ServingStatus> {
    const SERVER: &str = <GrpcInferenceServiceServer<Inference> as NamedService>::NAME;
    let serving = match service {
        "" | SERVER | "readiness" => shared.repository.readiness().is_ok(),
        "liveness" => shared.repository.liveness().is_ok(),
        _ => model(shared, service)? && !shared.repository.is_draining(),
    };
    Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

/// Whether a model, or one version of it, answers; `None` if there is none.
fn model(shared: &Shared, service: &str) -> Option<bool> {
    let whole = shared.repository.get(service, None);
    let found = match (whole, service.rsplit_once('/')) {
        (Err(error), Some((name, version))) if error.kind() == Kind::NotFound => shared.repository.get(name, Some(version)),
        (whole, _) => whole,
    };
    match found {
        Ok(_) => Some(true),
        Err(error) if error.kind() == Kind::NotFound => None,
        Err(_) => Some(false),
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let unknown = || status_of(Error::new(Kind::NotFound, format!("there is no service or model `{service}`")));
        state(&self.0, &service).map(|status| Response::new(response(status))).ok_or_else(unknown)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (shared, service) = (Arc::clone(&self.0), request.into_inner().service);
        let stopping = shared.stopping();
        let changes = stream::unfold(None, move |last| {
            let (shared, service) = (Arc::clone(&shared), service.clone());
            async move {
                loop {
                    let now = state(&shared, &service).unwrap_or(ServingStatus::ServiceUnknown);
                    if last != Some(now) {
                        return Some((Ok(response(now)), Some(now)));
                    }
                    tokio::time::sleep(WATCH_EVERY).await;
                }
            }
        });
        Ok(Response::new(changes.take_until(stopping).boxed()))
    }
}
