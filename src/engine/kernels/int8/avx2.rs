//! The product with AVX2.
//!
//! An instruction multiplies 32 codes at once and adds neighbours to 16 bits, which saturates: two products of 255 and 127 do not fit.
//! What a line of the right operand can reach is known when it is packed, so lines are sorted then ([`Order`]): first come those of
//! which two fit together and are added in 16 bits, then those that fit alone, then those that fit once each code has another neighbour,
//! and last the rest, which is multiplied in 16 bits, at half the codes an instruction. The sums are exact in all. Four rows by sixteen
//! columns of sums stay in registers. Rows that nobody wants (those in the padding of a convolution) are not multiplied.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_adds_epu8, _mm256_cvtepi8_epi16,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epi8, _mm256_max_epu8, _mm256_min_epi8, _mm256_packus_epi16,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_storeu_si256,
    _mm256_subs_epu8, _mm256_testz_si256,
};
use std::ops::Range;

use super::{Line, Rows, STEPS_BLOCK, Sums, TILE_COLUMNS, TILE_LINES};

/// Rows whose sums are in registers.
const ROWS: usize = 4;

/// Columns in a register.
const COLUMNS: usize = TILE_COLUMNS / 2;

/// Steps at once, all that come at once: the 16 KiB of one tile's columns share a first-level cache of 32 KiB with 4 KiB of rows.
const STEPS: usize = STEPS_BLOCK;

/// Lines of one tile's columns in so many steps.
const LINES: usize = STEPS * TILE_LINES;

/// How many lines behind a line are tried for a pair.
const WINDOW: usize = 16;

/// Where the four codes of a column come from when a line is turned: each has other neighbours.
const TURNS: [[u8; 4]; 3] = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2]];

/// In place of a turn: the line is wide.
const WIDE: u8 = TURNS.len() as u8;

/// The lines of 16 columns in the steps from a multiple of [`STEPS`] on, sorted.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Which four numbers of a row each line meets, counted through the steps.
    fours: [u8; LINES],
    /// How each line is turned, and so must be what it meets.
    turns: [u8; LINES],
    /// How many lines are in pairs, single, turned, wide; lines of zeros are in none.
    counts: [u16; 4],
}

impl Order {
    /// Sorts the lines of a panel: those of each [`STEPS`] steps become first the left tiles' and then the right ones', each in the order
    /// that is returned for it, and turned as that says.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn sort(panel: &mut [Line]) -> Vec<Order> {
        let mut orders = Vec::with_capacity(panel.len().div_ceil(LINES));
        for block in panel.chunks_mut(2 * LINES) {
            let given = block.to_vec();
            for (half, to) in block.chunks_exact_mut(given.len() / 2).enumerate() {
                let line = |four: u8| &given[(usize::from(four) / TILE_LINES * 2 + half) * TILE_LINES + usize::from(four) % TILE_LINES];
                let order = Order::of(to.len(), line);
                for ((to, &four), &turn) in to.iter_mut().zip(&order.fours).zip(&order.turns) {
                    *to = if turn == WIDE { by_pairs(line(four)) } else { turned(line(four), turn) };
                }
                orders.push(order);
            }
        }
        orders
    }

    /// The order of so many lines.
    #[target_feature(enable = "avx2,fma")]
    fn of<'a>(count: usize, line: impl Fn(u8) -> &'a Line) -> Order {
        let mut reaches = [[_mm256_setzero_si256(); 2]; LINES];
        let (mut narrow, mut turned_lines, mut wide) = (Vec::with_capacity(count), Vec::new(), Vec::new());
        for four in (0..count).map(|four| four as u8) {
            if line(four).0 == [0; 64] {
                continue;
            }
            reaches[usize::from(four)] = reach(line(four));
            if fits(reaches[usize::from(four)]) {
                narrow.push(four);
                continue;
            }
            match (1..TURNS.len() as u8).find(|&turn| fits(reach(&turned(line(four), turn)))) {
                Some(turn) => turned_lines.push((four, turn)),
                None => wide.push(four),
            }
        }
        let (mut pairs, mut single) = (Vec::with_capacity(count), Vec::new());
        let mut at = 0;
        while at < narrow.len() {
            let first = reaches[usize::from(narrow[at])];
            let mate = (at + 1..narrow.len().min(at + 1 + WINDOW)).find(|&next| {
                let second = reaches[usize::from(narrow[next])];
                fits([_mm256_adds_epu8(first[0], second[0]), _mm256_adds_epu8(first[1], second[1])])
            });
            match mate {
                Some(mate) => {
                    pairs.extend([narrow[at], narrow[mate]]);
                    // What was passed over stays in front of the others.
                    narrow.copy_within(at + 1..mate, at + 2);
                    at += 2;
                }
                None => {
                    single.push(narrow[at]);
                    at += 1;
                }
            }
        }
        let counts = [pairs.len(), single.len(), turned_lines.len(), wide.len()].map(|count| count as u16);
        let (mut fours, mut turns) = ([0; LINES], [0; LINES]);
        let straight = |four: &u8| (*four, 0);
        let sorted = pairs.iter().chain(&single).map(straight).chain(turned_lines).chain(wide.into_iter().map(|four| (four, WIDE)));
        for ((four, turn), found) in fours.iter_mut().zip(&mut turns).zip(sorted) {
            (*four, *turn) = found;
        }
        Order { fours, turns, counts }
    }
}

