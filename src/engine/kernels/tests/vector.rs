//! Elementwise maths and reductions.

use super::{Random, bits};
use crate::engine::kernels::epilogue::Activation;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::vector::{self, Binary, Operand, math};

type Function = fn(Isa, &[f32], &mut [f32]);
type InPlace = fn(Isa, &mut [f32]);

/// The spacing of `f32` around a value.
fn ulp(x: f64) -> f64 {
    let exponent = x.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    2f64.powf(exponent.min(127.0) - 23.0)
}

/// `erf` to about 1e-15: the Taylor series near 0, the continued fraction of `erfc` beyond.
pub(super) fn erf(x: f64) -> f64 {
    let t = x.abs();
    if t < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..80).rev().fold(t, |below, n| t + f64::from(n) / 2.0 / below);
    (1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
}

/// Values over the whole domain: evenly spaced bit patterns (both signs, subnormals, infinities, NaN), the specials, and a
/// fine grid where the functions bend.
pub(super) fn domain() -> Vec<f32> {
    let patterns = (0..=u32::MAX).step_by(15_013).map(f32::from_bits);
    let grid = (-1_200_000..1_200_000).step_by(11).map(|i| i as f32 / 10_000.0);
    let specials = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45];
    patterns.chain(grid).chain(specials).collect()
}

/// The greatest error over the domain in ULP, where `scale` gives the unit; NaN must meet NaN, and infinity itself.
fn worst(isa: Isa, function: Function, reference: fn(f64) -> f64, scale: fn(f64, f64) -> f64) -> f64 {
    let x = domain();
    let mut y = vec![0.0; x.len()];
    function(isa, &x, &mut y);
    let mut worst = (0.0f64, 0.0);
    for (x, got) in x.iter().zip(&y) {
        let want = reference(f64::from(*x));
        // The rounded reference: what overflows in f32 must be infinite.
        if want.is_nan() || got.is_nan() || (want as f32).is_infinite() || got.is_infinite() {
            assert!(want.is_nan() == got.is_nan() && (want.is_nan() || want as f32 == *got), "{isa} f({x}) = {got}, want {want}");
            continue;
        }
        let error = (f64::from(*got) - want).abs() / scale(f64::from(*x), want);
        worst = if error > worst.0 { (error, *x) } else { worst };
    }
    println!("{isa}: worst error {:.3} at {}", worst.0, worst.1);
    worst.0
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn errors_stay_within_the_documented_bounds() {
    for isa in Isa::available() {
        let in_ulp = |_: f64, want: f64| ulp(want);
        assert!(worst(isa, vector::exp, f64::exp, in_ulp) <= 1.0, "exp");
        assert!(worst(isa, vector::sigmoid, sigmoid, in_ulp) <= 3.0, "sigmoid");
        assert!(worst(isa, vector::tanh, f64::tanh, in_ulp) <= 2.0, "tanh");
        assert!(worst(isa, vector::erf, erf, in_ulp) <= 2.0, "erf");
        assert!(worst(isa, vector::relu, |x| if x < 0.0 { 0.0 } else { x }, in_ulp) == 0.0, "relu");
        let silu = |x: f64| x * sigmoid(x);
        let in_ulp_until_subnormal = |x: f64, want: f64| if x < -87.0 { 1e-42 / 4.0 } else { ulp(want) };
        assert!(worst(isa, vector::silu, silu, in_ulp_until_subnormal) <= 4.0, "silu");
        let absolute = |x: f64, _: f64| 2e-7 * x.abs().max(1.0);
        let gelu = |x: f64| x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
        assert!(worst(isa, vector::gelu, gelu, absolute) <= 1.0, "gelu");
        let gelu_tanh = |x: f64| x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x));
        assert!(worst(isa, vector::gelu_tanh, gelu_tanh, absolute) <= 1.0, "gelu_tanh");
    }
}

#[test]
fn what_is_not_above_zero_has_the_same_exponential_either_way() {
    let steps = (0..400_000).map(|i| i as f32 * -3e-4);
    for x in steps.chain([-0.0, -1e-45, -1e30, f32::NEG_INFINITY, f32::NAN]) {
        for (exp, negative) in
            [(math::exp::<true>(x), math::exp_negative::<true>(x)), (math::exp::<false>(x), math::exp_negative::<false>(x))]
        {
            assert!(exp.to_bits() == negative.to_bits() || exp.is_nan() && negative.is_nan(), "{x}: {exp}, {negative}");
        }
    }
}

