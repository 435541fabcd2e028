//! GroupQueryAttention of `com.microsoft`, as onnxruntime computes it on a CPU: heads of queries that share heads of keys, a
//! cache of keys and values with a length for each sequence, rotary embeddings, a window.

use std::borrow::Cow;

use smallvec::smallvec;

use super::contrib::added_strides;
use super::core::{Problem, Row, Sizes, Stage};
use super::heads::{Dims, gather, interleave};
use super::rotary::Pairs;
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, require, same_type, size};
use crate::engine::ops::real::{Rounding, buffer, store, widen, widen_some};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

/// The inputs behind query, key and value.
const PAST_KEY: usize = 3;
const PAST_VALUE: usize = 4;
const LENGTHS: usize = 5;
const TOTAL: usize = 6;
const COS: usize = 7;
const SIN: usize = 8;
const POSITIONS: usize = 9;
const BIAS: usize = 10;
const SINK: usize = 11;
const Q_NORM: usize = 14;
const K_NORM: usize = 15;

#[derive(Debug)]
struct GroupQuery {
    heads: usize,
    kv_heads: usize,
    scale: Option<f32>,
    softcap: f32,
    causal: bool,
    /// How many keys up to its own place a query attends to.
    window: Option<usize>,
    /// Whether heads turn, and whether neighbours do so together.
    rotary: Option<bool>,
    /// Whether a score of zero without a value takes part.
    smooth: bool,
    /// What is added to the mean squares of a query's and a key's head before it is divided by their root.
    epsilons: [f32; 2],
}

pub(super) fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let heads = |name: &str| {
        let value = attrs.required(name, attrs.int(name)?)?;
        let count = usize::try_from(value).ok().filter(|&n| n > 0);
        count.ok_or_else(|| OpError::Attribute(format!("attribute `{name}` is {value}, not a positive number")))
    };
    let (q_heads, kv_heads) = (heads("num_heads")?, heads("kv_num_heads")?);
    if q_heads % kv_heads != 0 {
        return Err(OpError::Attribute(format!("{q_heads} heads of queries cannot share {kv_heads} heads of keys")));
    }
    for name in ["k_quant_type", "v_quant_type"] {
        let kind = attrs.string_or(name, "NONE")?;
        if kind != "NONE" {
            return Err(OpError::unsupported(format!("attribute `{name}` of `{kind}`")));
        }
    }
    for name in ["sliding_window_cache", "qk_output"] {
        if attrs.int_or(name, 0)? != 0 {
            return Err(OpError::unsupported(format!("attribute `{name}`")));
        }
    }
    // It says something of caches that are refused.
    attrs.ignore(&["kv_cache_bit_width"]);
    let epsilon = attrs.float_or("qk_norm_epsilon", 1e-6)?;
    let epsilons = [attrs.float_or("q_norm_epsilon", epsilon)?, attrs.float_or("k_norm_epsilon", epsilon)?];
    let interleaved = attrs.bool_or("rotary_interleaved", false)?;
    let window = attrs.int_or("local_window_size", -1)?;
    Ok(Box::new(GroupQuery {
        heads: q_heads,
        kv_heads,
        scale: attrs.float("scale")?.filter(|&scale| scale != 0.0),
        softcap: attrs.float_or("softcap", 0.0)?,
        causal: attrs.bool_or("causal", true)?,
        window: usize::try_from(window).ok().filter(|&window| window > 0),
        rotary: attrs.bool_or("do_rotary", false)?.then_some(interleaved),
        smooth: attrs.int_or("smooth_softmax", 0)? == 1,
        epsilons,
    }))
}

/// What shapes and the total length say.
struct Plan {
    sizes: Sizes,
    /// Whether keys and values are in the query's tensor.
    packed: bool,
    /// The length of the past's tensors.
    capacity: usize,
    /// The length of all sequences, the new elements included.
    total: usize,
}

