//! From a version's folder to a [`Handle`] that is ready: load, warm up, verify the golden samples, measure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::curve::Curve;
use super::derived::Derived;
use super::golden::Golden;
use super::handle::{Handle, INLINE_ALONE, Parts, shape_class};
use super::repository::{Options, version_file};
use super::sequence::{self, Padding};
use super::settings::{ModelSettings, Warmup, WarmupData};
use super::worker::panic_text;
use crate::engine::{DType, Dim, LoadOptions, Model, Port, Session, Shape, Tensor, Threads, Value};
use crate::resources::{lower_priority, thread_time};

/// What is to be loaded.
#[derive(Debug)]
pub(super) struct Task<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) file: &'a Path,
    /// The folder of golden samples, which need not exist.
    pub(super) golden: Option<&'a Path>,
    pub(super) settings: ModelSettings,
    pub(super) options: &'a Options,
    /// The threads for loading; those of `options` are for requests.
    pub(super) threads: Arc<Threads>,
    /// What serves meanwhile: it tells how time grows with rows.
    pub(super) before: Option<&'a Handle>,
    /// Whether nobody is served before this version is ready: then what takes long and no answer needs is left to [`settle`].
    pub(super) hurry: bool,
}

/// What is to be found out about a version that serves already: whether its requests may share passes, and how time grows with rows.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// Some rows.
    inputs: Vec<Tensor>,
    /// How long to measure.
    budget: Duration,
}

/// Loads `folder/<version>` of the model `name`.
///
/// # Errors
/// What went wrong with which file.
pub fn load_version(name: &str, version: &str, folder: &Path, settings: ModelSettings, options: &Options) -> Result<Handle, String> {
    let file = version_file(folder, version, &settings)?;
    let golden = folder.join("golden");
    let threads = Arc::clone(&options.threads);
    let parts =
        prepare(Task { name, version, file: &file, golden: Some(&golden), settings, options, threads, before: None, hurry: false })?;
    Handle::start(parts).map_err(|error| format!("the system cannot start a worker: {error}"))
}

/// Loads, warms up, verifies and measures; what is left is to start the workers.
///
/// # Errors
/// What went wrong with which file.
pub(super) fn prepare(task: Task<'_>) -> Result<Parts, String> {
    let Task { name, version, file, golden, mut settings, options, threads, before, hurry } = task;
    let begun = Instant::now();
    // Stamped before the file is read: one that replaces it meanwhile is not the one that serves.
    let derived = Derived::new(file, &options.load);
    let load = LoadOptions { threads: Arc::clone(&threads), ..options.load.clone() };
    let model = Model::load(file, &load).map_err(|error| format!("{}: {error}", file.display()))?;
    if let Some(reason) = model.damaged_weights() {
        tracing::warn!(model = name, version, reason, "packed weights that were kept are damaged, and were packed again");
    }
    if load.weight_cache.is_some() {
        tracing::debug!(model = name, version, bytes = model.found_bytes(), "found packed weights");
    }
    let model = Arc::new(model);
    if settings.labels.is_empty() {
        settings.labels.clone_from(&model.metadata().labels);
    }
    check_labels(&model, &settings)?;
    if let Some(declared) = &settings.declared {
        declared.check(model.signature()).map_err(|error| format!("the configuration does not fit the model: {error}"))?;
    }
    // The folder of golden samples lies in the model's, as does what it declares.
    let folder = golden.and_then(Path::parent).unwrap_or_else(|| file.parent().unwrap_or(Path::new("")));
    let background = settings.explain.read_background(folder, model.signature(), options.load.memory_limit)?;
    // A version may have samples of its own: those of another version need not be its answers. Beside a model of one file
    // `golden` is another model.
    let own = golden.and(file.parent()).map(|folder| folder.join("golden")).filter(|own| own.is_dir());
    let golden = own.as_deref().or(golden).map(Golden::read).transpose()?.flatten();
    let before = before.filter(|before| before.model().signature() == model.signature()).and_then(Handle::curve);
    let measure = |session: &mut Session, inputs: &[Tensor], settings: &ModelSettings| {
        warm_up(session, inputs, settings, (budget(begun), before.as_ref()))
    };
    let mut session = Session::new(Arc::clone(&model), threads);
    let mut left = None;
    let mut leave = |session: &mut Session, inputs: &[Tensor], settings: &ModelSettings| {
        let one = if hurry { if_slow(session, inputs, settings)? } else { None };
        left = one.is_some().then(|| Left { inputs: inputs.to_vec(), budget: budget(begun) });
        Ok::<_, String>(one)
    };
    let (measured, sample) = match golden {
        Some(golden) => {
            let answer = reproduce(&mut session, &golden, &settings)?;
            let measured = match leave(&mut session, &golden.inputs, &settings)? {
                Some(one) => one,
                None => {
                    settings.batching &= rows_are_independent(&mut session, &golden.inputs, &answer, (name, version))?;
                    measure(&mut session, &golden.inputs, &settings)?
                }
            };
            (Some(measured), Some(golden.inputs))
        }
        // Without a recorded sample an input is made up, which the model need not take: then its first request tells.
        None => {
            let measured = made_up(&model).and_then(|inputs| {
                if let Some(one) = leave(&mut session, &inputs, &settings).ok()? {
                    return Some(one);
                }
                let answer = session.run(&inputs).ok()?;
                settings.batching &= rows_are_independent(&mut session, &inputs, &answer, (name, version)).ok()?;
                measure(&mut session, &inputs, &settings).ok()
            });
            (measured, None)
        }
    };
    run_warmups(&mut session, &settings)?;
    let padding = padding(&mut session, sample, &settings, (name, version))?;
    let inline = inline_sessions(&model, measured.as_ref(), options.inline_sessions)?;
    let batchable = model.signature().batchable;
    let measured = measured.map(|(row, curve)| (shape_class(&row, batchable, padding.as_ref()), curve));
    session.use_threads(Arc::clone(&options.threads));
    let (name, version) = (name.to_owned(), version.to_owned());
    Ok(Parts {
        name,
        version,
        model,
        settings,
        warm: Some(session),
        threads: Arc::clone(&options.threads),
        inline,
        measured,
        left,
        padding,
        compute: Arc::clone(&options.compute),
        derived,
        background,
    })
}

