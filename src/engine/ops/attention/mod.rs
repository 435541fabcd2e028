//! Attention and what belongs to it, of `ai.onnx` and of `com.microsoft`: the softmax over keys that weighs values, its linear
//! form, rotary embeddings, caches of keys and values.

mod cache;
mod contrib;
mod core;
mod flex;
pub(crate) mod fused;
mod grouped;
mod heads;
mod linear;
mod ngram;
mod packed;
mod rotary;
mod standard;

use super::ANY;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Op, OpDef, OpError, types};

const NARROW: &[DType] = &[DType::F32, DType::F16, DType::BF16];

const fn def(name: &'static str, from: u16, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "", opsets: from..=ANY, types: types::FLOATS, build }
}

const fn microsoft(name: &'static str, build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "com.microsoft", opsets: 1..=ANY, types: NARROW, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("Attention", 23, standard::build),
    OpDef { types: NARROW, ..def("RotaryEmbedding", 23, rotary::standard) },
    OpDef { types: types::ALL, ..def("TensorScatter", 24, cache::build) },
    OpDef { types: NARROW, ..def("LinearAttention", 27, linear::build) },
    microsoft("RotaryEmbedding", rotary::contrib),
    OpDef { types: &[DType::I64], ..microsoft("NGramRepeatBlock", ngram::build) },
    microsoft("Attention", contrib::attention),
    microsoft("MultiHeadAttention", contrib::multi_head),
    microsoft("PackedAttention", packed::attention),
    microsoft("PackedMultiHeadAttention", packed::multi_head),
    microsoft("GroupQueryAttention", grouped::build),
    OpDef { domain: "ai.onnx.preview", ..def("FlexAttention", 1, flex::build) },
];

#[cfg(test)]
mod tests;
