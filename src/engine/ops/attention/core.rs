//! Scaled dot-product attention over heads, as all operators of the family share it.
//!
//! Heads of queries that share a head of keys lie next to each other: they are the rows of one product, so nothing is repeated.
//! Each group of heads is a unit of work for a thread; where there are fewer groups than threads, a group's rows are split too.
//! Scores exist for a block of rows at a time.

use std::mem;
use std::ops::Range;

use crate::engine::kernels::weights::Precision;
use crate::engine::dtype::DType;
use crate::engine::kernels::isa::Isa;
use crate::engine::op::{Context, OpError};
use crate::engine::ops::number::Number;
use crate::engine::ops::product::flops;
use crate::engine::ops::real::{Real, Rounding, buffer, softmax};

/// The sizes of an attention problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) q_heads: usize,
    /// Heads of keys and values; divides `q_heads`.
    pub(super) kv_heads: usize,
    pub(super) queries: usize,
    /// Keys and values, those of the past included.
    pub(super) keys: usize,
    /// The length of a query and of a key.
    pub(super) head: usize,
    /// The length of a value.
    pub(super) v_head: usize,
}

impl Sizes {
    /// Floating-point operations of both products.
    pub(super) fn flops(&self) -> u64 {
        let rows = self.batch.saturating_mul(self.q_heads).saturating_mul(self.queries);
        flops(rows, self.head.saturating_add(self.v_head), self.keys)
    }

    fn group(&self) -> usize {
        self.q_heads / self.kv_heads.max(1)
    }
}

/// Which stage of the scores an operator wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Product,
    Capped,
    Biased,
    Softmax,
}

/// The place of a row of scores: its batch, head and query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) query: usize,
}

/// Adds masks and biases to the scores of a row; false if no key may be attended to, whatever the scores are.
pub(super) type BiasRow<'a, R> = dyn Fn(Row, &mut [R]) -> bool + Sync + 'a;

/// What is computed: `softmax(cap(q · kᵀ · scale) + bias) · v`.
pub(super) struct Problem<'a, R: Real> {
    pub(super) sizes: Sizes,
    /// `[batch, q_heads, queries, head]`.
    pub(super) q: &'a [R],
    /// `[batch, kv_heads, keys, head]`.
    pub(super) k: &'a [R],
    /// `[batch, kv_heads, keys, v_head]`.
    pub(super) v: &'a [R],
    pub(super) scale: f64,
    /// The bound of `cap · tanh(x / cap)`, if scores are capped.
    pub(super) softcap: Option<f64>,
    pub(super) bias: Option<&'a BiasRow<'a, R>>,
    /// The type that intermediate results are rounded to.
    pub(super) rounding: Rounding,
    /// The type that the softmax computes in.
    pub(super) softmax: DType,
    /// Per head of queries a score that takes part in the softmax, but has no value.
    pub(super) sink: Option<&'a [R]>,
    /// How many keys count in each batch, if not all.
    pub(super) valid: Option<&'a [usize]>,
    pub(super) stage: Stage,
}

/// Scores held at once, so that a block stays in the cache together with what it is multiplied with.
const SCORES: usize = 1 << 16;

/// One thread's share: rows of one group of heads.
struct Unit<'y, R> {
    batch: usize,
    group: usize,
    rows: Range<usize>,
    y: &'y mut [R],
    scores: Option<&'y mut [R]>,
}

/// The first `len` elements of what is left.
fn take<'y, R>(rest: &mut &'y mut [R], len: usize) -> &'y mut [R] {
    let (head, tail) = mem::take(rest).split_at_mut(len);
    *rest = tail;
    head
}

