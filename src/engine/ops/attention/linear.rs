//! LinearAttention: a state per head that every token decays, corrects and reads. It computes in f32, one token after the other.

use smallvec::smallvec;

use crate::engine::attrs::Attrs;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpError, Outputs, Shape};
use crate::engine::ops::axes::{require, same_type};
use crate::engine::ops::product::flops;
use crate::engine::ops::real::{buffer, store, widen, widen_some};
use crate::engine::tensor::Kind;

const PAST: usize = 3;
const DECAY: usize = 4;
const BETA: usize = 5;

#[derive(Debug)]
struct LinearAttention {
    q_heads: usize,
    kv_heads: usize,
    /// Zero for one over the root of a key's length.
    scale: f32,
}

pub(super) fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let heads = |name: &str| {
        let value = attrs.required(name, attrs.int(name)?)?;
        let size = usize::try_from(value).ok().filter(|&n| n > 0);
        size.ok_or_else(|| OpError::Attribute(format!("attribute `{name}` is {value}, not a positive number")))
    };
    let (q_heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    if q_heads % kv_heads != 0 {
        return Err(OpError::Attribute(format!("{q_heads} heads of queries cannot share {kv_heads} heads of keys")));
    }
    let (gated, delta) = match attrs.string_or("update_rule", "gated_delta")?.as_str() {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(OpError::Attribute(format!("attribute `update_rule` is `{other}`, which is none of the four rules"))),
    };
    for (name, index, wanted) in [("decay", DECAY, gated), ("beta", BETA, delta)] {
        if attrs.inputs.get(index).copied().unwrap_or(false) != wanted {
            return Err(OpError::shape(format!("the update rule {} input `{name}`", if wanted { "needs" } else { "has no" })));
        }
    }
    // How a long sequence is cut for other hardware.
    attrs.ignore(&["chunk_size"]);
    Ok(Box::new(LinearAttention { q_heads, kv_heads, scale: attrs.float_or("scale", 0.0)? }))
}

/// What the shapes say.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    length: usize,
    key: usize,
    value: usize,
    /// Elements of the decay per head: one, or one for each element of a key.
    decay: usize,
    /// Heads that the update rate has: all or one.
    beta: usize,
}

impl LinearAttention {
    fn sizes(&self, inputs: &[Option<&[usize]>]) -> Result<Sizes, OpError> {
        let shape = |i: usize| inputs.get(i).copied().flatten();
        let three = |i: usize| match shape(i) {
            Some(&[a, b, c]) => Ok((a, b, c)),
            other => Err(OpError::shape(format!("input {i} has three dimensions, not {other:?}"))),
        };
        let unfit = |i: usize| OpError::shape(format!("input {i} of shape {:?} does not fit a query of shape {:?}", shape(i), shape(0)));
        let (batch, length, q) = three(0)?;
        let split = |i: usize, n: usize, heads: usize| if n.is_multiple_of(heads) { Ok(n / heads) } else { Err(unfit(i)) };
        let key = split(0, q, self.q_heads)?;
        let (kb, kt, k) = three(1)?;
        let (vb, vt, v) = three(2)?;
        let value = split(2, v, self.kv_heads)?;
        if (kb, kt) != (batch, length) || k / self.kv_heads != key || k % self.kv_heads != 0 {
            return Err(unfit(1));
        }
        if (vb, vt) != (batch, length) {
            return Err(unfit(2));
        }
        if shape(PAST).is_some_and(|past| past != [batch, self.kv_heads, key, value]) {
            return Err(unfit(PAST));
        }
        let gate = |i: usize, choices: [(usize, usize); 2]| -> Result<usize, OpError> {
            if shape(i).is_none() {
                return Ok(1);
            }
            let (b, t, n) = three(i)?;
            let found = choices.into_iter().find(|choice| choice.0 == n).filter(|_| (b, t) == (batch, length));
            found.map(|choice| choice.1).ok_or_else(|| unfit(i))
        };
        let decay = gate(DECAY, [(self.kv_heads, 1), (k, key)])?;
        let beta = gate(BETA, [(self.kv_heads, self.kv_heads), (1, 1)])?;
        Ok(Sizes { batch, length, key, value, decay, beta })
    }

