//! What the operators of this folder answer, and what they refuse.

use super::super::testing::{Case, assert_close, noise, op, tensor};
use crate::engine::dtype::DType;
use crate::engine::op::OpError;
use crate::engine::tensor::Tensor;

const LAYERS: [(&str, usize); 3] = [("RNN", 1), ("GRU", 3), ("LSTM", 4)];

fn layer(name: &'static str) -> Case {
    op(name).outputs(if name == "LSTM" { 3 } else { 2 })
}

/// Input, weights and biases of a layer with `gates`.
fn operands(gates: usize, directions: usize, [steps, batch, input, hidden]: [usize; 4]) -> Vec<Tensor> {
    let part = |shape: &[usize], seed: u32| {
        let values: Vec<f32> = noise(shape.iter().product(), seed).iter().map(|v| v / 2.0).collect();
        tensor(shape, &values)
    };
    vec![
        part(&[steps, batch, input], 1),
        part(&[directions, gates * hidden, input], 2),
        part(&[directions, gates * hidden, hidden], 3),
        part(&[directions, 2 * gates * hidden], 4),
    ]
}

fn some(tensors: &[Tensor]) -> Vec<Option<&Tensor>> {
    tensors.iter().map(Some).collect()
}

/// One element, one step, by the equations of the standard.
#[test]
fn one_step_by_hand() {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let (x, h0) = (tensor(&[1, 1, 1], &[2.0_f32]), tensor(&[1, 1, 1], &[0.5_f32]));
    let rnn = op("RNN").run_some(&[Some(&x), Some(&tensor(&[1, 1, 1], &[0.3_f32])), Some(&tensor(&[1, 1, 1], &[-0.4_f32])), Some(&tensor(&[1, 2], &[0.1_f32, 0.2])), None, Some(&h0)]);
    assert_close(&rnn.unwrap()[0], &[1, 1, 1, 1], &[0.7_f32.tanh()], 1e-6);

    let (w, r, b) = (tensor(&[1, 3, 1], &[0.1_f32, 0.2, 0.3]), tensor(&[1, 3, 1], &[0.4_f32, 0.5, 0.6]), tensor(&[1, 6], &[0.01_f32, 0.02, 0.03, 0.04, 0.05, 0.06]));
    let (z, reset) = (sigmoid(0.2 + 0.2 + 0.05), sigmoid(0.4 + 0.25 + 0.07));
    for (linear, new) in [(0_i64, (0.6 + 0.6 * reset * 0.5 + 0.09).tanh()), (1, (0.6 + 0.03 + reset * (0.3 + 0.06)).tanh())] {
        let gru = op("GRU").attr("linear_before_reset", linear);
        let y = gru.run_some(&[Some(&x), Some(&w), Some(&r), Some(&b), None, Some(&h0)]).unwrap();
        assert_close(&y[0], &[1, 1, 1, 1], &[(1.0 - z) * new + z * 0.5], 1e-6);
    }

    let (w, r) = (tensor(&[1, 4, 1], &[0.1_f32, 0.2, 0.3, 0.4]), tensor(&[1, 4, 1], &[0.4_f32, 0.3, 0.2, 0.1]));
    let (c0, p) = (tensor(&[1, 1, 1], &[-0.5_f32]), tensor(&[1, 3], &[0.5_f32, 0.6, 0.7]));
    for input_forget in [0_i64, 1] {
        let i = sigmoid(0.2 + 0.2 - 0.25);
        let f = if input_forget == 1 { 1.0 - i } else { sigmoid(0.6 + 0.1 - 0.35) };
        let c = f * -0.5 + i * (0.8_f32 + 0.05).tanh();
        let o = sigmoid(0.4 + 0.15 + 0.6 * c);
        let lstm = layer("LSTM").attr("input_forget", input_forget);
        let y = lstm.run_some(&[Some(&x), Some(&w), Some(&r), None, None, Some(&h0), Some(&c0), Some(&p)]).unwrap();
        assert_close(&y[1], &[1, 1, 1], &[o * c.tanh()], 1e-6);
        assert_close(&y[2], &[1, 1, 1], &[c], 1e-6);
    }
}

