//! Matrix product whose right operand, the weights, is kept as codes of 8 or 4 bits with a scale for each group of [`GROUP`] neighbours
//! along `k` in a column; rows and sums are f32.
//!
//! One row reads all weights and does little else, so what bounds it is their number of bytes: a quarter, and a seventh. What is multiplied
//! is `code * scale`, rounded to f32, in one chain over ascending `k`: an element has the bits that [`super::gemm`] gives with
//! those numbers as its matrix. So few rows can turn codes into numbers in registers (`few`), and many read a block of a panel that was
//! turned into numbers once (`many`), and the bits of a row are the same alone and in any batch.
//!
//! A panel is 32 columns. A word of 32 bits has neighbours along `k` of one column, the first in its lowest bits; the words of a panel's
//! columns lie side by side, so that shifts alone bring codes into the lanes where they are multiplied.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod few;
mod many;
mod pack;

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::epilogue::{Activation, Bias, Epilogue};
use super::gemm::tile::{self, Rows, Tile};
use super::isa::Isa;
use super::stored::{Source, Stored, packed_if};

/// Columns per panel.
pub(crate) const PANEL: usize = 32;

/// Neighbours along `k` that share a scale. With codes of 4 bits scales are a ninth of what is read; with groups of 32 they would be a fifth, for
/// nine tenths of the error.
pub const GROUP: usize = 64;

/// How many bits a code has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeBits {
    /// From -7 to 7.
    Four,
    /// From -127 to 127.
    Eight,
}

impl CodeBits {
    /// The greatest code; the least is as far from zero.
    pub fn greatest(self) -> i8 {
        match self {
            CodeBits::Four => 7,
            CodeBits::Eight => 127,
        }
    }

    fn per_word(self) -> usize {
        match self {
            CodeBits::Four => 8,
            CodeBits::Eight => 4,
        }
    }
}

/// Neighbours along `k` of a panel's columns, a word of codes for each.
#[derive(Clone, Copy, Debug, Default, Zeroable, Pod)]
#[repr(C, align(64))]
struct Words([u32; PANEL]);

/// The scales of a panel's columns for a group.
#[derive(Clone, Copy, Debug, Default, Zeroable, Pod)]
#[repr(C, align(64))]
struct Scales([f32; PANEL]);

/// A constant right-hand matrix `b[k, n]` as codes, packed once at load.
#[derive(Clone, Debug)]
pub struct PackedCodes {
    isa: Isa,
    bits: CodeBits,
    k: usize,
    n: usize,
    /// The words of all panels, then their scales.
    stored: Stored,
}

/// A panel's part, from the beginning of a group on.
#[derive(Clone, Copy, Debug)]
struct Panel<'a> {
    bits: CodeBits,
    words: &'a [Words],
    scales: &'a [Scales],
}

impl PackedCodes {
    /// Rounds and packs `b`, which is `[k, n]` row-major, or `[n, k]` if `transposed`.
    ///
    /// The scale of a group is its greatest magnitude by the greatest code, though at least the least normal number: `|b - code * scale| <=
    /// scale / 2`. `None` if a scale times the greatest code is not finite: codes have no infinity and no NaN. Panics unless `b.len() == k *
    /// n` and the instruction set is available.
    pub fn pack(isa: Isa, bits: CodeBits, b: &(impl Source + ?Sized), k: usize, n: usize, transposed: bool) -> Option<PackedCodes> {
        isa.require();
        assert_eq!(b.count(), k * n, "length of b against k * n");
        let panels = n.div_ceil(PANEL);
        let (words, scales) = (panels * k.div_ceil(bits.per_word()), panels * k.div_ceil(GROUP));
        let stored = packed_if(b, format_args!("codes {bits:?} {k} {n} {transposed}"), words + scales, |b, lines: &mut [Words]| {
            let (words, scales) = lines.split_at_mut(words);
            pack::right(isa, bits, b, (k, n), transposed, words, bytemuck::cast_slice_mut(scales))
        })?;
        Some(PackedCodes { isa, bits, k, n, stored })
    }

    fn words(&self) -> &[Words] {
        &self.stored.elements()[..self.n.div_ceil(PANEL) * self.k.div_ceil(self.bits.per_word())]
    }

