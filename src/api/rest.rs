//! Memory that goes back to the system when no requests come any more. A thread's part of the allocator keeps what it has freed until
//! the thread allocates again, and only the thread itself can give it back: what a burst of requests left in the threads that read
//! them would stay until the next one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use super::App;
use crate::engine::release_memory;

/// How often it is looked whether requests came.
const LOOK: Duration = Duration::from_secs(1);

/// Lets each thread of the runtime, and of the engine, give back its memory at the first look that sees no request behind one that saw
/// some. Never ends.
pub(super) async fn watch(app: App) {
    let counts = &app.shared.counts;
    let (mut seen, mut rested) = (0, false);
    loop {
        tokio::time::sleep(LOOK).await;
        let accepted = counts.accepted();
        if accepted != seen {
            (seen, rested) = (accepted, false);
        } else if !rested {
            rested = true;
            app.shared.repository.release_memory();
            on_every_worker(release_memory).await;
        }
    }
}

/// Calls `f` once on every worker thread of this runtime, or on as many as take up a task in due time: one that is blocked does not.
async fn on_every_worker(f: fn()) {
    const TRIES: usize = 100;
    const PAUSE: Duration = Duration::from_millis(2);
    /// How long a thread is kept from the next task, so that another takes it; a request waits no longer than that for it.
    const HOLD: Duration = Duration::from_micros(100);
    let workers = tokio::runtime::Handle::current().metrics().num_workers();
    let done: Arc<Mutex<HashSet<ThreadId>>> = Arc::default();
    let count = |done: &Mutex<HashSet<ThreadId>>| done.lock().unwrap_or_else(PoisonError::into_inner).len();
    // Which thread takes a task is the runtime's choice: while one is held, others are woken for the rest.
    for _ in 0..TRIES {
        for _ in 0..workers {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let first = done.lock().unwrap_or_else(PoisonError::into_inner).insert(std::thread::current().id());
                if first {
                    f();
                }
                std::thread::sleep(HOLD);
            });
        }
        tokio::time::sleep(PAUSE).await;
        if count(&done) == workers {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn every_worker_is_reached() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        fn call() {
            CALLS.fetch_add(1, Relaxed);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().expect("threads");
        runtime.block_on(async { tokio::spawn(on_every_worker(call)).await }).expect("no panic");
        assert_eq!(CALLS.load(Relaxed), 4);
    }
}
