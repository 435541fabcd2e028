//! What a model's queue and workers promise, tested with operators that block, fail or panic on demand.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::derived::Derived;
use super::handle::{Handle, Parts};
use super::{Compute, Curve, Defaults, FailReason, InferRequest, InferResponse, ModelSettings, Options, Repository, State};
use crate::engine::{
    Context, DType, Dim, Facts, Graph, Inputs, Kind, LoadOptions, Loaded, Metadata, Model, Node, Op, OpDef, OpError, Outputs, Session,
    Shape, Tensor, Threads, Value,
};
use crate::error::{Error, Kind as ErrorKind};

/// Doubles its input `[rows, 2]`; a row that starts with −1 is an error, with −2 a panic. While the gate is shut, no run
/// ends. Remembers the rows of every run.
#[derive(Clone, Debug, Default)]
pub(super) struct Probe {
    /// Adds to each row the rows before it, as a model does whose first dimension is time.
    pub(super) sums_over_rows: bool,
    /// How long another thread works while the one that runs waits, where the session has two.
    pub(super) work: Duration,
    pub(super) gate: Arc<(Mutex<bool>, Condvar)>,
    pub(super) runs: Arc<Mutex<Vec<usize>>>,
    /// Operations that it says a pass has.
    pub(super) operations: u64,
}

impl Probe {
    fn shut(&self) {
        *self.gate.0.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.gate.0.lock().unwrap() = false;
        self.gate.1.notify_all();
    }

    fn runs(&self) -> Vec<usize> {
        self.runs.lock().unwrap().clone()
    }

    /// Waits until `count` runs have begun.
    async fn begun(&self, count: usize) {
        while self.runs().len() < count {
            tokio::task::yield_now().await;
        }
    }
}

impl Op for Probe {
    fn shapes(&self, inputs: &Facts<'_>) -> Result<Vec<Shape>, OpError> {
        Ok(vec![inputs.shape(0)?.into()])
    }

    fn run(&self, inputs: &Inputs<'_>, outputs: &mut Outputs<'_, '_>, context: &mut Context<'_>) -> Result<(), OpError> {
        let x = inputs.at(0)?.array::<f32>()?;
        self.runs.lock().unwrap().push(x.shape()[0]);
        drop(self.gate.1.wait_while(self.gate.0.lock().unwrap(), |shut| *shut).unwrap());
        for row in x.outer_iter() {
            match row[0] {
                -1.0 => return Err(OpError::value("a row starts with -1")),
                -2.0 => panic!("a row starts with -2"),
                _ => {}
            }
        }
        if context.threads.count() > 1 && !self.work.is_zero() {
            let (runs, taken) = (std::thread::current().id(), AtomicBool::new(false));
            context.threads.for_each(vec![(), ()], |()| match std::thread::current().id() == runs {
                true => {
                    while !taken.load(Relaxed) {
                        std::hint::spin_loop();
                    }
                }
                false => {
                    taken.store(true, Relaxed);
                    std::thread::sleep(self.work);
                }
            });
        }
        let mut y = x.mapv(|x| 2.0 * x);
        if self.sums_over_rows {
            y.accumulate_axis_inplace(ndarray::Axis(0), |before, y| *y += *before);
        }
        outputs.at(0)?.array::<f32>()?.assign(&y);
        Ok(())
    }

    fn flops(&self, _: &Facts<'_>) -> u64 {
        self.operations
    }
}

static DEF: OpDef =
    OpDef { name: "Probe", domain: "test", opsets: 1..=1, types: &[], build: |_| Err(OpError::unsupported("only for tests")) };

pub(super) fn model(probe: &Probe) -> Arc<Model> {
    let mut graph = Graph::default();
    let dims = vec![Dim::Free("batch".into()), Dim::Fixed(2)];
    let x = graph.add_value("x", Some(Kind::Tensor(DType::F32)), Some(dims.clone()));
    let y = graph.add_value("y", Some(Kind::Tensor(DType::F32)), Some(dims));
    let op = Arc::new(probe.clone());
    graph.nodes.push(Node {
        name: "probe".into(),
        def: &DEF,
        opset: 1,
        op,
        attributes: Default::default(),
        inputs: vec![Some(x)],
        outputs: vec![Some(y)],
    });
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    Arc::new(Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions::default()).unwrap())
}

