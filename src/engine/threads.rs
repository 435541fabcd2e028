//! How many threads one operator may use.
//!
//! Kernels never start threads. An operator that has enough work splits its output into disjoint parts and hands them to
//! [`Threads::for_each`]; the split never changes the order of a reduction, so the bits are those of one thread.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::Yield;

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// A pool of threads shared by the sessions that are given it.
pub struct Threads {
    pool: Option<Pool>,
    count: usize,
}

struct Pool {
    threads: rayon::ThreadPool,
    /// Whether a run is in the pool. One at a time: who helps it would else take up the next one whole, and the first be over no sooner.
    taken: AtomicBool,
}

thread_local! {
    /// Whether this thread is at a run, or helps one.
    static OCCUPIED: Cell<bool> = const { Cell::new(false) };
}

/// How long a thread looks for the next piece of work of a run before it lets others of the machine go first, and waits for others of the
/// run without sleeping. From operator to operator some microseconds pass; to be woken takes fifty.
const AWAKE: Duration = Duration::from_micros(100);

impl Pool {
    fn new(count: usize, name: &'static str) -> Result<Self, std::io::Error> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(move |i| format!("{name}-{i}"));
        Ok(Self { threads: builder.build().map_err(std::io::Error::other)?, taken: AtomicBool::new(false) })
    }

    /// Does `work` on one of the threads.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.threads.current_thread_index().is_none() {
            WAITS.set(WAITS.get() + 1);
        }
        self.threads.install(work)
    }

    /// Does `work` on one of the threads. As long as it takes, the others look for pieces of it if they have nothing else to do. On the
    /// calling thread if that is one of the pool, or another such work is there.
    fn run_with_help<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.threads.current_thread_index().is_some() || self.taken.swap(true, Ordering::Acquire) {
            return work();
        }
        let _taken = Taken(&self.taken);
        let others = self.threads.current_num_threads() - 1;
        self.run(|| {
            let (over, mut work, mut result) = (AtomicBool::new(false), Some(work), None);
            with_help(others, &over, &mut || {
                let _ends = Ends { over: &over, occupied: OCCUPIED.replace(true) };
                result = work.take().map(|work| work());
            });
            result.expect("the work was done once")
        })
    }

    /// Calls `work` on up to `threads` threads at once. For all types and closures this is one function: rayon is compiled once,
    /// and not for each of the hundreds of loops that are split.
    fn side_by_side(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        self.run(|| Shared { work, begun: AtomicUsize::new(0), ended: AtomicUsize::new(0) }.call(threads));
    }
}

/// Leaves the pool to the next run, also by a panic.
struct Taken<'a>(&'a AtomicBool);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Ends a run, also by a panic: who helps may go.
struct Ends<'a> {
    over: &'a AtomicBool,
    /// What [`OCCUPIED`] was before.
    occupied: bool,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        OCCUPIED.set(self.occupied);
    }
}

/// Does `work`, with as many places for threads that help.
fn with_help(places: usize, over: &AtomicBool, work: &mut (dyn FnMut() + Send)) {
    match places {
        0 => work(),
        _ => _ = rayon::join(|| with_help(places - 1, over, work), || help(over)),
    }
}

/// Looks for pieces of work until a run is over. A thread that is at a run, or helps already, and came here because it looked for a piece
/// of that, goes back at once.
fn help(over: &AtomicBool) {
    if OCCUPIED.replace(true) {
        return;
    }
    let mut worked = Instant::now();
    while !over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            worked = Instant::now();
        } else if worked.elapsed() > AWAKE {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
    OCCUPIED.set(false);
}

impl Threads {
    /// Work runs on the calling thread alone.
    pub fn single() -> Self {
        Self { pool: None, count: 1 }
    }

    /// A pool of `count` threads; with one or none, as [`Threads::single`].
    ///
    /// # Errors
    /// If the system cannot start the threads.
    pub fn new(count: usize) -> Result<Self, std::io::Error> {
        if count <= 1 {
            return Ok(Self::single());
        }
        Ok(Self { pool: Some(Pool::new(count, "engine")?), count })
    }

    /// A pool of `count` threads, at least one, for whole tasks that the calling thread is not to do itself.
    ///
    /// # Errors
    /// If the system cannot start the threads.
    pub fn background(count: usize) -> Result<Self, std::io::Error> {
        let count = count.max(1);
        Ok(Self { pool: Some(Pool::new(count, "load")?), count })
    }

