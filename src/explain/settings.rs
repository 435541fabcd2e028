//! What a model's folder declares for explanations: `[explain]` of `model.toml`.

use std::path::Path;

use serde::Deserialize;

use super::Method;
use super::explainer::check_rows;
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
        if tensors.iter().any(Tensor::is_empty) {
            return Err(told("there is no row".to_owned()));
        }
        check_rows(signature, &tensors).map_err(|mismatch| told(mismatch.to_string()))?;
        Ok(Some(tensors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DType, Dim, Kind, Port};

    #[test]
    fn a_background_of_several_rows_is_read_for_a_model_that_takes_one_at_once() {
        let dims = Some(vec![Dim::Fixed(1), Dim::Fixed(2)]);
        let port = Port { name: "x".into(), kind: Kind::Tensor(DType::F32), dims };
        let signature = Signature { inputs: vec![port], ..Signature::default() };
        let folder = std::env::temp_dir().join(format!("ndserve-background-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let settings = ExplainSettings { background: Some("rows.npz".into()), ..ExplainSettings::default() };
        let read = |shape: &[usize]| {
            let rows = Tensor::zeros(DType::F32, shape);
            std::fs::write(folder.join("rows.npz"), npz::write(&[("x", &rows)]).unwrap()).unwrap();
            settings.read_background(&folder, &signature, 1 << 20)
        };
        assert_eq!(read(&[3, 2]).unwrap().unwrap()[0].shape(), [3, 2]);
        for (shape, want) in [([3, 1], "input `x` wants shape [1, 2], got [1, 1]"), ([0, 2], "there is no row")] {
            let error = read(&shape).unwrap_err();
            assert!(error.ends_with(want), "{error}");
        }
        let _ = std::fs::remove_dir_all(folder);
    }
}
