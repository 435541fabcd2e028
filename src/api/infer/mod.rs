//! The one path of an inference, whatever protocol it comes by: decode → [`prepare`] → queue → [`Answer`] → encode.
//!
//! How a protocol uses it:
//!
//! 1. It asks the repository for the [`Servable`] first: a wrong name costs no parsing.
//! 2. It reads its message into an [`Envelope`]. An input is a parsed tensor or raw little-endian bytes
//!    ([`Contents`]); [`datatype`], [`dims`] and [`elements`] read the parts with the same words for every protocol.
//!    Parameters go through [`Parameters::set`] and [`Wanted::set`], which know the reserved ones.
//! 3. [`prepare`] makes tensors of raw bytes, puts them into the model's order and finds the outputs; it says what is wrong
//!    with the model's and the input's name. Decoding and preparing a large body is done in [`off_thread`].
//! 4. [`Prepared::run`] queues the request and takes the outputs that were asked for, classified where that was asked for.
//!    A protocol without named tensors makes its inputs itself and calls [`execute`].
//! 5. It encodes the [`Answer`] ([`raw::encode`] gives a tensor's bytes without a copy), and puts [`Clock::measured`] of
//!    [`Answer::clock`] into the response's extensions, from which the layers make metrics and `Server-Timing`.
//!
//! So every limit, error, metric and trace holds for all protocols, and equal requests have equal answers to the bit.

mod classify;
mod parameters;
pub(super) mod raw;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use smallvec::SmallVec;
use tokio::task::JoinHandle;

use super::Shared;
use super::body::Payload;
use super::layers::Measured;
use super::metrics::Phases;
use crate::engine::{DType, Port, Signature, Tensor, Value};
use crate::error::{Error, Kind};
use crate::serve::{InferRequest, Reason, Servable};

pub(super) use parameters::{Param, Parameters, input_parameter};

/// Sizes of a tensor's dimensions.
pub(super) type Dims = SmallVec<[usize; 4]>;

/// A request as a protocol read it: names and values, not yet held against a model.
#[derive(Debug, Default)]
pub(super) struct Envelope {
    /// The client's name for it.
    pub(super) id: Option<String>,
    pub(super) parameters: Parameters,
    pub(super) inputs: Vec<Input>,
    /// The outputs that are wanted, in the order of the answer; none means all.
    pub(super) outputs: Vec<Wanted>,
}

/// A named input.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) contents: Contents,
}

/// The values of an input.
#[derive(Debug)]
pub(super) enum Contents {
    /// The protocol had numbers and made a tensor of them.
    Tensor(Tensor),
    /// Row-major little-endian values; for BYTES each with its length in front (`u32`).
    Raw { dtype: DType, shape: Dims, bytes: Bytes },
}

/// An output that is wanted.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// So many of the most likely classes instead of the values; 0 for the values.
    pub(super) classes: usize,
    /// Whether raw bytes are wanted; `None` for what the request's parameters say.
    pub(super) binary: Option<bool>,
}

/// A request that fits its model, ready for the queue.
#[derive(Debug)]
pub(super) struct Prepared {
    id: Option<String>,
    parameters: Parameters,
    given: Given,
    outputs: SmallVec<[Chosen; 4]>,
}

/// The tensors of a request.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// One per input of the model, in order.
    pub(super) inputs: Vec<Tensor>,
    /// Those for optional inputs, by their positions.
    pub(super) overrides: Vec<(usize, Tensor)>,
}

#[derive(Clone, Copy, Debug)]
struct Chosen {
    output: usize,
    classes: usize,
    binary: bool,
}

/// What goes back to the client.
#[derive(Debug)]
pub(super) struct Answer {
    /// The client's name for its request.
    pub(super) id: Option<String>,
    pub(super) outputs: Vec<Output>,
    clock: Clock,
}

/// The times of a request until its model had computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    phases: Phases,
    computed: Instant,
}

/// A named output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    /// Whether the client wants raw bytes.
    pub(super) binary: bool,
}

/// An answer over HTTP.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) measured: Measured,
}

