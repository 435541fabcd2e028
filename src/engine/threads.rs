//! How many threads one operator may use.
//!
//! Kernels never start threads. An operator that has enough work splits its output into disjoint parts and hands them to
//! [`Threads::for_each`]; the split never changes the order of a reduction, so the bits are those of one thread.
//!
//! Who has work does it on its own thread and offers it to the others ([`Offers`]). They are awake for as long as a run lasts and a
//! little longer: to wake a thread takes some fifty microseconds, in which one core does four million operations; to share work with one
//! that is awake takes one.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kernels::offers::Offers;

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
    /// Whether this thread is at a run with help, or helps.
    static HELPED: Cell<bool> = const { Cell::new(false) };
}

/// Threads shared by the sessions that are given them. Besides the one that has work there are `count - 1`, which end with this.
pub struct Threads {
    pool: Option<Arc<Pool>>,
    count: usize,
}

/// How long a thread looks for the next piece of work before it lets others of the machine go first, and, once no run is under way, before
/// it sleeps; and how long one waits for others without sleeping. From operator to operator some microseconds pass.
const AWAKE: Duration = Duration::from_micros(100);

/// How long it looks for work at a time before it lets others go first once more: to do nothing else takes from who computes beside it on the same core.
const LOOKS: Duration = Duration::from_micros(20);

/// Pauses between two looks: some tenths of a microsecond, in which a core that two threads share is the other's.
const PAUSES: usize = 8;

/// A run of less work (operations) is over before another thread could take part.
const FLOPS_OF_A_RUN: u64 = 300_000;

/// For a run of so much work threads are woken. For less only if one run follows the other.
const FLOPS_TO_WAKE: u64 = 8_000_000;

/// Work worth a part of its own while threads are awake, and while they sleep.
const FLOPS_OF_A_PART: u64 = 150_000;
const FLOPS_OF_A_PART_ASLEEP: u64 = 4_000_000;

struct Pool {
    offers: Offers,
    /// Runs under way.
    runs: AtomicUsize,
    /// Threads that sleep, or are about to, and that nobody has woken. Changes under the lock.
    sleeping: AtomicUsize,
    rest: Mutex<Rest>,
    woken: Condvar,
    watch: Watch,
}

/// The time for which one thread stays awake though there is no run.
struct Watch {
    epoch: Instant,
    /// Nanoseconds from the epoch.
    until: AtomicU64,
    /// Whether a thread has the watch.
    taken: AtomicBool,
}

impl Watch {
    fn new() -> Self {
        Self { epoch: Instant::now(), until: AtomicU64::new(0), taken: AtomicBool::new(false) }
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.nanoseconds(now) < self.until.load(Ordering::Relaxed)
    }

    /// Whether the calling thread is to stay awake for it, which has the watch or not.
    fn stays(&self, now: Instant, has: &mut bool) -> bool {
        let due = self.is_due(now);
        if due && !*has {
            *has = !self.taken.swap(true, Ordering::Relaxed);
        } else if !due && *has {
            *has = false;
            self.taken.store(false, Ordering::Relaxed);
        }
        *has
    }
}

/// What a thread looks at before it sleeps.
struct Rest {
    closed: bool,
    /// How many were woken and have not noticed yet.
    woken: usize,
    /// When the last run ended.
    ended: Option<Instant>,
    /// What each thread is to do once before it sleeps, and which in turn this is.
    errand: (u64, fn()),
}

impl Pool {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the pool does as long as there is the pool.
    fn stay(&self) {
        HELPED.set(true);
        let (mut errands, mut watches) = (0, false);
        // When it last worked, there was last a reason to be awake, and it last let others go first.
        let [mut worked, mut wanted, mut yielded] = [Instant::now(); 3];
        loop {
            if self.offers.help() {
                [worked, wanted, yielded] = [Instant::now(); 3];
                continue;
            }
            let now = Instant::now();
            if self.runs.load(Ordering::Relaxed) > 0 || self.watch.stays(now, &mut watches) {
                wanted = now;
            }
            if now - wanted > AWAKE {
                if !self.sleep(&mut errands) {
                    return;
                }
                [worked, wanted, yielded] = [Instant::now(); 3];
            } else if now - worked > AWAKE && now - yielded > LOOKS {
                std::thread::yield_now();
                yielded = Instant::now();
            } else {
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
            }
        }
    }

