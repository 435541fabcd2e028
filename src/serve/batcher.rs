//! Which requests share a forward pass: a pure state machine. Time comes in as an argument, nothing blocks, nothing runs.
//!
//! A free worker takes what waits: the oldest job and, in order of arrival, others of its shape class until the batch is
//! full. An idle server therefore adds no delay, and batches form by themselves while workers are busy. A configured delay
//! lets a batch that is not full wait for more rows, up to that long after its oldest job came.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Limits of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows of a batch, unless one job alone has more.
    pub max_rows: usize,
    /// Longest time that the oldest job waits for a batch to fill.
    pub max_delay: Duration,
    /// Most jobs that wait.
    pub queue_limit: usize,
}

/// A request that waits.
#[derive(Debug)]
pub struct Job<T> {
    /// Identity within the queue, for [`Batcher::cancel`].
    pub id: u64,
    /// Rows that it adds to a batch.
    pub rows: usize,
    /// Jobs of equal class may share a batch: all input dimensions but the batch are equal.
    pub class: u64,
    /// When it came.
    pub arrived: Instant,
    /// After this moment nobody waits for the answer.
    pub deadline: Option<Instant>,
    /// The request itself.
    pub payload: T,
}

/// Why a batch was dispatched when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It had as many rows as a batch of this model should have.
    Full,
    /// A worker was free, and nothing says to wait for more rows.
    Idle,
    /// Its oldest job had waited for the longest delay.
    Delay,
    /// A job would have missed its deadline by waiting longer.
    Deadline,
    /// No batch: the pass ran at once on the thread of its request.
    Inline,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Full, Self::Idle, Self::Delay, Self::Deadline, Self::Inline];

    /// The name in metrics and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Idle => "idle",
            Self::Delay => "delay",
            Self::Deadline => "deadline",
            Self::Inline => "inline",
        }
    }
}

/// What a free worker should do.
#[derive(Debug)]
pub enum Poll<T> {
    /// Run these jobs together, in this order.
    Run(Vec<Job<T>>, Reason),
    /// Ask again at this moment, or when a job comes.
    Wait(Instant),
    /// Ask again when a job comes.
    Idle,
}

