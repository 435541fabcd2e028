//! A task that is woken while it is polled is polled again at once.
//!
//! hyper asks for the body of a request by a channel within the connection's own task, which so wakes itself. The runtime puts such a task
//! into its queue and wakes another thread to share the work; that one finds nothing, or takes the connection away from the processor that has read it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel};
use std::task::{Context, Poll, Wake, Waker};

/// Polls in a row. Further ones are left to the runtime, so that other tasks get their turn.
const POLLS: usize = 2;

/// Bits of the state: the future is being polled; it was woken since that began.
const POLLED: u8 = 1;
const WOKEN: u8 = 2;

/// The future with a waker of its own.
pub(super) struct Again<F> {
    future: Pin<Box<F>>,
    waker: Option<(Arc<Wakes>, Waker)>,
}

/// What the future wakes.
struct Wakes {
    state: AtomicU8,
    task: Waker,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, AcqRel) & POLLED == 0 {
            self.task.wake_by_ref();
        }
    }
}

impl<F> Again<F> {
    pub(super) fn new(future: F) -> Self {
        Self { future: Box::pin(future), waker: None }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, waker } = &mut *self;
        if waker.as_ref().is_none_or(|(wakes, _)| !wakes.task.will_wake(cx.waker())) {
            let wakes = Arc::new(Wakes { state: AtomicU8::new(0), task: cx.waker().clone() });
            *waker = Some((Arc::clone(&wakes), wakes.into()));
        }
        let (wakes, waker) = waker.as_ref().expect("it was just made");
        let mut own = Context::from_waker(waker);
        for _ in 0..POLLS {
            // Not a store: what was written before it was woken is to be seen.
            wakes.state.swap(POLLED, AcqRel);
            if let Poll::Ready(output) = future.as_mut().poll(&mut own) {
                return Poll::Ready(output);
            }
            if wakes.state.fetch_and(!POLLED, AcqRel) & WOKEN == 0 {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// How often the task of the future was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// A future that wakes itself in the first `times` polls and ends in the one behind `last`; how often it was polled, and its waker.
    fn restless(times: usize, last: usize) -> (Again<impl Future<Output = ()>>, Arc<AtomicUsize>, Arc<Mutex<Option<Waker>>>) {
        let (polls, kept) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Option<Waker>>>::default());
        let (counted, keep) = (Arc::clone(&polls), Arc::clone(&kept));
        let future = poll_fn(move |cx| {
            let poll = counted.fetch_add(1, Relaxed);
            *keep.lock().unwrap() = Some(cx.waker().clone());
            if poll < times {
                cx.waker().wake_by_ref();
            }
            if poll < last { Poll::Pending } else { Poll::Ready(()) }
        });
        (Again::new(future), polls, kept)
    }

    /// Whether the future waits, when it is polled by the task that `woken` counts.
    fn waits(future: &mut Again<impl Future<Output = ()>>, woken: &Arc<Woken>) -> bool {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(woken)))).is_pending()
    }

    #[test]
    fn who_wakes_itself_is_polled_again_and_nobody_else_is_woken() {
        let woken = Arc::new(Woken::default());
        let (mut future, polls, waker) = restless(1, 2);
        assert!(waits(&mut future, &woken));
        assert_eq!((polls.load(Relaxed), woken.0.load(Relaxed)), (2, 0));
        // What comes from elsewhere wakes the task.
        let waker = waker.lock().unwrap().take().unwrap();
        waker.wake_by_ref();
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(!waits(&mut future, &woken));
    }

    #[test]
    fn who_wakes_itself_again_and_again_waits_for_its_turn() {
        let woken = Arc::new(Woken::default());
        let (mut future, polls, _) = restless(5, 4);
        assert!(waits(&mut future, &woken));
        assert_eq!((polls.load(Relaxed), woken.0.load(Relaxed)), (POLLS, 1));
    }

    #[test]
    fn another_task_is_woken_from_then_on() {
        let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let (mut future, _, waker) = restless(0, 9);
        for woken in [&first, &second] {
            assert!(waits(&mut future, woken));
        }
        waker.lock().unwrap().take().unwrap().wake();
        assert_eq!((first.0.load(Relaxed), second.0.load(Relaxed)), (0, 1));
    }
}
