//! The engine: from a model file to answers. Synchronous, deterministic, and without any knowledge of networks.
//!
//! `bytes → load → Graph → optimize → Model → plan → Session::run`. Everything outside the engine uses what this module
//! re-exports and nothing below it.

mod adjoint;
mod append;
mod attrs;
mod body;
mod differentiate;
pub(crate) mod dtype;
mod elements;
mod error;
mod evaluate;
mod execute;
mod explain;
mod graph;
pub mod kernels;
mod load;
mod model;
pub mod narrow;
pub mod npz;
pub mod onnx;
mod op;
mod ops;
mod optimize;
mod overrides;
mod plan;
mod portions;
mod program;
mod session;
mod signature;
mod subgraph;
mod tensor;
mod threads;
mod view;
mod weight_cache;

pub use adjoint::{Adjoint, Emit, Gradients, Rule};
pub use append::{APPENDED_OPSET, Appender};
pub use attrs::{Attr, Attrs};
pub use body::{Body, Formal, Runner};
pub use differentiate::{extend as append_gradients, gradient};
pub use dtype::{DType, Element};
pub use error::{LoadError, RunError, Unsupported};
pub use explain::{gradient_model, has_trees, tree_model};
pub use graph::{Dim, Graph, Node, ValueId, ValueInfo};
pub use kernels::allocator::{keep_freed_memory, purge_with_threads, release_memory};
pub use kernels::bytes::from_bytes;
pub use kernels::isa::Isa;
pub use kernels::limits::{peak_flops, read_bandwidth};
pub use kernels::weights::Precision;
pub use load::{FORMATS, Format, Loaded, Metadata, describe, find_model_file, open as read_graph};
pub use model::{LoadOptions, Model, Summary};
pub use op::{Context, Fact, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Prepacked, Scratch, Shape};
pub use ops::dropout::mask::drop_out;
pub use ops::image_decoder::{Picture, decode_picture};
pub use ops::{LATEST_OPSET, all as operators, rules as gradient_rules};
pub use optimize::{Left, PASSES, Pass, PassReport};
pub use plan::{Plan, Work};
pub use session::{RunTime, Session};
pub use signature::{Mismatch, Port, Signature};
pub use tensor::{Buffer, Kind, Tensor, Value};
pub use threads::Threads;
pub use view::{Slice, SliceMut, View, ViewMut, emptied};
pub use weight_cache::{KeptWeights, WeightCachePlace, wait_until_settled};
