//! PackedAttention and PackedMultiHeadAttention of `com.microsoft`: attention over the tokens of a batch without its padding, one
//! sequence behind the other, each of which attends to itself.

use std::borrow::Cow;
use std::ops::Range;

use smallvec::smallvec;

use super::contrib::added_strides;
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

/// Where the operators have their inputs behind the operands.
#[derive(Debug)]
struct Places {
    bias: usize,
    offsets: usize,
    ends: usize,
    added: usize,
}

/// With the projections: input, weights, bias.
const PROJECTED: Places = Places { bias: 2, offsets: 3, ends: 4, added: 5 };
/// Without: query, key, value, bias.
const GIVEN: Places = Places { bias: 3, offsets: 4, ends: 5, added: 6 };

#[derive(Debug)]
struct Packed {
    heads: usize,
    scale: Option<f32>,
    /// The hidden sizes of queries, keys and values, if they differ.
    hidden: Option<Vec<usize>>,
    projects: bool,
    places: &'static Places,
}

fn build(attrs: &Attrs, projects: bool) -> Result<Box<dyn Op>, OpError> {
    let heads = attrs.required("num_heads", attrs.int("num_heads")?)?;
    let heads = usize::try_from(heads).ok().filter(|&n| n > 0);
    let heads = heads.ok_or_else(|| OpError::Attribute("attribute `num_heads` is not a positive number".to_owned()))?;
    // What a mask would add: there is no padding to mask.
    attrs.ignore(&["mask_filter_value"]);
    Ok(Box::new(Packed {
        heads,
        scale: attrs.float("scale")?.filter(|&scale| scale != 0.0),
        hidden: if projects { attrs.sizes("qkv_hidden_sizes")? } else { None },
        projects,
        places: if projects { &PROJECTED } else { &GIVEN },
    }))
}

pub(super) fn attention(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    build(attrs, true)
}

pub(super) fn multi_head(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    build(attrs, false)
}

/// Tokens and hidden sizes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    tokens: usize,
    head: usize,
    v_head: usize,
}

impl Plan {
    /// The elements of a token's queries, keys and values.
    fn parts(self, heads: usize) -> [usize; 3] {
        [heads * self.head, heads * self.head, heads * self.v_head]
    }
}

impl Packed {
    fn plan(&self, shapes: [Option<&[usize]>; 4]) -> Result<Plan, OpError> {
        let unfit = || OpError::shape(format!("operands of shapes {shapes:?} do not fit {} heads", self.heads));
        let heads = |hidden: usize| if hidden.is_multiple_of(self.heads) { Ok(hidden / self.heads) } else { Err(unfit()) };
        let (tokens, q, k, v) = match (shapes, &self.hidden) {
            ([Some(&[tokens, own]), Some(&[rows, columns]), ..], hidden) if self.projects && own == rows => match hidden.as_deref() {
                None if columns.is_multiple_of(3) => (tokens, columns / 3, columns / 3, columns / 3),
                Some(&[q, k, v]) if q.checked_add(k).and_then(|n| n.checked_add(v)) == Some(columns) => (tokens, q, k, v),
                _ => return Err(unfit()),
            },
            ([Some(&[tokens, q]), Some(&[k_tokens, k]), Some(&[v_tokens, v]), _], _) if !self.projects && (k_tokens, v_tokens) == (tokens, tokens) => {
                (tokens, q, k, v)
            }
            ([Some(&[tokens, n, 3, head]), None, None, _], _) if !self.projects && n == self.heads => {
                let hidden = n.checked_mul(head).ok_or_else(unfit)?;
                (tokens, hidden, hidden, hidden)
            }
            _ => return Err(unfit()),
        };
        let plan = Plan { tokens, head: heads(q)?, v_head: heads(v)? };
        let wanted: usize = plan.parts(self.heads).iter().sum();
        if k != q || shapes[3].is_some_and(|bias| bias != [wanted]) {
            return Err(unfit());
        }
        Ok(plan)
    }

