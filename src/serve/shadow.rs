//! Shadow requests: copies of requests that another version answers too, so that both answers can be compared. The client never
//! sees anything of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::request::InferRequest;
use super::servable::Servable;
use super::stats::Times;
use crate::engine::{Slice, Tensor, Value};

/// Copies under way for one label; a further request is not copied. A version that is slower than what it shadows must not
/// gather work without end.
const UNDER_WAY_MAX: usize = 4;

/// What the copies of one label's requests showed.
#[derive(Debug)]
pub(super) struct ShadowStats {
    places: Arc<Semaphore>,
    compared: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
    rows: AtomicU64,
    disagreements: AtomicU64,
    found: Mutex<Found>,
}

/// What is behind a lock, because there is no maximum of atomic floats; one copy in a while takes it.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// The largest difference so far.
    difference: f64,
    primary: Times,
    shadow: Times,
}

impl Default for ShadowStats {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            compared: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            disagreements: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }
}

/// The counters of one label's copies at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShadowSnapshot {
    /// Requests that both versions answered.
    pub compared: u64,
    /// Copies that the shadow did not answer, or with another number of rows or another type.
    pub failed: u64,
    /// Requests that were not copied, because as many copies were under way as may be.
    pub skipped: u64,
    /// Rows that were compared.
    pub rows: u64,
    /// Rows whose most probable class, or whose value where it is no number of a scale, is another one.
    pub disagreements: u64,
    /// The largest absolute difference between two floats so far; infinite if only one of them is finite.
    pub difference_max: f64,
    /// Time of the compared requests in what they asked for.
    pub primary: Times,
    /// Time of the same requests in the shadow.
    pub shadow: Times,
}

impl ShadowStats {
    pub(super) fn snapshot(&self) -> ShadowSnapshot {
        let Found { difference, primary, shadow } = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        ShadowSnapshot {
            compared: self.compared.load(Relaxed),
            failed: self.failed.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            rows: self.rows.load(Relaxed),
            disagreements: self.disagreements.load(Relaxed),
            difference_max: difference,
            primary,
            shadow,
        }
    }

    fn add(&self, difference: &Difference, primary: Duration, shadow: Duration) {
        self.compared.fetch_add(1, Relaxed);
        self.rows.fetch_add(difference.rows, Relaxed);
        self.disagreements.fetch_add(difference.disagreements, Relaxed);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.difference = found.difference.max(difference.most);
        found.primary.add(primary);
        found.shadow.add(shadow);
    }
}

/// Where one request's copy goes.
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    pub(super) target: Servable,
    pub(super) stats: Arc<ShadowStats>,
}

impl Shadow {
    /// The request as the shadow gets it: with the time that it needs, behind every other that waits.
    pub(super) fn copy(&self, request: &InferRequest) -> InferRequest {
        let priority = self.target.settings().priority_levels as u64;
        InferRequest { deadline: None, priority, profile: false, ..request.clone() }
    }

    /// Sends the copy and compares its answer with `answer`, which took `primary`, in the background.
    pub(super) fn compare(self, copy: InferRequest, answer: Vec<Value>, primary: Duration) {
        let Ok(place) = Arc::clone(&self.stats.places).try_acquire_owned() else {
            self.stats.skipped.fetch_add(1, Relaxed);
            return;
        };
        let Self { target, stats } = self;
        tokio::spawn(async move {
            let start = Instant::now();
            let outcome = target.infer_boxed(copy).await;
            let shadow = start.elapsed();
            match outcome.ok().and_then(|response| compare(&answer, &response.outputs)) {
                Some(difference) => stats.add(&difference, primary, shadow),
                None => {
                    stats.failed.fetch_add(1, Relaxed);
                }
            }
            drop(place);
        });
    }
}

/// How far two answers are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Difference {
    most: f64,
    rows: u64,
    disagreements: u64,
}

/// Compares two answers; `None` if they cannot be compared.
fn compare(one: &[Value], other: &[Value]) -> Option<Difference> {
    if one.len() != other.len() {
        return None;
    }
    let mut total = Difference::default();
    for (one, other) in one.iter().zip(other) {
        let difference = match (one, other) {
            (Value::Tensor(one), Value::Tensor(other)) => compare_tensors(one, other)?,
            // Sequences and maps are compared as a whole.
            (one, other) => Difference { most: 0.0, rows: 1, disagreements: u64::from(one != other) },
        };
        total.most = total.most.max(difference.most);
        total.rows += difference.rows;
        total.disagreements += difference.disagreements;
    }
    Some(total)
}