#[test]
fn both_directions_are_each_direction() {
    let sizes = [5, 3, 4, 6];
    for (name, gates) in LAYERS {
        let both = operands(gates, 2, sizes);
        let lengths = tensor(&[3], &[5_i32, 0, 2]);
        let run = |direction: &str, tensors: &[Tensor]| {
            let mut inputs = some(tensors);
            inputs.push(Some(&lengths));
            layer(name).attr("direction", direction).attr("hidden_size", 6_i64).run_some(&inputs).unwrap()
        };
        let all = run("bidirectional", &both);
        for (d, direction) in ["forward", "reverse"].into_iter().enumerate() {
            let one: Vec<Tensor> = both.iter().enumerate().map(|(i, t)| if i == 0 { t.clone() } else { t.rows(d..d + 1) }).collect();
            let found = run(direction, &one);
            assert_eq!(found[1], all[1].rows(d..d + 1), "{name} {direction}");
            let y = op("Slice").one(&[&all[0], &tensor(&[1], &[d as i64]), &tensor(&[1], &[d as i64 + 1]), &tensor(&[1], &[1_i64])]);
            assert_eq!(found[0], y, "{name} {direction}");
        }
    }
}

#[test]
fn a_sequence_ends_where_its_length_says() {
    for (name, gates) in LAYERS {
        let mut tensors = operands(gates, 1, [5, 2, 4, 3]);
        tensors.push(tensor(&[2], &[5_i32, 2]));
        let all = layer(name).run_some(&some(&tensors)).unwrap();
        // The second sequence alone, cut off.
        let x = op("Slice").one(&[&tensors[0], &tensor(&[2], &[0_i64, 1]), &tensor(&[2], &[2_i64, 2])]);
        let alone = layer(name).run(&[&x, &tensors[1], &tensors[2], &tensors[3]]).unwrap();
        let y = all[0].slice::<f32>().unwrap();
        let own: Vec<f32> = (0..5).flat_map(|t| y[(t * 2 + 1) * 3..][..3].to_vec()).collect();
        assert_eq!(own[..6], *alone[0].slice::<f32>().unwrap(), "{name}");
        assert_eq!(own[6..], [0.0; 9], "{name}");
        for state in 1..all.len() {
            assert_eq!(all[state].slice::<f32>().unwrap()[3..], *alone[state].slice::<f32>().unwrap(), "{name}");
        }
    }
}

#[test]
fn the_batch_may_come_first() {
    let swap = |t: &Tensor, perm: &[i64]| op("Transpose").attr("perm", perm).one(&[t]);
    for (name, gates) in LAYERS {
        let mut tensors = operands(gates, 2, [4, 3, 2, 5]);
        let h0 = tensor(&[2, 3, 5], &noise(30, 9));
        tensors.push(tensor(&[3], &[4_i32, 1, 3]));
        tensors.push(h0.clone());
        let bidirectional = || layer(name).attr("direction", "bidirectional");
        let want = bidirectional().run_some(&some(&tensors)).unwrap();
        tensors[0] = swap(&tensors[0], &[1, 0, 2]);
        tensors[5] = swap(&h0, &[1, 0, 2]);
        let found = bidirectional().attr("layout", 1_i64).run_some(&some(&tensors)).unwrap();
        assert_eq!(swap(&found[0], &[1, 2, 0, 3]), want[0], "{name}");
        for state in 1..want.len() {
            assert_eq!(swap(&found[state], &[1, 0, 2]), want[state], "{name}");
        }
        assert!(matches!(bidirectional().attr("layout", 1_i64).opset(7).run_some(&some(&tensors)), Err(OpError::Attribute(_))));
    }
}

