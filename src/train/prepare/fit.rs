//! Fitting a preparation to training rows that pass by in parts: once for what is there, once more for the scale.

use super::date::{Format, Order};
use super::{Encode, Fitted, Missing, Numbers, Preparation, Rule, Rules, Scale, Texts, Unknown};
use crate::train::data::gather::{self, CATEGORIES_MAX};
use crate::train::data::{Column, Inputs};
use crate::train::error::{Error, Result};

/// Rows that pass by: calls what it is given with each part and the numbers of its rows that count.
pub(super) type Passing<'a> = &'a dyn Fn(&mut dyn FnMut(&Inputs, &[usize]) -> Result<()>) -> Result<()>;

/// What the first pass finds of a column.
enum Seen {
    Numbers(gather::Numbers),
    /// Texts; and as dates, as long as each is one.
    Texts(gather::Texts, Option<Dates>),
}

struct Dates {
    format: Option<Format>,
    order: Option<Order>,
    /// The day of the first, from which all are counted.
    origin: f64,
    days: gather::Numbers,
    /// The first text that is no date.
    broken: Option<String>,
}

impl Dates {
    fn add(&mut self, text: &str) {
        if text.is_empty() || self.broken.is_some() {
            return;
        }
        let format = self.format.or_else(|| Format::of(text, self.order));
        match format.and_then(|format| format.days(text)) {
            Some(days) => {
                if self.format.is_none() {
                    (self.format, self.origin) = (format, days.floor());
                }
                self.days.add((days - self.origin) as f32);
            }
            None => self.broken = Some(text.to_owned()),
        }
    }
}

impl Seen {
    fn of(column: &Column, rule: &Rule) -> Self {
        let dates = || Dates { format: None, order: rule.date, origin: 0.0, days: gather::Numbers::default(), broken: None };
        match column {
            Column::Numbers(_) => Self::Numbers(gather::Numbers::default()),
            Column::Texts(_) if rule.encode.is_some_and(|encode| encode != Encode::Date) => Self::Texts(gather::Texts::default(), None),
            Column::Texts(_) => Self::Texts(gather::Texts::default(), Some(dates())),
        }
    }

    fn add(&mut self, column: &Column, rows: &[usize]) {
        match (self, column) {
            (Self::Numbers(seen), Column::Numbers(values)) => rows.iter().for_each(|&row| seen.add(values[row])),
            (Self::Texts(seen, dates), Column::Texts(values)) => {
                for &row in rows {
                    seen.add(&values[row]);
                    dates.iter_mut().for_each(|dates| dates.add(&values[row]));
                }
            }
            _ => {}
        }
    }
}

/// What a column becomes before it is scaled, and what it is then.
struct Scaling {
    scale: Scale,
    seen: gather::Numbers,
}

impl Preparation {
    /// Fits to training rows. Tables are standardised where nothing else is said, arrays left as they are.
    ///
    /// # Errors
    /// The column that cannot be fitted, or a rule that does not fit it.
    pub fn fit(passing: Passing<'_>, rules: &Rules) -> Result<Self> {
        let mut first: Option<Vec<(String, Rule, Seen)>> = None;
        let mut shape_of_array: Option<(String, Vec<usize>)> = None;
        passing(&mut |inputs, rows| {
            match inputs {
                Inputs::Array { name, shape, .. } => shape_of_array = Some((name.clone(), shape.clone())),
                Inputs::Table(table) => {
                    let columns = || table.names.iter().zip(&table.columns);
                    let seen = first.get_or_insert_with(|| {
                        columns().map(|(name, column)| (name.clone(), rules.of(name), Seen::of(column, &rules.of(name)))).collect()
                    });
                    for ((_, column), (_, _, seen)) in columns().zip(seen) {
                        seen.add(column, rows);
                    }
                }
            }
            Ok(())
        })?;
        if let Some((name, shape)) = shape_of_array {
            return array(passing, rules, name, shape);
        }
        let seen = first.ok_or("no row is left to train with")?;
        let mut scalings: Vec<Option<Scaling>> = Vec::new();
        let mut columns = Vec::new();
        for (name, rule, seen) in seen {
            let (fitted, scaling) =
                column(&rule, rules.columns.get(&name), seen).map_err(|error| Error(format!("column `{name}`: {error}")))?;
            columns.push((name, fitted));
            scalings.push(scaling);
        }
        if scalings.iter().flatten().any(|scaling| scaling.scale != Scale::None) {
            passing(&mut |inputs, rows| {
                let Inputs::Table(table) = inputs else { return Ok(()) };
                for (((_, fitted), column), scaling) in columns.iter().zip(&table.columns).zip(&mut scalings) {
                    if let Some(scaling) = scaling {
                        scaling.add(fitted, column, rows);
                    }
                }
                Ok(())
            })?;
        }
        for ((_, fitted), scaling) in columns.iter_mut().zip(&scalings) {
            if let (Fitted::Numbers(numbers) | Fitted::Dates(_, _, numbers), Some(scaling)) = (fitted, scaling) {
                scaling.settle(numbers);
            }
        }
        Ok(Self { columns, array: None })
    }
}

impl Scaling {
    fn add(&mut self, fitted: &Fitted, column: &Column, rows: &[usize]) {
        match (fitted, column) {
            (Fitted::Numbers(numbers), Column::Numbers(values)) => {
                rows.iter().for_each(|&row| self.seen.add(numbers.unscaled(values[row])))
            }
            (Fitted::Dates(format, origin, numbers), Column::Texts(values)) => {
                let days = |text: &str| format.days(text).map_or(f32::NAN, |days| (days - origin) as f32);
                rows.iter().for_each(|&row| self.seen.add(numbers.unscaled(days(&values[row]))));
            }
            _ => {}
        }
    }