    fn shapes_of<'a>(&self, shape: impl Fn(usize) -> Option<&'a [usize]>) -> [Option<&'a [usize]>; 4] {
        let third = if self.projects { None } else { shape(2) };
        [shape(0), shape(1), third, shape(self.places.bias)]
    }

    /// Queries, keys and values of all tokens, each `[tokens, heads * size]`.
    fn operands(&self, inputs: &Inputs<'_>, plan: Plan, ctx: &mut Context<'_>) -> Result<[Vec<f32>; 3], OpError> {
        let parts = plan.parts(self.heads);
        let bias = widen_some::<f32>(inputs.get(self.places.bias))?;
        if self.projects {
            let (x, w) = (widen::<f32>(inputs.at(0)?)?, widen::<f32>(inputs.at(1)?)?);
            let columns: usize = parts.iter().sum();
            let packed = f32::pack(Precision::F32, ctx.isa, &w, inputs.at(1)?.shape()[0], columns, false);
            let mut all = buffer::<f32>(&[plan.tokens, columns])?;
            f32::project(&x, plan.tokens, &packed, Some(&bias.unwrap_or_else(|| vec![0.0; columns].into())), &mut all, ctx.threads);
            let mut first = 0;
            return Ok(parts.map(|size| {
                let part = all.chunks_exact(columns.max(1)).flat_map(|row| row[first..first + size].iter().copied()).collect();
                first += size;
                part
            }));
        }
        let mut operands = match inputs.get(1) {
            Some(_) => [widen::<f32>(inputs.at(0)?)?.into_owned(), widen::<f32>(inputs.at(1)?)?.into_owned(), widen::<f32>(inputs.at(2)?)?.into_owned()],
            None => {
                let all = widen::<f32>(inputs.at(0)?)?;
                [0, 1, 2].map(|part| all.chunks_exact(plan.head.max(1)).skip(part).step_by(3).flatten().copied().collect())
            }
        };
        if let Some(mut bias) = bias.as_deref() {
            for (x, size) in operands.iter_mut().zip(parts) {
                let (own, rest) = bias.split_at(size);
                x.chunks_exact_mut(size.max(1)).for_each(|row| row.iter_mut().zip(own).for_each(|(x, b)| *x += b));
                bias = rest;
            }
        }
        Ok(operands)
    }

    /// The tokens of each sequence, and how long the longest may be.
    fn sequences(&self, inputs: &Inputs<'_>, plan: Plan) -> Result<(Vec<Range<usize>>, usize), OpError> {
        let (offsets, ends) = (inputs.at(self.places.offsets)?, inputs.at(self.places.ends)?);
        let (&[batch, length], [count]) = (offsets.shape(), ends.shape()) else {
            return Err(OpError::shape(format!("offsets of shape {:?} and ends of shape {:?}", offsets.shape(), ends.shape())));
        };
        let unfit = || OpError::value(format!("sequences that end at {:?} do not fit {} tokens of {batch} times {length}", ends.slice::<i32>(), plan.tokens));
        if *count != batch + 1 || offsets.len() < plan.tokens {
            return Err(unfit());
        }
        let ends = ends.slice::<i32>()?.iter().map(|&end| usize::try_from(end).ok()).collect::<Option<Vec<_>>>().ok_or_else(unfit)?;
        let sequences: Vec<Range<usize>> = ends.windows(2).map(|pair| pair[0]..pair[1]).collect();
        if ends.first() != Some(&0) || ends.last() != Some(&plan.tokens) || sequences.iter().any(|range| range.start > range.end || range.len() > length) {
            return Err(unfit());
        }
        // A token's place in its sequence is what counts: padding stands at the end.
        let places = sequences.iter().enumerate().flat_map(|(b, range)| (0..range.len()).map(move |at| b * length + at));
        match offsets.slice::<i32>()?.iter().zip(places).find(|(given, place)| usize::try_from(**given).ok() != Some(*place)) {
            None => Ok((sequences, length)),
            Some((given, place)) => Err(OpError::unsupported(format!("a token that stands at {given} where {place} is wanted: padding before tokens"))),
        }
    }
}

impl Op for Packed {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let Places { bias, offsets, ends, added } = *self.places;
        require(inputs, if self.projects { 2 } else { 1 })?;
        for index in [offsets, ends] {
            if inputs.get(index) != Some(&Some(Kind::Tensor(DType::I32))) {
                return Err(OpError::Type(format!("input {index} is a tensor of int32")));
            }
        }
        same_type(inputs, 1, [0, 1, 2, bias, added].into_iter().filter(|&i| i < offsets || i == added))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        for index in 0..=self.places.bias {
            if inputs.get(index).is_some() {
                inputs.shape(index)?;
            }
        }
        let plan = self.plan(self.shapes_of(|index| inputs.shape(index).ok()))?;
        Ok(vec![smallvec![plan.tokens, self.heads * plan.v_head]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let plan = self.plan(self.shapes_of(|index| inputs.get(index).map(|view| view.shape())))?;
        let (sequences, length) = self.sequences(inputs, plan)?;
        let operands = self.operands(inputs, plan, ctx)?;
        let added = inputs.get(self.places.added).map(|view| Ok::<_, OpError>((widen::<f32>(view)?, bias_strides(view, sequences.len(), self.heads, length)?))).transpose()?;
        let mut all = buffer::<f32>(&[plan.tokens, self.heads * plan.v_head])?;
        let Plan { head, v_head, .. } = plan;
        for (b, range) in sequences.into_iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            let count = range.len();
            let part = |index: usize, size: usize| -> Result<Vec<f32>, OpError> {
                let rows = &operands[index][range.start * self.heads * size..range.end * self.heads * size];
                Ok(gather(Cow::Borrowed(rows), true, None, 0, Dims { batch: 1, heads: self.heads, length: count, size })?.into_owned())
            };
            let (q, k, v) = (part(0, head)?, part(1, head)?, part(2, v_head)?);
            let add = |row: Row, x: &mut [f32]| {
                if let Some((added, strides)) = &added {
                    let at = b * strides[0] + row.head * strides[1] + row.query * length;
                    x.iter_mut().zip(&added[at..]).for_each(|(x, b)| *x += b);
                }
                true
            };
            let problem = Problem {
                sizes: Sizes { batch: 1, q_heads: self.heads, kv_heads: self.heads, queries: count, keys: count, head, v_head },
                q: &q,
                k: &k,
                v: &v,
                scale: self.scale.map_or_else(|| 1.0 / (head as f64).sqrt(), f64::from),
                softcap: None,
                bias: Some(&add),
                rounding: Rounding::None,
                softmax: DType::F32,
                sink: None,
                valid: None,
                stage: Stage::Product,
            };
            let mut y = buffer::<f32>(&[1, self.heads, count, v_head])?;
            problem.run(&mut y, None, ctx)?;
            let y = interleave(&y, Dims { batch: 1, heads: self.heads, length: count, size: v_head })?;
            all[range.start * self.heads * v_head..][..y.len()].copy_from_slice(&y);
        }
        outputs.get(0).map_or(Ok(()), |to| store(&all, to))
    }
}

fn bias_strides(view: View<'_>, batch: usize, heads: usize, length: usize) -> Result<[usize; 2], OpError> {
    added_strides(view.shape(), (batch, heads, length, length))
}
