//! Max pooling against its definition, in every instruction set: bits, since no sum is rounded.

use super::Random;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::pool::{PoolAxis, max_pool};

fn definition(rows: PoolAxis, columns: PoolAxis, x: &[f32], planes: usize) -> Vec<f32> {
    let mut y = Vec::new();
    let inside = |axis: PoolAxis, out: usize, tap: usize| {
        (out * axis.stride + tap * axis.dilation).checked_sub(axis.pad).filter(|&at| at < axis.input)
    };
    for plane in 0..planes {
        for row in 0..rows.output {
            for column in 0..columns.output {
                let mut greatest = f32::NEG_INFINITY;
                for (i, j) in (0..rows.kernel).flat_map(|i| (0..columns.kernel).map(move |j| (i, j))) {
                    let (Some(i), Some(j)) = (inside(rows, row, i), inside(columns, column, j)) else { continue };
                    let value = x[(plane * rows.input + i) * columns.input + j];
                    greatest = if value.is_nan() || greatest.is_nan() { f32::NAN } else { greatest.max(value) };
                }
                y.push(greatest);
            }
        }
    }
    y
}

/// Outputs of a window over `input` elements with `pad` on both sides.
fn axis(input: usize, kernel: usize, stride: usize, dilation: usize, pad: usize) -> Option<PoolAxis> {
    let room = (input + 2 * pad).checked_sub((kernel - 1) * dilation + 1)?;
    Some(PoolAxis { input, output: room / stride + 1, kernel, stride, dilation, pad })
}

#[test]
fn the_greatest_of_every_window() {
    let mut random = Random::new(7);
    let windows =
        [(1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 1, 1), (3, 1, 1, 1), (5, 1, 1, 2), (3, 3, 1, 0), (2, 2, 2, 1), (3, 1, 2, 2), (2, 3, 3, 1)];
    for (height, width) in [(1, 1), (2, 3), (5, 16), (7, 33), (12, 112), (4, 65)] {
        for (index, &(kernel, stride, dilation, pad)) in windows.iter().enumerate() {
            let (across, along, _, _) = windows[(index + 1) % windows.len()];
            let (Some(rows), Some(columns)) = (axis(height, across, along, 1, across / 2), axis(width, kernel, stride, dilation, pad))
            else {
                continue;
            };
            let mut x = random.values(3 * height * width);
            let len = x.len();
            x[random.below(len)] = f32::NAN;
            x[random.below(len)] = f32::INFINITY;
            let want = definition(rows, columns, &x, 3);
            for isa in Isa::available() {
                let mut y = vec![0.5; want.len()];
                max_pool(isa, rows, columns, &x, &mut y);
                let same = y.iter().zip(&want).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
                assert!(same, "{isa}: {rows:?} {columns:?}\n{y:?}\n{want:?}");
            }
        }
    }
}

#[test]
fn padding_alone_is_minus_infinity() {
    let rows = PoolAxis { input: 1, output: 3, kernel: 1, stride: 1, dilation: 1, pad: 1 };
    let columns = PoolAxis { input: 2, output: 2, kernel: 1, stride: 1, dilation: 1, pad: 0 };
    for isa in Isa::available() {
        let mut y = [0.0; 6];
        max_pool(isa, rows, columns, &[1.0, 2.0], &mut y);
        assert_eq!(y, [f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0, 2.0, f32::NEG_INFINITY, f32::NEG_INFINITY], "{isa}");
    }
}

#[test]
#[should_panic(expected = "planes of the input")]
fn lengths_must_fit() {
    let one = axis(2, 2, 2, 1, 0).expect("it fits");
    max_pool(Isa::Scalar, one, one, &[0.0; 5], &mut [0.0; 1]);
}
