//! How long a forward pass of so many rows takes: measured while warming up, kept up to date by the passes that are run.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// What a pass costs beside its own time: taking the batch, waking the clients.
const OVERHEAD: Duration = Duration::from_micros(10);

/// A batch is made larger only for this much more rows per second: less than that is noise, and its price is waiting.
const GAIN: f64 = 0.05;

/// Weight of a new pass against what was known. Some ten passes decide.
const WEIGHT: f64 = 0.125;

/// Every so many batches that are full at the best size, one may be larger, so that the curve beyond is kept up to date.
const EXPLORE_EVERY: u32 = 64;

/// One size of batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Rows of the pass.
    pub rows: usize,
    /// Its time, if it is known: one was measured alone, or two were run for requests.
    pub time: Option<Duration>,
    /// The only pass that was run for requests so far. It does not count alone: if the system held it up, requests would be refused
    /// for a deadline that they meet.
    first: Option<Duration>,
}

impl Point {
    /// Rows per second, what a pass costs beside its own time included.
    pub fn rows_per_second(&self) -> Option<f64> {
        self.time.map(|time| self.rows as f64 / (time + OVERHEAD).as_secs_f64())
    }
}

/// Time over rows for inputs of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// 1, 2, 4 … and the most.
    points: Vec<Point>,
    best_rows: usize,
    passes: u32,
}

impl Curve {
    /// A curve up to `rows_max` of which nothing is known.
    pub fn new(rows_max: usize) -> Self {
        let powers = std::iter::successors(Some(1_usize), |rows| rows.checked_mul(2)).take_while(|&rows| rows < rows_max);
        let points = powers.chain([rows_max.max(1)]).map(|rows| Point { rows, time: None, first: None }).collect();
        Self { points, best_rows: rows_max.max(1), passes: 0 }
    }

    /// The sizes with what is known of them.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Sets the time of one of the sizes, as measured with nothing else running.
    pub fn set(&mut self, rows: usize, time: Duration) {
        if let Some(point) = self.points.iter_mut().find(|point| point.rows == rows) {
            point.time = Some(time);
        }
        self.best_rows = best_rows(&self.points);
    }

    /// The time of a pass of `rows`: between two known sizes by the straight line, beyond them in proportion to the nearest.
    /// `None` if nothing is known.
    pub fn time(&self, rows: usize) -> Option<Duration> {
        let known = || self.points.iter().filter_map(|point| Some((point.rows, point.time?.as_secs_f64())));
        let below = known().rfind(|&(at, _)| at <= rows);
        let above = known().find(|&(at, _)| at >= rows);
        let seconds = match (below, above) {
            (Some((a, at_a)), Some((b, at_b))) if a < b => at_a + (at_b - at_a) * (rows - a) as f64 / (b - a) as f64,
            (Some((at, time)), _) => time * rows as f64 / at as f64,
            // A smaller pass than any known may cost as much as that: it cannot be said to be cheaper.
            (None, Some((_, time))) => time,
            (None, None) => return None,
        };
        Some(Duration::from_secs_f64(seconds.max(0.0)))
    }

    /// The curve of a model that is much like this one's, up to `rows_max`, of which one row takes `time`: in proportion. `None` if
    /// they are not alike, or this curve does not reach so far.
    pub(super) fn scaled(&self, rows_max: usize, time: Duration) -> Option<Self> {
        let mut curve = Self::new(rows_max);
        let alike = self.points.iter().map(|point| point.rows).eq(curve.points.iter().map(|point| point.rows));
        let ratio = time.as_secs_f64() / self.points[0].time?.as_secs_f64();
        // Beyond that it is another model. A pass of some microseconds may seem twice as long.
        if !alike || !(0.4..=2.5).contains(&ratio) {
            return None;
        }
        for (point, known) in curve.points.iter_mut().zip(&self.points) {
            point.time = known.time.map(|time| time.mul_f64(ratio));
        }
        curve.best_rows = best_rows(&curve.points);
        Some(curve)
    }

    /// Takes a pass into account that was run for requests.
    pub fn observe(&mut self, rows: usize, time: Duration) {
        self.passes = self.passes.wrapping_add(1);
        let Some(above) = self.points.iter().position(|point| point.rows >= rows.max(1)) else { return };
        match (self.points[above].time, self.time(rows)) {
            (Some(_), Some(expected)) if !expected.is_zero() => self.correct(above, rows, time.as_secs_f64() / expected.as_secs_f64()),
            _ => {
                let point = &mut self.points[above];
                // Scaled, because it may be of fewer rows.
                let time = time.mul_f64(point.rows as f64 / rows.max(1) as f64);
                match point.first {
                    None => point.first = Some(time),
                    Some(first) => point.time = Some(time.min(first)),
                }
            }
        }
        self.best_rows = best_rows(&self.points);
    }