/// If a row takes so long that what is to be found out with `inputs` would keep the version from serving for a time that somebody notices,
/// returns the row and the curve so far. Where the operations of a row do not tell, it is run once.
fn if_slow(session: &mut Session, inputs: &[Tensor], settings: &ModelSettings) -> Result<Option<(Vec<Tensor>, Curve)>, String> {
    const NOTICED: Duration = Duration::from_millis(50);
    /// What takes a few threads that long, all rows together and each alone.
    const NOTICED_OPERATIONS: u64 = 2_000_000_000;
    let signature = session.model().signature();
    let rows = signature.rows(inputs).unwrap_or(1);
    let row = if signature.batchable { one_row(inputs, 0) } else { inputs.to_vec() };
    let mut curve = Curve::new(rows_max(session, settings));
    if operations(session.model(), &row) > NOTICED_OPERATIONS {
        return Ok(Some((row, curve)));
    }
    let time = least_time(session, &row, 1, Instant::now())?;
    // All rows together, and each alone.
    if time * u32::try_from(2 * rows).unwrap_or(u32::MAX) < NOTICED {
        return Ok(None);
    }
    curve.set(1, time);
    Ok(Some((row, curve)))
}

/// The operations of a pass, as far as its operators tell; 0 if they cannot be known before it.
fn operations(model: &Model, inputs: &[Tensor]) -> u64 {
    let shapes: Vec<Shape> = inputs.iter().map(|input| input.shape().into()).collect();
    model.plan(&shapes).map_or(0, |plan| plan.work())
}

/// Writes packed weights for the next process, if they are to be kept and are not yet, on a thread that gets the time which others leave.
pub(super) fn keep_weights(handles: Vec<Arc<Handle>>) {
    let lacking = |handle: &Arc<Handle>| handle.model().lacks_kept_weights();
    let lacking: Vec<Arc<Handle>> = handles.into_iter().filter(lacking).collect();
    if lacking.is_empty() {
        return;
    }
    let work = move || {
        lower_priority();
        lacking.iter().for_each(|handle| keep_weights_of(handle));
    };
    if let Err(error) = std::thread::Builder::new().name("keep".to_owned()).spawn(work) {
        tracing::warn!(%error, "packed weights are not kept: the system cannot start a thread");
    }
}

fn keep_weights_of(handle: &Handle) {
    let (model, version) = (handle.name(), handle.version());
    for kept in handle.model().keep_weights() {
        match kept {
            Ok(kept) => tracing::info!(model, version, file = %kept.path.display(), bytes = kept.bytes, "kept packed weights"),
            Err(reason) => tracing::warn!(model, version, reason, "packed weights are not kept"),
        }
    }
}