impl GroupQuery {
    fn plan(&self, q: &[usize], k: Option<&[usize]>, v: Option<&[usize]>, past: [Option<&[usize]>; 2], total: i64) -> Result<Plan, OpError> {
        let unfit = || OpError::shape(format!("query {q:?}, key {k:?}, value {v:?} and past {past:?} do not fit each other"));
        let &[batch, queries, hidden] = q else { return Err(unfit()) };
        let packed = k.is_none() && v.is_none();
        let columns = if packed { self.heads + 2 * self.kv_heads } else { self.heads };
        if hidden % columns != 0 {
            return Err(unfit());
        }
        let head = hidden / columns;
        let wanted = [batch, queries, self.kv_heads * head];
        if !packed && (k != Some(&wanted[..]) || v != Some(&wanted[..])) {
            return Err(unfit());
        }
        let capacity = match past {
            [None, None] => 0,
            [Some(&[b, n, length, h]), Some(value)] if (b, n, h) == (batch, self.kv_heads, head) && value == [b, n, length, h] => length,
            _ => return Err(unfit()),
        };
        let total = size(total)?;
        let sizes = Sizes { batch, q_heads: self.heads, kv_heads: self.kv_heads, queries, keys: capacity.max(total), head, v_head: head };
        if total < queries {
            return Err(OpError::value(format!("a total length of {total} with {queries} new elements")));
        }
        Ok(Plan { sizes, packed, capacity, total })
    }

    /// The length of each sequence, the new elements included, and where these begin.
    fn lengths(&self, view: View<'_>, plan: &Plan) -> Result<(Vec<usize>, Vec<usize>), OpError> {
        let Plan { sizes, total, .. } = plan;
        if view.len() != sizes.batch {
            return Err(OpError::shape(format!("there are {} sequences, but lengths of shape {:?}", sizes.batch, view.shape())));
        }
        let prompt = sizes.queries == *total;
        let one = |&last: &i32| {
            let length = usize::try_from(i64::from(last) + 1).ok().filter(|n| n <= total && (prompt || *n >= sizes.queries));
            let length = length.ok_or_else(|| OpError::value(format!("a sequence that ends at {last} does not fit a total length of {total}")))?;
            Ok((length, if prompt { 0 } else { length - sizes.queries }))
        };
        let both = view.slice::<i32>()?.iter().map(one).collect::<Result<Vec<_>, OpError>>()?;
        let starts: Vec<usize> = both.iter().map(|pair| pair.1).collect();
        if starts.iter().any(|&start| start > plan.capacity) {
            return Err(OpError::value(format!("the past holds {} elements, less than what is said to be there", plan.capacity)));
        }
        Ok((both.into_iter().map(|pair| pair.0).collect(), starts))
    }

    /// Divides heads by the root of their mean square, and multiplies with weights, if there are any.
    fn normalise(x: &mut [f32], head: usize, weights: Option<View<'_>>, epsilon: f32) -> Result<(), OpError> {
        let Some(view) = weights else { return Ok(()) };
        if view.shape() != [head] {
            return Err(OpError::shape(format!("weights of shape {:?} for heads of {head}", view.shape())));
        }
        let weights = widen::<f32>(view)?;
        for x in x.chunks_exact_mut(head.max(1)) {
            let square = x.iter().map(|x| x * x).sum::<f32>() / head as f32;
            let root = 1.0 / (square + epsilon).sqrt();
            x.iter_mut().zip(&*weights).for_each(|(x, w)| *x = *x * root * w);
        }
        Ok(())
    }

    /// Turns heads `[batch, heads, queries, head]` by their places.
    fn turn(&self, x: &mut [f32], heads: usize, sizes: &Sizes, starts: &[usize], inputs: &Inputs<'_>) -> Result<(), OpError> {
        let Some(interleaved) = self.rotary else { return Ok(()) };
        let (cos_view, sin_view) = (inputs.at(COS)?, inputs.at(SIN)?);
        let (&[rows, half], true) = (cos_view.shape(), cos_view.shape() == sin_view.shape()) else {
            return Err(OpError::shape(format!("cosines {:?} and sines {:?}", cos_view.shape(), sin_view.shape())));
        };
        if half * 2 > sizes.head {
            return Err(OpError::shape(format!("{half} cosines are too many for heads of {}", sizes.head)));
        }
        let (cos, sin) = (widen::<f32>(cos_view)?, widen::<f32>(sin_view)?);
        let positions = inputs.get(POSITIONS).map(ints).transpose()?;
        if positions.as_ref().is_some_and(|positions| positions.len() != sizes.batch * sizes.queries) {
            return Err(OpError::shape("there is one position for each token"));
        }
        if x.is_empty() {
            return Ok(());
        }
        let pairs = Pairs { size: 2 * half, interleaved };
        for (at, x) in x.chunks_exact_mut(sizes.head).enumerate() {
            let (b, s) = (at / (heads * sizes.queries), at % sizes.queries);
            let position = positions.as_ref().map_or((starts[b] + s) as i64, |positions| positions[b * sizes.queries + s]);
            let row = usize::try_from(position).ok().filter(|&row| row < rows);
            let row = row.ok_or_else(|| OpError::value(format!("position {position} is out of range for {rows} rows of cosines")))?;
            let old = x.to_vec();
            pairs.turn(&old, &cos[row * half..][..half], &sin[row * half..][..half], x);
        }
        Ok(())
    }

