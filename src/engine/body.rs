//! A body: a graph that is an attribute of a node, as the branches of If and the bodies of Loop, Scan and SequenceMap are.
//!
//! A body may read values of the graph around it. The reader makes each of these an input of the body behind the formal
//! ones, and an input of the node behind its own, so that an operator with bodies is an operator like any other: all it
//! reads are its inputs.

use std::fmt::Debug;
use std::sync::Arc;

use super::op::{Context, Kinds, OpError};
use super::tensor::{Kind, Tensor, Value};

/// What a body declares of a formal input.
#[derive(Clone, Debug)]
pub struct Formal<'a> {
    /// Its name, behind those of the nodes around it.
    pub name: &'a str,
    /// Its kind, if the body declares it.
    pub kind: Option<&'a Kind>,
    /// Its sizes, `None` for a free one, if the body declares a shape.
    pub sizes: Option<Vec<Option<usize>>>,
}

/// What an operator knows of a body.
pub trait Body: Debug + Send + Sync {
    /// How many formal inputs the body has.
    fn formals(&self) -> usize;

    /// What the body declares of a formal input, if it has so many.
    fn formal(&self, index: usize) -> Option<Formal<'_>>;

    /// How many outputs the body has.
    fn outputs(&self) -> usize;

    /// The declared sizes of an output, `None` for a free one, if the body declares a shape.
    fn output_sizes(&self, index: usize) -> Option<Vec<Option<usize>>>;

    /// The kinds of the outputs, from those of the formal inputs and of the node's inputs. To be asked once, before anything
    /// runs.
    ///
    /// # Errors
    /// The nodes of the body that do not take their operands.
    fn kinds(&self, formals: &[Kind], node: &[Option<Kind>]) -> Result<Kinds, OpError>;

    /// What [`Body::kinds`] answered.
    ///
    /// # Errors
    /// If it was not asked.
    fn kinds_known(&self) -> Result<Kinds, OpError>;

    /// The inputs of the node that the body captures.
    fn captures(&self) -> &[usize];

    /// The body with the captured inputs that are constant built in, compiled. `constants[i]` is input `i` of the node, if it
    /// is constant. `None` if the kinds are not known yet or it does not compile.
    fn bind(&self, constants: &[Option<&Tensor>]) -> Option<Arc<dyn Body>>;

    /// Bytes of the constants that the compiled body holds.
    fn weight_bytes(&self) -> usize;

    /// Something to run the body with, several times over the same memory.
    fn runner(&self) -> Box<dyn Runner + '_>;
}

/// Runs a body again and again.
pub trait Runner {
    /// One run: the outputs from the formal inputs and from all inputs of the node, which itself holds `held` bytes of what
    /// earlier runs gave.
    ///
    /// # Errors
    /// [`OpError::Deadline`] if the time is up, or what a node of the body says.
    fn run(&mut self, formals: &[Value], node: &[Option<&Value>], held: usize, ctx: &mut Context<'_>) -> Result<Vec<Value>, OpError>;
}
