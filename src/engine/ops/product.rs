//! The f32 matrix product as MatMul and Gemm need it: split over threads, with a right operand that is packed or not.
//!
//! Every split is along rows or columns of the result, never along the sums, so the bits are those of one thread.

use crate::engine::kernels::epilogue::{Bias, Epilogue};
use crate::engine::kernels::gemm::gemm;
use crate::engine::kernels::weights::{Precision, Weights};
use crate::engine::op::Context;
use crate::engine::threads::Threads;

/// The left operand, `[m, k]`, or `[k, m]` if transposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) transposed: bool,
    pub(crate) m: usize,
    pub(crate) k: usize,
}

/// The right operand, `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Right<'a> {
    Packed(&'a Weights),
    Plain { data: &'a [f32], transposed: bool, n: usize },
}

/// The floating-point operations of a product.
pub(crate) fn flops(m: usize, k: usize, n: usize) -> u64 {
    2_u64.saturating_mul(m as u64).saturating_mul(k as u64).saturating_mul(n as u64)
}

/// What a product costs, in floating-point operations: with few rows it is bound by reading the right operand, an element of which takes
/// as long as some eight operations.
fn cost(m: usize, k: usize, n: usize) -> u64 {
    flops(m.saturating_add(4), k, n)
}

/// `c[m, n] = epilogue(left · right)`.
pub(crate) fn multiply(left: Left<'_>, right: Right<'_>, epilogue: &Epilogue<'_>, c: &mut [f32], ctx: &mut Context<'_>) {
    let Left { m, k, .. } = left;
    match right {
        Right::Packed(b) => {
            if left.transposed && m > 1 && k > 1 {
                transpose(left.data, k, m, &mut ctx.scratch.f32);
                multiply_packed(&ctx.scratch.f32, m, b, epilogue, c, ctx.threads);
            } else {
                multiply_packed(left.data, m, b, epilogue, c, ctx.threads);
            }
        }
        Right::Plain { data, transposed, n } => {
            // It is packed for that, in memory which is not kept.
            const WORTH_PACKING: u64 = 32;
            let parts = ctx.threads.parts(cost(m, k, n) / WORTH_PACKING);
            if parts > 1 {
                let b = Weights::pack(Precision::F32, ctx.isa, data, k, n, transposed);
                if left.transposed {
                    // The kernels split rows over threads where they lie behind each other.
                    transpose(left.data, k, m, &mut ctx.scratch.f32);
                    split(&ctx.scratch.f32, m, &b, epilogue, c, (ctx.threads, parts));
                } else {
                    split(left.data, m, &b, epilogue, c, (ctx.threads, parts));
                }
            } else {
                gemm(ctx.isa, m, k, n, left.data, left.transposed, data, transposed, c, epilogue, &mut ctx.scratch.f32);
            }
        }
    }
}

/// `c[m, n] = epilogue(a[m, k] · b)`, on as many threads as it is worth.
pub(crate) fn multiply_packed(a: &[f32], m: usize, b: &Weights, epilogue: &Epilogue<'_>, c: &mut [f32], threads: &Threads) {
    split(a, m, b, epilogue, c, (threads, threads.parts(cost(m, b.k(), b.n()))));
}

/// `to[columns, rows] = from[rows, columns]` transposed.
pub(crate) fn transpose<T: Copy + Default>(from: &[T], rows: usize, columns: usize, to: &mut Vec<T>) {
    to.clear();
    to.resize(rows * columns, T::default());
    transpose_into(from, rows, columns, to);
}

/// [`transpose`] into as many elements. Squares of it are done one after the other, each of which the first-level cache holds.
pub(crate) fn transpose_into<T: Copy>(from: &[T], rows: usize, columns: usize, to: &mut [T]) {
    const SIDE: usize = 16;
    for first in (0..rows).step_by(SIDE) {
        let end = rows.min(first + SIDE);
        for column in (0..columns).step_by(SIDE) {
            for c in column..columns.min(column + SIDE) {
                for (r, to) in (first..end).zip(&mut to[c * rows + first..c * rows + end]) {
                    *to = from[r * columns + c];
                }
            }
        }
    }
}

/// Rows from which on each thread gets rows; with fewer, every thread would read the whole right operand for little, so
/// each gets columns.
const ROWS_PER_PART: usize = 32;

fn split(a: &[f32], m: usize, b: &Weights, epilogue: &Epilogue<'_>, c: &mut [f32], (threads, parts): (&Threads, usize)) {
    let (k, n) = (b.k(), b.n());
    if m == 0 || n == 0 {
        return;
    }
    if parts <= 1 || k == 0 {
        return b.multiply(a, m, c, epilogue);
    }
    if m >= parts * ROWS_PER_PART {
        let rows = m.div_ceil(parts);
        let items = a.chunks(rows * k).zip(c.chunks_mut(rows * n)).enumerate();
        threads.for_each(items, |(part, (a, c))| {
            let count = c.len() / n;
            let bias = match epilogue.bias {
                Bias::PerRow(values) => Bias::PerRow(&values[part * rows..part * rows + count]),
                other => other,
            };
            b.multiply(a, count, c, &Epilogue { bias, ..*epilogue });
        });
        return;
    }
    let width = n.div_ceil(parts).next_multiple_of(b.panel_width());
    if m == 1 {
        let items = c.chunks_mut(width).enumerate();
        threads.for_each(items, |(part, c)| {
            let columns = part * width..part * width + c.len();
            b.multiply_columns(a, 1, columns.clone(), c, columns.len(), epilogue);
        });
        return;
    }
    let mut strips = vec![0.0; m * n];
    if epilogue.adds {
        for (part, strip) in strips.chunks_mut(m * width).enumerate() {
            let count = strip.len() / m;
            for (row, values) in strip.chunks_exact_mut(count).enumerate() {
                values.copy_from_slice(&c[row * n + part * width..][..count]);
            }
        }
    }
    let items = strips.chunks_mut(m * width).enumerate();
    threads.for_each(items, |(part, strip)| {
        let columns = part * width..n.min((part + 1) * width);
        b.multiply_columns(a, m, columns.clone(), strip, columns.len(), epilogue);
    });
    join(&strips, (m, n, width), c, threads);
}

/// Puts strips of `width` columns, the last of fewer, each of `m` rows, side by side into rows of `n`, on as many threads as it is worth.
pub(crate) fn join<T: Copy + Send + Sync>(strips: &[T], (m, n, width): (usize, usize, usize), y: &mut [T], threads: &Threads) {
    /// Floating-point operations in the time that it takes to copy an element.
    const COPIED: u64 = 16;
    let rows = m.div_ceil(threads.parts(COPIED.saturating_mul(y.len() as u64)));
    threads.for_each(y.chunks_mut(rows * n).enumerate(), |(part, y)| {
        for (strip, to) in strips.chunks(m * width).zip((0..n).step_by(width)) {
            let count = strip.len() / m;
            let from = strip[part * rows * count..].chunks_exact(count);
            y.chunks_exact_mut(n).zip(from).for_each(|(y, from)| y[to..to + count].copy_from_slice(from));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;
    use crate::engine::kernels::isa::Isa;
    use crate::engine::op::Scratch;

    #[test]
    fn threads_do_not_change_the_bits() {
        let (k, n) = (300, 203);
        for (m, precision) in [1, 2, 7, 64, 65, 100].into_iter().flat_map(|m| Precision::ALL.map(|precision| (m, precision))) {
            let (a, b, columns, rows) = (noise(m * k, 1), noise(k * n, 2), noise(n, 3), noise(m, 4));
            let packed = Weights::pack(precision, Isa::best(), &b, k, n, false);
            let biases = [Bias::None, Bias::PerColumn(&columns), Bias::PerRow(&rows)];
            for (bias, adds) in biases.into_iter().flat_map(|bias| [(bias, false), (bias, true)]) {
                let epilogue = Epilogue { bias, adds, ..Epilogue::default() };
                // What is not added must not be read.
                let held = if adds { noise(m * n, 5) } else { vec![f32::NAN; m * n] };
                let mut want = held.clone();
                packed.multiply(&a, m, &mut want, &epilogue);
                for parts in [1, 2, 3] {
                    let mut found = held.clone();
                    split(&a, m, &packed, &epilogue, &mut found, (&Threads::new(2).unwrap(), parts));
                    assert_eq!(found, want, "m {m}, parts {parts}, {precision}, adds {adds}");
                }
            }
        }
    }

    #[test]
    fn strips_are_joined_the_same_by_some_threads() {
        // Enough for three threads, neither rows nor columns of which come out even.
        let (m, n, width) = (641, 1250, 416);
        let value = |row: usize, column: usize| (row * n + column) as u32;
        let strips: Vec<u32> = (0..n)
            .step_by(width)
            .flat_map(|first| (0..m).flat_map(move |row| (first..n.min(first + width)).map(move |column| value(row, column))))
            .collect();
        for threads in [Threads::single(), Threads::new(3).expect("threads")] {
            let mut y = vec![u32::MAX; m * n];
            join(&strips, (m, n, width), &mut y, &threads);
            assert!(y.iter().enumerate().all(|(at, y)| *y == at as u32), "{} threads", threads.count());
        }
    }

    #[test]
    fn a_transposed_left_operand_gives_the_same() {
        let (m, k, n) = (5, 7, 9);
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let mut across = vec![];
        transpose(&a, m, k, &mut across);
        let packed = Weights::pack(Precision::F32, Isa::best(), &b, k, n, false);
        let threads = Threads::single();
        let mut scratch = Scratch::default();
        let mut run = |left, right| {
            let mut c = vec![0.0; m * n];
            let mut ctx = Context { scratch: &mut scratch, threads: &threads, isa: Isa::best(), budget: 1 << 30, deadline: None };
            multiply(left, right, &Epilogue::default(), &mut c, &mut ctx);
            c
        };
        let plain = Right::Plain { data: &b, transposed: false, n };
        assert_eq!((across[3 * m + 2], across.len()), (a[2 * k + 3], m * k));
        let want = run(Left { data: &a, transposed: false, m, k }, plain);
        assert_eq!(run(Left { data: &across, transposed: true, m, k }, plain), want);
        assert_eq!(run(Left { data: &across, transposed: true, m, k }, Right::Packed(&packed)), want);
    }
}
