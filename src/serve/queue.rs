//! The queue between the requests of a model and its workers: the pure batcher behind a lock.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batcher::{Batcher, Job, Limits, Look, Poll, Reason};
use super::curve::{Curve, Curves};
use super::request::InferResponse;
use super::stats::{FailReason, Stats};
use crate::engine::{Model, Tensor, release_memory};
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
    /// Optional inputs that replace what the model has, by their place among these.
    pub(super) overrides: Vec<(usize, Tensor)>,
    /// Whether to time every operator.
    pub(super) profile: bool,
    /// Whether it is part of an explanation.
    pub(super) background: bool,
    /// What it runs instead of the model.
    pub(super) derived: Option<Arc<Model>>,
    /// Where to note the pass, if somebody looks.
    pub(super) note: Option<PassNote>,
    pub(super) reply: oneshot::Sender<Result<InferResponse, Failed>>,
}

impl Payload {
    /// Whether the request shares its pass with no other: a profile is that of one request, and so are replaced initialisers. What
    /// has no rows cannot share.
    pub(super) fn is_alone(&self) -> bool {
        self.profile || !self.overrides.is_empty() || self.derived.as_ref().is_some_and(|model| !model.signature().batchable)
    }
}

/// What a request says of itself when it enters the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    /// 0 is the most urgent.
    pub(super) level: usize,
    pub(super) rows: usize,
    pub(super) class: u64,
    pub(super) deadline: Option<Instant>,
}

/// Requests that share a forward pass, and why it begins now.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) jobs: Vec<Job<Payload>>,
    pub(super) reason: Reason,
    /// Whether requests wait for the next batch already.
    pub(super) more: bool,
}

/// A pass that has ended without a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) class: u64,
    pub(super) rows: usize,
    pub(super) time: Duration,
}

/// After so many requests in a row whose deadline was thought too near, one is let through: if the measure is wrong, for
/// instance because something else kept the machine busy at start, the pass corrects it.
const REFUSALS_MAX: u32 = 100;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    limits: Limits,
    stats: Arc<Stats>,
}

/// Whether requests share passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// They do, as far as the settings allow.
    Yes,
    /// They do not: the answer to a row would depend on those beside it.
    No,
    /// They do not yet: it is being found out.
    Unknown,
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
    curves: Curves,
    joining: Joining,
    /// For each worker the moment at which its pass is expected to end; `None` while it has none.
    busy: Vec<Option<Instant>>,
    /// Requests in a row that were refused for their deadline.
    refusals: u32,
}

impl State {
    /// How long a request of `level` that comes now will wait: for the first worker to be free, and for what goes before it.
    fn ahead(&self, level: usize, now: Instant) -> Duration {
        let free = self.busy.iter().map(|end| end.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))).min();
        let workers = u32::try_from(self.busy.len()).unwrap_or(u32::MAX).max(1);
        free.unwrap_or_default() + self.batcher.work_ahead(level) / workers
    }

    /// What a request of this ticket adds to what waits; `Err` if it cannot be answered by its deadline.
    fn admit(&mut self, ticket: &Ticket, now: Instant) -> Result<Planned, Failed> {
        let curve = self.curves.get(ticket.class);
        let pass = curve.and_then(|curve| curve.time(ticket.rows));
        let planned = Planned {
            fill_rows: curve.map(Curve::fill_rows),
            cost: curve.and_then(|curve| curve.share(ticket.rows)).unwrap_or_default(),
            start_by: ticket.deadline.zip(pass).and_then(|(deadline, pass)| deadline.checked_sub(pass)),
        };
        if let (Some(deadline), Some(pass)) = (ticket.deadline, pass) {
            let ahead = self.ahead(ticket.level, now);
            if now + ahead + pass > deadline && self.refusals < REFUSALS_MAX {
                self.refusals += 1;
                return Err(too_late(ahead, pass, deadline.saturating_duration_since(now)));
            }
        }
        self.refusals = 0;
        Ok(planned)
    }
}

/// What the curve says of a request.
#[derive(Debug)]
struct Planned {
    fill_rows: Option<usize>,
    cost: Duration,
    start_by: Option<Instant>,
}

