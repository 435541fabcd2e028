//! Speed of the kernels on one core, as GFLOP/s and as a share of the core's measured peak.
//!
//! `cargo bench --bench kernels [-- <isa> [<part of a name>]]`. Each figure is the fastest of 15
//! samples of at least 4 ms, which a busy machine disturbs least; the peak is a loop of independent multiply-adds in registers,
//! measured first.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ndserve::engine::kernels::conv::{ConvShape, PackedConv, conv2d};
use ndserve::engine::kernels::epilogue::{Activation, Bias, Epilogue};
use ndserve::engine::kernels::gemm::{PackedB, gemm, gemm_packed_b};
use ndserve::engine::kernels::isa::Isa;
use ndserve::engine::kernels::limits::peak_flops;
use ndserve::engine::kernels::vector::{self, Binary, Operand};
use ndserve::engine::kernels::weights::{Precision, Weights};

fn main() {
    // `cargo bench` passes `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let isa = arguments.next();
    let part = arguments.next().unwrap_or_default();
    let isa = isa.map_or_else(Isa::best, |name| name.parse().expect("an instruction set"));
    let peak = peak_flops(isa) / 1e9;
    println!("{isa}: peak {peak:.1} GFLOP/s");
    println!("{:<44} {:>10} {:>10} {:>7}", "kernel", "µs", "GFLOP/s", "peak");
    for (m, k, n) in [
        (1024, 1024, 1024),
        (128, 768, 3072),
        (128, 3072, 768),
        (128, 768, 768),
        (1, 768, 768),
        (1, 768, 3072),
        (1, 3072, 768),
        (8, 768, 768),
        (8, 768, 3072),
        (8, 3072, 768),
        (32, 768, 768),
        (32, 768, 3072),
        (32, 3072, 768),
        (1, 4, 2),
        (1, 30, 16),
        (32, 30, 16),
        (1, 256, 10),
        (32, 256, 10),
        (32, 64, 128),
    ] {
        let name = format!("gemm_packed_b {m}x{k}x{n}");
        if name.contains(&part) {
            report(&name, packed_product(isa, m, k, n), Some((2 * m * k * n, peak)));
        }
    }
    for (m, k, n) in [(1, 768, 3072), (1, 3072, 768), (1, 768, 50_257), (2, 768, 3072), (4, 768, 3072), (8, 768, 3072), (128, 768, 3072)] {
        let name = format!("weights {m}x{k}x{n}");
        if name.contains(&part) {
            compare_precisions(isa, &name, (m, k, n), peak);
        }
    }
    for (m, k, n, transposed) in [(128, 64, 128, true), (128, 128, 64, false), (512, 512, 512, false), (1, 64, 128, true)] {
        let name = format!("gemm {m}x{k}x{n}{}", if transposed { " b transposed" } else { "" });
        if name.contains(&part) {
            report(&name, product(isa, m, k, n, transposed), Some((2 * m * k * n, peak)));
        }
    }
    for (name, shape) in convolutions().into_iter().filter(|(name, _)| name.contains(&part)) {
        let work = 2 * shape.output_len() * shape.c_in / shape.groups * shape.kernel_h * shape.kernel_w;
        report(name, convolution(isa, &shape), Some((work, peak)));
    }
    for (name, function) in functions().into_iter().filter(|(name, _)| name.contains(&part)) {
        let x: Vec<f32> = (0..4096).map(|i| i as f32 / 512.0 - 4.0).collect();
        let mut y = vec![0.0; x.len()];
        let seconds = fastest(|| function(isa, black_box(&x), black_box(&mut y)));
        report(&format!("{name} of 4096: {:.2} ns/element", seconds / 4096.0 * 1e9), seconds, None);
    }
}

fn report(name: &str, seconds: f64, work: Option<(usize, f64)>) {
    let Some((flops, peak)) = work else {
        println!("{name:<44} {:>10.2}", seconds * 1e6);
        return;
    };
    let speed = flops as f64 / seconds / 1e9;
    println!("{name:<44} {:>10.2} {speed:>10.1} {:>6.1}%", seconds * 1e6, 100.0 * speed / peak);
}

/// Seconds per call in the fastest of 15 samples of at least 4 ms each, after those that find the number of calls.
fn fastest(mut run: impl FnMut()) -> f64 {
    let mut calls = 1u32;
    let mut sample = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| run());
        start.elapsed()
    };
    while sample(calls) < Duration::from_millis(4) {
        calls *= 2;
    }
    (0..15).map(|_| sample(calls).as_secs_f64() / f64::from(calls)).fold(f64::INFINITY, f64::min)
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn packed_product(isa: Isa, m: usize, k: usize, n: usize) -> f64 {
    let (a, mut c) = (values(m * k), vec![0.0; m * n]);
    let b = PackedB::pack(isa, &values(k * n), k, n, false);
    fastest(|| gemm_packed_b(black_box(&a), k, m, &b, black_box(&mut c), n, &Epilogue::default()))
}

