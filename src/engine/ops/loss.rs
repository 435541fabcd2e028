//! Losses: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss over scores `[N, C, d1, …]` and class numbers `[N, d1, …]`.
//!
//! Both sum in f64 and round once, to the type of the scores.

pub(crate) mod gradient;

use smallvec::smallvec;

use super::ANY;
use super::axes::{ints, require, same_type};
use super::number::Number;
use super::real::{store, widen, widen_some};
use crate::engine::attrs::Attrs;
use crate::engine::dtype::DType;
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape, types};
use crate::engine::tensor::Kind;

pub(crate) const DEFS: &[OpDef] = &[
    OpDef { name: "NegativeLogLikelihoodLoss", domain: "", opsets: 12..=ANY, types: types::FLOATS, build: |a| build(a, false) },
    OpDef { name: "SoftmaxCrossEntropyLoss", domain: "", opsets: 12..=ANY, types: types::FLOATS, build: |a| build(a, true) },
];

/// What becomes of the losses of the single elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

#[derive(Debug)]
struct Loss {
    reduction: Reduction,
    ignore_index: Option<i64>,
    /// Whether the scores still have to become logarithms of probabilities.
    softmax: bool,
}

fn build(attrs: &Attrs, softmax: bool) -> Result<Box<dyn Op>, OpError> {
    let reduction = match attrs.string_or("reduction", "mean")?.as_str() {
        "none" => Reduction::None,
        "sum" => Reduction::Sum,
        "mean" => Reduction::Mean,
        other => return Err(OpError::Attribute(format!("attribute `reduction` is `{other}`, not `none`, `sum` or `mean`"))),
    };
    Ok(Box::new(Loss { reduction, ignore_index: attrs.int("ignore_index")?, softmax }))
}

/// `N`, `C` and the product of the remaining sizes.
fn sizes(scores: &[usize]) -> Result<(usize, usize, usize), OpError> {
    match scores {
        [n, c, rest @ ..] => Ok((*n, *c, super::axes::product(rest)?)),
        _ => Err(OpError::shape(format!("scores have two dimensions or more, not {scores:?}"))),
    }
}

impl Loss {
    /// The sums of losses and of weights, and each loss where it is wanted.
    fn losses(&self, log_prob: &[f64], (c, inner): (usize, usize), labels: &[i64], weights: Option<&[f64]>, mut each: Option<&mut [f64]>) -> Result<(f64, f64), OpError> {
        let (mut sum, mut total) = (0.0, 0.0);
        for (at, &label) in labels.iter().enumerate() {
            let (loss, weight) = if self.ignore_index == Some(label) {
                (0.0, 0.0)
            } else {
                let class = usize::try_from(label).ok().filter(|&class| class < c);
                let class = class.ok_or_else(|| OpError::value(format!("class {label} is out of range for {c} classes")))?;
                let weight = weights.map_or(1.0, |weights| weights[class]);
                (-log_prob[(at / inner * c + class) * inner + at % inner] * weight, weight)
            };
            sum += loss;
            total += weight;
            if let Some(each) = &mut each {
                each[at] = loss;
            }
        }
        Ok((sum, total))
    }
}

/// The logarithm of the softmax over the middle of three sizes.
fn log_softmax(x: &mut [f64], c: usize, inner: usize) {
    if x.is_empty() {
        return;
    }
    let (mut greatest, mut sums) = (vec![0.0; inner], vec![0.0; inner]);
    for block in x.chunks_exact_mut(c * inner) {
        greatest.fill(f64::NEG_INFINITY);
        sums.fill(0.0);
        for row in block.chunks_exact(inner) {
            greatest.iter_mut().zip(row).for_each(|(g, &x)| *g = x.greater(*g));
        }
        for row in block.chunks_exact_mut(inner) {
            for ((x, g), sum) in row.iter_mut().zip(&greatest).zip(&mut sums) {
                *x -= g;
                *sum += x.exp();
            }
        }
        sums.iter_mut().for_each(|sum| *sum = sum.ln());
        for row in block.chunks_exact_mut(inner) {
            row.iter_mut().zip(&sums).for_each(|(x, log)| *x -= log);
        }
    }
}

