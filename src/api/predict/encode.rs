//! From a model's outputs to the body of an answer.
//!
//! A row's prediction is its output (an object by name, if there are several). A model with labels answers
//! `{"label": "7", "score": 0.98, "scores": [{"label": "7", "score": 0.98}, …]}` instead, most likely first; further outputs
//! follow under `"outputs"`. The labels belong to the one float output with a column for each.

use std::cmp::Ordering;

use smallvec::SmallVec;

use super::super::json::Writer;
use super::decode::Form;
use crate::config::NonFinite;
use crate::engine::{Port, Signature, Slice, Tensor, Value};
use crate::error::Error;

/// Encodes the outputs of a model of `signature` in the form of the request.
///
/// # Errors
/// If rows are wanted and an output does not have one value per row, or a value is not finite and `non_finite` refuses that.
pub fn encode(outputs: &[Value], signature: &Signature, labels: &[String], form: Form, non_finite: NonFinite) -> Result<Vec<u8>, Error> {
    let answer = Answer { outputs, ports: &signature.outputs, labels, classes: classes(outputs, labels) };
    let numbers: usize = outputs.iter().filter_map(Value::tensor).map(Tensor::len).sum();
    // About what a float32 takes, and the label's share.
    let mut writer = Writer::with_capacity(32 + numbers * if answer.classes.is_some() { 48 } else { 14 }).non_finite(non_finite);
    match form {
        Form::Rows(rows) => {
            answer.check_rows(rows)?;
            writer.raw("{");
            answer.predictions(&mut writer, rows);
        }
        Form::Columns => {
            writer.raw("{\"outputs\":");
            answer.columns(&mut writer);
            // The tensors are what TensorFlow Serving answers; the labels come beside them.
            if let Some(scores) = answer.classes.and_then(|classes| outputs[classes].tensor())
                && answer.check_rows(scores.shape()[0]).is_ok()
            {
                writer.raw(",");
                answer.predictions(&mut writer, scores.shape()[0]);
            }
        }
    }
    writer.raw("}");
    writer.finish()
}

/// The output that the labels belong to: the only float matrix with as many columns.
fn classes(outputs: &[Value], labels: &[String]) -> Option<usize> {
    let fits = |value: &Value| {
        value.tensor().is_some_and(|tensor| {
            tensor.dtype().is_float() && tensor.shape().len() == 2 && tensor.shape()[1] == labels.len() && !labels.is_empty()
        })
    };
    let mut found = outputs.iter().enumerate().filter(|(_, value)| fits(value)).map(|(i, _)| i);
    found.next().filter(|_| found.next().is_none())
}

struct Answer<'a> {
    outputs: &'a [Value],
    ports: &'a [Port],
    labels: &'a [String],
    classes: Option<usize>,
}

