//! Data in memory: rows of a table, or of one array, with what is to be predicted of each.

pub mod gather;
mod read_csv;
mod read_images;
mod read_npz;
mod read_parquet;
mod source;
mod targets;

use std::path::Path;

use super::error::{Error, Result};
use crate::engine::Tensor;

pub use source::{Format, Source, Wanted, read_table};
pub use targets::{Target, Targets};

/// One column of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Numbers; a missing one is NaN.
    Numbers(Vec<f32>),
    /// Texts; a missing one is empty.
    Texts(Vec<String>),
}

impl Column {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    /// Whether the value in a row is missing.
    pub fn missing(&self, row: usize) -> bool {
        match self {
            Self::Numbers(values) => values[row].is_nan(),
            Self::Texts(values) => values[row].is_empty(),
        }
    }

    /// The rows of another column behind its own.
    ///
    /// # Errors
    /// If one is of numbers and the other of texts.
    pub fn append(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Numbers(own), Self::Numbers(more)) => own.extend_from_slice(more),
            (Self::Texts(own), Self::Texts(more)) => own.extend_from_slice(more),
            _ => return Err("numbers in one file, text in the other".into()),
        }
        Ok(())
    }

    /// Some rows, in the order given.
    pub fn pick(&self, rows: &[usize]) -> Self {
        match self {
            Self::Numbers(values) => Self::Numbers(rows.iter().map(|&row| values[row]).collect()),
            Self::Texts(values) => Self::Texts(rows.iter().map(|&row| values[row].clone()).collect()),
        }
    }
}

/// Columns of equal length, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Their names.
    pub names: Vec<String>,
    /// The columns.
    pub columns: Vec<Column>,
}

impl Table {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, Column::rows)
    }

    /// The column of a name.
    ///
    /// # Errors
    /// If there is none: which there are.
    pub fn column(&self, name: &str) -> Result<&Column> {
        let at = self.names.iter().position(|known| known == name);
        at.map(|at| &self.columns[at]).ok_or_else(|| Error(format!("there is no column `{name}`; there are {}", quoted(&self.names))))
    }

    /// Takes a column out.
    ///
    /// # Errors
    /// If there is none of that name: which there are.
    pub fn take(&mut self, name: &str) -> Result<Column> {
        let Some(at) = self.names.iter().position(|known| known == name) else {
            return Err(Error(format!("there is no column `{name}`; there are {}", quoted(&self.names))));
        };
        self.names.remove(at);
        Ok(self.columns.remove(at))
    }

    /// The named columns in their order.
    ///
    /// # Errors
    /// As [`Table::take`].
    pub fn select(mut self, names: &[String]) -> Result<Self> {
        // An error names all columns, and not those that are left.
        names.iter().try_for_each(|name| self.column(name).map(drop))?;
        let columns = names.iter().map(|name| self.take(name)).collect::<Result<_>>()?;
        Ok(Self { names: names.into(), columns })
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// What is known of each row.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Columns.
    Table(Table),
    /// An array whose first dimension is the rows.
    Array {
        /// Its name.
        name: String,
        /// The shape of a row.
        shape: Vec<usize>,
        /// All elements.
        values: Vec<f32>,
    },
}

impl Inputs {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        match self {
            Self::Table(table) => table.rows(),
            Self::Array { shape, values, .. } => values.len() / shape.iter().product::<usize>().max(1),
        }
    }

    /// The rows of other inputs behind its own.
    ///
    /// # Errors
    /// The column or array that differs.
    pub fn append(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Array { shape, values, .. }, Self::Array { shape: other, values: more, .. }) if shape == other => {
                values.extend_from_slice(more);
                Ok(())
            }
            (Self::Table(table), Self::Table(other)) => {
                for (name, column) in table.names.iter().zip(&mut table.columns) {
                    column.append(other.column(name)?).map_err(|error| Error(format!("column `{name}`: {error}")))?;
                }
                Ok(())
            }
            _ => Err("the rows of the two files have different shapes".into()),
        }
    }

    /// Some rows, in the order given.
    pub fn pick(&self, rows: &[usize]) -> Self {
        match self {
            Self::Table(table) => {
                Self::Table(Table { names: table.names.clone(), columns: table.columns.iter().map(|column| column.pick(rows)).collect() })
            }
            Self::Array { name, shape, values } => {
                let size: usize = shape.iter().product();
                let values = rows.iter().flat_map(|&row| &values[row * size..(row + 1) * size]).copied().collect();
                Self::Array { name: name.clone(), shape: shape.clone(), values }
            }
        }
    }

    /// The rows as tensors, in the order in which a model of them has its inputs: one of all columns if these are numbers, else
    /// one for each column.
    pub fn tensors(&self) -> Vec<Tensor> {
        let rows = self.rows();
        let tensor = |shape: &[usize], values| Tensor::new(shape, values).expect("as many elements as the shape has");
        match self {
            Self::Array { shape, values, .. } => vec![tensor(&[&[rows], &shape[..]].concat(), values.clone())],
            Self::Table(table) if self.numbers_only() => {
                let columns: Vec<&Vec<f32>> =
                    table.columns.iter().filter_map(|c| if let Column::Numbers(v) = c { Some(v) } else { None }).collect();
                let values = (0..rows).flat_map(|row| columns.iter().map(move |column| column[row])).collect();
                vec![tensor(&[rows, columns.len()], values)]
            }
            Self::Table(table) => {
                let one = |column: &Column| match column {
                    Column::Numbers(values) => tensor(&[rows, 1], values.clone()),
                    Column::Texts(values) => Tensor::new(&[rows, 1], values.clone()).expect("a text for each row"),
                };
                table.columns.iter().map(one).collect()
            }
        }
    }

    /// Whether one tensor of numbers holds all.
    pub fn numbers_only(&self) -> bool {
        match self {
            Self::Array { .. } => true,
            Self::Table(table) => table.columns.iter().all(|column| matches!(column, Column::Numbers(_))),
        }
    }
}

/// All rows of a file, as long as they take no more than `limit` bytes: [`Source`] with one file, of which any column may hold texts.
///
/// # Errors
/// What is wrong with the file, by its row or array; or if it is too large.
pub fn read(path: &Path, wanted: &Wanted<'_>, limit: usize) -> Result<(Inputs, Column)> {
    let source = Source::open(&[path], &Wanted { any_texts: true, ..wanted.clone() }, limit)?;
    source.into_memory().ok_or_else(|| super::error::in_file(path, format!("its rows take more than {limit} bytes")))
}
