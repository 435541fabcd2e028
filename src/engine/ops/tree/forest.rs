//! Decision trees in the form in which they are walked: interior nodes in one array, each tree's nodes behind each other
//! from the root on, so that a walk reads forward through few cache lines.

use std::ops::Range;

use super::super::number::Number;
use super::complete::Complete;
use crate::engine::op::OpError;

/// The comparison of a node: the branch for `true` is taken if `feature <mode> value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    /// The value is one of a set.
    Member,
}

impl Mode {
    pub(super) const ALL: [Self; 7] = [Self::Leq, Self::Lt, Self::Gte, Self::Gt, Self::Eq, Self::Neq, Self::Member];
}

/// Where a branch leads, as a position in [`Draft::nodes`] or [`Draft::leaves`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Child {
    Node(usize),
    Leaf(usize),
}

/// An interior node as the attributes describe it.
#[derive(Debug)]
pub(super) struct DraftNode {
    pub(super) feature: i64,
    pub(super) mode: Mode,
    /// The threshold; the position of the set for [`Mode::Member`].
    pub(super) value: f64,
    /// Whether NaN takes the branch for `true` whatever the comparison says.
    pub(super) missing: bool,
    pub(super) yes: Child,
    pub(super) no: Child,
}

/// A target and the weight that a leaf gives it.
pub(super) type Vote = (u32, f64);

/// An ensemble as the attributes describe it, indices into its lists checked, but not that they form trees.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) nodes: Vec<DraftNode>,
    /// Name and root of each tree.
    pub(super) roots: Vec<(i64, Child)>,
    /// The votes of each leaf.
    pub(super) leaves: Vec<Range<usize>>,
    pub(super) votes: Vec<Vote>,
    pub(super) sets: Vec<Vec<f64>>,
}

/// The type of thresholds and weights.
pub(super) trait Value: Number {
    /// A number that fits 32 bits, hidden in a value.
    fn hide(number: u32) -> Self;
    fn reveal(self) -> u32;
}

impl Value for f32 {
    fn hide(number: u32) -> Self {
        Self::from_bits(number)
    }
    fn reveal(self) -> u32 {
        self.to_bits()
    }
}

impl Value for f64 {
    fn hide(number: u32) -> Self {
        Self::from_bits(number.into())
    }
    fn reveal(self) -> u32 {
        self.to_bits() as u32
    }
}

/// What a node asks: 8 bytes if values are f32.
#[derive(Clone, Copy, Debug)]
pub(super) struct Test<V> {
    pub(super) value: V,
    /// The feature in the low bits, above them [`MISSING`] and the mode.
    test: u32,
}

impl<V> Test<V> {
    /// One that asks for a feature alone.
    pub(super) fn of(value: V, feature: u32) -> Self {
        Self { value, test: feature & FEATURE }
    }

    pub(super) fn feature(&self) -> usize {
        (self.test & FEATURE) as usize
    }

    /// Whether NaN takes the branch for `true` whatever the comparison says.
    pub(super) fn takes_missing(&self) -> bool {
        self.test & MISSING != 0
    }
}

/// An interior node, and where it leads if the test fails, and if it holds: 16 bytes if values are f32.
type Node<V> = (Test<V>, [u32; 2]);

/// Set in a reference to a leaf; the others are positions of nodes.
const LEAF: u32 = 1 << 31;
const MISSING: u32 = 1 << 28;
const FEATURE: u32 = MISSING - 1;
const MODE_SHIFT: u32 = 29;

/// The leaf that a reference leads to, if it is one.
pub(super) fn leaf_of(at: u32) -> Option<u32> {
    (at & LEAF != 0).then_some(at & !LEAF)
}

/// Walks side by side: one waits some twenty cycles from step to step, in which the others take theirs.
pub(super) const SIDE: usize = 8;