impl IntoResponse for Answered {
    fn into_response(mut self) -> Response {
        self.response.extensions_mut().insert(self.measured);
        self.response
    }
}

/// What a model computed, and where the time went until then.
#[derive(Debug)]
pub(super) struct Executed {
    /// The model's outputs, in the order of its signature.
    pub(super) outputs: Vec<Value>,
    phases: Phases,
    computed: Instant,
}

/// Work on more bytes than this blocks longer than a thread that serves other connections may.
const OFF_THREAD_BYTES: usize = 1 << 20;

/// Work that is done already, or that is done elsewhere: a future that is no larger than its result.
#[derive(Debug)]
pub(super) enum Work<T> {
    /// `None` once it was asked for.
    Done(Option<Result<T, Error>>),
    Elsewhere(JoinHandle<Result<T, Error>>),
}

// Nothing in it is pinned.
impl<T> Unpin for Work<T> {}

impl<T> Future for Work<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Done(result) => Poll::Ready(result.take().expect("a future is not asked again")),
            Self::Elsewhere(handle) => Pin::new(handle)
                .poll(cx)
                .map(|joined| joined.unwrap_or_else(|panic| Err(Error::internal("the server failed to handle the request", panic)))),
        }
    }
}

/// Does `work` on about `bytes` bytes: here and at once if they are few, else on a thread that may block. It is an `Internal` error if
/// it panics there.
pub(super) fn off_thread<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Work<T> {
    if bytes < OFF_THREAD_BYTES {
        return Work::Done(Some(work()));
    }
    Work::Elsewhere(tokio::task::spawn_blocking(work))
}

/// [`off_thread`] with what the request is for, of which only work elsewhere needs a share of its own: every share is counted at
/// one place in memory for all processors.
pub(super) fn off_thread_for<T: Send + 'static>(
    handle: &Servable,
    bytes: usize,
    work: impl FnOnce(&Servable) -> Result<T, Error> + Send + 'static,
) -> Work<T> {
    if bytes < OFF_THREAD_BYTES {
        return Work::Done(Some(work(handle)));
    }
    let handle = handle.clone();
    off_thread(bytes, move || work(&handle))
}

/// The same error with the model's name in front.
pub(super) fn of_model(handle: &Servable, error: Error) -> Error {
    Error::new(error.kind(), format!("model `{}`: {}", handle.name(), error.message()))
}

/// The element type that the protocols call `name`. The error continues the name of what has it.
///
/// # Errors
/// If there is none.
pub(super) fn datatype(name: &str) -> Result<DType, String> {
    DType::from_oip(name).ok_or_else(|| {
        let known = DType::ALL.iter().map(|dtype| dtype.oip()).collect::<Vec<_>>().join(", ");
        format!("is `{name}`; known are {known}")
    })
}

/// The sizes of a shape as protobuf has it. The error continues the name of what has it.
///
/// # Errors
/// If one is negative, or all together are too large.
pub(super) fn dims(shape: &[i64]) -> Result<Dims, String> {
    let size = |&size: &i64| usize::try_from(size).map_err(|_| format!("is {shape:?}; a size must not be negative"));
    let dims: Dims = shape.iter().map(size).collect::<Result<_, _>>()?;
    elements(&dims).map(|_| dims)
}

/// The number of elements of a shape. The error continues the name of what has it.
///
/// # Errors
/// If it is too large to be counted in bytes.
pub(super) fn elements(shape: &[usize]) -> Result<usize, String> {
    // The engine counts bytes in an `isize`; sixteen bytes per element is more than any type takes but strings. Zeros do not
    // save a shape: its strides would overflow.
    let product = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size.max(1)));
    match product.filter(|&product| product <= isize::MAX as usize / 16) {
        Some(_) if shape.contains(&0) => Ok(0),
        Some(product) => Ok(product),
        None => Err(format!("causes the total element count to exceed the maximum of {}", isize::MAX / 16)),
    }
}

/// The names of `ports` for a message.
pub(super) fn names(ports: &[Port]) -> String {
    ports.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ")
}

