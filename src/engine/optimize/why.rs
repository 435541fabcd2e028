//! What each pass did to a graph, and which nodes that it looks for it left as they are, and why.
//!
//! A pass only says what it finds. The reasons come from a look at what is left behind it: for each kind of node that the pass is
//! there for, the first of its conditions that does not hold.

use std::collections::BTreeMap;

use super::PASSES;
use super::pattern::Links;
use crate::engine::graph::{Graph, Invalid, Node, ValueId};
use crate::engine::kernels::vector::Binary;
use crate::engine::model::LoadOptions;
use crate::engine::ops::activation::{Activate, Clip};
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::ops::batch_norm::BatchNorm;
use crate::engine::ops::conv::Conv;
use crate::engine::ops::gemm::Gemm;
use crate::engine::ops::matmul::MatMul;
use crate::engine::ops::softmax::Softmax;

/// What a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassReport {
    /// The pass.
    pub pass: &'static str,
    /// How many nodes of each operator it took out.
    pub removed: BTreeMap<String, usize>,
    /// How many of each it put in.
    pub added: BTreeMap<String, usize>,
    /// What it looks for and left.
    pub left: Vec<Left>,
}

/// A node that a pass left as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The node's name.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// The condition of the pass that it does not meet.
    pub reason: String,
}

/// What looks at the nodes that a pass leaves.
type Look = fn(&Graph, &Links, &Node) -> Option<String>;

/// By the pass's name: the reason why a node stays, or `None` if the pass is not there for it.
const LOOKS: &[(&str, Look)] = &[
    ("integer-operators", quantised),
    ("fold-padding", padding),
    ("fold-batch-norm", batch_norm),
    ("fuse-gelu", gelu),
    ("fuse-attention", attention),
    ("fuse-activation", activation),
    ("channels-last", convolution),
];

/// Runs the passes that are not disabled and tells of each what it did.
///
/// # Errors
/// As [`super::run`].
pub(crate) fn run(graph: &mut Graph, options: &LoadOptions) -> Result<Vec<PassReport>, (&'static str, Invalid)> {
    let mut reports = Vec::with_capacity(PASSES.len());
    for pass in PASSES.iter().filter(|pass| !options.disabled_passes.iter().any(|name| name == pass.name)) {
        let before = count(graph);
        (pass.run)(graph, options);
        graph.verify().map_err(|error| (pass.name, error))?;
        let after = count(graph);
        let links = Links::of(graph);
        let look = LOOKS.iter().find(|(name, _)| *name == pass.name).map(|(_, look)| look);
        let left =
            look.map_or_else(Vec::new, |look| graph.nodes.iter().filter_map(|node| stays(look(graph, &links, node)?, node)).collect());
        reports.push(PassReport { pass: pass.name, removed: more(&before, &after), added: more(&after, &before), left });
    }
    Ok(reports)
}

fn stays(reason: String, node: &Node) -> Option<Left> {
    Some(Left { node: node.name.clone(), operator: node.op_type(), reason })
}

fn count(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in &graph.nodes {
        *counts.entry(node.op_type()).or_default() += 1;
    }
    counts
}

/// By how many each count is greater than in `than`.
fn more(counts: &BTreeMap<String, usize>, than: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let over = |(name, &n): (&String, &usize)| Some((name.clone(), n.checked_sub(*than.get(name).unwrap_or(&0)).filter(|&n| n > 0)?));
    counts.iter().filter_map(over).collect()
}

fn producer<'g>(graph: &'g Graph, links: &Links, id: Option<ValueId>) -> Option<&'g Node> {
    Some(&graph.nodes[links.producer(id?)?])
}

fn is_constant(graph: &Graph, id: Option<ValueId>) -> bool {
    id.is_some_and(|id| graph.constants.contains_key(&id))
}

/// Whether a node multiplies by constant weights.
fn has_weights(graph: &Graph, node: &Node) -> bool {
    let product = node.op.downcast::<Conv>().is_some() || node.op.downcast::<Gemm>().is_some() || node.op.downcast::<MatMul>().is_some();
    product && node.inputs.get(1).is_some_and(|&id| is_constant(graph, id))
}

