//! Losses as fragments of a graph: of a batch's predictions, targets and weights, one number.

use serde::Deserialize;

use super::error::Result;
use crate::engine::{Attr, Emit, ValueId};

/// What a training makes small. Targets have the shape of predictions, `[rows, outputs]`; the loss of the batch is the mean over
/// rows, each counted by its weight.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Loss {
    /// The mean of the squared differences.
    MeanSquared {},
    /// The squared difference where it is small, its absolute value beyond `delta`.
    Huber {
        /// Where one becomes the other.
        #[serde(default = "delta")]
        delta: f64,
    },
    /// Of classes: minus the logarithm of the right one's probability. Predictions are logits, targets probabilities.
    CrossEntropy {},
    /// Of a truth value: predictions are logits, targets 0 or 1.
    BinaryCrossEntropy {},
}

fn delta() -> f64 {
    1.0
}

/// The operands of a loss.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `[rows, outputs]`.
    pub predictions: ValueId,
    /// `[rows, outputs]`.
    pub targets: ValueId,
    /// `[rows]`.
    pub weights: ValueId,
}

impl Loss {
    /// Emits the loss of a batch: a number.
    ///
    /// # Errors
    /// If an operand is of another type than the others.
    pub fn emit(self, emit: &mut dyn Emit, operands: Operands) -> Result<ValueId> {
        let Operands { predictions, targets, weights } = operands;
        let each = match self {
            Self::MeanSquared {} => {
                let difference = emit.op("Sub", &[predictions, targets])?;
                emit.op("Mul", &[difference, difference])?
            }
            Self::Huber { delta } => {
                // With c = min(|d|, delta): c · (|d| - c / 2).
                let (difference, most) = (emit.op("Sub", &[predictions, targets])?, emit.number(predictions, delta)?);
                let distance = emit.op("Abs", &[difference])?;
                let clipped = emit.op("Min", &[distance, most])?;
                let half = emit.scale(clipped, 0.5)?;
                let rest = emit.op("Sub", &[distance, half])?;
                emit.op("Mul", &[clipped, rest])?
            }
            Self::CrossEntropy {} => {
                let log = emit.with("LogSoftmax", &[("axis", Attr::Int(-1))], &[predictions])?;
                let product = emit.op("Mul", &[log, targets])?;
                emit.op("Neg", &[product])?
            }
            Self::BinaryCrossEntropy {} => {
                // softplus(x) - x · t, which is -t ln σ(x) - (1 - t) ln(1 - σ(x)) without overflow.
                let (soft, product) = (emit.op("Softplus", &[predictions])?, emit.op("Mul", &[predictions, targets])?);
                emit.op("Sub", &[soft, product])?
            }
        };
        // Classes add up to one row's loss; other outputs are averaged.
        let reduce = if self == (Self::CrossEntropy {}) { "ReduceSum" } else { "ReduceMean" };
        let last = emit.ints(&[-1]);
        let rows = emit.with(reduce, &[("keepdims", Attr::Int(0))], &[each, last])?;
        let weighted = emit.op("Mul", &[rows, weights])?;
        let (sum, total) = (whole(emit, weighted)?, whole(emit, weights)?);
        Ok(emit.op("Div", &[sum, total])?)
    }
}

fn whole(emit: &mut dyn Emit, value: ValueId) -> Result<ValueId> {
    Ok(emit.with("ReduceSum", &[("keepdims", Attr::Int(0))], &[value])?)
}
