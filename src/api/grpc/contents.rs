//! Typed contents: elements in the one field of `InferTensorContents` that their datatype has.
//!
//! Messages of errors continue the name of the input.

use axum::body::Bytes;

use super::super::infer::{elements, raw};
use super::proto::inference::InferTensorContents;
use crate::engine::{DType, Element, Slice, Tensor};

/// The fields, their names and how many elements each holds.
fn fields(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
}

/// The field that a datatype has; `None` for those that have only the raw form.
pub(super) fn field(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "bool_contents",
        DType::I8 | DType::I16 | DType::I32 => "int_contents",
        DType::I64 => "int64_contents",
        DType::U8 | DType::U16 | DType::U32 => "uint_contents",
        DType::U64 => "uint64_contents",
        DType::F32 => "fp32_contents",
        DType::F64 => "fp64_contents",
        DType::String => "bytes_contents",
        _ => return None,
    })
}

/// The tensor of `shape` that the contents are.
///
/// # Errors
/// If another field is set than that of `dtype`, the number of elements is not that of the shape, or one is out of the
/// datatype's range.
pub(super) fn decode(dtype: DType, shape: &[usize], contents: InferTensorContents) -> Result<Tensor, String> {
    let name = dtype.oip();
    let Some(own) = field(dtype) else { return Err(format!("is {name}, which has no typed contents; send raw_input_contents")) };
    if let Some((other, _)) = fields(&contents).into_iter().find(|&(field, len)| field != own && len > 0) {
        return Err(format!("is {name} and has {other}; {own} is wanted"));
    }
    let (wanted, given) = (elements(shape)?, fields(&contents).into_iter().map(|(_, len)| len).sum::<usize>());
    if given != wanted {
        return Err(format!("has {given} elements where shape {shape:?} wants {wanted}"));
    }
    let tensor = match dtype {
        DType::Bool => Tensor::new(shape, contents.bool_contents),
        DType::I8 => narrowed::<i8, _>(shape, contents.int_contents)?,
        DType::I16 => narrowed::<i16, _>(shape, contents.int_contents)?,
        DType::I32 => Tensor::new(shape, contents.int_contents),
        DType::I64 => Tensor::new(shape, contents.int64_contents),
        DType::U8 => narrowed::<u8, _>(shape, contents.uint_contents)?,
        DType::U16 => narrowed::<u16, _>(shape, contents.uint_contents)?,
        DType::U32 => Tensor::new(shape, contents.uint_contents),
        DType::U64 => Tensor::new(shape, contents.uint64_contents),
        DType::F32 => Tensor::new(shape, contents.fp32_contents),
        DType::F64 => Tensor::new(shape, contents.fp64_contents),
        _ => {
            let texts = contents.bytes_contents.iter().enumerate().map(|(index, bytes)| raw::utf8(bytes, index));
            Tensor::new(shape, texts.collect::<Result<Vec<String>, _>>()?)
        }
    };
    Ok(tensor.expect("the elements were counted"))
}

fn narrowed<T: Element + TryFrom<W>, W: Copy + std::fmt::Display>(shape: &[usize], wide: Vec<W>) -> Result<Option<Tensor>, String> {
    let narrow = |(index, &value): (usize, &W)| {
        T::try_from(value).map_err(|_| format!("has {value} at element {index}, which is out of the range of {}", T::DTYPE.oip()))
    };
    let values = wide.iter().enumerate().map(narrow).collect::<Result<Vec<T>, _>>()?;
    Ok(Tensor::new(shape, values))
}

/// The contents that a tensor is; `None` if its datatype has only the raw form.
pub(super) fn encode(tensor: &Tensor) -> Option<InferTensorContents> {
    fn widened<T: Copy + Into<W>, W>(values: &[T]) -> Vec<W> {
        values.iter().map(|&value| value.into()).collect()
    }
    let mut contents = InferTensorContents::default();
    match tensor.data() {
        Slice::Bool(values) => contents.bool_contents = values.to_vec(),
        Slice::I8(values) => contents.int_contents = widened(values),
        Slice::I16(values) => contents.int_contents = widened(values),
        Slice::I32(values) => contents.int_contents = values.to_vec(),
        Slice::I64(values) => contents.int64_contents = values.to_vec(),
        Slice::U8(values) => contents.uint_contents = widened(values),
        Slice::U16(values) => contents.uint_contents = widened(values),
        Slice::U32(values) => contents.uint_contents = values.to_vec(),
        Slice::U64(values) => contents.uint64_contents = values.to_vec(),
        Slice::F32(values) => contents.fp32_contents = values.to_vec(),
        Slice::F64(values) => contents.fp64_contents = values.to_vec(),
        Slice::String(texts) => contents.bytes_contents = texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect(),
        _ => return None,
    }
    Some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_with_a_field_comes_back_as_it_was() {
        let tensors = [
            Tensor::vector(vec![true, false]),
            Tensor::vector(vec![i8::MIN, i8::MAX]),
            Tensor::vector(vec![i16::MIN, i16::MAX]),
            Tensor::vector(vec![i32::MIN, i32::MAX]),
            Tensor::vector(vec![i64::MIN, i64::MAX]),
            Tensor::vector(vec![0, u8::MAX]),
            Tensor::vector(vec![0, u16::MAX]),
            Tensor::vector(vec![0, u32::MAX]),
            Tensor::vector(vec![0, u64::MAX]),
            Tensor::vector(vec![-0.0_f32, f32::MIN_POSITIVE]),
            Tensor::vector(vec![-0.0_f64, f64::MIN_POSITIVE]),
            Tensor::vector(vec![String::new(), "naïve".to_owned()]),
            Tensor::zeros(DType::F32, &[2, 0]),
        ];
        for tensor in tensors {
            let contents = encode(&tensor).unwrap();
            let (own, len) = fields(&contents).into_iter().max_by_key(|&(_, len)| len).unwrap();
            assert!(len == 0 || Some(own) == field(tensor.dtype()), "{tensor:?}");
            assert_eq!(decode(tensor.dtype(), tensor.shape(), contents).unwrap(), tensor);
        }
        for dtype in [DType::F16, DType::BF16] {
            assert!(encode(&Tensor::zeros(dtype, &[1])).is_none());
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let ints = |values: &[i32]| InferTensorContents { int_contents: values.to_vec(), ..Default::default() };
        let message = |dtype, shape: &[usize], contents| decode(dtype, shape, contents).unwrap_err();
        assert_eq!(message(DType::F32, &[1], ints(&[1])), "is FP32 and has int_contents; fp32_contents is wanted");
        assert_eq!(message(DType::I32, &[3], ints(&[1])), "has 1 elements where shape [3] wants 3");
        assert_eq!(message(DType::I8, &[2], ints(&[1, 128])), "has 128 at element 1, which is out of the range of INT8");
        assert_eq!(message(DType::F16, &[1], ints(&[1])), "is FP16, which has no typed contents; send raw_input_contents");
        let bytes = InferTensorContents { bytes_contents: vec![Bytes::from_static(b"\xff")], ..Default::default() };
        assert!(message(DType::String, &[1], bytes).contains("element 0"));
        assert!(message(DType::F32, &[usize::MAX, 2], InferTensorContents::default()).contains("total element count"));
    }
}
