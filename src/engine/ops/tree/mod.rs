//! ai.onnx.ml: ensembles of decision trees. TreeEnsembleClassifier, TreeEnsembleRegressor, TreeEnsemble.
//!
//! The trees vote in their order and each row is added up on its own, in the type in which thresholds are compared:
//! double if the features or any value of the model is, else float.

mod attributes;
mod classifier;
mod complete;
mod forest;
mod shapley;
#[cfg(test)]
mod tests;

use self::attributes::{Reals, listed_trees, named_trees};
use self::forest::{Aggregate, Draft, Forest, Row, Value, Voted};
pub(crate) use self::shapley::TREE_SHAPLEY;

use self::shapley::{Linear, TreeShapley};
use super::ANY;
use super::axes::require;
use super::ml_scores::{FEATURES, PostTransform, rows_and_columns, split_rows};
use super::number::{Number, with_float};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::{DType, Element, with_number};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;
use crate::engine::view::View;

const fn def(name: &'static str, from: u16, types: &'static [DType], build: fn(&Attrs) -> Result<Box<dyn Op>, OpError>) -> OpDef {
    OpDef { name, domain: "ai.onnx.ml", opsets: from..=ANY, types, build }
}

pub(crate) const DEFS: &[OpDef] = &[
    def("TreeEnsembleClassifier", 1, FEATURES, classifier::build),
    def("TreeEnsembleRegressor", 1, FEATURES, regressor),
    def("TreeEnsemble", 5, &[DType::F32, DType::F64, DType::F16], ensemble),
];

/// The operator that explains a node of trees: [`TREE_SHAPLEY`].
///
/// # Errors
/// If the operator has no trees, or its score is not a sum over them.
pub(crate) fn shapley(op: &dyn Op) -> Result<Box<dyn Op>, OpError> {
    let (trees, targets, outputs) = if let Some(regressor) = op.downcast::<Regressor>() {
        (&regressor.trees, regressor.targets, regressor.linear()?)
    } else if let Some(classifier) = op.downcast::<classifier::Classifier>() {
        (classifier.trees(), classifier.targets(), classifier.linear()?)
    } else {
        return Err(OpError::unsupported("the operator has no trees"));
    };
    Ok(Box::new(TreeShapley { trees: trees.clone(), targets, outputs }))
}

/// The trees, their values in the type that holds them.
#[derive(Clone, Debug)]
enum Trees {
    F32(Forest<f32>),
    F64(Forest<f64>),
}

impl Trees {
    fn new(draft: Draft, reals: &Reals, targets: usize) -> Result<Self, OpError> {
        if targets == 0 {
            return Err(OpError::Attribute("there is no class or target".into()));
        }
        Ok(if reals.wide { Self::F64(Forest::new(draft, targets)?) } else { Self::F32(Forest::new(draft, targets)?) })
    }

    fn features(&self) -> usize {
        match self {
            Self::F32(forest) => forest.features(),
            Self::F64(forest) => forest.features(),
        }
    }

    /// How many there are.
    fn count(&self) -> usize {
        match self {
            Self::F32(forest) => forest.roots().len(),
            Self::F64(forest) => forest.roots().len(),
        }
    }

    fn voted(&self, target: u32) -> Voted {
        match self {
            Self::F32(forest) => forest.voted(target),
            Self::F64(forest) => forest.voted(target),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(forest) => forest.bytes(),
            Self::F64(forest) => forest.bytes(),
        }
    }

    /// Rows of `inputs`, if their features suffice.
    fn rows(&self, inputs: &Facts<'_>) -> Result<usize, OpError> {
        let (rows, columns) = rows_and_columns(inputs.shape(0)?)?;
        if columns < self.features() {
            return Err(OpError::shape(format!("the trees test {} features, the input has {columns}", self.features())));
        }
        Ok(rows)
    }
}

