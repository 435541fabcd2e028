//! What the operators of this folder answer, and what they refuse.

use super::super::testing::{Case, assert_close, noise, op, tensor};
use crate::engine::dtype::DType;
use crate::engine::op::OpError;
use crate::engine::tensor::Tensor;

fn attention() -> Case {
    op("Attention").opset(25)
}

fn microsoft(name: &'static str) -> Case {
    op(name).domain("com.microsoft").opset(1)
}

fn random(shape: &[usize], seed: u32) -> Tensor {
    tensor(shape, &noise(shape.iter().product(), seed))
}

fn floats(t: &Tensor) -> &[f32] {
    t.slice::<f32>().unwrap()
}

/// The definition, a number at a time: heads apart, the same number of heads, `allowed` says which keys take part.
fn naive(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, allowed: impl Fn(usize, usize, usize) -> bool) -> Vec<f32> {
    let (&[batch, heads, queries, head], &[_, kv_heads, keys, v_head]) = (q.shape(), v.shape()) else { panic!("four dimensions") };
    let (q, k, v) = (floats(q), floats(k), floats(v));
    let mut y = vec![];
    for at in 0..batch * heads * queries {
        let (b, h, i) = (at / (heads * queries), at / queries % heads, at % queries);
        let group = b * kv_heads + h / (heads / kv_heads);
        let key = |j: usize| &k[(group * keys + j) * head..][..head];
        let dot = |j: usize| q[at * head..][..head].iter().zip(key(j)).map(|(a, b)| f64::from(a * b)).sum::<f64>() * scale;
        let weights: Vec<f64> = (0..keys).map(|j| if allowed(b, i, j) { dot(j).exp() } else { 0.0 }).collect();
        let total: f64 = weights.iter().sum();
        for c in 0..v_head {
            let sum: f64 = weights.iter().enumerate().map(|(j, w)| w * f64::from(v[(group * keys + j) * v_head + c])).sum();
            y.push(if total == 0.0 { 0.0 } else { sum / total } as f32);
        }
    }
    y
}

#[test]
fn heads_are_shared_and_masks_compose() {
    let (q, k, v) = (random(&[2, 4, 3, 8], 1), random(&[2, 2, 5, 8], 2), random(&[2, 2, 5, 6], 3));
    let scale = 1.0 / 8.0_f64.sqrt();
    let shape = [2, 4, 3, 6];
    assert_close(&attention().one(&[&q, &k, &v]), &shape, &naive(&q, &k, &v, scale, |_, _, _| true), 1e-5);
    assert_close(&attention().attr("scale", 0.25_f32).one(&[&q, &k, &v]), &shape, &naive(&q, &k, &v, 0.25, |_, _, _| true), 1e-5);
    let causal = attention().attr("is_causal", 1_i64);
    assert_close(&causal.one(&[&q, &k, &v]), &shape, &naive(&q, &k, &v, scale, |_, i, j| j <= i), 1e-5);
    let window = attention().attr("left_window_size", 1_i64).attr("right_window_size", 0_i64);
    assert_close(&window.one(&[&q, &k, &v]), &shape, &naive(&q, &k, &v, scale, |_, i, j| j <= i && j + 1 >= i), 1e-5);
    // A mask of four of five keys, the first query of which sees nothing.
    let keep = [false, false, false, false, true, false, true, true, false, true, true, true];
    let want = naive(&q, &k, &v, scale, |_, i, j| j < 4 && keep[i * 4 + j]);
    assert_close(&attention().one(&[&q, &k, &v, &tensor(&[3, 4], &keep)]), &shape, &want, 1e-5);
    let added: Vec<f32> = keep.iter().map(|&keep| if keep { 0.0 } else { f32::NEG_INFINITY }).collect();
    assert_close(&attention().one(&[&q, &k, &v, &tensor(&[1, 1, 3, 4], &added)]), &shape, &want, 1e-5);
    let lengths = tensor(&[2], &[2_i64, 5]);
    let inputs = [Some(&q), Some(&k), Some(&v), None, None, None, Some(&lengths)];
    let want = naive(&q, &k, &v, scale, |b, i, j| (j as i64) < [2, 5][b] && j as i64 <= i as i64 + [-1, 2][b]);
    assert_close(&attention().attr("is_causal", 1_i64).run_some(&inputs).unwrap()[0], &shape, &want, 1e-5);
}

