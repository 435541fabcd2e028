//! The lines of weights, sorted for the product with AVX2 ([`super::avx2`]).

use std::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_adds_epu8, _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_max_epi8, _mm256_max_epu8,
    _mm256_min_epi8, _mm256_packus_epi16, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_subs_epu8, _mm256_testz_si256,
};

use super::avx2::{COLUMNS, LINES, halves};
use super::{Line, TILE_COLUMNS, TILE_LINES};

/// How many lines behind a line are tried for a pair.
const WINDOW: usize = 16;

/// Numbers along `k` that find neighbours among themselves: what an instruction shuffles.
pub(super) const GROUP: usize = 16;

/// Lines of so many numbers.
pub(super) const GROUP_LINES: usize = GROUP / 4;

/// For each group of some steps, where its numbers come from.
pub(super) type Shuffles = [[u8; GROUP]; LINES / GROUP_LINES];

/// The lines of 16 columns in the steps from a multiple of `STEPS` on, sorted.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// Which four numbers of a row each line meets, counted through the steps.
    pub(super) fours: [u8; LINES],
    /// How many lines are in pairs, single, wide; lines of zeros are in none.
    pub(super) counts: [u16; 3],
    /// What the numbers of a row are shuffled by; none where rows are read as they are.
    pub(super) shuffles: Option<Box<Shuffles>>,
}

