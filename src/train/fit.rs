//! The loop: batches through a graph of loss and gradients, parameters after their gradients, and what stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::augment::Augmenting;
use super::base::Base;
use super::config::{Config, Training};
use super::error::{Error, Result};
use super::loss::{Loss, Operands};
use super::network::{Builder, Mode, Parameter, Role};
use super::optimizer::{Gradient, Move, Optimizer, clip_factor, norm};
use super::random::Random;
use super::rows::Rows;
use super::schedule::Position;
use crate::engine::{
    Appender, DType, Dim, Graph, Kind, LoadOptions, Loaded, Metadata, Model, Session, Shape, Slice, Threads, ValueId, View,
    append_gradients, emptied,
};

/// What the error of a training begins with whose loss is no number any more.
pub(super) const DIVERGED: &str = "the loss is";

/// What an epoch came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// The mean of the batches' losses while they trained.
    pub loss: f64,
    /// The loss of the validation rows behind it.
    pub validation: Option<f64>,
    /// The accuracy, or R², of the validation rows.
    pub metric: Option<f64>,
}

/// Where a training is: all that a checkpoint holds.
#[derive(Clone, Debug)]
pub struct State {
    /// The network's parameters.
    pub parameters: Vec<Parameter>,
    /// The optimiser with its momentums.
    pub optimizer: Optimizer,
    /// The epochs done.
    pub history: Vec<Epoch>,
    /// The parameters with the least validation loss, and the epoch that they are of.
    pub best: Option<(usize, Vec<Vec<f32>>)>,
}

/// The graph that trains, ready to run, with room for a batch.
struct Program {
    session: Session,
    /// Positions of the parameters that have gradients, in the order of the outputs behind the predictions.
    trained: Vec<usize>,
    /// Statistics with new values, behind the gradients.
    updated: Vec<usize>,
}

/// A training under way.
pub struct Trainer<'a> {
    config: &'a Training,
    loss: Loss,
    train: &'a Rows,
    validation: Option<&'a Rows>,
    program: Program,
    evaluation: Session,
    kept: Kept,
    /// See [`State`].
    pub state: State,
    augmenting: Augmenting,
    threads: Arc<Threads>,
}

/// What a training needs to know of everything else.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// What is made small.
    pub loss: Loss,
    /// Rows that train.
    pub train: &'a Rows,
    /// Rows that say when to stop.
    pub validation: Option<&'a Rows>,
    /// What stands where an image has nothing.
    pub empty: f32,
    /// What it begins with.
    pub base: Option<&'a Base>,
    /// Where operators may run side by side.
    pub threads: &'a Arc<Threads>,
}

fn input(graph: &mut Graph, name: &str, dtype: DType, dims: Vec<Dim>) -> ValueId {
    let id = graph.add_value(name, Some(Kind::Tensor(dtype)), Some(dims));
    graph.inputs.push(id);
    id
}

fn rows_of(shape: &[usize]) -> Vec<Dim> {
    [Dim::Free("batch".into())].into_iter().chain(shape.iter().map(|&n| Dim::Fixed(n))).collect()
}

/// A session over a graph that was made here.
pub(super) fn session(graph: Graph, threads: &Arc<Threads>) -> Result<Session> {
    // A step may take as long as it takes.
    let options = LoadOptions { run_limit: None, ..LoadOptions::default() };
    let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &options)?;
    Ok(Session::new(Arc::new(model), Arc::clone(threads)))
}

