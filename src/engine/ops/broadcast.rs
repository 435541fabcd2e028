//! Broadcasting as numpy does it: shapes aligned at the last axis, a size of 1 repeated.

use super::axes::Axes;
use crate::engine::op::{OpError, Shape};
use crate::engine::threads::Threads;

/// The common shape of several operands.
pub(crate) fn shape<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Shape, OpError> {
    let mut common = Shape::new();
    for shape in shapes {
        while common.len() < shape.len() {
            common.insert(0, 1);
        }
        let skipped = common.len() - shape.len();
        for (to, &n) in common[skipped..].iter_mut().zip(shape) {
            match (*to, n) {
                (_, 1) => {}
                (1, n) => *to = n,
                (a, b) if a == b => {}
                _ => return Err(OpError::shape(format!("shape {shape:?} does not broadcast with {:?}", common.as_slice()))),
            }
        }
    }
    Ok(common)
}

/// How `N` operands are walked while an output is written in order: as runs in which each operand either advances with
/// the output or stays.
#[derive(Debug)]
pub(crate) struct Broadcast<const N: usize> {
    /// Merged dimensions of the output, outermost first; the last is the run.
    dims: Axes,
    /// Per operand the stride of each merged dimension.
    strides: [Axes; N],
}

/// A run of output elements and where its operands begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<const N: usize> {
    /// The first output element.
    pub(crate) start: usize,
    /// The number of output elements.
    pub(crate) len: usize,
    /// The first element of each operand.
    pub(crate) from: [usize; N],
    /// Whether the operand advances; otherwise its one element counts for the whole run.
    pub(crate) moves: [bool; N],
}

impl<const N: usize> Broadcast<N> {
    /// Walks operands of `shapes`, which broadcast to `out`.
    pub(crate) fn new(out: &[usize], shapes: [&[usize]; N]) -> Self {
        let strides_of = |shape: &[usize]| {
            let mut strides = Axes::from_elem(0, out.len());
            let mut step = 1;
            for (d, &n) in (0..out.len()).rev().zip(shape.iter().rev()) {
                strides[d] = if n == 1 { 0 } else { step };
                step *= n;
            }
            strides
        };
        let full = shapes.map(strides_of);
        // Innermost first while merging: a dimension joins the one inside it if every operand continues there.
        let mut dims = Axes::new();
        let mut strides: [Axes; N] = std::array::from_fn(|_| Axes::new());
        for d in (0..out.len()).rev().filter(|&d| out[d] != 1) {
            let joins = match dims.last() {
                None => false,
                Some(&inner) => (0..N).all(|i| full[i][d] == strides[i][dims.len() - 1] * inner),
            };
            if joins {
                *dims.last_mut().expect("it joins one") *= out[d];
            } else {
                dims.push(out[d]);
                for i in 0..N {
                    strides[i].push(full[i][d]);
                }
            }
        }
        if dims.is_empty() {
            dims.push(1);
            for i in 0..N {
                strides[i].push(0);
            }
        }
        dims.reverse();
        strides.iter_mut().for_each(|s| s.reverse());
        Self { dims, strides }
    }

    /// Calls `f` with every run, in the order of the output.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Run<N>)) {
        if self.dims.contains(&0) {
            return;
        }
        let (mut run, mut index) = self.run(0);
        f(run);
        while self.advance(&mut run, &mut index) {
            f(run);
        }
    }

    /// Calls `f` with every run, or pieces of runs, and their part of the output, in `parts` on as many threads.
    pub(crate) fn side_by_side<Y: Send>(
        &self,
        y: &mut [Y],
        (threads, parts): (&Threads, usize),
        f: impl Fn(Run<N>, &mut [Y]) + Send + Sync,
    ) {
        if parts <= 1 || self.dims.contains(&0) {
            return self.for_each(|run| f(run, &mut y[run.start..run.start + run.len]));
        }
        let len = self.dims[self.dims.len() - 1];
        let runs = y.len() / len;
        if runs < parts {
            let piece = len.div_ceil(parts);
            return self.for_each(|run| {
                let pieces = y[run.start..run.start + run.len].chunks_mut(piece).enumerate();
                threads.for_each(pieces, |(number, y)| {
                    let at = number * piece;
                    let from = std::array::from_fn(|i| run.from[i] + if run.moves[i] { at } else { 0 });
                    f(Run { start: run.start + at, len: y.len(), from, moves: run.moves }, y);
                });
            });
        }
        let count = runs.div_ceil(parts);
        threads.for_each(y.chunks_mut(count * len).enumerate(), |(part, y)| {
            let (mut run, mut index) = self.run(part * count);
            for y in y.chunks_exact_mut(len) {
                f(run, y);
                self.advance(&mut run, &mut index);
            }
        });
    }

    /// Run number `number`, and where it is along the dimensions in front of the last.
    fn run(&self, number: usize) -> (Run<N>, Axes) {
        let last = self.dims.len() - 1;
        let len = self.dims[last];
        let moves = std::array::from_fn(|i| self.strides[i][last] != 0);
        let (mut index, mut from, mut rest) = (Axes::from_elem(0, last), [0; N], number);
        for d in (0..last).rev() {
            index[d] = rest % self.dims[d];
            rest /= self.dims[d];
            for i in 0..N {
                from[i] += index[d] * self.strides[i][d];
            }
        }
        (Run { start: number * len, len, from, moves }, index)
    }

    /// Moves to the next run; false behind the last. Apart from [`Self::for_each`], so that it is compiled once.
    fn advance(&self, run: &mut Run<N>, index: &mut [usize]) -> bool {
        run.start += run.len;
        for d in (0..index.len()).rev() {
            index[d] += 1;
            for i in 0..N {
                run.from[i] += self.strides[i][d];
            }
            if index[d] < self.dims[d] {
                return true;
            }
            for i in 0..N {
                run.from[i] -= self.strides[i][d] * self.dims[d];
            }
            index[d] = 0;
        }
        false
    }
}

