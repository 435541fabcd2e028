//! From a version's folder to a [`Handle`] that is ready: load, warm up, verify the golden samples, measure.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::golden::Golden;
use super::handle::{Handle, Parts};
use super::repository::Options;
use super::settings::ModelSettings;
use crate::engine::{Dim, Model, Session, Tensor, Value, find_model_file};

/// Loads `folder/<version>` of the model `name`.
///
/// # Errors
/// What went wrong with which file.
pub fn load_version(name: &str, version: &str, folder: &Path, mut settings: ModelSettings, options: &Options) -> Result<Handle, String> {
    let version_folder = folder.join(version);
    let file = find_model_file(&version_folder).ok_or_else(|| format!("{}: there is no model file", version_folder.display()))?;
    let model = Model::load(&file, &options.load).map_err(|error| format!("{}: {error}", file.display()))?;
    let model = Arc::new(model);
    check_labels(&model, &settings)?;
    let golden = Golden::read(&folder.join("golden"))?;
    let mut session = Session::new(Arc::clone(&model), Arc::clone(&options.threads));
    let warm = warm_inputs(&model, golden.as_ref());
    if let Some(golden) = &golden {
        let rows_agree = verify(&mut session, golden, &settings)?;
        if !rows_agree && settings.batching {
            tracing::warn!(model = name, version, "a row's answer depends on the rows beside it: requests are not batched");
            settings.batching = false;
        }
    }
    let row_cost = match &warm {
        Some(inputs) => Some(warm_up(&mut session, inputs, &settings)?),
        None => None,
    };
    let (name, version) = (name.to_owned(), version.to_owned());
    let parts = Parts {
        name,
        version,
        model,
        settings,
        warm: Some(session),
        threads: Arc::clone(&options.threads),
        inline_sessions: options.inline_sessions,
        row_cost,
    };
    Handle::start(parts).map_err(|error| format!("the system cannot start a worker: {error}"))
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

/// Inputs of one row: zeros where all other dimensions are fixed, else the first row of the golden sample.
fn warm_inputs(model: &Model, golden: Option<&Golden>) -> Option<Vec<Tensor>> {
    if let Some(golden) = golden {
        let row = |tensor: &Tensor| if model.signature().batchable { tensor.rows(0..1) } else { tensor.clone() };
        return Some(golden.inputs.iter().map(row).collect());
    }
    let shapes = model.batch_shapes(1)?;
    let zeros = |(port, shape): (&crate::engine::Port, &crate::engine::Shape)| port.kind.dtype().map(|dtype| Tensor::zeros(dtype, shape));
    model.signature().inputs.iter().zip(&shapes).map(zeros).collect()
}

/// Runs the golden samples. Returns whether every row alone gives the same bits as in the batch.
fn verify(session: &mut Session, golden: &Golden, settings: &ModelSettings) -> Result<bool, String> {
    let failed = |error: String| format!("the golden samples are not reproduced: {error}");
    let answer = session.run(&golden.inputs).map_err(|error| failed(error.to_string()))?;
    golden.compare(&answer, settings.tolerance).map_err(failed)?;
    let signature = session.model().signature();
    let rows = signature.rows(&golden.inputs).unwrap_or(1);
    if !signature.batchable || rows < 2 {
        return Ok(true);
    }
    for row in 0..rows {
        let alone: Vec<Tensor> = golden.inputs.iter().map(|tensor| tensor.rows(row..row + 1)).collect();
        let outputs = session.run(&alone).map_err(|error| failed(error.to_string()))?;
        let same = outputs.iter().zip(&answer).all(|(alone, together)| match (alone, together) {
            (Value::Tensor(alone), Value::Tensor(together)) => same_bits(alone, &together.rows(row..row + 1)),
            _ => false,
        });
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a.slice::<f32>(), b.slice::<f32>()) {
        (Some(a), Some(b)) => a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())),
        _ => a == b,
    }
}

/// Runs one row until its time is known, and the largest batch once, so that no request pays for first touches.
fn warm_up(session: &mut Session, inputs: &[Tensor], settings: &ModelSettings) -> Result<Duration, String> {
    /// Enough for caches to be warm; the least of them is the cost without disturbance.
    const RUNS: usize = 5;
    let mut cost = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        session.run(inputs).map_err(|error| format!("the model does not run on a warm-up input: {error}"))?;
        cost = cost.min(start.elapsed());
        // A slow model has told enough.
        if cost > Duration::from_millis(50) {
            return Ok(cost);
        }
    }
    if settings.batching && session.model().signature().batchable && settings.max_batch_rows > 1 {
        let rows: Vec<&[Tensor]> = vec![inputs; settings.max_batch_rows];
        session.run_rows(&rows).map_err(|error| format!("the model does not run on {} rows: {error}", settings.max_batch_rows))?;
    }
    Ok(cost)
}