    /// Does the errands that are left and sleeps until woken; false if the pool is to end.
    fn sleep(&self, errands: &mut u64) -> bool {
        let mut rest = self.rest();
        while rest.errand.0 != *errands {
            let (turn, errand) = rest.errand;
            drop(rest);
            errand();
            *errands = turn;
            rest = self.rest();
        }
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // A run, or a watch, that began meanwhile may have seen this thread awake.
        if self.runs.load(Ordering::SeqCst) > 0 || self.is_watch_free() {
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            return true;
        }
        while rest.woken == 0 && !rest.closed {
            rest = self.woken.wait(rest).unwrap_or_else(PoisonError::into_inner);
        }
        rest.woken = rest.woken.saturating_sub(1);
        !rest.closed
    }

    /// Whether there is a watch that no thread has.
    fn is_watch_free(&self) -> bool {
        self.watch.is_due(Instant::now()) && !self.watch.taken.load(Ordering::Relaxed)
    }

    /// Wakes up to `most` threads. From now on they do not count as sleeping: work may be offered to them.
    fn wake(&self, rest: &mut Rest, most: usize) {
        let count = self.sleeping.load(Ordering::SeqCst).min(most);
        self.sleeping.fetch_sub(count, Ordering::SeqCst);
        rest.woken += count;
        (0..count).for_each(|_| self.woken.notify_one());
    }

    /// Calls `work` while up to `others` threads are kept awake, or woken if that is worth it.
    fn run<T>(&self, flops: u64, others: usize, work: impl FnOnce() -> T) -> T {
        /// Ends a run, also by a panic.
        struct Run<'a>(&'a Pool);
        impl Drop for Run<'_> {
            fn drop(&mut self) {
                HELPED.set(false);
                self.0.rest().ended = Some(Instant::now());
                self.0.runs.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.runs.fetch_add(1, Ordering::SeqCst);
        HELPED.set(true);
        let _run = Run(self);
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // Under the lock nobody is between looking for runs and sleeping.
            let rest = &mut *self.rest();
            if flops >= FLOPS_TO_WAKE || rest.ended.is_some_and(|ended| ended.elapsed() < AWAKE) {
                self.wake(rest, others);
            }
        }
        work()
    }
}

impl Threads {
    /// Work runs on the calling thread alone.
    pub fn single() -> Self {
        Self { pool: None, count: 1 }
    }

    /// Up to `count` threads at a piece of work, the calling one among them; with one or none, as [`Threads::single`]. The others have the
    /// priority of who calls this.
    ///
    /// # Errors
    /// If the system cannot start the threads.
    pub fn new(count: usize) -> Result<Self, std::io::Error> {
        if count <= 1 {
            return Ok(Self::single());
        }
        let pool = Pool {
            offers: Offers::new(),
            runs: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            rest: Mutex::new(Rest { closed: false, woken: 0, ended: None, errand: (0, || ()) }),
            woken: Condvar::new(),
            watch: Watch::new(),
        };
        let threads = Self { pool: Some(Arc::new(pool)), count };
        for i in 1..count {
            let pool = threads.pool.clone().expect("it was just made");
            std::thread::Builder::new().name(format!("engine-{i}")).spawn(move || pool.stay())?;
        }
        Ok(threads)
    }

    /// Does `work` of so many operations, whose loops are split, here, while the other threads stay awake for them. A run within a run is
    /// part of it.
    pub fn run<T>(&self, flops: u64, work: impl FnOnce() -> T) -> T {
        match &self.pool {
            Some(pool) if flops >= FLOPS_OF_A_RUN && !HELPED.get() => pool.run(flops, self.count - 1, work),
            _ => work(),
        }
    }

    /// Has each thread but those that call do `errand` once before it sleeps, and does not wait for that. It takes the place of one that
    /// was not done yet.
    pub fn before_sleep(&self, errand: fn()) {
        if let Some(pool) = &self.pool {
            let mut rest = pool.rest();
            rest.errand = (rest.errand.0 + 1, errand);
            pool.wake(&mut rest, usize::MAX);
        }
    }

