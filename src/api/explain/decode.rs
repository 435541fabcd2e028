//! From the body of a request for explanations to the question.

use std::time::Duration;

use super::super::json::{JsonError, Reader, Result, Token};
use super::super::predict::{Inputs, dtypes, signature_name};
use super::Shown;
use crate::engine::Signature;
use crate::error::Error;
use crate::explain::{Class, Known, Method, Question};

/// A decoded request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) shown: Shown,
    /// How long the client waits, if it says so.
    pub(super) timeout: Option<Duration>,
}

/// Decodes `{"instances": [...], "method": …}` for a model of `signature`.
///
/// # Errors
/// `InvalidArgument` that names what is wrong and where; a member that is not known is.
pub(super) fn decode(body: &[u8], signature: &Signature) -> std::result::Result<Asked, Error> {
    let dtypes = dtypes(signature)?;
    let model = Inputs::new(signature, &dtypes);
    let mut asked = Asked { question: Question::default(), shown: Shown { top: None, heat_map: true }, timeout: None };
    let mut given = false;
    let mut reader = Reader::new(body);
    reader.object(|reader, key| {
        let rows = matches!(&*key, "instances" | "inputs");
        if rows && std::mem::replace(&mut given, true) {
            let message = "is given beside another `instances` or `inputs`; one of them is wanted";
            return Err(JsonError::value(reader.at(), message).under(key));
        }
        member(&mut asked, &model, reader, &key).map_err(|error| error.under(key))
    })?;
    reader.end()?;
    if !given {
        return Err(Error::invalid("the body has neither `instances` (rows) nor `inputs` (whole tensors)"));
    }
    Ok(asked)
}

fn member(asked: &mut Asked, model: &Inputs<'_>, reader: &mut Reader<'_>, key: &str) -> Result<()> {
    let Asked { question, shown, timeout } = asked;
    let options = &mut question.options;
    match key {
        "instances" => question.inputs = model.rows(reader)?.inputs,
        "inputs" => {
            let at = reader.at();
            let decoded = model.columns(reader)?;
            if !decoded.overrides.is_empty() {
                return Err(JsonError::value(at, "has an optional input, which an explanation does not take"));
            }
            question.inputs = decoded.inputs;
        }
        "background" => question.background = Some(model.rows(reader)?.inputs),
        "signature_name" => signature_name(reader)?,
        "method" => {
            let at = reader.at();
            question.method = Some(Method::parse(&reader.string()?).map_err(|message| JsonError::value(at, message))?);
        }
        "output" => question.output = Some(reader.string()?.into_owned()),
        "target" => {
            question.target = Some(match reader.peek()? {
                Token::String => Class::Label(reader.string()?.into_owned()),
                _ => Class::Index(whole(reader)?),
            });
        }
        "targets" => question.known = Some(known(reader)?),
        "steps" => options.steps = Some(whole(reader)?),
        "samples" => options.samples = Some(whole(reader)?),
        "repeats" => options.repeats = Some(whole(reader)?),
        "seed" => options.seed = reader.unsigned()?,
        "window" => options.window = Some(sizes(reader)?),
        "stride" => options.stride = Some(sizes(reader)?),
        "top" => shown.top = Some(whole(reader)?),
        "heat_map" => shown.heat_map = reader.boolean()?,
        // Zero means no timeout, as everywhere.
        "timeout_ms" => *timeout = Some(reader.unsigned()?).filter(|&millis| millis > 0).map(Duration::from_millis),
        _ => {
            let known = "instances, inputs, method, output, target, targets, background, steps, samples, repeats, seed, window, stride, \
                         top, heat_map, timeout_ms";
            return Err(JsonError::value(reader.at(), format!("is not known; known are {known}")));
        }
    }
    Ok(())
}

fn whole(reader: &mut Reader<'_>) -> Result<usize> {
    let at = reader.at();
    usize::try_from(reader.unsigned()?).map_err(|_| JsonError::value(at, "is too large"))
}

fn sizes(reader: &mut Reader<'_>) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    reader.array(|reader, _| {
        sizes.push(whole(reader)?);
        Ok(())
    })?;
    Ok(sizes)
}

fn known(reader: &mut Reader<'_>) -> Result<Vec<Known>> {
    let mut all = Vec::new();
    reader.array(|reader, _| {
        all.push(match reader.peek()? {
            Token::String => Known::Label(reader.string()?.into_owned()),
            _ => {
                let at = reader.at();
                let number = reader.number()?.parse().map_err(|_| JsonError::value(at, "is no number"))?;
                Known::Number(number)
            }
        });
        Ok(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DType, Dim, Kind, Port};

    fn signature() -> Signature {
        let dims = Some(vec![Dim::Free("batch".into()), Dim::Fixed(2)]);
        Signature { inputs: vec![Port { name: "x".into(), kind: Kind::Tensor(DType::F32), dims }], batchable: true, ..Signature::default() }
    }

    #[test]
    fn every_member_is_read() {
        let body = r#"{"instances": [[1, 2]], "method": "shapley", "output": "y", "target": "no", "background": [[0, 0], [1, 1]],
            "targets": ["a", 1.5], "steps": 3, "samples": 4, "repeats": 5, "seed": 6, "window": [1, 2], "stride": [3], "top": 7,
            "heat_map": false, "timeout_ms": 8}"#;
        let Asked { question, shown, timeout } = decode(body.as_bytes(), &signature()).unwrap();
        assert_eq!((question.inputs[0].shape(), question.method), (&[1, 2][..], Some(Method::Shapley)));
        assert_eq!((question.output.as_deref(), question.target), (Some("y"), Some(Class::Label("no".into()))));
        assert_eq!(question.background.unwrap()[0].shape(), [2, 2]);
        assert_eq!(question.known.unwrap(), [Known::Label("a".into()), Known::Number(1.5)]);
        let options = question.options;
        assert_eq!((options.steps, options.samples, options.repeats, options.seed), (Some(3), Some(4), Some(5), 6));
        assert_eq!((options.window, options.stride), (Some(vec![1, 2]), Some(vec![3])));
        assert_eq!((shown, timeout), (Shown { top: Some(7), heat_map: false }, Some(Duration::from_millis(8))));
        let asked = decode(br#"{"inputs": {"x": [[1, 2]]}, "target": 1, "signature_name": "serving_default"}"#, &signature()).unwrap();
        assert_eq!((asked.question.target, asked.shown.heat_map), (Some(Class::Index(1)), true));
        let asked = decode(br#"{"instances": [[1, 2]], "timeout_ms": 0}"#, &signature()).unwrap();
        assert_eq!(asked.timeout, None, "zero is none, and not over at once");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, want) in [
            ("{}", "the body has neither `instances` (rows) nor `inputs` (whole tensors)"),
            (r#"{"instances": [[1, 2]], "inputs": [[1, 2]]}"#, "inputs is given beside another"),
            (r#"{"instances": [[1, 2]], "metod": "shapley"}"#, "metod is not known; known are instances"),
            (r#"{"instances": [[1, 2]], "method": "lime"}"#, "method is `lime`; known are integrated_gradients"),
            (r#"{"instances": [[1, 2]], "steps": -1}"#, "steps is"),
            (r#"{"instances": [[1, 2]], "targets": [true]}"#, "targets[0] is"),
            (r#"{"instances": [[1, 2]], "background": [["a", 2]]}"#, "background[0][0] is a string"),
        ] {
            let message = decode(body.as_bytes(), &signature()).unwrap_err().message().to_owned();
            assert!(message.starts_with(want), "{body}\n got: {message}\nwant: {want}");
        }
    }
}
