//! TreeEnsembleClassifier: which class the scores of a row choose, and what is written of them.
//!
//! The standard leaves the binary case open; converters rely on what ONNX Runtime does, which is what is done here.

use super::super::axes::require;
use super::super::ml_scores::{Labels, PostTransform, classifier_shapes, rows_and_columns};
use super::super::number::Number;
use super::attributes::{Reals, named_trees};
use super::forest::{Aggregate, Row, Voted};
use super::{Finish, Linear, Trees, evaluate};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpError, Outputs, Shape};
use crate::engine::tensor::Kind;

/// Trees that vote for classes.
#[derive(Debug)]
pub(super) struct Classifier {
    trees: Trees,
    classes: usize,
    /// A label per class; for a single class that is a number, 0 and 1.
    labels: Labels,
    /// Added at the end: one per class, none, or with two classes also a single one.
    base: Vec<f64>,
    transform: PostTransform,
    /// With two classes whether all votes are for one of them, so that its score decides alone.
    one_sided: bool,
    /// Whether no weight is negative: a lone score is then a probability.
    positive: bool,
}

pub(super) fn build(attrs: &Attrs) -> Result<Box<dyn Op>, OpError> {
    let mut reals = Reals::default();
    let draft = named_trees(attrs, &mut reals, "class")?;
    let labels = Labels::read(attrs, "classlabels_int64s")?;
    let (classes, base) = (labels.len(), reals.list(attrs, "base_values")?);
    if !(base.is_empty() || base.len() == classes || (classes == 2 && base.len() == 1)) {
        return Err(OpError::Attribute(format!("attribute `base_values` has {} values for {classes} classes", base.len())));
    }
    let one_class = draft.votes.first().is_some_and(|first| draft.votes.iter().all(|vote| vote.0 == first.0));
    let positive = draft.votes.iter().all(|vote| vote.1 >= 0.0);
    let trees = Trees::new(draft, &reals, classes)?;
    let transform = PostTransform::named(attrs)?;
    let labels = if classes == 1 && labels.dtype() == DType::I64 { Labels::Ints(vec![0, 1]) } else { labels };
    Ok(Box::new(Classifier { trees, classes, labels, base, transform, one_sided: classes == 2 && one_class, positive }))
}

impl Classifier {
    pub(super) fn trees(&self) -> &Trees {
        &self.trees
    }

    /// The outputs before the transform, as sums of votes.
    ///
    /// # Errors
    /// If they are none.
    pub(super) fn linear(&self) -> Result<Vec<Linear>, OpError> {
        let of = |target: usize, factor: f64, constant: f64| Linear { target, factor, constant };
        let base = |class: usize| self.base.get(class).copied().unwrap_or(0.0);
        if self.classes != 2 {
            return Ok((0..self.classes).map(|class| of(class, 1.0, base(class))).collect());
        }
        let voted = (self.trees.voted(0), self.trees.voted(1));
        let depends = || Err(OpError::unsupported("a row's scores are sums of its votes only if it has votes for both classes, which not all rows have"));
        // As [`Classifier::binary`] has them.
        match (self.base.len(), voted) {
            (_, (Voted::Never, Voted::Never)) => Ok(vec![of(0, 0.0, 0.0), of(1, 0.0, 0.0)]),
            (2, (Voted::Always, Voted::Never)) => Ok(vec![of(0, 1.0, base(0)), of(1, 0.0, 0.0)]),
            (2, (Voted::Never, Voted::Always)) => Ok(vec![of(0, 0.0, 0.0), of(1, 0.0, base(1))]),
            (2, (Voted::Always, Voted::Always)) => Ok(vec![of(0, -1.0, -base(1)), of(0, 1.0, base(1))]),
            (2, _) => depends(),
            // A class without a vote has no base value either.
            (_, (Voted::Sometimes, _)) if base(0) != 0.0 => depends(),
            (_, (Voted::Never, _)) => Ok(vec![of(0, 0.0, 0.0), of(1, 1.0, 0.0)]),
            (_, (_, Voted::Always)) => Ok(vec![of(0, 1.0, base(0)), of(1, 1.0, 0.0)]),
            (_, (_, Voted::Sometimes)) => depends(),
            (_, (_, Voted::Never)) => match self.transform {
                PostTransform::Probit => Err(OpError::unsupported("the score is a probit")),
                PostTransform::Logistic => Ok(vec![of(0, -1.0, -base(0)), of(0, 1.0, base(0))]),
                _ if self.probability() => Ok(vec![of(0, -1.0, 1.0 - base(0)), of(0, 1.0, base(0))]),
                _ => Ok(vec![of(0, -1.0, -base(0)), of(0, 1.0, base(0))]),
            },
        }
    }