/// What a handle over `probe` is started with. All its requests go through the queue: without a measured cost nothing runs
/// inline.
pub(super) fn parts(probe: &Probe, settings: ModelSettings) -> Parts {
    let (model, single) = (model(probe), Arc::new(Threads::single()));
    Parts {
        name: "probe".into(),
        version: "1".into(),
        inline: vec![Session::new(Arc::clone(&model), Arc::clone(&single))],
        model,
        settings,
        warm: None,
        threads: single,
        measured: None,
        left: None,
        padding: None,
        compute: Arc::new(Compute::new(2)),
        derived: Derived::new(Path::new("none"), &LoadOptions::default()),
        background: None,
    }
}

fn handle(probe: &Probe, defaults: &Defaults) -> Arc<Handle> {
    Arc::new(Handle::start(parts(probe, ModelSettings::new(defaults))).unwrap())
}

fn settings(text: &str) -> ModelSettings {
    ModelSettings::parse(text, &Defaults::default()).unwrap()
}

/// A curve on which one row takes `time`.
fn one_row(time: Duration) -> Curve {
    let mut curve = Curve::new(1);
    curve.set(1, time);
    curve
}

fn request(rows: &[[f32; 2]]) -> InferRequest {
    let values = rows.iter().flatten().copied().collect();
    InferRequest::new(vec![Tensor::new(&[rows.len(), 2], values).unwrap()])
}

fn spawn(handle: &Arc<Handle>, request: InferRequest) -> tokio::task::JoinHandle<Result<InferResponse, Error>> {
    let handle = Arc::clone(handle);
    tokio::spawn(async move { handle.infer(request).await })
}

fn first(response: &InferResponse) -> f32 {
    let Value::Tensor(tensor) = &response.outputs[0] else { panic!("a tensor is wanted") };
    tensor.slice::<f32>().unwrap()[0]
}

/// Waits until `count` requests are in the queue.
async fn waiting(handle: &Handle, count: u64) {
    while handle.stats().waiting != count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_while_the_worker_is_busy_shares_the_next_pass() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults { max_batch_rows: 8, ..Defaults::default() });
    probe.shut();
    let busy = spawn(&handle, request(&[[100.0, 0.0]]));
    probe.begun(1).await;
    let mut others = Vec::new();
    for i in 0..5 {
        others.push(spawn(&handle, request(&[[i as f32, 0.0], [0.0, 0.0]])));
        waiting(&handle, i + 1).await;
    }
    probe.open();
    assert_eq!(first(&busy.await.unwrap().unwrap()), 200.0);
    for (i, other) in others.into_iter().enumerate() {
        let response = other.await.unwrap().unwrap();
        assert_eq!(first(&response), 2.0 * i as f32, "each request gets its own rows");
        assert_eq!(response.timing.batch_rows, if i < 4 { 8 } else { 2 });
    }
    assert_eq!(probe.runs(), [1, 8, 2], "requests count by rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_request_does_not_fail_the_others_of_its_batch() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let mut others = Vec::new();
    for (i, value) in [1.0, -1.0, 2.0, -2.0, 3.0].into_iter().enumerate() {
        others.push(spawn(&handle, request(&[[value, 0.0]])));
        waiting(&handle, i as u64 + 1).await;
    }
    probe.open();
    busy.await.unwrap().unwrap();
    let mut outcomes = Vec::new();
    for other in others {
        outcomes.push(other.await.unwrap().map(|response| first(&response)).map_err(|error| error.kind()));
    }
    assert_eq!(outcomes, [Ok(2.0), Err(ErrorKind::InvalidArgument), Ok(4.0), Err(ErrorKind::Internal), Ok(6.0)]);
    let after = handle.infer(request(&[[7.0, 0.0]])).await.unwrap();
    assert_eq!(first(&after), 14.0, "the worker survives a panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_frees_its_place_and_is_not_run() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults { queue_limit: 1, ..Defaults::default() });
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let gone = spawn(&handle, request(&[[1.0, 0.0]]));
    waiting(&handle, 1).await;
    assert_eq!(handle.infer(request(&[[2.0, 0.0]])).await.unwrap_err().kind(), ErrorKind::Overloaded);
    gone.abort();
    waiting(&handle, 0).await;
    let next = spawn(&handle, request(&[[3.0, 0.0]]));
    waiting(&handle, 1).await;
    probe.open();
    busy.await.unwrap().unwrap();
    assert_eq!(first(&next.await.unwrap().unwrap()), 6.0);
    assert_eq!(probe.runs(), [1, 1]);
    assert_eq!(handle.stats().cancelled, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_while_the_worker_is_busy() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let late = InferRequest { deadline: Some(Instant::now() + Duration::from_millis(5)), ..request(&[[1.0, 0.0]]) };
    let error = handle.infer(late).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::DeadlineExceeded, "Request timeout expired"));
    probe.open();
    busy.await.unwrap().unwrap();
    assert_eq!(probe.runs(), [1], "nobody computes what nobody waits for");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_answers_what_waits_and_refuses_what_comes() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    probe.shut();
    let busy = spawn(&handle, request(&[[1.0, 0.0]]));
    probe.begun(1).await;
    let queued = spawn(&handle, request(&[[2.0, 0.0]]));
    waiting(&handle, 1).await;
    let closing = {
        let handle = Arc::clone(&handle);
        tokio::task::spawn_blocking(move || handle.close())
    };
    // Until the queue is closed a request is taken and then gives up its place.
    let impatient = || InferRequest { deadline: Some(Instant::now() + Duration::from_millis(1)), ..request(&[[3.0, 0.0]]) };
    while handle.infer(impatient()).await.unwrap_err().kind() != ErrorKind::Unavailable {}
    probe.open();
    closing.await.unwrap();
    assert_eq!(first(&busy.await.unwrap().unwrap()), 2.0);
    assert_eq!(first(&queued.await.unwrap().unwrap()), 4.0);
}

