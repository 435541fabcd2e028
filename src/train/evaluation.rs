//! Answers of models held against what is known: all measures of all rows, of slices, with intervals, and of two models beside
//! each other.

use std::collections::BTreeMap;

use serde::Serialize;

use super::data::Column;
use super::error::{Error, Result};
use super::metrics::{Classification, Regression, classification, regression, said};
use super::statistics::{Bootstrap, Interval, mcnemar, two_sided};

/// What is known of each row.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// One of several classes.
    Classes {
        /// Their names.
        labels: Vec<String>,
        /// The class of each row.
        of: Vec<usize>,
    },
    /// A number.
    Numbers(Vec<f64>),
}

/// All measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Measures {
    /// Of classes.
    Classes(Box<Classification>),
    /// Of numbers.
    Numbers(Regression),
}

/// A measure by its name.
pub type Named = (&'static str, Option<f64>);

impl Measures {
    /// The measures that are one number, in the order in which they are told.
    pub fn named(&self) -> Vec<Named> {
        match self {
            Self::Classes(found) => vec![
                ("accuracy", Some(found.accuracy)),
                ("balanced_accuracy", Some(found.balanced_accuracy)),
                ("precision_macro", Some(found.precision_macro)),
                ("recall_macro", Some(found.recall_macro)),
                ("f1_macro", Some(found.f1_macro)),
                ("f1_weighted", Some(found.f1_weighted)),
                ("roc_auc", found.roc_auc),
                ("pr_auc", found.pr_auc),
                ("log_loss", Some(found.log_loss)),
                ("brier", Some(found.brier)),
            ],
            Self::Numbers(found) => {
                vec![("mae", Some(found.mae)), ("rmse", Some(found.rmse)), ("r2", found.r2), ("mape", Some(found.mape))]
            }
        }
    }

    /// The measure that decides between two models, and whether more of it is better.
    pub fn decisive(&self) -> (&'static str, f64, bool) {
        match self {
            Self::Classes(found) => ("accuracy", found.accuracy, true),
            Self::Numbers(found) => ("rmse", found.rmse, false),
        }
    }
}

/// A model's answers, with what is known.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// What is known.
    pub truth: &'a Truth,
    /// The numbers of all rows, one row after the other.
    pub answers: &'a [f64],
}

impl Judged<'_> {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        match self.truth {
            Truth::Classes { of, .. } => of.len(),
            Truth::Numbers(values) => values.len(),
        }
    }

    /// The measures of all rows.
    ///
    /// # Errors
    /// If the answers do not fit what is known.
    pub fn all(&self) -> Result<Measures> {
        self.some(&(0..self.rows()).collect::<Vec<_>>())
    }

    /// The measures of some rows.
    ///
    /// # Errors
    /// As [`Judged::all`].
    pub fn some(&self, rows: &[usize]) -> Result<Measures> {
        let columns = self.answers.len() / self.rows().max(1);
        let answers: Vec<f64> = rows.iter().flat_map(|&row| &self.answers[row * columns..(row + 1) * columns]).copied().collect();
        Ok(match self.truth {
            Truth::Classes { labels, of } => {
                let of: Vec<usize> = rows.iter().map(|&row| of[row]).collect();
                Measures::Classes(Box::new(classification(&answers, &of, labels)?))
            }
            Truth::Numbers(values) => {
                let values: Vec<f64> = rows.iter().map(|&row| values[row]).collect();
                Measures::Numbers(regression(&answers, &values)?)
            }
        })
    }

    /// The named measures of some rows; none where the rows have none.
    fn named(&self, rows: &[usize], names: usize) -> Vec<Option<f64>> {
        match self.some(rows) {
            Ok(measures) => measures.named().into_iter().map(|(_, value)| value).collect(),
            Err(_) => vec![None; names],
        }
    }

    /// Intervals of the named measures.
    pub fn intervals(&self, measures: &Measures, bootstrap: &Bootstrap) -> BTreeMap<&'static str, Interval> {
        let named = measures.named();
        let drawn = bootstrap.draw(self.rows(), |rows| self.named(rows, named.len()));
        named.iter().zip(drawn).filter_map(|((name, _), values)| Some((*name, bootstrap.interval(&values)?))).collect()
    }

    /// Whether each row has the right class; `None` for numbers.
    fn right(&self) -> Option<Vec<bool>> {
        let Truth::Classes { of, .. } = self.truth else { return None };
        let columns = self.answers.len() / self.rows().max(1);
        Some(of.iter().enumerate().map(|(row, &class)| said(&self.answers[row * columns..(row + 1) * columns]) == class).collect())
    }
}

/// The measures of rows that have one value of a column, or values of one range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// The column.
    pub column: String,
    /// The value, or the range.
    pub value: String,
    /// How many rows.
    pub rows: usize,
    /// Their measures.
    pub measures: BTreeMap<&'static str, Option<f64>>,
}

