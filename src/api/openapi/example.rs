//! An example request for a model that is served: zeros, false and empty text of the right shape.

use serde_json::{Map, Value, json};

use super::Example;
use crate::engine::{DType, Dim, Port};
use crate::serve::{Repository, Servable};

/// Longer tensors make no example that a person would read.
const ELEMENTS_MAX: usize = 4096;

/// A request in the form of `example`, for the model whose name comes first, which is also the first example of the path's
/// parameter; without a name in the path for the model that answers then.
pub(super) fn of(example: Example, named: bool, repository: &Repository) -> Option<Value> {
    let handle = if named { repository.ready().into_iter().next().map(Servable::from) } else { repository.default_model().ok() }?;
    let inputs = &handle.signature().inputs;
    match example {
        Example::Tensors => Some(json!({"inputs": inputs.iter().map(tensor).collect::<Option<Vec<_>>>()?})),
        Example::Instances => {
            let row = |port: &Port| nested(port.kind.dtype()?, shape(port)?.get(1..)?);
            let row = match inputs.as_slice() {
                [only] => row(only)?,
                all => Value::Object(all.iter().map(|port| Some((port.name.clone(), row(port)?))).collect::<Option<Map<_, _>>>()?),
            };
            Some(json!({"instances": [row]}))
        }
    }
}

fn tensor(port: &Port) -> Option<Value> {
    let (dtype, shape) = (port.kind.dtype()?, shape(port)?);
    // Half floats have no JSON in the protocol.
    if matches!(dtype, DType::F16 | DType::BF16) {
        return None;
    }
    let data = vec![zero(dtype); shape.iter().product()];
    Some(json!({"name": port.name, "datatype": dtype.oip(), "shape": shape, "data": data}))
}

/// One for every free size.
fn shape(port: &Port) -> Option<Vec<usize>> {
    let sizes = port.dims.as_ref()?.iter().map(|dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(_) => 1,
    });
    let shape: Vec<usize> = sizes.collect();
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size)).filter(|&count| count <= ELEMENTS_MAX)?;
    Some(shape)
}

fn zero(dtype: DType) -> Value {
    match dtype {
        DType::Bool => json!(false),
        DType::String => json!(""),
        _ => json!(0),
    }
}

fn nested(dtype: DType, shape: &[usize]) -> Option<Value> {
    match shape {
        [] => Some(zero(dtype)),
        [size, inner @ ..] => Some(Value::Array(vec![nested(dtype, inner)?; *size])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Kind;

    #[test]
    fn an_example_has_the_shape_of_the_input() {
        let port = |dtype, dims: &[Dim]| Port { name: "x".into(), kind: Kind::Tensor(dtype), dims: Some(dims.to_vec()) };
        let free = || Dim::Free("n".into());
        let two = port(DType::I64, &[free(), Dim::Fixed(2)]);
        assert_eq!(tensor(&two), Some(json!({"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [0, 0]})));
        assert_eq!(nested(DType::Bool, &[1, 2]), Some(json!([[false, false]])));
        assert_eq!(tensor(&port(DType::F16, &[free()])), None);
        assert_eq!(tensor(&port(DType::F32, &[Dim::Fixed(10_000)])), None);
    }
}