    /// The class with the greatest score of those that have a vote or a base value; the first one if none has.
    fn greatest<C: Number>(&self, row: Row<'_, C>, y: &mut [f64]) -> u32 {
        for ((score, seen), &base) in row.scores.iter_mut().zip(row.seen.iter_mut()).zip(&self.base) {
            *score = score.add(C::from_f64(base));
            *seen = true;
        }
        let mut best: Option<usize> = None;
        for (i, score) in row.scores.iter().enumerate() {
            if row.seen[i] && best.is_none_or(|best| *score > row.scores[best]) {
                best = Some(i);
            }
        }
        // A lone class is there or not; `labels` then has a name for both.
        let chosen = if self.labels.len() > self.classes { usize::from(row.scores[0] > C::ZERO) } else { best.unwrap_or(0) };
        y.iter_mut().zip(row.scores).for_each(|(y, score)| *y = score.to_f64());
        self.transform.apply(y);
        chosen as u32
    }

    /// Two classes. If only the first of the two has votes, its score is that of the second class.
    fn binary<C: Number>(&self, row: Row<'_, C>, y: &mut [f64]) -> u32 {
        let (mut first, mut second, seen) = (row.scores[0], row.scores[1], [row.seen[0], row.seen[1]]);
        match self.base[..] {
            [_, base] if seen[1] => {
                second = C::from_f64(base).add(first);
                first = second.neg();
            }
            [base0, base1] => (first, second) = (first.add(C::from_f64(base0)), second.add(C::from_f64(base1))),
            [base] => first = first.add(C::from_f64(base)),
            _ => {}
        }
        // A class without a vote has no score, whatever its base value.
        let score = |seen: bool, score: C| if seen { score.to_f64() } else { 0.0 };
        let (first, second) = (score(seen[0], first), score(seen[1], second));
        if seen[1] || self.base.len() == 2 {
            y.copy_from_slice(&[first, second]);
            self.transform.apply(y);
        } else {
            self.lone(first, y);
        }
        u32::from(if seen[1] { second } else { first } > if self.probability() { 0.5 } else { 0.0 })
    }

    /// Whether a lone score is the probability of the second class; else it is a margin around 0.
    fn probability(&self) -> bool {
        self.one_sided && self.positive
    }

    /// Writes the scores of both classes, where only one is known.
    fn lone(&self, score: f64, y: &mut [f64]) {
        match self.transform {
            PostTransform::Logistic => {
                y.copy_from_slice(&[-score, score]);
                self.transform.apply(y);
            }
            PostTransform::Probit => {
                y.copy_from_slice(&[score, 0.0]);
                self.transform.apply(&mut y[..1]);
            }
            _ if self.probability() => y.copy_from_slice(&[1.0 - score, score]),
            _ => y.copy_from_slice(&[-score, score]),
        }
    }
}

impl Finish for Classifier {
    fn targets(&self) -> usize {
        self.classes
    }

    fn width(&self) -> usize {
        self.classes
    }

    fn aggregate(&self) -> Aggregate {
        Aggregate::Sum
    }

    fn row<C: Number>(&self, row: Row<'_, C>, y: &mut [f64]) -> u32 {
        if self.classes == 2 { self.binary(row, y) } else { self.greatest(row, y) }
    }
}

impl Op for Classifier {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 1)?;
        Ok(Kinds::from_iter([Kind::Tensor(self.labels.dtype()), Kind::Tensor(DType::F32)]))
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        self.trees.rows(inputs)?;
        classifier_shapes(inputs, self.classes)
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, ctx: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?;
        let (rows, _) = rows_and_columns(x.shape())?;
        let (mut chosen, mut scores) = (vec![0; rows], vec![0.0; rows * self.classes]);
        evaluate(&self.trees, self, x, &mut chosen, &mut scores, ctx)?;
        if let Some(labels) = outputs.get(0) {
            self.labels.write(&chosen, labels)?;
        }
        if let Some(z) = outputs.get(1) {
            z.slice::<f32>()?.iter_mut().zip(&scores).for_each(|(z, &score)| *z = score as f32);
        }
        Ok(())
    }

    fn packed_bytes(&self) -> usize {
        self.trees.bytes()
    }
}
