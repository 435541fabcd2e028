//! Attention that a pass recognised in basic operators (`optimize/fuse_attention.rs`): no score matrix in memory, and heads read
//! and written where they lie.
//!
//! It keeps the operators that it replaces. Where shapes are not those of attention, because something broadcasts, they compute.

use std::sync::Arc;

use smallvec::smallvec;

use crate::engine::dtype::DType;
use crate::engine::kernels::attention::{Buffers, Head, Mask, Rows, attend, few};
use crate::engine::op::{Context, Fact, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::product::flops;
use crate::engine::tensor::{Kind, Tensor};
use crate::engine::view::{Slice, SliceMut, View, ViewMut};

/// Its row; it is in no table, because no model names it.
pub(crate) static DEF: OpDef = OpDef {
    name: "Attention",
    domain: "fused",
    opsets: 1..=u16::MAX,
    types: &[DType::F32],
    build: |_| Err(OpError::unsupported("only a pass makes this operator")),
};

/// The operands in their order.
pub(crate) const Q: usize = 0;
/// See [`Q`].
pub(crate) const K: usize = 1;
/// See [`Q`].
pub(crate) const V: usize = 2;
/// Added to the scores; may be missing.
pub(crate) const MASK: usize = 3;
/// A number by which queries are multiplied; may be missing.
pub(crate) const Q_FACTOR: usize = 4;
/// A number by which keys are multiplied; may be missing.
pub(crate) const K_FACTOR: usize = 5;

/// How heads lie in a tensor of rank 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[batch, heads, rows, elements]`.
    HeadsOutside,
    /// `[batch, rows, heads, elements]`.
    HeadsInside,
    /// `[batch, heads, elements, rows]`: keys as the product takes them.
    Transposed,
}

/// Where a step of the replaced operators takes an operand from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// An operand of the node.
    Operand(usize),
    /// The result of a step before.
    Step(usize),
    Constant(Tensor),
}

/// An operator that was replaced, with one result of type f32.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) op: Arc<dyn Op>,
    pub(crate) sources: Vec<Source>,
}

/// `softmax(scale * q · kᵀ + mask) · v`, where the factors that are operands are part of the scale.
#[derive(Debug)]
pub(crate) struct FusedAttention {
    pub(crate) scale: f32,
    /// What a weight is that is no number, if it is to be one.
    pub(crate) nan_weight: Option<f32>,
    pub(crate) q: Layout,
    pub(crate) k: Layout,
    pub(crate) v: Layout,
    pub(crate) y: Layout,
    /// What it replaces, in order; the last step gives the result.
    pub(crate) steps: Vec<Step>,
}

/// The sizes of attention, and the strides of its mask.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    width: usize,
    /// From batch to batch, head to head, query to query and key to key.
    mask: Option<[usize; 4]>,
    scale: f32,
}

impl Layout {
    /// Batch, heads, rows and elements.
    fn sizes(self, shape: &[usize]) -> Option<[usize; 4]> {
        let &[a, b, c, d] = shape else { return None };
        Some(match self {
            Self::HeadsOutside => [a, b, c, d],
            Self::HeadsInside => [a, c, b, d],
            Self::Transposed => [a, b, d, c],
        })
    }

    /// Where a head begins, and the distance of its rows (of its elements, if it is transposed).
    fn place(self, [_, heads, rows, elements]: [usize; 4], batch: usize, head: usize) -> (usize, usize) {
        match self {
            Self::HeadsOutside => ((batch * heads + head) * rows * elements, elements),
            Self::HeadsInside => (batch * rows * heads * elements + head * elements, heads * elements),
            Self::Transposed => ((batch * heads + head) * rows * elements, rows),
        }
    }
}

impl FusedAttention {
    /// The sizes, if nothing broadcasts but the mask.
    fn sizes(&self, q: &[usize], k: &[usize], v: &[usize], mask: Option<&[usize]>) -> Option<Sizes> {
        let [batch, heads, queries, depth] = self.q.sizes(q)?;
        let [k_batch, k_heads, keys, k_depth] = self.k.sizes(k)?;
        let [v_batch, v_heads, v_keys, width] = self.v.sizes(v)?;
        if (k_batch, k_heads, k_depth) != (batch, heads, depth) || (v_batch, v_heads, v_keys) != (batch, heads, keys) || keys == 0 {
            return None;
        }
        let mask = match mask {
            None => None,
            Some(mask) if mask.len() > 4 => return None,
            Some(mask) => {
                let (mut strides, mut step) = ([0; 4], 1);
                for (d, &n) in mask.iter().rev().enumerate() {
                    if n != 1 && n != [keys, queries, heads, batch][d] {
                        return None;
                    }
                    strides[3 - d] = if n == 1 { 0 } else { step };
                    step *= n;
                }
                Some(strides)
            }
        };
        Some(Sizes { batch, heads, queries, keys, depth, width, mask, scale: self.scale })
    }

