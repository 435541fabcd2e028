//! Preparation of inputs: fitted on the training rows, then a part of every graph, so that the served model takes raw rows.

mod date;
mod fit;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::data::{Column, Inputs};
use super::error::{Error, Result};
use crate::engine::{Appender, Attr, DType, Dim, Emit, Kind, Tensor, ValueId};

/// Whether all texts are dates that are seen to be so without being told.
pub(super) fn are_dates<'a>(mut texts: impl Iterator<Item = &'a str>) -> bool {
    let Some(first) = texts.next() else { return false };
    date::Format::of(first, None).is_some_and(|format| texts.all(|text| format.days(text).is_some()))
}

/// What is done about a missing number.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It is an error that names the row.
    #[default]
    Refuse,
    /// The row is left out of training; a served row gets the mean.
    Drop,
    /// The mean of the column.
    Mean,
    /// The median of the column.
    Median,
    /// This number.
    #[serde(untagged)]
    Constant(f32),
}

/// How numbers are brought to one size.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Left as they are.
    None,
    /// Less the mean, over the standard deviation.
    Standard,
    /// From 0 to 1 between the least and the greatest.
    MinMax,
}

/// How texts become numbers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Encode {
    /// A column of 0 and 1 for each; one that was not seen has none.
    OneHot,
    /// Their number in alphabetical order; one that was not seen is -1.
    Ordinal,
    /// Days, of dates. Where nothing is said, if every text is a date with the year in front or points between.
    Date,
}

/// What is done about a text that no training row has.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// In a row that says when to stop or judges it is an error that names the row; a served one is as `allow` has it.
    #[default]
    Refuse,
    /// It is none of the categories.
    Allow,
}

/// How a column is prepared; what is not said is as for all columns.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is done about missing numbers.
    pub missing: Option<Missing>,
    /// Whether a column says where a number was missing.
    pub indicator: Option<bool>,
    /// Quantiles beyond which numbers are brought back to them: `[0.01, 0.99]`.
    pub clip: Option<[f64; 2]>,
    /// Whether `ln(1 + x)` is taken, of negative numbers that of 0.
    pub log: Option<bool>,
    /// How numbers are scaled.
    pub scale: Option<Scale>,
    /// How texts are encoded.
    pub encode: Option<Encode>,
    /// The order of day, month and year in dates.
    pub date: Option<date::Order>,
    /// What is done about texts that no training row has.
    pub unknown: Option<Unknown>,
}

/// How all columns are prepared, and how single ones.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// What is done about missing numbers.
    pub missing: Option<Missing>,
    /// Whether a column says where a number was missing.
    pub indicator: Option<bool>,
    /// Quantiles beyond which numbers are brought back to them.
    pub clip: Option<[f64; 2]>,
    /// Whether `ln(1 + x)` is taken.
    pub log: Option<bool>,
    /// How numbers are scaled.
    pub scale: Option<Scale>,
    /// How texts are encoded.
    pub encode: Option<Encode>,
    /// The order of day, month and year in dates.
    pub date: Option<date::Order>,
    /// What is done about texts that no training row has.
    pub unknown: Option<Unknown>,
    /// Single columns, by name.
    #[serde(default)]
    pub columns: BTreeMap<String, Rule>,
}

impl Rules {
    fn of(&self, name: &str) -> Rule {
        let own = self.columns.get(name).cloned().unwrap_or_default();
        Rule {
            missing: own.missing.or(self.missing),
            indicator: own.indicator.or(self.indicator),
            clip: own.clip.or(self.clip),
            log: own.log.or(self.log),
            scale: own.scale.or(self.scale),
            encode: own.encode.or(self.encode),
            date: own.date.or(self.date),
            unknown: own.unknown.or(self.unknown),
        }
    }

    /// The columns that may hold numbers among texts, because they are said to be texts.
    pub fn texts(&self) -> Vec<&str> {
        self.columns.iter().filter(|(_, rule)| rule.encode.is_some()).map(|(name, _)| name.as_str()).collect()
    }