/// A product at each precision, in turns, with the bytes of weights that a call reads in a second.
fn compare_precisions(isa: Isa, name: &str, (m, k, n): (usize, usize, usize), peak: f64) {
    const ROUNDS: usize = 7;
    let (a, b) = (values(m * k), values(k * n));
    let packed = Precision::ALL.map(|precision| Weights::pack(precision, isa, &b, k, n, false));
    let mut seconds = Precision::ALL.map(|_| f64::INFINITY);
    let mut c = vec![0.0; m * n];
    for _ in 0..ROUNDS {
        for (weights, best) in packed.iter().zip(&mut seconds) {
            *best = best.min(fastest(|| weights.multiply(black_box(&a), m, black_box(&mut c), &Epilogue::default())));
        }
    }
    for ((precision, weights), seconds) in Precision::ALL.into_iter().zip(&packed).zip(seconds) {
        let read = format!("{name} {precision}: {:.1} GB/s", weights.bytes() as f64 / seconds / 1e9);
        report(&read, seconds, Some((2 * m * k * n, peak)));
    }
}

fn product(isa: Isa, m: usize, k: usize, n: usize, b_transposed: bool) -> f64 {
    let (a, b, mut c, mut scratch) = (values(m * k), values(k * n), vec![0.0; m * n], Vec::new());
    let epilogue = Epilogue::default();
    fastest(|| gemm(isa, m, k, n, black_box(&a), false, &b, b_transposed, black_box(&mut c), &epilogue, &mut scratch))
}

fn convolutions() -> Vec<(&'static str, ConvShape)> {
    let same = |n, c_in, size, c_out, kernel, stride, groups| ConvShape {
        n,
        c_in,
        h_in: size,
        w_in: size,
        c_out,
        h_out: size / stride,
        w_out: size / stride,
        kernel_h: kernel,
        kernel_w: kernel,
        stride_h: stride,
        stride_w: stride,
        pad_top: (kernel - 1) / 2,
        pad_left: (kernel - 1) / 2,
        dilation_h: 1,
        dilation_w: 1,
        groups,
    };
    vec![
        ("conv 32x1x8x8 -> 32, 3x3", same(32, 1, 8, 32, 3, 1, 1)),
        ("conv 32x32x8x8 -> 64, 3x3", same(32, 32, 8, 64, 3, 1, 1)),
        ("conv 1x32x8x8 -> 64, 3x3", same(1, 32, 8, 64, 3, 1, 1)),
        ("conv 1x3x224x224 -> 64, 7x7 / 2", same(1, 3, 224, 64, 7, 2, 1)),
        ("conv 1x64x56x56 -> 64, 3x3", same(1, 64, 56, 64, 3, 1, 1)),
        ("conv 1x256x56x56 -> 64, 1x1", same(1, 256, 56, 64, 1, 1, 1)),
        ("conv 1x256x56x56 -> 128, 1x1 / 2", same(1, 256, 56, 128, 1, 2, 1)),
        ("conv 1x512x7x7 -> 512, 3x3", same(1, 512, 7, 512, 3, 1, 1)),
        ("conv 8x512x7x7 -> 512, 3x3", same(8, 512, 7, 512, 3, 1, 1)),
        ("conv 1x96x56x56 depthwise, 3x3", same(1, 96, 56, 96, 3, 1, 96)),
    ]
}

fn convolution(isa: Isa, shape: &ConvShape) -> f64 {
    let c_in = shape.c_in / shape.groups;
    let weights = values(shape.c_out * c_in * shape.kernel_h * shape.kernel_w);
    let w = PackedConv::pack(Precision::F32, isa, &weights, shape.c_out, c_in, shape.kernel_h, shape.kernel_w, shape.groups);
    let (x, bias, mut y) = (values(shape.input_len()), values(shape.c_out), vec![0.0; shape.output_len()]);
    let epilogue = Epilogue { bias: Bias::PerRow(&bias), activation: Activation::Relu, ..Epilogue::default() };
    let mut scratch = Vec::new();
    fastest(|| conv2d(shape, &w, black_box(&x), &epilogue, black_box(&mut y), &mut scratch))
}

type Function = fn(Isa, &[f32], &mut [f32]);
fn functions() -> Vec<(&'static str, Function)> {
    vec![
        ("relu", vector::relu),
        ("exp", vector::exp),
        ("sigmoid", vector::sigmoid),
        ("tanh", vector::tanh),
        ("gelu", vector::gelu),
        ("softmax_row", vector::softmax_row),
        ("max", |isa, x, y| y[0] = vector::max(isa, x)),
        ("sum", |isa, x, y| y[0] = vector::sum(isa, x)),
        ("add", |isa, x, y| vector::binary(isa, Binary::Add, Operand::Slice(x), Operand::Scalar(0.5), y)),
    ]
}
