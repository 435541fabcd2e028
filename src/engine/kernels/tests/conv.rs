//! Convolutions.

use std::ops::Range;

use super::{Random, bits};
use crate::engine::kernels::conv::weights_gradient::{Part, weights_gradient};
use crate::engine::kernels::conv::{ConvShape, PackedConv, conv2d, conv2d_channels};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::weights::Precision;

/// A shape with the given input, kernel and group sizes, no padding, stride and dilation 1; the output size is set by
/// [`with`].
pub(super) fn dense(n: usize, c_in: usize, size: (usize, usize), c_out: usize, kernel: (usize, usize)) -> ConvShape {
    let shape = ConvShape {
        n,
        c_in,
        h_in: size.0,
        w_in: size.1,
        c_out,
        h_out: 0,
        w_out: 0,
        kernel_h: kernel.0,
        kernel_w: kernel.1,
        stride_h: 1,
        stride_w: 1,
        pad_top: 0,
        pad_left: 0,
        dilation_h: 1,
        dilation_w: 1,
        groups: 1,
    };
    with(shape, (1, 1), (0, 0), (1, 1), 1)
}

/// The shape with the same padding on both sides.
pub(super) fn with(s: ConvShape, stride: (usize, usize), pad: (usize, usize), dilation: (usize, usize), groups: usize) -> ConvShape {
    let out =
        |len: usize, pad: usize, kernel: usize, dilation: usize, stride: usize| (len + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1;
    ConvShape {
        h_out: out(s.h_in, pad.0, s.kernel_h, dilation.0, stride.0),
        w_out: out(s.w_in, pad.1, s.kernel_w, dilation.1, stride.1),
        stride_h: stride.0,
        stride_w: stride.1,
        pad_top: pad.0,
        pad_left: pad.1,
        dilation_h: dilation.0,
        dilation_w: dilation.1,
        groups,
        ..s
    }
}

pub(super) fn shapes() -> Vec<ConvShape> {
    vec![
        with(dense(3, 1, (8, 8), 32, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(2, 5, (7, 9), 13, (3, 3)), (2, 2), (1, 1), (1, 1), 1),
        with(dense(2, 30, (6, 5), 7, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(3, 4, (11, 10), 6, (3, 2)), (2, 3), (2, 1), (2, 3), 2),
        dense(5, 17, (4, 4), 14, (1, 1)),
        with(dense(2, 6, (9, 9), 5, (1, 1)), (2, 2), (0, 0), (1, 1), 1),
        with(dense(2, 6, (9, 9), 5, (1, 1)), (3, 2), (1, 1), (1, 1), 1),
        dense(40, 3, (3, 3), 9, (3, 3)),
        with(dense(2, 8, (10, 33), 8, (3, 3)), (1, 1), (1, 1), (1, 1), 8),
        with(dense(2, 4, (10, 20), 12, (5, 3)), (2, 2), (2, 1), (1, 1), 4),
        with(dense(3, 3, (1, 50), 10, (1, 7)), (1, 2), (0, 3), (1, 1), 1),
        with(dense(1, 9, (6, 6), 9, (3, 3)), (1, 1), (2, 2), (2, 2), 3),
        with(dense(1, 3, (40, 41), 24, (7, 7)), (2, 2), (3, 3), (1, 1), 1),
        dense(2, 2, (5, 5), 3, (5, 5)),
        dense(0, 2, (5, 5), 3, (2, 2)),
        with(dense(2, 0, (5, 5), 3, (2, 2)), (1, 1), (0, 0), (1, 1), 1),
        // Only the top and left are padded; the last rows and columns of the input are not used.
        ConvShape { pad_top: 1, pad_left: 2, h_out: 3, w_out: 4, ..dense(2, 2, (6, 7), 4, (2, 3)) },
        // Nothing but padding.
        ConvShape { pad_top: 1, pad_left: 1, h_out: 2, w_out: 2, h_in: 0, w_in: 0, ..dense(2, 2, (6, 7), 4, (1, 1)) },
    ]
}

/// The definition in `f64`, and the sum of the magnitudes of the terms of each element.
pub(super) fn reference(s: &ConvShape, w: &[f32], x: &[f32], bias: &[f32]) -> Vec<(f64, f64)> {
    let (per_group_in, per_group_out) = (s.c_in / s.groups, s.c_out / s.groups);
    let element = |at: usize| {
        let (ox, oy) = (at % s.w_out, at / s.w_out % s.h_out);
        let (o, n) = (at / s.w_out / s.h_out % s.c_out, at / s.w_out / s.h_out / s.c_out);
        let mut sum = (f64::from(bias[o]), f64::from(bias[o]).abs());
        for c in 0..per_group_in {
            for (ky, kx) in (0..s.kernel_h).flat_map(|ky| (0..s.kernel_w).map(move |kx| (ky, kx))) {
                let y = (oy * s.stride_h + ky * s.dilation_h).wrapping_sub(s.pad_top);
                let x_at = (ox * s.stride_w + kx * s.dilation_w).wrapping_sub(s.pad_left);
                if y < s.h_in && x_at < s.w_in {
                    let channel = o / per_group_out * per_group_in + c;
                    let value = x[((n * s.c_in + channel) * s.h_in + y) * s.w_in + x_at];
                    let weight = w[((o * per_group_in + c) * s.kernel_h + ky) * s.kernel_w + kx];
                    let term = f64::from(value) * f64::from(weight);
                    sum = (sum.0 + term, sum.1 + term.abs());
                }
            }
        }
        sum
    };
    (0..s.output_len()).map(element).collect()
}

/// The definition of the gradient of the weights in `f64`, `[c_out, kernel_h, kernel_w, c_in_per_group]`, with the sum of the magnitudes
/// of the terms of each element.
fn weights_gradient_reference(s: &ConvShape, g: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
    let (inputs, outputs) = (s.c_in / s.groups, s.c_out / s.groups);
    let element = |at: usize| {
        let (i, kx, ky) = (at % inputs, at / inputs % s.kernel_w, at / inputs / s.kernel_w % s.kernel_h);
        let o = at / inputs / s.kernel_w / s.kernel_h;
        let channel = o / outputs * inputs + i;
        let mut sum = (0.0, 0.0);
        for (n, oy, ox) in (0..s.n).flat_map(|n| (0..s.h_out).flat_map(move |oy| (0..s.w_out).map(move |ox| (n, oy, ox)))) {
            let y = (oy * s.stride_h + ky * s.dilation_h).wrapping_sub(s.pad_top);
            let x_at = (ox * s.stride_w + kx * s.dilation_w).wrapping_sub(s.pad_left);
            if y < s.h_in && x_at < s.w_in {
                let value = f64::from(x[((n * s.c_in + channel) * s.h_in + y) * s.w_in + x_at]);
                let term = value * f64::from(g[((n * s.c_out + o) * s.h_out + oy) * s.w_out + ox]);
                sum = (sum.0 + term, sum.1 + term.abs());
            }
        }
        sum
    };
    (0..s.c_out * s.kernel_h * s.kernel_w * inputs).map(element).collect()
}

#[test]
fn the_gradient_of_the_weights_is_its_definition_whatever_part_of_it_is_asked_for() {
    let more = [
        // Rows longer than a chunk; chunks that begin within a sample; channels of more than a panel.
        with(dense(2, 3, (1, 9001), 2, (1, 5)), (1, 2), (0, 2), (1, 1), 1),
        with(dense(70, 33, (4, 4), 13, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(3, 40, (33, 17), 26, (3, 3)), (2, 2), (1, 1), (1, 1), 1),
    ];
    let mut random = Random::new(21);
    for shape in shapes().into_iter().chain(more).filter(|shape| shape.input_len() > 0 && shape.output_len() > 0) {
        let (g, x) = (random.values(shape.output_len()), random.values(shape.input_len()));
        let want = weights_gradient_reference(&shape, &g, &x);
        let (inputs, outputs, taps) = (shape.c_in / shape.groups, shape.c_out / shape.groups, shape.kernel_h * shape.kernel_w);
        for isa in Isa::available() {
            let of = |group: usize, inputs: Range<usize>, outputs: Range<usize>| {
                let part = Part { group, inputs, outputs };
                let mut sums = vec![f32::NAN; part.inputs.len() * part.outputs.len() * taps];
                weights_gradient(&shape, isa, &g, &x, &part, &mut sums);
                sums
            };
            for group in 0..shape.groups {
                let whole = of(group, 0..inputs, 0..outputs);
                let want = &want[group * whole.len()..][..whole.len()];
                for (i, (found, (want, size))) in whole.iter().zip(want).enumerate() {
                    let bound = 1e-6 * size.max(1.0);
                    assert!((f64::from(*found) - want).abs() <= bound, "{isa} {shape:?} group {group}: element {i} is {found}, not {want}");
                }
                let lower = of(group, 0..inputs, outputs / 2..outputs);
                assert_eq!(bits(&lower), bits(&whole[whole.len() - lower.len()..]), "{isa} {shape:?}: some outputs");
                let right = of(group, inputs / 2..inputs, 0..outputs);
                let picked: Vec<f32> = whole.chunks_exact(inputs).flat_map(|row| row[inputs / 2..].iter().copied()).collect();
                assert_eq!(bits(&right), bits(&picked), "{isa} {shape:?}: some inputs");
            }
        }
    }
}

/// Every instruction set with every precision.
fn ways() -> impl Iterator<Item = (Isa, Precision)> {
    Isa::available().into_iter().flat_map(|isa| Precision::ALL.map(|precision| (isa, precision)))
}

/// Numbers that every precision has, so that rounding them changes nothing.
pub(super) fn values(random: &mut Random, len: usize) -> Vec<f32> {
    random.values(len).into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect()
}

fn pack((isa, precision): (Isa, Precision), s: &ConvShape, weights: &[f32]) -> PackedConv {
    PackedConv::pack(precision, isa, weights, s.c_out, s.c_in / s.groups, s.kernel_h, s.kernel_w, s.groups)
}

pub(super) fn weights_len(s: &ConvShape) -> usize {
    s.c_out * (s.c_in / s.groups) * s.kernel_h * s.kernel_w
}

fn after(bias: &[f32], activation: Activation) -> Epilogue<'_> {
    Epilogue { bias: Bias::PerRow(bias), activation, ..Epilogue::default() }
}

#[test]
fn what_the_output_holds_is_added_before_the_activation() {
    let mut random = Random::new(14);
    for way in ways() {
        for shape in shapes() {
            let (w, x) = (values(&mut random, weights_len(&shape)), values(&mut random, shape.input_len()));
            let (bias, held) = (random.values(shape.c_out), random.values(shape.output_len()));
            let want = reference(&shape, &w, &x, &bias);
            let mut y = held.clone();
            let epilogue = Epilogue { adds: true, ..after(&bias, Activation::Relu) };
            conv2d(&shape, &pack(way, &shape, &w), &x, &epilogue, &mut y, &mut Vec::new());
            let k = weights_len(&shape) / shape.c_out;
            for ((got, (want, size)), held) in y.iter().zip(want).zip(&held) {
                let (want, size) = ((want + f64::from(*held)).max(0.0), size + f64::from(held.abs()));
                let bound = 2.0 * (k + 3) as f64 * size * 2f64.powi(-24);
                assert!((f64::from(*got) - want).abs() <= bound, "{way:?} {shape:?}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn convolutions_match_the_definition_for_every_isa() {
    let mut random = Random::new(11);
    // One scratch for all, so that what an earlier shape left behind would show.
    let mut scratch = vec![f32::NAN; 100];
    for way in ways() {
        for shape in shapes() {
            let (w, x) = (values(&mut random, weights_len(&shape)), values(&mut random, shape.input_len()));
            let bias = random.values(shape.c_out);
            let want = reference(&shape, &w, &x, &bias);
            let mut y = vec![f32::NAN; shape.output_len()];
            conv2d(&shape, &pack(way, &shape, &w), &x, &after(&bias, Activation::None), &mut y, &mut scratch);
            let k = weights_len(&shape) / shape.c_out;
            for (at, (got, (want, size))) in y.iter().zip(want).enumerate() {
                let bound = 2.0 * (k + 2) as f64 * size * 2f64.powi(-24);
                assert!((f64::from(*got) - want).abs() <= bound, "{way:?} {shape:?}: element {at} is {got}, want {want}");
            }
            scratch.fill(f32::NAN);
        }
    }
}

#[test]
fn a_sample_has_the_same_bits_alone_and_anywhere_in_any_batch() {
    let mut random = Random::new(12);
    for way in ways() {
        for shape in shapes().into_iter().filter(|shape| shape.n > 0) {
            let packed = pack(way, &shape, &random.values(weights_len(&shape)));
            let bias = random.values(shape.c_out);
            let one = ConvShape { n: 1, ..shape };
            let sample = random.values(one.input_len());
            for activation in [Activation::Relu, Activation::Silu] {
                let mut alone = vec![0.0; one.output_len()];
                conv2d(&one, &packed, &sample, &after(&bias, activation), &mut alone, &mut Vec::new());
                for _ in 0..3 {
                    let batch = ConvShape { n: 1 + random.below(70), ..shape };
                    let position = random.below(batch.n);
                    let mut x = random.values(batch.input_len());
                    x[position * sample.len()..][..sample.len()].copy_from_slice(&sample);
                    let mut y = vec![0.0; batch.output_len()];
                    conv2d(&batch, &packed, &x, &after(&bias, activation), &mut y, &mut Vec::new());
                    let got = &y[position * alone.len()..][..alone.len()];
                    assert_eq!(bits(got), bits(&alone), "{way:?} {batch:?} sample {position} {activation:?}");
                }
            }
        }
    }
}

#[test]
fn channels_computed_in_parts_have_the_same_bits() {
    let mut random = Random::new(13);
    for way in ways() {
        for shape in shapes().into_iter().filter(|shape| shape.n > 0) {
            let packed = pack(way, &shape, &random.values(weights_len(&shape)));
            let (x, bias) = (random.values(shape.input_len()), random.values(shape.c_out));
            let mut whole = vec![0.0; shape.output_len()];
            conv2d(&shape, &packed, &x, &after(&bias, Activation::Tanh), &mut whole, &mut Vec::new());
            let (step, pixels) = (packed.channel_step(), shape.h_out * shape.w_out);
            for start in (0..shape.c_out).step_by(step) {
                let channels = start..shape.c_out.min(start + step);
                let mut part = vec![0.0; shape.n * channels.len() * pixels];
                conv2d_channels(&shape, &packed, &x, &after(&bias, Activation::Tanh), channels.clone(), &mut part, &mut Vec::new());
                for (n, got) in part.chunks(channels.len() * pixels).enumerate() {
                    let want = &whole[(n * shape.c_out + start) * pixels..][..got.len()];
                    assert_eq!(bits(got), bits(want), "{way:?} {shape:?} {channels:?}");
                }
            }
        }
    }
}

#[test]
fn nan_propagates_and_padding_is_multiplied() {
    for way in ways() {
        for groups in [1, 2] {
            let shape = with(dense(1, 2, (4, 4), 2, (3, 3)), (1, 1), (1, 1), (1, 1), groups);
            let mut x = vec![0.0; shape.input_len()];
            x[5] = f32::NAN;
            let mut y = vec![0.0; shape.output_len()];
            let zeros = pack(way, &shape, &vec![0.0; weights_len(&shape)]);
            conv2d(&shape, &zeros, &x, &Epilogue { activation: Activation::Relu, ..Epilogue::default() }, &mut y, &mut Vec::new());
            assert_eq!(y[..16].iter().filter(|v| v.is_nan()).count(), 9, "{way:?}");
            let infinite = pack(way, &shape, &vec![f32::INFINITY; weights_len(&shape)]);
            conv2d(&shape, &infinite, &vec![1.0; x.len()], &Epilogue::default(), &mut y, &mut Vec::new());
            assert!(y[0].is_nan() && y[5].is_infinite(), "{way:?}");
        }
    }
}
