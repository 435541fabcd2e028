//! Rows of files as the tensors that a model takes.

use std::path::Path;

use super::Failure;
use crate::engine::{DType, Dim, Port, Signature, Slice, Tensor, npz};
use crate::explain::{Known, number};
use crate::train::data::{self, Column, Format, Inputs, Table, Wanted, read_table};

/// How files of rows are read.
pub(super) struct Columns<'a> {
    pub(super) target: Option<&'a str>,
    pub(super) features: &'a [String],
    pub(super) limit: usize,
}

/// Rows of a file.
#[derive(Default)]
pub(super) struct Read {
    pub(super) tensors: Vec<Tensor>,
    /// The names of the columns.
    pub(super) names: Vec<String>,
    pub(super) known: Vec<Known>,
}

impl Columns<'_> {
    pub(super) fn read(&self, path: &Path, signature: &Signature) -> Result<Read, Failure> {
        let read = match Format::of(path)? {
            Format::Archive => self.arrays(path, signature),
            Format::Pictures => return self.pictures(path, signature),
            Format::Text | Format::Parquet => {
                let table = read_table(path)?;
                self.table(table, signature)
            }
        };
        read.map_err(|Failure(message)| format!("{}: {message}", path.display()).into())
    }

    fn arrays(&self, path: &Path, signature: &Signature) -> Result<Read, Failure> {
        let mut arrays = npz::read(std::fs::File::open(path)?, self.limit)?;
        let names: Vec<String> = arrays.keys().cloned().collect();
        let known = self.target.and_then(|name| arrays.remove(name)).map(|array| known(&array)).unwrap_or_default();
        let mut tensors = Vec::with_capacity(signature.inputs.len());
        for port in &signature.inputs {
            let only = arrays.keys().next().filter(|_| arrays.len() == 1 && signature.inputs.len() == 1).cloned();
            let array = arrays.remove(only.as_ref().unwrap_or(&port.name));
            let array = array.ok_or_else(|| format!("there is no array `{}`; there are {}", port.name, names.join(", ")))?;
            tensors.push(fitted(&array, port)?);
        }
        Ok(Read { tensors, names: Vec::new(), known })
    }

    /// A folder of pictures by class.
    fn pictures(&self, path: &Path, signature: &Signature) -> Result<Read, Failure> {
        if let Some(name) = self.target {
            return Err(format!("{}: pictures have no column `{name}`: their folders are the right answers", path.display()).into());
        }
        let (size, channels) = picture(signature);
        let (inputs, _) = data::read(path, &Wanted { size, channels, ..Wanted::default() }, self.limit)?;
        let tensors = all_fitted(&inputs.tensors(), signature).map_err(|Failure(message)| format!("{}: {message}", path.display()))?;
        Ok(Read { tensors, ..Read::default() })
    }

    fn table(&self, mut table: Table, signature: &Signature) -> Result<Read, Failure> {
        let known = match self.target {
            Some(name) if table.names.iter().any(|column| column == name) => match table.take(name)? {
                Column::Numbers(values) => values.into_iter().map(|value| Known::Number(value.into())).collect(),
                Column::Texts(values) => values.into_iter().map(Known::Label).collect(),
            },
            _ => Vec::new(),
        };
        let table = chosen(table, self.features, signature)?;
        let names = table.names.clone();
        Ok(Read { tensors: all_fitted(&Inputs::Table(table).tensors(), signature)?, names, known })
    }
}

/// The columns that a model takes, in the order of its inputs: those of `features`; where none are named and the model has an input for
/// each column, those of the inputs' names, if there are all of them; else every column.
pub(super) fn chosen(table: Table, features: &[String], signature: &Signature) -> Result<Table, Failure> {
    let named: Vec<String> = signature.inputs.iter().map(|port| port.name.clone()).collect();
    let by_name = features.is_empty() && named.len() > 1 && named.iter().all(|name| table.names.contains(name));
    let wanted = if by_name { &named } else { features };
    Ok(if wanted.is_empty() { table } else { table.select(wanted)? })
}