/// Trees ready to be walked.
///
/// # Invariants
/// Every reference is within its list, no walk is endless, and every target is below the number that [`Forest::new`] was
/// given.
#[derive(Clone, Debug)]
pub(super) struct Forest<V> {
    nodes: Vec<Node<V>>,
    roots: Vec<u32>,
    /// Leaf `i` has votes `leaves[i].0..leaves[i].1`.
    leaves: Vec<(u32, u32)>,
    votes: Vec<(u32, V)>,
    /// Whether leaf `i` has vote `i` and no other.
    one_vote: bool,
    /// Sorted.
    sets: Vec<Vec<V>>,
    /// The mode of all nodes, if it is one, and whether none has [`MISSING`].
    uniform: Option<(Mode, bool)>,
    /// The same trees filled up, if all have one mode of the usual two and that does not take much; and what each leaf of those votes with,
    /// if all vote once and for this target.
    complete: Option<Complete<V>>,
    lone_votes: Option<(u32, Vec<V>)>,
    /// Features that a row must have at least.
    features: usize,
}

/// How the votes for a target become its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// Which rows have a vote for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voted {
    /// None.
    Never,
    /// Some, or all by chance.
    Sometimes,
    /// Every one.
    Always,
}

/// The scores of a row while they are gathered: one per target, and whether there was any vote for it.
#[derive(Debug)]
pub(super) struct Row<'a, C> {
    pub(super) scores: &'a mut [C],
    pub(super) seen: &'a mut [bool],
}

impl<V: Value> Forest<V> {
    /// Lays out the trees.
    ///
    /// A node may be reached by several branches of its tree: converters of LightGBM write a set of categories as a
    /// chain of equalities whose branches for `true` lead to one node. What leads back to itself is refused.
    ///
    /// # Errors
    /// If a tree is endless, a target is not below `targets`, or a number is too large.
    pub(super) fn new(draft: Draft, targets: usize) -> Result<Self, OpError> {
        let too_large = |what: &str, n: usize| OpError::Attribute(format!("{n} {what} are too many"));
        for (what, len) in [("nodes", draft.nodes.len()), ("leaves", draft.leaves.len()), ("weights", draft.votes.len())] {
            if len >= LEAF as usize {
                return Err(too_large(what, len));
            }
        }
        if let Some((target, _)) = draft.votes.iter().find(|vote| vote.0 as usize >= targets) {
            return Err(OpError::Attribute(format!("a weight is for class or target {target}, there are {targets}")));
        }
        let (order, position) = order(&draft)?;
        let reference = |child: Child| match child {
            Child::Node(i) => position[i],
            Child::Leaf(i) => i as u32 | LEAF,
        };
        let node = |&i: &usize| -> Result<Node<V>, OpError> {
            let node = &draft.nodes[i];
            let feature = u32::try_from(node.feature).ok().filter(|&f| f <= FEATURE);
            let feature = feature.ok_or_else(|| OpError::Attribute(format!("a node tests feature {}", node.feature)))?;
            let value = if node.mode == Mode::Member { V::hide(node.value as u32) } else { V::from_f64(node.value) };
            let test = feature | if node.missing { MISSING } else { 0 } | (node.mode as u32) << MODE_SHIFT;
            Ok((Test { value, test }, [reference(node.no), reference(node.yes)]))
        };
        let nodes: Vec<Node<V>> = order.iter().map(node).collect::<Result<_, _>>()?;
        let mode = |n: &Node<V>| n.0.test >> MODE_SHIFT;
        let one_mode = nodes.windows(2).all(|pair| mode(&pair[0]) == mode(&pair[1]));
        let uniform = nodes.first().filter(|_| one_mode).map(|n| (Mode::ALL[mode(n) as usize], nodes.iter().all(|(test, _)| !test.takes_missing())));
        let set = |values: &Vec<f64>| {
            let mut values: Vec<V> = values.iter().map(|&v| V::from_f64(v)).collect();
            values.sort_by(|a, b| a.partial_cmp(b).expect("NaN ends a set"));
            values
        };
        let one_vote = draft.leaves.iter().enumerate().all(|(i, votes)| *votes == (i..i + 1));
        let roots: Vec<u32> = draft.roots.iter().map(|&(_, root)| reference(root)).collect();
        let complete = match uniform {
            Some((Mode::Leq | Mode::Lt, _)) => Complete::new(&roots, &nodes),
            _ => None,
        };
        let one_target = draft.votes.first().map(|vote| vote.0).filter(|&target| draft.votes.iter().all(|vote| vote.0 == target));
        let lone_votes = match (&complete, one_target) {
            (Some(complete), Some(target)) if one_vote => {
                Some((target, complete.leaves().iter().map(|&leaf| V::from_f64(draft.votes[leaf as usize].1)).collect()))
            }
            _ => None,
        };
        Ok(Self {
            one_vote,
            complete,
            lone_votes,
            features: nodes.iter().map(|(test, _)| test.feature() + 1).max().unwrap_or(0),
            roots,
            leaves: draft.leaves.iter().map(|votes| (votes.start as u32, votes.end as u32)).collect(),
            votes: draft.votes.iter().map(|&(target, weight)| (target, V::from_f64(weight))).collect(),
            sets: draft.sets.iter().map(set).collect(),
            nodes,
            uniform,
        })
    }

