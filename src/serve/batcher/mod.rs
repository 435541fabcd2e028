//! Which requests share a forward pass: a pure state machine. Time comes in as an argument, nothing blocks, nothing runs.
//!
//! A free worker takes what waits: the most urgent job that came first and, in the same order, others of its shape class
//! until the batch is full. An idle server therefore adds no delay, and batches form by themselves while workers are busy. A
//! configured delay lets a batch that is not full wait for more rows, up to that long after its oldest job came, and no longer
//! than its deadlines allow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

/// Classes that one look compares. Jobs of further ones are seen when those before them have gone, at most a delay later.
const CLASSES: usize = 16;

/// Limits of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows of a batch, unless one job alone has more.
    pub max_rows: usize,
    /// Numbers of rows, ascending, with which a batch does not wait for more.
    pub preferred_rows: Vec<usize>,
    /// Longest time that a job waits for its batch to fill.
    pub max_delay: Duration,
    /// Most jobs that wait, for each level of priority, the most urgent first.
    pub queue_limits: Vec<usize>,
}

/// A request that waits.
#[derive(Debug)]
pub struct Job<T> {
    /// Identity within the queue, growing with arrival, for [`Batcher::cancel`].
    pub id: u64,
    /// Level of priority: an index of [`Limits::queue_limits`].
    pub level: usize,
    /// Rows that it adds to a batch.
    pub rows: usize,
    /// Jobs of equal class may share a batch: their inputs can be joined.
    pub class: u64,
    /// A batch that this job leads grows no further than to this many rows.
    pub fill_rows: usize,
    /// Compute time that it adds to what waits.
    pub cost: Duration,
    /// When it came.
    pub arrived: Instant,
    /// When its forward pass must begin to end by the deadline.
    pub start_by: Option<Instant>,
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

/// What a free worker would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The first `count` jobs of a class are a batch.
    Batch {
        /// The class.
        class: u64,
        /// How many of its jobs.
        count: usize,
        /// Why now.
        reason: Reason,
    },
    /// Nothing before this moment, unless a job comes.
    Wait(Instant),
    /// Nothing until a job comes.
    Idle,
}

/// The queue of one model.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: Limits,
    /// By level; within one in order of arrival.
    levels: Vec<VecDeque<Job<T>>>,
    /// Compute time of what waits, by level.
    work: Vec<Duration>,
    len: usize,
    /// No deadline of a job that waits is before this one.
    next_deadline: Option<Instant>,
}

/// A batch while it is put together: the jobs of one class in order.
#[derive(Debug)]
struct Candidate {
    class: u64,
    cap: usize,
    rows: usize,
    count: usize,
    /// How many jobs make the largest preferred number of rows, if one is reached.
    preferred: Option<usize>,
    /// Nothing more fits.
    full: bool,
    /// When its oldest job came.
    oldest: Instant,
    start_by: Option<Instant>,
}

impl Candidate {
    fn new<T>(lead: &Job<T>, max_rows: usize) -> Self {
        let cap = lead.fill_rows.clamp(1, max_rows);
        let (class, oldest) = (lead.class, lead.arrived);
        Self { class, cap, rows: 0, count: 0, preferred: None, full: false, oldest, start_by: None }
    }

    /// Takes one more job, or is full.
    fn add<T>(&mut self, job: &Job<T>, preferred_rows: &[usize]) {
        if self.full || (self.count > 0 && self.rows + job.rows > self.cap) {
            self.full = true;
            return;
        }
        self.rows += job.rows;
        self.count += 1;
        self.oldest = self.oldest.min(job.arrived);
        self.start_by = earliest(self.start_by, job.start_by);
        // Larger jobs may step over a preferred number; what is more than the least of them is worth a pass, too.
        let exact = preferred_rows.binary_search(&self.rows).is_ok();
        if exact || (self.preferred.is_none() && preferred_rows.first().is_some_and(|&least| self.rows > least)) {
            self.preferred = Some(self.count);
        }
        self.full = self.rows >= self.cap;
    }

