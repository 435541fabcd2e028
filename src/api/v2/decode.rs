//! From an Open Inference request to one tensor per input.

use std::borrow::Cow;
use std::time::Duration;

use super::super::json::{JsonError, Nested, Reader, Result, Token};
use crate::engine::{DType, Port, Signature, Tensor};
use crate::error::Error;

/// A decoded request.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The client's name for it.
    pub(super) id: Option<String>,
    /// One tensor per input of the model, in order.
    pub(super) inputs: Vec<Tensor>,
    /// Tensors for optional inputs, by their positions.
    pub(super) overrides: Vec<(usize, Tensor)>,
    /// Positions of the outputs that are wanted, in the order of the request.
    pub(super) outputs: Vec<usize>,
    /// How long the client waits.
    pub(super) timeout: Option<Duration>,
}

/// Decodes a request for a model of `signature`. Keys that the protocol does not have are ignored.
///
/// # Errors
/// `InvalidArgument` that names the input or output, what is wrong and what is wanted.
pub(super) fn decode(body: &[u8], signature: &Signature) -> std::result::Result<Decoded, Error> {
    let mut id = None;
    let mut timeout = None;
    // The optional ones behind the others.
    let mut inputs: Vec<Option<Tensor>> = vec![None; signature.inputs.len() + signature.optional.len()];
    let mut outputs = Vec::new();
    let mut seen = Seen::default();
    let mut reader = Reader::new(body);
    reader.object(|reader, key| {
        seen.once(reader, &key)?;
        match &*key {
            "id" => reader.string().map(|text| id = Some(text.into_owned())).map_err(|error| error.under("id")),
            "parameters" => request_parameters(reader, &mut timeout).map_err(|error| error.under("parameters")),
            "inputs" => reader.array(|reader, _| read_input(reader, signature, &mut inputs)).map_err(|error| error.under("inputs")),
            "outputs" => reader.array(|reader, _| read_output(reader, signature, &mut outputs)).map_err(|error| error.under("outputs")),
            _ => reader.skip(),
        }
    })?;
    reader.end()?;
    let optional = inputs.split_off(signature.inputs.len());
    if let Some(missing) = inputs.iter().position(Option::is_none) {
        let names = names(&signature.inputs);
        return Err(Error::invalid(format!("input `{}` is missing; the inputs are {names}", signature.inputs[missing].name)));
    }
    let overrides = optional.into_iter().enumerate().filter_map(|(position, tensor)| Some((position, tensor?))).collect();
    Ok(Decoded { id, inputs: inputs.into_iter().flatten().collect(), overrides, outputs: choose(outputs, signature)?, timeout })
}

fn names(ports: &[Port]) -> String {
    ports.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ")
}

/// The keys of the envelope that were read: each may come once.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn once(&mut self, reader: &Reader<'_>, key: &str) -> Result<()> {
        const KEYS: [&str; 4] = ["id", "parameters", "inputs", "outputs"];
        let Some(bit) = KEYS.iter().position(|known| *known == key) else { return Ok(()) };
        if self.0 & 1 << bit != 0 {
            return Err(JsonError::value(reader.at(), "is given twice").under(key));
        }
        self.0 |= 1 << bit;
        Ok(())
    }
}

/// The outputs that are wanted: those that are named, else every tensor. Half floats have no JSON form.
fn choose(named: Vec<usize>, signature: &Signature) -> std::result::Result<Vec<usize>, Error> {
    let every = || (0..signature.outputs.len()).filter(|&output| signature.outputs[output].kind.dtype().is_some()).collect();
    let chosen = if named.is_empty() { every() } else { named };
    for port in chosen.iter().map(|&output| &signature.outputs[output]) {
        match port.kind.dtype() {
            Some(dtype @ (DType::F16 | DType::BF16)) => {
                let message = format!(
                    "sending {} data via JSON is not supported by the protocol: output `{}` has a binary form only; /v1/models/<model>:predict \
                     answers with numbers",
                    dtype.oip(),
                    port.name
                );
                return Err(Error::invalid(message));
            }
            Some(_) => {}
            None => return Err(Error::invalid(format!("output `{}` is a {}; the protocol has tensors only", port.name, port.kind))),
        }
    }
    Ok(chosen)
}

/// Refuses a parameter that is set and would change the answer if the server had the feature.
fn refuse(reader: &mut Reader<'_>, key: &str, feature: &str) -> Result<()> {
    let at = reader.at();
    // `false` is the same as leaving it out.
    if reader.peek()? == Token::Bool && !reader.boolean()? {
        return Ok(());
    }
    Err(JsonError::value(at, format!("asks for {feature}, which this server does not offer; send and take JSON tensors")).under(key))
}

