//! The requests that load is made of, to their handlers without the router: its boxed layers, the search for a route and the
//! parameters of a path cost as much as a small model. What is not exactly one of these goes through the router, which has the
//! same handlers.

use std::ops::Range;
use std::panic::AssertUnwindSafe;

use axum::BoxError;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use http::request::Parts;
use http::{HeaderValue, Method, Request};

use super::infer::Answered;
use super::layers::{Call, Measured, panicked};
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

    /// The answer, and where its time went if that is not in it; a panic of the handler is an internal error, as behind the router.
    /// What needs the whole request takes it out of `head`.
    pub(super) async fn answer<B>(
        self,
        shared: &Shared,
        calls: &grpc::Inferences,
        (head, id): (&mut Parts, &HeaderValue),
        body: B,
    ) -> (Response, Option<Measured>)
    where
        B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let answered = async {
            let answered = match self {
                Self::Predict => predict::predict_default(shared, Call { head, id }, body).await,
                Self::PredictOf(model) => predict::predict_of(shared, model, Call { head, id }, body).await,
                Self::Infer(model) => v2::infer_of(shared, model, Call { head, id }, body).await,
                Self::ModelInfer if grpc::unary::is_plain(head) => return grpc::unary::answer(shared, head, body).await,
                Self::ModelInfer => {
                    let (nothing, ()) = Request::new(()).into_parts();
                    let request = Request::from_parts(std::mem::replace(head, nothing), Body::new(body));
                    return (Box::pin(calls.answer(request)).await, None);
                }
            };
            match answered {
                Ok(Answered { response, measured }) => (response, Some(measured)),
                Err(failure) => (failure.into_response(), None),
            }
        };
        AssertUnwindSafe(answered).catch_unwind().await.unwrap_or_else(|panic| (panicked(panic), None))
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
