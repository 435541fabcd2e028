//! The order of an explanation: the model's answers first, to the rows and to their background, then what the method asks for.

use std::ops::Range;

use super::gradients::{GradientInput, IntegratedGradients};
use super::importance::{Importance, Known};
use super::layout::Layout;
use super::occlusion::Occlusion;
use super::scores::{self, Class, Scores};
use super::settings::{ExplainSettings, SampleSource};
use super::shapley::Shapley;
use super::trees::Trees;
use super::{Explained, Explanation, Method, Options, Target};
use crate::engine::{DType, Dim, LoadError, LoadOptions, Loaded, Mismatch, Model, Signature, Tensor, Value, gradient_model, tree_model};
use crate::error::{Error, Kind};

/// What a pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// The model itself.
    Model,
    /// The gradients of its answers: [`gradient_model`](crate::engine::gradient_model).
    Gradient,
    /// The Shapley values of its trees: [`tree_model`](crate::engine::tree_model).
    Trees,
}

impl Program {
    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "the model",
            Self::Gradient => "the gradient",
            Self::Trees => "tree_shap",
        }
    }

    /// Makes the model whose passes these are of `loaded`, the graph of the file of the model of `served`, to explain its output
    /// `output`.
    ///
    /// # Errors
    /// If the graph has none, by the node in the way.
    pub fn derive(self, loaded: Loaded, served: &Signature, output: usize, options: &LoadOptions) -> Result<Model, LoadError> {
        match self {
            Self::Model => Model::build(loaded, options),
            Self::Gradient => gradient_model(loaded, served, output, options),
            Self::Trees => tree_model(loaded, served, output, options),
        }
    }
}

/// The model that is asked.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What it takes and gives.
    pub signature: &'a Signature,
    /// Names of its classes, if it has any.
    pub labels: &'a [String],
    /// What its folder declares.
    pub settings: &'a ExplainSettings,
    /// The background that its folder declares.
    pub background: Option<&'a [Tensor]>,
    /// Whether it is made of trees.
    pub has_trees: bool,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// One tensor per input: the rows.
    pub inputs: Vec<Tensor>,
    /// How; by default what the model declares, else what fits it.
    pub method: Option<Method>,
    /// The output that is explained.
    pub output: Option<String>,
    /// The element of it; by default of each row the one with the greatest score.
    pub target: Option<Class>,
    /// Rows against which is explained.
    pub background: Option<Vec<Tensor>>,
    /// The right answers, for permutation importance.
    pub known: Option<Vec<Known>>,
    /// Everything else.
    pub options: Options,
}

/// What the work of a method needs to know.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) method: Method,
    pub(super) layout: Layout,
    pub(super) inputs: Vec<Tensor>,
    pub(super) rows: usize,
    pub(super) background: Vec<Tensor>,
    pub(super) samples: usize,
    pub(super) labels: Vec<String>,
    pub(super) known: Option<Vec<Known>>,
    pub(super) options: Options,
    output: usize,
    output_name: String,
    class: Option<Class>,
    /// The model's answers to the rows, then to the background.
    pub(super) scores: Scores,
    /// The type of the explained output, and the shape of a row of it.
    answer: (DType, Vec<usize>),
    /// Of each row the element that is explained.
    targets: Vec<usize>,
}

impl Given {
    /// The model's answer to a row.
    pub(super) fn answer(&self, row: usize) -> f64 {
        self.scores.row(row)[self.targets[row]]
    }

    /// The model's answer to a row of the background, for what is explained of `row`.
    pub(super) fn base(&self, row: usize, sample: usize) -> f64 {
        self.scores.row(self.rows + sample)[self.targets[row]]
    }

    /// The mean of the answers to the background.
    pub(super) fn base_value(&self, row: usize) -> f64 {
        (0..self.samples).map(|sample| self.base(row, sample)).sum::<f64>() / self.samples as f64
    }

    /// The explained scores of a pass, whose rows are explanations of `of`.
    pub(super) fn explained(&self, outputs: &[Value], of: impl ExactSizeIterator<Item = usize>) -> Result<Vec<f64>, Error> {
        let found = self.all_scores(outputs, of.len())?;
        Ok(of.enumerate().map(|(at, row)| found.row(at)[self.targets[row]]).collect())
    }

