//! Optimisers: SGD with momentum, Adam, AdamW. They change parameters in place and allocate nothing after they are made.
//!
//! The formulas are PyTorch's, in f64 for each element and rounded once.

use serde::Deserialize;

/// A rule by which parameters follow their gradients.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// `v = momentum · v + g`, `x -= rate · v`; Nesterov's form goes by `g + momentum · v`.
    Sgd {
        /// The share of the last step in the next.
        #[serde(default)]
        momentum: f64,
        /// Whether the gradient counts as if the momentum had been followed already.
        #[serde(default)]
        nesterov: bool,
    },
    /// Kingma and Ba, 2015; weight decay is added to the gradient.
    Adam {
        /// Decay of the mean of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean square.
        #[serde(default = "epsilon")]
        epsilon: f64,
    },
    #[serde(rename = "adamw")]
    /// Loshchilov and Hutter, 2019; weight decay shrinks the parameters themselves.
    AdamW {
        /// Decay of the mean of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of their squares.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean square.
        #[serde(default = "epsilon")]
        epsilon: f64,
    },
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

fn epsilon() -> f64 {
    1e-8
}

impl Default for Rule {
    fn default() -> Self {
        Self::Adam { beta1: beta1(), beta2: beta2(), epsilon: epsilon() }
    }
}

/// A parameter's gradient and how it is regularised.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// One element for each of the parameter.
    pub values: &'a [f32],
    /// L2: the factor on the parameter that is added to the gradient, or by which AdamW shrinks it.
    pub l2: f64,
    /// L1: the number whose sign is the parameter's that is added to the gradient.
    pub l1: f64,
}

/// An optimiser with the state of each parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    rule: Rule,
    /// Steps done.
    step: u64,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl Optimizer {
    /// For parameters of these lengths.
    pub fn new(rule: Rule, lengths: &[usize]) -> Self {
        let zeros = |wanted: bool| if wanted { lengths.iter().map(|&n| vec![0.0; n]).collect() } else { Vec::new() };
        let (first, second) = match rule {
            Rule::Sgd { momentum, .. } => (momentum != 0.0, false),
            Rule::Adam { .. } | Rule::AdamW { .. } => (true, true),
        };
        Self { rule, step: 0, first: zeros(first), second: zeros(second) }
    }

    /// The state: steps done, and each tensor of momentums in a fixed order.
    pub fn state(&self) -> (u64, impl Iterator<Item = &Vec<f32>>) {
        (self.step, self.first.iter().chain(&self.second))
    }

    /// Takes up a state that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If it is of other parameters or another rule.
    pub fn restore(&mut self, step: u64, state: Vec<Vec<f32>>) -> Result<(), String> {
        let own = self.first.iter().chain(&self.second);
        if state.len() != own.clone().count() || !own.zip(&state).all(|(own, given)| own.len() == given.len()) {
            return Err("the state of the optimiser is of other parameters or another rule".to_owned());
        }
        let slots = self.first.iter_mut().chain(&mut self.second);
        slots.zip(state).for_each(|(slot, given)| *slot = given);
        self.step = step;
        Ok(())
    }

    /// Begins a step: the parameters follow, each once, by [`Optimizer::update`].
    pub fn begin(&mut self) {
        self.step += 1;
    }

    /// Moves parameter `index` at `rate` along its gradient, which is multiplied by `scale` first.
    ///
    /// Panics if the lengths differ from those given at first.
    pub fn update(&mut self, index: usize, x: &mut [f32], gradient: Gradient<'_>, rate: f64, scale: f64) {
        let Gradient { values, l2, l1 } = gradient;
        assert_eq!(x.len(), values.len(), "elements of a parameter and its gradient");
        let decoupled = matches!(self.rule, Rule::AdamW { .. });
        let of = |x: f32, g: f32| {
            let (x, g) = (f64::from(x), f64::from(g) * scale);
            let l1 = if x == 0.0 { 0.0 } else { l1 * x.signum() };
            if decoupled { g + l1 } else { g + l1 + l2 * x }
        };
        match self.rule {
            Rule::Sgd { momentum, nesterov } => {
                let Some(states) = self.first.get_mut(index) else {
                    x.iter_mut().zip(values).for_each(|(x, &g)| *x = (f64::from(*x) - rate * of(*x, g)) as f32);
                    return;
                };
                for ((x, &g), v) in x.iter_mut().zip(values).zip(states) {
                    let g = of(*x, g);
                    // The first gradient is the first momentum: v is zero before.
                    let new = momentum * f64::from(*v) + g;
                    *v = new as f32;
                    *x = (f64::from(*x) - rate * if nesterov { g + momentum * new } else { new }) as f32;
                }
            }
            Rule::Adam { beta1, beta2, epsilon } | Rule::AdamW { beta1, beta2, epsilon } => {
                let t = self.step as f64;
                let (c1, c2) = (1.0 - beta1.powf(t), (1.0 - beta2.powf(t)).sqrt());
                let shrink = if decoupled { 1.0 - rate * l2 } else { 1.0 };
                let states = self.first[index].iter_mut().zip(&mut self.second[index]);
                for ((x, &g), (m, v)) in x.iter_mut().zip(values).zip(states) {
                    let g = of(*x, g);
                    let mean = beta1 * f64::from(*m) + (1.0 - beta1) * g;
                    let square = beta2 * f64::from(*v) + (1.0 - beta2) * g * g;
                    (*m, *v) = (mean as f32, square as f32);
                    let step = rate / c1 * mean / (square.sqrt() / c2 + epsilon);
                    *x = (f64::from(*x) * shrink - step) as f32;
                }
            }
        }
    }
}

