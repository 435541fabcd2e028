//! One loaded version of a model: what a request talks to.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::batcher::Limits;
use super::compute::{Compute, Member};
use super::curve::Curve;
use super::derived::Derived;
use super::loading::Left;
use super::queue::{Failed, Joining, Payload, Queue, Ticket, expired};
use super::request::{InferRequest, InferResponse};
use super::sequence::Padding;
use super::settings::ModelSettings;
use super::stats::{FailReason, Stats, StatsSnapshot};
use super::worker::Runner;
use crate::engine::{Model, Session, Tensor, Threads};
use crate::error::Error;
use crate::explain::{Method, Program};
use crate::trace::PassNote;

/// A pass this short costs less than waking a worker for it: it always runs on the thread of its request.
const INLINE_ALWAYS: Duration = Duration::from_micros(15);
/// A pass this short may run on the thread of its request if the model has no other request: nobody could share the pass,
/// and other connections of the thread wait no longer than for parsing a large body.
pub(super) const INLINE_ALONE: Duration = Duration::from_micros(250);

/// A version of a model, ready to answer.
#[derive(Debug)]
pub struct Handle {
    name: String,
    version: String,
    model: Arc<Model>,
    settings: ModelSettings,
    queue: Arc<Queue>,
    stats: Arc<Stats>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Sessions for passes that run on the thread of their request.
    inline: Box<[Mutex<Runner>]>,
    /// Time over rows as measured while warming up; `None` if that was not possible.
    warm: Option<Curve>,
    /// The same as measured behind the start, if that left it.
    settled: OnceLock<Curve>,
    /// What the start left to be found out.
    left: Mutex<Option<Left>>,
    /// The class of inputs that was measured.
    class: Option<u64>,
    /// How requests of different lengths share a pass.
    padding: Option<Arc<Padding>>,
    member: Arc<Member>,
    in_flight: AtomicUsize,
    /// What explanations run beside the model.
    derived: Derived,
    /// The declared background of explanations.
    background: Option<Vec<Tensor>>,
}

/// What [`Handle::start`] needs beside the model.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) model: Arc<Model>,
    pub(super) settings: ModelSettings,
    /// A session that has run: its memory is there already.
    pub(super) warm: Option<Session>,
    pub(super) threads: Arc<Threads>,
    /// For passes on the threads of requests.
    pub(super) inline: Vec<Session>,
    /// Time over rows, and for which class of input.
    pub(super) measured: Option<(u64, Curve)>,
    /// What is to be found out while it serves.
    pub(super) left: Option<Left>,
    /// How requests of different lengths share a pass.
    pub(super) padding: Option<Padding>,
    /// The processors that the model shares with others.
    pub(super) compute: Arc<Compute>,
    /// What explanations run beside the model.
    pub(super) derived: Derived,
    /// The declared background of explanations.
    pub(super) background: Option<Vec<Tensor>>,
}

impl Handle {
    /// Starts the workers.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(super) fn start(parts: Parts) -> std::io::Result<Self> {
        let Parts { name, version, model, settings, mut warm, threads, inline, measured, left, padding, compute, derived, background } =
            parts;
        let padding = padding.map(Arc::new);
        let stats = Arc::new(Stats::default());
        let (class, curve) = measured.clone().unzip();
        let limits = limits(&settings, model.signature().batchable);
        let queue = Arc::new(Queue::new(limits, settings.instances, measured, Arc::clone(&stats)));
        if left.is_some() {
            queue.set_joining(Joining::Unknown, None);
        }
        let member = Arc::new(compute.join(settings.share));
        let mut workers = Vec::new();
        for instance in 0..settings.instances {
            let session = warm.take().unwrap_or_else(|| Session::new(Arc::clone(&model), Arc::clone(&threads)));
            let runner = Runner::new(session, Arc::clone(&threads), Arc::clone(&stats), padding.clone());
            let (queue, member) = (Arc::clone(&queue), Arc::clone(&member));
            let builder = std::thread::Builder::new().name(format!("{name}-{instance}"));
            workers.push(builder.spawn(move || runner.work(instance, &queue, &member))?);
        }
        let single = Arc::new(Threads::single());
        let inline = inline.into_iter().map(|session| Mutex::new(Runner::new(session, Arc::clone(&single), Arc::clone(&stats), None)));
        let (workers, inline) = (Mutex::new(workers), inline.collect());
        Ok(Self {
            name,
            version,
            model,
            settings,
            queue,
            stats,
            workers,
            inline,
            warm: curve,
            settled: OnceLock::new(),
            left: Mutex::new(left),
            class,
            padding,
            member,
            in_flight: AtomicUsize::new(0),
            derived,
            background,
        })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The model: its signature and metadata.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The settings in force.
    pub fn settings(&self) -> &ModelSettings {
        &self.settings
    }

