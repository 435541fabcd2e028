//! The product with AVX2.
//!
//! An instruction multiplies 32 codes at once and adds neighbours to 16 bits, which saturates: two products of 255 and 127 do not fit.
//! What neighbours on the right can reach is known when it is packed, so it is sorted then ([`Order`]): each 16 numbers along `k` find
//! neighbours among themselves with which they fit, the lines of which two fit together are added in 16 bits, those that fit alone come
//! behind them, and last the few of numbers that fit with none, which are multiplied in 16 bits, at half the codes an instruction. The
//! sums are exact in all. Four rows by sixteen columns of sums stay in registers; rows whose numbers changed places are copied before, by
//! one instruction for 32 codes. Rows that nobody wants (those in the padding of a convolution) are not multiplied.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_store_si256,
    _mm256_storeu_si256,
};
use std::ops::Range;

use super::avx2_order::{GROUP, GROUP_LINES, Order, Shuffles};
use super::{Line, Rows, STEPS_BLOCK, Sums, TILE_COLUMNS, TILE_LINES};

/// Rows whose sums are in registers.
const ROWS: usize = 4;

/// Columns in a register.
pub(super) const COLUMNS: usize = TILE_COLUMNS / 2;

/// Steps at once, all that come at once: the 16 KiB of one tile's columns share a first-level cache of 32 KiB with 4 KiB of rows.
pub(super) const STEPS: usize = STEPS_BLOCK;

/// Lines of one tile's columns in so many steps.
pub(super) const LINES: usize = STEPS * TILE_LINES;

/// Where lines find what they meet.
pub(super) struct Places {
    /// Where the four codes that each line meets begin in a row, or in its copy, for the lines of a panel in the steps of a block.
    at: [[usize; LINES]; 2],
    copies: Copies,
}

impl Places {
    pub(super) const NONE: Places = Places { at: [[0; LINES]; 2], copies: Copies([[[0; GROUP]; LINES / GROUP_LINES]; ROWS]) };

    /// Looks up the lines of some steps, the first a multiple of [`STEPS`], of rows whose steps begin at `offsets`.
    pub(super) fn look_up(&mut self, orders: &[Order], offsets: &[usize], steps: Range<usize>) {
        let offsets = &offsets[steps.clone()];
        for (places, order) in self.at.iter_mut().zip(&orders[steps.start / STEPS * 2..]) {
            for (at, &four) in places[..offsets.len() * TILE_LINES].iter_mut().zip(&order.fours) {
                let four = usize::from(four);
                let copied = order.shuffles.is_some();
                *at = if copied { four * 4 } else { offsets[four / TILE_LINES] + four % TILE_LINES * 4 };
            }
        }
    }
}

/// The numbers of a row in some steps.
type RowCopy = [[u8; GROUP]; LINES / GROUP_LINES];

/// Copies of the rows that are multiplied together, their numbers shuffled.
#[repr(align(32))]
struct Copies([RowCopy; ROWS]);

/// Copies a row that begins at `from`, whose steps begin at `offsets` behind it.
///
/// # Safety
///
/// The machine has the instructions, and the row has its steps; `to` is aligned to 32 bytes.
#[target_feature(enable = "avx2,fma")]
unsafe fn copy_row(to: &mut RowCopy, (from, offsets): (*const u8, &[usize]), shuffles: &Shuffles) {
    const REGISTER: usize = 2;
    const REGISTERS: usize = TILE_LINES / GROUP_LINES / REGISTER;
    let groups = to.as_chunks_mut::<REGISTER>().0.as_chunks_mut::<REGISTERS>().0;
    let shuffles = shuffles.as_chunks::<REGISTER>().0.as_chunks::<REGISTERS>().0;
    for ((to, by), offset) in groups.iter_mut().zip(shuffles).zip(offsets) {
        for part in 0..REGISTERS {
            // SAFETY: the caller's promise; the arrays have 32 bytes.
            unsafe {
                let codes = _mm256_loadu_si256(from.add(offset + part * REGISTER * GROUP).cast());
                let by = _mm256_loadu_si256(by[part].as_ptr().cast());
                _mm256_store_si256(to[part].as_mut_ptr().cast(), _mm256_shuffle_epi8(codes, by));
            }
        }
    }
}

