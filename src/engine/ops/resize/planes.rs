//! The elements of a resized tensor, from the tables of its axes.

use super::axis::{Axis, Filter, Nearest, Picks, Taps};
use crate::engine::dtype::{DType, Element, with_number};
use crate::engine::op::{Context, OpError};
use crate::engine::ops::number::Number;
use crate::engine::view::{View, ViewMut};

/// Weights of one axis at most; more than any image needs.
const MOST_WEIGHTS: usize = 1 << 28;

/// A tensor's axes, of which those at both ends that are not resized are merged.
struct Layout<'a> {
    /// The tensors that are resized, one like the other.
    planes: usize,
    /// From the first to the last axis that is resized.
    axes: &'a [Axis],
    /// Elements that stay together.
    block: usize,
}

impl<'a> Layout<'a> {
    fn of(all: &'a [Axis]) -> Self {
        let first = all.iter().position(|axis| !axis.is_identity()).unwrap_or(all.len());
        let end = all.iter().rposition(|axis| !axis.is_identity()).map_or(first, |last| last + 1);
        let product = |axes: &[Axis]| axes.iter().map(|axis| axis.input).product();
        Self { planes: product(&all[..first]), axes: &all[first..end], block: product(&all[end..]) }
    }

    /// Elements of one plane, of the input and of the output.
    fn plane(&self) -> (usize, usize) {
        let (input, output) = self.axes.iter().fold((1, 1), |(i, o), axis| (i * axis.input, o * axis.output));
        (input * self.block, output * self.block)
    }
}

/// Resizes by taking one element for each; neither tensor is empty.
pub(super) fn pick<T: Element>(all: &[Axis], nearest: Nearest, x: &[T], fill: &T, y: &mut [T], ctx: &Context<'_>) {
    let layout = Layout::of(all);
    let Some((inner, outer)) = layout.axes.split_last() else { return y.clone_from_slice(x) };
    let picks_of = |axis: &Axis| if axis.is_identity() { (0..axis.output).map(Some).collect() } else { axis.picks(nearest) };
    let outer_picks: Vec<Picks> = outer.iter().map(picks_of).collect();
    let inner_picks = picks_of(inner);
    let length = inner.output * layout.block;
    // Where the row of the input begins that row `row` of the output is made of.
    let source = |mut row: usize| {
        let (mut start, mut stride) = (0, inner.input * layout.block);
        for (axis, picks) in outer.iter().zip(&outer_picks).rev() {
            start += picks[row % axis.output]? * stride;
            row /= axis.output;
            stride *= axis.input;
        }
        Some(start + row * stride)
    };
    let rows = y.len() / length;
    let parts = ctx.threads.parts(y.len() as u64);
    let per_part = rows.div_ceil(parts);
    let items = y.chunks_mut(per_part * length).enumerate();
    ctx.threads.for_each(items, |(part, y)| {
        let mut previous = None;
        for i in 0..y.len() / length {
            let start = source(part * per_part + i);
            let (before, row) = y.split_at_mut(i * length);
            let row = &mut row[..length];
            match start {
                None => row.fill(fill.clone()),
                Some(_) if start == previous => row.clone_from_slice(&before[(i - 1) * length..]),
                Some(start) => pick_row(&x[start..], &inner_picks, layout.block, fill, row),
            }
            previous = start;
        }
    });
}

fn pick_row<T: Element>(x: &[T], picks: &Picks, block: usize, fill: &T, row: &mut [T]) {
    if block == 1 {
        for (y, pick) in row.iter_mut().zip(picks) {
            y.clone_from(pick.map_or(fill, |p| &x[p]));
        }
        return;
    }
    for (y, pick) in row.chunks_exact_mut(block).zip(picks) {
        match pick {
            Some(p) => y.clone_from_slice(&x[p * block..(p + 1) * block]),
            None => y.fill(fill.clone()),
        }
    }
}

