//! Recognises attention as exporters write it, `MatMul → Mul or Div by a number → Add a mask → Softmax → MatMul`, where number and
//! mask may be missing, and puts one operator in its place, with the transposes around it. The number may also be the product of two,
//! by which queries and keys are multiplied before, as `scaled_dot_product_attention` is written out; those may be computed. With masks of
//! truth values that function also puts a number in the place of weights that are none (`IsNaN → Where`).

use std::sync::Arc;

use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::vector::Binary;
use crate::engine::model::LoadOptions;
use crate::engine::op::Op;
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::ops::attention::fused::{self, FusedAttention, Layout, Source, Step};
use crate::engine::ops::compare::FillNan;
use crate::engine::ops::layout::Transpose;
use crate::engine::ops::matmul::MatMul;
use crate::engine::ops::softmax::Softmax;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    let mut producers = vec![None; graph.values.len()];
    for (position, node) in graph.nodes.iter().enumerate() {
        node.results().for_each(|id| producers[id.index()] = Some(position));
    }
    let uses = graph.uses();
    let found: Vec<(usize, Node)> = {
        let pattern = Pattern { graph, producers: &producers, uses: &uses };
        (0..graph.nodes.len()).filter_map(|position| pattern.attention(position)).collect()
    };
    for (position, node) in found {
        graph.nodes[position] = node;
    }
    super::dead_code::run(graph, options);
}

/// The step of a Mul by operand `at`, if there is one.
fn scale_by(chain: &mut Chain, mul: Option<&Node>, operand: Source, at: usize) -> Source {
    match mul {
        Some(mul) => chain.push(&mul.op, vec![operand, Source::Operand(at)]),
        None => operand,
    }
}

/// The node that multiplies or divides by a number, the factor that makes, and the number.
type Number<'g> = (&'g Node, f32, ValueId);

struct Pattern<'g> {
    graph: &'g Graph,
    producers: &'g [Option<usize>],
    /// Readers of each value, the graph's outputs included.
    uses: &'g [u32],
}

/// The operators that are replaced, as they are found, from the last to the first.
#[derive(Default)]
struct Chain {
    steps: Vec<Step>,
    operands: Vec<Option<ValueId>>,
}

impl Chain {
    /// Adds a step behind the others and returns where its result is.
    fn push(&mut self, op: &Arc<dyn Op>, sources: Vec<Source>) -> Source {
        self.steps.push(Step { op: Arc::clone(op), sources });
        Source::Step(self.steps.len() - 1)
    }
}

