//! From the body of a prediction to one tensor per input.

use crate::engine::{Buffer, DType, Dim, Port, Signature, Tensor};
use crate::error::{Error, Kind};

use super::super::json::{JsonError, Nested, Reader, Result, Token};

/// How the request was written, which is how the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `instances`, this many rows: the answer has one prediction per row.
    Rows(usize),
    /// `inputs`: the answer has whole tensors.
    Columns,
}

/// A decoded request.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// One tensor per input of the model, in order.
    pub inputs: Vec<Tensor>,
    /// Tensors for optional inputs, by their positions. Only whole tensors can say them: they have no rows.
    pub overrides: Vec<(usize, Tensor)>,
    /// How it was written.
    pub form: Form,
}

/// Decodes `{"instances": [...]}` or `{"inputs": …}` for a model of `signature`. Other keys are ignored.
///
/// Rows are arrays (or bare values, if a row has one) for a model of one input, objects with a value per input for any model.
/// Columns are the tensor of the one input, or an object of tensors.
///
/// # Errors
/// `InvalidArgument` that names what is wrong, where, and what is wanted. Whether the shapes fit the model is checked by
/// [`Handle::infer`](crate::serve::Handle::infer).
pub fn decode(body: &[u8], signature: &Signature) -> std::result::Result<Decoded, Error> {
    let dtypes = dtypes(signature)?;
    let model = Inputs::new(signature, &dtypes);
    let mut decoded: Option<Decoded> = None;
    let mut other = None;
    let mut reader = Reader::new(body);
    reader.object(|reader, key| {
        let read = match &*key {
            "instances" => Inputs::rows,
            "inputs" => Inputs::columns,
            "signature_name" => return signature_name(reader).map_err(|error| error.under(key)),
            _ => {
                other = Some(key.into_owned());
                return reader.skip();
            }
        };
        if decoded.is_some() {
            return Err(JsonError::value(reader.at(), "is given beside another `instances` or `inputs`; one of them is wanted").under(key));
        }
        decoded = Some(read(&model, reader).map_err(|error| error.under(key))?);
        Ok(())
    })?;
    reader.end()?;
    decoded.ok_or_else(|| {
        let found = other.map_or_else(String::new, |key| format!("; it has `{key}`"));
        Error::invalid(format!("the body has neither `instances` (rows) nor `inputs` (whole tensors){found}"))
    })
}

/// A model has one signature, which TensorFlow Serving's clients call so.
pub(super) const SIGNATURE: &str = "serving_default";

pub(in crate::api) fn signature_name(reader: &mut Reader<'_>) -> Result<()> {
    let at = reader.at();
    match &*reader.string()? {
        "" | SIGNATURE => Ok(()),
        other => Err(JsonError::value(at, format!("is `{other}`; a model has one signature, `{SIGNATURE}`"))),
    }
}

/// The element type of each input.
pub(in crate::api) fn dtypes(signature: &Signature) -> std::result::Result<smallvec::SmallVec<[DType; 4]>, Error> {
    let dtype = |port: &Port| {
        let wrong =
            || Error::new(Kind::Unsupported, format!("input `{}` is a {}, which a JSON request cannot carry", port.name, port.kind));
        port.kind.dtype().ok_or_else(wrong)
    };
    signature.inputs.iter().map(dtype).collect()
}

/// What the model takes.
pub(in crate::api) struct Inputs<'a> {
    signature: &'a Signature,
    dtypes: &'a [DType],
}

/// One input, while rows of it arrive.
struct Column {
    values: Buffer,
    row: Nested,
    rows: usize,
}

impl<'a> Inputs<'a> {
    /// The inputs of `signature`, whose element types are `dtypes`.
    pub(in crate::api) fn new(signature: &'a Signature, dtypes: &'a [DType]) -> Self {
        Self { signature, dtypes }
    }

    /// Whether the object that stands next, or first in the array, is the one input's bytes and no object of inputs.
    fn is_base64(&self, reader: &Reader<'_>) -> bool {
        self.dtypes == [DType::String] && reader.first_key().is_some_and(|key| key == "b64" && self.signature.inputs[0].name != "b64")
    }

    fn names(&self) -> String {
        self.signature.inputs.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ")
    }