    /// All scores of a pass.
    pub(super) fn all_scores(&self, outputs: &[Value], rows: usize) -> Result<Scores, Error> {
        let mut found = Scores { columns: self.scores.columns, values: Vec::new() };
        // What a pass holds is made of several rows.
        found.append(&outputs[self.output], rows, &self.output_name, &|_| "a mixture of rows".to_owned())?;
        Ok(found)
    }

    /// What chooses the explained element of each row of a pass: ones among zeros. `wide`: in the shape and type of the output,
    /// else as a matrix of float.
    pub(super) fn weights(&self, of: impl ExactSizeIterator<Item = usize>, wide: bool) -> Tensor {
        let (rows, columns) = (of.len(), self.scores.columns);
        let mut values = vec![0.0; rows * columns];
        of.enumerate().for_each(|(at, row)| values[at * columns + self.targets[row]] = 1.0);
        let (dtype, shape) = if wide { (self.answer.0, &self.answer.1[..]) } else { (DType::F32, &[columns][..]) };
        floats(dtype, &[&[rows], shape].concat(), &values)
    }

    /// The row, the background row and the part that are evaluated at `at`, where each pair of rows has `each` parts.
    pub(super) fn place(&self, at: usize, each: usize) -> (usize, usize, usize) {
        (at / each / self.samples, at / each % self.samples, at % each)
    }

    /// An explanation of a row whose contributions lead from the mean answer to the background to the answer.
    pub(super) fn complete(&self, row: usize, contributions: Vec<f64>) -> Explanation {
        let explanation = self.explanation(row, contributions);
        Explanation { base_value: Some(self.base_value(row)), value: explanation.answer, ..explanation }.complete()
    }

    /// What all explanations of a row have.
    pub(super) fn explanation(&self, row: usize, contributions: Vec<f64>) -> Explanation {
        let index = self.targets[row];
        let label = self.labels.get(index).filter(|_| self.labels.len() == self.scores.columns).cloned();
        Explanation {
            method: self.method,
            target: Target { output: self.output_name.clone(), index, label },
            answer: Some(self.answer(row)),
            base_value: None,
            value: None,
            completeness_error: None,
            contributions,
            spread: None,
            measured: None,
        }
    }
}

/// A tensor of floating-point numbers of any size.
pub(super) fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
    let tensor = match dtype {
        DType::F64 => Tensor::new(shape, values.to_vec()),
        DType::F16 => Tensor::new(shape, values.iter().map(|&v| half::f16::from_f64(v)).collect()),
        DType::BF16 => Tensor::new(shape, values.iter().map(|&v| half::bf16::from_f64(v)).collect()),
        _ => Tensor::new(shape, values.iter().map(|&v| v as f32).collect()),
    };
    tensor.expect("as many values as the shape has")
}