#[test]
fn special_values() {
    let inf = f32::INFINITY;
    let cases: [(Function, f32, f32); 16] = [
        (vector::exp, 1000.0, inf),
        (vector::exp, -1000.0, 0.0),
        (vector::exp, -inf, 0.0),
        (vector::exp, 0.0, 1.0),
        (vector::sigmoid, -inf, 0.0),
        (vector::sigmoid, inf, 1.0),
        (vector::sigmoid, -1000.0, 0.0),
        (vector::tanh, inf, 1.0),
        (vector::tanh, -inf, -1.0),
        (vector::erf, -inf, -1.0),
        (vector::silu, f32::MIN, 0.0),
        (vector::silu, -inf, f32::NAN),
        (vector::gelu, f32::MIN, 0.0),
        (vector::gelu, -inf, f32::NAN),
        (vector::gelu_tanh, f32::MIN, 0.0),
        (vector::gelu_tanh, -inf, f32::NAN),
    ];
    for isa in Isa::available() {
        for (index, (function, x, want)) in cases.into_iter().enumerate() {
            let mut y = [f32::NAN];
            function(isa, &[x], &mut y);
            assert!(y[0] == want || y[0].is_nan() && want.is_nan(), "{isa} case {index}: {}", y[0]);
        }
    }
}

fn functions() -> Vec<(Function, InPlace)> {
    vec![
        (vector::exp, vector::exp_in_place),
        (vector::sigmoid, vector::sigmoid_in_place),
        (vector::tanh, vector::tanh_in_place),
        (vector::erf, vector::erf_in_place),
        (vector::silu, vector::silu_in_place),
        (vector::gelu, vector::gelu_in_place),
        (vector::gelu_tanh, vector::gelu_tanh_in_place),
        (vector::relu, vector::relu_in_place),
        (
            |isa, x, y| vector::binary(isa, Binary::Div, Operand::Slice(x), Operand::Scalar(3.0), y),
            |isa, x| {
                vector::binary_in_place(isa, Binary::Div, x, Operand::Scalar(3.0));
            },
        ),
        (
            |isa, x, y| {
                y.copy_from_slice(x);
                vector::activation_in_place(isa, Activation::HardSwish, y);
            },
            |isa, x| vector::activation_in_place(isa, Activation::HardSwish, x),
        ),
    ]
}

#[test]
fn an_element_has_the_same_bits_at_every_position_of_every_length() {
    let mut random = Random::new(21);
    for isa in Isa::available() {
        for (function, in_place) in functions() {
            for len in (0..70).chain([127, 1000]) {
                let start = random.below(17);
                let x: Vec<f32> = (0..start + len).map(|_| random.value() * 20.0).collect();
                let x = &x[start..];
                let mut together = vec![0.0; start + len + 1];
                function(isa, x, &mut together[1..][..len]);
                let together = &together[1..][..len];
                let mut alone = vec![0.0; len];
                x.iter().zip(&mut alone).for_each(|(x, y)| function(isa, &[*x], std::slice::from_mut(y)));
                assert_eq!(bits(together), bits(&alone), "{isa} length {len}");
                let mut replaced = x.to_vec();
                in_place(isa, &mut replaced);
                assert_eq!(bits(&replaced), bits(&alone), "{isa} length {len} in place");
            }
        }
    }
}