    fn find(&self, key: &str, at: usize) -> Result<usize> {
        let unknown = || JsonError::value(at, format!("is not known; the model's inputs are {}", self.names())).under(key);
        self.signature.input(key).ok_or_else(unknown)
    }

    fn missing(&self, input: usize, at: usize) -> Box<JsonError> {
        let name = &self.signature.inputs[input].name;
        JsonError::value(at, format!("has no `{name}`; the model's inputs are {}", self.names()))
    }

    /// The one input's position, if there is one only.
    fn single(&self, reader: &Reader<'_>) -> Result<usize> {
        match self.signature.inputs.len() {
            1 => Ok(0),
            n => {
                let wanted = format!("wants an object with a value for each of the model's {n} inputs: {}", self.names());
                Err(JsonError::value(reader.at(), wanted))
            }
        }
    }

    /// A tensor for an optional input: an array, or a number where the model has a scalar.
    fn replacement(&self, position: usize, reader: &mut Reader<'_>) -> Result<Tensor> {
        let port = &self.signature.optional[position];
        let Some(dtype) = port.kind.dtype() else {
            return Err(JsonError::value(reader.at(), format!("is a {}, which a JSON request cannot carry", port.kind)));
        };
        let mut values = Buffer::new(dtype);
        let shape = reader.append(&mut values, 0)?;
        Ok(values.into_tensor(&shape).expect("the nesting counts the values"))
    }

    /// The tensor of an input. A row of one value may be written without brackets.
    fn tensor(&self, input: usize, values: Buffer, mut shape: Nested) -> Tensor {
        if let Some(dims) = &self.signature.inputs[input].dims
            && dims.len() == shape.len() + 1
            && dims.last() == Some(&Dim::Fixed(1))
        {
            shape.push(1);
        }
        values.into_tensor(&shape).expect("the nesting counts the values")
    }

    /// One row after the other.
    pub(in crate::api) fn rows(&self, reader: &mut Reader<'_>) -> Result<Decoded> {
        reader.want(Token::Array)?;
        match reader.first_element() {
            None => return reader.skip().and_then(|()| Err(JsonError::value(reader.at(), "is empty; at least one row is wanted"))),
            Some(Token::Object) if !self.is_base64(reader) => return self.object_rows(reader),
            Some(_) => {}
        }
        let input = self.single(reader)?;
        let (values, shape) = reader.tensor(self.dtypes[input], 0)?;
        let rows = shape[0];
        Ok(Decoded { inputs: vec![self.tensor(input, values, shape)], overrides: Vec::new(), form: Form::Rows(rows) })
    }

    fn object_rows(&self, reader: &mut Reader<'_>) -> Result<Decoded> {
        let column = |&dtype: &DType| Column { values: Buffer::new(dtype), row: Nested::new(), rows: 0 };
        let mut columns: Vec<Column> = self.dtypes.iter().map(column).collect();
        let mut rows = 0;
        reader.array(|reader, index| {
            reader.object(|reader, key| {
                let input = self.find(&key, reader.at())?;
                columns[input].append(reader, index).map_err(|error| error.under(key))
            })?;
            rows = index + 1;
            let missing = columns.iter().position(|column| column.rows != rows);
            missing.map_or(Ok(()), |input| Err(self.missing(input, reader.at())))
        })?;
        let inputs = columns.into_iter().enumerate().map(|(input, column)| {
            let mut shape = column.row;
            shape.insert(0, rows);
            self.tensor(input, column.values, shape)
        });
        Ok(Decoded { inputs: inputs.collect(), overrides: Vec::new(), form: Form::Rows(rows) })
    }

