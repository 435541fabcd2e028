//! `ndserve bench`: how fast a model runs here, and where the time goes.

mod operators;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::target::Target;
use super::{Failure, Outcome, files, print, progress};
use crate::config::{Engine, Flags};
use crate::engine::{DType, Model, Port, Session, Tensor, Threads, Value};
use crate::{resources, telemetry};

/// Measure how fast a model runs, without a server.
///
/// Prints a table with the time per operator and its share of what the processor can do, or with --json the time of every run.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Inputs as for `predict`; random ones if it is not given
    #[arg(long, value_name = "DIR|FILE.npz")]
    inputs: Option<PathBuf>,
    /// Rows of the random inputs
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "inputs")]
    batch: usize,
    /// How long to measure, after warming up; at least one run is measured
    #[arg(long, value_name = "S", default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Of what the table has a line each: the operators of a kind, or single nodes in the order of the run
    #[arg(long, value_name = "OPERATOR|NODE", value_enum, default_value_t = By::Operator, hide_possible_values = true)]
    by: By,
    /// Print {"runs_ms": […], "load_ms": …, "first_ms": …, "rss_peak_mib": …} and nothing else
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Engine>,
}

/// What a line of the table is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Operator,
    Node,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is wanted".to_owned())?;
    if (0.0..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("a number from 0 to 86400 is wanted".to_owned()) }
}

/// Runs that are not measured: plans, first touches of memory and caches. The first one is reported apart.
const WARM_UP: usize = 3;