/// Weights that are more than a cache holds, few sequences: each thread has some columns of a step. What runs a case compares its bits on
/// two threads.
#[test]
fn few_sequences_have_the_same_bits_on_several_threads() {
    for (name, gates) in LAYERS {
        for (directions, batch) in [(1, 1), (1, 5), (2, 1)] {
            let operands = operands(gates, directions, [3, batch, 17, 400]);
            let direction = if directions == 1 { "forward" } else { "bidirectional" };
            for linear in [0_i64, 1].into_iter().take(if name == "GRU" { 2 } else { 1 }) {
                let case = layer(name).attr("hidden_size", 400_i64).attr("direction", direction);
                let case = if name == "GRU" { case.attr("linear_before_reset", linear) } else { case };
                case.run_some(&some(&operands)).unwrap();
            }
        }
    }
}

#[test]
fn functions_clipping_and_old_opsets() {
    let (x, w, r) = (tensor(&[1, 1, 1], &[2.0_f32]), tensor(&[1, 1, 1], &[1.0_f32]), tensor(&[1, 1, 1], &[0.0_f32]));
    let affine = |alpha: f32| op("RNN").attr("activations", &["affine"][..]).attr("activation_alpha", &[alpha][..]).attr("activation_beta", &[1.0_f32][..]);
    assert_close(&affine(3.0).one(&[&x, &w, &r]), &[1, 1, 1, 1], &[7.0], 0.0);
    assert_close(&affine(3.0).attr("clip", 0.5_f32).one(&[&x, &w, &r]), &[1, 1, 1, 1], &[2.5], 0.0);
    assert_close(&op("RNN").opset(1).attr("output_sequence", 1_i64).one(&[&x, &w, &r]), &[1, 1, 1, 1], &[2.0_f32.tanh()], 1e-6);
    assert!(matches!(op("RNN").attr("output_sequence", 1_i64).error(&[&x, &w, &r]), OpError::Attribute(_)));
    // Parameters are consumed by those functions that have them.
    let mixed = op("RNN").attr("direction", "bidirectional").attr("activations", &["Tanh", "LeakyRelu"][..]).attr("activation_alpha", &[0.5_f32][..]);
    let y = mixed.one(&[&x, &tensor(&[2, 1, 1], &[1.0_f32, -1.0]), &tensor(&[2, 1, 1], &[0.0_f32; 2])]);
    assert_close(&y, &[1, 2, 1, 1], &[2.0_f32.tanh(), -1.0], 1e-6);
}

