//! A trained model as the body of a network: its weights are trained on, but for those that are frozen.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{Error, Result, in_file};
use super::network::{Layer, Role};
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
    /// The constants that are trained.
    pub trained: Vec<(ValueId, Role)>,
    /// How many weights stay.
    pub frozen: usize,
    /// The shape of a row of `end`.
    pub shape: Vec<usize>,
    /// Whether it is taken up to its answer.
    pub whole: bool,
}

/// Operators with weights: which operands these are.
const WEIGHTS: &[(&str, &[usize], &[usize])] = &[
    // Operator, weights, biases.
    ("Conv", &[1], &[2]),
    ("ConvTranspose", &[1], &[2]),
    ("Gemm", &[1], &[2]),
    ("MatMul", &[0, 1], &[]),
    ("Gather", &[0], &[]),
    ("BatchNormalization", &[], &[1, 2]),
    ("LayerNormalization", &[], &[1, 2]),
    ("PRelu", &[], &[1]),
    ("LSTM", &[1, 2], &[3]),
    ("GRU", &[1, 2], &[3]),
    ("RNN", &[1, 2], &[3]),
];

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

    fn of(&self, graph: Graph, row: &[usize]) -> Result<Base> {
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
                let &last = graph.outputs.first().ok_or("it has no output")?;
                let probabilities = |node: &&Node| ["Softmax", "LogSoftmax", "Sigmoid"].contains(&node.def.name);
                producer(last).filter(probabilities).and_then(|node| node.inputs.first().copied().flatten()).unwrap_or(last)
            }
        };
        let (trained, frozen) = self.weights(&graph)?;
        let shape = shape_at(&graph, input, end, row)?;
        Ok(Base { input, end, trained, frozen, shape, whole: self.until.is_none(), graph })
    }

    /// The constants that are weights, without those that are frozen, and how many of these there are.
    fn weights(&self, graph: &Graph) -> Result<(Vec<(ValueId, Role)>, usize)> {
        let is_weight = |id: ValueId| graph.constants.get(&id).is_some_and(|tensor| tensor.dtype() == DType::F32);
        let mut found: Vec<(ValueId, Role)> = Vec::new();
        let mut add = |id: Option<ValueId>, role| {
            if let Some(id) = id.filter(|&id| is_weight(id))
                && found.iter().all(|(known, _)| *known != id)
            {
                found.push((id, role));
            }
        };
        for node in &graph.nodes {
            let operand = |at: &usize| node.inputs.get(*at).copied().flatten();
            if let Some((_, weights, biases)) = WEIGHTS.iter().find(|(op, ..)| node.def.domain.is_empty() && *op == node.def.name) {
                weights.iter().for_each(|at| add(operand(at), Role::Weight));
                biases.iter().for_each(|at| add(operand(at), Role::Bias));
            }
            // The bias of a product stands in an addition behind it.
            if node.def.domain.is_empty() && node.def.name == "Add" {
                let product = |id: ValueId| graph.nodes.iter().any(|n| n.def.name == "MatMul" && n.results().any(|result| result == id));
                if let (Some(a), Some(b)) = (operand(&0), operand(&1)) {
                    if product(a) {
                        add(Some(b), Role::Bias);
                    } else if product(b) {
                        add(Some(a), Role::Bias);
                    }
                }
            }
        }
        for pattern in &self.freeze {
            if !found.iter().any(|(id, _)| fits(pattern, graph.name(*id))) {
                let names: Vec<String> = found.iter().map(|(id, _)| format!("`{}`", graph.name(*id))).collect();
                return Err(Error(format!("`base.freeze`: {pattern:?} is no weight; there are {}", names.join(", "))));
            }
        }
        let all = found.len();
        found.retain(|(id, _)| !self.freeze.iter().any(|pattern| fits(pattern, graph.name(*id))));
        let frozen = all - found.len();
        Ok((found, frozen))
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

/// Whether a name is of a pattern in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_patterns() {
        for (pattern, name, fit) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.*", "a.bc", true),
            ("*", "", true),
            ("*.weight", "conv.1.weight", true),
            ("conv*.weight", "conv.1.bias", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c2b", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
