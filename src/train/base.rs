//! A trained model as the body of a network: its weights are trained on, but for those that are frozen.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{Error, Result, in_file};
use super::network::Layer;
use super::weights::{Weights, find, separate};
use crate::engine::{
    DType, Dim, Graph, Kind, LoadOptions, Loaded, Metadata, Model, Node, Session, Tensor, Threads, Value, ValueId, find_model_file,
    read_graph,
};

/// Which model, and what of it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// A model file, or the folder of one or of a version; relative to the configuration's folder.
    pub path: PathBuf,
    /// The value behind which the layers stand. Without it the model is taken whole, its last softmax or sigmoid left out.
    pub until: Option<String>,
    /// Names of weights that stay as they are; a `*` stands for any text.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Names of constants that are trained although no operator says that they are weights; a `*` stands for any text.
    #[serde(default)]
    pub train: Vec<String>,
}

/// A [`Start`] that is read.
#[derive(Clone, Debug)]
pub struct Base {
    /// Its graph; what follows `end` is not looked at.
    pub graph: Graph,
    /// Its input.
    pub input: ValueId,
    /// What is taken of it.
    pub end: ValueId,
    /// The constants that are trained, and those that stay.
    pub weights: Weights,
    /// The shape of a row of `end`.
    pub shape: Vec<usize>,
    /// Whether it is taken up to its answer.
    pub whole: bool,
}

impl Start {
    /// Reads the model. `row` is the shape of a row that it is given.
    ///
    /// # Errors
    /// What it lacks to be trained on.
    pub fn read(&self, row: &[usize]) -> Result<Base> {
        let path = model_file(&self.path).ok_or_else(|| in_file(&self.path, "there is no model file"))?;
        let Loaded { graph, .. } = read_graph(&path, &LoadOptions::default()).map_err(|error| in_file(&path, error))?;
        self.of(graph, row).map_err(|error| in_file(&path, error))
    }

    fn of(&self, mut graph: Graph, row: &[usize]) -> Result<Base> {
        separate(&mut graph);
        let &[input] = &graph.inputs[..] else { return Err(Error(format!("it has {} inputs; one is wanted", graph.inputs.len()))) };
        if graph.values[input.index()].kind != Some(Kind::Tensor(DType::F32)) {
            return Err("its input is not of FP32".into());
        }
        let producer = |id: ValueId| graph.nodes.iter().find(|node| node.results().any(|result| result == id));
        let end = match &self.until {
            Some(name) => {
                let at = graph.values.iter().position(|value| value.name == *name);
                let last = graph.nodes.iter().rev().flat_map(Node::results).take(12).map(|id| format!("`{}`", graph.name(id)));
                let at = at.ok_or_else(|| {
                    Error(format!(
                        "`base.until`: there is no value `{name}`; from the end there are {}",
                        last.collect::<Vec<_>>().join(", ")
                    ))
                })?;
                ValueId(u32::try_from(at).map_err(|_| "too many values")?)
            }
            None => {
                let &output = graph.outputs.first().ok_or("it has no output")?;
                // A copy may stand in front of an output, to give it its name.
                let copied = |&id: &ValueId| producer(id).filter(|node| node.def.name == "Identity")?.inputs.first().copied().flatten();
                let last = std::iter::successors(Some(output), copied).last().unwrap_or(output);
                let probabilities = |node: &&Node| ["Softmax", "LogSoftmax", "Sigmoid"].contains(&node.def.name);
                producer(last).filter(probabilities).and_then(|node| node.inputs.first().copied().flatten()).unwrap_or(last)
            }
        };
        let weights = find(&graph, end, &self.freeze, &self.train)?;
        let shape = shape_at(&graph, input, end, row)?;
        Ok(Base { input, end, weights, shape, whole: self.until.is_none(), graph })
    }
}

impl Base {
    /// Whether it is the whole network: nothing is put behind it, as it has as many outputs as are wanted.
    pub fn is_all(&self, layers: &[Layer], outputs: usize) -> bool {
        self.whole && layers.is_empty() && self.shape == [outputs]
    }

    /// The opset of its nodes.
    pub fn opset(&self) -> Option<u16> {
        self.graph.nodes.iter().find(|node| node.def.domain.is_empty()).map(|node| node.opset)
    }
}

fn model_file(path: &Path) -> Option<PathBuf> {
    if path.is_file() { Some(path.to_owned()) } else { find_model_file(path).or_else(|| find_model_file(&path.join("1"))) }
}

/// The shape of a row of `end`, by a run of one row of zeros.
fn shape_at(graph: &Graph, input: ValueId, end: ValueId, row: &[usize]) -> Result<Vec<usize>> {
    let declared = graph.values[input.index()].dims.as_deref().unwrap_or_default();
    let fits = declared.is_empty()
        || (declared.len() == row.len() + 1
            && declared[1..].iter().zip(row).all(|(dim, &n)| !matches!(dim, Dim::Fixed(fixed) if *fixed != n)));
    if !fits {
        let dims: Vec<String> = declared.iter().map(ToString::to_string).collect();
        return Err(Error(format!("its input has shape [{}]; a prepared row has shape {row:?}", dims.join(", "))));
    }
    let mut graph = graph.clone();
    graph.outputs = vec![end];
    let model = Model::build(Loaded { graph, metadata: Metadata::default() }, &LoadOptions::default())?;
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    let found = session.run(&[Tensor::zeros(DType::F32, &[&[1], row].concat())])?;
    let tensor = found.first().and_then(Value::tensor).ok_or("what is taken of it is no tensor")?;
    if tensor.dtype() != DType::F32 || tensor.shape().first() != Some(&1) {
        return Err(Error(format!("what is taken of it is {} of shape {:?}, not FP32 rows", tensor.dtype(), tensor.shape())));
    }
    Ok(tensor.shape()[1..].to_vec())
}

/// From a value of the base to its own in another graph.
pub type Ids = HashMap<ValueId, ValueId>;
