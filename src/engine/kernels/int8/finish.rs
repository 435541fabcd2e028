//! What is done with sums while they are in the cache: zero points taken out, scaled, requantised.

use super::quantize::nearest;
use super::{PANEL, PackedInt8, STRIP, Strip, Sums, TILE_COLUMNS, TILE_LINES};
use crate::engine::kernels::epilogue::{Activation, Bias, activate};
use crate::engine::kernels::isa::{Isa, instantiate};
use crate::engine::kernels::vector::math;

/// Above this a scaled sum is beyond every code and zero point; conversion to integers has no overflow up to here.
pub(super) const OVERFLOW: f32 = 65536.0;

/// How sums become the output.
#[derive(Debug)]
pub struct Finish<'a> {
    /// Added to the sums of each column: a bias in units of the sums, less what zero points on the left contribute.
    pub shift: &'a [i32],
    /// What depends on rows of the left operand; none if nothing does.
    pub rows: Option<RowTerms<'a>>,
    /// Elements from a row of the output to the next: at least the columns that are computed.
    pub ldc: usize,
    /// Where the result goes.
    pub output: Output<'a>,
}

/// Terms of single rows of the output.
#[derive(Clone, Copy, Debug)]
pub struct RowTerms<'a> {
    /// The zero point of each row, beside what `shift` has taken out; none if all are zero.
    pub zeros: Option<&'a [i32]>,
    /// The sum of each row's codes, needed where the right operand has zero points; there they are taken out of it.
    pub sums: Option<&'a [i32]>,
    /// The scale of each row; none if all are 1. For results of floats only.
    pub scales: Option<&'a [f32]>,
}

/// The result of a product: rows of the columns that are computed.
#[derive(Debug)]
pub enum Output<'a> {
    /// The sums.
    Sums(&'a mut [i32]),
    /// Scaled.
    Floats(Floats<'a>),
    /// Scaled and rounded to codes.
    Codes(Codes<'a>),
}

/// `activation(sum * factor + bias)`, or `activation(sum * factor + bias + y)`.
#[derive(Debug)]
pub struct Floats<'a> {
    /// The result.
    pub y: &'a mut [f32],
    /// One per column of the right operand.
    pub factors: &'a [f32],
    /// Added after scaling.
    pub bias: Bias<'a>,
    /// Whether what `y` holds is added too.
    pub adds: bool,
    /// Applied last.
    pub activation: Activation,
}

/// `clamp(round(sum * factor + offset) + zero, low, high)`, ties to even, saturating; then with some bits turned over. Product and sum
/// are rounded each, so that the bits are those of every instruction set.
#[derive(Debug)]
pub struct Codes<'a> {
    /// The result.
    pub y: &'a mut [u8],
    /// One per column of the right operand.
    pub factors: &'a [f32],
    /// One per column of the right operand.
    pub offsets: Option<&'a [f32]>,
    /// The zero point; within the range of 16 bits.
    pub zero: i16,
    /// The least code.
    pub low: u8,
    /// The greatest code.
    pub high: u8,
    /// Bits to turn over: [`super::FLIP`] for a signed result, whose zero point and bounds are then 128 further; else 0.
    pub flip: u8,
}