#[tokio::test]
async fn what_does_not_fit_the_model_is_refused_before_the_queue() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults { max_batch_rows: 2, ..Defaults::default() });
    let error = handle.infer(request(&[])).await.unwrap_err();
    assert!(error.message().contains("the batch is empty"), "{error}");
    let error = handle.infer(request(&[[0.0; 2]; 3])).await.unwrap_err();
    assert!(error.message().contains("3 rows are more than the limit of 2"), "{error}");
    let wrong = InferRequest::new(vec![Tensor::zeros(DType::F32, &[1, 3])]);
    let error = handle.infer(wrong).await.unwrap_err();
    assert_eq!(error.message(), "model `probe`: input `x` wants shape [batch, 2], got [1, 3]");
    assert!(probe.runs().is_empty());
}

#[tokio::test]
async fn a_cheap_pass_runs_on_the_thread_of_its_request() {
    let probe = Probe::default();
    let settings = ModelSettings::new(&Defaults::default());
    let measured = Some((0, one_row(Duration::from_micros(1))));
    let handle = Handle::start(Parts { measured, ..parts(&probe, settings) }).unwrap();
    assert_eq!(first(&handle.infer(request(&[[1.0, 0.0]])).await.unwrap()), 2.0);
    assert_eq!(handle.infer(request(&[[-2.0, 0.0]])).await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(first(&handle.infer(request(&[[1.0, 0.0]])).await.unwrap()), 2.0, "the session survives a panic");
    let stats = handle.stats();
    assert_eq!((stats.inline, stats.batches()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_on_a_waiting_queue_is_seen() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let hour = Duration::from_secs(3600);
    assert_eq!(handle.stalled(Instant::now() + hour), None, "nothing waits: a long pass is no stall");
    let queued = spawn(&handle, request(&[[1.0, 0.0]]));
    waiting(&handle, 1).await;
    assert!(handle.stalled(Instant::now() + hour).unwrap() > hour / 2);
    probe.open();
    busy.await.unwrap().unwrap();
    queued.await.unwrap().unwrap();
    assert_eq!(handle.stalled(Instant::now() + hour), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_overtakes_what_waits() {
    let probe = Probe::default();
    let levels = settings("priority_levels = 3\nmax_batch_rows = 1\n[priority.3]\nqueue_limit = 1");
    let handle = Arc::new(Handle::start(parts(&probe, levels)).unwrap());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let mut others = Vec::new();
    for (i, priority) in [3, 0, 1, 2].into_iter().enumerate() {
        others.push(spawn(&handle, InferRequest { priority, ..request(&[[priority as f32, 0.0]]) }));
        waiting(&handle, i as u64 + 1).await;
    }
    let error = handle.infer(InferRequest { priority: 3, ..request(&[[9.0, 0.0]]) }).await.unwrap_err();
    assert_eq!((error.kind(), handle.stats().failed(FailReason::Rejected)), (ErrorKind::Overloaded, 1), "its level is full");
    probe.open();
    busy.await.unwrap().unwrap();
    let mut passes = Vec::new();
    for other in others {
        passes.push(other.await.unwrap().unwrap().timing.batch);
    }
    assert_eq!(passes, [4, 2, 1, 3], "0 is the middle level");
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_wait_behind_everybody_and_share_no_pass_with_a_client() {
    let probe = Probe::default();
    let handle = Arc::new(Handle::start(parts(&probe, settings("priority_levels = 2\nmax_batch_rows = 4"))).unwrap());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let mut others = Vec::new();
    for (i, background) in [true, true, false, false].into_iter().enumerate() {
        others.push(spawn(&handle, InferRequest { background, ..request(&[[1.0 + i as f32, 0.0]]) }));
        waiting(&handle, i as u64 + 1).await;
    }
    probe.open();
    busy.await.unwrap().unwrap();
    let mut passes = Vec::new();
    for other in others {
        let response = other.await.unwrap().unwrap();
        passes.push((response.timing.batch, response.timing.batch_rows));
    }
    assert_eq!(passes, [(2, 1), (3, 1), (1, 2), (1, 2)], "each has the size that its explanation chose");
    let stats = handle.stats();
    assert_eq!((stats.explain_passes, stats.explain_rows, stats.success.count, stats.rows), (2, 2, 3, 3));
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_at_once() {
    let probe = Probe::default();
    let class = super::handle::shape_class(&request(&[[0.0; 2]]).inputs, true, None);
    let mut curve = Curve::new(64);
    curve.set(1, Duration::from_secs(60));
    let settings = settings("timeout_ms = 1000\n");
    let handle = Handle::start(Parts { measured: Some((class, curve)), ..parts(&probe, settings) }).unwrap();
    let error = handle.infer(request(&[[1.0, 0.0]])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.message().starts_with("the deadline cannot be met: "), "{error}");
    let passed = InferRequest { deadline: Some(Instant::now()), ..request(&[[1.0, 0.0]]) };
    assert_eq!(handle.infer(passed).await.unwrap_err().message(), "Request timeout expired");
    let stats = handle.stats();
    assert_eq!((stats.refused_late, stats.failed(FailReason::Rejected), stats.failed(FailReason::Canceled)), (1, 1, 1));
    assert!(probe.runs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longest_timeout_cuts_what_a_request_asks_for() {
    let probe = Probe::default();
    let settings = settings("max_timeout_ms = 5\n");
    let handle = Arc::new(Handle::start(parts(&probe, settings)).unwrap());
    probe.shut();
    let busy = spawn(&handle, request(&[[0.0, 0.0]]));
    probe.begun(1).await;
    let patient = InferRequest { deadline: Some(Instant::now() + Duration::from_secs(3600)), ..request(&[[1.0, 0.0]]) };
    assert_eq!(handle.infer(patient).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(busy.await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded, "also where it asks for none");
    probe.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_pass_of_one_model_does_not_hold_up_another() {
    let compute = Arc::new(Compute::new(1));
    let (long, short) = (Probe::default(), Probe::default());
    let start = |probe: &Probe| {
        let parts = Parts { compute: Arc::clone(&compute), ..parts(probe, ModelSettings::new(&Defaults::default())) };
        Arc::new(Handle::start(parts).unwrap())
    };
    let (slow, fast) = (start(&long), start(&short));
    long.shut();
    let busy = spawn(&slow, request(&[[1.0, 0.0]]));
    long.begun(1).await;
    for i in 0..3 {
        assert_eq!(first(&fast.infer(request(&[[i as f32, 0.0]])).await.unwrap()), 2.0 * i as f32);
    }
    assert!(!busy.is_finished());
    long.open();
    busy.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_counted_by_how_it_ended() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    assert!(handle.infer(request(&[[1.0, 0.0], [2.0, 0.0]])).await.is_ok());
    assert!(handle.infer(request(&[[-1.0, 0.0]])).await.is_err());
    assert!(handle.infer(request(&[])).await.is_err());
    probe.shut();
    let gone = spawn(&handle, request(&[[1.0, 0.0]]));
    probe.begun(3).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let stats = handle.stats();
    probe.open();
    assert_eq!((stats.success.count, stats.fail.count), (1, 3));
    assert_eq!(FailReason::ALL.map(|reason| stats.failed(reason)), [0, 1, 1, 1]);
    assert_eq!((stats.inference_count, stats.execution_count, stats.batch_stats[&2].infer.count), (2, 1, 1));
    assert_eq!((stats.queue.count, stats.compute.output.count), (1, 1));
    assert_eq!(stats.cancelled, 0, "it was running already");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_every_operator_is_told_to_who_asks() {
    let probe = Probe::default();
    let handle = handle(&probe, &Defaults::default());
    let response = handle.infer(InferRequest { profile: true, ..request(&[[1.0, 0.0]]) }).await.unwrap();
    let profile = response.profile.unwrap();
    assert_eq!(profile.iter().map(|time| time.node.as_str()).collect::<Vec<_>>(), ["probe"]);
    assert!(handle.infer(request(&[[1.0, 0.0]])).await.unwrap().profile.is_none());
}

/// A folder that disappears with the test.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ndserve-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn copy(&self, model: &str, to: &str) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model);
        let target = self.0.join(to);
        for file in ["1/model.onnx", "golden/input_0.pb", "golden/output_0.pb", "model.toml", "background.npz"] {
            std::fs::create_dir_all(target.join(file).parent().unwrap()).unwrap();
            if from.join(file).is_file() {
                std::fs::copy(from.join(file), target.join(file)).unwrap();
            }
        }
        target
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_broken_model_leaves_the_others_serving_and_the_server_not_ready() {
    let folder = Folder::new("broken");
    folder.copy("two-features", "good");
    let broken = folder.copy("two-features", "broken");
    std::fs::write(broken.join("1/model.onnx"), b"not a model").unwrap();
    let wrong = folder.copy("two-features", "wrong-golden");
    std::fs::copy(wrong.join("golden/input_0.pb"), wrong.join("golden/output_0.pb")).unwrap();
    let typo = folder.copy("two-features", "typo");
    std::fs::write(typo.join("model.toml"), "max_batch = 3").unwrap();
    std::fs::create_dir(folder.0.join("empty")).unwrap();

    let repository = Repository::open(Options::new(&folder.0)).unwrap();
    assert!(repository.readiness().unwrap_err().contains("loading") || repository.readiness().unwrap_err().contains("failed"));
    assert_eq!(repository.get("good", None).unwrap_err().kind(), ErrorKind::Unavailable);
    repository.load(|_, _, _, _| {});

    let good = repository.get("good", Some("1")).unwrap();
    assert!(good.infer(request(&[[1.0, 2.0]])).await.is_ok());
    let reason = |name: &str| {
        let status = repository.list().into_iter().find(|model| model.name == name).unwrap().versions.remove(0);
        let State::Failed(reason) = status.state else { panic!("{name} is {:?}", status.state) };
        assert_eq!(repository.get(name, None).unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(repository.get(name, None).unwrap_err().message().contains(&reason));
        reason
    };
    assert!(reason("broken").contains("not an ONNX model"));
    assert!(reason("wrong-golden").contains("the golden samples are not reproduced"));
    assert!(reason("typo").contains("max_batch"));
    assert!(reason("empty").contains("there is no version"));
    assert!(repository.readiness().unwrap_err().contains("failed"));
    assert_eq!(repository.get("nobody", None).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(repository.get("good", Some("2")).unwrap_err().message().contains("its versions are 1"));
    assert_eq!(repository.default_model().unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// A folder of samples lies in the model's folder; beside a model of one file it is a model.
#[test]
fn a_model_called_golden_is_no_folder_of_samples_of_the_files_beside_it() {
    let folder = Folder::new("called-golden");
    let golden = folder.copy("two-features", "golden");
    std::fs::copy(golden.join("1/model.onnx"), folder.0.join("file.onnx")).unwrap();
    let repository = Repository::open(Options::new(&folder.0)).unwrap();
    repository.load(|_, _, _, _| {});
    assert_eq!(repository.readiness(), Ok(()));
}

/// A folder as downloaded holds its model itself, and may hold the same in other formats below.
#[tokio::test]
async fn a_downloaded_folder_is_served_as_it_is() {
    let folder = Folder::new("downloaded");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats/roberta-sequence");
    for target in ["flat", "versioned/7"] {
        std::fs::create_dir_all(folder.0.join(target)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(file), folder.0.join(target).join(file)).unwrap();
        }
    }
    std::fs::create_dir(folder.0.join("flat/onnx")).unwrap();
    std::fs::write(folder.0.join("flat/onnx/model.onnx"), b"another one").unwrap();
    let repository = Repository::open(Options::new(&folder.0)).unwrap();
    repository.load(|_, _, _, _| {});
    assert_eq!(repository.readiness(), Ok(()));
    for (name, version) in [("flat", "1"), ("versioned", "7")] {
        let handle = repository.get(name, Some(version)).unwrap();
        assert_eq!(handle.settings().labels, ["no", "maybe", "yes"], "the configuration's");
        let tokens = || Tensor::new(&[2, 3], vec![5_i64, 6, 7, 8, 1, 1]).unwrap();
        let mask = Tensor::new(&[2, 3], vec![1_i64, 1, 1, 1, 0, 0]).unwrap();
        let response = handle.infer(InferRequest::new(vec![tokens(), mask])).await.unwrap();
        assert_eq!(response.outputs[0].tensor().unwrap().shape(), [2, 3]);
        assert_eq!(repository.list().iter().find(|model| model.name == name).unwrap().versions.len(), 1);
    }
}

/// Requests of 2 to 9 tokens through a queue that a first one holds up: they share passes, and each gets the bits that it gets
/// alone.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_different_lengths_share_a_pass() {
    let folder = Folder::new("lengths");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats/bert-sequence");
    let sequence = |max_padding: f64| {
        format!(
            "max_delay_ms = 60000\nmax_batch_rows = 8\npreferred_batch_rows = [8]\n[sequence]\ndimension = 'sequence'\nbuckets = [8, 16]\nmax_padding = {max_padding}\n\
             [sequence.padding]\ninput_ids = 0\nattention_mask = 0\ntoken_type_ids = 0\n"
        )
    };
    for (model, text) in [("alone", String::new()), ("together", sequence(0.75))] {
        std::fs::create_dir_all(folder.0.join(model).join("1")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(from.join(file), folder.0.join(model).join("1").join(file)).unwrap();
        }
        std::fs::write(folder.0.join(model).join("model.toml"), text).unwrap();
    }
    let repository = Repository::open(Options::new(&folder.0)).unwrap();
    repository.load(|_, _, _, _| {});
    assert_eq!(repository.readiness(), Ok(()));
    let get = |name: &str| Arc::clone(repository.get(name, None).unwrap().handle().unwrap());
    let (alone, together) = (get("alone"), get("together"));
    let tokens = |length: usize| -> Vec<Tensor> {
        let signature = alone.model().signature();
        let tensor = |name: &str| match name {
            "input_ids" => (0..length as i64).map(|i| 3 + i * 2 % 7).collect(),
            "attention_mask" => vec![1_i64; length],
            _ => vec![0_i64; length],
        };
        signature.inputs.iter().map(|port| Tensor::new(&[1, length], tensor(&port.name)).unwrap()).collect()
    };
    let lengths = [2, 3, 5, 8, 4, 7, 2, 6];
    let answers: Vec<_> = lengths.iter().map(|&length| spawn(&together, InferRequest::new(tokens(length)))).collect();
    for (answer, length) in answers.into_iter().zip(lengths) {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.timing.batch_rows, 8, "length {length}");
        let want = alone.infer(InferRequest::new(tokens(length))).await.unwrap();
        let bits = |response: &InferResponse| -> Vec<u32> {
            response.outputs.iter().flat_map(|value| value.tensor().unwrap().slice::<f32>().unwrap()).map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&answer), bits(&want), "length {length}");
    }
}

#[test]
fn no_model_is_not_ready_unless_allowed() {
    let folder = Folder::new("none");
    let options = Options::new(&folder.0);
    let repository = Repository::open(options.clone()).unwrap();
    assert_eq!(repository.readiness(), Err("no model is configured".into()));
    assert_eq!(repository.default_model().unwrap_err().kind(), ErrorKind::NotFound);
    let allowed = Repository::open(Options { allow_no_models: true, ..options.clone() }).unwrap();
    assert_eq!(allowed.readiness(), Ok(()));
    allowed.start_draining();
    assert_eq!(allowed.readiness(), Err("the server is draining".into()));
    let unknown = Options { default_model: Some("x".into()), ..options };
    assert!(Repository::open(unknown).unwrap_err().contains("the default model `x` is not in"));
    assert!(Repository::open(Options::new(folder.0.join("nothing"))).is_err());
}
