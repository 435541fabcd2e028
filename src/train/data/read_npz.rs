//! Arrays of NumPy's archives, read in parts.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::source::{Reader, part_rows};
use super::{Column, Inputs, quoted};
use crate::engine::{Slice, Tensor, npz};
use crate::train::error::{Error, Result, in_file};

/// An archive with the array of the inputs and the target's.
#[derive(Debug)]
pub(super) struct Npz {
    path: PathBuf,
    name: String,
    /// Of a row.
    shape: Vec<usize>,
    target: Column,
}

impl Npz {
    /// The array named `inputs`, or the only one beside the target's.
    ///
    /// # Errors
    /// The array that is missing or has a wrong shape.
    pub(super) fn open(path: &Path, inputs: Option<&str>, target: &str) -> Result<Self> {
        Self::read(path, inputs, target).map_err(|error| in_file(path, error))
    }

    fn read(path: &Path, inputs: Option<&str>, target: &str) -> Result<Self> {
        let file = || File::open(path).map_err(|error| Error(error.to_string()));
        let mut shapes = npz::shapes(file()?)?;
        let names: Vec<String> = shapes.keys().cloned().collect();
        let missing = |name: &str| Error(format!("there is no array `{name}`; there are {}", quoted(&names)));
        let of_target = shapes.remove(target).ok_or_else(|| missing(target))?;
        let name = match inputs {
            Some(name) => name.to_owned(),
            None if shapes.len() == 1 => shapes.keys().next().cloned().unwrap_or_default(),
            None => return Err(Error(format!("there are {}: `inputs` must name one", quoted(&names)))),
        };
        let shape = shapes.remove(&name).ok_or_else(|| missing(&name))?;
        let rows = shape.first().copied().unwrap_or(0);
        if shape.len() < 2 || shape.contains(&0) {
            return Err(Error(format!("array `{name}` has shape {shape:?}; a dimension for rows and one behind it are wanted")));
        }
        if of_target.first() != Some(&rows) || of_target.iter().skip(1).any(|&n| n != 1) {
            return Err(Error(format!("array `{target}` has shape {of_target:?}; one value for each of {rows} rows is wanted")));
        }
        let mut answers: Option<Column> = None;
        npz::each_rows(file()?, target, rows, &mut |tensor| {
            answers = Some(match tensor.data() {
                Slice::String(values) => Column::Texts(values.to_vec()),
                _ => Column::Numbers(numbers(&tensor, target)?),
            });
            Ok::<(), Error>(())
        })?;
        let target = answers.ok_or_else(|| missing(target))?;
        Ok(Self { path: path.to_owned(), name, shape: shape[1..].to_vec(), target })
    }

    fn size(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Reader for Npz {
    fn bytes(&self) -> usize {
        self.target.rows() * self.size() * size_of::<f32>()
    }

    fn parts(&self, f: &mut dyn FnMut(Inputs, Column) -> Result<()>) -> Result<()> {
        let file = File::open(&self.path).map_err(|error| in_file(&self.path, error))?;
        let mut first = 0;
        npz::each_rows(file, &self.name, part_rows(self.size()), &mut |tensor| {
            let values = numbers(&tensor, &self.name).map_err(|error| in_file(&self.path, error))?;
            let rows: Vec<usize> = (first..first + tensor.shape()[0]).collect();
            first += rows.len();
            f(Inputs::Array { name: self.name.clone(), shape: self.shape.clone(), values }, self.target.pick(&rows))
        })
    }
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
