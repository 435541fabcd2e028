//! `ndserve predict`: one run of a model on inputs from files, without a server.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::target::Target;
use super::{Failure, Outcome, files, print};
use crate::api::predict::{Decoded, decode, encode};
use crate::config::{Engine, Flags, NonFinite, Settings};
use crate::engine::{Session, Threads, Value};
use crate::error::Error;
use crate::telemetry;

/// Run a model once on inputs from files.
///
/// Exits with 0 only if every output was written.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// A folder with input_0.pb, input_1.pb, … (TensorProto, SequenceProto, MapProto or OptionalProto, in the order of the
    /// model's inputs), or an .npz archive with arrays named as the inputs
    #[arg(long, value_name = "DIR|FILE.npz", required_unless_present = "json", requires = "outputs")]
    inputs: Option<PathBuf>,
    /// Where the outputs go: a folder (output_0.pb, …), or an .npz archive
    #[arg(long, value_name = "DIR|FILE.npz")]
    outputs: Option<PathBuf>,
    /// A file (`-`: standard input) with {"instances": …} or {"inputs": {name: …}}; the answer is printed, unless --outputs
    /// says where it goes
    #[arg(long, value_name = "FILE|-", conflicts_with = "inputs")]
    json: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags<Engine>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let target = Target::one(&args.model)?;
    let options = settings.load_options();
    let (model, _) = target.load(&options).map_err(|error| target.failed(&error))?;
    let (signature, labels_of_model) = (model.signature().clone(), model.metadata().labels.clone());
    let source = match (args.inputs, args.json) {
        (Some(path), _) => Source::Files(files::read_inputs(&path, &signature, options.memory_limit)?),
        (None, Some(path)) => Source::Json(decode(&read_text(&path)?, &signature).map_err(|error| named(&path, &error))?),
        // clap asks for one of them.
        (None, None) => return Err("--inputs or --json is needed".into()),
    };
    let threads = Arc::new(Threads::new(settings.engine_threads())?);
    let mut session = Session::new(Arc::new(model), threads);
    let outputs = match &source {
        Source::Files(files::Inputs { values, overrides }) => session.run_overriding(values, overrides)?,
        Source::Json(Decoded { inputs, overrides, .. }) => {
            let values: Vec<Value> = inputs.iter().cloned().map(Value::Tensor).collect();
            session.run_overriding(&values, overrides)?
        }
    };
    match (&args.outputs, source) {
        (Some(path), _) => files::write_outputs(path, &signature, &outputs)?,
        (None, Source::Json(Decoded { form, .. })) => {
            let answer = encode(&outputs, &signature, &labels(&target, &settings, labels_of_model)?, form, NonFinite::Token)?;
            print(&format!("{}\n", String::from_utf8_lossy(&answer)))?;
        }
        (None, Source::Files(_)) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the inputs come from, which is how the answer goes out.
enum Source {
    Files(files::Inputs),
    Json(Decoded),
}

/// The names of the classes, for an answer like the server's.
pub(super) fn labels(target: &Target, settings: &Settings, own: Vec<String>) -> Result<Vec<String>, Failure> {
    let configured = target.settings(settings)?.labels;
    Ok(if configured.is_empty() { own } else { configured })
}

fn named(path: &Path, error: &Error) -> Failure {
    format!("{}: {error}", path.display()).into()
}

fn read_text(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).map_err(|error| format!("standard input: {error}"))?;
    } else {
        text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(text)
}