    fn settle(&self, numbers: &mut Numbers) {
        let (shift, size) = match self.scale {
            Scale::None => (0.0, 1.0),
            Scale::Standard => (self.seen.mean(), self.seen.deviation()),
            Scale::MinMax => (self.seen.least, self.seen.greatest - self.seen.least),
        };
        // A column of one value says nothing; it becomes zeros.
        (numbers.shift, numbers.factor) = (shift as f32, if size > 0.0 { 1.0 / size } else { 1.0 } as f32);
    }
}

impl Numbers {
    /// A value as it comes to the scale.
    fn unscaled(&self, value: f32) -> f32 {
        let v = if value.is_nan() { self.fill } else { value };
        let v = self.clip.map_or(v, |[low, high]| v.clamp(low, high));
        if self.log { f64::from(v.max(0.0)).ln_1p() as f32 } else { v }
    }

    fn seen(mut seen: gather::Numbers, rule: &Rule) -> Result<Self> {
        if seen.count == 0 {
            return Err("it has no value in any training row".into());
        }
        let fill = match rule.missing.unwrap_or_default() {
            Missing::Constant(value) => value,
            Missing::Median => seen.quantile(0.5) as f32,
            _ => seen.mean() as f32,
        };
        if let Some([low, high]) = rule.clip
            && !((0.0..high).contains(&low) && high <= 1.0)
        {
            return Err(Error(format!("`clip` is [{low}, {high}]; two rising quantiles between 0 and 1 are wanted")));
        }
        let clip = rule.clip.map(|[low, high]| [seen.quantile(low) as f32, seen.quantile(high) as f32]);
        let (indicator, log) = (rule.indicator.unwrap_or(false), rule.log.unwrap_or(false));
        Ok(Self { fill, indicator, clip, log, shift: 0.0, factor: 1.0 })
    }
}

/// A column as the first pass leaves it, and what the second is to find. `own` is what is said of it alone: what is said of all columns
/// holds for those of which it can be said.
fn column(rule: &Rule, own: Option<&Rule>, seen: Seen) -> Result<(Fitted, Option<Scaling>)> {
    let scaling = || Some(Scaling { scale: rule.scale.unwrap_or(Scale::Standard), seen: gather::Numbers::default() });
    let (texts, dates) = match seen {
        Seen::Numbers(_) if own.is_some_and(|own| own.encode.is_some()) => {
            return Err("`encode` is for texts; its values are numbers".into());
        }
        Seen::Numbers(seen) => return Ok((Fitted::Numbers(Numbers::seen(seen, rule)?), scaling())),
        Seen::Texts(texts, dates) => (texts, dates),
    };
    let declared = rule.encode == Some(Encode::Date) || own.is_some_and(|own| own.date.is_some());
    if let Some(Dates { format, origin, days, broken, .. }) = dates {
        match (format, broken) {
            (Some(format), None) => {
                if texts.missing > 0 && rule.missing.is_none_or(|missing| missing == Missing::Refuse) {
                    return Err(Error(format!("{} dates are missing; `prepare.missing` can say what to do about it", texts.missing)));
                }
                return Ok((Fitted::Dates(format, origin, Numbers::seen(days, rule)?), scaling()));
            }
            (_, Some(text)) if declared => return Err(Error(format!("{text:?} is no date as the others are"))),
            _ if declared => return Err("it has no date in any training row".into()),
            _ => {}
        }
    }
    if let Some(key) = own.and_then(only_of_numbers) {
        return Err(Error(format!("`{key}` is for numbers; its values are texts")));
    }
    if texts.more {
        return Err(Error(format!("it has more than {CATEGORIES_MAX} different texts; `data.features` can leave it out")));
    }
    let mut categories: Vec<String> = texts.counts.into_keys().collect();
    // A missing text is a category of its own.
    if texts.missing > 0 {
        categories.insert(0, String::new());
    }
    let hot = rule.encode.unwrap_or(Encode::OneHot) == Encode::OneHot;
    Ok((Fitted::Texts(Texts { categories, hot, refuse: rule.unknown.unwrap_or_default() == Unknown::Refuse }), None))
}

/// A key that says something of numbers.
fn only_of_numbers(rule: &Rule) -> Option<&'static str> {
    let fill = matches!(rule.missing, Some(Missing::Mean | Missing::Median | Missing::Constant(_)));
    let keys = [
        ("missing", fill),
        ("indicator", rule.indicator.is_some()),
        ("clip", rule.clip.is_some()),
        ("log", rule.log.is_some()),
        ("scale", rule.scale.is_some()),
    ];
    keys.into_iter().find(|(_, said)| *said).map(|(key, _)| key)
}

/// One rule for all elements.
fn array(passing: Passing<'_>, rules: &Rules, name: String, shape: Vec<usize>) -> Result<Preparation> {
    if *rules != (Rules { scale: rules.scale, ..Rules::default() }) {
        return Err("an array takes `scale` of the preparation only".into());
    }
    let mut scaling = Scaling { scale: rules.scale.unwrap_or(Scale::None), seen: gather::Numbers::default() };
    if scaling.scale != Scale::None {
        let size: usize = shape.iter().product();
        passing(&mut |inputs, rows| {
            let Inputs::Array { values, .. } = inputs else { return Ok(()) };
            rows.iter().for_each(|&row| values[row * size..(row + 1) * size].iter().for_each(|&v| scaling.seen.add(v)));
            Ok(())
        })?;
    }
    let mut numbers = Numbers { fill: 0.0, indicator: false, clip: None, log: false, shift: 0.0, factor: 1.0 };
    scaling.settle(&mut numbers);
    Ok(Preparation { columns: vec![(name, Fitted::Numbers(numbers))], array: Some(shape) })
}
