//! Graphs as tools for static quantisation write them, with and without the passes for codes.

use super::testing::{Builder, after, graph, run};
use super::*;
use crate::engine::attrs::Attr;
use crate::engine::dtype::DType;
use crate::engine::ops::testing::{noise, tensor};
use crate::engine::tensor::Tensor;

const PASS: &str = "integer-operators";

/// Quantises and dequantises a value: `to` is what the rest reads.
fn qdq(builder: Builder, from: &str, to: &str, scale: f32, zero: Tensor) -> Builder {
    let (s, z, q) = (format!("{to}_s"), format!("{to}_z"), format!("{to}_q"));
    let builder = builder.constant(&s, Tensor::scalar(scale)).constant(&z, zero);
    builder.node("QuantizeLinear", &[from, &s, &z], &q).node("DequantizeLinear", &[&q, &s, &z], to)
}

/// Weights of codes with a scale per index of an axis, and a bias in units of the sums.
fn weights(builder: Builder, name: &str, shape: &[usize], axis: usize, x_scale: f32) -> Builder {
    let codes: Vec<i8> = (0..shape.iter().product()).map(|i: usize| (i * 91 % 255) as u8 as i8).collect();
    let channels = shape[axis];
    let scales: Vec<f32> = (0..channels).map(|c| 0.002 + 0.0005 * c as f32).collect();
    let units: Vec<f32> = scales.iter().map(|s| s * x_scale).collect();
    let bias: Vec<i32> = (0..channels).map(|c| c as i32 * 300 - 500).collect();
    let (q, s, z, b) = (format!("{name}_q"), format!("{name}_s"), format!("{name}_z"), format!("{name}_b"));
    let builder = builder
        .constant(&q, tensor(shape, &codes))
        .constant(&s, tensor(&[channels], &scales))
        .constant(&z, tensor(&[channels], &vec![0_i8; channels]))
        .constant(&format!("{b}_q"), tensor(&[channels], &bias))
        .constant(&format!("{b}_s"), tensor(&[channels], &units));
    let builder = builder.node_with("DequantizeLinear", &[("axis", Attr::Int(axis as i64))], &[&q, &s, &z], name);
    builder.node_with("DequantizeLinear", &[("axis", Attr::Int(0))], &[&format!("{b}_q"), &format!("{b}_s")], &b)
}

/// Scales that are no multiples of each other: sums would lie in the middle between two codes too often.
fn layers(zero: fn(i32) -> Tensor) -> Builder {
    let pads = ("pads", Attr::Ints(vec![1; 4]));
    let kernel = |n: i64| ("kernel_shape", Attr::Ints(vec![n; 2]));
    let b = graph().input("x", DType::F32, &[-1, 3, 10, 10]);
    let b = qdq(b, "x", "x0", 0.00913, zero(10));
    let b = weights(b, "w1", &[64, 3, 3, 3], 0, 0.00913);
    let b = b.node_with("Conv", &[pads.clone(), kernel(3)], &["x0", "w1", "w1_b"], "c1").node("Relu", &["c1"], "r1");
    let b = qdq(b, "r1", "h1", 0.0213, zero(0));
    let b = b.node_with("MaxPool", &[kernel(2), ("strides", Attr::Ints(vec![2; 2]))], &["h1"], "p1");
    let b = qdq(b, "p1", "h2", 0.0213, zero(0));
    let b = weights(b, "w2", &[64, 64, 3, 3], 0, 0.0213);
    let b = b.node_with("Conv", &[pads, kernel(3)], &["h2", "w2", "w2_b"], "c2");
    let b = qdq(b, "c2", "h3", 0.187, zero(100));
    let b = b.node("Add", &["h3", "h2"], "a");
    let b = qdq(b, "a", "h4", 0.171, zero(90));
    let b = b.node("GlobalAveragePool", &["h4"], "g");
    let b = qdq(b, "g", "h5", 0.0931, zero(60));
    let b = b.node_with("Flatten", &[("axis", Attr::Int(1))], &["h5"], "f");
    let b = qdq(b, "f", "h6", 0.0931, zero(60));
    let b = weights(b, "w3", &[10, 64], 0, 0.0931);
    b.node_with("Gemm", &[("transB", Attr::Int(1))], &["h6", "w3", "w3_b"], "y")
}

fn network(zero: fn(i32) -> Tensor) -> Graph {
    layers(zero).outputs(&["y"])
}

fn unsigned(zero: i32) -> Tensor {
    Tensor::scalar(zero as u8)
}

fn signed(zero: i32) -> Tensor {
    Tensor::scalar((zero - 128) as i8)
}

#[test]
fn a_network_becomes_one_of_codes() {
    for zero in [unsigned, signed] {
        let text = after(&network(zero), PASS);
        let names: Vec<&str> = text.lines().map(|line| line.split(['=', '(']).nth(1).unwrap_or_default().trim()).collect();
        let wanted = [
            "QuantizeLinear",
            "QLinearConv",
            "MaxPool",
            "QLinearConv",
            "com.microsoft.QLinearAdd",
            "com.microsoft.QLinearGlobalAveragePool",
            "Flatten",
            "com.microsoft.QGemm",
        ];
        assert_eq!(names, wanted, "{text}");
    }
}

