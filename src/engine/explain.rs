//! Graphs made of a graph that explain it: the gradients of its answers, the Shapley values of its trees.
//!
//! Both take the inputs of the model, and weights for the elements of the output that is explained: the weighted sum is what is
//! explained, row by row. Where one class is of interest its weight is 1 and the others' are 0.

use std::collections::{HashMap, HashSet};

use super::adjoint::{Emit, ValueId};
use super::append::Appender;
use super::attrs::Attr;
use super::differentiate;
use super::error::{LoadError, Unsupported};
use super::graph::{Dim, Graph, Node};
use super::load::Loaded;
use super::model::{LoadOptions, Model};
use super::ops::tree::{TREE_SHAPLEY, shapley};
use super::signature::Signature;
use super::tensor::Kind;

/// The name of the input with the weights.
const WEIGHTS: &str = "ndserve.weights";

/// A model that gives the gradients of output `output` of `loaded`, weighted, with respect to each of its inputs. `served` is the
/// signature of the model that `loaded` was read for.
///
/// # Errors
/// Every node without a gradient, by its name; or that an input is not of floating-point numbers.
pub fn gradient_model(loaded: Loaded, served: &Signature, output: usize, options: &LoadOptions) -> Result<Model, LoadError> {
    let Loaded { mut graph, metadata } = loaded;
    graph.defaults.clear();
    let inputs = graph.inputs.clone();
    let port = &served.outputs[output];
    if !port.kind.dtype().is_some_and(|dtype| dtype.is_float()) {
        return Err(LoadError::format(format!("output `{}` is {}, which has no gradient", port.name, port.kind)));
    }
    for (&id, port) in inputs.iter().zip(&served.inputs) {
        if !port.kind.dtype().is_some_and(|dtype| dtype.is_float()) {
            return Err(LoadError::format(format!("input `{}` is a {}: it has no gradient", graph.name(id), port.kind)));
        }
    }
    let explained = graph.outputs[output];
    let weights = weights(&mut graph, Some(explained), served, output);
    let failed = |error: super::op::OpError| LoadError::format(error.to_string());
    let sum = {
        let emit: &mut dyn Emit = &mut Appender::new(&mut graph, "explained");
        let product = emit.op("Mul", &[explained, weights]).map_err(failed)?;
        emit.with("ReduceSum", &[("keepdims", Attr::Int(0))], &[product]).map_err(failed)?
    };
    graph.outputs = differentiate::extend(&mut graph, sum, &inputs)?;
    Model::build(Loaded { graph, metadata }, options)
}

/// The input of weights for the elements of an output, of the type of `like`, or of float.
fn weights(graph: &mut Graph, like: Option<ValueId>, served: &Signature, output: usize) -> ValueId {
    let kind = like.and_then(|id| graph.values[id.index()].kind.clone()).unwrap_or(Kind::Tensor(super::dtype::DType::F32));
    let mut dims = served.outputs[output].dims.clone();
    // Rows of several requests are joined only if their dimension has one name.
    let batch = served.inputs.first().and_then(|port| port.dims.as_ref()?.first().cloned());
    if let (Some(dims), Some(batch @ Dim::Free(_)), true) = (&mut dims, batch, served.batchable)
        && let Some(first) = dims.first_mut()
    {
        *first = batch;
    }
    let id = graph.add_value(WEIGHTS, Some(kind), dims);
    graph.inputs.push(id);
    id
}

