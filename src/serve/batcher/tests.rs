//! What the batcher promises, by cases and against a model of it.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn job(id: u64, rows: usize, class: u64, arrived: Instant) -> Job<()> {
    let cost = Duration::from_millis(rows as u64);
    Job { id, level: 0, rows, class, fill_rows: usize::MAX, cost, arrived, start_by: None, deadline: None, payload: () }
}

fn limits(max_rows: usize, delay_ms: u64) -> Limits {
    let max_delay = Duration::from_millis(delay_ms);
    Limits { max_rows, preferred_rows: vec![], max_delay, queue_limits: vec![4, 4] }
}

fn ran(poll: Poll<()>) -> (Vec<u64>, Reason) {
    match poll {
        Poll::Run(batch, reason) => (batch.iter().map(|job| job.id).collect(), reason),
        _ => panic!("a batch is wanted, got {poll:?}"),
    }
}

fn ids(poll: Poll<()>) -> Vec<u64> {
    ran(poll).0
}

#[test]
fn without_delay_a_free_worker_takes_what_waits() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(8, 0));
    assert!(matches!(batcher.poll(now), Poll::Idle));
    batcher.push(job(1, 1, 0, now)).unwrap();
    assert_eq!(ran(batcher.poll(now)), (vec![1], Reason::Idle));
}

#[test]
fn a_batch_that_is_not_full_waits_at_most_the_delay() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(2, 5));
    batcher.push(job(1, 1, 0, now)).unwrap();
    assert!(matches!(batcher.poll(now), Poll::Wait(until) if until == now + Duration::from_millis(5)));
    assert_eq!(ran(batcher.poll(now + Duration::from_millis(5))), (vec![1], Reason::Delay));
    batcher.push(job(2, 1, 0, now)).unwrap();
    batcher.push(job(3, 1, 0, now)).unwrap();
    assert_eq!(ran(batcher.poll(now)), (vec![2, 3], Reason::Full), "a full batch does not wait");
    batcher.push(job(4, 1, 0, now)).unwrap();
    batcher.stop_waiting();
    assert_eq!(ran(batcher.poll(now)), (vec![4], Reason::Idle));
}

#[test]
fn a_full_batch_does_not_wait_for_one_of_another_class() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(2, 5));
    for (id, class) in [(1, 0), (2, 1), (3, 1)] {
        batcher.push(job(id, 1, class, now)).unwrap();
    }
    assert_eq!(ran(batcher.poll(now)), (vec![2, 3], Reason::Full));
    assert!(matches!(batcher.poll(now), Poll::Wait(_)));
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
fn the_urgent_goes_first_and_others_of_its_class_ride_along() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(2, 0));
    for (id, level, class) in [(1, 1, 0), (2, 1, 1), (3, 0, 1)] {
        batcher.push(Job { level, ..job(id, 1, class, now) }).unwrap();
    }
    assert_eq!((batcher.work_ahead(0), batcher.work_ahead(1)), (Duration::from_millis(1), Duration::from_millis(3)));
    assert_eq!(ids(batcher.poll(now)), [3, 2]);
    assert_eq!(ids(batcher.poll(now)), [1]);
    assert_eq!(batcher.work_ahead(1), Duration::ZERO);
}

#[test]
fn a_preferred_number_of_rows_does_not_wait_and_is_not_exceeded() {
    let now = Instant::now();
    let with = |rows: &[usize]| {
        let mut batcher = Batcher::new(Limits { preferred_rows: vec![2, 4], queue_limits: vec![9], ..limits(8, 5) });
        for (id, &rows) in rows.iter().enumerate() {
            batcher.push(job(id as u64, rows, 0, now)).unwrap();
        }
        batcher.poll(now)
    };
    assert!(matches!(with(&[1]), Poll::Wait(_)));
    assert_eq!(ran(with(&[1, 1, 1])), (vec![0, 1], Reason::Full));
    assert_eq!(ids(with(&[1; 5])), [0, 1, 2, 3], "the largest that is reached");
    assert_eq!(ids(with(&[3])), [0], "stepped over: worth a pass, too");
}

#[test]
fn a_batch_grows_as_far_as_its_first_job_says() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(8, 5));
    for id in 0..3 {
        batcher.push(Job { fill_rows: 2, ..job(id, 1, 0, now) }).unwrap();
    }
    assert_eq!(ran(batcher.poll(now)), (vec![0, 1], Reason::Full));
}

