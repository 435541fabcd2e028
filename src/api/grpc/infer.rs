//! Inference: a message into an envelope, through the path that all protocols share, and its answer into a message.

use std::collections::HashMap;
use std::time::Instant;

use super::super::Shared;
use super::super::infer::{Answer, Contents, Dims, Envelope, Input, Output, Param, Wanted, datatype, dims, input_parameter};
use super::super::infer::{of_model, off_thread_for, prepare, raw};
use super::super::layers::Measured;
use super::contents;
use super::proto::inference::infer_parameter::ParameterChoice;
use super::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::inference::model_infer_response::InferOutputTensor;
use super::proto::inference::{InferParameter, ModelInferRequest, ModelInferResponse};
use crate::engine::{DType, Signature};
use crate::error::Error;
use crate::serve::Servable;

/// Answers a request, at the latest at `deadline`.
///
/// # Errors
/// As the shared path; and if the forms of the inputs contradict each other.
pub(super) async fn infer(
    shared: &Shared,
    request: ModelInferRequest,
    deadline: Option<Instant>,
) -> Result<(ModelInferResponse, Measured), Error> {
    let received = Instant::now();
    let version = Some(&*request.model_version).filter(|version| !version.is_empty());
    let handle = shared.repository.get(&request.model_name, version)?;
    let (mut prepared, form) = off_thread_for(&handle, size(&request), move |handle| {
        let (mut envelope, form) = envelope(request, handle.signature()).map_err(|message| of_model(handle, Error::invalid(message)))?;
        envelope.parameters.end_by(deadline, received);
        Ok((prepare(envelope, handle)?, form))
    })
    .await?;
    let answer = prepared.run(shared, &handle, received).await?;
    let (response, answer) = off_thread_for(&handle, answer.bytes(), move |handle| Ok((response(&answer, handle, form), answer))).await?;
    Ok((response, answer.clock().measured(shared, &handle)))
}

/// About how many bytes the inputs take.
fn size(request: &ModelInferRequest) -> usize {
    let typed = |input: &InferInputTensor| {
        let Some(contents) = &input.contents else { return 0 };
        8 * (contents.int_contents.len() + contents.uint_contents.len() + contents.fp32_contents.len() + contents.fp64_contents.len())
            + 8 * (contents.int64_contents.len() + contents.uint64_contents.len())
            + contents.bool_contents.len()
            + contents.bytes_contents.iter().map(|bytes| bytes.len() + size_of::<String>()).sum::<usize>()
    };
    request.raw_input_contents.iter().map(|bytes| bytes.len()).sum::<usize>() + request.inputs.iter().map(typed).sum::<usize>()
}

/// In which form the outputs go back: all in one, because clients find raw contents by their position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Raw,
    Typed,
}

/// Reads the message; decides the form of the answer: typed if the inputs were, and every output that is wanted has one.
fn envelope(request: ModelInferRequest, signature: &Signature) -> Result<(Envelope, Form), String> {
    let ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents, .. } = request;
    let mut envelope = Envelope { id: Some(id).filter(|id| !id.is_empty()), ..Envelope::default() };
    for (key, value) in &parameters {
        envelope.parameters.set(key, &param(value)).map_err(|message| format!("parameter `{key}` {message}"))?;
    }
    let typed = raw_input_contents.is_empty() && inputs.iter().any(|input| input.contents.is_some());
    envelope.inputs = if raw_input_contents.is_empty() {
        inputs.into_iter().map(typed_input).collect::<Result<_, _>>()?
    } else {
        if raw_input_contents.len() != inputs.len() {
            let (inputs, raw) = (inputs.len(), raw_input_contents.len());
            return Err(format!("the number of inputs ({inputs}) does not match the number of raw_input_contents ({raw})"));
        }
        inputs.into_iter().zip(raw_input_contents).map(raw_input).collect::<Result<_, _>>()?
    };
    envelope.outputs = outputs.into_iter().map(wanted).collect::<Result<_, _>>()?;
    let form = if typed && all_typed(&envelope.outputs, signature) { Form::Typed } else { Form::Raw };
    let binary = form == Form::Raw;
    envelope.parameters.binary_output = binary;
    for wanted in &mut envelope.outputs {
        wanted.binary = Some(binary);
    }
    Ok((envelope, form))
}