    /// One head of keys over all tokens: reads the state for every head of queries that shares it.
    fn head(&self, sizes: &Sizes, at: usize, operands: &Operands<'_>, state: &mut [f32], y: &mut [f32]) {
        let Sizes { length, key, value, decay, beta, .. } = *sizes;
        let (b, h) = (at / self.kv_heads, at % self.kv_heads);
        let group = self.q_heads / self.kv_heads;
        let scale = if self.scale == 0.0 { 1.0 / (key as f32).sqrt() } else { self.scale };
        let mut new = vec![0.0; value];
        for t in 0..length {
            let token = b * length + t;
            let k = &operands.k[(token * self.kv_heads + h) * key..][..key];
            new.copy_from_slice(&operands.v[(token * self.kv_heads + h) * value..][..value]);
            if let Some(gates) = operands.decay {
                let gates = &gates[(token * self.kv_heads + h) * decay..][..decay];
                for (d, row) in state.chunks_exact_mut(value).enumerate() {
                    let factor = gates[if decay == 1 { 0 } else { d }].exp();
                    row.iter_mut().for_each(|s| *s *= factor);
                }
            }
            if let Some(rates) = operands.beta {
                let rate = rates[token * beta + if beta == 1 { 0 } else { h }];
                for (row, &k) in state.chunks_exact(value).zip(k) {
                    new.iter_mut().zip(row).for_each(|(v, s)| *v -= s * k);
                }
                new.iter_mut().for_each(|v| *v *= rate);
            }
            for (row, &k) in state.chunks_exact_mut(value).zip(k) {
                row.iter_mut().zip(&new).for_each(|(s, v)| *s += k * v);
            }
            for (g, y) in y[t * group * value..][..group * value].chunks_exact_mut(value).enumerate() {
                let q = &operands.q[(token * self.q_heads + h * group + g) * key..][..key];
                y.fill(0.0);
                for (row, &q) in state.chunks_exact(value).zip(q) {
                    y.iter_mut().zip(row).for_each(|(y, s)| *y += q * s);
                }
                y.iter_mut().for_each(|y| *y *= scale);
            }
        }
    }
}

struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: Option<&'a [f32]>,
    beta: Option<&'a [f32]>,
}

impl Op for LinearAttention {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 3)?;
        let kind = same_type(inputs, 1, [0, 1, 2, DECAY, BETA])?[0].clone();
        let state = inputs.get(PAST).cloned().flatten().unwrap_or_else(|| kind.clone());
        match state.dtype() {
            Some(dtype) if dtype.is_float() => Ok(Kinds::from_iter([kind, state])),
            _ => Err(OpError::Type(format!("the state has a floating-point type, not {state}"))),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shapes = (0..inputs.len()).map(|i| inputs.get(i).map(|_| inputs.shape(i)).transpose()).collect::<Result<Vec<_>, _>>()?;
        let Sizes { batch, length, key, value, .. } = self.sizes(&shapes)?;
        let hidden = self.q_heads.checked_mul(value).ok_or_else(|| OpError::shape("the output is too large"))?;
        Ok(vec![smallvec![batch, length, hidden], smallvec![batch, self.kv_heads, key, value]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let shapes: Vec<_> = inputs.0.iter().map(|view| view.map(|view| view.shape())).collect();
        let sizes = self.sizes(&shapes)?;
        let Sizes { batch, length, key, value, .. } = sizes;
        let (q, k, v) = (widen::<f32>(inputs.at(0)?)?, widen::<f32>(inputs.at(1)?)?, widen::<f32>(inputs.at(2)?)?);
        let (decay, beta) = (widen_some::<f32>(inputs.get(DECAY))?, widen_some::<f32>(inputs.get(BETA))?);
        let operands = Operands { q: &q, k: &k, v: &v, decay: decay.as_deref(), beta: beta.as_deref() };
        let mut state = match inputs.get(PAST) {
            Some(past) => widen::<f32>(past)?.into_owned(),
            None => buffer::<f32>(&[batch, self.kv_heads, key, value])?,
        };
        let group = self.q_heads / self.kv_heads;
        // [batch, kv_heads, length, group, value]
        let mut y = buffer::<f32>(&[batch, self.kv_heads, length, group, value])?;
        if !y.is_empty() && key > 0 {
            let work = flops(batch * self.kv_heads * length, key, value).saturating_mul(4);
            let items = state.chunks_exact_mut(key * value).zip(y.chunks_exact_mut(length * group * value)).enumerate();
            if ctx.threads.parts(work) == 1 {
                items.into_iter().for_each(|(at, (state, y))| self.head(&sizes, at, &operands, state, y));
            } else {
                ctx.threads.for_each(items, |(at, (state, y))| self.head(&sizes, at, &operands, state, y));
            }
        }
        if let Some(present) = outputs.get(1) {
            store(&state, present)?;
        }
        let Some(to) = outputs.get(0) else { return Ok(()) };
        let mut all = buffer::<f32>(&[y.len()])?;
        if !y.is_empty() {
            let row = group * value;
            for (at, from) in y.chunks_exact(row).enumerate() {
                let (t, unit) = (at % length, at / length);
                let (b, h) = (unit / self.kv_heads, unit % self.kv_heads);
                all[((b * length + t) * self.kv_heads + h) * row..][..row].copy_from_slice(from);
            }
        }
        store(&all, to)
    }
}
