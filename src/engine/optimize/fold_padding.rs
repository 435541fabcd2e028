//! Lets convolutions pad their inputs themselves where a Pad of zeros does it before them, as causal convolutions are exported.

use std::sync::Arc;

use super::pattern::{Links, put};
use crate::engine::attrs::Attr;
use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::model::LoadOptions;
use crate::engine::ops::conv::Conv;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    let links = Links::of(graph);
    let gone: Vec<bool> = (0..graph.nodes.len()).map(|position| fold(graph, &links, position).is_some()).collect();
    super::remove(graph, &gone);
}

/// Gives the padding of the node at `position` to all that read its result, if those are convolutions; the node itself is then to be
/// removed.
fn fold(graph: &mut Graph, links: &Links, position: usize) -> Option<()> {
    let node = &graph.nodes[position];
    let padding = padding(graph, node)?;
    let (from, to) = (node.inputs[0]?, node.outputs[0]?);
    let padded = |&reader: &usize| Some((reader, padded(graph.nodes.get(reader)?, (from, to), &padding)?));
    let convolutions: Vec<(usize, Node)> = links.readers(to).iter().map(padded).collect::<Option<_>>()?;
    for (reader, convolution) in convolutions {
        graph.nodes[reader] = convolution;
    }
    Some(())
}

/// What a Pad of zeros adds before and behind the spatial axes of images of f32.
fn padding(graph: &Graph, node: &Node) -> Option<Vec<i64>> {
    if (node.def.domain, node.def.name) != ("", "Pad") || node.opset < 11 || node.inputs.get(3).is_some_and(Option::is_some) {
        return None;
    }
    let constant = matches!(node.attributes.get("mode"), None | Some(Attr::String(_)))
        && node.attributes.get("mode").is_none_or(|mode| matches!(mode, Attr::String(mode) if mode == "constant"));
    let zero = match node.inputs.get(2).copied().flatten() {
        None => true,
        Some(value) => graph.constants.get(&value)?.slice::<f32>()? == [0.0],
    };
    if !constant || !zero || graph.values[node.inputs[0]?.index()].kind != Some(Kind::Tensor(DType::F32)) {
        return None;
    }
    let pads = graph.constants.get(&node.inputs[1]?)?.slice::<i64>()?;
    let rank = pads.len() / 2;
    let outside = pads.iter().enumerate().any(|(at, &pad)| pad < 0 || at % rank < 2 && pad > 0);
    let spatial = |end: usize| pads[end * rank..][..rank].iter().skip(2);
    (rank > 2 && !outside).then(|| spatial(0).chain(spatial(1)).copied().collect())
}

/// The convolution of `from`, padded, that is the one of `to`.
fn padded(node: &Node, (from, to): (ValueId, ValueId), padding: &[i64]) -> Option<Node> {
    node.op.downcast::<Conv>()?;
    let automatic = node.attributes.get("auto_pad").is_some_and(|kind| !matches!(kind, Attr::String(kind) if kind == "NOTSET"));
    if automatic || node.inputs.iter().filter(|id| **id == Some(to)).count() != 1 || node.inputs[0] != Some(to) {
        return None;
    }
    let mut attributes = (*Arc::clone(&node.attributes)).clone();
    let own = match attributes.get("pads") {
        None => vec![0; padding.len()],
        Some(Attr::Ints(pads)) if pads.len() == padding.len() => pads.clone(),
        Some(_) => return None,
    };
    attributes.insert("pads".to_owned(), Attr::Ints(own.iter().zip(padding).map(|(own, more)| own.saturating_add(*more)).collect()));
    let (mut node, mut inputs) = (node.clone(), node.inputs.clone());
    inputs[0] = Some(from);
    let def = (node.def.domain, node.def.name, node.opset);
    put(&mut node, def, attributes, inputs)?;
    Some(node)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph};
    use super::*;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::tensor::Tensor;

    const PASS: &str = "fold-padding";

    /// `p = Pad(x)` of zeros before the last axis, and `y` and `z` of it.
    fn padded(pads: &[i64], dilation: i64) -> Builder {
        let ints = |values: &[i64]| Attr::Ints(values.to_vec());
        let graph = graph().input("x", DType::F32, &[-1, 3, 9]).constant("pads", Tensor::vector(pads.to_vec()));
        let graph = graph.constant("w", tensor(&[4, 3, 2], &noise(24, 1))).node("Pad", &["x", "pads"], "p");
        let graph = graph.node_with("Conv", &[("dilations", ints(&[dilation])), ("pads", ints(&[0, 1]))], &["p", "w"], "y");
        graph.node_with("Conv", &[("dilations", ints(&[dilation]))], &["p", "w"], "z")
    }

    #[test]
    fn convolutions_pad_for_themselves() {
        let graph = padded(&[0, 0, 3, 0, 0, 1], 2).outputs(&["y", "z"]);
        assert_eq!(after(&graph, PASS), "y = Conv(x, w)\nz = Conv(x, w)\n");
        agrees(&graph, &[tensor(&[2, 3, 9], &noise(54, 2))]);
    }

    #[test]
    fn what_others_read_and_what_is_no_padding_of_images_stays() {
        for pads in [[0, 1, 3, 0, 0, 1], [0, 0, -1, 0, 0, 1], [1, 0, 0, 0, 0, 0]] {
            let graph = padded(&pads, 1).outputs(&["z"]);
            assert!(after(&graph, PASS).contains("Pad"), "{pads:?}");
        }
        let graph = padded(&[0, 0, 3, 0, 0, 1], 2).outputs(&["y", "z", "p"]);
        assert_eq!(after(&graph, PASS), graph.dump());
        let graph = padded(&[0, 0, 3, 0, 0, 1], 2).node("Relu", &["p"], "r").outputs(&["y", "z", "r"]);
        assert_eq!(after(&graph, PASS), graph.dump());
    }
}
