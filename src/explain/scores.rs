//! The numbers of an answer: a row of scores for each row of inputs, and which of them is explained.

use super::layout::number;
use crate::engine::{Dim, Port, Signature, Tensor, Value};
use crate::error::{Error, Kind};

/// Which element of the output a request wants explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Its position.
    Index(usize),
    /// Its label.
    Label(String),
}

/// Scores of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Of a row.
    pub columns: usize,
    /// Row by row.
    pub values: Vec<f64>,
}

impl Scores {
    /// The scores of one row.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The element with the greatest score; the first of equal ones.
    pub(super) fn greatest(&self, row: usize) -> usize {
        let scores = self.row(row);
        (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
    }

    /// Appends the scores of an answer of `rows` rows; `place` says which row one is, in an error.
    ///
    /// # Errors
    /// If the output is not a number or several for each row, or one is not finite.
    pub fn append(&mut self, value: &Value, rows: usize, name: &str, place: &dyn Fn(usize) -> String) -> Result<(), Error> {
        let before = self.values.len();
        match value {
            Value::Tensor(tensor) => self.tensor(tensor, rows, name)?,
            // Classifiers of ai.onnx.ml may answer with a map for each row.
            Value::Sequence(maps) if maps.len() == rows => {
                for map in maps {
                    let Value::Map { values, .. } = map else { return Err(no_numbers(name)) };
                    self.tensor(&values.reshape(&[1, values.len()]).expect("as many elements"), 1, name)?;
                }
            }
            _ => return Err(no_numbers(name)),
        }
        if let Some(at) = self.values[before..].iter().position(|score| !score.is_finite()) {
            return Err(Error::invalid(format!("output `{name}` is no finite number for {}", place(at / self.columns))));
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &Tensor, rows: usize, name: &str) -> Result<(), Error> {
        let shape = tensor.shape();
        if shape.first() != Some(&rows) || tensor.is_empty() {
            let message = format!("output `{name}` of shape {shape:?} does not have a value for each of {rows} rows");
            return Err(Error::new(Kind::Unsupported, message));
        }
        let columns = tensor.len() / rows;
        if self.columns != 0 && self.columns != columns {
            return Err(Error::invalid(format!("output `{name}` has {columns} values in one row and {} in another", self.columns)));
        }
        self.columns = columns;
        for at in 0..tensor.len() {
            self.values.push(number(tensor.data(), at).ok_or_else(|| no_numbers(name))?);
        }
        Ok(())
    }
}

fn no_numbers(name: &str) -> Error {
    Error::new(Kind::Unsupported, format!("output `{name}` holds no numbers that could be explained"))
}

/// The output that is explained: the one that is named, else the one with a column for each label, else the first of
/// floating-point numbers, else the first of maps.
///
/// # Errors
/// If there is none.
pub fn output(signature: &Signature, labels: &[String], wanted: Option<&str>) -> Result<usize, Error> {
    if let Some(name) = wanted {
        let known = || signature.outputs.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ");
        return signature.output(name).ok_or_else(|| Error::invalid(format!("output `{name}` is not known; the outputs are {}", known())));
    }
    let float = |port: &Port| port.kind.dtype().is_some_and(|dtype| dtype.is_float());
    let of_labels = |port: &Port| {
        float(port) && !labels.is_empty() && port.dims.as_ref().is_some_and(|dims| dims.last() == Some(&Dim::Fixed(labels.len())))
    };
    let position = |fits: &dyn Fn(&Port) -> bool| signature.outputs.iter().position(fits);
    let maps = |port: &Port| matches!(port.kind, crate::engine::Kind::Sequence(_));
    let found = position(&of_labels).or_else(|| position(&float)).or_else(|| position(&maps));
    found.ok_or_else(|| Error::new(Kind::Unsupported, "the model has no output of floating-point numbers to explain"))
}

/// The element that `class` stands for, of an output with `columns`.
///
/// # Errors
/// If there is none.
pub(super) fn column(class: &Class, columns: usize, labels: &[String]) -> Result<usize, Error> {
    match class {
        Class::Index(index) if *index < columns => Ok(*index),
        Class::Index(index) => Err(Error::invalid(format!("target is {index}; the output has {columns} elements in a row"))),
        Class::Label(label) if labels.is_empty() => Err(Error::invalid(format!(
            "target is `{label}`, and the model has no labels: a position is wanted, from 0 to {}",
            columns - 1
        ))),
        Class::Label(label) => labels
            .iter()
            .position(|known| known == label)
            .filter(|&at| at < columns)
            .ok_or_else(|| Error::invalid(format!("target is `{label}`, which is none of the labels {}", labels.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_tensors_or_maps() {
        let mut scores = Scores::default();
        let place = |row: usize| format!("row {}", row + 1);
        scores.append(&Tensor::new(&[2, 2], vec![0.25_f32, 0.75, 0.5, 0.5]).unwrap().into(), 2, "p", &place).unwrap();
        let map = Value::Map { keys: Tensor::vector(vec![0_i64, 1]), values: Tensor::vector(vec![1.0_f32, 0.0]) };
        scores.append(&Value::Sequence(vec![map.clone()]), 1, "p", &place).unwrap();
        assert_eq!((scores.columns, scores.values.as_slice()), (2, &[0.25, 0.75, 0.5, 0.5, 1.0, 0.0][..]));
        assert_eq!([0, 1, 2].map(|row| scores.greatest(row)), [1, 0, 0]);
        let wrong = |value: &Value, rows| scores.clone().append(value, rows, "p", &place).unwrap_err().message().to_owned();
        assert!(wrong(&Tensor::vector(vec![1.0_f32]).into(), 2).contains("of shape [1] does not have a value for each of 2 rows"));
        assert!(wrong(&Tensor::vector(vec![1.0_f32]).into(), 1).contains("1 values in one row and 2 in another"));
        assert!(wrong(&Tensor::new(&[1, 2], vec![1.0, f64::NAN]).unwrap().into(), 1).contains("no finite number for row 1"));
        let texts = Tensor::new(&[1, 2], vec![String::new(); 2]).unwrap();
        assert!(wrong(&texts.into(), 1).contains("holds no numbers"));
        assert!(wrong(&map, 1).contains("holds no numbers"));
    }

    #[test]
    fn a_target_is_an_index_or_a_label() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        assert_eq!(column(&Class::Index(1), 2, &[]).unwrap(), 1);
        assert_eq!(column(&Class::Label("yes".into()), 2, &labels).unwrap(), 1);
        assert_eq!(column(&Class::Index(2), 2, &labels).unwrap_err().message(), "target is 2; the output has 2 elements in a row");
        let message = column(&Class::Label("maybe".into()), 2, &labels).unwrap_err().message().to_owned();
        assert_eq!(message, "target is `maybe`, which is none of the labels no, yes");
        let message = column(&Class::Label("yes".into()), 3, &[]).unwrap_err().message().to_owned();
        assert_eq!(message, "target is `yes`, and the model has no labels: a position is wanted, from 0 to 2");
    }
}
