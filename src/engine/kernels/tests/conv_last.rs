//! Convolutions and pooling of images with channels last.

use super::conv::{dense, reference, shapes, values, weights_len, with};
use super::{Random, bits};
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::conv::last::{Apart, Image, PackedConvLast, conv2d_last, conv2d_last_channels};
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::pool::{PoolAxis, Pooled, max_pool, max_pool_last, mean_last};
use crate::engine::kernels::rows::copy_rows;
use crate::engine::kernels::weights::Precision;

/// The shapes of the other tests, and some that fill tiles, panels and strips and leave some over.
fn all_shapes() -> Vec<ConvShape> {
    let mut shapes = shapes();
    shapes.extend([
        with(dense(2, 16, (7, 7), 70, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(1, 40, (30, 37), 33, (1, 1)), (1, 1), (0, 0), (1, 1), 1),
        with(dense(2, 37, (15, 29), 37, (3, 3)), (1, 1), (1, 1), (1, 1), 37),
        // Depthwise in strips of columns, and in parts of the channels.
        with(dense(1, 144, (5, 37), 144, (3, 3)), (1, 1), (1, 1), (1, 1), 144),
        with(dense(1, 408, (6, 19), 408, (5, 5)), (1, 2), (2, 2), (1, 1), 408),
        with(dense(2, 64, (13, 13), 64, (5, 5)), (2, 2), (2, 2), (1, 1), 64),
        with(dense(1, 18, (9, 12), 18, (3, 3)), (1, 1), (2, 2), (2, 2), 18),
        with(dense(1, 3, (70, 300), 5, (3, 3)), (2, 2), (1, 1), (1, 1), 1),
        // At bf16 read where it lies: taps of whole steps and of some that are filled up, in every plane of strides, with long pixels.
        with(dense(2, 32, (9, 11), 40, (3, 2)), (2, 3), (2, 1), (2, 3), 1),
        with(dense(1, 48, (13, 7), 33, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(1, 16, (21, 9), 35, (3, 3)), (3, 2), (0, 2), (1, 1), 1),
        with(dense(1, 512, (3, 5), 4, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        with(dense(2, 64, (70, 1), 34, (2, 1)), (1, 1), (0, 0), (4, 1), 1),
        dense(3, 64, (4, 5), 14, (1, 1)),
        // Sequences: lines of one pixel.
        ConvShape { h_out: 150, pad_top: 8, ..with(dense(1, 32, (150, 1), 10, (2, 1)), (1, 1), (0, 0), (8, 1), 1) },
        with(dense(2, 40, (61, 1), 33, (5, 1)), (3, 1), (2, 0), (1, 1), 1),
        with(dense(1, 5, (70, 1), 9, (4, 1)), (2, 1), (3, 0), (2, 1), 1),
        with(dense(1, 1, (70, 1), 20, (1, 1)), (1, 1), (0, 0), (1, 1), 1),
        with(dense(1, 96, (50, 30), 1, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        // By Winograd's method: odd sizes, images smaller than a tile, much padding and none, panels that are not full, several blocks.
        with(dense(2, 32, (13, 7), 40, (3, 3)), (1, 1), (0, 2), (1, 1), 1),
        ConvShape { h_in: 1, w_in: 2, h_out: 1, w_out: 2, pad_top: 1, pad_left: 1, ..dense(1, 40, (3, 3), 33, (3, 3)) },
        ConvShape { h_in: 4, w_in: 1, h_out: 6, w_out: 3, pad_top: 2, pad_left: 2, ..dense(1, 32, (4, 3), 47, (3, 3)) },
        with(dense(1, 64, (40, 21), 32, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        // And images of one tile, and of four in blocks that begin in the middle of a sample.
        ConvShape { h_in: 2, w_in: 2, h_out: 2, w_out: 2, pad_top: 1, pad_left: 1, ..dense(5, 32, (3, 3), 40, (3, 3)) },
        with(dense(9, 256, (3, 3), 32, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
        // Several strips: 240 × 70 × 24 elements and more.
        with(dense(1, 24, (240, 70), 3, (3, 3)), (1, 1), (1, 1), (1, 1), 1),
    ]);
    shapes
}

fn pack(way: (Precision, Isa), s: &ConvShape, weights: &[f32]) -> PackedConvLast {
    let apart = Apart { taps: s.dilation_h.max(s.dilation_w) > 1, pixels: s.stride_h.max(s.stride_w) > 1 };
    PackedConvLast::pack(way, weights, (s.c_out, s.c_in / s.groups), (s.kernel_h, s.kernel_w), (s.groups, apart))
}

/// Every instruction set with every precision.
fn ways() -> Vec<(Precision, Isa)> {
    Isa::available().into_iter().flat_map(|isa| Precision::ALL.map(|precision| (precision, isa))).collect()
}

/// Images `[n, channels, pixels]` with their channels last.
fn turned(x: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let sample = (channels * pixels).max(1);
    x.chunks(sample).flat_map(|x| (0..pixels).flat_map(move |pixel| (0..channels).map(move |c| x[c * pixels + pixel]))).collect()
}

fn after(bias: &[f32], activation: Activation) -> Epilogue<'_> {
    Epilogue { bias: Bias::PerColumn(bias), activation, ..Epilogue::default() }
}

/// For every instruction set and precision, in either order of the input, with and without sums that are there already.
fn assert_matches_the_definition(shape: &ConvShape, random: &mut Random, scratch: &mut Vec<f32>) {
    let (w, x) = (values(random, weights_len(shape)), values(random, shape.input_len()));
    let (bias, held) = (random.values(shape.c_out), random.values(shape.output_len()));
    let want = reference(shape, &w, &x, &bias);
    let last = turned(&x, shape.c_in, shape.h_in * shape.w_in);
    let pixels = shape.h_out * shape.w_out;
    let (held_last, k) = (turned(&held, shape.c_out, pixels), weights_len(shape) / shape.c_out);
    for (way, adds, channels_last) in
        ways().into_iter().flat_map(|way| [(false, true), (true, true), (true, false)].map(|(adds, last)| (way, adds, last)))
    {
        let mut y = if adds { held_last.clone() } else { vec![f32::NAN; held_last.len()] };
        let image = Image { data: if channels_last { &last } else { &x }, channels_last };
        let epilogue = Epilogue { adds, ..after(&bias, Activation::Relu) };
        conv2d_last(shape, &pack(way, shape, &w), image, &epilogue, 0..shape.n * shape.h_out, &mut y, scratch);
        let want: Vec<(f64, f64)> = want
            .iter()
            .zip(&held)
            .map(|((want, size), held)| {
                let held = if adds { f64::from(*held) } else { 0.0 };
                ((want + held).max(0.0), size + held.abs())
            })
            .collect();
        for (at, got) in y.iter().enumerate() {
            let (sample, pixel, channel) = (at / (pixels * shape.c_out), at / shape.c_out % pixels, at % shape.c_out);
            let (want, size) = want[(sample * shape.c_out + channel) * pixels + pixel];
            let bound = 2.0 * (k + 3) as f64 * size * 2f64.powi(-24);
            assert!(
                (f64::from(*got) - want).abs() <= bound,
                "{way:?} {adds} {channels_last} {shape:?}: element {at} is {got}, want {want}"
            );
        }
        scratch.fill(f32::NAN);
    }
}

#[test]
fn they_match_the_definition_for_every_isa_in_either_order_of_the_input() {
    let mut random = Random::new(21);
    // One scratch for all, so that what an earlier shape left behind would show.
    let mut scratch = vec![f32::NAN; 100];
    for shape in all_shapes() {
        assert_matches_the_definition(&shape, &mut random, &mut scratch);
    }
}

#[test]
fn depthwise_convolutions_of_every_width_match_the_definition() {
    let mut random = Random::new(29);
    let mut scratch = Vec::new();
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (4, 1)] {
        for width in 1..=22 {
            // Channels for registers of 16, of 8, for one of them, and some that fill none.
            let shape = ConvShape { w_in: width, ..dense(1, 16 + 8 + 3, (4, 5), 16 + 8 + 3, (3, kernel)) };
            let shape = with(shape, (1, stride), (1, kernel / 2), (1, 1), shape.c_in);
            assert_matches_the_definition(&shape, &mut random, &mut scratch);
        }
    }
}

#[test]
fn lines_computed_in_parts_and_samples_in_a_batch_have_the_same_bits() {
    let mut random = Random::new(22);
    for shape in all_shapes().into_iter().filter(|shape| shape.n > 0) {
        for way in ways() {
            let packed = pack(way, &shape, &random.values(weights_len(&shape)));
            let bias = random.values(shape.c_out);
            for activation in [Activation::Clip { min: -0.5, max: 0.5 }, Activation::Silu] {
                let batch = ConvShape { n: 1 + random.below(5), ..shape };
                let one = ConvShape { n: 1, ..shape };
                let x = random.values(batch.input_len());
                let lines = batch.n * batch.h_out;
                let run = |shape: &ConvShape, x: &[f32], lines: std::ops::Range<usize>| {
                    let mut y = vec![0.0; lines.len() * shape.w_out * shape.c_out];
                    let image = Image { data: x, channels_last: true };
                    conv2d_last(shape, &packed, image, &after(&bias, activation), lines, &mut y, &mut Vec::new());
                    y
                };
                let whole = run(&batch, &x, 0..lines);
                let cut = random.below(lines + 1);
                let mut parts = run(&batch, &x, 0..cut);
                parts.extend(run(&batch, &x, cut..lines));
                assert_eq!(bits(&parts), bits(&whole), "{way:?} {batch:?} cut at line {cut}");
                let channels = (packed.channel_step()..shape.c_out).step_by(packed.channel_step()).next();
                for channels in channels.into_iter().flat_map(|cut| [0..cut, cut..shape.c_out]) {
                    let mut part = vec![0.0; lines * shape.w_out * channels.len()];
                    let image = Image { data: &x, channels_last: true };
                    let to = (0..lines, channels.clone());
                    conv2d_last_channels(&batch, &packed, image, &after(&bias, activation), to, &mut part, &mut Vec::new());
                    for (part, whole) in part.chunks(channels.len()).zip(whole.chunks(shape.c_out)) {
                        assert_eq!(bits(part), bits(&whole[channels.clone()]), "{way:?} {batch:?} channels {channels:?}");
                    }
                }
                let sample = random.below(batch.n);
                let alone = run(&one, &x[sample * one.input_len()..][..one.input_len()], 0..one.h_out);
                assert_eq!(bits(&alone), bits(&whole[sample * alone.len()..][..alone.len()]), "{way:?} {batch:?} sample {sample}");
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
            x[10] = f32::NAN;
            let run = |weight: f32, x: &[f32], activation| {
                let mut y = vec![0.0; shape.output_len()];
                let packed = pack(way, &shape, &vec![weight; weights_len(&shape)]);
                let image = Image { data: x, channels_last: true };
                conv2d_last(&shape, &packed, image, &Epilogue { activation, ..Epilogue::default() }, 0..4, &mut y, &mut Vec::new());
                y
            };
            let y = run(0.0, &x, Activation::Relu);
            assert_eq!(y.iter().step_by(2).filter(|v| v.is_nan()).count(), 9, "{way:?}");
            let y = run(f32::INFINITY, &vec![1.0; x.len()], Activation::None);
            assert!(y[0].is_nan() && y[10].is_infinite(), "{way:?}");
        }
    }
}

#[test]
fn a_pixel_reaches_those_that_meet_it_and_no_others() {
    let mut random = Random::new(25);
    for channels in [16, 40, 64] {
        let shape = with(dense(1, channels, (12, 11), 34, (3, 3)), (1, 1), (1, 1), (1, 1), 1);
        let (w, mut x) = (random.values(weights_len(&shape)), random.values(shape.input_len()));
        // Row 5, column 10, at the end of a line, in its first channel: behind it lie channels that fill up a step, and the next pixel.
        x[(5 * 11 + 10) * channels] = f32::NAN;
        for way in ways() {
            let mut y = vec![0.0; shape.output_len()];
            let image = Image { data: &x, channels_last: true };
            conv2d_last(&shape, &pack(way, &shape, &w), image, &Epilogue::default(), 0..12, &mut y, &mut Vec::new());
            for (pixel, values) in y.chunks(34).enumerate() {
                let meets = (4..=6).contains(&(pixel / 11)) && pixel % 11 >= 9;
                assert!(values.iter().all(|v| v.is_nan() == meets), "{way:?} {channels} channels: pixel {pixel}");
            }
        }
    }
}

/// Winograd's method adds what the definition does not: where that overflows, the definition counts.
#[test]
fn sums_of_neighbours_that_overflow_spoil_nothing() {
    let mut random = Random::new(26);
    let shape = with(dense(1, 32, (6, 7), 34, (3, 3)), (1, 1), (1, 1), (1, 1), 1);
    let w: Vec<f32> = random.values(weights_len(&shape)).iter().map(|w| w * 1e-3).collect();
    let x: Vec<f32> = random.values(shape.input_len()).iter().map(|x| x * 3e38).collect();
    let bias = vec![0.0; shape.c_out];
    let want = reference(&shape, &w, &x, &bias);
    let image = turned(&x, shape.c_in, shape.h_in * shape.w_in);
    for isa in Isa::available() {
        let mut y = vec![0.0; shape.output_len()];
        let packed = pack((Precision::F32, isa), &shape, &w);
        conv2d_last(&shape, &packed, Image { data: &image, channels_last: true }, &Epilogue::default(), 0..6, &mut y, &mut Vec::new());
        for (at, got) in y.iter().enumerate() {
            let (want, size) = want[at % shape.c_out * 42 + at / shape.c_out];
            assert!((f64::from(*got) - want).abs() <= 1e-4 * size, "{isa:?}: element {at} is {got}, want {want}");
        }
    }
}

/// What is not finite in a weight is met by the padding too.
#[test]
fn weights_that_are_not_finite_are_multiplied_with_the_padding() {
    let shape = with(dense(1, 32, (4, 4), 32, (3, 3)), (1, 1), (1, 1), (1, 1), 1);
    let mut w = vec![1.0; weights_len(&shape)];
    w[0] = f32::INFINITY;
    let x = vec![1.0; shape.input_len()];
    for isa in Isa::available() {
        let mut y = vec![0.0; shape.output_len()];
        let packed = pack((Precision::F32, isa), &shape, &w);
        conv2d_last(&shape, &packed, Image { data: &x, channels_last: true }, &Epilogue::default(), 0..4, &mut y, &mut Vec::new());
        // The first tap of the first channel meets padding in the first line and column.
        let first: Vec<f32> = y.iter().step_by(32).copied().collect();
        for (pixel, value) in first.iter().enumerate() {
            let padding = pixel < 4 || pixel % 4 == 0;
            assert!(if padding { value.is_nan() } else { *value == f32::INFINITY }, "{isa:?}: pixel {pixel} is {value}");
        }
        assert!(y.iter().enumerate().all(|(at, value)| at % 32 == 0 || value.is_finite()), "{isa:?}");
    }
}

#[test]
fn the_greatest_of_every_window_with_channels_last() {
    let mut random = Random::new(23);
    let axis = |input: usize, kernel: usize, stride: usize, dilation: usize, pad: usize| {
        let room = (input + 2 * pad).checked_sub((kernel - 1) * dilation + 1)?;
        Some(PoolAxis { input, output: room / stride + 1, kernel, stride, dilation, pad })
    };
    for (kernel, stride, dilation, pad) in [(1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 1), (5, 1, 1, 2), (2, 3, 3, 1)] {
        for (height, width, channels) in [(1, 1, 1), (6, 9, 3), (12, 7, 35)] {
            let (Some(rows), Some(columns)) = (axis(height, kernel, stride, dilation, pad), axis(width, kernel, 1, 1, kernel / 2)) else {
                continue;
            };
            let mut x = random.values(2 * height * width * channels);
            let len = x.len();
            x[random.below(len)] = f32::NAN;
            let last = turned(&x, channels, height * width);
            for isa in Isa::available() {
                let mut planes = vec![0.5; 2 * channels * rows.output * columns.output];
                max_pool(isa, rows, columns, &x, &mut planes);
                let want = turned(&planes, channels, rows.output * columns.output);
                let mut y = vec![0.5; want.len()];
                // In two parts, the second from a line of the first sample on.
                let (lines, line) = (2 * rows.output, columns.output * channels);
                let (first, second) = y.split_at_mut(rows.output / 2 * line);
                max_pool_last(isa, [rows, columns], channels, &last, 0..rows.output / 2, first);
                max_pool_last(isa, [rows, columns], channels, &last, rows.output / 2..lines, second);
                let same = y.iter().zip(&want).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
                assert!(same, "{isa}: {rows:?} {columns:?} {channels}");
                let codes: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
                codes_like_numbers(isa, [rows, columns], channels, &codes);
                codes_like_numbers(isa, [rows, columns], channels, bytemuck::cast_slice::<u8, i8>(&codes));
            }
        }
    }
}

/// Codes have the greatest of their numbers; the least code where there is none.
fn codes_like_numbers<T: Pooled + Into<f32> + PartialEq + std::fmt::Debug>(isa: Isa, axes: [PoolAxis; 2], channels: usize, x: &[T]) {
    let numbers: Vec<f32> = x.iter().map(|&code| code.into()).collect();
    let (lines, len) = (2 * axes[0].output, 2 * axes[0].output * axes[1].output * channels);
    let (mut y, mut want) = (vec![x[0]; len], vec![0.5; len]);
    max_pool_last(isa, axes, channels, x, 0..lines, &mut y);
    max_pool_last(isa, axes, channels, &numbers, 0..lines, &mut want);
    let same = y.iter().zip(&want).all(|(&y, &want)| if want == f32::NEG_INFINITY { y == T::LEAST } else { y.into() == want });
    assert!(same, "{isa}: {axes:?} {channels}");
}

#[test]
fn the_mean_of_every_channel() {
    let mut random = Random::new(24);
    for (pixels, channels) in [(1, 1), (49, 70), (200, 64), (4097, 3)] {
        let x = random.values(pixels * channels);
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; channels];
            // In two parts.
            let (first, second) = y.split_at_mut(channels / 3);
            mean_last(isa, &x, channels, 0, first);
            mean_last(isa, &x, channels, channels / 3, second);
            for (channel, got) in y.iter().enumerate() {
                let of =
                    |f: fn(f64) -> f64| x.iter().skip(channel).step_by(channels).map(|&v| f(f64::from(v))).sum::<f64>() / pixels as f64;
                let bound = (64 + pixels / 64) as f64 * of(f64::abs) * 2f64.powi(-24);
                assert!((f64::from(*got) - of(|v| v)).abs() <= bound.max(1e-9), "{isa} {pixels} {channels}: {got}");
            }
        }
    }
}

#[test]
fn rows_go_where_they_begin_and_nowhere_else() {
    let mut random = Random::new(25);
    for (rows, len, pitch) in [(0, 3, 5), (1, 7, 7), (4, 1, 2), (3, 16, 40), (5, 37, 37), (2, 50, 64)] {
        let from = random.values(rows * len);
        // The last row has nothing behind it.
        let mut to = vec![9.0; (rows * pitch).saturating_sub(pitch - len)];
        copy_rows(&from, len, &mut to, pitch);
        for (at, value) in to.iter().enumerate() {
            let want = if at % pitch < len { from[at / pitch * len + at % pitch] } else { 9.0 };
            assert_eq!(*value, want, "{rows} rows of {len} every {pitch}: element {at}");
        }
    }
}