    /// The roots of the trees.
    pub(super) fn roots(&self) -> &[u32] {
        &self.roots
    }

    /// The votes of a leaf.
    pub(super) fn votes(&self, leaf: u32) -> &[(u32, V)] {
        let (start, end) = self.leaves[leaf as usize];
        &self.votes[start as usize..end as usize]
    }

    /// Whether rows have a vote for a target: sure is that of a tree all of whose leaves have one.
    pub(super) fn voted(&self, target: u32) -> Voted {
        let votes = |leaf: u32| self.votes(leaf).iter().any(|vote| vote.0 == target);
        if !(0..self.leaves.len() as u32).any(votes) {
            return Voted::Never;
        }
        let mut met = vec![false; self.nodes.len()];
        let whole = |&root: &u32| {
            let mut left = vec![root];
            while let Some(at) = left.pop() {
                match leaf_of(at) {
                    Some(leaf) if !votes(leaf) => return false,
                    Some(_) => {}
                    None if std::mem::replace(&mut met[at as usize], true) => {}
                    None => left.extend(self.nodes[at as usize].1),
                }
            }
            true
        };
        if self.roots.iter().any(whole) { Voted::Always } else { Voted::Sometimes }
    }

    /// The feature that a node tests, and where a value of it leads.
    pub(super) fn branches<C: Number + From<V>>(&self, at: u32) -> (u32, impl Fn(C) -> u32 + '_) {
        let (test, next) = &self.nodes[at as usize];
        (test.feature() as u32, move |x| next[usize::from(self.branch(x, test))])
    }

    /// Features that a row must have at least.
    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// Operations of one row, estimated: a step of a walk costs as much as some ten multiplications.
    pub(super) fn flops(&self) -> u64 {
        let depth = (2 + self.nodes.len() / self.roots.len().max(1)).ilog2() + 1;
        10 * u64::from(depth) * self.roots.len() as u64
    }

    pub(super) fn bytes(&self) -> usize {
        let complete = self.complete.as_ref().map_or(0, Complete::bytes);
        let lone_votes = self.lone_votes.as_ref().map_or(0, |(_, votes)| size_of_val(votes.as_slice()));
        let trees = size_of_val(self.nodes.as_slice()) + size_of_val(self.leaves.as_slice()) + size_of_val(self.votes.as_slice());
        trees + complete + lone_votes
    }

    fn in_set<C: Number + From<V>>(&self, x: C, test: &Test<V>) -> bool {
        let set = &self.sets[test.value.reveal() as usize];
        let position = set.partition_point(|&v| C::from(v) < x);
        set.get(position).is_some_and(|&v| C::from(v) == x)
    }

