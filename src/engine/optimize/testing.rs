//! Building small graphs in tests, and running them with and without passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::DType;
use crate::engine::graph::{Dim, Graph, Node, ValueId};
use crate::engine::load::{Loaded, Metadata};
use crate::engine::model::{LoadOptions, Model};
use crate::engine::ops;
use crate::engine::optimize::PASSES;
use crate::engine::session::Session;
use crate::engine::tensor::{Kind, Tensor, Value};
use crate::engine::threads::Threads;

/// A graph under construction; values are known by their names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Builder {
    graph: Graph,
    opset: u16,
}

/// An empty graph of opset 21.
pub(crate) fn graph() -> Builder {
    Builder { graph: Graph::default(), opset: 21 }
}

impl Builder {
    fn id(&mut self, name: &str) -> ValueId {
        match self.graph.values.iter().position(|value| value.name == name) {
            Some(index) => ValueId(index as u32),
            None => self.graph.add_value(name, None, None),
        }
    }

    /// An input whose dimensions are fixed, but for -1.
    pub(crate) fn input(mut self, name: &str, dtype: DType, dims: &[i64]) -> Self {
        let id = self.id(name);
        let dim = |&n: &i64| usize::try_from(n).map_or_else(|_| Dim::Free(String::new()), Dim::Fixed);
        let value = &mut self.graph.values[id.index()];
        (value.kind, value.dims) = (Some(Kind::Tensor(dtype)), Some(dims.iter().map(dim).collect()));
        self.graph.inputs.push(id);
        self
    }

    pub(crate) fn constant(mut self, name: &str, tensor: Tensor) -> Self {
        let id = self.id(name);
        self.graph.values[id.index()].kind = Some(Kind::Tensor(tensor.dtype()));
        self.graph.constants.insert(id, tensor);
        self
    }

    /// `output = op(inputs)`.
    pub(crate) fn node(self, op: &str, inputs: &[&str], output: &str) -> Self {
        self.node_with(op, &[], inputs, output)
    }

    pub(crate) fn node_with(mut self, op: &str, attrs: &[(&str, Attr)], inputs: &[&str], output: &str) -> Self {
        let def = ops::find("", op, self.opset).unwrap_or_else(|reason| panic!("{op}: {reason}"));
        let values: BTreeMap<String, Attr> = attrs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let attributes = Arc::new(values.clone());
        let attrs = Attrs::new(values, self.opset, vec![true; inputs.len()], vec![true]);
        let op = (def.build)(&attrs).unwrap_or_else(|error| panic!("{op}: {error}"));
        let inputs = inputs.iter().map(|name| Some(self.id(name))).collect();
        let outputs = vec![Some(self.id(output))];
        self.graph.nodes.push(Node { name: format!("{output}_node"), def, opset: self.opset, op: op.into(), attributes, inputs, outputs });
        self
    }

    /// `outputs = DynamicQuantizeLinear(input)`.
    pub(crate) fn dynamic(self, input: &str, outputs: [&str; 3]) -> Self {
        let mut builder = self.node("DynamicQuantizeLinear", &[input], outputs[0]);
        let ids = outputs.map(|name| Some(builder.id(name)));
        builder.graph.nodes.last_mut().expect("the node").outputs = ids.to_vec();
        builder
    }

    /// The finished graph with its outputs.
    pub(crate) fn outputs(mut self, names: &[&str]) -> Graph {
        self.graph.outputs = names.iter().map(|name| self.id(name)).collect();
        let failed = self.graph.infer_kinds();
        assert!(failed.is_empty(), "{failed:?}");
        self.graph.verify().expect("a valid graph");
        self.graph
    }
}

/// The text of the graph after one pass and the removal of what it left unread.
pub(crate) fn after(graph: &Graph, pass: &str) -> String {
    let mut graph = graph.clone();
    for name in [pass, "dead-code"] {
        let pass = PASSES.iter().find(|pass| pass.name == name).expect("a pass of this name");
        (pass.run)(&mut graph, &LoadOptions::default());
        graph.verify().expect("a pass keeps the graph valid");
    }
    graph.dump()
}

/// Runs the graph with the passes that are not disabled.
pub(crate) fn run(graph: &Graph, inputs: &[Tensor], disabled: &[&str]) -> Vec<Tensor> {
    let options = LoadOptions { disabled_passes: disabled.iter().map(|&s| s.to_owned()).collect(), ..LoadOptions::default() };
    run_with(graph, inputs, &options)
}

/// Runs the graph as these options load it.
pub(crate) fn run_with(graph: &Graph, inputs: &[Tensor], options: &LoadOptions) -> Vec<Tensor> {
    let model = Model::build(Loaded { graph: graph.clone(), metadata: Metadata::default() }, options).expect("a model");
    let mut session = Session::new(Arc::new(model), Arc::new(Threads::single()));
    let outputs = session.run(inputs).expect("a run");
    outputs.into_iter().map(|v| if let Value::Tensor(t) = v { t } else { panic!("{v:?} is no tensor") }).collect()
}

/// Panics unless all passes, and each one left out, give the same answer as none at all, within rounding.
pub(crate) fn agrees(graph: &Graph, inputs: &[Tensor]) {
    let names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
    let plain = run(graph, inputs, &names);
    for disabled in std::iter::once(vec![]).chain(names.iter().map(|name| vec![*name])) {
        for (found, want) in run(graph, inputs, &disabled).iter().zip(&plain) {
            assert_eq!((found.dtype(), found.shape()), (want.dtype(), want.shape()), "without {disabled:?}");
            let (Some(found), Some(want)) = (found.slice::<f32>(), want.slice::<f32>()) else {
                assert_eq!(found, want);
                continue;
            };
            for (a, b) in found.iter().zip(want) {
                let near = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * b.abs().max(1.0);
                assert!(near, "{a} against {b} without {disabled:?}");
            }
        }
    }
}