/// What was measured; the names are those that `--json` prints.
#[derive(Debug, Serialize)]
struct Measured {
    runs_ms: Vec<f64>,
    load_ms: f64,
    first_ms: f64,
    rss_peak_mib: f64,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let target = Target::one(&args.model)?;
    let options = settings.load_options();
    let loading = progress::spinner(format!("loading {}", target.name));
    let (model, load_ms) = target.load(&options).map_err(|error| target.failed(&error))?;
    loading.finish_and_clear();
    let inputs = match &args.inputs {
        Some(path) => given(files::read_inputs(path, model.signature(), options.memory_limit)?)?,
        None => random_inputs(&model, args.batch)?.into_iter().map(Value::Tensor).collect(),
    };
    let threads = Arc::new(Threads::new(settings.engine_threads())?);
    let mut session = Session::new(Arc::new(model), Arc::clone(&threads));
    let (first_ms, runs_ms) = measure(&mut session, &inputs, args.seconds)?;
    let rss_peak_mib = resources::resident_bytes_peak() as f64 / f64::from(1 << 20);
    let measured = Measured { runs_ms, load_ms, first_ms, rss_peak_mib };
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&measured)?))?;
    } else {
        let head = format!(
            "{} · {} · {} · {} threads · {}\n",
            target.name,
            session.model().isa(),
            options.precision,
            threads.count(),
            shapes(&inputs)
        );
        let table = operators::table(&mut session, &inputs, args.seconds.min(1.0), threads.count(), args.by)?;
        print(&format!("{head}{}{table}", summary(&measured)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The inputs of files that replace no initialiser: what is timed is the program that most requests run.
fn given(inputs: files::Inputs) -> Result<Vec<Value>, Failure> {
    if inputs.overrides.is_empty() { Ok(inputs.values) } else { Err("optional inputs are not timed: leave them out".into()) }
}

/// The first run apart, and every run of the measured time, in milliseconds.
fn measure(session: &mut Session, inputs: &[Value], seconds: f64) -> Result<(f64, Vec<f64>), Failure> {
    let mut run = || -> Result<f64, Failure> {
        let start = Instant::now();
        session.run_values(inputs)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let first = run()?;
    for _ in 1..WARM_UP {
        run()?;
    }
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let measuring = progress::spinner(format!("measuring for {seconds} s"));
    let mut runs = vec![run()?];
    while Instant::now() < end {
        runs.push(run()?);
    }
    measuring.finish_and_clear();
    Ok((first, runs))
}

fn summary(measured: &Measured) -> String {
    let mut sorted = measured.runs_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| sorted[((sorted.len() as f64 * q) as usize).min(sorted.len() - 1)];
    format!(
        "load {:.1} ms · first run {:.3} ms · peak memory {:.0} MiB\n\
         {} runs: median {:.3} ms · p90 {:.3} ms · p99 {:.3} ms · fastest {:.3} ms\n",
        measured.load_ms,
        measured.first_ms,
        measured.rss_peak_mib,
        sorted.len(),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        sorted[0]
    )
}

fn shapes(inputs: &[Value]) -> String {
    let one = |value: &Value| match value {
        Value::Tensor(tensor) => format!("{}{:?}", tensor.dtype(), tensor.shape()),
        Value::Sequence(values) => format!("a sequence of {}", values.len()),
        Value::Map { keys, .. } => format!("a map of {}", keys.len()),
        Value::Optional(value) => if value.is_some() { "an optional value" } else { "nothing" }.to_owned(),
    };
    inputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The same inputs every time: floats in 0..1, and 0 or 1 for whole numbers, which are most often indices.
fn random_inputs(model: &Model, rows: usize) -> Result<Vec<Tensor>, Failure> {
    let signature = model.signature();
    let Some(shapes) = model.batch_shapes(rows) else {
        let free = signature.inputs.iter().map(|port| format!("`{}` {}", port.name, port.dims_text())).collect::<Vec<_>>().join(", ");
        return Err(format!("the model has free dimensions ({free}): give it --inputs").into());
    };
    if rows != 1 && !signature.batchable {
        return Err("the model has no batch dimension: --batch has no meaning for it".into());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    signature.inputs.iter().zip(&shapes).map(|(port, shape)| random_input(port, shape, &mut state)).collect()
}

fn random_input(port: &Port, shape: &[usize], state: &mut u64) -> Result<Tensor, Failure> {
    // Marsaglia's xorshift64: good enough for filling tensors.
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> 40
    };
    let len: usize = shape.iter().product();
    let dtype = port.kind.dtype().ok_or_else(|| format!("input `{}` is a {}: give it --inputs", port.name, port.kind))?;
    let mut float = || next() as f32 / (1_u64 << 24) as f32;
    let floats: Vec<f32> = (0..len).map(|_| float()).collect();
    let bits = || floats.iter().map(|&x| u8::from(x >= 0.5));
    let tensor = match dtype {
        DType::F32 => Tensor::new(shape, floats),
        DType::F64 => Tensor::new(shape, floats.iter().map(|&x| f64::from(x)).collect()),
        DType::F16 => Tensor::new(shape, floats.iter().map(|&x| half::f16::from_f32(x)).collect()),
        DType::BF16 => Tensor::new(shape, floats.iter().map(|&x| half::bf16::from_f32(x)).collect()),
        DType::I8 => Tensor::new(shape, bits().map(|x| x as i8).collect()),
        DType::I16 => Tensor::new(shape, bits().map(i16::from).collect()),
        DType::I32 => Tensor::new(shape, bits().map(i32::from).collect()),
        DType::I64 => Tensor::new(shape, bits().map(i64::from).collect()),
        DType::U8 => Tensor::new(shape, bits().collect()),
        DType::U16 => Tensor::new(shape, bits().map(u16::from).collect()),
        DType::U32 => Tensor::new(shape, bits().map(u32::from).collect()),
        DType::U64 => Tensor::new(shape, bits().map(u64::from).collect()),
        DType::Bool => Tensor::new(shape, bits().map(|x| x == 1).collect()),
        _ => Some(Tensor::zeros(dtype, shape)),
    };
    Ok(tensor.expect("as many elements as the shape says"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Kind;

    #[test]
    fn quantiles_are_runs() {
        let runs_ms = (1..=100).rev().map(f64::from).collect();
        let text = summary(&Measured { runs_ms, load_ms: 1.0, first_ms: 2.0, rss_peak_mib: 3.0 });
        assert!(text.contains("100 runs: median 51.000 ms · p90 91.000 ms · p99 100.000 ms · fastest 1.000 ms"), "{text}");
    }

    #[test]
    fn every_type_has_random_inputs() {
        for &dtype in DType::ALL {
            let port = Port { name: "x".into(), kind: Kind::Tensor(dtype), dims: None };
            let make = || random_input(&port, &[3, 5], &mut 1).unwrap_or_else(|Failure(error)| panic!("{error}"));
            assert_eq!((make().dtype(), make().shape()), (dtype, &[3, 5][..]));
            assert_eq!(make(), make(), "the same every time");
        }
    }

    #[test]
    fn seconds_are_a_number_within_a_day() {
        assert!(seconds("-1").is_err() && seconds("nan").is_err() && seconds("0.5").is_ok());
    }
}
