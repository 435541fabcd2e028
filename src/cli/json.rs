//! JSON requests and answers of `predict`: the same as those of the server.

use super::Failure;
use crate::engine::{Signature, Tensor, Value};

/// The inputs that a request holds: `{"instances": …}` or `{"inputs": {name: …}}`.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn read(_text: &[u8], _signature: &Signature) -> Result<Vec<Tensor>, Failure> {
    Err("--json waits for the protocols".into())
}

/// The answer to a request, in the form in which the request was made.
///
/// # Errors
/// If the outputs cannot be written as JSON.
pub(super) fn write(_text: &[u8], _signature: &Signature, _outputs: &[Value]) -> Result<String, Failure> {
    Err("--json waits for the protocols".into())
}
