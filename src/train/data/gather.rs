//! What becomes known of a column while its rows pass by, a part at a time.

use std::collections::BTreeMap;

use crate::train::random::Random;
use crate::train::statistics::quantile;

/// Values that are kept for quantiles; of a longer column these are drawn at random, each as likely as another.
const SAMPLE: usize = 1_000_000;
/// Texts that are told apart; a column with more is none of categories.
pub const CATEGORIES_MAX: usize = 10_000;

/// Of numbers; missing ones are NaN.
#[derive(Clone, Debug)]
pub struct Numbers {
    /// Those that are there.
    pub count: usize,
    /// Those that are not.
    pub missing: usize,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
    mean: f64,
    /// The sum of squared differences from the mean, by Welford's recurrence.
    squares: f64,
    sample: Vec<f32>,
    sorted: bool,
    random: Random,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            count: 0,
            missing: 0,
            least: f64::INFINITY,
            greatest: f64::NEG_INFINITY,
            mean: 0.0,
            squares: 0.0,
            sample: Vec::new(),
            sorted: false,
            random: Random::new(0, 0x9a3),
        }
    }
}

impl Numbers {
    /// One more.
    pub fn add(&mut self, value: f32) {
        if value.is_nan() {
            self.missing += 1;
            return;
        }
        let v = f64::from(value);
        self.count += 1;
        let off = v - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (v - self.mean);
        (self.least, self.greatest) = (self.least.min(v), self.greatest.max(v));
        if self.sample.len() < SAMPLE {
            self.sample.push(value);
        } else {
            let at = self.random.below(self.count);
            if at < SAMPLE {
                self.sample[at] = value;
            }
        }
        self.sorted = false;
    }

    /// The mean.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation of these numbers, not of a population that they are drawn from.
    pub fn deviation(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.squares / self.count as f64).sqrt() }
    }

    /// A quantile, between two values in proportion. NaN of nothing.
    pub fn quantile(&mut self, q: f64) -> f64 {
        if self.sample.is_empty() {
            return f64::NAN;
        }
        if !self.sorted {
            self.sample.sort_unstable_by(f32::total_cmp);
            self.sorted = true;
        }
        quantile(&self.sample, q)
    }

    /// How many values are in each of `bins` of one width, of those that are kept.
    pub fn histogram(&self, bins: usize) -> Vec<usize> {
        let mut counts = vec![0; bins];
        let width = (self.greatest - self.least) / bins as f64;
        for &value in &self.sample {
            let at = if width > 0.0 { ((f64::from(value) - self.least) / width) as usize } else { 0 };
            counts[at.min(bins - 1)] += 1;
        }
        counts
    }
}

/// Of texts; missing ones are empty.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// How often each is there; no more than [`CATEGORIES_MAX`].
    pub counts: BTreeMap<String, usize>,
    /// All that are there.
    pub count: usize,
    /// Those that are not.
    pub missing: usize,
    /// Whether there are more than are told apart.
    pub more: bool,
}

impl Texts {
    /// One more.
    pub fn add(&mut self, text: &str) {
        if text.is_empty() {
            self.missing += 1;
            return;
        }
        self.count += 1;
        if let Some(count) = self.counts.get_mut(text) {
            *count += 1;
        } else if self.counts.len() < CATEGORIES_MAX {
            self.counts.insert(text.to_owned(), 1);
        } else {
            self.more = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_up() {
        let mut found = Numbers::default();
        [3.0, f32::NAN, 1.0, 2.0, 6.0].into_iter().for_each(|v| found.add(v));
        assert_eq!((found.count, found.missing, found.least, found.greatest, found.mean()), (4, 1, 1.0, 6.0, 3.0));
        assert!((found.deviation() - 3.5_f64.sqrt()).abs() < 1e-12);
        assert_eq!([0.0, 0.5, 1.0].map(|q| found.quantile(q)), [1.0, 2.5, 6.0]);
        assert_eq!(found.histogram(5), [1, 1, 1, 0, 1]);
        found.add(0.0);
        assert_eq!(found.quantile(0.0), 0.0, "sorted anew");
        assert!(Numbers::default().quantile(0.5).is_nan());
    }

    #[test]
    fn texts_are_counted() {
        let mut found = Texts::default();
        ["b", "", "a", "b"].into_iter().for_each(|text| found.add(text));
        assert_eq!((found.count, found.missing, found.counts["b"], found.more), (3, 1, 2, false));
        (0..CATEGORIES_MAX).for_each(|i| found.add(&i.to_string()));
        assert!(found.more && found.counts.len() == CATEGORIES_MAX);
    }
}
