//! JSON for tensors: numbers go from the body's bytes into the tensor's storage and out of it, with no tree in between.
//!
//! - [`Reader`] is a pull parser: the protocols ask it for what they expect and it says where something else stands.
//! - [`values`](Reader::tensor) reads nested or flat arrays into a typed vector and a shape.
//! - [`Writer`] writes the answers.
//!
//! The grammar is RFC 8259 plus the bare tokens `NaN`, `Infinity` and `-Infinity`, which Triton and TensorFlow Serving read
//! and write too; a [setting](crate::config::NonFinite) may keep them out of answers. Every error has the byte where it was found.

mod digits;
mod error;
mod number;
mod reader;
#[cfg(test)]
mod tests;
mod values;
mod writer;

pub use error::JsonError;
pub use reader::{Reader, Token};
pub use values::Nested;
pub use writer::Writer;

/// The result of reading JSON. The error is boxed because the happy path returns one per element.
pub type Result<T> = std::result::Result<T, Box<JsonError>>;
