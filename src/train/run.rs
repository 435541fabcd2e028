//! A training from its configuration to a model folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::base::Base;
use super::config::{ClassWeights, Config, Task};
use super::data::{Inputs, Target};
use super::error::{Error, Result};
use super::fit::{DIVERGED, Epoch, Setting, Trainer, session};
use super::known::Known;
use super::loss::Loss;
use super::prepare::{Preparation, Scale};
use super::rows::{Rows, Store};
use super::split::{Split, folds, split};
use super::{checkpoint, folder, search};
use crate::engine::{Appender, Graph, Session, Threads};

/// What a training is told from outside, and what it tells.
pub struct Controls<'a> {
    /// Set when the training shall stop behind the step that it is at.
    pub stop: &'a AtomicBool,
    /// Whether a checkpoint is taken up.
    pub resume: bool,
    /// Where operators may run side by side.
    pub threads: Arc<Threads>,
    /// Bytes that raw rows may take in memory; more are read in parts, and prepared rows are kept in a file.
    pub memory_bytes: usize,
    /// Told what is found and done, a line at a time.
    pub say: &'a dyn Fn(&str),
    /// Told of each step.
    pub step: &'a dyn Fn(&Progress<'_>),
}

/// Where a training is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is trained: "training", or the trial of a search or the fold of a cross-validation that it is for.
    pub part: &'a str,
    /// Steps of it that are done.
    pub step: usize,
    /// Steps that it takes if nothing ends it before.
    pub steps: usize,
    /// The loss of the step.
    pub loss: f64,
    /// What the metric is.
    pub metric: &'static str,
    /// The metric of the epoch so far, of the rows as they trained.
    pub value: f64,
    /// That of the validation rows behind the last epoch.
    pub validation: Option<f64>,
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The folder is written.
    Done(Box<Report>),
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
    /// How many trials a search made, the least score, and the settings that had it.
    pub trials: Option<(usize, f64, String)>,
    /// Rows that trained in a second.
    pub speed: f64,
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

/// Rows that are prepared at once.
const PREPARED_AT_ONCE: usize = 4096;

/// What prepares rows: a session over the graph of a preparation.
fn preparing(preparation: &Preparation, threads: &Arc<Threads>) -> Result<Session> {
    let mut graph = Graph::default();
    let mut emit = Appender::new(&mut graph, "");
    let ready = preparation.emit(&mut emit, "inputs")?;
    graph.outputs.push(ready);
    session(graph, threads)
}

/// The targets and weights of some rows, whose inputs are not there yet.
fn unprepared(known: &Known, store: Store, shape: Vec<usize>, unit: Unit, weights: &[f64], picked: &[usize]) -> Rows {
    let outputs = known.outputs();
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
    Rows { shape, x: store, outputs, y, weights: of_rows }
}

/// One training on a split, prepared by its training rows.
struct Fitted {
    preparation: Preparation,
    unit: Unit,
    train: Rows,
    validation: Rows,
    test: Rows,
    base: Option<Base>,
}

impl Fitted {
    /// Fits to the training rows and prepares all. What does not fit into memory goes to a file in `folder` that has no name.
    fn new(config: &Config, known: &Known, split: &Split, folder: &Path, threads: &Arc<Threads>) -> Result<Self> {
        // A base has a preparation of its own, if any.
        let mut rules = config.prepare.clone();
        if config.base.is_some() {
            rules.scale = rules.scale.or(Some(Scale::None));
        }
        let passing =
            |f: &mut dyn FnMut(&Inputs, &[usize]) -> Result<()>| known.picked(&split.train, &mut |inputs, rows, _| f(inputs, rows));
        let preparation = Preparation::fit(&passing, &rules)?;
        let base = config.base.as_ref().map(|start| start.read(&preparation.shape())).transpose()?;
        // A whole model gives numbers in the target's own unit already.
        let own_unit = base.as_ref().is_some_and(|base| base.is_all(&config.layers, known.outputs()));
        let unit = if own_unit { Unit { mean: 0.0, size: 1.0 } } else { Unit::of(known, &split.train) };
        let weights = class_weights(known, &split.train, &config.train.class_weights)?;
        let mut session = preparing(&preparation, threads)?;
        let shape = preparation.shape();
        let mut part = |picked: &[usize], seen: bool| {
            let store = if known.streams() { Store::on_disk(folder)? } else { Store::default() };
            let mut rows = unprepared(known, store, shape.clone(), unit, &weights, picked);
            known.picked(picked, &mut |inputs, inside, first| {
                if !seen {
                    preparation.known(inputs, inside, |row| known.name(first + row))?;
                }
                for inside in inside.chunks(PREPARED_AT_ONCE) {
                    let found = session.run(&inputs.pick(inside).tensors())?;
                    let tensor = found.first().and_then(|value| value.tensor()).ok_or("the preparation gave nothing")?;
                    rows.x.push(tensor.slice::<f32>().unwrap_or_default())?;
                }
                Ok(())
            })?;
            Ok::<Rows, Error>(rows)
        };
        Ok(Self {
            train: part(&split.train, true)?,
            validation: part(&split.validation, false)?,
            test: part(&split.test, false)?,
            preparation,
            unit,
            base,
        })
    }