impl Order {
    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Order>() + self.shuffles.as_deref().map_or(0, size_of_val)
    }

    /// Sorts the lines of a panel: those of each `STEPS` steps become first the left tiles' and then the right ones', each in the order
    /// that is returned for it.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn sort(panel: &mut [Line]) -> Vec<Order> {
        let mut orders = Vec::with_capacity(panel.len().div_ceil(LINES));
        for block in panel.chunks_mut(2 * LINES) {
            let given = block.to_vec();
            for (half, to) in block.chunks_exact_mut(given.len() / 2).enumerate() {
                let lines = given.chunks_exact(TILE_LINES).skip(half).step_by(2).flatten();
                orders.push(Order::of(lines.copied().collect(), to));
            }
        }
        orders
    }

    /// Sorts some lines into `to`.
    #[target_feature(enable = "avx2,fma")]
    fn of(mut lines: Vec<Line>, to: &mut [Line]) -> Order {
        let shuffles = shuffle(&mut lines);
        let reaches: Vec<Reach> = lines.iter().map(|line| reach(line)).collect();
        let some = (0..lines.len() as u16).map(|four| four as u8).filter(|four| lines[usize::from(*four)].0 != [0; 64]);
        let (mut narrow, wide): (Vec<u8>, Vec<u8>) = some.partition(|four| fits_both(reaches[usize::from(*four)]));
        let (mut pairs, mut single) = (Vec::with_capacity(lines.len()), Vec::new());
        let mut at = 0;
        while at < narrow.len() {
            let first = reaches[usize::from(narrow[at])];
            let mate = (at + 1..narrow.len().min(at + 1 + WINDOW)).find(|&next| {
                let second = reaches[usize::from(narrow[next])];
                fits_both([_mm256_adds_epu8(first[0], second[0]), _mm256_adds_epu8(first[1], second[1])])
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
        let counts = [pairs.len(), single.len(), wide.len()].map(|count| count as u16);
        let (mut fours, narrow) = ([0; LINES], pairs.len() + single.len());
        fours.iter_mut().zip(pairs.iter().chain(&single).chain(&wide)).for_each(|(to, four)| *to = *four);
        for (at, (to, &four)) in to.iter_mut().zip(&fours).enumerate() {
            let line = &lines[usize::from(four)];
            *to = if at < narrow { *line } else { by_pairs(line) };
        }
        Order { fours, counts, shuffles }
    }
}

/// Gives the numbers of each group other neighbours where some do not fit with theirs. None where so few do not that to multiply their lines in
/// 16 bits takes less time than to copy rows.
#[target_feature(enable = "avx2,fma")]
fn shuffle(lines: &mut [Line]) -> Option<Box<Shuffles>> {
    /// One line of so many, at most, are few.
    const FEW: usize = 5;
    const KEPT: [u8; GROUP] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let wide = |lines: &[Line]| lines.iter().filter(|line| !fits_both(reach(line))).count();
    if wide(lines) * FEW <= lines.len() {
        return None;
    }
    let mut shuffles = Box::new([KEPT; LINES / GROUP_LINES]);
    for (lines, shuffle) in lines.as_chunks_mut::<GROUP_LINES>().0.iter_mut().zip(shuffles.iter_mut()) {
        if wide(lines) == 0 {
            continue;
        }
        let mut numbers = [[0; TILE_COLUMNS]; GROUP];
        for (line, numbers) in lines.iter().zip(numbers.as_chunks_mut::<4>().0) {
            for column in 0..TILE_COLUMNS {
                for number in 0..4 {
                    numbers[number][column] = line.0[4 * column + number];
                }
            }
        }
        let from = neighbours(&numbers);
        for (line, from) in lines.iter_mut().zip(from.as_chunks::<4>().0) {
            let numbers = from.map(|from| &numbers[usize::from(from)]);
            for column in 0..TILE_COLUMNS {
                for number in 0..4 {
                    line.0[4 * column + number] = numbers[number][column];
                }
            }
        }
        *shuffle = from;
    }
    Some(shuffles)
}

/// An order of the numbers of a group, of which the weights for each column are given, in which as many as can be found fit with their
/// neighbours; those that fit with none come last.
#[target_feature(enable = "avx2,fma")]
fn neighbours(numbers: &[[i8; TILE_COLUMNS]; GROUP]) -> [u8; GROUP] {
    // Weight above zero of each column, and below.
    let reaches: [__m256i; GROUP] = std::array::from_fn(|number| {
        let mut weight = [[0_u8; TILE_COLUMNS]; 2];
        for column in 0..TILE_COLUMNS {
            weight[0][column] = numbers[number][column].max(0) as u8;
            weight[1][column] = numbers[number][column].min(0).unsigned_abs();
        }
        // SAFETY: the two arrays have 32 bytes.
        unsafe { _mm256_loadu_si256(weight.as_ptr().cast()) }
    });
    let mut mates = [0_u16; GROUP];
    for a in 0..GROUP {
        for b in 0..a {
            let fit = u16::from(fits(_mm256_adds_epu8(reaches[a], reaches[b])));
            mates[a] |= fit << b;
            mates[b] |= fit << a;
        }
    }
    let mate = matched(&mates);
    let mut order = [0; GROUP];
    let (mut in_pairs, mut alone) = (0, GROUP);
    for a in 0..GROUP {
        match mate[a] {
            Some(b) if a < b => {
                (order[in_pairs], order[in_pairs + 1]) = (a as u8, b as u8);
                in_pairs += 2;
            }
            Some(_) => {}
            None => {
                alone -= 1;
                order[alone] = a as u8;
            }
        }
    }
    order
}

/// Who goes with whom, given who may: those with the least choice choose first, and two that are left over take a pair apart where each may go
/// with one of it.
fn matched(mates: &[u16; GROUP]) -> [Option<usize>; GROUP] {
    let mut mate = [None; GROUP];
    let mut free = u16::MAX;
    let mut choices: [u8; GROUP] = mates.map(|mates| members(mates).count() as u8);
    while let Some(a) = members(free).filter(|a| choices[*a] > 0).min_by_key(|a| choices[*a]) {
        let b = members(mates[a] & free).min_by_key(|b| choices[*b]).expect("it has a choice");
        (mate[a], mate[b]) = (Some(b), Some(a));
        free &= !(1 << a | 1 << b);
        for (choices, mates) in choices.iter_mut().zip(mates) {
            *choices -= (mates >> a & 1) as u8 + (mates >> b & 1) as u8;
        }
    }
    loop {
        let apart = members(free).flat_map(|a| members(free & !(1 << a)).map(move |b| (a, b))).find_map(|(a, b)| {
            let c = members(mates[a]).find(|c| mate[*c].is_some_and(|d| mates[b] >> d & 1 == 1))?;
            Some((a, b, c))
        });
        let Some((a, b, c)) = apart else { return mate };
        let d = mate[c].expect("it is in a pair");
        (mate[a], mate[c], mate[b], mate[d]) = (Some(c), Some(a), Some(d), Some(b));
        free &= !(1 << a | 1 << b);
    }
}

/// The numbers of a set, ascending.
fn members(mut set: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = set.checked_sub(1).map(|below| (set.trailing_zeros() as usize, set & below));
        first.map(|(first, rest)| {
            set = rest;
            first
        })
    })
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

/// How much weight times any unsigned codes fits 16 bits: 128 times 255 does.
const FITS: u8 = 128;

/// How much the weights of each two neighbours are together, those above zero and those below; at most 255.
type Reach = [__m256i; 2];

/// What the neighbours of a line reach.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn reach(line: &Line) -> Reach {
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    halves(line).map(|codes| {
        let above = _mm256_maddubs_epi16(_mm256_max_epi8(codes, zero), ones);
        let below = _mm256_maddubs_epi16(_mm256_abs_epi8(_mm256_min_epi8(codes, zero)), ones);
        _mm256_packus_epi16(above, below)
    })
}