#[test]
fn a_past_comes_before_and_three_dimensions_are_the_same() {
    let (q, k, v) = (random(&[2, 3, 2, 4], 1), random(&[2, 3, 7, 4], 2), random(&[2, 3, 7, 5], 3));
    let split = |t: &Tensor, from: i64, to: i64| op("Slice").one(&[t, &tensor(&[1], &[from]), &tensor(&[1], &[to]), &tensor(&[1], &[2_i64])]);
    let all = op("Attention").opset(23).outputs(4).run(&[&q, &k, &v]).unwrap();
    let (new_k, new_v, old_k, old_v) = (split(&k, 4, 7), split(&v, 4, 7), split(&k, 0, 4), split(&v, 0, 4));
    let inputs = [Some(&q), Some(&new_k), Some(&new_v), None, Some(&old_k), Some(&old_v)];
    assert_eq!(attention().outputs(4).run_some(&inputs).unwrap(), all);
    assert_eq!(all[1], k);
    let flat = |t: &Tensor| {
        let moved = op("Transpose").attr("perm", &[0_i64, 2, 1, 3][..]).one(&[t]);
        let &[b, s, h, d] = moved.shape() else { panic!("four dimensions") };
        moved.reshape(&[b, s, h * d]).unwrap()
    };
    let three = attention().attr("q_num_heads", 3_i64).attr("kv_num_heads", 3_i64);
    let found = three.outputs(4).run_some(&[Some(&flat(&q)), Some(&flat(&new_k)), Some(&flat(&new_v)), None, Some(&old_k), Some(&old_v)]).unwrap();
    assert_eq!(found[0], flat(&all[0]));
    assert_eq!(found[1..], all[1..]);
}

#[test]
fn scores_of_every_stage() {
    let (q, k, v) = (tensor(&[1, 1, 1, 1], &[1.0_f32]), tensor(&[1, 1, 2, 1], &[2.0_f32, 4.0]), tensor(&[1, 1, 2, 1], &[1.0_f32, 3.0]));
    let mask = tensor(&[1, 2], &[1.0_f32, -1.0]);
    let capped = [2.0 * 1.0_f32.tanh(), 2.0 * 2.0_f32.tanh()];
    let biased = [capped[0] + 1.0, capped[1] - 1.0];
    let p = 1.0 / (1.0 + (biased[1] - biased[0]).exp());
    for (mode, want) in [(0_i64, [2.0, 4.0]), (1, capped), (2, biased), (3, [p, 1.0 - p])] {
        let case = attention().attr("softcap", 2.0_f32).attr("qk_matmul_output_mode", mode).outputs(4);
        let y = case.run(&[&q, &k, &v, &mask]).unwrap();
        assert_close(&y[3], &[1, 1, 1, 2], &want, 1e-6);
        assert_close(&y[0], &[1, 1, 1, 1], &[p + 3.0 * (1.0 - p)], 1e-6);
    }
}

#[test]
fn rows_do_not_depend_on_each_other_nor_on_threads() {
    // Enough work for two threads, more rows than a block, one group of heads.
    let (q, k, v) = (random(&[1, 2, 300, 64], 1), random(&[1, 1, 300, 64], 2), random(&[1, 1, 300, 64], 3));
    let all = attention().one(&[&q, &k, &v]);
    let some = op("Slice").one(&[&q, &tensor(&[1], &[255_i64]), &tensor(&[1], &[258_i64]), &tensor(&[1], &[2_i64])]);
    let found = attention().one(&[&some, &k, &v]);
    let want = op("Slice").one(&[&all, &tensor(&[1], &[255_i64]), &tensor(&[1], &[258_i64]), &tensor(&[1], &[2_i64])]);
    assert_eq!(found, want);
}

