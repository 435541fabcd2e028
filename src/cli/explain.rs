//! `ndserve explain`: what of its inputs brought a model's answers about.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::files::write_whole;
use super::rows::{Columns, first_rows};
use super::target::Target;
use super::{Failure, Outcome, print, progress};
use crate::api::explain::{Shown, encode};
use crate::config::{Engine, Flags, NonFinite};
use crate::engine::{LoadOptions, Model, Session, Threads, has_trees, read_graph};
use crate::explain::{Class, Explained, Explainer, Explanation, Method, Options, Program, Question, Subject, heat_map};
use crate::telemetry;

/// Explain a model's answers: what each feature, or each pixel, contributed.
///
/// The methods, and what a model's folder may declare, are described in docs/explaining.md. Exits with 0 if all rows were
/// explained.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A model file, or a model folder (its newest version is taken)
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The rows: a .csv or .tsv file with a line of names (also .gz), a .parquet file, an .npz archive with an array for each input, or
    /// a folder of pictures by class
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// How: integrated_gradients, gradient_input, shapley, tree_shap, occlusion or permutation_importance; by default what the
    /// model's folder declares, else tree_shap for trees, integrated_gradients for images and shapley for tables
    #[arg(long, value_name = "METHOD", value_parser = Method::parse)]
    method: Option<Method>,
    /// The output that is explained; by default that of the labels, else the first of floating-point numbers
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// The class that is explained, by its label or position; by default of each row the most likely one
    #[arg(long, value_name = "LABEL|INDEX")]
    class: Option<String>,
    /// Rows against which is explained, in a file like DATA; by default what the model's folder declares, else a row of zeros
    #[arg(long, value_name = "FILE")]
    background: Option<PathBuf>,
    /// The column or array of DATA that holds the right answers: no feature, and what permutation_importance measures by
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// The columns that the model takes, in its order; all others where none are named
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    features: Vec<String>,
    /// Explain this many rows only, the first ones
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Contributions that are shown of each row; 10 without it, and with --json all
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Points of the integral of integrated_gradients
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Orders in which the features join for shapley
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// The part that occlusion covers, a size for each dimension of a row
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    window: Option<Vec<usize>>,
    /// How far the part moves
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    stride: Option<Vec<usize>>,
    /// How often permutation_importance lets values change places
    #[arg(long, value_name = "N")]
    repeats: Option<usize>,
    /// What everything random follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write a heat map of each image here, row-1.png and so on; with several images in a row, row-1-NAME.png by their inputs
    #[arg(long, value_name = "DIR")]
    heat_maps: Option<PathBuf>,
    /// Print what the server answers to `:explain`; heat maps that --heat-maps writes are left out of it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<Engine>,
}

