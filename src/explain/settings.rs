//! What a model's folder declares for explanations: `[explain]` of `model.toml`.

use std::path::Path;

use serde::Deserialize;

use super::Method;
use crate::engine::{Signature, Tensor, npz};

/// `[explain]`. Every key is optional.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainSettings {
    /// The method of requests that name none.
    pub method: Option<Method>,
    /// The output of requests that name none.
    pub output: Option<String>,
    /// Names of the elements of a row, over all inputs.
    pub features: Vec<String>,
    /// A file in the model's folder: an `.npz` archive with some typical rows, an array for each input.
    pub background: Option<String>,
    /// Most evaluations of one request, instead of the server's limit.
    pub max_evaluations: Option<usize>,
}

/// Where the rows come from against which an answer is explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleSource {
    /// The request.
    Request,
    /// What the model's folder declares.
    Model,
    /// One row of zeros: nothing else is known.
    Zeros,
}

impl SampleSource {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Model => "model",
            Self::Zeros => "zeros",
        }
    }
}

impl ExplainSettings {
    /// The declared background of a model in `folder`, an array for each input; `None` if none is declared.
    ///
    /// # Errors
    /// What is wrong with the file, by its name and array.
    pub fn read_background(&self, folder: &Path, signature: &Signature, limit: usize) -> Result<Option<Vec<Tensor>>, String> {
        let Some(name) = &self.background else { return Ok(None) };
        let path = folder.join(name);
        let told = |error: String| format!("[explain] background: {}: {error}", path.display());
        let file = std::fs::File::open(&path).map_err(|error| told(error.to_string()))?;
        let mut arrays = npz::read(file, limit).map_err(told)?;
        let mut take = |name: &str| arrays.remove(name).ok_or_else(|| told(format!("there is no array `{name}`")));
        let tensors = signature.inputs.iter().map(|port| take(&port.name)).collect::<Result<Vec<_>, _>>()?;
        if let Some(extra) = arrays.keys().next() {
            return Err(told(format!("the model has no input `{extra}`")));
        }
        signature.check(&tensors).map_err(|mismatch| told(mismatch.to_string()))?;
        if tensors.iter().any(Tensor::is_empty) {
            return Err(told("there is no row".to_owned()));
        }
        Ok(Some(tensors))
    }
}