    /// The facts of all steps' results, the last one's last.
    fn infer(&self, inputs: &Facts<'_>) -> Result<Vec<Fact>, OpError> {
        let mut known: Vec<Fact> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let constants: Vec<Option<Fact>> = step.sources.iter().map(Source::constant).collect();
            let fact = |(source, constant): (&Source, &'_ Option<Fact>)| -> Option<Fact> {
                match source {
                    Source::Operand(index) => inputs.get(*index).cloned(),
                    Source::Step(index) => Some(known[*index].clone()),
                    Source::Constant(_) => constant.clone(),
                }
            };
            let facts: Vec<Option<Fact>> = step.sources.iter().zip(&constants).map(fact).collect();
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            let shape = step.op.shapes(&Facts(&refs))?.swap_remove(0);
            known.push(Fact::shaped(DType::F32, shape));
        }
        Ok(known)
    }

    /// Runs the replaced operators.
    fn step_by_step(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let facts: Vec<Option<Fact>> =
            (0..inputs.len()).map(|i| inputs.get(i).map(|view| Fact::shaped(DType::F32, Shape::from(view.shape())))).collect();
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let shapes: Vec<Shape> = self.infer(&Facts(&refs))?.into_iter().filter_map(|fact| fact.shape).collect();
        let between: usize = shapes[..shapes.len() - 1].iter().map(|shape| shape.iter().product::<usize>()).sum();
        if between.saturating_mul(size_of::<f32>()) > ctx.budget {
            return Err(OpError::value(format!("the {between} elements between operators are more than the memory that is left")));
        }
        let mut results: Vec<Vec<f32>> = Vec::new();
        for (index, (step, shape)) in self.steps.iter().zip(&shapes).enumerate() {
            let last = index + 1 == self.steps.len();
            let mut result = if last { Vec::new() } else { vec![0.0; shape.iter().product()] };
            let view = |source: &'_ Source| match source {
                Source::Operand(index) => inputs.get(*index),
                Source::Step(index) => Some(View::new(Slice::F32(&results[*index]), &shapes[*index])),
                Source::Constant(_) => None,
            };
            let mut views: Vec<Option<View<'_>>> = step.sources.iter().map(view).collect();
            for (view, source) in views.iter_mut().zip(&step.sources) {
                if let Source::Constant(tensor) = source {
                    *view = Some(tensor.view());
                }
            }
            if last {
                step.op.run(&Inputs(&views), outputs, ctx)?;
            } else {
                let mut output = [Some(ViewMut::new(SliceMut::F32(&mut result), shape))];
                step.op.run(&Inputs(&views), &mut Outputs(&mut output), ctx)?;
            }
            results.push(result);
        }
        Ok(())
    }

    /// The scale with the factors that are operands, if each is one number.
    fn scale(&self, inputs: &Inputs<'_>) -> Result<Option<f32>, OpError> {
        let mut scale = self.scale;
        for factor in [Q_FACTOR, K_FACTOR].into_iter().filter_map(|index| inputs.get(index)) {
            match factor.slice::<f32>()? {
                [number] if factor.shape().len() <= 4 => scale *= number,
                _ => return Ok(None),
            }
        }
        Ok(Some(scale))
    }

    fn head<'a>(&self, sizes: &Sizes, [q, k, v]: [&'a [f32]; 3], mask: Option<&'a [f32]>, batch: usize, head: usize) -> Head<'a> {
        let Sizes { batch: batches, heads, queries, keys, depth, width, .. } = *sizes;
        let rows = |data: &'a [f32], layout: Layout, sizes: [usize; 4]| {
            let (start, ld) = layout.place(sizes, batch, head);
            Rows { data: &data[start.min(data.len())..], ld }
        };
        let mask = mask.zip(sizes.mask).map(|(data, [by_batch, by_head, row, key])| Mask {
            data: &data[batch * by_batch + head * by_head..],
            row,
            per_key: key != 0,
        });
        Head {
            q: rows(q, self.q, [batches, heads, queries, depth]),
            k: rows(k, self.k, [batches, heads, keys, depth]),
            k_transposed: self.k == Layout::Transposed,
            v: rows(v, self.v, [batches, heads, keys, width]),
            mask,
            scale: sizes.scale,
            nan_weight: self.nan_weight,
            queries,
            few: few(queries, keys),
            keys,
            depth,
            width,
        }
    }

    /// Heads on as many threads as the work is worth, or queries of all heads, where heads lie side by side in the result.
    fn run_heads(&self, sizes: &Sizes, operands: [&[f32]; 3], mask: Option<&[f32]>, y: &mut [f32], ctx: &mut Context<'_>) {
        let Sizes { batch, heads, queries, keys, depth, width, .. } = *sizes;
        let parts = ctx.threads.parts(flops(batch * heads * queries, depth + width, keys));
        let isa = ctx.isa;
        if self.y == Layout::HeadsOutside {
            let per_part = (batch * heads).div_ceil(parts).max(1);
            let items = y.chunks_mut(per_part * queries * width).enumerate();
            ctx.threads.for_each(items, |(part, y)| {
                let mut buffers = Buffers::default();
                for (i, y) in y.chunks_exact_mut(queries * width).enumerate() {
                    let at = part * per_part + i;
                    attend(isa, &self.head(sizes, operands, mask, at / heads, at % heads), y, width, &mut buffers);
                }
            });
            return;
        }
        let rows = queries.div_ceil(parts.div_ceil(batch));
        let mut items = Vec::new();
        for (batch, y) in y.chunks_exact_mut(queries * heads * width).enumerate() {
            items.extend(y.chunks_mut(rows * heads * width).enumerate().map(|(part, y)| (batch, part * rows, y)));
        }
        ctx.threads.for_each(items, |(batch, first, y)| {
            let mut buffers = Buffers::default();
            for index in 0..heads {
                let head = self.head(sizes, operands, mask, batch, index);
                let q = Rows { data: &head.q.data[first * head.q.ld..], ..head.q };
                let mask = head.mask.map(|mask| Mask { data: &mask.data[first * mask.row..], ..mask });
                let part = Head { q, mask, queries: y.len() / (heads * width), ..head };
                attend(isa, &part, &mut y[index * width..], heads * width, &mut buffers);
            }
        });
    }
}