/// # Safety
///
/// The machine has the instructions; the rows' steps lie in the data, the steps' lines in the panel. `orders` are those of the panel:
/// two for each [`STEPS`] steps; there are so many steps at most, the first a multiple of that. `places` were looked up for them.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(
    rows: &Rows<'_>,
    panel: &[Line],
    (orders, places): (&[Order], &mut Places),
    steps: Range<usize>,
    sums: &mut Sums,
) {
    if steps.is_empty() {
        // Sums of nothing are zero.
        if rows.first {
            *sums = Sums::ZERO;
        }
        return;
    }
    let lines = &panel[steps.start * 2 * TILE_LINES..steps.end * 2 * TILE_LINES];
    let count = lines.len() / 2;
    for half in 0..2 {
        let (lines, order) = (&lines[half * count..][..count], &orders[steps.start / STEPS * 2 + half]);
        let part = Part { lines, at: &places.at[half][..count], order, half, first: rows.first };
        let mut left = rows.wanted;
        while left != 0 {
            let mut group = [0; ROWS];
            let mut count = 0;
            while count < ROWS && left != 0 {
                group[count] = left.trailing_zeros() as usize;
                left &= left - 1;
                count += 1;
            }
            let begin = |row: usize| rows.left.data.as_ptr().wrapping_add((rows.start + row) * rows.left.stride);
            let from = match &order.shuffles {
                Some(shuffles) => {
                    for (copy, &row) in places.copies.0.iter_mut().zip(&group[..count]) {
                        // SAFETY: the caller's promise.
                        unsafe { copy_row(copy, (begin(row), &rows.left.offsets[steps.clone()]), shuffles) };
                    }
                    places.copies.0.each_ref().map(|copy| copy.as_ptr().cast())
                }
                None => group.map(begin),
            };
            // SAFETY: the caller's promise, for some of the rows.
            unsafe {
                match count {
                    1 => part.multiply::<1>(&from, &group, sums),
                    2 => part.multiply::<2>(&from, &group, sums),
                    3 => part.multiply::<3>(&from, &group, sums),
                    _ => part.multiply::<4>(&from, &group, sums),
                }
            }
        }
    }
}

/// The lines of 16 columns in some steps.
struct Part<'a> {
    lines: &'a [Line],
    /// Where the four codes that each line meets begin in a row, or in its copy.
    at: &'a [usize],
    order: &'a Order,
    half: usize,
    first: bool,
}

impl Part<'_> {
    /// Adds the sums of `R` rows, which begin at `from` and are rows `group` of the strip.
    ///
    /// # Safety
    ///
    /// The machine has the instructions; every row has four codes wherever a line meets them.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply<const R: usize>(&self, from: &[*const u8; ROWS], group: &[usize; ROWS], sums: &mut Sums) {
        let [pairs, single, wide] = self.order.counts.map(usize::from);
        let (pair_lines, lines) = self.lines.split_at(pairs);
        let (pairs_at, at) = self.at.split_at(pairs);
        let (single_lines, lines) = lines.split_at(single);
        let (single_at, at) = at.split_at(single);
        // SAFETY: the caller's promise.
        let four = |row: &*const u8, at: usize| _mm256_set1_epi32(unsafe { row.add(at).cast::<i32>().read_unaligned() });
        let ones = _mm256_set1_epi16(1);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        for (lines, at) in pair_lines.as_chunks::<2>().0.iter().zip(pairs_at.as_chunks::<2>().0) {
            let b = [halves(&lines[0]), halves(&lines[1])];
            for (acc, row) in acc.iter_mut().zip(from) {
                let a = [four(row, at[0]), four(row, at[1])];
                for (v, acc) in acc.iter_mut().enumerate() {
                    let sum = _mm256_add_epi16(_mm256_maddubs_epi16(a[0], b[0][v]), _mm256_maddubs_epi16(a[1], b[1][v]));
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(sum, ones));
                }
            }
        }
        for (line, &at) in single_lines.iter().zip(single_at) {
            let b = halves(line);
            for (acc, row) in acc.iter_mut().zip(from) {
                let a = four(row, at);
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
                }
            }
        }
        for (line, &at) in lines[..wide].iter().zip(at) {
            let codes = line.0.as_ptr();
            let b: [[__m256i; 2]; 2] = std::array::from_fn(|v| {
                // SAFETY: a line has 64 bytes.
                std::array::from_fn(|pair| unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.add(32 * v + 16 * pair).cast())) })
            });
            for (acc, row) in acc.iter_mut().zip(from) {
                let a = four(row, at);
                // SAFETY: a mask has 32 bytes.
                let a: [__m256i; 2] =
                    std::array::from_fn(|pair| _mm256_shuffle_epi8(a, unsafe { _mm256_loadu_si256(WIDEN[pair].as_ptr().cast()) }));
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_add_epi32(_mm256_add_epi32(*acc, _mm256_madd_epi16(a[0], b[0])), _mm256_madd_epi16(a[1], b[1]));
                }
            }
        }
        for (acc, &row) in acc.iter().zip(group) {
            for (acc, to) in acc.iter().zip(sums.0[row / TILE_LINES * 2 + self.half][row % TILE_LINES].as_chunks_mut::<COLUMNS>().0) {
                let to = to.as_mut_ptr().cast::<__m256i>();
                // SAFETY: eight sums have 32 bytes.
                unsafe { _mm256_storeu_si256(to, if self.first { *acc } else { _mm256_add_epi32(*acc, _mm256_loadu_si256(to)) }) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn halves(line: &Line) -> [__m256i; 2] {
    // SAFETY: a line has 64 bytes.
    std::array::from_fn(|v| unsafe { _mm256_loadu_si256(line.0.as_ptr().add(32 * v).cast()) })
}

/// Brings the first two of four codes, or the others, as numbers of 16 bits to each four bytes of a register.
static WIDEN: [[u8; 32]; 2] = {
    let mut masks = [[0xFF; 32]; 2];
    let mut at = 0;
    while at < 64 {
        if at % 2 == 0 {
            masks[at / 32][at % 32] = (at / 32 * 2 + at % 4 / 2) as u8;
        }
        at += 1;
    }
    masks
};
