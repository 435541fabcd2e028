//! `ndserve evaluate`: what a model's answers to known rows are worth.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::files::{is_npz, write_whole};
use super::predict::labels;
use super::rows::{all_fitted, chosen, picture};
use super::target::Target;
use super::{Failure, Outcome, print, progress};
use crate::config::{Engine, Flags, Settings};
use crate::engine::{Dim, Session, Signature, Tensor, Threads, Value, npz};
use crate::explain::{Scores, explained_output};
use crate::telemetry;
use crate::train::data::{self, Column, Inputs, Target as Known, Targets, Wanted};
use crate::train::evaluation::{Comparison, Judged, Measures, Slice, Truth, compare, slices};
use crate::train::metrics::Classification;
use crate::train::page::{Page, html};
use crate::train::statistics::{Bootstrap, Interval};

/// Run a model on rows whose answers are known, and measure.
///
/// The definitions are scikit-learn's. Exits with 0 if every row was answered.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A .csv or .tsv file with a line of names (also .gz), a .parquet file, an .npz archive, or a folder of pictures by class.
    /// Columns are in the order of the model's input; with an input for each column they may be in any, and more
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// The column or array that holds the right answers
    #[arg(long, value_name = "NAME")]
    target: String,
    /// The columns that the model takes, in its order; by default those of its inputs' names, or all but the target
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// What the answers are; by default classes if the model has labels or several outputs, or the target is text or 0 and 1
    #[arg(long, value_enum)]
    task: Option<Task>,
    /// Measure by slices of these columns too: by each value, or by the quarters of many numbers
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    slice: Vec<String>,
    /// Another model to compare with, on the same rows
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// How often rows are drawn for the intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    bootstrap: usize,
    /// The share of the draws within an interval
    #[arg(long, value_name = "0..1", default_value_t = 0.95)]
    confidence: f64,
    /// What the draws follow from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write a page with plots here
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Engine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Task {
    Classify,
    Regress,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    if !(args.confidence > 0.0 && args.confidence < 1.0) {
        return Err(format!("--confidence {} is not between 0 and 1", args.confidence).into());
    }
    let rows = Rows { data: &args.data, target: &args.target, features: &args.features, task: args.task };
    let (answers, known) = rows.answers(&args.model, &settings)?;
    let truth = rows.truth(known, &answers)?;
    let judged = Judged { truth: &truth, answers: &answers.scores.values };
    let measures = judged.all()?;
    let bootstrap = Bootstrap { samples: args.bootstrap, confidence: args.confidence, seed: args.seed };
    let intervals = judged.intervals(&measures, &bootstrap);
    let slices = rows.slices(&judged, &args.slice, settings.load_options().memory_limit)?;
    let comparison = match &args.against {
        None => None,
        Some(other) => {
            let (second, _) = rows.answers(other, &settings)?;
            if second.labels != answers.labels && !second.labels.is_empty() && !answers.labels.is_empty() {
                let [second, first] = [second.labels, answers.labels].map(|labels| labels.join(", "));
                return Err(format!("{}: its labels are {second}; those of the first model are {first}", other.display()).into());
            }
            Some(compare(&judged, &Judged { truth: &truth, answers: &second.scores.values }, &bootstrap)?)
        }
    };
    let other = args.against.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    if let Some(path) = &args.html {
        let title = format!("{} on {}", args.model.display(), args.data.display());
        let comparison = comparison.as_ref().map(|comparison| (other.as_str(), comparison));
        let page = Page {
            title: &title,
            judged,
            measures: &measures,
            intervals: &intervals,
            confidence: args.confidence,
            slices: &slices,
            comparison,
        };
        write_whole(path, html(&page).as_bytes())?;
    }
    let all = Report { measures: &measures, confidence: args.confidence, intervals, slices, comparison };
    let text = if args.json { serde_json::to_string_pretty(&all)? } else { all.text(&other) };
    print(&format!("{}\n", text.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

/// What is told.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    measures: &'a Measures,
    confidence: f64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    intervals: BTreeMap<&'static str, Interval>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    slices: Vec<Slice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
}

/// What is evaluated on.
pub(super) struct Rows<'a> {
    pub(super) data: &'a Path,
    pub(super) target: &'a str,
    pub(super) features: &'a [String],
    pub(super) task: Option<Task>,
}

/// What gives the output of a position for inputs in the signature's order.
pub(super) type Answering<'r> = &'r mut dyn FnMut(&[Tensor], usize) -> Result<Value, Failure>;

/// A model's answers to all rows.
pub(super) struct Answers {
    pub(super) scores: Scores,
    pub(super) labels: Vec<String>,
}

impl Rows<'_> {
    /// Runs the model at `path`; with its answers come those that are known.
    pub(super) fn answers(&self, path: &Path, settings: &Settings) -> Result<(Answers, Column), Failure> {
        let target = Target::one(path)?;
        let options = settings.load_options();
        let (model, _) = target.load(&options).map_err(|error| target.failed(&error))?;
        let own = model.metadata().labels.clone();
        let labels = labels(&target, settings, own)?;
        let model = Arc::new(model);
        let mut session = Session::new(Arc::clone(&model), Arc::new(Threads::new(settings.engine_threads())?));
        let mut run = |given: &[Tensor], output: usize| Ok(session.run(given)?.swap_remove(output));
        self.answered(model.signature(), labels, (options.memory_limit, 256), &mut run)
    }

    /// The answers that `run` gives: from inputs as `signature` has them, at most `most` rows of them, to the output of a position.
    pub(super) fn answered(
        &self,
        signature: &Signature,
        labels: Vec<String>,
        (limit, most): (usize, usize),
        run: Answering<'_>,
    ) -> Result<(Answers, Column), Failure> {
        // An array of an archive is named as the model's input, unless it is the only one.
        let input = signature.inputs.first().filter(|_| signature.inputs.len() == 1).map(|port| port.name.as_str());
        let inputs = input.filter(|_| is_npz(self.data) && arrays(self.data) != Some(2));
        let (size, channels) = picture(signature);
        let (inputs, known) = data::read(self.data, &Wanted { inputs, target: self.target, size, channels, ..Wanted::default() }, limit)?;
        let inputs = match inputs {
            Inputs::Table(table) => Inputs::Table(chosen(table, self.features, signature)?),
            array @ Inputs::Array { .. } => array,
        };
        let scores = scores(signature, &inputs, &labels, most, run)?;
        Ok((Answers { scores, labels }, known))
    }

    /// What is known of the rows: classes or numbers.
    pub(super) fn truth(&self, known: Column, answers: &Answers) -> Result<Truth, Failure> {
        let place = |row: usize| format!("{}: row {}", self.data.display(), row + 1);
        let guess = || if classes(&known, answers.scores.columns, &answers.labels) { Task::Classify } else { Task::Regress };
        match self.task.unwrap_or_else(guess) {
            Task::Classify => match Targets::from(&known).classes(&positions(&known, answers), self.target, &place)? {
                Known::Classes { labels, of } => Ok(Truth::Classes { labels, of }),
                Known::Numbers(_) => Err("the target has no classes".into()),
            },
            Task::Regress => match Targets::from(&known).numbers(self.target, &place)? {
                Known::Numbers(values) => Ok(Truth::Numbers(values.into_iter().map(f64::from).collect())),
                Known::Classes { .. } => Err("the target has no numbers".into()),
            },
        }
    }

    fn slices(&self, judged: &Judged<'_>, names: &[String], limit: usize) -> Result<Vec<Slice>, Failure> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        if is_npz(self.data) {
            return Err("--slice takes a column of a table; an .npz archive has none".into());
        }
        let (Inputs::Table(table), known) = data::read(self.data, &Wanted { target: self.target, ..Wanted::default() }, limit)? else {
            return Err("--slice takes a column of a table; pictures have none".into());
        };
        let mut all = Vec::new();
        for name in names {
            let column = if name == self.target { &known } else { table.column(name)? };
            all.extend(slices(judged, name, column)?);
        }
        Ok(all)
    }
}

