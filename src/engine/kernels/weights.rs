//! A constant right-hand matrix in the precision that the model is to have.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::bf16::{PackedBf16, gemm_bf16_columns};
use super::codes::{CodeBits, PackedCodes};
use super::epilogue::Epilogue;
use super::gemm::{PackedB, gemm_packed_b_columns};
use super::int8::{self, DynamicInt8};
use super::isa::Isa;
use super::limits::Arithmetic;
use super::stored::Source;

/// In which arithmetic products with constant weights are taken; everything else is computed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// All operands as they are.
    #[default]
    F32,
    /// Both operands rounded to bf16 (8 bits of mantissa), sums in f32.
    Bf16,
    /// Both operands of matrix products rounded to 8-bit integers with a scale for each row of activations and each column of
    /// weights, sums exact; convolutions as they are.
    Int8,
    /// Weights of matrix products rounded to 8-bit integers, with a scale for each group of neighbours in a column; activations and sums
    /// in f32; convolutions as they are.
    Int8Weights,
    /// The same with 4-bit integers.
    Int4Weights,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Precision; 5] = [Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int8Weights, Precision::Int4Weights];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int8Weights => "int8-weights",
            Precision::Int4Weights => "int4-weights",
        })
    }
}

/// A name that is none of `f32`, `bf16`, `int8`, `int8-weights`, `int4-weights`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPrecision(String);

impl fmt::Display for UnknownPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "precision `{}` is not supported; supported are f32, bf16, int8, int8-weights and int4-weights", self.0)
    }
}

impl std::error::Error for UnknownPrecision {}

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Precision, UnknownPrecision> {
        Precision::ALL.into_iter().find(|precision| precision.to_string() == name).ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}

/// A matrix `b[k, n]`, packed once at load.
#[derive(Clone, Debug)]
pub enum Weights {
    /// As it is.
    F32(PackedB),
    /// Rounded.
    Bf16(PackedBf16),
    /// As 8-bit codes, which are multiplied with those of activations.
    Int8(DynamicInt8),
    /// As codes, which become numbers where they are multiplied.
    Codes(PackedCodes),
}

impl Weights {
    /// Packs `b`, which is `[k, n]` row-major, or `[n, k]` if `transposed`. A matrix that has no codes, for it holds NaN or infinity,
    /// stays as it is at `int8-weights` and `int4-weights`. Panics unless there are `k * n` numbers and the instruction set is available.
    pub fn pack(precision: Precision, isa: Isa, b: &(impl Source + ?Sized), k: usize, n: usize, transposed: bool) -> Weights {
        let codes = |bits| match PackedCodes::pack(isa, bits, b, k, n, transposed) {
            Some(codes) => Weights::Codes(codes),
            None => Weights::F32(PackedB::pack(isa, b, k, n, transposed)),
        };
        match precision {
            Precision::F32 => Weights::F32(PackedB::pack(isa, b, k, n, transposed)),
            Precision::Bf16 => Weights::Bf16(PackedBf16::pack(isa, b, k, n, transposed)),
            Precision::Int8 => Weights::Int8(DynamicInt8::pack(isa, b, k, n, transposed)),
            Precision::Int8Weights => codes(CodeBits::Eight),
            Precision::Int4Weights => codes(CodeBits::Four),
        }
    }

    /// Rows: the length of the sums.
    pub fn k(&self) -> usize {
        match self {
            Weights::F32(b) => b.k(),
            Weights::Bf16(b) => b.k(),
            Weights::Int8(b) => b.k(),
            Weights::Codes(b) => b.k(),
        }
    }

    /// Columns.
    pub fn n(&self) -> usize {
        match self {
            Weights::F32(b) => b.n(),
            Weights::Bf16(b) => b.n(),
            Weights::Int8(b) => b.n(),
            Weights::Codes(b) => b.n(),
        }
    }

    /// What the factors of its products are.
    pub fn arithmetic(&self) -> Arithmetic {
        match self {
            Weights::F32(_) | Weights::Codes(_) => Arithmetic::F32,
            Weights::Bf16(_) => Arithmetic::Bf16,
            Weights::Int8(_) => Arithmetic::Int8,
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Weights::F32(b) => b.bytes(),
            Weights::Bf16(b) => b.bytes(),
            Weights::Int8(b) => b.bytes(),
            Weights::Codes(b) => b.bytes(),
        }
    }

    /// Columns per panel: where column ranges given to [`Weights::multiply_columns`] may start and end.
    pub fn panel_width(&self) -> usize {
        match self {
            Weights::F32(b) => b.panel_width(),
            Weights::Bf16(b) => b.panel_width(),
            Weights::Int8(_) => int8::PANEL,
            Weights::Codes(b) => b.panel_width(),
        }
    }

    /// `c[m, n] = epilogue(a[m, k] · b)`; both dense. Panics if a slice is too short.
    pub fn multiply(&self, a: &[f32], m: usize, c: &mut [f32], epilogue: &Epilogue<'_>) {
        self.multiply_columns(a, m, 0..self.n(), c, self.n(), epilogue);
    }

    /// Some columns of [`Weights::multiply`]: `c` holds only those, its rows `ldc` apart. The range starts and ends at a
    /// multiple of [`Weights::panel_width`], or ends at `n`. A bias per column still has length `n`.
    pub fn multiply_columns(&self, a: &[f32], m: usize, columns: Range<usize>, c: &mut [f32], ldc: usize, epilogue: &Epilogue<'_>) {
        match self {
            Weights::F32(b) => gemm_packed_b_columns(a, b.k(), m, b, columns, c, ldc, epilogue),
            Weights::Bf16(b) => gemm_bf16_columns(a, b.k(), m, b, columns, c, ldc, epilogue),
            Weights::Int8(b) => b.multiply_columns(a, b.k(), m, columns, c, ldc, epilogue),
            Weights::Codes(b) => b.multiply_columns(a, b.k(), m, columns, c, ldc, epilogue),
        }
    }
}