/// What a method has evaluated, and what it makes of it.
pub(super) trait Work: std::fmt::Debug + Send + Sync {
    /// What its passes run.
    fn program(&self) -> Program {
        Program::Model
    }
    /// Rows that are to be evaluated.
    fn rows(&self) -> usize;
    /// How much work that is, in rows of the model.
    fn evaluations(&self) -> usize {
        self.rows()
    }
    /// The inputs of the program for some of the rows.
    fn inputs(&mut self, given: &Given, rows: Range<usize>) -> Vec<Tensor>;
    /// Takes the outputs for some of the rows; called for all rows in their order.
    fn take(&mut self, given: &Given, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error>;
    /// The explanations.
    fn finish(&mut self, given: &Given) -> Vec<Explanation>;
}

/// An explanation under way: see the [module](super).
///
/// While [`Explainer::rows`] is not 0, evaluate [`Explainer::inputs`] of all of them with [`Explainer::program`], in pieces of any
/// size, and give the outputs to [`Explainer::take`] in order; then [`Explainer::advance`].
#[derive(Debug)]
pub struct Explainer {
    given: Given,
    work: Box<dyn Work>,
    stage: Stage,
    source: SampleSource,
    /// Whether the model takes several rows at once.
    together: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Answers,
    Work,
    Done,
}

impl Explainer {
    /// Holds the question against the model.
    ///
    /// # Errors
    /// What does not fit: an output, class or method that there is not, a background of another shape.
    pub fn new(subject: &Subject<'_>, question: Question) -> Result<Self, Error> {
        let Question { inputs, method, output, target, background, known, options } = question;
        let (signature, settings) = (subject.signature, subject.settings);
        let check = |what: &str, tensors: &[Tensor]| {
            check_rows(signature, tensors).map_err(|mismatch| Error::invalid(format!("{what}: {mismatch}")))
        };
        check("instances", &inputs)?;
        let layout = Layout::new(signature, &inputs, &settings.features)?;
        let rows = inputs.first().map_or(0, |tensor| tensor.shape()[0]);
        if rows == 0 || layout.is_empty() {
            return Err(Error::invalid("there is no row to explain"));
        }
        let output = scores::output(signature, subject.labels, output.as_deref().or(settings.output.as_deref()))?;
        let (background, source) = match (background, subject.background) {
            (Some(rows), _) => (rows, SampleSource::Request),
            (None, Some(rows)) => (rows.to_vec(), SampleSource::Model),
            (None, None) => (zeros(&inputs)?, SampleSource::Zeros),
        };
        check("background", &background)?;
        let of_background = Layout::new(signature, &background, &settings.features)?;
        if of_background != layout {
            return Err(Error::invalid("the rows of the background are of another shape than those to explain"));
        }
        let samples = background.first().map_or(0, |tensor| tensor.shape()[0]);
        if samples == 0 {
            return Err(Error::invalid("the background has no row"));
        }
        let method = method.or(settings.method).unwrap_or_else(|| fitting(subject, &inputs));
        let given = Given {
            method,
            rows,
            samples,
            labels: subject.labels.to_vec(),
            output_name: signature.outputs[output].name.clone(),
            class: target,
            scores: Scores::default(),
            answer: (DType::F32, Vec::new()),
            targets: Vec::new(),
            layout,
            inputs,
            background,
            known,
            options,
            output,
        };
        let work = begin(&given)?;
        let together =
            !is_single(signature) && (signature.batchable || matches!(signature.outputs[output].kind, crate::engine::Kind::Sequence(_)));
        Ok(Self { given, work, stage: Stage::Answers, source, together })
    }

    /// How much work it is together, in rows of the model.
    pub fn evaluations(&self) -> usize {
        (self.given.rows + self.given.samples).saturating_add(self.work.evaluations())
    }

    /// How.
    pub fn method(&self) -> Method {
        self.given.method
    }

    /// The output that is explained, by its position.
    pub fn output(&self) -> usize {
        self.given.output
    }

    /// How many rows a pass should have where the model takes `most` at once: as many as it takes together, unless they are large.
    pub fn rows_per_pass(&self, most: usize) -> usize {
        // What a pass holds is copied and kept while it waits.
        const BYTES: usize = 4 << 20;
        let trees = self.program() == Program::Trees;
        // A row of trees is held against each row of the background.
        let most = if trees { most / self.given.samples } else { most };
        if self.together || trees { most.min(BYTES / self.given.layout.row_bytes().max(1)).max(1) } else { 1 }
    }

    /// What the next passes run.
    pub fn program(&self) -> Program {
        if self.stage == Stage::Work { self.work.program() } else { Program::Model }
    }

    /// Rows that are to be evaluated before it can go on; 0 once it is finished.
    pub fn rows(&self) -> usize {
        match self.stage {
            Stage::Answers => self.given.rows + self.given.samples,
            Stage::Work => self.work.rows(),
            Stage::Done => 0,
        }
    }

    /// The inputs for some of them.
    pub fn inputs(&mut self, rows: Range<usize>) -> Vec<Tensor> {
        if self.stage == Stage::Work {
            return self.work.inputs(&self.given, rows);
        }
        let mut built = self.given.layout.rows(rows.len());
        for row in rows {
            match row.checked_sub(self.given.rows) {
                None => built.push(&self.given.inputs, row),
                Some(sample) => built.push(&self.given.background, sample),
            }
        }
        built.tensors()
    }