impl Finish<'_> {
    /// Panics unless everything has the length that these strips and columns need.
    pub(super) fn check(&self, strips: &[Strip], n: usize, columns: usize) {
        assert_eq!(self.shift.len(), n, "shifts against columns");
        let rows = strips.iter().flat_map(|strip| &strip.to[..strip.count]).filter(|&&to| to != Strip::SKIP);
        let rows = rows.max().map_or(0, |&last| last as usize + 1);
        let (len, factors) = match &self.output {
            Output::Sums(y) => (y.len(), None),
            Output::Floats(f) => (f.y.len(), Some(f.factors.len())),
            Output::Codes(c) => (c.y.len(), Some(c.factors.len())),
        };
        assert!(
            self.ldc >= columns && (rows == 0 || len >= (rows - 1) * self.ldc + columns),
            "an output of {len} for {rows} rows of {columns}"
        );
        assert!(factors.is_none_or(|factors| factors == n), "factors against columns");
        match &self.output {
            Output::Floats(Floats { bias: Bias::PerColumn(bias), .. }) => assert_eq!(bias.len(), n, "bias against columns"),
            Output::Floats(Floats { bias: Bias::PerRow(bias), .. }) => assert!(bias.len() >= rows, "bias against rows"),
            Output::Codes(Codes { offsets: Some(offsets), .. }) => assert_eq!(offsets.len(), n, "offsets against columns"),
            _ => {}
        }
        if let Some(terms) = &self.rows {
            let lengths = [terms.zeros.map(<[i32]>::len), terms.sums.map(<[i32]>::len), terms.scales.map(<[f32]>::len)];
            assert!(lengths.into_iter().flatten().all(|len| len >= rows), "terms of {rows} rows");
        }
    }

    /// Writes a tile.
    pub(super) fn tile(&mut self, isa: Isa, sums: &Sums, strip: &Strip, place: &Place, right: &PackedInt8) {
        let columns = place.from..place.from + place.width;
        let shift = Shift {
            all: padded(&self.shift[columns.clone()]),
            rows: self.rows.map(|terms| Taken {
                terms,
                column_sums: padded(&right.column_sums()[columns.clone()]),
                zeros: right.zeros().map_or([0; PANEL], |zeros| padded(&zeros[columns.clone()])),
            }),
        };
        match &mut self.output {
            Output::Sums(y) => write_sums(sums, strip, &shift, y, place),
            Output::Floats(floats) => {
                let factors = padded(&floats.factors[columns.clone()]);
                let bias = if let Bias::PerColumn(bias) = floats.bias { padded(&bias[columns]) } else { [0.0; PANEL] };
                let rows = if let Bias::PerRow(bias) = floats.bias { Some(bias) } else { None };
                let scales = self.rows.and_then(|terms| terms.scales);
                let (adds, activation) = (floats.adds, floats.activation);
                let with = &Scale { shift: &shift, factors: &factors, bias: &bias, rows, scales, adds, activation };
                let y = &mut *floats.y;
                scale(isa, sums, strip, with, y, place);
            }
            Output::Codes(codes) => {
                let factors = padded(&codes.factors[columns.clone()]);
                let offsets = codes.offsets.map(|offsets| padded(&offsets[columns]));
                let Codes { zero, low, high, flip, .. } = *codes;
                let with = Requantize { shift: &shift, factors: &factors, offsets: offsets.as_ref(), zero, low, high, flip };
                requantize(isa, sums, strip, &with, codes.y, place);
            }
        }
    }
}

/// What is added to the sums of a panel's columns.
pub(super) struct Shift<'a> {
    pub(super) all: [i32; PANEL],
    pub(super) rows: Option<Taken<'a>>,
}

/// What is taken from the sums of single rows.
pub(super) struct Taken<'a> {
    pub(super) terms: RowTerms<'a>,
    pub(super) column_sums: [i32; PANEL],
    pub(super) zeros: [i32; PANEL],
}

/// Where a tile's columns are: from `from` on of the right operand, from `at` on of the output's rows, which have `ldc` columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) from: usize,
    pub(super) at: usize,
    pub(super) width: usize,
    pub(super) ldc: usize,
}

/// Values for a panel's columns.
fn padded<T: Copy + Default>(values: &[T]) -> [T; PANEL] {
    if let Some(panel) = values.first_chunk() {
        return *panel;
    }
    let mut panel = [T::default(); PANEL];
    panel[..values.len()].copy_from_slice(values);
    panel
}

/// The rows of a strip that somebody wants: the row of sums, and that of the output.
fn wanted(strip: &Strip) -> impl Iterator<Item = (usize, usize)> + '_ {
    let rows = strip.to[..strip.count.min(STRIP)].iter().enumerate();
    rows.filter(|(_, to)| **to != Strip::SKIP).map(|(row, &to)| (row, to as usize))
}

/// A row of sums, which is row `to` of the output, with what is added to it.
#[inline(always)]
fn row_of(sums: &Sums, (row, to): (usize, usize), shift: &Shift<'_>) -> [i32; PANEL] {
    let (tile, line) = (row / TILE_LINES * 2, row % TILE_LINES);
    let (low, high) = (&sums.0[tile][line], &sums.0[tile + 1][line]);
    let mut values = shift.all;
    for j in 0..TILE_COLUMNS {
        values[j] = values[j].wrapping_add(low[j]);
        values[TILE_COLUMNS + j] = values[TILE_COLUMNS + j].wrapping_add(high[j]);
    }
    if let Some(Taken { terms, column_sums, zeros }) = &shift.rows {
        let zero = terms.zeros.map_or(0, |zeros| zeros[to]);
        let sum = terms.sums.map_or(0, |sums| sums[to]);
        for j in 0..PANEL {
            values[j] = values[j].wrapping_sub(zero.wrapping_mul(column_sums[j]).wrapping_add(sum.wrapping_mul(zeros[j])));
        }
    }
    values
}

