//! Counters of one model's queue and workers, cheap enough to update on every request.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram of rows per forward pass.
pub const ROWS_BUCKETS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Counters since the model was loaded.
#[derive(Debug, Default)]
pub struct Stats {
    rows_buckets: [AtomicU64; ROWS_BUCKETS.len() + 1],
    rows: AtomicU64,
    compute_ns: AtomicU64,
    inline: AtomicU64,
    waiting: AtomicU64,
    cancelled: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Forward passes with at most [`ROWS_BUCKETS`]`[i]` rows and more than the bucket before; the last entry counts the rest.
    pub batches_by_rows: [u64; ROWS_BUCKETS.len() + 1],
    /// Rows of all forward passes.
    pub rows: u64,
    /// Time of all forward passes.
    pub compute: Duration,
    /// Forward passes that ran on the calling thread, without the queue.
    pub inline: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Requests whose client went away, or whose deadline passed, before they ran.
    pub cancelled: u64,
}

impl StatsSnapshot {
    /// Forward passes.
    pub fn batches(&self) -> u64 {
        self.batches_by_rows.iter().sum()
    }
}

impl Stats {
    pub(super) fn batch(&self, rows: usize, compute: Duration, inline: bool) {
        let rows = rows as u64;
        let bucket = ROWS_BUCKETS.partition_point(|&bound| bound < rows);
        self.rows_buckets[bucket].fetch_add(1, Relaxed);
        self.rows.fetch_add(rows, Relaxed);
        self.compute_ns.fetch_add(u64::try_from(compute.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        if inline {
            self.inline.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting as u64, Relaxed);
    }

    pub(super) fn cancelled(&self, count: usize) {
        self.cancelled.fetch_add(count as u64, Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            batches_by_rows: std::array::from_fn(|i| self.rows_buckets[i].load(Relaxed)),
            rows: self.rows.load(Relaxed),
            compute: Duration::from_nanos(self.compute_ns.load(Relaxed)),
            inline: self.inline.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_counted_in_the_bucket_of_its_rows() {
        let stats = Stats::default();
        for rows in [1, 2, 3, 64, 65, 5000] {
            stats.batch(rows, Duration::from_millis(1), rows == 1);
        }
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.batches_by_rows, [1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1]);
        assert_eq!((snapshot.batches(), snapshot.rows, snapshot.inline), (6, 5135, 1));
        assert_eq!(snapshot.compute, Duration::from_millis(6));
    }
}