/// Inputs: seed, rows, targets, weights, then all parameters. Outputs: the loss, the predictions, the gradients of what is trained, new
/// statistics.
fn program(setting: &Setting<'_>, parameters: &mut Vec<Parameter>) -> Result<Program> {
    let mut graph = Graph::default();
    let seed = input(&mut graph, "seed", DType::I64, Vec::new());
    let x = input(&mut graph, "rows", DType::F32, rows_of(&setting.train.shape));
    let targets = input(&mut graph, "targets", DType::F32, rows_of(&[setting.train.outputs]));
    let weights = input(&mut graph, "weights", DType::F32, rows_of(&[]));
    let mut emit = Appender::new(&mut graph, "");
    let builder = Builder::new(&mut emit, Mode::Train { seed }, parameters, setting.config.train.seed);
    let built = builder.network((setting.base, &setting.config.layers), x, &setting.train.shape, setting.train.outputs)?;
    let loss = setting.loss.emit(&mut emit, Operands { predictions: built.output, targets, weights })?;
    let trained: Vec<usize> = (0..parameters.len()).filter(|&i| parameters[i].role != Role::Statistic).collect();
    if trained.is_empty() {
        return Err("nothing is trained: there are no layers, and every weight of the base is kept".into());
    }
    let wrt: Vec<ValueId> = trained.iter().map(|&i| built.parameters[i]).collect();
    let gradients = append_gradients(&mut graph, loss, &wrt)?;
    graph.outputs = vec![loss, built.output];
    graph.outputs.extend(gradients);
    graph.outputs.extend(built.updates.iter().map(|(_, id)| *id));
    Ok(Program { session: session(graph, setting.threads)?, trained, updated: built.updates.iter().map(|(at, _)| *at).collect() })
}

/// Inputs: rows, targets, weights, then all parameters. Outputs: the loss and the predictions.
fn evaluation(setting: &Setting<'_>, parameters: &mut Vec<Parameter>) -> Result<Session> {
    let mut graph = Graph::default();
    let x = input(&mut graph, "rows", DType::F32, rows_of(&setting.train.shape));
    let targets = input(&mut graph, "targets", DType::F32, rows_of(&[setting.train.outputs]));
    let weights = input(&mut graph, "weights", DType::F32, rows_of(&[]));
    let mut emit = Appender::new(&mut graph, "");
    let builder = Builder::new(&mut emit, Mode::Evaluate, parameters, setting.config.train.seed);
    let built = builder.network((setting.base, &setting.config.layers), x, &setting.train.shape, setting.train.outputs)?;
    let loss = setting.loss.emit(&mut emit, Operands { predictions: built.output, targets, weights })?;
    graph.outputs = vec![loss, built.output];
    session(graph, setting.threads)
}

impl<'a> Trainer<'a> {
    /// A training that begins.
    ///
    /// # Errors
    /// The layer that does not fit.
    pub fn new(setting: &Setting<'a>) -> Result<Self> {
        let mut parameters = Vec::new();
        let program = program(setting, &mut parameters)?;
        let evaluation = evaluation(setting, &mut parameters)?;
        let lengths: Vec<usize> = parameters.iter().map(|p| p.values.len()).collect();
        let optimizer = Optimizer::new(setting.config.train.optimizer, &lengths);
        let state = State { parameters, optimizer, history: Vec::new(), best: None };
        let Setting { config, loss, train, validation, empty, .. } = *setting;
        let augmenting = Augmenting::new(config.train.augment, &train.shape, empty)?;
        let validation = validation.filter(|rows| !rows.is_empty());
        let threads = Arc::clone(setting.threads);
        Ok(Self { config: &config.train, loss, train, validation, program, evaluation, kept: Kept::default(), state, augmenting, threads })
    }

    /// Rows of an epoch.
    pub fn rows(&self) -> usize {
        self.train.len()
    }

    /// Steps of an epoch.
    pub fn steps(&self) -> usize {
        self.config.batch.count(self.train.len())
    }

    /// Epochs of the training, if nothing ends it before.
    pub fn epochs(&self) -> usize {
        self.config.epochs
    }

    /// Whether the training is over: all epochs are done, or none was better for too long.
    pub fn finished(&self) -> bool {
        let done = self.state.history.len();
        let waited = self.state.best.as_ref().map_or(0, |(epoch, _)| done - 1 - epoch);
        done >= self.config.epochs || self.config.patience.is_some_and(|patience| waited >= patience)
    }

