//! What is wrong with a JSON text, and where.

use std::fmt::Write as _;

use smallvec::SmallVec;

use crate::error::Error;

/// Bytes of the offending text that a message repeats.
const SHOWN: usize = 40;

/// An error in a JSON text: either it is no JSON, or it has another value than is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    at: usize,
    message: String,
    syntax: bool,
    /// The arrays and objects around the value, innermost first.
    path: SmallVec<[Step; 4]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Index(usize),
    Key(String),
}

impl JsonError {
    /// The text is no JSON at byte `at`; `message` says what is wanted there and what stands there.
    #[cold]
    pub(super) fn syntax(at: usize, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { at, message: message.into(), syntax: true, path: SmallVec::new() })
    }

    /// The value at byte `at` is valid JSON and not what is wanted. `message` continues `x[3] …`.
    #[cold]
    pub fn value(at: usize, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { at, message: message.into(), syntax: false, path: SmallVec::new() })
    }

    /// Adds the index of an array around the value.
    #[cold]
    pub(super) fn within(mut self: Box<Self>, index: usize) -> Box<Self> {
        self.path.push(Step::Index(index));
        self
    }

    /// Adds the key of an object around the value, or what else to call it: `instances`, ``input `x`: data``.
    #[cold]
    pub fn under(mut self: Box<Self>, key: impl Into<String>) -> Box<Self> {
        self.path.push(Step::Key(key.into()));
        self
    }

    /// The byte where it was found.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether the text is no JSON at all.
    pub fn is_syntax(&self) -> bool {
        self.syntax
    }

    /// The message for the client.
    pub fn describe(&self) -> String {
        let Self { at, message, .. } = self;
        if self.syntax {
            return format!("the body is not valid JSON: {message} at byte {at}");
        }
        let mut text = String::new();
        for step in self.path.iter().rev() {
            let _ = match step {
                Step::Index(index) => write!(text, "[{index}]"),
                Step::Key(key) if text.is_empty() => write!(text, "{key}"),
                Step::Key(key) => write!(text, ".{key}"),
            };
        }
        if text.is_empty() {
            text.push_str("the body");
        }
        let _ = write!(text, " {message} (byte {at})");
        text
    }
}

impl From<Box<JsonError>> for Error {
    fn from(error: Box<JsonError>) -> Self {
        Self::invalid(error.describe())
    }
}

/// The start of `text` for a message.
pub(super) fn excerpt(text: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned();
    if text.len() > SHOWN { shown + "…" } else { shown }
}

/// The byte at `at` for a message.
pub(super) fn found(bytes: &[u8], at: usize) -> String {
    match bytes.get(at) {
        None => "found the end".to_owned(),
        Some(b @ 0x21..=0x7e) => format!("found `{}`", char::from(*b)),
        Some(b) => format!("found the byte 0x{b:02x}"),
    }
}
