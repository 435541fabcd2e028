//! The gradients of the losses over class numbers.

use super::{Loss, Reduction, log_softmax, sizes};
use crate::engine::adjoint::{Adjoint, Emit, Gradients, Rule, concrete};
use crate::engine::op::{Context, Facts, Inputs, Kinds, Op, OpDef, OpError, Outputs, Shape};
use crate::engine::ops::axes::{ints, same_type};
use crate::engine::ops::own;
use crate::engine::ops::real::{store, widen, widen_some};
use crate::engine::tensor::Kind;

pub(crate) const RULES: &[Rule] = &[Rule::new("NegativeLogLikelihoodLoss", loss), Rule::new("SoftmaxCrossEntropyLoss", loss)];

static GRADIENT: OpDef = own("LossGradient");

fn loss(op: &dyn Op, at: &Adjoint<'_>, emit: &mut dyn Emit) -> Result<Gradients, OpError> {
    let &Loss { reduction, ignore_index, softmax } = concrete(op)?;
    if at.gradients.get(1).is_some_and(Option::is_some) {
        return Err(OpError::unsupported("only the loss has a gradient, not the logarithms beside it"));
    }
    if at.wants(2) {
        return Err(OpError::unsupported("the weights of classes have no gradient"));
    }
    let inputs = [Some(at.g()?), Some(at.x(0)?), Some(at.x(1)?), at.inputs.get(2).copied().flatten()];
    let op = LossGradient(Loss { reduction, ignore_index, softmax });
    Ok(vec![Some(emit.own(&GRADIENT, Box::new(op), &inputs, 1)?[0])])
}

/// Inputs: the gradient of the loss, the scores, the class numbers, the weights of the classes.
#[derive(Debug)]
struct LossGradient(Loss);

impl Op for LossGradient {
    fn kinds(&self, inputs: &[Option<Kind>]) -> Result<Kinds, OpError> {
        same_type(inputs, 2, [1])
    }

    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(1)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, _: &mut Context<'_>) -> Result<(), OpError> {
        let scores = inputs.at(1)?;
        let (_, c, inner) = sizes(scores.shape())?;
        let (g, labels, weights) = (widen::<f64>(inputs.at(0)?)?, ints(inputs.at(2)?)?, widen_some::<f64>(inputs.get(3))?);
        let mut y = widen::<f64>(scores)?.into_owned();
        if self.0.softmax {
            log_softmax(&mut y, c, inner);
            y.iter_mut().for_each(|y| *y = y.exp());
        } else {
            y.fill(0.0);
        }
        // The weight of each element, as the loss checks and counts them.
        let zeros = vec![0.0; y.len()];
        let (_, total) = self.0.losses(&zeros, (c, inner), &labels, weights.as_deref(), None)?;
        for (at, &label) in labels.iter().enumerate() {
            let class = usize::try_from(label).ok().filter(|&class| class < c && self.0.ignore_index != Some(label));
            let weight = class.map_or(0.0, |class| weights.as_ref().map_or(1.0, |weights| weights[class]));
            let factor = match self.0.reduction {
                Reduction::None => g[at] * weight,
                Reduction::Sum => g[0] * weight,
                Reduction::Mean => g[0] * weight / total,
            };
            for i in 0..c {
                let y = &mut y[(at / inner * c + i) * inner + at % inner];
                *y = factor * (*y - if Some(i) == class { 1.0 } else { 0.0 });
            }
        }
        store(&y, outputs.at(0)?)
    }
}