    fn setting<'s>(&'s self, config: &'s Config, loss: Loss, threads: &'s Arc<Threads>) -> Setting<'s> {
        Setting {
            config,
            loss,
            train: &self.train,
            validation: Some(&self.validation),
            empty: self.preparation.zero(),
            base: self.base.as_ref(),
            threads,
        }
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
    let known = Known::read(config, controls.memory_bytes)?;
    describe(&known, config, controls.say);
    let Some(plan) = &config.search else { return train((config, text), None, &known, output, controls) };
    let trials = plan.trials()?;
    let found = match search_best(config, text, (&known, &trials), output, controls)? {
        Some(found) => found,
        None => return Ok(Ended::Stopped),
    };
    let (best, score) = found;
    (controls.say)(&format!("best of {} trials: {} (score {score:.6})", trials.len(), search::line(&trials[best])));
    let (chosen, own_text) = search::applied(config, text, &trials[best])?;
    checkpoint::write_whole(&output.join("best.toml"), own_text.as_bytes())?;
    let ended = train((&chosen, text), Some((trials.len(), score, search::line(&trials[best]))), &known, output, controls)?;
    if ended != Ended::Stopped {
        let _ = std::fs::remove_file(output.join("search.txt"));
    }
    Ok(ended)
}

/// The trial with the least score, and the score: the validation loss, or the mean metric of the folds with its sign changed; infinite if
/// a loss was no number any more. `None` if it was stopped.
fn search_best(
    config: &Config,
    text: &str,
    (known, trials): (&Known, &[search::Trial]),
    output: &Path,
    controls: &Controls<'_>,
) -> Result<Option<(usize, f64)>> {
    let (path, hash) = (output.join("search.txt"), known.hash(text));
    // Every trial can be built, before the first is trained.
    let configs = trials.iter().map(|trial| Ok(search::applied(config, text, trial)?.0)).collect::<Result<Vec<_>>>()?;
    let mut scores = if controls.resume { search::Scores::read(&path, &hash) } else { search::Scores::new(&hash) };
    for (number, config) in configs.iter().enumerate().skip(scores.done.len()) {
        let parts = known.split(config)?;
        let trial = format!("trial {} of {}", number + 1, trials.len());
        let score = match config.data.folds {
            Some(count) => {
                let folds = Folds { count, done: &mut search::Scores::default(), kept: None, part: format!("{trial}, ") };
                let found = cross_validate(config, known, &parts, folds, (output, controls));
                found.map(|found| found.map(|found| -found.iter().sum::<f64>() / found.len() as f64))
            }
            None => validated(config, (known, &parts, &trial), output, controls),
        };
        let score = match score {
            Err(error) if error.0.starts_with(DIVERGED) => Some(f64::INFINITY),
            other => other?,
        };
        let Some(score) = score else { return Ok(None) };
        (controls.say)(&format!("{trial}: {}: score {score:.6}", search::line(&trials[number])));
        scores.done.push(score);
        scores.write(&path)?;
    }
    let best = scores.best().ok_or("no trial of the search came to a number")?;
    Ok(Some((best, scores.done[best])))
}