/// Holds a request against the model of `handle`.
///
/// # Errors
/// `InvalidArgument` that names the model and the input or output: one that is unknown, missing or given twice, raw bytes that
/// do not fit their shape, an output that has no form in the answer. Shapes are checked by [`Servable::infer`].
pub(super) fn prepare(envelope: Envelope, handle: &Servable) -> Result<Prepared, Error> {
    let signature = handle.signature();
    let Envelope { id, parameters, inputs, outputs } = envelope;
    let prepared = arrange(inputs, signature)
        .and_then(|given| Ok((given, choose(&outputs, &parameters, signature)?)))
        .map_err(|message| Error::invalid(format!("model `{}`: {message}", handle.name())))?;
    Ok(Prepared { id, parameters, given: prepared.0, outputs: prepared.1 })
}

/// One tensor per input of the model, in order; the optional ones behind the others.
fn arrange(inputs: Vec<Input>, signature: &Signature) -> Result<Given, String> {
    let required = signature.inputs.len();
    let mut arranged: SmallVec<[Option<Tensor>; 4]> = SmallVec::from_elem(None, required + signature.optional.len());
    for Input { name, contents } in inputs {
        let optional = || signature.optional(&name).map(|position| required + position);
        let Some(position) = signature.input(&name).or_else(optional) else {
            return Err(format!("input `{name}` is not known; the inputs are {}", names(&signature.inputs)));
        };
        if arranged[position].is_some() {
            return Err(format!("input `{name}` is given twice"));
        }
        arranged[position] = Some(match contents {
            Contents::Tensor(tensor) => tensor,
            Contents::Raw { dtype, shape, bytes } => {
                raw::decode(dtype, &shape, &bytes).map_err(|message| format!("input `{name}` {message}"))?
            }
        });
    }
    let (given, optional) = arranged.split_at_mut(required);
    if let Some(missing) = given.iter().position(Option::is_none) {
        return Err(format!("input `{}` is missing; the inputs are {}", signature.inputs[missing].name, names(&signature.inputs)));
    }
    let overrides = optional.iter_mut().enumerate().filter_map(|(position, tensor)| Some((position, tensor.take()?))).collect();
    let mut inputs = Vec::with_capacity(required);
    inputs.extend(given.iter_mut().filter_map(Option::take));
    Ok(Given { inputs, overrides })
}

/// The outputs that are wanted: those that are named, else every tensor.
fn choose(wanted: &[Wanted], parameters: &Parameters, signature: &Signature) -> Result<SmallVec<[Chosen; 4]>, String> {
    let mut chosen: SmallVec<[Chosen; 4]> = SmallVec::new();
    for Wanted { name, classes, binary } in wanted {
        let unknown = || format!("output `{name}` is not known; the outputs are {}", names(&signature.outputs));
        let output = signature.output(name).ok_or_else(unknown)?;
        if chosen.iter().any(|other| other.output == output) {
            return Err(format!("output `{name}` is asked for twice"));
        }
        chosen.push(Chosen { output, classes: *classes, binary: binary.unwrap_or(parameters.binary_output) });
    }
    if wanted.is_empty() {
        let tensors = (0..signature.outputs.len()).filter(|&output| signature.outputs[output].kind.dtype().is_some());
        chosen.extend(tensors.map(|output| Chosen { output, classes: 0, binary: parameters.binary_output }));
    }
    for Chosen { output, classes, binary } in &chosen {
        has_a_form(&signature.outputs[*output], *classes, *binary)?;
    }
    Ok(chosen)
}

/// Whether the protocols can carry an output; found out before anything is computed.
fn has_a_form(port: &Port, classes: usize, binary: bool) -> Result<(), String> {
    let name = &port.name;
    match port.kind.dtype() {
        None => Err(format!("output `{name}` is a {}; the protocol has tensors only", port.kind)),
        Some(dtype) if classes > 0 => classify::has_classes(dtype).map_err(|message| format!("output `{name}` {message}")),
        Some(dtype) if binary && !raw::has_form(dtype) => Err(format!("output `{name}` is {}, which has no binary form", dtype.oip())),
        Some(dtype @ (DType::F16 | DType::BF16)) if !binary => Err(format!(
            "sending {} data via JSON is not supported. Please use the binary data format for output `{name}`; or \
             /v1/models/<model>:predict, which answers with numbers",
            dtype.oip()
        )),
        Some(_) => Ok(()),
    }
}