    fn scales(&self) -> &[Scales] {
        let words = self.words().len();
        &self.stored.elements()[words..]
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.stored.elements::<u8>())
    }

    /// Columns per panel: where column ranges given to [`PackedCodes::multiply_columns`] may start and end.
    pub fn panel_width(&self) -> usize {
        PANEL
    }

    /// The scale of an element's group.
    pub fn scale(&self, row: usize, column: usize) -> f32 {
        self.scales()[column / PANEL * self.k.div_ceil(GROUP) + row / GROUP].0[column % PANEL]
    }

    /// What is multiplied in the place of an element: a whole number of [`PackedCodes::scale`], rounded to f32.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let per_word = self.bits.per_word();
        let word = self.words()[column / PANEL * self.k.div_ceil(per_word) + row / per_word].0[column % PANEL];
        let code = match self.bits {
            CodeBits::Four => code::<8>(word, row % per_word),
            CodeBits::Eight => code::<4>(word, row % per_word),
        };
        code * self.scale(row, column)
    }

    /// `c[m, columns] = epilogue(a[m, k] · b[.., columns])`, as [`super::gemm::gemm_packed_b_columns`] but for the rounding of `b`. Panics as
    /// that does.
    #[expect(clippy::too_many_arguments, reason = "the customary GEMM signature; a struct would only rename them")]
    pub fn multiply_columns(
        &self,
        a: &[f32],
        lda: usize,
        m: usize,
        columns: Range<usize>,
        c: &mut [f32],
        ldc: usize,
        epilogue: &Epilogue<'_>,
    ) {
        assert!(columns.start <= columns.end && columns.end <= self.n, "column range {columns:?} of {}", self.n);
        assert!(columns.start.is_multiple_of(PANEL), "column range starts inside a panel");
        assert!(columns.end.is_multiple_of(PANEL) || columns.end == self.n, "column range ends inside a panel");
        epilogue.bias.check(m, self.n);
        if m == 0 || columns.is_empty() {
            return;
        }
        assert!(lda >= self.k && a.len() >= (m - 1) * lda + self.k, "a is shorter than m rows");
        assert!(ldc >= columns.len() && c.len() >= (m - 1) * ldc + columns.len(), "c is shorter than m rows");
        if m <= few::ROWS {
            self.multiply_few((a, lda), m, columns, (c, ldc), epilogue);
        } else {
            many::multiply(self, (a, lda), m, columns, (c, ldc), epilogue);
        }
    }

    fn multiply_few(
        &self,
        (a, lda): (&[f32], usize),
        m: usize,
        columns: Range<usize>,
        (c, ldc): (&mut [f32], usize),
        epilogue: &Epilogue<'_>,
    ) {
        let finished = epilogue.alpha != 1.0 || epilogue.bias != Bias::None || epilogue.activation != Activation::None;
        for column in columns.clone().step_by(PANEL) {
            let width = PANEL.min(columns.end - column);
            let c = &mut c[column - columns.start..];
            let mut sums = [[0.0; PANEL]; few::ROWS];
            if epilogue.adds {
                sums.iter_mut().zip(c.chunks(ldc)).take(m).for_each(|(sums, c)| sums[..width].copy_from_slice(&c[..width]));
            }
            few::multiply(self.isa, self.panel(column, 0..self.k), (a, lda), (m, self.k), &mut sums);
            sums.iter().zip(c.chunks_mut(ldc)).take(m).for_each(|(sums, c)| c[..width].copy_from_slice(&sums[..width]));
            if finished {
                let bias = epilogue.bias.tile(0, m, column, width);
                finish(self.isa, m, width, &Epilogue { bias, ..*epilogue }, (c, ldc));
            }
        }
    }

    /// The steps of `k`, which begin with a group, of the panel that starts at `column`.
    fn panel(&self, column: usize, steps: Range<usize>) -> Panel<'_> {
        debug_assert!(steps.start.is_multiple_of(GROUP), "steps from the middle of a group");
        let per_word = self.bits.per_word();
        let (words, groups) = (self.k.div_ceil(per_word), self.k.div_ceil(GROUP));
        let (word, group) = (column / PANEL * words, column / PANEL * groups);
        Panel {
            bits: self.bits,
            words: &self.words()[word + steps.start / per_word..word + steps.end.div_ceil(per_word)],
            scales: &self.scales()[group + steps.start / GROUP..group + steps.end.div_ceil(GROUP)],
        }
    }
}

/// A code of a word that has `P` of them, as a number.
#[inline(always)]
fn code<const P: usize>(word: u32, at: usize) -> f32 {
    let bits = 32 / P;
    (((word << (32 - bits * (at + 1))) as i32) >> (32 - bits)) as f32
}

/// Applies the epilogue, its bias cut to them, to sums that lie in `c`: by tiles without a product, so that it is that of other products.
fn finish(isa: Isa, rows: usize, width: usize, epilogue: &Epilogue<'_>, (c, ldc): (&mut [f32], usize)) {
    let tile_width = tile::shape(isa).width;
    for column in (0..width).step_by(tile_width) {
        let columns = tile_width.min(width - column);
        let bias = epilogue.bias.tile(0, rows, column, columns);
        let mut tile = Tile {
            a: &[],
            a_rows: Rows::Packed,
            b: &[],
            b_stride: tile_width,
            width: tile_width,
            k: 0,
            rows,
            columns,
            c: &mut c[column..],
            ldc,
            first: false,
            finish: Some(Epilogue { bias, ..*epilogue }),
        };
        tile::run(isa, &mut tile);
    }
}