/// What is done with the scores of each row: written to `width` elements of the output, and one class chosen.
trait Finish: Sync {
    /// Scores that a row has while the votes are counted.
    fn targets(&self) -> usize;
    /// Elements of a row of the output.
    fn width(&self) -> usize;
    fn aggregate(&self) -> Aggregate;
    fn row<C: Number>(&self, row: Row<'_, C>, y: &mut [f64]) -> u32;
}

/// Walks all trees for all rows of `x` and finishes each row.
fn evaluate(trees: &Trees, finish: &impl Finish, x: View<'_>, chosen: &mut [u32], y: &mut [f64], ctx: &Context<'_>) -> Result<(), OpError> {
    match (trees, x.dtype() == DType::F64) {
        (Trees::F32(forest), false) => evaluate_as::<f32, f32>(forest, finish, x, (chosen, y), ctx),
        (Trees::F32(forest), true) => evaluate_as::<f32, f64>(forest, finish, x, (chosen, y), ctx),
        (Trees::F64(forest), _) => evaluate_as::<f64, f64>(forest, finish, x, (chosen, y), ctx),
    }
}

/// Rows that go through a tree together, while its nodes are in the cache.
const BLOCK: usize = 64;

fn evaluate_as<V: Value, C: Number + From<V>>(
    forest: &Forest<V>,
    finish: &impl Finish,
    x: View<'_>,
    (chosen, y): (&mut [u32], &mut [f64]),
    ctx: &Context<'_>,
) -> Result<(), OpError> {
    let (rows, columns) = rows_and_columns(x.shape())?;
    if columns < forest.features() {
        return Err(OpError::shape(format!("the trees test {} features, the input has {columns}", forest.features())));
    }
    let converted: Vec<C>;
    let x: &[C] = match C::slice(&x.data()) {
        Some(x) => x,
        None => {
            converted = with_number!(x.dtype(), T => x.slice::<T>()?.iter().map(|v| C::from_f64(v.to_f64())).collect(),
                else return Err(OpError::wrong_type(DType::F32, x.dtype())));
            &converted
        }
    };
    let (targets, width) = (finish.targets(), finish.width());
    let flops = forest.flops().saturating_mul(rows as u64);
    split_rows((ctx.threads, flops), rows, (chosen, y), (1, width), |first, chosen, y| {
        // Few rows at once where they have many scores.
        let block = (8192 / targets).clamp(1, BLOCK).min(chosen.len());
        let (mut scores, mut seen) = (vec![C::ZERO; block * targets], vec![false; block * targets]);
        for (i, (chosen, y)) in chosen.chunks_mut(block).zip(y.chunks_mut(block * width)).enumerate() {
            let count = chosen.len();
            let (scores, seen) = (&mut scores[..count * targets], &mut seen[..count * targets]);
            scores.fill(C::ZERO);
            seen.fill(false);
            let start = first + i * block;
            forest.gather((&x[start * columns..(start + count) * columns], columns), finish.aggregate(), (scores, seen, targets));
            let rows = scores.chunks_exact_mut(targets).zip(seen.chunks_exact_mut(targets));
            for (((scores, seen), chosen), y) in rows.zip(chosen).zip(y.chunks_exact_mut(width)) {
                *chosen = finish.row(Row { scores, seen }, y);
            }
        }
    });
    Ok(())
}

/// Trees whose scores are the answer.
#[derive(Debug)]
struct Regressor {
    trees: Trees,
    targets: usize,
    aggregate: Aggregate,
    /// Added at the end: one per target, or none.
    base: Vec<f64>,
    transform: PostTransform,
    /// Whether the output is of the input's type; else it is float.
    same_type: bool,
}

fn regressor(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let mut reals = Reals::default();
    let draft = named_trees(attrs, &mut reals, "target")?;
    let targets = super::axes::size(attrs.required("n_targets", attrs.int("n_targets")?)?)?;
    let base = reals.list(attrs, "base_values")?;
    if !base.is_empty() && base.len() != targets {
        return Err(OpError::Attribute(format!("attribute `base_values` has {} values for {targets} targets", base.len())));
    }
    let aggregate = match attrs.string_or("aggregate_function", "SUM")?.as_str() {
        "AVERAGE" => Aggregate::Average,
        "SUM" => Aggregate::Sum,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return Err(OpError::Attribute(format!("attribute `aggregate_function` is `{other}`"))),
    };
    let transform = PostTransform::named(attrs)?;
    let trees = Trees::new(draft, &reals, targets)?;
    Ok(Box::new(Regressor { trees, targets, aggregate, base, transform, same_type: false }))
}

fn ensemble(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let mut reals = Reals::default();
    let draft = listed_trees(attrs, &mut reals)?;
    let targets = super::axes::size(attrs.required("n_targets", attrs.int("n_targets")?)?)?;
    let aggregate = match attrs.int_or("aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => return Err(OpError::Attribute(format!("attribute `aggregate_function` is {other}"))),
    };
    let transform = PostTransform::numbered(attrs.int_or("post_transform", 0)?)?;
    let trees = Trees::new(draft, &reals, targets)?;
    Ok(Box::new(Regressor { trees, targets, aggregate, base: vec![], transform, same_type: true }))
}

impl Regressor {
    /// The outputs before the transform, as sums of votes.
    fn linear(&self) -> Result<Vec<Linear>, OpError> {
        let factor = match self.aggregate {
            Aggregate::Sum => 1.0,
            Aggregate::Average => 1.0 / self.trees.count() as f64,
            other => return Err(OpError::unsupported(format!("the score is no sum over the trees: {other:?} of them is taken"))),
        };
        let constant = |target: usize| self.base.get(target).copied().unwrap_or(0.0);
        Ok((0..self.targets).map(|target| Linear { target, factor, constant: constant(target) }).collect())
    }
}

impl Finish for Regressor {
    fn targets(&self) -> usize {
        self.targets
    }

    fn width(&self) -> usize {
        self.targets
    }

    fn aggregate(&self) -> Aggregate {
        self.aggregate
    }

    fn row<C: Number>(&self, row: Row<'_, C>, y: &mut [f64]) -> u32 {
        for (score, &base) in row.scores.iter_mut().zip(&self.base) {
            *score = score.add(C::from_f64(base));
        }
        y.iter_mut().zip(row.scores).for_each(|(y, score)| *y = score.to_f64());
        self.transform.apply(y);
        0
    }
}

impl Op for Regressor {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        let input = inputs[0].clone().unwrap_or(Kind::Tensor(DType::F32));
        Ok(Kinds::from_iter([if self.same_type { input } else { Kind::Tensor(DType::F32) }]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![Shape::from_iter([self.trees.rows(inputs)?, self.targets])])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        fn write<T: Number + Element>(scores: &[f64], y: &mut [T]) {
            y.iter_mut().zip(scores).for_each(|(y, &s)| *y = T::from_f64(s));
        }
        let (x, y) = (inputs.at(0)?, outputs.at(0)?);
        let (rows, _) = rows_and_columns(x.shape())?;
        let (mut chosen, mut scores) = (vec![0; rows], vec![0.0; rows * self.targets]);
        evaluate(&self.trees, self, x, &mut chosen, &mut scores, ctx)?;
        with_float!(y.dtype(), T => write::<T>(&scores, y.slice()?), else return Err(OpError::wrong_type(DType::F32, y.dtype())));
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        self.trees.bytes()
    }
}
