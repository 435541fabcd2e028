//! What is to be predicted of each row.

use std::collections::HashMap;

use super::{Column, quoted};
use crate::train::error::{Error, Result};

/// The greatest whole number that no other one is rounded to.
const WHOLE_MAX: f32 = 16_777_215.0;

/// What is to be predicted.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One of several classes.
    Classes {
        /// Their names.
        labels: Vec<String>,
        /// The class of each row.
        of: Vec<usize>,
    },
    /// A number.
    Numbers(Vec<f32>),
}

impl Target {
    /// Some rows, in the order given.
    pub fn pick(&self, rows: &[usize]) -> Self {
        match self {
            Self::Classes { labels, of } => Self::Classes { labels: labels.clone(), of: rows.iter().map(|&row| of[row]).collect() },
            Self::Numbers(values) => Self::Numbers(rows.iter().map(|&row| values[row]).collect()),
        }
    }
}

/// The values of a column as they pass by, a part at a time: a text is held once, however many rows have it.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Numbers; a missing one is NaN.
    Numbers(Vec<f32>),
    /// Texts; a missing one is empty.
    Texts {
        /// The place of each text among those that there are.
        places: HashMap<String, usize>,
        /// That of each row's.
        of: Vec<usize>,
    },
}

impl From<&Column> for Targets {
    fn from(column: &Column) -> Self {
        let mut targets = Self::like(column);
        targets.add(column, 0..column.rows()).expect("the kind is the same");
        targets
    }
}

impl Targets {
    /// None yet, of the kind of a column.
    pub fn like(column: &Column) -> Self {
        match column {
            Column::Numbers(_) => Self::Numbers(Vec::new()),
            Column::Texts(_) => Self::Texts { places: HashMap::new(), of: Vec::new() },
        }
    }

    /// Appends some rows of a column.
    ///
    /// # Errors
    /// If one is of numbers and the other of texts.
    pub fn add(&mut self, column: &Column, rows: impl Iterator<Item = usize>) -> Result<()> {
        match (self, column) {
            (Self::Numbers(own), Column::Numbers(values)) => own.extend(rows.map(|row| values[row])),
            (Self::Texts { places, of }, Column::Texts(values)) => of.extend(rows.map(|row| match places.get(&values[row]) {
                Some(&place) => place,
                None => {
                    let place = places.len();
                    places.insert(values[row].clone(), place);
                    place
                }
            })),
            _ => return Err("numbers in one file, text in the other".into()),
        }
        Ok(())
    }

    /// Whether they are texts.
    pub fn are_texts(&self) -> bool {
        matches!(self, Self::Texts { .. })
    }

    /// Classes of texts, or of whole numbers; the labels are in their order, or in the order given. `place` names a row, counted from
    /// 0, in an error, and `name` is the column.
    ///
    /// # Errors
    /// The row without a value, or with one that is no class.
    pub fn classes(self, order: &[String], name: &str, place: &dyn Fn(usize) -> String) -> Result<Target> {
        let missing = |row: Option<usize>| match row {
            Some(row) => Err(Error(format!("{}: the target `{name}` is missing", place(row)))),
            None => Ok(()),
        };
        match self {
            Self::Texts { places, mut of } => {
                let empty = places.get("").copied();
                missing(empty.and_then(|empty| of.iter().position(|&class| class == empty)))?;
                let mut texts = vec![String::new(); places.len()];
                places.into_iter().for_each(|(text, place)| texts[place] = text);
                let mut labels = order.to_vec();
                if labels.is_empty() {
                    labels.clone_from(&texts);
                    labels.sort_unstable();
                }
                let known: HashMap<&str, usize> = labels.iter().enumerate().rev().map(|(class, label)| (label.as_str(), class)).collect();
                let classes: Vec<Option<usize>> = texts.iter().map(|text| known.get(text.as_str()).copied()).collect();
                for (row, class) in of.iter_mut().enumerate() {
                    let text = &texts[*class];
                    *class = classes[*class].ok_or_else(|| {
                        Error(format!("{}: the target `{name}` is {text:?}, which is none of the labels {}", place(row), quoted(&labels)))
                    })?;
                }
                Ok(Target::Classes { labels, of })
            }
            Self::Numbers(values) => {
                missing(values.iter().position(|v| v.is_nan()))?;
                if let Some((row, value)) = values.iter().enumerate().find(|(_, v)| v.fract() != 0.0) {
                    return Err(Error(format!("{}: the target `{name}` is {value}, which is no number of a class", place(row))));
                }
                if let Some(row) = values.iter().position(|v| v.abs() > WHOLE_MAX) {
                    return Err(Error(format!(
                        "{}: the target `{name}` is {}; classes of numbers beyond {WHOLE_MAX} are not told apart: name them by texts",
                        place(row),
                        values[row]
                    )));
                }
                let mut numbers: Vec<i64> = values.iter().map(|&v| v as i64).collect();
                numbers.sort_unstable();
                numbers.dedup();
                // Labels name the classes 0, 1, …; without them the numbers that there are name themselves.
                if !order.is_empty() {
                    numbers = (0..order.len() as i64).collect();
                }
                let class = |(row, &value): (usize, &f32)| {
                    numbers.binary_search(&(value as i64)).map_err(|_| {
                        let last = order.len().saturating_sub(1);
                        Error(format!("{}: the target `{name}` is {value}; there are labels for 0 to {last}", place(row)))
                    })
                };
                let of = values.iter().enumerate().map(class).collect::<Result<_>>()?;
                let labels = if order.is_empty() { numbers.iter().map(ToString::to_string).collect() } else { order.to_vec() };
                Ok(Target::Classes { labels, of })
            }
        }
    }

