//! What a model's folder declares for explanations: `[explain]` of `model.toml`.

use std::path::Path;

use serde::Deserialize;

use super::Method;
use super::explainer::check_rows;
use crate::engine::{Dim, Port, Signature, Tensor, npz};

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
    /// What is wrong with the file, by its name and array; or an output or names of features that are not the model's.
    pub fn read_background(&self, folder: &Path, signature: &Signature, limit: usize) -> Result<Option<Vec<Tensor>>, String> {
        self.fits(signature)?;
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

impl ExplainSettings {
    /// Whether a request that says nothing else will find what is declared: told to who declares it, not to who asks.
    fn fits(&self, signature: &Signature) -> Result<(), String> {
        if let Some(name) = self.output.as_ref().filter(|name| signature.output(name).is_none()) {
            let known = signature.outputs.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ");
            return Err(format!("[explain] output: `{name}` is not known; the outputs are {known}"));
        }
        let of_row = |port: &Port| {
            let sizes = port.dims.as_ref()?.iter().skip(1).map(|dim| if let Dim::Fixed(size) = dim { Some(*size) } else { None });
            sizes.product::<Option<usize>>()
        };
        let elements = signature.inputs.iter().map(of_row).sum::<Option<usize>>();
        match elements {
            Some(elements) if !self.features.is_empty() && self.features.len() != elements => {
                Err(format!("[explain] features: there are {} names for {elements} elements of a row", self.features.len()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DType, Kind};

    /// They were told to clients only, as if these had asked for them.
    #[test]
    fn an_output_and_names_that_are_not_the_models_are_refused_where_they_are_declared() {
        let port = |name: &str, size| Port {
            name: name.into(),
            kind: Kind::Tensor(DType::F32),
            dims: Some(vec![Dim::Free("batch".into()), size, Dim::Fixed(3)]),
        };
        let signature = |size| Signature { inputs: vec![port("x", size)], outputs: vec![port("y", Dim::Fixed(1))], ..Signature::default() };
        let two = || Signature { inputs: vec![port("x", Dim::Fixed(2)), port("z", Dim::Fixed(1))], ..signature(Dim::Fixed(2)) };
        let read = |settings: &ExplainSettings, signature: &Signature| settings.read_background(Path::new(""), signature, 0);
        let output = ExplainSettings { output: Some("z".into()), ..ExplainSettings::default() };
        assert_eq!(read(&output, &two()).unwrap_err(), "[explain] output: `z` is not known; the outputs are `y`");
        let named = |count| ExplainSettings { features: vec!["a".into(); count], ..ExplainSettings::default() };
        assert_eq!(read(&named(6), &two()).unwrap_err(), "[explain] features: there are 6 names for 9 elements of a row");
        assert_eq!(read(&named(9), &two()), Ok(None));
        // How many there are, a request tells.
        assert_eq!(read(&named(6), &signature(Dim::Free("n".into()))), Ok(None));
    }

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
