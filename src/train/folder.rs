//! The result of a training: a model folder that a server takes as it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use super::base::Base;
use super::batches::Batches;
use super::chart::{Curve, curves};
use super::checkpoint::Staged;
use super::config::{Config, Task};
use super::data::Target;
use super::error::{Error, Result};
use super::known::Known;
use super::network::{Builder, Mode, Parameter};
use super::prepare::Preparation;
use super::run::{Report, Unit};
use crate::engine::{
    Appender, Attr, Dim, Emit, Graph, LoadOptions, Metadata, Session, Signature, Tensor, Threads, Value, ValueId, npz, onnx,
};

/// Rows of the golden samples.
const GOLDEN_ROWS: usize = 8;

/// Rows against which answers are explained: enough to stand for the data, few enough that sampling takes milliseconds.
const BACKGROUND_ROWS: usize = 50;

/// The file of these rows.
const BACKGROUND: &str = "background.npz";

/// What is exported.
pub(super) struct Export<'a> {
    pub(super) config: &'a Config,
    pub(super) text: &'a str,
    pub(super) known: &'a Known,
    pub(super) preparation: &'a Preparation,
    pub(super) unit: Unit,
    pub(super) base: Option<&'a Base>,
    /// Rows of which the golden samples are taken.
    pub(super) sample: &'a [usize],
    /// Rows of which the background of explanations is taken.
    pub(super) trained: &'a [usize],
    pub(super) report: &'a Report,
}

