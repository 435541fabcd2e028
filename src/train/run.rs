//! A training from its configuration to a model folder.

use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::config::{ClassWeights, Config, Task};
use super::data::{self, Column, Inputs, Target};
use super::error::{Error, Result};
use super::fit::{Epoch, Rows, Setting, Trainer};
use super::loss::Loss;
use super::prepare::Preparation;
use super::split::{Split, folds, split};
use super::{checkpoint, folder};
use crate::engine::{Appender, Graph, LoadOptions, Loaded, Metadata, Model, Session, Threads};

/// What a training is told from outside, and what it tells.
pub struct Controls<'a> {
    /// Set when the training shall stop behind the step that it is at.
    pub stop: &'a AtomicBool,
    /// Whether a checkpoint is taken up.
    pub resume: bool,
    /// Where operators may run side by side.
    pub threads: Arc<Threads>,
    /// Told what is found and done, a line at a time.
    pub say: &'a dyn Fn(&str),
    /// Told of each step: its number of how many, and the loss.
    pub step: &'a dyn Fn(usize, usize, f64),
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The folder is written.
    Done(Report),
    /// It was stopped; a checkpoint is there.
    Stopped,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Each epoch.
    pub history: Vec<Epoch>,
    /// The epoch whose parameters are exported.
    pub best: Option<usize>,
    /// Loss and metric of the rows that trained, of the exported parameters.
    pub train: (f64, f64),
    /// Those of the test rows.
    pub test: Option<(f64, f64)>,
    /// The metric of each fold of a cross-validation.
    pub folds: Vec<f64>,
    /// How many rows train, say when to stop, and judge.
    pub rows: [usize; 3],
    /// The hash of configuration and data.
    pub hash: String,
    /// What the metric is.
    pub metric: &'static str,
}

/// All that is known of the data.
pub(super) struct Known {
    pub(super) inputs: Inputs,
    pub(super) target: Target,
    pub(super) task: Task,
    pub(super) loss: Loss,
    /// How many rows are to be parted; those behind them judge.
    own: usize,
}

impl Known {
    fn read(config: &Config) -> Result<Self> {
        let data = &config.data;
        let (mut inputs, mut target) = data::read(&data.path, data.inputs.as_deref(), &data.target, usize::MAX >> 1)?;
        let own = inputs.rows();
        if let Some(path) = &data.test_path {
            let (more, of_more) = data::read(path, data.inputs.as_deref(), &data.target, usize::MAX >> 1)?;
            let said = |error: Error| super::error::in_file(path, error);
            (inputs, target) = (inputs.join(more).map_err(said)?, target.join(of_more).map_err(said)?);
        }
        let inputs = match inputs {
            Inputs::Table(table) if !data.features.is_empty() => Inputs::Table(table.select(&data.features)?),
            Inputs::Array { .. } if !data.features.is_empty() => return Err("`data.features` are columns of a table".into()),
            other => other,
        };
        let rows = config.prepare.rows(&inputs)?;
        let own = rows.iter().filter(|&&row| row < own).count();
        let whole = rows.len() == inputs.rows();
        let text = matches!(target, Column::Texts(_));
        let task = data.task.unwrap_or(if text || !data.labels.is_empty() { Task::Classify } else { Task::Regress });
        let target = match task {
            Task::Regress => Target::numbers(target, &data.target)?,
            Task::Classify | Task::Binary => Target::classes(&target, &data.labels, &data.target)?,
        };
        if let Target::Classes { labels, .. } = &target {
            let fits = if task == Task::Binary { labels.len() == 2 } else { labels.len() >= 2 };
            if !fits {
                return Err(Error(format!("the target `{}` has {} classes: {}", data.target, labels.len(), labels.join(", "))));
            }
        }
        let loss = config.train.loss.unwrap_or(match task {
            Task::Classify => Loss::CrossEntropy {},
            Task::Binary => Loss::BinaryCrossEntropy {},
            Task::Regress => Loss::MeanSquared {},
        });
        let (inputs, target) = if whole { (inputs, target) } else { (inputs.pick(&rows), target.pick(&rows)) };
        Ok(Self { inputs, target, task, loss, own })
    }