/// `y = f(x)` with `x` broadcast to the shape of `y`.
pub(crate) fn map<A: Clone, Y>(plan: &Broadcast<1>, x: &[A], y: &mut [Y], f: impl Fn(&A, &mut Y)) {
    plan.for_each(|run| {
        let y = &mut y[run.start..run.start + run.len];
        if run.moves[0] {
            y.iter_mut().zip(&x[run.from[0]..]).for_each(|(y, x)| f(x, y));
        } else {
            y.iter_mut().for_each(|y| f(&x[run.from[0]], y));
        }
    });
}

/// `y = f(a, b)` with both operands broadcast to the shape of `y`.
pub(crate) fn zip<A, B, Y>(plan: &Broadcast<2>, a: &[A], b: &[B], y: &mut [Y], f: impl Fn(&A, &B) -> Y) {
    plan.for_each(|run| {
        let y = &mut y[run.start..run.start + run.len];
        let (a, b) = (&a[run.from[0]..], &b[run.from[1]..]);
        match run.moves {
            [true, true] => y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = f(a, b)),
            [true, false] => y.iter_mut().zip(a).for_each(|(y, a)| *y = f(a, &b[0])),
            [false, true] => y.iter_mut().zip(b).for_each(|(y, b)| *y = f(&a[0], b)),
            [false, false] => y.iter_mut().for_each(|y| *y = f(&a[0], &b[0])),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_align_at_the_last_axis() {
        let of = |shapes: &[&[usize]]| shape(shapes.iter().copied()).map(|s| s.to_vec());
        assert_eq!(of(&[&[2, 1, 4], &[3, 1]]), Ok(vec![2, 3, 4]));
        assert_eq!(of(&[&[], &[0]]), Ok(vec![0]));
        assert_eq!(of(&[&[1, 0], &[5, 1]]), Ok(vec![5, 0]));
        assert!(of(&[&[2], &[3]]).is_err());
        assert!(of(&[&[0], &[3]]).is_err());
    }

    #[test]
    fn runs_are_as_long_as_they_can_be() {
        let runs = |out: &[usize], a: &[usize], b: &[usize]| {
            let mut runs = vec![];
            Broadcast::new(out, [a, b]).for_each(|run| runs.push((run.start, run.len, run.from, run.moves)));
            runs
        };
        assert_eq!(runs(&[2, 3], &[2, 3], &[2, 3]), [(0, 6, [0, 0], [true, true])]);
        assert_eq!(runs(&[2, 3], &[2, 3], &[3]), [(0, 3, [0, 0], [true, true]), (3, 3, [3, 0], [true, true])]);
        assert_eq!(runs(&[2, 3], &[2, 3], &[2, 1]), [(0, 3, [0, 0], [true, false]), (3, 3, [3, 1], [true, false])]);
        assert_eq!(runs(&[2, 3], &[2, 3], &[]), [(0, 6, [0, 0], [true, false])]);
        assert_eq!(runs(&[], &[], &[]), [(0, 1, [0, 0], [false, false])]);
        assert_eq!(runs(&[2, 0], &[2, 0], &[1]), []);
    }

    #[test]
    fn parts_meet_what_the_whole_meets() {
        let threads = Threads::new(3).unwrap();
        for (out, b) in [
            (&[2, 3, 5][..], &[2, 3, 5][..]),
            (&[2, 3, 5], &[5]),
            (&[2, 3, 5], &[2, 1, 5]),
            (&[2, 3, 5], &[3, 1]),
            (&[7], &[]),
            (&[2, 0], &[1]),
        ] {
            let len = |shape: &[usize]| shape.iter().product::<usize>();
            let (x, b_values): (Vec<usize>, Vec<usize>) = ((0..len(out)).collect(), (100..100 + len(b)).collect());
            let plan = Broadcast::new(out, [out, b]);
            let mut want = vec![(0, 0); x.len()];
            zip(&plan, &x, &b_values, &mut want, |&a, &b| (a, b));
            for parts in 1..6 {
                let mut y = vec![(0, 0); x.len()];
                plan.side_by_side(&mut y, (&threads, parts), |run, y| {
                    assert_eq!(run.len, y.len());
                    let at = |i: usize, k: usize| run.from[i] + if run.moves[i] { k } else { 0 };
                    y.iter_mut().enumerate().for_each(|(k, y)| *y = (x[at(0, k)], b_values[at(1, k)]));
                });
                assert_eq!(y, want, "{out:?} and {b:?} in {parts} parts");
            }
        }
    }
}