    /// Which branch `x` takes.
    fn branch<C: Number + From<V>>(&self, x: C, test: &Test<V>) -> bool {
        let value = C::from(test.value);
        let holds = match Mode::ALL[(test.test >> MODE_SHIFT) as usize] {
            Mode::Leq => x <= value,
            Mode::Lt => x < value,
            Mode::Gte => x >= value,
            Mode::Gt => x > value,
            Mode::Eq => x == value,
            Mode::Neq => x != value,
            Mode::Member => self.in_set(x, test),
        };
        holds || (test.takes_missing() && x.nan())
    }

    /// The leaves at which walks from `roots` arrive, each along its row.
    ///
    /// All take their steps together, without a branch that could be foreseen wrongly: what a walk waits for, the others fill.
    /// One that has arrived stays where it is.
    #[inline(always)]
    fn walk<C: Number + From<V>>(&self, roots: [u32; SIDE], rows: [&[C]; SIDE], branch: impl Fn(C, &Test<V>) -> bool) -> [u32; SIDE] {
        let mut at = roots;
        while at.iter().fold(LEAF, |all, at| all & at) == 0 {
            for (at, row) in at.iter_mut().zip(rows) {
                let arrived = (*at >> LEAF.trailing_zeros()).wrapping_neg();
                let (test, next) = &self.nodes[(*at & !arrived) as usize];
                let next = next[usize::from(branch(row[test.feature()], test))];
                *at = *at & arrived | next & !arrived;
            }
        }
        at.map(|at| at ^ LEAF)
    }

    /// Adds the votes of all trees, in their order, to the scores of `rows`.
    ///
    /// `columns` must be at least [`Forest::features`]; `scores` and `seen` hold `targets` elements a row.
    pub(super) fn gather<C: Number + From<V>>(
        &self,
        (rows, columns): (&[C], usize),
        aggregate: Aggregate,
        (scores, seen, targets): (&mut [C], &mut [bool], usize),
    ) {
        let (rows, to) = ((rows, columns), (&mut *scores, &mut *seen, targets));
        match (self.uniform, &self.complete) {
            (Some((Mode::Leq, _)), Some(complete)) => self.filled_up(complete, rows, aggregate, to, |x, value| x <= value),
            (Some((Mode::Lt, _)), Some(complete)) => self.filled_up(complete, rows, aggregate, to, |x, value| x < value),
            (Some((Mode::Leq, true)), None) => self.all(rows, aggregate, to, |x, n| x <= C::from(n.value)),
            (Some((Mode::Lt, true)), None) => self.all(rows, aggregate, to, |x, n| x < C::from(n.value)),
            (Some((Mode::Leq, false)), None) => {
                self.all(rows, aggregate, to, |x, n| (x <= C::from(n.value)) | (n.takes_missing() & x.nan()));
            }
            (Some((Mode::Lt, false)), None) => {
                self.all(rows, aggregate, to, |x, n| (x < C::from(n.value)) | (n.takes_missing() & x.nan()));
            }
            _ => self.all(rows, aggregate, to, |x, n| self.branch(x, n)),
        }
        if aggregate == Aggregate::Average {
            let trees = C::from_f64(self.roots.len() as f64);
            scores.iter_mut().for_each(|s| *s = s.div(trees));
        }
    }

    fn filled_up<C: Number + From<V>>(
        &self,
        complete: &Complete<V>,
        rows: (&[C], usize),
        aggregate: Aggregate,
        (scores, seen, targets): (&mut [C], &mut [bool], usize),
        holds: impl Fn(C, C) -> bool,
    ) {
        match (&self.lone_votes, aggregate) {
            (Some((target, weights)), Aggregate::Sum | Aggregate::Average) => {
                let target = *target as usize;
                complete.all(rows, weights, holds, |i, weight| {
                    let score = &mut scores[i * targets + target];
                    *score = score.add(C::from(weight));
                });
                seen.iter_mut().skip(target).step_by(targets).for_each(|seen| *seen = true);
            }
            _ => complete.all(rows, complete.leaves(), holds, |i, leaf| {
                self.vote(leaf, aggregate, &mut scores[i * targets..][..targets], &mut seen[i * targets..][..targets]);
            }),
        }
    }

