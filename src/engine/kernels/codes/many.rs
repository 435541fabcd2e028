//! Many rows: a block of a panel becomes numbers in the first-level cache, which all rows pass by in the tiles of [`super::super::gemm`].

use std::cell::RefCell;
use std::ops::Range;

use super::{CodeBits, GROUP, PANEL, PackedCodes, Panel, code};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::gemm::PackedRows;
use crate::engine::kernels::gemm::tile::{self, Rows, Tile};
use crate::engine::kernels::isa::Isa;

/// Elements of a line of the cache.
const LINE: usize = 16;

/// What is used again by the next product.
#[derive(Default)]
struct Buffers {
    left: Vec<f32>,
    right: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The blocked loops. Lengths were checked by the caller; `columns` is not empty.
pub(super) fn multiply(
    b: &PackedCodes,
    (a, lda): (&[f32], usize),
    m: usize,
    columns: Range<usize>,
    (c, ldc): (&mut [f32], usize),
    epilogue: &Epilogue<'_>,
) {
    let (isa, k) = (b.isa, b.k);
    let shape = tile::shape(isa);
    assert!(shape.steps.is_multiple_of(GROUP), "blocks are whole groups");
    BUFFERS.with_borrow_mut(|Buffers { left, right }| {
        right.resize((shape.steps * PANEL + LINE).max(right.len()), 0.0);
        let aligned = right.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let right = &mut right[aligned..];
        for packed in PackedRows::blocks_of(m, k, shape, GROUP) {
            packed.pack_rows(a, lda, left);
            for (column, index, steps) in panels(&columns, &packed) {
                let panel = b.panel(column, steps.clone());
                for part in (0..PANEL.min(columns.end - column)).step_by(shape.width) {
                    decode(isa, panel, part, shape.width, right);
                    let column = column + part;
                    let count = shape.width.min(columns.end - column);
                    let rows = packed.rows();
                    let bias = epilogue.bias.tile(rows.start, rows.len(), column, count);
                    let mut tile = Tile {
                        a: &left[packed.start(rows.start, index)..],
                        a_rows: Rows::Blocked,
                        b: right,
                        b_stride: shape.width,
                        width: shape.width,
                        k: steps.len(),
                        rows: rows.len(),
                        columns: count,
                        c: &mut c[rows.start * ldc + column - columns.start..],
                        ldc,
                        first: steps.start == 0 && !epilogue.adds,
                        finish: (steps.end == k).then_some(Epilogue { bias, ..*epilogue }),
                    };
                    tile::run(isa, &mut tile);
                }
            }
        }
    });
}

/// Each panel with each block of steps: its column, the block's index, and the steps.
fn panels<'a>(columns: &Range<usize>, packed: &'a PackedRows) -> impl Iterator<Item = (usize, usize, Range<usize>)> + 'a {
    let columns = columns.clone().step_by(PANEL);
    columns.flat_map(|column| packed.blocks().enumerate().map(move |(index, steps)| (column, index, steps)))
}

/// The numbers of `width` columns of a panel from `from` on, step by step, and of what is left of the last word.
fn decode(isa: Isa, panel: Panel<'_>, from: usize, width: usize, to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        return unsafe {
            match panel.bits {
                CodeBits::Four => super::avx2::decode::<8, 4>(panel, from, width, to),
                CodeBits::Eight => super::avx2::decode::<4, 8>(panel, from, width, to),
            }
        };
    }
    isa.require();
    match panel.bits {
        CodeBits::Four => decode_columns::<8>(panel, from, width, to),
        CodeBits::Eight => decode_columns::<4>(panel, from, width, to),
    }
}

fn decode_columns<const P: usize>(panel: Panel<'_>, from: usize, width: usize, to: &mut [f32]) {
    let mut to = to.chunks_exact_mut(P * width);
    for (words, scales) in panel.words.chunks(GROUP / P).zip(panel.scales) {
        let scales = &scales.0[from..][..width];
        for (words, to) in words.iter().zip(&mut to) {
            let words = &words.0[from..][..width];
            for (step, to) in to.chunks_exact_mut(width).enumerate() {
                for ((to, word), scale) in to.iter_mut().zip(words).zip(scales) {
                    *to = code::<P>(*word, step) * scale;
                }
            }
        }
    }
}
