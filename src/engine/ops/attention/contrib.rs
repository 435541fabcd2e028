//! Attention and MultiHeadAttention of `com.microsoft`, as onnxruntime computes them on a CPU.
//!
//! Masks add a finite number, by default -10000, to the scores of keys that are padding; keys after a query's own place are
//! left out altogether where the operator is unidirectional.

use std::borrow::Cow;

use smallvec::smallvec;

use super::core::{Problem, Row, Sizes, Stage};
use super::heads::{Dims, gather, interleave};
use crate::engine::kernels::weights::Precision;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type};
use crate::engine::ops::real::{Real, Rounding, buffer, store, widen, widen_some};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

/// The attributes that both operators have.
#[derive(Debug)]
struct Common {
    heads: usize,
    causal: bool,
    scale: Option<f32>,
    mask_filter_value: f32,
}

fn common(attrs: &Attrs) -> Result<Common, OpError> {
    let heads = attrs.required("num_heads", attrs.int("num_heads")?)?;
    let count = usize::try_from(heads).ok().filter(|&n| n > 0);
    Ok(Common {
        heads: count.ok_or_else(|| OpError::Attribute(format!("attribute `num_heads` is {heads}, not a positive number")))?,
        causal: attrs.bool_or("unidirectional", false)?,
        // Zero stands for the default, too.
        scale: attrs.float("scale")?.filter(|&scale| scale != 0.0),
        mask_filter_value: attrs.float_or("mask_filter_value", -10000.0)?,
    })
}

/// What is added to scores.
pub(super) struct Bias<'a> {
    /// `[batch, queries or 1, keys]`.
    pub(super) mask: Option<(Vec<f32>, bool)>,
    /// Scores to add, and their strides over batches and heads.
    pub(super) added: Option<(Cow<'a, [f32]>, [usize; 2])>,
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// The place of query 0, where later keys are left out.
    pub(super) causal: Option<usize>,
}

impl Bias<'_> {
    fn add(&self, row: Row, x: &mut [f32]) -> bool {
        if let Some((mask, per_query)) = &self.mask {
            let at = if *per_query { row.batch * self.queries + row.query } else { row.batch };
            x.iter_mut().zip(&mask[at * self.keys..]).for_each(|(x, m)| *x += m);
        }
        if let Some((added, strides)) = &self.added {
            let at = row.batch * strides[0] + row.head * strides[1] + row.query * self.keys;
            x.iter_mut().zip(&added[at..]).for_each(|(x, b)| *x += b);
        }
        if let Some(past) = self.causal {
            let first = x.len().min(past + row.query + 1);
            x[first..].fill(f32::NEG_INFINITY);
        }
        true
    }
}

/// The strides over batches and heads of scores to add, `[batch or 1, heads or 1, queries, keys]`.
pub(super) fn added_strides(shape: &[usize], (batch, heads, queries, keys): (usize, usize, usize, usize)) -> Result<[usize; 2], OpError> {
    match *shape {
        [b, h, s, t] if (b == batch || b == 1) && (h == heads || h == 1) && (s, t) == (queries, keys) => {
            Ok([if b == 1 { 0 } else { h * s * t }, if h == 1 { 0 } else { s * t }])
        }
        _ => Err(OpError::shape(format!("an attention bias of shape {shape:?} does not fit {:?}", [batch, heads, queries, keys]))),
    }
}