/// One epoch of the training `part`, of which `controls` are told. `None` if it was stopped.
fn epoch(trainer: &mut Trainer<'_>, (part, metric): (&str, &'static str), controls: &Controls<'_>) -> Result<Option<Epoch>> {
    let (steps, done) = (trainer.steps(), trainer.state.history.len());
    let validation = trainer.state.history.last().and_then(|epoch| epoch.metric);
    let all = steps * trainer.epochs();
    trainer.epoch(controls.stop, |step, loss, value| {
        (controls.step)(&Progress { part, step: done * steps + step, steps: all, loss, metric, value, validation });
    })
}

/// All epochs of a training that leaves nothing behind. `None` if it was stopped.
fn tried(trainer: &mut Trainer<'_>, told: (&str, &'static str), controls: &Controls<'_>) -> Result<Option<()>> {
    while !trainer.finished() {
        let epoch = epoch(trainer, told, controls)?;
        if epoch.is_none() || controls.stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

/// The least validation loss of the training `part`. `None` if it was stopped.
fn validated(config: &Config, (known, parts, part): (&Known, &Split, &str), folder: &Path, controls: &Controls<'_>) -> Result<Option<f64>> {
    let fitted = Fitted::new(config, known, parts, folder, &controls.threads)?;
    let mut trainer = Trainer::new(&fitted.setting(config, known.loss(config), &controls.threads))?;
    if tried(&mut trainer, (part, metric_name(known.task)), controls)?.is_none() {
        return Ok(None);
    }
    Ok(Some(trainer.state.history.iter().filter_map(|epoch| epoch.validation).fold(f64::INFINITY, f64::min)))
}

/// The training itself, and the folder.
fn train(
    (config, text): (&Config, &str),
    trials: Option<(usize, f64, String)>,
    known: &Known,
    output: &Path,
    controls: &Controls<'_>,
) -> Result<Ended> {
    let parts = known.split(config)?;
    let fitted = Fitted::new(config, known, &parts, output, &controls.threads)?;
    (controls.say)(&fitted.preparation.report());
    if let (Some(start), Some(base)) = (&config.base, &fitted.base) {
        (controls.say)(&format!("{}: {}", start.path.display(), base.weights.text()));
    }
    let hash = known.hash(text);
    let mut report = Report {
        rows: [parts.train.len(), parts.validation.len(), parts.test.len()],
        hash: hash.clone(),
        metric: metric_name(known.task),
        trials,
        ..Report::default()
    };
    let mut trainer = Trainer::new(&fitted.setting(config, known.loss(config), &controls.threads))?;
    let (saved, of_folds) = (output.join("checkpoint.npz"), output.join("folds.txt"));
    // A search that was stopped in its trials has left none.
    if controls.resume && (saved.exists() || report.trials.is_none()) {
        checkpoint::load(&saved, &hash, &mut trainer.state)?;
        (controls.say)(&format!("resumed behind epoch {}", trainer.state.history.len()));
    } else {
        // A kill in the folds, or in the first epoch, leaves something to resume.
        checkpoint::save(&saved, &hash, &trainer.state)?;
    }
    if let Some(count) = config.data.folds {
        let mut done = if controls.resume { search::Scores::read(&of_folds, &hash) } else { search::Scores::new(&hash) };
        let folds = Folds { count, done: &mut done, kept: Some(&of_folds), part: String::new() };
        let Some(found) = cross_validate(config, known, &parts, folds, (output, controls))? else { return Ok(Ended::Stopped) };
        report.folds = found;
    }
    let Some(speed) = epochs(config, &mut trainer, &hash, &saved, (report.metric, controls))? else { return Ok(Ended::Stopped) };
    report.speed = speed;
    report.best = settle(&mut trainer);
    report.history.clone_from(&trainer.state.history);
    report.train = trainer.evaluate(&fitted.train)?;
    report.test = if fitted.test.is_empty() { None } else { Some(trainer.evaluate(&fitted.test)?) };
    let sample = if parts.test.is_empty() { &parts.train } else { &parts.test };
    let (preparation, base) = (&fitted.preparation, fitted.base.as_ref());
    let export =
        folder::Export { config, text, known, preparation, unit: fitted.unit, base, sample, trained: &parts.train, report: &report };
    export.write(output, &mut trainer.state.parameters)?;
    for file in [&saved, &of_folds] {
        checkpoint::discard(file);
    }
    Ok(Ended::Done(Box::new(report)))
}

/// All epochs that are left, a checkpoint behind each; gives the rows that trained in a second, or `None` if it was stopped.
fn epochs(
    config: &Config,
    trainer: &mut Trainer<'_>,
    hash: &str,
    saved: &Path,
    (metric, controls): (&'static str, &Controls<'_>),
) -> Result<Option<f64>> {
    let (mut rows, mut seconds) = (0, 0.0);
    // An epoch that is stopped begins anew, from the state that was before it: that is in the file.
    while !trainer.finished() {
        let stopped = controls.stop.load(std::sync::atomic::Ordering::Relaxed);
        let start = Instant::now();
        let found = if stopped { None } else { epoch(trainer, ("training", metric), controls)? };
        let Some(epoch) = found else { return Ok(None) };
        (rows, seconds) = (rows + trainer.rows(), seconds + start.elapsed().as_secs_f64());
        let number = trainer.state.history.len();
        let over = trainer.finished();
        checkpoint::save(saved, hash, &trainer.state)?;
        if over || number.is_multiple_of((config.train.epochs / 20).max(1)) {
            (controls.say)(&line(number, &epoch, metric));
        }
    }
    Ok(Some(if seconds > 0.0 { rows as f64 / seconds } else { 0.0 }))
}

/// The hash of a configuration and its data, which a model keeps.
///
/// # Errors
/// What is wrong with the data.
pub fn hash(config: &Config, text: &str) -> Result<String> {
    Ok(Known::read(config, usize::MAX)?.hash(text))
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

/// The folds of a cross-validation.
struct Folds<'a> {
    count: usize,
    /// What those came to that are done.
    done: &'a mut search::Scores,
    /// The file in which that is kept.
    kept: Option<&'a Path>,
    /// What the name of each begins with.
    part: String,
}

/// Trains and tests on each fold of all rows but the test's, but those that are done. `None` if it was stopped.
fn cross_validate(
    config: &Config,
    known: &Known,
    parts: &Split,
    Folds { count, done, kept, part }: Folds<'_>,
    (folder, controls): (&Path, &Controls<'_>),
) -> Result<Option<Vec<f64>>> {
    let mut all = [&parts.train[..], &parts.validation].concat();
    all.sort_unstable();
    let all = folds(&known.target, &all, count, config.data.stratify, config.train.seed)?;
    for (number, mut fold) in all.into_iter().enumerate().skip(done.done.len()) {
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
        let fitted = Fitted::new(config, known, &fold, folder, &controls.threads)?;
        let mut trainer = Trainer::new(&fitted.setting(config, known.loss(config), &controls.threads))?;
        let part = format!("{part}fold {} of {count}", number + 1);
        if tried(&mut trainer, (&part, metric_name(known.task)), controls)?.is_none() {
            return Ok(None);
        }
        settle(&mut trainer);
        let (loss, metric) = trainer.evaluate(&fitted.test)?;
        (controls.say)(&format!("fold {} of {count}: loss {loss:.6}, {} {metric:.4}", number + 1, metric_name(known.task)));
        done.done.push(metric);
        if let Some(path) = kept {
            done.write(path)?;
        }
    }
    Ok(Some(done.done.clone()))
}

/// Says what the data is.
fn describe(known: &Known, config: &Config, say: &dyn Fn(&str)) {
    let columns = &known.summary.columns;
    let what = match &known.summary.array {
        None => format!("{} columns", columns.len()),
        Some(shape) => format!("array `{}` of {shape:?}", columns[0].0),
    };
    let place = if known.streams() { ", more than memory holds: read in parts" } else { "" };
    say(&format!("{}: {} rows, {what}{place}", config.data.path.display(), known.rows));
    if let Target::Classes { labels, of } = &known.target {
        let counts: Vec<String> =
            labels.iter().enumerate().map(|(class, label)| format!("{label} {}", of.iter().filter(|&&c| c == class).count())).collect();
        say(&format!("classes: {}", counts.join(", ")));
    }
}
