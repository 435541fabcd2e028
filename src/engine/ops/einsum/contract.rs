//! One step of an Einsum: the sum over an operand's own labels, and the contraction of two operands.

use std::borrow::Cow;

use super::equation::{Label, Labelled};
use crate::engine::op::checked_len;
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::gemm;
use crate::engine::op::{Context, OpError};
use crate::engine::ops::axes::{offsets, strides};
use crate::engine::ops::number::Number;
use crate::engine::ops::product::{Left, Right, flops, multiply};

/// A tensor whose dimensions have distinct labels of their full sizes.
#[derive(Debug)]
pub(super) struct Operand<'a, T: Clone> {
    pub(super) labels: Vec<Label>,
    data: Cow<'a, [T]>,
}

/// The labels of the dimensions that have their label's size; the others have one element, which counts for all.
pub(super) fn full(labelled: &Labelled, labels: &[Label], shape: &[usize]) -> Vec<Label> {
    labels.iter().zip(shape).filter(|&(&label, &n)| n == labelled.size(label)).map(|(&label, _)| label).collect()
}

/// An operand, in at most `budget` bytes, without the dimensions that only it has: a repeated label is a diagonal, a label of which nobody else knows
/// is summed, and a size of 1 where others have more is left out.
pub(super) fn reduced<'a, T: Number>(
    labelled: &Labelled,
    data: &'a [T],
    labels: &[Label],
    shape: &[usize],
    elsewhere: impl Fn(Label) -> bool,
    budget: usize,
) -> Result<Operand<'a, T>, OpError> {
    let (mut kept, mut summed) = (Vec::new(), Vec::new());
    for label in full(labelled, labels, shape) {
        let all: &mut Vec<Label> = if elsewhere(label) { &mut kept } else { &mut summed };
        if !all.contains(&label) {
            all.push(label);
        }
    }
    if kept == labels {
        return Ok(Operand { labels: kept, data: Cow::Borrowed(data) });
    }
    let step = |&label: &Label| {
        let own = labels.iter().zip(shape).zip(strides(shape)).filter(|((l, n), _)| **l == label && **n == labelled.size(label));
        own.map(|(_, stride)| stride as isize).sum::<isize>()
    };
    let (kept_steps, summed_steps): (Vec<isize>, Vec<isize>) = (kept.iter().map(step).collect(), summed.iter().map(step).collect());
    let (kept_dims, summed_dims) = (labelled.dims(&kept), labelled.dims(&summed));
    let mut sums = Vec::with_capacity(checked_len(&kept_dims, size_of::<T>(), budget)?);
    offsets(&kept_dims, &kept_steps, 0, |start| {
        // Floats are summed in f64, which rounds once.
        let (mut wide, mut sum) = (0.0, T::ZERO);
        offsets(&summed_dims, &summed_steps, start, |at| {
            let value = data[at as usize];
            if T::FLOAT { wide += value.to_f64() } else { sum = sum.add(value) }
        });
        sums.push(if T::FLOAT { T::from_f64(wide) } else { sum });
    });
    Ok(Operand { labels: kept, data: Cow::Owned(sums) })
}

impl<T: Number> Operand<'_, T> {
    /// Writes the elements in the order of `labels`, which are the operand's own.
    pub(super) fn write(&self, labelled: &Labelled, labels: &[Label], y: &mut [T]) {
        if self.labels == labels {
            return y.copy_from_slice(&self.data);
        }
        let own = strides(&labelled.dims(&self.labels));
        let step = |label: &Label| self.labels.iter().position(|l| l == label).map_or(0, |d| own[d] as isize);
        let steps: Vec<isize> = labels.iter().map(step).collect();
        let (dims, mut rows) = (labelled.dims(labels), y.iter_mut());
        offsets(&dims, &steps, 0, |at| {
            if let Some(y) = rows.next() {
                *y = self.data[at as usize];
            }
        });
    }

    /// The elements as matrices `[batch, rows, columns]`, or if that costs no copy `[batch, columns, rows]`, with whether
    /// they are so transposed.
    fn matrices(&self, labelled: &Labelled, [batch, rows, columns]: [&[Label]; 3]) -> (Cow<'_, [T]>, bool) {
        if self.labels == [batch, columns, rows].concat() && self.labels != [batch, rows, columns].concat() {
            return (Cow::Borrowed(&self.data), true);
        }
        let wanted = [batch, rows, columns].concat();
        if self.labels == wanted {
            return (Cow::Borrowed(&self.data), false);
        }
        let mut ordered = vec![T::ZERO; self.data.len()];
        self.write(labelled, &wanted, &mut ordered);
        (Cow::Owned(ordered), false)
    }
}

