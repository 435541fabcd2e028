//! Products with weights kept as codes.

use super::{ACTIVATIONS, Random, bits};
use crate::engine::kernels::codes::{CodeBits, GROUP, PackedCodes};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::gemm::{PackedB, gemm_packed_b};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::weights::{Precision, Weights};

/// Around the edges of words (4 and 8 steps), groups (64) and blocks (256, and 768 with AVX2), of tiles (4 to 12 rows), panels (32), from few rows (4) to many,
/// and to more rows or steps than are packed at once.
const SIZES: [(usize, usize, usize); 21] = [
    (1, 1, 1),
    (3, 0, 4),
    (6, 0, 4),
    (2, 4, 3),
    (1, 63, 32),
    (2, 64, 33),
    (3, 65, 31),
    (4, 8, 16),
    (5, 7, 17),
    (4, 129, 64),
    (8, 257, 40),
    (12, 256, 32),
    (13, 255, 48),
    (1, 700, 129),
    (7, 513, 15),
    (48, 512, 8),
    (129, 40, 64),
    (196, 1030, 8),
    (390, 70, 33),
    (7, 769, 33),
    (6, 1537, 40),
];

const BITS: [CodeBits; 2] = [CodeBits::Four, CodeBits::Eight];

fn pack(isa: Isa, code_bits: CodeBits, b: &[f32], k: usize, n: usize) -> PackedCodes {
    PackedCodes::pack(isa, code_bits, b, k, n, false).expect("finite weights")
}

/// The matrix that is multiplied.
fn values(packed: &PackedCodes) -> Vec<f32> {
    (0..packed.k() * packed.n()).map(|at| packed.value(at / packed.n(), at % packed.n())).collect()
}

fn transposed(b: &[f32], k: usize, n: usize) -> Vec<f32> {
    (0..n * k).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect()
}

