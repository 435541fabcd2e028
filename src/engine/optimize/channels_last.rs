//! Gives the images between convolutions their channels last, as the kernels want them: one image is turned over where such a region is
//! entered and one where it is left, and everything between works on the other order.
//!
//! Nodes are taken in order. What can be computed on images with channels last, of which at least one is there, is; any other node reads
//! the usual order, which a Transpose brings back if it has to. A graph that would be turned over too often stays as it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pattern::{attached, put};
use crate::engine::attrs::{Attr, Attrs};
use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::model::LoadOptions;
use crate::engine::op::Op;
use crate::engine::ops;
use crate::engine::ops::activation::{Activate, Clip};
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::ops::conv::Conv;
use crate::engine::ops::conv_last::ConvLast;
use crate::engine::ops::pool::{GlobalPool, MaxPool};
use crate::engine::ops::pool_last::{MaxPoolLast, MeanLast};
use crate::engine::tensor::{Kind, Tensor};

/// Convolutions that pay for turning an image over: with fewer the graph stays as it is.
const CONVOLUTIONS_PER_TURN: usize = 2;

/// Output channels below which an image is not turned over for a convolution: its panels would be empty for the greater part.
const CHANNELS_WORTH_TURNING: usize = 8;

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    if graph.nodes.iter().filter(|node| node.op.downcast::<Conv>().is_some()).count() < CONVOLUTIONS_PER_TURN {
        return;
    }
    let mut rewrite = Rewrite::of(graph);
    for node in &graph.nodes {
        if rewrite.last(node).is_none() {
            rewrite.usual(node);
        }
    }
    graph.outputs.iter().for_each(|&id| rewrite.need_usual(id));
    if rewrite.convolutions >= CONVOLUTIONS_PER_TURN.max(CONVOLUTIONS_PER_TURN * rewrite.turns) {
        *graph = rewrite.graph;
    }
}

/// The two orders of the axes of images and of sequences.
struct Order {
    /// From the usual order to channels last, and back.
    to_last: &'static [usize],
    to_usual: &'static [usize],
    /// Where an axis of the usual order lies with channels last.
    axis: &'static [i64],
}

const IMAGES: Order = Order { to_last: &[0, 2, 3, 1], to_usual: &[0, 3, 1, 2], axis: &[0, 3, 1, 2] };
const SEQUENCES: Order = Order { to_last: &[0, 2, 1], to_usual: &[0, 2, 1], axis: &[0, 2, 1] };

impl Order {
    fn of(rank: usize) -> Option<&'static Order> {
        [&IMAGES, &SEQUENCES].into_iter().find(|order| order.rank() == rank)
    }

    fn rank(&self) -> usize {
        self.axis.len()
    }

    /// The place of an axis, which may be counted from behind.
    fn place(&self, axis: i64) -> Option<i64> {
        let axis = if axis < 0 { axis + self.rank() as i64 } else { axis };
        self.axis.get(usize::try_from(axis).ok()?).copied()
    }
}

struct Rewrite {
    /// The graph so far.
    graph: Graph,
    /// For each value the one with its channels last, if there is one, and its axes.
    last: Vec<Option<(ValueId, &'static Order)>>,
    /// Whether the value itself is there.
    usual: Vec<bool>,
    /// Values of one pixel, which cost nothing to turn over.
    pixel: Vec<bool>,
    convolutions: usize,
    turns: usize,
}

impl Rewrite {
    fn of(graph: &Graph) -> Self {
        let mut usual = vec![false; graph.values.len()];
        graph.inputs.iter().chain(graph.constants.keys()).for_each(|id| usual[id.index()] = true);
        let count = graph.values.len();
        Self {
            graph: Graph { nodes: Vec::with_capacity(graph.nodes.len()), ..graph.clone() },
            last: vec![None; count],
            usual,
            pixel: vec![false; count],
            convolutions: 0,
            turns: 0,
        }
    }

    /// The value with its channels last, if it is there.
    fn twin(&self, id: Option<ValueId>) -> Option<(ValueId, &'static Order)> {
        self.last[id?.index()]
    }

