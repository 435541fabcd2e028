//! Graphs without a file of nodes: operators appended by name, as a description of a network asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::DType;
use crate::engine::error::{LoadError, Unsupported};
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::ops;
use crate::engine::tensor::{Kind, Tensor};

/// The opset of `ai.onnx` in which graphs are built.
pub(super) const OPSET: u16 = 21;

/// A graph under construction.
#[derive(Debug, Default)]
pub(super) struct Builder {
    graph: Graph,
}

impl Builder {
    /// Adds an input.
    pub(super) fn input(&mut self, name: &str, dtype: DType, dims: Vec<Dim>) -> ValueId {
        let id = self.graph.add_value(name, Some(Kind::Tensor(dtype)), Some(dims));
        self.graph.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub(super) fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let id = self.graph.add_value(name, Some(Kind::Tensor(tensor.dtype())), None);
        self.graph.constants.insert(id, tensor);
        id
    }

    /// Adds a vector of integers: axes, a shape.
    pub(super) fn ints(&mut self, values: &[i64]) -> ValueId {
        self.constant(&format!("{values:?}"), Tensor::vector(values.to_vec()))
    }

    /// Adds a scalar.
    pub(super) fn scalar(&mut self, value: f32) -> ValueId {
        self.constant(&value.to_string(), Tensor::scalar(value))
    }

    /// Appends an operator with one result.
    ///
    /// # Errors
    /// If the operator does not exist, or not with these attributes.
    pub(super) fn op(&mut self, name: &str, op: &str, inputs: &[ValueId], attrs: &[(&str, Attr)]) -> Result<ValueId, LoadError> {
        Ok(self.split(name, op, inputs, attrs, 1)?[0])
    }

    /// Appends an operator with several results.
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub(super) fn split(
        &mut self,
        name: &str,
        op: &str,
        inputs: &[ValueId],
        attrs: &[(&str, Attr)],
        results: usize,
    ) -> Result<Vec<ValueId>, LoadError> {
        let refused = |reason: String| {
            let (node, op) = (name.to_owned(), op.to_owned());
            LoadError::Unsupported(vec![Unsupported { node, op, domain: String::new(), opset: Some(OPSET.into()), reason }])
        };
        let def = ops::find("", op, OPSET).map_err(refused)?;
        let values: BTreeMap<String, Attr> = attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let attributes = Arc::new(values.clone());
        let attrs = Attrs::new(values, OPSET, vec![true; inputs.len()], vec![true; results]);
        let op = (def.build)(&attrs).map_err(|error| refused(error.to_string()))?;
        if let [unread, ..] = attrs.unread()[..] {
            return Err(refused(format!("attribute {unread} is not supported")));
        }
        let result = |i: usize| if results == 1 { name.to_owned() } else { format!("{name}:{i}") };
        let outputs: Vec<ValueId> = (0..results).map(|i| self.graph.add_value(result(i), None, None)).collect();
        self.graph.nodes.push(Node {
            name: name.to_owned(),
            def,
            opset: OPSET,
            op: op.into(),
            attributes,
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
        });
        Ok(outputs)
    }

    /// Makes a value an output.
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub(super) fn output(&mut self, name: &str, value: ValueId, dims: Vec<Dim>) -> Result<(), LoadError> {
        // An input, a constant, or a value that already has its name keeps its own.
        let id = self.op(name, "Identity", &[value], &[])?;
        self.graph.values[id.index()].dims = Some(dims);
        self.graph.outputs.push(id);
        Ok(())
    }

    /// The graph, with the kinds of all values.
    ///
    /// # Errors
    /// Every node that does not take its operands.
    pub(super) fn finish(mut self) -> Result<Graph, LoadError> {
        let failed = self.graph.infer_kinds();
        if failed.is_empty() {
            return Ok(self.graph);
        }
        let unsupported = |(position, error): (usize, crate::engine::op::OpError)| {
            let node: &Node = &self.graph.nodes[position];
            let (name, op) = (node.name.clone(), node.def.name.to_owned());
            Unsupported { node: name, op, domain: String::new(), opset: Some(OPSET.into()), reason: error.to_string() }
        };
        Err(LoadError::Unsupported(failed.into_iter().map(unsupported).collect()))
    }
}
