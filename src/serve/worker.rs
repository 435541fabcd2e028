//! Running batches: one forward pass for several requests, every one of them answered whatever happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::batcher::Job;
use super::queue::{Payload, Queue};
use super::request::{InferResponse, Timing};
use super::stats::Stats;
use crate::engine::{Model, RunError, Session, Tensor, Threads, Value};
use crate::error::Error;

/// A session that survives a panic of the engine.
#[derive(Debug)]
pub(super) struct Runner {
    model: Arc<Model>,
    threads: Arc<Threads>,
    session: Session,
    stats: Arc<Stats>,
}

impl Runner {
    pub(super) fn new(session: Session, threads: Arc<Threads>, stats: Arc<Stats>) -> Self {
        Self { model: Arc::clone(session.model()), threads, session, stats }
    }

    /// Runs requests together.
    ///
    /// # Errors
    /// As [`Session::run_rows`]; a panic of the engine is an internal error, after which the session is a new one.
    fn run(&mut self, requests: &[&[Tensor]], rows: usize, inline: bool) -> (Result<Vec<Vec<Value>>, Failure>, Duration) {
        self.guard(rows, inline, |session| session.run_rows(requests))
    }

    /// Runs one request that replaces initialisers.
    fn run_overriding(&mut self, Job { payload, rows, .. }: &Job<Payload>) -> (Result<Vec<Vec<Value>>, Failure>, Duration) {
        let inputs: Vec<Value> = payload.inputs.iter().cloned().map(Value::Tensor).collect();
        self.guard(*rows, false, |session| Ok(vec![session.run_overriding(&inputs, &payload.overrides)?]))
    }

    fn guard<R>(
        &mut self,
        rows: usize,
        inline: bool,
        run: impl FnOnce(&mut Session) -> Result<R, RunError>,
    ) -> (Result<R, Failure>, Duration) {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut self.session)));
        let compute = start.elapsed();
        self.stats.batch(rows, compute, inline);
        let outcome = match outcome {
            Ok(outcome) => outcome.map_err(Failure::Run),
            Err(panic) => {
                self.session = Session::new(Arc::clone(&self.model), Arc::clone(&self.threads));
                Err(Failure::Panic(panic_text(&*panic)))
            }
        };
        (outcome, compute)
    }

    /// Runs one request on the calling thread.
    pub(super) fn run_one(&mut self, inputs: &[Tensor], rows: usize) -> Result<InferResponse, Error> {
        let (outcome, compute) = self.run(&[inputs], rows, true);
        let outputs = outcome.map_err(Error::from)?.pop().expect("one request has one answer");
        Ok(InferResponse { outputs, timing: Timing { queue: Duration::ZERO, compute, batch_rows: rows } })
    }

    /// Runs a batch and answers each of its requests.
    fn run_batch(&mut self, batch: Vec<Job<Payload>>) {
        let started = Instant::now();
        let batch_rows = batch.iter().map(|job| job.rows).sum();
        let overrides = batch.iter().any(|job| !job.payload.overrides.is_empty());
        if overrides && batch.len() > 1 {
            return batch.into_iter().for_each(|job| self.run_batch(vec![job]));
        }
        let (outcome, compute) = if overrides {
            self.run_overriding(&batch[0])
        } else {
            let inputs: SmallVec<[&[Tensor]; 64]> = batch.iter().map(|job| job.payload.inputs.as_slice()).collect();
            self.run(&inputs, batch_rows, false)
        };
        match outcome {
            Ok(results) => {
                for (job, outputs) in batch.into_iter().zip(results) {
                    let timing = Timing { queue: started.saturating_duration_since(job.arrived), compute, batch_rows };
                    answer(job, Ok(InferResponse { outputs, timing }));
                }
            }
            Err(failure) if batch.len() == 1 => {
                for job in batch {
                    answer(job, Err(Error::from(failure.clone())));
                }
            }
            // One request's values may fail the whole pass: alone, only that one fails.
            Err(_) => batch.into_iter().for_each(|job| self.run_batch(vec![job])),
        }
    }

    /// Takes batches from the queue until it is closed.
    pub(super) fn work(mut self, queue: &Queue) {
        while let Some(batch) = queue.next() {
            self.run_batch(batch);
        }
    }
}

/// Sends the answer; a client that went away does not need it.
fn answer(job: Job<Payload>, outcome: Result<InferResponse, Error>) {
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
