//! Removes nodes whose output is their input, unchanged in elements and shape.

use crate::engine::graph::Graph;
use crate::engine::model::LoadOptions;

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    for position in 0..graph.nodes.len() {
        let node = &graph.nodes[position];
        // An optional second output (a Dropout mask) keeps the node.
        if !matches!(node.def.name, "Identity" | "Dropout") || node.outputs.len() != 1 || node.op.alias() != Some(0) {
            continue;
        }
        let (Some(Some(source)), Some(result)) = (node.inputs.first().copied(), node.outputs[0]) else { continue };
        // A graph output keeps its own value, so that its name stays.
        if graph.outputs.contains(&result) {
            continue;
        }
        graph.replace_uses(result, source);
    }
    super::dead_code::run(graph, &LoadOptions::default());
}
