//! Products of operands rounded to bf16.

use super::{ACTIVATIONS, Random, bits};
use crate::engine::kernels::bf16::{PackedBf16, gemm_bf16_columns};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::{PackedB, gemm_packed_b};
use crate::engine::kernels::isa::Isa;

/// Around the edges of tiles (16 rows, 32 steps), strips and panels (32), and blocks (128 rows, 256 steps).
const SIZES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (3, 0, 4),
    (2, 4, 3),
    (16, 32, 32),
    (17, 33, 33),
    (15, 31, 16),
    (33, 64, 65),
    (1, 700, 129),
    (8, 257, 40),
    (12, 256, 32),
    (48, 513, 17),
    (128, 96, 31),
    (129, 40, 64),
    (300, 300, 70),
];

/// To nearest, ties to even.
fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

#[test]
fn products_are_those_of_the_rounded_operands() {
    let mut random = Random::new(11);
    for isa in Isa::available() {
        for (m, k, n) in SIZES {
            let (lda, ldc) = (k + 3, n + 5);
            let (a, b) = (random.values(m * lda), random.values(k * n));
            let transposed: Vec<f32> = (0..n * k).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect();
            let (columns, rows) = (random.values(n), random.values(m));
            for (packed, bias) in [
                (PackedBf16::pack(isa, &b, k, n, false), Bias::None),
                (PackedBf16::pack(isa, &transposed, k, n, true), Bias::PerColumn(&columns)),
                (PackedBf16::pack(isa, &b, k, n, false), Bias::PerRow(&rows)),
            ] {
                let mut c = vec![f32::NAN; m * ldc];
                let epilogue = Epilogue { alpha: 0.5, bias, ..Epilogue::default() };
                gemm_bf16_columns(&a, lda, m, &packed, 0..n, &mut c, ldc, &epilogue);
                for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                    let terms = (0..k).map(|s| f64::from(rounded(a[i * lda + s])) * f64::from(rounded(b[s * n + j])));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
                    let added = match bias {
                        Bias::None => 0.0,
                        Bias::PerColumn(bias) => f64::from(bias[j]),
                        Bias::PerRow(bias) => f64::from(bias[i]),
                    };
                    // The scalar body rounds products too; the tile unit adds even and odd terms apart.
                    let bound = 2.0 * (k + 2) as f64 * (size + added.abs()) * 2f64.powi(-24);
                    let (got, want) = (f64::from(c[i * ldc + j]), 0.5 * sum + added);
                    assert!((got - want).abs() <= bound, "{isa} {m}x{k}x{n} {bias:?}: ({i}, {j}) is {got}, want {want} ± {bound}");
                }
                assert!(c.chunks(ldc).all(|row| row[n..].iter().all(|v| v.is_nan())), "what lies between the rows is left alone");
            }
        }
    }
}

#[test]
fn a_rows_bits_depend_on_the_row_alone() {
    let (m, k, n) = (150, 290, 100);
    let mut random = Random::new(12);
    let (a, b, bias) = (random.values(m * k), random.values(k * n), random.values(n));
    for isa in Isa::available() {
        let packed = PackedBf16::pack(isa, &b, k, n, false);
        let epilogue = Epilogue { alpha: 1.0, bias: Bias::PerColumn(&bias), activation: Activation::Gelu, ..Epilogue::default() };
        let mut all = vec![0.0; m * n];
        gemm_bf16_columns(&a, k, m, &packed, 0..n, &mut all, n, &epilogue);
        for rows in [0..1, 1..2, 15..17, 31..33, 100..149, 128..150] {
            let mut some = vec![f32::NAN; rows.len() * n];
            gemm_bf16_columns(&a[rows.start * k..], k, rows.len(), &packed, 0..n, &mut some, n, &epilogue);
            assert_eq!(bits(&some), bits(&all[rows.start * n..rows.end * n]), "{isa} rows {rows:?}");
        }
        for columns in [0..32, 32..96, 96..100, 64..100] {
            let mut some = vec![f32::NAN; m * columns.len()];
            gemm_bf16_columns(&a, k, m, &packed, columns.clone(), &mut some, columns.len(), &epilogue);
            for (some, all) in some.chunks(columns.len()).zip(all.chunks(n)) {
                assert_eq!(bits(some), bits(&all[columns.clone()]), "{isa} columns {columns:?}");
            }
        }
    }
}

#[test]
fn every_activation_is_applied_as_behind_a_product_of_f32() {
    let (m, k, n) = (18, 32, 37);
    let mut random = Random::new(13);
    // Powers of two and small whole numbers: no rounding anywhere before the activation.
    let a: Vec<f32> = (0..m * k).map(|_| random.below(5) as f32 - 2.0).collect();
    let b: Vec<f32> = (0..k * n).map(|_| (random.below(5) as f32 - 2.0) / 8.0).collect();
    for isa in Isa::available() {
        for activation in ACTIVATIONS {
            let epilogue = Epilogue { activation, ..Epilogue::default() };
            let (mut got, mut want) = (vec![0.0; m * n], vec![0.0; m * n]);
            gemm_bf16_columns(&a, k, m, &PackedBf16::pack(isa, &b, k, n, false), 0..n, &mut got, n, &epilogue);
            gemm_packed_b(&a, k, m, &PackedB::pack(isa, &b, k, n, false), &mut want, n, &epilogue);
            if isa < Isa::Amx {
                assert_eq!(bits(&got), bits(&want), "{isa} {activation:?}");
            }
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 5e-4 * want.abs().max(1.0), "{isa} {activation:?}: {got} for {want}");
            }
        }
    }
}

