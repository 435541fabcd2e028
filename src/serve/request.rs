//! A request as it enters the queue, and its answer as it leaves.

use std::time::{Duration, Instant};

use crate::engine::{Tensor, Value};

/// What a client wants computed.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// One tensor per input of the model, in the order of its signature.
    pub inputs: Vec<Tensor>,
    /// Tensors for optional inputs, by their positions in the signature. A request with one is run alone.
    pub overrides: Vec<(usize, Tensor)>,
    /// When the client stops waiting; `None` for the model's default.
    pub deadline: Option<Instant>,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct InferResponse {
    /// The model's outputs, in the order of its signature.
    pub outputs: Vec<Value>,
    /// Where the time went.
    pub timing: Timing,
}

/// Where a request's time went between decoding and encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From entering the queue until the forward pass began.
    pub queue: Duration,
    /// The forward pass, which the request may have shared with others.
    pub compute: Duration,
    /// Rows of that forward pass, the others' included.
    pub batch_rows: usize,
}
