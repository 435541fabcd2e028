//! Element types: the one list of what a tensor may hold, and the macros that iterate it.
//!
//! Adding an element type is a row in [`for_each_dtype`] plus its numbers in [`DType`]'s tables.

use std::fmt;

use half::{bf16, f16};
use num_complex::Complex;

use super::narrow::{F4E2M1, F6E2M3, F6E3M2, F8E4M3Fn, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, I2, I4, U2, U4};
use super::tensor::Buffer;
use super::view::{Slice, SliceMut};

/// Calls `$callback!` with the list `Variant: type` of every element type.
macro_rules! for_each_dtype {
    ($callback:ident) => {
        $callback! {
            F32: f32, F64: f64, F16: f16, BF16: bf16,
            I8: i8, I16: i16, I32: i32, I64: i64,
            U8: u8, U16: u16, U32: u32, U64: u64,
            Bool: bool, String: String,
            F8E4M3Fn: F8E4M3Fn, F8E4M3Fnuz: F8E4M3Fnuz, F8E5M2: F8E5M2, F8E5M2Fnuz: F8E5M2Fnuz, F8E8M0: F8E8M0,
            F6E2M3: F6E2M3, F6E3M2: F6E3M2, F4E2M1: F4E2M1,
            I4: I4, U4: U4, I2: I2, U2: U2,
            C64: Complex<f32>, C128: Complex<f64>
        }
    };
}
pub(crate) use for_each_dtype;

/// Like [`with_dtype`] for the types that compute: integers of 8 bits and more, floats of 16 and more. `$other` is the
/// value for the rest.
macro_rules! with_number {
    ($dtype:expr, $t:ident => $body:expr, else $other:expr) => {{
        use $crate::engine::dtype::DType;
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            DType::F16 => {
                type $t = half::f16;
                $body
            }
            DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            DType::I8 => {
                type $t = i8;
                $body
            }
            DType::I16 => {
                type $t = i16;
                $body
            }
            DType::I32 => {
                type $t = i32;
                $body
            }
            DType::I64 => {
                type $t = i64;
                $body
            }
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            _ => $other,
        }
    }};
}
pub(crate) use with_number;

/// Like [`with_dtype`] for the types of [`narrow`](super::narrow); `$other` is the value for the rest.
macro_rules! with_narrow {
    ($dtype:expr, $t:ident => $body:expr, else $other:expr) => {{
        use $crate::engine::dtype::DType;
        match $dtype {
            DType::F8E4M3Fn => {
                type $t = $crate::engine::narrow::F8E4M3Fn;
                $body
            }
            DType::F8E4M3Fnuz => {
                type $t = $crate::engine::narrow::F8E4M3Fnuz;
                $body
            }
            DType::F8E5M2 => {
                type $t = $crate::engine::narrow::F8E5M2;
                $body
            }
            DType::F8E5M2Fnuz => {
                type $t = $crate::engine::narrow::F8E5M2Fnuz;
                $body
            }
            DType::F8E8M0 => {
                type $t = $crate::engine::narrow::F8E8M0;
                $body
            }
            DType::F6E2M3 => {
                type $t = $crate::engine::narrow::F6E2M3;
                $body
            }
            DType::F6E3M2 => {
                type $t = $crate::engine::narrow::F6E3M2;
                $body
            }
            DType::F4E2M1 => {
                type $t = $crate::engine::narrow::F4E2M1;
                $body
            }
            DType::I4 => {
                type $t = $crate::engine::narrow::I4;
                $body
            }
            DType::U4 => {
                type $t = $crate::engine::narrow::U4;
                $body
            }
            DType::I2 => {
                type $t = $crate::engine::narrow::I2;
                $body
            }
            DType::U2 => {
                type $t = $crate::engine::narrow::U2;
                $body
            }
            _ => $other,
        }
    }};
}
pub(crate) use with_narrow;

/// Runs `$body` with the type alias `$t` bound to the element type of a run-time [`DType`].
macro_rules! with_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::engine::dtype::DType;
        match $dtype {
            DType::Bool => {
                type $t = bool;
                $body
            }
            DType::String => {
                type $t = String;
                $body
            }
            DType::C64 => {
                type $t = num_complex::Complex<f32>;
                $body
            }
            DType::C128 => {
                type $t = num_complex::Complex<f64>;
                $body
            }
            other => $crate::engine::dtype::with_number!(other, $t => $body, else {
                $crate::engine::dtype::with_narrow!(other, $t => $body, else unreachable!("{other} is in none of the lists"))
            }),
        }
    }};
}
pub(crate) use with_dtype;

/// Like [`with_dtype`] for the types that a view of [`bits`](super::view::View::bits) has.
macro_rules! with_bits {
    ($dtype:expr, $t:ident => $body:expr) => {{
        use $crate::engine::dtype::DType;
        match $dtype {
            DType::U8 => {
                type $t = u8;
                $body
            }
            DType::U16 => {
                type $t = u16;
                $body
            }
            DType::U32 => {
                type $t = u32;
                $body
            }
            DType::U64 => {
                type $t = u64;
                $body
            }
            DType::Bool => {
                type $t = bool;
                $body
            }
            DType::String => {
                type $t = String;
                $body
            }
            DType::C128 => {
                type $t = num_complex::Complex<f64>;
                $body
            }
            other => unreachable!("{other} is no type of a view of bits"),
        }
    }};
}
pub(crate) use with_bits;