#[test]
fn other_types_compute_the_same() {
    let operands = [random(&[1, 2, 3, 4], 1), random(&[1, 2, 5, 4], 2), random(&[1, 2, 5, 4], 3)];
    let cast = |t: &Tensor, to: DType| op("Cast").attr("to", i64::from(to.onnx())).one(&[t]);
    let want = attention().one(&[&operands[0], &operands[1], &operands[2]]);
    for (dtype, tolerance) in [(DType::F64, 1e-6), (DType::F16, 1e-2), (DType::BF16, 6e-2)] {
        for precision in [None, Some(DType::F32), Some(DType::F64), Some(DType::F16)] {
            let typed: Vec<Tensor> = operands.iter().map(|t| cast(t, dtype)).collect();
            let case = precision.map_or_else(attention, |to| attention().attr("softmax_precision", i64::from(to.onnx())));
            let y = case.one(&[&typed[0], &typed[1], &typed[2]]);
            assert_eq!(y.dtype(), dtype);
            let tolerance: f32 = if precision == Some(DType::F16) { 1e-2_f32.max(tolerance) } else { tolerance };
            assert_close(&cast(&y, DType::F32), want.shape(), floats(&want), tolerance);
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let (q, k, v) = (random(&[1, 4, 3, 8], 1), random(&[1, 2, 5, 8], 2), random(&[1, 2, 5, 6], 3));
    let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
    for (a, b, c) in [
        (&q, &zeros(&[1, 3, 5, 8]), &zeros(&[1, 3, 5, 6])),
        (&q, &zeros(&[1, 0, 5, 8]), &zeros(&[1, 0, 5, 6])),
        (&q, &zeros(&[2, 2, 5, 8]), &v),
        (&q, &zeros(&[1, 2, 5, 7]), &v),
        (&q, &k, &zeros(&[1, 2, 4, 6])),
        (&zeros(&[4, 3]), &k, &v),
    ] {
        assert!(matches!(attention().error(&[a, b, c]), OpError::Shape(_)));
    }
    for mask in [&[][..], &[3, 6], &[2, 5], &[1, 1, 1, 3, 5], &[3, 3, 5]] {
        assert!(matches!(attention().error(&[&q, &k, &v, &zeros(mask)]), OpError::Shape(_)), "{mask:?}");
    }
    let flat = zeros(&[1, 3, 32]);
    assert!(matches!(attention().error(&[&flat, &flat, &flat]), OpError::Attribute(_)));
    for heads in [0_i64, -1, 5, i64::MIN, i64::MAX] {
        assert!(matches!(attention().attr("q_num_heads", heads).attr("kv_num_heads", heads).error(&[&flat, &flat, &flat]), OpError::Shape(_)));
    }
    assert!(matches!(attention().run_some(&[Some(&q), Some(&k), Some(&v), None, Some(&k)]), Err(OpError::Shape(_))));
    for (name, value) in [("qk_matmul_output_mode", 4_i64), ("left_window_size", -2), ("softmax_precision", 7)] {
        assert!(matches!(attention().attr(name, value).error(&[&q, &k, &v]), OpError::Attribute(_)), "{name}");
    }
    let bad = tensor(&[2], &[1_i64; 2]);
    assert!(matches!(attention().run_some(&[Some(&q), Some(&k), Some(&v), None, None, None, Some(&bad)]), Err(OpError::Shape(_))));
    // Lengths beyond all bounds only say that all or none are valid.
    for length in [i64::MIN, i64::MAX] {
        let lengths = tensor(&[1], &[length]);
        assert!(attention().attr("is_causal", 1_i64).run_some(&[Some(&q), Some(&k), Some(&v), None, None, None, Some(&lengths)]).is_ok());
    }
}

#[test]
fn empty_dimensions() {
    let zeros = |shape: &[usize]| Tensor::zeros(DType::F32, shape);
    let one = |q: &[usize], k: &[usize], v: &[usize]| attention().outputs(4).run(&[&zeros(q), &zeros(k), &zeros(v)]).unwrap();
    assert_eq!(one(&[0, 2, 3, 4], &[0, 2, 5, 4], &[0, 2, 5, 4])[0].shape(), [0, 2, 3, 4]);
    assert_eq!(one(&[1, 2, 0, 4], &[1, 2, 5, 4], &[1, 2, 5, 4])[3].shape(), [1, 2, 0, 5]);
    assert_close(&one(&[1, 2, 3, 4], &[1, 2, 0, 4], &[1, 2, 0, 1])[0], &[1, 2, 3, 1], &[0.0; 6], 0.0);
    assert_close(&one(&[1, 1, 1, 0], &[1, 1, 2, 0], &[1, 1, 2, 1])[0], &[1, 1, 1, 1], &[0.0], 0.0);
    assert_eq!(one(&[1, 0, 3, 4], &[1, 0, 5, 4], &[1, 0, 5, 4])[0].shape(), [1, 0, 3, 4]);
    // Axes that nobody could walk along: an error is an answer, too.
    let (wide, tall) = (zeros(&[0, 1, 1, 1 << 40]), zeros(&[1 << 40, 1, 1, 0]));
    for x in [&wide, &tall] {
        let _ = attention().attr("is_causal", 1_i64).run(&[x, x, x]);
        let _ = op("TensorScatter").opset(24).run(&[x, x]);
        let _ = op("FlexAttention").domain("ai.onnx.preview").opset(1).run(&[x, x, x]);
        let angles = zeros(&[1 << 40, 1, 0]);
        let _ = op("RotaryEmbedding").opset(23).run(&[x, &angles, &angles]);
    }
    let flat = zeros(&[1 << 40, 1, 0]);
    let _ = microsoft("MultiHeadAttention").attr("num_heads", 1_i64).run(&[&flat, &flat, &flat]);
    let _ = op("LinearAttention").opset(27).attr("q_num_heads", 1_i64).attr("kv_num_heads", 1_i64).attr("update_rule", "linear").run(&[&flat, &flat, &flat]);
}

#[test]
fn rotary_pairs_turn() {
    let x = tensor(&[1, 1, 1, 6], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let (cos, sin) = (tensor(&[2, 2], &[9.0_f32, 9.0, 0.0, 1.0]), tensor(&[2, 2], &[9.0_f32, 9.0, 1.0, 0.0]));
    let rotary = || op("RotaryEmbedding").opset(23).attr("rotary_embedding_dim", 4_i64);
    let at = tensor(&[1, 1], &[1_i64]);
    assert_close(&rotary().one(&[&x, &cos, &sin, &at]), &[1, 1, 1, 6], &[-3.0, 2.0, 1.0, 4.0, 5.0, 6.0], 0.0);
    let interleaved = rotary().attr("interleaved", 1_i64);
    assert_close(&interleaved.one(&[&x, &cos, &sin, &at]), &[1, 1, 1, 6], &[-2.0, 1.0, 3.0, 4.0, 5.0, 6.0], 0.0);
    // Heads side by side, and the angles of each token given.
    let flat = x.reshape(&[1, 1, 6]).unwrap();
    let (cos3, sin3) = (cos.rows(1..2).reshape(&[1, 1, 2]).unwrap(), sin.rows(1..2).reshape(&[1, 1, 2]).unwrap());
    assert_close(&rotary().attr("num_heads", 1_i64).one(&[&flat, &cos3, &sin3]), &[1, 1, 6], &[-3.0, 2.0, 1.0, 4.0, 5.0, 6.0], 0.0);
    for bad in [2_i64, -1, i64::MAX] {
        assert!(matches!(rotary().error(&[&x, &cos, &sin, &tensor(&[1, 1], &[bad])]), OpError::Value(_)));
    }
    assert!(matches!(rotary().error(&[&flat, &cos, &sin, &at]), OpError::Shape(_)));
    assert!(matches!(rotary().error(&[&x, &cos, &sin]), OpError::Shape(_)));
    assert!(matches!(rotary().attr("num_heads", -1_i64).error(&[&x, &cos, &sin, &at]), OpError::Attribute(_)));
    let microsoft = microsoft("RotaryEmbedding").attr("num_heads", 1_i64).attr("rotary_embedding_dim", 4_i64);
    assert_close(&microsoft.one(&[&flat, &tensor(&[1], &[1_i64]), &cos, &sin]), &[1, 1, 6], &[-3.0, 2.0, 1.0, 4.0, 5.0, 6.0], 0.0);
}

#[test]
fn caches_are_written_in_line_or_around() {
    let (cache, update) = (tensor(&[2, 3, 1], &[0_i32; 6]), tensor(&[2, 2, 1], &[1_i32, 2, 3, 4]));
    let scatter = |mode: &str| op("TensorScatter").opset(24).attr("mode", mode);
    assert_eq!(scatter("linear").one(&[&cache, &update]), tensor(&[2, 3, 1], &[1_i32, 2, 0, 3, 4, 0]));
    assert_eq!(scatter("linear").one(&[&cache, &update, &tensor(&[2], &[1_i64, 0])]), tensor(&[2, 3, 1], &[0_i32, 1, 2, 3, 4, 0]));
    assert_eq!(scatter("circular").one(&[&cache, &update, &tensor(&[2], &[2_i64, -1])]), tensor(&[2, 3, 1], &[2_i32, 0, 1, 4, 0, 3]));
    for bad in [2_i64, -1, i64::MAX, i64::MIN] {
        assert!(matches!(scatter("linear").error(&[&cache, &update, &tensor(&[2], &[0, bad])]), OpError::Value(_)));
        assert!(scatter("circular").run(&[&cache, &update, &tensor(&[2], &[0, bad])]).is_ok());
    }
    assert!(matches!(scatter("linear").attr("axis", 0_i64).error(&[&cache, &update]), OpError::Value(_)));
    assert!(matches!(scatter("linear").attr("axis", i64::MIN).error(&[&cache, &update]), OpError::Value(_)));
    assert!(matches!(scatter("linear").error(&[&update, &cache]), OpError::Shape(_)));
    assert!(matches!(scatter("other").error(&[&cache, &update]), OpError::Attribute(_)));
    let empty = Tensor::zeros(DType::F32, &[2, 0, 1]);
    assert_eq!(scatter("circular").one(&[&empty, &empty, &tensor(&[2], &[5_i64, 1])]).shape(), [2, 0, 1]);
}

#[test]
fn linear_attention_by_hand() {
    let linear = |rule: &str| op("LinearAttention").opset(27).attr("q_num_heads", 2_i64).attr("kv_num_heads", 1_i64).attr("scale", 1.0_f32).attr("update_rule", rule).outputs(2);
    // Two tokens, one element: the state is a number.
    let (q, k, v) = (tensor(&[1, 2, 2], &[1.0_f32, 2.0, 3.0, 4.0]), tensor(&[1, 2, 1], &[2.0_f32, 1.0]), tensor(&[1, 2, 1], &[3.0_f32, 5.0]));
    let past = tensor(&[1, 1, 1, 1], &[1.0_f32]);
    let y = linear("linear").run(&[&q, &k, &v, &past]).unwrap();
    assert_close(&y[0], &[1, 2, 2], &[7.0, 14.0, 36.0, 48.0], 1e-6);
    assert_close(&y[1], &[1, 1, 1, 1], &[12.0], 1e-6);
    let (decay, beta) = (tensor(&[1, 2, 1], &[0.5_f32.ln(); 2]), tensor(&[1, 2, 1], &[0.5_f32; 2]));
    let gated = linear("gated").run(&[&q, &k, &v, &past, &decay]).unwrap();
    assert_close(&gated[1], &[1, 1, 1, 1], &[0.5 * 6.5 + 5.0], 1e-6);
    let delta = linear("gated_delta").run(&[&q, &k, &v, &past, &decay, &beta]).unwrap();
    let first = 0.5 + 2.0 * 0.5 * (3.0 - 0.5 * 2.0);
    assert_close(&delta[1], &[1, 1, 1, 1], &[0.5 * first + 0.5 * (5.0 - 0.5 * first)], 1e-6);
    assert!(matches!(linear("gated").error(&[&q, &k, &v]), OpError::Shape(_)));
    assert!(matches!(linear("linear").error(&[&q, &k, &v, &past, &decay]), OpError::Shape(_)));
    assert!(matches!(linear("other").error(&[&q, &k, &v]), OpError::Attribute(_)));
    assert!(matches!(linear("linear").error(&[&q, &k, &tensor(&[1, 1, 1], &[1.0_f32])]), OpError::Shape(_)));
    assert!(matches!(op("LinearAttention").opset(27).attr("q_num_heads", 2_i64).attr("kv_num_heads", 0_i64).error(&[&q, &k, &v]), OpError::Attribute(_)));
}

#[test]
fn repeated_ngrams_are_blocked() {
    let ids = tensor(&[1, 4], &[1_i64, 2, 0, 1]);
    let scores = tensor(&[1, 3], &[0.5_f32; 3]);
    let block = |size: i64| microsoft("NGramRepeatBlock").attr("ngram_size", size);
    assert_close(&block(2).one(&[&ids, &scores]), &[1, 3], &[0.5, 0.5, f32::NEG_INFINITY], 0.0);
    assert_close(&block(5).one(&[&ids, &scores]), &[1, 3], &[0.5; 3], 0.0);
    assert!(matches!(block(1).error(&[&tensor(&[1, 1], &[3_i64]), &scores]), OpError::Value(_)));
    assert!(matches!(block(1).error(&[&tensor(&[1, 1], &[i64::MIN]), &scores]), OpError::Value(_)));
    assert!(matches!(block(0).error(&[&ids, &scores]), OpError::Attribute(_)));
    assert!(matches!(block(1).error(&[&tensor(&[2, 1], &[0_i64; 2]), &scores]), OpError::Shape(_)));
}

#[test]
fn multi_head_attention_agrees_with_the_standard_one() {
    let (q, k, v) = (random(&[2, 3, 8], 1), random(&[2, 5, 8], 2), random(&[2, 5, 8], 3));
    let standard = || attention().attr("q_num_heads", 2_i64).attr("kv_num_heads", 2_i64);
    let heads = || microsoft("MultiHeadAttention").attr("num_heads", 2_i64);
    let same = |found: &Tensor, want: &Tensor| assert_close(found, want.shape(), floats(want), 1e-5);
    same(&heads().one(&[&q, &k, &v]), &standard().one(&[&q, &k, &v]));
    let padded = [1, 1, 0, 0, 0, 1, 1, 1, 1, 0];
    let mask: Vec<f32> = padded.iter().map(|&m| if m == 1 { 0.0 } else { -10000.0 }).collect();
    let want = standard().one(&[&q, &k, &v, &tensor(&[2, 1, 1, 5], &mask)]);
    for form in [tensor(&[2, 5], &padded), tensor(&[2], &[2_i32, 4])] {
        same(&heads().run_some(&[Some(&q), Some(&k), Some(&v), None, Some(&form)]).unwrap()[0], &want);
    }
    let causal = heads().attr("unidirectional", 1_i64).one(&[&q, &q, &q]);
    same(&causal, &standard().attr("is_causal", 1_i64).one(&[&q, &q, &q]));
    // With the projections: weights of three unit matrices.
    let unit: Vec<f32> = (0..8 * 24).map(|at| if at % 24 % 8 == at / 24 { 1.0 } else { 0.0 }).collect();
    let projected = microsoft("Attention").attr("num_heads", 2_i64).one(&[&q, &tensor(&[8, 24], &unit), &tensor(&[24], &[0.0_f32; 24])]);
    same(&projected, &standard().one(&[&q, &q, &q]));
    assert!(matches!(heads().error(&[&q]), OpError::Shape(_)));
    assert!(matches!(heads().error(&[&q, &k, &q]), OpError::Shape(_)));
    assert!(matches!(microsoft("MultiHeadAttention").attr("num_heads", 3_i64).error(&[&q, &k, &v]), OpError::Shape(_)));
    assert!(matches!(microsoft("MultiHeadAttention").attr("num_heads", 0_i64).error(&[&q, &k, &v]), OpError::Attribute(_)));
    let bias = tensor(&[23], &[0.0_f32; 23]);
    assert!(matches!(heads().error(&[&q, &k, &v, &bias]), OpError::Shape(_)));
}

#[test]
fn grouped_queries_walk_on_token_by_token() {
    let (length, head) = (5, 4);
    let (q, k, v) = (random(&[1, length, 4 * head], 1), random(&[1, length, 2 * head], 2), random(&[1, length, 2 * head], 3));
    let grouped = || microsoft("GroupQueryAttention").attr("num_heads", 4_i64).attr("kv_num_heads", 2_i64).attr("local_window_size", 3_i64).outputs(3);
    let lengths = |n: usize| (tensor(&[1], &[n as i32 - 1]), Tensor::scalar(n as i32));
    let (last, total) = lengths(length);
    let all = grouped().run_some(&[Some(&q), Some(&k), Some(&v), None, None, Some(&last), Some(&total)]).unwrap();
    // The same, a token at a time, over a cache that is longer.
    let (mut past_k, mut past_v) = (Tensor::zeros(DType::F32, &[1, 2, 8, head]), Tensor::zeros(DType::F32, &[1, 2, 8, head]));
    let token = |t: &Tensor, i: usize| op("Slice").one(&[t, &tensor(&[1], &[i as i64]), &tensor(&[1], &[i as i64 + 1]), &tensor(&[1], &[1_i64])]);
    for i in 0..length {
        let (last, total) = lengths(i + 1);
        let (q, k, v) = (token(&q, i), token(&k, i), token(&v, i));
        let y = grouped().run_some(&[Some(&q), Some(&k), Some(&v), Some(&past_k), Some(&past_v), Some(&last), Some(&total)]).unwrap();
        assert_close(&y[0], &[1, 1, 4 * head], floats(&token(&all[0], i)), 1e-6);
        (past_k, past_v) = (y[1].clone(), y[2].clone());
    }
    assert_eq!(floats(&past_k)[..length * head], floats(&all[1])[..length * head]);
    for bad in [-2_i32, 5, i32::MAX, i32::MIN] {
        let inputs = [Some(&q), Some(&k), Some(&v), None, None, Some(&tensor(&[1], &[bad])), Some(&total)].map(|t| t.cloned());
        let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        assert!(matches!(grouped().run_some(&inputs), Err(OpError::Value(_))), "{bad}");
    }
    for bad in [-1_i32, 4] {
        let inputs = [Some(&q), Some(&k), Some(&v), None, None, Some(&last), Some(&Tensor::scalar(bad))].map(|t| t.cloned());
        let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        assert!(matches!(grouped().run_some(&inputs), Err(OpError::Value(_))), "{bad}");
    }
    let rotary = grouped().attr("do_rotary", 1_i64).run_some(&[Some(&q), Some(&k), Some(&v), None, None, Some(&last), Some(&total)]);
    assert!(matches!(rotary, Err(OpError::Shape(_))));
    assert!(matches!(grouped().attr("sliding_window_cache", 1_i64).build(&[Some(&q)]), Err(OpError::Unsupported(_))));
    assert!(matches!(grouped().attr("k_quant_type", "PER_TENSOR").build(&[Some(&q)]), Err(OpError::Unsupported(_))));
}

#[test]
fn flex_attention_without_bodies_is_attention() {
    let (q, k, v) = (random(&[2, 4, 3, 8], 1), random(&[2, 2, 5, 8], 2), random(&[2, 2, 5, 6], 3));
    let flex = || op("FlexAttention").domain("ai.onnx.preview").opset(1);
    assert_close(&flex().one(&[&q, &k, &v]), &[2, 4, 3, 6], floats(&attention().one(&[&q, &k, &v])), 1e-5);
    let scaled = attention().attr("scale", 0.5_f32).one(&[&q, &k, &v]);
    let wide = flex().attr("scale", 0.5_f32).attr("softmax_precision", i64::from(DType::F64.onnx()));
    assert_close(&wide.one(&[&q, &k, &v]), &[2, 4, 3, 6], floats(&scaled), 1e-5);
    assert!(matches!(flex().error(&[&q, &k, &q]), OpError::Shape(_)));
    assert!(matches!(flex().attr("softmax_precision", 6_i64).error(&[&q, &k, &v]), OpError::Attribute(_)));
}

fn some(case: &Case, inputs: &[Option<&Tensor>]) -> Tensor {
    case.run_some(inputs).unwrap().swap_remove(0)
}

#[test]
fn packed_sequences_attend_to_themselves() {
    let (input, weights, bias) = (random(&[5, 6], 1), random(&[6, 24], 2), random(&[24], 3));
    let added = random(&[2, 1, 3, 3], 4);
    // Two sequences of two and three tokens, the first padded to three.
    let offsets = tensor(&[2, 3], &[0_i32, 1, 3, 4, 5, 2]);
    let ends = tensor(&[3], &[0_i32, 2, 5]);
    let packed = microsoft("PackedAttention").attr("num_heads", 2_i64).attr("mask_filter_value", -1.0_f32);
    let alone = microsoft("Attention").attr("num_heads", 2_i64);
    let y = packed.one(&[&input, &weights, &bias, &offsets, &ends, &added]);
    assert_eq!(y.shape(), [5, 8]);
    let rows = |t: &Tensor, from: usize, to: usize, width: usize| floats(t)[from * width..to * width].to_vec();
    for (from, to, b) in [(0, 2, 0), (2, 5, 1)] {
        let n = to - from;
        let own: Vec<f32> = (0..n * n).map(|at| floats(&added)[b * 9 + at / n * 3 + at % n]).collect();
        let one = tensor(&[1, n, 6], &rows(&input, from, to, 6));
        let want = some(&alone, &[Some(&one), Some(&weights), Some(&bias), None, None, Some(&tensor(&[1, 1, n, n], &own))]);
        assert_eq!(rows(&y, from, to, 8), floats(&want), "{from}..{to}");
    }
    let refused = |offsets: &Tensor, ends: &Tensor| packed.run(&[&input, &weights, &bias, offsets, ends]).unwrap_err();
    assert!(matches!(refused(&tensor(&[2, 3], &[1_i32, 2, 3, 4, 5, 0]), &ends), OpError::Unsupported(_)));
    for bad in [&[0_i32, 2, 4][..], &[0, -1, 5], &[0, 1, 5], &[1, 2, 5], &[0, 5, 5], &[0, 5]] {
        assert!(matches!(refused(&offsets, &tensor(&[bad.len()], bad)), OpError::Value(_)), "{bad:?}");
    }
}

#[test]
fn operands_packed_into_one_tensor_are_taken_apart() {
    let (q, k, v) = (random(&[2, 3, 2, 4], 1), random(&[2, 3, 2, 4], 2), random(&[2, 3, 2, 4], 3));
    let flat = |t: &Tensor| t.reshape(&[2, 3, 8]).unwrap();
    let interleaved = |parts: &[&Tensor]| {
        let heads = (0..12).flat_map(|at| parts.iter().flat_map(move |part| floats(part)[at * 4..][..4].to_vec()));
        tensor(&[2, 3, 2, parts.len(), 4], &heads.collect::<Vec<_>>())
    };
    let case = || microsoft("MultiHeadAttention").attr("num_heads", 2_i64);
    let want = case().one(&[&flat(&q), &flat(&k), &flat(&v)]);
    assert_eq!(case().one(&[&flat(&q), &interleaved(&[&k, &v])]), want);
    assert_eq!(case().one(&[&interleaved(&[&q, &k, &v])]), want);
    let tokens = |t: &Tensor| t.reshape(&[6, 8]).unwrap();
    let (offsets, ends) = (tensor(&[2, 3], &[0_i32, 1, 2, 3, 4, 5]), tensor(&[3], &[0_i32, 3, 6]));
    let packed = || microsoft("PackedMultiHeadAttention").attr("num_heads", 2_i64);
    let y = some(&packed(), &[Some(&tokens(&q)), Some(&tokens(&k)), Some(&tokens(&v)), None, Some(&offsets), Some(&ends)]);
    assert_eq!(floats(&y), floats(&want));
    let all = interleaved(&[&q, &k, &v]).reshape(&[6, 2, 3, 4]).unwrap();
    let bias = random(&[24], 5);
    let y = some(&packed(), &[Some(&all), None, None, Some(&bias), Some(&offsets), Some(&ends)]);
    assert_eq!(floats(&y), floats(&case().one(&[&flat(&q), &flat(&k), &flat(&v), &bias])));
    assert!(matches!(case().run(&[&interleaved(&[&q, &k])]).unwrap_err(), OpError::Shape(_)));
}

#[test]
fn heads_may_be_normalised_before_they_turn() {
    let (q, k, v) = (random(&[1, 2, 8], 1), random(&[1, 2, 4], 2), random(&[1, 2, 4], 3));
    let (q_norm, k_norm) = (random(&[4], 4), random(&[4], 5));
    let norm = |x: &Tensor, w: &Tensor| {
        let heads = floats(x).chunks_exact(4).flat_map(|head| {
            let root = (head.iter().map(|x| x * x).sum::<f32>() / 4.0 + 0.5).sqrt();
            head.iter().zip(floats(w)).map(|(x, w)| x / root * w).collect::<Vec<_>>()
        });
        tensor(x.shape(), &heads.collect::<Vec<_>>())
    };
    let case = microsoft("GroupQueryAttention").attr("num_heads", 2_i64).attr("kv_num_heads", 1_i64).attr("qk_norm_epsilon", 0.5_f32);
    let (last, total) = (tensor(&[1], &[1_i32]), tensor(&[1], &[2_i32]));
    let mut inputs = vec![Some(&q), Some(&k), Some(&v), None, None, Some(&last), Some(&total)];
    inputs.resize(14, None);
    inputs.extend([Some(&q_norm), Some(&k_norm)]);
    let y = some(&case, &inputs);
    let want = some(&case, &[Some(&norm(&q, &q_norm)), Some(&norm(&k, &k_norm)), Some(&v), None, None, Some(&last), Some(&total)]);
    assert_close(&y, &[1, 2, 8], floats(&want), 1e-6);
}
