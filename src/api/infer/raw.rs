//! A tensor's values as the binary forms of the protocols have them: row-major, little-endian, no padding.
//!
//! BOOL takes a byte, 0 or 1. An element of BYTES is its length as a `u32` and then its bytes, which must be UTF-8: the engine
//! computes with text.

use axum::body::Bytes;
use bytemuck::{AnyBitPattern, NoUninit};
use half::{bf16, f16};

use super::elements;
use crate::engine::{Buffer, DType, Element, Slice, Tensor, from_bytes};

#[cfg(target_endian = "big")]
compile_error!("the binary forms are little-endian, and so must the machine be");

/// Whether the protocols have a binary form for a type.
pub(in crate::api) fn has_form(dtype: DType) -> bool {
    dtype.bits() >= 8 && !dtype.is_narrow() && !matches!(dtype, DType::C64 | DType::C128)
}

/// The tensor that `bytes` are. Numbers are copied once. A message continues the name of the input.
///
/// # Errors
/// If the number of bytes is not that of the shape, or an element has no value of the type.
pub fn decode(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let count = elements(shape)?;
    let expected = |count: usize| {
        let wanted = count * dtype.size();
        let wrong = || format!("has {} bytes where shape {shape:?} of {} wants {wanted}", bytes.len(), dtype.oip());
        if bytes.len() == wanted { Ok(()) } else { Err(wrong()) }
    };
    let buffer = match dtype {
        DType::String => Buffer::String(texts(bytes, count, shape)?),
        _ if !has_form(dtype) => return Err(format!("is {}, which has no binary form", dtype.oip())),
        _ => {
            expected(count)?;
            match dtype {
                DType::F32 => numbers::<f32>(bytes),
                DType::F64 => numbers::<f64>(bytes),
                DType::F16 => numbers::<f16>(bytes),
                DType::BF16 => numbers::<bf16>(bytes),
                DType::I8 => numbers::<i8>(bytes),
                DType::I16 => numbers::<i16>(bytes),
                DType::I32 => numbers::<i32>(bytes),
                DType::I64 => numbers::<i64>(bytes),
                DType::U8 => numbers::<u8>(bytes),
                DType::U16 => numbers::<u16>(bytes),
                DType::U32 => numbers::<u32>(bytes),
                DType::U64 => numbers::<u64>(bytes),
                DType::Bool => Buffer::Bool(flags(bytes)?),
                _ => unreachable!("it has a binary form"),
            }
        }
    };
    Ok(buffer.into_tensor(shape).expect("the elements were counted"))
}

/// One copy, whatever the alignment: the values of a request begin where its JSON ends.
fn numbers<T: Element + AnyBitPattern>(bytes: &[u8]) -> Buffer {
    T::buffer(from_bytes(bytes))
}

fn flags(bytes: &[u8]) -> Result<Vec<bool>, String> {
    match bytes.iter().position(|&byte| byte > 1) {
        None => Ok(bytes.iter().map(|&byte| byte == 1).collect()),
        Some(wrong) => Err(format!("has {} at element {wrong} where 0 or 1 (BOOL) is wanted", bytes[wrong])),
    }
}

fn texts(bytes: &[u8], count: usize, shape: &[usize]) -> Result<Vec<String>, String> {
    const LENGTH: usize = size_of::<u32>();
    // The bytes bound how many there can be, whatever the shape promises.
    let mut texts = Vec::with_capacity(count.min(bytes.len() / LENGTH));
    let mut rest = bytes;
    while !rest.is_empty() {
        let index = texts.len();
        let cut = || format!("ends within element {index}: each is its length (uint32, little-endian) and so many bytes");
        let (length, behind) = rest.split_first_chunk::<LENGTH>().ok_or_else(cut)?;
        let (text, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(cut)?;
        texts.push(utf8(text, index)?);
        rest = behind;
    }
    if texts.len() == count { Ok(texts) } else { Err(format!("has {} elements where shape {shape:?} wants {count}", texts.len())) }
}

/// An element of BYTES as text.
///
/// # Errors
/// If it is none.
pub(in crate::api) fn utf8(bytes: &[u8], index: usize) -> Result<String, String> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|error| format!("has no UTF-8 text at element {index}: byte {} of it", error.valid_up_to()))
}