    /// From now on one thread besides those that call stays awake for `time`, run or not: what is asked meanwhile finds it, and the processor
    /// on which it is, awake. Replaces what was said before.
    pub fn stay_awake(&self, time: Duration) {
        let Some(pool) = &self.pool else { return };
        let until = if time.is_zero() { 0 } else { pool.watch.nanoseconds(Instant::now() + time) };
        // Not written where nothing changes: all threads read it.
        if until != pool.watch.until.load(Ordering::Relaxed) {
            pool.watch.until.store(until, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if until > 0 && pool.sleeping.load(Ordering::SeqCst) > 0 && !pool.watch.taken.load(Ordering::Relaxed) {
                pool.wake(&mut pool.rest(), 1);
            }
        }
    }

    /// How often the calling thread has slept until others were done with their part of its work: its CPU time says nothing about what
    /// such work costs.
    pub fn waits() -> u64 {
        WAITS.get()
    }

    /// How many parts may run at once.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Into how many parts work of `flops` floating-point operations is worth splitting.
    pub fn parts(&self, flops: u64) -> usize {
        let of_a_part = if HELPED.get() { FLOPS_OF_A_PART } else { FLOPS_OF_A_PART_ASLEEP };
        let worth = usize::try_from(flops / of_a_part).unwrap_or(usize::MAX);
        worth.clamp(1, self.count)
    }

    /// Calls `work` with every item, side by side where there are threads for it. What makes the items runs under a lock: it should cut
    /// slices rather than compute.
    pub fn for_each<I>(&self, items: I, work: impl Fn(I::Item) + Send + Sync)
    where
        I: IntoIterator<IntoIter: Send, Item: Send>,
    {
        let items = items.into_iter();
        let most = items.size_hint().1.unwrap_or(usize::MAX);
        match &self.pool {
            Some(pool) if most > 1 => {
                let waiting = Mutex::new(items);
                // The lock is held to take an item, not while it is worked on.
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                let others = self.count.min(most) - 1;
                self.side_by_side(pool, others, &|| {
                    while let Some(item) = next() {
                        work(item);
                    }
                });
            }
            _ => items.for_each(work),
        }
    }

    /// Does `work` here and on up to `others` threads at once. For all types and closures this is one function.
    fn side_by_side(&self, pool: &Pool, others: usize, work: &(dyn Fn() + Sync)) {
        if !HELPED.get() {
            return pool.run(u64::MAX, others, || self.side_by_side(pool, others, work));
        }
        if pool.sleeping.load(Ordering::Relaxed) == self.count - 1 {
            // They were not worth waking.
            return work();
        }
        if pool.offers.offer(work, others, AWAKE) {
            WAITS.set(WAITS.get() + 1);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            self.stay_awake(Duration::ZERO);
            pool.rest().closed = true;
            pool.woken.notify_all();
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({})", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until nobody is awake, nor ended a run a moment ago.
    fn until_asleep(threads: &Threads) {
        let pool = threads.pool.as_ref().unwrap();
        while pool.sleeping.load(Ordering::Relaxed) < threads.count - 1 {
            std::thread::yield_now();
        }
        std::thread::sleep(2 * AWAKE);
    }

    /// Work is offered to who was just woken for it.
    #[test]
    fn who_sleeps_until_others_are_done_counts_it() {
        let threads = Threads::new(2).unwrap();
        until_asleep(&threads);
        let (before, owner) = (Threads::waits(), std::thread::current().id());
        let begun = AtomicUsize::new(0);
        threads.for_each(0..2, |_: usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            match std::thread::current().id() == owner {
                true => {
                    while begun.load(Ordering::Relaxed) < 2 {
                        std::hint::spin_loop();
                    }
                }
                false => std::thread::sleep(100 * AWAKE),
            }
        });
        assert_eq!(Threads::waits() - before, 1);
        threads.for_each(0..1, |_: usize| ());
        Threads::single().for_each(0..2, |_: usize| ());
        assert_eq!(Threads::waits() - before, 1);
    }

    #[test]
    fn every_item_is_worked_on_once() {
        for count in [0, 1, 2] {
            let sum = AtomicUsize::new(0);
            Threads::new(count).unwrap().for_each(1..=100, |i: usize| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 5050);
        }
    }

    /// Pieces of several runs, and of loops within loops, one behind the other while threads are still awake and after they sleep.
    #[test]
    fn runs_side_by_side_share_the_threads() {
        let threads = Threads::new(3).unwrap();
        std::thread::scope(|scope| {
            for run in 0..4 {
                let threads = &threads;
                scope.spawn(move || {
                    for round in 0..200 {
                        let sum = AtomicUsize::new(0);
                        threads.run(u64::MAX, || {
                            threads.for_each(0..5, |i: usize| {
                                threads.for_each(0..3, |j: usize| _ = sum.fetch_add(10 * i + j, Ordering::Relaxed));
                            });
                        });
                        assert_eq!(sum.into_inner(), 3 * 100 + 5 * 3);
                        if (round + run) % 50 == 0 {
                            std::thread::sleep(3 * AWAKE);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_run_is_done_by_who_calls_and_small_ones_wake_nobody() {
        let threads = Threads::new(2).unwrap();
        let pool = threads.pool.as_ref().unwrap();
        let asleep = || pool.sleeping.load(Ordering::Relaxed) == 1;
        until_asleep(&threads);
        let caller = std::thread::current().id();
        let run = |flops| {
            threads.run(flops, || {
                let mut others = AtomicUsize::new(0);
                threads.for_each(0..100, |_: usize| {
                    _ = others.fetch_add(usize::from(std::thread::current().id() != caller), Ordering::Relaxed)
                });
                (std::thread::current().id() == caller, *others.get_mut(), asleep())
            })
        };
        assert_eq!(run(FLOPS_OF_A_RUN), (true, 0, true), "not woken for so little");
        let soon = |what: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(10));
            }
        };
        // One run follows the other.
        soon(&|| !run(FLOPS_OF_A_RUN).2);
        until_asleep(&threads);
        soon(&|| run(FLOPS_TO_WAKE).1 > 0);
    }

    #[test]
    fn errands_are_done_once_by_each_thread_before_it_sleeps() {
        static DONE: AtomicUsize = AtomicUsize::new(0);
        let threads = Threads::new(3).unwrap();
        threads.before_sleep(|| _ = DONE.fetch_add(1, Ordering::Relaxed));
        while DONE.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        threads.for_each(0..10, |_: usize| ());
        std::thread::sleep(10 * AWAKE);
        assert_eq!(DONE.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn one_thread_stays_awake_for_as_long_as_it_is_told() {
        let threads = Threads::new(3).unwrap();
        let pool = threads.pool.as_ref().unwrap();
        let asleep = || pool.sleeping.load(Ordering::Relaxed);
        until_asleep(&threads);
        threads.stay_awake(Duration::from_secs(3600));
        std::thread::sleep(10 * AWAKE);
        assert_eq!(asleep(), 1);
        // It is among those that a run finds, and stays behind it.
        threads.for_each(0..10, |_: usize| ());
        while asleep() == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(10 * AWAKE);
        assert_eq!(asleep(), 1);
        threads.stay_awake(Duration::ZERO);
        until_asleep(&threads);
        // And by itself when the time is over.
        threads.stay_awake(10 * AWAKE);
        until_asleep(&threads);
        Threads::single().stay_awake(AWAKE);
    }

    #[test]
    fn threads_end_with_their_pool() {
        let threads = Threads::new(3).unwrap();
        let pool = Arc::downgrade(threads.pool.as_ref().unwrap());
        threads.for_each(0..10, |_: usize| ());
        threads.stay_awake(Duration::from_secs(3600));
        drop(threads);
        while pool.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_of_one_item_is_that_of_the_caller_and_leaves_the_pool_usable() {
        let threads = Threads::new(2).unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.for_each(0..10, |i: usize| assert_ne!(i, 3));
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        threads.for_each(vec![1, 2, 3], |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 6);
    }

    #[test]
    fn small_work_is_not_split() {
        let threads = Threads::new(2).unwrap();
        assert_eq!(threads.parts(100), 1);
        assert_eq!(threads.parts(1 << 40), 2);
        let flops = 2 * FLOPS_OF_A_PART;
        assert_eq!((threads.parts(flops), threads.run(u64::MAX, || threads.parts(flops))), (1, 2), "while threads are awake it is sooner");
    }
}