    /// Takes the outputs for `rows`, which follow those before.
    ///
    /// # Errors
    /// If they are no finite numbers for each row.
    pub fn take(&mut self, rows: Range<usize>, outputs: &[Value]) -> Result<(), Error> {
        if self.stage == Stage::Work {
            return self.work.take(&self.given, rows, outputs);
        }
        let given = &mut self.given;
        let place = |at: usize| match (rows.start + at).checked_sub(given.rows) {
            None => format!("row {}", rows.start + at + 1),
            Some(sample) => format!("row {} of the background", sample + 1),
        };
        given.scores.append(&outputs[given.output], rows.len(), &given.output_name, &place)?;
        if let Some(tensor) = outputs[given.output].tensor() {
            given.answer = (tensor.dtype(), tensor.shape()[1..].to_vec());
        }
        Ok(())
    }

    /// Goes on when all rows are evaluated.
    ///
    /// # Errors
    /// If the model's answers do not have what is to be explained.
    pub fn advance(&mut self) -> Result<(), Error> {
        let given = &mut self.given;
        self.stage = match self.stage {
            Stage::Answers => {
                let columns = given.scores.columns;
                let fixed = given.class.as_ref().map(|class| scores::column(class, columns, &given.labels)).transpose()?;
                let target = |row| fixed.unwrap_or_else(|| given.scores.greatest(row));
                given.targets = (0..given.rows).map(target).collect();
                if self.work.rows() == 0 { Stage::Done } else { Stage::Work }
            }
            Stage::Work | Stage::Done => Stage::Done,
        };
        Ok(())
    }

    /// The explanations. Only once [`Explainer::rows`] is 0.
    pub fn finish(mut self) -> Explained {
        let (explanations, evaluations) = (self.work.finish(&self.given), self.evaluations());
        let background = (self.source, self.given.samples);
        Explained { explanations, evaluations, background, layout: self.given.layout, instances: self.given.inputs }
    }
}

/// Whether the model takes a fixed number of rows: then one, or none fits.
fn is_single(signature: &Signature) -> bool {
    signature.inputs.iter().any(|port| matches!(port.dims.as_deref(), Some([Dim::Fixed(_), ..])))
}

/// Whether rows fit the model: as many at once as there are, or each alone if it takes a fixed number.
pub(super) fn check_rows(signature: &Signature, tensors: &[Tensor]) -> Result<(), Mismatch> {
    if is_single(signature) { signature.check(&first_row(tensors)) } else { signature.check(tensors) }
}

fn first_row(tensors: &[Tensor]) -> Vec<Tensor> {
    let first = |tensor: &Tensor| if tensor.shape().first().is_some_and(|&rows| rows > 0) { tensor.rows(0..1) } else { tensor.clone() };
    tensors.iter().map(first).collect()
}

/// One row of zeros.
fn zeros(inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let zero = |tensor: &Tensor| match tensor.dtype() {
        DType::String => Err(Error::invalid("the model takes text: a background is needed, in the request or in its folder")),
        dtype => Ok(Tensor::zeros(dtype, &[&[1], &tensor.shape()[1..]].concat())),
    };
    inputs.iter().map(zero).collect()
}

/// What explains a model if nothing else is said.
fn fitting(subject: &Subject<'_>, inputs: &[Tensor]) -> Method {
    match () {
        () if subject.has_trees => Method::TreeShap,
        () if inputs.iter().any(|tensor| tensor.shape().len() > 2) => Method::IntegratedGradients,
        () => Method::Shapley,
    }
}

fn begin(given: &Given) -> Result<Box<dyn Work>, Error> {
    let only_numbers = || match given.layout.not_float() {
        None => Ok(()),
        Some((name, dtype)) => {
            Err(Error::new(Kind::Unsupported, format!("input `{name}` is {dtype}, which has no gradient; `shapley` explains any model")))
        }
    };
    Ok(match given.method {
        Method::IntegratedGradients => only_numbers().and_then(|()| IntegratedGradients::begin(given))?,
        Method::GradientInput => only_numbers().map(|()| GradientInput::begin(given))?,
        Method::Shapley => Shapley::begin(given)?,
        Method::TreeShap => Trees::begin(given),
        Method::Occlusion => Occlusion::begin(given)?,
        Method::PermutationImportance => Importance::begin(given)?,
    })
}