/// Finds out what the start left, while the version serves.
pub(super) fn settle(handle: &Handle, threads: &Arc<Threads>) {
    let Some(left) = handle.left() else { return };
    let (model, settings, names) = (handle.model(), handle.settings(), (handle.name(), handle.version()));
    let find_out = || -> Result<(bool, Curve), String> {
        let mut session = Session::new(Arc::clone(model), Arc::clone(threads));
        let answer = session.run(&left.inputs).map_err(|error| format!("the model does not run on some rows: {error}"))?;
        let independent = rows_are_independent(&mut session, &left.inputs, &answer, names)?;
        let (_, curve) = warm_up(&mut session, &left.inputs, settings, (left.budget, None))?;
        Ok((independent, curve))
    };
    // A bug that one model brings out must not keep others from serving.
    let found = catch_unwind(AssertUnwindSafe(find_out)).unwrap_or_else(|panic| Err(panic_text(&*panic)));
    let (independent, curve) = match found {
        Ok((independent, curve)) => (independent, Some(curve)),
        Err(reason) => {
            tracing::warn!(model = names.0, version = names.1, reason, "requests are not batched");
            (false, None)
        }
    };
    handle.settled(independent, curve);
}

/// The most rows of a pass that several requests share.
fn rows_max(session: &Session, settings: &ModelSettings) -> usize {
    if settings.batching && session.model().signature().batchable { settings.max_batch_rows } else { 1 }
}

/// Labels name the classes of an output: its last dimension must have as many.
fn check_labels(model: &Model, settings: &ModelSettings) -> Result<(), String> {
    let labels = settings.labels.len();
    if labels == 0 {
        return Ok(());
    }
    let last = |dims: &Vec<Dim>| matches!(dims.last(), Some(Dim::Fixed(n)) if *n == labels) || matches!(dims.last(), Some(Dim::Free(_)));
    let fits = model.signature().outputs.iter().any(|port| port.dims.as_ref().is_none_or(last));
    let outputs =
        || model.signature().outputs.iter().map(|port| format!("`{}` {}", port.name, port.dims_text())).collect::<Vec<_>>().join(", ");
    if fits {
        Ok(())
    } else {
        Err(format!("model.toml: there are {labels} labels, and no output has a last dimension of {labels}: {}", outputs()))
    }
}

/// Numbers that look random; Numerical Recipes' linear congruential generator.
struct Noise(u32);

impl Noise {
    /// A number in −1..1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.0) / f64::from(u32::MAX) * 2.0 - 1.0
    }

    fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Option<Tensor> {
        let len = shape.iter().product();
        // Zero and one are indices that every table has.
        match dtype {
            DType::F32 => Tensor::new(shape, (0..len).map(|_| self.next() as f32).collect()),
            DType::F64 => Tensor::new(shape, (0..len).map(|_| self.next()).collect()),
            DType::I64 => Tensor::new(shape, (0..len).map(|_| i64::from(self.next() > 0.0)).collect()),
            DType::I32 => Tensor::new(shape, (0..len).map(|_| i32::from(self.next() > 0.0)).collect()),
            other => Some(Tensor::zeros(other, shape)),
        }
    }
}

/// Inputs of some rows that differ, if every dimension but the batch is fixed.
fn made_up(model: &Model) -> Option<Vec<Tensor>> {
    const ROWS: usize = 3;
    let shapes = model.batch_shapes(ROWS)?;
    let mut noise = Noise(1);
    let ports = model.signature().inputs.iter().zip(&shapes);
    ports.map(|(port, shape)| noise.tensor(port.kind.dtype()?, shape)).collect()
}

