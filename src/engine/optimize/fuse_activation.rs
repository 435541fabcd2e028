//! Lets a Conv, Gemm or MatMul apply what follows it while its output is still in the cache: the constant row that an Add
//! brings to a MatMul, the residual that one brings to a Conv or MatMul, and an activation.
//!
//! The kernels' epilogue computes the same functions as the operators. A residual is what the sum of a product starts from, so its
//! sum is rounded in another order; the others keep the bits.

use std::sync::Arc;

use super::pattern::Links;
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
    let links = Links::of(graph);
    let mut gone = vec![false; graph.nodes.len()];
    for position in 0..graph.nodes.len() {
        if gone[position] {
            continue;
        }
        let fuse = [add_bias, add_residual, activate];
        for fused in fuse.into_iter().filter_map(|fuse| fuse(graph, position, &links)).flatten() {
            gone[fused] = true;
        }
    }
    super::remove(graph, &gone);
}

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

/// Makes the row that an Add brings to the MatMul at `position` its bias. Returns the Add.
fn add_bias(graph: &mut Graph, position: usize, links: &Links) -> Option<Vec<usize>> {
    let node = &graph.nodes[position];
    let matmul = node.op.downcast::<MatMul>()?;
    if node.inputs.len() != 2 || matmul.activation != Activation::None {
        return None;
    }
    let product = result(graph, node)?;
    let weights = graph.constants.get(&node.inputs[1]?)?;
    let &[_, columns] = weights.shape() else { return None };
    let reader = links.only_reader(product)?;
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

/// Makes what an Add brings to the Conv or MatMul at `position` its residual, if it is there by then. Returns the Add.
fn add_residual(graph: &mut Graph, position: usize, links: &Links) -> Option<Vec<usize>> {
    let node = &graph.nodes[position];
    let activation = match (node.op.downcast::<Conv>(), node.op.downcast::<MatMul>()) {
        (Some(conv), _) => conv.activation,
        // A product of two activations is one of attention, and what is added to it a mask, which broadcasts.
        (_, Some(matmul)) if node.inputs.get(1)?.is_some_and(|id| graph.constants.contains_key(&id)) => matmul.activation,
        _ => return None,
    };
    if activation != Activation::None || node.inputs.len() > 3 {
        return None;
    }
    let product = result(graph, node)?;
    let reader = links.only_reader(product)?;
    let add = &graph.nodes[reader];
    if add.op.downcast::<Arithmetic>()?.0 != Binary::Add {
        return None;
    }
    // A constant would be copied for every sum; what is computed behind the product can not be there before it.
    let residual = add.operands().find(|&id| id != product)?;
    let later = links.producer(residual).is_some_and(|at| at >= position);
    if later || graph.constants.contains_key(&residual) {
        return None;
    }
    let sum = result(graph, add)?;
    let node = &mut graph.nodes[position];
    node.inputs.resize(3, None);
    node.inputs.push(Some(residual));
    node.outputs[0] = Some(sum);
    Some(vec![reader])
}

/// Makes the activation behind the product at `position` its own. Returns the nodes that this replaces.
fn activate(graph: &mut Graph, position: usize, links: &Links) -> Option<Vec<usize>> {
    let node = &graph.nodes[position];
    let product = result(graph, node)?;
    with_activation(&*node.op, Activation::None)?;
    let (activation, replaced) = match links.only_reader(product) {
        Some(reader) => (epilogue(graph, &graph.nodes[reader])?, vec![reader]),
        None => (Activation::Silu, silu(graph, product, links)?),
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
fn silu(graph: &Graph, x: ValueId, links: &Links) -> Option<Vec<usize>> {
    let &[sigmoid, mul] = links.readers(x) else { return None };
    if mul == usize::MAX || sigmoid == mul {
        return None;
    }
    if graph.nodes[sigmoid].op.downcast::<Activate>()?.epilogue()? != Activation::Sigmoid {
        return None;
    }
    let gate = result(graph, &graph.nodes[sigmoid])?;
    let node = &graph.nodes[mul];
    let multiplies = node.op.downcast::<Arithmetic>()?.0 == Binary::Mul;
    let reads_gate = links.only_reader(gate) == Some(mul);
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
    fn a_residual_joins_the_product() {
        // Dimensions are declared: free first ones would be rows of one batch.
        let conv = |adds: &[&str], [n, channels]: [i64; 2]| {
            let conv = graph().input("x", DType::F32, &[-1, 2, 5, 5]).input("r", DType::F32, &[n, channels, 5, 5]);
            let conv = conv.constant("w", tensor(&[3, 2, 3, 3], &noise(54, 7))).constant("b", tensor(&[3], &noise(3, 8)));
            let pads = Attr::Ints(vec![1; 4]);
            let conv = conv.node_with("Conv", &[("pads", pads)], &["x", "w", "b"], "h").node("Abs", &["r"], "p");
            conv.node("Add", adds, "s").node("Relu", &["s"], "y").outputs(&["y"])
        };
        // What is computed later is not there in time.
        assert_eq!(after(&conv(&["h", "p"], [2, 3]), PASS), conv(&["h", "p"], [2, 3]).dump());
        let x = tensor(&[2, 2, 5, 5], &noise(100, 9));
        for adds in [["h", "r"], ["r", "h"]] {
            assert_eq!(after(&conv(&adds, [2, 3]), PASS), "y = Conv(x, w, b, r)\n");
            for channels in [3, 1] {
                agrees(&conv(&adds, [2, channels as i64]), &[x.clone(), tensor(&[2, channels, 5, 5], &noise(2 * channels * 25, 4))]);
            }
            // The residual has a row for the result of one sample: the sum has more rows than the product.
            agrees(&conv(&adds, [2, 3]), &[x.rows(0..1), tensor(&[2, 3, 5, 5], &noise(150, 4))]);
        }
        for (op, rows) in [("MatMul", 2), ("MatMul", 1), ("Gemm", 2)] {
            let product = dense(op).input("r", DType::F32, &[rows, 3]).node("Add", &["b", "h"], "t").node("Add", &["r", "t"], "s");
            let graph = product.node("Tanh", &["s"], "y").outputs(&["y"]);
            agrees(&graph, &[self::x(), tensor(&[rows as usize, 3], &noise(3 * rows as usize, 5))]);
            assert_eq!(after(&graph, PASS) == "y = MatMul(x, w, b, r)\n", op == "MatMul");
        }
        // Computed before, read for the last time: the sum takes its place.
        let before = graph().input("x", DType::F32, &[-1, 4]).constant("w", tensor(&[4, 4], &noise(16, 7))).node("Neg", &["x"], "r");
        let before = before.node("MatMul", &["x", "w"], "h").node("Add", &["h", "r"], "y").outputs(&["y"]);
        assert_eq!(after(&before, PASS), "r = Neg(x)\ny = MatMul(x, w, -, r)\n");
        agrees(&before, &[self::x()]);
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_broadcasts() {
        let (x, r) = (x(), tensor(&[2, 3], &noise(6, 5)));
        let rows = |x: &Tensor, r: &Tensor| {
            let product = dense("MatMul").input("r", DType::F32, &[r.shape()[0] as i64, 3]).node("Add", &["h", "r"], "s");
            run(&product.node("Relu", &["s"], "y").outputs(&["y"]), &[x.clone(), r.clone()], &[]).remove(0)
        };
        for row in 0..2 {
            let (one_x, one_r) = (x.rows(row..row + 1), r.rows(row..row + 1));
            let alone = rows(&one_x, &one_r);
            // One residual for all rows, and one product for all residuals.
            assert_eq!(rows(&x, &one_r).rows(row..row + 1), alone);
            assert_eq!(rows(&one_x, &r).rows(row..row + 1), alone);
            assert_eq!(rows(&x, &r).rows(row..row + 1), alone);
        }
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
