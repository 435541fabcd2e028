//! Products and convolutions of 8-bit codes, over every instruction set against their definition, to the bit.

use super::Random;
use crate::engine::kernels::conv::ConvShape;
use crate::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use crate::engine::kernels::int8::{
    Codes, DynamicInt8, FLIP, Finish, Floats, Left, Output, PackedInt8, RightCodes, RowTerms, Strip, conv, dense, multiply, quantize,
};
use crate::engine::kernels::isa::Isa;

/// Around the edges of tiles (16 rows, 64 along `k`), strips and panels (32), and blocks (128 rows, 1024 along `k`).
const SIZES: [(usize, usize, usize); 14] = [
    // First: nothing has grown the copy of the last strip's rows yet.
    (3, 0, 4),
    (1, 1, 1),
    (2, 4, 3),
    (16, 64, 32),
    (17, 65, 33),
    (15, 63, 16),
    (33, 128, 65),
    (1, 1500, 129),
    (8, 257, 40),
    (31, 1024, 32),
    (48, 1025, 17),
    (128, 96, 31),
    (129, 40, 64),
    (300, 300, 70),
];

fn unsigned(random: &mut Random, len: usize) -> Vec<u8> {
    // The extremes often: their products are what saturates where it must not.
    (0..len).map(|_| if random.below(4) == 0 { 255 } else { random.below(256) as u8 }).collect()
}

/// Codes from small to great along `k`, so that any four, any two, or only some neighbours times 255 fit 16 bits, and exactly so where
/// they are at their bounds; some are zero throughout.
fn signed(random: &mut Random, len: usize) -> Vec<i8> {
    let code = |at: usize| {
        let most = [32, 64, 0, 80, 128][at * 5 / len.max(1)];
        match random.below(4) {
            0 => most.min(127) as i8,
            1 => -most as i8,
            _ => (random.below(2 * most as usize + 1) as i16 - most).min(127) as i8,
        }
    };
    (0..len).map(code).collect()
}

/// The definition, of operands of which the zero points are taken already.
fn sums(a: &[i32], b: &[i32], (m, k, n): (usize, usize, usize)) -> Vec<i32> {
    (0..m * n).map(|at| (0..k).map(|p| a[at / n * k + p] * b[p * n + at % n]).sum()).collect()
}

#[test]
fn sums_are_exact_with_any_zero_points() {
    let mut random = Random::new(31);
    for (m, k, n) in SIZES {
        // An unaligned start, and rows that are not neighbours.
        let lda = k + random.below(3);
        let data = unsigned(&mut random, 1 + m * lda);
        let (a, b) = (&data[1..], signed(&mut random, k * n));
        let across: Vec<i8> = (0..n * k).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect();
        let other: Vec<u8> = b.iter().map(|&v| v as u8 ^ FLIP).collect();
        let row_zeros: Vec<i32> = (0..m).map(|_| random.below(256) as i32).collect();
        let column_zeros: Vec<i32> = (0..n).map(|_| random.below(256) as i32 - 128).collect();
        let other_zeros: Vec<i32> = column_zeros.iter().map(|zero| zero + 128).collect();
        let wide_a: Vec<i32> = (0..m * k).map(|i| i32::from(a[i / k * lda + i % k]) - row_zeros[i / k]).collect();
        let wide_b: Vec<i32> = b.iter().enumerate().map(|(i, &v)| i32::from(v) - column_zeros[i % n]).collect();
        let want = sums(&wide_a, &wide_b, (m, k, n));
        let row_sums: Vec<i32> = (0..m).map(|i| a[i * lda..i * lda + k].iter().map(|&v| i32::from(v)).sum()).collect();
        for isa in Isa::available() {
            for packed in [
                PackedInt8::pack(isa, RightCodes::Signed(&b), (k, n), false, &column_zeros),
                PackedInt8::pack(isa, RightCodes::Signed(&across), (k, n), true, &column_zeros),
                PackedInt8::pack(isa, RightCodes::Unsigned(&other), (k, n), false, &other_zeros),
            ] {
                let left = Left { data: a, stride: lda, offsets: &dense(k) };
                let mut found = vec![-1; m * n];
                let rows = RowTerms { zeros: Some(&row_zeros), sums: Some(&row_sums), scales: None };
                let mut finish = Finish { shift: &vec![0; n], rows: Some(rows), ldc: n, output: Output::Sums(&mut found) };
                multiply(&left, &Strip::of(0..m), &packed, 0..n, &mut finish);
                assert_eq!(found, want, "{isa}: {m} by {k} by {n}");
            }
        }
    }
}

