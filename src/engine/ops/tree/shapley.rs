//! Exact Shapley values of trees against a background sample: what each feature of a row adds to the score, beginning at the
//! mean score of the sample. After "interventional TreeSHAP": Lundberg et al., From local explanations to global understanding
//! with explainable AI for trees, Nature Machine Intelligence 2 (2020), algorithm 3.
//!
//! For a row and one row of the sample only the leaves count that a mixture of the two can reach. If `a` features on the way to
//! one are the row's and `c` the sample's, each of the `a` adds its value times (a−1)!·c!/(a+c)!, and each of the `c` takes away
//! its value times a!·(c−1)!/(a+c)!.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use super::super::ml_scores::{FEATURES, rows_and_columns, split_rows};
use super::super::number::Number;
use super::super::{ANY, OWN};
use super::Trees;
use super::forest::{Forest, Value, leaf_of};
use crate::engine::dtype::{DType, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

/// Inputs: rows [n, features], a sample [m, features], weights of the outputs [n, outputs]. Results: contributions
/// [n, features], and for each row the weighted score and the mean of it over the sample [n, 2], all float64.
pub(crate) static TREE_SHAPLEY: OpDef = OpDef {
    name: "TreeShapley",
    domain: OWN,
    opsets: 1..=ANY,
    types: FEATURES,
    build: |_| Err(OpError::Unsupported(String::new())),
};

/// How an output follows from the sums of votes: `factor · sum + constant`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Linear {
    pub(super) target: usize,
    pub(super) factor: f64,
    pub(super) constant: f64,
}

/// See [`TREE_SHAPLEY`].
#[derive(Debug)]
pub(super) struct TreeShapley {
    pub(super) trees: Trees,
    pub(super) targets: usize,
    /// One for each output.
    pub(super) outputs: Vec<Linear>,
}

/// Steps between two looks at the clock.
const STEPS: u32 = 1 << 14;

/// Which row's branch is taken where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Row,
    Sample,
}

/// What is left to do of a walk.
enum Step {
    Visit(u32),
    Enter(u32, Side),
    Leave,
}

/// The memory of walks, and when they must end.
struct Walk {
    left: Vec<Step>,
    path: Vec<(u32, Side)>,
    steps: u32,
    deadline: Option<Instant>,
}

impl Walk {
    /// Whether there is time for one more step.
    fn goes_on(&mut self) -> bool {
        self.steps = self.steps.wrapping_add(1);
        !self.steps.is_multiple_of(STEPS) || self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }
}

/// (a−1)!·c!/(a+c)!, for a ≥ 1.
fn weight(a: usize, c: usize) -> f64 {
    (1..=c).fold(1.0 / a as f64, |weight, i| weight * i as f64 / (a + i) as f64)
}

impl<V: Value> Forest<V> {
    /// Adds the contributions of a row's features, against one row of the sample; `leaf` is a leaf's value. `None` if the time
    /// is up.
    fn contributions<C: Number + From<V>>(
        &self,
        (row, sample): (&[C], &[C]),
        leaf: &impl Fn(u32) -> f64,
        walk: &mut Walk,
        found: &mut [f64],
    ) -> Option<()> {
        for &root in self.roots() {
            walk.left.push(Step::Visit(root));
            while let Some(step) = walk.left.pop() {
                let at = match step {
                    Step::Visit(at) => at,
                    Step::Enter(feature, side) => {
                        walk.path.push((feature, side));
                        continue;
                    }
                    Step::Leave => {
                        walk.path.pop();
                        continue;
                    }
                };
                if !walk.goes_on() {
                    walk.left.clear();
                    walk.path.clear();
                    return None;
                }
                if let Some(leaf_at) = leaf_of(at) {
                    share(&walk.path, leaf(leaf_at), found);
                    continue;
                }
                let (feature, next) = self.branches(at);
                let column = feature as usize;
                let (of_row, of_sample) = (next(row[column]), next(sample[column]));
                let known = walk.path.iter().find(|(known, _)| *known == feature).map(|(_, side)| *side);
                match known {
                    _ if of_row == of_sample => walk.left.push(Step::Visit(of_row)),
                    Some(Side::Row) => walk.left.push(Step::Visit(of_row)),
                    Some(Side::Sample) => walk.left.push(Step::Visit(of_sample)),
                    None => {
                        walk.left.extend([Step::Leave, Step::Visit(of_sample), Step::Enter(feature, Side::Sample)]);
                        walk.left.extend([Step::Leave, Step::Visit(of_row), Step::Enter(feature, Side::Row)]);
                    }
                }
            }
        }
        Some(())
    }