pub(super) fn command(args: Args) -> Outcome {
    let settings = args.flags.settings()?;
    telemetry::init(&settings)?;
    let target = Target::one(&args.model)?;
    let options = settings.load_options();
    let (model, _) = target.load(&options).map_err(|error| target.failed(&error))?;
    let model = Arc::new(model);
    let signature = model.signature().clone();
    let declared = target.settings(&settings)?;
    let labels = if declared.labels.is_empty() { model.metadata().labels.clone() } else { declared.labels };
    let mut explain = declared.explain;
    let folder = target.folder.clone().unwrap_or_default();
    let of_model = explain.read_background(&folder, &signature, options.memory_limit)?;
    let columns = Columns { target: args.target.as_deref(), features: &args.features, limit: options.memory_limit };
    let mut data = columns.read(&args.data, &signature)?;
    // Left in, the right answers would be a feature.
    if let Some(name) = args.target.as_ref().filter(|_| data.known.is_empty()) {
        return Err(format!("{}: there is no column or array `{name}`", args.data.display()).into());
    }
    if explain.features.is_empty() {
        explain.features = data.names;
    }
    if let Some(rows) = args.rows {
        data.tensors = data.tensors.iter().map(|tensor| first_rows(tensor, rows)).collect();
        data.known.truncate(rows);
    }
    let background = args.background.as_deref().map(|path| columns.read(path, &signature)).transpose()?;
    let question = Question {
        inputs: data.tensors,
        method: args.method,
        output: args.output.clone(),
        target: args.class.as_deref().map(|class| named_class(class, &labels)),
        background: background.map(|read| read.tensors),
        known: (!data.known.is_empty()).then_some(data.known),
        options: Options {
            steps: args.steps,
            samples: args.samples,
            window: args.window.clone(),
            stride: args.stride.clone(),
            repeats: args.repeats,
            seed: args.seed,
        },
    };
    let background = of_model.as_deref();
    let subject = Subject { signature: &signature, labels: &labels, settings: &explain, background, has_trees: has_trees(&model) };
    let explainer = Explainer::new(&subject, question)?;
    let threads = Arc::new(Threads::new(settings.engine_threads())?);
    let mut programs = Programs { target: &target, options: &options, threads, model, sessions: HashMap::new() };
    let explained = programs.run(explainer, declared.max_batch_rows)?;
    if let Some(folder) = &args.heat_maps {
        write_heat_maps(folder, &explained)?;
    }
    if args.json {
        let shown = Shown { top: args.top, heat_map: args.heat_maps.is_none() };
        print(&format!("{}\n", String::from_utf8_lossy(&encode(&explained, shown, NonFinite::Token)?)))?;
    } else {
        print(&text(&explained, args.top.unwrap_or(10)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A label, if the model has it; else a position, if it is a number.
fn named_class(class: &str, labels: &[String]) -> Class {
    match class.parse() {
        Ok(index) if !labels.iter().any(|label| label == class) => Class::Index(index),
        _ => Class::Label(class.to_owned()),
    }
}

/// The model, and what is made of it, ready to run.
struct Programs<'a> {
    target: &'a Target,
    options: &'a LoadOptions,
    threads: Arc<Threads>,
    model: Arc<Model>,
    sessions: HashMap<Program, Session>,
}

impl Programs<'_> {
    fn run(&mut self, mut explainer: Explainer, most_rows: usize) -> Result<Explained, Failure> {
        let bar = progress::bar("explaining", explainer.evaluations());
        while explainer.rows() > 0 {
            let (rows, per_pass) = (explainer.rows(), explainer.rows_per_pass(most_rows));
            for start in (0..rows).step_by(per_pass) {
                let range = start..(start + per_pass).min(rows);
                let inputs = explainer.inputs(range.clone());
                let session = self.session(explainer.program(), explainer.output())?;
                let outputs = session.run(&inputs)?;
                bar.inc(range.len() as u64);
                explainer.take(range, &outputs)?;
            }
            explainer.advance()?;
        }
        bar.finish_and_clear();
        Ok(explainer.finish())
    }

    fn session(&mut self, program: Program, output: usize) -> Result<&mut Session, Failure> {
        if !self.sessions.contains_key(&program) {
            let model = match &self.target.file {
                Ok(file) if program != Program::Model => {
                    let failed = |error| self.target.failed(&error);
                    let loaded = read_graph(file, self.options).map_err(failed)?;
                    Arc::new(program.derive(loaded, self.model.signature(), output, self.options).map_err(failed)?)
                }
                _ => Arc::clone(&self.model),
            };
            self.sessions.insert(program, Session::new(model, Arc::clone(&self.threads)));
        }
        Ok(self.sessions.get_mut(&program).expect("just made"))
    }
}

fn write_heat_maps(folder: &Path, explained: &Explained) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut written = 0;
    for (row, explanation) in explained.explanations.iter().enumerate() {
        let mut images = Vec::new();
        for (name, shape, range) in explained.layout.inputs() {
            images.extend(heat_map(&explanation.contributions[range], shape)?.map(|png| (name, png)));
        }
        let several = images.len() > 1;
        for (name, png) in images {
            let path = folder.join(heat_map_file(row, several.then_some(name)));
            write_whole(&path, &png)?;
            written += 1;
        }
    }
    if written == 0 { Err("the model takes no images: there is no heat map".into()) } else { Ok(()) }
}

/// The file of a row's heat map, with the name of the input if there are several. What leads into other folders is no part of it.
fn heat_map_file(row: usize, input: Option<&str>) -> String {
    let input = input.map_or(String::new(), |name| format!("-{}", name.replace(['/', '\\', ':'], "_")));
    format!("row-{}{input}.png", row + 1)
}

fn text(explained: &Explained, top: usize) -> String {
    let mut text = String::new();
    let (source, rows) = explained.background;
    let method = explained.explanations.first().map_or("", |explanation| explanation.method.name());
    let _ = writeln!(text, "{method}, background: {rows} rows of {}, {} evaluations", source.name(), explained.evaluations);
    for (row, explanation) in explained.explanations.iter().enumerate() {
        let row = explanation.answer.map(|_| row);
        text.push('\n');
        head(&mut text, explanation, row);
        let order: Vec<usize> = explanation.ranked().into_iter().take(top).collect();
        let name = |element| explained.layout.name(element);
        let width = order.iter().map(|&element| name(element).chars().count()).max().unwrap_or(0);
        for element in order {
            let value = row.and_then(|row| {
                let number = explained.layout.number(&explained.instances, row, element).map(|number| format!("{number}"));
                number.or_else(|| explained.layout.show(&explained.instances, row, element))
            });
            let spread = explanation.spread.as_ref().map_or(String::new(), |spread| format!("  ± {:.6}", spread[element]));
            let value = value.map_or(String::new(), |value| format!(" = {value}"));
            let _ = writeln!(text, "  {:+.6}{spread}  {:width$}{value}", explanation.contributions[element], name(element));
        }
    }
    text
}

/// What is explained, and from where to where.
fn head(text: &mut String, explanation: &Explanation, row: Option<usize>) {
    let target = &explanation.target;
    let class = target.label.as_ref().map_or_else(|| format!("[{}]", target.index), |label| format!(" {label}"));
    let _ = match (row, &explanation.measured, explanation.answer) {
        (Some(row), _, Some(answer)) => writeln!(text, "row {}: {}{class} = {answer:.6}", row + 1, target.output),
        (_, Some(measured), _) => writeln!(text, "{} of {}: {:.6}", measured.measure, target.output, measured.value),
        _ => Ok(()),
    };
    if let (Some(base), Some(value), Some(error)) = (explanation.base_value, explanation.value, explanation.completeness_error) {
        let _ = writeln!(text, "  from {base:.6} to {value:.6}, completeness error {error:.2e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_a_label_before_it_is_a_position() {
        let labels = ["1".to_owned(), "0".to_owned()];
        assert_eq!(named_class("1", &labels), Class::Label("1".to_owned()));
        assert_eq!(named_class("1", &[]), Class::Index(1));
        assert_eq!(named_class("cat", &[]), Class::Label("cat".to_owned()));
    }

    #[test]
    fn each_image_of_a_row_has_a_heat_map_of_its_own() {
        assert_eq!(heat_map_file(0, None), "row-1.png");
        assert_eq!(["left", "../right"].map(|name| heat_map_file(1, Some(name))), ["row-2-left.png", "row-2-.._right.png"]);
    }
}