fn shared(what: &Node) -> String {
    format!("what `{}` ({}) gives is read elsewhere too", what.name, what.op_type())
}

fn quantised(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    let product = node.op.downcast::<Conv>().is_some() || node.op.downcast::<Gemm>().is_some() || node.op.downcast::<MatMul>().is_some();
    let from_codes = |id: &Option<ValueId>| producer(graph, links, *id).is_some_and(|from| from.def.name == "DequantizeLinear");
    let operands: Vec<bool> = node.inputs.iter().take(2).map(from_codes).collect();
    if !product || !operands.contains(&true) {
        return None;
    }
    if operands != [true, true] {
        return Some("only one of its operands is quantised".to_owned());
    }
    let result = node.outputs.first().copied().flatten()?;
    let reader = links.only_reader(result).map(|at| &graph.nodes[at]);
    match reader {
        Some(reader) if reader.def.name == "QuantizeLinear" => {
            Some("its scales and zero points are not constants of a form that the integer kernels have".to_owned())
        }
        Some(reader) => Some(format!("its result is not quantised but read by `{}` ({})", reader.name, reader.op_type())),
        None => Some("its result is read elsewhere than by one QuantizeLinear".to_owned()),
    }
}

fn batch_norm(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    node.op.downcast::<BatchNorm>()?;
    if !node.inputs.iter().skip(1).all(|&id| is_constant(graph, id)) {
        return Some("its parameters are no constants".to_owned());
    }
    let source = node.inputs.first().copied().flatten()?;
    let Some(before) = producer(graph, links, Some(source)) else { return Some("it normalises an input of the model".to_owned()) };
    if links.only_reader(source).is_none() {
        return Some(shared(before));
    }
    Some(format!("it follows `{}` ({}), whose weights cannot take its factors", before.name, before.op_type()))
}

fn gelu(_: &Graph, _: &Links, node: &Node) -> Option<String> {
    (node.def.domain.is_empty() && node.def.name == "Erf")
        .then(|| "around it is no product of ½, a value and 1 plus the error function of that value over √2".to_owned())
}

fn attention(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    let softmax = node.op.downcast::<Softmax>()?;
    let weights = node.outputs.first().copied().flatten()?;
    let readers: Vec<&Node> = links.readers(weights).iter().filter_map(|&at| graph.nodes.get(at)).collect();
    let last = readers.iter().find(|reader| reader.op.downcast::<MatMul>().is_some() && reader.inputs.first() == Some(&Some(weights)))?;
    if readers.len() > 1 || links.only_reader(weights).is_none() {
        return Some(shared(node));
    }
    if !softmax.is_over_last(4) {
        return Some("it is not the softmax over the last of four axes".to_owned());
    }
    let Some(before) = producer(graph, links, node.inputs[0]) else { return Some("its scores are an input of the model".to_owned()) };
    Some(match before.op.downcast::<MatMul>() {
        Some(_) => format!("the products before and behind it, `{}` and `{}`, have an operand too many", before.name, last.name),
        None => format!(
            "between the product of queries and keys and it is more than a number and a mask: `{}` ({})",
            before.name,
            before.op_type()
        ),
    })
}

fn activation(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    let activates = node.op.downcast::<Activate>().is_some() || node.op.downcast::<Clip>().is_some();
    let adds = node.op.downcast::<Arithmetic>().is_some_and(|op| op.0 == Binary::Add);
    let candidates = if activates { 1 } else { node.inputs.len() };
    let operands = node.inputs.iter().take(candidates).filter_map(|&id| Some((id?, producer(graph, links, id)?)));
    let (value, before) = operands.into_iter().find(|(_, before)| has_weights(graph, before)).filter(|_| activates || adds)?;
    if links.only_reader(value).is_none() {
        return Some(shared(before));
    }
    let (name, op) = (&before.name, before.op_type());
    Some(if activates {
        format!("`{name}` ({op}) finishes with another function already, or has none such")
    } else {
        format!("`{name}` ({op}) adds something already, or what is to be added is computed after it or is no row")
    })
}

