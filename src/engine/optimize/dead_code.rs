//! Removes nodes whose results nobody reads, and constants without readers.

use crate::engine::graph::Graph;
use crate::engine::model::LoadOptions;

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    let mut live = vec![false; graph.values.len()];
    for id in &graph.outputs {
        live[id.index()] = true;
    }
    // Nodes are in topological order, so one walk from the end sees every reader before the node it reads.
    let mut keep = vec![false; graph.nodes.len()];
    for (position, node) in graph.nodes.iter().enumerate().rev() {
        if node.results().any(|id| live[id.index()]) {
            keep[position] = true;
            for id in node.operands() {
                live[id.index()] = true;
            }
        }
    }
    let mut position = 0;
    graph.nodes.retain(|_| {
        position += 1;
        keep[position - 1]
    });
    drop_unread_constants(graph);
}

/// Forgets constants that no node and no output reads.
pub(super) fn drop_unread_constants(graph: &mut Graph) {
    let uses = graph.uses();
    graph.constants.retain(|id, _| uses[id.index()] > 0);
}
