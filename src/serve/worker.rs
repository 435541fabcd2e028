//! Running batches: one forward pass for several requests, every one of them answered whatever happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::batcher::{Job, Reason};
use super::compute::Member;
use super::queue::{Batch, Done, Failed, Payload, Queue};
use super::request::{InferResponse, OperatorTime, Timing};
use super::sequence::Padding;
use super::split::{Splitting, Way};
use super::stats::{Answered, FailReason, Pass, Stats};
use crate::engine::{Model, RunError, RunTime, Session, Tensor, Threads, Value};
use crate::error::Error;
use crate::trace::batch_ran;

/// A session that survives a panic of the engine.
#[derive(Debug)]
pub(super) struct Runner {
    model: Arc<Model>,
    threads: Arc<Threads>,
    session: Session,
    stats: Arc<Stats>,
    padding: Option<Arc<Padding>>,
    /// Sessions of what explains the model, the one that ran last at the end.
    derived: Vec<(Arc<Model>, Session)>,
}

/// Sessions of a runner beside the model's own.
const DERIVED_MAX: usize = 4;

/// A forward pass that has ended.
struct Ran {
    /// The outputs of each request.
    outcome: Result<Vec<Vec<Value>>, Failure>,
    batch: u64,
    started: Instant,
    time: RunTime,
    profile: Option<Vec<OperatorTime>>,
}

impl Ran {
    fn timing(&self, arrived: Instant, batch_rows: usize, reason: Reason) -> Timing {
        Timing {
            queue: self.started.saturating_duration_since(arrived),
            compute: self.time.total(),
            input: self.time.input,
            output: self.time.output,
            batch_rows,
            batch: self.batch,
            started: self.started,
            reason,
        }
    }
}

impl Runner {
    /// A runner that pads the requests of a batch by `padding`.
    pub(super) fn new(session: Session, threads: Arc<Threads>, stats: Arc<Stats>, padding: Option<Arc<Padding>>) -> Self {
        Self { model: Arc::clone(session.model()), threads, session, stats, padding, derived: Vec::new() }
    }

    /// Runs requests together. A panic of the engine is an internal error, after which the session is a new one.
    fn run(&mut self, requests: &[&[Tensor]], profile: bool) -> Ran {
        self.pass(profile, |session| session.run_rows(requests))
    }

    /// Runs one request that replaces initialisers.
    fn run_overriding(&mut self, payload: &Payload) -> Ran {
        let inputs: Vec<Value> = payload.inputs.iter().cloned().map(Value::Tensor).collect();
        // What is timed per operator is the program that other requests run.
        self.pass(false, |session| Ok(vec![session.run_overriding(&inputs, &payload.overrides)?]))
    }

    /// Runs requests together, of what explains the model.
    fn run_derived(&mut self, model: &Arc<Model>, requests: &[&[Tensor]]) -> Ran {
        let known = self.derived.iter().position(|(known, _)| Arc::ptr_eq(known, model));
        let (mut other, mut session) = match known {
            Some(at) => self.derived.remove(at),
            None => (Arc::clone(model), Session::new(Arc::clone(model), Arc::clone(&self.threads))),
        };
        std::mem::swap(&mut self.model, &mut other);
        std::mem::swap(&mut self.session, &mut session);
        let ran = self.run(requests, false);
        std::mem::swap(&mut self.model, &mut other);
        std::mem::swap(&mut self.session, &mut session);
        if self.derived.len() == DERIVED_MAX {
            self.derived.remove(0);
        }
        self.derived.push((other, session));
        ran
    }

