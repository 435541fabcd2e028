//! The graph behind a [`Body`]: typed once its operands are known, compiled to a [`Program`] of its own, and run within
//! the limits of the run around it.

use std::sync::{Arc, OnceLock};

use super::body::{Body, Formal, Runner};
use super::error::RunError;
use super::execute::{Given, Limits, Memory, RunInputs, execute};
use super::graph::{Dim, Graph, ValueId};
use super::model::LoadOptions;
use super::op::{Context, Kinds, OpError};
use super::optimize;
use super::program::Program;
use super::tensor::{Kind, Tensor, Value};

/// See the module.
#[derive(Debug)]
pub(crate) struct Subgraph {
    /// As read: the formal inputs, then the captured ones.
    graph: Graph,
    formals: usize,
    /// The inputs of the node that are captured, in the order of the body's inputs behind the formal ones.
    captures: Vec<usize>,
    options: LoadOptions,
    typed: OnceLock<Graph>,
    program: OnceLock<Result<Program, String>>,
}

impl Subgraph {
    /// A body of `graph`, whose first `formals` inputs the operator gives and whose others are the node's inputs `captures`.
    pub(crate) fn new(graph: Graph, formals: usize, captures: Vec<usize>, options: &LoadOptions) -> Self {
        debug_assert_eq!(graph.inputs.len(), formals + captures.len());
        Self { graph, formals, captures, options: options.for_later(), typed: OnceLock::new(), program: OnceLock::new() }
    }

    fn program(&self) -> Result<&Program, OpError> {
        let compile = || Self::compile(self.typed.get().ok_or("the kinds of its body are not known")?.clone(), &self.options);
        self.program.get_or_init(compile).as_ref().map_err(|message| OpError::shape(message.clone()))
    }

    fn compile(mut graph: Graph, options: &LoadOptions) -> Result<Program, String> {
        optimize::run(&mut graph, options).map_err(|(pass, error)| format!("its body after the pass `{pass}`: {error}"))?;
        optimize::prepack(&mut graph, options);
        Ok(Program::new(graph, options))
    }
}

/// The sizes of a declared shape, `None` for a free one.
fn sizes(dims: &[Dim]) -> Vec<Option<usize>> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => Some(*n),
        Dim::Free(_) => None,
    };
    dims.iter().map(size).collect()
}

impl Body for Subgraph {
    fn formals(&self) -> usize {
        self.formals
    }

    fn formal(&self, index: usize) -> Option<Formal<'_>> {
        let value = &self.graph.values[self.graph.inputs[..self.formals].get(index)?.index()];
        Some(Formal { name: &value.name, kind: value.kind.as_ref(), sizes: value.dims.as_deref().map(sizes) })
    }

    fn outputs(&self) -> usize {
        self.graph.outputs.len()
    }

    fn output_sizes(&self, index: usize) -> Option<Vec<Option<usize>>> {
        self.graph.values[self.graph.outputs[index].index()].dims.as_deref().map(sizes)
    }

    fn kinds(&self, formals: &[Kind], node: &[Option<Kind>]) -> Result<Kinds, OpError> {
        if formals.len() != self.formals {
            return Err(OpError::shape(format!("its body has {} inputs, {} are given", self.formals, formals.len())));
        }
        if self.typed.get().is_some() && self.program.get().is_some() {
            return self.kinds_known();
        }
        let mut graph = self.graph.clone();
        let captured = self.captures.iter().map(|&i| node.get(i).cloned().flatten());
        for (&id, kind) in self.graph.inputs.iter().zip(formals.iter().cloned().map(Some).chain(captured)) {
            graph.values[id.index()].kind = kind;
        }
        let failed = graph.infer_kinds();
        if !failed.is_empty() {
            let one = |(position, error): &(usize, OpError)| {
                let node = &graph.nodes[*position];
                format!("node `{}` ({}) of its body: {error}", node.name, node.op_type())
            };
            return Err(OpError::Type(failed.iter().map(one).collect::<Vec<_>>().join("; ")));
        }
        graph.verify().map_err(|error| OpError::shape(format!("its body is not valid: {error}")))?;
        let kind = |id: &ValueId| graph.values[id.index()].kind.clone().expect("a verified graph knows its kinds");
        let kinds = graph.outputs.iter().map(kind).collect();
        // Asked again it is with the same kinds.
        let _ = self.typed.set(graph);
        Ok(kinds)
    }

    fn kinds_known(&self) -> Result<Kinds, OpError> {
        let graph = self.typed.get().ok_or_else(|| OpError::shape("the kinds of its body are not known"))?;
        let kind = |id: &ValueId| graph.values[id.index()].kind.clone();
        graph.outputs.iter().map(kind).collect::<Option<_>>().ok_or(OpError::Unknown)
    }

    fn captures(&self) -> &[usize] {
        &self.captures
    }

    fn bind(&self, constants: &[Option<&Tensor>]) -> Option<Arc<dyn Body>> {
        let mut graph = self.typed.get()?.clone();
        let mut captures = Vec::new();
        for (position, &input) in self.captures.iter().enumerate() {
            let id = self.typed.get()?.inputs[self.formals + position];
            match constants.get(input).copied().flatten() {
                Some(tensor) => {
                    graph.inputs.retain(|&other| other != id);
                    graph.constants.insert(id, tensor.clone());
                }
                None => captures.push(input),
            }
        }
        let program = Self::compile(graph.clone(), &self.options).ok()?;
        // What is asked of the graph from here on are its outputs: the weights lie in the program, and there only.
        graph.nodes.clear();
        graph.constants.clear();
        let bound = Self::new(graph.clone(), self.formals, captures, &self.options);
        let _ = bound.typed.set(graph);
        let _ = bound.program.set(Ok(program));
        Some(Arc::new(bound))
    }

    fn weight_bytes(&self) -> usize {
        self.program().map_or(0, Program::weight_bytes)
    }

    fn runner(&self) -> Box<dyn Runner + '_> {
        Box::new(Turns { body: self, memory: Memory::default() })
    }
}

/// Runs a body again and again over the same memory.
#[derive(Debug)]
struct Turns<'b> {
    body: &'b Subgraph,
    memory: Memory,
}

impl Runner for Turns<'_> {
    fn run(&mut self, formals: &[Value], node: &[Option<&Value>], held: usize, ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError> {
        ctx.check_deadline()?;
        let program = self.body.program()?;
        let mut inputs: Vec<Given<'_>> = formals.iter().map(Given::from).collect();
        for &input in self.body.captures() {
            let value = node.get(input).copied().flatten().ok_or_else(|| OpError::missing_input(input))?;
            inputs.push(Given::from(value));
        }
        let limits = Limits { threads: ctx.threads, budget: ctx.budget.saturating_sub(held), deadline: ctx.deadline };
        match execute(program, RunInputs::Given(&inputs), &mut self.memory, &limits, None) {
            Ok(run) => Ok(run.outputs(&self.memory)),
            Err(RunError::Deadline { .. }) => Err(OpError::Deadline),
            Err(error) => Err(OpError::value(format!("in its body: {error}"))),
        }
    }
}
