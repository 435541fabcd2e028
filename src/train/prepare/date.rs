//! Dates as days since 1970 began: read here to fit, and by operators of the graph to serve.

use serde::Deserialize;

use crate::engine::{Attr, DType, Emit, OpError, Tensor, ValueId};

/// The order of day, month and year.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// 2026-11-28
    Ymd,
    /// 28.11.2026
    Dmy,
    /// 11/28/2026
    Mdy,
}

impl Order {
    /// Where year, month and day stand.
    fn places(self) -> [usize; 3] {
        match self {
            Self::Ymd => [0, 1, 2],
            Self::Dmy => [2, 1, 0],
            Self::Mdy => [2, 0, 1],
        }
    }
}

/// How a column writes dates: all its values alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    order: Order,
    /// Between the parts of the date.
    between: char,
    time: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Time {
    /// Before it.
    before: char,
    /// 2: hours and minutes; 3: seconds too, whose fraction counts.
    parts: usize,
    /// Whether a `Z` follows.
    zulu: bool,
}

/// Days from 1970-01-01 to a date of the Gregorian calendar: `days_from_civil` by H. Hinnant,
/// <https://howardhinnant.github.io/date_algorithms.html>.
fn days([year, month, day]: [f64; 3]) -> f64 {
    // 1 from March on: years that begin in March end with the day that leap years add.
    let late = ((month + 9.0) / 12.0).floor();
    let (year, month) = (year - 1.0 + late, month + 9.0 - 12.0 * late);
    let era = (year / 400.0).floor();
    let of_era = year - 400.0 * era;
    let of_year = ((153.0 * month + 2.0) / 5.0).floor() + day - 1.0;
    era * 146_097.0 + of_era * 365.0 + (of_era / 4.0).floor() - (of_era / 100.0).floor() + of_year - 719_468.0
}