#[test]
fn answers_are_those_of_the_graph_as_written_within_a_code() {
    let x = tensor(&[2, 3, 10, 10], &noise(600, 9));
    for zero in [unsigned, signed] {
        let graph = network(zero);
        let names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
        let plain = run(&graph, std::slice::from_ref(&x), &names).remove(0);
        for disabled in [vec![], vec!["integer-layout"], vec![PASS]] {
            let found = run(&graph, std::slice::from_ref(&x), &disabled).remove(0);
            assert_eq!(found.shape(), plain.shape());
            let spread = plain.slice::<f32>().unwrap().iter().fold(0.0_f32, |most, v| most.max(v.abs()));
            for (a, b) in found.slice::<f32>().unwrap().iter().zip(plain.slice::<f32>().unwrap()) {
                // One code of the last of the values before the product, times its largest weight.
                assert!((a - b).abs() <= 0.0931 * 0.0067 * 127.0 && spread > 1.0, "{a} against {b} without {disabled:?}");
            }
        }
    }
}

#[test]
fn layouts_do_not_change_a_bit() {
    let x = tensor(&[2, 3, 10, 10], &noise(600, 9));
    for zero in [unsigned, signed] {
        let graph = network(zero);
        let with = run(&graph, std::slice::from_ref(&x), &[]);
        assert_eq!(with, run(&graph, std::slice::from_ref(&x), &["integer-layout"]));
        // A row alone.
        assert_eq!(run(&graph, &[x.rows(1..2)], &[])[0], with[0].rows(1..2));
    }
}

/// Exporters write shapes as nodes without operands.
#[test]
fn nodes_without_operands_are_passed_over() {
    let shape = tensor(&[1], &[-1_i64]);
    let b = layers(unsigned).node_with("Constant", &[("value", Attr::Tensor(shape))], &[], "shape");
    let graph = b.node("Reshape", &["y", "shape"], "z").outputs(&["z"]);
    let x = tensor(&[2, 3, 10, 10], &noise(600, 9));
    assert_eq!(run(&graph, std::slice::from_ref(&x), &[])[0].len(), 2 * 10);
}

/// Along the rows of matrices in a batch a scale is no factor of a sum.
#[test]
fn scales_along_the_sum_of_a_batch_of_matrices_stay() {
    for n in [4, 5] {
        let b = qdq(graph().input("x", DType::F32, &[-1, 3, 4]), "x", "x0", 0.01, unsigned(128));
        let codes: Vec<i8> = (0..8 * n).map(|i: usize| (i * 37 % 200) as u8 as i8).collect();
        let b = b.constant("w_q", tensor(&[2, 4, n], &codes)).constant("w_s", tensor(&[4], &[0.01_f32, 0.02, 0.04, 0.08]));
        let b = b.node_with("DequantizeLinear", &[("axis", Attr::Int(1))], &["w_q", "w_s"], "w");
        let graph = b.node("MatMul", &["x0", "w"], "y").outputs(&["y"]);
        assert!(after(&graph, PASS).contains("y = MatMul(x0, w)"));
        let x = tensor(&[2, 3, 4], &noise(24, 5));
        let plain = run(&graph, std::slice::from_ref(&x), &[PASS]);
        assert_eq!(run(&graph, std::slice::from_ref(&x), &[]), plain);
    }
}

#[test]
fn what_has_no_form_on_codes_stays() {
    // A rectifier whose zero is not the least code; groups.
    let b = weights(qdq(graph().input("x", DType::F32, &[-1, 4, 5, 5]), "x", "x0", 0.01, unsigned(10)), "w", &[4, 4, 1, 1], 0, 0.01);
    let rectified = qdq(b.node("Conv", &["x0", "w"], "c").node("Relu", &["c"], "r"), "r", "y", 0.1, unsigned(5)).outputs(&["y"]);
    assert!(after(&rectified, PASS).contains("c = Conv(x0, w)"));
    let b = weights(qdq(graph().input("x", DType::F32, &[-1, 4, 5, 5]), "x", "x0", 0.01, unsigned(10)), "w", &[4, 1, 1, 1], 0, 0.01);
    let grouped = qdq(b.node_with("Conv", &[("group", Attr::Int(4))], &["x0", "w"], "c"), "c", "y", 0.1, unsigned(5)).outputs(&["y"]);
    assert!(after(&grouped, PASS).contains("c = Conv(x0, w)"));
    // Somebody reads the numbers between.
    let b = weights(qdq(graph().input("x", DType::F32, &[-1, 4, 5, 5]), "x", "x0", 0.01, unsigned(10)), "w", &[4, 4, 1, 1], 0, 0.01);
    let read = qdq(b.node("Conv", &["x0", "w"], "c"), "c", "y", 0.1, unsigned(5)).outputs(&["y", "c"]);
    assert!(after(&read, PASS).contains("c = Conv(x0, w)"));
}
