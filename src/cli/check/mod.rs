//! `ndserve check`: what is in a model, what it needs, and whether it can be served.
//!
//! A model is loaded the way the server loads it: settings, labels, warm-up and golden samples included. Only where that
//! fails the file is read once more, to tell what is wrong with it in full.

mod passes;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use self::passes::PassText;
use super::target::Target;
use super::{Outcome, print, progress};
use crate::config::{Bytes, Flags, Inspection, Settings};
use crate::engine::{
    Kind, LoadError, Metadata, Model, Port, Session, Shape, Signature, Threads, Unsupported, describe, wait_until_settled,
};
use crate::serve::{Golden, ModelSettings, Options, Repository, load_version};
use crate::telemetry;

/// Tell what is in a model, what it needs, and whether it can be served.
///
/// Loads it as the server would, verifies its golden samples, and names every node that is not supported. Exits with 1 if it
/// could not be served.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, a model folder, or a folder of model folders
    path: PathBuf,
    /// Print one JSON array with an object per model
    #[arg(long)]
    json: bool,
    /// Tell what each pass of the optimiser did, and which nodes it left as they are, and why
    #[arg(long)]
    why: bool,
    #[command(flatten)]
    flags: Flags<Inspection>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let targets = Target::all(&args.path)?;
    let threads = Arc::new(Threads::new(settings.engine_threads())?);
    let bar = progress::bar("checking", targets.len());
    let mut reports = Vec::with_capacity(targets.len());
    let mut repository = None;
    for target in &targets {
        bar.set_message(target.name.clone());
        let mut report = inspect(target, &settings, &threads, &mut repository);
        if args.why
            && let Ok(file) = &target.file
        {
            // What is wrong with a file that cannot be loaded the report has already.
            report.passes = passes::of(file, &settings.load_options()).unwrap_or_default();
        }
        reports.push(report);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&reports)?))?;
    } else {
        let text: Vec<String> = reports.iter().map(Report::text).collect();
        print(&text.join("\n"))?;
    }
    Ok(if reports.iter().all(|report| report.servable && report.packed_weights_error.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is known of one model.
#[derive(Debug, Default, Serialize)]
struct Report {
    name: String,
    path: String,
    servable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unsupported: Vec<UnsupportedNode>,
    /// What the file says about itself; also of a model that cannot be loaded, as far as its format tells.
    #[serde(flatten)]
    about: Option<About>,
    #[serde(flatten)]
    details: Option<Details>,
    /// What became of packed weights that are to be kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    packed_weights: Vec<String>,
    /// Why they are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    packed_weights_error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passes: Vec<PassText>,
}

#[derive(Debug, Serialize)]
struct UnsupportedNode {
    node: String,
    operator: String,
    domain: String,
    opset: Option<i64>,
    reason: String,
}

#[derive(Debug, Serialize)]
struct About {
    format: &'static str,
    format_version: i64,
    producer: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    properties: BTreeMap<String, String>,
    opsets: Vec<Opset>,
    inputs: Vec<PortText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    optional_inputs: Vec<PortText>,
    outputs: Vec<PortText>,
}

/// What is known of a model that was loaded.
#[derive(Debug, Serialize)]
struct Details {
    batchable: bool,
    operators: Vec<Operator>,
    parameters: usize,
    weight_bytes: usize,
    memory: Vec<Memory>,
    /// Rows of the golden samples that were reproduced; absent if there are none or the model failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    golden_rows: Option<usize>,
    /// How far the answer is from the golden samples, in parts of the greatest recorded value of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    golden_difference: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Opset {
    domain: String,
    version: i64,
}

#[derive(Debug, Serialize)]
struct PortText {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    shape: String,
}

#[derive(Debug, Serialize)]
struct Operator {
    operator: String,
    opset: u16,
    nodes: usize,
}

/// Memory for the values of one run.
#[derive(Debug, Serialize)]
struct Memory {
    rows: usize,
    bytes: usize,
    /// Whether it is all: shapes that depend on data add to it.
    complete: bool,
}

/// The repository around pipelines, once one was looked at.
type Around = Option<Result<Repository, String>>;

fn inspect(target: &Target, settings: &Settings, threads: &Arc<Threads>, around: &mut Around) -> Report {
    let path = target.file.as_ref().ok().or(target.folder.as_ref()).map(|path| path.display().to_string()).unwrap_or_default();
    let mut report = Report { name: target.name.clone(), path, ..Report::default() };
    if let (Some(_), Ok(file)) = (&settings.weight_cache.0, &target.file) {
        wait_until_settled(file);
    }
    match &target.folder {
        Some(folder) => inspect_folder(&mut report, target, folder, settings, (threads, around)),
        None => match target.load(&settings.load_options()) {
            Ok((model, _)) => {
                report.servable = true;
                report.tell(&model, settings.max_batch_rows, None);
            }
            Err(error) => report.fail(error, target),
        },
    }
    report
}

fn inspect_folder(
    report: &mut Report,
    target: &Target,
    folder: &Path,
    settings: &Settings,
    (threads, around): (&Arc<Threads>, &mut Around),
) {
    let model_settings = match ModelSettings::read(folder, &super::serve::defaults(settings)) {
        Ok(model_settings) => model_settings,
        Err(error) => {
            report.error = Some(error);
            return;
        }
    };
    let options = |folder: &Path| {
        let mut options = Options::new(folder);
        options.load = settings.load_options();
        options.threads = Arc::clone(threads);
        options.defaults = super::serve::defaults(settings);
        // Nobody sends requests here.
        options.inline_sessions = 0;
        options
    };
    if !model_settings.steps.is_empty() {
        report.path = folder.display().to_string();
        let around = around.get_or_insert_with(|| {
            let repository = Repository::open(options(folder.parent().unwrap_or(folder)))?;
            repository.load(|_, _, _, _| {});
            Ok(repository)
        });
        report.tell_pipeline(around.as_ref());
        return;
    }
    let max_rows = model_settings.max_batch_rows;
    let golden = Golden::read(&folder.join("golden"));
    let options = options(folder);
    let version = target.file.as_ref().ok().and_then(|file| file.parent()?.strip_prefix(folder).ok()?.to_str());
    // A folder that holds its model itself is its own version 1.
    let version = version.filter(|version| !version.is_empty()).unwrap_or("1");
    match load_version(&target.name, version, folder, model_settings, &options) {
        Ok(handle) => {
            let golden = golden.ok().flatten();
            let details = report.tell(handle.model(), max_rows, golden.as_ref());
            details.golden_difference = golden.as_ref().and_then(|golden| difference(handle.model(), threads, golden));
            details.golden_rows = golden.map(|golden| handle.model().signature().rows(&golden.inputs).unwrap_or(1));
            details.row_ms = handle.row_cost().map(|cost| cost.as_secs_f64() * 1e3);
            report.servable = true;
        }
        Err(reason) => match target.load(&options.load) {
            Ok((model, _)) => {
                report.error = Some(reason);
                let (model, golden) = (Arc::new(model), golden.ok().flatten());
                let details = report.tell(&model, max_rows, golden.as_ref());
                details.golden_difference = golden.and_then(|golden| difference(&model, threads, &golden));
            }
            Err(error) => report.fail(error, target),
        },
    }
}

/// How far the model's answer is from the golden samples, if it runs on them.
fn difference(model: &Arc<Model>, threads: &Arc<Threads>, golden: &Golden) -> Option<f64> {
    let answer = Session::new(Arc::clone(model), Arc::clone(threads)).run(&golden.inputs).ok()?;
    golden.difference(&answer)
}

impl Report {
    /// Whether the pipeline's steps serve and fit each other, and reproduce its golden samples: the repository that has them tells.
    fn tell_pipeline(&mut self, around: Result<&Repository, &String>) {
        let repository = match around {
            Ok(repository) => repository,
            Err(reason) => {
                self.error = Some(reason.clone());
                return;
            }
        };
        match repository.get(&self.name, None) {
            Ok(pipeline) => {
                self.about = Some(About::new(pipeline.metadata(), pipeline.signature()));
                self.servable = true;
            }
            Err(error) => self.error = Some(error.message().to_owned()),
        }
    }

    /// What is known of a model that was loaded.
    fn tell(&mut self, model: &Model, max_rows: usize, golden: Option<&Golden>) -> &mut Details {
        self.about = Some(About::new(model.metadata(), model.signature()));
        if model.found_bytes() > 0 {
            self.packed_weights.push(format!("{} found", Bytes(model.found_bytes())));
        }
        for kept in model.keep_weights() {
            match kept {
                Ok(kept) => self.packed_weights.push(format!("{} kept in {}", Bytes(kept.bytes as usize), kept.path.display())),
                Err(reason) => self.packed_weights_error = Some(reason),
            }
        }
        self.details.insert(Details::new(model, max_rows, golden))
    }

    fn fail(&mut self, error: LoadError, target: &Target) {
        self.about =
            target.file.as_ref().ok().and_then(|file| describe(file)).map(|(metadata, signature)| About::new(&metadata, &signature));
        let LoadError::Unsupported(nodes) = error else {
            self.error = Some(error.to_string());
            return;
        };
        self.error =
            Some(if nodes.len() == 1 { "1 node is not supported".to_owned() } else { format!("{} nodes are not supported", nodes.len()) });
        let node = |Unsupported { node, op, domain, opset, reason }: Unsupported| {
            let domain = if domain.is_empty() { "ai.onnx".to_owned() } else { domain };
            UnsupportedNode { node, operator: op, domain, opset, reason }
        };
        self.unsupported = nodes.into_iter().map(node).collect();
    }

    fn text(&self) -> String {
        let mut text = format!("{} ({})\n", self.name, self.path);
        if let Some(about) = &self.about {
            about.write(&mut text);
        }
        if let Some(details) = &self.details {
            details.write(&mut text);
        }
        self.packed_weights.iter().for_each(|packed| line(&mut text, "packed", packed));
        if let Some(reason) = &self.packed_weights_error {
            line(&mut text, "packed", &format!("FAILED: weights are not kept: {reason}"));
        }
        let verdict = self.error.as_ref().map_or("ok".to_owned(), |error| format!("FAILED: {}", error.trim_end().replace('\n', "\n    ")));
        let _ = writeln!(text, "  {verdict}");
        for UnsupportedNode { node, operator, domain, opset, reason } in &self.unsupported {
            let opset = opset.map_or("not imported".to_owned(), |opset| format!("opset {opset}"));
            let _ = writeln!(text, "    node `{node}`: {operator} of {domain} ({opset}): {reason}");
        }
        self.passes.iter().for_each(|pass| pass.write(&mut text));
        text
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "  {key:11} {value}");
}

impl About {
    fn new(metadata: &Metadata, signature: &Signature) -> Self {
        let ports = |ports: &[Port]| ports.iter().map(PortText::new).collect();
        Self {
            format: metadata.format,
            format_version: metadata.format_version,
            producer: metadata.producer.clone(),
            description: metadata.description.clone(),
            properties: metadata.properties.clone(),
            opsets: metadata.opsets.iter().map(|(domain, version)| Opset { domain: named(domain), version: *version }).collect(),
            inputs: ports(&signature.inputs),
            optional_inputs: ports(&signature.optional),
            outputs: ports(&signature.outputs),
        }
    }

    fn write(&self, text: &mut String) {
        let opsets: Vec<String> = self.opsets.iter().map(|opset| format!("{} {}", opset.domain, opset.version)).collect();
        let producer = if self.producer.is_empty() { String::new() } else { format!(", made by {}", self.producer) };
        let version = if self.format_version == 0 { String::new() } else { format!(" {}", self.format_version) };
        let opsets = if opsets.is_empty() { String::new() } else { format!(", opset {}", opsets.join(", ")) };
        line(text, "format", &format!("{}{version}{opsets}{producer}", self.format));
        // The file's own words may have several lines, which would look like lines of this report.
        let one_line = |words: &str| words.split_whitespace().collect::<Vec<_>>().join(" ");
        if !self.description.trim().is_empty() {
            line(text, "description", &one_line(&self.description));
        }
        for (key, value) in &self.properties {
            line(text, "property", &format!("{} = {}", one_line(key), one_line(value)));
        }
        for (key, ports, most) in
            [("input", &self.inputs, usize::MAX), ("optional", &self.optional_inputs, 8), ("output", &self.outputs, usize::MAX)]
        {
            for PortText { name, kind, shape } in ports.iter().take(most) {
                line(text, key, format!("{name}: {kind} {shape}").trim_end());
            }
            // Some exporters list every weight.
            if let Some(more) = ports.len().checked_sub(most).filter(|&more| more > 0) {
                line(text, key, &format!("and {more} more initialisers"));
            }
        }
    }
}

impl Details {
    fn new(model: &Model, max_rows: usize, golden: Option<&Golden>) -> Self {
        let (summary, signature) = (model.summary(), model.signature());
        let rows = if signature.batchable && max_rows > 1 { vec![1, max_rows] } else { vec![1] };
        Self {
            batchable: signature.batchable,
            operators: summary.operators.iter().map(|(op, opset, n)| Operator { operator: op.clone(), opset: *opset, nodes: *n }).collect(),
            parameters: summary.parameters,
            weight_bytes: summary.weight_bytes,
            memory: rows.into_iter().filter_map(|rows| memory(model, rows, golden)).collect(),
            golden_rows: None,
            golden_difference: None,
            row_ms: None,
        }
    }

    fn write(&self, text: &mut String) {
        let mut line = |key: &str, value: String| line(text, key, &value);
        line("batching", if self.batchable { "rows of several requests share a run" } else { "every request is run alone" }.to_owned());
        let operators: Vec<String> =
            self.operators.iter().map(|op| format!("{} × {} (opset {})", op.nodes, op.operator, op.opset)).collect();
        line("operators", if operators.is_empty() { "none".to_owned() } else { operators.join(", ") });
        line("weights", format!("{} parameters, {}", self.parameters, Bytes(self.weight_bytes)));
        for Memory { rows, bytes, complete } in &self.memory {
            let plural = if *rows == 1 { "row" } else { "rows" };
            let more = if *complete { "" } else { " and what depends on the data" };
            line("memory", format!("{} per run of {rows} {plural}{more}", Bytes(*bytes)));
        }
        if self.memory.is_empty() {
            line("memory", "depends on dimensions that the model leaves free".to_owned());
        }
        if let Some(rows) = self.golden_rows {
            line("golden", format!("{rows} recorded rows reproduced"));
        }
        if let Some(difference) = self.golden_difference {
            line("difference", format!("{difference:.1e} of the greatest recorded value, at most"));
        }
        if let Some(ms) = self.row_ms {
            line("speed", format!("{ms:.3} ms per run of 1 row"));
        }
    }
}

/// The default domain has an empty name.
fn named(domain: &str) -> String {
    if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() }
}

impl PortText {
    fn new(port: &Port) -> Self {
        // Only tensors have dimensions.
        let shape = if matches!(port.kind, Kind::Tensor(_)) { port.dims_text() } else { String::new() };
        Self { name: port.name.clone(), kind: port.kind.to_string(), shape }
    }
}

/// Memory of a run of `rows`; where the model leaves dimensions free, with those of the golden samples.
fn memory(model: &Model, rows: usize, golden: Option<&Golden>) -> Option<Memory> {
    let recorded = |golden: &Golden| -> Vec<Shape> {
        let shape = |tensor: &crate::engine::Tensor| {
            let mut shape: Shape = tensor.shape().into();
            if let (true, Some(first)) = (model.signature().batchable, shape.first_mut()) {
                *first = rows;
            }
            shape
        };
        golden.inputs.iter().map(shape).collect()
    };
    let shapes = model.batch_shapes(rows).map(|shapes| shapes.to_vec()).or_else(|| golden.map(recorded))?;
    let plan = model.plan(&shapes).ok()?;
    Some(Memory { rows, bytes: plan.bytes(), complete: plan.is_static() })
}