    /// One pass over the rows. `stop` is looked at after each step; `progress` is told of each: its number, its loss, and the metric of
    /// the epoch so far. `None` if it was stopped: the epoch is then to be begun again from the state that was before it.
    ///
    /// # Errors
    /// If the loss is no number any more.
    pub fn epoch(&mut self, stop: &AtomicBool, mut progress: impl FnMut(usize, f64, f64)) -> Result<Option<Epoch>> {
        let epoch = self.state.history.len();
        let mut random = Random::new(self.config.seed, 0x1000 + epoch as u64);
        let mut order: Vec<usize> = (0..self.train.len()).collect();
        random.shuffle(&mut order);
        let steps = self.steps();
        let (size, outputs) = (self.train.size(), self.train.outputs);
        let mut total = 0.0;
        let mut metric = Metric::new(self.loss);
        for (step, rows) in self.config.batch.of(order.len()).enumerate() {
            let rows = &order[rows];
            let mut batch = std::mem::take(&mut self.kept.batch);
            batch.x.clear();
            batch.y.clear();
            batch.weights.clear();
            for &row in rows {
                self.train.x.read(row * size..(row + 1) * size, &mut batch.x)?;
                batch.y.extend_from_slice(&self.train.y[row * outputs..(row + 1) * outputs]);
                batch.weights.push(self.train.weights[row]);
            }
            self.augmenting.apply(&mut batch.x, &mut random);
            let loss = self.step(epoch * steps + step, &batch)?;
            metric.add(&self.kept.found.predictions, &batch.y, outputs);
            self.kept.batch = batch;
            if !loss.is_finite() {
                return Err(Error(format!(
                    "{DIVERGED} {loss} in step {} of epoch {}: the learning rate may be too great, or an input is not finite",
                    step + 1,
                    epoch + 1
                )));
            }
            total += loss * rows.len() as f64;
            progress(step + 1, loss, metric.value());
            if stop.load(Ordering::Relaxed) && step + 1 < steps {
                return Ok(None);
            }
        }
        let found = self.validation.map(|rows| self.evaluate(rows)).transpose()?;
        let record = Epoch {
            loss: total / self.train.len() as f64,
            validation: found.map(|(loss, _)| loss),
            metric: found.map(|(_, metric)| metric),
        };
        self.keep_best(epoch, record.validation);
        self.state.history.push(record);
        Ok(Some(record))
    }

    fn keep_best(&mut self, epoch: usize, validation: Option<f64>) {
        let Some(loss) = validation else { return };
        let least = self.state.best.as_ref().and_then(|(epoch, _)| self.state.history[*epoch].validation);
        if least.is_none_or(|least| loss < least) {
            self.state.best = Some((epoch, self.state.parameters.iter().map(|p| p.values.clone()).collect()));
        }
    }