impl Common {
    /// The numbers that a mask stands for, and whether there is a row of them for each query.
    fn mask(&self, view: View<'_>, sizes: &Sizes) -> Result<(Vec<f32>, bool), OpError> {
        let Sizes { batch, queries, keys, .. } = *sizes;
        let values = view.slice::<i32>()?;
        let filter = |masked: bool| if masked { self.mask_filter_value } else { 0.0 };
        match *view.shape() {
            [b, t] if (b, t) == (batch, keys) => Ok((values.iter().map(|&m| filter(m <= 0)).collect(), false)),
            [b, s, t] if (b, s, t) == (batch, queries, keys) => Ok((values.iter().map(|&m| filter(m <= 0)).collect(), true)),
            [n] if n == batch || n == 2 * batch => {
                let mut mask = buffer::<f32>(&[batch, keys])?;
                if keys > 0 {
                    for (b, row) in mask.chunks_exact_mut(keys).enumerate() {
                        let end = i64::from(values[b]);
                        let start = if n == batch { 0 } else { i64::from(values[batch + b]) };
                        row.iter_mut().enumerate().for_each(|(j, m)| *m = filter((j as i64) < start || j as i64 >= end));
                    }
                }
                Ok((mask, false))
            }
            _ => Err(OpError::unsupported(format!("a mask of shape {:?} for {batch} times {queries} queries and {keys} keys", view.shape()))),
        }
    }

