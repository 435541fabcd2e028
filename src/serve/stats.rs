//! Counters of one version's queue and workers, as Triton's statistics extension and the metrics want them.
//!
//! One lock is taken per forward pass, whatever it carried, so that all that is counted of it is seen together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::batcher::Reason;
use crate::engine::RunTime;
use crate::explain::Method;

/// Upper bounds of the histogram of rows per forward pass.
pub const ROWS_BUCKETS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Upper bounds of histograms of time in seconds: from parsing a few numbers to a large model on one core.
pub const SECONDS_BUCKETS: [f64; 20] = [
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];

/// A histogram of times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Times of at most [`SECONDS_BUCKETS`]`[i]` seconds and more than the bucket before; the last entry counts the rest.
    pub counts: [u64; SECONDS_BUCKETS.len() + 1],
    /// All of them together.
    pub total: Duration,
}

impl std::ops::AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.total += other.total;
    }
}

impl Times {
    /// Counts one time.
    pub fn add(&mut self, time: Duration) {
        self.counts[SECONDS_BUCKETS.partition_point(|&bound| bound < time.as_secs_f64())] += 1;
        self.total += time;
    }
}

/// How often something happened and how long it took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// How long, all of them together.
    pub time: Duration,
}

impl Tally {
    fn add(&mut self, time: Duration) {
        self.add_many(1, time);
    }

    /// `count` times `time` each.
    fn add_many(&mut self, count: u64, time: Duration) {
        self.count += count;
        self.time = self.time.saturating_add(time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    /// The time in nanoseconds, as the statistics extension writes it.
    pub fn ns(&self) -> u64 {
        u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Where the time of forward passes of one size, or of requests, went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputeTally {
    /// Gathering the rows of several requests.
    pub input: Tally,
    /// The operators.
    pub infer: Tally,
    /// Taking the outputs apart.
    pub output: Tally,
}

impl ComputeTally {
    fn add_many(&mut self, count: u64, time: &RunTime) {
        self.input.add_many(count, time.input);
        self.infer.add_many(count, time.infer);
        self.output.add_many(count, time.output);
    }
}

/// Why a request that was meant for the model failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailReason {
    /// The queue was full, or the deadline could not be met.
    Rejected,
    /// The deadline passed while the request waited, or its client went away.
    Canceled,
    /// The forward pass failed.
    Backend,
    /// It did not fit the model, or the model was being unloaded.
    Other,
}

impl FailReason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The name that Triton's metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// The counters at one moment, since the version was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Requests that were answered, from entering [`Handle::infer`](super::Handle::infer) to the answer.
    pub success: Tally,
    /// Requests that failed, likewise.
    pub fail: Tally,
    /// Of these, how many for each [`FailReason`].
    pub failed: [u64; FailReason::ALL.len()],
    /// Waiting, per answered request.
    pub queue: Tally,
    /// Computing, per answered request: each counts the whole pass that it had a part in.
    pub compute: ComputeTally,
    /// Rows that were answered.
    pub inference_count: u64,
    /// Forward passes that did not fail.
    pub execution_count: u64,
    /// When the last of them ended.
    pub last_inference: Option<SystemTime>,
    /// Per number of rows: those of them that had so many.
    pub batch_stats: BTreeMap<usize, ComputeTally>,
    /// Forward passes, those that failed included, by [`Reason`] in the order of [`Reason::ALL`].
    pub dispatched: [u64; Reason::ALL.len()],
    /// Forward passes with at most [`ROWS_BUCKETS`]`[i]` rows and more than the bucket before; the last entry counts the rest.
    pub batches_by_rows: [u64; ROWS_BUCKETS.len() + 1],
    /// Rows of all forward passes.
    pub rows: u64,
    /// Time of all forward passes.
    pub compute_time: Duration,
    /// Forward passes that ran on the calling thread, without the queue.
    pub inline: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Requests whose client went away before they ran.
    pub cancelled: u64,
    /// Requests whose deadline passed while they waited.
    pub expired: u64,
    /// Requests refused because the queue was full.
    pub refused_full: u64,
    /// Requests refused because their deadline could not be met.
    pub refused_late: u64,
    /// Answered requests for explanations, by [`Method`] in the order of [`Method::ALL`].
    pub explained: [u64; Method::ALL.len()],
    /// Passes of explanations, which are counted nowhere else.
    pub explain_passes: u64,
    /// Their rows.
    pub explain_rows: u64,
    /// Their time.
    pub explain_time: Duration,
}

impl StatsSnapshot {
    /// Forward passes.
    pub fn batches(&self) -> u64 {
        self.batches_by_rows.iter().sum()
    }

    /// Forward passes that were dispatched for `reason`.
    pub fn dispatched(&self, reason: Reason) -> u64 {
        self.dispatched[reason as usize]
    }

    /// Answered requests for explanations by `method`.
    pub fn explained(&self, method: Method) -> u64 {
        self.explained[method as usize]
    }

    /// Requests that failed for `reason`.
    pub fn failed(&self, reason: FailReason) -> u64 {
        self.failed[reason as usize]
    }
}

/// One forward pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    pub(super) rows: usize,
    pub(super) time: RunTime,
    pub(super) reason: Reason,
}

/// Counters since the version was loaded.
#[derive(Debug, Default)]
pub struct Stats {
    counts: Mutex<StatsSnapshot>,
    /// Beside the lock: written under the queue's.
    waiting: AtomicU64,
    passes: AtomicU64,
}

impl Stats {
    fn lock(&self) -> MutexGuard<'_, StatsSnapshot> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the forward pass that begins.
    pub(super) fn next_pass(&self) -> u64 {
        self.passes.fetch_add(1, Relaxed)
    }

