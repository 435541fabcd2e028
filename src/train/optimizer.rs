//! Optimisers: SGD with momentum, Adam, AdamW. They change parameters in place and allocate nothing after they are made.
//!
//! The formulas are PyTorch's, in f32 as it has them.

use serde::Deserialize;

use crate::engine::Threads;

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

    /// A step: every parameter moves at `rate` along its gradient, which is multiplied by `scale` first. Each element has its own
    /// chain of operations, so that the bits are the same on any number of threads.
    ///
    /// Panics if the lengths differ from those given at first.
    pub fn step(&mut self, moves: &mut [Move<'_>], rate: f64, scale: f64, threads: &Threads) {
        self.step += 1;
        let total: usize = moves.iter().map(|one| one.x.len()).sum();
        let parts = threads.parts(FLOPS_PER_ELEMENT.saturating_mul(total as u64));
        let mut states = States::new(&mut self.first, &mut self.second);
        if parts == 1 {
            for one in moves {
                assert_eq!(one.x.len(), one.gradient.values.len(), "elements of a parameter and its gradient");
                let (m, v) = states.of(one.index);
                apply(self.rule, self.step, (&mut *one.x, m, v), one.gradient, rate, scale);
            }
            return;
        }
        let piece = total.div_ceil(PIECES_PER_THREAD * parts).max(1);
        for one in moves.iter() {
            assert_eq!(one.x.len(), one.gradient.values.len(), "elements of a parameter and its gradient");
        }
        let items = moves.iter_mut().flat_map(|one| {
            let ((mut m, mut v), gradient) = (states.of(one.index), one.gradient);
            one.x
                .chunks_mut(piece)
                .zip(gradient.values.chunks(piece))
                .map(move |(x, values)| ((x, cut(&mut m, values.len()), cut(&mut v, values.len())), Gradient { values, ..gradient }))
        });
        let (rule, step) = (self.rule, self.step);
        threads.for_each(items, |(state, gradient)| apply(rule, step, state, gradient, rate, scale));
    }
}

/// The operations that an element takes, roots and quotients counted by their time.
const FLOPS_PER_ELEMENT: u64 = 40;

/// Pieces for each thread: the last of them is short.
const PIECES_PER_THREAD: usize = 8;

/// A parameter that moves.
#[derive(Debug)]
pub struct Move<'a> {
    /// Its position among all, which rises from one to the next.
    pub index: usize,
    /// Its elements.
    pub x: &'a mut [f32],
    /// Where to.
    pub gradient: Gradient<'a>,
}

/// The momentums that are left, in the order of the parameters.
struct States<'a> {
    first: &'a mut [Vec<f32>],
    second: &'a mut [Vec<f32>],
    /// The parameter that is first of them.
    at: usize,
}

impl<'a> States<'a> {
    fn new(first: &'a mut [Vec<f32>], second: &'a mut [Vec<f32>]) -> Self {
        Self { first, second, at: 0 }
    }

    /// Those of a parameter; empty where the rule has none.
    fn of(&mut self, index: usize) -> (&'a mut [f32], &'a mut [f32]) {
        let skip = index - self.at;
        self.at = index + 1;
        let take = |list: &mut &'a mut [Vec<f32>]| {
            let rest = std::mem::take(list);
            if rest.is_empty() {
                return <&mut [f32]>::default();
            }
            let (one, rest) = rest[skip..].split_first_mut().expect("a state for each parameter");
            *list = rest;
            &mut one[..]
        };
        (take(&mut self.first), take(&mut self.second))
    }
}

/// The first elements of a slice, which keeps the others; none of an empty one.
fn cut<'a>(from: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let whole = std::mem::take(from);
    let (start, rest) = whole.split_at_mut(len.min(whole.len()));
    *from = rest;
    start
}

/// Moves some elements of a parameter, `state` being those with their momentums.
fn apply(rule: Rule, step: u64, (x, m, v): (&mut [f32], &mut [f32], &mut [f32]), gradient: Gradient<'_>, rate: f64, scale: f64) {
    let Gradient { values, l2, l1 } = gradient;
    let decoupled = matches!(rule, Rule::AdamW { .. });
    let (scale, l1, decay) = (scale as f32, l1 as f32, if decoupled { 0.0 } else { l2 as f32 });
    // Most parameters have no L1, and none of its comparisons then.
    let plain = |x: f32, g: f32| g * scale + decay * x;
    let drawn = |x: f32, g: f32| plain(x, g) + if x == 0.0 { 0.0 } else { l1 * x.signum() };
    match rule {
        Rule::Sgd { momentum, nesterov } => {
            let (rate, momentum) = (rate as f32, momentum as f32);
            if m.is_empty() {
                x.iter_mut().zip(values).for_each(|(x, &g)| *x -= rate * drawn(*x, g));
                return;
            }
            for ((x, &g), v) in x.iter_mut().zip(values).zip(m) {
                let g = drawn(*x, g);
                // The first gradient is the first momentum: v is zero before.
                *v = momentum * *v + g;
                *x -= rate * if nesterov { g + momentum * *v } else { *v };
            }
        }
        Rule::Adam { beta1, beta2, epsilon } | Rule::AdamW { beta1, beta2, epsilon } => {
            let t = step as f64;
            let (c1, c2) = (1.0 - beta1.powf(t), (1.0 - beta2.powf(t)).sqrt());
            let adam = Adam {
                keep: (beta1 as f32, beta2 as f32),
                add: ((1.0 - beta1) as f32, (1.0 - beta2) as f32),
                rate: (rate / c1) as f32,
                inverse: (1.0 / c2) as f32,
                epsilon: epsilon as f32,
                shrink: if decoupled { (1.0 - rate * l2) as f32 } else { 1.0 },
            };
            if l1 == 0.0 { adam.apply(x, m, v, values, plain) } else { adam.apply(x, m, v, values, drawn) }
        }
    }
}