    /// Computes from heads that are apart; gives `[batch, queries, q_heads * v_head]`.
    fn attend(
        &self,
        (sizes, past): (Sizes, usize),
        [q, k, v]: [&[f32]; 3],
        [mask, added]: [Option<View<'_>>; 2],
        scores: Option<&mut [f32]>,
        ctx: &mut Context<'_>,
    ) -> Result<Vec<f32>, OpError> {
        let Sizes { batch, q_heads, queries, keys, head, v_head, .. } = sizes;
        let mask = mask.map(|mask| self.mask(mask, &sizes)).transpose()?;
        let added = match added {
            Some(view) => Some((widen::<f32>(view)?, added_strides(view.shape(), (batch, q_heads, queries, keys))?)),
            None => None,
        };
        let bias = Bias { mask, added, queries, keys, causal: self.causal.then_some(past) };
        let add = |row: Row, x: &mut [f32]| bias.add(row, x);
        let problem = Problem {
            sizes,
            q,
            k,
            v,
            scale: self.scale.map_or_else(|| 1.0 / (head as f64).sqrt(), f64::from),
            softcap: None,
            bias: Some(&add),
            rounding: Rounding::None,
            softmax: DType::F32,
            sink: None,
            valid: None,
            stage: Stage::Product,
        };
        let mut y = buffer::<f32>(&[batch, q_heads, queries, v_head])?;
        problem.run(&mut y, scores, ctx)?;
        interleave(&y, Dims { batch, heads: q_heads, length: queries, size: v_head })
    }
}

fn check_mask(inputs: &[Option<Kind>], index: usize) -> Result<(), OpError> {
    match inputs.get(index) {
        Some(Some(kind)) if *kind != Kind::Tensor(DType::I32) => Err(OpError::Type(format!("a mask is int32, not {kind}"))),
        _ => Ok(()),
    }
}

fn split(hidden: usize, heads: usize) -> Result<usize, OpError> {
    if hidden.is_multiple_of(heads) { Ok(hidden / heads) } else { Err(OpError::shape(format!("{hidden} elements cannot be split into {heads} heads"))) }
}

/// Adds a row to every row.
fn add_rows(x: &mut [f32], row: &[f32]) {
    for x in x.chunks_exact_mut(row.len().max(1)) {
        x.iter_mut().zip(row).for_each(|(x, b)| *x += b);
    }
}

/// Attention with the projections of queries, keys and values.
#[derive(Debug)]
struct Attention {
    common: Common,
    hidden: Option<Vec<usize>>,
}

pub(super) fn attention(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    for name in ["do_rotary", "past_present_share_buffer"] {
        if attrs.bool_or(name, false)? {
            return Err(OpError::unsupported(format!("attribute `{name}`")));
        }
    }
    attrs.ignore(&["rotary_embedding_dim"]);
    Ok(Box::new(Attention { common: common(attrs)?, hidden: attrs.sizes("qkv_hidden_sizes")? }))
}

impl Attention {
    /// The hidden sizes of queries, keys and values, and the sizes of the problem.
    fn sizes(&self, input: &[usize], weights: &[usize], bias: Option<&[usize]>, past: Option<&[usize]>) -> Result<([usize; 3], Sizes, usize), OpError> {
        let unfit = || OpError::shape(format!("input {input:?}, weights {weights:?} and bias {bias:?} do not fit"));
        let (&[batch, length, own], &[rows, columns]) = (input, weights) else { return Err(unfit()) };
        let hidden = match self.hidden.as_deref() {
            Some(&[q, k, v]) if q == k && q.checked_add(k).and_then(|n| n.checked_add(v)) == Some(columns) => [q, k, v],
            None if columns % 3 == 0 => [columns / 3; 3],
            _ => return Err(unfit()),
        };
        if own != rows || bias.is_some_and(|bias| bias != [columns]) {
            return Err(unfit());
        }
        let heads = self.common.heads;
        let (head, v_head) = (split(hidden[0], heads)?, split(hidden[2], heads)?);
        let past_length = match past {
            None => 0,
            Some(&[2, b, n, p, h]) if (b, n, h) == (batch, heads, head) && head == v_head => p,
            Some(past) => return Err(OpError::shape(format!("a past of shape {past:?} does not fit"))),
        };
        let keys = past_length.checked_add(length).ok_or_else(unfit)?;
        Ok((hidden, Sizes { batch, q_heads: heads, kv_heads: heads, queries: length, keys, head, v_head }, past_length))
    }
}

impl Op for Attention {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        check_mask(inputs, 3)?;
        if inputs.get(6).is_some_and(Option::is_some) {
            return Err(OpError::unsupported("a past that shares its buffer"));
        }
        let kind = same_type(inputs, 2, [0, 1, 2, 4, 5])?[0].clone();
        Ok(Kinds::from_elem(kind, 2))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let (hidden, sizes, _) = self.sizes(inputs.shape(0)?, inputs.shape(1)?, some(2)?, some(4)?)?;
        let Sizes { batch, q_heads, queries, keys, head, .. } = sizes;
        Ok(vec![smallvec![batch, queries, hidden[2]], smallvec![2, batch, q_heads, keys, head]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (input, weights, bias, past) = (inputs.at(0)?, inputs.at(1)?, inputs.get(2), inputs.get(4));
        let (hidden, sizes, past_length) = self.sizes(input.shape(), weights.shape(), bias.map(|b| b.shape()), past.map(|p| p.shape()))?;
        let Sizes { batch, q_heads: heads, queries, head, v_head, .. } = sizes;
        let (x, w, bias, past) = (widen::<f32>(input)?, widen::<f32>(weights)?, widen_some::<f32>(bias)?, widen_some::<f32>(past)?);
        let columns = weights.shape()[1];
        let bias = bias.unwrap_or_else(|| vec![0.0; columns].into());
        let packed = f32::pack(Precision::F32, ctx.isa, &w, weights.shape()[0], columns, false);
        let mut all = buffer::<f32>(&[batch, queries, columns])?;
        f32::project(&x, batch * queries, &packed, Some(&bias), &mut all, ctx.threads);
        let half = past.as_ref().map_or(0, |past| past.len() / 2);
        let part = |index: usize, size: usize| -> Result<Vec<f32>, OpError> {
            let first: usize = hidden[..index].iter().sum();
            let rows = all.chunks_exact(columns.max(1)).flat_map(|row| row[first..first + hidden[index]].iter().copied());
            let old = past.as_deref().filter(|_| index > 0).map(|past| &past[(index - 1) * half..][..half]);
            let dims = Dims { batch, heads, length: queries, size };
            let rows: Vec<f32> = rows.collect();
            Ok(gather(Cow::Owned(rows), true, old, if index > 0 { past_length } else { 0 }, dims)?.into_owned())
        };
        let (q, k, v) = (part(0, head)?, part(1, head)?, part(2, v_head)?);
        if let Some(present) = outputs.get(1) {
            if head != v_head {
                return Err(OpError::unsupported("a present of keys and values of different sizes"));
            }
            store(&[k.as_slice(), v.as_slice()].concat(), present)?;
        }
        let y = self.common.attend((sizes, past_length), [&q, &k, &v], [inputs.get(3), inputs.get(5)], None, ctx)?;
        outputs.get(0).map_or(Ok(()), |to| store(&y, to))
    }
}

/// Attention of queries, keys and values that are given.
#[derive(Debug)]
struct MultiHead {
    common: Common,
}

pub(super) fn multi_head(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(MultiHead { common: common(attrs)? }))
}

impl MultiHead {
    /// The sizes of the problem, of the past, and whether keys and values have their heads apart.
    fn sizes(&self, q: &[usize], k: &[usize], v: &[usize], past: [Option<&[usize]>; 2]) -> Result<(Sizes, usize, bool), OpError> {
        let unfit = || OpError::shape(format!("query {q:?}, key {k:?}, value {v:?} and past {past:?} do not fit each other"));
        let heads = self.common.heads;
        let &[batch, queries, hidden] = q else { return Err(unfit()) };
        let head = split(hidden, heads)?;
        let (length, v_head, apart) = match (k, v) {
            (&[kb, kl, kh], &[vb, vl, vh]) if (kb, vb, kh, kl) == (batch, batch, hidden, vl) => (kl, split(vh, heads)?, false),
            (&[kb, kn, kl, ks], &[vb, vn, vl, vs]) if (kb, kn, ks, vb, vn, kl) == (batch, heads, head, batch, heads, vl) => (kl, vs, true),
            _ => return Err(unfit()),
        };
        let past_length = match past {
            [None, None] => 0,
            [Some(&[kb, kn, kl, ks]), Some(&[vb, vn, vl, vs])]
                if !apart && (kb, kn, ks) == (batch, heads, head) && (vb, vn, vl, vs) == (batch, heads, kl, v_head) =>
            {
                kl
            }
            _ => return Err(unfit()),
        };
        let keys = past_length.checked_add(length).ok_or_else(unfit)?;
        Ok((Sizes { batch, q_heads: heads, kv_heads: heads, queries, keys, head, v_head }, past_length, apart))
    }