impl Pattern<'_> {
    /// The node that computes the softmax at `position` with all around it, and the position of the last node that it replaces.
    fn attention(&self, position: usize) -> Option<(usize, Node)> {
        let softmax = &self.graph.nodes[position];
        softmax.op.downcast::<Softmax>().filter(|softmax| softmax.is_over_last(4))?;
        let weights = self.only_result(softmax)?;
        let (scores, mask) = self.mask(softmax.inputs[0]?);
        let (scores, number) = self.number(scores)?;
        let product = self.node(scores).filter(|node| node.op.downcast::<MatMul>().is_some())?;
        let (weights, nan_weight) = self.without_nan(weights);
        let (at, last) = self.reader(weights)?;
        last.op.downcast::<MatMul>()?;
        if last.inputs.len() != 2 || product.inputs.len() != 2 || last.inputs[0] != Some(weights) || self.uses[scores.index()] != 1 {
            return None;
        }
        let operands = vec![product.inputs[0], product.inputs[1], last.inputs[1], mask.map(|(_, id)| id), None, None];
        let mut chain = Chain { operands, ..Chain::default() };
        let factors = [(fused::Q, fused::Q_FACTOR), (fused::K, fused::K_FACTOR)].map(|(operand, at)| self.factor(&mut chain, operand, at));
        let q = self.operand(&mut chain, fused::Q, &[(&[0, 2, 1, 3], Layout::HeadsInside)]);
        let k = self.operand(&mut chain, fused::K, &[(&[0, 1, 3, 2], Layout::HeadsOutside), (&[0, 2, 3, 1], Layout::HeadsInside)]);
        let k = if k.1 == Layout::HeadsOutside && matches!(k.0, Source::Operand(_)) { (k.0, Layout::Transposed) } else { k };
        let v = self.operand(&mut chain, fused::V, &[(&[0, 2, 1, 3], Layout::HeadsInside)]);
        let [q_scaled, k_scaled] = factors;
        let q = (scale_by(&mut chain, q_scaled, q.0, fused::Q_FACTOR), q.1);
        let k = (scale_by(&mut chain, k_scaled, k.0, fused::K_FACTOR), k.1);
        let mut step = chain.push(&product.op, vec![q.0, k.0]);
        let mut scale = 1.0;
        if let Some((node, factor, constant)) = number {
            scale = factor;
            step = chain.push(&node.op, self.ordered(node, scores, step, Source::Constant(self.graph.constants[&constant].clone())));
        }
        if let Some((node, id)) = mask {
            let other = node.operands().find(|&other| other != id)?;
            step = chain.push(&node.op, self.ordered(node, other, step, Source::Operand(fused::MASK)));
        }
        step = chain.push(&softmax.op, vec![step]);
        if let Some(value) = nan_weight {
            let op: Arc<dyn Op> = Arc::new(FillNan(vec![value]));
            step = chain.push(&op, vec![step]);
        }
        step = chain.push(&last.op, vec![step, v.0]);
        let (mut at, mut result, mut y) = (at, self.only_result(last)?, Layout::HeadsOutside);
        if let Some((next, node)) = self.reader(result)
            && node.op.downcast::<Transpose>().is_some_and(|transpose| transpose.is(&[0, 2, 1, 3]))
        {
            chain.push(&node.op, vec![step]);
            (at, result, y) = (next, self.only_result(node)?, Layout::HeadsInside);
        }
        while chain.operands.last() == Some(&None) {
            chain.operands.pop();
        }
        let op = FusedAttention { scale, nan_weight, q: q.1, k: k.1, v: v.1, y, steps: chain.steps };
        let Node { name, opset, .. } = last.clone();
        let node = Node {
            name,
            def: &fused::DEF,
            opset,
            op: Arc::new(op),
            attributes: Arc::default(),
            inputs: chain.operands,
            outputs: vec![Some(result)],
        };
        Some((at, node))
    }

    /// Takes the factor off an operand that a number multiplies, and makes it operand `at`. Returns the Mul.
    fn factor(&self, chain: &mut Chain, operand: usize, at: usize) -> Option<&Node> {
        let id = chain.operands[operand]?;
        let node = self.node(id).filter(|_| self.uses[id.index()] == 1)?;
        if node.op.downcast::<Arithmetic>()?.0 != Binary::Mul {
            return None;
        }
        let &[Some(a), Some(b)] = &node.inputs[..] else { return None };
        // A computed factor is the root of what heads have elements; that it is one number shows where shapes are known.
        let is_number = |id: ValueId| match self.graph.constants.get(&id) {
            Some(constant) => constant.len() == 1 && constant.shape().len() <= 1,
            None => self.node(id).is_some_and(|node| node.def.domain.is_empty() && node.def.name == "Sqrt"),
        };
        let (value, number) = match (is_number(a), is_number(b)) {
            (false, true) => (a, b),
            (true, false) => (b, a),
            _ => return None,
        };
        chain.operands[operand] = Some(value);
        chain.operands[at] = Some(number);
        Some(node)
    }

    /// An operand as the product takes it, and how it lies in memory. One that a transpose gives is read from before it.
    fn operand(&self, chain: &mut Chain, index: usize, orders: &[(&[i64], Layout)]) -> (Source, Layout) {
        let given = (Source::Operand(index), Layout::HeadsOutside);
        let Some(node) = chain.operands[index].and_then(|id| self.node(id)) else { return given };
        let Some(transpose) = node.op.downcast::<Transpose>() else { return given };
        let Some((_, layout)) = orders.iter().find(|(order, _)| transpose.is(order)) else { return given };
        chain.operands[index] = node.inputs[0];
        (chain.push(&node.op, vec![Source::Operand(index)]), *layout)
    }

    /// What a mask is added to, the Add and the mask; the scores themselves if there is none.
    fn mask(&self, scores: ValueId) -> (ValueId, Option<(&Node, ValueId)>) {
        let add = self.node(scores).filter(|node| node.op.downcast::<Arithmetic>().is_some_and(|op| op.0 == Binary::Add));
        let Some((node, [Some(a), Some(b)])) = add.and_then(|node| Some((node, *node.inputs.first_chunk::<2>()?))) else {
            return (scores, None);
        };
        // The scores are what a product gave, directly or through a number.
        let is_score =
            |id: ValueId| self.number(id).and_then(|(id, _)| self.node(id)).is_some_and(|node| node.op.downcast::<MatMul>().is_some());
        match (is_score(a), is_score(b)) {
            (true, false) if self.uses[a.index()] == 1 && self.uses[scores.index()] == 1 => (a, Some((node, b))),
            (false, true) if self.uses[b.index()] == 1 && self.uses[scores.index()] == 1 => (b, Some((node, a))),
            _ => (scores, None),
        }
    }

    /// What a number multiplies or divides, with the node, the factor and the constant; the value itself if there is none.
    fn number(&self, id: ValueId) -> Option<(ValueId, Option<Number<'_>>)> {
        let Some(node) = self.node(id) else { return Some((id, None)) };
        let Some(Arithmetic(operation)) = node.op.downcast::<Arithmetic>() else { return Some((id, None)) };
        let &[Some(a), Some(b)] = &node.inputs[..] else { return None };
        let value = |id: ValueId| self.graph.constants.get(&id).filter(|t| t.len() == 1).and_then(|t| Some(t.slice::<f32>()?[0]));
        if self.uses[id.index()] != 1 {
            return None;
        }
        match (operation, value(a), value(b)) {
            (Binary::Mul, _, Some(factor)) => Some((a, Some((node, factor, b)))),
            (Binary::Mul, Some(factor), _) => Some((b, Some((node, factor, a)))),
            (Binary::Div, _, Some(divisor)) => Some((a, Some((node, 1.0 / divisor, b)))),
            _ => None,
        }
    }

    /// The sources of a node with two operands, one of which is `scores`.
    fn ordered(&self, node: &Node, scores: ValueId, step: Source, other: Source) -> Vec<Source> {
        if node.inputs[0] == Some(scores) { vec![step, other] } else { vec![other, step] }
    }

    /// The weights with a number in the place of those that are none, and the number; the weights themselves if they stay.
    fn without_nan(&self, weights: ValueId) -> (ValueId, Option<f32>) {
        let found = || {
            let mut readers = self.graph.nodes.iter().filter(|node| node.operands().any(|id| id == weights));
            let (test, choice) = (readers.next()?, readers.next()?);
            let named = |node: &Node, name: &str| node.def.domain.is_empty() && node.def.name == name;
            let (&[Some(flag)], &[Some(condition), Some(value), Some(otherwise)]) = (&test.outputs[..], &choice.inputs[..]) else {
                return None;
            };
            let fits = named(test, "IsNaN") && named(choice, "Where") && condition == flag && otherwise == weights;
            if !fits || self.uses[weights.index()] != 2 || self.uses[flag.index()] != 1 {
                return None;
            }
            let constant = self.graph.constants.get(&value).filter(|t| t.len() == 1 && t.shape().len() <= 4)?;
            Some((self.only_result(choice)?, Some(constant.slice::<f32>()?[0])))
        };
        found().unwrap_or((weights, None))
    }

    fn node(&self, id: ValueId) -> Option<&Node> {
        Some(&self.graph.nodes[self.producers[id.index()]?])
    }

    /// The only result of a node, if it is of type f32.
    fn only_result(&self, node: &Node) -> Option<ValueId> {
        match node.outputs[..] {
            [Some(id)] if self.graph.values[id.index()].kind == Some(Kind::Tensor(DType::F32)) => Some(id),
            _ => None,
        }
    }

    /// The only reader of a value, if it is a node.
    fn reader(&self, id: ValueId) -> Option<(usize, &Node)> {
        if self.uses[id.index()] != 1 {
            return None;
        }
        self.graph.nodes.iter().enumerate().find(|(_, node)| node.operands().any(|operand| operand == id))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph, run};
    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::load::{Loaded, Metadata};
    use crate::engine::model::Model;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::session::Session;
    use crate::engine::tensor::{Tensor, Value};
    use crate::engine::threads::Threads;

    const PASS: &str = "fuse-attention";

    fn order(perm: &[i64]) -> [(&'static str, Attr); 1] {
        [("perm", Attr::Ints(perm.to_vec()))]
    }

    /// Inputs q, k, v and m of rank 4, of so many samples and masks. Free first dimensions would have to be the same.
    fn operands(samples: i64, masks: i64) -> Builder {
        let inputs = [("q", samples), ("k", samples), ("v", samples), ("m", masks)];
        inputs.into_iter().fold(graph(), |graph, (name, first)| graph.input(name, DType::F32, &[first, -1, -1, -1]))
    }

    /// From `scores` on.
    fn rest(graph: Builder, scores: &str, v: &str) -> Builder {
        graph.node_with("Softmax", &[("axis", Attr::Int(-1))], &[scores], "p").node("MatMul", &["p", v], "y")
    }

    fn values(shape: &[usize], seed: u32) -> Tensor {
        tensor(shape, &noise(shape.iter().product(), seed))
    }

    #[test]
    fn heads_inside_are_read_where_they_lie() {
        // As torch.onnx writes BERT: [batch, tokens, heads, elements], scores times a number plus a mask.
        let bert = |samples: i64, masks: i64| {
            let graph = operands(samples, masks).constant("c", Tensor::scalar(0.5_f32));
            let graph = graph.node_with("Transpose", &order(&[0, 2, 1, 3]), &["q"], "qt");
            let graph = graph.node_with("Transpose", &order(&[0, 2, 3, 1]), &["k"], "kt");
            let graph = graph.node_with("Transpose", &order(&[0, 2, 1, 3]), &["v"], "vt");
            let graph = graph.node("MatMul", &["qt", "kt"], "s").node("Mul", &["s", "c"], "t").node("Add", &["t", "m"], "u");
            rest(graph, "u", "vt").node_with("Transpose", &order(&[0, 2, 1, 3]), &["y"], "z").outputs(&["z"])
        };
        assert_eq!(after(&bert(-1, -1), PASS), "z = fused.Attention(q, k, v, m)\n");
        for (queries, keys) in [(1, 9), (5, 9), (70, 33)] {
            let operands = [values(&[2, queries, 3, 8], 1), values(&[2, keys, 3, 8], 2), values(&[2, keys, 3, 8], 3)];
            for mask in [[2, 1, 1, keys], [1, 3, queries, 1], [1, 1, 1, 1]] {
                agrees(&bert(2, mask[0] as i64), &[&operands[..], &[values(&mask, 4)]].concat());
            }
        }
        // The mask has more batches than the scores: everything grows.
        let one = [values(&[1, 5, 3, 8], 1), values(&[1, 9, 3, 8], 2), values(&[1, 9, 3, 8], 3), values(&[2, 1, 5, 9], 4)];
        agrees(&bert(1, 2), &one);
    }

    #[test]
    fn heads_outside_with_a_divisor_and_no_mask() {
        // As GPT-2 with a cache: keys are transposed, queries and values lie as they are multiplied.
        let gpt = operands(2, 1).constant("c", tensor(&[1], &[8.0_f32])).node_with("Transpose", &order(&[0, 1, 3, 2]), &["k"], "kt");
        let gpt = gpt.node("MatMul", &["q", "kt"], "s").node("Div", &["s", "c"], "t").node("Add", &["m", "t"], "u");
        let gpt = rest(gpt, "u", "v").outputs(&["y"]);
        assert_eq!(after(&gpt, PASS), "y = fused.Attention(q, k, v, m)\n");
        let operands = [values(&[2, 3, 1, 70], 1), values(&[2, 3, 21, 70], 2), values(&[2, 3, 21, 70], 3), values(&[1, 1, 1, 21], 4)];
        agrees(&gpt, &operands);
        // Without number and mask, keys given as the product takes them; one head of keys for all heads broadcasts.
        let bare = rest(operands_without_mask().node("MatMul", &["q", "k"], "s"), "s", "v").outputs(&["y"]);
        assert_eq!(after(&bare, PASS), "y = fused.Attention(q, k, v)\n");
        for heads in [3, 1] {
            agrees(&bare, &[values(&[2, 3, 6, 4], 1), values(&[2, heads, 4, 7], 2), values(&[2, heads, 7, 5], 3)]);
        }
    }

    fn operands_without_mask() -> Builder {
        ["q", "k", "v"].into_iter().fold(graph(), |graph, name| graph.input(name, DType::F32, &[-1, -1, -1, -1]))
    }

    #[test]
    fn queries_and_keys_are_multiplied_before() {
        // As scaled_dot_product_attention is written out: by a computed root each, or by a constant.
        let scaled = |computed: bool| {
            let graph = operands_without_mask().input("e", DType::F32, &[-1]).node("Sqrt", &["e"], "c");
            let graph = graph.constant("d", tensor(&[1], &[0.5_f32])).node_with("Transpose", &order(&[0, 1, 3, 2]), &["k"], "kt");
            let graph = graph.node("Mul", &["q", if computed { "c" } else { "d" }], "qs").node("Mul", &["c", "kt"], "ks");
            rest(graph.node("MatMul", &["qs", "ks"], "s"), "s", "v")
                .node_with("Transpose", &order(&[0, 2, 1, 3]), &["y"], "z")
                .outputs(&["z"])
        };
        for (computed, factor) in [(true, "c"), (false, "d")] {
            let graph = scaled(computed);
            assert_eq!(after(&graph, PASS), format!("c = Sqrt(e)\nz = fused.Attention(q, k, v, -, {factor}, c)\n"));
            let operands = [values(&[2, 3, 14, 8], 1), values(&[2, 3, 9, 8], 2), values(&[2, 3, 9, 5], 3)];
            agrees(&graph, &[&operands[..], &[tensor(&[1], &[0.25_f32])]].concat());
            // No number after all: a factor for each element.
            if computed {
                let square = [values(&[2, 3, 14, 8], 1), values(&[2, 3, 8, 8], 2), values(&[2, 3, 8, 5], 3)];
                agrees(&graph, &[&square[..], &[tensor(&[8], &[0.25_f32, 1.0, 4.0, 9.0, 0.5, 0.1, 2.0, 3.0])]].concat());
            }
        }
    }

    #[test]
    fn rows_without_a_key_and_what_is_no_number_are_as_before() {
        let graph = operands(2, 1).node("MatMul", &["q", "k"], "s").node("Add", &["s", "m"], "t");
        let graph = rest(graph, "t", "v").outputs(&["y"]);
        assert_eq!(after(&graph, PASS), "y = fused.Attention(q, k, v, m)\n");
        let mut mask = vec![0.0_f32; 15 * 9];
        mask[..9].fill(f32::NEG_INFINITY);
        mask[12..18].fill(f32::NEG_INFINITY);
        mask[30] = f32::NAN;
        mask[40] = f32::INFINITY;
        for queries in [1, 2, 15] {
            let mask = tensor(&[1, 1, queries, 9], &mask[..queries * 9]);
            agrees(&graph, &[values(&[2, 3, queries, 4], 1), values(&[2, 3, 4, 9], 2), values(&[2, 3, 9, 5], 3), mask.clone()]);
            let mut inputs = [values(&[2, 3, queries, 4], 1), values(&[2, 3, 4, 9], 2), values(&[2, 3, 9, 5], 3), mask];
            let mut special = noise(2 * 3 * 9 * 5, 3);
            (special[7], special[50]) = (f32::NAN, f32::INFINITY);
            inputs[2] = tensor(&[2, 3, 9, 5], &special);
            agrees(&graph, &inputs);
        }
    }

    #[test]
    fn queries_without_a_key_may_have_weights_all_the_same() {
        // As scaled_dot_product_attention is written out with a mask of truth values.
        let guarded = |inputs: [&str; 3], outputs: &[&str]| {
            let graph = operands(2, 1).constant("zero", Tensor::scalar(0.0_f32)).node("MatMul", &["q", "k"], "s");
            let graph = graph.node("Add", &["s", "m"], "t").node_with("Softmax", &[("axis", Attr::Int(-1))], &["t"], "p");
            graph.node("IsNaN", &["p"], "n").node("Where", &inputs, "w").node("MatMul", &["w", "v"], "y").outputs(outputs)
        };
        let graph = guarded(["n", "zero", "p"], &["y"]);
        assert_eq!(after(&graph, PASS), "y = fused.Attention(q, k, v, m)\n");
        for queries in [2, 15] {
            let mut mask = vec![0.0_f32; queries * 9];
            mask[..9].fill(f32::NEG_INFINITY);
            let operands =
                [values(&[2, 3, queries, 4], 1), values(&[2, 3, 4, 9], 2), values(&[2, 3, 9, 5], 3), tensor(&[1, 1, queries, 9], &mask)];
            agrees(&graph, &operands);
            assert_eq!(&run(&graph, &operands, &[])[0].slice::<f32>().expect("floats")[..5], &[0.0; 5]);
            // One head of keys and values for all: operator by operator.
            let shared = [operands[0].clone(), values(&[2, 1, 4, 9], 2), values(&[2, 1, 9, 5], 3), operands[3].clone()];
            agrees(&graph, &shared);
        }
        for graph in [guarded(["n", "p", "zero"], &["y"]), guarded(["n", "zero", "p"], &["y", "n"])] {
            assert_eq!(after(&graph, PASS), graph.dump());
        }
    }

    #[test]
    fn a_sample_has_the_same_bits_alone_and_on_any_threads() {
        let graph = operands(-1, -1).node_with("Transpose", &order(&[0, 2, 1, 3]), &["q"], "qt").node_with(
            "Transpose",
            &order(&[0, 2, 3, 1]),
            &["k"],
            "kt",
        );
        let graph = graph.node_with("Transpose", &order(&[0, 2, 1, 3]), &["v"], "vt").node("MatMul", &["qt", "kt"], "s").node(
            "Add",
            &["s", "m"],
            "t",
        );
        let graph = rest(graph, "t", "vt").node_with("Transpose", &order(&[0, 2, 1, 3]), &["y"], "z").outputs(&["z"]);
        let inputs = [values(&[3, 70, 4, 32], 1), values(&[3, 90, 4, 32], 2), values(&[3, 90, 4, 32], 3), values(&[3, 1, 1, 90], 4)];
        let model = Loaded { graph: graph.clone(), metadata: Metadata::default() };
        let model = Arc::new(Model::build(model, &LoadOptions::default()).expect("a model"));
        let run =
            |threads: Threads, inputs: &[Tensor]| Session::new(Arc::clone(&model), Arc::new(threads)).run(inputs).expect("a run").remove(0);
        let whole = run(Threads::single(), &inputs);
        assert_eq!(run(Threads::new(2).expect("threads"), &inputs), whole);
        let Value::Tensor(whole) = whole else { panic!("a tensor") };
        for sample in 0..3 {
            let alone: Vec<Tensor> = inputs.iter().map(|input| input.rows(sample..sample + 1)).collect();
            assert_eq!(run(Threads::single(), &alone), Value::Tensor(whole.rows(sample..sample + 1)));
        }
    }

    #[test]
    fn what_is_no_attention_stays() {
        let product = || operands_without_mask().node("MatMul", &["q", "k"], "s");
        let shown = rest(product(), "s", "v").outputs(&["y", "p"]);
        let scores = rest(product(), "s", "v").outputs(&["y", "s"]);
        let axis = product().node_with("Softmax", &[("axis", Attr::Int(2))], &["s"], "p").node("MatMul", &["p", "v"], "y").outputs(&["y"]);
        let right =
            product().node_with("Softmax", &[("axis", Attr::Int(-1))], &["s"], "p").node("MatMul", &["v", "p"], "y").outputs(&["y"]);
        for graph in [shown, scores, axis, right] {
            assert_eq!(after(&graph, PASS), graph.dump());
        }
    }
}
