//! What answers for a version: a model behind its queue.

use std::sync::Arc;
use std::time::Duration;

use super::handle::Handle;
use super::request::{InferRequest, InferResponse};
use super::settings::ModelSettings;
use crate::engine::{Metadata, Signature};
use crate::error::Error;

/// What answers for a version. Cloning shares it; whoever holds a clone keeps the version from being taken apart.
#[derive(Clone, Debug)]
pub struct Servable {
    handle: Arc<Handle>,
}

impl From<Arc<Handle>> for Servable {
    fn from(handle: Arc<Handle>) -> Self {
        Self { handle }
    }
}

impl Servable {
    /// The model's name.
    pub fn name(&self) -> &str {
        self.handle.name()
    }

    /// The version.
    pub fn version(&self) -> &str {
        self.handle.version()
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        self.handle.model().signature()
    }

    /// What its file says about itself.
    pub fn metadata(&self) -> &Metadata {
        self.handle.model().metadata()
    }

    /// The settings in force.
    pub fn settings(&self) -> &ModelSettings {
        self.handle.settings()
    }

    /// Time of a forward pass of one row, as measured while warming up.
    pub fn row_cost(&self) -> Option<Duration> {
        self.handle.row_cost()
    }

    /// The model with its queue and workers.
    pub fn handle(&self) -> Option<&Arc<Handle>> {
        Some(&self.handle)
    }

    /// Whether anybody else holds what answers.
    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.handle) > 1
    }

    /// Answers what waits and ends the workers.
    pub(super) fn close(&self) {
        self.handle.close();
    }

    /// Computes the outputs for a request. Dropping the future gives up the request.
    ///
    /// # Errors
    /// As [`Handle::infer`].
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, Error> {
        self.handle.infer(request).await
    }
}