#[test]
fn a_full_level_gives_the_job_back() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(1, 0));
    for id in 0..4 {
        batcher.push(job(id, 1, 0, now)).unwrap();
    }
    assert_eq!(batcher.push(job(4, 1, 0, now)).unwrap_err().id, 4);
    assert!(batcher.push(Job { level: 1, ..job(4, 1, 0, now) }).is_ok(), "each level has its own places");
    assert_eq!(batcher.cancel(2).map(|job| job.id), Some(2));
    assert!(batcher.cancel(2).is_none());
    assert!(batcher.push(job(5, 1, 0, now)).is_ok(), "a cancelled job frees its place");
}

#[test]
fn the_wait_ends_in_time_for_a_deadline() {
    let now = Instant::now();
    let mut batcher = Batcher::new(limits(8, 100));
    let (start_by, deadline) = (now + Duration::from_millis(2), now + Duration::from_millis(3));
    batcher.push(Job { start_by: Some(start_by), deadline: Some(deadline), ..job(1, 1, 0, now) }).unwrap();
    assert!(matches!(batcher.poll(now), Poll::Wait(until) if until == start_by));
    assert!(batcher.expire(now).is_empty());
    assert_eq!(ran(batcher.poll(start_by)), (vec![1], Reason::Deadline));
    batcher.push(Job { deadline: Some(deadline), ..job(2, 1, 0, now) }).unwrap();
    assert!(matches!(batcher.poll(now), Poll::Wait(until) if until == deadline));
    assert_eq!(batcher.expire(deadline).len(), 1);
    assert!(batcher.is_empty());
}