#[test]
fn a_weight_is_off_by_half_a_scale_at_most() {
    let mut random = Random::new(71);
    for isa in Isa::available() {
        for (code_bits, (_, k, n)) in BITS.into_iter().flat_map(|bits| SIZES.map(|size| (bits, size))) {
            // Groups of all magnitudes, subnormal ones and the greatest among them; some are zero but for one element, some whole.
            let mut b = random.values(k * n);
            for (at, value) in b.iter_mut().enumerate() {
                let group = at / n / GROUP + at % n;
                *value *= [1.0, 1e-30, 1e-38, 1e-44, 0.0, 3e38, 1e10][group % 7];
                if group % 11 == 3 && at / n % GROUP != 5 {
                    *value = 0.0;
                }
            }
            let packed = pack(isa, code_bits, &b, k, n);
            let across = PackedCodes::pack(isa, code_bits, &transposed(&b, k, n), k, n, true).expect("finite weights");
            assert_eq!(bits(&values(&packed)), bits(&values(&across)), "{isa} {code_bits:?} {k}x{n}");
            for (at, weight) in b.iter().enumerate() {
                let (row, column) = (at / n, at % n);
                let (scale, value) = (packed.scale(row, column), packed.value(row, column));
                let code = (value / scale).round_ties_even();
                assert!(
                    code.abs() <= f32::from(code_bits.greatest()) && value == code * scale,
                    "{isa} {code_bits:?}: {value} of scale {scale}"
                );
                let off = f64::from(*weight) - f64::from(code) * f64::from(scale);
                assert!(
                    off.abs() <= f64::from(scale) / 2.0,
                    "{isa} {code_bits:?} {k}x{n}: {weight} at ({row}, {column}) is {value}, scale {scale}"
                );
            }
            // No scale is greater than what its group needs.
            for column in 0..n {
                for first in (0..k).step_by(GROUP) {
                    let group = (first..k.min(first + GROUP)).map(|row| b[row * n + column].abs());
                    let scale = group.fold(0.0, f32::max) / f32::from(code_bits.greatest());
                    assert_eq!(packed.scale(first, column), scale.max(f32::MIN_POSITIVE), "{isa} {code_bits:?}");
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_codes_times_their_scales() {
    let mut random = Random::new(72);
    for isa in Isa::available() {
        for (code_bits, (m, k, n)) in BITS.into_iter().flat_map(|bits| SIZES.map(|size| (bits, size))) {
            // Rows that begin anywhere, further apart than they are long.
            let (lda, ldc) = (k + 3, n + 5);
            let (a, b) = (random.values(m * lda + 1), random.values(k * n));
            let a = &a[1..];
            let (columns, rows) = (random.values(n), random.values(m));
            let packed = pack(isa, code_bits, &b, k, n);
            let weights = values(&packed);
            for bias in [Bias::None, Bias::PerColumn(&columns), Bias::PerRow(&rows)] {
                let mut c = vec![f32::NAN; m * ldc];
                let epilogue = Epilogue { alpha: 0.5, bias, ..Epilogue::default() };
                packed.multiply_columns(a, lda, m, 0..n, &mut c, ldc, &epilogue);
                for (i, j) in (0..m * n).map(|at| (at / n, at % n)) {
                    let terms = (0..k).map(|s| f64::from(a[i * lda + s]) * f64::from(weights[s * n + j]));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
                    let added = match bias {
                        Bias::None => 0.0,
                        Bias::PerColumn(bias) => f64::from(bias[j]),
                        Bias::PerRow(bias) => f64::from(bias[i]),
                    };
                    // The scalar body rounds products too.
                    let bound = 2.0 * (k + 2) as f64 * (size + added.abs()) * 2f64.powi(-24);
                    let (got, want) = (f64::from(c[i * ldc + j]), 0.5 * sum + added);
                    assert!(
                        (got - want).abs() <= bound,
                        "{isa} {code_bits:?} {m}x{k}x{n} {bias:?}: ({i}, {j}) is {got}, want {want} ± {bound}"
                    );
                }
                assert!(c.chunks(ldc).all(|row| row[n..].iter().all(|v| v.is_nan())), "what lies between the rows is left alone");
            }
        }
    }
}

#[test]
fn bits_are_those_of_f32_with_the_same_numbers() {
    let mut random = Random::new(73);
    for isa in Isa::available() {
        for (code_bits, (m, k, n)) in BITS.into_iter().flat_map(|bits| SIZES.map(|size| (bits, size))) {
            let (a, b, bias, held) = (random.values(m * k), random.values(k * n), random.values(n), random.values(m * n));
            let packed = pack(isa, code_bits, &b, k, n);
            let plain = PackedB::pack(isa, &values(&packed), k, n, false);
            let activation = ACTIVATIONS[random.below(ACTIVATIONS.len())];
            for (bias, adds) in [(Bias::None, false), (Bias::PerColumn(&bias), false), (Bias::PerColumn(&bias), true), (Bias::None, true)] {
                for activation in [Activation::None, activation] {
                    let epilogue = Epilogue { bias, adds, activation, ..Epilogue::default() };
                    // What is not added must not be read.
                    let held = if adds { held.clone() } else { vec![f32::NAN; m * n] };
                    let (mut got, mut want) = (held.clone(), held);
                    packed.multiply_columns(&a, k, m, 0..n, &mut got, n, &epilogue);
                    gemm_packed_b(&a, k, m, &plain, &mut want, n, &epilogue);
                    assert_eq!(bits(&got), bits(&want), "{isa} {code_bits:?} {m}x{k}x{n} {epilogue:?}");
                }
            }
        }
    }
}

#[test]
fn a_rows_bits_depend_on_the_row_alone() {
    let (m, k, n) = (400, 300, 100);
    let mut random = Random::new(74);
    let (a, b, bias) = (random.values(m * k), random.values(k * n), random.values(n));
    for (isa, code_bits) in Isa::available().into_iter().flat_map(|isa| BITS.map(|bits| (isa, bits))) {
        let packed = pack(isa, code_bits, &b, k, n);
        let epilogue = Epilogue { bias: Bias::PerColumn(&bias), activation: Activation::Gelu, ..Epilogue::default() };
        let mut all = vec![0.0; m * n];
        packed.multiply_columns(&a, k, m, 0..n, &mut all, n, &epilogue);
        for rows in [0..1, 1..3, 2..5, 11..15, 15..20, 31..40, 100..249, 399..400] {
            let mut some = vec![f32::NAN; rows.len() * n];
            packed.multiply_columns(&a[rows.start * k..], k, rows.len(), 0..n, &mut some, n, &epilogue);
            assert_eq!(bits(&some), bits(&all[rows.start * n..rows.end * n]), "{isa} {code_bits:?} rows {rows:?}");
        }
        for (rows, columns) in
            [1, 4, m].into_iter().flat_map(|rows| [0..32, 32..96, 96..100, 64..100, 32..32].map(|columns| (rows, columns)))
        {
            let mut some = vec![f32::NAN; rows * columns.len()];
            packed.multiply_columns(&a, k, rows, columns.clone(), &mut some, columns.len(), &epilogue);
            for (some, all) in some.chunks(columns.len().max(1)).zip(all.chunks(n)) {
                assert_eq!(bits(some), bits(&all[columns.clone()]), "{isa} {code_bits:?} columns {columns:?}");
            }
        }
    }
}

#[test]
fn nan_and_infinity_of_activations_propagate() {
    for (isa, code_bits) in Isa::available().into_iter().flat_map(|isa| BITS.map(|bits| (isa, bits))) {
        let packed = pack(isa, code_bits, &[0.0, 1.0, 0.0, 1.0], 2, 2);
        for m in [1, 3, 7] {
            for activation in [Activation::None, Activation::Relu, Activation::Clip { min: 0.0, max: 1.0 }] {
                for (bad, infinite) in [(f32::NAN, false), (f32::INFINITY, true)] {
                    let (mut a, mut c) = (vec![1.0; 2 * m], vec![0.0; 2 * m]);
                    a[2 * m - 2] = bad;
                    packed.multiply_columns(&a, 2, m, 0..2, &mut c, 2, &Epilogue { activation, ..Epilogue::default() });
                    let (rest, row) = c.split_at(2 * m - 2);
                    assert!(row[0].is_nan(), "{isa} {code_bits:?} {activation:?}: zero times {bad}");
                    assert!(if infinite { row[1] >= 1.0 } else { row[1].is_nan() }, "{isa} {code_bits:?} {activation:?}: {row:?}");
                    assert!(rest.iter().all(|v| v.is_finite()), "{isa}: other rows are {rest:?}");
                }
            }
        }
    }
}

#[test]
fn a_matrix_without_codes_stays_as_it_is() {
    let (k, n) = (70, 40);
    let mut random = Random::new(75);
    let b = random.values(k * n);
    for (isa, (precision, code_bits)) in Isa::available()
        .into_iter()
        .flat_map(|isa| [(Precision::Int8Weights, CodeBits::Eight), (Precision::Int4Weights, CodeBits::Four)].map(|of| (isa, of)))
    {
        assert!(matches!(Weights::pack(precision, isa, &b, k, n, false), Weights::Codes(_)));
        for bad in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 39, 64 * n + 3, k * n - 1] {
                let mut b = b.clone();
                b[at] = bad;
                assert!(PackedCodes::pack(isa, code_bits, &b, k, n, false).is_none(), "{isa}: {bad} at {at}");
                let weights = Weights::pack(precision, isa, &b, k, n, false);
                let (mut got, mut want) = (vec![0.0; n], vec![0.0; n]);
                weights.multiply(&vec![1.0; k], 1, &mut got, &Epilogue::default());
                gemm_packed_b(&vec![1.0; k], k, 1, &PackedB::pack(isa, &b, k, n, false), &mut want, n, &Epilogue::default());
                assert_eq!(bits(&got), bits(&want), "{isa} {precision}: {bad} at {at}");
                assert!(!got[at % n].is_finite());
            }
        }
        // The greatest finite number has a code, or stays as it is; it never becomes infinite.
        let greatest = [f32::MAX, -f32::MAX];
        let mut c = [0.0; 2];
        Weights::pack(precision, isa, &greatest, 1, 2, false).multiply(&[1.0], 1, &mut c, &Epilogue::default());
        assert!(c.iter().zip(greatest).all(|(c, w)| (c / w - 1.0).abs() < 1e-6), "{isa} {precision}: {c:?}");
    }
}

#[test]
fn memory_is_what_codes_and_scales_take() {
    let (k, n) = (768, 320);
    let b = Random::new(76).values(k * n);
    for (code_bits, bytes) in [(CodeBits::Four, k * n / 2), (CodeBits::Eight, k * n)] {
        assert_eq!(pack(Isa::Scalar, code_bits, &b, k, n).bytes(), bytes + k / GROUP * n * 4);
    }
}