    /// Adds the votes of a leaf to the scores of a row.
    #[inline(always)]
    fn vote<C: Number + From<V>>(&self, leaf: u32, aggregate: Aggregate, scores: &mut [C], seen: &mut [bool]) {
        let (start, end) = if self.one_vote { (leaf, leaf + 1) } else { self.leaves[leaf as usize] };
        for &(target, weight) in &self.votes[start as usize..end as usize] {
            let (weight, score) = (C::from(weight), &mut scores[target as usize]);
            let first = !std::mem::replace(&mut seen[target as usize], true);
            let replaces = match aggregate {
                Aggregate::Sum | Aggregate::Average => {
                    *score = score.add(weight);
                    false
                }
                Aggregate::Min => first || weight < *score,
                Aggregate::Max => first || weight > *score,
            };
            if replaces {
                *score = weight;
            }
        }
    }

    fn all<C: Number + From<V>>(
        &self,
        (rows, columns): (&[C], usize),
        aggregate: Aggregate,
        (scores, seen, targets): (&mut [C], &mut [bool], usize),
        branch: impl Fn(C, &Test<V>) -> bool,
    ) {
        let count = scores.len() / targets;
        let row = |i: usize| &rows[i * columns..(i + 1) * columns];
        let mut vote = |i: usize, leaf: u32| self.vote(leaf, aggregate, &mut scores[i * targets..][..targets], &mut seen[i * targets..][..targets]);
        let whole = count / SIDE * SIDE;
        for &root in &self.roots {
            for first in (0..whole).step_by(SIDE) {
                let leaves = self.walk([root; SIDE], std::array::from_fn(|i| row(first + i)), &branch);
                leaves.into_iter().enumerate().for_each(|(i, leaf)| vote(first + i, leaf));
            }
        }
        // Of few rows, several trees side by side.
        for i in whole..count {
            for roots in self.roots.chunks(SIDE) {
                let leaves = self.walk(std::array::from_fn(|tree| roots[tree.min(roots.len() - 1)]), [row(i); SIDE], &branch);
                leaves.into_iter().take(roots.len()).for_each(|leaf| vote(i, leaf));
            }
        }
    }
}

/// The nodes that a walk can reach, each before those below it, and the position of each.
fn order(draft: &Draft) -> Result<(Vec<usize>, Vec<u32>), OpError> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        /// On the way from the root to the node under consideration.
        Open,
        Done,
    }
    enum Visit {
        Enter(Child),
        Leave(usize),
    }
    let mut state = vec![State::New; draft.nodes.len()];
    let mut position = vec![0_u32; draft.nodes.len()];
    let mut order = Vec::with_capacity(draft.nodes.len());
    let mut stack = Vec::new();
    for &(tree, root) in &draft.roots {
        stack.push(Visit::Enter(root));
        while let Some(visit) = stack.pop() {
            match visit {
                Visit::Leave(i) => state[i] = State::Done,
                Visit::Enter(Child::Leaf(_)) => {}
                Visit::Enter(Child::Node(i)) => match state[i] {
                    State::Done => {}
                    State::Open => return Err(OpError::Attribute(format!("tree {tree} has a cycle"))),
                    State::New => {
                        state[i] = State::Open;
                        position[i] = order.len() as u32;
                        order.push(i);
                        stack.extend([Visit::Leave(i), Visit::Enter(draft.nodes[i].no), Visit::Enter(draft.nodes[i].yes)]);
                    }
                },
            }
        }
    }
    Ok((order, position))
}