    /// What was foretold and what happened correct both sizes around `rows`, each by how near it is.
    fn correct(&mut self, above: usize, rows: usize, ratio: f64) {
        // One pass that was disturbed must not decide: half and double are the most that it may say.
        let step = WEIGHT * (ratio.clamp(0.5, 2.0) - 1.0);
        let low = self.points[..above].last().map_or(0, |point| point.rows);
        let near = (rows - low) as f64 / (self.points[above].rows - low) as f64;
        let mut correct = |at: usize, weight: f64| {
            let point = &mut self.points[at];
            point.time = point.time.map(|time| time.mul_f64(1.0 + weight * step));
        };
        correct(above, near);
        if above > 0 {
            correct(above - 1, 1.0 - near);
        }
    }

    /// The number of rows beyond which a larger batch brings no more rows per second; a size of which nothing is known yet is
    /// tried while the rate rises up to it.
    pub fn best_rows(&self) -> usize {
        self.best_rows
    }

    /// Compute time that `rows` take in batches of the best size.
    pub(super) fn share(&self, rows: usize) -> Option<Duration> {
        let best = self.best_rows;
        self.time(best).map(|time| time.mul_f64(rows as f64 / best as f64))
    }

    /// How many rows the next batch should have at most: [`Curve::best_rows`] and, once in a while, the size above it.
    pub fn fill_rows(&self) -> usize {
        let best = self.best_rows();
        if self.passes % EXPLORE_EVERY != EXPLORE_EVERY - 1 {
            return best;
        }
        self.points.iter().map(|point| point.rows).find(|&rows| rows > best).unwrap_or(best)
    }
}

