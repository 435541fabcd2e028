//! A constant matrix of floats as 8-bit codes, multiplied with rows of floats that become codes for the call: each row and each column
//! with a scale of its own, so that a row's result depends on that row alone.

use std::cell::RefCell;
use std::ops::Range;

use super::quantize::{quantize, range};
use super::{Finish, Floats, Left, Output, PackedInt8, RightCodes, RowTerms, STEP, STRIP, Strip, dense, multiply};
use crate::engine::kernels::epilogue::Epilogue;
use crate::engine::kernels::isa::Isa;
use crate::engine::kernels::stored::{Source, packed};

/// A right-hand matrix `b[k, n]`, rounded to multiples of a 127th of each column's greatest magnitude.
#[derive(Clone, Debug)]
pub struct DynamicInt8 {
    packed: PackedInt8,
    scales: Vec<f32>,
}

/// What the rows of a left operand became.
#[derive(Default)]
struct Rows {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<i32>,
}

thread_local! {
    static ROWS: RefCell<Rows> = RefCell::default();
}

/// Rows that become codes at once.
const ROWS_BLOCK: usize = 8 * STRIP;

/// The scale of each column of `b`, which is `[k, n]`, or `[n, k]` if `transposed`, and the codes in the same order.
fn round(b: &[f32], (k, n): (usize, usize), transposed: bool, scales: &mut [f32], codes: &mut [i8]) {
    // `max` passes over NaN, which must not be lost.
    let take = |greatest: &mut f32, v: f32| {
        *greatest = if v.is_nan() {
            v
        } else if greatest.is_nan() {
            *greatest
        } else {
            greatest.max(v.abs())
        }
    };
    if transposed {
        scales.iter_mut().zip(b.chunks_exact(k.max(1))).for_each(|(greatest, column)| column.iter().for_each(|&v| take(greatest, v)));
    } else {
        b.chunks_exact(n.max(1)).for_each(|row| scales.iter_mut().zip(row).for_each(|(greatest, &v)| take(greatest, v)));
    }
    for scale in &mut *scales {
        *scale = if *scale == 0.0 {
            1.0
        } else if scale.is_finite() {
            *scale / 127.0
        } else {
            f32::NAN
        };
    }
    // A scale of a subnormal column may be zero: what it divides is then no number, which becomes 0.
    let code = |v: f32, scale: f32| (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
    if transposed {
        for ((column, codes), &scale) in b.chunks_exact(k.max(1)).zip(codes.chunks_exact_mut(k.max(1))).zip(&*scales) {
            codes.iter_mut().zip(column).for_each(|(to, &v)| *to = code(v, scale));
        }
    } else {
        for (row, codes) in b.chunks_exact(n.max(1)).zip(codes.chunks_exact_mut(n.max(1))) {
            codes.iter_mut().zip(row).zip(&*scales).for_each(|((to, &v), &scale)| *to = code(v, scale));
        }
    }
}

impl DynamicInt8 {
    /// Rounds and packs `b`, which is `[k, n]` row-major, or `[n, k]` if `transposed`. A column with NaN or infinity gives NaN. Panics
    /// unless there are `k * n` numbers and the instruction set is available.
    pub fn pack(isa: Isa, b: &(impl Source + ?Sized), k: usize, n: usize, transposed: bool) -> DynamicInt8 {
        assert_eq!(b.count(), k * n, "length of b against k * n");
        // The scales, then the codes.
        let split = n * size_of::<f32>();
        let rounded = packed(b, format_args!("int8 {k} {n} {transposed}"), split + k * n, |b, bytes: &mut [u8]| {
            let (scales, codes) = bytes.split_at_mut(split);
            round(b, (k, n), transposed, bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(codes));
        });
        let (scales, codes) = rounded.elements::<u8>()[..split + k * n].split_at(split);
        let codes = RightCodes::Signed(bytemuck::cast_slice(codes));
        let packed = PackedInt8::pack(isa, codes, (k, n), transposed, &[0]);
        DynamicInt8 { packed, scales: bytemuck::cast_slice(scales).to_vec() }
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        self.packed.k()
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.packed.n()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.bytes() + size_of_val(self.scales.as_slice())
    }

    /// `c[m, columns] = epilogue(a[m, k] · b[.., columns])`, both operands rounded. A row with NaN or infinity gives NaN. Panics as
    /// [`crate::engine::kernels::gemm::gemm_packed_b_columns`] does.
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
        let k = self.k();
        epilogue.bias.check(m, self.n());
        if m == 0 || columns.is_empty() {
            return;
        }
        assert!(lda >= k && a.len() >= (m - 1) * lda + k, "a is shorter than m rows");
        assert!(ldc >= columns.len() && c.len() >= (m - 1) * ldc + columns.len(), "c is shorter than m rows");
        let factors: Vec<f32> = self.scales.iter().map(|scale| epilogue.alpha * scale).collect();
        let shift = vec![0; self.n()];
        let (offsets, stride) = (dense(k), k.next_multiple_of(STEP));
        ROWS.with_borrow_mut(|rows| {
            for first in (0..m).step_by(ROWS_BLOCK) {
                let count = ROWS_BLOCK.min(m - first);
                self.quantize_rows(&a[first * lda..], lda, count, rows);
                let left = Left { data: &rows.codes, stride, offsets: &offsets };
                let bias = epilogue.bias.tile(first, count, 0, self.n());
                let y = &mut c[first * ldc..];
                let output = Output::Floats(Floats { y, factors: &factors, bias, adds: epilogue.adds, activation: epilogue.activation });
                let terms = RowTerms { zeros: Some(&rows.zeros), sums: None, scales: Some(&rows.scales) };
                let mut finish = Finish { shift: &shift, rows: Some(terms), ldc, output };
                multiply(&left, &Strip::of(0..count), &self.packed, columns.clone(), &mut finish);
            }
        });
    }

    fn quantize_rows(&self, a: &[f32], lda: usize, m: usize, rows: &mut Rows) {
        let (k, isa) = (self.k(), self.packed.isa());
        let stride = k.next_multiple_of(STEP);
        rows.codes.resize(m.next_multiple_of(STRIP) * stride, 0);
        rows.scales.clear();
        rows.zeros.clear();
        for (row, codes) in rows.codes.chunks_exact_mut(stride.max(1)).enumerate().take(m) {
            let values = &a[row * lda..][..k];
            let (least, greatest) = range(isa, values);
            // Infinity has no scale, and NaN is passed over by the range but not by this sum of products with zero.
            let finite = (greatest - least).is_finite() && values.iter().fold(0.0, |sum, v| sum + v * 0.0) == 0.0;
            let scale = if least == greatest { 1.0 } else { (greatest - least) / 255.0 };
            let scale = if scale == 0.0 { f32::MIN_POSITIVE } else { scale };
            let zero = (0.0 - least / scale).round_ties_even().clamp(0.0, 255.0);
            quantize(isa, values, scale, zero as i32, 0, &mut codes[..k]);
            rows.scales.push(if finite { scale } else { f32::NAN });
            rows.zeros.push(zero as i32);
        }
        if stride == 0 {
            rows.scales.resize(m, 1.0);
            rows.zeros.resize(m, 0);
        }
    }
}
