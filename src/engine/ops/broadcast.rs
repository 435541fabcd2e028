//! Broadcasting as numpy does it: shapes aligned at the last axis, a size of 1 repeated.

use super::axes::Axes;
use crate::engine::op::{OpError, Shape};

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
        let last = self.dims.len() - 1;
        let len = self.dims[last];
        let moves = std::array::from_fn(|i| self.strides[i][last] != 0);
        let mut index = Axes::from_elem(0, last);
        let mut run = Run { start: 0, len, from: [0; N], moves };
        f(run);
        while self.advance(&mut run, &mut index) {
            f(run);
        }
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
}
