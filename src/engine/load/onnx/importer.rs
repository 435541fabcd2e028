//! One graph, or the body of a node, from its proto into the engine's graph.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use super::domain;
use super::functions::Functions;
use super::gradient;
use super::kinds::{dims, kind};
use super::order::topological_order;
use crate::engine::attrs::{Attr, Attrs};
use crate::engine::error::{LoadError, Unsupported};
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::load::proto::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, attribute_proto::AttributeType,
};
use crate::engine::load::tensor_proto::{External, decode_sparse, decode_weight, decode_with};
use crate::engine::model::LoadOptions;
use crate::engine::ops;
use crate::engine::subgraph::Subgraph;
use crate::engine::tensor::{Kind, Tensor};

/// What all graphs of one model share while it is read.
pub(super) struct Shared<'m> {
    pub(super) functions: Functions<'m>,
    pub(super) external: External<'m>,
    pub(super) options: &'m LoadOptions,
    pub(super) unsupported: RefCell<Vec<Unsupported>>,
    /// Nodes that functions may still add: a few nested ones can stand for 2^40.
    pub(super) expansion: Cell<usize>,
}

/// Nodes that inlined functions may have together; a transformer that PyTorch's exporter writes has some thousand.
const EXPANSION: usize = 200_000;

/// The inputs that an operator with bodies may leave out at the end of its list: Loop the count and the condition.
const OWN_INPUTS: usize = 2;

impl<'m> Shared<'m> {
    pub(super) fn new(functions: &'m [FunctionProto], external: External<'m>, options: &'m LoadOptions) -> Self {
        let functions = Functions::new(functions);
        Self { functions, external, options, unsupported: RefCell::default(), expansion: Cell::new(EXPANSION) }
    }
}

/// What names mean at one place of the model: in the graph, or in the call of a function.
#[derive(Clone)]
pub(super) struct Scope {
    /// The value of each name; `None` is an optional input of a function that its caller omits.
    pub(super) names: HashMap<String, Option<ValueId>>,
    pub(super) opsets: Rc<HashMap<String, i64>>,
    /// In a function the attributes of the call.
    pub(super) attributes: Option<Rc<BTreeMap<String, Attr>>>,
    /// Stands before the names of nodes and values in messages.
    pub(super) prefix: String,
    /// How many function calls lie around this place.
    pub(super) depth: usize,
}

pub(super) struct Importer<'s, 'm> {
    pub(super) shared: &'s Shared<'m>,
    pub(super) graph: Graph,
    pub(super) scope: Scope,
}

impl<'s, 'm> Importer<'s, 'm> {
    pub(super) fn root(shared: &'s Shared<'m>, opsets: HashMap<String, i64>) -> Self {
        let scope = Scope { names: HashMap::new(), opsets: Rc::new(opsets), attributes: None, prefix: String::new(), depth: 0 };
        Self { shared, graph: Graph::default(), scope }
    }

    /// The value called `name`, made now if it is new; `None` if it is omitted.
    pub(super) fn value(&mut self, name: &str) -> Option<ValueId> {
        if name.is_empty() {
            return None;
        }
        if let Some(&id) = self.scope.names.get(name) {
            return id;
        }
        let id = self.graph.add_value(format!("{}{name}", self.scope.prefix), None, None);
        self.scope.names.insert(name.to_owned(), Some(id));
        Some(id)
    }

    fn new_value(&mut self, name: &str, what: &str) -> Result<ValueId, LoadError> {
        self.value(name).ok_or_else(|| LoadError::format(format!("{what} has no name")))
    }

    /// The initialisers of the model's graph, of which the large ones stay in the file for now.
    pub(super) fn add_weights(&mut self, protos: Vec<TensorProto>) -> Result<(), LoadError> {
        self.add_initializers(protos, decode_weight)
    }