    /// The background that the model's folder declares for explanations: one tensor per input.
    pub fn background(&self) -> Option<&[Tensor]> {
        self.background.as_deref()
    }

    /// Counts an answered request for explanations.
    pub(super) fn count_explanation(&self, method: Method) {
        self.stats.explanation(method);
    }

    /// What explains output `output`; blocks while it is made.
    ///
    /// # Errors
    /// As [`Derived::get`].
    pub(super) fn derived(&self, program: Program, output: usize) -> Result<Arc<Model>, Error> {
        self.derived.get(program, output, self.model.signature())
    }

    /// Counters of the queue and the workers.
    pub fn stats(&self) -> StatsSnapshot {
        self.stats.snapshot()
    }

    /// Time of a forward pass of one row, as measured while warming up or behind the start.
    pub fn row_cost(&self) -> Option<Duration> {
        self.settled.get().or(self.warm.as_ref())?.time(1)
    }

    /// Whether requests share passes, as far as it is known.
    pub fn joining(&self) -> Joining {
        if self.settings.batching { self.queue.joining() } else { Joining::No }
    }

    /// What the start left to be found out, until somebody has.
    pub(super) fn left(&self) -> Option<Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes what was found out, from whoever is first: whether the answer to a row is independent of those beside it, and the time over
    /// rows.
    pub(super) fn settled(&self, independent: bool, curve: Option<Curve>) {
        if self.left.lock().unwrap_or_else(PoisonError::into_inner).take().is_none() {
            return;
        }
        let joining = if independent { Joining::Yes } else { Joining::No };
        if let Some(curve) = curve.clone() {
            let _ = self.settled.set(curve);
        }
        self.queue.set_joining(joining, self.class.zip(curve));
    }

    /// Time over rows, for the inputs that were measured while warming up, as it is known now: passes that are run for
    /// requests keep it up to date. `None` if nothing has run yet.
    pub fn curve(&self) -> Option<Curve> {
        self.queue.curve()
    }

