//! How sure a measure is: intervals by the bootstrap, and tests of whether two models differ on the same rows.

use serde::Serialize;

use super::random::Random;

/// Where a value lies with the confidence that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How the bootstrap is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// How often rows are drawn.
    pub samples: usize,
    /// The share of the samples within an interval.
    pub confidence: f64,
    /// What the draws follow from.
    pub seed: u64,
}

impl Bootstrap {
    /// Values of `measures` on so many of `rows` rows, drawn with replacement, as often as `samples` says: for each measure its
    /// values, without those where it has none.
    pub fn draw(&self, rows: usize, mut measures: impl FnMut(&[usize]) -> Vec<Option<f64>>) -> Vec<Vec<f64>> {
        let mut found: Vec<Vec<f64>> = Vec::new();
        let mut picked = vec![0; rows];
        for sample in 0..self.samples {
            let mut random = Random::new(self.seed, 0x2000 + sample as u64);
            picked.iter_mut().for_each(|row| *row = random.below(rows));
            for (at, value) in measures(&picked).into_iter().enumerate() {
                if found.len() <= at {
                    found.push(Vec::with_capacity(self.samples));
                }
                found[at].extend(value.filter(|value| value.is_finite()));
            }
        }
        found
    }

    /// The interval of the middle values, its ends between the two nearest of them; `None` if there are fewer than two.
    pub fn interval(&self, values: &[f64]) -> Option<Interval> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let outside = (1.0 - self.confidence) / 2.0;
        (sorted.len() > 1).then(|| Interval { low: quantile(&sorted, outside), high: quantile(&sorted, 1.0 - outside) })
    }
}

/// The quantile of sorted values, of which there are some, between two of them in proportion: NumPy's default.
pub fn quantile<T: Copy + Into<f64>>(sorted: &[T], share: f64) -> f64 {
    let at = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high): (f64, f64) = (sorted[at.floor() as usize].into(), sorted[at.ceil() as usize].into());
    low + (high - low) * at.fract()
}

/// The probability that two models which are equally good differ at least so much: of the rows that only one of them has right,
/// `first` are the first's and `second` the second's. McNemar's test, exact: the binomial distribution.
pub fn mcnemar(first: usize, second: usize) -> f64 {
    // A tie has all of the distribution on one side or the other.
    if first == second {
        return 1.0;
    }
    let (n, k) = (first + second, first.min(second));
    let mut log = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = log.exp();
    for i in 0..k {
        log += ((n - i) as f64 / (i + 1) as f64).ln();
        sum += log.exp();
    }
    (2.0 * sum).min(1.0)
}

/// The probability of differences at least as far from 0, if there were none, by the bootstrap's own differences: twice the share
/// on the rarer side of 0.
pub fn two_sided(differences: &[f64]) -> f64 {
    let count = |side: fn(f64) -> bool| differences.iter().filter(|&&d| side(d)).count() as f64;
    let (below, above) = (count(|d| d <= 0.0), count(|d| d >= 0.0));
    // One more of each, so that no finite number of samples says 0.
    (2.0 * (below.min(above) + 1.0) / (differences.len() as f64 + 1.0)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { samples: 400, confidence: 0.95, seed: 1 };

    /// As scipy.stats.binomtest answers.
    #[test]
    fn mcnemars_test_is_the_binomial_one() {
        for (first, second, want) in [
            (3, 10, 0.09228515625),
            (0, 5, 0.0625),
            (40, 60, 0.05688793364098089),
            (7, 7, 1.0),
            (0, 0, 1.0),
            (400, 460, 0.04416954819458914),
        ] {
            assert!((mcnemar(first, second) - want).abs() < 1e-9, "{first} {second}: {}", mcnemar(first, second));
            assert_eq!(mcnemar(first, second), mcnemar(second, first));
        }
    }

    #[test]
    fn an_interval_of_a_mean_is_as_wide_as_theory_says() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        let mean = |rows: &[usize]| vec![Some(rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64), None];
        let found = BOOTSTRAP.draw(200, mean);
        assert_eq!((found[0].len(), found[1].len()), (400, 0));
        let Interval { low, high } = BOOTSTRAP.interval(&found[0]).unwrap();
        // 99.5 ± 1.96 · 57.7 / √200
        assert!((low - 91.5).abs() < 1.5 && (high - 107.5).abs() < 1.5, "{low} {high}");
        assert_eq!(BOOTSTRAP.draw(200, mean), found, "the same seed, the same rows");
        assert_ne!(Bootstrap { seed: 2, ..BOOTSTRAP }.draw(200, mean), found);
        assert_eq!(BOOTSTRAP.interval(&found[1]), None);
    }

    #[test]
    fn quantiles_are_numpys() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0.0, 0.25, 0.5, 0.9, 1.0].map(|share| quantile(&sorted, share)), [1.0, 1.75, 3.0, 6.800000000000001, 8.0]);
    }

    #[test]
    fn differences_around_zero_say_nothing() {
        assert_eq!(two_sided(&[-1.0, 1.0, -1.0, 1.0]), 1.0);
        let sure: Vec<f64> = (1..1000).map(f64::from).collect();
        assert!((two_sided(&sure) - 0.002).abs() < 1e-9);
    }
}