fn write_sums(sums: &Sums, strip: &Strip, shift: &Shift<'_>, y: &mut [i32], place: &Place) {
    for (row, to) in wanted(strip) {
        y[to * place.ldc + place.at..][..place.width].copy_from_slice(&row_of(sums, (row, to), shift)[..place.width]);
    }
}

/// What scaling needs for a panel.
pub(super) struct Scale<'a> {
    pub(super) shift: &'a Shift<'a>,
    pub(super) factors: &'a [f32; PANEL],
    pub(super) bias: &'a [f32; PANEL],
    rows: Option<&'a [f32]>,
    pub(super) scales: Option<&'a [f32]>,
    pub(super) adds: bool,
    pub(super) activation: Activation,
}

fn scale(isa: Isa, sums: &Sums, strip: &Strip, with: &Scale<'_>, y: &mut [f32], place: &Place) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && with.rows.is_none() {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        return unsafe { super::avx512::scale(sums, strip, with, y, place) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 && with.rows.is_none() && place.width == PANEL {
        isa.require();
        // SAFETY: as above.
        return unsafe { super::avx2_finish::scale(sums, strip, with, y, place) };
    }
    instantiate!(isa, floats_body, (sums: &Sums, strip: &Strip, with: &Scale<'_>, y: &mut [f32], place: &Place));
}

#[inline(always)]
fn floats_body<const FMA: bool>(sums: &Sums, strip: &Strip, with: &Scale<'_>, y: &mut [f32], place: &Place) {
    for (row, to) in wanted(strip) {
        let scale = with.scales.map_or(1.0, |scales| scales[to]);
        let bias = with.rows.map_or(*with.bias, |rows| [rows[to]; PANEL]);
        let mut values = row_of(sums, (row, to), with.shift).map(|sum| sum as f32 * scale);
        for j in 0..PANEL {
            values[j] = math::fma::<FMA>(values[j], with.factors[j], bias[j]);
        }
        let y = &mut y[to * place.ldc + place.at..][..place.width];
        if with.adds {
            values.iter_mut().zip(&*y).for_each(|(value, held)| *value += held);
        }
        activate::<FMA>(with.activation, &mut values);
        match y.first_chunk_mut() {
            Some(y) => *y = values,
            None => y.copy_from_slice(&values[..place.width]),
        }
    }
}

/// What requantising needs for a panel, one value per column; those beyond the panel's width do not matter.
pub(super) struct Requantize<'a> {
    pub(super) shift: &'a Shift<'a>,
    pub(super) factors: &'a [f32; PANEL],
    pub(super) offsets: Option<&'a [f32; PANEL]>,
    pub(super) zero: i16,
    pub(super) low: u8,
    pub(super) high: u8,
    pub(super) flip: u8,
}

fn requantize(isa: Isa, sums: &Sums, strip: &Strip, with: &Requantize<'_>, y: &mut [u8], place: &Place) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && with.shift.rows.is_none() {
        isa.require();
        // SAFETY: `require` has just shown that this machine has the features it is compiled for.
        return unsafe { super::avx512::requantize(sums, strip, with, y, place) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 && with.shift.rows.is_none() {
        isa.require();
        // SAFETY: as above.
        return unsafe { super::avx2_finish::requantize(sums, strip, with, y, place) };
    }
    instantiate!(isa, requantize_body, (sums: &Sums, strip: &Strip, with: &Requantize<'_>, y: &mut [u8], place: &Place));
}

#[inline(always)]
fn requantize_body<const FMA: bool>(sums: &Sums, strip: &Strip, with: &Requantize<'_>, y: &mut [u8], place: &Place) {
    for (row, to) in wanted(strip) {
        let sums = row_of(sums, (row, to), with.shift);
        let mut codes = [0_u8; PANEL];
        for j in 0..PANEL {
            let scaled = sums[j] as f32 * with.factors[j];
            let scaled = with.offsets.map_or(scaled, |offsets| scaled + offsets[j]);
            let code = (nearest(scaled) + i32::from(with.zero)).clamp(0, 255) as u8;
            codes[j] = code.max(with.low).min(with.high) ^ with.flip;
        }
        y[to * place.ldc + place.at..][..place.width].copy_from_slice(&codes[..place.width]);
    }
}