fn request_parameters(reader: &mut Reader<'_>, timeout: &mut Option<Duration>) -> Result<()> {
    reader.object(|reader, key| match &*key {
        "binary_data_output" => refuse(reader, &key, "binary tensor data"),
        "timeout" => {
            let micros = reader.unsigned().map_err(|error| error.under("timeout"))?;
            // Triton's 0 means no timeout.
            *timeout = (micros > 0).then(|| Duration::from_micros(micros));
            Ok(())
        }
        key if key.starts_with("triton_") => Err(JsonError::value(reader.at(), "is reserved; a client must not set it").under(key)),
        _ => reader.skip(),
    })
}

fn read_output(reader: &mut Reader<'_>, signature: &Signature, outputs: &mut Vec<usize>) -> Result<()> {
    let mut output = None;
    let at = reader.at();
    reader.object(|reader, key| match &*key {
        "name" => {
            let at = reader.at();
            let name = reader.string().map_err(|error| error.under("name"))?;
            let unknown =
                || JsonError::value(at, format!("`{name}` is no output; the outputs are {}", names(&signature.outputs))).under("name");
            output = Some(signature.output(&name).ok_or_else(unknown)?);
            Ok(())
        }
        "parameters" => output_parameters(reader).map_err(|error| error.under("parameters")),
        _ => reader.skip(),
    })?;
    let output = output.ok_or_else(|| JsonError::value(at, "has no `name`"))?;
    if outputs.contains(&output) {
        return Err(JsonError::value(at, format!("asks for output `{}` twice", signature.outputs[output].name)));
    }
    outputs.push(output);
    Ok(())
}

fn output_parameters(reader: &mut Reader<'_>) -> Result<()> {
    reader.object(|reader, key| match &*key {
        "binary_data" => refuse(reader, &key, "binary tensor data"),
        "classification" => refuse(reader, &key, "classification"),
        key if key.starts_with("shared_memory") => refuse(reader, key, "shared memory"),
        _ => reader.skip(),
    })
}

fn input_parameters(reader: &mut Reader<'_>) -> Result<()> {
    reader.object(|reader, key| match &*key {
        "binary_data_size" => refuse(reader, &key, "binary tensor data"),
        key if key.starts_with("shared_memory") => refuse(reader, key, "shared memory"),
        _ => reader.skip(),
    })
}

/// The members of an input. `data` is read at once if its type is known by then, else when it is.
#[derive(Default)]
struct Input<'a> {
    name: Option<Cow<'a, str>>,
    dtype: Option<DType>,
    shape: Option<Shape>,
    data: Option<Data<'a>>,
}

struct Shape {
    sizes: Nested,
    elements: usize,
}

enum Data<'a> {
    Read(crate::engine::Buffer, Nested),
    Later(Reader<'a>),
}

