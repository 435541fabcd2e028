//! The order of a graph's nodes, and the names that they read from the graph around them.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::engine::error::LoadError;
use crate::engine::load::proto::{AttributeProto, GraphProto, NodeProto};

/// Positions of the nodes, each after those whose results it reads, itself or in its bodies; the file's order where that is
/// one.
///
/// # Errors
/// If two nodes produce one name, or a node depends on its own result.
pub(super) fn topological_order(nodes: &[NodeProto]) -> Result<Vec<usize>, LoadError> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (position, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if producer.insert(output, position).is_some() {
                return Err(LoadError::format(format!("two nodes produce `{output}`")));
            }
        }
    }
    let mut waiting = vec![0_usize; nodes.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut in_order = true;
    for (position, node) in nodes.iter().enumerate() {
        for by in reads(node).iter().filter_map(|name| producer.get(name).copied()) {
            waiting[position] += 1;
            readers[by].push(position);
            in_order &= by < position;
        }
    }
    if in_order {
        return Ok((0..nodes.len()).collect());
    }
    let mut ready: VecDeque<usize> = (0..nodes.len()).filter(|&i| waiting[i] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(position) = ready.pop_front() {
        order.push(position);
        for &reader in &readers[position] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push_back(reader);
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck = waiting.iter().position(|&n| n > 0).expect("some node is not in the order");
        let (name, op) = (nodes[stuck].name(), nodes[stuck].op_type());
        return Err(LoadError::format(format!("the graph has a cycle: node `{name}` ({op}) is part of it or behind it")));
    }
    Ok(order)
}

/// The names that a node reads: its inputs, what its bodies read from around them, and what Gradient names by attribute.
fn reads(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    names.extend(super::gradient::reads(node));
    for graph in node.attribute.iter().flat_map(graphs) {
        names.extend(free_names(graph));
    }
    names
}

fn graphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

/// The names that a body reads and does not define. The recursion is as deep as the protobuf reader lets graphs nest.
fn free_names(graph: &GraphProto) -> Vec<&str> {
    let mut defined: HashSet<&str> = graph.input.iter().map(|info| info.name()).collect();
    defined.extend(graph.initializer.iter().map(|tensor| tensor.name()));
    defined.extend(graph.sparse_initializer.iter().filter_map(|sparse| Some(sparse.values.as_ref()?.name())));
    defined.extend(graph.node.iter().flat_map(|node| &node.output).map(String::as_str));
    let mut free: Vec<&str> = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|info| info.name())).collect();
    free.retain(|name| !defined.contains(name));
    free.sort_unstable();
    free.dedup();
    free
}