    /// How long a request has been waiting without any worker making progress.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        self.queue.stalled(now)
    }

    /// Computes the model's outputs for a request. Dropping the future takes the request out of the queue.
    ///
    /// # Errors
    /// - `InvalidArgument`: the inputs do not fit the signature or the limits, or an operator finds a value out of range;
    /// - `Overloaded`: the queue is full, or the deadline cannot be met; `Unavailable`: the model is being unloaded;
    /// - `DeadlineExceeded`: the deadline passed first;
    /// - `Internal`: the engine failed.
    #[expect(clippy::manual_async_fn, reason = "a block has one place for the request where an `async fn` has two")]
    pub fn infer(&self, request: InferRequest) -> impl Future<Output = Result<InferResponse, Error>> + Send {
        async move {
            let arrived = Instant::now();
            let background = request.background;
            let outcome = match self.begin(request, arrived) {
                Ok(Begun::Answered(response)) => Ok(response),
                // In a box: the future of a request that never waits is small, and it is what is moved about for each.
                Ok(Begun::Waits(waiting)) => Box::pin(waiting.answer()).await,
                Err(failed) => Err(failed),
            };
            outcome.map_err(|Failed { reason, error }| {
                if !background {
                    self.stats.fail(reason, arrived.elapsed());
                }
                error
            })
        }
    }

    /// Computes the outputs of what was made of the model, in its queue and behind all others.
    ///
    /// # Errors
    /// As [`Handle::infer`].
    pub(super) async fn infer_derived(&self, model: Arc<Model>, request: InferRequest) -> Result<InferResponse, Error> {
        let arrived = Instant::now();
        let InferRequest { inputs, deadline, .. } = request;
        model.signature().check(&inputs).map_err(|mismatch| Error::internal("the explanation failed", mismatch.to_string()))?;
        let rows = model.signature().rows(&inputs).unwrap_or(1);
        let waiting = self.behind(inputs, Some(model), rows, (deadline, arrived)).map_err(|failed| failed.error)?;
        waiting.answer().await.map_err(|failed| failed.error)
    }

    /// Queues a request behind all levels of priority; it shares its pass with nobody: none makes the pass of a client's longer.
    fn behind(
        &self,
        inputs: Vec<Tensor>,
        derived: Option<Arc<Model>>,
        rows: usize,
        (deadline, arrived): (Option<Instant>, Instant),
    ) -> Result<Waiting<'_>, Failed> {
        const SALT: u64 = 0x9e37_79b9_7f4a_7c15;
        let model = derived.as_ref().unwrap_or(&self.model);
        let class = shape_class(&inputs, model.signature().batchable, None);
        let class = (class ^ Arc::as_ptr(model) as u64).wrapping_mul(SALT);
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { level: self.settings.priority_levels, rows, class, deadline };
        let payload = Payload { inputs, overrides: Vec::new(), profile: false, background: true, derived, note: None, reply };
        let id = self.queue.push(ticket, payload)?;
        let place = Place { queue: &self.queue, stats: None, arrived, id: Some(id) };
        Ok(Waiting { place, answer, deadline, note: None, _in_flight: None })
    }

    /// Answers a request on this thread, or queues it.
    fn begin(&self, request: InferRequest, arrived: Instant) -> Result<Begun<'_>, Failed> {
        let rows = self.validate(&request).map_err(Failed::because(FailReason::Other))?;
        let InferRequest { inputs, overrides, priority, deadline, profile, background } = request;
        if background {
            return self.behind(inputs, None, rows, (deadline, arrived)).map(Begun::Waits);
        }
        let level = self.settings.level(priority);
        let deadline = self.deadline(deadline, level, arrived);
        if deadline.is_some_and(|deadline| deadline <= arrived) {
            return Err(expired());
        }
        let in_flight = InFlight::enter(&self.in_flight);
        let note = PassNote::current(&self.name, &self.version);
        let profile = profile || note.as_ref().is_some_and(PassNote::wants_profile);
        // One that replaces initialisers may have a program to make first: not on this thread.
        if overrides.is_empty()
            && self.may_run_inline(rows)
            && let Some(mut runner) = self.inline_runner()
        {
            let outcome = runner.run_one(&inputs, rows, profile);
            if let (Some(note), Ok(response)) = (note, &outcome) {
                note.ran((response.timing.started, Instant::now()), rows, None);
                note.profiled(response.profile.clone());
            }
            return outcome.map(Begun::Answered).map_err(Failed::because(FailReason::Backend));
        }
        let class = shape_class(&inputs, self.model.signature().batchable, self.padding.as_deref());
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket { level: level - 1, rows, class, deadline };
        let id =
            self.queue.push(ticket, Payload { inputs, overrides, profile, background: false, derived: None, note: note.clone(), reply })?;
        let place = Place { queue: &self.queue, stats: Some(&self.stats), arrived, id: Some(id) };
        Ok(Begun::Waits(Waiting { place, answer, deadline, note, _in_flight: Some(in_flight) }))
    }

    /// Checks a request; returns its rows.
    fn validate(&self, InferRequest { inputs, overrides, .. }: &InferRequest) -> Result<usize, Error> {
        let signature = self.model.signature();
        let name = &self.name;
        signature
            .check(inputs)
            .and_then(|()| signature.check_overrides(overrides))
            .map_err(|mismatch| Error::invalid(format!("model `{name}`: {mismatch}")))?;
        let rows = signature.rows(inputs).unwrap_or(1);
        let limit = self.settings.max_batch_rows;
        match rows {
            0 => Err(Error::invalid(format!("model `{name}`: the batch is empty; at least one row is wanted"))),
            rows if rows > limit => {
                Err(Error::invalid(format!("model `{name}`: {rows} rows are more than the limit of {limit} per request (max_batch_rows)")))
            }
            rows => Ok(rows),
        }
    }

    /// When a request of `level` must be answered: what it says, else what its level or the model says, and never later than
    /// these allow.
    fn deadline(&self, asked: Option<Instant>, level: usize, arrived: Instant) -> Option<Instant> {
        let policy = self.settings.priorities.get(&level).copied().unwrap_or_default();
        let timeout = policy.timeout.or(self.settings.timeout);
        let longest = policy.max_timeout.or(self.settings.max_timeout).and_then(|longest| arrived.checked_add(longest));
        let deadline = asked.or_else(|| arrived.checked_add(timeout?));
        deadline.into_iter().chain(longest).min()
    }

    /// A runner that no other thread uses now; each thread looks first at the one that it had before.
    fn inline_runner(&self) -> Option<MutexGuard<'_, Runner>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static FIRST: usize = NEXT.fetch_add(1, Relaxed);
        }
        let count = self.inline.len();
        let first = FIRST.with(|first| *first);
        (0..count).find_map(|i| match self.inline[(first + i) % count].try_lock() {
            Ok(runner) => Some(runner),
            // A panic of the engine is caught within; the runner is whole.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }

    fn may_run_inline(&self, rows: usize) -> bool {
        let Some(cost) = self.warm.as_ref().and_then(|warm| warm.time(rows)) else { return false };
        let alone = || self.in_flight.load(Relaxed) == 1 && !self.member.is_contended();
        self.settings.max_delay.is_zero() && (cost <= INLINE_ALWAYS || (cost <= INLINE_ALONE && alone()))
    }

    /// Refuses new requests, finishes those that wait, and ends the workers.
    pub(super) fn close(&self) {
        self.queue.close();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            // A worker catches panics per batch; one that died all the same has nothing left to finish.
            let _ = worker.join();
        }
        // A process that ends drops nothing.
        self.derived.hold(None);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// What became of a request at once.
enum Begun<'a> {
    Answered(InferResponse),
    Waits(Waiting<'a>),
}

/// A request in the queue.
struct Waiting<'a> {
    place: Place<'a>,
    answer: Answer,
    deadline: Option<Instant>,
    note: Option<PassNote>,
    _in_flight: Option<InFlight<'a>>,
}

impl Waiting<'_> {
    async fn answer(self) -> Result<InferResponse, Failed> {
        let answer = self.place.wait(self.answer, self.deadline).await;
        if let (Some(note), Ok(response)) = (self.note, &answer) {
            note.profiled(response.profile.clone());
        }
        answer
    }
}

