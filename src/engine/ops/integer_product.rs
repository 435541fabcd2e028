//! Products of 8-bit codes with a packed matrix as the quantised operators need them: either kind of codes on the left, zero points
//! for all rows or for each, split over threads.
//!
//! Sums are exact, so that no split changes a bit of the result.

use std::borrow::Cow;
use std::ops::Range;

use super::product::{flops, join, transpose};
use super::qlinear::Levels;
use crate::engine::dtype::DType;
use crate::engine::kernels::epilogue::{Activation, Bias};
use crate::engine::kernels::int8::quantize::row_sums;
use crate::engine::kernels::int8::{Codes, FLIP, Finish, Floats, Left, Output, PANEL, PackedInt8, RowTerms, Strip, dense, multiply};
use crate::engine::op::OpError;
use crate::engine::threads::Threads;
use crate::engine::view::View;

/// Codes of any of the two types as unsigned bytes: those of signed ones are 128 greater.
pub(crate) fn bytes(view: View<'_>) -> Result<Cow<'_, [u8]>, OpError> {
    match view.dtype() {
        DType::U8 => Ok(Cow::Borrowed(view.slice::<u8>()?)),
        DType::I8 => Ok(Cow::Owned(view.slice::<i8>()?.iter().map(|&code| code as u8 ^ FLIP).collect())),
        other => Err(OpError::Type(format!("uint8 or int8 is needed where {other} is given"))),
    }
}

/// What [`bytes`] adds to codes of a type.
pub(crate) fn shift_of(dtype: DType) -> i32 {
    if dtype == DType::I8 { 128 } else { 0 }
}

/// The bits that [`bytes`] turns over.
pub(crate) fn flip_of(dtype: DType) -> u8 {
    if dtype == DType::I8 { FLIP } else { 0 }
}

/// A left operand, `m` rows, and the matrix on the right.
pub(crate) struct Operands<'a> {
    left: Cow<'a, [u8]>,
    m: usize,
    right: &'a PackedInt8,
    /// The zero point of all rows; those of single rows are beside it.
    zero: i32,
    zeros: Option<Vec<i32>>,
    /// The sum of each row's codes, where they are needed.
    sums: Option<Vec<i32>>,
    threads: &'a Threads,
}

impl<'a> Operands<'a> {
    /// Codes `a` times `right`; `across` if `a` is one matrix `[k, m]`. `zeros` has the zero points of rows of matrices of
    /// `rows_per_matrix` rows.
    pub(crate) fn new(
        a: View<'a>,
        across: bool,
        right: &'a PackedInt8,
        zeros: &Levels<i32>,
        rows_per_matrix: usize,
        threads: &'a Threads,
    ) -> Result<Self, OpError> {
        let k = right.k();
        let m = a.len().checked_div(k).unwrap_or(0);
        let mut left = bytes(a)?;
        if across {
            let mut turned = vec![];
            transpose(&left, k, m, &mut turned);
            left = Cow::Owned(turned);
        }
        let (shift, per_matrix) = (shift_of(a.dtype()), rows_per_matrix.max(1));
        let (zero, zeros) = match zeros.only() {
            Some(zero) => (zero + shift, None),
            None => (shift, Some((0..m).map(|row| zeros.at(row / per_matrix, row % per_matrix)).collect())),
        };
        let sums = right.zeros().map(|_| {
            let mut sums = vec![0; m];
            row_sums(right.isa(), &left, right.k(), right.k(), &mut sums);
            sums
        });
        Ok(Self { left, m, right, zero, zeros, sums, threads })
    }

    /// Rows of the result.
    pub(crate) fn rows(&self) -> usize {
        self.m
    }

    /// Columns of the result.
    pub(crate) fn columns(&self) -> usize {
        self.right.n()
    }

    /// What is added to each column's sums: `bias`, less what the common zero point contributes.
    fn shift(&self, bias: Option<&[i32]>) -> Vec<i32> {
        let own = self.right.column_sums().iter().map(|sum| sum.wrapping_mul(self.zero).wrapping_neg());
        match bias {
            None => own.collect(),
            Some(bias) => own.zip(bias).map(|(own, bias)| own.wrapping_add(*bias)).collect(),
        }
    }

