//! From explanations to the body of an answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::json::Writer;
use crate::config::NonFinite;
use crate::engine::Slice;
use crate::error::Error;
use crate::explain::{Explained, Explanation, heat_map};

/// How explanations are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Most contributions of an explanation, the greatest first; all if it is not said.
    pub top: Option<usize>,
    /// Whether images come with heat maps.
    pub heat_map: bool,
}

/// Encodes explanations: `{"explanations": [{…}], "background": {"source", "rows"}, "evaluations"}`.
///
/// Inputs with one value or a row of values in each row are told as contributions of features, the greatest first; inputs with
/// more dimensions as attributions in their shape, with a heat map if they are images.
///
/// # Errors
/// If a value is not finite and `non_finite` refuses that, or a heat map cannot be made.
pub fn encode(explained: &Explained, shown: Shown, non_finite: NonFinite) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::with_capacity(256 + 64 * explained.layout.len() * explained.explanations.len()).non_finite(non_finite);
    let mut outcome = Ok(());
    writer.raw("{\"explanations\":[").list(explained.explanations.iter().enumerate(), |writer, (row, explanation)| {
        let row = explanation.answer.map(|_| row);
        if let Err(error) = one(writer, explained, explanation, row, shown) {
            outcome = Err(error);
        }
    });
    outcome?;
    let (source, rows) = explained.background;
    writer.raw("],\"background\":{\"source\":").string(source.name()).raw(",\"rows\":").integer(whole(rows));
    writer.raw("},\"evaluations\":").integer(whole(explained.evaluations)).raw("}");
    writer.finish()
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// An explanation of `row`, or of all rows.
fn one(writer: &mut Writer, explained: &Explained, explanation: &Explanation, row: Option<usize>, shown: Shown) -> Result<(), Error> {
    let Explanation { method, target, answer, base_value, value, completeness_error, measured, .. } = explanation;
    writer.raw("{\"method\":").string(method.name());
    writer.raw(",\"target\":{\"output\":").string(&target.output);
    if row.is_some() {
        writer.raw(",\"index\":").integer(whole(target.index));
    }
    if let Some(label) = &target.label {
        writer.raw(",\"label\":").string(label);
    }
    writer.raw("}");
    let numbers = [("answer", answer), ("base_value", base_value), ("value", value), ("completeness_error", completeness_error)];
    for (name, number) in numbers {
        if let Some(number) = number {
            writer.raw(",").key(name).float(*number);
        }
    }
    if let Some(measured) = measured {
        writer.raw(",\"measure\":{\"name\":").string(measured.measure).raw(",\"value\":").float(measured.value).raw("}");
    }
    contributions(writer, explained, explanation, row, shown.top);
    arrays(writer, explained, explanation, shown.heat_map)?;
    writer.raw("}");
    Ok(())
}

/// The elements of inputs that are tables.
fn contributions(writer: &mut Writer, explained: &Explained, explanation: &Explanation, row: Option<usize>, top: Option<usize>) {
    let Explained { layout, instances, .. } = explained;
    let in_table = |element: usize| layout.inputs().any(|(_, shape, range)| shape.len() < 2 && range.contains(&element));
    let ranked: Vec<usize> = explanation.ranked().into_iter().filter(|&element| in_table(element)).collect();
    if ranked.is_empty() {
        return;
    }
    writer.raw(",\"contributions\":[").list(ranked.into_iter().take(top.unwrap_or(usize::MAX)), |writer, element| {
        writer.raw("{\"feature\":").string(&layout.name(element));
        if let Some(row) = row {
            match (layout.number(instances, row, element), layout.show(instances, row, element)) {
                (Some(number), _) => drop(writer.raw(",\"value\":").float(number)),
                (None, Some(text)) => drop(writer.raw(",\"value\":").string(&text)),
                (None, None) => {}
            }
        }
        writer.raw(",\"contribution\":").float(explanation.contributions[element]);
        if let Some(spread) = &explanation.spread {
            let name = if row.is_some() { "standard_error" } else { "standard_deviation" };
            writer.raw(",").key(name).float(spread[element]);
        }
        writer.raw("}");
    });
    writer.raw("]");
}

/// The inputs that are more than tables.
fn arrays(writer: &mut Writer, explained: &Explained, explanation: &Explanation, heat_maps: bool) -> Result<(), Error> {
    let inputs: Vec<_> = explained.layout.inputs().filter(|(_, shape, _)| shape.len() >= 2).collect();
    if inputs.is_empty() {
        return Ok(());
    }
    writer.raw(",\"attributions\":{").list(&inputs, |writer, (name, shape, range)| {
        writer.key(name).nested(Slice::F64(&explanation.contributions[range.clone()]), shape);
    });
    writer.raw("}");
    if !heat_maps {
        return Ok(());
    }
    let mut maps = Vec::new();
    for (name, shape, range) in &inputs {
        if let Some(png) = heat_map(&explanation.contributions[range.clone()], shape)? {
            maps.push((*name, STANDARD.encode(png)));
        }
    }
    if !maps.is_empty() {
        writer.raw(",\"heat_maps\":{").list(&maps, |writer, (name, png)| {
            writer.key(name).raw("{\"b64\":").string(png).raw("}");
        });
        writer.raw("}");
    }
    Ok(())
}
