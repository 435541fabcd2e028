//! The error that leaves the engine and the queue: a kind for the caller to act on, a message safe for the client, a
//! source for the log.

use std::error::Error as StdError;
use std::fmt;

use crate::engine::{LoadError, RunError};

/// What a client may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The request is wrong; sending it again gives the same error.
    InvalidArgument,
    /// The request brings no key, or one that is not known.
    Unauthenticated,
    /// The key is known, and not enough for this.
    PermissionDenied,
    /// The key was used more often than it may.
    RateLimited,
    /// No such model, version or path.
    NotFound,
    /// The path exists and the method does not.
    MethodNotAllowed,
    /// The body exceeds the limit.
    TooLarge,
    /// The body is encoded in a way that the server does not read.
    UnsupportedEncoding,
    /// A header exceeds the limit.
    HeadersTooLarge,
    /// The body did not arrive in time.
    Timeout,
    /// The model is loading, failed to load, or the server is going down.
    Unavailable,
    /// The queue is full.
    Overloaded,
    /// The request's deadline passed.
    DeadlineExceeded,
    /// The server does not have this feature.
    Unsupported,
    /// A bug of the server; the client cannot help it.
    Internal,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::RateLimited,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::HeadersTooLarge,
        Self::Timeout,
        Self::Unavailable,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Unsupported,
        Self::Internal,
    ];

    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::RateLimited => "rate_limited",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::HeadersTooLarge => "headers_too_large",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }
}

/// An error of a request.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error with a message for the client.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A wrong request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// A bug: the client gets `message`, the log gets `source`.
    pub fn internal(message: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind: Kind::Internal, message: message.into(), source: Some(source.into()) }
    }

    /// The same error with another message for the client.
    pub fn with_message(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// What a client may do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<RunError> for Error {
    /// A run fails because of its inputs: types and shapes were checked, so it is their values or sizes in combination, or
    /// how often they make a loop turn.
    fn from(error: RunError) -> Self {
        match error {
            RunError::Deadline { .. } => Self::new(Kind::DeadlineExceeded, error.to_string()),
            RunError::Overrides(_) => Self::internal("the model's initialisers cannot be replaced", error),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        Self::new(Kind::Unavailable, error.to_string())
    }
}
