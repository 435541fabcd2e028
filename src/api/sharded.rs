//! Counts that each thread adds to in a place of its own, and that are added up when somebody reads them.
//!
//! An atomic that every request adds to moves between the processors' caches with each of them; a histogram is four. A lock that
//! only one thread takes, but for a reader now and then, costs a fraction of that.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Threads beyond so many share places.
const PLACES: usize = 16;

/// A place fills whole lines of the cache, in pairs as processors fetch them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place<T>(Mutex<T>);

/// Counts by thread.
#[derive(Debug)]
pub(super) struct Sharded<T>(Box<[Place<T>]>);

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Place::default()).collect())
    }
}

impl<T> Sharded<T> {
    /// Adds to the calling thread's counts.
    pub(super) fn add(&self, add: impl FnOnce(&mut T)) {
        add(&mut self.0[place()].0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Calls `read` with the counts of each place.
    pub(super) fn each(&self, mut read: impl FnMut(&T)) {
        for place in &self.0 {
            read(&place.0.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// The calling thread's place.
fn place() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Relaxed) % PLACES;
    }
    OWN.with(|own| *own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_threads() {
        let counts = Sharded::<u64>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * PLACES {
                scope.spawn(|| (0..100).for_each(|_| counts.add(|count| *count += 1)));
            }
        });
        let mut sum = 0;
        counts.each(|count| sum += count);
        assert_eq!(sum, 200 * PLACES as u64);
    }
}
