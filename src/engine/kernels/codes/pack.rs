//! Numbers to codes, in the order of panels.

use super::{CodeBits, GROUP, PANEL, Scales, Words};
use crate::engine::kernels::isa::{Isa, instantiate};

/// A group of a panel's columns, step by step; what lies beyond the matrix is zero.
type Group = [[f32; PANEL]; GROUP];

/// Rounds `b`, `[k, n]`, or `[n, k]` if `transposed`, to codes. False if there is a group whose scale times the greatest code is not finite.
pub(super) fn right(
    isa: Isa,
    bits: CodeBits,
    b: &[f32],
    (k, n): (usize, usize),
    transposed: bool,
    words: &mut [Words],
    scales: &mut [Scales],
) -> bool {
    if k == 0 {
        return true;
    }
    let mut group: Group = [[0.0; PANEL]; GROUP];
    let per_panel = (k.div_ceil(bits.per_word()), k.div_ceil(GROUP));
    let panels = words.chunks_mut(per_panel.0).zip(scales.chunks_mut(per_panel.1));
    for (column, (words, scales)) in (0..n).step_by(PANEL).zip(panels) {
        let width = PANEL.min(n - column);
        let groups = words.chunks_mut(GROUP / bits.per_word()).zip(scales);
        for (first, (words, scales)) in (0..k).step_by(GROUP).zip(groups) {
            let steps = GROUP.min(k - first);
            if steps < GROUP || width < PANEL {
                group = [[0.0; PANEL]; GROUP];
            }
            if transposed {
                for j in 0..width {
                    let values = &b[(column + j) * k + first..][..steps];
                    group.iter_mut().zip(values).for_each(|(row, value)| row[j] = *value);
                }
            } else {
                let rows = b[first * n..].chunks(n).take(steps);
                group.iter_mut().zip(rows).for_each(|(to, row)| to[..width].copy_from_slice(&row[column..column + width]));
            }
            if !quantize(isa, bits, &group, words, scales) {
                return false;
            }
        }
    }
    true
}

fn quantize(isa: Isa, bits: CodeBits, group: &Group, words: &mut [Words], scales: &mut Scales) -> bool {
    instantiate!(isa, quantize_body, (bits: CodeBits, group: &Group, words: &mut [Words], scales: &mut Scales) -> bool)
}

#[inline(always)]
fn quantize_body<const FMA: bool>(bits: CodeBits, group: &Group, words: &mut [Words], scales: &mut Scales) -> bool {
    match bits {
        CodeBits::Four => quantize_group::<8>(bits.greatest(), group, words, scales),
        CodeBits::Eight => quantize_group::<4>(bits.greatest(), group, words, scales),
    }
}

/// With `P` codes in a word.
#[inline(always)]
fn quantize_group<const P: usize>(greatest: i8, group: &Group, words: &mut [Words], scales: &mut Scales) -> bool {
    let limit = f32::from(greatest);
    // The bits of magnitudes are ordered as they are, infinity and NaN behind all others.
    let mut magnitudes = [0_u32; PANEL];
    for row in group {
        for j in 0..PANEL {
            magnitudes[j] = magnitudes[j].max(row[j].to_bits() & 0x7fff_ffff);
        }
    }
    let mut finite = true;
    for j in 0..PANEL {
        let scale = f32::from_bits(magnitudes[j]) / limit;
        finite &= (scale * limit).is_finite();
        scales.0[j] = if scale > f32::MIN_POSITIVE { scale } else { f32::MIN_POSITIVE };
    }
    for (rows, words) in group.as_chunks::<P>().0.iter().zip(words) {
        words.0 = [0; PANEL];
        for (at, row) in rows.iter().enumerate() {
            for j in 0..PANEL {
                // In f64 a quotient of two numbers of f32 is off the middle between two codes whenever it should be.
                let code = (f64::from(row[j]) / f64::from(scales.0[j])).round_ties_even() as i32;
                words.0[j] |= (code as u32 & (u32::MAX >> (32 - 32 / P))) << (32 / P * at);
            }
        }
    }
    finite
}
