//! `ndserve evaluate`: what a model's answers to known rows are worth.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use super::predict::labels;
use super::target::Target;
use super::{Failure, Outcome, print, progress};
use crate::config::{Engine, Flags};
use crate::engine::{Session, Slice, Threads, Value};
use crate::telemetry;
use crate::train::data::{self, Column, Inputs, Target as Truth};
use crate::train::metrics::{Classification, Regression, classification, regression};

/// Run a model on rows whose answers are known, and measure.
///
/// The definitions are scikit-learn's. Exits with 0 if every row was answered.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A .csv or .tsv file with a line of names, or an .npz archive; columns in the order of the model's input
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// The column or array that holds the right answers
    #[arg(long, value_name = "NAME")]
    target: String,
    /// The columns that the model takes, in its order; all others where none are named
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// What the answers are; by default classes if the model has labels or several outputs, or the target is text or 0 and 1
    #[arg(long, value_enum)]
    task: Option<Task>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Engine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    Classify,
    Regress,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let target = Target::one(&args.model)?;
    let options = settings.load_options();
    let (model, _) = target.load(&options).map_err(|error| target.failed(&error))?;
    let own = model.metadata().labels.clone();
    let names = labels(&target, &settings, own)?;
    // An array of an archive is named as the model's input, if it has one.
    let input = model.signature().inputs.first().filter(|_| model.signature().inputs.len() == 1).map(|port| port.name.clone());
    let named = if args.data.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz")) { input.as_deref() } else { None };
    let (inputs, truth) = data::read(&args.data, named, &args.target, options.memory_limit)?;
    let inputs = match inputs {
        Inputs::Table(table) if !args.features.is_empty() => Inputs::Table(table.select(&args.features)?),
        other => other,
    };
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::new(settings.engine_threads())?));
    let answers = answers(&mut session, &inputs)?;
    let columns = answers.len() / inputs.rows();
    let task = args.task.unwrap_or_else(|| if classes(&truth, columns, &names) { Task::Classify } else { Task::Regress });
    let text = match task {
        Task::Classify => {
            let Truth::Classes { labels, of } = Truth::classes(&truth, &names, &args.target)? else {
                return Err("the target has no classes".into());
            };
            let found = classification(&answers, &of, &labels)?;
            if args.json { serde_json::to_string_pretty(&found)? } else { of_classes(&found) }
        }
        Task::Regress => {
            let Truth::Numbers(values) = Truth::numbers(truth, &args.target)? else { return Err("the target has no numbers".into()) };
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let found = regression(&answers, &values)?;
            if args.json { serde_json::to_string_pretty(&found)? } else { of_numbers(&found) }
        }
    };
    print(&format!("{}\n", text.trim_end()))?;
    Ok(ExitCode::SUCCESS)
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

/// The first floating-point output of every row, one after the other.
fn answers(session: &mut Session, inputs: &Inputs) -> Result<Vec<f64>, Failure> {
    /// Rows of a pass.
    const PASS: usize = 256;
    let rows = inputs.rows();
    if rows == 0 {
        return Err("the data has no rows".into());
    }
    let bar = progress::bar("evaluating", rows);
    let all: Vec<usize> = (0..rows).collect();
    let mut answers = Vec::new();
    for part in all.chunks(PASS) {
        let outputs = session.run(&inputs.pick(part).tensors())?;
        let numbers = outputs.iter().filter_map(Value::tensor).find_map(|tensor| match tensor.data() {
            Slice::F32(values) => Some(values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
            Slice::F64(values) => Some(values.to_vec()),
            _ => None,
        });
        let numbers = numbers.ok_or("the model has no output of floating-point numbers")?;
        if numbers.is_empty() || numbers.len() % part.len() != 0 {
            return Err(format!("{} numbers are the answer to {} rows", numbers.len(), part.len()).into());
        }
        answers.extend(numbers);
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    Ok(answers)
}

fn of_classes(found: &Classification) -> String {
    let some = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
    let mut text = format!(
        "accuracy           {:.4}\nbalanced accuracy  {:.4}\nF1, macro          {:.4}\nF1, weighted       {:.4}\nROC AUC            {}\nPR AUC             {}\nlog loss           {:.6}\nBrier score        {:.6}\n\n",
        found.accuracy,
        found.balanced_accuracy,
        found.f1_macro,
        found.f1_weighted,
        some(found.roc_auc),
        some(found.pr_auc),
        found.log_loss,
        found.brier
    );
    let width = found.classes.iter().map(|class| class.label.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(text, "{:width$}  precision  recall  F1      rows  taken for", "class");
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
    text
}

fn of_numbers(found: &Regression) -> String {
    let r2 = found.r2.map_or("–".to_owned(), |r2| format!("{r2:.4}"));
    format!(
        "mean absolute error  {:.6}\nroot mean square     {:.6}\nR²                   {r2}\nmean share           {:.6}\n",
        found.mae, found.rmse, found.mape
    )
}
