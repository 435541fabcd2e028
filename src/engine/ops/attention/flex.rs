//! FlexAttention of `ai.onnx.preview`: attention whose scores and probabilities may pass through a body each.

use std::sync::Arc;

use smallvec::smallvec;

use super::core::{Problem, Sizes, Stage, softmax_as};
use super::standard::precision;
use crate::engine::kernels::weights::Precision;
use crate::engine::attrs::Attrs;
use crate::engine::body::Body;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpError, Outputs, Shape};
use crate::engine::ops::axes::same_type;
use crate::engine::ops::real::{Real, Rounding, buffer, store, widen, with_real};
use crate::engine::tensor::{Buffer, Kind, Tensor, Value};
use crate::engine::view::{View, ViewMut};

#[derive(Debug)]
struct FlexAttention {
    scale: Option<f32>,
    softmax_precision: Option<DType>,
    score_mod: Option<Arc<dyn Body>>,
    prob_mod: Option<Arc<dyn Body>>,
}

pub(super) fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    Ok(Box::new(FlexAttention {
        scale: attrs.float("scale")?,
        softmax_precision: precision(attrs)?,
        score_mod: attrs.graph("score_mod")?,
        prob_mod: attrs.graph("prob_mod")?,
    }))
}

fn sizes(q: &[usize], k: &[usize], v: &[usize]) -> Result<Sizes, OpError> {
    match (q, k, v) {
        (&[batch, q_heads, queries, head], &[kb, kv_heads, keys, kh], &[vb, vn, vl, v_head])
            if kb == batch
                && vb == batch
                && kh == head
                && vn == kv_heads
                && vl == keys
                && (q_heads.checked_rem(kv_heads) == Some(0) || (q_heads, kv_heads) == (0, 0)) =>
        {
            Ok(Sizes { batch, q_heads, kv_heads, queries, keys, head, v_head })
        }
        _ => Err(OpError::shape(format!("query {q:?}, key {k:?} and value {v:?} do not fit each other"))),
    }
}

/// Numbers as a tensor of an element type.
fn tensor<S: Real>(values: &[S], dtype: DType, shape: &[usize]) -> Result<Tensor, OpError> {
    let mut buffer = Buffer::new(dtype);
    buffer.grow(values.len());
    store(values, &mut buffer.view_mut(shape))?;
    buffer.into_tensor(shape).ok_or_else(|| OpError::shape("the scores do not fit their shape"))
}

impl FlexAttention {
    /// The type in which everything after the first product computes.
    fn precision(&self, dtype: DType) -> DType {
        self.softmax_precision.unwrap_or(if dtype == DType::F64 { DType::F64 } else { DType::F32 })
    }

