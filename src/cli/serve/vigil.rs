//! Staying awake between the requests of one client.
//!
//! A processor that has nothing to do halts, and in a virtual machine it takes tens of microseconds until it runs again. A client that asks
//! one request behind the other halts two at each: the server's when it has answered, its own when it waits. While requests come so, one
//! thread of the engine stays awake between them; the system then wakes client and server beside it on a processor that runs already.
//! Where several ask, processors do not halt, and the thread would take time from who answers: it sleeps.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Watches the threads that read requests: from when the first gets up until none has anything to do is a period.
pub(super) struct Vigil {
    /// How long after an answer the next request is waited for.
    spin: Duration,
    /// Has somebody stay awake for so long from now on; with zero, no longer.
    stay_awake: Box<dyn Fn(Duration) + Send + Sync>,
    answered: Arc<AtomicU64>,
    /// Threads that are up.
    up: AtomicUsize,
    last: Mutex<Last>,
}

/// What was last seen.
struct Last {
    /// When the period began.
    began: Instant,
    /// When the last one ended in which there was an answer.
    ended: Instant,
    /// Answers until then.
    answered: u64,
}

impl Vigil {
    /// Watches `count` threads that are up, whose answers are counted in `answered`.
    pub(super) fn new(
        spin: Duration,
        count: usize,
        answered: Arc<AtomicU64>,
        stay_awake: impl Fn(Duration) + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        let last = Mutex::new(Last { began: now, ended: now, answered: 0 });
        Self { spin, stay_awake: Box::new(stay_awake), answered, up: AtomicUsize::new(count), last }
    }

    /// A thread has something to do again.
    pub(super) fn gets_up(&self) {
        self.gets_up_at(Instant::now());
    }

    /// A thread has nothing more to do.
    pub(super) fn lies_down(&self) {
        self.lies_down_at(Instant::now());
    }

    fn gets_up_at(&self, now: Instant) {
        match self.up.fetch_add(1, Relaxed) {
            0 => self.last.lock().unwrap_or_else(PoisonError::into_inner).began = now,
            _ => (self.stay_awake)(Duration::ZERO),
        }
    }

    fn lies_down_at(&self, now: Instant) {
        if self.up.fetch_sub(1, Relaxed) != 1 {
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut last.answered, self.answered.load(Relaxed));
        if last.answered == before {
            // A part of a request, or one that a worker has now.
            return;
        }
        let follows = last.began.saturating_duration_since(last.ended) <= self.spin;
        last.ended = now;
        if follows && last.answered == before + 1 {
            drop(last);
            (self.stay_awake)(self.spin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [Duration; 0] = [];
    const SPIN: Duration = Duration::from_micros(500);

    /// A vigil of two threads, both at rest; the answers; what was asked for.
    struct Watched {
        vigil: Vigil,
        answered: Arc<AtomicU64>,
        asked: Arc<Mutex<Vec<Duration>>>,
        now: Instant,
    }

    impl Watched {
        fn new() -> Self {
            let (answered, asked) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<Duration>>>::default());
            let seen = Arc::clone(&asked);
            let vigil = Vigil::new(SPIN, 2, Arc::clone(&answered), move |time| seen.lock().unwrap().push(time));
            let now = Instant::now();
            vigil.lies_down_at(now);
            vigil.lies_down_at(now);
            Self { vigil, answered, asked, now }
        }

        /// A period of a thread that begins `gap` after the last and has so many answers; what was asked for in it.
        fn period(&mut self, gap: Duration, answers: u64) -> Vec<Duration> {
            self.now += gap;
            self.vigil.gets_up_at(self.now);
            self.answered.fetch_add(answers, Relaxed);
            self.now += Duration::from_micros(20);
            self.vigil.lies_down_at(self.now);
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    #[test]
    fn a_request_soon_after_the_last_is_waited_for() {
        let mut watched = Watched::new();
        assert_eq!(watched.period(10 * SPIN, 1), NOTHING);
        assert_eq!(watched.period(SPIN, 1), [SPIN]);
        assert_eq!(watched.period(SPIN / 2, 1), [SPIN]);
        assert_eq!(watched.period(2 * SPIN, 1), NOTHING, "it did not come in time");
    }

    #[test]
    fn a_request_in_two_parts_is_one() {
        let mut watched = Watched::new();
        watched.period(SPIN, 1);
        assert_eq!(watched.period(SPIN, 0), NOTHING);
        assert_eq!(watched.period(SPIN / 2, 1), NOTHING, "the last answer is longer ago");
        watched.period(SPIN / 4, 0);
        assert_eq!(watched.period(SPIN / 4, 1), [SPIN]);
    }

    #[test]
    fn nobody_stays_awake_where_several_ask() {
        let mut watched = Watched::new();
        assert_eq!(watched.period(SPIN / 2, 1), [SPIN]);
        assert_eq!(watched.period(SPIN / 2, 2), NOTHING);
        watched.vigil.gets_up_at(watched.now);
        watched.vigil.gets_up_at(watched.now);
        assert_eq!(*watched.asked.lock().unwrap(), [Duration::ZERO]);
        watched.vigil.lies_down_at(watched.now);
        watched.vigil.lies_down_at(watched.now);
        assert_eq!(*watched.asked.lock().unwrap(), [Duration::ZERO]);
    }
}