/// A tensor for each input, as [`fitted`] makes them.
pub(super) fn all_fitted(given: &[Tensor], signature: &Signature) -> Result<Vec<Tensor>, Failure> {
    if given.len() != signature.inputs.len() {
        return Err(format!("the data makes {} inputs, the model has {}", given.len(), signature.inputs.len()).into());
    }
    given.iter().zip(&signature.inputs).map(|(tensor, port)| fitted(tensor, port)).collect()
}

/// Height and width, and channels, of the pictures that a model takes, as far as its one input says.
pub(super) fn picture(signature: &Signature) -> (Option<[usize; 2]>, Option<usize>) {
    match signature.inputs.first().and_then(|port| port.dims.as_deref()) {
        Some(&[_, Dim::Fixed(channels @ (1 | 3)), Dim::Fixed(height), Dim::Fixed(width)]) if signature.inputs.len() == 1 => {
            (Some([height, width]), Some(channels))
        }
        _ => (None, None),
    }
}

/// The right answers of an array.
fn known(array: &Tensor) -> Vec<Known> {
    match array.data() {
        Slice::String(texts) => texts.iter().map(|text| Known::Label(text.clone())).collect(),
        _ => numbers(array).into_iter().map(Known::Number).collect(),
    }
}

/// All elements; none if they are no numbers.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    (0..tensor.len()).map_while(|at| number(tensor.data(), at)).collect()
}

/// A tensor in the type and shape of an input: files of numbers do not always say what the model takes.
fn fitted(tensor: &Tensor, port: &Port) -> Result<Tensor, Failure> {
    let wanted = port.kind.dtype();
    if wanted == Some(tensor.dtype()) {
        return Ok(tensor.clone());
    }
    let values = numbers(tensor);
    let shape = tensor.shape();
    let made = match wanted {
        _ if values.len() != tensor.len() => None,
        Some(DType::F32) => Tensor::new(shape, values.iter().map(|&v| v as f32).collect()),
        Some(DType::F64) => Tensor::new(shape, values),
        Some(DType::I64) => Tensor::new(shape, values.iter().map(|&v| v as i64).collect()),
        Some(DType::I32) => Tensor::new(shape, values.iter().map(|&v| v as i32).collect()),
        _ => None,
    };
    made.ok_or_else(|| format!("{} cannot be input `{}`, a {}", tensor.dtype(), port.name, port.kind).into())
}

/// The first rows of a tensor.
pub(super) fn first_rows(tensor: &Tensor, rows: usize) -> Tensor {
    match tensor.shape().first() {
        Some(&all) if rows < all => tensor.rows(0..rows),
        _ => tensor.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_brought_to_the_type_of_the_input() {
        let port = |dtype| Port { name: "x".into(), kind: crate::engine::Kind::Tensor(dtype), dims: None };
        let array = Tensor::new(&[2, 1], vec![1.0_f32, 2.0]).unwrap();
        for dtype in [DType::F32, DType::F64, DType::I64, DType::I32] {
            let made = fitted(&array, &port(dtype)).unwrap_or_else(|Failure(error)| panic!("{error}"));
            assert_eq!((made.dtype(), numbers(&made)), (dtype, vec![1.0, 2.0]));
        }
        assert!(fitted(&array, &port(DType::String)).is_err());
        assert_eq!(first_rows(&array, 1).shape(), [1, 1]);
        assert_eq!(first_rows(&array, 3).shape(), [2, 1]);
    }

    #[test]
    fn right_answers_are_numbers_or_labels() {
        let texts = Tensor::vector(vec!["a".to_owned()]);
        assert_eq!(known(&texts), [Known::Label("a".to_owned())]);
        assert_eq!(known(&Tensor::vector(vec![3_i64])), [Known::Number(3.0)]);
    }
}