    /// Whole tensors.
    pub(in crate::api) fn columns(&self, reader: &mut Reader<'_>) -> Result<Decoded> {
        let form = Form::Columns;
        if reader.peek()? != Token::Object || self.is_base64(reader) {
            if reader.first_element() == Some(Token::Object) && !self.is_base64(reader) {
                let hint = "has objects, as the Open Inference protocol does at /v2/models/<model>/infer; here a tensor is wanted, or one \
                            object with a tensor per input";
                return Err(JsonError::value(reader.at(), hint));
            }
            let input = self.single(reader)?;
            let (values, shape) = reader.tensor(self.dtypes[input], 0)?;
            return Ok(Decoded { inputs: vec![self.tensor(input, values, shape)], overrides: Vec::new(), form });
        }
        let mut tensors: Vec<Option<Tensor>> = vec![None; self.dtypes.len()];
        let mut overrides: Vec<(usize, Tensor)> = Vec::new();
        reader.object(|reader, key| {
            if let Some(position) = self.signature.optional(&key) {
                if overrides.iter().any(|(other, _)| *other == position) {
                    return Err(JsonError::value(reader.at(), "is given twice").under(key));
                }
                overrides.push((position, self.replacement(position, reader).map_err(|error| error.under(key))?));
                return Ok(());
            }
            let input = self.find(&key, reader.at())?;
            if tensors[input].is_some() {
                return Err(JsonError::value(reader.at(), "is given twice").under(key));
            }
            let (values, shape) = reader.tensor(self.dtypes[input], 0).map_err(|error| error.under(key))?;
            tensors[input] = Some(self.tensor(input, values, shape));
            Ok(())
        })?;
        let tensor = |(input, tensor): (usize, Option<Tensor>)| tensor.ok_or_else(|| self.missing(input, reader.at()));
        Ok(Decoded { inputs: tensors.into_iter().enumerate().map(tensor).collect::<Result<_>>()?, overrides, form })
    }
}