    /// Which rows train, say when to stop, and judge.
    fn split(&self, config: &Config) -> Result<Split> {
        let own: Vec<usize> = (0..self.own).collect();
        let shares = (config.data.validation, config.data.test);
        let mut parts = split(&self.target.pick(&own), self.own, shares, config.data.stratify, config.train.seed)?;
        parts.test.extend(self.own..self.inputs.rows());
        Ok(parts)
    }

    /// Columns of the output.
    pub(super) fn outputs(&self) -> usize {
        match (&self.target, self.task) {
            (Target::Classes { labels, .. }, Task::Classify) => labels.len(),
            _ => 1,
        }
    }
}

/// Numbers that targets are brought to one size with, as the output is brought back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) mean: f32,
    pub(super) size: f32,
}

impl Unit {
    fn of(known: &Known, rows: &[usize]) -> Self {
        let Target::Numbers(values) = &known.target else { return Self { mean: 0.0, size: 1.0 } };
        let count = rows.len() as f64;
        let mean = rows.iter().map(|&row| f64::from(values[row])).sum::<f64>() / count;
        let variance = rows.iter().map(|&row| (f64::from(values[row]) - mean).powi(2)).sum::<f64>() / count;
        Self { mean: mean as f32, size: if variance > 0.0 { variance.sqrt() as f32 } else { 1.0 } }
    }
}

/// How much each class counts.
fn class_weights(known: &Known, train: &[usize], config: &ClassWeights) -> Result<Vec<f64>> {
    let Target::Classes { labels, of } = &known.target else {
        return if *config == ClassWeights::Equal { Ok(Vec::new()) } else { Err("`train.class_weights` needs classes".into()) };
    };
    match config {
        ClassWeights::Equal => Ok(vec![1.0; labels.len()]),
        ClassWeights::Each(list) if list.len() == labels.len() => Ok(list.clone()),
        ClassWeights::Each(list) => Err(Error(format!("`train.class_weights` has {} numbers for {} classes", list.len(), labels.len()))),
        ClassWeights::Word(_) => {
            let mut counts = vec![0_usize; labels.len()];
            train.iter().for_each(|&row| counts[of[row]] += 1);
            let mean = train.len() as f64 / labels.len() as f64;
            Ok(counts.iter().map(|&count| if count == 0 { 0.0 } else { mean / count as f64 }).collect())
        }
    }
}

/// Some rows, prepared.
fn rows(known: &Known, preparation: &Preparation, unit: Unit, weights: &[f64], picked: &[usize]) -> Result<Rows> {
    let (outputs, shape) = (known.outputs(), preparation.shape());
    let inputs = known.inputs.pick(picked);
    let mut graph = Graph::default();
    let mut emit = Appender::new(&mut graph, "");
    let ready = preparation.emit(&mut emit, "inputs")?;
    graph.outputs.push(ready);
    let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions { run_limit: None, ..LoadOptions::default() })?;
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    let found = if picked.is_empty() { Vec::new() } else { session.run(&inputs.tensors())? };
    let x =
        found.first().and_then(|value| value.tensor()).and_then(|tensor| tensor.slice::<f32>().map(<[f32]>::to_vec)).unwrap_or_default();
    let mut y = Vec::with_capacity(picked.len() * outputs);
    let mut of_rows = Vec::with_capacity(picked.len());
    for &row in picked {
        match &known.target {
            Target::Numbers(values) => y.push((values[row] - unit.mean) / unit.size),
            Target::Classes { of, .. } if known.task == Task::Binary => y.push(of[row] as f32),
            Target::Classes { of, .. } => y.extend((0..outputs).map(|class| if class == of[row] { 1.0 } else { 0.0 })),
        }
        of_rows.push(match &known.target {
            Target::Classes { of, .. } => weights[of[row]] as f32,
            Target::Numbers(_) => 1.0,
        });
    }
    Ok(Rows { shape, x, outputs, y, weights: of_rows })
}