/// Whether the neighbours of a line fit.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fits_both(reach: Reach) -> bool {
    fits(_mm256_max_epu8(reach[0], reach[1]))
}

/// Whether so much weight fits each.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fits(weights: __m256i) -> bool {
    let beyond = _mm256_subs_epu8(weights, _mm256_set1_epi8(FITS as i8));
    _mm256_testz_si256(beyond, beyond) == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::isa::Isa;

    #[test]
    fn each_goes_with_one_it_may_go_with() {
        let mut state = 7_u64;
        for density in 0..16 {
            let mut mates = [0_u16; GROUP];
            for a in 0..GROUP {
                for b in 0..a {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if state >> 60 < density {
                        mates[a] |= 1 << b;
                        mates[b] |= 1 << a;
                    }
                }
            }
            let mate = matched(&mates);
            for a in 0..GROUP {
                match mate[a] {
                    Some(b) => assert!(mate[b] == Some(a) && mates[a] >> b & 1 == 1, "{a} with {b} of {mates:?}"),
                    None => assert!((0..GROUP).all(|b| mate[b].is_some() || mates[a] >> b & 1 == 0), "{a} could have one of {mates:?}"),
                }
            }
        }
    }

    #[test]
    fn two_left_over_take_a_pair_apart() {
        // A line of four: were the two in the middle a pair, the ends would be left over.
        let mut mates = [0_u16; GROUP];
        for (a, b) in [(0, 1), (1, 2), (2, 3)] {
            mates[a] |= 1 << b;
            mates[b] |= 1 << a;
        }
        assert_eq!(matched(&mates)[..5], [Some(1), Some(0), Some(3), Some(2), None]);
    }

    #[test]
    fn great_weights_beside_each_other_find_small_ones() {
        if Isa::best() < Isa::Avx2 {
            return;
        }
        // In each column the numbers 0, 1, 4 and 5 of sixteen weigh 100, which do not fit with each other.
        let weight = |number: usize| if number % 4 < 2 && number < 8 { 100 } else { 20 };
        let line = |at: usize| Line(std::array::from_fn(|byte| weight(at * 4 + byte % 4)));
        let given: Vec<Line> = (0..GROUP_LINES).map(line).collect();
        let mut to = given.clone();
        // SAFETY: the machine has the instructions.
        let order = unsafe { Order::of(given, &mut to) };
        let [pairs, single, wide] = order.counts;
        assert_eq!((pairs + single, wide), (GROUP_LINES as u16, 0));
        let from = order.shuffles.expect("numbers change places")[0];
        let mut all = from;
        all.sort_unstable();
        assert_eq!(all, std::array::from_fn(|at| at as u8), "each number once");
        for (&four, line) in order.fours.iter().zip(&to) {
            let met: Vec<i8> = (0..4).map(|at| weight(usize::from(from[usize::from(four) * 4 + at]))).collect();
            assert!(line.0.as_chunks::<4>().0.iter().all(|column| column[..] == met), "the weights go with their numbers");
        }
    }
}
