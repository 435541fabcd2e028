//! From a version's folder to a [`Handle`] that is ready: load, warm up, verify the golden samples, measure.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::golden::Golden;
use super::handle::{Handle, Parts};
use super::repository::{Options, version_file};
use super::settings::ModelSettings;
use crate::engine::{DType, Dim, Model, Port, Session, Tensor, Threads, Value};

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
}

/// Loads `folder/<version>` of the model `name`.
///
/// # Errors
/// What went wrong with which file.
pub fn load_version(name: &str, version: &str, folder: &Path, settings: ModelSettings, options: &Options) -> Result<Handle, String> {
    let file = version_file(folder, version, &settings)?;
    let golden = folder.join("golden");
    let threads = Arc::clone(&options.threads);
    let parts = prepare(Task { name, version, file: &file, golden: Some(&golden), settings, options, threads })?;
    Handle::start(parts).map_err(|error| format!("the system cannot start a worker: {error}"))
}

/// Loads, warms up, verifies and measures; what is left is to start the workers.
///
/// # Errors
/// What went wrong with which file.
pub(super) fn prepare(task: Task<'_>) -> Result<Parts, String> {
    let Task { name, version, file, golden, mut settings, options, threads } = task;
    let model = Model::load(file, &options.load).map_err(|error| format!("{}: {error}", file.display()))?;
    let model = Arc::new(model);
    if settings.labels.is_empty() {
        settings.labels.clone_from(&model.metadata().labels);
    }
    check_labels(&model, &settings)?;
    let golden = golden.map(Golden::read).transpose()?.flatten();
    let mut session = Session::new(Arc::clone(&model), threads);
    let row_cost = match golden {
        Some(golden) => {
            let answer = reproduce(&mut session, &golden, &settings)?;
            settings.batching &= rows_are_independent(&mut session, &golden.inputs, &answer, (name, version))?;
            Some(warm_up(&mut session, &golden.inputs, &settings)?)
        }
        // Without a recorded sample an input is made up, which the model need not take: then its first request tells.
        None => made_up(&model).and_then(|inputs| {
            let answer = session.run(&inputs).ok()?;
            settings.batching &= rows_are_independent(&mut session, &inputs, &answer, (name, version)).ok()?;
            warm_up(&mut session, &inputs, &settings).ok()
        }),
    };
    session.use_threads(Arc::clone(&options.threads));
    let (name, version) = (name.to_owned(), version.to_owned());
    Ok(Parts {
        name,
        version,
        model,
        settings,
        warm: Some(session),
        threads: Arc::clone(&options.threads),
        inline_sessions: options.inline_sessions,
        row_cost,
    })
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

/// Inputs of some rows that differ, if every dimension but the batch is fixed.
fn made_up(model: &Model) -> Option<Vec<Tensor>> {
    const ROWS: usize = 3;
    let shapes = model.batch_shapes(ROWS)?;
    let mut state = 1_u32;
    // Numbers in −1..1 that look random; Numerical Recipes' linear congruential generator.
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
    };
    let mut tensor = |port: &Port, shape: &[usize]| {
        let len = shape.iter().product();
        // Zero and one are indices that every table has.
        match port.kind.dtype()? {
            DType::F32 => Tensor::new(shape, (0..len).map(|_| next() as f32).collect()),
            DType::F64 => Tensor::new(shape, (0..len).map(|_| next()).collect()),
            DType::I64 => Tensor::new(shape, (0..len).map(|_| i64::from(next() > 0.0)).collect()),
            DType::I32 => Tensor::new(shape, (0..len).map(|_| i32::from(next() > 0.0)).collect()),
            other => Some(Tensor::zeros(other, shape)),
        }
    };
    model.signature().inputs.iter().zip(&shapes).map(|(port, shape)| tensor(port, shape)).collect()
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

fn one_row(inputs: &[Tensor], row: usize) -> Vec<Tensor> {
    inputs.iter().map(|tensor| tensor.rows(row..row + 1)).collect()
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a.slice::<f32>(), b.slice::<f32>()) {
        (Some(a), Some(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        _ => a == b,
    }
}

/// Runs one row until its time is known, and the largest batch once, so that no request pays for first touches. `inputs` are
/// of one row or more.
fn warm_up(session: &mut Session, inputs: &[Tensor], settings: &ModelSettings) -> Result<Duration, String> {
    /// Enough for caches to be warm; the least of them is the cost without disturbance.
    const RUNS: usize = 5;
    let batchable = session.model().signature().batchable;
    let row = if batchable { one_row(inputs, 0) } else { inputs.to_vec() };
    let mut cost = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        session.run(&row).map_err(|error| format!("the model does not run on a warm-up input: {error}"))?;
        cost = cost.min(start.elapsed());
        // A slow model has told enough.
        if cost > Duration::from_millis(50) {
            return Ok(cost);
        }
    }
    if settings.batching && batchable && settings.max_batch_rows > 1 {
        let rows: Vec<&[Tensor]> = vec![&row; settings.max_batch_rows];
        session.run_rows(&rows).map_err(|error| format!("the model does not run on {} rows: {error}", settings.max_batch_rows))?;
    }
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Probe, model};
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
    fn a_first_dimension_that_is_no_batch_is_found_out() {
        assert!(independent(&Probe::default()));
        assert!(!independent(&Probe { sums_over_rows: true, ..Probe::default() }));
    }
}
