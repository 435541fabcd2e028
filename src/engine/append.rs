//! Operators appended to a graph by name: what gradients, losses and networks without a file are built with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::adjoint::{Emit, ValueId};
use super::attrs::{Attr, Attrs};
use super::graph::{Graph, Node};
use super::op::{Op, OpDef, OpError};
use super::ops;
use super::tensor::{Kind, Tensor};

/// The opset of `ai.onnx` in which operators are appended.
pub const APPENDED_OPSET: u16 = 21;

/// Appends operators to a graph. The kinds of their results are known at once; their shapes are, as always, a plan's matter.
#[derive(Debug)]
pub struct Appender<'g> {
    /// The graph.
    pub graph: &'g mut Graph,
    /// What the names of nodes and values begin with.
    pub prefix: String,
    /// The opset of `ai.onnx` in which they are: a file has one for all its nodes.
    pub opset: u16,
}

impl<'g> Appender<'g> {
    /// Appends to `graph`, in [`APPENDED_OPSET`].
    pub fn new(graph: &'g mut Graph, prefix: impl Into<String>) -> Self {
        Self { graph, prefix: prefix.into(), opset: APPENDED_OPSET }
    }

    /// Copies what `end` needs of another graph. `ids` says what stands for some of its values, and afterwards for all that were
    /// copied; what it names already is not copied. Names get a prefix, so that they meet no other.
    pub fn splice(&mut self, other: &Graph, end: ValueId, ids: &mut HashMap<ValueId, ValueId>) {
        let mut needed = vec![false; other.values.len()];
        needed[end.index()] = true;
        let mut nodes = Vec::new();
        for node in other.nodes.iter().rev() {
            if node.results().any(|id| needed[id.index()] && !ids.contains_key(&id)) {
                node.operands().for_each(|id| needed[id.index()] = true);
                nodes.push(node);
            }
        }
        let mut copy = |graph: &mut Graph, id: ValueId| {
            *ids.entry(id).or_insert_with(|| {
                let info = &other.values[id.index()];
                let copied = graph.add_value(format!("base/{}", info.name), info.kind.clone(), info.dims.clone());
                if let Some(tensor) = other.constants.get(&id) {
                    graph.constants.insert(copied, tensor.clone());
                }
                copied
            })
        };
        for node in nodes.into_iter().rev() {
            let mut of = |ids: &[Option<ValueId>]| ids.iter().map(|id| id.map(|id| copy(self.graph, id))).collect();
            let (inputs, outputs) = (of(&node.inputs), of(&node.outputs));
            self.graph.nodes.push(Node { name: format!("base/{}", node.name), inputs, outputs, ..node.clone() });
        }
    }

    fn name(&self, op: &str) -> String {
        match self.prefix.as_str() {
            "" => format!("{op}#{}", self.graph.nodes.len()),
            prefix => format!("{prefix}/{op}#{}", self.graph.nodes.len()),
        }
    }

    fn push(&mut self, node: Node, outputs: usize) -> Result<Vec<ValueId>, OpError> {
        let kind = |id: &Option<ValueId>| id.and_then(|id| self.graph.values[id.index()].kind.clone());
        let kinds: Vec<Option<Kind>> = node.inputs.iter().map(kind).collect();
        if let (Some(Some(Kind::Tensor(dtype))), types @ [_, ..]) = (kinds.first(), node.def.types)
            && !types.contains(dtype)
        {
            return Err(OpError::Type(format!("{} does not take {dtype}", node.op_type())));
        }
        let results = node.op.kinds(&kinds)?;
        if results.len() < outputs {
            return Err(OpError::unsupported(format!("{} has {} outputs, {outputs} are wanted", node.op_type(), results.len())));
        }
        let ids: Vec<ValueId> = results
            .into_iter()
            .take(outputs)
            .enumerate()
            .map(|(i, kind)| {
                let name = if i == 0 { node.name.clone() } else { format!("{}:{i}", node.name) };
                self.graph.add_value(name, Some(kind), None)
            })
            .collect();
        self.graph.nodes.push(Node { outputs: ids.iter().copied().map(Some).collect(), ..node });
        Ok(ids)
    }
}

impl Emit for Appender<'_> {
    fn call(&mut self, name: &str, attrs: &[(&str, Attr)], inputs: &[Option<ValueId>], outputs: usize) -> Result<Vec<ValueId>, OpError> {
        let def = ops::find("", name, self.opset).map_err(|reason| OpError::unsupported(format!("{name}: {reason}")))?;
        let values: BTreeMap<String, Attr> = attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let given = Attrs::new(values.clone(), self.opset, inputs.iter().map(Option::is_some).collect(), vec![true; outputs]);
        let op = (def.build)(&given)?;
        if let [unread, ..] = given.unread()[..] {
            return Err(OpError::Attribute(format!("{name} has no attribute `{unread}`")));
        }
        let attributes = Arc::new(values);
        let node =
            Node { name: self.name(name), def, opset: self.opset, op: op.into(), attributes, inputs: inputs.into(), outputs: Vec::new() };
        self.push(node, outputs)
    }

    fn own(&mut self, def: &'static OpDef, op: Box<dyn Op>, inputs: &[Option<ValueId>], outputs: usize) -> Result<Vec<ValueId>, OpError> {
        let (name, attributes) = (self.name(def.name), Arc::default());
        let node = Node { name, def, opset: 1, op: op.into(), attributes, inputs: inputs.into(), outputs: Vec::new() };
        self.push(node, outputs)
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = format!("{}const#{}", self.prefix, self.graph.values.len());
        let id = self.graph.add_value(name, Some(Kind::Tensor(tensor.dtype())), None);
        self.graph.constants.insert(id, tensor);
        id
    }

    fn kind(&self, value: ValueId) -> Option<&Kind> {
        self.graph.values.get(value.index())?.kind.as_ref()
    }
}