/// How many arrays an archive has, if it is one.
fn arrays(path: &Path) -> Option<usize> {
    Some(npz::shapes(std::fs::File::open(path).ok()?).ok()?.len())
}

/// Whether the rows have classes rather than numbers.
fn classes(truth: &Column, columns: usize, names: &[String]) -> bool {
    columns > 1
        || !names.is_empty()
        || match truth {
            Column::Texts(_) => true,
            Column::Numbers(values) => values.iter().all(|&v| v == 0.0 || v == 1.0),
        }
}

/// The labels of classes: the model's own, or where it has none the positions of its scores if the target is such. Not every class need be
/// among the rows. Other numbers name themselves.
fn positions(truth: &Column, answers: &Answers) -> Vec<String> {
    let count = answers.scores.columns.max(2);
    match truth {
        Column::Numbers(values)
            if answers.labels.is_empty() && values.iter().all(|&v| v.fract() == 0.0 && v >= 0.0 && v < count as f32) =>
        {
            (0..count).map(|class| class.to_string()).collect()
        }
        _ => answers.labels.clone(),
    }
}

/// The scores of every row.
fn scores(signature: &Signature, inputs: &Inputs, labels: &[String], most: usize, run: Answering<'_>) -> Result<Scores, Failure> {
    let output = explained_output(signature, labels, None)?;
    let name = &signature.outputs[output].name;
    // A file may have been exported for one row at a time.
    let single = signature.inputs.iter().any(|port| matches!(port.dims.as_deref(), Some([Dim::Fixed(1), ..])));
    let pass = if single { 1 } else { most };
    let rows = inputs.rows();
    if rows == 0 {
        return Err("the data has no rows".into());
    }
    let bar = progress::bar("evaluating", rows);
    let all: Vec<usize> = (0..rows).collect();
    let mut scores = Scores::default();
    for part in all.chunks(pass) {
        let given = inputs.pick(part).tensors();
        let found = run(&all_fitted(&given, signature)?, output)?;
        scores.append(&found, part.len(), name, &|at| format!("row {}", part[at] + 1))?;
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(scores)
}

impl Report<'_> {
    fn text(&self, other: &str) -> String {
        let mut text = String::new();
        for (name, value) in self.measures.named() {
            let value = value.map_or("–".to_owned(), |value| format!("{value:.6}"));
            let interval = self.intervals.get(name).map_or(String::new(), |i| format!("  {:.6} to {:.6}", i.low, i.high));
            let _ = writeln!(text, "{name:<18} {value}{interval}");
        }
        if !self.intervals.is_empty() {
            let _ = writeln!(text, "({} % intervals by the bootstrap)", self.confidence * 100.0);
        }
        if let Measures::Classes(found) = self.measures {
            of_classes(&mut text, found);
        }
        for slice in &self.slices {
            let measures: Vec<String> = slice.measures.iter().filter_map(|(name, v)| Some(format!("{name} {:.4}", (*v)?))).collect();
            let _ = writeln!(text, "\n{} = {}: {} rows\n  {}", slice.column, slice.value, slice.rows, measures.join(", "));
        }
        if let Some(comparison) = &self.comparison {
            beside(&mut text, other, comparison);
        }
        text
    }
}

fn of_classes(text: &mut String, found: &Classification) {
    let width = found.classes.iter().map(|class| class.label.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(text, "\n{:width$}  precision  recall  F1      rows  taken for", "class");
    for (class, row) in found.classes.iter().zip(&found.confusion) {
        let row: Vec<String> = row.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "{:width$}  {:.4}     {:.4}  {:.4}  {:4}  {}",
            class.label,
            class.precision,
            class.recall,
            class.f1,
            class.support,
            row.join(" ")
        );
    }
}

fn beside(text: &mut String, other: &str, comparison: &Comparison) {
    let _ = writeln!(text, "\nbeside {other}: other minus this");
    for (name, difference) in &comparison.measures {
        if let (Some(first), Some(second)) = (difference.first, difference.second) {
            let interval = difference.interval.map_or(String::new(), |i| format!("  {:+.6} to {:+.6}", i.low, i.high));
            let _ = writeln!(text, "{name:<18} {:+.6}{interval}", second - first);
        }
    }
    if let Some(counts) = comparison.mcnemar {
        let _ = writeln!(text, "right only in this: {}, only in the other: {}", counts.only_first, counts.only_second);
    }
    let _ = writeln!(text, "{}: p = {:.6}", comparison.decisive, comparison.p);
}