/// The contraction of two operands: labels that nobody `wanted`s any more are summed. `output` is the order of labels
/// that is best for the result.
pub(super) fn contract<'a, T: Multiply>(
    labelled: &Labelled,
    left: Operand<'_, T>,
    right: Operand<'_, T>,
    wanted: impl Fn(Label) -> bool,
    output: Option<&[Label]>,
    ctx: &mut Context<'_>,
) -> Result<Operand<'a, T>, OpError> {
    let parts = |a: &Operand<'_, T>, b: &Operand<'_, T>| -> [Vec<Label>; 3] {
        let shared = a.labels.iter().copied().filter(|l| b.labels.contains(l));
        let (batch, inner) = shared.partition(|&l| wanted(l));
        [batch, inner, a.labels.iter().copied().filter(|l| !b.labels.contains(l)).collect()]
    };
    // Every label that only one operand has is wanted: the others were summed before.
    let swap = output.is_some_and(|output| {
        let [batch, _, rows] = parts(&right, &left);
        output.starts_with(&[batch, rows].concat()) && !right.labels.iter().all(|l| left.labels.contains(l))
    });
    let (left, right) = if swap { (right, left) } else { (left, right) };
    let ([batch, inner, rows], [_, _, columns]) = (parts(&left, &right), parts(&right, &left));
    let labels = [&batch[..], &rows, &columns].concat();
    let len = checked_len(&labelled.dims(&labels), size_of::<T>(), ctx.budget)?;
    let product = |labels: &[Label]| labelled.dims(labels).iter().product::<usize>();
    let sizes = Sizes { batch: product(&batch), m: product(&rows), k: product(&inner), n: product(&columns) };
    let (a, across_a) = left.matrices(labelled, [&batch, &rows, &inner]);
    let (b, across_b) = right.matrices(labelled, [&batch, &inner, &columns]);
    let mut c = vec![T::ZERO; len];
    if sizes.k == 1 {
        outer(&sizes, &a, &b, &mut c);
    } else {
        T::multiply(&sizes, (&a, across_a), (&b, across_b), &mut c, ctx);
    }
    Ok(Operand { labels, data: Cow::Owned(c) })
}

/// A batch of matrices `[m, k]` times `[k, n]`.
#[derive(Debug)]
pub(super) struct Sizes {
    batch: usize,
    m: usize,
    k: usize,
    n: usize,
}

/// Single products, which need no sum.
fn outer<T: Number>(sizes: &Sizes, a: &[T], b: &[T], c: &mut [T]) {
    let (m, n) = (sizes.m, sizes.n);
    for ((a, b), c) in a.chunks_exact(m).zip(b.chunks_exact(n)).zip(c.chunks_exact_mut(m * n)) {
        for (&a, c) in a.iter().zip(c.chunks_exact_mut(n)) {
            c.iter_mut().zip(b).for_each(|(c, &b)| *c = a.mul(b));
        }
    }
}

/// A type with matrix products.
pub(super) trait Multiply: Number {
    /// `c = a · b` for each of a batch; a matrix may be given transposed. `c` is zero.
    fn multiply(sizes: &Sizes, (a, across_a): (&[Self], bool), (b, across_b): (&[Self], bool), c: &mut [Self], _: &mut Context<'_>) {
        let &Sizes { batch, m, k, n } = sizes;
        for batch in 0..batch {
            let (a, b) = (&a[batch * m * k..][..m * k], &b[batch * k * n..][..k * n]);
            for (i, c) in c[batch * m * n..][..m * n].chunks_exact_mut(n).enumerate() {
                for p in 0..k {
                    let x = a[if across_a { p * m + i } else { i * k + p }];
                    if across_b {
                        c.iter_mut().zip(b[p..].iter().step_by(k)).for_each(|(c, &b)| *c = c.add(x.mul(b)));
                    } else {
                        c.iter_mut().zip(&b[p * n..]).for_each(|(c, &b)| *c = c.add(x.mul(b)));
                    }
                }
            }
        }
    }
}

impl Multiply for f32 {
    fn multiply(sizes: &Sizes, (a, across_a): (&[f32], bool), (b, across_b): (&[f32], bool), c: &mut [f32], ctx: &mut Context<'_>) {
        let &Sizes { batch, m, k, n } = sizes;
        let epilogue = Epilogue::default();
        if batch == 1 {
            let left = Left { data: a, transposed: across_a, m, k };
            return multiply(left, Right::Plain { data: b, transposed: across_b, n }, &epilogue, c, ctx);
        }
        let parts = ctx.threads.parts(flops(m, k, n).saturating_mul(batch as u64)).min(batch);
        let per_part = batch.div_ceil(parts);
        let isa = ctx.isa;
        let items = a.chunks(per_part * m * k).zip(b.chunks(per_part * k * n)).zip(c.chunks_mut(per_part * m * n));
        ctx.threads.for_each(items, |((a, b), c)| {
            let mut scratch = Vec::new();
            for ((a, b), c) in a.chunks_exact(m * k).zip(b.chunks_exact(k * n)).zip(c.chunks_exact_mut(m * n)) {
                gemm(isa, m, k, n, a, across_a, b, across_b, c, &epilogue, &mut scratch);
            }
        });
    }
}

macro_rules! plain {
    ($($t:ty),*) => { $(impl Multiply for $t {})* };
}
plain!(f64, i64);

