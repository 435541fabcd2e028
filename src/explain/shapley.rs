//! Shapley values of any model, by its answers to mixtures of the row and rows of the background.
//!
//! Features join in some order: what the answer changes by when one joins is its share, and the mean over orders its value. With
//! few features all subsets are evaluated, which is exact. Otherwise orders are sampled, each followed by its reverse (which
//! takes away most of the variance; Mitchell et al., Sampling permutations for Shapley value estimation, 2022), and every row of
//! the background has its turn equally often, so that the values sum up to the answer minus the mean answer to the background.

use std::ops::Range;

use super::Explanation;
use super::explainer::{Given, Work};
use super::random::Random;
use crate::engine::{Tensor, Value};
use crate::error::Error;

/// Orders at least, where a request does not say.
const SAMPLES: usize = 64;

pub(super) struct Shapley;

impl Shapley {
    pub(super) fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
        let features = given.layout.len();
        if given.options.samples == Some(0) {
            return Err(Error::invalid("samples is 0; at least 2 are wanted"));
        }
        let turn = 2 * given.samples;
        let orders = given.options.samples.unwrap_or(SAMPLES).div_ceil(turn).saturating_mul(turn);
        let sampled = orders.saturating_mul(features - 1);
        // Without those of which all answers are known: nobody joined, everybody did.
        let exact = u32::try_from(features).ok().and_then(|n| 1_usize.checked_shl(n)).map(|n| (n - 2).saturating_mul(given.samples));
        Ok(match exact.filter(|&exact| exact <= sampled) {
            Some(_) => Box::new(Exact::begin(given, features)),
            None => Box::new(Sampled::begin(given, orders, features)),
        })
    }
}

/// Every subset of the features, with every row of the background.
#[derive(Debug)]
struct Exact {
    features: usize,
    /// Subsets that are neither empty nor all.
    subsets: usize,
    rows: usize,
    /// The weight of a subset of so many others.
    weights: Vec<f64>,
    found: Vec<Vec<f64>>,
}

impl Exact {
    fn begin(given: &Given, features: usize) -> Self {
        let subsets = (1 << features) - 2;
        // s!·(n−s−1)!/n! = 1 / (n · C(n−1, s))
        let mut weights = vec![1.0 / features as f64; features];
        for s in 1..features {
            weights[s] = weights[s - 1] * s as f64 / (features - s) as f64;
        }
        let rows = given.rows.saturating_mul(given.samples).saturating_mul(subsets);
        Self { features, subsets, rows, weights, found: vec![vec![0.0; features]; given.rows] }
    }

    /// Adds the answer to a subset to the values of those that are in it, and takes it from those of the others.
    fn add(&mut self, row: usize, subset: usize, answer: f64) {
        let size = subset.count_ones() as usize;
        for feature in 0..self.features {
            self.found[row][feature] +=
                if subset >> feature & 1 == 1 { self.weights[size - 1] * answer } else { -self.weights[size] * answer };
        }
    }
}

impl Work for Exact {
    fn rows(&self) -> usize {
        self.rows
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        for at in rows {
            let (row, sample, place) = given.place(at, self.subsets);
            let subset = place + 1;
            built.push(&given.background, sample);
            (0..self.features).filter(|feature| subset >> feature & 1 == 1).for_each(|feature| built.set(feature, &given.inputs, row));
        }
        built.tensors()
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        let found = given.explained(outputs, rows.clone().map(|at| given.place(at, self.subsets).0))?;
        for (at, answer) in rows.zip(found) {
            let (row, _, place) = given.place(at, self.subsets);
            self.add(row, place + 1, answer);
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        for row in 0..given.rows {
            let all = (1 << self.features) - 1;
            for sample in 0..given.samples {
                self.add(row, all, given.answer(row));
                self.add(row, 0, given.base(row, sample));
            }
            self.found[row].iter_mut().for_each(|value| *value /= given.samples as f64);
        }
        let found = std::mem::take(&mut self.found);
        found.into_iter().enumerate().map(|(row, values)| given.complete(row, values)).collect()
    }
}

/// Sampled orders.
#[derive(Debug)]
struct Sampled {
    features: usize,
    orders: usize,
    rows: usize,
    /// The order whose prefixes are evaluated now, by its number.
    current: Option<(usize, Vec<usize>)>,
    /// The answer to the prefix before.
    before: f64,
    /// What each feature changed in the first order of the current pair.
    pair: Vec<f64>,
    sums: Vec<Vec<f64>>,
    squares: Vec<Vec<f64>>,
}

impl Sampled {
    fn begin(given: &Given, orders: usize, features: usize) -> Self {
        let rows = given.rows.saturating_mul(orders).saturating_mul(features - 1);
        let zeros = || vec![vec![0.0; features]; given.rows];
        Self { features, orders, rows, current: None, before: 0.0, pair: vec![0.0; features], sums: zeros(), squares: zeros() }
    }