impl Column {
    /// Appends the value of row `index`, which must look like the first row's.
    fn append(&mut self, reader: &mut Reader<'_>, index: usize) -> Result<()> {
        let at = reader.at();
        if self.rows > index {
            return Err(JsonError::value(at, "is given twice"));
        }
        let shape = reader.append(&mut self.values, 0)?;
        if self.rows == 0 {
            self.row = shape;
        } else if self.row != shape {
            return Err(JsonError::value(at, format!("has shape {shape:?} where {:?} is wanted, as in the rows before", self.row)));
        }
        self.rows += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Kind as ValueKind;

    fn signature(inputs: &[(&str, DType, &[Option<usize>])]) -> Signature {
        let port = |(name, dtype, dims): &(&str, DType, &[Option<usize>])| Port {
            name: (*name).to_owned(),
            kind: ValueKind::Tensor(*dtype),
            dims: Some(dims.iter().map(|dim| dim.map_or(Dim::Free("batch".into()), Dim::Fixed)).collect()),
        };
        Signature { inputs: inputs.iter().map(port).collect(), batchable: true, ..Signature::default() }
    }

    fn pair() -> Signature {
        signature(&[("x", DType::F32, &[None, Some(2)]), ("n", DType::I64, &[None, Some(1)])])
    }

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::new(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn rows_and_columns_of_one_input() {
        let one = signature(&[("x", DType::F32, &[None, Some(2)])]);
        let want = floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        for (body, form) in [
            (r#"{"instances": [[1,2],[3,4]]}"#, Form::Rows(2)),
            (r#"{"signature_name": "serving_default", "instances": [{"x":[1,2]},{"x":[3,4]}]}"#, Form::Rows(2)),
            (r#"{"inputs": [[1,2],[3,4]], "id": {"a":[]}}"#, Form::Columns),
            (r#"{"inputs": {"x": [[1,2],[3,4]]}}"#, Form::Columns),
        ] {
            let decoded = decode(body.as_bytes(), &one).unwrap();
            assert_eq!((decoded.inputs, decoded.form), (vec![want.clone()], form), "{body}");
        }
    }

    #[test]
    fn a_row_of_one_value_needs_no_brackets() {
        let one = signature(&[("x", DType::F32, &[None, Some(1)])]);
        for body in [r#"{"instances":[1,2]}"#, r#"{"instances":[[1],[2]]}"#, r#"{"instances":[{"x":1},{"x":2}]}"#, r#"{"inputs":[1,2]}"#] {
            assert_eq!(decode(body.as_bytes(), &one).unwrap().inputs, [floats(&[2, 1], &[1.0, 2.0])], "{body}");
        }
    }

    #[test]
    fn bytes_may_be_base64() {
        let text = signature(&[("s", DType::String, &[None])]);
        for body in [
            r#"{"instances":[{"b64":"w6k="},"b"]}"#,
            r#"{"instances":[{"s":{"b64":"w6k="}},{"s":"b"}]}"#,
            r#"{"inputs":["é",{"b64":"Yg=="}]}"#,
            r#"{"inputs":[{"b64":"w6k="},"b"]}"#,
            r#"{"inputs":{"s":[{"b64":"w6k="},"b"]},"signature_name":""}"#,
        ] {
            let want = Tensor::vector(vec!["é".to_owned(), "b".to_owned()]);
            assert_eq!(decode(body.as_bytes(), &text).unwrap().inputs, [want], "{body}");
        }
        for (body, want) in [
            (r#"{"instances":[{"b64":"?"}]}"#, "instances[0].b64 is no base64"),
            (r#"{"instances":[{"b64":"/w=="}]}"#, "instances[0].b64 is no UTF-8 text"),
            (r#"{"instances":["a",{"c64":"Yg=="}]}"#, r#"instances[1] is an object where a string or {"b64": "…"} is wanted"#),
            (r#"{"instances":["a"],"signature_name":"other"}"#, "signature_name is `other`; a model has one signature, `serving_default`"),
        ] {
            let message = decode(body.as_bytes(), &text).unwrap_err().message().to_owned();
            assert!(message.contains(want), "{body}\n got: {message}\nwant: {want}");
        }
    }

    #[test]
    fn several_inputs_are_named() {
        for body in [r#"{"instances":[{"x":[1,2],"n":5},{"n":[6],"x":[3,4]}]}"#, r#"{"instances":[{"n":5,"x":[1,2]},{"n":6,"x":[3,4]}]}"#] {
            let decoded = decode(body.as_bytes(), &pair());
            if body.contains("[6]") {
                assert!(decoded.unwrap_err().message().starts_with("instances[1].n has shape [1] where [] is wanted"));
            } else {
                let n = Tensor::new(&[2, 1], vec![5_i64, 6]).unwrap();
                assert_eq!(decoded.unwrap().inputs, [floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), n]);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let two = pair();
        for (body, want) in [
            ("[1]", "the body is an array where an object is wanted (byte 0)"),
            ("", "the body is not valid JSON: expected a value, found the end at byte 0"),
            ("{}", "the body has neither `instances` (rows) nor `inputs` (whole tensors)"),
            (r#"{"instance":[]}"#, "; it has `instance`"),
            (r#"{"instances":[]}"#, "instances is empty; at least one row is wanted"),
            (r#"{"instances":{}}"#, "instances is an object where an array is wanted"),
            (r#"{"instances":[{"x":[1,2],"n":5}],"inputs":{}}"#, "inputs is given beside another"),
            (r#"{"instances":[[1,2]]}"#, "instances wants an object with a value for each of the model's 2 inputs: `x`, `n`"),
            (r#"{"instances":[{"x":[1,2]}]}"#, "instances[0] has no `n`; the model's inputs are `x`, `n`"),
            (r#"{"instances":[{"x":[1,2],"n":1,"z":1}]}"#, "instances[0].z is not known; the model's inputs are `x`, `n`"),
            (r#"{"instances":[{"x":[1,2],"x":[1,2]}]}"#, "instances[0].x is given twice"),
            (r#"{"instances":[{"x":[1,2],"n":1},7]}"#, "instances[1] is a number where an object is wanted"),
            (r#"{"instances":[{"x":[1,"a"],"n":1}]}"#, "instances[0].x[1] is a string where a number (float32) is wanted"),
            (r#"{"inputs":{"x":[[1,2]]}}"#, "inputs has no `n`"),
            (r#"{"inputs":{"x":[[1,2]],"x":[[1,2]]}}"#, "inputs.x is given twice"),
            (r#"{"inputs":[{"name":"x"}]}"#, "inputs has objects, as the Open Inference protocol does at /v2/models/<model>/infer"),
            (r#"{"inputs":{"x":[[1,2]],"n":[1]}} x"#, "expected the end, found `x`"),
        ] {
            let message = decode(body.as_bytes(), &two).unwrap_err().message().to_owned();
            assert!(message.contains(want), "{body}\n got: {message}\nwant: {want}");
        }
    }
}