/// Queues a request and waits for the model. `received` is when its decoding began.
///
/// # Errors
/// As [`Servable::infer`].
pub(super) async fn execute(
    shared: &Shared,
    handle: &Servable,
    given: Given,
    parameters: &Parameters,
    received: Instant,
) -> Result<Executed, Error> {
    let deadline = parameters.timeout.and_then(|timeout| received.checked_add(timeout.min(shared.limits.max_timeout)));
    let Given { inputs, overrides } = given;
    let response = handle.infer(InferRequest { deadline, priority: parameters.priority, overrides, ..InferRequest::new(inputs) }).await?;
    let timing = response.timing;
    let queued = timing.started.checked_sub(timing.queue).unwrap_or(timing.started);
    let parse = queued.saturating_duration_since(received);
    let phases = Phases { parse, queue: timing.queue, compute: timing.compute, ..Phases::default() };
    // A pass on this thread ended just now; the answer of another has been on its way.
    let computed = if timing.reason == Reason::Inline { timing.started + timing.compute } else { Instant::now() };
    Ok(Executed { outputs: response.outputs, phases, computed })
}

impl Executed {
    /// About how many bytes the outputs take.
    pub(super) fn bytes(&self) -> usize {
        self.outputs.iter().map(Value::bytes).sum()
    }

    /// The times so far.
    pub(super) fn clock(&self) -> Clock {
        Clock { phases: self.phases, computed: self.computed }
    }
}

impl Clock {
    /// The times of an answer that is encoded now, which counts them.
    pub(super) fn measured(self, shared: &Shared, handle: &Servable) -> Measured {
        let phases = Phases { serialize: self.computed.elapsed(), ..self.phases };
        shared.traces.record(handle, &phases);
        shared.metrics.inferred(handle.name(), handle.version(), &phases);
        Measured(phases)
    }

    /// The answer over HTTP, encoded now.
    pub(super) fn answer(self, payload: Payload, shared: &Shared, handle: &Servable) -> Answered {
        Answered { response: payload.into_response(), measured: self.measured(shared, handle) }
    }
}

impl Prepared {
    /// Queues the request, once, and takes what was asked for of the model's outputs. `received` is when its decoding began.
    ///
    /// # Errors
    /// As [`Servable::infer`].
    pub(super) async fn run(&mut self, shared: &Shared, handle: &Servable, received: Instant) -> Result<Answer, Error> {
        let given = std::mem::take(&mut self.given);
        let executed = execute(shared, handle, given, &self.parameters, received).await?;
        let (clock, mut values) = (executed.clock(), executed.outputs);
        let signature = handle.signature();
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for &Chosen { output, classes, binary } in &self.outputs {
            let name = &signature.outputs[output].name;
            // Each is chosen once.
            let Value::Tensor(mut tensor) = std::mem::replace(&mut values[output], Value::Optional(None)) else {
                let message = format!("model `{}`: output `{name}` is no tensor; the protocol has tensors only", handle.name());
                return Err(Error::new(Kind::Unsupported, message));
            };
            if classes > 0 {
                tensor = classify::classify(&tensor, classes, &handle.settings().labels, signature.batchable);
            }
            outputs.push(Output { name: name.clone(), tensor, binary });
        }
        Ok(Answer { id: self.id.take(), outputs, clock })
    }
}