#[derive(Clone, Debug)]
enum Action {
    Push { level: usize, rows: usize, class: u64, fill_rows: usize, deadline_ms: Option<u64> },
    Poll,
    Pass { ms: u64 },
    Cancel { back: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let push = (0..2_usize, 1..6_usize, 0..3_u64, 1..9_usize, proptest::option::of(0..20_u64));
    prop_oneof![
        4 => push.prop_map(|(level, rows, class, fill_rows, deadline_ms)| Action::Push { level, rows, class, fill_rows, deadline_ms }),
        3 => Just(Action::Poll),
        2 => (0..8_u64).prop_map(|ms| Action::Pass { ms }),
        1 => (0..6_u64).prop_map(|back| Action::Cancel { back }),
    ]
}

/// What the model knows of a job that waits, by level and identity: the order in which jobs go.
#[derive(Debug)]
struct Waiting {
    rows: usize,
    class: u64,
    fill_rows: usize,
    arrived: Instant,
    start_by: Option<Instant>,
    deadline: Option<Instant>,
}

struct Model {
    limits: Limits,
    batcher: Batcher<()>,
    waiting: BTreeMap<(usize, u64), Waiting>,
}

impl Model {
    fn push(&mut self, id: u64, action: &Action, now: Instant) -> Result<(), TestCaseError> {
        let &Action::Push { level, rows, class, fill_rows, deadline_ms } = action else { return Ok(()) };
        let deadline = deadline_ms.map(|ms| now + Duration::from_millis(ms));
        let start_by = deadline.map(|deadline| deadline - Duration::from_millis(1));
        let fits = self.waiting.keys().filter(|key| key.0 == level).count() < self.limits.queue_limits[level];
        let pushed = self.batcher.push(Job { level, fill_rows, start_by, deadline, ..job(id, rows, class, now) });
        prop_assert_eq!(pushed.is_ok(), fits);
        if fits {
            self.waiting.insert((level, id), Waiting { rows, class, fill_rows, arrived: now, start_by, deadline });
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64) -> Result<(), TestCaseError> {
        let known = self.waiting.keys().find(|key| key.1 == id).copied();
        prop_assert_eq!(self.batcher.cancel(id).map(|job| (job.level, job.id)), known);
        known.map(|key| self.waiting.remove(&key));
        Ok(())
    }

    fn poll(&mut self, now: Instant) -> Result<(), TestCaseError> {
        for job in self.batcher.expire(now) {
            let gone = self.waiting.remove(&(job.level, job.id)).expect("an expired job was waiting");
            prop_assert!(gone.deadline.is_some_and(|deadline| deadline <= now));
        }
        prop_assert!(self.waiting.values().all(|job| job.deadline.is_none_or(|deadline| deadline > now)));
        match self.batcher.poll(now) {
            Poll::Idle => prop_assert!(self.waiting.is_empty()),
            Poll::Wait(until) => {
                prop_assert!(until > now && !self.waiting.is_empty());
                for job in self.waiting.values() {
                    prop_assert!(until <= job.arrived + self.limits.max_delay, "nobody waits longer than the delay");
                    prop_assert!(job.start_by.is_none_or(|start_by| until <= start_by), "nor than its deadline allows");
                }
            }
            Poll::Run(batch, reason) => self.ran(&batch, reason, now)?,
        }
        Ok(())
    }

    fn ran(&mut self, batch: &[Job<()>], reason: Reason, now: Instant) -> Result<(), TestCaseError> {
        let class = batch[0].class;
        let of_class = self.waiting.iter().filter(|(_, job)| job.class == class);
        let (first, lead) = of_class.clone().next().expect("it was waiting");
        let rows: usize = batch.iter().map(|job| job.rows).sum();
        let cap = lead.fill_rows.min(self.limits.max_rows);
        prop_assert!(rows <= cap || batch.len() == 1, "never more rows than the limit");
        let wanted: Vec<_> = of_class.clone().take(batch.len()).map(|(&key, _)| key).collect();
        let taken: Vec<_> = batch.iter().map(|job| (job.level, job.id)).collect();
        prop_assert_eq!(&taken, &wanted, "in order of urgency and arrival");
        let due = |job: &Waiting| now >= job.arrived + self.limits.max_delay;
        let rest = of_class.clone().nth(batch.len()).map(|(_, job)| job.rows);
        let preferred = self.limits.preferred_rows.first().is_some_and(|&least| rows >= least);
        match reason {
            Reason::Full => prop_assert!(preferred || rows >= cap || rest.is_some_and(|next| rows + next > cap)),
            Reason::Idle => prop_assert!(self.limits.max_delay.is_zero()),
            Reason::Delay => prop_assert!(of_class.clone().take(batch.len()).any(|(_, job)| due(job))),
            Reason::Deadline => prop_assert!(batch.iter().any(|job| job.start_by.is_some_and(|start_by| start_by <= now))),
            Reason::Inline => prop_assert!(false, "a batch is not inline"),
        }
        if self.limits.max_delay.is_zero() {
            prop_assert_eq!(Some(first), self.waiting.keys().next(), "without a delay the first goes first");
        }
        for key in taken {
            self.waiting.remove(&key);
        }
        Ok(())
    }
}

proptest! {
    /// Every job ends exactly once (run, expired, cancelled or refused), batches keep to the limits, jobs of a class leave in
    /// order of urgency and arrival, nothing runs after its deadline, no free worker waits longer than the delay or a
    /// deadline allows, and what is said to be ahead is what waits.
    #[test]
    fn no_job_is_lost_or_run_twice(
        actions in prop::collection::vec(action(), 0..200), max_rows in 1..8_usize, delay_ms in 0..6_u64, preferred in prop::bool::ANY,
    ) {
        let mut now = Instant::now();
        let preferred_rows = if preferred { vec![max_rows.div_ceil(2)] } else { vec![] };
        let limits = Limits { max_rows, preferred_rows, max_delay: Duration::from_millis(delay_ms), queue_limits: vec![8, 16] };
        let mut model = Model { batcher: Batcher::new(limits.clone()), limits, waiting: BTreeMap::new() };
        for (id, action) in actions.iter().enumerate() {
            let id = id as u64;
            match action {
                Action::Pass { ms } => now += Duration::from_millis(*ms),
                Action::Push { .. } => model.push(id, action, now)?,
                Action::Cancel { back } => model.cancel(id.saturating_sub(*back))?,
                Action::Poll => model.poll(now)?,
            }
            prop_assert_eq!(model.batcher.len(), model.waiting.len());
            let ahead: usize = model.waiting.values().map(|job| job.rows).sum();
            prop_assert_eq!(model.batcher.work_ahead(1), Duration::from_millis(ahead as u64));
        }
    }
}
