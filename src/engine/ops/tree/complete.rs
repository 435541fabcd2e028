//! Trees filled up to complete ones of one depth: every walk takes as many steps, and where a node lies follows from where the one above it
//! does, so that a step is three loads, a comparison and a sum.

use super::super::number::Number;
use super::forest::{SIDE, Test, Value, leaf_of};

/// Features of a row that is walked along: rows are copied to arrays of that length, so that no step asks whether it has the feature.
const WIDTH: usize = 256;

/// Places that a tree may have: for as many levels of tests as the logarithm says.
const SIZES: [usize; 3] = [16, 64, 256];

/// How many places a node may take, those that are filled in among them.
const SPARSE: usize = 6;

/// Node `i` of a tree has those below it at `2 i` and, where its test holds, `2 i + 1`; the root is 1.
#[derive(Clone, Debug)]
pub(super) struct Complete<V> {
    /// Levels of tests.
    levels: u32,
    /// Places of a tree, one of [`SIZES`].
    size: usize,
    /// The places of all trees.
    tests: Vec<Test<V>>,
    /// The leaves of all trees, where those of each have as many places.
    leaves: Vec<u32>,
    /// Whether some test [takes what is missing](Test::takes_missing).
    missing: bool,
}

impl<V: Value> Complete<V> {
    /// Fills up trees given by their roots, and by each node's test and what it leads to; none if that would take too much memory, or there
    /// are too many features. Every node is before those below it.
    pub(super) fn new(roots: &[u32], nodes: &[(Test<V>, [u32; 2])]) -> Option<Self> {
        let mut depths = vec![0_u32; nodes.len()];
        for (i, (_, next)) in nodes.iter().enumerate().rev() {
            let below = |&at: &u32| if leaf_of(at).is_some() { 0 } else { depths[at as usize] };
            depths[i] = 1 + next.iter().map(below).max().unwrap_or(0);
        }
        let levels = depths.iter().copied().max().unwrap_or(0);
        let size = SIZES.into_iter().find(|&size| levels <= size.ilog2())?;
        if roots.len() * size > SPARSE * nodes.len() || nodes.iter().any(|(test, _)| test.feature() >= WIDTH) {
            return None;
        }
        let filling = Test::of(V::ZERO, 0);
        let (mut tests, mut leaves) = (vec![filling; roots.len() * size], vec![0; roots.len() * size]);
        for ((&root, tests), leaves) in roots.iter().zip(tests.chunks_exact_mut(size)).zip(leaves.chunks_exact_mut(size)) {
            let mut left = vec![(1, root)];
            while let Some((place, at)) = left.pop() {
                match leaf_of(at) {
                    Some(leaf) if place >= 1 << levels => leaves[place - (1 << levels)] = leaf,
                    // Whatever the test that is filled in says, the way leads to the leaf.
                    Some(_) => left.extend([(2 * place, at), (2 * place + 1, at)]),
                    None => {
                        let (test, next) = nodes[at as usize];
                        tests[place] = test;
                        left.extend([(2 * place, next[0]), (2 * place + 1, next[1])]);
                    }
                }
            }
        }
        let missing = nodes.iter().any(|(test, _)| test.takes_missing());
        Some(Self { levels, size, tests, leaves, missing })
    }

    /// The leaves of all trees, as [`Complete::all`] counts them.
    pub(super) fn leaves(&self) -> &[u32] {
        &self.leaves
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.tests.as_slice()) + size_of_val(self.leaves.as_slice())
    }

    /// Calls `vote` with every row and what `table` has at the place of the leaf at which it arrives, for each row in the order of the
    /// trees. Rows have `columns` elements, at least as many as the trees test; a test holds where `holds` says so of a feature and the
    /// test's value, or where a feature is missing that may be.
    pub(super) fn all<C: Number + From<V>, T: Copy>(
        &self,
        rows: (&[C], usize),
        table: &[T],
        holds: impl Fn(C, C) -> bool,
        vote: impl FnMut(usize, T),
    ) {
        match SIZES.map(|size| size == self.size) {
            [true, ..] => self.walks::<{ SIZES[0] }, C, T>(rows, table, holds, vote),
            [_, true, _] => self.walks::<{ SIZES[1] }, C, T>(rows, table, holds, vote),
            _ => self.walks::<{ SIZES[2] }, C, T>(rows, table, holds, vote),
        }
    }

    fn walks<const N: usize, C: Number + From<V>, T: Copy>(
        &self,
        (rows, columns): (&[C], usize),
        table: &[T],
        holds: impl Fn(C, C) -> bool,
        mut vote: impl FnMut(usize, T),
    ) {
        let (trees, tables) = (self.tests.as_chunks::<N>().0, table.as_chunks::<N>().0);
        let plain = |x: C, test: &Test<V>| holds(x, C::from(test.value));
        let or_missing = |x: C, test: &Test<V>| plain(x, test) | (test.takes_missing() & x.nan());
        let mut block = [[C::ZERO; WIDTH]; SIDE];
        for (index, rows) in rows.chunks(SIDE * columns).enumerate() {
            for (to, row) in block.iter_mut().zip(rows.chunks_exact(columns)) {
                let some = columns.min(WIDTH);
                to[..some].copy_from_slice(&row[..some]);
            }
            let (first, count) = (index * SIDE, rows.len() / columns);
            let missing = self.missing && rows.iter().any(|x| x.nan());
            if count == SIDE {
                for (tree, table) in trees.iter().zip(tables) {
                    let (trees, rows) = ([tree; SIDE], std::array::from_fn(|i| &block[i]));
                    let places = if missing { self.walk(trees, rows, or_missing) } else { self.walk(trees, rows, plain) };
                    places.into_iter().enumerate().for_each(|(i, place)| vote(first + i, table[place % N]));
                }
                continue;
            }
            // Of few rows, several trees side by side.
            for (i, row) in block[..count].iter().enumerate() {
                for (trees, tables) in trees.chunks(SIDE).zip(tables.chunks(SIDE)) {
                    let (side, rows) = (std::array::from_fn(|i| &trees[i.min(trees.len() - 1)]), [row; SIDE]);
                    let places = if missing { self.walk(side, rows, or_missing) } else { self.walk(side, rows, plain) };
                    tables.iter().zip(places).for_each(|(table, place)| vote(first + i, table[place % N]));
                }
            }
        }
    }

    /// The leaves, counted in their tree, at which walks arrive that take their steps together.
    #[inline(always)]
    fn walk<const N: usize, C: Number>(
        &self,
        trees: [&[Test<V>; N]; SIDE],
        rows: [&[C; WIDTH]; SIDE],
        branch: impl Fn(C, &Test<V>) -> bool,
    ) -> [usize; SIDE] {
        let mut at = [1; SIDE];
        for _ in 0..self.levels {
            for i in 0..SIDE {
                let test = &trees[i][at[i] % N];
                at[i] = 2 * at[i] + usize::from(branch(rows[i][test.feature() % WIDTH], test));
            }
        }
        at.map(|at| at - (1 << self.levels))
    }
}
