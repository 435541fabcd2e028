//! Joins what tools for dynamic quantisation write for a product: MatMulInteger, Cast, Mul with the product of both scales, and a bias.
//!
//! The sums are the same integers; scaling and the bias are rounded together instead of one after the other.

use std::collections::BTreeMap;

use super::pattern::{Links, put};
use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, ValueId};
use crate::engine::kernels::vector::Binary;
use crate::engine::model::LoadOptions;
use crate::engine::ops::arithmetic::Arithmetic;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    let links = Links::of(graph);
    let mut changed = false;
    for position in 0..graph.nodes.len() {
        let found = Pattern { graph, links: &links }.at(position);
        if let Some((at, inputs)) = found {
            changed |= put(&mut graph.nodes[at], ("com.microsoft", "MatMulIntegerToFloat", 1), BTreeMap::new(), inputs).is_some();
        }
    }
    if changed {
        super::dead_code::run(graph, options);
    }
}

struct Pattern<'g> {
    graph: &'g Graph,
    links: &'g Links,
}

impl Pattern<'_> {
    /// The node that gives the result of the pattern that begins at a position, and the operands of what replaces it.
    fn at(&self, position: usize) -> Option<(usize, Vec<Option<ValueId>>)> {
        let node = &self.graph.nodes[position];
        if node.def.name != "MatMulInteger" || !node.def.domain.is_empty() {
            return None;
        }
        let input = |i: usize| node.inputs.get(i).copied().flatten();
        let &[_, columns] = self.graph.constants.get(&input(1)?)?.shape() else { return None };
        let cast = self.links.only_reader(node.outputs[0]?)?;
        if self.graph.nodes[cast].def.name != "Cast" || !self.is_f32(self.graph.nodes[cast].outputs[0]?) {
            return None;
        }
        let sums = self.graph.nodes[cast].outputs[0]?;
        let at = self.links.only_reader(sums)?;
        let scale = self.other(at, Binary::Mul, sums)?;
        let (a_scale, b_scale) = self.scales(scale, columns)?;
        let mut inputs = vec![input(0), input(1), Some(a_scale), Some(b_scale), input(2), input(3)];
        match self.bias(self.graph.nodes[at].outputs[0]?, columns) {
            None => Some((at, inputs)),
            Some((at, bias)) => {
                inputs.push(Some(bias));
                Some((at, inputs))
            }
        }
    }

    fn is_f32(&self, id: ValueId) -> bool {
        self.graph.values[id.index()].kind == Some(Kind::Tensor(DType::F32))
    }

    /// The operand beside `id` of the node at a position, if that is this operation.
    fn other(&self, position: usize, op: Binary, id: ValueId) -> Option<ValueId> {
        let node = &self.graph.nodes[position];
        if node.op.downcast::<Arithmetic>()?.0 != op {
            return None;
        }
        match node.inputs[..] {
            [Some(a), Some(b)] if a == id && b != id => Some(b),
            [Some(a), Some(b)] if b == id && a != id => Some(a),
            _ => None,
        }
    }

    /// The scales of both operands, of which `id` is the product: that of a DynamicQuantizeLinear, and a constant one for all columns or
    /// for each.
    fn scales(&self, id: ValueId, columns: usize) -> Option<(ValueId, ValueId)> {
        let node = &self.graph.nodes[self.links.producer(id)?];
        if node.op.downcast::<Arithmetic>()?.0 != Binary::Mul {
            return None;
        }
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        let dynamic = |id: ValueId| {
            let node = self.links.producer(id).map(|position| &self.graph.nodes[position]);
            node.is_some_and(|node| node.def.name == "DynamicQuantizeLinear" && node.outputs.get(1) == Some(&Some(id)))
        };
        let constant = |id: ValueId| {
            let fits = |shape: &[usize]| shape.is_empty() || shape == [1] || shape == [columns];
            self.graph.constants.get(&id).is_some_and(|scale| scale.dtype() == DType::F32 && fits(scale.shape()))
        };
        [(a, b), (b, a)].into_iter().find(|&(a, b)| dynamic(a) && constant(b))
    }

    /// The Add that alone reads a value, and the constant for each column that it adds.
    fn bias(&self, id: ValueId, columns: usize) -> Option<(usize, ValueId)> {
        let add = self.links.only_reader(id)?;
        let bias = self.other(add, Binary::Add, id)?;
        let constant = self.graph.constants.get(&bias)?;
        (constant.dtype() == DType::F32 && constant.shape() == [columns]).then_some((add, bias))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Builder, after, agrees, graph};
    use super::*;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::tensor::Tensor;

    const PASS: &str = "fuse-dynamic-quantisation";

    fn start(scale: Tensor) -> Builder {
        let weights: Vec<i8> = (0..32 * 5).map(|i| (i * 91 % 251) as u8 as i8).collect();
        graph()
            .input("x", DType::F32, &[-1, 32])
            .constant("w", tensor(&[32, 5], &weights))
            .constant("ws", scale)
            .constant("wz", Tensor::scalar(3_i8))
            .constant("b", tensor(&[5], &noise(5, 3)))
            .dynamic("x", ["q", "xs", "xz"])
            .node("Mul", &["xs", "ws"], "s")
            .node("MatMulInteger", &["q", "w", "xz", "wz"], "i")
            .node_with("Cast", &[("to", crate::engine::attrs::Attr::Int(1))], &["i"], "f")
            .node("Mul", &["f", "s"], "h")
    }

    #[test]
    fn scales_and_bias_join_the_product() {
        let x = tensor(&[3, 32], &noise(96, 9));
        for scale in [Tensor::scalar(0.02_f32), tensor(&[5], &[0.01_f32, 0.02, 0.03, 0.04, 0.05])] {
            let plain = start(scale.clone()).outputs(&["h"]);
            assert_eq!(
                after(&plain, PASS),
                "q, xs, xz = DynamicQuantizeLinear(x)\nh = com.microsoft.MatMulIntegerToFloat(q, w, xs, ws, xz, wz)\n"
            );
            agrees(&plain, std::slice::from_ref(&x));
            let graph = start(scale).node("Add", &["b", "h"], "y").node("Gelu", &["y"], "z").outputs(&["z"]);
            let joined = "y = com.microsoft.MatMulIntegerToFloat(q, w, xs, ws, xz, wz, b)\nz = Gelu(y)\n";
            assert_eq!(after(&graph, PASS), format!("q, xs, xz = DynamicQuantizeLinear(x)\n{joined}"));
            agrees(&graph, std::slice::from_ref(&x));
        }
    }

    #[test]
    fn what_others_read_stays() {
        let graph = start(Tensor::scalar(0.02_f32)).node("Neg", &["f"], "y").outputs(&["h", "y"]);
        assert_eq!(after(&graph, PASS), graph.dump());
        let wide =
            start(Tensor::scalar(0.02_f32)).constant("c", tensor(&[1, 5], &noise(5, 3))).node("Add", &["h", "c"], "y").outputs(&["y"]);
        assert!(after(&wide, PASS).ends_with("y = Add(h, c)\n"));
        agrees(&wide, &[tensor(&[2, 32], &noise(64, 9))]);
    }
}