    /// Counts a forward pass and, if it did not fail, its requests: how long each waited, and from when to when it was there.
    pub(super) fn pass(&self, pass: &Pass, answered: Option<&[Answered]>) {
        let mut counts = self.lock();
        let bucket = ROWS_BUCKETS.partition_point(|&bound| bound < pass.rows as u64);
        counts.batches_by_rows[bucket] += 1;
        counts.rows += pass.rows as u64;
        counts.compute_time += pass.time.total();
        counts.inline += u64::from(pass.reason == Reason::Inline);
        counts.dispatched[pass.reason as usize] += 1;
        let Some(answered) = answered else { return };
        counts.execution_count += 1;
        counts.batch_stats.entry(pass.rows).or_default().add_many(1, &pass.time);
        counts.last_inference = Some(SystemTime::now());
        counts.compute.add_many(answered.len() as u64, &pass.time);
        counts.inference_count += pass.rows as u64;
        for request in answered {
            counts.queue.add(request.queue);
            counts.success.add(request.total);
        }
    }

    /// Counts an answered request for explanations.
    pub(super) fn explanation(&self, method: Method) {
        self.lock().explained[method as usize] += 1;
    }

    /// Counts a pass of explanations.
    pub(super) fn explain_pass(&self, rows: usize, time: Duration) {
        let mut counts = self.lock();
        counts.explain_passes += 1;
        counts.explain_rows += rows as u64;
        counts.explain_time += time;
    }

    /// Counts a request that failed.
    pub(super) fn fail(&self, reason: FailReason, took: Duration) {
        let mut counts = self.lock();
        counts.fail.add(took);
        counts.failed[reason as usize] += 1;
    }

    /// Counts a request that was refused at once: for a full queue, or a deadline that could not be met.
    pub(super) fn refused(&self, late: bool) {
        let mut counts = self.lock();
        if late {
            counts.refused_late += 1;
        } else {
            counts.refused_full += 1;
        }
    }

    pub(super) fn cancelled(&self) {
        self.lock().cancelled += 1;
    }

    pub(super) fn expired(&self, count: usize) {
        self.lock().expired += count as u64;
    }

    pub(super) fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting as u64, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let mut snapshot = self.lock().clone();
        snapshot.waiting = self.waiting.load(Relaxed);
        snapshot
    }
}

/// What is counted of a request that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) queue: Duration,
    pub(super) total: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(rows: usize, reason: Reason) -> Pass {
        let ms = Duration::from_millis;
        Pass { rows, time: RunTime { input: ms(1), infer: ms(5), output: ms(2), started: None }, reason }
    }

    #[test]
    fn a_pass_is_counted_once_and_its_time_for_each_of_its_requests() {
        let stats = Stats::default();
        let ms = Duration::from_millis;
        stats.pass(&pass(6, Reason::Full), Some(&[Answered { queue: ms(3), total: ms(12) }, Answered { queue: ms(1), total: ms(10) }]));
        stats.pass(&pass(1, Reason::Inline), None);
        stats.fail(FailReason::Backend, ms(9));
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.success, snapshot.fail), (Tally { count: 2, time: ms(22) }, Tally { count: 1, time: ms(9) }));
        assert_eq!(snapshot.queue, Tally { count: 2, time: ms(4) });
        assert_eq!((snapshot.compute.infer, snapshot.compute.output.ns()), (Tally { count: 2, time: ms(10) }, 4_000_000));
        assert_eq!((snapshot.inference_count, snapshot.execution_count, snapshot.rows, snapshot.inline), (6, 1, 7, 1));
        assert_eq!(snapshot.compute_time, ms(16));
        assert_eq!(snapshot.batch_stats.keys().copied().collect::<Vec<_>>(), [6]);
        assert_eq!(snapshot.batch_stats[&6].infer, Tally { count: 1, time: ms(5) });
        assert_eq!((snapshot.dispatched(Reason::Full), snapshot.dispatched(Reason::Inline), snapshot.dispatched(Reason::Delay)), (1, 1, 0));
        assert_eq!((snapshot.failed(FailReason::Backend), snapshot.failed(FailReason::Rejected)), (1, 0));
        assert!(snapshot.last_inference.is_some());
    }

    #[test]
    fn a_batch_is_counted_in_the_bucket_of_its_rows() {
        let stats = Stats::default();
        for rows in [1, 2, 3, 64, 65, 5000] {
            stats.pass(&pass(rows, Reason::Idle), None);
        }
        assert_eq!(stats.snapshot().batches_by_rows, [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1]);
    }
}