impl Answer<'_> {
    fn check_rows(&self, rows: usize) -> Result<(), Error> {
        for (value, port) in self.outputs.iter().zip(self.ports) {
            let (found, shape) = match value {
                Value::Tensor(tensor) => (tensor.shape().first().copied(), format!("{:?}", tensor.shape())),
                Value::Sequence(values) => (Some(values.len()), format!("a sequence of {}", values.len())),
                Value::Map { .. } => (None, "a map".to_owned()),
                Value::Optional(_) => (None, "an optional value".to_owned()),
            };
            if found != Some(rows) {
                return Err(Error::invalid(format!(
                    "output `{}` ({shape}) does not have one value for each of {rows} rows; ask with `inputs` instead of `instances`",
                    port.name
                )));
            }
        }
        Ok(())
    }

    fn predictions(&self, writer: &mut Writer, rows: usize) {
        writer.raw("\"predictions\":[");
        writer.list(0..rows, |writer, row| match self.classes {
            Some(classes) => self.labelled(writer, classes, row),
            None if self.outputs.len() == 1 => self.row(writer, 0, row),
            None => self.named(writer, row, None),
        });
        writer.raw("]");
    }

    /// An object of the row's outputs, without `except`.
    fn named(&self, writer: &mut Writer, row: usize, except: Option<usize>) {
        writer.raw("{");
        writer.list((0..self.outputs.len()).filter(|&output| Some(output) != except), |writer, output| {
            writer.key(&self.ports[output].name);
            self.row(writer, output, row);
        });
        writer.raw("}");
    }

    fn row(&self, writer: &mut Writer, output: usize, row: usize) {
        match &self.outputs[output] {
            Value::Tensor(tensor) => {
                let shape = &tensor.shape()[1..];
                let size: usize = shape.iter().product();
                if let Some(texts) = self.bytes(output) {
                    writer.nested_base64(&texts[row * size..(row + 1) * size], shape);
                    return;
                }
                writer.nested(tensor.data().range(row * size..(row + 1) * size), shape);
            }
            Value::Sequence(values) => {
                writer.value(&values[row]);
            }
            Value::Map { .. } | Value::Optional(_) => unreachable!("check_rows refuses them"),
        }
    }

    fn labelled(&self, writer: &mut Writer, classes: usize, row: usize) {
        let tensor = self.outputs[classes].tensor().expect("the classes are a tensor");
        let count = self.labels.len();
        let scores = scores(tensor.data().range(row * count..(row + 1) * count));
        let mut order: SmallVec<[usize; 16]> = (0..count).collect();
        // Equal scores stay in the order of the labels.
        order.sort_by(|&a, &b| descending(scores[a], scores[b]));
        let entry = |writer: &mut Writer, class: usize| {
            writer.raw("\"label\":").string(&self.labels[class]).raw(",\"score\":");
            writer.nested(tensor.data().range(row * count + class..row * count + class + 1), &[]);
        };
        writer.raw("{");
        entry(writer, order[0]);
        writer.raw(",\"scores\":[");
        writer.list(order, |writer, class| {
            writer.raw("{");
            entry(writer, class);
            writer.raw("}");
        });
        writer.raw("]");
        if self.outputs.len() > 1 {
            writer.raw(",\"outputs\":");
            self.named(writer, row, Some(classes));
        }
        writer.raw("}");
    }

    fn columns(&self, writer: &mut Writer) {
        let whole = |writer: &mut Writer, output: usize| match (self.bytes(output), &self.outputs[output]) {
            (Some(texts), Value::Tensor(tensor)) => drop(writer.nested_base64(texts, tensor.shape())),
            (_, value) => drop(writer.value(value)),
        };
        if self.outputs.len() == 1 {
            whole(writer, 0);
            return;
        }
        writer.raw("{").list(0..self.outputs.len(), |writer, output| {
            writer.key(&self.ports[output].name);
            whole(writer, output);
        });
        writer.raw("}");
    }

    /// The texts of an output that by its name is bytes: TensorFlow Serving's rule.
    fn bytes(&self, output: usize) -> Option<&[String]> {
        let tensor = self.outputs[output].tensor().filter(|_| self.ports[output].name.ends_with("_bytes"))?;
        tensor.slice::<String>()
    }
}

