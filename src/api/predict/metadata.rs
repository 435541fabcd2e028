//! `GET …/metadata`: a model's signature as TensorFlow Serving tells it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::super::Shared;
use super::super::error::Failure;
use super::super::layers::json;
use super::super::path::ModelPath;
use super::decode::SIGNATURE;
use super::messages::{Metadata, ModelSpec, SignatureDef, SignatureMap, Signatures, TensorDim, TensorInfo, TensorShape};
use crate::engine::{DType, Dim, Port};

pub(super) async fn metadata(State(shared): State<Arc<Shared>>, path: ModelPath) -> Result<Response, Failure> {
    let handle = path.find(&shared.repository)?;
    let signature = handle.signature();
    let named = |ports: &[Port]| ports.iter().filter_map(|port| Some((port.name.clone(), tensor(port)?))).collect();
    let (inputs, outputs) = (named(&signature.inputs), named(&signature.outputs));
    let definition = SignatureDef { inputs, outputs, method_name: "tensorflow/serving/predict" };
    let model_spec = ModelSpec { name: handle.name().to_owned(), signature_name: "", version: handle.version().to_owned() };
    let signature_def = SignatureMap { signature_def: BTreeMap::from([(SIGNATURE, definition)]) };
    Ok(json(&Metadata { model_spec, metadata: Signatures { signature_def } })?)
}

/// `None` for what is no tensor.
fn tensor(port: &Port) -> Option<TensorInfo> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => TensorDim { size: size.to_string(), name: String::new() },
        Dim::Free(name) => TensorDim { size: "-1".to_owned(), name: name.to_string() },
    };
    let dim = port.dims.as_ref().map(|dims| dims.iter().map(size).collect());
    let tensor_shape = TensorShape { unknown_rank: dim.is_none(), dim: dim.unwrap_or_default() };
    Some(TensorInfo { name: port.name.clone(), dtype: datatype(port.kind.dtype()?), tensor_shape })
}

/// The name in TensorFlow's `DataType`, or after its manner where it has none.
fn datatype(dtype: DType) -> String {
    match dtype {
        DType::F32 => "DT_FLOAT".to_owned(),
        DType::F64 => "DT_DOUBLE".to_owned(),
        DType::F16 => "DT_HALF".to_owned(),
        other => format!("DT_{}", other.name().to_ascii_uppercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datatypes_are_tensorflows() {
        let names = [DType::BF16, DType::I8, DType::U64, DType::String, DType::Bool, DType::C64, DType::F16].map(datatype);
        assert_eq!(names, ["DT_BFLOAT16", "DT_INT8", "DT_UINT64", "DT_STRING", "DT_BOOL", "DT_COMPLEX64", "DT_HALF"]);
    }
}