/// A type that sums of weighted elements have.
trait Sum: Number {
    fn of<T: Number>(value: T) -> Self {
        Self::from_f64(value.to_f64())
    }
}

impl Sum for f32 {}
impl Sum for f64 {}

/// One axis of a plane, to be resized after those before it.
struct Step<A> {
    outer: usize,
    input: usize,
    output: usize,
    inner: usize,
    taps: Taps<A>,
}

/// How neighbours are weighed: the filter, whether it is stretched where an axis shrinks, whether only elements count.
pub(super) type How = (Filter, bool, bool);

/// Resizes by weighing neighbours; neither tensor is empty.
pub(super) fn weigh(all: &[Axis], how: How, fill: f32, x: View<'_>, y: &mut ViewMut<'_>, ctx: &Context<'_>) -> Result<(), OpError> {
    let layout = Layout::of(all);
    match x.dtype() {
        DType::F32 => each_plane(&layout, &steps(&layout, how, |w| w as f32)?, x.slice::<f32>()?, y.slice()?, ctx, apply),
        DType::F64 => each_plane(&layout, &steps(&layout, how, |w| w)?, x.slice::<f64>()?, y.slice()?, ctx, apply),
        DType::I32 | DType::U32 | DType::I64 | DType::U64 => with_number!(x.dtype(), T => {
            each_plane(&layout, &steps::<f64>(&layout, how, |w| w)?, x.slice::<T>()?, y.slice::<T>()?, ctx, converted);
        }, else {}),
        other => with_number!(other, T => {
            each_plane(&layout, &steps::<f32>(&layout, how, |w| w as f32)?, x.slice::<T>()?, y.slice::<T>()?, ctx, converted);
        }, else return Err(OpError::wrong_type(DType::F32, other))),
    }
    with_number!(x.dtype(), T => extrapolate::<T>(all, T::from_f64(f64::from(fill)), y.slice()?), else {});
    Ok(())
}

/// The axes in the order in which they are resized: shrinking ones, then growing ones from the last on, so that the most
/// work is done where elements lie side by side.
fn steps<A: Copy>(layout: &Layout<'_>, (filter, antialias, exclude): How, weight: fn(f64) -> A) -> Result<Vec<Step<A>>, OpError> {
    let axes = layout.axes;
    let mut dims: Vec<usize> = axes.iter().map(|axis| axis.input).collect();
    let changing = |d: &usize| !axes[*d].is_identity();
    let shrinking = (0..axes.len()).filter(changing).filter(|&d| axes[d].output < axes[d].input);
    let growing = (0..axes.len()).rev().filter(changing).filter(|&d| axes[d].output >= axes[d].input);
    let mut steps = Vec::new();
    for d in shrinking.chain(growing) {
        let taps = axes[d].taps((filter, antialias, exclude), MOST_WEIGHTS, weight)?;
        dims[d] = axes[d].output;
        let (outer, inner) = (dims[..d].iter().product(), dims[d + 1..].iter().product::<usize>() * layout.block);
        steps.push(Step { outer, input: axes[d].input, output: axes[d].output, inner, taps });
    }
    Ok(steps)
}

/// Memory between the steps of one plane.
type Between<A> = [Vec<A>; 2];

/// Calls `resize` with every plane of the input and of the output.
fn each_plane<T: Element, A: Sum>(
    layout: &Layout<'_>,
    steps: &[Step<A>],
    x: &[T],
    y: &mut [T],
    ctx: &Context<'_>,
    resize: impl Fn(&[Step<A>], &[T], &mut [T], &mut Between<A>) + Send + Sync,
) {
    let (from, to) = layout.plane();
    let work: usize = steps.iter().map(|s| 2 * s.outer * s.output * s.inner * s.taps.count.min(16)).sum();
    let parts = ctx.threads.parts((work as u64).saturating_mul(layout.planes as u64));
    let per_part = layout.planes.div_ceil(parts).max(1);
    let items = x.chunks(per_part * from).zip(y.chunks_mut(per_part * to));
    ctx.threads.for_each(items, |(x, y)| {
        let mut between = Between::default();
        x.chunks_exact(from).zip(y.chunks_exact_mut(to)).for_each(|(x, y)| resize(steps, x, y, &mut between));
    });
}

