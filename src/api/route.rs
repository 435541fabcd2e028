//! Which route a path belongs to: the label of its metrics, known before routing and for paths that match nothing.

/// A group of paths that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/predict`
    Predict,
    /// `/v1/models/{model}:predict`, with or without a version.
    V1Predict,
    /// `/v1/models/{model}:explain`, with or without a version.
    V1Explain,
    /// Everything else under `/v1`.
    V1,
    /// `/v2/models/{model}/infer`, with or without a version.
    V2Infer,
    /// Everything else under `/v2` that is no probe.
    V2,
    /// `ModelInfer` and `ModelStreamInfer` over gRPC.
    GrpcInfer,
    /// Every other gRPC call that is no probe.
    Grpc,
    /// Liveness and readiness.
    Health,
    /// `/metrics`
    Metrics,
    /// Anything else.
    Other,
}

impl Route {
    /// Every route, in the order of its discriminants.
    pub const ALL: [Self; 11] = [
        Self::Predict,
        Self::V1Predict,
        Self::V1Explain,
        Self::V1,
        Self::V2Infer,
        Self::V2,
        Self::GrpcInfer,
        Self::Grpc,
        Self::Health,
        Self::Metrics,
        Self::Other,
    ];

    /// The label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::V1Predict => "v1_predict",
            Self::V1Explain => "v1_explain",
            Self::V1 => "v1",
            Self::V2Infer => "v2_infer",
            Self::V2 => "v2",
            Self::GrpcInfer => "grpc_infer",
            Self::Grpc => "grpc",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Other => "other",
        }
    }

    /// The route of a path.
    pub fn of(path: &str) -> Self {
        match path {
            "/predict" => Self::Predict,
            "/" | "/livez" | "/readyz" | "/v2/health/live" | "/v2/health/ready" => Self::Health,
            "/metrics" => Self::Metrics,
            _ if path.starts_with("/v2") => match () {
                () if path.ends_with("/infer") => Self::V2Infer,
                () if path.ends_with("/ready") => Self::Health,
                () => Self::V2,
            },
            _ if path.starts_with("/grpc.health.v1.Health/") => Self::Health,
            _ if path.starts_with("/inference.GRPCInferenceService/") => match () {
                () if path.ends_with("Infer") => Self::GrpcInfer,
                () if path.ends_with("Live") || path.ends_with("Ready") => Self::Health,
                () => Self::Grpc,
            },
            _ if path.starts_with("/grpc.") => Self::Grpc,
            _ if path.starts_with("/v1") => match () {
                () if path.ends_with(":predict") => Self::V1Predict,
                () if path.ends_with(":explain") => Self::V1Explain,
                () => Self::V1,
            },
            _ => Self::Other,
        }
    }

    /// Whether a probe asks: it is answered even when the server has too much to do.
    pub fn is_probe(self) -> bool {
        matches!(self, Self::Health | Self::Metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_grouped() {
        for (path, route) in [
            ("/predict", Route::Predict),
            ("/v1/models/a:predict", Route::V1Predict),
            ("/v1/models/a/versions/2:predict", Route::V1Predict),
            ("/v1/models/a:explain", Route::V1Explain),
            ("/v1/models", Route::V1),
            ("/v2/models/a/versions/2/infer", Route::V2Infer),
            ("/v2/", Route::V2),
            ("/v2/models/a/ready", Route::Health),
            ("/", Route::Health),
            ("/inference.GRPCInferenceService/ModelInfer", Route::GrpcInfer),
            ("/inference.GRPCInferenceService/ModelStreamInfer", Route::GrpcInfer),
            ("/inference.GRPCInferenceService/ModelReady", Route::Health),
            ("/inference.GRPCInferenceService/RepositoryIndex", Route::Grpc),
            ("/grpc.health.v1.Health/Check", Route::Health),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Route::Grpc),
            ("/metrics", Route::Metrics),
            ("/favicon.ico", Route::Other),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
        assert!(Route::ALL.iter().enumerate().all(|(i, &route)| route as usize == i));
    }
}
