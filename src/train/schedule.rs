//! Learning rates over the course of a training.

use std::f64::consts::PI;

use serde::Deserialize;

/// How the learning rate moves; a step is one batch.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It is multiplied by `factor` after every `epochs` epochs.
    Step {
        /// Epochs between two changes.
        epochs: usize,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// It falls to `least` of itself along half a cosine, from the end of the warm-up to the end of the training.
    Cosine {
        /// The share of the rate that is left at the end.
        #[serde(default)]
        least: f64,
    },
}

/// Where a training is.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// Steps done.
    pub step: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: usize,
    /// Epochs of the training.
    pub epochs: usize,
    /// Epochs in which the rate rises from zero in a straight line, before the schedule begins.
    pub warmup_epochs: usize,
}

impl Schedule {
    /// The factor on the learning rate for the next step.
    pub fn factor(&self, at: Position) -> f64 {
        let Position { step, steps_per_epoch, epochs, warmup_epochs } = at;
        let warmup = warmup_epochs * steps_per_epoch;
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        match *self {
            Self::Constant => 1.0,
            Self::Step { epochs, factor } => factor.powf(((step - warmup) / (epochs * steps_per_epoch).max(1)) as f64),
            Self::Cosine { least } => {
                let total = (epochs * steps_per_epoch).saturating_sub(warmup).max(1);
                let share = (step - warmup).min(total) as f64 / total as f64;
                least + (1.0 - least) * 0.5 * (1.0 + (PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_stay_and_fall() {
        let at = |step| Position { step, steps_per_epoch: 10, epochs: 10, warmup_epochs: 2 };
        assert_eq!(Schedule::Constant.factor(at(0)), 0.05);
        assert_eq!(Schedule::Constant.factor(at(19)), 1.0);
        assert_eq!(Schedule::Constant.factor(at(99)), 1.0);
        let step = Schedule::Step { epochs: 3, factor: 0.5 };
        assert_eq!([20, 49, 50, 80].map(|n| step.factor(at(n))), [1.0, 1.0, 0.5, 0.25]);
        let cosine = Schedule::Cosine { least: 0.2 };
        assert_eq!(cosine.factor(at(20)), 1.0);
        assert!((cosine.factor(at(60)) - 0.6).abs() < 1e-12);
        assert!((cosine.factor(at(100)) - 0.2).abs() < 1e-12);
    }
}