fn compare_tensors(one: &Tensor, other: &Tensor) -> Option<Difference> {
    if one.dtype() != other.dtype() || one.shape() != other.shape() {
        return None;
    }
    let (a, b) = match (floats(one), floats(other)) {
        (Some(a), Some(b)) => (a, b),
        // Classes, texts and flags: each element is a verdict of its own.
        _ => {
            let differs = |i: &usize| !same(&one.data().range(*i..i + 1), &other.data().range(*i..i + 1));
            let disagreements = (0..one.len()).filter(differs).count() as u64;
            return Some(Difference { most: 0.0, rows: one.len() as u64, disagreements });
        }
    };
    let most = a.iter().zip(&b).map(|(a, b)| distance(*a, *b)).fold(0.0, f64::max);
    let classes = one.shape().last().copied().unwrap_or(1);
    // One number per row is no choice among classes.
    let (rows, disagreements) = if classes < 2 {
        (0, 0)
    } else {
        let pairs = || a.chunks_exact(classes).zip(b.chunks_exact(classes));
        (pairs().count() as u64, pairs().filter(|(a, b)| top(a) != top(b)).count() as u64)
    };
    Some(Difference { most, rows, disagreements })
}

fn same(a: &Slice<'_>, b: &Slice<'_>) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

/// The elements of a tensor of floats.
fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    match tensor.data() {
        Slice::F32(x) => Some(x.iter().map(|&x| x.into()).collect()),
        Slice::F64(x) => Some(x.to_vec()),
        Slice::F16(x) => Some(x.iter().map(|&x| x.into()).collect()),
        Slice::BF16(x) => Some(x.iter().map(|&x| x.into()).collect()),
        _ => None,
    }
}

fn distance(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    let distance = (a - b).abs();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// The position of the largest element, the first of equal ones.
fn top(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(values: &[f32]) -> Value {
        Value::Tensor(Tensor::new(&[values.len() / 2, 2], values.to_vec()).unwrap())
    }

    fn classes(values: &[i64]) -> Value {
        Value::Tensor(Tensor::vector(values.to_vec()))
    }

    #[test]
    fn answers_are_compared_by_difference_and_by_class() {
        let found = |most, rows, disagreements| Some(Difference { most, rows, disagreements });
        for (one, other, want) in [
            (scores(&[0.0, 1.0]), scores(&[0.0, 1.0]), found(0.0, 1, 0)),
            (scores(&[0.0, 1.0, 3.0, 2.0]), scores(&[0.5, 1.0, 3.0, 4.0]), found(2.0, 2, 1)),
            (scores(&[f32::NAN, 1.0]), scores(&[f32::NAN, 1.0]), found(0.0, 1, 0)),
            (scores(&[f32::NAN, 1.0]), scores(&[0.0, 1.0]), found(f64::INFINITY, 1, 1)),
            (classes(&[1, 2, 3]), classes(&[1, 5, 3]), found(0.0, 3, 1)),
            (classes(&[1]), classes(&[1, 2]), None),
            (classes(&[1]), scores(&[1.0, 2.0]), None),
        ] {
            assert_eq!(compare(std::slice::from_ref(&one), std::slice::from_ref(&other)), want, "{one:?} {other:?}");
        }
        assert_eq!(compare(&[classes(&[1])], &[]), None);
        let both = compare(&[scores(&[1.0, 2.0]), classes(&[1])], &[scores(&[1.0, 2.5]), classes(&[0])]);
        assert_eq!(both, found(0.5, 2, 1));
    }

    #[test]
    fn what_was_compared_adds_up() {
        let stats = ShadowStats::default();
        let ms = Duration::from_millis;
        stats.add(&Difference { most: 0.5, rows: 2, disagreements: 1 }, ms(1), ms(2));
        stats.add(&Difference { most: 0.25, rows: 1, disagreements: 0 }, ms(1), ms(3));
        let mut times = [Times::default(); 2];
        for (side, spent) in [(0, 1), (0, 1), (1, 2), (1, 3)] {
            times[side].add(ms(spent));
        }
        let [primary, shadow] = times;
        assert_eq!((primary.total, shadow.total, shadow.counts.iter().sum::<u64>()), (ms(2), ms(5), 2));
        let want =
            ShadowSnapshot { compared: 2, rows: 3, disagreements: 1, difference_max: 0.5, primary, shadow, ..ShadowSnapshot::default() };
        assert_eq!(stats.snapshot(), want);
    }
}