/// Whether every output that is wanted has typed contents.
fn all_typed(wanted: &[Wanted], signature: &Signature) -> bool {
    let typed = |dtype: Option<DType>| dtype.is_none_or(|dtype| contents::field(dtype).is_some());
    if wanted.is_empty() {
        return signature.outputs.iter().all(|port| typed(port.kind.dtype()));
    }
    let port = |wanted: &Wanted| signature.output(&wanted.name).map(|output| &signature.outputs[output]);
    // Classes are text, whatever the output is.
    wanted.iter().all(|wanted| wanted.classes > 0 || port(wanted).is_none_or(|port| typed(port.kind.dtype())))
}

/// The datatype and sizes of an input; and its parameters, which ask for nothing.
fn head(input: &InferInputTensor) -> Result<(DType, Dims), String> {
    let named = |message| format!("input `{}` {message}", input.name);
    let dtype = datatype(&input.datatype).map_err(|message| named(format!("datatype {message}")))?;
    let dims = dims(&input.shape).map_err(|message| named(format!("shape {message}")))?;
    for key in input.parameters.keys() {
        input_parameter(key).map_err(|message| named(format!("parameter `{key}` {message}")))?;
    }
    Ok((dtype, dims))
}

fn raw_input((input, bytes): (InferInputTensor, axum::body::Bytes)) -> Result<Input, String> {
    let (dtype, shape) = head(&input)?;
    if input.contents.is_some_and(|contents| contents != Default::default()) {
        return Err(format!("contents field must not be specified when using raw_input_contents for input `{}`", input.name));
    }
    Ok(Input { name: input.name, contents: Contents::Raw { dtype, shape, bytes } })
}

fn typed_input(input: InferInputTensor) -> Result<Input, String> {
    let (dtype, shape) = head(&input)?;
    let InferInputTensor { name, contents, .. } = input;
    let tensor = contents::decode(dtype, &shape, contents.unwrap_or_default()).map_err(|message| format!("input `{name}` {message}"))?;
    Ok(Input { name, contents: Contents::Tensor(tensor) })
}

fn wanted(output: InferRequestedOutputTensor) -> Result<Wanted, String> {
    let InferRequestedOutputTensor { name, parameters } = output;
    let mut wanted = Wanted { name, ..Wanted::default() };
    for (key, value) in &parameters {
        let set = wanted.set(key, &param(value));
        set.map_err(|message| format!("output `{}` parameter `{key}` {message}", wanted.name))?;
    }
    Ok(wanted)
}

fn param(value: &InferParameter) -> Param {
    match &value.parameter_choice {
        Some(ParameterChoice::BoolParam(value)) => Param::Bool(*value),
        Some(ParameterChoice::Int64Param(value)) => Param::Integer((*value).into()),
        Some(ParameterChoice::Uint64Param(value)) => Param::Integer((*value).into()),
        Some(ParameterChoice::DoubleParam(value)) => Param::Float(*value),
        Some(ParameterChoice::StringParam(text)) => Param::Text(text.clone()),
        None => Param::Other,
    }
}

fn response(answer: &Answer, handle: &Servable, form: Form) -> ModelInferResponse {
    let mut response = ModelInferResponse {
        model_name: handle.name().to_owned(),
        model_version: handle.version().to_owned(),
        id: answer.id.clone().unwrap_or_default(),
        parameters: HashMap::new(),
        outputs: Vec::with_capacity(answer.outputs.len()),
        raw_output_contents: Vec::new(),
    };
    for Output { name, tensor, .. } in &answer.outputs {
        let contents = match form {
            Form::Typed => contents::encode(tensor),
            Form::Raw => None,
        };
        if form == Form::Raw {
            // A form was found before the model ran.
            response.raw_output_contents.push(raw::encode(tensor).unwrap_or_default());
        }
        response.outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: tensor.dtype().oip().to_owned(),
            shape: tensor.shape().iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect(),
            parameters: HashMap::new(),
            contents,
        });
    }
    response
}