#[test]
fn binary_operations_are_exact_and_keep_nan() {
    let mut random = Random::new(22);
    type Exact = fn(f32, f32) -> f32;
    let exact: [(Binary, Exact); 6] = [
        (Binary::Add, |a, b| a + b),
        (Binary::Sub, |a, b| a - b),
        (Binary::Mul, |a, b| a * b),
        (Binary::Div, |a, b| a / b),
        (Binary::Max, f32::max),
        (Binary::Min, f32::min),
    ];
    for isa in Isa::available() {
        for (op, exact) in exact {
            for len in [0, 1, 15, 16, 33, 100] {
                let (a, b, mut y) = (random.values(len), random.values(len), vec![0.0; len]);
                vector::binary(isa, op, Operand::Slice(&a), Operand::Slice(&b), &mut y);
                assert!((0..len).all(|i| y[i] == exact(a[i], b[i])), "{isa} {op:?}");
                vector::binary(isa, op, Operand::Scalar(0.3), Operand::Slice(&b), &mut y);
                assert!((0..len).all(|i| y[i] == exact(0.3, b[i])), "{isa} {op:?}");
                vector::binary(isa, op, Operand::Scalar(0.3), Operand::Scalar(0.4), &mut y);
                assert!((0..len).all(|i| y[i] == exact(0.3, 0.4)), "{isa} {op:?}");
                let mut x = a.clone();
                vector::binary_in_place(isa, op, &mut x, Operand::Slice(&b));
                assert!((0..len).all(|i| x[i] == exact(a[i], b[i])), "{isa} {op:?}");
            }
            let mut y = [0.0; 2];
            vector::binary(isa, op, Operand::Slice(&[f32::NAN, 1.0]), Operand::Slice(&[1.0, f32::NAN]), &mut y);
            assert!(y.iter().all(|v| v.is_nan()), "{isa} {op:?}");
        }
    }
}

#[test]
fn reductions_match_the_reference() {
    let mut random = Random::new(23);
    for isa in Isa::available() {
        assert_eq!((vector::sum(isa, &[]), vector::max(isa, &[])), (0.0, f32::NEG_INFINITY));
        for len in (1..40).chain([100, 4097]) {
            let start = random.below(5);
            let x = &random.values(start + len)[start..];
            let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let (sum, size) = (wide.iter().sum::<f64>(), wide.iter().map(|v| v.abs()).sum::<f64>());
            let steps = len as f64 / 16.0;
            assert!((f64::from(vector::sum(isa, x)) - sum).abs() <= (steps + 5.0) * size * 2f64.powi(-24), "{isa} {len}");
            assert_eq!(vector::max(isa, x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mean = (sum / len as f64) as f32;
            let squares: f64 = wide.iter().map(|v| (v - f64::from(mean)).powi(2)).sum();
            let got = f64::from(vector::sum_of_squared_deviations(isa, x, mean));
            assert!((got - squares).abs() <= 1e-6 * (squares + 1e-6), "{isa} {len}: {got} {squares}");

            let mut y = vec![0.0; len];
            vector::softmax_row(isa, x, &mut y);
            let greatest = vector::max(isa, x);
            let powers: Vec<f64> = x.iter().map(|v| f64::from(v - greatest).exp()).collect();
            let total: f64 = powers.iter().sum();
            for (got, power) in y.iter().zip(&powers) {
                assert!((f64::from(*got) - power / total).abs() <= (steps + 8.0) * ulp(power / total), "{isa} {len}");
            }

            let (scale, bias) = (random.values(len), random.values(len));
            let variance = squares / len as f64;
            for bias in [bias.as_slice(), &[]] {
                vector::layer_norm_row(isa, x, &scale, bias, 1e-5, &mut y);
                for i in 0..len {
                    let want = (wide[i] - sum / len as f64) / (variance + 1e-5).sqrt() * f64::from(scale[i]);
                    let want = want + bias.get(i).copied().map_or(0.0, f64::from);
                    assert!((f64::from(y[i]) - want).abs() <= 1e-4, "{isa} {len}: {} {want}", y[i]);
                }
            }
        }
    }
}

#[test]
fn reductions_see_nan_and_softmax_of_masked_rows() {
    for isa in Isa::available() {
        for at in [0, 5, 16, 20] {
            let mut x = vec![1.0; 21];
            x[at] = f32::NAN;
            assert!(vector::max(isa, &x).is_nan() && vector::sum(isa, &x).is_nan());
            vector::softmax_row_in_place(isa, &mut x);
            assert!(x.iter().all(|v| v.is_nan()));
        }
        let mut masked = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY, 2.0];
        vector::softmax_row_in_place(isa, &mut masked);
        assert_eq!(masked, [0.0, 0.5, 0.0, 0.5]);
        let mut all = [f32::NEG_INFINITY; 3];
        vector::softmax_row_in_place(isa, &mut all);
        assert!(all.iter().all(|v| v.is_nan()));
        vector::softmax_row_in_place(isa, &mut []);
    }
}