/// The measures by slices of a column: of each value, or of the quarters of more than ten numbers.
///
/// # Errors
/// If a column of texts has more than fifty values.
pub fn slices(judged: &Judged<'_>, name: &str, column: &Column) -> Result<Vec<Slice>> {
    /// More values than this are no slices but rows.
    const VALUES_MAX: usize = 50;
    let mut groups: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    match column {
        Column::Texts(texts) => {
            for (row, text) in texts.iter().enumerate() {
                groups.entry((0, if text.is_empty() { "missing".to_owned() } else { text.clone() })).or_default().push(row);
            }
            if groups.len() > VALUES_MAX {
                return Err(Error(format!("column `{name}` has {} values; slices are of {VALUES_MAX} at most", groups.len())));
            }
        }
        Column::Numbers(numbers) => {
            let ranges = Ranges::of(numbers);
            for (row, &number) in numbers.iter().enumerate() {
                groups.entry(ranges.place(number)).or_default().push(row);
            }
        }
    }
    let slice = |((_, value), rows): ((usize, String), Vec<usize>)| {
        let measures = judged.some(&rows)?.named().into_iter().collect();
        Ok(Slice { column: name.to_owned(), value, rows: rows.len(), measures })
    };
    groups.into_iter().map(slice).collect()
}

/// How numbers are sliced.
struct Ranges {
    /// The values, if there are few.
    values: Vec<f32>,
    /// The ends of the quarters.
    ends: Vec<f32>,
}

impl Ranges {
    fn of(numbers: &[f32]) -> Self {
        let mut sorted: Vec<f32> = numbers.iter().copied().filter(|number| !number.is_nan()).collect();
        sorted.sort_by(f32::total_cmp);
        let mut values = sorted.clone();
        values.dedup();
        if values.len() <= 10 {
            return Self { values, ends: Vec::new() };
        }
        let mut ends: Vec<f32> = (1..=4).map(|quarter| sorted[(quarter * sorted.len() / 4).min(sorted.len()) - 1]).collect();
        ends.dedup();
        Self { values: Vec::new(), ends }
    }

    /// The place of a number's slice among the others, and what it is called.
    fn place(&self, number: f32) -> (usize, String) {
        if number.is_nan() {
            return (usize::MAX, "missing".to_owned());
        }
        if let Some(at) = self.values.iter().position(|value| *value == number) {
            return (at, format!("{number}"));
        }
        let at = self.ends.iter().position(|end| number <= *end).unwrap_or(self.ends.len().saturating_sub(1));
        let name = match at {
            0 => format!("≤ {}", self.ends[0]),
            _ => format!("{} to {}", self.ends[at - 1], self.ends[at]),
        };
        (at, name)
    }
}

/// A second model beside the first, on the same rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Each measure of both.
    pub measures: BTreeMap<&'static str, Difference>,
    /// McNemar's test, of classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcnemar: Option<McNemar>,
    /// The measure that decides.
    pub decisive: &'static str,
    /// The probability of such a difference in it, if the models were equally good: McNemar's of classes, else the bootstrap's.
    pub p: f64,
    /// Whether the second is better by that measure.
    pub second_is_better: bool,
}

/// A measure of two models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Of the first.
    pub first: Option<f64>,
    /// Of the second.
    pub second: Option<f64>,
    /// Where second minus first lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

/// Rows that only one of two models has right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct McNemar {
    /// Only the first.
    pub only_first: usize,
    /// Only the second.
    pub only_second: usize,
}

