//! Gradients as a pass from graph to graph: reverse-mode differentiation out of the engine's own operators.
//!
//! The nodes between what is differentiated and what it is differentiated by are walked from the last to the first. Each node's
//! [rule](super::adjoint::Rule) emits the product of the gradients of its outputs with its Jacobian; where several nodes read one
//! value, their gradients are added in the order in which they are found, so that the bits are always the same.

use super::adjoint::{Adjoint, Emit, ValueId};
use super::append::Appender;
use super::dtype::DType;
use super::error::{LoadError, Unsupported};
use super::graph::{Graph, Node};
use super::op::OpError;
use super::ops;
use super::tensor::Kind;

/// A graph with the inputs of `graph` and one output for each of `wrt`, in their order: the gradient of `loss` with respect to it,
/// in its shape. If `loss` is not a single number, the sum of its elements is differentiated. `wrt` may be inputs, constants or
/// any other values of floating-point type; the gradient of one on which `loss` does not depend is zero.
///
/// # Errors
/// Every operator between them that has no rule, or a form of one that has no gradient, by its node.
pub fn gradient(graph: &Graph, loss: ValueId, wrt: &[ValueId]) -> Result<Graph, LoadError> {
    let mut graph = graph.clone();
    graph.outputs = extend(&mut graph, loss, wrt)?;
    Ok(graph)
}

/// Appends the gradients of `loss` to `graph`, as [`gradient`] has them, and leaves its outputs as they are.
///
/// # Errors
/// As [`gradient`].
pub fn extend(graph: &mut Graph, loss: ValueId, wrt: &[ValueId]) -> Result<Vec<ValueId>, LoadError> {
    for &id in wrt.iter().chain([&loss]) {
        if !differentiable(graph, id) {
            return Err(LoadError::format(format!("`{}` is no tensor of floating-point numbers: it has no gradient", graph.name(id))));
        }
    }
    let path = path(graph, loss, wrt);
    let missing: Vec<Unsupported> =
        path.nodes.iter().filter(|&&at| rule(&graph.nodes[at]).is_none()).map(|&at| unsupported(&graph.nodes[at], None)).collect();
    if !missing.is_empty() {
        return Err(LoadError::Unsupported(missing));
    }
    let mut found: Vec<Vec<ValueId>> = vec![Vec::new(); graph.values.len()];
    let mut emit = Appender::new(graph, "gradient");
    let seed = ones_like(&mut emit, loss).map_err(|error| LoadError::format(error.to_string()))?;
    found[loss.index()].push(seed);
    for &at in path.nodes.iter().rev() {
        let node = emit.graph.nodes[at].clone();
        visit(&mut emit, &node, &path.reached, &mut found)
            .map_err(|error| LoadError::Unsupported(vec![unsupported(&node, Some(error))]))?;
    }
    let sums = wrt.iter().map(|id| match sum(&mut emit, &mut found[id.index()])? {
        Some(gradient) => Ok(gradient),
        None => (&mut emit as &mut dyn Emit).zeros_like(*id),
    });
    sums.collect::<Result<_, OpError>>().map_err(|error| LoadError::format(error.to_string()))
}

/// What lies between.
struct Path {
    /// Values that depend on what is differentiated by.
    reached: Vec<bool>,
    /// Nodes whose results do and lead to what is differentiated, in the order of the graph.
    nodes: Vec<usize>,
}

fn path(graph: &Graph, loss: ValueId, wrt: &[ValueId]) -> Path {
    let mut reached = vec![false; graph.values.len()];
    wrt.iter().for_each(|id| reached[id.index()] = true);
    for node in &graph.nodes {
        if node.operands().any(|id| reached[id.index()]) {
            node.results().filter(|id| differentiable(graph, *id)).for_each(|id| reached[id.index()] = true);
        }
    }
    let mut leads = vec![false; graph.values.len()];
    leads[loss.index()] = true;
    let mut nodes = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if node.results().any(|id| leads[id.index()] && reached[id.index()]) {
            nodes.push(at);
            node.operands().for_each(|id| leads[id.index()] = true);
        }
    }
    nodes.reverse();
    Path { reached, nodes }
}

/// Whether gradients flow through a value.
fn differentiable(graph: &Graph, id: ValueId) -> bool {
    matches!(graph.values[id.index()].kind, Some(Kind::Tensor(DType::F32 | DType::F64 | DType::F16 | DType::BF16)))
}

fn rule(node: &Node) -> Option<&'static super::adjoint::Rule> {
    ops::rules().find(|rule| rule.name == node.def.name && rule.domain == node.def.domain)
}

fn unsupported(node: &Node, error: Option<OpError>) -> Unsupported {
    let reason = error.map_or_else(|| "the operator has no gradient".to_owned(), |error| error.to_string());
    let (op, domain) = (node.def.name.to_owned(), node.def.domain.to_owned());
    Unsupported { node: node.name.clone(), op, domain, opset: Some(node.opset.into()), reason }
}

fn visit(emit: &mut Appender<'_>, node: &Node, reached: &[bool], found: &mut [Vec<ValueId>]) -> Result<(), OpError> {
    let mut gradients = Vec::with_capacity(node.outputs.len());
    for id in &node.outputs {
        gradients.push(match id {
            Some(id) => sum(emit, &mut found[id.index()])?,
            None => None,
        });
    }
    // A rule of an operator with several results may have found that none of this node's counts.
    if gradients.iter().all(Option::is_none) {
        return Ok(());
    }
    let wanted: Vec<bool> =
        node.inputs.iter().map(|id| id.is_some_and(|id| reached[id.index()] && differentiable(emit.graph, id))).collect();
    let adjoint = Adjoint { inputs: &node.inputs, outputs: &node.outputs, gradients: &gradients, wanted: &wanted };
    emit.prefix = format!("gradient/{}", node.name);
    let rule = rule(node).ok_or_else(|| OpError::unsupported("the operator has no gradient"))?;
    let emitted = (rule.emit)(&*node.op, &adjoint, emit)?;
    for ((id, wanted), gradient) in node.inputs.iter().zip(wanted).zip(emitted) {
        if let (Some(id), true, Some(gradient)) = (id, wanted, gradient) {
            found[id.index()].push(gradient);
        }
    }
    Ok(())
}

/// The sum of the gradients found, which takes their place.
fn sum(emit: &mut Appender<'_>, found: &mut Vec<ValueId>) -> Result<Option<ValueId>, OpError> {
    let emit: &mut dyn Emit = emit;
    let mut total: Option<ValueId> = None;
    for gradient in found.drain(..) {
        total = Some(match total {
            None => gradient,
            Some(total) => emit.op("Add", &[total, gradient])?,
        });
    }
    found.extend(total);
    Ok(total)
}

fn ones_like(emit: &mut Appender<'_>, value: ValueId) -> Result<ValueId, OpError> {
    let emit: &mut dyn Emit = emit;
    let (one, shape) = (emit.number(value, 1.0)?, emit.shape(value)?);
    emit.op("Expand", &[one, shape])
}

#[cfg(test)]
mod checks;