impl Queue {
    /// A queue for `workers` workers; `measured` is the curve of a class of input as measured while warming up.
    pub(super) fn new(limits: Limits, workers: usize, measured: Option<(u64, Curve)>, stats: Arc<Stats>) -> Self {
        let state = State {
            batcher: Batcher::new(limits.clone()),
            next_id: 0,
            closed: false,
            idle: 0,
            progress: Instant::now(),
            curves: Curves::new(limits.max_rows, measured),
            joining: Joining::Yes,
            busy: vec![None; workers],
            refusals: 0,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), limits, stats }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request and returns its identity for [`Queue::cancel`].
    pub(super) fn push(&self, ticket: Ticket, payload: Payload) -> Result<u64, Failed> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.closed {
            return Err(Failed { reason: FailReason::Other, error: Error::new(Kind::Unavailable, "the model is being unloaded") });
        }
        let background = payload.background;
        let Planned { fill_rows, cost, start_by } = state.admit(&ticket, now).inspect_err(|_| self.refused(background, true))?;
        let id = state.next_id;
        let Ticket { level, rows, class, deadline } = ticket;
        let fill_rows = match background || state.joining != Joining::Yes {
            // An explanation has chosen its size: it neither waits for more rows nor takes them along.
            true => rows,
            // Whoever prefers some sizes has chosen them; otherwise the curve tells.
            false => fill_rows.filter(|_| self.limits.preferred_rows.is_empty()).unwrap_or(self.limits.max_rows),
        };
        // A request whose operators are timed shares its pass with no other.
        let class = if payload.is_alone() { !id } else { class };
        let job = Job { id, level, rows, class, fill_rows, cost, arrived: now, start_by, deadline, payload };
        if state.batcher.push(job).is_err() {
            self.refused(background, false);
            let limit = self.limits.queue_limits[level];
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

    /// Counts a request that is refused at once; explanations are no requests for predictions.
    fn refused(&self, background: bool, late: bool) {
        if !background {
            self.stats.refused(late);
        }
    }

    /// Whether requests that come from now on share passes; `measured` is the curve of a class of input.
    pub(super) fn set_joining(&self, joining: Joining, measured: Option<(u64, Curve)>) {
        let mut state = self.lock();
        state.joining = joining;
        if let Some((class, curve)) = measured {
            state.curves.set(class, curve);
        }
    }

    /// Whether requests share passes.
    pub(super) fn joining(&self) -> Joining {
        self.lock().joining
    }

    /// Frees the place of a request whose client no longer waits: it went away or, if `expired`, its deadline passed.
    pub(super) fn cancel(&self, id: u64, expired: bool) {
        let mut state = self.lock();
        if let Some(job) = state.batcher.cancel(id) {
            match (job.payload.background, expired) {
                (true, _) => {}
                (false, true) => self.stats.expired(1),
                (false, false) => self.stats.cancelled(),
            }
            self.stats.set_waiting(state.batcher.len());
        }
    }

    /// Blocks until there is a batch for a free worker; false once the queue is closed and empty. The batch stays in the
    /// queue, and may grow or go, until [`Queue::take`].
    pub(super) fn wait(&self) -> bool {
        /// After how long without work a worker gives back the memory that its last passes left to its part of the allocator.
        const REST: Duration = Duration::from_secs(1);
        let mut rested = false;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            self.expire(&mut state, now);
            match state.batcher.look(now) {
                Look::Batch { .. } => return true,
                Look::Idle if state.closed => return false,
                Look::Wait(until) => {
                    let wait = until.saturating_duration_since(now);
                    state.idle += 1;
                    state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
                Look::Idle if rested => {
                    state.idle += 1;
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Look::Idle => {
                    state.idle += 1;
                    let (woken, waited) = self.wake.wait_timeout(state, REST).unwrap_or_else(PoisonError::into_inner);
                    state = woken;
                    if waited.timed_out() {
                        state.idle -= 1;
                        drop(state);
                        release_memory();
                        rested = true;
                        state = self.lock();
                        continue;
                    }
                }
            }
            state.idle -= 1;
        }
    }

    /// Gives a worker the batch that there is now, if there still is one.
    pub(super) fn take(&self, worker: usize) -> Option<Batch> {
        let mut state = self.lock();
        let now = Instant::now();
        self.expire(&mut state, now);
        let Poll::Run(jobs, reason) = state.batcher.poll(now) else { return None };
        self.stats.set_waiting(state.batcher.len());
        state.progress = now;
        let rows = jobs.iter().map(|job| job.rows).sum();
        let time = state.curves.get(jobs[0].class).and_then(|curve| curve.time(rows)).unwrap_or_default();
        state.busy[worker] = Some(now + time);
        // What is left may be a batch for another worker.
        let more = !state.batcher.is_empty();
        let wake = more && state.idle > 0;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Some(Batch { jobs, reason, more })
    }

    /// A worker's batch has been answered; `done` tells of its pass, if that is worth remembering.
    pub(super) fn done(&self, worker: usize, done: Option<Done>) {
        let mut state = self.lock();
        state.busy[worker] = None;
        if let Some(Done { class, rows, time }) = done {
            state.refusals = 0;
            state.curves.observe(class, rows, time);
        }
    }

    /// Answers the requests whose deadline has passed.
    fn expire(&self, state: &mut State, now: Instant) {
        let late = state.batcher.expire(now);
        if late.is_empty() {
            return;
        }
        self.stats.expired(late.iter().filter(|job| !job.payload.background).count());
        self.stats.set_waiting(state.batcher.len());
        for job in late {
            // The client may have gone; then nobody needs the answer.
            let _ = job.payload.reply.send(Err(expired()));
        }
    }

    /// Refuses new requests; workers finish what waits and end.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.batcher.stop_waiting();
        drop(state);
        self.wake.notify_all();
    }

    /// How long a request has been waiting without any worker taking a batch.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let since = state.batcher.oldest()?.max(state.progress);
        Some(now.saturating_duration_since(since))
    }

