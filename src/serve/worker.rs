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
use crate::trace::batch_ran;

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
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.session.run_rows(requests)));
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
        let inputs: SmallVec<[&[Tensor]; 64]> = batch.iter().map(|job| job.payload.inputs.as_slice()).collect();
        let batch_rows = batch.iter().map(|job| job.rows).sum();
        let (outcome, compute) = self.run(&inputs, batch_rows, false);
        drop(inputs);
        batch_ran(batch.iter().filter_map(|job| job.payload.note.as_ref()), (started, started + compute), batch_rows);
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