impl Op for Loss {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        require(inputs, 2)?;
        let kind = same_type(inputs, 1, [0, 2])?;
        match &inputs[1] {
            Some(Kind::Tensor(DType::I32 | DType::I64)) => {}
            other => return Err(OpError::Type(format!("class numbers are int32 or int64, not {other:?}"))),
        }
        Ok(if self.softmax { Kinds::from_iter([kind[0].clone(), kind[0].clone()]) } else { kind })
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        let (scores, labels) = (inputs.shape(0)?, inputs.shape(1)?);
        let (n, c, _) = sizes(scores)?;
        if labels.first() != Some(&n) || labels.get(1..) != scores.get(2..) {
            return Err(OpError::shape(format!("class numbers of shape {labels:?} do not fit scores of shape {scores:?}")));
        }
        if inputs.get(2).is_some() && inputs.shape(2)? != [c] {
            return Err(OpError::shape(format!("there are {c} classes, but weights of shape {:?}", inputs.shape(2)?)));
        }
        let loss: Shape = if self.reduction == Reduction::None { labels.into() } else { smallvec![] };
        Ok(if self.softmax { vec![loss, scores.into()] } else { vec![loss] })
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let scores = inputs.at(0)?;
        let (_, c, inner) = sizes(scores.shape())?;
        let mut log_prob = widen::<f64>(scores)?.into_owned();
        if self.softmax {
            log_softmax(&mut log_prob, c, inner);
            if let Some(y) = outputs.get(1) {
                store(&log_prob, y)?;
            }
        }
        let weights = widen_some::<f64>(inputs.get(2))?;
        let labels = ints(inputs.at(1)?)?;
        // The loss may be an output that nobody reads.
        let Some(y) = outputs.get(0) else { return Ok(()) };
        let mut each = vec![0.0; if self.reduction == Reduction::None { labels.len() } else { 0 }];
        let wanted = (self.reduction == Reduction::None).then_some(&mut each[..]);
        let (sum, total) = self.losses(&log_prob, (c, inner), &labels, weights.as_deref(), wanted)?;
        match self.reduction {
            Reduction::None => store(&each, y),
            Reduction::Sum => store(&[sum], y),
            Reduction::Mean => store(&[sum / total], y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, noise, op, tensor};
    use super::*;
    use crate::engine::tensor::Tensor;

    /// Logarithms of probabilities of three classes: two rows.
    const LOG: [f32; 6] = [-1.0, -2.0, -3.0, -0.5, -1.5, -4.0];

    #[test]
    fn reductions_weights_and_ignored_classes() {
        let (x, labels) = (tensor(&[2, 3], &LOG), tensor(&[2], &[2_i64, 0]));
        let weights = tensor(&[3], &[0.5_f32, 1.0, 2.0]);
        let loss = |reduction: &str| op("NegativeLogLikelihoodLoss").attr("reduction", reduction);
        assert_close(&loss("none").one(&[&x, &labels]), &[2], &[3.0, 0.5], 0.0);
        assert_close(&loss("sum").one(&[&x, &labels]), &[], &[3.5], 0.0);
        assert_close(&loss("mean").one(&[&x, &labels]), &[], &[1.75], 0.0);
        assert_close(&loss("none").one(&[&x, &labels, &weights]), &[2], &[6.0, 0.25], 0.0);
        assert_close(&loss("mean").one(&[&x, &labels, &weights]), &[], &[6.25 / 2.5], 1e-7);
        let ignoring = loss("mean").attr("ignore_index", -7_i64);
        let some = tensor(&[2], &[-7_i32, 1]);
        assert_close(&ignoring.one(&[&x, &some, &weights]), &[], &[1.5], 1e-7);
        // Nothing is left to average.
        let none = tensor(&[2], &[-7_i32, -7]);
        assert_close(&ignoring.one(&[&x, &none]), &[], &[f32::NAN], 0.0);
        assert_close(&loss("sum").attr("ignore_index", -7_i64).one(&[&x, &none]), &[], &[0.0], 0.0);
    }

    #[test]
    fn cross_entropy_is_the_loss_of_the_log_softmax() {
        let (shape, count) = ([2, 4, 3, 2], 48);
        let x = tensor(&shape, &noise(count, 3));
        let labels = tensor(&[2, 3, 2], &[0_i64, 1, 2, 3, 0, 1, 2, 3, 3, 2, 1, 0]);
        let log = op("LogSoftmax").attr("axis", 1_i64).one(&[&x]);
        for reduction in ["none", "sum", "mean"] {
            let want = op("NegativeLogLikelihoodLoss").attr("reduction", reduction).one(&[&log, &labels]);
            let found = op("SoftmaxCrossEntropyLoss").attr("reduction", reduction).outputs(2).run(&[&x, &labels]).unwrap();
            assert_close(&found[0], want.shape(), want.slice::<f32>().unwrap(), 1e-5);
            assert_close(&found[1], &shape, log.slice::<f32>().unwrap(), 1e-5);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, labels) = (tensor(&[2, 3], &LOG), tensor(&[2], &[2_i64, 0]));
        let loss = || op("SoftmaxCrossEntropyLoss");
        for bad in [3_i64, -1, i64::MIN, i64::MAX] {
            assert!(matches!(loss().error(&[&x, &tensor(&[2], &[bad, 0])]), OpError::Value(_)), "{bad}");
        }
        assert!(matches!(loss().error(&[&x, &tensor(&[3], &[0_i64; 3])]), OpError::Shape(_)));
        assert!(matches!(loss().error(&[&x, &tensor(&[2, 1], &[0_i64; 2])]), OpError::Shape(_)));
        assert!(matches!(loss().error(&[&x, &labels, &tensor(&[2], &[1.0_f32; 2])]), OpError::Shape(_)));
        assert!(matches!(loss().error(&[&tensor(&[2], &[1.0_f32; 2]), &labels]), OpError::Shape(_)));
        assert!(matches!(loss().error(&[&x, &tensor(&[2], &[1.0_f32; 2])]), OpError::Type(_)));
        assert!(matches!(loss().attr("reduction", "max").error(&[&x, &labels]), OpError::Attribute(_)));
        assert!(loss().run(&[&x]).is_err());
    }

    #[test]
    fn empty_scores_and_wide_types() {
        let empty = op("SoftmaxCrossEntropyLoss").attr("reduction", "sum").one(&[&Tensor::zeros(DType::F32, &[0, 3]), &tensor::<i64>(&[0], &[])]);
        assert_close(&empty, &[], &[0.0], 0.0);
        let no_class = op("SoftmaxCrossEntropyLoss").attr("ignore_index", 5_i64).attr("reduction", "none");
        assert_close(&no_class.one(&[&Tensor::zeros(DType::F32, &[1, 0]), &tensor(&[1], &[5_i64])]), &[1], &[0.0], 0.0);
        let x = tensor(&[1, 2], &[0.0_f64, 0.0]);
        let y = op("SoftmaxCrossEntropyLoss").one(&[&x, &tensor(&[1], &[0_i64])]);
        assert!((y.slice::<f64>().unwrap()[0] - std::f64::consts::LN_2).abs() < 1e-15);
        let half = tensor(&[1, 2], &[half::f16::ONE, half::f16::ONE]);
        let y = op("SoftmaxCrossEntropyLoss").one(&[&half, &tensor(&[1], &[0_i64])]);
        assert_eq!(y.slice::<half::f16>().unwrap()[0], half::f16::from_f64(std::f64::consts::LN_2));
    }
}