    /// Adds a value that is another with its channels last.
    fn add_twin(&mut self, of: ValueId, order: &'static Order) -> ValueId {
        let value = &self.graph.values[of.index()];
        let (name, kind) = (format!("{} (channels last)", value.name), value.kind.clone());
        let twin = self.graph.add_value(name, kind, None);
        self.last[of.index()] = Some((twin, order));
        twin
    }

    /// Adds a node as it is.
    fn usual(&mut self, node: &Node) {
        node.operands().for_each(|id| self.need_usual(id));
        node.results().for_each(|id| self.usual[id.index()] = true);
        self.graph.nodes.push(node.clone());
    }

    /// Sees to it that a value is there in the usual order.
    fn need_usual(&mut self, id: ValueId) {
        if std::mem::replace(&mut self.usual[id.index()], true) {
            return;
        }
        let (from, order) = self.last[id.index()].expect("a value that is read is there in one order");
        self.turns += usize::from(!self.pixel[id.index()]);
        self.transpose(from, id, order.to_usual);
    }

    /// Sees to it that an image is there with its channels last.
    fn need_last(&mut self, id: ValueId, order: &'static Order) -> ValueId {
        if let Some((twin, _)) = self.last[id.index()] {
            return twin;
        }
        if let Some(source) = self.turned(id, order) {
            self.last[id.index()] = Some((source, order));
            return source;
        }
        let twin = self.add_twin(id, order);
        self.turns += usize::from(!self.pixel[id.index()]);
        self.transpose(id, twin, order.to_last);
        twin
    }

    /// What a Transpose of the model brings into the usual order.
    fn turned(&self, id: ValueId, order: &Order) -> Option<ValueId> {
        let node = self.graph.nodes.iter().rev().find(|node| node.results().any(|result| result == id))?;
        let Some(Attr::Ints(axes)) = node.attributes.get("perm") else { return None };
        let same = axes.iter().map(|&axis| axis as usize).eq(order.to_usual.iter().copied());
        ((node.def.domain, node.def.name) == ("", "Transpose") && same).then_some(node.inputs[0]?)
    }

    fn transpose(&mut self, from: ValueId, to: ValueId, order: &[usize]) {
        let order = Attr::Ints(order.iter().map(|&axis| axis as i64).collect());
        self.add(("Transpose", 13), [("perm".to_owned(), order)].into(), vec![Some(from)], to);
    }

