//! Permutation importance: how much of a measure is lost when the values of one feature change places among the rows. After
//! Breiman, Random forests, 2001; the measures are scikit-learn's.

use std::ops::Range;

use super::explainer::{Given, Work};
use super::random::Random;
use super::scores::Scores;
use super::{Explanation, Measured, Target};
use crate::engine::{Tensor, Value};
use crate::error::Error;

/// How often values change places, where a request does not say.
const REPEATS: usize = 5;

/// The right answer to a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// A number, or the position of a class.
    Number(f64),
    /// A label.
    Label(String),
}

/// The right answers, as they are measured.
#[derive(Debug)]
enum Truth {
    Classes(Vec<usize>),
    Numbers(Vec<f64>),
}

impl Truth {
    fn of(given: &Given) -> Result<Self, Error> {
        let columns = given.scores.columns;
        let known = given.known.as_deref().unwrap_or_default();
        let number = |known: &Known| match known {
            Known::Number(value) => Ok(*value),
            Known::Label(label) => Err(Error::invalid(format!("targets has the label `{label}`, and the model has no labels"))),
        };
        let named = !given.labels.is_empty() || columns > 1;
        let binary = known.iter().all(|known| matches!(known, Known::Number(0.0 | 1.0)));
        if !named && !binary {
            let values: Vec<f64> = known.iter().map(number).collect::<Result<_, _>>()?;
            if spread(&values) == 0.0 {
                return Err(Error::invalid("targets are all the same: r2 needs different ones"));
            }
            return Ok(Self::Numbers(values));
        }
        let classes = columns.max(2);
        let class = |(row, known): (usize, &Known)| {
            let (found, what, there) = match known {
                Known::Label(_) if given.labels.is_empty() => return number(known).map(|_| 0),
                Known::Label(label) => (
                    given.labels.iter().position(|other| other == label),
                    format!("`{label}`"),
                    format!("labels {}", given.labels.join(", ")),
                ),
                Known::Number(value) => {
                    let found = (0..classes).find(|&class| class as f64 == *value);
                    (found, value.to_string(), format!("classes 0 to {}", classes - 1))
                }
            };
            found.ok_or_else(|| Error::invalid(format!("targets[{row}] is {what}, which is none of the {there}")))
        };
        Ok(Self::Classes(known.iter().enumerate().map(class).collect::<Result<_, _>>()?))
    }

    fn measure(&self) -> &'static str {
        match self {
            Self::Classes(_) => "accuracy",
            Self::Numbers(_) => "r2",
        }
    }

    fn value(&self, scores: &Scores, rows: usize) -> f64 {
        match self {
            Self::Classes(classes) => {
                let said = |row: usize| match scores.columns {
                    1 => usize::from(scores.row(row)[0] > 0.5),
                    _ => scores.greatest(row),
                };
                (0..rows).filter(|&row| said(row) == classes[row]).count() as f64 / rows as f64
            }
            Self::Numbers(values) => {
                let off: f64 = (0..rows).map(|row| (values[row] - scores.row(row)[0]).powi(2)).sum();
                1.0 - off / spread(values)
            }
        }
    }
}

/// The sum of the squared differences to the mean.
fn spread(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Importance {
    features: usize,
    repeats: usize,
    count: usize,
    truth: Option<Truth>,
    /// The feature and repeat whose rows are evaluated now, with their order.
    current: Option<(usize, Vec<usize>)>,
    scores: Scores,
    /// What was left of the measure, for each feature and repeat.
    left: Vec<f64>,
}

impl Importance {
    pub(super) fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
        match given.known.as_ref().map(Vec::len) {
            Some(count) if count == given.rows => {}
            Some(count) => return Err(Error::invalid(format!("targets has {count} values for {} rows", given.rows))),
            None => return Err(Error::invalid("permutation_importance needs `targets`: the right answers to the rows")),
        }
        let repeats = given.options.repeats.unwrap_or(REPEATS);
        if repeats == 0 {
            return Err(Error::invalid("repeats is 0; at least 1 is wanted"));
        }
        let (features, scores) = (given.layout.len(), Scores::default());
        Ok(Box::new(Self { features, repeats, count: given.rows, truth: None, current: None, scores, left: Vec::new() }))
    }

    fn order(&mut self, given: &Given, pass: usize) -> &[usize] {
        if self.current.as_ref().is_none_or(|(known, _)| *known != pass) {
            let order = Random::new(given.options.seed, pass / self.repeats, pass % self.repeats).order(self.count);
            self.current = Some((pass, order));
        }
        self.current.as_ref().map_or(&[], |(_, order)| order)
    }
}

impl Work for Importance {
    fn rows(&self) -> usize {
        self.features.saturating_mul(self.repeats).saturating_mul(self.count)
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        for at in rows {
            let (pass, row) = (at / self.count, at % self.count);
            built.push(&given.inputs, row);
            let (feature, from) = (pass / self.repeats, self.order(given, pass)[row]);
            built.set(feature, &given.inputs, from);
        }
        built.tensors()
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        if self.truth.is_none() {
            self.truth = Some(Truth::of(given)?);
        }
        let found = given.all_scores(outputs, rows.len())?;
        self.scores.columns = found.columns;
        for (at, row) in rows.enumerate() {
            self.scores.values.extend_from_slice(found.row(at));
            if let (Some(truth), true) = (&self.truth, (row + 1).is_multiple_of(self.count)) {
                self.left.push(truth.value(&self.scores, self.count));
                self.scores.values.clear();
            }
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        let Some(truth) = &self.truth else { return Vec::new() };
        let value = truth.value(&given.scores, self.count);
        let (mut contributions, mut spread) = (Vec::new(), Vec::new());
        for left in self.left.chunks(self.repeats) {
            let lost: Vec<f64> = left.iter().map(|left| value - left).collect();
            let mean = lost.iter().sum::<f64>() / lost.len() as f64;
            contributions.push(mean);
            spread.push((lost.iter().map(|lost| (lost - mean).powi(2)).sum::<f64>() / lost.len() as f64).sqrt());
        }
        let first = given.explanation(0, contributions);
        let target = Target { index: 0, label: None, ..first.target.clone() };
        let measured = Some(Measured { measure: truth.measure(), value });
        vec![Explanation { target, answer: None, spread: Some(spread), measured, ..first }]
    }
}