/// The factor that brings gradients to a norm of `most` together, if theirs is greater.
pub fn clip_factor(norm: f64, most: Option<f64>) -> f64 {
    match most {
        Some(most) if norm > most => most / (norm + 1e-6),
        _ => 1.0,
    }
}

/// The norm of all gradients together.
pub fn norm<'a>(gradients: impl Iterator<Item = &'a [f32]>) -> f64 {
    gradients.flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it gives, in the order of the test.
    const PYTORCH: [[f64; 2]; 5] =
        [[1.048051, -2.120902], [1.002151, -2.209102], [1.05007411, -2.30892622], [0.93552364, -2.18218683], [0.93471135, -2.17896175]];

    /// Two steps from (1, -2) with gradients (0.5, 1), (-1, 0.25), at a rate of 0.1 and a weight decay of 0.01, as PyTorch 2.15
    /// has them.
    #[test]
    fn steps_are_those_of_pytorch() {
        let adam = |w: bool| if w { Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 } } else { Rule::default() };
        for (rule, want) in [
            (Rule::Sgd { momentum: 0.0, nesterov: false }, PYTORCH[0]),
            (Rule::Sgd { momentum: 0.9, nesterov: false }, PYTORCH[1]),
            (Rule::Sgd { momentum: 0.9, nesterov: true }, PYTORCH[2]),
            (adam(false), PYTORCH[3]),
            (adam(true), PYTORCH[4]),
        ] {
            let mut x = [1.0_f32, -2.0];
            let mut optimizer = Optimizer::new(rule, &[2]);
            for g in [[0.5_f32, 1.0], [-1.0, 0.25]] {
                optimizer.begin();
                optimizer.update(0, &mut x, Gradient { values: &g, l2: 0.01, l1: 0.0 }, 0.1, 1.0);
            }
            for (x, want) in x.iter().zip(want) {
                assert!((f64::from(*x) - want).abs() < 3e-7, "{rule:?}: {x} is not {want}");
            }
        }
    }

    #[test]
    fn a_state_can_be_taken_up() {
        let gradient = |values| Gradient { values, l2: 0.0, l1: 0.1 };
        let mut x = [0.5_f32, 0.0];
        let mut optimizer = Optimizer::new(Rule::default(), &[2]);
        optimizer.begin();
        optimizer.update(0, &mut x, gradient(&[1.0, 0.0]), 0.1, 0.5);
        assert_eq!(x[1], 0.0, "nothing draws a zero");
        let (step, state) = optimizer.state();
        let state: Vec<Vec<f32>> = state.cloned().collect();
        let mut other = Optimizer::new(Rule::default(), &[2]);
        assert!(other.restore(step, state[..1].to_vec()).is_err());
        other.restore(step, state).unwrap();
        let mut y = x;
        for (optimizer, x) in [(&mut optimizer, &mut x), (&mut other, &mut y)] {
            optimizer.begin();
            optimizer.update(0, x, gradient(&[-1.0, 2.0]), 0.1, 1.0);
        }
        assert_eq!((x, optimizer), (y, other));
    }

    #[test]
    fn gradients_are_clipped_together() {
        let norm = norm([&[3.0_f32][..], &[0.0, 4.0]].into_iter());
        assert_eq!(norm, 5.0);
        assert_eq!(clip_factor(norm, None), 1.0);
        assert_eq!(clip_factor(norm, Some(5.0)), 1.0);
        assert!((clip_factor(norm, Some(1.0)) - 0.2).abs() < 1e-6);
    }
}