macro_rules! define_dtype {
    ($($variant:ident: $t:ty),*) => {
        /// The element type of a tensor.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "the variants are named after the types they hold")]
        pub enum DType { $($variant),* }

        impl DType {
            /// Every element type, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        $(impl Element for $t {
            const DTYPE: DType = DType::$variant;

            fn slice<'a>(slice: &Slice<'a>) -> Option<&'a [Self]> {
                match slice { Slice::$variant(s) => Some(s), _ => None }
            }

            fn slice_mut<'s>(slice: &'s mut SliceMut<'_>) -> Option<&'s mut [Self]> {
                match slice { SliceMut::$variant(s) => Some(s), _ => None }
            }

            fn buffer(values: Vec<Self>) -> Buffer { Buffer::$variant(values) }

            fn into_vec(buffer: Buffer) -> Option<Vec<Self>> {
                match buffer { Buffer::$variant(v) => Some(v), _ => None }
            }
        })*
    };
}
for_each_dtype!(define_dtype);

/// A Rust type that a tensor may hold.
pub trait Element: Clone + Default + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The run-time name of this type.
    const DTYPE: DType;
    /// The slice, if it holds this type.
    fn slice<'a>(slice: &Slice<'a>) -> Option<&'a [Self]>;
    /// The mutable slice, if it holds this type.
    fn slice_mut<'s>(slice: &'s mut SliceMut<'_>) -> Option<&'s mut [Self]>;
    /// A buffer that owns `values`.
    fn buffer(values: Vec<Self>) -> Buffer;
    /// The values of a buffer, if it holds this type.
    fn into_vec(buffer: Buffer) -> Option<Vec<Self>>;
}

/// One row of names per element type: (type, ONNX name, number in `TensorProto.DataType`, name in the Open Inference Protocol,
/// or after its manner where the protocol has none).
const NAMES: &[(DType, &str, i32, &str)] = &[
    (DType::F32, "float32", 1, "FP32"),
    (DType::U8, "uint8", 2, "UINT8"),
    (DType::I8, "int8", 3, "INT8"),
    (DType::U16, "uint16", 4, "UINT16"),
    (DType::I16, "int16", 5, "INT16"),
    (DType::I32, "int32", 6, "INT32"),
    (DType::I64, "int64", 7, "INT64"),
    (DType::String, "string", 8, "BYTES"),
    (DType::Bool, "bool", 9, "BOOL"),
    (DType::F16, "float16", 10, "FP16"),
    (DType::F64, "float64", 11, "FP64"),
    (DType::U32, "uint32", 12, "UINT32"),
    (DType::U64, "uint64", 13, "UINT64"),
    (DType::BF16, "bfloat16", 16, "BF16"),
    (DType::C64, "complex64", 14, "COMPLEX64"),
    (DType::C128, "complex128", 15, "COMPLEX128"),
    (DType::F8E4M3Fn, "float8e4m3fn", 17, "FLOAT8E4M3FN"),
    (DType::F8E4M3Fnuz, "float8e4m3fnuz", 18, "FLOAT8E4M3FNUZ"),
    (DType::F8E5M2, "float8e5m2", 19, "FLOAT8E5M2"),
    (DType::F8E5M2Fnuz, "float8e5m2fnuz", 20, "FLOAT8E5M2FNUZ"),
    (DType::U4, "uint4", 21, "UINT4"),
    (DType::I4, "int4", 22, "INT4"),
    (DType::F4E2M1, "float4e2m1", 23, "FLOAT4E2M1"),
    (DType::F8E8M0, "float8e8m0", 24, "FLOAT8E8M0"),
    (DType::U2, "uint2", 25, "UINT2"),
    (DType::I2, "int2", 26, "INT2"),
    (DType::F6E2M3, "float6e2m3", 27, "FLOAT6E2M3"),
    (DType::F6E3M2, "float6e3m2", 28, "FLOAT6E3M2"),
];

impl DType {
    fn row(self) -> &'static (Self, &'static str, i32, &'static str) {
        NAMES.iter().find(|row| row.0 == self).expect("every element type has a row in NAMES")
    }

    /// The name used in messages, as numpy and ONNX write it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number of this type in ONNX's `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        self.row().2
    }

    /// The type with this number in ONNX's `TensorProto.DataType`, if the engine has it.
    pub fn from_onnx(number: i32) -> Option<Self> {
        NAMES.iter().find(|row| row.2 == number).map(|row| row.0)
    }

    /// The name of this type in the Open Inference Protocol.
    pub fn oip(self) -> &'static str {
        self.row().3
    }

    /// The type with this name in the Open Inference Protocol.
    pub fn from_oip(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.3 == name).map(|row| row.0)
    }

    /// Bytes that one element takes in memory; for strings the size of the handle, without the text.
    pub fn size(self) -> usize {
        with_dtype!(self, T => size_of::<T>())
    }

    /// Bits that one element takes in a file.
    pub fn bits(self) -> usize {
        match self {
            Self::I2 | Self::U2 => 2,
            Self::I4 | Self::U4 | Self::F4E2M1 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            _ => 8 * self.size(),
        }
    }

    /// Whether this is a type of [`narrow`](super::narrow).
    pub fn is_narrow(self) -> bool {
        with_narrow!(self, T => size_of::<T>() == 1, else false)
    }

    /// Whether this is a floating-point type that computes: 16 bits and more.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_row_of_names() {
        for &dtype in DType::ALL {
            assert_eq!(NAMES.iter().filter(|row| row.0 == dtype).count(), 1, "{dtype:?}");
            assert_eq!(DType::from_onnx(dtype.onnx()), Some(dtype));
            assert_eq!(DType::from_oip(dtype.oip()), Some(dtype));
        }
        assert_eq!(DType::from_onnx(0), None);
    }
}