    /// The sum of the values of the leaves that a row reaches.
    fn total<C: Number + From<V>>(&self, row: &[C], leaf: &impl Fn(u32) -> f64) -> f64 {
        let reached = |&root: &u32| {
            let mut at = root;
            loop {
                if let Some(leaf_at) = leaf_of(at) {
                    return leaf(leaf_at);
                }
                let (feature, next) = self.branches(at);
                at = next(row[feature as usize]);
            }
        };
        self.roots().iter().map(reached).sum()
    }
}

/// Shares the value of a leaf out among the features on the way to it.
fn share(path: &[(u32, Side)], value: f64, found: &mut [f64]) {
    let rows = path.iter().filter(|(_, side)| *side == Side::Row).count();
    let samples = path.len() - rows;
    let (gain, loss) = (value * weight(rows, samples), value * weight(samples, rows));
    for &(feature, side) in path {
        found[feature as usize] += match side {
            Side::Row => gain,
            Side::Sample => -loss,
        };
    }
}

/// Elements of a tensor in the type in which thresholds are compared.
fn elements<C: Number>(x: View<'_>) -> Result<Vec<C>, OpError> {
    with_number!(x.dtype(), T => Ok(x.slice::<T>()?.iter().map(|v| C::from_f64(v.to_f64())).collect()),
        else Err(OpError::wrong_type(DType::F32, x.dtype())))
}

impl TreeShapley {
    fn run_as<V: Value, C: Number + From<V>>(
        &self,
        forest: &Forest<V>,
        inputs: &Inputs<'_>,
        (found, scores): (&mut [f64], &mut [f64]),
        ctx: &Context<'_>,
    ) -> Result<(), OpError> {
        let (x, sample, weights) = (inputs.at(0)?, inputs.at(1)?, inputs.at(2)?);
        let ((rows, columns), (samples, _)) = (rows_and_columns(x.shape())?, rows_and_columns(sample.shape())?);
        let (x, sample, weights) = (elements::<C>(x)?, elements::<C>(sample)?, elements::<f64>(weights)?);
        let late = AtomicBool::new(false);
        let flops = forest.flops().saturating_mul(rows as u64).saturating_mul(samples as u64);
        split_rows((ctx.threads, flops), rows, (found, scores), (columns, 2), |first, found, scores| {
            let mut walk = Walk { left: Vec::new(), path: Vec::new(), steps: 0, deadline: ctx.deadline };
            let each = found.chunks_exact_mut(columns.max(1)).zip(scores.chunks_exact_mut(2));
            for (i, (found, scores)) in each.enumerate() {
                let (row, weights) = (first + i, &weights[(first + i) * self.outputs.len()..][..self.outputs.len()]);
                let (of_targets, constant) = self.combined(weights);
                let leaf = |at: u32| forest.votes(at).iter().map(|&(target, v)| v.to_f64() * of_targets[target as usize]).sum::<f64>();
                let row = &x[row * columns..(row + 1) * columns];
                found.fill(0.0);
                let mut base = 0.0;
                for sample in sample.chunks_exact(columns.max(1)) {
                    base += forest.total(sample, &leaf);
                    if forest.contributions((row, sample), &leaf, &mut walk, found).is_none() {
                        late.store(true, Relaxed);
                        return;
                    }
                }
                found.iter_mut().for_each(|v| *v /= samples as f64);
                scores.copy_from_slice(&[forest.total(row, &leaf) + constant, base / samples as f64 + constant]);
            }
        });
        if late.into_inner() { Err(OpError::Deadline) } else { Ok(()) }
    }

