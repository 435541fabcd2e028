//! Passes: what is done once to a loaded graph so that every run is cheaper.
//!
//! A pass keeps every invariant of [`Graph::verify`], which is checked after each, and changes no result beyond rounding.

mod channels_last;
mod dead_code;
mod fold_batch_norm;
mod fold_constants;
mod fold_padding;
mod fuse_activation;
mod fuse_attention;
mod fuse_fill;
mod fuse_gelu;
mod identity;
mod integer;
mod integer_dynamic;
mod integer_layout;
#[cfg(test)]
mod integer_tests;
mod pattern;
mod reduce_precision;
#[cfg(test)]
pub(crate) mod testing;
mod why;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::elements::Spare;
use super::graph::{Graph, Invalid, Node, ValueId};
use super::model::LoadOptions;
use super::tensor::Tensor;

pub(crate) use why::run as run_and_tell;
pub use why::{Left, PassReport};

/// A row of the pass table.
#[derive(Debug)]
pub struct Pass {
    /// The name by which it is disabled and reported.
    pub name: &'static str,
    /// What it does to the graph.
    pub run: fn(&mut Graph, &LoadOptions),
    /// Why it stands at this position.
    pub why_here: &'static str,
}

/// The passes in the order in which they run.
pub const PASSES: &[Pass] = &[
    Pass { name: "dead-code", run: dead_code::run, why_here: "first: nothing else should work on what nobody reads" },
    Pass { name: "identity", run: identity::run, why_here: "before folding: it joins what Identity and Dropout keep apart" },
    Pass { name: "integer-operators", run: integer::run, why_here: "before folding, which would make floats of the weights' codes" },
    Pass { name: "integer-layout", run: integer_layout::run, why_here: "after the operators on codes are there, while all is as declared" },
    Pass { name: "fold-constants", run: fold_constants::run, why_here: "before the patterns: they look for constant operands" },
    Pass {
        name: "fuse-dynamic-quantisation",
        run: integer_dynamic::run,
        why_here: "after folding: scales of weights and biases are constants",
    },
    Pass { name: "fold-padding", run: fold_padding::run, why_here: "after folding: the padding must be constant" },
    Pass { name: "fold-batch-norm", run: fold_batch_norm::run, why_here: "after folding: scale and shift must be constants" },
    Pass { name: "fuse-gelu", run: fuse_gelu::run, why_here: "before activations are fused: this is one" },
    Pass { name: "fuse-attention", run: fuse_attention::run, why_here: "before activations are fused: then a mask is still an Add" },
    Pass { name: "fuse-fill", run: fuse_fill::run, why_here: "after attention, which looks for the two operators itself" },
    Pass { name: "fuse-activation", run: fuse_activation::run, why_here: "after batch norm: the activation then follows the convolution" },
    Pass { name: "reduce-precision", run: reduce_precision::run, why_here: "after the fusions: they decide which products there are" },
    Pass {
        name: "channels-last",
        run: channels_last::run,
        why_here: "after all that looks for convolutions: these become another operator",
    },
    Pass { name: "dead-code", run: dead_code::run, why_here: "last: constants and nodes that the others left without readers" },
];

/// Runs all passes that are not disabled.
///
/// # Errors
/// The name of the pass after which the graph is not valid.
pub(crate) fn run(graph: &mut Graph, options: &LoadOptions) -> Result<(), (&'static str, Invalid)> {
    for pass in PASSES.iter().filter(|pass| !options.disabled_passes.iter().any(|name| name == pass.name)) {
        (pass.run)(graph, options);
        graph.verify().map_err(|error| (pass.name, error))?;
    }
    Ok(())
}

/// Lets every operator build its constant operands in, several at once where there are threads for it, and drops each constant as soon as
/// nobody reads it any more, so that no weight lies in memory twice for long. Without packing only those that bind what their bodies
/// capture.
pub(crate) fn prepack(graph: &mut Graph, options: &LoadOptions) {
    let LoadOptions { isa, no_prepack, ref threads, .. } = *options;
    let uses: Vec<AtomicU32> = graph.uses().into_iter().map(AtomicU32::new).collect();
    let Graph { nodes, constants, .. } = graph;
    let shared: BTreeMap<ValueId, Mutex<Option<Tensor>>> =
        std::mem::take(constants).into_iter().map(|(id, tensor)| (id, Mutex::new(Some(tensor)))).collect();
    let slot = |id: ValueId| shared.get(&id).map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner));
    let spare = Spare::default();
    // The largest first: the threads end together, and what a weight is read to is large enough for all that follow.
    let size = |id: &Option<ValueId>| id.and_then(|id| slot(id)?.as_ref().map(Tensor::bytes)).unwrap_or(0);
    let mut order: Vec<&mut Node> = nodes.iter_mut().filter(|node| !no_prepack || node.op.binds_bodies()).collect();
    order.sort_by_cached_key(|node| Reverse(node.inputs.iter().map(size).sum::<usize>()));
    threads.for_each(order, |node| {
        let operand = |id: ValueId| slot(id)?.as_ref().map(|tensor| tensor.briefly(&spare));
        let operands: Vec<Option<Tensor>> = node.inputs.iter().map(|id| id.and_then(operand)).collect();
        let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
        let Some(packed) = node.op.prepack(&operands, isa) else { return };
        node.op = packed.op.into();
        for input in packed.consumed {
            let Some(id) = node.inputs[input].take() else { continue };
            if uses[id.index()].fetch_sub(1, Ordering::Relaxed) == 1
                && let Some(mut slot) = slot(id)
            {
                *slot = None;
            }
        }
    });
    let left = shared.into_iter().filter_map(|(id, slot)| Some((id, slot.into_inner().unwrap_or_else(PoisonError::into_inner)?)));
    constants.extend(left);
    dead_code::drop_unread_constants(graph);
}

/// Removes the nodes at which `gone` is true.
fn remove(graph: &mut Graph, gone: &[bool]) {
    let mut gone = gone.iter();
    graph.nodes.retain(|_| gone.next() != Some(&true));
}

/// The rank of a value, where the file declares it or the operators that lead to it tell.
fn rank(graph: &Graph, mut id: ValueId) -> Option<usize> {
    // As far as a declared value is from its last use in models that exporters write.
    const STEPS: usize = 16;
    for _ in 0..STEPS {
        if let Some(dims) = &graph.values[id.index()].dims {
            return Some(dims.len());
        }
        let producer = graph.nodes.iter().find(|node| node.results().any(|result| result == id))?;
        let keeps = match producer.def.name {
            "Gemm" | "Flatten" => return Some(2),
            "Relu" | "LeakyRelu" | "Sigmoid" | "Tanh" | "Clip" | "BatchNormalization" | "Dropout" | "Identity" => true,
            // A constant matrix on the right keeps the rank of the left operand.
            "MatMul" => graph.constants.get(&(*producer.inputs.get(1)?)?)?.shape().len() == 2,
            _ => false,
        };
        if !keeps {
            return None;
        }
        id = (*producer.inputs.first()?)?;
    }
    None
}