impl Source {
    fn constant(&self) -> Option<Fact> {
        match self {
            Self::Constant(tensor) => Some(Fact::constant(tensor.clone())),
            _ => None,
        }
    }
}

impl Op for FusedAttention {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        match inputs.iter().flatten().all(|kind| *kind == Kind::Tensor(DType::F32)) {
            true => Ok(smallvec![Kind::Tensor(DType::F32)]),
            false => Err(OpError::Type("attention is fused over f32".to_owned())),
        }
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let shape = self.infer(inputs)?.pop().and_then(|fact| fact.shape);
        Ok(vec![shape.ok_or(OpError::Unknown)?])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (q, k, v, mask) = (inputs.at(Q)?, inputs.at(K)?, inputs.at(V)?, inputs.get(MASK));
        let sizes = self.sizes(q.shape(), k.shape(), v.shape(), mask.map(|mask| mask.shape()));
        let (Some(sizes), Some(scale)) = (sizes, self.scale(inputs)?) else {
            return self.step_by_step(inputs, outputs, ctx);
        };
        let sizes = Sizes { scale, ..sizes };
        let y = outputs.at(0)?.slice::<f32>()?;
        if y.is_empty() {
            return Ok(());
        }
        let mask = mask.map(|mask| mask.slice::<f32>()).transpose()?;
        self.run_heads(&sizes, [q.slice()?, k.slice()?, v.slice()?], mask, y, ctx);
        Ok(())
    }

    fn flops(&self, inputs: &Facts<'_>) -> u64 {
        let sizes = (|| self.sizes(inputs.shape(Q).ok()?, inputs.shape(K).ok()?, inputs.shape(V).ok()?, None))();
        sizes.map_or(0, |s| flops(s.batch * s.heads * s.queries, s.depth + s.width, s.keys))
    }
}