    fn check_bias(bias: Option<&[usize]>, sizes: &Sizes) -> Result<(), OpError> {
        let wanted = sizes.q_heads * (2 * sizes.head + sizes.v_head);
        match bias {
            Some(bias) if bias != [wanted] => Err(OpError::shape(format!("a bias of shape {bias:?} where {wanted} elements are needed"))),
            _ => Ok(()),
        }
    }
}

/// Which operands lie in one tensor, a head's beside each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Apart,
    /// `[batch, length, heads, 2, size]` is the key.
    KeyValue,
    /// `[batch, length, heads, 3, size]` is the query.
    All,
}

/// The shapes of query, key and value, and how they were packed.
type Unpacked<'a> = ([Cow<'a, [usize]>; 3], Packing);

impl MultiHead {
    /// The shapes of query, key and value as if they were apart.
    fn unpack<'a>(&self, q: &'a [usize], k: Option<&'a [usize]>, v: Option<&'a [usize]>) -> Result<Unpacked<'a>, OpError> {
        let part = |shape: &[usize], count: usize| match *shape {
            [batch, length, heads, parts, size] if heads == self.common.heads && parts == count => Some(vec![batch, length, heads * size]),
            _ => None,
        };
        let unfit = || OpError::shape(format!("query {q:?}, key {k:?} and value {v:?} do not fit {} heads", self.common.heads));
        match (k, v) {
            (Some(k), Some(v)) => Ok(([q.into(), k.into(), v.into()], Packing::Apart)),
            (Some(k), None) => {
                let own = part(k, 2).ok_or_else(unfit)?;
                Ok(([q.into(), own.clone().into(), own.into()], Packing::KeyValue))
            }
            (None, None) => {
                let own = part(q, 3).ok_or_else(unfit)?;
                Ok(([own.clone().into(), own.clone().into(), own.into()], Packing::All))
            }
            (None, Some(_)) => Err(OpError::missing_input(1)),
        }
    }

    /// The elements of query, key or value, `[batch, length, heads * size]` if they were packed.
    fn elements<'a>(inputs: &Inputs<'a>, index: usize, packing: Packing) -> Result<Cow<'a, [f32]>, OpError> {
        let (from, part, parts) = match packing {
            Packing::KeyValue if index > 0 => (1, index - 1, 2),
            Packing::All => (0, index, 3),
            _ => return widen::<f32>(inputs.at(index)?),
        };
        let view = inputs.at(from)?;
        let size = view.shape().last().copied().unwrap_or(1).max(1);
        Ok(widen::<f32>(view)?.chunks_exact(size).skip(part).step_by(parts).flatten().copied().collect())
    }
}

