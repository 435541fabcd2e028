//! What answers for a version: a model behind its queue, or a pipeline of models.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handle::Handle;
use super::pipeline::Pipeline;
use super::queue::Joining;
use super::request::{InferRequest, InferResponse};
use super::settings::ModelSettings;
use super::shadow::Shadow;
use crate::engine::{Metadata, Signature};
use crate::error::Error;

/// What answers for a version. Cloning shares it; whoever holds a clone keeps the version from being taken apart.
#[derive(Clone, Debug)]
pub struct Servable {
    what: What,
    /// Where a copy of the request goes.
    shadow: Option<Box<Shadow>>,
}

#[derive(Clone, Debug)]
enum What {
    Model(Arc<Handle>),
    Pipeline(Arc<Pipeline>),
}

impl From<Arc<Handle>> for Servable {
    fn from(handle: Arc<Handle>) -> Self {
        Self { what: What::Model(handle), shadow: None }
    }
}

impl From<Pipeline> for Servable {
    fn from(pipeline: Pipeline) -> Self {
        Self { what: What::Pipeline(Arc::new(pipeline)), shadow: None }
    }
}

impl Servable {
    /// The same, with a copy of its requests to somebody else.
    pub(super) fn with_shadow(mut self, shadow: Shadow) -> Self {
        self.shadow = Some(Box::new(shadow));
        self
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        match &self.what {
            What::Model(handle) => handle.name(),
            What::Pipeline(pipeline) => pipeline.name(),
        }
    }

    /// The version.
    pub fn version(&self) -> &str {
        match &self.what {
            What::Model(handle) => handle.version(),
            What::Pipeline(pipeline) => pipeline.version(),
        }
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        match &self.what {
            What::Model(handle) => handle.model().signature(),
            What::Pipeline(pipeline) => pipeline.signature(),
        }
    }

    /// What its file says about itself; of a pipeline only the format, `pipeline`.
    pub fn metadata(&self) -> &Metadata {
        match &self.what {
            What::Model(handle) => handle.model().metadata(),
            What::Pipeline(pipeline) => pipeline.metadata(),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &ModelSettings {
        match &self.what {
            What::Model(handle) => handle.settings(),
            What::Pipeline(pipeline) => pipeline.settings(),
        }
    }

    /// Whether requests share passes, as far as it is known; of a pipeline what its settings say.
    pub fn joining(&self) -> Joining {
        match &self.what {
            What::Model(handle) => handle.joining(),
            What::Pipeline(pipeline) if pipeline.settings().batching => Joining::Yes,
            What::Pipeline(_) => Joining::No,
        }
    }

    /// Time of a forward pass of one row, as measured while warming up or behind the start.
    pub fn row_cost(&self) -> Option<Duration> {
        self.handle().and_then(|handle| handle.row_cost())
    }

    /// The model with its queue and workers; `None` for a pipeline, whose steps have their own.
    pub fn handle(&self) -> Option<&Arc<Handle>> {
        match &self.what {
            What::Model(handle) => Some(handle),
            What::Pipeline(_) => None,
        }
    }

    /// The pipeline, if it is one.
    pub fn pipeline(&self) -> Option<&Pipeline> {
        match &self.what {
            What::Model(_) => None,
            What::Pipeline(pipeline) => Some(pipeline),
        }
    }

    /// Whether anybody else holds what answers.
    pub(super) fn is_held(&self) -> bool {
        match &self.what {
            What::Model(handle) => Arc::strong_count(handle) > 1,
            What::Pipeline(pipeline) => Arc::strong_count(pipeline) > 1,
        }
    }

    /// Answers what waits and ends the workers.
    pub(super) fn close(&self) {
        if let What::Model(handle) = &self.what {
            handle.close();
        }
    }

    /// Computes the outputs for a request. Dropping the future gives up the request.
    ///
    /// # Errors
    /// As [`Handle::infer`]; of a pipeline the first step's that failed, with its name.
    #[expect(clippy::manual_async_fn, reason = "a block has one place for the request where an `async fn` has two")]
    pub fn infer(&self, request: InferRequest) -> impl Future<Output = Result<InferResponse, Error>> + Send {
        async move {
            match (&self.what, &self.shadow) {
                (What::Model(handle), None) => handle.infer(request).await,
                // In a box: the future of what most requests are for stays small.
                (_, shadow) => Box::pin(self.answer(request, shadow.as_deref())).await,
            }
        }
    }

    async fn answer(&self, request: InferRequest, shadow: Option<&Shadow>) -> Result<InferResponse, Error> {
        let copied = shadow.filter(|_| !request.background).map(|shadow| (shadow, shadow.copy(&request), Instant::now()));
        let response = match &self.what {
            What::Model(handle) => handle.infer(request).await?,
            What::Pipeline(pipeline) => pipeline.infer(request).await?,
        };
        if let Some((shadow, copy, start)) = copied {
            shadow.clone().compare(copy, response.outputs.clone(), start.elapsed());
        }
        Ok(response)
    }

    /// [`Servable::infer`] as a future of known type: what it runs may be a pipeline whose steps are pipelines.
    pub(super) fn infer_boxed(self, request: InferRequest) -> Pin<Box<dyn Future<Output = Result<InferResponse, Error>> + Send>> {
        Box::pin(async move { self.infer(request).await })
    }
}
