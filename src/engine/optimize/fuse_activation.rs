//! Lets a Conv, Gemm or MatMul apply what follows it while its output is still in the cache: the constant row that an Add
//! brings to a MatMul, and an activation.
//!
//! The kernels' epilogue computes the same functions as the operators, so the bits stay the same.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node, ValueId};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::vector::Binary;
use crate::engine::model::LoadOptions;
use crate::engine::op::Op;
use crate::engine::ops::activation::{Activate, Clip};
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::ops::conv::Conv;
use crate::engine::ops::gemm::Gemm;
use crate::engine::ops::matmul::MatMul;
use crate::engine::ops::qlinear_matmul::QMatMul;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, _: &LoadOptions) {
    // Fusing moves results and never adds a reader, so this holds until the end.
    let mut readers = vec![Readers::new(); graph.values.len()];
    for (position, node) in graph.nodes.iter().enumerate() {
        node.operands().for_each(|id| readers[id.index()].push(position));
    }
    for id in &graph.outputs {
        readers[id.index()].push(usize::MAX);
    }
    let mut gone = vec![false; graph.nodes.len()];
    for position in 0..graph.nodes.len() {
        if gone[position] {
            continue;
        }
        for fused in add_bias(graph, position, &readers).into_iter().chain(activate(graph, position, &readers)).flatten() {
            gone[fused] = true;
        }
    }
    super::remove(graph, &gone);
}

/// The nodes that read a value, by position, one that reads it twice listed twice; `usize::MAX` for the graph itself.
type Readers = SmallVec<[usize; 2]>;

fn is_f32(graph: &Graph, id: ValueId) -> bool {
    graph.values[id.index()].kind == Some(Kind::Tensor(DType::F32))
}

/// The only result of a node, if it is of type f32.
fn result(graph: &Graph, node: &Node) -> Option<ValueId> {
    match node.outputs[..] {
        [Some(id)] if is_f32(graph, id) => Some(id),
        _ => None,
    }
}

/// The only reader of a value; none if the graph itself reads it too.
fn only_reader(id: ValueId, readers: &[Readers]) -> Option<usize> {
    match readers[id.index()][..] {
        [position] if position != usize::MAX => Some(position),
        _ => None,
    }
}

/// Makes the row that an Add brings to the MatMul at `position` its bias. Returns the Add.
fn add_bias(graph: &mut Graph, position: usize, readers: &[Readers]) -> Option<Vec<usize>> {
    let node = &graph.nodes[position];
    let matmul = node.op.downcast::<MatMul>()?;
    if node.inputs.len() != 2 || matmul.activation != Activation::None {
        return None;
    }
    let product = result(graph, node)?;
    let weights = graph.constants.get(&node.inputs[1]?)?;
    let &[_, columns] = weights.shape() else { return None };
    let reader = only_reader(product, readers)?;
    let add = &graph.nodes[reader];
    if add.op.downcast::<Arithmetic>()?.0 != Binary::Add {
        return None;
    }
    let bias = add.operands().find(|&id| id != product)?;
    let (&last, leading) = graph.constants.get(&bias)?.shape().split_last()?;
    if last != columns || leading.iter().any(|&n| n != 1) {
        return None;
    }
    let sum = result(graph, add)?;
    let node = &mut graph.nodes[position];
    node.inputs.push(Some(bias));
    node.outputs[0] = Some(sum);
    Some(vec![reader])
}

/// Makes the activation behind the product at `position` its own. Returns the nodes that this replaces.
fn activate(graph: &mut Graph, position: usize, readers: &[Readers]) -> Option<Vec<usize>> {
    let node = &graph.nodes[position];
    let product = result(graph, node)?;
    with_activation(&*node.op, Activation::None)?;
    let (activation, replaced) = match only_reader(product, readers) {
        Some(reader) => (epilogue(graph, &graph.nodes[reader])?, vec![reader]),
        None => (Activation::Silu, silu(graph, product, readers)?),
    };
    let last = &graph.nodes[*replaced.last()?];
    let activated = result(graph, last)?;
    let op = with_activation(&*graph.nodes[position].op, activation)?;
    let node = &mut graph.nodes[position];
    node.op = op;
    node.outputs[0] = Some(activated);
    Some(replaced)
}

