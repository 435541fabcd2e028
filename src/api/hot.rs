//! The requests that load is made of, to their handlers without the router: its boxed layers, the search for a route and the
//! parameters of a path cost as much as a small model. What is not exactly one of these goes through the router, which has the
//! same handlers.

use std::ops::Range;
use std::panic::AssertUnwindSafe;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::Method;

use super::layers::panicked;
use super::{Shared, grpc, predict, v2};

/// What is asked. A model's name is a part of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hot {
    /// `/predict`
    Predict,
    /// `/v1/models/{model}:predict`
    PredictOf(Range<usize>),
    /// `/v2/models/{model}/infer`
    Infer(Range<usize>),
    /// `ModelInfer` of gRPC
    ModelInfer,
}

impl Hot {
    /// The request that this method and path are; `None` for one of the router's.
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        if *method != Method::POST {
            return None;
        }
        let model = |before: &str, behind: &str| {
            let name = path.strip_prefix(before)?.strip_suffix(behind)?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            (!name.is_empty() && name.bytes().all(plain)).then(|| before.len()..before.len() + name.len())
        };
        match path {
            "/predict" => Some(Self::Predict),
            grpc::MODEL_INFER => Some(Self::ModelInfer),
            _ => model("/v2/models/", "/infer").map(Self::Infer).or_else(|| model("/v1/models/", ":predict").map(Self::PredictOf)),
        }
    }

    /// The answer; a panic of the handler is an internal error, as behind the router.
    pub(super) async fn answer(self, shared: &Shared, calls: &grpc::Inferences, request: Request) -> Response {
        let answered = async {
            match self {
                Self::Predict => predict::predict_default(shared, request).await.into_response(),
                Self::PredictOf(model) => predict::predict_of(shared, model, request).await.into_response(),
                Self::Infer(model) => v2::infer_of(shared, model, request).await.into_response(),
                Self::ModelInfer => calls.clone().answer(request).await,
            }
        };
        AssertUnwindSafe(answered).catch_unwind().await.unwrap_or_else(panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_and_posts_are_hot() {
        let of = |path: &str| Hot::of(&Method::POST, path);
        assert_eq!(of("/predict"), Some(Hot::Predict));
        assert_eq!(of("/v1/models/two-features:predict"), Some(Hot::PredictOf(11..23)));
        assert_eq!(of("/v2/models/a.b_1/infer"), Some(Hot::Infer(11..16)));
        assert_eq!(of("/inference.GRPCInferenceService/ModelInfer"), Some(Hot::ModelInfer));
        for path in [
            "/predict/",
            "/v1/models/:predict",
            "/v1/models/a%20b:predict",
            "/v1/models/a:b:predict",
            "/v1/models/a/versions/1:predict",
            "/v1/models/a:explain",
            "/v2/models//infer",
            "/v2/models/a/versions/1/infer",
            "/v2/models/a/ready",
            "/v2/models/é/infer",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(Hot::of(&Method::GET, "/predict"), None);
    }
}