/// Counts a request while it is under way.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A request's place in the queue, given up when its client goes away.
struct Place<'a> {
    queue: &'a Queue,
    /// Where a client that goes away is counted, if it is.
    stats: Option<&'a Stats>,
    arrived: Instant,
    id: Option<u64>,
}

impl Place<'_> {
    /// Waits for the answer; the deadline holds by this timer, not when a worker comes around.
    async fn wait(mut self, answer: Answer, deadline: Option<Instant>) -> Result<InferResponse, Failed> {
        let answer = match deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    if let Some(id) = self.id.take() {
                        self.queue.cancel(id, true);
                    }
                    return Err(expired());
                }
            },
            None => answer.await,
        };
        self.id = None;
        answer.unwrap_or_else(|_| {
            let error = Error::internal("the request was lost", "a worker dropped a request without an answer");
            Err(Failed { reason: FailReason::Backend, error })
        })
    }
}

/// Where a worker sends an answer.
type Answer = oneshot::Receiver<Result<InferResponse, Failed>>;

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.queue.cancel(id, false);
            if let Some(stats) = self.stats {
                stats.fail(FailReason::Canceled, self.arrived.elapsed());
            }
        }
    }
}

fn limits(settings: &ModelSettings, batchable: bool) -> Limits {
    let batching = settings.batching && batchable;
    let queue_limit = |level: usize| settings.priorities.get(&level).and_then(|policy| policy.queue_limit).unwrap_or(settings.queue_limit);
    Limits {
        max_rows: if batching { settings.max_batch_rows } else { 1 },
        preferred_rows: if batching { settings.preferred_batch_rows.clone() } else { Vec::new() },
        max_delay: if batching { settings.max_delay } else { Duration::ZERO },
        // The last one is that of explanations, behind all levels of clients.
        queue_limits: (1..=settings.priority_levels).map(queue_limit).chain([settings.queue_limit]).collect(),
    }
}

/// A hash of the shapes without the batch dimension: requests of equal class can be run together. Two different shapes of
/// one hash would be found when the rows are gathered, and then run alone.
pub(super) fn shape_class(inputs: &[Tensor], batchable: bool, padding: Option<&Padding>) -> u64 {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0100_0000_01b3;
    let add = |hash: u64, size: usize| (hash ^ size as u64).wrapping_mul(FNV_PRIME);
    if let Some(padding) = padding {
        return padding.sizes(inputs).into_iter().fold(FNV_OFFSET, add);
    }
    let skip = usize::from(batchable);
    inputs.iter().flat_map(|tensor| tensor.shape().iter().skip(skip).copied().chain([usize::MAX])).fold(FNV_OFFSET, add)
}