/// A model that explains the trees of `loaded`. Inputs: rows, a background sample in the form of rows, weights for the columns of
/// output `output`. Outputs: what each feature adds to the trees' score [rows, features]; the score, and its mean over the
/// sample [rows, 2]. The score is that before a transform, so of a logistic classifier its log odds.
///
/// # Errors
/// If there is not one node of trees whose columns are those of the model's one input; what is in the way is named.
pub fn tree_model(loaded: Loaded, served: &Signature, output: usize, options: &LoadOptions) -> Result<Model, LoadError> {
    let Loaded { mut graph, metadata } = loaded;
    graph.defaults.clear();
    let trees: Vec<usize> = (0..graph.nodes.len()).filter(|&at| is_trees(&graph.nodes[at])).collect();
    let [at] = trees[..] else {
        return Err(LoadError::format(format!(
            "the model has {} nodes of trees; tree_shap explains one, `shapley` any model",
            trees.len()
        )));
    };
    let [input] = graph.inputs[..] else {
        return Err(LoadError::format(format!(
            "the model has {} inputs; tree_shap explains trees of one, `shapley` any model",
            graph.inputs.len()
        )));
    };
    scores_of_trees(&graph, served, output, at)?;
    let node = graph.nodes[at].clone();
    let op = shapley(&*node.op).map_err(|error| LoadError::Unsupported(vec![unsupported(&node, error.to_string())]))?;
    let features = node.inputs[0].ok_or_else(|| LoadError::format("the trees have no input"))?;
    let between = between(&graph, input, features)?;
    // Two names: the rows and the sample are not parts of one batch.
    if let Some([Dim::Free(name), ..]) = graph.values[input.index()].dims.as_deref_mut()
        && name.is_empty()
    {
        *name = "ndserve.rows".into();
    }
    let info = graph.values[input.index()].clone();
    let sample_dims = info.dims.map(|mut dims| {
        if let Some(first) = dims.first_mut() {
            *first = Dim::Free("ndserve.background".into());
        }
        dims
    });
    let sample = graph.add_value("ndserve.background", info.kind, sample_dims);
    graph.inputs.push(sample);
    // What the features go through, the sample does, too.
    let mut twin = HashMap::from([(input, sample)]);
    let mut twins = Vec::new();
    for &at in &between {
        let mut node = graph.nodes[at].clone();
        node.name = format!("{}/background", node.name);
        node.inputs.iter_mut().flatten().for_each(|id| *id = twin.get(id).copied().unwrap_or(*id));
        for id in node.outputs.iter_mut().flatten() {
            let info = graph.values[id.index()].clone();
            let new = graph.add_value(format!("{}/background", info.name), info.kind, info.dims);
            twin.insert(*id, new);
            *id = new;
        }
        twins.push(node);
    }
    graph.nodes.extend(twins);
    let weights = weights(&mut graph, None, served, output);
    // Whatever the form of the output, they are a matrix.
    if served.outputs[output].dims.as_ref().is_some_and(|dims| dims.len() != 2) {
        graph.values[weights.index()].dims = None;
    }
    let operands = [features, twin[&features], weights].map(Some);
    let appended = Appender::new(&mut graph, "explained").own(&TREE_SHAPLEY, op, &operands, 2);
    graph.outputs = appended.map_err(|error| LoadError::format(error.to_string()))?;
    Model::build(Loaded { graph, metadata }, options)
}

fn is_trees(node: &Node) -> bool {
    node.def.domain == "ai.onnx.ml" && node.def.name.starts_with("TreeEnsemble")
}

/// Whether output `output` has scores, and has them of the trees alone, which are node `trees`.
fn scores_of_trees(graph: &Graph, served: &Signature, output: usize, trees: usize) -> Result<(), LoadError> {
    let port = &served.outputs[output];
    let scores = matches!(port.kind, Kind::Sequence(_)) || port.kind.dtype().is_some_and(|dtype| dtype.is_float());
    if !scores {
        return Err(LoadError::format(format!("output `{}` is {}; tree_shap explains scores", port.name, port.kind)));
    }
    let (mut left, mut seen) = (vec![graph.outputs[output]], HashSet::new());
    while let Some(value) = left.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some(at) = graph.nodes.iter().position(|node| node.results().any(|id| id == value)) else { continue };
        let node = &graph.nodes[at];
        // A size says nothing of what the elements are.
        if at == trees || matches!(node.def.name, "Shape" | "Size") {
            continue;
        }
        if node.operands().any(|id| graph.inputs.contains(&id)) {
            let reason = format!("output `{}` reads the input here, beside the trees, whose values would not be all of it", port.name);
            return Err(LoadError::Unsupported(vec![unsupported(node, reason)]));
        }
        left.extend(node.operands());
    }
    Ok(())
}

/// Operators behind which a column is still the same column.
const COLUMNWISE: &[&str] = &["Cast", "CastLike", "Identity", "Imputer", "Scaler"];

/// The nodes between the model's input and the features of the trees, in order.
fn between(graph: &Graph, input: ValueId, features: ValueId) -> Result<Vec<usize>, LoadError> {
    let (mut found, mut value) = (Vec::new(), features);
    while value != input {
        let at = graph.nodes.iter().position(|node| node.results().any(|id| id == value));
        let Some(at) = at else { return Err(LoadError::format("the trees do not read the model's input")) };
        let node = &graph.nodes[at];
        if !COLUMNWISE.contains(&node.def.name) {
            let reason = "it stands between the input and the trees, so that their features are not the input's columns; `shapley` explains any model";
            return Err(LoadError::Unsupported(vec![unsupported(node, reason.to_owned())]));
        }
        found.push(at);
        value = node.inputs[0].ok_or_else(|| LoadError::format("a node has no input"))?;
    }
    found.reverse();
    Ok(found)
}

fn unsupported(node: &Node, reason: String) -> Unsupported {
    let (op, domain) = (node.def.name.to_owned(), node.def.domain.to_owned());
    Unsupported { node: node.name.clone(), op, domain, opset: Some(node.opset.into()), reason }
}

/// Whether the model is one of trees that [`tree_model`] may explain: one ensemble, and columns of one input. What stands between them
/// only the file says.
pub fn has_trees(model: &Model) -> bool {
    let ensembles = model.summary().operators.iter().filter(|(name, ..)| name.starts_with("ai.onnx.ml.TreeEnsemble"));
    ensembles.map(|&(.., count)| count).sum::<usize>() == 1 && model.signature().inputs.len() == 1
}
