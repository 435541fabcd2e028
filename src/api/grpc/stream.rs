//! `ModelStreamInfer`: requests and answers on one call. Several are under way at once, so that they can share forward
//! passes; the answers come in the order of the requests.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::super::Shared;
use super::super::spans::StreamTrace;
use super::infer::infer;
use super::proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};

/// Requests of one call that are worked on at once; further ones are not read, which holds the client back.
const UNDER_WAY: usize = 64;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

/// Answers every request until the client has sent its last, or the server stops; then those under way are still answered.
pub(super) fn answers(shared: Arc<Shared>, requests: Streaming<ModelInferRequest>, deadline: Option<Instant>) -> Answers {
    let stopping = shared.stopping();
    let trace = StreamTrace::current();
    let answered = requests.take_until(stopping).map(move |request| {
        let (shared, trace) = (Arc::clone(&shared), trace.clone());
        async move { answer(&shared, request?, (deadline, trace.as_ref())).await }
    });
    // A message that cannot be read ends the call: what comes behind it cannot be read either.
    let until_broken = answered.buffered(UNDER_WAY).scan(false, |broken, answer| {
        let ended = std::mem::replace(broken, answer.is_err());
        std::future::ready((!ended).then_some(answer))
    });
    until_broken.boxed()
}

/// A request's failure is an answer too: the call goes on.
async fn answer(
    shared: &Shared,
    request: ModelInferRequest,
    (deadline, trace): (Option<Instant>, Option<&StreamTrace>),
) -> Result<ModelStreamInferResponse, Status> {
    let (model_name, model_version, id) = (request.model_name.clone(), request.model_version.clone(), request.id.clone());
    let answer = match shared.admit() {
        Ok(under_way) => {
            let answer = infer(shared, request, deadline);
            let answer = match trace {
                Some(trace) => trace.watch(answer).await,
                None => answer.await,
            };
            under_way.answered();
            answer
        }
        Err(error) => Err(error),
    };
    Ok(match answer {
        Ok((response, _)) => ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) },
        Err(error) => {
            shared.refused(&error);
            let infer_response = Some(ModelInferResponse { model_name, model_version, id, ..Default::default() });
            ModelStreamInferResponse { error_message: error.message().to_owned(), infer_response }
        }
    })
}