impl Export<'_> {
    /// Writes the folder, all of it or nothing. The model comes last: a folder without it is none.
    pub(super) fn write(&self, output: &Path, parameters: &mut Vec<Parameter>) -> Result<()> {
        let graph = self.graph(parameters)?;
        let properties = BTreeMap::from([("ndserve.train".to_owned(), self.report.hash.clone())]);
        let metadata = Metadata {
            graph_name: self.name(output),
            description: self.config.model.description.clone(),
            properties,
            ..Metadata::default()
        };
        let bytes = onnx::write_model(&graph, &metadata)?;
        // What is recorded is what the file answers, read again.
        let model = onnx::read_model(&bytes, &LoadOptions::default())?;
        let signature = model.signature().clone();
        let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
        let inputs = self.known.pick(&self.sample[..GOLDEN_ROWS.min(self.sample.len())])?.tensors();
        let outputs = session.run(&inputs)?;
        let mut files = Staged::default();
        for (i, (port, tensor)) in signature.inputs.iter().zip(&inputs).enumerate() {
            let sample = onnx::write_value(&port.name, &Value::Tensor(tensor.clone()));
            files.add(&output.join(format!("golden/input_{i}.pb")), &sample)?;
        }
        for (i, (port, value)) in signature.outputs.iter().zip(&outputs).enumerate() {
            files.add(&output.join(format!("golden/output_{i}.pb")), &onnx::write_value(&port.name, value))?;
        }
        let background = self.background(&signature)?;
        if let Some(archive) = &background {
            files.add(&output.join(BACKGROUND), archive)?;
        }
        files.add(&output.join("model.toml"), self.settings(background.is_some().then_some(&signature)).as_bytes())?;
        files.add(&output.join("train.toml"), self.text.as_bytes())?;
        files.add(&output.join("curves.svg"), self.curves().as_bytes())?;
        files.add(&output.join("README.md"), self.card(output, &signature, bytes.len(), (&inputs, &outputs)).as_bytes())?;
        files.add(&output.join("1/model.onnx"), &bytes)?;
        files.place()
    }

    fn name(&self, output: &Path) -> String {
        let folder = || output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.config.model.name.clone().unwrap_or_else(folder)
    }

    /// Raw rows in, answers out.
    fn graph(&self, parameters: &mut Vec<Parameter>) -> Result<Graph> {
        let mut graph = Graph::default();
        let mut emit = Appender::new(&mut graph, "");
        emit.opset = self.base.and_then(Base::opset).unwrap_or(emit.opset);
        let x = self.preparation.emit(&mut emit, self.config.model.input.as_deref().unwrap_or(self.own_input()))?;
        let outputs = self.known.outputs();
        let built = Builder::new(&mut emit, Mode::Serve, parameters, 0).network(
            (self.base, &self.config.layers),
            x,
            &self.preparation.shape(),
            outputs,
        )?;
        let y = self.answer(&mut emit, built.output)?;
        let default = match self.known.task {
            Task::Classify => "probabilities",
            Task::Binary => "probability",
            Task::Regress => "value",
        };
        let value = &mut graph.values[y.index()];
        self.config.model.output.as_deref().unwrap_or(default).clone_into(&mut value.name);
        value.dims = Some(vec![Dim::Free("batch".into()), Dim::Fixed(outputs)]);
        graph.outputs.push(y);
        Ok(graph)
    }

    /// Probabilities of logits, or a number in the target's own unit.
    fn answer(&self, emit: &mut dyn Emit, output: ValueId) -> Result<ValueId> {
        Ok(match self.known.task {
            Task::Classify => emit.with("Softmax", &[("axis", Attr::Int(1))], &[output])?,
            Task::Binary => emit.op("Sigmoid", &[output])?,
            Task::Regress => {
                let (size, mean) = (emit.number(output, self.unit.size.into())?, emit.number(output, self.unit.mean.into())?);
                let scaled = emit.op("Mul", &[output, size])?;
                emit.op("Add", &[scaled, mean])?
            }
        })
    }

    /// The name of the input where the configuration gives none: an array's own, so that its archive fits the model.
    fn own_input(&self) -> &str {
        match (&self.known.summary.array, &self.known.summary.columns[..]) {
            (Some(_), [(name, _)]) if !name.is_empty() => name,
            _ => "x",
        }
    }

    /// Some training rows, evenly over them, as an archive of the model's inputs. None if the configuration has an `explain` of its own, or
    /// of arrays of more than one dimension in a row: pictures are explained against zeros.
    fn background(&self, signature: &Signature) -> Result<Option<Vec<u8>>> {
        let flat = self.known.summary.array.as_ref().is_none_or(|shape| shape.len() == 1);
        if !flat || self.config.model.settings.contains_key("explain") {
            return Ok(None);
        }
        let count = BACKGROUND_ROWS.min(self.trained.len());
        let rows: Vec<usize> = (0..count).map(|i| self.trained[i * self.trained.len() / count]).collect();
        let tensors = self.known.pick(&rows)?.tensors();
        let named: Vec<(&str, &Tensor)> = signature.inputs.iter().map(|port| port.name.as_str()).zip(&tensors).collect();
        Ok(Some(npz::write(&named).map_err(|error| Error(format!("{BACKGROUND}: {error}")))?))
    }

    /// `model.toml`; with the signature of a model whose background was written.
    fn settings(&self, explained: Option<&Signature>) -> String {
        let mut text = String::new();
        if !self.config.model.description.is_empty() {
            let _ = writeln!(text, "description = {}", quoted(&self.config.model.description));
        }
        if let (Target::Classes { labels, .. }, Task::Classify) = (&self.known.target, self.known.task) {
            let labels: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
            let _ = writeln!(text, "labels = [{}]", labels.join(", "));
        }
        text += &self.config.model.settings.to_string();
        if let Some(signature) = explained {
            // One input of all columns does not say what they are called; an input for each does.
            let names = self.known.summary.columns.iter().map(|(name, _)| quoted(name)).collect::<Vec<_>>().join(", ");
            let told = signature.inputs.len() == 1 && self.known.summary.array.is_none();
            let features = if told { format!("features = [{names}]\n") } else { String::new() };
            let _ = write!(text, "\n[explain]\n{features}background = {}\n", quoted(BACKGROUND));
        }
        text
    }

    fn curves(&self) -> String {
        let history = &self.report.history;
        let mut all = vec![Curve { name: "training", colour: "#1f77b4", values: history.iter().map(|e| Some(e.loss)).collect() }];
        if history.iter().any(|e| e.validation.is_some()) {
            all.push(Curve { name: "validation", colour: "#d62728", values: history.iter().map(|e| e.validation).collect() });
        }
        curves("loss by epoch", &all)
    }

    /// Whether the paths of the configuration, which are relative to its folder, lead to the data from this one too.
    fn leads_to_data(&self, output: &Path) -> bool {
        let Ok(own) = Config::parse(self.text) else { return false };
        match (output.join(own.data.path).canonicalize(), self.config.data.path.canonicalize()) {
            (Ok(from_here), Ok(data)) => from_here == data,
            _ => false,
        }
    }

    /// The model card.
    fn card(&self, output: &Path, signature: &Signature, bytes: usize, golden: (&[Tensor], &[Value])) -> String {
        let Report { history, best, train, test, folds, rows, hash, metric, trials, .. } = self.report;
        let mut text = format!("# {}\n\n{}\n\n", self.name(output), self.config.model.description);
        if !self.config.model.about.is_empty() {
            let _ = writeln!(text, "{}\n", self.config.model.about.trim());
        }
        let _ = writeln!(text, "| | name | type | shape |\n|---|---|---|---|");
        for (what, ports) in [("input", &signature.inputs), ("output", &signature.outputs)] {
            for port in ports {
                let _ = writeln!(text, "| {what} | `{}` | {} | {} |", port.name, port.kind, port.dims_text());
            }
        }
        // A path of the machine says nothing elsewhere.
        let training = if output.is_relative() { output.join("train.toml") } else { "train.toml".into() };
        let _ = writeln!(
            text,
            "\nThe preparation of the inputs is inside: the model takes raw rows. To make everything here again{}:\n\n\
             ```sh\nndserve train {}\n```\n\n| | |\n|---|---|",
            if self.leads_to_data(output) { "" } else { ", put `train.toml` where its paths lead to the data" },
            if self.leads_to_data(output) { training } else { "train.toml".into() }.display()
        );
        let path = self.config.data.path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "| data | `{path}`, {} rows train, {} say when to stop, {} judge |", rows[0], rows[1], rows[2]);
        let epochs = best.map_or(String::new(), |best| format!(", the best was {}", best + 1));
        let _ = writeln!(text, "| epochs | {}{epochs} |", history.len());
        if let Batches::Turns(_) = &self.config.train.batch {
            let _ = writeln!(text, "| rows of a step, in turn | {} |", self.config.train.batch);
        }
        let _ = writeln!(text, "| training rows | loss {:.6}, {metric} {:.4} |", train.0, train.1);
        if let Some((loss, value)) = test {
            let _ = writeln!(text, "| test rows | loss {loss:.6}, {metric} {value:.4} |");
        }
        if !folds.is_empty() {
            let mean = folds.iter().sum::<f64>() / folds.len() as f64;
            let all: Vec<String> = folds.iter().map(|value| format!("{value:.4}")).collect();
            let _ = writeln!(text, "| {} folds | {metric} {mean:.4} ({}) |", folds.len(), all.join(", "));
        }
        if let Some(base) = self.base {
            let path =
                self.config.base.as_ref().map_or(Path::new(""), |start| &start.path).file_name().unwrap_or_default().to_string_lossy();
            let _ = writeln!(text, "| begun with | `{path}`: {} |", base.weights.text());
        }
        if let Some((number, score, settings)) = trials {
            let _ = writeln!(text, "| best of {number} trials | {settings} (score {score:.6}) |");
        }
        let _ = writeln!(text, "| `1/model.onnx` | {bytes} bytes |\n| configuration and data | `{hash}` |\n\n![loss by epoch](curves.svg)");
        text + &self.example(output, signature, golden)
    }

    /// A request for the first golden row with its answer, if they are short.
    fn example(&self, output: &Path, signature: &Signature, (inputs, outputs): (&[Tensor], &[Value])) -> String {
        /// Numbers that a reader bears in a line.
        const LONG: usize = 256;
        let row = |tensor: &Tensor| -> Option<(Vec<f32>, Vec<usize>)> {
            let size = tensor.len() / tensor.shape().first()?;
            Some((tensor.slice::<f32>()?.get(..size)?.to_vec(), [&[1], &tensor.shape()[1..]].concat()))
        };
        let ([input], [port], Some(answer)) = (inputs, &signature.inputs[..], outputs.first().and_then(Value::tensor)) else {
            return String::new();
        };
        let (Some((values, shape)), Some((answer, _))) = (row(input).filter(|(values, _)| values.len() <= LONG), row(answer)) else {
            return String::new();
        };
        // A request shows six digits of each number at most; its answer may differ in the last of four.
        let short = |v: &f32, digits: usize| format!("{v:.digits$e}").parse::<f64>().unwrap_or(f64::NAN).to_string();
        let list = |values: &[f32], digits| values.iter().map(|v| short(v, digits)).collect::<Vec<_>>().join(", ");
        format!(
            "\nAn example request, `POST /v2/models/{}/infer`:\n\n```json\n{{\"inputs\": [{{\"name\": \"{}\", \"shape\": {shape:?}, \
             \"datatype\": \"FP32\", \"data\": [{}]}}]}}\n```\n\nIts answer: `[{}]`\n",
            self.name(output),
            port.name,
            list(&values, 5),
            list(&answer, 3)
        )
    }
}

/// Text as TOML has it.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}