    /// Whether the batch should run now, and why; else when.
    fn ready(&self, now: Instant, max_delay: Duration) -> Result<(usize, Reason), Instant> {
        if let Some(count) = self.preferred {
            return Ok((count, Reason::Full));
        }
        if self.full {
            return Ok((self.count, Reason::Full));
        }
        if max_delay.is_zero() {
            return Ok((self.count, Reason::Idle));
        }
        let delay_over = self.oldest + max_delay;
        match self.start_by {
            _ if now >= delay_over => Ok((self.count, Reason::Delay)),
            Some(start_by) if now >= start_by => Ok((self.count, Reason::Deadline)),
            Some(start_by) => Err(delay_over.min(start_by)),
            None => Err(delay_over),
        }
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

impl<T> Batcher<T> {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        let levels = limits.queue_limits.len();
        let work = vec![Duration::ZERO; levels];
        Self { limits, levels: (0..levels).map(|_| VecDeque::new()).collect(), work, len: 0, next_deadline: None }
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When the oldest job that waits came.
    pub fn oldest(&self) -> Option<Instant> {
        self.levels.iter().filter_map(|queue| queue.front()).map(|job| job.arrived).min()
    }

    /// Compute time of the jobs that go before a new one of `level`.
    pub fn work_ahead(&self, level: usize) -> Duration {
        self.work[..=level].iter().sum()
    }

    /// From now on no batch waits to be filled.
    pub fn stop_waiting(&mut self) {
        self.limits.max_delay = Duration::ZERO;
    }

    /// Adds a job behind the others of its level.
    ///
    /// # Errors
    /// The job itself, if as many wait on its level as may.
    pub fn push(&mut self, job: Job<T>) -> Result<(), Job<T>> {
        let level = job.level;
        if self.levels[level].len() >= self.limits.queue_limits[level] {
            return Err(job);
        }
        self.len += 1;
        self.work[level] += job.cost;
        self.next_deadline = earliest(self.next_deadline, job.deadline);
        self.levels[level].push_back(job);
        Ok(())
    }

    /// Takes a job out, if it still waits.
    pub fn cancel(&mut self, id: u64) -> Option<Job<T>> {
        // Identities grow with arrival, so each level is sorted by them.
        let find = |queue: &mut VecDeque<Job<T>>| {
            let position = queue.binary_search_by_key(&id, |job| job.id).ok()?;
            queue.remove(position)
        };
        let job = self.levels.iter_mut().find_map(find)?;
        self.left(&job);
        Some(job)
    }

    /// Takes out the jobs whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Job<T>> {
        // Nearly always nothing is late: then the queue stays as it is.
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        let late = |job: &Job<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        let mut expired = Vec::new();
        for queue in &mut self.levels {
            if queue.iter().any(late) {
                let (gone, waiting): (Vec<_>, Vec<_>) = std::mem::take(queue).into_iter().partition(late);
                *queue = waiting.into();
                expired.extend(gone);
            }
        }
        expired.iter().for_each(|job| self.left(job));
        self.next_deadline = self.levels.iter().flatten().filter_map(|job| job.deadline).min();
        expired
    }

    /// What a free worker would find now. Call [`Batcher::expire`] before.
    pub fn look(&self, now: Instant) -> Look {
        let Limits { max_rows, preferred_rows, max_delay, .. } = &self.limits;
        // Without a delay whoever is first goes first; only with one a later class may be ready before it.
        let classes = if max_delay.is_zero() { 1 } else { CLASSES };
        let mut candidates: SmallVec<[Candidate; 1]> = SmallVec::new();
        for job in self.levels.iter().flatten() {
            let known = candidates.iter().position(|candidate| candidate.class == job.class);
            let candidate = match known {
                Some(known) => &mut candidates[known],
                None if candidates.len() < classes => {
                    candidates.push(Candidate::new(job, *max_rows));
                    candidates.last_mut().expect("just pushed")
                }
                None => continue,
            };
            candidate.add(job, preferred_rows);
            if candidates[0].full {
                break;
            }
        }
        let mut wait = None;
        for candidate in &candidates {
            match candidate.ready(now, *max_delay) {
                Ok((count, reason)) => return Look::Batch { class: candidate.class, count, reason },
                Err(until) => wait = earliest(wait, Some(until)),
            }
        }
        match earliest(wait, self.next_deadline.filter(|_| wait.is_some())) {
            Some(until) => Look::Wait(until),
            None => Look::Idle,
        }
    }

    /// What a free worker should do now. Call [`Batcher::expire`] before.
    pub fn poll(&mut self, now: Instant) -> Poll<T> {
        match self.look(now) {
            Look::Batch { class, count, reason } => Poll::Run(self.take(class, count), reason),
            Look::Wait(until) => Poll::Wait(until),
            Look::Idle => Poll::Idle,
        }
    }

    /// The first `count` jobs of `class`.
    fn take(&mut self, class: u64, count: usize) -> Vec<Job<T>> {
        let mut batch = Vec::with_capacity(count);
        for queue in &mut self.levels {
            let mut others: SmallVec<[Job<T>; 0]> = SmallVec::new();
            while batch.len() < count
                && let Some(job) = queue.pop_front()
            {
                if job.class == class { batch.push(job) } else { others.push(job) }
            }
            for job in others.into_iter().rev() {
                queue.push_front(job);
            }
        }
        batch.iter().for_each(|job| self.left(job));
        batch
    }

    fn left(&mut self, job: &Job<T>) {
        self.len -= 1;
        self.work[job.level] = self.work[job.level].saturating_sub(job.cost);
        if self.len == 0 {
            self.next_deadline = None;
        }
    }
}

#[cfg(test)]
mod tests;