/// One training on a split, prepared by its training rows.
struct Fitted {
    preparation: Preparation,
    unit: Unit,
    train: Rows,
    validation: Rows,
    test: Rows,
}

impl Fitted {
    fn new(config: &Config, known: &Known, split: &Split) -> Result<Self> {
        let preparation = Preparation::fit(&known.inputs.pick(&split.train), &config.prepare)?;
        let unit = Unit::of(known, &split.train);
        let weights = class_weights(known, &split.train, &config.train.class_weights)?;
        let of = |picked: &[usize]| rows(known, &preparation, unit, &weights, picked);
        Ok(Self { train: of(&split.train)?, validation: of(&split.validation)?, test: of(&split.test)?, preparation, unit })
    }

    fn setting<'s>(&'s self, config: &'s Config, loss: Loss, threads: &'s Arc<Threads>) -> Setting<'s> {
        Setting { config, loss, train: &self.train, validation: Some(&self.validation), empty: self.preparation.zero(), threads }
    }
}

/// Takes the parameters with the least validation loss back, if there are any.
fn settle(trainer: &mut Trainer<'_>) -> Option<usize> {
    let (epoch, values) = trainer.state.best.clone()?;
    trainer.state.parameters.iter_mut().zip(values).for_each(|(p, v)| p.values = v);
    Some(epoch)
}

/// Trains as `config`, whose text is `text`, says, and writes the model folder `output`. Its version is 1.
///
/// # Errors
/// What is wrong with the configuration or the data, by key, column or row; or a file that cannot be written.
pub fn run(config: &Config, text: &str, output: &Path, controls: &Controls<'_>) -> Result<Ended> {
    let known = Known::read(config)?;
    let hash = hash(text, &known);
    describe(&known, config, controls.say);
    let parts = known.split(config)?;
    let fitted = Fitted::new(config, &known, &parts)?;
    (controls.say)(&fitted.preparation.report());
    let mut report = Report {
        rows: [parts.train.len(), parts.validation.len(), parts.test.len()],
        hash: hash.clone(),
        metric: metric_name(known.task),
        ..Report::default()
    };
    std::fs::create_dir_all(output).map_err(|error| super::error::in_file(output, error))?;
    let saved = output.join("checkpoint.npz");
    if let Some(count) = config.data.folds {
        match cross_validate(config, &known, &parts, count, controls)? {
            Some(found) => report.folds = found,
            None => return Ok(Ended::Stopped),
        }
    }
    let mut trainer = Trainer::new(&fitted.setting(config, known.loss, &controls.threads))?;
    if controls.resume {
        checkpoint::load(&saved, &hash, &mut trainer.state)?;
        (controls.say)(&format!("resumed behind epoch {}", trainer.state.history.len()));
    }
    let steps = trainer.steps();
    while !trainer.finished() {
        // An epoch that is stopped begins anew, from the state that was before it.
        let before = trainer.state.clone();
        let base = before.history.len() * steps;
        let stopped = controls.stop.load(std::sync::atomic::Ordering::Relaxed);
        let step = |step, loss| (controls.step)(base + step, config.train.epochs * steps, loss);
        let found = if stopped { None } else { trainer.epoch(controls.stop, step)? };
        let Some(epoch) = found else {
            checkpoint::save(&saved, &hash, &before)?;
            return Ok(Ended::Stopped);
        };
        let number = trainer.state.history.len();
        let over = trainer.finished();
        checkpoint::save(&saved, &hash, &trainer.state)?;
        if over || number.is_multiple_of((config.train.epochs / 20).max(1)) {
            (controls.say)(&line(number, &epoch, report.metric));
        }
    }
    report.best = settle(&mut trainer);
    report.history.clone_from(&trainer.state.history);
    report.train = trainer.evaluate(&fitted.train)?;
    report.test = if fitted.test.is_empty() { None } else { Some(trainer.evaluate(&fitted.test)?) };
    let sample = if parts.test.is_empty() { &parts.train } else { &parts.test };
    let export =
        folder::Export { config, text, known: &known, preparation: &fitted.preparation, unit: fitted.unit, sample, report: &report };
    export.write(output, &mut trainer.state.parameters)?;
    let _ = std::fs::remove_file(&saved);
    Ok(Ended::Done(report))
}

