//! Puts one operator in the place of the two that put a number where there is none, `Where(IsNaN(x), fill, x)`: the first thing that a
//! model does which was trained on tables with missing cells.

use std::sync::Arc;

use super::pattern::Links;
use super::rank;
use crate::engine::dtype::DType;
use crate::engine::graph::{Dim, Graph, ValueId};
use crate::engine::model::LoadOptions;
use crate::engine::ops::compare::FillNan;
use crate::engine::tensor::Kind;

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    let links = Links::of(graph);
    for position in 0..graph.nodes.len() {
        let Some((x, fill)) = fill(graph, &links, position) else { continue };
        let node = &mut graph.nodes[position];
        node.op = Arc::new(FillNan(fill));
        node.inputs = vec![Some(x)];
    }
    // The test that nobody reads any more would keep others from what it reads.
    super::dead_code::run(graph, options);
}

/// What the node fills, and with what: one number for all, or one for each position of the last dimension.
fn fill(graph: &Graph, links: &Links, position: usize) -> Option<(ValueId, Vec<f32>)> {
    let named = |position: usize, name: &str| graph.nodes[position].def.name == name && graph.nodes[position].def.domain.is_empty();
    let &[Some(flag), Some(fill), Some(x)] = graph.nodes[position].inputs.as_slice() else { return None };
    let test = links.producer(flag)?;
    if !named(position, "Where") || !named(test, "IsNaN") || graph.nodes[test].inputs != [Some(x)] {
        return None;
    }
    let fill = graph.constants.get(&fill)?;
    if graph.values[x.index()].kind != Some(Kind::Tensor(DType::F32)) || fill.shape().len() > rank(graph, x)? {
        return None;
    }
    // The result has the shape of `x` only if no dimension of it grows.
    let last = graph.values[x.index()].dims.as_ref().and_then(|dims| dims.last());
    let fits = fill.len() == 1 || (fill.shape().last() == Some(&fill.len()) && last == Some(&Dim::Fixed(fill.len())));
    fits.then_some((x, fill.slice::<f32>()?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{after, agrees, graph};
    use super::*;
    use crate::engine::ops::testing::tensor;
    use crate::engine::tensor::Tensor;

    const PASS: &str = "fuse-fill";

    fn filled(fill: Tensor, dims: &[i64]) -> Graph {
        graph()
            .input("x", DType::F32, dims)
            .constant("fill", fill)
            .node("IsNaN", &["x"], "missing")
            .node("Where", &["missing", "fill", "x"], "y")
            .outputs(&["y"])
    }

    #[test]
    fn two_operators_become_one() {
        let x = tensor(&[2, 3], &[f32::NAN, 1.0, f32::NAN, 2.0, f32::NAN, -0.0]);
        for fill in
            [Tensor::scalar(5.0_f32), tensor(&[1], &[5.0_f32]), tensor(&[3], &[5.0, 6.0, f32::NAN]), tensor(&[1, 3], &[5.0_f32, 6.0, 7.0])]
        {
            let graph = filled(fill, &[-1, 3]);
            assert!(!after(&graph, PASS).contains("IsNaN"), "{}", after(&graph, PASS));
            agrees(&graph, std::slice::from_ref(&x));
        }
    }

    #[test]
    fn what_gives_another_shape_stays() {
        for (fill, dims, shape) in [
            (tensor(&[3], &[5.0_f32, 6.0, 7.0]), &[-1, 1][..], [2, 1]),
            (tensor(&[2, 1], &[5.0_f32, 6.0]), &[2, 3], [2, 3]),
            (tensor(&[1, 1, 1], &[5.0_f32]), &[2, 3], [2, 3]),
        ] {
            let graph = filled(fill, dims);
            assert!(after(&graph, PASS).contains("IsNaN"), "{}", after(&graph, PASS));
            let x: Vec<f32> = (0..shape[0] * shape[1]).map(|i| if i % 2 == 0 { f32::NAN } else { 1.0 }).collect();
            agrees(&graph, &[tensor(&shape, &x)]);
        }
    }

    #[test]
    fn the_test_of_something_else_stays() {
        let graph = graph()
            .input("x", DType::F32, &[2])
            .input("z", DType::F32, &[2])
            .constant("fill", Tensor::scalar(5.0_f32))
            .node("IsNaN", &["z"], "missing")
            .node("Where", &["missing", "fill", "x"], "y")
            .outputs(&["y"]);
        assert!(after(&graph, PASS).contains("IsNaN"));
    }
}
