//! The Open Inference protocol over gRPC, with Triton's extensions, health checks and reflection.
//!
//! tonic does framing and statuses; its services are routes of the same router as everything else, so that limits, metrics
//! and shutdown are those of every request. `call` is what they pass beyond the layers: the time limits of a call.

mod call;
mod contents;
mod health;
mod infer;
pub mod proto;
mod service;
mod status;
mod stream;
pub(super) mod unary;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any_service;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::server::NamedService;
use tower::Service;

use super::Shared;
use proto::health::health_server::HealthServer;
use proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;

pub(super) use status::{is_grpc, settle};

/// The path of an inference.
pub(super) const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// The service of inferences. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct Inferences(call::Call<GrpcInferenceServiceServer<service::Inference>>);

impl Inferences {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let service = GrpcInferenceServiceServer::new(service::Inference(Arc::clone(shared)))
            .max_decoding_message_size(shared.limits.max_body_bytes)
            .max_encoding_message_size(usize::MAX)
            .accept_compressed(Gzip)
            .accept_compressed(Deflate)
            .send_compressed(Gzip)
            .send_compressed(Deflate);
        Self(call::Call::new(Arc::clone(shared), service))
    }

    /// The answer to a call.
    pub(super) async fn answer(&self, request: Request) -> Response {
        let Ok(answer) = self.0.clone().call(request).await;
        answer
    }
}

/// One route per service.
pub(super) fn routes(shared: &Arc<Shared>, inferences: Inferences) -> Router<Arc<Shared>> {
    let health = HealthServer::new(health::Health(Arc::clone(shared)));
    let reflection = || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::SCHEMA);
    let name = <GrpcInferenceServiceServer<service::Inference> as NamedService>::NAME;
    let router = Router::new().route(&format!("/{name}/{{method}}"), any_service(inferences.0));
    let router = route(router, shared, health);
    let router = route(router, shared, reflection().build_v1().expect("the build script made the schema"));
    route(router, shared, reflection().build_v1alpha().expect("the build script made the schema"))
}

fn route<S>(router: Router<Arc<Shared>>, shared: &Arc<Shared>, service: S) -> Router<Arc<Shared>>
where
    S: Service<Request, Response = http::Response<tonic::body::Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    router.route(&format!("/{}/{{method}}", S::NAME), any_service(call::Call::new(Arc::clone(shared), service)))
}