#[test]
fn other_types_and_sequences_alone() {
    for (name, gates) in LAYERS {
        let tensors = operands(gates, 1, [6, 40, 3, 4]);
        let want = layer(name).run_some(&some(&tensors)).unwrap();
        let cast = |t: &Tensor, to: DType| op("Cast").attr("to", i64::from(to.onnx())).one(&[t]);
        for (dtype, tolerance) in [(DType::F64, 1e-5), (DType::F16, 1e-2), (DType::BF16, 6e-2)] {
            let typed: Vec<Tensor> = tensors.iter().map(|t| cast(t, dtype)).collect();
            let found = layer(name).opset(22).run_some(&some(&typed)).unwrap();
            for (found, want) in found.iter().zip(&want) {
                assert_eq!(found.dtype(), dtype);
                assert_close(&cast(found, DType::F32), want.shape(), want.slice::<f32>().unwrap(), tolerance);
            }
        }
        // A sequence's bits do not depend on the others.
        let x = op("Slice").one(&[&tensors[0], &tensor(&[1], &[7_i64]), &tensor(&[1], &[8_i64]), &tensor(&[1], &[1_i64])]);
        let alone = layer(name).run(&[&x, &tensors[1], &tensors[2], &tensors[3]]).unwrap();
        assert_eq!(alone[1].slice::<f32>().unwrap(), &want[1].slice::<f32>().unwrap()[7 * 4..8 * 4], "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (name, gates) in LAYERS {
        let good = operands(gates, 1, [2, 3, 4, 5]);
        let refuse = |index: usize, bad: Tensor| {
            let mut tensors = good.clone();
            tensors.resize(7, Tensor::zeros(DType::F32, &[1, 3, 5]));
            tensors[4] = tensor(&[3], &[2_i32; 3]);
            tensors.truncate(if name == "LSTM" { 7 } else { 6 });
            assert!(layer(name).run_some(&some(&tensors)).is_ok());
            if index < tensors.len() {
                tensors[index] = bad;
                let error = layer(name).run_some(&some(&tensors)).unwrap_err();
                assert!(matches!(error, OpError::Shape(_) | OpError::Value(_) | OpError::Type(_)), "{name} {index}: {error:?}");
            }
        };
        for index in [0, 1, 2, 3, 5, 6] {
            for shape in [&[][..], &[2, 3], &[2, 3, 9], &[0, 0, 0], &[1, 3, 6]] {
                refuse(index, Tensor::zeros(DType::F32, shape));
            }
        }
        refuse(4, tensor(&[3], &[2_i32, 3, 0]));
        refuse(4, tensor(&[3], &[-1_i32, 0, 0]));
        refuse(4, tensor(&[2], &[1_i32; 2]));
        refuse(4, tensor(&[3], &[1_i64; 3]));
        let with = |name_of: &str, value: &[&str]| layer(name).attr(name_of, value).run_some(&some(&good)).unwrap_err();
        assert!(matches!(with("activations", &["Tanh"; 7]), OpError::Attribute(_)));
        assert!(matches!(with("activations", &["Erf"; 4][..(gates + 2) / 2]), OpError::Attribute(_)));
        assert!(matches!(layer(name).attr("direction", "up").run_some(&some(&good)), Err(OpError::Attribute(_))));
        assert!(matches!(layer(name).attr("clip", f32::NAN).run_some(&some(&good)), Err(OpError::Attribute(_))));
        assert!(matches!(layer(name).attr("hidden_size", -5_i64).run_some(&some(&good)), Err(OpError::Shape(_))));
        assert!(matches!(layer(name).attr("direction", "bidirectional").run_some(&some(&good)), Err(OpError::Shape(_))));
        assert!(layer(name).run_some(&some(&good[..2])).is_err());
    }
}

#[test]
fn nothing_to_walk_over() {
    for (name, gates) in LAYERS {
        let tensors = operands(gates, 1, [0, 3, 4, 5]);
        let y = layer(name).run_some(&some(&tensors)).unwrap();
        assert_eq!((y[0].shape(), y[1].slice::<f32>().unwrap()), (&[0, 1, 3, 5][..], &[0.0; 15][..]));
        let y = layer(name).run_some(&some(&operands(gates, 1, [2, 0, 4, 5]))).unwrap();
        assert_eq!(y[0].shape(), [2, 1, 0, 5]);
        let y = layer(name).run_some(&some(&operands(gates, 1, [2, 3, 4, 0]))).unwrap();
        assert_eq!(y[0].shape(), [2, 1, 3, 0]);
    }
    // An empty input with more sequences than memory could hold.
    let operands = [Tensor::zeros(DType::F32, &[0, 1 << 40, 4]), random(&[1, 5, 4]), random(&[1, 5, 5])];
    assert!(matches!(op("RNN").run_some(&some(&operands)), Err(OpError::Shape(_))));
}

fn random(shape: &[usize]) -> Tensor {
    tensor(shape, &noise(shape.iter().product(), 7))
}

/// Codes, scales and zero points per direction or per row, against the same layer on the numbers that they stand for. The
/// inputs are 0 to 255 steps of one size, so that quantising them loses nothing; a state that is zero neither.
#[test]
fn an_lstm_of_codes_is_that_of_its_numbers() {
    let (steps, batch, input, hidden) = (1, 2, 3, 2);
    let rows = 4 * hidden;
    let x = tensor(&[steps, batch, input], &[0.0_f32, 2.55, 0.5, 1.0, -0.0, 0.37]);
    let codes = |len: usize, seed: u32| noise(len, seed).iter().map(|v| (v * 60.0) as i8).collect::<Vec<i8>>();
    let (w, r) = (codes(2 * input * rows, 1), codes(2 * hidden * rows, 2));
    let scales: Vec<f32> = (0..2 * rows).map(|i| 0.01 + i as f32 / 1000.0).collect();
    let zeros: Vec<i8> = (0..2 * rows).map(|i| i as i8 - 4).collect();
    let bias = tensor(&[2, 2 * rows], &noise(4 * rows, 3));
    for per_row in [false, true] {
        let (shape, each) = if per_row { (vec![2, rows], rows) } else { (vec![2], 1) };
        let (scale, zero) = (tensor(&shape, &scales[..2 * each]), tensor(&shape, &zeros[..2 * each]));
        let numbers = |codes: &[i8], depth: usize| {
            let number = |i: usize| {
                let (d, row, at) = (i / (rows * depth), i / depth % rows, i % depth);
                let part = d * each + row % each;
                f32::from(codes[(d * depth + at) * rows + row] - zeros[part]) * scales[part]
            };
            tensor(&[2, rows, depth], &(0..codes.len()).map(number).collect::<Vec<_>>())
        };
        let want = layer("LSTM").attr("direction", "bidirectional").run(&[&x, &numbers(&w, input), &numbers(&r, hidden), &bias]).unwrap();
        let (w, r) = (tensor(&[2, input, rows], &w), tensor(&[2, hidden, rows], &r));
        let case = || op("DynamicQuantizeLSTM").domain("com.microsoft").outputs(3).attr("direction", "bidirectional");
        let operands = [Some(&x), Some(&w), Some(&r), Some(&bias), None, None, None, None, Some(&scale), Some(&zero), Some(&scale), Some(&zero)];
        let found = case().run_some(&operands).unwrap();
        for (found, want) in found.iter().zip(&want) {
            assert_close(found, want.shape(), want.slice::<f32>().unwrap(), 1e-5);
        }
        let wrong = tensor(&[3], &[1.0_f32; 3]);
        let mut odd = operands;
        odd[10] = Some(&wrong);
        assert!(matches!(case().run_some(&odd).unwrap_err(), OpError::Shape(_)));
        odd[10] = None;
        assert!(case().run_some(&odd).is_err());
    }
}

/// A sequence that is over has no part in how the others' states are quantised, but for the step behind its end; what lies
/// behind the longest one has no part in how the inputs are. The numbers are onnxruntime's.
#[test]
fn what_is_over_is_not_quantised() {
    let (input, hidden) = (1, 1);
    let x = tensor(&[3, 2, input], &[1.0_f32, 3.0, -0.7, 9.0, 50.0, 50.0]);
    let (w, r) = (tensor(&[1, input, 4 * hidden], &[40_i8, -90, 70, 100]), tensor(&[1, hidden, 4 * hidden], &[90_i8, 60, -30, -100]));
    let (scale, zero, lengths) = (tensor(&[1], &[0.01_f32]), tensor(&[1], &[0_i8]), tensor(&[2], &[2_i32, 1]));
    let case = op("DynamicQuantizeLSTM").domain("com.microsoft").outputs(3);
    let operands = [Some(&x), Some(&w), Some(&r), None, Some(&lengths), None, None, None, Some(&scale), Some(&zero), Some(&scale), Some(&zero)];
    let found = case.run_some(&operands).unwrap();
    assert_close(&found[0], &[3, 1, 2, 1], &[0.123_376_18, 0.040_386_163, -0.091_364_71, 0.0, 0.0, 0.0], 1e-6);
}