/// Runs what the configuration asks to be run before the model serves.
fn run_warmups(session: &mut Session, settings: &ModelSettings) -> Result<(), String> {
    for Warmup { name, batch, count, inputs } in &settings.model_warmup {
        let failed = |error: String| format!("model_warmup `{name}`: {error}");
        let model = Arc::clone(session.model());
        let tensor = |port: &Port| -> Result<Tensor, String> {
            let given = inputs.iter().find(|(name, ..)| *name == port.name);
            let (_, dims, data) = given.ok_or_else(|| format!("input `{}` is missing", port.name))?;
            let batch = Some(*batch).filter(|&batch| batch > 0 && model.signature().batchable);
            let shape: Vec<usize> = batch.into_iter().chain(dims.iter().copied()).collect();
            let dtype = port.kind.dtype().ok_or_else(|| format!("input `{}` is no tensor", port.name))?;
            if shape.iter().try_fold(dtype.size(), |bytes, &dim| bytes.checked_mul(dim)).is_none_or(|bytes| bytes > model.memory_limit()) {
                return Err(format!("input `{}` is larger than the memory limit", port.name));
            }
            match data {
                WarmupData::Zero => Ok(Tensor::zeros(dtype, &shape)),
                WarmupData::Random => Noise(1).tensor(dtype, &shape).ok_or_else(|| format!("input `{}` has no such shape", port.name)),
            }
        };
        let tensors = model.signature().inputs.iter().map(tensor).collect::<Result<Vec<Tensor>, String>>().map_err(failed)?;
        for _ in 0..*count {
            session.run(&tensors).map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok(())
}

/// Runs the golden samples and returns the answer.
fn reproduce(session: &mut Session, golden: &Golden, settings: &ModelSettings) -> Result<Vec<Value>, String> {
    let failed = |error: String| format!("the golden samples are not reproduced: {error}");
    let answer = session.run(&golden.inputs).map_err(|error| failed(error.to_string()))?;
    if session.model().signature().rows(&golden.inputs) == Some(0) {
        return Err(failed("they have no row".to_owned()));
    }
    golden.compare(&answer, settings.tolerance).map_err(failed)?;
    Ok(answer)
}

/// Whether every row alone gives the bits that it has in `answer`. If not, requests of several clients must not share a run:
/// what looks like a batch dimension is not one.
fn rows_are_independent(session: &mut Session, inputs: &[Tensor], answer: &[Value], (name, version): (&str, &str)) -> Result<bool, String> {
    let rows = session.model().signature().rows(inputs).unwrap_or(1);
    if !session.model().signature().batchable || rows < 2 {
        return Ok(true);
    }
    for row in 0..rows {
        let outputs = session.run(&one_row(inputs, row)).map_err(|error| format!("the model does not run on one row: {error}"))?;
        let same = outputs.iter().zip(answer).all(|(alone, together)| match (alone, together) {
            (Value::Tensor(alone), Value::Tensor(together)) => same_bits(alone, &together.rows(row..row + 1)),
            _ => false,
        });
        if !same {
            tracing::warn!(model = name, version, "a row's answer depends on the rows beside it: requests are not batched");
            return Ok(false);
        }
    }
    Ok(true)
}

/// How requests of different lengths share a pass, if the settings say so and that changes no answer.
fn padding(
    session: &mut Session,
    sample: Option<Vec<Tensor>>,
    settings: &ModelSettings,
    (name, version): (&str, &str),
) -> Result<Option<Padding>, String> {
    let Some(sequence) = &settings.sequence else { return Ok(None) };
    let model = Arc::clone(session.model());
    let padding = Padding::new(model.signature(), sequence).map_err(|error| format!("model.toml: {error}"))?;
    let sample = sample.map(|inputs| one_row(&inputs, 0)).or_else(|| sequence::made_up(model.signature(), sequence));
    let reason = match sample {
        _ if !(settings.batching && model.signature().batchable) => "the model is not batched".to_owned(),
        None => "there is no golden sample to try it with".to_owned(),
        Some(sample) => match padding.verified(session, &sample) {
            Ok(padding) => return Ok(Some(padding)),
            Err(reason) => reason,
        },
    };
    tracing::warn!(model = name, version, reason, "requests of different lengths are not batched");
    Ok(None)
}

fn one_row(inputs: &[Tensor], row: usize) -> Vec<Tensor> {
    inputs.iter().map(|tensor| tensor.rows(row..row + 1)).collect()
}

pub(super) fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a.slice::<f32>(), b.slice::<f32>()) {
        (Some(a), Some(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        _ => a == b,
    }
}

/// Times batches of 1, 2, 4 … rows for about as long as `budget`; each run also makes the plan of its size and touches its memory.
/// `inputs` are of one row or more, of which the first is returned. What the budget leaves out is learnt from the passes that
/// are run for requests. A model that is much like the one `before` it is timed with one row alone, and run once at the sizes
/// that its batches will have.
fn warm_up(
    session: &mut Session,
    inputs: &[Tensor],
    settings: &ModelSettings,
    (budget, before): (Duration, Option<&Curve>),
) -> Result<(Vec<Tensor>, Curve), String> {
    let batchable = session.model().signature().batchable;
    let row = if batchable { one_row(inputs, 0) } else { inputs.to_vec() };
    let rows_max = rows_max(session, settings);
    let mut curve = Curve::new(rows_max);
    let sizes: Vec<usize> = curve.points().iter().map(|point| point.rows).collect();
    let end = Instant::now() + budget;
    if let Some(before) = before {
        let one = least_time(session, &row, 1, end)?;
        if let Some(scaled) = before.scaled(rows_max, one) {
            for rows in sizes.into_iter().filter(|rows| (2..=scaled.best_rows()).contains(rows)) {
                run(session, &row, rows)?;
                if Instant::now() > end {
                    break;
                }
            }
            return Ok((row, scaled));
        }
    }
    for rows in sizes {
        // A first pass of a size costs more than the others; to measure a size takes two at least.
        let expected = curve.time(rows).unwrap_or_default();
        if Instant::now() + 2 * expected > end && rows > 1 {
            break;
        }
        curve.set(rows, least_time(session, &row, rows, end)?);
    }
    Ok((row, curve))
}

/// Sessions for passes on the threads of requests. They have run at the sizes that they may be used for: memory that each would take
/// among the buffers of requests, and keep, would hold the pages of these.
fn inline_sessions(model: &Arc<Model>, measured: Option<&(Vec<Tensor>, Curve)>, count: usize) -> Result<Vec<Session>, String> {
    let single = Arc::new(Threads::single());
    let mut sessions: Vec<Session> = (0..count).map(|_| Session::new(Arc::clone(model), Arc::clone(&single))).collect();
    let Some((row, curve)) = measured else { return Ok(sessions) };
    let sizes = curve.points().iter().filter(|point| point.time.is_some_and(|time| time <= INLINE_ALONE));
    for rows in sizes.map(|point| point.rows) {
        sessions.iter_mut().try_for_each(|session| run(session, row, rows))?;
    }
    Ok(sessions)
}

/// How long a version that began to load at `begun` is timed: a quarter of the time that it took so far, so that a large model
/// is measured further, and enough for the whole curve of a small one.
fn budget(begun: Instant) -> Duration {
    (begun.elapsed() / 4).max(Duration::from_millis(10))
}

/// The least time of some passes of `rows` equal rows: what a pass costs without disturbance. Beside a busy older version this
/// thread has the lowest priority and mostly waits, so its CPU time counts where that is less: a pass that seemed to take
/// seconds would have requests refused whose deadline is far. Of a pass that slept until other threads were done it tells nothing.
fn least_time(session: &mut Session, row: &[Tensor], rows: usize, end: Instant) -> Result<Duration, String> {
    // The time of one row also decides where it runs; passes for requests correct the others.
    let runs = if rows == 1 { 5 } else { 2 };
    let mut least = Duration::MAX;
    for _ in 0..runs {
        let (start, busy, waits) = (Instant::now(), thread_time(), Threads::waits());
        run(session, row, rows)?;
        let worked = thread_time().zip(busy).map(|(now, before)| now.saturating_sub(before)).filter(|_| Threads::waits() == waits);
        least = least.min(worked.map_or(start.elapsed(), |worked| worked.min(start.elapsed())));
        if Instant::now() + least > end {
            break;
        }
    }
    Ok(least)
}

/// One pass of `rows` equal rows.
fn run(session: &mut Session, row: &[Tensor], rows: usize) -> Result<(), String> {
    let together: Vec<&[Tensor]> = vec![row; rows];
    let ran = session.run_rows(&together).map_err(|error| match rows {
        1 => format!("the model does not run on a warm-up input: {error}"),
        _ => format!("the model does not run on {rows} rows: {error}"),
    });
    ran.map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Probe, model, parts};
    use super::super::{Defaults, Joining};
    use super::*;
    use crate::engine::Threads;

    fn independent(probe: &Probe) -> bool {
        let model = model(probe);
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::single()));
        let inputs = made_up(&model).unwrap();
        let answer = session.run(&inputs).unwrap();
        rows_are_independent(&mut session, &inputs, &answer, ("probe", "1")).unwrap()
    }

    #[test]
    fn the_curve_is_measured_up_to_the_largest_batch() {
        let model = model(&Probe::default());
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::single()));
        let inputs = made_up(&model).unwrap();
        let curve = |session: &mut Session, settings: &ModelSettings| {
            warm_up(session, &inputs, settings, (Duration::from_secs(60), None)).unwrap().1
        };
        let mut settings = ModelSettings { max_batch_rows: 6, ..ModelSettings::new(&Defaults::default()) };
        let measured = curve(&mut session, &settings);
        assert_eq!(measured.points().iter().map(|point| point.rows).collect::<Vec<_>>(), [1, 2, 4, 6]);
        assert!(measured.points().iter().all(|point| point.time.is_some()), "{measured}");
        let hurried = warm_up(&mut session, &inputs, &settings, (Duration::ZERO, None)).unwrap().1;
        let known: Vec<bool> = hurried.points().iter().map(|point| point.time.is_some()).collect();
        assert_eq!(known, [true, false, false, false], "a row is measured whatever it takes");
        settings.batching = false;
        assert_eq!(curve(&mut session, &settings).points().len(), 1);
    }

    /// The thread that runs the pass sleeps until the other is done.
    #[test]
    fn what_other_threads_do_counts_as_time_of_the_pass() {
        let work = Duration::from_millis(20);
        let model = model(&Probe { work, ..Probe::default() });
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::new(2).unwrap()));
        let row = one_row(&made_up(&model).unwrap(), 0);
        let least = least_time(&mut session, &row, 1, Instant::now()).unwrap();
        assert!(least >= work, "{least:?}");
    }

    #[test]
    fn what_would_keep_a_version_from_serving_is_left() {
        let slow = |work: Duration| {
            let model = model(&Probe { work, ..Probe::default() });
            let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::new(2).unwrap()));
            let settings = ModelSettings::new(&Defaults::default());
            if_slow(&mut session, &made_up(&model).unwrap(), &settings).unwrap()
        };
        assert_eq!(slow(Duration::ZERO), None);
        let (row, curve) = slow(Duration::from_millis(20)).unwrap();
        assert_eq!(row[0].shape()[0], 1);
        assert_eq!(curve.points().iter().filter(|point| point.time.is_some()).count(), 1);
        assert!(curve.time(1).unwrap() >= Duration::from_millis(20));
    }

    #[test]
    fn a_row_of_many_operations_is_not_run_before_the_version_serves() {
        let probe = Probe { operations: 1_000_000_000_000, ..Probe::default() };
        let model = model(&probe);
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::single()));
        let settings = ModelSettings::new(&Defaults::default());
        let (row, curve) = if_slow(&mut session, &made_up(&model).unwrap(), &settings).unwrap().unwrap();
        assert_eq!((row[0].shape()[0], curve.time(1)), (1, None));
        assert!(probe.runs.lock().unwrap().is_empty());
    }

    #[test]
    fn what_was_left_is_found_out_while_the_version_serves() {
        for (sums_over_rows, found) in [(false, Joining::Yes), (true, Joining::No)] {
            let probe = Probe { sums_over_rows, ..Probe::default() };
            let settings = ModelSettings { max_batch_rows: 4, ..ModelSettings::new(&Defaults::default()) };
            let (inputs, long) = (made_up(&model(&probe)).unwrap(), Duration::from_secs(60));
            let mut curve = Curve::new(4);
            curve.set(1, long);
            let measured = Some((shape_class(&inputs, true, None), curve));
            let left = Some(Left { inputs, budget: long });
            let handle = Handle::start(Parts { measured, left, ..parts(&probe, settings) }).unwrap();
            assert_eq!((handle.joining(), handle.row_cost()), (Joining::Unknown, Some(long)));
            let threads = Arc::new(Threads::single());
            settle(&handle, &threads);
            assert_eq!(handle.joining(), found);
            assert!(handle.row_cost().unwrap() < long);
            assert!(handle.curve().unwrap().points().iter().all(|point| point.time.is_some_and(|time| time < long)));
            let runs = probe.runs.lock().unwrap().len();
            settle(&handle, &threads);
            assert_eq!(probe.runs.lock().unwrap().len(), runs, "once");
            handle.settled(found != Joining::Yes, None);
            assert_eq!(handle.joining(), found, "whoever is second is not heard");
        }
    }

    #[test]
    fn a_first_dimension_that_is_no_batch_is_found_out() {
        assert!(independent(&Probe::default()));
        assert!(!independent(&Probe { sums_over_rows: true, ..Probe::default() }));
    }
}
