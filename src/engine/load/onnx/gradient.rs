//! Gradient of `ai.onnx.preview.training`: it differentiates the graph around it, so it is no operator but a request for the pass.
//!
//! Attribute `y` names what is differentiated, `xs` by what, and `zs` on what else it depends; the node's inputs are values for `xs`
//! and `zs`, at which the graph between is evaluated. It becomes the gradient's own nodes.

use std::collections::HashMap;

use super::domain;
use super::importer::Importer;
use crate::engine::attrs::Attr;
use crate::engine::differentiate;
use crate::engine::error::{LoadError, Unsupported};
use crate::engine::graph::ValueId;
use crate::engine::load::proto::NodeProto;

const DOMAIN: &str = "ai.onnx.preview.training";

/// Whether a node is a Gradient.
pub(super) fn is(node: &NodeProto) -> bool {
    node.op_type() == "Gradient" && domain(node.domain()) == DOMAIN
}

/// The names that a Gradient reads beside its inputs.
pub(super) fn reads(node: &NodeProto) -> Vec<&str> {
    if !is(node) {
        return Vec::new();
    }
    let texts = node.attribute.iter().flat_map(|a| a.strings.iter().map(Vec::as_slice).chain((!a.s().is_empty()).then(|| a.s())));
    texts.filter_map(|text| std::str::from_utf8(text).ok()).collect()
}

/// What the attributes name.
struct Request {
    xs: Vec<String>,
    zs: Vec<String>,
    y: String,
}

impl Importer<'_, '_> {
    /// Appends what a Gradient asks for, or notes why it cannot be.
    pub(super) fn gradient(&mut self, proto: &NodeProto, name: &str) -> Result<(), LoadError> {
        let outcome = match self.request(proto, name)? {
            Ok(request) => self.differentiate(&request, proto, name),
            Err(reason) => Err(vec![reason]),
        };
        let Err(reasons) = outcome else { return Ok(()) };
        // The results exist, so that what reads them is not reported as broken.
        for output in &proto.output {
            self.value(output);
        }
        let opset = self.scope.opsets.get(DOMAIN).copied();
        let unsupported = |reason| Unsupported { node: name.to_owned(), op: "Gradient".into(), domain: DOMAIN.into(), opset, reason };
        self.shared.unsupported.borrow_mut().extend(reasons.into_iter().map(unsupported));
        Ok(())
    }

    fn request(&mut self, proto: &NodeProto, name: &str) -> Result<Result<Request, String>, LoadError> {
        let mut request = Request { xs: Vec::new(), zs: Vec::new(), y: String::new() };
        for attribute in &proto.attribute {
            match (attribute.name(), self.attribute(attribute, name, &mut Vec::new())?) {
                ("xs", Ok(Some(Attr::Strings(names)))) => request.xs = names,
                ("zs", Ok(Some(Attr::Strings(names)))) => request.zs = names,
                ("y", Ok(Some(Attr::String(name)))) => request.y = name,
                (other, _) => return Ok(Err(format!("attribute `{other}` is not supported, or not in this form"))),
            }
        }
        let wanted = request.xs.len() + request.zs.len();
        if request.xs.is_empty() || request.y.is_empty() || proto.input.len() != wanted || proto.output.len() > request.xs.len() {
            let (inputs, outputs) = (proto.input.len(), proto.output.len());
            return Ok(Err(format!("{inputs} inputs and {outputs} outputs do not fit `xs`, `zs` and `y`")));
        }
        Ok(Ok(request))
    }

    fn differentiate(&mut self, request: &Request, proto: &NodeProto, name: &str) -> Result<(), Vec<String>> {
        // What the kinds of other nodes are wrong about is reported once all are there.
        self.graph.infer_kinds();
        let known = |importer: &Self, name: &str| match importer.scope.names.get(name) {
            Some(Some(id)) => Ok(*id),
            _ => Err(vec![format!("`{name}` is no value of the graph around the node")]),
        };
        let mut given: HashMap<ValueId, ValueId> = HashMap::new();
        let mut wrt = Vec::new();
        for (i, (named, input)) in request.xs.iter().chain(&request.zs).zip(&proto.input).enumerate() {
            let (named, input) = (known(self, named)?, known(self, input)?);
            if named != input {
                given.insert(named, input);
            }
            if i < request.xs.len() {
                wrt.push(input);
            }
        }
        let y = known(self, &request.y)?;
        let y = self.at(given, y);
        let gradients = differentiate::extend(&mut self.graph, y, &wrt).map_err(|error| match error {
            LoadError::Unsupported(nodes) => nodes.into_iter().map(|n| format!("`{}` ({}): {}", n.node, n.op, n.reason)).collect(),
            other => vec![other.to_string()],
        })?;
        for (output, gradient) in proto.output.iter().zip(gradients) {
            if let Some(target) = self.value(output) {
                self.copy(Some(gradient), target, name);
            }
        }
        Ok(())
    }

    /// The value `y` with others in the place of some: the nodes between are repeated.
    fn at(&mut self, mut given: HashMap<ValueId, ValueId>, y: ValueId) -> ValueId {
        if given.is_empty() {
            return y;
        }
        for position in 0..self.graph.nodes.len() {
            let mut node = self.graph.nodes[position].clone();
            if !node.operands().any(|id| given.contains_key(&id)) || node.results().any(|id| given.contains_key(&id)) {
                continue;
            }
            node.inputs.iter_mut().flatten().for_each(|id| *id = given.get(id).copied().unwrap_or(*id));
            for output in node.outputs.iter_mut().flatten() {
                let mut info = self.graph.values[output.index()].clone();
                info.name.push('\'');
                let copy = self.graph.add_value(info.name, info.kind, info.dims);
                given.insert(std::mem::replace(output, copy), copy);
            }
            self.graph.nodes.push(node);
        }
        given.get(&y).copied().unwrap_or(y)
    }
}
