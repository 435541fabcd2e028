//! Attention of one head, `softmax(scale * q · kᵀ + mask) · v`: a block of queries at a time, whose scores stay in the cache.
//!
//! Rows may lie apart, as they do where the heads of a token lie side by side. The bits are those of two matrix products and a
//! softmax between them, however the queries are split. A few queries, as in decoding, read keys and values once and where they lie;
//! their products with the keys are summed in lanes.

use super::epilogue::Epilogue;
use super::gemm::{Panels, gemm_panels, pack_rows};
use super::isa::{Isa, instantiate};
use super::vector::math;
use super::vector::{Binary, Operand, binary_in_place, dot_body, softmax_row_in_place};

/// A matrix in memory: row `i` starts at `i * ld`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// From its first element on.
    pub data: &'a [f32],
    /// From row to row.
    pub ld: usize,
}

/// What is added to the scores; `[queries, keys]`, either of which may be one for all.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// From the first query's on.
    pub data: &'a [f32],
    /// From query to query; 0 if one row is for all.
    pub row: usize,
    /// Whether there is an element per key, not one for all.
    pub per_key: bool,
}

/// One head: the operands and their sizes.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[queries, depth]`.
    pub q: Rows<'a>,
    /// `[keys, depth]`, or `[depth, keys]` if `k_transposed`.
    pub k: Rows<'a>,
    /// See `k`.
    pub k_transposed: bool,
    /// `[keys, width]`.
    pub v: Rows<'a>,
    /// Added to the scores.
    pub mask: Option<Mask<'a>>,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// What a weight is that is no number, as those of a query without a key are.
    pub nan_weight: Option<f32>,
    /// Rows of `q`: all, or a part of them.
    pub queries: usize,
    /// Whether there are few queries in all parts together ([`few`]).
    pub few: bool,
    /// Keys and values.
    pub keys: usize,
    /// Elements of a query and of a key.
    pub depth: usize,
    /// Elements of a value.
    pub width: usize,
}

/// Memory that heads use one after the other.
#[derive(Debug, Default)]
pub struct Buffers {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// Scores of a block: 64 KiB, half of a second-level cache's smallest share beside packed keys and values.
const SCORES: usize = 16 * 1024;

/// Whether so many queries of a head are too few for packing so many keys and values. Their products are summed in another order: where
/// there is a query for each key, as in an encoder, a sequence that is padded must have the bits of the one that is not.
pub fn few(queries: usize, keys: usize) -> bool {
    queries <= 2 && keys > queries
}

/// Writes the results of all queries of a head: row `i` of `[queries, width]` at `i * ldy` of `y`. Panics if a slice is too short.
pub fn attend(isa: Isa, head: &Head<'_>, y: &mut [f32], ldy: usize, buffers: &mut Buffers) {
    let Head { queries, keys, depth, width, .. } = *head;
    if queries == 0 || width == 0 {
        return;
    }
    assert!(ldy >= width && y.len() >= (queries - 1) * ldy + width, "y is shorter than its rows");
    let few = head.few && !head.k_transposed;
    let block = (SCORES / keys.max(1)).clamp(12, 96).min(queries);
    let Buffers { keys: packed_keys, values: packed_values, scores } = buffers;
    scores.resize(scores.len().max(block * keys), 0.0);
    let packed = (!few).then(|| {
        let k = pack_rows(isa, head.k.data, head.k.ld, (depth, keys), !head.k_transposed, packed_keys);
        (k, pack_rows(isa, head.v.data, head.v.ld, (keys, width), false, packed_values))
    });
    for start in (0..queries).step_by(block) {
        let count = block.min(queries - start);
        let (scores, y) = (&mut scores[..count * keys], &mut y[start * ldy..]);
        let q = Rows { data: &head.q.data[start * head.q.ld..], ..head.q };
        match packed {
            Some((k, _)) => scale_products(isa, head, q, k, count, scores),
            None => (0..count).for_each(|i| products(isa, head, &q.data[i * q.ld..][..depth], &mut scores[i * keys..][..keys])),
        }
        for i in 0..count {
            let row = &mut scores[i * keys..][..keys];
            if let Some(mask) = head.mask {
                let added = &mask.data[(start + i) * mask.row..];
                let added = if mask.per_key { Operand::Slice(&added[..keys]) } else { Operand::Scalar(added[0]) };
                binary_in_place(isa, Binary::Add, row, added);
            }
            softmax_row_in_place(isa, row);
            if let Some(value) = head.nan_weight {
                row.iter_mut().filter(|weight| weight.is_nan()).for_each(|weight| *weight = value);
            }
        }
        match packed {
            Some((_, v)) => gemm_panels(isa, scores, keys, count, v, y, ldy, &Epilogue::default()),
            None => (0..count).for_each(|i| weigh(isa, &scores[i * keys..][..keys], head.v, &mut y[i * ldy..][..width])),
        }
    }
}

fn scale_products(isa: Isa, head: &Head<'_>, q: Rows<'_>, k: Panels<'_>, count: usize, scores: &mut [f32]) {
    gemm_panels(isa, q.data, q.ld, count, k, scores, head.keys, &Epilogue { alpha: head.scale, ..Epilogue::default() });
}

/// The scaled products of one query with all keys, where those lie.
fn products(isa: Isa, head: &Head<'_>, q: &[f32], scores: &mut [f32]) {
    instantiate!(isa, products_body, (head: &Head<'_>, q: &[f32], scores: &mut [f32]));
}

#[inline(always)]
fn products_body<const FMA: bool>(head: &Head<'_>, q: &[f32], scores: &mut [f32]) {
    for (key, score) in scores.iter_mut().enumerate() {
        *score = head.scale * dot_body::<FMA>(q, &head.k.data[key * head.k.ld..][..q.len()]);
    }
}

/// `y` is the sum of the values, each times its weight.
fn weigh(isa: Isa, weights: &[f32], v: Rows<'_>, y: &mut [f32]) {
    instantiate!(isa, weigh_body, (weights: &[f32], v: Rows<'_>, y: &mut [f32]));
}

#[inline(always)]
fn weigh_body<const FMA: bool>(weights: &[f32], v: Rows<'_>, y: &mut [f32]) {
    /// Sums that stay in registers.
    const BLOCK: usize = 64;
    let width = y.len();
    let (blocks, tail) = y.as_chunks_mut::<BLOCK>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let mut sums = [0.0; BLOCK];
        for (key, weight) in weights.iter().enumerate() {
            let values: &[f32; BLOCK] = v.data[key * v.ld + index * BLOCK..].first_chunk().expect("a value has this width");
            for i in 0..BLOCK {
                sums[i] = math::fma::<FMA>(*weight, values[i], sums[i]);
            }
        }
        *block = sums;
    }
    tail.fill(0.0);
    let start = width - tail.len();
    for (key, weight) in weights.iter().enumerate() {
        let values = &v.data[key * v.ld + start..][..tail.len()];
        for i in 0..tail.len() {
            tail[i] = math::fma::<FMA>(*weight, values[i], tail[i]);
        }
    }
}
