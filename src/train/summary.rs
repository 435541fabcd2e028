//! What the data is, before anything is trained: types, ranges, what is missing.

use super::data::gather::{Numbers, Texts};
use super::data::{Column, Inputs};

/// What a column holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Numbers.
    Numbers(Box<Numbers>),
    /// Texts.
    Texts(Texts),
}

/// All columns, by name; an array is one of all its elements.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Each with what it holds.
    pub columns: Vec<(String, Content)>,
    /// The shape of a row of an array.
    pub array: Option<Vec<usize>>,
    /// How many rows there are.
    pub rows: usize,
}

impl Summary {
    /// A part more.
    pub fn add(&mut self, inputs: &Inputs) {
        self.rows += inputs.rows();
        match inputs {
            Inputs::Array { name, shape, values } => {
                if self.columns.is_empty() {
                    self.array = Some(shape.clone());
                    self.columns.push((name.clone(), Content::Numbers(Box::default())));
                }
                /// Elements of an array that are looked at: its histogram needs no more.
                const ELEMENTS: usize = 1_000_000;
                if let (_, Content::Numbers(numbers)) = &mut self.columns[0] {
                    let left = ELEMENTS.saturating_sub(numbers.count);
                    values.iter().take(left).for_each(|&v| numbers.add(v));
                }
            }
            Inputs::Table(table) => {
                if self.columns.is_empty() {
                    let empty = |column: &Column| match column {
                        Column::Numbers(_) => Content::Numbers(Box::default()),
                        Column::Texts(_) => Content::Texts(Texts::default()),
                    };
                    self.columns = table.names.iter().cloned().zip(table.columns.iter().map(empty)).collect();
                }
                for ((_, content), column) in self.columns.iter_mut().zip(&table.columns) {
                    match (content, column) {
                        (Content::Numbers(seen), Column::Numbers(values)) => values.iter().for_each(|&v| seen.add(v)),
                        (Content::Texts(seen), Column::Texts(values)) => values.iter().for_each(|v| seen.add(v)),
                        _ => {}
                    }
                }
            }
        }
    }
}
