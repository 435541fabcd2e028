//! Arrays of NumPy's archives.

use std::path::Path;

use super::{Column, Inputs, quoted};
use crate::engine::{Slice, Tensor, npz};
use crate::train::error::{Error, Result};

/// The array of the inputs (the only other one, if no name is given) and the target's.
pub(super) fn read(path: &Path, inputs: Option<&str>, target: &str, limit: usize) -> Result<(Inputs, Column)> {
    let file = std::fs::File::open(path).map_err(|error| Error(error.to_string()))?;
    let mut arrays = npz::read(file, limit)?;
    let names: Vec<String> = arrays.keys().cloned().collect();
    let missing = |name: &str| Error(format!("there is no array `{name}`; there are {}", quoted(&names)));
    let of_target = arrays.remove(target).ok_or_else(|| missing(target))?;
    let name = match inputs {
        Some(name) => name.to_owned(),
        None if arrays.len() == 1 => arrays.keys().next().cloned().unwrap_or_default(),
        None => return Err(Error(format!("there are {}: `inputs` must name one", quoted(&names)))),
    };
    let array = arrays.remove(&name).ok_or_else(|| missing(&name))?;
    let rows = array.shape().first().copied().unwrap_or(0);
    if array.shape().len() < 2 || rows == 0 || array.is_empty() {
        return Err(Error(format!("array `{name}` has shape {:?}; a dimension for rows and one behind it are wanted", array.shape())));
    }
    let vector = of_target.shape().iter().skip(1).all(|&n| n == 1);
    if of_target.shape().first() != Some(&rows) || !vector {
        return Err(Error(format!("array `{target}` has shape {:?}; one value for each of {rows} rows is wanted", of_target.shape())));
    }
    let shape = array.shape()[1..].to_vec();
    let target = match of_target.data() {
        Slice::String(values) => Column::Texts(values.to_vec()),
        _ => Column::Numbers(numbers(&of_target, target)?),
    };
    Ok((Inputs::Array { values: numbers(&array, &name)?, name, shape }, target))
}

fn numbers(tensor: &Tensor, name: &str) -> Result<Vec<f32>> {
    Ok(match tensor.data() {
        Slice::F32(values) => values.to_vec(),
        Slice::F64(values) => values.iter().map(|&v| v as f32).collect(),
        Slice::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
        Slice::I64(values) => values.iter().map(|&v| v as f32).collect(),
        Slice::I32(values) => values.iter().map(|&v| v as f32).collect(),
        Slice::I16(values) => values.iter().map(|&v| f32::from(v)).collect(),
        Slice::I8(values) => values.iter().map(|&v| f32::from(v)).collect(),
        Slice::U8(values) => values.iter().map(|&v| f32::from(v)).collect(),
        Slice::U16(values) => values.iter().map(|&v| f32::from(v)).collect(),
        Slice::U32(values) => values.iter().map(|&v| v as f32).collect(),
        Slice::U64(values) => values.iter().map(|&v| v as f32).collect(),
        Slice::Bool(values) => values.iter().map(|&v| f32::from(u8::from(v))).collect(),
        _ => return Err(Error(format!("array `{name}` holds {}, not numbers", tensor.dtype()))),
    })
}
