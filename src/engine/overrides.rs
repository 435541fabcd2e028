//! Initialisers that a run may replace: those that an ONNX file lists among its inputs too.
//!
//! Few requests replace one, so the model's own program folds and packs them like any other constant. The first run that
//! replaces one makes a second program, in which all of them are inputs. The graph as read is kept for that, with the weights
//! that the first program has in another form only: the file may be gone by then.

use std::sync::OnceLock;

use super::graph::Graph;
use super::model::LoadOptions;
use super::optimize;
use super::program::Program;
use super::tensor::Tensor;

/// See the module.
#[derive(Debug)]
pub(crate) struct Overrides {
    /// As read, with [`Graph::defaults`].
    graph: Graph,
    options: LoadOptions,
    open: OnceLock<Result<Open, String>>,
}

/// A program whose inputs are the model's, followed by the initialisers that may be replaced.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) program: Program,
    /// What such an input is where a run does not replace it.
    pub(crate) defaults: Vec<Tensor>,
}

impl Overrides {
    /// What `graph` lets a run replace, if there is anything.
    pub(crate) fn of(graph: &Graph, options: &LoadOptions) -> Option<Self> {
        (!graph.defaults.is_empty()).then(|| Self { graph: graph.clone(), options: options.for_later(), open: OnceLock::new() })
    }

    /// Bytes of the weights that are kept for the second program, and that the first does not have as they are.
    pub(crate) fn weight_bytes(&self, first: &Program) -> usize {
        let shared = &first.graph().constants;
        self.graph.constants.iter().filter(|(id, _)| !shared.contains_key(id)).map(|(_, tensor)| tensor.bytes()).sum()
    }

    /// The second program, made now if this is the first time.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn open(&self) -> Result<&Open, String> {
        self.open.get_or_init(|| open(self.graph.clone(), &self.options)).as_ref().map_err(Clone::clone)
    }
}

fn open(mut graph: Graph, options: &LoadOptions) -> Result<Open, String> {
    let replaceable = std::mem::take(&mut graph.defaults);
    let mut defaults = Vec::with_capacity(replaceable.len());
    for id in replaceable {
        defaults.extend(graph.constants.remove(&id));
        graph.inputs.push(id);
    }
    optimize::run(&mut graph, options).map_err(|(pass, error)| format!("after the pass `{pass}`: {error}"))?;
    optimize::prepack(&mut graph, options);
    Ok(Open { program: Program::new(graph, options), defaults })
}