/// A plane of a type that computes in another one.
fn converted<T: Number, A: Sum>(steps: &[Step<A>], x: &[T], y: &mut [T], between: &mut Between<A>) {
    let wide: Vec<A> = x.iter().map(|&v| A::of(v)).collect();
    let mut sums = vec![A::ZERO; y.len()];
    apply(steps, &wide, &mut sums, between);
    for (y, sum) in y.iter_mut().zip(sums) {
        let sum = sum.to_f64();
        *y = T::from_f64(if T::FLOAT { sum } else { sum.round_ties_even() });
    }
}

fn apply<A: Sum>(steps: &[Step<A>], x: &[A], y: &mut [A], between: &mut Between<A>) {
    let Some((last, first)) = steps.split_last() else { return y.copy_from_slice(x) };
    let [from, to] = between;
    for (i, step) in first.iter().enumerate() {
        to.resize(step.outer * step.output * step.inner, A::ZERO);
        step.run(if i == 0 { x } else { from }, to);
        std::mem::swap(from, to);
    }
    last.run(if first.is_empty() { x } else { from }, y);
}

impl<A: Sum> Step<A> {
    fn run(&self, x: &[A], y: &mut [A]) {
        let (from, to) = (self.input * self.inner, self.output * self.inner);
        for (x, y) in x.chunks_exact(from).zip(y.chunks_exact_mut(to)) {
            if self.inner == 1 { self.elements(x, y) } else { self.rows(x, y) }
        }
    }

    /// Neighbours lie side by side.
    fn elements(&self, x: &[A], y: &mut [A]) {
        let Taps { count, positions, weights, .. } = &self.taps;
        if *count == 2 {
            let pairs = positions.chunks_exact(2).zip(weights.chunks_exact(2));
            return y.iter_mut().zip(pairs).for_each(|(y, (p, w))| *y = x[p[0]].mul(w[0]).add(x[p[1]].mul(w[1])));
        }
        for (y, (positions, weights)) in y.iter_mut().zip(positions.chunks_exact(*count).zip(weights.chunks_exact(*count))) {
            *y = positions.iter().zip(weights).fold(A::ZERO, |sum, (&p, &w)| sum.add(x[p].mul(w)));
        }
    }

    /// Neighbours are rows.
    fn rows(&self, x: &[A], y: &mut [A]) {
        let Taps { count, positions, weights, .. } = &self.taps;
        let row = |p: usize| &x[p * self.inner..(p + 1) * self.inner];
        let taps = positions.chunks_exact(*count).zip(weights.chunks_exact(*count));
        for (y, (positions, weights)) in y.chunks_exact_mut(self.inner).zip(taps) {
            if let (&[p, q], &[v, w]) = (positions, weights) {
                y.iter_mut().zip(row(p)).zip(row(q)).for_each(|((y, &a), &b)| *y = a.mul(v).add(b.mul(w)));
                continue;
            }
            y.fill(A::ZERO);
            for (&p, &w) in positions.iter().zip(weights) {
                y.iter_mut().zip(row(p)).for_each(|(y, &x)| *y = y.add(x.mul(w)));
            }
        }
    }
}

/// Overwrites what has no value in the input.
fn extrapolate<T: Number>(all: &[Axis], fill: T, y: &mut [T]) {
    for (d, axis) in all.iter().enumerate() {
        let outside = axis.outside();
        if outside.is_empty() {
            continue;
        }
        let inner: usize = all[d + 1..].iter().map(|axis| axis.output).product();
        for y in y.chunks_exact_mut(axis.output * inner) {
            outside.iter().for_each(|at| y[at * inner..(at + 1) * inner].fill(fill));
        }
    }
}
