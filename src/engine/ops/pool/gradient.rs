//! Gradients of pooling: to the first greatest element of a window, or in shares to all of it.

use super::{GlobalPool, MaxPool, Norm, Over, Sum, SumPool, axes_over};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Scratch, Shape};
use crate::engine::ops::axes::same_type;
use crate::engine::ops::own;
use crate::engine::ops::scalar::{Scalar, with_scalar};
use crate::engine::ops::window::{Axis, planes, windows};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

pub(crate) const RULES: &[Rule] = &[
    Rule::new("MaxPool", max_pool),
    Rule::new("AveragePool", sum_pool),
    Rule::new("LpPool", sum_pool),
    Rule::new("GlobalMaxPool", global),
    Rule::new("GlobalAveragePool", global),
    Rule::new("GlobalLpPool", global),
];

static POOL: OpDef = own("PoolGradient");

fn max_pool(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let pool = concrete::<MaxPool>(op)?;
    let window = pool.window.clone();
    emit_pool(PoolGradient { window: Some(window), share: Share::Greatest }, at, emit)
}

fn sum_pool(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let pool = concrete::<SumPool>(op)?;
    let share = match pool.sum {
        Sum::Mean { include_pad } => Share::Mean { include_pad },
        Sum::Norm(norm) => Share::Norm(norm),
    };
    emit_pool(PoolGradient { window: Some(pool.window.clone()), share }, at, emit)
}

fn global(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let share = match concrete::<GlobalPool>(op)?.over {
        Over::Greatest => Share::Greatest,
        Over::Mean => Share::Mean { include_pad: false },
        Over::Norm(norm) => Share::Norm(norm),
    };
    emit_pool(PoolGradient { window: None, share }, at, emit)
}

fn emit_pool(op: PoolGradient, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    Ok(vec![Some(emit.one(&POOL, op, &[at.g()?, at.x(0)?])?)])
}

/// What each element of a window gets of its output's gradient.
#[derive(Clone, Copy, Debug)]
enum Share {
    /// All, if it is the first of the greatest.
    Greatest,
    Mean { include_pad: bool },
    Norm(Norm),
}

/// Inputs: the gradient of the output, the input.
#[derive(Debug)]
struct PoolGradient {
    /// None for a window over everything.
    window: Option<super::Window>,
    share: Share,
}

/// What the windows of a plane meet: for each output position the input elements, and by how many its mean divides.
struct Meetings {
    elements: Vec<usize>,
    /// Where the elements of each position end.
    ends: Vec<usize>,
    counts: Vec<f64>,
}

impl Meetings {
    /// Without any, in memory of the scratch.
    fn empty(scratch: &mut Scratch) -> Self {
        let mut meetings = Self { elements: scratch.take(), ends: scratch.take(), counts: scratch.take() };
        meetings.elements.clear();
        meetings.ends.clear();
        meetings.counts.clear();
        meetings
    }

    fn give(self, scratch: &mut Scratch) {
        scratch.give(self.counts);
        scratch.give(self.ends);
        scratch.give(self.elements);
    }

    fn of(axes: &[Axis], include_pad: bool, mut meetings: Self) -> Self {
        windows(axes, |_, at, list| {
            meetings.elements.extend(list.iter().map(|&(_, element)| element));
            meetings.ends.push(meetings.elements.len());
            let covered = || axes.iter().zip(at).map(|(axis, &at)| axis.covered(at) as f64).product();
            meetings.counts.push(if include_pad { covered() } else { list.len() as f64 });
        });
        meetings
    }
}

impl Share {
    /// Adds what the outputs of a plane give to its elements.
    fn plane<T: Scalar>(self, meetings: &Meetings, g: &[T], x: &[T], y: &mut [T]) {
        let mut start = 0;
        for ((&g, &end), &count) in g.iter().zip(&meetings.ends).zip(&meetings.counts) {
            let elements = &meetings.elements[start..end];
            start = end;
            match self {
                Self::Greatest => {
                    let greatest = elements.iter().copied().reduce(|best, e| if !x[best].is_nan() && (x[e] > x[best] || x[e].is_nan()) { e } else { best });
                    if let Some(greatest) = greatest {
                        y[greatest] += g;
                    }
                }
                Self::Mean { .. } => {
                    let share = T::of(g.wide() / count);
                    elements.iter().for_each(|&e| y[e] += share);
                }
                Self::Norm(norm) => {
                    let sum: f64 = elements.iter().map(|&e| norm.power(x[e].wide())).sum();
                    let whole = norm.root(sum);
                    for &e in elements {
                        let x = x[e].wide();
                        // d‖x‖ = |x|^(p-1) sign(x) / ‖x‖^(p-1), and zero at zero.
                        let slope = if x == 0.0 { 0.0 } else { (x.abs() / whole).powf(norm.p - 1.0) * x.signum() };
                        y[e] += T::of(g.wide() * slope);
                    }
                }
            }
        }
    }
}

impl PoolGradient {
    fn run_typed<T: Scalar>(&self, g: View<'_>, x: View<'_>, y: &mut [T], ctx: &mut Context<'_>) -> Result<(), OpError> {
        let include_pad = matches!(self.share, Share::Mean { include_pad: true });
        let mut empty = Meetings::empty(ctx.scratch);
        let (meetings, from, to) = match &self.window {
            Some(window) => {
                let axes = axes_over(window, x.shape())?;
                let (from, to) = planes(&axes);
                (Meetings::of(&axes, include_pad, empty), from, to)
            }
            None => {
                let from: usize = x.shape()[2..].iter().product();
                empty.elements.extend(0..from);
                empty.ends.push(from);
                empty.counts.push(from as f64);
                (empty, from, 1)
            }
        };
        let (g, x) = (g.slice::<T>()?, x.slice::<T>()?);
        y.fill(T::zero());
        if from == 0 || to == 0 || y.is_empty() {
            return Ok(());
        }
        let parts = ctx.threads.parts(4 * (g.len() / to * meetings.elements.len()) as u64);
        let per_part = (y.len() / from).div_ceil(parts);
        let items = g.chunks(per_part * to).zip(x.chunks(per_part * from)).zip(y.chunks_mut(per_part * from));
        ctx.threads.for_each(items, |((g, x), y)| {
            for ((g, x), y) in g.chunks_exact(to).zip(x.chunks_exact(from)).zip(y.chunks_exact_mut(from)) {
                self.share.plane(&meetings, g, x, y);
            }
        });
        meetings.give(ctx.scratch);
        Ok(())
    }
}

impl Op for PoolGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, 0..2)
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(1)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let (g, x) = (inputs.at(0)?, inputs.at(1)?);
        with_scalar!(g.dtype(), T => self.run_typed::<T>(g, x, outputs.at(0)?.slice()?, ctx))
    }
}