fn padding(graph: &Graph, links: &Links, node: &Node) -> Option<String> {
    let convolution = |&at: &usize| graph.nodes.get(at).is_some_and(|reader| reader.op.downcast::<Conv>().is_some());
    let readers = links.readers(node.outputs.first().copied().flatten()?);
    // Pads elsewhere are nothing that a convolution could do.
    if node.def.name != "Pad" || !readers.iter().any(convolution) {
        return None;
    }
    Some(match readers.iter().all(convolution) {
        true => "it pads with something else than a constant number of zeros at the ends of an image, or the convolution chooses its own padding".to_owned(),
        false => "others than convolutions read its result too".to_owned(),
    })
}

fn convolution(graph: &Graph, _: &Links, node: &Node) -> Option<String> {
    let convolution = node.op.downcast::<Conv>()?;
    let Some(weights) = node.inputs.get(1).copied().flatten().and_then(|id| graph.constants.get(&id)) else {
        return Some("its weights are no constants".to_owned());
    };
    let dimensions = weights.shape().len().saturating_sub(2);
    if !(1..=2).contains(&dimensions) {
        return Some(format!("images of {dimensions} dimensions have no such kernels"));
    }
    if dimensions == 1 && convolution.groups() > 1 {
        return Some("sequences in groups are computed from planes".to_owned());
    }
    Some("turning images over and back would cost more than it gains here".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::testing::graph;
    use super::*;
    use crate::engine::dtype::DType;
    use crate::engine::ops::testing::tensor;

    fn reports(graph: &Graph) -> BTreeMap<&'static str, PassReport> {
        let mut graph = graph.clone();
        run(&mut graph, &LoadOptions::default()).unwrap().into_iter().map(|report| (report.pass, report)).collect()
    }

    #[test]
    fn every_look_is_at_a_pass() {
        assert!(LOOKS.iter().all(|(name, _)| PASSES.iter().any(|pass| pass.name == *name)));
    }

    #[test]
    fn what_fired_and_what_did_not_is_told() {
        let row = |n: usize| tensor(&[n], &vec![1.0_f32; n]);
        let x = graph().input("x", DType::F32, &[-1, 2]).constant("w", tensor(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]));
        let x = x.node("MatMul", &["x", "w"], "a").node("Relu", &["a"], "b").node("MatMul", &["b", "w"], "c").node("Relu", &["c"], "d");
        let norm = ["d", "s", "s", "s", "s"];
        let x = x.constant("s", row(2)).node("BatchNormalization", &norm, "e").outputs(&["c", "e"]);
        let found = reports(&x);
        let fused = &found["fuse-activation"];
        assert_eq!((fused.removed.get("Relu"), fused.removed.len(), fused.added.len()), (Some(&1), 1, 0), "{fused:?}");
        // The second product is an output too.
        assert_eq!(fused.left.len(), 1);
        assert!(fused.left[0].operator == "Relu" && fused.left[0].reason.contains("(MatMul) gives is read elsewhere too"), "{fused:?}");
        let norm = &found["fold-batch-norm"].left[0];
        assert!(norm.operator == "BatchNormalization" && norm.reason.contains("whose weights cannot take its factors"), "{norm:?}");
        assert_eq!(found["fuse-attention"], PassReport { pass: "fuse-attention", ..PassReport::default() });
    }

    #[test]
    fn attention_that_is_not_fused_has_a_reason() {
        let operands = ["q", "k", "v"].into_iter().fold(graph(), |graph, name| graph.input(name, DType::F32, &[-1, -1, -1, -1]));
        let plain = operands.node("MatMul", &["q", "k"], "s").node("Tanh", &["s"], "t").node("Softmax", &["t"], "p");
        let capped = plain.clone().node("MatMul", &["p", "v"], "y").outputs(&["y"]);
        let reason = |graph: Graph| reports(&graph)["fuse-attention"].left[0].reason.clone();
        assert!(reason(capped).contains("more than a number and a mask"));
        let shown = plain.node("MatMul", &["p", "v"], "y").outputs(&["y", "p"]);
        assert!(reason(shown).contains("is read elsewhere too"));
    }
}
