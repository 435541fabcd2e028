//! Preparation of inputs: fitted on the training rows, then a part of every graph, so that the served model takes raw rows.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::data::{Column, Inputs, Table};
use super::error::{Error, Result};
use crate::engine::{Appender, Attr, DType, Dim, Emit, Kind, Tensor, ValueId};

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
        }
    }

    /// The rows that are used: all but those with a missing number in a column whose rule is to drop them.
    ///
    /// # Errors
    /// A column that is named here and not there, or a row with a missing value where the rule is to refuse it.
    pub fn rows(&self, inputs: &Inputs) -> Result<Vec<usize>> {
        let Inputs::Table(table) = inputs else { return Ok((0..inputs.rows()).collect()) };
        if let Some(name) = self.columns.keys().find(|name| !table.names.contains(name)) {
            return Err(Error(format!("`prepare.columns.{name}`: there is no such column")));
        }
        let mut kept = Vec::with_capacity(table.rows());
        'rows: for row in 0..table.rows() {
            for (name, column) in table.names.iter().zip(&table.columns) {
                if !matches!(column, Column::Numbers(_)) || !column.missing(row) {
                    continue;
                }
                match self.of(name).missing.unwrap_or_default() {
                    Missing::Refuse => {
                        return Err(Error(format!("row {}: `{name}` is missing; `prepare.missing` can say what to do about it", row + 1)));
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
    encode: Encode,
}

#[derive(Clone, Debug, PartialEq)]
enum Fitted {
    Numbers(Numbers),
    Texts(Texts),
}

/// A preparation, fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    /// The columns of a table; of an array the one rule for all of it.
    columns: Vec<(String, Fitted)>,
    /// The shape of a row of an array.
    array: Option<Vec<usize>>,
    together: bool,
}

/// A quantile of sorted values, between two of them in proportion.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

fn fit_numbers(values: &[f32], rule: &Rule, default: Scale, name: &str) -> Result<Numbers> {
    let mut known: Vec<f64> = values.iter().filter(|v| !v.is_nan()).map(|&v| f64::from(v)).collect();
    if known.is_empty() {
        return Err(Error(format!("column `{name}` has no value in any training row")));
    }
    known.sort_unstable_by(f64::total_cmp);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let fill = match rule.missing.unwrap_or_default() {
        Missing::Constant(value) => value,
        Missing::Median => quantile(&known, 0.5) as f32,
        _ => mean(&known) as f32,
    };
    let clip = rule.clip.map(|[low, high]| [quantile(&known, low) as f32, quantile(&known, high) as f32]);
    if let Some([low, high]) = rule.clip
        && !(0.0..high).contains(&low)
    {
        return Err(Error(format!("column `{name}`: `clip` is [{low}, {high}]; two rising quantiles between 0 and 1 are wanted")));
    }
    let log = rule.log.unwrap_or(false);
    // The scale is that of the training rows as they come to it.
    let through = |v: f32| {
        let v = if v.is_nan() { fill } else { v };
        let v = clip.map_or(v, |[low, high]| v.clamp(low, high));
        f64::from(if log { v.max(0.0).ln_1p() } else { v })
    };
    let ready: Vec<f64> = values.iter().map(|&v| through(v)).collect();
    let (shift, size) = match rule.scale.unwrap_or(default) {
        Scale::None => (0.0, 1.0),
        Scale::Standard => {
            let mean = mean(&ready);
            (mean, (ready.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / ready.len() as f64).sqrt())
        }
        Scale::MinMax => {
            let (least, greatest) = ready.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
            (least, greatest - least)
        }
    };
    // A column of one value says nothing; it becomes zeros.
    let factor = if size > 0.0 { 1.0 / size } else { 1.0 };
    Ok(Numbers { fill, indicator: rule.indicator.unwrap_or(false), clip, log, shift: shift as f32, factor: factor as f32 })
}

impl Preparation {
    /// Fits to training rows. Tables are standardised where nothing else is said, arrays left as they are.
    ///
    /// # Errors
    /// The column that cannot be fitted, or a rule that does not fit it.
    pub fn fit(inputs: &Inputs, rules: &Rules) -> Result<Self> {
        match inputs {
            Inputs::Array { name, shape, values } => {
                let rule = rules.of(name);
                if *rules != (Rules { scale: rules.scale, ..Rules::default() }) {
                    return Err("an array takes `scale` of the preparation only".into());
                }
                let fitted = Fitted::Numbers(fit_numbers(values, &rule, Scale::None, name)?);
                Ok(Self { columns: vec![(name.clone(), fitted)], array: Some(shape.clone()), together: true })
            }
            Inputs::Table(Table { names, columns }) => {
                let fit = |(name, column): (&String, &Column)| {
                    let rule = rules.of(name);
                    let fitted = match column {
                        Column::Numbers(values) => Fitted::Numbers(fit_numbers(values, &rule, Scale::Standard, name)?),
                        Column::Texts(values) => {
                            let mut categories = values.clone();
                            categories.sort_unstable();
                            categories.dedup();
                            Fitted::Texts(Texts { categories, encode: rule.encode.unwrap_or(Encode::OneHot) })
                        }
                    };
                    Ok((name.clone(), fitted))
                };
                let columns = names.iter().zip(columns).map(fit).collect::<Result<_>>()?;
                Ok(Self { columns, array: None, together: inputs.numbers_only() })
            }
        }
    }

    /// The shape of a prepared row.
    pub fn shape(&self) -> Vec<usize> {
        if let Some(shape) = &self.array {
            return shape.clone();
        }
        let width = |(_, fitted): &(String, Fitted)| match fitted {
            Fitted::Numbers(numbers) => 1 + usize::from(numbers.indicator),
            Fitted::Texts(texts) if texts.encode == Encode::OneHot => texts.categories.len(),
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
        if self.together {
            let x = input(name, DType::F32, vec![Dim::Fixed(self.columns.len())]);
            let (x, indicators) = self.numbers(emit, x)?;
            return joined(emit, [vec![x], indicators].concat());
        }
        let mut parts = Vec::new();
        let mut texts = Vec::new();
        for (name, fitted) in &self.columns {
            match fitted {
                Fitted::Numbers(_) => parts.push(input(name, DType::F32, vec![Dim::Fixed(1)])),
                Fitted::Texts(fitted) => texts.push((input(name, DType::String, vec![Dim::Fixed(1)]), fitted)),
            }
        }
        let mut ready = Vec::new();
        if !parts.is_empty() {
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
        let all: Vec<&Numbers> = self.columns.iter().filter_map(|(_, f)| if let Fitted::Numbers(n) = f { Some(n) } else { None }).collect();
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

    /// The columns as text: what was found of each and what is done.
    pub fn report(&self) -> String {
        let line = |(name, fitted): &(String, Fitted)| match fitted {
            Fitted::Numbers(n) => {
                let clip = n.clip.map_or(String::new(), |[low, high]| format!(", clipped to {low}..{high}"));
                let log = if n.log { ", ln(1 + x)" } else { "" };
                format!("  {name}: numbers, missing → {}{clip}{log}, less {}, times {}\n", n.fill, n.shift, n.factor)
            }
            Fitted::Texts(t) => format!("  {name}: {} categories, {:?}\n", t.categories.len(), t.encode),
        };
        self.columns.iter().map(line).collect()
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
        if self.encode == Encode::OneHot {
            return Ok(hot);
        }
        // Counted from 1 and moved by one, so that what is unknown is -1.
        let numbers: Vec<f32> = (1..=self.categories.len()).map(|n| n as f32).collect();
        let numbers = emit.constant(Tensor::new(&[self.categories.len(), 1], numbers).ok_or("no category")?);
        let (counted, one) = (emit.op("MatMul", &[hot, numbers])?, emit.number(hot, 1.0)?);
        Ok(emit.op("Sub", &[counted, one])?)
    }
}
