//! The product with AVX2.
//!
//! An instruction multiplies 32 codes at once and adds neighbours to 16 bits, which saturates: two products of 255 and 127 do not fit.
//! Weights that size are rare, so each line of the right operand is looked at when it is packed ([`Order`]): lines whose pairs fit
//! whatever they meet are multiplied this way, the others widened to 16 bits, at half the codes an instruction. The sums are exact in
//! both. Five rows by sixteen columns of sums stay in registers. Rows that nobody wants (those in the padding of a convolution) are not
//! multiplied.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_cmpgt_epi16, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16,
    _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epi8, _mm256_max_epi16, _mm256_min_epi8,
    _mm256_or_si256, _mm256_permute4x64_epi64, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_testz_si256,
};
use std::ops::Range;

use super::{Line, Rows, STEP, Sums, TILE_COLUMNS, TILE_LINES};

/// Rows whose sums are in registers.
const ROWS: usize = 5;

/// Columns in a register.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// Steps at once: their 16 KiB of a panel share a first-level cache of 32 KiB with 8 KiB of rows.
const STEPS: usize = 8;

/// Lines of one tile's columns in so many steps.
const LINES: usize = STEPS * TILE_LINES;

/// The lines of 16 columns in the steps from a multiple of [`STEPS`] on: those whose pairs fit come first.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Which four numbers of a row each line meets, counted through the steps.
    fours: [u8; LINES],
    /// How many of the lines fit.
    narrow: u8,
}

impl Order {
    /// Sorts the lines of a panel: those of each [`STEPS`] steps become first the left tiles' and then the right ones', each in the order
    /// that is returned for it.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn sort(panel: &mut [Line]) -> Vec<Order> {
        let mut orders = Vec::with_capacity(panel.len().div_ceil(LINES));
        for block in panel.chunks_mut(2 * LINES) {
            let given = block.to_vec();
            for (half, to) in block.chunks_exact_mut(given.len() / 2).enumerate() {
                let line = |four: u8| &given[(usize::from(four) / TILE_LINES * 2 + half) * TILE_LINES + usize::from(four) % TILE_LINES];
                let (mut order, mut narrow, mut wide) = ([0; LINES], 0, [0; LINES]);
                for four in 0..to.len() as u8 {
                    let at = usize::from(four) - narrow;
                    if fits(line(four)) {
                        order[narrow] = four;
                        narrow += 1;
                    } else {
                        wide[at] = four;
                    }
                }
                order[narrow..to.len()].copy_from_slice(&wide[..to.len() - narrow]);
                for (to, &four) in to.iter_mut().zip(&order) {
                    *to = *line(four);
                }
                orders.push(Order { fours: order, narrow: narrow as u8 });
            }
        }
        orders
    }
}

/// Whether no sum of two products of a line's neighbours with unsigned codes leaves 16 bits: weights of one sign are at most 128 together.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fits(line: &Line) -> bool {
    let (zero, ones, mut beyond) = (_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_setzero_si256());
    for codes in line.0.as_chunks::<32>().0 {
        // SAFETY: an array of 32 bytes.
        let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let above = _mm256_maddubs_epi16(_mm256_max_epi8(codes, zero), ones);
        let below = _mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(codes, zero)), ones);
        beyond = _mm256_or_si256(beyond, _mm256_cmpgt_epi16(_mm256_max_epi16(above, below), _mm256_set1_epi16(128)));
    }
    _mm256_testz_si256(beyond, beyond) == 1
}

/// Rows of some steps, side by side; as numbers of 16 bits where a line wants them.
#[repr(C, align(32))]
struct Block {
    codes: [[u8; STEPS * STEP]; ROWS],
    wide: [[i16; STEPS * STEP]; ROWS],
}

/// # Safety
///
/// The machine has the instructions; the rows' steps lie in the data, the steps' lines in the panel. `orders` are those of the panel:
/// two for each [`STEPS`] steps; the first step is a multiple of that.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(rows: &Rows<'_>, panel: &[Line], orders: &[Order], steps: Range<usize>, sums: &mut Sums) {
    if steps.is_empty() {
        // Sums of nothing are zero.
        if rows.first {
            *sums = Sums::ZERO;
        }
        return;
    }
    let mut block = Block { codes: [[0; STEPS * STEP]; ROWS], wide: [[0; STEPS * STEP]; ROWS] };
    for begin in steps.clone().step_by(STEPS) {
        let (some, first) = (begin..steps.end.min(begin + STEPS), rows.first && begin == steps.start);
        let halves = &panel[begin * 2 * TILE_LINES..some.end * 2 * TILE_LINES];
        let halves = halves.split_at(halves.len() / 2);
        let halves = [(halves.0, &orders[begin / STEPS * 2]), (halves.1, &orders[begin / STEPS * 2 + 1])];
        let wide = halves.iter().any(|(lines, order)| usize::from(order.narrow) < lines.len());
        let mut left = rows.wanted;
        while left != 0 {
            let mut group = [0; ROWS];
            let mut count = 0;
            while count < ROWS && left != 0 {
                group[count] = left.trailing_zeros() as usize;
                left &= left - 1;
                count += 1;
            }
            let group = &group[..count];
            // SAFETY: the caller's promise, for some of the steps and rows.
            unsafe {
                gather(rows, group, some.clone(), wide, &mut block);
                match count {
                    1 => some_rows::<1>(&block, group, &halves, first, sums),
                    2 => some_rows::<2>(&block, group, &halves, first, sums),
                    3 => some_rows::<3>(&block, group, &halves, first, sums),
                    4 => some_rows::<4>(&block, group, &halves, first, sums),
                    _ => some_rows::<5>(&block, group, &halves, first, sums),
                }
            }
        }
    }
}