    /// The cache with the new elements written over it.
    fn cache(new: &[f32], past: Option<View<'_>>, plan: &Plan, starts: &[usize]) -> Result<Vec<f32>, OpError> {
        let Sizes { batch, kv_heads, queries, keys, head, .. } = plan.sizes;
        let past = widen_some::<f32>(past)?;
        let mut all = buffer::<f32>(&[batch, kv_heads, keys, head])?;
        if all.is_empty() {
            return Ok(all);
        }
        for (at, to) in all.chunks_exact_mut(keys * head).enumerate() {
            let old = plan.capacity * head;
            if let Some(past) = &past {
                to[..old].copy_from_slice(&past[at * old..][..old]);
            }
            let len = queries * head;
            to[starts[at / kv_heads] * head..][..len].copy_from_slice(&new[at * len..][..len]);
        }
        Ok(all)
    }

    /// Queries, keys and values with their heads apart.
    fn operands(&self, inputs: &Inputs<'_>, plan: &Plan) -> Result<[Vec<f32>; 3], OpError> {
        let Sizes { batch, queries, head, .. } = plan.sizes;
        let one = |x: Cow<'_, [f32]>, heads: usize| -> Result<Vec<f32>, OpError> {
            Ok(gather(x, true, None, 0, Dims { batch, heads, length: queries, size: head })?.into_owned())
        };
        if !plan.packed {
            return Ok([one(widen(inputs.at(0)?)?, self.heads)?, one(widen(inputs.at(1)?)?, self.kv_heads)?, one(widen(inputs.at(2)?)?, self.kv_heads)?]);
        }
        let (all, columns) = (widen::<f32>(inputs.at(0)?)?, inputs.at(0)?.shape()[2]);
        let part = |first: usize, heads: usize| {
            let rows = all.chunks_exact(columns.max(1)).flat_map(|row| row[first * head..][..heads * head].iter().copied());
            one(Cow::Owned(rows.collect()), heads)
        };
        Ok([part(0, self.heads)?, part(self.heads, self.kv_heads)?, part(self.heads + self.kv_heads, self.kv_heads)?])
    }

    /// The keys that a query attends to.
    fn range(&self, place: usize, length: usize) -> (usize, usize) {
        let high = if self.causal { length.min(place + 1) } else { length };
        let low = self.window.map_or(0, |window| (place + 1).saturating_sub(window));
        (low.min(high), high)
    }
}

