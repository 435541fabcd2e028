//! Lets products with constant weights round their operands, or their weights alone, if the model is loaded at a lower precision than f32.

use std::sync::Arc;

use crate::engine::dtype::DType;
use crate::engine::graph::{Graph, Node};
use crate::engine::kernels::weights::Precision;
use crate::engine::model::LoadOptions;
use crate::engine::op::Op;
use crate::engine::ops::conv::Conv;
use crate::engine::ops::gemm::Gemm;
use crate::engine::ops::matmul::MatMul;
use crate::engine::ops::recurrent::Recurrent;

pub(super) fn run(graph: &mut Graph, options: &LoadOptions) {
    if options.precision == Precision::F32 {
        return;
    }
    let Graph { nodes, constants, .. } = graph;
    for node in nodes {
        let weights = node.inputs.get(1).copied().flatten().and_then(|id| constants.get(&id));
        if weights.is_some_and(|weights| weights.dtype() == DType::F32)
            && let Some(op) = at(node, options.precision)
        {
            node.op = op;
        }
    }
}

/// The node's operator at a precision, if it has the choice.
fn at(node: &Node, precision: Precision) -> Option<Arc<dyn Op>> {
    if let Some(op) = node.op.downcast::<MatMul>() {
        return Some(Arc::new(op.clone().at(precision)));
    }
    if let Some(op) = node.op.downcast::<Conv>() {
        return Some(Arc::new(op.clone().at(precision)));
    }
    if let Some(op) = node.op.downcast::<Recurrent>() {
        return Some(Arc::new(op.clone().at(precision)));
    }
    Some(Arc::new(node.op.downcast::<Gemm>()?.clone().at(precision)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{graph, run_with};
    use super::*;
    use crate::engine::attrs::Attr;
    use crate::engine::ops::testing::{noise, tensor};
    use crate::engine::tensor::Tensor;

    #[test]
    fn products_with_constants_are_rounded_on_request_only() {
        // 1 + 2^-8 needs nine bits of mantissa: bf16 rounds it to 1, ties to even.
        let odd = 1.0 + 2f32.powi(-8);
        let weights = tensor(&[2, 1], &[odd, 0.0]);
        for op in ["MatMul", "Gemm"] {
            let graph = graph().input("x", DType::F32, &[-1, 2]).constant("w", weights.clone()).node(op, &["x", "w"], "y").outputs(&["y"]);
            let answer =
                |precision| run_with(&graph, &[tensor(&[1, 2], &[3.0_f32, 5.0])], &LoadOptions { precision, ..LoadOptions::default() });
            assert_eq!(answer(Precision::F32)[0], tensor(&[1, 1], &[3.0 * odd]));
            assert_eq!(answer(Precision::Bf16)[0], tensor(&[1, 1], &[3.0_f32]));
        }
        // Neither operand is constant: attention's own products stay as they are.
        let graph =
            graph().input("x", DType::F32, &[-1, 2]).input("w", DType::F32, &[2, 1]).node("MatMul", &["x", "w"], "y").outputs(&["y"]);
        let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
        assert_eq!(run_with(&graph, &[tensor(&[1, 2], &[3.0_f32, 5.0]), weights], &options)[0], tensor(&[1, 1], &[3.0 * odd]));
    }

    #[test]
    fn recurrent_layers_round_their_products_and_sequences_do_not_depend_on_the_batch() {
        for (name, gates) in [("RNN", 1), ("GRU", 3), ("LSTM", 4)] {
            let (steps, batch, input, hidden) = (7, 5, 40, 33);
            let weights = |rows: usize, seed| {
                let small: Vec<f32> = noise(gates * hidden * rows, seed).into_iter().map(|v| v / 8.0).collect();
                tensor(&[1, gates * hidden, rows], &small)
            };
            let (w, r) = (weights(input, 1), weights(hidden, 2));
            let x = noise(steps * batch * input, 3);
            let answer_of = |[w, r]: [&Tensor; 2], x: &[f32], batch, precision| {
                let graph = graph().input("x", DType::F32, &[steps as i64, -1, input as i64]);
                let graph = graph.constant("w", w.clone()).constant("r", r.clone());
                let graph = graph.node_with(name, &[("hidden_size", Attr::Int(hidden as i64))], &["x", "w", "r"], "y").outputs(&["y"]);
                let x = tensor(&[steps, batch, input], x);
                run_with(&graph, &[x], &LoadOptions { precision, ..LoadOptions::default() }).remove(0)
            };
            let answer = |x: &[f32], batch, precision| answer_of([&w, &r], x, batch, precision);
            let full = answer(&x, batch, Precision::F32);
            for precision in [Precision::Bf16, Precision::Int8Weights, Precision::Int4Weights] {
                let rounded = answer(&x, batch, precision);
                let together = rounded.slice::<f32>().unwrap();
                if precision == Precision::Bf16 {
                    let off = full.slice::<f32>().unwrap().iter().zip(together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(off > 0.0 && off < 0.05, "{name}: {off}");
                } else {
                    // What f32 computes with the rounded weights; no sum is longer than a group.
                    let greatest = if precision == Precision::Int8Weights { 127.0 } else { 7.0 };
                    let [w, r] = [&w, &r].map(|weights| {
                        let columns = weights.slice::<f32>().unwrap().chunks(*weights.shape().last().unwrap());
                        let scale = |column: &[f32]| column.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / greatest;
                        let round = |column: &[f32]| {
                            column.iter().map(|v| (v / scale(column)).round_ties_even() * scale(column)).collect::<Vec<_>>()
                        };
                        tensor(weights.shape(), &columns.flat_map(round).collect::<Vec<f32>>())
                    });
                    assert_eq!(rounded, answer_of([&w, &r], &x, batch, Precision::F32), "{name} at {precision}");
                    assert_ne!(rounded, full, "{name} at {precision}");
                }
                let sequence: Vec<f32> = x.chunks(input).skip(2).step_by(batch).flatten().copied().collect();
                let alone = answer(&sequence, 1, precision);
                let own: Vec<f32> = together.chunks(hidden).skip(2).step_by(batch).flatten().copied().collect();
                assert_eq!(alone.slice::<f32>().unwrap(), own, "{name} at {precision}");
            }
            assert_eq!(answer(&x, batch, Precision::Int8), full, "{name} rounds nothing at int8");
        }
    }

    #[test]
    fn a_residual_is_added_at_every_precision() {
        let (k, n) = (40, 24);
        let graph = graph().input("x", DType::F32, &[-1, k as i64]).input("r", DType::F32, &[-1, n as i64]);
        let graph = graph.constant("w", tensor(&[k, n], &noise(k * n, 1))).node("MatMul", &["x", "w"], "p");
        let graph = graph.node("Add", &["p", "r"], "s").node("Relu", &["s"], "y").outputs(&["y"]);
        for rows in [1, 3, 50] {
            // A residual that outweighs what rounding does.
            let residual: Vec<f32> = noise(rows * n, 3).iter().map(|v| v * 100.0).collect();
            let inputs = [tensor(&[rows, k], &noise(rows * k, 2)), tensor(&[rows, n], &residual)];
            let answer = |precision| run_with(&graph, &inputs, &LoadOptions { precision, ..LoadOptions::default() }).remove(0);
            let want = answer(Precision::F32);
            for precision in Precision::ALL {
                let found = answer(precision);
                // Codes of 4 bits are off by a 14th of a weight's magnitude, which is less than 1.
                let bound = if precision == Precision::Int4Weights { k as f32 / 14.0 } else { 0.5 };
                for (found, want) in found.slice::<f32>().unwrap().iter().zip(want.slice::<f32>().unwrap()) {
                    assert!((found - want).abs() < bound, "{precision}, {rows} rows: {found}, not {want}");
                }
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_the_batch_at_any_precision() {
        let (k, n) = (70, 45);
        let graph = graph().input("x", DType::F32, &[-1, k as i64]).constant("w", tensor(&[k, n], &noise(k * n, 1)));
        let graph = graph.node("MatMul", &["x", "w"], "y").outputs(&["y"]);
        let x = tensor(&[40, k], &noise(40 * k, 2));
        for precision in Precision::ALL {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            let together = run_with(&graph, std::slice::from_ref(&x), &options).remove(0);
            for rows in [0..1, 15..16, 16..17, 31..36, 32..35, 39..40] {
                assert_eq!(
                    run_with(&graph, &[x.rows(rows.clone())], &options)[0],
                    together.rows(rows.clone()),
                    "rows {rows:?} at {precision}"
                );
            }
        }
    }

    #[test]
    fn weights_alone_are_rounded_to_codes() {
        // The scale is 1 for the greatest weight of a column, as a number of codes; 0.4 is rounded, and the activations are not.
        for (precision, greatest) in [(Precision::Int8Weights, 127.0), (Precision::Int4Weights, 7.0_f32)] {
            let options = LoadOptions { precision, ..LoadOptions::default() };
            let (a, b) = (1.0 + 2f32.powi(-20), 3.0 + 2f32.powi(-20));
            for (op, weights) in [("MatMul", [greatest, 0.4]), ("Gemm", [-greatest, 0.6])] {
                let graph = graph().input("x", DType::F32, &[-1, 2]).constant("w", tensor(&[2, 1], &weights));
                let graph = graph.node(op, &["x", "w"], "y").outputs(&["y"]);
                let answer = run_with(&graph, &[tensor(&[1, 2], &[b, a])], &options);
                let want = b * weights[0] + a * weights[1].round();
                assert_eq!(answer[0].slice::<f32>().unwrap(), [want], "{op} at {precision}");
                // A matrix with NaN has no codes.
                let graph = self::graph().input("x", DType::F32, &[-1, 2]).constant("w", tensor(&[2, 2], &[f32::NAN, 0.4, 1.0, 0.3]));
                let graph = graph.node(op, &["x", "w"], "y").outputs(&["y"]);
                let answer = run_with(&graph, &[tensor(&[1, 2], &[1.0_f32, 0.0])], &options);
                let answer = answer[0].slice::<f32>().unwrap();
                assert!(answer[0].is_nan() && answer[1] == 0.4, "{op} at {precision}: {answer:?}");
            }
        }
    }
}