    /// The weight of each target, and what is added, for a weighted sum of the outputs.
    fn combined(&self, weights: &[f64]) -> (Vec<f64>, f64) {
        let mut of_targets = vec![0.0; self.targets];
        let mut constant = 0.0;
        for (output, weight) in self.outputs.iter().zip(weights) {
            of_targets[output.target] += weight * output.factor;
            constant += weight * output.constant;
        }
        (of_targets, constant)
    }
}

impl Op for TreeShapley {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        super::require(inputs, 3)?;
        Ok(Kinds::from_iter([Kind::Tensor(DType::F64), Kind::Tensor(DType::F64)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let rows = self.trees.rows(inputs)?;
        let columns = rows_and_columns(inputs.shape(0)?)?.1;
        let sample = rows_and_columns(inputs.shape(1)?)?;
        if sample.1 != columns || sample.0 == 0 {
            return Err(OpError::shape(format!("a sample of shape {sample:?} is given for rows of {columns} features")));
        }
        let weights = rows_and_columns(inputs.shape(2)?)?;
        if weights != (rows, self.outputs.len()) {
            return Err(OpError::shape(format!("the trees have {} outputs, {} are asked for", self.outputs.len(), weights.1)));
        }
        Ok(vec![Shape::from_iter([rows, columns]), Shape::from_iter([rows, 2])])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let len = |shape: &[usize]| shape.iter().product::<usize>();
        let x = inputs.at(0)?;
        let (mut found, mut scores) = (vec![0.0; len(x.shape())], vec![0.0; 2 * rows_and_columns(x.shape())?.0]);
        let out = (&mut found[..], &mut scores[..]);
        match (&self.trees, x.dtype() == DType::F64) {
            (Trees::F32(forest), false) => self.run_as::<f32, f32>(forest, inputs, out, ctx),
            (Trees::F32(forest), true) => self.run_as::<f32, f64>(forest, inputs, out, ctx),
            (Trees::F64(forest), _) => self.run_as::<f64, f64>(forest, inputs, out, ctx),
        }?;
        for (i, values) in [found, scores].iter().enumerate() {
            if let Some(y) = outputs.get(i) {
                y.slice::<f64>()?.copy_from_slice(values);
            }
        }
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        self.trees.bytes()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::testing::op;
    use super::*;
    use crate::engine::kernels::isa::Isa;
    use crate::engine::op::Scratch;
    use crate::engine::tensor::Tensor;
    use crate::engine::threads::Threads;
    use crate::engine::view::ViewMut;

    #[test]
    fn weights_are_factorials() {
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        for a in 1..6 {
            for c in 0..6 {
                let want = factorial(a - 1) * factorial(c) / factorial(a + c);
                assert!((weight(a, c) - want).abs() < 1e-15, "{a} {c}");
            }
        }
    }

    /// Two trees over three features, the second tests a feature twice on one way.
    fn trees() -> Box<dyn Op> {
        let x = Tensor::zeros(DType::F32, &[1, 3]);
        let op = op("TreeEnsembleRegressor")
            .domain("ai.onnx.ml")
            .opset(3)
            .attr("nodes_treeids", &[0_i64, 0, 0, 0, 0, 1, 1, 1, 1, 1][..])
            .attr("nodes_nodeids", &[0_i64, 1, 2, 3, 4, 0, 1, 2, 3, 4][..])
            .attr("nodes_featureids", &[0_i64, 1, 0, 0, 0, 2, 2, 0, 0, 0][..])
            .attr("nodes_values", &[0.5_f32, 0.25, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0][..])
            .attr("nodes_truenodeids", &[1_i64, 3, 0, 0, 0, 1, 3, 0, 0, 0][..])
            .attr("nodes_falsenodeids", &[2_i64, 4, 0, 0, 0, 2, 4, 0, 0, 0][..])
            .attr(
                "nodes_modes",
                &["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"][..],
            )
            .attr("target_treeids", &[0_i64, 0, 0, 1, 1, 1][..])
            .attr("target_nodeids", &[2_i64, 3, 4, 2, 3, 4][..])
            .attr("target_ids", &[0_i64, 0, 0, 0, 0, 0][..])
            .attr("target_weights", &[1.0_f32, 2.0, 4.0, 8.0, 16.0, 32.0][..])
            .attr("base_values", &[0.5_f32][..])
            .attr("n_targets", 1_i64)
            .build(&[Some(&x)])
            .unwrap();
        super::super::shapley(&*op).unwrap()
    }

    pub(in super::super) fn run(op: &dyn Op, inputs: &[&Tensor], deadline: Option<Instant>) -> Result<(Vec<f64>, Vec<f64>), OpError> {
        let rows = inputs[0].shape()[0];
        let (mut found, mut scores) = (vec![0.0; inputs[0].len()], vec![0.0; 2 * rows]);
        let shapes = (inputs[0].shape().to_vec(), [rows, 2]);
        let mut outputs = [
            Some(ViewMut::new(crate::engine::view::SliceMut::F64(&mut found), &shapes.0)),
            Some(ViewMut::new(crate::engine::view::SliceMut::F64(&mut scores), &shapes.1)),
        ];
        let views: Vec<Option<View<'_>>> = inputs.iter().map(|tensor| Some(tensor.view())).collect();
        let threads = Threads::single();
        let mut ctx =
            Context { scratch: &mut Scratch::default(), threads: &threads, isa: Isa::best(), budget: 1 << 20, deadline };
        op.run(&Inputs(&views), &mut Outputs(&mut outputs), &mut ctx)?;
        Ok((found, scores))
    }

    /// Against the definition: the mean over all orders of what a feature changes.
    #[test]
    fn contributions_are_shapley_values() {
        let op = trees();
        let x = Tensor::new(&[2, 3], vec![0.4_f32, 0.5, -2.0, 0.9, 0.1, 0.0]).unwrap();
        let sample = Tensor::new(&[2, 3], vec![0.6_f32, 0.1, 3.0, 0.1, 0.2, -0.5]).unwrap();
        let weights = Tensor::new(&[2, 1], vec![1.0_f32, -2.0]).unwrap();
        let (found, scores) = run(&*op, &[&x, &sample, &weights], None).unwrap();
        let f = |x: [f32; 3]| {
            let one = if x[0] <= 0.5 { if x[1] <= 0.25 { 2.0 } else { 4.0 } } else { 1.0 };
            let two = if x[2] <= 1.0 { if x[2] <= -1.0 { 16.0 } else { 32.0 } } else { 8.0 };
            one + two + 0.5
        };
        let (rows, samples, factors) =
            ([[0.4, 0.5, -2.0], [0.9, 0.1, 0.0]], [[0.6, 0.1, 3.0], [0.1, 0.2, -0.5]], [1.0, -2.0]);
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for (i, row) in rows.iter().enumerate() {
            let mut want = [0.0; 3];
            for sample in samples {
                for order in orders {
                    let mut x = sample;
                    for feature in order {
                        let before = f(x);
                        x[feature] = row[feature];
                        want[feature] += (f(x) - before) * factors[i] / 12.0;
                    }
                }
            }
            for (found, want) in found[3 * i..][..3].iter().zip(want) {
                assert!((found - want).abs() < 1e-12, "row {i}: {found} is not {want}");
            }
            let base = factors[i] * (f(samples[0]) + f(samples[1])) / 2.0;
            assert!((scores[2 * i] - factors[i] * f(*row)).abs() < 1e-12 && (scores[2 * i + 1] - base).abs() < 1e-12);
        }
    }

    #[test]
    fn what_does_not_end_in_time_is_stopped() {
        let x = Tensor::new(&[1, 3], vec![0.4_f32, 0.5, -2.0]).unwrap();
        let sample = Tensor::zeros(DType::F32, &[5000, 3]);
        let weights = Tensor::new(&[1, 1], vec![1.0_f32]).unwrap();
        assert_eq!(run(&*trees(), &[&x, &sample, &weights], Some(Instant::now())), Err(OpError::Deadline));
    }
}