/// Highest first; what is not a number comes last.
fn descending(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn scores(values: Slice<'_>) -> SmallVec<[f64; 16]> {
    match values {
        Slice::F32(values) => values.iter().map(|&value| value.into()).collect(),
        Slice::F64(values) => values.iter().copied().collect(),
        Slice::F16(values) => values.iter().map(|&value| value.into()).collect(),
        Slice::BF16(values) => values.iter().map(|&value| value.into()).collect(),
        _ => unreachable!("the classes are floats"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DType, Kind};

    fn text(outputs: &[(&str, Value)], labels: &[&str], form: Form) -> Result<String, Error> {
        let port = |name: &str| Port { name: name.to_owned(), kind: Kind::Tensor(DType::F32), dims: None };
        let signature =
            Signature { outputs: outputs.iter().map(|(name, _)| port(name)).collect(), batchable: true, ..Signature::default() };
        let values: Vec<Value> = outputs.iter().map(|(_, value)| value.clone()).collect();
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        encode(&values, &signature, &labels, form, NonFinite::Token).map(|body| String::from_utf8(body).unwrap())
    }

    fn floats(shape: &[usize], values: &[f32]) -> Value {
        Tensor::new(shape, values.to_vec()).unwrap().into()
    }

    #[test]
    fn one_output_is_bare_and_several_are_named() {
        let y = ("y", floats(&[2, 1], &[0.25, 0.5]));
        let n = ("n", Tensor::new(&[2], vec![3_i64, 4]).unwrap().into());
        let rows = Form::Rows(2);
        assert_eq!(text(std::slice::from_ref(&y), &[], rows).unwrap(), r#"{"predictions":[[0.25],[0.5]]}"#);
        assert_eq!(text(std::slice::from_ref(&y), &[], Form::Columns).unwrap(), r#"{"outputs":[[0.25],[0.5]]}"#);
        let both = [y, n];
        assert_eq!(text(&both, &[], rows).unwrap(), r#"{"predictions":[{"y":[0.25],"n":3},{"y":[0.5],"n":4}]}"#);
        assert_eq!(text(&both, &[], Form::Columns).unwrap(), r#"{"outputs":{"y":[[0.25],[0.5]],"n":[3,4]}}"#);
        let message = text(&both, &[], Form::Rows(3)).unwrap_err().message().to_owned();
        assert!(message.starts_with("output `y` ([2, 1]) does not have one value for each of 3 rows"), "{message}");
    }

    #[test]
    fn labels_come_most_likely_first() {
        let scores = ("p", floats(&[2, 3], &[0.25, 0.5, 0.25, f32::NAN, 1.0, 0.0]));
        let labels = ["a", "b", "c"];
        let want = concat!(
            r#""predictions":[{"label":"b","score":0.5,"scores":[{"label":"b","score":0.5},{"label":"a","score":0.25},{"label":"c","score":0.25}]},"#,
            r#"{"label":"b","score":1.0,"scores":[{"label":"b","score":1.0},{"label":"c","score":0.0},{"label":"a","score":NaN}]}]"#
        );
        assert_eq!(text(std::slice::from_ref(&scores), &labels, Form::Rows(2)).unwrap(), format!("{{{want}}}"));
        let columns = text(std::slice::from_ref(&scores), &labels, Form::Columns).unwrap();
        assert_eq!(columns, format!("{{\"outputs\":[[0.25,0.5,0.25],[NaN,1.0,0.0]],{want}}}"));
        let two = [scores.clone(), ("class", Tensor::vector(vec![1_i64, 1]).into())];
        assert!(text(&two, &labels, Form::Rows(2)).unwrap().contains(r#"],"outputs":{"class":1}}"#));
        let ambiguous = [scores.clone(), ("logits", scores.1)];
        assert!(text(&ambiguous, &labels, Form::Rows(2)).unwrap().contains(r#"{"p":[0.25,0.5,0.25],"logits":"#));
    }

    #[test]
    fn an_output_that_is_called_bytes_is_base64() {
        let texts = Tensor::new(&[2, 1], vec!["é".to_owned(), String::new()]).unwrap();
        let output = ("image_bytes", texts.into());
        let want = r#"[[{"b64":"w6k="}],[{"b64":""}]]"#;
        assert_eq!(text(std::slice::from_ref(&output), &[], Form::Rows(2)).unwrap(), format!(r#"{{"predictions":{want}}}"#));
        assert_eq!(text(&[output], &[], Form::Columns).unwrap(), format!(r#"{{"outputs":{want}}}"#));
    }

    #[test]
    fn maps_of_classical_classifiers_are_objects() {
        let map = |p: f32| Value::Map { keys: Tensor::vector(vec![0_i64, 1]), values: Tensor::vector(vec![p, 1.0 - p]) };
        let value = Value::Sequence(vec![map(0.25), map(0.5)]);
        assert_eq!(text(&[("p", value)], &[], Form::Rows(2)).unwrap(), r#"{"predictions":[{"0":0.25,"1":0.75},{"0":0.5,"1":0.5}]}"#);
    }
}