/// The values of a tensor, without a copy of numbers; `None` if the type has no binary form.
pub fn encode(tensor: &Tensor) -> Option<Bytes> {
    if let Slice::String(texts) = tensor.data() {
        let mut bytes = Vec::with_capacity(tensor.text_bytes() + size_of::<u32>() * texts.len());
        for text in texts {
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        return Some(bytes.into());
    }
    has_form(tensor.dtype()).then(|| Bytes::from_owner(Numbers(tensor.clone())))
}

/// A tensor of numbers that is sent as it lies in memory.
struct Numbers(Tensor);

impl AsRef<[u8]> for Numbers {
    fn as_ref(&self) -> &[u8] {
        fn cast<T: NoUninit>(values: &[T]) -> &[u8] {
            bytemuck::cast_slice(values)
        }
        match self.0.data() {
            Slice::F32(values) => cast(values),
            Slice::F64(values) => cast(values),
            Slice::F16(values) => cast(values),
            Slice::BF16(values) => cast(values),
            Slice::I8(values) => cast(values),
            Slice::I16(values) => cast(values),
            Slice::I32(values) => cast(values),
            Slice::I64(values) => cast(values),
            Slice::U8(values) => values,
            Slice::U16(values) => cast(values),
            Slice::U32(values) => cast(values),
            Slice::U64(values) => cast(values),
            Slice::Bool(values) => cast(values),
            _ => unreachable!("it has a binary form"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_with_a_binary_form_goes_in_and_out_aligned_or_not() {
        for &dtype in DType::ALL.iter().filter(|&&dtype| has_form(dtype) && dtype != DType::String) {
            let size = dtype.size();
            let pattern: Vec<u8> =
                (0..6 * size).map(|i| if dtype == DType::Bool { i as u8 & 1 } else { (i as u8).wrapping_mul(37) }).collect();
            for shift in 0..8 {
                let padded = [vec![0; shift], pattern.clone()].concat();
                let tensor = decode(dtype, &[2, 3], &padded[shift..]).unwrap();
                assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[2, 3][..]));
                assert_eq!(encode(&tensor).unwrap(), pattern, "{dtype} at {shift}");
            }
            assert!(decode(dtype, &[0, 3], &[]).unwrap().is_empty());
            let wrong = decode(dtype, &[2, 3], &pattern[1..]).unwrap_err();
            assert!(wrong.contains(&format!("has {} bytes where shape [2, 3] of {} wants {}", 6 * size - 1, dtype.oip(), 6 * size)));
        }
        assert_eq!(DType::ALL.iter().filter(|&&dtype| has_form(dtype)).count(), 14);
    }

    #[test]
    fn values_are_little_endian() {
        let tensor = decode(DType::I32, &[2], &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!(tensor, Tensor::vector(vec![1_i32, -2]));
        let half = decode(DType::F16, &[1], &[0x00, 0x3c]).unwrap();
        assert_eq!(half, Tensor::vector(vec![f16::ONE]));
    }

    #[test]
    fn text_has_its_length_in_front() {
        let bytes = b"\x03\0\0\0a\xc3\xa9\0\0\0\0";
        let tensor = decode(DType::String, &[2, 1], bytes).unwrap();
        assert_eq!(tensor, Tensor::new(&[2, 1], vec!["aé".to_owned(), String::new()]).unwrap());
        assert_eq!(encode(&tensor).unwrap(), &bytes[..]);
        assert!(decode(DType::String, &[0], b"").unwrap().is_empty());
        for (bytes, want) in [
            (&b"\x03\0\0\0ab"[..], "ends within element 0"),
            (b"\x01\0\0\0a\x01\0", "ends within element 1"),
            (b"\x01\0\0\0a", "has 1 elements where shape [2] wants 2"),
            (b"\x01\0\0\0a\0\0\0\0\0\0\0\0", "has 3 elements where shape [2] wants 2"),
            (b"\x01\0\0\0a\x02\0\0\0a\xff", "has no UTF-8 text at element 1: byte 1 of it"),
        ] {
            let message = decode(DType::String, &[2], bytes).unwrap_err();
            assert!(message.starts_with(want), "{message}");
        }
    }

    #[test]
    fn what_has_no_value_is_refused() {
        assert_eq!(decode(DType::Bool, &[3], &[0, 1, 2]).unwrap_err(), "has 2 at element 2 where 0 or 1 (BOOL) is wanted");
        assert_eq!(decode(DType::C64, &[1], &[0; 8]).unwrap_err(), "is COMPLEX64, which has no binary form");
        assert!(decode(DType::I4, &[1], &[0]).is_err() && encode(&Tensor::zeros(DType::I4, &[1])).is_none());
        assert!(decode(DType::F32, &[1 << 62, 1 << 62], &[]).unwrap_err().contains("total element count"));
    }
}