    fn pass(&mut self, profile: bool, run: impl FnOnce(&mut Session) -> Result<Vec<Vec<Value>>, RunError>) -> Ran {
        let batch = self.stats.next_pass();
        if profile {
            self.session.start_profile();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut self.session)));
        let time = self.session.time();
        let started = time.started.unwrap_or_else(Instant::now);
        let times = self.session.end_profile();
        let outcome = match outcome {
            Ok(outcome) => outcome.map_err(Failure::Run),
            Err(panic) => {
                self.session = Session::new(Arc::clone(&self.model), Arc::clone(&self.threads));
                Err(Failure::Panic(panic_text(&*panic)))
            }
        };
        Ran { outcome, batch, started, time, profile: times.map(|times| self.operators(&times)) }
    }

    fn operators(&self, times: &[Duration]) -> Vec<OperatorTime> {
        let nodes = self.model.graph().nodes.iter().zip(times);
        nodes.map(|(node, &time)| OperatorTime { node: node.name.clone(), operator: node.op_type(), time }).collect()
    }

    /// Runs requests together, the shorter ones padded to the longest.
    fn run_padded(&mut self, requests: &[&[Tensor]], profile: bool) -> Ran {
        let padding = self.padding.clone();
        let Some((padding, (padded, lengths))) = padding.as_deref().and_then(|padding| Some((padding, padding.together(requests)?))) else {
            return self.run(requests, profile);
        };
        let padded: SmallVec<[&[Tensor]; 64]> = padded.iter().map(Vec::as_slice).collect();
        let mut ran = self.run(&padded, profile);
        let longest = lengths.iter().copied().max();
        let cut = |(outputs, length): (Vec<Value>, usize)| if Some(length) < longest { padding.cut(outputs, length) } else { outputs };
        ran.outcome = ran.outcome.map(|results| results.into_iter().zip(lengths).map(cut).collect());
        ran
    }

    /// Runs one request on the calling thread.
    pub(super) fn run_one(&mut self, inputs: &[Tensor], rows: usize, profile: bool) -> Result<InferResponse, Error> {
        let mut ran = self.run(&[inputs], profile);
        let timing = ran.timing(ran.started, rows, Reason::Inline);
        let answered = [Answered { queue: Duration::ZERO, total: timing.compute }];
        let pass = Pass { rows, time: ran.time, reason: Reason::Inline };
        self.stats.pass(&pass, ran.outcome.is_ok().then_some(&answered));
        let outputs = ran.outcome.map_err(Error::from)?.pop().expect("one request has one answer");
        Ok(InferResponse { outputs, timing, profile: ran.profile.take() })
    }

    /// Runs a batch and answers each of its requests; returns the time of its pass if that did not fail.
    fn run_batch(&mut self, batch: Vec<Job<Payload>>, reason: Reason) -> Option<Duration> {
        let rows = batch.iter().map(|job| job.rows).sum();
        // Of one class, so all of them are or none is.
        let background = batch[0].payload.background;
        let mut ran = match batch.as_slice() {
            [job] if !job.payload.overrides.is_empty() => self.run_overriding(&job.payload),
            _ => {
                let inputs: SmallVec<[&[Tensor]; 64]> = batch.iter().map(|job| job.payload.inputs.as_slice()).collect();
                match (batch[0].payload.derived.clone(), background) {
                    (Some(model), _) => self.run_derived(&model, &inputs),
                    (None, true) => self.run(&inputs, false),
                    (None, false) => self.run_padded(&inputs, batch.iter().any(|job| job.payload.profile)),
                }
            }
        };
        let notes = batch.iter().filter_map(|job| job.payload.note.as_ref());
        batch_ran(notes, (ran.started, ran.started + ran.time.total()), rows);
        let pass = Pass { rows, time: ran.time, reason };
        let outcome = std::mem::replace(&mut ran.outcome, Ok(Vec::new()));
        match outcome {
            Ok(results) => {
                let now = Instant::now();
                let counted = |job: &Job<Payload>| Answered {
                    queue: ran.started.saturating_duration_since(job.arrived),
                    total: now.saturating_duration_since(job.arrived),
                };
                // Whose client has gone is counted where that was seen.
                let there = batch.iter().filter(|job| !job.payload.reply.is_closed());
                if background {
                    self.stats.explain_pass(rows, ran.time.total());
                } else {
                    self.stats.pass(&pass, Some(&there.map(counted).collect::<SmallVec<[_; 64]>>()));
                }
                for (job, outputs) in batch.into_iter().zip(results) {
                    let (timing, profile) = (ran.timing(job.arrived, rows, reason), ran.profile.take());
                    answer(job, Ok(InferResponse { outputs, timing, profile }));
                }
                Some(ran.time.total())
            }
            Err(failure) => {
                if background {
                    self.stats.explain_pass(rows, ran.time.total());
                } else {
                    self.stats.pass(&pass, None);
                }
                if batch.len() == 1 {
                    batch
                        .into_iter()
                        .for_each(|job| answer(job, Err(Failed { reason: FailReason::Backend, error: failure.clone().into() })));
                } else {
                    // One request's values may fail the whole pass: alone, only that one fails.
                    for job in batch {
                        self.run_batch(vec![job], reason);
                    }
                }
                None
            }
        }
    }

    /// Takes batches from the queue until it is closed, a turn at the processors for each.
    pub(super) fn work(mut self, worker: usize, queue: &Queue, member: &Member) {
        let single = Arc::new(Threads::single());
        let mut splitting = Splitting::default();
        while queue.wait() {
            let permit = member.enter();
            // While waiting for the turn the batch grew; or its clients went away.
            let Some(Batch { jobs, reason, more }) = queue.take(worker) else { continue };
            let (class, rows) = (jobs[0].class, jobs.iter().map(|job| job.rows).sum());
            let alone = jobs[0].payload.is_alone();
            let beside = permit.has_company() && !alone && self.threads.count() > 1;
            // Where each thread has a pass and the next requests wait, whoever splits takes from the others what it gains.
            let crowded = beside && more && permit.occupies(self.threads.count());
            let may_choose = beside && !crowded;
            let way = if crowded {
                Way::Whole
            } else if may_choose {
                splitting.choose(class, rows)
            } else {
                Way::Split
            };
            self.session.use_threads(Arc::clone(if way == Way::Whole { &single } else { &self.threads }));
            let time = self.run_batch(jobs, reason);
            drop(permit);
            if let Some(time) = time.filter(|_| may_choose) {
                splitting.observe(class, rows, way, time);
            }
            queue.done(worker, time.filter(|_| !alone).map(|time| Done { class, rows, time }));
        }
    }
}

/// Sends the answer; a client that went away does not need it.
fn answer(job: Job<Payload>, outcome: Result<InferResponse, Failed>) {
    let _ = job.payload.reply.send(outcome);
}

#[derive(Clone, Debug)]
enum Failure {
    Run(RunError),
    Panic(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Run(error) => error.into(),
            Failure::Panic(text) => Self::internal("the forward pass failed", text),
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_else(|| "no message".to_owned()))
}