/// The queue of one model.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    queue: VecDeque<Job<T>>,
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self { limits, queue: VecDeque::new() }
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When the oldest job that waits came.
    pub fn oldest(&self) -> Option<Instant> {
        self.queue.front().map(|job| job.arrived)
    }

    /// Adds a job behind the others.
    ///
    /// # Errors
    /// The job itself, if the queue is full.
    pub fn push(&mut self, job: Job<T>) -> Result<(), Job<T>> {
        if self.queue.len() >= self.limits.queue_limit {
            return Err(job);
        }
        self.queue.push_back(job);
        Ok(())
    }

    /// Takes a job out, if it still waits.
    pub fn cancel(&mut self, id: u64) -> Option<Job<T>> {
        // Identities grow with arrival, so the queue is sorted by them.
        let position = self.queue.binary_search_by_key(&id, |job| job.id).ok()?;
        self.queue.remove(position)
    }

    /// Takes out the jobs whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Job<T>> {
        let late = |job: &Job<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        // Nearly always nothing is late: then the queue stays as it is.
        if !self.queue.iter().any(late) {
            return Vec::new();
        }
        let (expired, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue).into_iter().partition(late);
        self.queue = waiting.into();
        expired
    }

    /// What a free worker should do now. Call [`Batcher::expire`] before.
    pub fn poll(&mut self, now: Instant) -> Poll<T> {
        let Some(oldest) = self.queue.front() else { return Poll::Idle };
        let class = oldest.class;
        let mut rows = 0;
        let mut count = 0;
        let mut full = false;
        for job in self.queue.iter().filter(|job| job.class == class) {
            if count > 0 && rows + job.rows > self.limits.max_rows {
                full = true;
                break;
            }
            rows += job.rows;
            count += 1;
        }
        full |= rows >= self.limits.max_rows;
        let dispatch_at = oldest.arrived + self.limits.max_delay;
        if !full && now < dispatch_at {
            let deadline = self.queue.iter().filter_map(|job| job.deadline).min();
            return Poll::Wait(deadline.map_or(dispatch_at, |deadline| dispatch_at.min(deadline)));
        }
        let reason = match () {
            () if full => Reason::Full,
            () if self.limits.max_delay.is_zero() => Reason::Idle,
            () => Reason::Delay,
        };
        if count == self.queue.len() {
            return Poll::Run(std::mem::take(&mut self.queue).into(), reason);
        }
        let mut batch = Vec::with_capacity(count);
        let mut rest = VecDeque::with_capacity(self.queue.len() - count);
        for job in std::mem::take(&mut self.queue) {
            if job.class == class && batch.len() < count { batch.push(job) } else { rest.push_back(job) }
        }
        self.queue = rest;
        Poll::Run(batch, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn job(id: u64, rows: usize, class: u64, arrived: Instant) -> Job<()> {
        Job { id, rows, class, arrived, deadline: None, payload: () }
    }

    fn limits(max_rows: usize, delay_ms: u64) -> Limits {
        Limits { max_rows, max_delay: Duration::from_millis(delay_ms), queue_limit: 4 }
    }

    fn ids(poll: Poll<()>) -> Vec<u64> {
        match poll {
            Poll::Run(batch, _) => batch.iter().map(|job| job.id).collect(),
            _ => panic!("a batch is wanted, got {poll:?}"),
        }
    }

    #[test]
    fn without_delay_a_free_worker_takes_what_waits() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 0));
        assert!(matches!(batcher.poll(now), Poll::Idle));
        batcher.push(job(1, 1, 0, now)).unwrap();
        assert_eq!(ids(batcher.poll(now)), [1]);
    }

    #[test]
    fn a_batch_that_is_not_full_waits_at_most_the_delay() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(2, 5));
        batcher.push(job(1, 1, 0, now)).unwrap();
        assert!(matches!(batcher.poll(now), Poll::Wait(until) if until == now + Duration::from_millis(5)));
        assert_eq!(ids(batcher.poll(now + Duration::from_millis(5))), [1]);
        batcher.push(job(2, 1, 0, now)).unwrap();
        batcher.push(job(3, 1, 0, now)).unwrap();
        assert_eq!(ids(batcher.poll(now)), [2, 3], "a full batch does not wait");
    }

    #[test]
    fn rows_count_and_classes_stay_apart() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(4, 0));
        for (id, rows, class) in [(1, 3, 0), (2, 1, 1), (3, 2, 0), (4, 1, 0)] {
            batcher.push(job(id, rows, class, now)).unwrap();
        }
        assert_eq!(ids(batcher.poll(now)), [1], "3 + 2 rows are too many, and 4 must not overtake 3");
        assert_eq!(ids(batcher.poll(now)), [2]);
        assert_eq!(ids(batcher.poll(now)), [3, 4]);
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(1, 0));
        for id in 0..4 {
            batcher.push(job(id, 1, 0, now)).unwrap();
        }
        assert_eq!(batcher.push(job(4, 1, 0, now)).unwrap_err().id, 4);
        assert_eq!(batcher.cancel(2).map(|job| job.id), Some(2));
        assert!(batcher.cancel(2).is_none());
        assert!(batcher.push(job(4, 1, 0, now)).is_ok(), "a cancelled job frees its place");
    }

    #[test]
    fn the_wait_ends_at_a_deadline() {
        let now = Instant::now();
        let mut batcher = Batcher::new(limits(8, 100));
        let deadline = now + Duration::from_millis(3);
        batcher.push(Job { deadline: Some(deadline), ..job(1, 1, 0, now) }).unwrap();
        assert!(matches!(batcher.poll(now), Poll::Wait(until) if until == deadline));
        assert!(batcher.expire(now).is_empty());
        assert_eq!(batcher.expire(deadline).len(), 1);
        assert!(batcher.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Action {
        Push { rows: usize, class: u64, deadline_ms: Option<u64> },
        Poll,
        Pass { ms: u64 },
        Cancel { back: u64 },
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (1..6_usize, 0..2_u64, proptest::option::of(0..20_u64)).prop_map(|(rows, class, deadline_ms)| Action::Push { rows, class, deadline_ms }),
            3 => Just(Action::Poll),
            2 => (0..8_u64).prop_map(|ms| Action::Pass { ms }),
            1 => (0..6_u64).prop_map(|back| Action::Cancel { back }),
        ]
    }

    proptest! {
        /// Against a model: every job ends exactly once (run, expired, cancelled or refused), batches keep to the limits,
        /// jobs of a class leave in order of arrival, nothing runs after its deadline, and no free worker waits longer
        /// than the delay.
        #[test]
        fn no_job_is_lost_or_run_twice(actions in prop::collection::vec(action(), 0..200), max_rows in 1..8_usize, delay_ms in 0..6_u64) {
            let start = Instant::now();
            let (mut now, mut next) = (start, 0_u64);
            let limits = Limits { max_rows, max_delay: Duration::from_millis(delay_ms), queue_limit: 16 };
            let mut batcher = Batcher::new(limits);
            let mut waiting: BTreeMap<u64, (usize, u64, Instant, Option<Instant>)> = BTreeMap::new();
            for action in actions {
                match action {
                    Action::Pass { ms } => now += Duration::from_millis(ms),
                    Action::Push { rows, class, deadline_ms } => {
                        let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
                        let pushed = batcher.push(Job { id: next, rows, class, arrived: now, deadline, payload: () });
                        prop_assert_eq!(pushed.is_ok(), waiting.len() < 16);
                        if pushed.is_ok() { waiting.insert(next, (rows, class, now, deadline)); }
                        next += 1;
                    }
                    Action::Cancel { back } => {
                        let id = next.saturating_sub(back);
                        prop_assert_eq!(batcher.cancel(id).map(|job| job.id), waiting.remove(&id).map(|_| id));
                    }
                    Action::Poll => {
                        for job in batcher.expire(now) {
                            let (.., deadline) = waiting.remove(&job.id).expect("an expired job was waiting");
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                        }
                        prop_assert!(waiting.values().all(|job| job.3.is_none_or(|deadline| deadline > now)));
                        match batcher.poll(now) {
                            Poll::Idle => prop_assert!(waiting.is_empty()),
                            Poll::Wait(until) => {
                                let oldest = waiting.values().next().expect("somebody waits").2;
                                prop_assert!(until > now && until <= oldest + limits.max_delay);
                            }
                            Poll::Run(batch, _) => {
                                prop_assert!(!batch.is_empty());
                                let rows: usize = batch.iter().map(|job| job.rows).sum();
                                prop_assert!(rows <= max_rows || batch.len() == 1);
                                let class = batch[0].class;
                                prop_assert_eq!(Some(&batch[0].id), waiting.keys().next(), "the oldest job goes first");
                                let first: Vec<u64> = waiting.iter().filter(|(_, job)| job.1 == class).map(|(&id, _)| id).take(batch.len()).collect();
                                let taken: Vec<u64> = batch.iter().map(|job| job.id).collect();
                                prop_assert_eq!(&taken, &first, "in order of arrival");
                                for id in taken { waiting.remove(&id); }
                            }
                        }
                    }
                }
                prop_assert_eq!(batcher.len(), waiting.len());
            }
        }
    }
}