impl Op for MultiHead {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        if inputs.iter().skip(8).any(Option::is_some) {
            return Err(OpError::unsupported("a past that shares its buffer"));
        }
        check_mask(inputs, 4)?;
        let kind = same_type(inputs, 1, [0, 1, 2, 3, 5, 6, 7])?[0].clone();
        Ok(Kinds::from_elem(kind, 4))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let ([q, k, v], _) = self.unpack(inputs.shape(0)?, some(1)?, some(2)?)?;
        let (sizes, ..) = self.sizes(&q, &k, &v, [some(6)?, some(7)?])?;
        Self::check_bias(some(3)?, &sizes)?;
        let Sizes { batch, q_heads, queries, keys, head, v_head, .. } = sizes;
        let present = |size: usize| -> Shape { smallvec![batch, q_heads, keys, size] };
        Ok(vec![smallvec![batch, queries, q_heads * v_head], present(head), present(v_head), smallvec![batch, q_heads, queries, keys]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let past = [inputs.get(6), inputs.get(7)];
        let ([q, k, v], packing) = self.unpack(inputs.at(0)?.shape(), inputs.get(1).map(|k| k.shape()), inputs.get(2).map(|v| v.shape()))?;
        let (sizes, past_length, apart) = self.sizes(&q, &k, &v, past.map(|past| past.map(|p| p.shape())))?;
        let Sizes { batch, q_heads: heads, queries, keys, head, v_head, .. } = sizes;
        let bias = widen_some::<f32>(inputs.get(3))?;
        let operand = |index: usize, length: usize, size: usize| -> Result<Vec<f32>, OpError> {
            let mut x = Self::elements(inputs, index, packing)?;
            let apart = apart && index > 0;
            if let Some(bias) = bias.as_deref().filter(|_| !apart) {
                add_rows(x.to_mut(), &bias[index * heads * head..][..heads * size]);
            }
            let past = if index > 0 { widen_some::<f32>(past[index - 1])? } else { None };
            let past_length = if index > 0 { past_length } else { 0 };
            Ok(gather(x, !apart, past.as_deref(), past_length, Dims { batch, heads, length, size })?.into_owned())
        };
        let length = keys - past_length;
        let (q, k, v) = (operand(0, queries, head)?, operand(1, length, head)?, operand(2, length, v_head)?);
        for (index, values) in [(1, &k), (2, &v)] {
            if let Some(present) = outputs.get(index) {
                store(values, present)?;
            }
        }
        let mut scores = match outputs.get(3) {
            Some(_) => Some(buffer::<f32>(&[batch, heads, queries, keys])?),
            None => None,
        };
        let y = self.common.attend((sizes, past_length), [&q, &k, &v], [inputs.get(4), inputs.get(5)], scores.as_deref_mut(), ctx)?;
        if let (Some(scores), Some(to)) = (scores, outputs.get(3)) {
            store(&scores, to)?;
        }
        outputs.get(0).map_or(Ok(()), |to| store(&y, to))
    }
}