/// The same product followed by an activation, if it has none yet.
fn with_activation(op: &dyn Op, activation: Activation) -> Option<Arc<dyn Op>> {
    fn set<T: Op + Clone>(op: &T, of: fn(&mut T) -> &mut Activation, activation: Activation) -> Option<Arc<dyn Op>> {
        let mut op = op.clone();
        (std::mem::replace(of(&mut op), activation) == Activation::None).then(|| Arc::new(op) as Arc<dyn Op>)
    }
    if let Some(op) = op.downcast::<Conv>() {
        return set(op, |op| &mut op.activation, activation);
    }
    if let Some(op) = op.downcast::<Gemm>() {
        return set(op, |op| &mut op.activation, activation);
    }
    if let Some(op) = op.downcast::<QMatMul>().filter(|op| op.gives_floats()) {
        return set(op, |op| &mut op.activation, activation);
    }
    set(op.downcast::<MatMul>()?, |op| &mut op.activation, activation)
}

/// The function of an activation node, as a kernel applies it.
fn epilogue(graph: &Graph, node: &Node) -> Option<Activation> {
    if let Some(activate) = node.op.downcast::<Activate>() {
        return activate.epilogue();
    }
    node.op.downcast::<Clip>()?;
    let bound = |i: usize| match node.inputs.get(i).copied().flatten() {
        None => Some(None),
        Some(id) => graph.constants.get(&id).filter(|t| t.len() == 1).map(Some),
    };
    Clip::epilogue(bound(1)?, bound(2)?)
}