    /// Does `work` on a thread of the pool, or here if there is none.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.run(work),
            None => work(),
        }
    }

    /// Does `work`, whose loops are split, on a thread of the pool while the others stay awake for them; here if there is no pool, this is
    /// one of its threads, or another such work is in it.
    pub fn run_with_help<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.run_with_help(work),
            None => work(),
        }
    }

    /// Does `work` once on each thread of the pool, or here if there is none.
    pub fn on_each(&self, work: impl Fn() + Send + Sync) {
        match &self.pool {
            Some(pool) => drop(pool.threads.broadcast(|_| work())),
            None => work(),
        }
    }

    /// Has `work` done once on each thread of the pool, when it has nothing else to do, and does not wait for that.
    pub fn on_each_later(&self, work: fn()) {
        if let Some(pool) = &self.pool {
            pool.threads.spawn_broadcast(move |_| work());
        }
    }

    /// How often the calling thread has left work to a pool that it is no part of. It slept meanwhile: its CPU time says nothing
    /// about what such work costs.
    pub fn waits() -> u64 {
        WAITS.get()
    }

    /// How many parts may run at once.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Into how many parts work of `flops` floating-point operations is worth splitting.
    ///
    /// Waking a thread takes some 10 µs, in which one core does about a million operations: less work than a few times
    /// that per part is faster alone.
    pub fn parts(&self, flops: u64) -> usize {
        const FLOPS_PER_PART: u64 = 4_000_000;
        let worth = usize::try_from(flops / FLOPS_PER_PART).unwrap_or(usize::MAX);
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
                let threads = self.count.min(most);
                let waiting = Mutex::new(items);
                // The lock is held to take an item, not while it is worked on.
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                pool.side_by_side(threads, &|| {
                    while let Some(item) = next() {
                        work(item);
                    }
                });
            }
            _ => items.for_each(work),
        }
    }
}

/// Work that several threads do.
struct Shared<'a> {
    work: &'a (dyn Fn() + Sync),
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Shared<'_> {
    /// Calls the work `times` times, on as many threads as take it up. `join` takes back what nobody took, which then finds nothing to do.
    fn call(&self, times: usize) {
        if times > 1 {
            let half = times / 2;
            rayon::join(|| self.call(times - half), || self.call(half));
            return;
        }
        /// Counts also if the work panics.
        struct Ended<'a>(&'a AtomicUsize);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Release);
            }
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        {
            let _ended = Ended(&self.ended);
            (self.work)();
        }
        // What others are at is over soon: sooner than one is woken who sleeps.
        let done = Instant::now();
        while self.ended.load(Ordering::Acquire) != self.begun.load(Ordering::Relaxed) && done.elapsed() < AWAKE {
            std::hint::spin_loop();
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

    #[test]
    fn who_leaves_work_to_a_pool_waits_and_who_is_part_of_it_does_not() {
        let threads = Threads::new(2).unwrap();
        let waits = |threads: &Threads| {
            let before = Threads::waits();
            threads.for_each(vec![1, 2], drop);
            Threads::waits() - before
        };
        assert_eq!((waits(&threads), threads.run(|| waits(&threads)), waits(&Threads::single())), (1, 0, 0));
        let before = Threads::waits();
        threads.run(|| ());
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
                        threads.run_with_help(|| {
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
    fn a_task_runs_on_a_thread_of_its_pool() {
        let threads = Threads::background(1).unwrap();
        let caller = std::thread::current().id();
        assert_ne!(threads.run(|| std::thread::current().id()), caller);
        let turns = AtomicUsize::new(0);
        threads.on_each(|| _ = turns.fetch_add(1, Ordering::Relaxed));
        assert_eq!(turns.into_inner(), 1);
        static LATER: AtomicUsize = AtomicUsize::new(0);
        Threads::new(2).unwrap().on_each_later(|| _ = LATER.fetch_add(1, Ordering::Relaxed));
        while LATER.load(Ordering::Relaxed) < 2 {
            std::thread::yield_now();
        }
        assert_eq!(Threads::single().run(|| std::thread::current().id()), caller);
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
    }
}
