//! What becomes of a strip's sums once they are complete.

use std::ops::Range;

use super::{PANEL, Sums, TILE_COLUMNS, TILE_LINES};
use crate::engine::kernels::epilogue::{Bias, Epilogue, activate};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::vector::math;

/// Applies the epilogue to some rows of a strip's sums and writes them, `width` elements each, from the beginning of `c` on, `ldc` apart. A
/// bias is cut to them.
pub(crate) fn finish(isa: Isa, sums: &Sums, rows: Range<usize>, epilogue: &Epilogue<'_>, c: &mut [f32], size: (usize, usize)) {
    type Size = (usize, usize);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx
        && let Some(function) = super::functions::Function::of(epilogue.activation)
    {
        isa.require();
        // SAFETY: `require` has shown that this machine has the features it is compiled for.
        return unsafe { super::avx512::finish(sums, rows, epilogue, function, c, size) };
    }
    instantiate!(isa, finish_body, (sums: &Sums, rows: Range<usize>, epilogue: &Epilogue<'_>, c: &mut [f32], size: Size));
}

#[inline(always)]
fn finish_body<const FMA: bool>(sums: &Sums, rows: Range<usize>, epilogue: &Epilogue<'_>, c: &mut [f32], (ldc, width): (usize, usize)) {
    let alpha = epilogue.alpha;
    let mut columns = [0.0f32; PANEL];
    if let Bias::PerColumn(bias) = epilogue.bias {
        columns[..width].copy_from_slice(&bias[..width]);
    }
    let first = rows.start;
    for (i, row) in rows.zip(c.chunks_mut(ldc)) {
        if let Bias::PerRow(bias) = epilogue.bias {
            columns = [bias[i - first]; PANEL];
        }
        let (tile, line) = (i / TILE_LINES * 2, i % TILE_LINES);
        let mut values = [0.0f32; PANEL];
        for j in 0..TILE_COLUMNS {
            values[j] = math::fma::<FMA>(alpha, sums.0[tile][line][j], columns[j]);
            values[TILE_COLUMNS + j] = math::fma::<FMA>(alpha, sums.0[tile + 1][line][j], columns[TILE_COLUMNS + j]);
        }
        if epilogue.adds {
            values.iter_mut().zip(&row[..width]).for_each(|(value, held)| *value += held);
        }
        activate::<FMA>(epilogue.activation, &mut values);
        if width == PANEL {
            *row.first_chunk_mut().expect("a row has the panel's width") = values;
        } else {
            row[..width].copy_from_slice(&values[..width]);
        }
    }
}