    fn add_initializers<P: Borrow<TensorProto>>(
        &mut self,
        protos: impl IntoIterator<Item = P>,
        decode: fn(&TensorProto, &External<'_>) -> Result<Tensor, String>,
    ) -> Result<(), LoadError> {
        for proto in protos {
            let proto = proto.borrow();
            let tensor = decode(proto, &self.shared.external).map_err(LoadError::Format)?;
            self.add_constant(proto.name(), tensor)?;
        }
        Ok(())
    }

    pub(super) fn add_sparse_initializers(&mut self, protos: &[SparseTensorProto]) -> Result<(), LoadError> {
        for proto in protos {
            let name = proto.values.as_ref().map(|values| values.name()).unwrap_or_default();
            let tensor = decode_sparse(proto, &self.shared.external).map_err(LoadError::Format)?;
            self.add_constant(name, tensor)?;
        }
        Ok(())
    }

    fn add_constant(&mut self, name: &str, tensor: Tensor) -> Result<(), LoadError> {
        let id = self.new_value(name, "an initialiser")?;
        self.graph.values[id.index()].kind = Some(Kind::Tensor(tensor.dtype()));
        match self.graph.constants.insert(id, tensor) {
            None => Ok(()),
            Some(_) => Err(LoadError::format(format!("there are two initialisers named `{name}`"))),
        }
    }

    /// Adds the graph's inputs. One that has an initialiser is a constant; where `overridable`, one that a run may replace.
    /// Before IR version 4 every initialiser is listed among the inputs, which says nothing.
    pub(super) fn add_inputs(&mut self, infos: &[ValueInfoProto], overridable: bool) -> Result<(), LoadError> {
        for info in infos {
            let Some(id) = self.add_input(info)? else {
                if overridable {
                    self.add_default(info)?;
                }
                continue;
            };
            let proto = info.r#type.as_ref().ok_or_else(|| LoadError::format(format!("input `{}` has no type", info.name())))?;
            let kind = kind(proto).map_err(|reason| LoadError::format(format!("input `{}`: {reason}", info.name())))?;
            self.graph.values[id.index()].kind = Some(kind);
        }
        Ok(())
    }

    /// Notes a constant as one that a run may replace, by tensors of the declared shape.
    fn add_default(&mut self, info: &ValueInfoProto) -> Result<(), LoadError> {
        let id = self.new_value(info.name(), "an input")?;
        if self.graph.defaults.contains(&id) {
            return Err(LoadError::format(format!("there are two inputs named `{}`", info.name())));
        }
        let declared = info.r#type.as_ref();
        let own = Kind::Tensor(self.graph.constants[&id].dtype());
        if let Some(Ok(kind)) = declared.map(kind).filter(|declared| declared.as_ref() != Ok(&own)) {
            return Err(LoadError::format(format!("input `{}` is {kind}, its initialiser {own}", info.name())));
        }
        let shape = || self.graph.constants[&id].shape().iter().map(|&n| Dim::Fixed(n)).collect();
        self.graph.values[id.index()].dims = Some(declared.and_then(dims).unwrap_or_else(shape));
        self.graph.defaults.push(id);
        Ok(())
    }

    /// Adds an input whose kind is not set yet; `None` if it is a constant.
    fn add_input(&mut self, info: &ValueInfoProto) -> Result<Option<ValueId>, LoadError> {
        let id = self.new_value(info.name(), "an input")?;
        if self.graph.constants.contains_key(&id) {
            return Ok(None);
        }
        if self.graph.inputs.contains(&id) {
            return Err(LoadError::format(format!("there are two inputs named `{}`", info.name())));
        }
        self.graph.values[id.index()].dims = info.r#type.as_ref().and_then(dims);
        self.graph.inputs.push(id);
        Ok(Some(id))
    }

    /// Keeps the declared shapes of values, for messages and signatures.
    pub(super) fn declare(&mut self, infos: &[ValueInfoProto]) {
        for info in infos {
            if let Some(id) = self.value(info.name()) {
                self.graph.values[id.index()].dims = info.r#type.as_ref().and_then(dims);
            }
        }
    }

    pub(super) fn add_nodes(&mut self, nodes: &[NodeProto]) -> Result<(), LoadError> {
        for position in topological_order(nodes)? {
            let proto = &nodes[position];
            let name = match proto.name() {
                "" => format!("{}{}#{position}", self.scope.prefix, proto.op_type()),
                name => format!("{}{name}", self.scope.prefix),
            };
            let domain = domain(proto.domain());
            if let Some(function) = self.shared.functions.find(domain, proto.op_type(), proto.overload()) {
                self.inline(function, proto, &name)?;
                continue;
            }
            if gradient::is(proto) {
                self.gradient(proto, &name)?;
                continue;
            }
            match self.build(proto, &name)? {
                Ok(node) => self.graph.nodes.push(node),
                Err(reason) => {
                    let opset = self.scope.opsets.get(domain).copied();
                    let unsupported = Unsupported { node: name, op: proto.op_type().to_owned(), domain: domain.to_owned(), opset, reason };
                    self.shared.unsupported.borrow_mut().push(unsupported);
                }
            }
        }
        Ok(())
    }

    /// The node, or why the engine cannot run it.
    fn build(&mut self, proto: &NodeProto, name: &str) -> Result<Result<Node, String>, LoadError> {
        let domain = domain(proto.domain());
        // The results exist even if the node cannot be built, so that what reads them is not reported as broken.
        let mut outputs: Vec<Option<ValueId>> = proto.output.iter().map(|name| self.value(name)).collect();
        let mut inputs: Vec<Option<ValueId>> = proto.input.iter().map(|name| self.value(name)).collect();
        while outputs.last() == Some(&None) {
            outputs.pop();
        }
        let Some(&version) = self.scope.opsets.get(domain) else {
            return Ok(Err("the model does not import this domain".into()));
        };
        let opset = u16::try_from(version).unwrap_or(u16::MAX);
        let def = match ops::find(domain, proto.op_type(), opset) {
            Ok(def) => def,
            Err(reason) => return Ok(Err(reason)),
        };
        let given = |ids: &[Option<ValueId>]| ids.iter().map(Option::is_some).collect();
        let explicit = given(&inputs);
        // What bodies read from around them comes behind the operator's own inputs: not in the place of one that is left out.
        if proto.attribute.iter().any(|attribute| attribute.g.is_some()) && inputs.len() < OWN_INPUTS {
            inputs.resize(OWN_INPUTS, None);
        }
        let mut values = BTreeMap::new();
        for attribute in &proto.attribute {
            match self.attribute(attribute, name, &mut inputs)? {
                Ok(Some(value)) => values.insert(attribute.name().to_owned(), value),
                Ok(None) => None,
                Err(reason) => return Ok(Err(format!("attribute `{}` {reason}", attribute.name()))),
            };
        }
        let attributes = Arc::new(values.clone());
        let attrs = Attrs::new(values, opset, explicit, given(&outputs));
        let op = match (def.build)(&attrs) {
            Ok(op) => op,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let unread = attrs.unread();
        if !unread.is_empty() {
            return Ok(Err(format!("attributes that are not supported: {}", unread.join(", "))));
        }
        // An omitted output before a wanted one gets a value of its own that nobody reads: operators write by position.
        for (i, output) in outputs.iter_mut().enumerate() {
            if output.is_none() {
                *output = Some(self.graph.add_value(format!("{name}:{i}"), None, None));
            }
        }
        Ok(Ok(Node { name: name.to_owned(), def, opset, op: op.into(), attributes, inputs, outputs }))
    }

    /// The value of an attribute; `None` if it refers to an attribute that the function's caller left out. What a body reads
    /// from around it is added to `inputs`.
    pub(super) fn attribute(
        &mut self,
        proto: &AttributeProto,
        node: &str,
        inputs: &mut Vec<Option<ValueId>>,
    ) -> Result<Result<Option<Attr>, String>, LoadError> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "is not UTF-8 text".to_owned());
        let reference = proto.ref_attr_name();
        if !reference.is_empty() {
            return Ok(match &self.scope.attributes {
                Some(attributes) => Ok(attributes.get(reference).cloned()),
                None => Err("refers to an attribute of a function, and is not inside one".into()),
            });
        }
        let value = match proto.r#type() {
            AttributeType::Int => Ok(Attr::Int(proto.i())),
            AttributeType::Float => Ok(Attr::Float(proto.f())),
            AttributeType::String => text(proto.s()).map(Attr::String),
            AttributeType::Tensor => match &proto.t {
                Some(tensor) => decode_with(tensor, &self.shared.external).map(Attr::Tensor),
                None => Err("has no tensor".into()),
            },
            AttributeType::SparseTensor => match &proto.sparse_tensor {
                Some(tensor) => decode_sparse(tensor, &self.shared.external).map(Attr::Tensor),
                None => Err("has no tensor".into()),
            },
            AttributeType::Ints => Ok(Attr::Ints(proto.ints.clone())),
            AttributeType::Floats => Ok(Attr::Floats(proto.floats.clone())),
            AttributeType::Strings => proto.strings.iter().map(|s| text(s)).collect::<Result<_, _>>().map(Attr::Strings),
            AttributeType::TypeProto => match &proto.tp {
                Some(proto) => kind(proto).map(Attr::Kind),
                None => Err("has no type".into()),
            },
            AttributeType::Graph => match &proto.g {
                Some(graph) => Ok(Attr::Graph(Arc::new(self.body(graph, node, inputs)?))),
                None => Err("has no graph".into()),
            },
            other => Err(format!("is of the kind {}, which is not supported", other.as_str_name())),
        };
        Ok(value.map(Some))
    }

    /// The body of a node; what it reads from around it is added to the node's `inputs`.
    fn body(&mut self, proto: &GraphProto, node: &str, inputs: &mut Vec<Option<ValueId>>) -> Result<Subgraph, LoadError> {
        let scope = Scope { names: HashMap::new(), prefix: format!("{node}/"), ..self.scope.clone() };
        let mut importer = Importer { shared: self.shared, graph: Graph::default(), scope };
        importer.add_initializers(&proto.initializer, decode_with)?;
        importer.add_sparse_initializers(&proto.sparse_initializer)?;
        for info in &proto.input {
            if let Some(id) = importer.add_input(info)? {
                // What the operator gives counts; some ask what is declared.
                importer.graph.values[id.index()].kind = info.r#type.as_ref().and_then(|proto| kind(proto).ok());
            }
        }
        importer.declare(&proto.value_info);
        importer.add_nodes(&proto.node)?;
        importer.add_outputs(&proto.output)?;
        let formals = importer.graph.inputs.len();
        let captured = importer.capture();
        let mut captures = Vec::with_capacity(captured.len());
        for name in captured {
            let Some(id) = self.value(&name) else {
                return Err(LoadError::format(format!("the body of node `{node}` reads `{name}`, which the function's caller omits")));
            };
            captures.push(inputs.len());
            inputs.push(Some(id));
        }
        Ok(Subgraph::new(importer.graph, formals, captures, self.shared.options))
    }

    /// Makes inputs of the values that nothing here produces, and returns their names in order.
    fn capture(&mut self) -> Vec<String> {
        let mut produced: HashSet<ValueId> = self.graph.inputs.iter().chain(self.graph.constants.keys()).copied().collect();
        produced.extend(self.graph.nodes.iter().flat_map(Node::results));
        let read = self.graph.nodes.iter().flat_map(Node::operands).chain(self.graph.outputs.iter().copied());
        let mut missing: Vec<ValueId> = read.filter(|id| !produced.contains(id)).collect();
        missing.sort_unstable();
        missing.dedup();
        let names: HashMap<ValueId, &String> = self.scope.names.iter().filter_map(|(name, id)| Some(((*id)?, name))).collect();
        // A value without a name in the file is the result of a node that cannot be built: it is reported as that.
        missing.retain(|id| names.contains_key(id));
        self.graph.inputs.extend(&missing);
        missing.iter().map(|id| names[id].clone()).collect()
    }

    pub(super) fn add_outputs(&mut self, infos: &[ValueInfoProto]) -> Result<(), LoadError> {
        for info in infos {
            let id = self.new_value(info.name(), "an output")?;
            let value = &mut self.graph.values[id.index()];
            if let Some(dims) = info.r#type.as_ref().and_then(dims) {
                value.dims = Some(dims);
            }
            self.graph.outputs.push(id);
        }
        Ok(())
    }

    /// Checks element types through the graph; with that, everything that cannot run is known.
    pub(super) fn finish(mut self) -> Result<Graph, LoadError> {
        let mut unsupported = self.shared.unsupported.take();
        for (position, error) in self.graph.infer_kinds() {
            let node = &self.graph.nodes[position];
            unsupported.push(Unsupported {
                node: node.name.clone(),
                op: node.def.name.to_owned(),
                domain: node.def.domain.to_owned(),
                opset: Some(i64::from(node.opset)),
                reason: error.to_string(),
            });
        }
        if unsupported.is_empty() { Ok(self.graph) } else { Err(LoadError::Unsupported(unsupported)) }
    }
}