    /// Numbers; `name` and `place` as for [`Targets::classes`].
    ///
    /// # Errors
    /// The row without one.
    pub fn numbers(self, name: &str, place: &dyn Fn(usize) -> String) -> Result<Target> {
        match self {
            Self::Texts { .. } => Err(Error(format!("the target `{name}` is text; a number is wanted, or `task = \"classify\"`"))),
            Self::Numbers(values) => match values.iter().position(|v| !v.is_finite()) {
                Some(row) => Err(Error(format!("{}: the target `{name}` is missing or not finite", place(row)))),
                None => Ok(Target::Numbers(values)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[&str]) -> Column {
        Column::Texts(values.iter().map(|&v| v.to_owned()).collect())
    }

    fn place(row: usize) -> String {
        format!("row {}", row + 1)
    }

    #[test]
    fn classes_are_texts_or_whole_numbers() {
        let classes = |column: &Column, order: &[&str]| {
            let order: Vec<String> = order.iter().map(|&v| v.to_owned()).collect();
            Targets::from(column)
                .classes(&order, "t", &place)
                .map(|target| if let Target::Classes { labels, of } = target { (labels.join(" "), of) } else { panic!() })
        };
        assert_eq!(classes(&texts(&["b", "a", "b"]), &[]), Ok(("a b".to_owned(), vec![1, 0, 1])));
        assert_eq!(classes(&texts(&["b", "a"]), &["b", "a"]), Ok(("b a".to_owned(), vec![0, 1])));
        assert_eq!(classes(&Column::Numbers(vec![5.0, 3.0]), &[]), Ok(("3 5".to_owned(), vec![1, 0])));
        assert_eq!(classes(&Column::Numbers(vec![1.0, 0.0]), &["no", "yes"]), Ok(("no yes".to_owned(), vec![1, 0])));
        for (column, order, message) in [
            (texts(&["a", ""]), &[][..], "row 2: the target `t` is missing"),
            (texts(&["a", "c"]), &["a", "b"][..], "row 2: the target `t` is \"c\", which is none of the labels `a`, `b`"),
            (Column::Numbers(vec![1.0, f32::NAN]), &[][..], "row 2: the target `t` is missing"),
            (Column::Numbers(vec![0.5]), &[][..], "row 1: the target `t` is 0.5, which is no number of a class"),
            (Column::Numbers(vec![0.0, 7.0]), &["a", "b"][..], "row 2: the target `t` is 7; there are labels for 0 to 1"),
        ] {
            assert_eq!(classes(&column, order), Err(Error(message.to_owned())));
        }
        // 16777216 and 16777217 are one number of four bytes, and were one class.
        let error = classes(&Column::Numbers(vec![1.0, 16_777_217_f64 as f32]), &[]).unwrap_err();
        assert!(error.0.starts_with("row 2: the target `t` is 16777216; classes of numbers beyond 16777215"), "{error}");
    }

    #[test]
    fn a_text_is_held_once() {
        let mut targets = Targets::from(&texts(&["b", "a"]));
        targets.add(&texts(&["a", "c", "b", "b"]), [0, 2, 3].into_iter()).unwrap();
        let Targets::Texts { places, of } = &targets else { panic!("{targets:?}") };
        assert_eq!((places.len(), of.as_slice()), (2, &[0, 1, 1, 0, 0][..]));
        assert!(targets.add(&Column::Numbers(vec![1.0]), 0..1).is_err());
        let labels = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(targets.classes(&[], "t", &place), Ok(Target::Classes { labels, of: vec![1, 0, 0, 1, 1] }));
    }
}