#[test]
fn parts_and_rows_that_nobody_wants() {
    let (m, k, n) = (70, 130, 100);
    let mut random = Random::new(32);
    let (a, b) = (unsigned(&mut random, m * k), signed(&mut random, k * n));
    let shift: Vec<i32> = (0..n).map(|j| j as i32 - 50).collect();
    let wide = |a: &[u8]| a.iter().map(|&v| i32::from(v)).collect::<Vec<_>>();
    let b_wide: Vec<i32> = b.iter().map(|&v| i32::from(v)).collect();
    let want: Vec<i32> = sums(&wide(&a), &b_wide, (m, k, n)).iter().enumerate().map(|(i, v)| v + shift[i % n]).collect();
    for isa in Isa::available() {
        let packed = PackedInt8::pack(isa, RightCodes::Signed(&b), (k, n), false, &[0]);
        let left = Left { data: &a, stride: k, offsets: &dense(k) };
        for columns in [0..32, 32..96, 96..100, 64..64] {
            let mut strips = Strip::of(5..m);
            strips[0].to[3] = Strip::SKIP;
            let mut found = vec![i32::MIN; (m - 5) * columns.len()];
            let mut finish = Finish { shift: &shift, rows: None, ldc: columns.len(), output: Output::Sums(&mut found) };
            multiply(&left, &strips, &packed, columns.clone(), &mut finish);
            for (i, row) in found.chunks(columns.len().max(1)).enumerate() {
                let wanted = &want[(i + 5) * n..][columns.clone()];
                let skipped = vec![i32::MIN; columns.len()];
                assert_eq!(row, if i == 3 { &skipped[..] } else { wanted }, "{isa}: row {i} of {columns:?}");
            }
        }
    }
}

#[test]
fn requantised_codes_are_the_same_everywhere() {
    let mut random = Random::new(33);
    for (m, k, n) in SIZES {
        let (a, b) = (unsigned(&mut random, m * k), signed(&mut random, k * n));
        let shift: Vec<i32> = (0..n).map(|_| random.below(20_000) as i32 - 10_000).collect();
        // Halves make ties; a large factor overflows 16 and 32 bits, a NaN becomes the least code.
        let factor = |j: usize| match j % 5 {
            0 => 0.5,
            1 => 3e30,
            2 => f32::NAN,
            _ => 0.003 * (j as f32 + 1.0),
        };
        let factors: Vec<f32> = (0..n).map(factor).collect();
        let offsets: Vec<f32> = random.values(n);
        let wide_a: Vec<i32> = a.iter().map(|&v| i32::from(v)).collect();
        let wide_b: Vec<i32> = b.iter().map(|&v| i32::from(v)).collect();
        let exact = sums(&wide_a, &wide_b, (m, k, n));
        for (zero, low, high, flip, offset) in
            [(0, 0, 255, 0, None), (3, 3, 200, 0, None), (128, 0, 255, FLIP, Some(&offsets)), (-7, 0, 255, 0, Some(&offsets))]
        {
            let want = |i: usize| {
                let value = (exact[i] + shift[i % n]) as f32 * factors[i % n];
                let value = offset.map_or(value, |offsets: &Vec<f32>| value + offsets[i % n]);
                let nearest = if value.is_nan() { i32::MIN } else { value.round_ties_even() as i32 };
                nearest.saturating_add(zero).clamp(i32::from(low), i32::from(high)) as u8 ^ flip
            };
            let want: Vec<u8> = (0..m * n).map(want).collect();
            for isa in Isa::available() {
                let packed = PackedInt8::pack(isa, RightCodes::Signed(&b), (k, n), false, &[0]);
                let left = Left { data: &a, stride: k, offsets: &dense(k) };
                let mut y = vec![77; m * n];
                let codes = Codes { y: &mut y, factors: &factors, offsets: offset.map(|o| &o[..]), zero: zero as i16, low, high, flip };
                multiply(
                    &left,
                    &Strip::of(0..m),
                    &packed,
                    0..n,
                    &mut Finish { shift: &shift, rows: None, ldc: n, output: Output::Codes(codes) },
                );
                assert_eq!(y, want, "{isa}: {m} by {k} by {n}, zero {zero}");
            }
        }
    }
}

#[test]
fn sums_of_two_tensors_are_the_same_everywhere() {
    let mut random = Random::new(39);
    for len in [0, 1, 31, 32, 33, 257] {
        let (a, b) = (unsigned(&mut random, len), unsigned(&mut random, len));
        // Halves make ties; large ratios overflow 16 and 32 bits, a NaN becomes the least code.
        for ratios in [(0.5, 0.25, 3.5), (1.3, -0.7, 128.0), (3e30, 1.0, -1e5), (f32::NAN, 1.0, 0.0)] {
            for flip in [0, FLIP] {
                let mut want = vec![77; len];
                quantize::add(Isa::Scalar, &a, &b, ratios, flip, &mut want);
                for isa in Isa::available() {
                    let mut y = vec![77; len];
                    quantize::add(isa, &a, &b, ratios, flip, &mut y);
                    assert_eq!(y, want, "{isa}: {len} codes, {ratios:?}, flip {flip}");
                }
            }
        }
    }
}