fn metric_name(task: Task) -> &'static str {
    if task == Task::Regress { "R²" } else { "accuracy" }
}

/// An epoch as a line.
fn line(number: usize, epoch: &Epoch, metric: &str) -> String {
    let validation = epoch.validation.map_or(String::new(), |loss| format!(", validation {loss:.6}"));
    let found = epoch.metric.map_or(String::new(), |value| format!(", {metric} {value:.4}"));
    format!("epoch {number}: loss {:.6}{validation}{found}", epoch.loss)
}

/// Trains and tests on each fold of all rows but the test's; `None` if it was stopped.
fn cross_validate(config: &Config, known: &Known, parts: &Split, count: usize, controls: &Controls<'_>) -> Result<Option<Vec<f64>>> {
    let all = [&parts.train[..], &parts.validation].concat();
    let mut found = Vec::with_capacity(count);
    for (number, mut fold) in folds(&known.target, &all, count, config.data.stratify, config.train.seed)?.into_iter().enumerate() {
        // What says when to stop comes from the fold's own training rows: the test of the fold judges only.
        if config.data.validation > 0.0 {
            let inner = split(
                &known.target.pick(&fold.train),
                fold.train.len(),
                (config.data.validation, 0.0),
                config.data.stratify,
                config.train.seed,
            )?;
            let pick = |list: &[usize]| list.iter().map(|&at| fold.train[at]).collect::<Vec<_>>();
            (fold.validation, fold.train) = (pick(&inner.validation), pick(&inner.train));
        }
        let fitted = Fitted::new(config, known, &fold)?;
        let mut trainer = Trainer::new(&fitted.setting(config, known.loss, &controls.threads))?;
        while !trainer.finished() {
            let epoch = trainer.epoch(controls.stop, |_, _| {})?;
            if epoch.is_none() || controls.stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Ok(None);
            }
        }
        settle(&mut trainer);
        let (loss, metric) = trainer.evaluate(&fitted.test)?;
        (controls.say)(&format!("fold {} of {count}: loss {loss:.6}, {} {metric:.4}", number + 1, metric_name(known.task)));
        found.push(metric);
    }
    Ok(Some(found))
}

/// Says what the data is.
fn describe(known: &Known, config: &Config, say: &dyn Fn(&str)) {
    let what = match &known.inputs {
        Inputs::Table(table) => format!("{} columns", table.names.len()),
        Inputs::Array { name, shape, .. } => format!("array `{name}` of {shape:?}"),
    };
    say(&format!("{}: {} rows, {what}", config.data.path.display(), known.inputs.rows()));
    if let Target::Classes { labels, of } = &known.target {
        let counts: Vec<String> =
            labels.iter().enumerate().map(|(class, label)| format!("{label} {}", of.iter().filter(|&&c| c == class).count())).collect();
        say(&format!("classes: {}", counts.join(", ")));
    }
}

/// A hash of the configuration and the data: FNV-1a, which is no secret and the same everywhere.
fn hash(text: &str, known: &Known) -> String {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            bytes.iter().for_each(|&b| self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(text.as_bytes());
    let numbers = |hasher: &mut Fnv, values: &[f32]| values.iter().for_each(|v| hasher.write(&v.to_bits().to_le_bytes()));
    match &known.inputs {
        Inputs::Array { values, .. } => numbers(&mut hasher, values),
        Inputs::Table(table) => table.columns.iter().for_each(|column| match column {
            Column::Numbers(values) => numbers(&mut hasher, values),
            Column::Texts(values) => values.iter().for_each(|text| hasher.write(text.as_bytes())),
        }),
    }
    match &known.target {
        Target::Numbers(values) => numbers(&mut hasher, values),
        Target::Classes { of, .. } => of.iter().for_each(|&class| hasher.write(&(class as u64).to_le_bytes())),
    }
    format!("{:016x}", hasher.finish())
}