/// `rows:milliseconds` of each size that is known, separated by commas.
impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.points.iter().filter_map(|point| Some((point.rows, point.time?)));
        for (i, (rows, time)) in known.enumerate() {
            write!(f, "{}{rows}:{:.6}", if i == 0 { "" } else { "," }, time.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

fn best_rows(points: &[Point]) -> usize {
    let rates = || points.iter().map_while(|point| Some((point.rows, point.rows_per_second()?)));
    let most = points.last().map_or(1, |point| point.rows);
    let Some(best) = rates().map(|(_, rate)| rate).reduce(f64::max) else { return most };
    let enough = rates().find(|(_, rate)| rate * (1.0 + GAIN) >= best).map_or(1, |(rows, _)| rows);
    let next = points.get(rates().count());
    let last = rates().last().map(|(rows, _)| rows);
    next.filter(|_| last == Some(enough)).map_or(enough, |next| next.rows)
}

/// Curves of a version by class of input: the time of a pass depends on every dimension of its inputs.
#[derive(Debug)]
pub(super) struct Curves {
    rows_max: usize,
    /// The class that was measured while warming up, else the first that ran.
    base: Option<u64>,
    by_class: HashMap<u64, Curve>,
}

/// Classes that have a curve; of further ones nothing is known.
const CLASSES_MAX: usize = 256;

impl Curves {
    pub(super) fn new(rows_max: usize, measured: Option<(u64, Curve)>) -> Self {
        let base = measured.as_ref().map(|(class, _)| *class);
        Self { rows_max, base, by_class: measured.into_iter().collect() }
    }

    pub(super) fn get(&self, class: u64) -> Option<&Curve> {
        self.by_class.get(&class)
    }

    /// The curve to show.
    pub(super) fn base(&self) -> Option<&Curve> {
        self.by_class.get(&self.base?)
    }

    /// Replaces what is known of a class by what was measured.
    pub(super) fn set(&mut self, class: u64, curve: Curve) {
        self.base.get_or_insert(class);
        self.by_class.insert(class, curve);
    }

    pub(super) fn observe(&mut self, class: u64, rows: usize, time: Duration) {
        if self.by_class.len() >= CLASSES_MAX && !self.by_class.contains_key(&class) {
            return;
        }
        self.base.get_or_insert(class);
        self.by_class.entry(class).or_insert_with(|| Curve::new(self.rows_max)).observe(rows, time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn curve(rows_max: usize, times_us: &[u32]) -> Curve {
        let mut curve = Curve::new(rows_max);
        let rows: Vec<usize> = curve.points.iter().map(|point| point.rows).collect();
        for (&rows, &us) in rows.iter().zip(times_us) {
            curve.set(rows, us * US);
        }
        curve
    }

    #[test]
    fn the_sizes_are_powers_of_two_and_the_most() {
        let sizes = |most| Curve::new(most).points.iter().map(|point| point.rows).collect::<Vec<_>>();
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(8), [1, 2, 4, 8]);
        assert_eq!(sizes(12), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn between_sizes_the_line_and_beyond_them_the_proportion() {
        let curve = curve(16, &[100, 120, 160]);
        for (rows, us) in [(1, 100), (2, 120), (3, 140), (4, 160), (8, 320), (40, 1600)] {
            assert_eq!(curve.time(rows), Some(us * US), "{rows} rows");
        }
        assert_eq!(Curve::new(4).time(1), None);
        assert_eq!(curve.to_string(), "1:0.100000,2:0.120000,4:0.160000");
    }

    #[test]
    fn batches_grow_as_far_as_rows_per_second_rise() {
        for (times, best, why) in [
            (&[1000, 1100, 1300, 1700][..], 8, "each size is better than the one before"),
            (&[1000, 2000, 4000, 8000][..], 1, "twice the rows take twice as long"),
            (&[1000, 1100, 1200, 2400][..], 4, "no more beyond 4"),
            (&[1000, 1990, 3900, 7700][..], 1, "so little more is noise"),
            (&[1000, 1100][..], 4, "4 is unknown and the rate rises"),
            (&[1000, 2000][..], 1, "it does not rise"),
            (&[][..], 8, "nothing is known"),
            (&[1, 2, 4, 8][..], 8, "passes so short that handing them over costs more"),
        ] {
            assert_eq!(curve(8, times).best_rows(), best, "{why}");
        }
    }

    #[test]
    fn passes_keep_the_curve_up_to_date() {
        let mut curve = curve(4, &[1000, 1000, 1000]);
        for _ in 0..200 {
            curve.observe(4, 4000 * US);
            curve.observe(1, 500 * US);
        }
        let near = |rows: usize, us: u32| {
            let time = curve.time(rows).unwrap();
            assert!(time.abs_diff(us * US) <= us * US / 50, "{rows} rows: {time:?}");
        };
        near(4, 4000);
        near(1, 500);
    }

    #[test]
    fn a_model_that_is_alike_has_the_curve_in_proportion() {
        let known = curve(8, &[1000, 1100, 1300]);
        let scaled = known.scaled(8, 500 * US).unwrap();
        assert_eq!(
            scaled.points.iter().map(|point| point.time).collect::<Vec<_>>(),
            [Some(500 * US), Some(550 * US), Some(650 * US), None]
        );
        assert_eq!(scaled.best_rows(), known.best_rows());
        assert_eq!(known.scaled(8, 100 * US), None, "another model");
        assert_eq!(known.scaled(16, 1000 * US), None, "larger batches");
        assert_eq!(Curve::new(8).scaled(8, 1000 * US), None, "nothing is known");
    }

    #[test]
    fn one_disturbed_pass_does_not_decide() {
        let mut curve = curve(2, &[1000, 1500]);
        curve.observe(1, Duration::from_secs(5));
        assert!(curve.time(1).unwrap() < 1200 * US);
    }

    #[test]
    fn an_unknown_size_is_learnt_from_the_shorter_of_two_passes() {
        let mut curve = curve(8, &[1000, 1100]);
        curve.observe(4, Duration::from_secs(2));
        assert_eq!(curve.points[2].time, None, "it may have been held up");
        assert_eq!(curve.best_rows(), 4, "tried again");
        curve.observe(3, 1500 * US);
        assert_eq!(curve.points[2].time, Some(2000 * US));
        assert_eq!(curve.best_rows(), 8, "the rate rises: try the next");
    }

    #[test]
    fn now_and_then_a_larger_batch_is_tried() {
        let mut curve = curve(4, &[1000, 2000, 4000]);
        let sizes: Vec<usize> = (0..EXPLORE_EVERY)
            .map(|_| {
                curve.observe(1, 1000 * US);
                curve.fill_rows()
            })
            .collect();
        assert_eq!(sizes.iter().filter(|&&rows| rows == 2).count(), 1);
        assert_eq!(sizes.iter().filter(|&&rows| rows == 1).count(), EXPLORE_EVERY as usize - 1);
    }
}
