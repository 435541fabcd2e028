//! Lets codes between convolutions have their channels last, as the kernel wants them: an image is then turned over at most where codes
//! enter such a region and where they leave it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pattern::{Links, put};
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::model::LoadOptions;
use crate::engine::ops::pool::MaxPool;
use crate::engine::ops::qlinear_conv::QConv;
use crate::engine::ops::qlinear_elementwise::Combine;
use crate::engine::ops::qlinear_pool::GlobalAveragePool;

/// What an operator has to do with the order of its channels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    /// Input and output may be in either order.
    Turns,
    /// The input may be in either order; the output is in the usual one.
    Ends,
    /// All are in one order.
    Keeps,
    /// The usual order only.
    Fixed,
}

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    let links = Links::of(graph);
    let roles: Vec<Role> = graph.nodes.iter().map(|node| role(graph, node)).collect();
    if !roles.contains(&Role::Turns) {
        return;
    }
    let last = last(graph, &links, &roles);
    for (position, role) in roles.into_iter().enumerate() {
        let node = &graph.nodes[position];
        let of = |ids: &[Option<ValueId>]| ids.first().copied().flatten().is_some_and(|id| last[id.index()]);
        let (input, output) = (of(&node.inputs), of(&node.outputs));
        match role {
            Role::Turns if input || output => {
                let conv = node.op.downcast::<QConv>().expect("its role says so").clone();
                graph.nodes[position].op = Arc::new(conv.in_layouts(input, output));
            }
            Role::Ends if input => {
                graph.nodes[position].op = Arc::new(GlobalAveragePool { channels_last: true, output_last: false });
            }
            Role::Keeps if output && node.op.downcast::<MaxPool>().is_some() => {
                graph.nodes[position] = pool_of(node).expect("its role says so")
            }
            _ => {}
        }
    }
    for (value, _) in graph.values.iter_mut().zip(&last).filter(|(_, last)| **last) {
        // Their order is another than the file says.
        value.dims = None;
    }
}

fn role(graph: &Graph, node: &Node) -> Role {
    let constant = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id| graph.constants.get(&id));
    if let Some(conv) = node.op.downcast::<QConv>() {
        let packs =
            conv.linear && conv.groups == 1 && !conv.input_last && !conv.output_last && constant(3).is_some_and(|w| w.shape().len() == 4);
        return if packs { Role::Turns } else { Role::Fixed };
    }
    if node.op.downcast::<Combine>().is_some() {
        return Role::Keeps;
    }
    if node.op.downcast::<GlobalAveragePool>().is_some_and(|pool| !pool.channels_last) {
        return Role::Ends;
    }
    match node.op.downcast::<MaxPool>() {
        Some(pool) if !pool.indices && pool.window.kernel().is_some_and(|kernel| kernel.len() == 2) && pool_of(node).is_some() => {
            Role::Keeps
        }
        _ => Role::Fixed,
    }
}

/// The same pooling with channels last.
fn pool_of(node: &Node) -> Option<Node> {
    let mut attributes: BTreeMap<_, _> = (*node.attributes).clone();
    attributes.remove("storage_order");
    let mut pool = node.clone();
    put(&mut pool, ("com.microsoft", "NhwcMaxPool", 1), attributes, node.inputs.clone())?;
    Some(pool)
}

/// For each value whether its channels may come last: it is made by a convolution, or of such values, and nobody minds.
fn last(graph: &Graph, links: &Links, roles: &[Role]) -> Vec<bool> {
    let makes = |position: Option<usize>| position.is_some_and(|position| matches!(roles[position], Role::Turns | Role::Keeps));
    let reads = |id: ValueId, reader: usize| {
        reader != usize::MAX
            && match roles[reader] {
                Role::Fixed => false,
                // Of operands that only scale nobody knows an order.
                Role::Turns | Role::Ends => graph.nodes[reader].inputs[0] == Some(id),
                Role::Keeps => true,
            }
    };
    let free = |index: usize| {
        let id = ValueId(index as u32);
        makes(links.producer(id)) && links.readers(id).iter().all(|&reader| reads(id, reader))
    };
    let mut last: Vec<bool> = (0..graph.values.len()).map(free).collect();
    // What keeps the order has all its operands in one: until nothing changes.
    loop {
        let mut changed = false;
        for (node, _) in graph.nodes.iter().zip(roles).filter(|(_, role)| **role == Role::Keeps) {
            let ids: Vec<ValueId> =
                [node.inputs.first(), node.inputs.get(3), node.outputs.first()].into_iter().flatten().copied().flatten().collect();
            let ids = if node.op.downcast::<MaxPool>().is_some() {
                vec![node.inputs[0], node.outputs[0]].into_iter().flatten().collect()
            } else {
                ids
            };
            if ids.iter().any(|id| last[id.index()]) && !ids.iter().all(|id| last[id.index()]) {
                ids.iter().for_each(|id| last[id.index()] = false);
                changed = true;
            }
        }
        if !changed {
            return last;
        }
    }
}