    /// Adds a node of an operator of the standard.
    fn add(
        &mut self,
        (name, opset): (&'static str, u16),
        attributes: BTreeMap<String, Attr>,
        inputs: Vec<Option<ValueId>>,
        output: ValueId,
    ) {
        let def = ops::find("", name, opset).expect("an operator of the table");
        let attrs = Attrs::new(attributes.clone(), opset, inputs.iter().map(Option::is_some).collect(), vec![true]);
        let op = (def.build)(&attrs).expect("attributes that it takes");
        let label = format!("{name} of {}", self.graph.name(output));
        let outputs = vec![Some(output)];
        self.graph.nodes.push(Node { name: label, def, opset, op: op.into(), attributes: Arc::new(attributes), inputs, outputs });
    }

    /// Adds a constant and returns its identity.
    fn constant(&mut self, name: String, tensor: Tensor) -> ValueId {
        let id = self.graph.add_value(name, Some(Kind::Tensor(tensor.dtype())), None);
        self.graph.constants.insert(id, tensor);
        id
    }

    fn is_f32(&self, id: ValueId) -> bool {
        self.graph.values[id.index()].kind == Some(Kind::Tensor(DType::F32))
    }

    /// Adds a node that computes with channels last, if there is such a one and its operands are there.
    fn last(&mut self, node: &Node) -> Option<()> {
        if node.op.downcast::<Conv>().is_some() {
            return self.convolution(node);
        }
        if node.op.downcast::<Arithmetic>().is_some() {
            return self.arithmetic(node);
        }
        match (node.def.domain, node.def.name) {
            ("", "Concat") => return self.concatenation(node),
            ("", "Shape") => return self.shape(node),
            ("", "Transpose") => return self.transposition(node),
            _ => {}
        }
        let (twin, order) = self.twin(*node.inputs.first()?)?;
        if !self.is_f32(twin) {
            return None;
        }
        let mut inputs = node.inputs.clone();
        inputs[0] = Some(twin);
        if node.op.downcast::<Activate>().is_some() || node.op.downcast::<Clip>().is_some() {
            return self.same(node, inputs, order);
        }
        match node.def.name {
            "Slice" => {
                let axes = inputs.get(3).copied().flatten()?;
                inputs[3] = Some(self.axes(axes, order)?);
                self.same(node, inputs, order)
            }
            "Split" => self.with_axis(node, inputs, 0, order),
            "Resize" if !node.attributes.contains_key("axes") => {
                for input in inputs.iter_mut().skip(1) {
                    *input = self.per_axis(*input, order)?;
                }
                self.same(node, inputs, order)
            }
            _ if order.rank() == IMAGES.rank() => self.pooling(node, inputs),
            _ => None,
        }
    }

    fn convolution(&mut self, node: &Node) -> Option<()> {
        let conv = node.op.downcast::<Conv>()?;
        let (x, weights, output) = (node.inputs[0]?, self.graph.constants.get(&node.inputs[1]?)?, node.outputs[0]?);
        let (&[channels, ..], order) = (weights.shape(), Order::of(weights.shape().len())?) else { return None };
        let sequences = order.rank() == SEQUENCES.rank();
        // Sequences in groups are computed from planes, a group after the other.
        if sequences && conv.groups() > 1 || weights.is_empty() || weights.dtype() != DType::F32 || !self.is_f32(x) {
            return None;
        }
        let input = self.twin(Some(x));
        if input.is_none() && channels < CHANNELS_WORTH_TURNING && self.convolutions > 0 {
            return None;
        }
        let (window, mut inputs) = (weights.shape()[2..].to_vec(), node.inputs.clone());
        let residual = node.inputs.get(3).copied().flatten();
        if residual.is_some_and(|id| self.twin(Some(id)).is_none() && super::rank(&self.graph, id) != Some(order.rank())) {
            return None;
        }
        // A picture is turned over as it is copied.
        let input = input.map_or_else(|| if sequences { self.need_last(x, order) } else { x }, |(input, _)| input);
        inputs[0] = Some(input);
        if let Some(id) = residual {
            inputs[3] = Some(self.need_last(id, order));
        }
        let op = Arc::new(ConvLast { conv: conv.clone(), input_last: input != x });
        self.convolutions += 1;
        self.pixel[output.index()] = self.pixel[x.index()] && window.iter().all(|&size| size == 1);
        self.replace(node, op, inputs, order)
    }

    /// Adds the node with another operator and other operands; its only output is of images.
    fn replace(&mut self, node: &Node, op: Arc<dyn Op>, inputs: Vec<Option<ValueId>>, order: &'static Order) -> Option<()> {
        let &[Some(output)] = &node.outputs[..] else { return None };
        let outputs = vec![Some(self.add_twin(output, order))];
        self.graph.nodes.push(Node { op, inputs, outputs, ..node.clone() });
        Some(())
    }

    /// The same operator on other operands.
    fn same(&mut self, node: &Node, inputs: Vec<Option<ValueId>>, order: &'static Order) -> Option<()> {
        let pixel = self.pixel[node.inputs[0]?.index()];
        self.replace(node, Arc::clone(&node.op), inputs, order)?;
        self.pixel[node.outputs[0]?.index()] = pixel && node.inputs.len() == 1;
        Some(())
    }

    fn arithmetic(&mut self, node: &Node) -> Option<()> {
        let twins: Vec<Option<(ValueId, &Order)>> = node.inputs.iter().map(|id| self.twin(*id)).collect();
        let (Some(result), Some((_, order))) = (node.outputs[0], twins.iter().copied().flatten().next()) else { return None };
        if !self.is_f32(result) || twins.iter().flatten().any(|(_, other)| other.rank() != order.rank()) {
            return None;
        }
        let mut inputs = Vec::new();
        for (id, twin) in node.inputs.iter().zip(twins) {
            inputs.push(Some(match twin {
                Some((twin, _)) => twin,
                None => self.broadcast((*id)?, order)?,
            }));
        }
        self.pixel[result.index()] = node.inputs.iter().flatten().all(|id| self.pixel[id.index()]);
        self.replace(node, Arc::clone(&node.op), inputs, order)
    }

    /// A constant that broadcasts to images, for images with their channels last.
    fn broadcast(&mut self, id: ValueId, order: &Order) -> Option<ValueId> {
        let constant = self.graph.constants.get(&id)?;
        let values = constant.slice::<f32>()?;
        let mut shape = vec![1; order.rank()];
        shape[order.rank().checked_sub(constant.shape().len())?..].copy_from_slice(constant.shape());
        // One of more than one channel in one place only: what a network adds or scales by, and lies in the same order then.
        if shape[2..].iter().any(|&size| size != 1) || shape[0] != 1 {
            return None;
        }
        shape[1..].rotate_left(1);
        let turned = Tensor::new(&shape, values.to_vec())?;
        let name = format!("{} (channels last)", self.graph.name(id));
        Some(self.constant(name, turned))
    }

    fn concatenation(&mut self, node: &Node) -> Option<()> {
        let (_, order) = self.twin(*node.inputs.first()?)?;
        let twin = |id: &Option<ValueId>| self.twin(*id).map(|(twin, _)| Some(twin));
        let inputs: Vec<Option<ValueId>> = node.inputs.iter().map(twin).collect::<Option<_>>()?;
        self.with_axis(node, inputs, 1, order)
    }

    /// The same operator with its attribute `axis` for the other order.
    fn with_axis(&mut self, node: &Node, inputs: Vec<Option<ValueId>>, default: i64, order: &'static Order) -> Option<()> {
        let axis = order.place(attached(node, "axis", default))?;
        let mut attributes = (*node.attributes).clone();
        attributes.insert("axis".to_owned(), Attr::Int(axis));
        let mut turned = node.clone();
        if node.outputs.len() > 1 {
            // The operator counts its outputs.
            let def = ops::find(node.def.domain, node.def.name, node.opset).ok()?;
            let attrs =
                Attrs::new(attributes.clone(), node.opset, inputs.iter().map(Option::is_some).collect(), vec![true; node.outputs.len()]);
            turned = Node { op: (def.build)(&attrs).ok()?.into(), inputs, attributes: Arc::new(attributes), ..turned };
        } else {
            put(&mut turned, (node.def.domain, node.def.name, node.opset), attributes, inputs)?;
        }
        turned.outputs = node.outputs.iter().map(|id| id.map(|id| self.add_twin(id, order))).collect();
        self.graph.nodes.push(turned);
        Some(())
    }

    /// Constant axes of images, for the other order.
    fn axes(&mut self, id: ValueId, order: &Order) -> Option<ValueId> {
        let constant = self.graph.constants.get(&id)?;
        let axes: Vec<i64> = constant.slice::<i64>()?.iter().map(|&axis| order.place(axis)).collect::<Option<_>>()?;
        let name = format!("{} (channels last)", self.graph.name(id));
        Some(self.constant(name, Tensor::vector(axes)))
    }

    /// A constant with a number for each axis of an image, or none at all, for the other order.
    fn per_axis(&mut self, id: Option<ValueId>, order: &Order) -> Option<Option<ValueId>> {
        let Some(id) = id else { return Some(None) };
        let constant = self.graph.constants.get(&id)?;
        if constant.is_empty() {
            return Some(Some(id));
        }
        if constant.shape() != [order.rank()] {
            return None;
        }
        let turned = match (constant.slice::<f32>(), constant.slice::<i64>()) {
            (Some(values), _) => Tensor::vector(order.to_last.iter().map(|&axis| values[axis]).collect::<Vec<_>>()),
            (_, Some(values)) => Tensor::vector(order.to_last.iter().map(|&axis| values[axis]).collect::<Vec<_>>()),
            _ => return None,
        };
        let name = format!("{} (channels last)", self.graph.name(id));
        Some(Some(self.constant(name, turned)))
    }

    /// A Shape of an image: the same numbers in the usual order.
    fn shape(&mut self, node: &Node) -> Option<()> {
        let (input, output) = (node.inputs[0]?, node.outputs[0]?);
        let (twin, order) = self.twin(Some(input)).filter(|_| !self.usual[input.index()])?;
        if node.attributes.contains_key("start") || node.attributes.contains_key("end") {
            return None;
        }
        let kind = self.graph.values[output.index()].kind.clone();
        let turned = self.graph.add_value(format!("{} (channels last)", self.graph.name(output)), kind, None);
        self.graph.nodes.push(Node { inputs: vec![Some(twin)], outputs: vec![Some(turned)], ..node.clone() });
        let order = self.constant(format!("order of {}", self.graph.name(output)), Tensor::vector(order.axis.to_vec()));
        self.add(("Gather", 13), BTreeMap::new(), vec![Some(turned), Some(order)], output);
        self.usual[output.index()] = true;
        Some(())
    }

    /// A Transpose of an image that is there with its channels last alone, as one of that.
    fn transposition(&mut self, node: &Node) -> Option<()> {
        let (input, output) = (node.inputs[0]?, node.outputs[0]?);
        let (twin, order) = self.twin(Some(input)).filter(|_| !self.usual[input.index()])?;
        let axes: Vec<usize> = match node.attributes.get("perm") {
            Some(Attr::Ints(axes)) => axes.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?,
            _ => (0..order.rank()).rev().collect(),
        };
        let axes: Vec<usize> = axes.iter().map(|&axis| order.to_usual.get(axis).copied()).collect::<Option<_>>()?;
        self.usual[output.index()] = true;
        if axes.iter().copied().eq(0..order.rank()) {
            self.add(("Identity", 13), BTreeMap::new(), vec![Some(twin)], output);
        } else {
            self.transpose(twin, output, &axes);
        }
        Some(())
    }

    fn pooling(&mut self, node: &Node, inputs: Vec<Option<ValueId>>) -> Option<()> {
        if let Some(pool) = node.op.downcast::<MaxPool>() {
            let flat = !pool.indices && pool.window.kernel().is_some_and(|kernel| kernel.len() == 2);
            return flat.then(|| self.replace(node, Arc::new(MaxPoolLast { window: pool.window.clone() }), inputs, &IMAGES))?;
        }
        if !node.op.downcast::<GlobalPool>()?.is_mean() {
            return None;
        }
        self.pixel[node.outputs[0]?.index()] = true;
        self.replace(node, Arc::new(MeanLast), inputs, &IMAGES)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph, run};
    use super::*;
    use crate::engine::ops::testing::{noise, tensor};

    const PASS: &str = "channels-last";

    fn ints(values: &[i64]) -> Attr {
        Attr::Ints(values.to_vec())
    }

    fn images() -> Builder {
        graph().input("x", DType::F32, &[-1, 3, 9, 8])
    }

    fn x() -> Tensor {
        tensor(&[2, 3, 9, 8], &noise(432, 1))
    }

    /// `output = Conv(input)`, 3 by 3 with padding.
    fn conv(builder: Builder, input: &str, (c_in, c_out): (usize, usize), output: &str) -> Builder {
        let (w, b) = (format!("{output}_w"), format!("{output}_b"));
        // Small enough that sums of sums do not cancel beyond what is asked of the answers.
        let weights: Vec<f32> = noise(c_out * c_in * 9, 7).into_iter().map(|v| v / 16.0).collect();
        let builder = builder.constant(&w, tensor(&[c_out, c_in, 3, 3], &weights));
        let builder = builder.constant(&b, tensor(&[c_out], &noise(c_out, 8)));
        builder.node_with("Conv", &[("pads", ints(&[1, 1, 1, 1]))], &[input, &w, &b], output)
    }

    fn two() -> Builder {
        conv(conv(images(), "x", (3, 10), "h"), "h", (10, 10), "g")
    }

    fn last(name: &str) -> String {
        format!("{name} (channels last)")
    }

    #[test]
    fn an_image_is_turned_over_once_where_the_usual_order_is_read() {
        let graph = two().node("Relu", &["g"], "r").node("Flatten", &["r"], "y").outputs(&["y"]);
        let (h, g, r) = (last("h"), last("g"), last("r"));
        let want = format!("{h} = Conv(x, h_w, h_b)\n{g} = Conv({h}, g_w, g_b)\n{r} = Relu({g})\nr = Transpose({r})\ny = Flatten(r)\n");
        assert_eq!(after(&graph, PASS), want);
        agrees(&graph, &[x()]);
    }

    #[test]
    fn a_single_convolution_and_one_that_would_be_turned_each_time_stay() {
        let single = conv(images(), "x", (3, 4), "y").outputs(&["y"]);
        assert_eq!(after(&single, PASS), single.dump());
        let mut builder = conv(images(), "x", (3, 10), "a0");
        for i in 0..3 {
            // Softmax over the rows of an image has no other form.
            builder = builder.node("Softmax", &[&format!("a{i}")], &format!("s{i}"));
            builder = conv(builder, &format!("s{i}"), (10, 10), &format!("a{}", i + 1));
        }
        let graph = builder.outputs(&["a3"]);
        assert_eq!(after(&graph, PASS), graph.dump());
    }

    #[test]
    fn what_lies_between_convolutions_works_on_either_order() {
        let pool = [("kernel_shape", ints(&[3, 3])), ("strides", ints(&[2, 2])), ("pads", ints(&[1, 1, 1, 1]))];
        let axis = [("axis", Attr::Int(-3))];
        let some = two()
            .constant("scale", tensor(&[10, 1, 1], &noise(10, 3)))
            .constant("half", Tensor::scalar(0.5_f32))
            .node("Add", &["g", "h"], "sum")
            .node("Mul", &["sum", "scale"], "scaled")
            .node("Mul", &["half", "scaled"], "halved")
            .node("Clip", &["halved"], "clipped")
            .node_with("MaxPool", &pool, &["clipped"], "pooled")
            .node_with("Concat", &axis, &["pooled", "pooled"], "twice")
            .constant("starts", Tensor::vector(vec![1_i64]))
            .constant("ends", Tensor::vector(vec![14_i64]))
            .constant("axes", Tensor::vector(vec![1_i64]))
            .node("Slice", &["twice", "starts", "ends", "axes"], "part")
            .constant("none", Tensor::vector(Vec::<f32>::new()))
            .constant("scales", Tensor::vector(vec![1.0_f32, 1.0, 2.0, 3.0]))
            .node_with("Resize", &[("mode", Attr::String("nearest".into()))], &["part", "none", "scales"], "large");
        let graph = conv(conv(some, "large", (13, 9), "k"), "k", (9, 9), "y").outputs(&["y"]);
        assert_eq!(after(&graph, PASS).matches("Transpose").count(), 1);
        agrees(&graph, &[x()]);
    }

    #[test]
    fn channels_may_be_scaled_by_what_a_network_makes_of_their_means() {
        let squeezed = two().node("GlobalAveragePool", &["g"], "mean");
        let builder = squeezed
            .constant("w", tensor(&[10, 10, 1, 1], &noise(100, 4).into_iter().map(|v| v / 16.0).collect::<Vec<_>>()))
            .node("Conv", &["mean", "w"], "e");
        let graph = builder.node("Sigmoid", &["e"], "gate").node("Mul", &["gate", "g"], "m").node("GlobalAveragePool", &["m"], "p");
        let graph = graph.node("Flatten", &["p"], "y").outputs(&["y"]);
        assert_eq!(after(&graph, PASS).matches("Transpose").count(), 1);
        agrees(&graph, &[x()]);
    }

    #[test]
    fn sequences_are_turned_over_like_images() {
        let perm = [("perm", ints(&[0, 2, 1]))];
        let weights = |shape: &[usize], seed| {
            let values = noise(shape.iter().product(), seed);
            tensor(shape, &values.into_iter().map(|v| v / 8.0).collect::<Vec<_>>())
        };
        let wide = [("pads", ints(&[4, 0])), ("dilations", ints(&[4]))];
        let builder = graph().input("x", DType::F32, &[-1, 11, 20]).node_with("Transpose", &perm, &["x"], "t");
        let builder = builder.constant("w", weights(&[24, 20, 2], 1)).constant("b", weights(&[24], 2));
        let builder = builder.node_with("Conv", &wide, &["t", "w", "b"], "f").node("Tanh", &["f"], "tanh");
        let builder = builder.node_with("Conv", &wide, &["t", "w"], "g").node("Sigmoid", &["g"], "gate");
        let builder = builder.node("Mul", &["tanh", "gate"], "m").constant("scale", weights(&[24, 1], 3)).node("Mul", &["m", "scale"], "n");
        let builder = builder.constant("v", weights(&[20, 24, 1], 4)).node("Conv", &["n", "v"], "r").node("Add", &["r", "t"], "s");
        let strided = [("strides", ints(&[2])), ("pads", ints(&[1, 1]))];
        let builder = builder.constant("u", weights(&[9, 20, 3], 5)).node_with("Conv", &strided, &["s", "u"], "z");
        let same = builder.clone().node_with("Transpose", &perm, &["z"], "y").outputs(&["y"]);
        let after_all = after(&same, PASS);
        assert!(after_all.contains("Add(r (channels last), x)"), "{after_all}");
        assert!(after_all.ends_with("y = Identity(z (channels last))\n"), "{after_all}");
        for rows in [1, 3] {
            agrees(&same, &[tensor(&[rows, 11, 20], &noise(rows * 220, 6))]);
        }
        let turned = builder.node_with("Transpose", &[("perm", ints(&[2, 0, 1]))], &["z"], "y").outputs(&["y"]);
        assert!(after(&turned, PASS).ends_with("y = Transpose(z (channels last))\n"));
        agrees(&turned, &[tensor(&[2, 11, 20], &noise(440, 6))]);
    }

    #[test]
    fn sequences_in_groups_stay() {
        let builder = graph().input("x", DType::F32, &[-1, 8, 30]).constant("w", tensor(&[8, 1, 3], &noise(24, 1)));
        let group = [("group", Attr::Int(8))];
        let graph = builder.node_with("Conv", &group, &["x", "w"], "h").node_with("Conv", &group, &["h", "w"], "y").outputs(&["y"]);
        assert_eq!(after(&graph, PASS), graph.dump());
    }

    #[test]
    fn shapes_are_those_of_the_usual_order() {
        let graph = two().node("Shape", &["g"], "y").node("Relu", &["g"], "r").outputs(&["y", "r"]);
        assert_eq!(run(&graph, &[x()], &[])[0], Tensor::vector(vec![2_i64, 10, 9, 8]));
        agrees(&graph, &[x()]);
    }

    #[test]
    fn a_residual_in_the_usual_order_is_turned_over() {
        let builder = graph().input("x", DType::F32, &[-1, 3, 9, 8]).input("z", DType::F32, &[-1, 10, 9, 8]);
        let builder = conv(conv(conv(builder, "x", (3, 10), "h"), "h", (10, 10), "g"), "g", (10, 10), "k").node("Add", &["k", "z"], "s");
        let graph = conv(builder, "s", (10, 10), "y").outputs(&["y"]);
        agrees(&graph, &[x(), tensor(&[2, 10, 9, 8], &noise(1440, 5))]);
    }
}
