//! The queue between the requests of a model and its workers: the pure batcher behind a lock.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batcher::{Batcher, Job, Limits, Poll, Reason};
use super::request::InferResponse;
use super::stats::{FailReason, Stats};
use crate::engine::Tensor;
use crate::error::{Error, Kind};
use crate::trace::PassNote;

/// An error, and as what it is counted.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) reason: FailReason,
    pub(super) error: Error,
}

impl Failed {
    pub(super) fn because(reason: FailReason) -> impl Fn(Error) -> Self {
        move |error| Self { reason, error }
    }
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) inputs: Vec<Tensor>,
    pub(super) overrides: Vec<(usize, Tensor)>,
    /// Whether to time every operator; such a request is alone in its class.
    pub(super) profile: bool,
    /// Where to note the pass, if somebody looks.
    pub(super) note: Option<PassNote>,
    pub(super) reply: oneshot::Sender<Result<InferResponse, Failed>>,
}

/// What a request says of itself when it enters the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) rows: usize,
    pub(super) class: u64,
    pub(super) deadline: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    limits: Limits,
    stats: Arc<Stats>,
}

#[derive(Debug)]
struct State {
    batcher: Batcher<Payload>,
    next_id: u64,
    closed: bool,
    /// Workers that wait for a job.
    idle: usize,
    /// When a worker last took a batch.
    progress: Instant,
}

impl Queue {
    pub(super) fn new(limits: Limits, stats: Arc<Stats>) -> Self {
        let state = State { batcher: Batcher::new(limits), next_id: 0, closed: false, idle: 0, progress: Instant::now() };
        Self { state: Mutex::new(state), wake: Condvar::new(), limits, stats }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request and returns its identity for [`Queue::cancel`].
    pub(super) fn push(&self, ticket: Ticket, payload: Payload) -> Result<u64, Failed> {
        let mut state = self.lock();
        if state.closed {
            return Err(Failed { reason: FailReason::Other, error: Error::new(Kind::Unavailable, "the model is being unloaded") });
        }
        let id = state.next_id;
        let Ticket { rows, class, deadline } = ticket;
        let job = Job { id, rows, class, arrived: Instant::now(), deadline, payload };
        if state.batcher.push(job).is_err() {
            self.stats.refused(false);
            let limit = self.limits.queue_limit;
            let message = format!("Exceeds maximum queue size: {limit} requests are waiting for the model");
            return Err(Failed { reason: FailReason::Rejected, error: Error::new(Kind::Overloaded, message) });
        }
        state.next_id += 1;
        self.stats.set_waiting(state.batcher.len());
        if state.idle > 0 {
            drop(state);
            self.wake.notify_one();
        }
        Ok(id)
    }

    /// Frees the place of a request whose client no longer waits: it went away or, if `expired`, its deadline passed.
    pub(super) fn cancel(&self, id: u64, expired: bool) {
        let mut state = self.lock();
        if state.batcher.cancel(id).is_some() {
            if expired {
                self.stats.expired(1)
            } else {
                self.stats.cancelled()
            }
            self.stats.set_waiting(state.batcher.len());
        }
    }

    /// Blocks until there is a batch to run; `None` once the queue is closed and empty.
    pub(super) fn next(&self) -> Option<(Vec<Job<Payload>>, Reason)> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let late = state.batcher.expire(now);
            if !late.is_empty() {
                self.stats.expired(late.len());
                for job in late {
                    // The client may have gone; then nobody needs the answer.
                    let _ = job.payload.reply.send(Err(expired()));
                }
            }
            let polled = state.batcher.poll(now);
            self.stats.set_waiting(state.batcher.len());
            match polled {
                Poll::Run(batch, reason) => {
                    state.progress = now;
                    return Some((batch, reason));
                }
                Poll::Wait(_) if state.closed => {
                    // Nobody else will come to fill the batch; a short wait costs less than a second kind of poll.
                    state = self.wake.wait_timeout(state, Duration::from_millis(1)).unwrap_or_else(PoisonError::into_inner).0;
                }
                Poll::Wait(until) => {
                    state.idle += 1;
                    let wait = until.saturating_duration_since(now);
                    state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                    state.idle -= 1;
                }
                Poll::Idle if state.closed => return None,
                Poll::Idle => {
                    state.idle += 1;
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                }
            }
        }
    }

    /// Refuses new requests; workers finish what waits and end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    /// How long a request has been waiting without any worker taking a batch.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let since = state.batcher.oldest()?.max(state.progress);
        Some(now.saturating_duration_since(since))
    }
}

/// The answer to a request whose deadline passed. Triton's clients look for these words.
pub(super) fn expired() -> Failed {
    Failed { reason: FailReason::Canceled, error: Error::new(Kind::DeadlineExceeded, "Request timeout expired") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(queue_limit: usize) -> Queue {
        Queue::new(Limits { max_rows: 4, max_delay: Duration::ZERO, queue_limit }, Arc::default())
    }

    fn payload() -> (Payload, oneshot::Receiver<Result<InferResponse, Failed>>) {
        let (reply, answer) = oneshot::channel();
        (Payload { inputs: vec![], overrides: vec![], profile: false, note: None, reply }, answer)
    }

    const TICKET: Ticket = Ticket { rows: 1, class: 0, deadline: None };

    #[test]
    fn a_full_queue_refuses_and_says_its_size() {
        let queue = queue(1);
        let (first, _kept) = payload();
        queue.push(TICKET, first).unwrap();
        let error = queue.push(TICKET, payload().0).unwrap_err().error;
        assert_eq!(error.kind(), Kind::Overloaded);
        assert!(error.message().contains("Exceeds maximum queue size: 1 "), "{error}");
    }

    #[test]
    fn an_expired_request_is_answered_and_not_run() {
        let queue = queue(8);
        let (late, mut answer) = payload();
        queue.push(Ticket { deadline: Some(Instant::now()), ..TICKET }, late).unwrap();
        let (good, _kept) = payload();
        queue.push(TICKET, good).unwrap();
        assert_eq!(queue.next().unwrap().0.len(), 1);
        assert_eq!(answer.try_recv().unwrap().unwrap_err().error.kind(), Kind::DeadlineExceeded);
        assert_eq!(queue.stats.snapshot().expired, 1);
    }

    #[test]
    fn a_closed_queue_gives_out_what_waits_and_then_ends() {
        let queue = queue(8);
        let (job, _kept) = payload();
        queue.push(TICKET, job).unwrap();
        queue.close();
        assert_eq!(queue.push(TICKET, payload().0).unwrap_err().error.kind(), Kind::Unavailable);
        assert_eq!(queue.next().unwrap().0.len(), 1);
        assert!(queue.next().is_none());
    }

    #[test]
    fn a_queue_stalls_only_while_something_waits() {
        let queue = queue(8);
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(queue.stalled(later), None);
        let (job, _kept) = payload();
        queue.push(TICKET, job).unwrap();
        assert!(queue.stalled(later).unwrap() > Duration::from_secs(59));
        queue.next().unwrap();
        assert_eq!(queue.stalled(later), None);
    }
}
