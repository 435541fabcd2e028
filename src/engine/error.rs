//! What can go wrong in the engine, as enums where a caller branches.

use std::fmt;

use super::op::OpError;
use super::signature::Mismatch;

/// A node that the engine cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The node's name.
    pub node: String,
    /// The operator, without its domain.
    pub op: String,
    /// The operator's domain; empty for `ai.onnx`.
    pub domain: String,
    /// The opset of the domain that the model imports, if it does.
    pub opset: Option<i64>,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = if self.domain.is_empty() { "ai.onnx" } else { &self.domain };
        let opset = self.opset.map_or("not imported".to_owned(), |v| format!("opset {v}"));
        write!(f, "node `{}`: {} of {domain} ({opset}): {}", self.node, self.op, self.reason)
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what it claims to be, or breaks the format's rules.
    #[error("{0}")]
    Format(String),
    /// The model is well-formed and cannot be run: every reason, not only the first.
    #[error("{} unsupported: {}", if .0.len() == 1 { "1 node is".to_owned() } else { format!("{} nodes are", .0.len()) },
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unsupported(Vec<Unsupported>),
    /// A limit of the configuration is exceeded.
    #[error("{0}")]
    Limit(String),
}

impl LoadError {
    /// A format error with a formatted message.
    pub fn format(message: impl Into<String>) -> Self {
        Self::Format(message.into())
    }
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// An input does not fit the signature.
    #[error(transparent)]
    Input(#[from] Mismatch),
    /// A node does not take its operands. The inputs fit the signature, so it is their sizes or values in combination.
    #[error("node `{node}` ({op}): {source}; inputs are {operands}")]
    Node {
        /// The node's name.
        node: String,
        /// The operator.
        op: String,
        /// Types and shapes of its inputs.
        operands: String,
        /// What it says.
        source: OpError,
    },
    /// The run took longer than [`LoadOptions::run_limit`](super::LoadOptions::run_limit): a loop that does not end in time.
    #[error("node `{node}` ({op}): the run took longer than it may")]
    Deadline {
        /// The node's name.
        node: String,
        /// The operator.
        op: String,
    },
    /// The form of the model in which initialisers are inputs cannot be made: a bug.
    #[error("{0}")]
    Overrides(String),
    /// The run would need more memory than the limit allows.
    #[error("the run needs {need} bytes, the limit is {limit}")]
    Memory {
        /// Bytes needed.
        need: u128,
        /// Bytes allowed.
        limit: usize,
    },
}