/// The nodes Sigmoid and Mul of `x * sigmoid(x)`, if nobody else reads `x`.
fn silu(graph: &Graph, x: ValueId, readers: &[Readers]) -> Option<Vec<usize>> {
    let [sigmoid, mul] = readers[x.index()][..] else { return None };
    if mul == usize::MAX || sigmoid == mul {
        return None;
    }
    if graph.nodes[sigmoid].op.downcast::<Activate>()?.epilogue()? != Activation::Sigmoid {
        return None;
    }
    let gate = result(graph, &graph.nodes[sigmoid])?;
    let node = &graph.nodes[mul];
    let multiplies = node.op.downcast::<Arithmetic>()?.0 == Binary::Mul;
    let reads_gate = only_reader(gate, readers) == Some(mul);
    (multiplies && reads_gate).then(|| vec![sigmoid, mul])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph, run};
    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::tensor::Tensor;

    const PASS: &str = "fuse-activation";

    fn dense(op: &str) -> Builder {
        let weights = graph().input("x", DType::F32, &[-1, 4]).constant("w", tensor(&[4, 3], &noise(12, 7)));
        weights.constant("b", tensor(&[1, 3], &noise(3, 8))).node(op, &["x", "w"], "h")
    }

    fn x() -> Tensor {
        tensor(&[2, 4], &noise(8, 9))
    }

    #[test]
    fn bias_and_activation_join_the_product() {
        for activation in ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Gelu"] {
            let graph = dense("MatMul").node("Add", &["b", "h"], "s").node(activation, &["s"], "y").outputs(&["y"]);
            assert_eq!(graph.dump(), format!("h = MatMul(x, w)\ns = Add(b, h)\ny = {activation}(s)\n"));
            assert_eq!(after(&graph, PASS), "y = MatMul(x, w, b)\n");
            agrees(&graph, &[x()]);
            let gemm = dense("Gemm").node(activation, &["h"], "y").outputs(&["y"]);
            assert_eq!(after(&gemm, PASS), "y = Gemm(x, w)\n");
            agrees(&gemm, &[x()]);
        }
    }

    #[test]
    fn an_activation_joins_a_convolution() {
        let conv = graph().input("x", DType::F32, &[-1, 2, 5, 5]).constant("w", tensor(&[3, 2, 3, 3], &noise(54, 7)));
        let graph = conv.node("Conv", &["x", "w"], "h").node("Relu", &["h"], "y").node("Tanh", &["y"], "z").outputs(&["z"]);
        assert_eq!(after(&graph, PASS), "y = Conv(x, w)\nz = Tanh(y)\n");
        agrees(&graph, &[tensor(&[2, 2, 5, 5], &noise(100, 9))]);
    }

    #[test]
    fn clip_bounds_must_be_constant() {
        let clip = |bounds: Builder| bounds.node("Clip", &["h", "low", "high"], "y").outputs(&["y"]);
        let constant = clip(dense("Gemm").constant("low", Tensor::scalar(-0.5_f32)).constant("high", Tensor::scalar(0.5_f32)));
        assert_eq!(after(&constant, PASS), "y = Gemm(x, w)\n");
        agrees(&constant, &[x()]);
        let variable = clip(dense("Gemm").input("low", DType::F32, &[]).constant("high", Tensor::scalar(0.5_f32)));
        assert_eq!(after(&variable, PASS), variable.dump());
    }

    #[test]
    fn a_gate_of_itself_is_silu() {
        for operands in [["h", "g"], ["g", "h"]] {
            let graph = dense("Gemm").node("Sigmoid", &["h"], "g").node("Mul", &operands, "y").outputs(&["y"]);
            assert_eq!(after(&graph, PASS), "y = Gemm(x, w)\n");
            agrees(&graph, &[x()]);
        }
        let square = dense("Gemm").node("Sigmoid", &["h"], "g").node("Mul", &["h", "h"], "y").outputs(&["y", "g"]);
        assert_eq!(after(&square, PASS), square.dump());
    }

    #[test]
    fn what_others_read_stays() {
        let read_twice = dense("Gemm").node("Relu", &["h"], "y").node("Tanh", &["h"], "z").outputs(&["y", "z"]);
        let an_output = dense("Gemm").node("Relu", &["h"], "y").outputs(&["h", "y"]);
        let other_add = dense("MatMul").node("Add", &["h", "h"], "y").outputs(&["y"]);
        for graph in [read_twice, an_output, other_add] {
            assert_eq!(after(&graph, PASS), graph.dump());
            agrees(&graph, &[x()]);
        }
        // A row per sample is no bias.
        let rows = dense("MatMul").constant("c", tensor(&[2, 3], &noise(6, 1))).node("Add", &["h", "c"], "y").outputs(&["y"]);
        assert_eq!(after(&rows, PASS), rows.dump());
        agrees(&rows, &[x()]);
    }

    #[test]
    fn a_bias_may_add_to_the_rank() {
        let builder = graph().input("x", DType::F32, &[4]).constant("w", tensor(&[4, 3], &noise(12, 7)));
        let graph = builder.constant("b", tensor(&[1, 3], &noise(3, 8))).node("MatMul", &["x", "w"], "h").node("Add", &["h", "b"], "y");
        let graph = graph.outputs(&["y"]);
        let x = tensor(&[4], &noise(4, 9));
        agrees(&graph, std::slice::from_ref(&x));
        assert_eq!(run(&graph, &[x], &[])[0].shape(), [1, 3]);
    }

    #[test]
    fn other_types_stay() {
        let builder = graph().input("x", DType::F64, &[-1, 2]).constant("w", tensor(&[2, 2], &[1.0_f64, 2.0, 3.0, 4.0]));
        let graph = builder.node_with("Gemm", &[("transB", Attr::Int(1))], &["x", "w"], "h").node("Relu", &["h"], "y").outputs(&["y"]);
        assert_eq!(after(&graph, PASS), graph.dump());
        agrees(&graph, &[tensor(&[1, 2], &[1.0_f64, -2.0])]);
    }
}