/// Compares the answers of two models to the same rows.
///
/// # Errors
/// If the answers of one do not fit what is known.
pub fn compare(first: &Judged<'_>, second: &Judged<'_>, bootstrap: &Bootstrap) -> Result<Comparison> {
    let (a, b) = (first.all()?, second.all()?);
    let (named, of_second) = (a.named(), b.named());
    let difference = |rows: &[usize]| {
        let pairs = first.named(rows, named.len()).into_iter().zip(second.named(rows, named.len()));
        pairs.map(|(a, b)| Some(b? - a?)).collect()
    };
    let drawn = bootstrap.draw(first.rows(), difference);
    let of = |at: usize| drawn.get(at).map_or(&[][..], Vec::as_slice);
    let measures = named.iter().zip(&of_second).enumerate().map(|(at, ((name, first), (_, second)))| {
        (*name, Difference { first: *first, second: *second, interval: bootstrap.interval(of(at)) })
    });
    let measures: BTreeMap<_, _> = measures.collect();
    let (decisive, of_first, more) = a.decisive();
    let (_, of_second, _) = b.decisive();
    let mcnemar_counts = first.right().zip(second.right()).map(|(a, b)| {
        let count = |one: bool| a.iter().zip(&b).filter(|(a, b)| a != b && **a == one).count();
        McNemar { only_first: count(true), only_second: count(false) }
    });
    let p = match mcnemar_counts {
        Some(McNemar { only_first, only_second }) => mcnemar(only_first, only_second),
        None => named.iter().position(|(name, _)| *name == decisive).map_or(1.0, |at| two_sided(of(at))),
    };
    let second_is_better = if more { of_second > of_first } else { of_second < of_first };
    Ok(Comparison { measures, mcnemar: mcnemar_counts, decisive, p, second_is_better })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { samples: 200, confidence: 0.9, seed: 3 };

    fn truth() -> Truth {
        let labels = ["no", "yes"].map(str::to_owned).into();
        Truth::Classes { labels, of: (0..40).map(|row| usize::from(row % 3 == 0)).collect() }
    }

    /// Right but for every `wrong`-th row.
    fn answers(wrong: usize) -> Vec<f64> {
        let sure = |row: usize| if row.is_multiple_of(3) != row.is_multiple_of(wrong) { 0.9 } else { 0.2 };
        (0..40).map(sure).collect()
    }

    #[test]
    fn intervals_hold_the_measures() {
        let (truth, answers) = (truth(), answers(7));
        let judged = Judged { truth: &truth, answers: &answers };
        let measures = judged.all().unwrap();
        let intervals = judged.intervals(&measures, &BOOTSTRAP);
        for (name, value) in measures.named() {
            let (interval, value) = (intervals[name], value.unwrap());
            assert!(interval.low <= value && value <= interval.high && interval.low < interval.high, "{name}: {value} {interval:?}");
        }
    }

    #[test]
    fn slices_are_values_or_quarters() {
        let (truth, answers) = (truth(), answers(7));
        let judged = Judged { truth: &truth, answers: &answers };
        let texts = Column::Texts((0..40).map(|row| if row < 10 { "a" } else { "" }.to_owned()).collect());
        let found = slices(&judged, "kind", &texts).unwrap();
        assert_eq!(found.iter().map(|s| (s.value.as_str(), s.rows)).collect::<Vec<_>>(), [("a", 10), ("missing", 30)]);
        // Rows 0 and 7 of the first ten are wrong.
        assert_eq!(found[0].measures["accuracy"], Some(0.8));
        let numbers = Column::Numbers((0..40).map(|row| row as f32).collect());
        let quarters: Vec<_> = slices(&judged, "n", &numbers).unwrap().into_iter().map(|s| (s.value, s.rows)).collect();
        assert_eq!(quarters, [("≤ 9", 10), ("9 to 19", 10), ("19 to 29", 10), ("29 to 39", 10)].map(|(v, n)| (v.to_owned(), n)));
        let few = Column::Numbers((0..40).map(|row| (row % 2) as f32).collect());
        assert_eq!(slices(&judged, "n", &few).unwrap().len(), 2);
        let many = Column::Texts((0..40).map(|row| format!("{row}")).chain((40..60).map(|row| format!("{row}"))).collect());
        assert!(slices(&judged, "id", &many).unwrap_err().0.contains("column `id` has 60 values"));
    }

    #[test]
    fn two_models_are_compared_row_by_row() {
        let (truth, worse, better) = (truth(), answers(2), answers(20));
        let (first, second) = (Judged { truth: &truth, answers: &worse }, Judged { truth: &truth, answers: &better });
        let found = compare(&first, &second, &BOOTSTRAP).unwrap();
        // Rows 0 and 20 are wrong in both; of the other even rows only the second is right.
        assert_eq!(found.mcnemar, Some(McNemar { only_first: 0, only_second: 18 }));
        assert!(found.second_is_better && found.p < 1e-4, "{found:?}");
        let accuracy = found.measures["accuracy"];
        assert_eq!((accuracy.first, accuracy.second), (Some(0.5), Some(0.95)));
        assert!(accuracy.interval.unwrap().low > 0.2);
        let same = compare(&first, &first, &BOOTSTRAP).unwrap();
        assert_eq!((same.p, same.second_is_better), (1.0, false));
        let values = Truth::Numbers((0..40).map(f64::from).collect());
        let near: Vec<f64> = (0..40).map(|row| f64::from(row) + 0.1).collect();
        let far: Vec<f64> = (0..40).map(|row| f64::from(row) + if row % 2 == 0 { 1.0 } else { -2.0 }).collect();
        let (first, second) = (Judged { truth: &values, answers: &far }, Judged { truth: &values, answers: &near });
        let found = compare(&first, &second, &BOOTSTRAP).unwrap();
        assert!(found.second_is_better && found.p < 0.02 && found.mcnemar.is_none() && found.decisive == "rmse", "{found:?}");
    }
}
