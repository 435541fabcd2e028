//! Matrix products.

use super::{Random, bits};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::{PackedB, gemm, gemm_generic, gemm_packed_b, gemm_packed_b_columns};
use crate::engine::kernels::isa::Isa;

/// Sizes around the edges of tiles, panels and blocks of every instruction set.
const SIZES: [(usize, usize, usize); 19] = [
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (2, 4, 3),
    (16, 30, 16),
    (7, 256, 10),
    (13, 257, 33),
    (12, 5, 32),
    (25, 64, 31),
    (5, 513, 17),
    (1, 700, 129),
    (3, 17, 515),
    (24, 255, 128),
    (37, 300, 600),
    (6, 8, 49),
    (390, 520, 33),
    // Around the edge of a block of steps with AVX2, and beyond two.
    (13, 769, 33),
    (7, 1537, 17),
];

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// `a · b` in `f64`, and the sum of the magnitudes of its terms, which scales the error bound.
fn reference(m: usize, k: usize, n: usize, a: &[f32], b: &[f32]) -> Vec<(f64, f64)> {
    let element = |i: usize, j: usize| {
        let terms = (0..k).map(|s| f64::from(a[i * k + s]) * f64::from(b[s * n + j]));
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    (0..m * n).map(|at| element(at / n, at % n)).collect()
}

/// Compares with the a-priori bound of a chain of `k` multiply-adds, `k * 2^-24 * sum(|a * b|)`, twice over for the scalar
/// body, which rounds twice per step.
fn assert_close(got: &[f32], want: &[(f64, f64)], k: usize, what: &str) {
    assert_eq!(got.len(), want.len());
    for (at, (got, (want, size))) in got.iter().zip(want).enumerate() {
        let bound = 2.0 * (k + 2) as f64 * size * 2f64.powi(-24);
        assert!((f64::from(*got) - want).abs() <= bound, "{what}: element {at} is {got}, want {want} ± {bound}");
    }
}

#[test]
fn products_match_the_reference_for_every_isa_and_layout() {
    let mut random = Random::new(1);
    for isa in Isa::available() {
        for (m, k, n) in SIZES {
            let (a, b) = (random.values(m * k), random.values(k * n));
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            let want = reference(m, k, n, &a, &b);
            let what = format!("{isa} {m}x{k}x{n}");
            let mut scratch = vec![f32::NAN; 7];
            let mut all = Vec::new();
            for (a, at, b, bt) in [(&a, false, &b, false), (&a, false, &bt, true), (&at, true, &b, false), (&at, true, &bt, true)] {
                let mut c = vec![f32::NAN; m * n];
                gemm(isa, m, k, n, a, at, b, bt, &mut c, &Epilogue::default(), &mut scratch);
                assert_close(&c, &want, k, &what);
                all.push(bits(&c));
            }
            for (b, bt) in [(&b, false), (&bt, true)] {
                let packed = PackedB::pack(isa, b, k, n, bt);
                assert_eq!((packed.k(), packed.n(), packed.isa()), (k, n, isa));
                let mut c = vec![f32::NAN; m * n];
                gemm_packed_b(&a, k, m, &packed, &mut c, n, &Epilogue::default());
                all.push(bits(&c));
            }
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{what}: layouts differ in their bits");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_anywhere_in_any_batch() {
    let mut random = Random::new(2);
    for isa in Isa::available() {
        for (k, n) in [(4, 2), (30, 16), (256, 10), (300, 200), (700, 33), (64, 1100)] {
            let packed = PackedB::pack(isa, &random.values(k * n), k, n, false);
            let bias = random.values(n);
            let row = random.values(k);
            for activation in [Activation::None, Activation::Relu, Activation::Tanh, Activation::Gelu] {
                let epilogue = Epilogue { alpha: 0.7, bias: Bias::PerColumn(&bias), activation, ..Epilogue::default() };
                let mut alone = vec![0.0; n];
                gemm_packed_b(&row, k, 1, &packed, &mut alone, n, &epilogue);
                for _ in 0..6 {
                    let (m, lda, ldc, start) = (1 + random.below(40), k + random.below(3), n + random.below(3), random.below(4));
                    let position = random.below(m);
                    let mut a = random.values(start + m * lda);
                    a[start + position * lda..][..k].copy_from_slice(&row);
                    let mut c = vec![7.5; start + m * ldc];
                    gemm_packed_b(&a[start..], lda, m, &packed, &mut c[start..], ldc, &epilogue);
                    let got = &c[start + position * ldc..];
                    assert_eq!(bits(&got[..n]), bits(&alone), "{isa} {m}x{k}x{n} row {position} {activation:?}");
                    let gaps = c[start..].chunks(ldc).flat_map(|row| row.iter().skip(n));
                    assert!(c[..start].iter().chain(gaps).all(|v| *v == 7.5), "wrote outside its rows");
                }
            }
        }
    }
}

#[test]
fn columns_computed_in_parts_have_the_same_bits() {
    let mut random = Random::new(3);
    for isa in Isa::available() {
        let (m, k, n) = (5, 300, 213);
        let packed = PackedB::pack(isa, &random.values(k * n), k, n, false);
        let (a, bias) = (random.values(m * k), random.values(n));
        let epilogue = Epilogue { bias: Bias::PerColumn(&bias), activation: Activation::Sigmoid, ..Epilogue::default() };
        let mut whole = vec![0.0; m * n];
        gemm_packed_b(&a, k, m, &packed, &mut whole, n, &epilogue);
        for panels in [1, 2, 3, 5] {
            let step = panels * packed.panel_width();
            for start in (0..n).step_by(step) {
                let columns = start..n.min(start + step);
                let len = columns.len();
                let mut strip = vec![0.0; m * len];
                gemm_packed_b_columns(&a, k, m, &packed, columns.clone(), &mut strip, len, &epilogue);
                for i in 0..m {
                    assert_eq!(bits(&strip[i * len..][..len]), bits(&whole[i * n..][columns.clone()]), "{isa} {columns:?}");
                }
            }
        }
    }
}

#[test]
fn epilogues_apply_scale_then_bias_then_activation() {
    let mut random = Random::new(4);
    for isa in Isa::available() {
        for (m, k, n) in [(3, 0, 5), (14, 9, 37), (30, 280, 130)] {
            let (a, b) = (random.values(m * k), random.values(k * n));
            let (rows, columns) = (random.values(m), random.values(n));
            let product = reference(m, k, n, &a, &b);
            for bias in [Bias::None, Bias::PerRow(&rows), Bias::PerColumn(&columns)] {
                for (activation, function) in activations() {
                    let mut c = vec![f32::NAN; m * n];
                    gemm(
                        isa,
                        m,
                        k,
                        n,
                        &a,
                        false,
                        &b,
                        false,
                        &mut c,
                        &Epilogue { alpha: -1.5, bias, activation, ..Epilogue::default() },
                        &mut Vec::new(),
                    );
                    for (at, got) in c.iter().enumerate() {
                        let bias = match bias {
                            Bias::None => 0.0,
                            Bias::PerRow(values) => values[at / n],
                            Bias::PerColumn(values) => values[at % n],
                        };
                        let want = function(-1.5 * product[at].0 + f64::from(bias));
                        let bound = 1e-6 + 1.5e-7 * (k + 2) as f64 * (product[at].1 + 1.0);
                        assert!((f64::from(*got) - want).abs() <= bound, "{isa} {m}x{k}x{n} {activation:?} {bias:?}: {got} {want}");
                    }
                }
            }
        }
    }
}

/// Every activation beside its definition in `f64` (Gelu is compared in `tests/vector.rs`).
type Reference = fn(f64) -> f64;
fn activations() -> Vec<(Activation, Reference)> {
    vec![
        (Activation::None, |x| x),
        (Activation::Relu, |x| x.max(0.0)),
        (Activation::LeakyRelu { alpha: 0.1 }, |x| if x < 0.0 { 0.1 * x } else { x }),
        (Activation::Clip { min: -0.5, max: 0.25 }, |x| x.clamp(-0.5, 0.25)),
        (Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        (Activation::Tanh, f64::tanh),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        (Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }, |x| (0.2 * x + 0.5).clamp(0.0, 1.0)),
        (Activation::HardSwish, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
    ]
}

#[test]
fn nan_and_infinity_propagate_through_zeros() {
    for isa in Isa::available() {
        for special in [f32::NAN, f32::INFINITY] {
            let (m, k, n) = (14, 20, 35);
            let mut b = vec![1.0; k * n];
            b[3 * n + 5] = special;
            let mut c = vec![0.0; m * n];
            for activation in [Activation::None, Activation::Relu, Activation::Clip { min: 0.0, max: 6.0 }, Activation::Sigmoid] {
                let epilogue = Epilogue { activation, ..Epilogue::default() };
                gemm(isa, m, k, n, &vec![0.0; m * k], false, &b, false, &mut c, &epilogue, &mut Vec::new());
                assert!(c.iter().enumerate().all(|(at, v)| v.is_nan() == (at % n == 5)), "{isa} {activation:?}");
            }
        }
    }
}

#[test]
fn generic_products_sum_in_the_wider_type_and_wrap() {
    let mut c = [0i32; 4];
    gemm_generic::<u8, i8, i32>(2, 2, 2, &[255, 1, 2, 3], &[-128, 1, 127, -1], &mut c);
    assert_eq!(c, [255 * -128 + 127, 254, -256 + 381, -1]);
    let mut wrapped = [0i32];
    gemm_generic(1, 2, 1, &[i32::MAX, 1], &[1, 1], &mut wrapped);
    assert_eq!(wrapped, [i32::MIN]);
    let mut empty = [5.0f64];
    gemm_generic::<f64, f64, f64>(1, 0, 1, &[], &[], &mut empty);
    assert_eq!(empty, [0.0]);
    let mut random = Random::new(5);
    let (m, k, n) = (5, 200, 7);
    let (a, b) = (random.values(m * k), random.values(k * n));
    let mut c = vec![0.0f64; m * n];
    gemm_generic(m, k, n, &a, &b, &mut c);
    let want: Vec<f64> = reference(m, k, n, &a, &b).into_iter().map(|(sum, _)| sum).collect();
    assert!(c.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12));
}