#[test]
fn scaled_floats_have_scales_of_rows_and_columns() {
    let (m, k, n) = (37, 200, 45);
    let mut random = Random::new(34);
    let (a, b) = (unsigned(&mut random, m * k), signed(&mut random, k * n));
    let (factors, bias, scales) = (random.values(n), random.values(n), random.values(m));
    let wide_a: Vec<i32> = a.iter().map(|&v| i32::from(v)).collect();
    let wide_b: Vec<i32> = b.iter().map(|&v| i32::from(v)).collect();
    let exact = sums(&wide_a, &wide_b, (m, k, n));
    for (isa, adds) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
        // What is not added must not be read.
        let held = if adds { random.values(m * n) } else { vec![f32::NAN; m * n] };
        let packed = PackedInt8::pack(isa, RightCodes::Signed(&b), (k, n), false, &[0]);
        let left = Left { data: &a, stride: k, offsets: &dense(k) };
        let mut y = held.clone();
        let floats = Floats { y: &mut y, factors: &factors, bias: Bias::PerColumn(&bias), adds, activation: Activation::Relu };
        let rows = RowTerms { zeros: None, sums: None, scales: Some(&scales) };
        multiply(
            &left,
            &Strip::of(0..m),
            &packed,
            0..n,
            &mut Finish { shift: &[0; 45], rows: Some(rows), ldc: n, output: Output::Floats(floats) },
        );
        for (i, &found) in y.iter().enumerate() {
            let product = f64::from(exact[i]) * f64::from(scales[i / n]) * f64::from(factors[i % n]);
            let added = if adds { f64::from(held[i]) } else { 0.0 };
            let want = (product + f64::from(bias[i % n]) + added).max(0.0);
            // The sum, its scale, the product, the bias and what is held are rounded once each.
            let bound = if adds { 5.0 } else { 4.0 } * (product.abs() + 1.0) * 2f64.powi(-24);
            assert!((f64::from(found) - want).abs() <= bound, "{isa}: {found} at {i}, want {want}");
        }
    }
}

/// A convolution by its definition, zero points taken already.
fn convolved(s: &ConvShape, x: impl Fn(usize, usize, usize, usize) -> i32, w: &[i8], wanted: (usize, usize, usize, usize)) -> i32 {
    let (n, c_out, y, column) = wanted;
    let mut sum = 0;
    for (c, ky, kx) in
        (0..s.c_in * s.kernel_h * s.kernel_w).map(|i| (i / (s.kernel_h * s.kernel_w), i / s.kernel_w % s.kernel_h, i % s.kernel_w))
    {
        let (iy, ix) = (y * s.stride_h + ky * s.dilation_h, column * s.stride_w + kx * s.dilation_w);
        if iy < s.pad_top || ix < s.pad_left || iy - s.pad_top >= s.h_in || ix - s.pad_left >= s.w_in {
            continue;
        }
        let weight = w[((c_out * s.c_in + c) * s.kernel_h + ky) * s.kernel_w + kx];
        sum += x(n, c, iy - s.pad_top, ix - s.pad_left) * i32::from(weight);
    }
    sum
}

/// A shape with the same padding on all sides.
fn shape(
    (n, c_in, c_out): (usize, usize, usize),
    (h, w): (usize, usize),
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
) -> ConvShape {
    let out = |size: usize| (size + 2 * pad - (kernel - 1) * dilation - 1) / stride + 1;
    ConvShape {
        n,
        c_in,
        h_in: h,
        w_in: w,
        c_out,
        h_out: out(h),
        w_out: out(w),
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: stride,
        stride_w: stride,
        pad_top: pad,
        pad_left: pad,
        dilation_h: dilation,
        dilation_w: dilation,
        groups: 1,
    }
}

