//! What the protocols tell of a model, in the words of the Open Inference protocol.

use crate::engine::{Dim, Port};
use crate::serve::{Repository, Servable, State};

/// The ports that the protocol can name: it has tensors only.
pub(super) fn tensors(ports: &[Port]) -> impl Iterator<Item = &Port> {
    ports.iter().filter(|port| port.kind.dtype().is_some())
}

/// The element type of a port.
pub(super) fn datatype(port: &Port) -> &'static str {
    port.kind.dtype().map_or("", |dtype| dtype.oip())
}

/// The sizes of a port's dimensions; -1 for a free one. Where not even the rank is known, one free dimension: the protocol has
/// no word for that.
pub(super) fn shape(port: &Port) -> Vec<i64> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
        Dim::Free(_) => -1,
    };
    port.dims.as_ref().map_or_else(|| vec![-1], |dims| dims.iter().map(size).collect())
}

/// Name, element type and sizes of a port, as the protocol's metadata have them.
pub fn described(port: &Port) -> (&str, &'static str, Vec<i64>) {
    (&port.name, datatype(port), shape(port))
}

/// The name that the protocol's list of platforms has for ONNX, and Triton for a pipeline; there is none for weights.
pub(super) fn platform(handle: &Servable) -> &'static str {
    if handle.pipeline().is_some() {
        return "ensemble";
    }
    if handle.metadata().format == "ONNX" { "onnx_onnxv1" } else { "ndserve_safetensors" }
}

/// The versions of a model that answer.
pub(super) fn versions(repository: &Repository, model: &str) -> Vec<String> {
    let of_model = repository.list().into_iter().filter(|status| status.name == model).flat_map(|status| status.versions);
    of_model.filter(|version| matches!(version.state, State::Ready(_))).map(|version| version.version).collect()
}

/// What else is known of a model, as pairs of texts; what is empty is left out.
pub(super) fn properties(handle: &Servable) -> Vec<(&'static str, String)> {
    let (settings, file) = (handle.settings(), handle.metadata());
    let description = if settings.description.is_empty() { &file.description } else { &settings.description };
    let curve = handle.handle().and_then(|handle| handle.curve());
    let all = [
        ("description", description.clone()),
        ("labels", settings.labels.join(",")),
        ("producer", file.producer.clone()),
        ("batching_curve", curve.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("batch_rows_best", curve.map(|curve| curve.best_rows().to_string()).unwrap_or_default()),
    ];
    all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