/// The bounds of the functions behind sums of the tile unit, in powers of two; the others' are those of f32.
#[test]
fn activations_are_as_exact_as_a_sum_of_bf16() {
    use std::f64::consts::{PI, SQRT_2};

    use super::vector::{domain, erf, sigmoid};

    let values = domain();
    let silu = |x: f64| x * sigmoid(x);
    let gelu = |x: f64| x * 0.5 * (1.0 + erf(x / SQRT_2));
    let gelu_tanh = |x: f64| x * sigmoid(2.0 * (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x));
    type Of = fn(f64) -> f64;
    type Bound = fn(f64, f64) -> f64;
    let relative: Bound = |_, want| want.abs() * 2f64.powi(-12) + 2f64.powi(-126);
    // Where the sigmoid is subnormal, x times what is left of it.
    let of_product: Bound = |x, want| want.abs() * 2f64.powi(-12) + x.abs() * 2f64.powi(-126);
    let absolute: Bound = |x, _| x.abs() * 2f64.powi(-13);
    let cases: [(Activation, Of, Bound); 5] = [
        (Activation::Sigmoid, sigmoid, relative),
        (Activation::Tanh, f64::tanh, relative),
        (Activation::Silu, silu, of_product),
        (Activation::Gelu, gelu, absolute),
        (Activation::GeluTanh, gelu_tanh, absolute),
    ];
    for isa in Isa::available() {
        let packed = PackedBf16::pack(isa, &vec![0.0; values.len()], 1, values.len(), false);
        for (activation, reference, bound) in cases {
            // Nothing but the bias, which is not rounded.
            let epilogue = Epilogue { bias: Bias::PerColumn(&values), activation, ..Epilogue::default() };
            let mut got = vec![0.0; values.len()];
            gemm_bf16_columns(&[0.0], 1, 1, &packed, 0..values.len(), &mut got, values.len(), &epilogue);
            for (x, got) in values.iter().zip(&got) {
                let want = reference(f64::from(*x));
                let bound = bound(f64::from(*x), want);
                let close = (f64::from(*got) - want).abs() <= bound || want as f32 == *got || want.is_nan() && got.is_nan();
                assert!(close, "{isa} {activation:?} of {x} is {got}, want {want} ± {bound}");
                let limit = if matches!(activation, Activation::Sigmoid | Activation::Tanh) { 1.0 } else { x.abs() };
                assert!(want.is_nan() || got.abs() <= limit, "{isa} {activation:?} of {x} is {got}, more than it can be");
            }
        }
    }
}

#[test]
fn what_the_output_holds_is_added_before_the_activation() {
    let (m, k, n) = (35, 40, 37);
    let mut random = Random::new(14);
    let (a, b, bias, held) = (random.values(m * k), random.values(k * n), random.values(n), random.values(m * n));
    for isa in Isa::available() {
        let packed = PackedBf16::pack(isa, &b, k, n, false);
        let plain = Epilogue { bias: Bias::PerColumn(&bias), ..Epilogue::default() };
        let (mut sums, mut got) = (vec![0.0; m * n], held.clone());
        gemm_bf16_columns(&a, k, m, &packed, 0..n, &mut sums, n, &plain);
        let adds = Epilogue { adds: true, activation: Activation::Relu, ..plain };
        gemm_bf16_columns(&a, k, m, &packed, 0..n, &mut got, n, &adds);
        let want: Vec<f32> = sums.iter().zip(&held).map(|(sum, held)| (sum + held).max(0.0)).collect();
        assert_eq!(bits(&got), bits(&want), "{isa}");
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for isa in Isa::available() {
        let packed = PackedBf16::pack(isa, &[0.0, 1.0, 0.0, 1.0], 2, 2, false);
        for activation in [Activation::None, Activation::Relu, Activation::Clip { min: 0.0, max: 1.0 }] {
            for (bad, infinite) in [(f32::NAN, false), (f32::INFINITY, true)] {
                let mut c = [0.0; 2];
                gemm_bf16_columns(&[bad, 1.0], 2, 1, &packed, 0..2, &mut c, 2, &Epilogue { activation, ..Epilogue::default() });
                assert!(c[0].is_nan(), "{isa} {activation:?}: zero times {bad}");
                assert!(if infinite { c[1] >= 1.0 } else { c[1].is_nan() }, "{isa} {activation:?}: {c:?}");
            }
        }
        // A NaN whose mantissa lies in the lower bits only, and the greatest number that does not round to infinity.
        let weights = [f32::from_bits(0x7f80_0001), f32::from_bits(0x7f7f_7fff)];
        let mut c = [0.0; 2];
        gemm_bf16_columns(&[1.0], 1, 1, &PackedBf16::pack(isa, &weights, 1, 2, false), 0..2, &mut c, 2, &Epilogue::default());
        assert!(c[0].is_nan() && c[1] == f32::from_bits(0x7f7f_0000), "{isa}: {c:?}");
    }
}