    /// One step; returns the loss before it.
    fn step(&mut self, number: usize, Batch { x, y, weights }: &Batch) -> Result<f64> {
        let rows = weights.len();
        let at =
            Position { step: number, steps_per_epoch: self.steps(), epochs: self.config.epochs, warmup_epochs: self.config.warmup_epochs };
        let rate = self.config.learning_rate * self.config.schedule.factor(at);
        // The numbers of a seed and a step side by side: no two steps of a training have the same masks.
        let seed = [(self.config.seed << 32 | number as u64) as i64];
        let shape: Shape = std::iter::once(rows).chain(self.train.shape.iter().copied()).collect();
        let State { parameters, optimizer, .. } = &mut self.state;
        let (y_shape, rows_shape) = ([rows, self.train.outputs], [rows]);
        let loss = {
            let mut inputs = emptied(std::mem::take(&mut self.kept.views));
            inputs.push(View::new(Slice::I64(&seed), &[]));
            inputs.push(View::new(Slice::F32(x), &shape));
            inputs.push(View::new(Slice::F32(y), &y_shape));
            inputs.push(View::new(Slice::F32(weights), &rows_shape));
            inputs.extend(parameters.iter().map(|p| View::new(Slice::F32(&p.values), &p.shape)));
            let (found, session) = (&mut self.kept.found, &mut self.program.session);
            let run = || session.run_views(&inputs, |outputs| found.take(outputs));
            let flops = 6 * rows * parameters.iter().map(|p| p.values.len()).sum::<usize>();
            let loss = self.threads.run(flops as u64, run);
            self.kept.views = emptied(inputs);
            loss?
        };
        let (gradients, statistics) = self.kept.found.tensors.split_at_mut(self.program.trained.len());
        // A norm that bounds nothing is not taken.
        let scale = self.config.clip_norm.map_or(1.0, |most| clip_factor(norm(gradients.iter().map(Vec::as_slice)), most));
        let mut left = parameters.iter_mut().enumerate();
        let mut moves = emptied(std::mem::take(&mut self.kept.moves));
        for (gradient, &index) in gradients.iter().zip(&self.program.trained) {
            let (_, parameter) = left.find(|(at, _)| *at == index).expect("trained parameters are in the order of all");
            let weight = parameter.role == Role::Weight;
            let regular = |factor: f64| if weight { factor } else { 0.0 };
            let gradient = Gradient { values: gradient, l2: regular(self.config.l2), l1: regular(self.config.l1) };
            moves.push(Move { index, x: &mut parameter.values, gradient });
        }
        optimizer.step(&mut moves, rate, scale, &self.threads);
        self.kept.moves = emptied(moves);
        for (statistic, &at) in statistics.iter_mut().zip(&self.program.updated) {
            std::mem::swap(statistic, &mut parameters[at].values);
        }
        Ok(loss)
    }

    /// The loss of rows, and the accuracy of classes or R² of numbers.
    ///
    /// # Errors
    /// If an operator does not take its operands.
    pub fn evaluate(&mut self, rows: &Rows) -> Result<(f64, f64)> {
        let (mut sum, mut total, mut predictions, mut x) = (0.0, 0.0, Vec::new(), Vec::new());
        let (size, outputs) = (rows.size(), rows.outputs);
        /// Rows of a pass: enough to fill the machine, few enough for its caches.
        const PASS: usize = 256;
        for start in (0..rows.len()).step_by(PASS) {
            let end = (start + PASS).min(rows.len());
            let shape: Vec<usize> = [&[end - start], &rows.shape[..]].concat();
            let (y_shape, rows_shape) = ([end - start, outputs], [end - start]);
            x.clear();
            rows.x.read(start * size..end * size, &mut x)?;
            let mut inputs = vec![
                View::new(Slice::F32(&x), &shape),
                View::new(Slice::F32(&rows.y[start * outputs..end * outputs]), &y_shape),
                View::new(Slice::F32(&rows.weights[start..end]), &rows_shape),
            ];
            inputs.extend(self.state.parameters.iter().map(|p| View::new(Slice::F32(&p.values), &p.shape)));
            let weight: f64 = rows.weights[start..end].iter().map(|&w| f64::from(w)).sum();
            self.evaluation.run_views(&inputs, |found| {
                if let (Ok(&[loss]), Ok(values)) = (found[0].slice::<f32>(), found[1].slice::<f32>()) {
                    sum += f64::from(loss) * weight;
                    total += weight;
                    predictions.extend_from_slice(values);
                }
            })?;
        }
        let mut metric = Metric::new(self.loss);
        metric.add(&predictions, &rows.y, outputs);
        Ok((sum / total, metric.value()))
    }
}

/// Memory that is kept between steps.
#[derive(Default)]
struct Kept {
    batch: Batch,
    found: Found,
    /// Room for lists of a step, empty between steps.
    views: Vec<View<'static>>,
    moves: Vec<Move<'static>>,
}

/// The rows of a step, their targets and weights.
#[derive(Default)]
struct Batch {
    x: Vec<f32>,
    y: Vec<f32>,
    weights: Vec<f32>,
}