/// Copies some steps of some rows.
///
/// # Safety
///
/// As [`multiply`]; there are at most [`STEPS`] steps and [`ROWS`] rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn gather(rows: &Rows<'_>, group: &[usize], steps: Range<usize>, wide: bool, block: &mut Block) {
    for ((&row, codes), numbers) in group.iter().zip(&mut block.codes).zip(&mut block.wide) {
        let steps = rows.left.offsets[steps.clone()].iter();
        for ((&offset, codes), numbers) in steps.zip(codes.as_chunks_mut::<STEP>().0).zip(numbers.as_chunks_mut::<STEP>().0) {
            let from = rows.left.data.as_ptr().wrapping_add(offset + (rows.start + row) * rows.left.stride);
            // SAFETY: a step of a row has 64 bytes, which lie in the data as the caller promises.
            *codes = unsafe { from.cast::<[u8; STEP]>().read() };
            if wide {
                for (codes, numbers) in codes.as_chunks::<16>().0.iter().zip(numbers.as_chunks_mut::<16>().0) {
                    // SAFETY: both are arrays of 16.
                    unsafe {
                        let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().cast()));
                        _mm256_storeu_si256(numbers.as_mut_ptr().cast(), codes);
                    }
                }
            }
        }
    }
}

/// The sums of the first `R` rows of a block, which are the rows `group` of the strip, with all columns of the panel.
///
/// # Safety
///
/// The machine has the instructions.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn some_rows<const R: usize>(block: &Block, group: &[usize], halves: &[(&[Line], &Order); 2], first: bool, sums: &mut Sums) {
    for (half, (lines, order)) in halves.iter().enumerate() {
        let (narrow, wide) = lines.split_at(usize::from(order.narrow));
        let (narrow_fours, wide_fours) = order.fours.split_at(usize::from(order.narrow));
        let ones = _mm256_set1_epi16(1);
        let mut acc = [[_mm256_setzero_si256(); 2]; R];
        for (line, &four) in narrow.iter().zip(narrow_fours) {
            // SAFETY: a line has 64 bytes.
            let b: [__m256i; 2] = std::array::from_fn(|v| unsafe { _mm256_loadu_si256(line.0.as_ptr().add(32 * v).cast()) });
            for (acc, row) in acc.iter_mut().zip(&block.codes) {
                // SAFETY: the numbers in an order are less than a row's fours.
                let a = _mm256_set1_epi32(unsafe { row.as_ptr().add(4 * usize::from(four)).cast::<i32>().read_unaligned() });
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
                }
            }
        }
        for (acc, &row) in acc.iter().zip(group) {
            for (acc, to) in acc.iter().zip(sums.0[row / TILE_LINES * 2 + half][row % TILE_LINES].as_chunks_mut::<COLUMNS>().0) {
                let to = to.as_mut_ptr().cast::<__m256i>();
                // SAFETY: eight sums have 32 bytes.
                unsafe { _mm256_storeu_si256(to, if first { *acc } else { _mm256_add_epi32(*acc, _mm256_loadu_si256(to)) }) };
            }
        }
        if wide.is_empty() {
            continue;
        }
        for columns in [0, COLUMNS] {
            // Four columns in each, two sums for each column.
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for (line, &four) in wide.iter().zip(wide_fours) {
                let from = line.0[4 * columns..].as_ptr();
                // SAFETY: as above, of which these are one half.
                let b: [__m256i; 2] = std::array::from_fn(|v| unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.add(16 * v).cast())) });
                for (acc, row) in acc.iter_mut().zip(&block.wide) {
                    // SAFETY: as above.
                    let a = _mm256_set1_epi64x(unsafe { row.as_ptr().add(4 * usize::from(four)).cast::<i64>().read_unaligned() });
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(a, b));
                    }
                }
            }
            for (acc, &row) in acc.iter().zip(group) {
                let to = sums.0[row / TILE_LINES * 2 + half][row % TILE_LINES][columns..][..COLUMNS].as_mut_ptr().cast::<__m256i>();
                // Columns 0 1, 4 5, 2 3, 6 7.
                let found = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(acc[0], acc[1]));
                // SAFETY: eight sums have 32 bytes.
                unsafe { _mm256_storeu_si256(to, _mm256_add_epi32(found, _mm256_loadu_si256(to))) };
            }
        }
    }
}
