//! What passes that look for patterns ask about a graph.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::Element;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::ops;

/// Who makes and who reads the values of a graph, by position.
pub(super) struct Links {
    producers: Vec<Option<usize>>,
    /// `usize::MAX` is the graph itself.
    readers: Vec<SmallVec<[usize; 2]>>,
}

impl Links {
    pub(super) fn of(graph: &Graph) -> Self {
        let mut links = Self { producers: vec![None; graph.values.len()], readers: vec![SmallVec::new(); graph.values.len()] };
        for (position, node) in graph.nodes.iter().enumerate() {
            node.results().for_each(|id| links.producers[id.index()] = Some(position));
            node.operands().for_each(|id| links.readers[id.index()].push(position));
        }
        graph.outputs.iter().for_each(|id| links.readers[id.index()].push(usize::MAX));
        links
    }

    /// The node that makes a value.
    pub(super) fn producer(&self, id: ValueId) -> Option<usize> {
        self.producers[id.index()]
    }

    /// The nodes that read a value, one that reads it twice listed twice.
    pub(super) fn readers(&self, id: ValueId) -> &[usize] {
        &self.readers[id.index()]
    }

    /// The node that alone reads a value, and once; none if the graph itself reads it.
    pub(super) fn only_reader(&self, id: ValueId) -> Option<usize> {
        match self.readers(id) {
            [position] if *position != usize::MAX => Some(*position),
            _ => None,
        }
    }
}

/// Makes a node another operator with these attributes and operands; its results stay. `None`, and nothing done, if there is no such.
pub(super) fn put(
    node: &mut Node,
    (domain, name, opset): (&str, &str, u16),
    attributes: BTreeMap<String, Attr>,
    inputs: Vec<Option<ValueId>>,
) -> Option<()> {
    let def = ops::find(domain, name, opset).ok()?;
    let attrs = Attrs::new(attributes.clone(), opset, inputs.iter().map(Option::is_some).collect(), vec![true]);
    let op = (def.build)(&attrs).ok()?;
    *node = Node { def, opset, op: op.into(), inputs, attributes: Arc::new(attributes), ..node.clone() };
    Some(())
}

/// An attribute that is a number, as the file has it.
pub(super) fn attached(node: &Node, name: &str, default: i64) -> i64 {
    match node.attributes.get(name) {
        Some(Attr::Int(value)) => *value,
        _ => default,
    }
}

/// The number that a constant of one element is.
pub(super) fn scalar<T: Element + Copy>(graph: &Graph, id: ValueId) -> Option<T> {
    match graph.constants.get(&id)?.slice::<T>()? {
        [value] => Some(*value),
        _ => None,
    }
}
