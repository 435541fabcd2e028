//! From an Open Inference request to an envelope: JSON, and behind it the raw tensors of the binary extension.

use std::borrow::Cow;

use axum::body::Bytes;
use http::{HeaderMap, HeaderName};

use super::super::infer::{self, Contents, Dims, Envelope, Input, Param, Parameters, Wanted, datatype, elements, names, raw};
use super::super::json::{JsonError, Nested, Reader, Result, Token};
use crate::engine::{Buffer, DType, Dim, Port, Signature, Tensor};
use crate::error::Error;

/// How many bytes of the body are JSON; the tensors follow. 0: the body is the one input.
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The value of [`HEADER_LENGTH`]; `None` if the body is JSON alone.
///
/// # Errors
/// If it is no number.
pub(super) fn header_length(headers: &HeaderMap) -> std::result::Result<Option<usize>, Error> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let wrong = || Error::invalid(format!("Inference-Header-Content-Length is {value:?} where a number of bytes is wanted"));
    number.map(Some).ok_or_else(wrong)
}

/// Decodes a request for a model of `signature`. Keys that the protocol does not have are ignored.
///
/// # Errors
/// `InvalidArgument` that names the place, what is wrong and what is wanted.
pub(super) fn decode(body: &Bytes, header: Option<usize>, signature: &Signature) -> std::result::Result<Envelope, Error> {
    let json = match header {
        Some(0) => return raw_request(body, signature).map_err(Error::invalid),
        Some(length) if length > body.len() => {
            let message = format!("Inference-Header-Content-Length is {length}; the body has {} bytes", body.len());
            return Err(Error::invalid(message));
        }
        Some(length) => &body[..length],
        None => body,
    };
    let mut envelope = Envelope::default();
    let mut rest = body.slice(json.len()..);
    let mut seen = Seen::default();
    let mut reader = Reader::new(json);
    reader.object(|reader, key| {
        seen.once(reader, &key)?;
        // Clients write what they leave out as null.
        if reader.peek()? == Token::Null {
            return reader.skip();
        }
        let read = match &*key {
            "id" => reader.string().map(|text| envelope.id = Some(text.into_owned())),
            "parameters" => request_parameters(reader, &mut envelope.parameters),
            "inputs" => reader.array(|reader, _| read_input(reader, &mut rest).map(|input| envelope.inputs.push(input))),
            "outputs" => reader.array(|reader, _| read_output(reader).map(|output| envelope.outputs.push(output))),
            _ => return reader.skip(),
        };
        read.map_err(|error| error.under(key))
    })?;
    reader.end()?;
    if !rest.is_empty() {
        return Err(Error::invalid(format!("{} bytes are left behind the binary data of the inputs", rest.len())));
    }
    Ok(envelope)
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

/// Reads an object of parameters; each goes to `take`, whose message continues its name.
fn parameters(reader: &mut Reader<'_>, mut take: impl FnMut(&str, &Param) -> std::result::Result<(), String>) -> Result<()> {
    reader.object(|reader, key| {
        let at = reader.peek().map(|_| reader.at())?;
        let value = param(reader)?;
        take(&key, &value).map_err(|message| JsonError::value(at, message).under(key))
    })
}

fn param(reader: &mut Reader<'_>) -> Result<Param> {
    Ok(match reader.peek()? {
        Token::Bool => Param::Bool(reader.boolean()?),
        Token::String => Param::Text(reader.string()?.into_owned()),
        Token::Number => {
            let text = reader.number()?;
            match text.parse() {
                Ok(whole) => Param::Integer(whole),
                Err(_) => Param::Float(text.parse().unwrap_or(f64::NAN)),
            }
        }
        Token::Object | Token::Array | Token::Null => {
            reader.skip()?;
            Param::Other
        }
    })
}

fn request_parameters(reader: &mut Reader<'_>, into: &mut Parameters) -> Result<()> {
    parameters(reader, |key, value| into.set(key, value))
}

fn read_output(reader: &mut Reader<'_>) -> Result<Wanted> {
    let mut output = Wanted::default();
    let mut named = false;
    let at = reader.at();
    reader.object(|reader, key| {
        if reader.peek()? == Token::Null {
            return reader.skip();
        }
        let read = match &*key {
            "name" => reader.string().map(|name| {
                output.name = name.into_owned();
                named = true;
            }),
            "parameters" => parameters(reader, |key, value| output.set(key, value)),
            _ => return reader.skip(),
        };
        read.map_err(|error| error.under(key))
    })?;
    if named { Ok(output) } else { Err(JsonError::value(at, "has no `name`")) }
}

/// The members of an input. `data` is read at once if its type is known by then, else when it is.
#[derive(Default)]
struct Members<'a> {
    name: Option<Cow<'a, str>>,
    dtype: Option<DType>,
    shape: Option<Shape>,
    data: Option<Data<'a>>,
    binary_size: Option<usize>,
}