fn read_input(reader: &mut Reader<'_>, signature: &Signature, inputs: &mut [Option<Tensor>]) -> Result<()> {
    let at = reader.at();
    let mut input = Input::default();
    reader.object(|reader, key| input.member(reader, &key))?;
    let Input { name, dtype, shape, data } = input;
    let missing = |key: &str| JsonError::value(at, format!("has no `{key}`; name, shape, datatype and data are wanted"));
    let name = name.ok_or_else(|| missing("name"))?;
    let optional = || signature.optional(&name).map(|position| signature.inputs.len() + position);
    let Some(position) = signature.input(&name).or_else(optional) else {
        return Err(JsonError::value(at, format!("`{name}` is no input; the inputs are {}", names(&signature.inputs))));
    };
    if inputs[position].is_some() {
        return Err(JsonError::value(at, format!("gives input `{name}` twice")));
    }
    let dtype = dtype.ok_or_else(|| missing("datatype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let (values, nested) = match data.ok_or_else(|| missing("data"))? {
        Data::Read(values, nested) => (values, nested),
        Data::Later(mut reader) => read_data(&mut reader, dtype, shape.elements).map_err(|error| error.under("data"))?,
    };
    let found = values.len();
    // Flat data has any shape; nested data says its own.
    if found != shape.elements || (nested.len() > 1 && nested != shape.sizes) {
        let nesting = if nested.len() > 1 { format!(", nested as {:?}", nested.as_slice()) } else { String::new() };
        let message = format!("`{name}`: shape {:?} wants {} values, data has {found}{nesting}", shape.sizes.as_slice(), shape.elements);
        return Err(JsonError::value(at, message));
    }
    inputs[position] = values.into_tensor(&shape.sizes);
    Ok(())
}

impl<'a> Input<'a> {
    fn member(&mut self, reader: &mut Reader<'a>, key: &str) -> Result<()> {
        let at = reader.at();
        let twice = match key {
            "name" => self.name.is_some(),
            "datatype" => self.dtype.is_some(),
            "shape" => self.shape.is_some(),
            "data" => self.data.is_some(),
            _ => false,
        };
        if twice {
            return Err(JsonError::value(at, "is given twice").under(key));
        }
        let read = match key {
            "name" => reader.string().map(|name| self.name = Some(name)),
            "datatype" => read_dtype(reader).map(|dtype| self.dtype = Some(dtype)),
            "shape" => read_shape(reader).map(|shape| self.shape = Some(shape)),
            "parameters" => input_parameters(reader),
            "data" => self.read_data(reader),
            _ => reader.skip(),
        };
        read.map_err(|error| error.under(key))
    }

    fn read_data(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        self.data = Some(match self.dtype {
            Some(dtype) => {
                let (values, nested) = read_data(reader, dtype, self.shape.as_ref().map_or(0, |shape| shape.elements))?;
                Data::Read(values, nested)
            }
            None => {
                reader.want(Token::Array)?;
                let later = reader.clone();
                reader.skip()?;
                Data::Later(later)
            }
        });
        Ok(())
    }
}

fn read_data(reader: &mut Reader<'_>, dtype: DType, expected: usize) -> Result<(crate::engine::Buffer, Nested)> {
    reader.want(Token::Array)?;
    reader.tensor(dtype, expected)
}

fn read_dtype(reader: &mut Reader<'_>) -> Result<DType> {
    let at = reader.at();
    let name = reader.string()?;
    match DType::from_oip(&name) {
        Some(DType::F16 | DType::BF16) => {
            let message =
                format!("is {name}: receiving {name} data via JSON is not supported by the protocol, which has a binary form only");
            Err(JsonError::value(at, message))
        }
        Some(dtype) => Ok(dtype),
        None => {
            let known = DType::ALL.iter().map(|dtype| dtype.oip()).collect::<Vec<_>>().join(", ");
            Err(JsonError::value(at, format!("is `{name}`; known are {known}")))
        }
    }
}

fn read_shape(reader: &mut Reader<'_>) -> Result<Shape> {
    let at = reader.at();
    let mut shape = Shape { sizes: Nested::new(), elements: 1 };
    reader.array(|reader, _| {
        let at = reader.at();
        let size = usize::try_from(reader.unsigned()?).map_err(|_| JsonError::value(at, "is too large"))?;
        shape.sizes.push(size);
        Ok(())
    })?;
    // The engine counts bytes in an `isize`; sixteen bytes per element is more than any type takes but strings.
    let product = shape.sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size.max(1)));
    match product.filter(|&product| product <= isize::MAX as usize / 16) {
        Some(product) => shape.elements = if shape.sizes.contains(&0) { 0 } else { product },
        None => return Err(JsonError::value(at, "causes the total element count to exceed the maximum")),
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Dim, Kind};

    fn signature() -> Signature {
        let port = |name: &str, dtype| Port {
            name: name.to_owned(),
            kind: Kind::Tensor(dtype),
            dims: Some(vec![Dim::Free("batch".into()), Dim::Fixed(2)]),
        };
        let mut outputs = vec![port("p", DType::F32), port("q", DType::F32), port("h", DType::F16)];
        outputs.push(Port { name: "z".into(), kind: Kind::Sequence(Box::new(Kind::Tensor(DType::F32))), dims: None });
        Signature { inputs: vec![port("x", DType::F32), port("n", DType::I64)], outputs, batchable: true, ..Signature::default() }
    }

    const N: &str = r#"{"name":"n","shape":[1,2],"datatype":"INT64","data":[1,2]}"#;
    const OUT: &str = r#""outputs":[{"name":"p"}]"#;

    #[test]
    fn data_may_be_flat_or_nested_and_members_in_any_order() {
        for x in [
            r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}"#,
            r#"{"data":[[1,2],[3,4]],"datatype":"FP32","shape":[2,2],"name":"x","parameters":{"a":1}}"#,
            r#"{"datatype":"FP32","data":[[1,2],[3,4]],"name":"x","shape":[2,2]}"#,
        ] {
            let body = format!(r#"{{"id":"7","inputs":[{N},{x}],{OUT},"parameters":{{"timeout":5000,"other":[1]}}}}"#);
            let decoded = decode(body.as_bytes(), &signature()).unwrap();
            assert_eq!(decoded.inputs[0], Tensor::new(&[2, 2], vec![1.0_f32, 2.0, 3.0, 4.0]).unwrap(), "{x}");
            assert_eq!((decoded.id.as_deref(), decoded.outputs, decoded.timeout), (Some("7"), vec![0], Some(Duration::from_millis(5))));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let x = |member: &str| format!(r#"{{"inputs":[{{"name":"x",{member}}},{N}],{OUT}}}"#);
        let cases = [
            (x(r#""shape":[1,2],"datatype":"FP32","data":[1,2,3]"#), "inputs[0] `x`: shape [1, 2] wants 2 values, data has 3"),
            (x(r#""shape":[1,2],"datatype":"FP32","data":[[1],[2]]"#), "shape [1, 2] wants 2 values, data has 2, nested as [2, 1]"),
            (x(r#""shape":[-1,2],"datatype":"FP32","data":[]"#), "inputs[0].shape[0] is -1, out of range of uint64"),
            (
                x(r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[]"#),
                "inputs[0].shape causes the total element count to exceed",
            ),
            (
                x(r#""shape":[0,9223372036854775807,9],"datatype":"FP32","data":[]"#),
                "inputs[0].shape causes the total element count to exceed",
            ),
            (x(r#""shape":[1,2],"datatype":"FP31","data":[]"#), "inputs[0].datatype is `FP31`; known are FP32, FP64"),
            (x(r#""shape":[1,2],"datatype":"FP16","data":[]"#), "receiving FP16 data via JSON is not supported"),
            (x(r#""shape":[1,2],"datatype":"UINT8","data":[1,300]"#), "inputs[0].data[1] is 300, out of range of uint8 (0 to 255)"),
            (x(r#""shape":[1,2],"data":[1,300],"datatype":"UINT8""#), "inputs[0].data[1] is 300, out of range of uint8 (0 to 255)"),
            (x(r#""shape":[1,2],"datatype":"FP32","data":3"#), "inputs[0].data is a number where an array is wanted"),
            (x(r#""shape":[1,2],"datatype":"FP32""#), "inputs[0] has no `data`"),
            (x(r#""shape":[1,2],"data":[]"#), "inputs[0] has no `datatype`"),
            (x(r#""shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}"#), "binary_data_size asks for binary tensor data"),
            (x(r#""shape":[1,2],"datatype":"FP32","parameters":{"shared_memory_region":"r"}"#), "asks for shared memory"),
            (x(r#""name":"x""#), "inputs[0].name is given twice"),
            (format!(r#"{{"inputs":[{N},{N}]}}"#), "inputs[1] gives input `n` twice"),
            (format!(r#"{{"inputs":[{N}]}}"#), "input `x` is missing; the inputs are `x`, `n`"),
            (format!(r#"{{"inputs":[{}]}}"#, N.replace(r#""n""#, r#""m""#)), "inputs[0] `m` is no input; the inputs are `x`, `n`"),
            (r#"{"inputs":[],"inputs":[]}"#.to_owned(), "inputs is given twice"),
            (r#"{"outputs":[{"name":"w"}]}"#.to_owned(), "outputs[0].name `w` is no output; the outputs are `p`, `q`, `h`, `z`"),
            (r#"{"outputs":[{}]}"#.to_owned(), "outputs[0] has no `name`"),
            (r#"{"outputs":[{"name":"p"},{"name":"p"}]}"#.to_owned(), "outputs[1] asks for output `p` twice"),
            (r#"{"outputs":[{"name":"p","parameters":{"binary_data":true}}]}"#.to_owned(), "binary_data asks for binary tensor data"),
            (r#"{"outputs":[{"name":"p","parameters":{"classification":3}}]}"#.to_owned(), "classification asks for classification"),
            (r#"{"parameters":{"binary_data_output":true}}"#.to_owned(), "parameters.binary_data_output asks for binary tensor data"),
            (r#"{"parameters":{"triton_x":1}}"#.to_owned(), "parameters.triton_x is reserved"),
            (r#"{"id":7}"#.to_owned(), "id is a number where a string is wanted"),
            ("[]".to_owned(), "the body is an array where an object is wanted"),
        ];
        for (body, want) in cases {
            let message = decode(body.as_bytes(), &signature()).unwrap_err().message().to_owned();
            assert!(message.contains(want), "{body}\n got: {message}\nwant: {want}");
        }
    }

    #[test]
    fn no_outputs_means_all_tensors() {
        let mut signature = signature();
        let chosen = |outputs: &str, signature: &Signature| {
            let body = format!(r#"{{"inputs":[{N},{}]{outputs}}}"#, r#"{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}"#);
            decode(body.as_bytes(), signature).map(|decoded| decoded.outputs)
        };
        assert!(chosen("", &signature).unwrap_err().message().contains("sending FP16 data via JSON is not supported"));
        signature.outputs.remove(2);
        assert_eq!(chosen("", &signature).unwrap(), [0, 1]);
        assert_eq!(chosen(r#","outputs":[]"#, &signature).unwrap(), [0, 1]);
        let off = r#","outputs":[{"name":"q","parameters":{"binary_data":false}},{"name":"p"}],"parameters":{"binary_data_output":false}"#;
        assert_eq!(chosen(off, &signature).unwrap(), [1, 0]);
        assert!(chosen(r#","outputs":[{"name":"z"}]"#, &signature).unwrap_err().message().contains("the protocol has tensors only"));
    }
}