/// Copies of what a step found.
#[derive(Default)]
struct Found {
    predictions: Vec<f32>,
    /// The gradients, then the new statistics.
    tensors: Vec<Vec<f32>>,
}

impl Found {
    /// Takes the outputs over; returns the loss.
    fn take(&mut self, outputs: &[View<'_>]) -> f64 {
        let [loss, predictions, rest @ ..] = outputs else { unreachable!("loss and predictions are outputs") };
        self.predictions.clear();
        self.predictions.extend_from_slice(predictions.slice::<f32>().unwrap_or_default());
        self.tensors.resize_with(rest.len(), Vec::new);
        for (to, from) in self.tensors.iter_mut().zip(rest) {
            to.clear();
            to.extend_from_slice(from.slice::<f32>().unwrap_or_default());
        }
        loss.slice::<f32>().ok().and_then(|l| l.first()).map_or(f64::NAN, |&l| f64::from(l))
    }
}

/// The accuracy of classes and truth values, R² of numbers: of all rows that were added.
struct Metric {
    loss: Loss,
    rows: usize,
    right: usize,
    /// Of numbers: how many, their mean, the sum of their squared distances from it, and that of the predictions' from them.
    count: f64,
    mean: f64,
    spread: f64,
    off: f64,
}

impl Metric {
    fn new(loss: Loss) -> Self {
        Self { loss, rows: 0, right: 0, count: 0.0, mean: 0.0, spread: 0.0, off: 0.0 }
    }

    fn add(&mut self, predictions: &[f32], y: &[f32], outputs: usize) {
        let pairs = || predictions.chunks_exact(outputs).zip(y.chunks_exact(outputs));
        let greatest = |row: &[f32]| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        self.rows += y.len() / outputs;
        self.right += match self.loss {
            Loss::CrossEntropy {} => pairs().filter(|(p, y)| greatest(p) == greatest(y)).count(),
            Loss::BinaryCrossEntropy {} => pairs().filter(|(p, y)| (p[0] > 0.0) == (y[0] > 0.5)).count(),
            Loss::MeanSquared {} | Loss::Huber { .. } => {
                // The parts' means and spreads are brought together as by Chan, Golub and LeVeque (1979).
                let count = y.len() as f64;
                let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / count;
                let spread: f64 = y.iter().map(|&y| (f64::from(y) - mean).powi(2)).sum();
                let both = self.count + count;
                self.spread += spread + (mean - self.mean).powi(2) * self.count * count / both;
                self.mean += (mean - self.mean) * count / both;
                self.count = both;
                self.off += predictions.iter().zip(y).map(|(p, y)| f64::from(p - y).powi(2)).sum::<f64>();
                0
            }
        };
    }

    fn value(&self) -> f64 {
        match self.loss {
            Loss::CrossEntropy {} | Loss::BinaryCrossEntropy {} => self.right as f64 / self.rows as f64,
            Loss::MeanSquared {} | Loss::Huber { .. } => 1.0 - self.off / self.spread,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_of_parts_is_that_of_the_whole() {
        let numbers = |salt: usize| (0..30).map(|i| ((i * 37 + salt * 11) % 17) as f32 - 5.0).collect::<Vec<f32>>();
        let (p, y) = (numbers(1), numbers(2));
        for (loss, outputs) in
            [(Loss::MeanSquared {}, 1), (Loss::MeanSquared {}, 3), (Loss::CrossEntropy {}, 3), (Loss::BinaryCrossEntropy {}, 1)]
        {
            let of = |part: usize| {
                let mut metric = Metric::new(loss);
                p.chunks(part).zip(y.chunks(part)).for_each(|(p, y)| metric.add(p, y, outputs));
                metric.value()
            };
            assert!((of(30) - of(9)).abs() < 1e-12, "{loss:?}: {} and {}", of(30), of(9));
        }
    }
}