/// A line whose columns have their codes in another order.
fn turned(line: &Line, turn: u8) -> Line {
    let mut to = *line;
    for (to, from) in to.0.as_chunks_mut::<4>().0.iter_mut().zip(line.0.as_chunks::<4>().0) {
        *to = TURNS[usize::from(turn)].map(|at| from[usize::from(at)]);
    }
    to
}

/// A line that is multiplied in 16 bits: of eight columns the first two codes of each, then the others, and so of the next eight.
fn by_pairs(line: &Line) -> Line {
    let mut to = [0; 64];
    for (column, codes) in line.0.as_chunks::<4>().0.iter().enumerate() {
        let at = column / COLUMNS * 32 + column % COLUMNS * 2;
        to[at..at + 2].copy_from_slice(&codes[..2]);
        to[at + 16..at + 18].copy_from_slice(&codes[2..]);
    }
    Line(to)
}

/// How much the weights of each two neighbours are together, those above zero and those below; at most 255.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn reach(line: &Line) -> [__m256i; 2] {
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    halves(line).map(|codes| {
        let above = _mm256_maddubs_epi16(_mm256_max_epi8(codes, zero), ones);
        let below = _mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(codes, zero)), ones);
        _mm256_packus_epi16(above, below)
    })
}

/// Whether so much weight times any unsigned codes fits 16 bits: 128 times 255 does.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fits(reach: [__m256i; 2]) -> bool {
    let beyond = _mm256_subs_epu8(_mm256_max_epu8(reach[0], reach[1]), _mm256_set1_epi8(128_u8 as i8));
    _mm256_testz_si256(beyond, beyond) == 1
}

/// Where the four codes that each line meets begin in a row, for the lines of a panel in the steps of a block.
pub(super) struct Places([[usize; LINES]; 2]);

impl Places {
    pub(super) const NONE: Places = Places([[0; LINES]; 2]);

    /// Looks up the lines of some steps, the first a multiple of [`STEPS`], of rows whose steps begin at `offsets`.
    pub(super) fn look_up(&mut self, orders: &[Order], offsets: &[usize], steps: Range<usize>) {
        let offsets = &offsets[steps.clone()];
        for (places, order) in self.0.iter_mut().zip(&orders[steps.start / STEPS * 2..]) {
            for (at, &four) in places[..offsets.len() * TILE_LINES].iter_mut().zip(&order.fours) {
                *at = offsets[usize::from(four) / TILE_LINES] + usize::from(four) % TILE_LINES * 4;
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
    (orders, places): (&[Order], &Places),
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
        let part = Part { lines, at: &places.0[half][..count], order, half, first: rows.first };
        let mut left = rows.wanted;
        while left != 0 {
            let mut group = [0; ROWS];
            let mut from = [std::ptr::null(); ROWS];
            let mut count = 0;
            while count < ROWS && left != 0 {
                let row = left.trailing_zeros() as usize;
                left &= left - 1;
                group[count] = row;
                from[count] = rows.left.data.as_ptr().wrapping_add((rows.start + row) * rows.left.stride);
                count += 1;
            }
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
    /// Where the four codes that each line meets begin in a row.
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
        let [pairs, single, turned, wide] = self.order.counts.map(usize::from);
        let (pair_lines, lines) = self.lines.split_at(pairs);
        let (pairs_at, at) = self.at.split_at(pairs);
        let (single_lines, lines) = lines.split_at(single);
        let (single_at, at) = at.split_at(single);
        let (turned_lines, lines) = lines.split_at(turned);
        let (turned_at, at) = at.split_at(turned);
        let turns = &self.order.turns[pairs + single..];
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
        for ((line, &at), &turn) in turned_lines.iter().zip(turned_at).zip(turns) {
            let b = halves(line);
            // SAFETY: a mask has 32 bytes.
            let mask = unsafe { _mm256_loadu_si256(MASKS[usize::from(turn)].as_ptr().cast()) };
            for (acc, row) in acc.iter_mut().zip(from) {
                let a = _mm256_shuffle_epi8(four(row, at), mask);
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
fn halves(line: &Line) -> [__m256i; 2] {
    // SAFETY: a line has 64 bytes.
    std::array::from_fn(|v| unsafe { _mm256_loadu_si256(line.0.as_ptr().add(32 * v).cast()) })
}

/// For each turn the byte that comes to each place of a register of four codes eight times.
static MASKS: [[u8; 32]; TURNS.len()] = {
    let mut masks = [[0; 32]; TURNS.len()];
    let mut at = 0;
    while at < 32 * TURNS.len() {
        let (turn, place) = (at / 32, at % 32);
        masks[turn][place] = (place % 16 / 4 * 4) as u8 + TURNS[turn][place % 4];
        at += 1;
    }
    masks
};

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