impl Answer {
    /// About how many bytes the outputs take.
    pub(super) fn bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.tensor.bytes() + output.tensor.text_bytes()).sum()
    }

    /// The times so far.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Dim, Kind as ValueKind};

    fn signature() -> Signature {
        let port = |name: &str, dtype| Port {
            name: name.to_owned(),
            kind: ValueKind::Tensor(dtype),
            dims: Some(vec![Dim::Free("batch".into()), Dim::Fixed(2)]),
        };
        let mut outputs = vec![port("p", DType::F32), port("h", DType::F16), port("s", DType::String), port("c", DType::C64)];
        outputs.push(Port { name: "z".into(), kind: ValueKind::Sequence(Box::new(ValueKind::Tensor(DType::F32))), dims: None });
        Signature { inputs: vec![port("x", DType::F32), port("n", DType::I64)], outputs, batchable: true, ..Signature::default() }
    }

    fn raw(name: &str, dtype: DType, bytes: &[u8]) -> Input {
        let contents = Contents::Raw { dtype, shape: Dims::from_slice(&[1, 2]), bytes: Bytes::copy_from_slice(bytes) };
        Input { name: name.to_owned(), contents }
    }

    #[test]
    fn inputs_come_in_any_order_and_form() {
        let x = Input { name: "x".into(), contents: Contents::Tensor(Tensor::zeros(DType::F32, &[1, 2])) };
        let arranged = arrange(vec![raw("n", DType::I64, &[1; 16]), x], &signature()).unwrap().inputs;
        assert_eq!(arranged[0], Tensor::zeros(DType::F32, &[1, 2]));
        assert_eq!(arranged[1], Tensor::new(&[1, 2], vec![i64::from_le_bytes([1; 8]); 2]).unwrap());
    }

    #[test]
    fn wrong_inputs_are_named() {
        let x = || raw("x", DType::F32, &[0; 8]);
        for (inputs, want) in [
            (vec![x()], "input `n` is missing; the inputs are `x`, `n`"),
            (vec![x(), x()], "input `x` is given twice"),
            (vec![raw("y", DType::F32, &[])], "input `y` is not known; the inputs are `x`, `n`"),
            (vec![raw("x", DType::F32, &[0; 7])], "input `x` has 7 bytes where shape [1, 2] of FP32 wants 8"),
        ] {
            assert_eq!(arrange(inputs, &signature()).unwrap_err(), want);
        }
    }

    #[test]
    fn outputs_without_a_form_are_refused_before_anything_runs() {
        let choose = |name: &str, classes, binary| {
            let wanted = Wanted { name: name.into(), classes, binary };
            choose(&[wanted], &Parameters { binary_output: true, ..Parameters::default() }, &signature()).map(|chosen| chosen[0].binary)
        };
        assert_eq!(choose("p", 0, None), Ok(true));
        assert_eq!(choose("p", 3, Some(false)), Ok(false));
        assert_eq!(choose("h", 0, None), Ok(true));
        for (name, classes, binary, want) in [
            ("h", 0, Some(false), "sending FP16 data via JSON is not supported. Please use the binary data format for output `h`"),
            ("s", 1, None, "output `s` is BYTES, which has no classes"),
            ("c", 0, None, "output `c` is COMPLEX64, which has no binary form"),
            ("z", 0, None, "output `z` is a sequence of float32; the protocol has tensors only"),
            ("w", 0, None, "output `w` is not known; the outputs are `p`"),
        ] {
            let message = choose(name, classes, binary).unwrap_err();
            assert!(message.contains(want), "{message}");
        }
        let twice = [Wanted { name: "p".into(), ..Wanted::default() }, Wanted { name: "p".into(), ..Wanted::default() }];
        assert_eq!(super::choose(&twice, &Parameters::default(), &signature()).unwrap_err(), "output `p` is asked for twice");
    }

    #[test]
    fn shapes_are_counted_without_overflow() {
        assert_eq!(elements(&[]), Ok(1));
        assert_eq!(elements(&[2, 0, 3]), Ok(0));
        assert!(elements(&[1 << 32, 1 << 32]).is_err());
        assert!(elements(&[0, usize::MAX, 9]).is_err());
        assert_eq!(dims(&[2, -1]).unwrap_err(), "is [2, -1]; a size must not be negative");
        assert_eq!(dims(&[2, 3]).unwrap().as_slice(), [2, 3]);
    }
}
