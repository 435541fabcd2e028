//! Few rows, as in decoding: codes become numbers in registers, and no number is stored.

use super::{CodeBits, GROUP, PANEL, Panel, Scales, Words, code};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::vector::math;

/// Up to so many rows this is faster than numbers stored once for all rows.
pub(super) const ROWS: usize = 4;

/// Adds the products of some rows with a panel of all steps to sums. `size` is their number and their length; they lie `lda` apart.
pub(super) fn multiply(isa: Isa, panel: Panel<'_>, (a, lda): (&[f32], usize), size: (usize, usize), sums: &mut [[f32; PANEL]; ROWS]) {
    type Size = (usize, usize);
    instantiate!(isa, body, (panel: Panel<'_>, a: &[f32], lda: usize, size: Size, sums: &mut [[f32; PANEL]; ROWS]));
}

#[inline(always)]
fn body<const FMA: bool>(panel: Panel<'_>, a: &[f32], lda: usize, (m, k): (usize, usize), sums: &mut [[f32; PANEL]; ROWS]) {
    // One row takes all columns of a panel, for chains enough to overlap; several take half, for sums to stay in registers.
    const HALF: usize = PANEL / 2;
    macro_rules! rows {
        ($codes:literal) => {
            match m {
                1 => add::<FMA, $codes, 1, PANEL>(&panel, a, lda, k, sums),
                2 => add::<FMA, $codes, 2, HALF>(&panel, a, lda, k, sums),
                3 => add::<FMA, $codes, 3, HALF>(&panel, a, lda, k, sums),
                _ => add::<FMA, $codes, 4, HALF>(&panel, a, lda, k, sums),
            }
        };
    }
    match panel.bits {
        CodeBits::Four => rows!(8),
        CodeBits::Eight => rows!(4),
    }
}

/// Of words with `P` codes, `R` rows, and `C` columns at a time.
#[inline(always)]
fn add<const FMA: bool, const P: usize, const R: usize, const C: usize>(
    panel: &Panel<'_>,
    a: &[f32],
    lda: usize,
    k: usize,
    sums: &mut [[f32; PANEL]; ROWS],
) {
    let rows: [&[f32]; R] = std::array::from_fn(|i| &a[i * lda..][..k]);
    let (whole, rest) = panel.words.split_at(k / P);
    for column in (0..PANEL).step_by(C) {
        let mut acc: [[f32; C]; R] = std::array::from_fn(|i| *sums[i][column..].first_chunk().expect("columns divide a panel"));
        for (group, (words, scales)) in whole.chunks(GROUP / P).zip(panel.scales).enumerate() {
            let scales = part::<C>(scales, column);
            for (at, words) in words.iter().enumerate() {
                let steps: [&[f32; P]; R] = rows.map(|row| row[group * GROUP + at * P..].first_chunk().expect("whole words"));
                let words: &[u32; C] = words.0[column..].first_chunk().expect("columns divide a panel");
                for step in 0..P {
                    add_step::<FMA, P, R, C>(words, scales, step, steps.map(|steps| steps[step]), &mut acc);
                }
            }
        }
        if let ([Words(words)], Some(scales)) = (rest, panel.scales.last()) {
            let words: &[u32; C] = words[column..].first_chunk().expect("columns divide a panel");
            for step in 0..k % P {
                add_step::<FMA, P, R, C>(words, part(scales, column), step, rows.map(|row| row[k / P * P + step]), &mut acc);
            }
        }
        for (acc, sums) in acc.iter().zip(&mut *sums) {
            sums[column..column + C].copy_from_slice(acc);
        }
    }
}

#[inline(always)]
fn part<const C: usize>(scales: &Scales, column: usize) -> &[f32; C] {
    scales.0[column..].first_chunk().expect("columns divide a panel")
}

/// One step of `k`.
#[inline(always)]
fn add_step<const FMA: bool, const P: usize, const R: usize, const C: usize>(
    words: &[u32; C],
    scales: &[f32; C],
    step: usize,
    values: [f32; R],
    acc: &mut [[f32; C]; R],
) {
    let mut weights = [0.0; C];
    for j in 0..C {
        weights[j] = code::<P>(words[j], step) * scales[j];
    }
    for i in 0..R {
        for j in 0..C {
            acc[i][j] = math::fma::<FMA>(values[i], weights[j], acc[i][j]);
        }
    }
}