    /// The rows of a part that are used, by their number in it: all but those with a missing value in a column whose rule is to drop
    /// them. `name_of` is what a row of the part is called.
    ///
    /// # Errors
    /// A column that is named here and not there, or a row with a missing number where the rule is to refuse it.
    pub fn rows(&self, inputs: &Inputs, name_of: impl Fn(usize) -> String) -> Result<Vec<usize>> {
        let Inputs::Table(table) = inputs else { return Ok((0..inputs.rows()).collect()) };
        if let Some(name) = self.columns.keys().find(|name| !table.names.contains(name)) {
            return Err(Error(format!("`prepare.columns.{name}`: there is no such column")));
        }
        let rules: Vec<Missing> = table.names.iter().map(|name| self.of(name).missing.unwrap_or_default()).collect();
        let mut kept = Vec::with_capacity(table.rows());
        'rows: for row in 0..table.rows() {
            for ((name, column), rule) in table.names.iter().zip(&table.columns).zip(&rules) {
                let number = matches!(column, Column::Numbers(_));
                if !column.missing(row) {
                    continue;
                }
                match rule {
                    Missing::Refuse if number => {
                        let row = name_of(row);
                        return Err(Error(format!("{row}: `{name}` is missing; `prepare.missing` can say what to do about it")));
                    }
                    Missing::Drop => continue 'rows,
                    _ => {}
                }
            }
            kept.push(row);
        }
        Ok(kept)
    }
}

/// A column of numbers as it was fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    fill: f32,
    indicator: bool,
    clip: Option<[f32; 2]>,
    log: bool,
    shift: f32,
    factor: f32,
}

/// A column of texts as it was fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Texts {
    categories: Vec<String>,
    /// One column for each, or one number for all.
    hot: bool,
    refuse: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Fitted {
    Numbers(Numbers),
    /// Dates, as days since a day.
    Dates(date::Format, f64, Numbers),
    Texts(Texts),
}

impl Fitted {
    /// The numbers that it is, or becomes.
    fn numbers(&self) -> Option<&Numbers> {
        match self {
            Self::Numbers(numbers) | Self::Dates(_, _, numbers) => Some(numbers),
            Self::Texts(_) => None,
        }
    }
}

/// A preparation, fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// The columns of a table; of an array the one rule for all of it.
    columns: Vec<(String, Fitted)>,
    /// The shape of a row of an array.
    array: Option<Vec<usize>>,
}

impl Preparation {
    /// The shape of a prepared row.
    pub fn shape(&self) -> Vec<usize> {
        if let Some(shape) = &self.array {
            return shape.clone();
        }
        let width = |(_, fitted): &(String, Fitted)| match fitted {
            Fitted::Numbers(numbers) | Fitted::Dates(_, _, numbers) => 1 + usize::from(numbers.indicator),
            Fitted::Texts(texts) if texts.hot => texts.categories.len(),
            Fitted::Texts(_) => 1,
        };
        vec![self.columns.iter().map(width).sum()]
    }

    /// What a number becomes that stands for nothing, such as a pixel behind the edge of an image.
    pub fn zero(&self) -> f32 {
        match self.columns.first() {
            Some((_, Fitted::Numbers(numbers))) => (0.0 - numbers.shift) * numbers.factor,
            _ => 0.0,
        }
    }