    /// Passes scores through a body.
    fn modify<S: Real>(body: Option<&dyn Body>, x: &mut [S], (dtype, shape): (DType, &[usize]), node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<(), OpError> {
        let Some(body) = body else { return Ok(()) };
        let given = Value::Tensor(tensor(x, dtype, shape)?);
        let made = body.runner().run(&[given], node, 0, ctx)?;
        let [Value::Tensor(made)] = made.as_slice() else { return Err(OpError::shape("its body gives one tensor")) };
        if made.shape() != shape {
            return Err(OpError::shape(format!("its body makes {:?} out of {shape:?}", made.shape())));
        }
        x.copy_from_slice(&widen::<S>(made.view())?);
        Ok(())
    }

    fn body<R: Real, S: Real>(&self, [q, k, v]: [View<'_>; 3], y: &mut ViewMut<'_>, node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<(), OpError> {
        let sizes = sizes(q.shape(), k.shape(), v.shape())?;
        let Sizes { batch, q_heads, kv_heads, queries, keys, head, v_head } = sizes;
        let precision = self.precision(q.dtype());
        let problem = Problem {
            // Values take no part in the first product.
            sizes: Sizes { v_head: 0, ..sizes },
            q: &widen::<R>(q)?,
            k: &widen::<R>(k)?,
            v: &[],
            scale: self.scale.map_or_else(|| 1.0 / (head as f64).sqrt(), f64::from),
            softcap: None,
            bias: None,
            rounding: Rounding::of(q.dtype()),
            softmax: R::DTYPE,
            sink: None,
            valid: None,
            stage: Stage::Product,
        };
        let shape = [batch, q_heads, queries, keys];
        let mut scores = buffer::<R>(&shape)?;
        problem.run(&mut [], Some(&mut scores), ctx)?;
        let mut scores: Vec<S> = scores.iter().map(|x| S::from_f64(x.to_f64())).collect();
        let rounding = Rounding::of(precision);
        rounding.apply(&mut scores);
        Self::modify(self.score_mod.as_deref(), &mut scores, (precision, &shape), node, ctx)?;
        for row in scores.chunks_exact_mut(keys.max(1)) {
            if S::max(ctx.isa, row) == S::LOWEST {
                // There is nothing to attend to, and here no rule that says zero.
                row.fill(S::from_f64(f64::NAN));
            } else {
                softmax_as(ctx.isa, precision, row, None);
            }
        }
        Self::modify(self.prob_mod.as_deref(), &mut scores, (precision, &shape), node, ctx)?;
        let v = widen::<S>(v)?;
        let mut out = buffer::<S>(&[batch, q_heads, queries, v_head])?;
        let rows = q_heads.checked_div(kv_heads).unwrap_or(0) * queries;
        if !out.is_empty() {
            for (group, out) in out.chunks_exact_mut(rows * v_head).enumerate() {
                let v = S::pack(Precision::F32, ctx.isa, &v[group * keys * v_head..][..keys * v_head], keys, v_head, false);
                S::multiply(&scores[group * rows * keys..][..rows * keys], rows, &v, out);
            }
        }
        rounding.apply(&mut out);
        store(&out, y)
    }

    fn compute(&self, views: [View<'_>; 3], y: &mut ViewMut<'_>, node: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<(), OpError> {
        let dtype = views[0].dtype();
        with_real!(dtype, R => with_real!(self.precision(dtype), S => self.body::<R, S>(views, y, node, ctx)))
    }
}

impl Op for FlexAttention {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        let kinds = same_type(inputs, 3, 0..3)?;
        let dtype = kinds[0].dtype().unwrap_or(DType::F32);
        let scores = Kind::Tensor(self.precision(dtype));
        for body in [&self.score_mod, &self.prob_mod].into_iter().flatten() {
            let made = body.kinds(std::slice::from_ref(&scores), inputs)?;
            if made.as_slice() != std::slice::from_ref(&scores) {
                return Err(OpError::Type(format!("its body makes {made:?} out of {scores}")));
            }
        }
        Ok(kinds)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        if self.score_mod.is_some() || self.prob_mod.is_some() {
            // Bodies run on values, which only a dynamic step has.
            return Err(OpError::Unknown);
        }
        let Sizes { batch, q_heads, queries, v_head, .. } = sizes(inputs.shape(0)?, inputs.shape(1)?, inputs.shape(2)?)?;
        Ok(vec![smallvec![batch, q_heads, queries, v_head]])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        self.compute([inputs.at(0)?, inputs.at(1)?, inputs.at(2)?], outputs.at(0)?, &[], ctx)
    }

    fn run_dynamic(&self, inputs: &[Option<&Value>], ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        let view = |i: usize| {
            let value = inputs.get(i).copied().flatten().ok_or_else(|| OpError::missing_input(i))?;
            value.tensor().map(Tensor::view).ok_or_else(|| OpError::Type(format!("input {i} is no tensor")))
        };
        let views = [view(0)?, view(1)?, view(2)?];
        let Sizes { batch, q_heads, queries, v_head, .. } = sizes(views[0].shape(), views[1].shape(), views[2].shape())?;
        let (shape, dtype) = ([batch, q_heads, queries, v_head], views[0].dtype());
        let len = crate::engine::op::checked_len(&shape, dtype.size(), ctx.budget)?;
        let mut y = Buffer::new(dtype);
        y.grow(len);
        self.compute(views, &mut y.view_mut(&shape), inputs, ctx)?;
        let y = y.into_tensor(&shape).ok_or_else(|| OpError::shape("the output does not fit its shape"))?;
        Ok(vec![Value::Tensor(y)])
    }

    fn packed_bytes(&self) -> usize {
        [&self.score_mod, &self.prob_mod].into_iter().flatten().map(|body| body.weight_bytes()).sum()
    }
}