    /// The row, the order and how many have joined in what is evaluated at `at`.
    fn place(&self, at: usize) -> (usize, usize, usize) {
        let prefixes = self.features - 1;
        (at / prefixes / self.orders, at / prefixes % self.orders, at % prefixes + 1)
    }

    /// The row of the background that stands for who has not joined.
    fn sample(&self, given: &Given, order: usize) -> usize {
        order / 2 % given.samples
    }

    /// Makes `order` the current one. Orders are those of every row, so that none depends on the rows beside it.
    fn prepare(&mut self, given: &Given, order: usize) -> &[usize] {
        if self.current.as_ref().is_none_or(|(known, _)| *known != order) {
            let mut list = Random::new(given.options.seed, order / 2, 0).order(self.features);
            if order % 2 == 1 {
                list.reverse();
            }
            self.current = Some((order, list));
        }
        self.current.as_ref().map_or(&[], |(_, list)| list)
    }

    fn changed(&mut self, row: usize, order: usize, feature: usize, by: f64) {
        if order.is_multiple_of(2) {
            self.pair[feature] = by;
            return;
        }
        let mean = (self.pair[feature] + by) / 2.0;
        self.sums[row][feature] += mean;
        self.squares[row][feature] += mean * mean;
    }
}

impl Work for Sampled {
    fn rows(&self) -> usize {
        self.rows
    }

    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor> {
        let mut built = given.layout.rows(rows.len());
        for at in rows {
            let (row, order, joined) = self.place(at);
            built.push(&given.background, self.sample(given, order));
            let list = self.prepare(given, order);
            list[..joined].iter().for_each(|&feature| built.set(feature, &given.inputs, row));
        }
        built.tensors()
    }

    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        let found = given.explained(outputs, rows.clone().map(|at| self.place(at).0))?;
        for (at, answer) in rows.zip(found) {
            let (row, order, joined) = self.place(at);
            if joined == 1 {
                self.before = given.base(row, self.sample(given, order));
            }
            let end = self.features - 1;
            let list = self.prepare(given, order);
            let (feature, last) = (list[joined - 1], list[end]);
            self.changed(row, order, feature, answer - self.before);
            self.before = answer;
            if joined == end {
                self.changed(row, order, last, given.answer(row) - answer);
            }
        }
        Ok(())
    }

    fn finish(&mut self, given: &Given) -> Vec<Explanation> {
        let pairs = (self.orders / 2) as f64;
        let explain = |row: usize| {
            let values: Vec<f64> = self.sums[row].iter().map(|sum| sum / pairs).collect();
            let error = |(square, mean): (&f64, &f64)| ((square / pairs - mean * mean).max(0.0) / (pairs - 1.0)).sqrt();
            // One pair does not tell how sure it is.
            let spread = (pairs > 1.0).then(|| self.squares[row].iter().zip(&values).map(error).collect());
            Explanation { spread, ..given.complete(row, values) }
        };
        (0..given.rows).map(explain).collect()
    }
}