impl<R: Real> Problem<'_, R> {
    /// Writes the output `[batch, q_heads, queries, v_head]` and, if wanted, the scores `[batch, q_heads, queries, keys]`.
    pub(super) fn run(&self, mut y: &mut [R], mut scores: Option<&mut [R]>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let Sizes { batch, kv_heads, queries, keys, v_head, .. } = self.sizes;
        let rows = self.sizes.group() * queries;
        let groups = batch * kv_heads;
        if groups == 0 || rows == 0 || (y.is_empty() && scores.as_ref().is_none_or(|scores| scores.is_empty())) {
            return Ok(());
        }
        let parts = ctx.threads.parts(self.sizes.flops());
        let step = rows.div_ceil(parts.div_ceil(groups)).max(1);
        let mut units = Vec::new();
        for group in 0..groups {
            for start in (0..rows).step_by(step) {
                let rows = start..rows.min(start + step);
                let y = take(&mut y, rows.len() * v_head);
                let scores = scores.as_mut().map(|scores| take(scores, rows.len() * keys));
                units.push(Unit { batch: group / kv_heads, group: group % kv_heads, rows, y, scores });
            }
        }
        let work = |unit: Unit<'_, R>| self.unit(unit, ctx.isa);
        let failed = std::sync::Mutex::new(None);
        let note = |unit: Unit<'_, R>| {
            if let Err(error) = work(unit) {
                *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            }
        };
        if parts == 1 {
            units.into_iter().for_each(note);
        } else {
            ctx.threads.for_each(units, note);
        }
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn unit(&self, unit: Unit<'_, R>, isa: Isa) -> Result<(), OpError> {
        let Sizes { kv_heads, queries, keys, head, v_head, .. } = self.sizes;
        let rows = self.sizes.group() * queries;
        let group = unit.batch * kv_heads + unit.group;
        let valid = self.valid.map_or(keys, |valid| valid[unit.batch].min(keys));
        let root = self.rounding.one(R::from_f64(self.scale.sqrt()));
        let (k, v) = (&self.k[group * keys * head..][..valid * head], &self.v[group * keys * v_head..][..valid * v_head]);
        let k = match self.rounding {
            Rounding::None => R::pack(Precision::F32, isa, k, head, valid, true),
            rounding => {
                let mut scaled: Vec<R> = k.iter().map(|k| k.mul(root)).collect();
                rounding.apply(&mut scaled);
                R::pack(Precision::F32, isa, &scaled, head, valid, true)
            }
        };
        let v = R::pack(Precision::F32, isa, v, valid, v_head, false);
        let scale = if self.rounding == Rounding::None { R::from_f64(self.scale) } else { root };
        let block = (SCORES / valid.max(1)).clamp(4, 256).min(unit.rows.len());
        let (mut q_block, mut p_block) = (buffer::<R>(&[block, head])?, buffer::<R>(&[block, valid])?);
        let (mut y, mut seen) = (unit.y, unit.scores);
        for start in unit.rows.clone().step_by(block) {
            let count = block.min(unit.rows.end - start);
            let (q_block, p_block) = (&mut q_block[..count * head], &mut p_block[..count * valid]);
            let q = &self.q[(group * rows + start) * head..][..count * head];
            q_block.iter_mut().zip(q).for_each(|(to, q)| *to = q.mul(scale));
            self.rounding.apply(q_block);
            R::multiply(q_block, count, &k, p_block);
            self.rounding.apply(p_block);
            for i in 0..count {
                let at = start + i;
                let row = Row { batch: unit.batch, head: unit.group * self.sizes.group() + at / queries, query: at % queries };
                let seen = seen.as_mut().map(|seen| take(seen, keys));
                self.row(row, &mut p_block[i * valid..][..valid], seen, isa);
            }
            let y = take(&mut y, count * v_head);
            R::multiply(p_block, count, &v, y);
            self.rounding.apply(y);
        }
        Ok(())
    }

    /// From products to probabilities; `seen` gets the stage that is wanted, zeros beyond the valid keys.
    fn row(&self, row: Row, x: &mut [R], mut seen: Option<&mut [R]>, isa: Isa) {
        let mut show = |stage: Stage, x: &[R]| {
            if let Some(seen) = seen.as_mut().filter(|_| stage == self.stage) {
                seen[..x.len()].copy_from_slice(x);
                seen[x.len()..].fill(R::ZERO);
            }
        };
        show(Stage::Product, x);
        if let Some(cap) = self.softcap {
            let cap = self.rounding.one(R::from_f64(cap));
            x.iter_mut().for_each(|x| *x = Number::div(*x, cap));
            self.rounding.apply(x);
            R::tanh(isa, x);
            self.rounding.apply(x);
            x.iter_mut().for_each(|x| *x = x.mul(cap));
            self.rounding.apply(x);
        }
        show(Stage::Capped, x);
        let mut attends = true;
        if let Some(bias) = self.bias {
            attends = bias(row, x);
            self.rounding.apply(x);
        }
        show(Stage::Biased, x);
        if attends {
            let sink = self.sink.map(|sink| sink[row.head]);
            softmax_as(isa, self.softmax, x, sink);
            self.rounding.apply(x);
        } else {
            x.fill(R::ZERO);
        }
        show(Stage::Softmax, x);
    }
}

/// The softmax of a row, computed in `precision`; a row of nothing but minus infinity gives zeros.
pub(super) fn softmax_as<R: Real>(isa: Isa, precision: DType, x: &mut [R], sink: Option<R>) {
    match (precision, R::DTYPE) {
        (DType::F64, DType::F32) => through::<R, f64>(isa, x, sink),
        (DType::F32, DType::F64) => through::<R, f32>(isa, x, sink),
        _ => softmax(isa, Rounding::of(precision), x, sink),
    }
}

fn through<R: Real, S: Real>(isa: Isa, x: &mut [R], sink: Option<R>) {
    let mut other: Vec<S> = x.iter().map(|x| S::from_f64(x.to_f64())).collect();
    softmax(isa, Rounding::None, &mut other, sink.map(|sink| S::from_f64(sink.to_f64())));
    x.iter_mut().zip(other).for_each(|(x, y)| *x = R::from_f64(y.to_f64()));
}
