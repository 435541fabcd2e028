//! A request as it enters the queue, and its answer as it leaves.

use std::time::{Duration, Instant};

use super::batcher::Reason;
use crate::engine::{Tensor, Value};

pub use crate::trace::OperatorTime;

/// What a client wants computed.
#[derive(Clone, Debug, Default)]
pub struct InferRequest {
    /// One tensor per input of the model, in the order of its signature.
    pub inputs: Vec<Tensor>,
    /// Tensors for optional inputs, by their positions in the signature. A request with one is run alone.
    pub overrides: Vec<(usize, Tensor)>,
    /// 1 is the most urgent of the model's levels. 0, or a level that the model does not have, stands for its default.
    pub priority: u64,
    /// When the client stops waiting; `None` for the model's default. It is cut to the model's longest timeout.
    pub deadline: Option<Instant>,
    /// Whether it goes behind every request of a client, and is counted as no inference: it is part of an explanation.
    pub background: bool,
    /// Whether to time every operator. Such a request shares its forward pass with no other.
    pub profile: bool,
}

impl InferRequest {
    /// A request for `inputs` with the model's defaults for everything else.
    pub fn new(inputs: Vec<Tensor>) -> Self {
        Self { inputs, ..Self::default() }
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct InferResponse {
    /// The model's outputs, in the order of its signature.
    pub outputs: Vec<Value>,
    /// Where the time went.
    pub timing: Timing,
    /// Time of every operator, in the order of the graph, if the request asked for it.
    pub profile: Option<Vec<OperatorTime>>,
}

/// Where a request's time went between decoding and encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From entering the queue until the forward pass began.
    pub queue: Duration,
    /// The forward pass, which the request may have shared with others; [`Timing::input`] and [`Timing::output`] are in it.
    pub compute: Duration,
    /// The part of `compute` that gathered the rows of several requests.
    pub input: Duration,
    /// The part of `compute` that took the outputs apart.
    pub output: Duration,
    /// Rows of that forward pass, the others' included.
    pub batch_rows: usize,
    /// Number of that forward pass among those of its version: requests of equal number shared it.
    pub batch: u64,
    /// When that forward pass began.
    pub started: Instant,
    /// Why it began then.
    pub reason: Reason,
}