    /// Time over rows for the inputs that were measured while warming up, as it is known now.
    pub(super) fn curve(&self) -> Option<Curve> {
        self.lock().curves.base().cloned()
    }
}

/// The answer to a request that could not be computed by its deadline.
fn too_late(ahead: Duration, pass: Duration, left: Duration) -> Failed {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let message = format!(
        "the deadline cannot be met: {:.3} ms are left, a forward pass takes {:.3} ms and {:.3} ms of work go before it",
        ms(left),
        ms(pass),
        ms(ahead)
    );
    Failed { reason: FailReason::Rejected, error: Error::new(Kind::Overloaded, message) }
}

/// The answer to a request whose deadline passed. Triton's clients look for these words.
pub(super) fn expired() -> Failed {
    Failed { reason: FailReason::Canceled, error: Error::new(Kind::DeadlineExceeded, "Request timeout expired") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits(queue_limit: usize) -> Limits {
        Limits { max_rows: 4, preferred_rows: vec![], max_delay: Duration::ZERO, queue_limits: vec![queue_limit, queue_limit] }
    }

    fn queue(queue_limit: usize) -> Queue {
        Queue::new(limits(queue_limit), 1, None, Arc::default())
    }

    /// A queue that knows that passes take 100, 120 and 160 ms for 1, 2 and 4 rows.
    fn measured(workers: usize) -> Queue {
        let mut curve = Curve::new(4);
        for (rows, ms) in [(1, 100), (2, 120), (4, 160)] {
            curve.set(rows, ms * MS);
        }
        Queue::new(limits(64), workers, Some((0, curve)), Arc::default())
    }

    fn payload() -> (Payload, oneshot::Receiver<Result<InferResponse, Failed>>) {
        let (reply, answer) = oneshot::channel();
        (Payload { inputs: vec![], overrides: vec![], profile: false, background: false, derived: None, note: None, reply }, answer)
    }

    const TICKET: Ticket = Ticket { level: 0, rows: 1, class: 0, deadline: None };

    fn within(ms: u32) -> Ticket {
        Ticket { deadline: Some(Instant::now() + ms * MS), ..TICKET }
    }

    fn push(queue: &Queue, ticket: Ticket) -> Result<u64, Error> {
        queue.push(ticket, payload().0).map_err(|failed| failed.error)
    }

    #[test]
    fn requests_share_passes_once_that_is_known_to_be_right() {
        let queue = queue(64);
        let batch = || {
            (0..2).for_each(|_| _ = push(&queue, TICKET).unwrap());
            let rows = queue.take(0).unwrap().jobs.len();
            while queue.take(0).is_some() {}
            rows
        };
        let mut rows = |joining| {
            queue.set_joining(joining, None);
            batch()
        };
        assert_eq!([Joining::Unknown, Joining::Yes, Joining::No].map(&mut rows), [1, 2, 1]);
    }

    #[test]
    fn a_full_queue_refuses_and_says_its_size() {
        let queue = queue(1);
        let (first, _kept) = payload();
        queue.push(TICKET, first).unwrap();
        let error = push(&queue, TICKET).unwrap_err();
        assert_eq!(error.kind(), Kind::Overloaded);
        assert!(error.message().contains("Exceeds maximum queue size: 1 "), "{error}");
        assert_eq!(queue.stats.snapshot().refused_full, 1);
    }

    #[test]
    fn an_expired_request_is_answered_and_not_run() {
        let queue = queue(8);
        let (late, mut answer) = payload();
        queue.push(Ticket { deadline: Some(Instant::now()), ..TICKET }, late).unwrap();
        let (good, _kept) = payload();
        queue.push(TICKET, good).unwrap();
        assert!(queue.wait());
        assert_eq!(queue.take(0).unwrap().jobs.len(), 1);
        assert_eq!(answer.try_recv().unwrap().unwrap_err().error.kind(), Kind::DeadlineExceeded);
        assert_eq!(queue.stats.snapshot().expired, 1);
    }

    #[test]
    fn what_cannot_meet_its_deadline_is_refused_at_once() {
        let queue = measured(1);
        let error = push(&queue, within(50)).unwrap_err();
        assert_eq!(error.kind(), Kind::Overloaded);
        assert!(error.message().contains("the deadline cannot be met"), "{error}");
        assert!(push(&queue, within(60_000)).is_ok());
        assert!(push(&queue, Ticket { rows: 4, ..within(130) }).is_err(), "four rows take longer");
        assert_eq!(queue.stats.snapshot().refused_late, 2);
    }

    #[test]
    fn what_waits_and_what_runs_counts_against_a_deadline() {
        let queue = measured(1);
        for _ in 0..40 {
            push(&queue, TICKET).unwrap();
        }
        // 40 rows in batches of 4: 1600 ms of work, and 100 for the pass itself.
        assert!(push(&queue, within(1_600)).is_err());
        assert!(push(&queue, within(60_000)).is_ok());
        assert!(push(&queue, Ticket { level: 1, ..within(1_600) }).is_err());
        while queue.take(0).is_some() {}
        assert!(push(&queue, within(110)).is_err(), "the worker has a pass of 4 rows or fewer to finish");
        queue.done(0, None);
        assert!(push(&queue, within(10_000)).is_ok());
        let two = measured(2);
        push(&two, TICKET).unwrap();
        two.take(0).unwrap();
        assert!(push(&two, within(190)).is_ok(), "the other worker is free");
    }

    #[test]
    fn the_urgent_does_not_wait_for_what_is_not() {
        let queue = measured(1);
        for _ in 0..40 {
            push(&queue, Ticket { level: 1, ..TICKET }).unwrap();
        }
        assert!(push(&queue, within(1_000)).is_ok());
        assert!(push(&queue, Ticket { level: 1, ..within(1_000) }).is_err());
    }

    #[test]
    fn a_wrong_measure_corrects_itself() {
        let queue = measured(1);
        for _ in 0..REFUSALS_MAX {
            assert!(push(&queue, within(50)).is_err());
        }
        assert!(push(&queue, within(50)).is_ok(), "one is let through");
        assert!(push(&queue, within(50)).is_err());
        for _ in 0..100 {
            queue.done(0, Some(Done { class: 0, rows: 1, time: MS }));
        }
        queue.take(0).unwrap();
        queue.done(0, None);
        assert!(push(&queue, within(50)).is_ok());
    }

    #[test]
    fn one_pass_that_was_held_up_refuses_nobody() {
        let queue = queue(64);
        let pass = |ms: u32| queue.done(0, Some(Done { class: 0, rows: 1, time: ms * MS }));
        pass(2_000);
        for _ in 0..32 {
            assert!(push(&queue, within(5_000)).is_ok(), "nothing tells that 2 s is what a pass takes");
        }
        pass(100);
        assert!(push(&queue, within(5_000)).is_ok(), "passes take 100 ms");
        assert!(push(&queue, within(50)).is_err());
    }

    #[test]
    fn a_batch_is_no_larger_than_pays() {
        let queue = queue(64);
        for rows in [1, 1, 2, 2, 4, 4] {
            // Twice the rows take twice as long.
            queue.done(0, Some(Done { class: 0, rows, time: 100 * MS * rows as u32 }));
        }
        for _ in 0..3 {
            push(&queue, TICKET).unwrap();
        }
        let batch = queue.take(0).unwrap();
        assert_eq!((batch.jobs.len(), batch.reason), (1, Reason::Full));
        assert_eq!(queue.curve().unwrap().best_rows(), 1);
    }

    #[test]
    fn a_request_that_is_profiled_or_replaces_initialisers_is_alone() {
        let queue = queue(8);
        push(&queue, TICKET).unwrap();
        queue.push(TICKET, Payload { profile: true, ..payload().0 }).unwrap();
        queue.push(TICKET, Payload { overrides: vec![(0, Tensor::scalar(1.0_f32))], ..payload().0 }).unwrap();
        push(&queue, TICKET).unwrap();
        let sizes: Vec<usize> = (0..3).map(|_| queue.take(0).unwrap().jobs.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
    }

    fn background() -> Payload {
        Payload { background: true, ..payload().0 }
    }

    #[test]
    fn an_explanation_waits_for_no_rows_and_takes_none_along() {
        let queue = Queue::new(Limits { max_delay: Duration::from_secs(3600), ..limits(8) }, 1, None, Arc::default());
        for rows in [2, 1] {
            queue.push(Ticket { level: 1, rows, ..TICKET }, background()).unwrap();
        }
        let batches: Vec<Batch> = std::iter::from_fn(|| queue.take(0)).collect();
        assert_eq!(batches.iter().map(|batch| (batch.jobs.len(), batch.jobs[0].rows)).collect::<Vec<_>>(), [(1, 2), (1, 1)]);
    }

    #[test]
    fn explanations_are_no_refused_cancelled_or_expired_requests() {
        let queue = measured(1);
        assert!(queue.push(within(50), background()).is_err(), "its deadline cannot be met");
        for _ in 0..64 {
            queue.push(TICKET, background()).unwrap();
        }
        assert!(queue.push(TICKET, background()).is_err(), "the queue is full");
        queue.cancel(0, false);
        queue.cancel(1, true);
        let stats = queue.stats.snapshot();
        assert_eq!((stats.refused_late, stats.refused_full, stats.cancelled, stats.expired), (0, 0, 0, 0));
        let other = self::queue(8);
        other.push(Ticket { deadline: Some(Instant::now()), ..TICKET }, background()).unwrap();
        assert!(other.take(0).is_none());
        assert_eq!(other.stats.snapshot().expired, 0);
    }

    #[test]
    fn a_closed_queue_gives_out_what_waits_and_then_ends() {
        let queue = Queue::new(Limits { max_delay: Duration::from_secs(3600), ..limits(8) }, 1, None, Arc::default());
        push(&queue, TICKET).unwrap();
        queue.close();
        assert_eq!(push(&queue, TICKET).unwrap_err().kind(), Kind::Unavailable);
        assert!(queue.wait(), "and does not wait for a batch to fill");
        assert_eq!(queue.take(0).unwrap().jobs.len(), 1);
        assert!(!queue.wait());
    }

    #[test]
    fn a_queue_stalls_only_while_something_waits() {
        let queue = queue(8);
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(queue.stalled(later), None);
        push(&queue, TICKET).unwrap();
        assert!(queue.stalled(later).unwrap() > Duration::from_secs(59));
        queue.take(0).unwrap();
        assert_eq!(queue.stalled(later), None);
    }
}
