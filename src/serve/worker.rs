//! Running batches: one forward pass for several requests, every one of them answered whatever happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::batcher::{Job, Reason};
use super::queue::{Failed, Payload, Queue};
use super::request::{InferResponse, OperatorTime, Timing};
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
}

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
    pub(super) fn new(session: Session, threads: Arc<Threads>, stats: Arc<Stats>) -> Self {
        Self { model: Arc::clone(session.model()), threads, session, stats }
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

    fn pass(&mut self, profile: bool, run: impl FnOnce(&mut Session) -> Result<Vec<Vec<Value>>, RunError>) -> Ran {
        let batch = self.stats.next_pass();
        if profile {
            self.session.start_profile();
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut self.session)));
        let time = self.session.time();
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

    /// Runs a batch and answers each of its requests.
    fn run_batch(&mut self, batch: Vec<Job<Payload>>, reason: Reason) {
        let overrides = batch.iter().any(|job| !job.payload.overrides.is_empty());
        if overrides && batch.len() > 1 {
            return batch.into_iter().for_each(|job| self.run_batch(vec![job], reason));
        }
        let rows = batch.iter().map(|job| job.rows).sum();
        let mut ran = if overrides {
            self.run_overriding(&batch[0].payload)
        } else {
            let inputs: SmallVec<[&[Tensor]; 64]> = batch.iter().map(|job| job.payload.inputs.as_slice()).collect();
            self.run(&inputs, batch.iter().any(|job| job.payload.profile))
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
                self.stats.pass(&pass, Some(&batch.iter().map(counted).collect::<SmallVec<[_; 64]>>()));
                for (job, outputs) in batch.into_iter().zip(results) {
                    let (timing, profile) = (ran.timing(job.arrived, rows, reason), ran.profile.take());
                    answer(job, Ok(InferResponse { outputs, timing, profile }));
                }
            }
            Err(failure) => {
                self.stats.pass(&pass, None);
                if batch.len() == 1 {
                    batch
                        .into_iter()
                        .for_each(|job| answer(job, Err(Failed { reason: FailReason::Backend, error: failure.clone().into() })));
                } else {
                    // One request's values may fail the whole pass: alone, only that one fails.
                    batch.into_iter().for_each(|job| self.run_batch(vec![job], reason));
                }
            }
        }
    }

    /// Takes batches from the queue until it is closed.
    pub(super) fn work(mut self, queue: &Queue) {
        while let Some((batch, reason)) = queue.next() {
            self.run_batch(batch, reason);
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