struct Shape {
    sizes: Dims,
    elements: usize,
}

enum Data<'a> {
    Read(Buffer, Nested),
    Later(Reader<'a>),
}

/// Reads an input; one with binary data takes it from the start of `rest`.
fn read_input(reader: &mut Reader<'_>, rest: &mut Bytes) -> Result<Input> {
    let at = reader.at();
    let mut members = Members::default();
    reader.object(|reader, key| members.read(reader, &key))?;
    let Members { name, dtype, shape, data, binary_size } = members;
    let missing = |key: &str| JsonError::value(at, format!("has no `{key}`; name, shape, datatype and data are wanted"));
    let name = name.ok_or_else(|| missing("name"))?.into_owned();
    let dtype = dtype.ok_or_else(|| missing("datatype"))?;
    let shape = shape.ok_or_else(|| missing("shape"))?;
    let wrong = |message: String| JsonError::value(at, format!("`{name}`: {message}"));
    let contents = match (data, binary_size) {
        (Some(_), Some(_)) => return Err(wrong("`data` and `parameters.binary_data_size` are given; one of them is wanted".to_owned())),
        (None, None) => return Err(missing("data")),
        (None, Some(size)) if size > rest.len() => {
            return Err(wrong(format!("binary_data_size is {size}; {} bytes are left behind the JSON", rest.len())));
        }
        (None, Some(size)) => Contents::Raw { dtype, shape: shape.sizes, bytes: rest.split_to(size) },
        (Some(_), None) if matches!(dtype, DType::F16 | DType::BF16) => {
            let oip = dtype.oip();
            return Err(wrong(format!(
                "receiving {oip} data via JSON is not supported. Please use the binary data format for input `{name}`"
            )));
        }
        (Some(data), None) => {
            let (values, nested) = match data {
                Data::Read(values, nested) => (values, nested),
                Data::Later(mut reader) => read_data(&mut reader, dtype, shape.elements).map_err(|error| error.under("data"))?,
            };
            Contents::Tensor(tensor(values, &nested, &shape).map_err(wrong)?)
        }
    };
    Ok(Input { name, contents })
}

/// Flat data has any shape; nested data says its own.
fn tensor(values: Buffer, nested: &Nested, shape: &Shape) -> std::result::Result<Tensor, String> {
    let found = values.len();
    if found != shape.elements || (nested.len() > 1 && *nested != shape.sizes) {
        let nesting = if nested.len() > 1 { format!(", nested as {:?}", nested.as_slice()) } else { String::new() };
        return Err(format!("shape {:?} wants {} values, data has {found}{nesting}", shape.sizes.as_slice(), shape.elements));
    }
    Ok(values.into_tensor(&shape.sizes).expect("the values were counted"))
}

impl<'a> Members<'a> {
    fn read(&mut self, reader: &mut Reader<'a>, key: &str) -> Result<()> {
        if reader.peek()? == Token::Null {
            return reader.skip();
        }
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
            "parameters" => parameters(reader, |key, value| self.parameter(key, value)),
            "data" => self.read_data(reader),
            _ => reader.skip(),
        };
        read.map_err(|error| error.under(key))
    }

    fn parameter(&mut self, key: &str, value: &Param) -> std::result::Result<(), String> {
        if key != "binary_data_size" {
            return infer::input_parameter(key);
        }
        let size = match value {
            Param::Integer(size) => usize::try_from(*size).ok(),
            _ => None,
        };
        self.binary_size = Some(size.ok_or("is no number of bytes")?);
        Ok(())
    }

    fn read_data(&mut self, reader: &mut Reader<'a>) -> Result<()> {
        self.data = Some(match self.dtype {
            Some(dtype) if !matches!(dtype, DType::F16 | DType::BF16) => {
                let (values, nested) = read_data(reader, dtype, self.shape.as_ref().map_or(0, |shape| shape.elements))?;
                Data::Read(values, nested)
            }
            _ => {
                reader.want(Token::Array)?;
                let later = reader.clone();
                reader.skip()?;
                Data::Later(later)
            }
        });
        Ok(())
    }
}