/// The numbers of one step of Adam.
struct Adam {
    keep: (f32, f32),
    add: (f32, f32),
    rate: f32,
    /// Of the correction of the root.
    inverse: f32,
    epsilon: f32,
    shrink: f32,
}

impl Adam {
    #[inline(always)]
    fn apply(&self, x: &mut [f32], m: &mut [f32], v: &mut [f32], values: &[f32], of: impl Fn(f32, f32) -> f32) {
        for (((x, &g), m), v) in x.iter_mut().zip(values).zip(m).zip(v) {
            let g = of(*x, g);
            *m = self.keep.0 * *m + self.add.0 * g;
            *v = self.keep.1 * *v + self.add.1 * (g * g);
            *x = *x * self.shrink - self.rate * *m / (v.sqrt() * self.inverse + self.epsilon);
        }
    }
}

/// The factor that brings gradients to a norm of `most` together, if theirs is greater.
pub fn clip_factor(norm: f64, most: f64) -> f64 {
    if norm > most { most / (norm + 1e-6) } else { 1.0 }
}

/// The norm of all gradients together, in f64.
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
                let gradient = Gradient { values: &g, l2: 0.01, l1: 0.0 };
                optimizer.step(&mut [Move { index: 0, x: &mut x, gradient }], 0.1, 1.0, &Threads::single());
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
        let single = Threads::single();
        optimizer.step(&mut [Move { index: 0, x: &mut x, gradient: gradient(&[1.0, 0.0]) }], 0.1, 0.5, &single);
        assert_eq!(x[1], 0.0, "nothing draws a zero");
        let (step, state) = optimizer.state();
        let state: Vec<Vec<f32>> = state.cloned().collect();
        let mut other = Optimizer::new(Rule::default(), &[2]);
        assert!(other.restore(step, state[..1].to_vec()).is_err());
        other.restore(step, state).unwrap();
        let mut y = x;
        for (optimizer, x) in [(&mut optimizer, &mut x), (&mut other, &mut y)] {
            optimizer.step(&mut [Move { index: 0, x, gradient: gradient(&[-1.0, 2.0]) }], 0.1, 1.0, &single);
        }
        assert_eq!((x, optimizer), (y, other));
    }

    /// A parameter in the middle has no gradient, and pieces end within parameters.
    #[test]
    fn threads_do_not_change_the_bits() {
        let lengths = [7, 300_001, 5, 200_003];
        let numbers = |len: usize, seed: usize| (0..len).map(|i| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5).collect::<Vec<f32>>();
        for rule in [Rule::default(), Rule::Sgd { momentum: 0.9, nesterov: true }, Rule::Sgd { momentum: 0.0, nesterov: false }] {
            let run = |threads: &Threads| {
                let mut all: Vec<Vec<f32>> = lengths.iter().map(|&len| numbers(len, len)).collect();
                let mut optimizer = Optimizer::new(rule, &lengths);
                for step in 0..2 {
                    let gradients: Vec<Vec<f32>> = lengths.iter().map(|&len| numbers(len, step)).collect();
                    let moved = all.iter_mut().zip(&gradients).enumerate().filter(|(index, _)| *index != 2);
                    let of = |values| Gradient { values, l2: 0.01, l1: if step == 0 { 0.0 } else { 0.1 } };
                    let mut moves: Vec<Move<'_>> = moved.map(|(index, (x, g))| Move { index, x, gradient: of(g) }).collect();
                    optimizer.step(&mut moves, 0.1, 0.7, threads);
                }
                (all, optimizer)
            };
            assert!(run(&Threads::single()) == run(&Threads::new(2).unwrap()), "{rule:?}");
        }
    }

    #[test]
    fn gradients_are_clipped_together() {
        let norm = norm([&[3.0_f32][..], &[0.0, 4.0]].into_iter());
        assert_eq!(norm, 5.0);
        assert_eq!(clip_factor(norm, 5.0), 1.0);
        assert!((clip_factor(norm, 1.0) - 0.2).abs() < 1e-6);
    }
}