impl Op for GroupQuery {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let given = |index: usize| inputs.get(index).is_some_and(Option::is_some);
        for (index, what) in [(12, "scales of a quantised cache"), (13, "scales of a quantised cache"), (16, "lengths of queries")] {
            if given(index) {
                return Err(OpError::unsupported(format!("input {index}: {what}")));
            }
        }
        if given(Q_NORM) != given(K_NORM) {
            return Err(OpError::missing_input(if given(Q_NORM) { K_NORM } else { Q_NORM }));
        }
        require(&inputs[..1.min(inputs.len())], 1)?;
        for index in [LENGTHS, TOTAL] {
            if inputs.get(index) != Some(&Some(Kind::Tensor(DType::I32))) {
                return Err(OpError::Type(format!("input {index} is a tensor of int32")));
            }
        }
        if inputs.get(POSITIONS).is_some_and(|kind| kind.as_ref().is_some_and(|kind| *kind != Kind::Tensor(DType::I64))) {
            return Err(OpError::Type("positions are int64".to_owned()));
        }
        if self.rotary.is_some() && !(given(COS) && given(SIN)) {
            return Err(OpError::missing_input(COS));
        }
        let kind = same_type(inputs, 1, [0, 1, 2, PAST_KEY, PAST_VALUE, COS, SIN, BIAS, SINK, Q_NORM, K_NORM])?[0].clone();
        Ok(Kinds::from_elem(kind, 3))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let some = |index: usize| inputs.get(index).map(|_| inputs.shape(index)).transpose();
        let &[total] = inputs.ints(TOTAL)?.as_slice() else { return Err(OpError::shape("the total length is one number")) };
        let plan = self.plan(inputs.shape(0)?, some(1)?, some(2)?, [some(PAST_KEY)?, some(PAST_VALUE)?], total)?;
        let Sizes { batch, queries, kv_heads, keys, head, .. } = plan.sizes;
        let present: Shape = smallvec![batch, kv_heads, keys, head];
        Ok(vec![smallvec![batch, queries, self.heads * head], present.clone(), present])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let some = |index: usize| inputs.get(index).map(|view| view.shape());
        let total = ints(inputs.at(TOTAL)?)?.first().copied().unwrap_or(-1);
        let plan = self.plan(inputs.at(0)?.shape(), some(1), some(2), [some(PAST_KEY), some(PAST_VALUE)], total)?;
        let Sizes { batch, queries, keys, head, .. } = plan.sizes;
        let (lengths, starts) = self.lengths(inputs.at(LENGTHS)?, &plan)?;
        let [mut q, mut k, v] = self.operands(inputs, &plan)?;
        Self::normalise(&mut q, head, inputs.get(Q_NORM), self.epsilons[0])?;
        Self::normalise(&mut k, head, inputs.get(K_NORM), self.epsilons[1])?;
        self.turn(&mut q, self.heads, &plan.sizes, &starts, inputs)?;
        self.turn(&mut k, self.kv_heads, &plan.sizes, &starts, inputs)?;
        let (k, v) = (Self::cache(&k, inputs.get(PAST_KEY), &plan, &starts)?, Self::cache(&v, inputs.get(PAST_VALUE), &plan, &starts)?);
        for (index, values) in [(1, &k), (2, &v)] {
            if let Some(present) = outputs.get(index) {
                store(values, present)?;
            }
        }
        let added = match inputs.get(BIAS) {
            Some(view) => Some((widen::<f32>(view)?, added_strides(view.shape(), (batch, self.heads, queries, plan.total))?)),
            None => None,
        };
        let sink = match inputs.get(SINK) {
            Some(view) if view.shape() != [self.heads] => return Err(OpError::shape(format!("{} heads have sinks {:?}", self.heads, view.shape()))),
            Some(view) => Some(widen::<f32>(view)?),
            None => self.smooth.then(|| vec![0.0; self.heads].into()),
        };
        let bias = |row: Row, x: &mut [f32]| {
            if let Some((added, strides)) = &added {
                let at = row.batch * strides[0] + row.head * strides[1] + row.query * plan.total;
                x.iter_mut().zip(&added[at..][..plan.total]).for_each(|(x, b)| *x += b);
            }
            let (low, high) = self.range(starts[row.batch] + row.query, x.len());
            x[..low].fill(f32::NEG_INFINITY);
            x[high..].fill(f32::NEG_INFINITY);
            low < high
        };
        let problem = Problem {
            sizes: plan.sizes,
            q: &q,
            k: &k,
            v: &v,
            scale: self.scale.map_or_else(|| 1.0 / (head as f64).sqrt(), f64::from),
            softcap: (self.softcap > 0.0).then_some(f64::from(self.softcap)),
            bias: Some(&bias),
            rounding: Rounding::None,
            softmax: DType::F32,
            sink: sink.as_deref(),
            valid: Some(&lengths),
            stage: Stage::Product,
        };
        debug_assert!(keys >= plan.total);
        let mut y = buffer::<f32>(&[batch, self.heads, queries, head])?;
        problem.run(&mut y, None, ctx)?;
        let y = interleave(&y, Dims { batch, heads: self.heads, length: queries, size: head })?;
        outputs.get(0).map_or(Ok(()), |to| store(&y, to))
    }
}