fn read_data(reader: &mut Reader<'_>, dtype: DType, expected: usize) -> Result<(Buffer, Nested)> {
    reader.want(Token::Array)?;
    reader.tensor(dtype, expected)
}

fn read_dtype(reader: &mut Reader<'_>) -> Result<DType> {
    let name = reader.string()?;
    datatype(&name).map_err(|message| JsonError::value(reader.at(), message))
}

fn read_shape(reader: &mut Reader<'_>) -> Result<Shape> {
    let mut sizes = Dims::new();
    reader.array(|reader, _| {
        let size = usize::try_from(reader.unsigned()?).map_err(|_| JsonError::value(reader.at(), "is too large"))?;
        sizes.push(size);
        Ok(())
    })?;
    let elements = elements(&sizes).map_err(|message| JsonError::value(reader.at(), message))?;
    Ok(Shape { sizes, elements })
}

/// A request whose body is the one input of the model: one row, with at most one size that the number of bytes decides; an
/// input of BYTES is one element without its length. All outputs are wanted as bytes.
fn raw_request(body: &Bytes, signature: &Signature) -> std::result::Result<Envelope, String> {
    const WHAT: &str = "a raw request (Inference-Header-Content-Length: 0)";
    let [port] = signature.inputs.as_slice() else {
        return Err(format!("{WHAT} has one input; the inputs are {}", names(&signature.inputs)));
    };
    let of_input = |message: String| format!("{WHAT} cannot carry input `{}` ({}): {message}", port.name, port.dims_text());
    let dtype = port.kind.dtype().ok_or_else(|| of_input(format!("it is a {}", port.kind)))?;
    let contents = if dtype == DType::String {
        let text = raw::utf8(body, 0).map_err(of_input)?;
        let shape = raw_shape(port, signature.batchable, 1).map_err(of_input)?;
        Contents::Tensor(Tensor::new(&shape, vec![text]).ok_or_else(|| of_input("it has more than one element".to_owned()))?)
    } else {
        if !body.len().is_multiple_of(dtype.size()) {
            return Err(of_input(format!("{} bytes are no whole number of {} elements", body.len(), dtype.oip())));
        }
        let shape = raw_shape(port, signature.batchable, body.len() / dtype.size()).map_err(of_input)?;
        Contents::Raw { dtype, shape, bytes: body.clone() }
    };
    let parameters = Parameters { binary_output: true, ..Parameters::default() };
    let input = Input { name: port.name.clone(), contents };
    Ok(Envelope { parameters, inputs: vec![input], ..Envelope::default() })
}

/// The shape of one row of so many elements.
fn raw_shape(port: &Port, batchable: bool, count: usize) -> std::result::Result<Dims, String> {
    let dims = port.dims.as_ref().ok_or("its rank is not known")?;
    let mut open = None;
    let mut shape = Dims::new();
    for (axis, dim) in dims.iter().enumerate() {
        shape.push(match dim {
            Dim::Fixed(size) => *size,
            Dim::Free(_) if axis == 0 && batchable => 1,
            Dim::Free(_) if open.replace(axis).is_some() => return Err("more than one of its dimensions is free".to_owned()),
            Dim::Free(_) => 1,
        });
    }
    let known = elements(&shape)?;
    match open {
        Some(axis) if known > 0 && count.is_multiple_of(known) => shape[axis] = count / known,
        None if known == count => {}
        _ => return Err(format!("{count} elements do not fit its shape")),
    }
    Ok(shape)
}

#[cfg(test)]
mod tests;
