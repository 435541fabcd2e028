//! How many threads one operator may use.
//!
//! Kernels never start threads. An operator that has enough work splits its output into disjoint parts and hands them to
//! [`Threads::for_each`]; the split never changes the order of a reduction, so the bits are those of one thread.

use std::cell::Cell;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// A pool of threads shared by the sessions that are given it.
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
    count: usize,
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
        let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("engine-{i}"));
        let pool = builder.build().map_err(std::io::Error::other)?;
        Ok(Self { pool: Some(pool), count })
    }

    /// A pool of `count` threads, at least one, for whole tasks that the calling thread is not to do itself.
    ///
    /// # Errors
    /// If the system cannot start the threads.
    pub fn background(count: usize) -> Result<Self, std::io::Error> {
        let count = count.max(1);
        let builder = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("load-{i}"));
        let pool = builder.build().map_err(std::io::Error::other)?;
        Ok(Self { pool: Some(pool), count })
    }

    /// Does `work` on a thread of the pool, or here if there is none.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Does `work` once on each thread of the pool, or here if there is none.
    pub fn on_each(&self, work: impl Fn() + Send + Sync) {
        match &self.pool {
            Some(pool) => drop(pool.broadcast(|_| work())),
            None => work(),
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
                side_by_side(pool, threads, &|| {
                    while let Some(item) = next() {
                        work(item);
                    }
                });
            }
            _ => items.for_each(work),
        }
    }
}

/// Calls `work` on up to `threads` threads at once. For all types and closures this is one function: rayon is compiled once,
/// and not for each of the hundreds of loops that are split.
fn side_by_side(pool: &rayon::ThreadPool, threads: usize, work: &(dyn Fn() + Sync)) {
    if pool.current_thread_index().is_none() {
        WAITS.set(WAITS.get() + 1);
    }
    pool.install(|| (0..threads).into_par_iter().with_max_len(1).for_each(|_| work()));
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({})", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn who_leaves_work_to_a_pool_waits_and_who_is_part_of_it_does_not() {
        let threads = Threads::new(2).unwrap();
        let waits = |threads: &Threads| {
            let before = Threads::waits();
            threads.for_each(vec![1, 2], drop);
            Threads::waits() - before
        };
        assert_eq!((waits(&threads), threads.run(|| waits(&threads)), waits(&Threads::single())), (1, 0, 0));
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

    #[test]
    fn a_task_runs_on_a_thread_of_its_pool() {
        let threads = Threads::background(1).unwrap();
        let caller = std::thread::current().id();
        assert_ne!(threads.run(|| std::thread::current().id()), caller);
        let turns = AtomicUsize::new(0);
        threads.on_each(|| _ = turns.fetch_add(1, Ordering::Relaxed));
        assert_eq!(turns.into_inner(), 1);
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