#[test]
fn convolutions_are_their_definition_in_either_layout() {
    let shapes = [
        shape((1, 64, 5), (6, 7), 3, 1, 1, 1),
        shape((2, 64, 33), (7, 7), 3, 1, 1, 2),
        shape((3, 128, 8), (5, 4), 1, 1, 0, 1),
        shape((2, 10, 40), (9, 5), 1, 1, 0, 1),
        shape((2, 64, 20), (8, 9), 1, 2, 0, 1),
        shape((1, 3, 16), (20, 23), 7, 2, 3, 1),
        shape((2, 64, 16), (9, 9), 3, 2, 1, 1),
        shape((1, 5, 7), (11, 6), 3, 1, 2, 2),
    ];
    let mut random = Random::new(35);
    for s in shapes {
        let (x, w) = (unsigned(&mut random, s.input_len()), signed(&mut random, s.c_out * s.c_in * s.kernel_h * s.kernel_w));
        let zero = random.below(256) as u8;
        let at = |n: usize, c: usize, y: usize, column: usize| ((n * s.c_in + c) * s.h_in + y) * s.w_in + column;
        let last: Vec<u8> = (0..x.len())
            .map(|i| {
                let (pixel, c) = (i / s.c_in, i % s.c_in);
                let (line, column) = (pixel / s.w_in, pixel % s.w_in);
                x[at(line / s.h_in, c, line % s.h_in, column)]
            })
            .collect();
        let flipped: Vec<u8> = x.iter().map(|v| v ^ FLIP).collect();
        let pixels = s.n * s.h_out * s.w_out;
        let want: Vec<i32> = (0..pixels * s.c_out)
            .map(|i| {
                let (pixel, channel) = (i / s.c_out, i % s.c_out);
                let (line, column) = (pixel / s.w_out, pixel % s.w_out);
                let x = |n, c, y, column| i32::from(x[at(n, c, y, column)]) - i32::from(zero);
                convolved(&s, x, &w, (line / s.h_out, channel, line % s.h_out, column))
            })
            .collect();
        for isa in Isa::available() {
            let packed = conv::pack(isa, RightCodes::Signed(&w), (s.c_out, s.c_in, s.kernel_h * s.kernel_w), &[0]);
            let shift: Vec<i32> = packed.column_sums().iter().map(|sum| -sum * i32::from(zero)).collect();
            for (data, channels_last, flip) in [(&x, false, 0), (&last, true, 0), (&flipped, false, FLIP)] {
                let mut buffer = vec![];
                let prepared = conv::prepare(&s, &conv::Image { data, channels_last, flip, zero }, &mut buffer);
                for split in [0, 1, s.n * s.h_out / 2] {
                    let mut found = vec![i32::MIN; pixels * s.c_out];
                    let (before, behind) = found.split_at_mut(split * s.w_out * s.c_out);
                    for (lines, y) in [(0..split, before), (split..s.n * s.h_out, behind)] {
                        let mut finish = Finish { shift: &shift, rows: None, ldc: s.c_out, output: Output::Sums(y) };
                        conv::run(&prepared, &packed, lines, 0..s.c_out, &mut finish);
                    }
                    assert_eq!(found, want, "{isa}: {s:?}, channels last {channels_last}, split at {split}");
                }
            }
        }
    }
}

#[test]
fn rows_of_floats_are_rounded_by_themselves() {
    let (m, k, n) = (300, 130, 70);
    let mut random = Random::new(36);
    let (mut a, b, bias) = (random.values(m * k), random.values(k * n), random.values(n));
    a[5 * k..6 * k].fill(0.0);
    a[7 * k + 3] = f32::NAN;
    a[8 * k + 3] = f32::INFINITY;
    let across: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
    let epilogue = Epilogue { alpha: 0.5, bias: Bias::PerColumn(&bias), ..Epilogue::default() };
    for isa in Isa::available() {
        let packed = DynamicInt8::pack(isa, &b, k, n, false);
        let mut all = vec![0.0; m * n];
        packed.multiply_columns(&a, k, m, 0..n, &mut all, n, &epilogue);
        for (i, found) in all.iter().enumerate() {
            if [7, 8].contains(&(i / n)) {
                assert!(found.is_nan(), "{isa}: row {} is {found}", i / n);
                continue;
            }
            let product: f64 = (0..k).map(|p| f64::from(a[i / n * k + p]) * f64::from(b[p * n + i % n])).sum();
            // Operands within ±1 are off by half a step each: 2 / 255 and 1 / 127.
            let bound = k as f64 * (1.0 / 255.0 + 0.5 / 127.0 + 1.0 / 65_000.0) * 0.5;
            assert!((f64::from(*found) - product * 0.5 - f64::from(bias[i % n])).abs() <= bound, "{isa}: {found} at {i}");
        }
        let mut transposed = vec![0.0; m * n];
        DynamicInt8::pack(isa, &across, k, n, true).multiply_columns(&a, k, m, 0..n, &mut transposed, n, &epilogue);
        assert_eq!(super::bits(&transposed), super::bits(&all));
        for row in [0, 5, 31, 255, 256, 299] {
            let mut alone = vec![0.0; 38];
            packed.multiply_columns(&a[row * k..], k, 1, 32..70, &mut alone, 38, &epilogue);
            assert_eq!(super::bits(&alone), super::bits(&all[row * n + 32..][..38]), "{isa}: row {row}");
        }
    }
}