    /// Adds the raw inputs to the graph, the first named `name` if it is the only one, and emits the prepared rows.
    ///
    /// # Errors
    /// If an operator does not take its operands.
    pub fn emit(&self, emit: &mut Appender<'_>, name: &str) -> Result<ValueId> {
        let mut input = |name: &str, dtype, dims: Vec<Dim>| {
            let id = emit.graph.add_value(name, Some(Kind::Tensor(dtype)), Some([vec![Dim::Free("batch".into())], dims].concat()));
            emit.graph.inputs.push(id);
            id
        };
        if let Some(shape) = &self.array {
            let x = input(name, DType::F32, shape.iter().map(|&n| Dim::Fixed(n)).collect());
            return Ok(self.numbers(emit, x)?.0);
        }
        // Columns of numbers alone are one input.
        if self.columns.iter().all(|(_, fitted)| matches!(fitted, Fitted::Numbers(_))) {
            let x = input(name, DType::F32, vec![Dim::Fixed(self.columns.len())]);
            let (x, indicators) = self.numbers(emit, x)?;
            return joined(emit, [vec![x], indicators].concat());
        }
        let mut parts = Vec::new();
        let mut texts = Vec::new();
        for (name, fitted) in &self.columns {
            match fitted {
                Fitted::Numbers(_) => parts.push((input(name, DType::F32, vec![Dim::Fixed(1)]), None)),
                Fitted::Dates(format, origin, _) => {
                    parts.push((input(name, DType::String, vec![Dim::Fixed(1)]), Some((*format, *origin))));
                }
                Fitted::Texts(fitted) => texts.push((input(name, DType::String, vec![Dim::Fixed(1)]), fitted)),
            }
        }
        let mut ready = Vec::new();
        if !parts.is_empty() {
            let number = |emit: &mut Appender<'_>, (x, date): (ValueId, Option<(date::Format, f64)>)| match date {
                None => Ok::<_, Error>(x),
                Some((format, origin)) => Ok(format.emit(emit, x, origin)?),
            };
            let parts = parts.into_iter().map(|part| number(emit, part)).collect::<Result<_>>()?;
            let x = joined(emit, parts)?;
            let (x, indicators) = self.numbers(emit, x)?;
            ready = [vec![x], indicators].concat();
        }
        for (x, fitted) in texts {
            ready.push(fitted.emit(emit, x)?);
        }
        joined(emit, ready)
    }

    /// All columns of numbers at once, and the columns that say what was missing.
    fn numbers(&self, emit: &mut dyn Emit, x: ValueId) -> Result<(ValueId, Vec<ValueId>)> {
        let all: Vec<&Numbers> = self.columns.iter().filter_map(|(_, fitted)| fitted.numbers()).collect();
        let row =
            |emit: &mut dyn Emit, f: &dyn Fn(&Numbers) -> f32| emit.constant(Tensor::vector(all.iter().map(|n| f(n)).collect::<Vec<_>>()));
        let mut y = x;
        // Pixels and samples are not missing; cells of a table can be.
        if self.array.is_none() {
            let (missing, fill) = (emit.op("IsNaN", &[x])?, row(emit, &|n| n.fill));
            y = emit.op("Where", &[missing, fill, x])?;
        }
        let mut indicators = Vec::new();
        let marked: Vec<i64> = all.iter().enumerate().filter(|(_, n)| n.indicator).map(|(i, _)| i as i64).collect();
        if !marked.is_empty() {
            let missing = emit.op("IsNaN", &[x])?;
            let (truth, at) = (emit.with("Cast", &[("to", Attr::Int(DType::F32.onnx().into()))], &[missing])?, emit.ints(&marked));
            indicators.push(emit.with("Gather", &[("axis", Attr::Int(1))], &[truth, at])?);
        }
        if all.iter().any(|n| n.clip.is_some()) {
            let (low, high) =
                (row(emit, &|n| n.clip.map_or(f32::NEG_INFINITY, |c| c[0])), row(emit, &|n| n.clip.map_or(f32::INFINITY, |c| c[1])));
            let above = emit.op("Max", &[y, low])?;
            y = emit.op("Min", &[above, high])?;
        }
        if all.iter().any(|n| n.log) {
            let logged = emit.constant(Tensor::vector(all.iter().map(|n| n.log).collect::<Vec<_>>()));
            let (zero, one) = (emit.number(y, 0.0)?, emit.number(y, 1.0)?);
            let positive = emit.op("Max", &[y, zero])?;
            let more = emit.op("Add", &[positive, one])?;
            let log = emit.op("Log", &[more])?;
            y = emit.op("Where", &[logged, log, y])?;
        }
        if all.iter().any(|n| n.shift != 0.0) {
            let shift = row(emit, &|n| n.shift);
            y = emit.op("Sub", &[y, shift])?;
        }
        if all.iter().any(|n| n.factor != 1.0) {
            let factor = row(emit, &|n| n.factor);
            y = emit.op("Mul", &[y, factor])?;
        }
        Ok((y, indicators))
    }

    /// Each column with what is done about it.
    pub fn columns(&self) -> Vec<(&str, String)> {
        let numbers = |n: &Numbers| {
            let mut steps = Vec::new();
            if self.array.is_none() {
                steps.push(format!("missing → {}", n.fill));
            }
            if n.indicator {
                steps.push("a column for what was missing".to_owned());
            }
            if let Some([low, high]) = n.clip {
                steps.push(format!("clipped to {low}..{high}"));
            }
            if n.log {
                steps.push("ln(1 + x)".to_owned());
            }
            if n.shift != 0.0 || n.factor != 1.0 {
                steps.push(format!("less {}, times {}", n.shift, n.factor));
            }
            steps.join(", ")
        };
        let line = |(_, fitted): &(String, Fitted)| match fitted {
            Fitted::Numbers(n) => format!("numbers, {}", numbers(n)),
            Fitted::Dates(_, origin, n) => format!("dates, days since day {origin} of 1970, {}", numbers(n)),
            Fitted::Texts(t) if t.hot => format!("texts, a column for each of {} categories", t.categories.len()),
            Fitted::Texts(t) => format!("texts, a number for each of {} categories", t.categories.len()),
        };
        self.columns.iter().map(|column| (column.0.as_str(), line(column).trim_end_matches(", ").to_owned())).collect()
    }

    /// [`Preparation::columns`] as lines.
    pub fn report(&self) -> String {
        self.columns().iter().map(|(name, what)| format!("  {name}: {what}\n")).collect()
    }

    /// Refuses rows with a text that no training row had, where the rule is to. Of `inputs` those at `picked` are looked at; `name_of`
    /// says what one is called.
    ///
    /// # Errors
    /// The row and the column.
    pub fn known(&self, inputs: &Inputs, picked: &[usize], name_of: impl Fn(usize) -> String) -> Result<()> {
        let Inputs::Table(table) = inputs else { return Ok(()) };
        for ((name, fitted), column) in self.columns.iter().zip(&table.columns) {
            let (Fitted::Texts(texts), Column::Texts(values)) = (fitted, column) else { continue };
            let unknown = |&&row: &&usize| texts.categories.binary_search(&values[row]).is_err();
            if let Some(&row) = picked.iter().find(|row| texts.refuse && unknown(row)) {
                return Err(Error(format!(
                    "{}: `{name}` is {:?}, which no training row has; `prepare.columns.{name}.unknown = \"allow\"` takes it as none of \
                     the categories",
                    name_of(row),
                    values[row]
                )));
            }
        }
        Ok(())
    }
}

fn joined(emit: &mut dyn Emit, parts: Vec<ValueId>) -> Result<ValueId> {
    match parts[..] {
        [only] => Ok(only),
        _ => Ok(emit.with("Concat", &[("axis", Attr::Int(1))], &parts)?),
    }
}

impl Texts {
    fn emit(&self, emit: &mut dyn Emit, x: ValueId) -> Result<ValueId> {
        let known = emit.constant(Tensor::new(&[1, self.categories.len()], self.categories.clone()).ok_or("no category")?);
        let same = emit.op("Equal", &[x, known])?;
        let hot = emit.with("Cast", &[("to", Attr::Int(DType::F32.onnx().into()))], &[same])?;
        if self.hot {
            return Ok(hot);
        }
        // Counted from 1 and moved by one, so that what is unknown is -1.
        let numbers: Vec<f32> = (1..=self.categories.len()).map(|n| n as f32).collect();
        let numbers = emit.constant(Tensor::new(&[self.categories.len(), 1], numbers).ok_or("no category")?);
        let (counted, one) = (emit.op("MatMul", &[hot, numbers])?, emit.number(hot, 1.0)?);
        Ok(emit.op("Sub", &[counted, one])?)
    }
}
