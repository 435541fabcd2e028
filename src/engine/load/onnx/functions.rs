//! Functions that the model defines: each call becomes the function's nodes.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};
use std::rc::Rc;

use super::importer::{Importer, Scope};
use super::{domain, opsets};
use crate::engine::attrs::Attr;
use crate::engine::error::{LoadError, Unsupported};
use crate::engine::graph::{Node, ValueId};
use crate::engine::load::proto::{FunctionProto, NodeProto};
use crate::engine::ops::{self, LATEST_OPSET};

/// The functions of a model by domain, name and overload.
pub(super) struct Functions<'m>(HashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>);

impl<'m> Functions<'m> {
    pub(super) fn new(functions: &'m [FunctionProto]) -> Self {
        Self(functions.iter().map(|f| ((domain(f.domain()), f.name(), f.overload()), f)).collect())
    }

    pub(super) fn find(&self, domain: &str, name: &str, overload: &str) -> Option<&'m FunctionProto> {
        self.0.get(&(domain, name, overload)).copied()
    }
}

/// Calls within calls; more is a function that calls itself, which the standard forbids.
const DEPTH: usize = 64;

impl<'m> Importer<'_, 'm> {
    /// Adds the nodes of `function` in place of the node `call`.
    pub(super) fn inline(&mut self, function: &'m FunctionProto, call: &NodeProto, name: &str) -> Result<(), LoadError> {
        let title = || format!("node `{name}` ({}), a function of the model", call.op_type());
        if self.scope.depth >= DEPTH {
            return Err(LoadError::format(format!("{}: calls are nested deeper than {DEPTH}; does it call itself?", title())));
        }
        let Some(left) = self.shared.expansion.get().checked_sub(function.node.len()) else {
            return Err(LoadError::format(format!("{}: the model's functions stand for too many nodes", title())));
        };
        self.shared.expansion.set(left);
        if call.input.len() > function.input.len() || call.output.len() > function.output.len() {
            let counts = (function.input.len(), function.output.len(), call.input.len(), call.output.len());
            return Err(LoadError::format(format!(
                "{}: it has {} inputs and {} outputs, {} and {} are given",
                title(),
                counts.0,
                counts.1,
                counts.2,
                counts.3
            )));
        }
        let attributes = match self.call_attributes(function, call, name)? {
            Ok(attributes) => attributes,
            Err(reason) => {
                // What reads the results is not reported too.
                for output in &call.output {
                    self.value(output);
                }
                let unsupported = Unsupported {
                    node: name.to_owned(),
                    op: call.op_type().to_owned(),
                    domain: domain(call.domain()).to_owned(),
                    opset: None,
                    reason,
                };
                self.shared.unsupported.borrow_mut().push(unsupported);
                return Ok(());
            }
        };
        let mut names: HashMap<String, Option<ValueId>> = HashMap::new();
        for (i, formal) in function.input.iter().enumerate() {
            let value = call.input.get(i).and_then(|actual| self.value(actual));
            names.insert(formal.clone(), value);
        }
        // A result takes the caller's value at once; one that is an input of the function, or is listed twice, is copied.
        let mut copies = Vec::new();
        for (formal, actual) in function.output.iter().zip(&call.output) {
            let Some(id) = self.value(actual) else { continue };
            match names.entry(formal.clone()) {
                Entry::Occupied(_) => copies.push((formal, id)),
                Entry::Vacant(entry) => drop(entry.insert(Some(id))),
            }
        }
        let imports =
            if function.opset_import.is_empty() { Rc::clone(&self.scope.opsets) } else { Rc::new(opsets(&function.opset_import)?) };
        let inner = Scope {
            names,
            opsets: imports,
            attributes: Some(Rc::new(attributes)),
            prefix: format!("{name}/"),
            depth: self.scope.depth + 1,
        };
        let outer = std::mem::replace(&mut self.scope, inner);
        self.add_nodes(&function.node)?;
        for (formal, id) in copies {
            let source = self.value(formal);
            self.copy(source, id, name);
        }
        self.scope = outer;
        Ok(())
    }

    /// The attributes of the call, with the function's defaults; or why one cannot be.
    fn call_attributes(
        &mut self,
        function: &FunctionProto,
        call: &NodeProto,
        name: &str,
    ) -> Result<Result<BTreeMap<String, Attr>, String>, LoadError> {
        let mut attributes = BTreeMap::new();
        for proto in function.attribute_proto.iter().chain(&call.attribute) {
            let mut captured = Vec::new();
            match self.attribute(proto, name, &mut captured)? {
                Ok(Some(Attr::Graph(_))) => {
                    return Ok(Err(format!("attribute `{}` is a graph, which functions cannot take", proto.name())));
                }
                Ok(Some(value)) => drop(attributes.insert(proto.name().to_owned(), value)),
                Ok(None) => {}
                Err(reason) => return Ok(Err(format!("attribute `{}` {reason}", proto.name()))),
            }
        }
        Ok(Ok(attributes))
    }

    pub(super) fn copy(&mut self, source: Option<ValueId>, target: ValueId, name: &str) {
        let def = ops::find("", "Identity", LATEST_OPSET).expect("Identity is in the table");
        let op = std::sync::Arc::new(ops::identity::Identity);
        let node = Node {
            name: format!("{name}/Identity"),
            def,
            opset: LATEST_OPSET,
            op,
            attributes: Default::default(),
            inputs: vec![source],
            outputs: vec![Some(target)],
        };
        self.graph.nodes.push(node);
    }
}