    /// The sums of all rows.
    pub(crate) fn to_sums(&self, y: &mut [i32]) {
        self.split(y, None, None, |y, then| then(Output::Sums(y)));
    }

    /// `activation((sum + bias) * scale of the row * factor of the column + added)`.
    pub(crate) fn to_floats(&self, y: &mut [f32], with: &ToFloats<'_>) {
        self.split(y, with.bias, with.scales, |y, then| {
            let added = with.added.map_or(Bias::None, Bias::PerColumn);
            then(Output::Floats(Floats { y, factors: with.factors, bias: added, adds: false, activation: with.activation }));
        });
    }

    /// `(sum + bias) * factor of the column`, rounded to codes of a type with a zero point.
    pub(crate) fn to_codes(&self, y: &mut [u8], bias: Option<&[i32]>, factors: &[f32], (dtype, zero): (DType, i32)) {
        let (zero, flip) = ((zero + shift_of(dtype)) as i16, flip_of(dtype));
        self.split(y, bias, None, |y, then| {
            then(Output::Codes(Codes { y, factors, offsets: None, zero, low: 0, high: 255, flip }));
        });
    }

    /// Rows, or columns where there are few rows, on as many threads as the work is worth.
    fn split<T: Copy + Default + Send + Sync>(
        &self,
        y: &mut [T],
        bias: Option<&[i32]>,
        scales: Option<&[f32]>,
        output: impl Fn(&mut [T], &mut dyn FnMut(Output<'_>)) + Sync,
    ) {
        let (m, k, n) = (self.m, self.right.k(), self.right.n());
        if m == 0 || n == 0 {
            return;
        }
        let (shift, offsets) = (self.shift(bias), dense(k));
        let left = Left { data: &self.left, stride: k, offsets: &offsets };
        let work = |rows: Range<usize>, columns: Range<usize>, y: &mut [T]| {
            let zeros = self.zeros.as_deref().map(|zeros| &zeros[rows.clone()]);
            let sums = self.sums.as_deref().map(|sums| &sums[rows.clone()]);
            let scales = scales.map(|scales| &scales[rows.clone()]);
            let terms = RowTerms { zeros, sums, scales };
            let any = zeros.is_some() || sums.is_some() || scales.is_some();
            let ldc = columns.len();
            output(y, &mut |output| {
                let mut finish = Finish { shift: &shift, rows: any.then_some(terms), ldc, output };
                multiply(&left, &Strip::of(rows.clone()), self.right, columns.clone(), &mut finish);
            });
        };
        let parts = self.threads.parts(flops(m, k, n) / OPERATIONS_PER_FLOP);
        if parts <= 1 {
            return work(0..m, 0..n, y);
        }
        if m >= parts * ROWS_PER_PART {
            let rows = m.div_ceil(parts).next_multiple_of(ROWS_PER_PART);
            let items = y.chunks_mut(rows * n).enumerate();
            return self.threads.for_each(items, |(part, y)| work(part * rows..part * rows + y.len() / n, 0..n, y));
        }
        let width = n.div_ceil(parts).next_multiple_of(PANEL);
        let mut strips = vec![T::default(); m * n];
        let items = strips.chunks_mut(m * width).enumerate();
        self.threads.for_each(items, |(part, strip)| work(0..m, part * width..n.min((part + 1) * width), strip));
        join(&strips, (m, n, width), y, self.threads);
    }
}

/// How much faster than those of floats, of which [`Threads::parts`] knows, operations on codes are.
pub(crate) const OPERATIONS_PER_FLOP: u64 = 8;

/// Rows from which on each thread gets rows: a strip.
const ROWS_PER_PART: usize = 32;

/// How sums become floats.
pub(crate) struct ToFloats<'a> {
    pub(crate) bias: Option<&'a [i32]>,
    pub(crate) scales: Option<&'a [f32]>,
    pub(crate) factors: &'a [f32],
    pub(crate) added: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}
