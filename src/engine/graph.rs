//! The graph: nodes in topological order over values, as loaded and as the passes transform it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;

pub use super::adjoint::ValueId;
use super::attrs::Attr;
use super::op::{Op, OpDef, OpError};
use super::tensor::{Kind, Tensor};

/// A dimension of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size; equal names mean equal sizes. An unnamed dimension has an empty name.
    Free(String),
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Free(name) if name.is_empty() => f.write_str("?"),
            Self::Free(name) => f.write_str(name),
        }
    }
}

/// What is known of a value at load.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Its name in the model file.
    pub name: String,
    /// Its kind; of every value once the graph is complete.
    pub kind: Option<Kind>,
    /// Its declared shape, if the file declares one.
    pub dims: Option<Vec<Dim>>,
}

/// One operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The name in the model file, or `Type#position` where the file gives none.
    pub name: String,
    /// The row of the operator table that it was built from.
    pub def: &'static OpDef,
    /// The opset under which it was built.
    pub opset: u16,
    /// The operator with its attributes.
    pub op: Arc<dyn Op>,
    /// The attributes that it was built from, for writing the graph to a file.
    pub attributes: Arc<BTreeMap<String, Attr>>,
    /// Its operands; an omitted optional one is `None`.
    pub inputs: Vec<Option<ValueId>>,
    /// Its results; one that nobody asked for is `None`.
    pub outputs: Vec<Option<ValueId>>,
}

impl Node {
    /// The operands that are given.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().flatten().copied()
    }

    /// The results that are wanted.
    pub fn results(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.outputs.iter().flatten().copied()
    }

    /// The operator as the standard names it: `domain.Type`, without the default domain.
    pub fn op_type(&self) -> String {
        match self.def.domain {
            "" => self.def.name.to_owned(),
            domain => format!("{domain}.{}", self.def.name),
        }
    }
}

/// A model's computation.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// All values; a pass may leave some unused.
    pub values: Vec<ValueInfo>,
    /// The nodes, each after those whose results it reads.
    pub nodes: Vec<Node>,
    /// The inputs in order.
    pub inputs: Vec<ValueId>,
    /// The outputs in order.
    pub outputs: Vec<ValueId>,
    /// The constants: initialisers and what passes folded.
    pub constants: BTreeMap<ValueId, Tensor>,
    /// The constants that a run may replace, in the order in which the file lists them among its inputs. They are constants to
    /// every pass.
    pub defaults: Vec<ValueId>,
}

/// A broken invariant of a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Graph {
    /// Adds a value and returns its identity.
    pub fn add_value(&mut self, name: impl Into<String>, kind: Option<Kind>, dims: Option<Vec<Dim>>) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(ValueInfo { name: name.into(), kind, dims });
        id
    }

    /// The name of a value.
    pub fn name(&self, id: ValueId) -> &str {
        &self.values[id.index()].name
    }

    /// For each value how many nodes and graph outputs read it.
    pub fn uses(&self) -> Vec<u32> {
        let mut uses = vec![0; self.values.len()];
        for id in self.nodes.iter().flat_map(Node::operands).chain(self.outputs.iter().copied()) {
            uses[id.index()] += 1;
        }
        uses
    }

    /// The kinds of a node's inputs, as known so far.
    fn input_kinds(&self, node: &Node) -> Option<Vec<Option<Kind>>> {
        let kind = |id: &Option<ValueId>| match id {
            None => Some(None),
            Some(id) => self.values[id.index()].kind.clone().map(Some),
        };
        node.inputs.iter().map(kind).collect()
    }

    /// Derives the kind of every node's results from its operands'.
    ///
    /// Returns each node that does not take its operands, by position; the kinds behind such a node stay unknown, and
    /// nodes that read unknown kinds are left out, so that one cause is reported once.
    pub fn infer_kinds(&mut self) -> Vec<(usize, OpError)> {
        let mut failed = Vec::new();
        for position in 0..self.nodes.len() {
            let node = &self.nodes[position];
            let Some(inputs) = self.input_kinds(node) else { continue };
            let taken = match (inputs.first(), node.def.types) {
                (_, []) | (None | Some(None), _) => Ok(()),
                (Some(Some(Kind::Tensor(dtype))), types) if !types.contains(dtype) => {
                    let listed = types.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ");
                    Err(OpError::Type(format!("element type {dtype} is not supported; supported are {listed}")))
                }
                _ => Ok(()),
            };
            match taken.and_then(|()| node.op.kinds(&inputs)) {
                Err(error) => failed.push((position, error)),
                Ok(kinds) => {
                    if kinds.len() < node.outputs.len() {
                        let message = format!("{} outputs are listed, the operator has {}", node.outputs.len(), kinds.len());
                        failed.push((position, OpError::unsupported(message)));
                        continue;
                    }
                    let outputs = node.outputs.clone();
                    for (id, kind) in outputs.into_iter().zip(kinds) {
                        if let Some(id) = id {
                            self.values[id.index()].kind = Some(kind);
                        }
                    }
                }
            }
        }
        failed
    }

    /// Checks the invariants that every pass must keep: one producer per value, nodes in topological order, every read
    /// value produced, kinds known.
    ///
    /// # Errors
    /// The first broken invariant, naming node and value.
    pub fn verify(&self) -> Result<(), Invalid> {
        let mut produced = vec![false; self.values.len()];
        let mut produce = |id: ValueId, by: &str| match produced.get_mut(id.index()) {
            None => Err(Invalid(format!("{by}: value {} does not exist", id.0))),
            Some(true) => Err(Invalid(format!("{by}: value `{}` has two producers", self.name(id)))),
            Some(slot) => {
                *slot = true;
                Ok(())
            }
        };
        for &id in &self.inputs {
            produce(id, "graph inputs")?;
        }
        for &id in self.constants.keys() {
            produce(id, "constants")?;
        }
        let mut order: HashMap<ValueId, usize> = HashMap::new();
        for (position, node) in self.nodes.iter().enumerate() {
            for id in node.results() {
                produce(id, &node.name)?;
                order.insert(id, position);
            }
        }
        for (position, node) in self.nodes.iter().enumerate() {
            for id in node.operands() {
                if !produced.get(id.index()).copied().unwrap_or(false) {
                    return Err(Invalid(format!("{}: nothing produces its input `{}`", node.name, self.name(id))));
                }
                if order.get(&id).is_some_and(|&by| by >= position) {
                    return Err(Invalid(format!("{}: its input `{}` is produced later", node.name, self.name(id))));
                }
            }
        }
        for &id in &self.outputs {
            if !produced.get(id.index()).copied().unwrap_or(false) {
                return Err(Invalid(format!("nothing produces the graph output `{}`", self.name(id))));
            }
        }
        let unknown = self.values.iter().zip(&produced).find(|(value, produced)| **produced && value.kind.is_none());
        match unknown {
            Some((value, _)) => Err(Invalid(format!("the kind of `{}` is unknown", value.name))),
            None => Ok(()),
        }
    }

    /// A line of text per node, for snapshots of what a pass does and for `check --graph`.
    pub fn dump(&self) -> String {
        let list = |ids: &[Option<ValueId>]| {
            ids.iter().map(|id| id.map_or("-".to_owned(), |id| self.name(id).to_owned())).collect::<Vec<_>>().join(", ")
        };
        let mut text = String::new();
        for node in &self.nodes {
            let _ = writeln!(text, "{} = {}({})", list(&node.outputs), node.op_type(), list(&node.inputs));
        }
        text
    }
}