fn digits(text: &str, most: usize) -> Option<f64> {
    if text.is_empty() || text.len() > most || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

impl Format {
    /// The format of a text; the order where it is not said is that of a year in front, or of points between the parts.
    pub(super) fn of(text: &str, order: Option<Order>) -> Option<Self> {
        let before = text.find(['T', ' ']).map(|at| (at, text.as_bytes()[at] as char));
        let (date, time) = before.map_or((text, None), |(at, before)| (&text[..at], Some((before, &text[at + 1..]))));
        let between = *['-', '.', '/'].iter().find(|&&c| date.contains(c))?;
        let year_first = date.find(between) == Some(4);
        let order = match order {
            Some(order) => order,
            None if year_first => Order::Ymd,
            None if between == '.' => Order::Dmy,
            None => return None,
        };
        let time = match time {
            None => None,
            Some((before, rest)) => {
                let zulu = rest.ends_with('Z');
                Some(Time { before, parts: rest.trim_end_matches('Z').split(':').count(), zulu })
            }
        };
        let format = Self { order, between, time };
        format.days(text).map(|_| format)
    }

    /// The days of a text that is written so.
    pub(super) fn days(self, text: &str) -> Option<f64> {
        let (date, time) = match self.time {
            None => (text, None),
            Some(time) => {
                let (date, rest) = text.split_once(time.before)?;
                let rest = if time.zulu { rest.strip_suffix('Z')? } else { rest };
                (date, Some((time, rest)))
            }
        };
        let parts: Vec<&str> = date.split(self.between).collect();
        let [a, b, c]: [&str; 3] = parts.try_into().ok()?;
        let parts = [a, b, c];
        let [year, month, day] = self.order.places().map(|at| parts[at]);
        if year.len() != 4 {
            return None;
        }
        let [year, month, day] = [digits(year, 4)?, digits(month, 2)?, digits(day, 2)?];
        if !(1.0..=12.0).contains(&month) || !(1.0..=31.0).contains(&day) {
            return None;
        }
        let mut found = days([year, month, day]);
        if let Some((time, rest)) = time {
            let parts: Vec<&str> = rest.split(':').collect();
            if parts.len() != time.parts || !(2..=3).contains(&time.parts) {
                return None;
            }
            let (hours, minutes) = (digits(parts[0], 2)?, digits(parts[1], 2)?);
            let seconds = match parts.get(2) {
                None => 0.0,
                Some(text) => text.parse::<f64>().ok().filter(|s| s.is_finite() && text.as_bytes()[0].is_ascii_digit())?,
            };
            if hours >= 24.0 || minutes >= 60.0 || seconds >= 61.0 {
                return None;
            }
            found = found + hours / 24.0 + minutes / 1440.0 + seconds / 86_400.0;
        }
        Some(found)
    }

    /// A text of this format, to stand where one is missing.
    fn sample(self) -> String {
        let mut parts = [""; 3];
        let [year, month, day] = self.order.places();
        (parts[year], parts[month], parts[day]) = ("1970", "01", "01");
        let mut text = parts.join(&self.between.to_string());
        if let Some(time) = self.time {
            text.push(time.before);
            text.push_str(&["00"; 3][..time.parts].join(":"));
            text.push_str(if time.zulu { "Z" } else { "" });
        }
        text
    }

    /// Emits the days since `origin`, a day, of texts `[rows, 1]`; NaN where one is empty.
    ///
    /// # Errors
    /// If `x` is not of texts.
    pub(super) fn emit(self, emit: &mut dyn Emit, x: ValueId, origin: f64) -> Result<ValueId, OpError> {
        let (nothing, sample) = (text(emit, ""), text(emit, &self.sample()));
        let missing = emit.op("Equal", &[x, nothing])?;
        let x = emit.op("Where", &[missing, sample, x])?;
        let (date, time) = match self.time {
            None => (x, None),
            Some(time) => {
                let parts = split(emit, x, time.before)?;
                let mut rest = part(emit, parts, 1)?;
                if time.zulu {
                    let parts = split(emit, rest, 'Z')?;
                    rest = part(emit, parts, 0)?;
                }
                (part(emit, parts, 0)?, Some((time, rest)))
            }
        };
        let numbers = numbers(emit, date, self.between)?;
        let [year, month, day] = self.order.places();
        let parts = [part(emit, numbers, year)?, part(emit, numbers, month)?, part(emit, numbers, day)?];
        let mut found = emit_days(emit, parts)?;
        if let Some((time, rest)) = time {
            let parts = self::numbers(emit, rest, ':')?;
            for (at, of_day) in [24.0, 1440.0, 86_400.0].into_iter().enumerate().take(time.parts) {
                let value = part(emit, parts, at)?;
                let of_day = emit.number(value, of_day)?;
                let share = emit.op("Div", &[value, of_day])?;
                found = emit.op("Add", &[found, share])?;
            }
        }
        let origin = emit.number(found, origin)?;
        let since = emit.op("Sub", &[found, origin])?;
        let since = emit.with("Cast", &[("to", Attr::Int(DType::F32.onnx().into()))], &[since])?;
        let nan = emit.constant(Tensor::scalar(f32::NAN));
        emit.op("Where", &[missing, nan, since])
    }
}

fn text(emit: &mut dyn Emit, text: &str) -> ValueId {
    emit.constant(Tensor::scalar(text.to_owned()))
}

fn split(emit: &mut dyn Emit, x: ValueId, delimiter: char) -> Result<ValueId, OpError> {
    let attrs = [("delimiter", Attr::String(delimiter.to_string()))];
    Ok(emit.call("StringSplit", &attrs, &[Some(x)], 2)?[0])
}

fn part(emit: &mut dyn Emit, x: ValueId, at: usize) -> Result<ValueId, OpError> {
    let at = emit.constant(Tensor::scalar(at as i64));
    emit.with("Gather", &[("axis", Attr::Int(-1))], &[x, at])
}

fn numbers(emit: &mut dyn Emit, x: ValueId, delimiter: char) -> Result<ValueId, OpError> {
    let parts = split(emit, x, delimiter)?;
    emit.with("Cast", &[("to", Attr::Int(DType::F64.onnx().into()))], &[parts])
}

/// [`days`] by operators.
fn emit_days(emit: &mut dyn Emit, [year, month, day]: [ValueId; 3]) -> Result<ValueId, OpError> {
    let mut calculate = |op: &str, a: ValueId, b: f64| {
        let b = emit.number(a, b)?;
        emit.op(op, &[a, b])
    };
    let month = calculate("Add", month, 9.0)?;
    let late = calculate("Div", month, 12.0)?;
    let year = calculate("Sub", year, 1.0)?;
    let day = calculate("Sub", day, 719_469.0)?;
    let late = emit.op("Floor", &[late])?;
    let year = emit.op("Add", &[year, late])?;
    let twelve = emit.number(late, 12.0)?;
    let months = emit.op("Mul", &[late, twelve])?;
    let month = emit.op("Sub", &[month, months])?;
    let floor = |emit: &mut dyn Emit, x: ValueId, times: f64, plus: f64, over: f64| {
        let (times, plus, over) = (emit.number(x, times)?, emit.number(x, plus)?, emit.number(x, over)?);
        let x = emit.op("Mul", &[x, times])?;
        let x = emit.op("Add", &[x, plus])?;
        let x = emit.op("Div", &[x, over])?;
        emit.op("Floor", &[x])
    };
    let era = floor(emit, year, 1.0, 0.0, 400.0)?;
    let (size, length) = (emit.number(era, 400.0)?, emit.number(era, 146_097.0)?);
    let eras = emit.op("Mul", &[era, size])?;
    let of_era = emit.op("Sub", &[year, eras])?;
    let of_year = floor(emit, month, 153.0, 2.0, 5.0)?;
    let leap = floor(emit, of_era, 1.0, 0.0, 4.0)?;
    let century = floor(emit, of_era, 1.0, 0.0, 100.0)?;
    let year_days = emit.number(of_era, 365.0)?;
    let (eras, years) = (emit.op("Mul", &[era, length])?, emit.op("Mul", &[of_era, year_days])?);
    let mut found = emit.op("Sub", &[day, century])?;
    for more in [eras, years, leap, of_year] {
        found = emit.op("Add", &[found, more])?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Appender, Dim, Graph, Kind, LoadOptions, Loaded, Metadata, Model, Session, Threads};

    #[test]
    fn formats_are_seen() {
        for (text, order, days) in [
            ("1970-01-01", None, Some(0.0)),
            ("2000-03-01", None, Some(11_017.0)),
            ("1969-12-31", None, Some(-1.0)),
            ("2024/02/29", None, Some(19_782.0)),
            ("28.11.2026", None, Some(20_785.0)),
            ("11/28/2026", Some(Order::Mdy), Some(20_785.0)),
            ("1970-01-02T12:00", None, Some(1.5)),
            ("1970-01-02 06:00:00.5Z", None, Some(1.25 + 0.5 / 86_400.0)),
            ("11/28/2026", None, None),
            ("2024-13-01", None, None),
            ("2024-1", None, None),
            ("1970-01-02 25:00", None, None),
            ("a-b-c", None, None),
            ("", None, None),
        ] {
            let found = Format::of(text, order).and_then(|format| format.days(text));
            assert_eq!(found, days, "{text}");
        }
    }

    /// The graph reads dates as this file does, leap years and the ends of centuries included.
    #[test]
    fn the_graph_reads_the_same() {
        for (texts, order) in [
            (&["1600-02-29", "1899-12-31", "1900-03-01", "1970-01-01", "2000-02-29", "2026-11-28", "", "2100-01-01"][..], None),
            (&["31.12.1999", "01.03.2004"], None),
            (&["12/31/1999", "2/9/2004"], Some(Order::Mdy)),
            (&["2026-11-28 14:30", "1970-01-01 00:00"], None),
            (&["2026-11-28T14:30:59.25Z", "", "1970-01-01T23:59:59Z"], None),
        ] {
            let format = Format::of(texts[0], order).unwrap();
            let mut graph = Graph::default();
            let dims = vec![Dim::Free("batch".into()), Dim::Fixed(1)];
            let x = graph.add_value("x", Some(Kind::Tensor(DType::String)), Some(dims));
            graph.inputs.push(x);
            let y = format.emit(&mut Appender::new(&mut graph, ""), x, 100.0).unwrap();
            graph.outputs.push(y);
            let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions::default()).unwrap();
            let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
            let given = Tensor::new(&[texts.len(), 1], texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>()).unwrap();
            let found = session.run(&[given]).unwrap();
            let found = found[0].tensor().unwrap().slice::<f32>().unwrap().to_vec();
            for (text, found) in texts.iter().zip(found) {
                let want = format.days(text).map_or(f32::NAN, |days| (days - 100.0) as f32);
                assert_eq!(found.to_bits(), want.to_bits(), "{text}: {found} is not {want}");
            }
        }
    }
}
