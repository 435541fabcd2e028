//! `TensorProto` to [`Tensor`] and back: every encoding of the elements that ONNX allows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use half::{bf16, f16};
use num_complex::Complex;

use super::passed::Passed;
use super::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use crate::engine::dtype::{DType, with_narrow};
use crate::engine::kernels::bytes::from_bytes;
use crate::engine::narrow::Narrow as _;
use crate::engine::tensor::{Buffer, Tensor};
use crate::engine::view::Slice;

#[cfg(target_endian = "big")]
compile_error!("ONNX stores little-endian numbers; a big-endian machine needs a byte swap here");

/// The tensor that `proto` describes; it may take at most `limit` bytes and have no external data.
///
/// # Errors
/// As [`decode_with`].
pub(crate) fn decode_tensor(proto: &TensorProto, limit: usize) -> Result<Tensor, String> {
    decode_with(proto, &External::new(None, limit))
}

/// The tensor that `proto` describes.
///
/// # Errors
/// A message that names the tensor: unknown type, dimensions that do not fit the data, data that cannot be read, or external data that is
/// missing, too short, or outside the folder.
pub(crate) fn decode_with(proto: &TensorProto, external: &External<'_>) -> Result<Tensor, String> {
    decode(proto, external, Reading::Now)
}

/// As [`decode_with`] for a weight of a graph, whose elements may stay in the file until somebody looks at them: whoever has the graph calls
/// [`WeightFile::finish`].
pub(crate) fn decode_weight(proto: &TensorProto, external: &External<'_>) -> Result<Tensor, String> {
    decode(proto, external, Reading::Later)
}

/// When elements are read that were passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Now,
    Later,
}

fn decode(proto: &TensorProto, external: &External<'_>, reading: Reading) -> Result<Tensor, String> {
    let name = proto.name();
    let dtype = element_type(proto)?;
    if proto.segment.is_some() {
        return Err(format!("tensor `{name}` is a segment of a larger one, which is not supported"));
    }
    let (shape, len) = checked_shape(name, &proto.dims, dtype, external.limit)?;
    if proto.data_location() == DataLocation::External {
        return external.tensor(proto, dtype, &shape, len);
    }
    let raw = match &proto.raw_data {
        Some(raw) if dtype != DType::String && !raw.is_empty() => raw,
        _ => return from_typed(proto, dtype, &shape, len),
    };
    let Some((file, (offset, bytes))) = external.passed.as_ref().and_then(|passed| Some((passed.file(), passed.range(raw)?))) else {
        return from_raw(name, dtype, &shape, len, raw);
    };
    check_bytes(name, dtype, &shape, bytes)?;
    if dtype == DType::F32 && reading == Reading::Later {
        return Tensor::in_file(file, offset, &shape).ok_or_else(|| wrong_count(name, &shape, len, len));
    }
    let mut raw = vec![0; bytes];
    file.read_now(&mut raw, offset).map_err(|error| format!("tensor `{name}`: the file cannot be read: {error}"))?;
    from_raw(name, dtype, &shape, len, &raw)
}

/// The dense tensor of a sparse one: `values` at `indices` (linear, or one row of coordinates each), zero elsewhere.
///
/// # Errors
/// As [`decode_with`], and for indices that are out of range.
pub(crate) fn decode_sparse(proto: &SparseTensorProto, external: &External<'_>) -> Result<Tensor, String> {
    let (Some(values), Some(indices)) = (&proto.values, &proto.indices) else {
        return Err("a sparse tensor without values or indices".into());
    };
    let name = values.name();
    let (values, indices) = (decode_with(values, external)?, decode_with(indices, external)?);
    let (shape, len) = checked_shape(name, &proto.dims, values.dtype(), external.limit)?;
    // A few bytes of file may stand for any number of zeros: all of a model's together have a limit.
    external
        .spend_zeros(len.saturating_mul(values.dtype().size()))
        .map_err(|()| format!("sparse tensor `{name}` of shape {shape:?} is too large"))?;
    let Some(indices_i64) = indices.slice::<i64>() else { return Err(format!("sparse tensor `{name}` has indices that are not int64")) };
    let out_of_range = |index: &[i64]| format!("sparse tensor `{name}` of shape {shape:?} has the index {index:?}");
    let count = values.len();
    let positions: Vec<usize> = match *indices.shape() {
        [n] if n == count => {
            let position = |&index: &i64| usize::try_from(index).ok().filter(|&i| i < len).ok_or_else(|| out_of_range(&[index]));
            indices_i64.iter().map(position).collect::<Result<_, _>>()?
        }
        [n, rank] if n == count && rank == shape.len() && rank > 0 => {
            let position = |row: &[i64]| {
                let fold = row
                    .iter()
                    .zip(&shape)
                    .try_fold(0_usize, |at, (&i, &dim)| usize::try_from(i).ok().filter(|&i| i < dim).map(|i| at * dim + i));
                fold.ok_or_else(|| out_of_range(row))
            };
            indices_i64.chunks_exact(rank).map(position).collect::<Result<_, _>>()?
        }
        _ => return Err(format!("sparse tensor `{name}` has {count} values and indices of shape {:?}", indices.shape())),
    };
    let mut dense = Buffer::new(values.dtype());
    dense.grow(len);
    let mut to = dense.slice_mut(len);
    for (i, position) in positions.into_iter().enumerate() {
        to.copy_from(position, &values.data().range(i..i + 1));
    }
    Ok(dense.into_tensor(&shape).expect("grown to the shape's length"))
}

fn element_type(proto: &TensorProto) -> Result<DType, String> {
    let number = proto.data_type();
    DType::from_onnx(number).ok_or_else(|| format!("tensor `{}` has element type {number}, which is not supported", proto.name()))
}

/// The shape and the number of elements, if they take at most `limit` bytes.
fn checked_shape(name: &str, dims: &[i64], dtype: DType, limit: usize) -> Result<(Vec<usize>, usize), String> {
    let shape: Vec<usize> = dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("tensor `{name}` has the negative dimension {d}")))
        .collect::<Result<_, _>>()?;
    match crate::engine::op::checked_len(&shape, dtype.size(), limit) {
        Ok(len) => Ok((shape, len)),
        Err(_) => Err(format!("tensor `{name}` of shape {shape:?} exceeds the memory limit of {limit} bytes")),
    }
}

/// Bytes that `len` elements take in a file, where types below 8 bits are packed.
fn packed_bytes(dtype: DType, len: usize) -> usize {
    match dtype.bits() {
        bits @ ..8 => (len * bits).div_ceil(8),
        bits => len * (bits / 8),
    }
}

/// The elements of a type of [`narrow`](crate::engine::narrow), packed from the low bits up: no element of 2 or 4 bits
/// lies across two bytes, those of 6 bits are one stream of bits.
fn unpack(dtype: DType, shape: &[usize], raw: &[u8]) -> Option<Tensor> {
    let len: usize = shape.iter().product();
    let bits = dtype.bits();
    let element = |i: usize| {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let next = raw.get(byte + 1).copied().unwrap_or(0);
        (u16::from_le_bytes([raw[byte], next]) >> shift) as u8 & (u8::MAX >> (8 - bits))
    };
    with_narrow!(dtype, T => Tensor::new(shape, (0..len).map(|i| T::from_raw(element(i))).collect()), else None)
}

/// The inverse of [`unpack`]; `None` for the other types.
fn pack(tensor: &Tensor) -> Option<Vec<u8>> {
    let bits = tensor.dtype().bits();
    let mut packed = vec![0_u8; packed_bytes(tensor.dtype(), tensor.len())];
    with_narrow!(tensor.dtype(), T => {
        for (i, value) in tensor.slice::<T>().expect("matched on the type").iter().enumerate() {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let [low, high] = (u16::from(value.to_raw()) << shift).to_le_bytes();
            packed[byte] |= low;
            if high != 0 {
                packed[byte + 1] |= high;
            }
        }
        Some(packed)
    }, else None)
}

fn wrong_count(name: &str, shape: &[usize], len: usize, found: usize) -> String {
    format!("tensor `{name}` of shape {shape:?} needs {len} elements and has {found}")
}

/// Whether elements of `shape` take `bytes` in a file.
fn check_bytes(name: &str, dtype: DType, shape: &[usize], bytes: usize) -> Result<(), String> {
    match packed_bytes(dtype, shape.iter().product()) {
        needed if needed == bytes => Ok(()),
        needed => Err(format!("tensor `{name}` of shape {shape:?} needs {needed} bytes and has {bytes}")),
    }
}

fn from_raw(name: &str, dtype: DType, shape: &[usize], len: usize, raw: &[u8]) -> Result<Tensor, String> {
    fn numbers<T: bytemuck::AnyBitPattern + crate::engine::dtype::Element>(shape: &[usize], raw: &[u8]) -> Option<Tensor> {
        Tensor::new(shape, from_bytes::<T>(raw))
    }
    check_bytes(name, dtype, shape, raw.len())?;
    if let Some(tensor) = unpack(dtype, shape, raw) {
        return Ok(tensor);
    }
    let tensor = match dtype {
        DType::F32 => numbers::<f32>(shape, raw),
        DType::F64 => numbers::<f64>(shape, raw),
        DType::F16 => numbers::<f16>(shape, raw),
        DType::BF16 => numbers::<bf16>(shape, raw),
        DType::I8 => numbers::<i8>(shape, raw),
        DType::I16 => numbers::<i16>(shape, raw),
        DType::I32 => numbers::<i32>(shape, raw),
        DType::I64 => numbers::<i64>(shape, raw),
        DType::U8 => numbers::<u8>(shape, raw),
        DType::U16 => numbers::<u16>(shape, raw),
        DType::U32 => numbers::<u32>(shape, raw),
        DType::U64 => numbers::<u64>(shape, raw),
        DType::Bool => Tensor::new(shape, raw.iter().map(|&b| b != 0).collect()),
        DType::C64 => numbers::<Complex<f32>>(shape, raw),
        DType::C128 => numbers::<Complex<f64>>(shape, raw),
        _ => return Err(format!("tensor `{name}` has {dtype} as raw bytes")),
    };
    tensor.ok_or_else(|| wrong_count(name, shape, len, raw.len() / dtype.size()))
}

/// The typed fields of `TensorProto`: each element type has one that holds it, see the comments in the schema.
fn from_typed(proto: &TensorProto, dtype: DType, shape: &[usize], len: usize) -> Result<Tensor, String> {
    let ints = &proto.int32_data;
    let text =
        |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).map_err(|_| format!("tensor `{}` has a string that is not UTF-8", proto.name()));
    if dtype.is_narrow() {
        // Each int32 holds a byte as it would lie in `raw_data`.
        let raw: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
        return from_raw(proto.name(), dtype, shape, len, &raw);
    }
    // Types below 32 bits are stored one per int32; the cast takes the low bits, where they are.
    let (tensor, found) = match dtype {
        DType::F32 => (Tensor::new(shape, proto.float_data.clone()), proto.float_data.len()),
        DType::F64 => (Tensor::new(shape, proto.double_data.clone()), proto.double_data.len()),
        DType::I64 => (Tensor::new(shape, proto.int64_data.clone()), proto.int64_data.len()),
        DType::U64 => (Tensor::new(shape, proto.uint64_data.clone()), proto.uint64_data.len()),
        DType::U32 => (Tensor::new(shape, proto.uint64_data.iter().map(|&v| v as u32).collect()), proto.uint64_data.len()),
        DType::I32 => (Tensor::new(shape, ints.clone()), ints.len()),
        DType::I16 => (Tensor::new(shape, ints.iter().map(|&v| v as i16).collect()), ints.len()),
        DType::I8 => (Tensor::new(shape, ints.iter().map(|&v| v as i8).collect()), ints.len()),
        DType::U16 => (Tensor::new(shape, ints.iter().map(|&v| v as u16).collect()), ints.len()),
        DType::U8 => (Tensor::new(shape, ints.iter().map(|&v| v as u8).collect()), ints.len()),
        DType::Bool => (Tensor::new(shape, ints.iter().map(|&v| v != 0).collect()), ints.len()),
        DType::F16 => (Tensor::new(shape, ints.iter().map(|&v| f16::from_bits(v as u16)).collect()), ints.len()),
        DType::BF16 => (Tensor::new(shape, ints.iter().map(|&v| bf16::from_bits(v as u16)).collect()), ints.len()),
        DType::C64 => (Tensor::new(shape, pairs(&proto.float_data)), proto.float_data.len() / 2),
        DType::C128 => (Tensor::new(shape, pairs(&proto.double_data)), proto.double_data.len() / 2),
        DType::String => (Tensor::new(shape, proto.string_data.iter().map(text).collect::<Result<_, _>>()?), proto.string_data.len()),
        _ => return Err(format!("tensor `{}` has the element type {dtype} in no field that it knows", proto.name())),
    };
    tensor.ok_or_else(|| wrong_count(proto.name(), shape, len, found))
}

fn pairs<T: Copy>(values: &[T]) -> Vec<Complex<T>> {
    values.chunks_exact(2).map(|pair| Complex { re: pair[0], im: pair[1] }).collect()
}

/// Where tensors come from that are not in the model file, and how much they may take.
pub(crate) struct External<'a> {
    folder: Option<&'a Path>,
    limit: usize,
    /// Bytes of zeros that sparse tensors may still stand for.
    zeros: Cell<usize>,
    files: RefCell<HashMap<String, Opened>>,
    /// What was passed over of the model file itself.
    passed: Option<Passed>,
}

/// A file with weights.
struct Opened {
    file: File,
    size: u64,
    /// Bytes that may still be read: twice the file, so that a small model cannot name the same bytes again and again in
    /// ranges that overlap.
    left: u64,
    /// What was read so far by offset, length and type: tensors with the same bytes share them.
    tensors: HashMap<(u64, u64, DType), Tensor>,
}

impl<'a> External<'a> {
    /// External data lies in `folder` or below, if there may be any; a tensor takes at most `limit` bytes.
    pub(crate) fn new(folder: Option<&'a Path>, limit: usize) -> Self {
        Self { folder, limit, zeros: Cell::new(limit / 8), files: RefCell::default(), passed: None }
    }

    /// The same for a file of which large tensors were passed over.
    pub(crate) fn with_passed(self, passed: Passed) -> Self {
        Self { passed: Some(passed), ..self }
    }

    fn spend_zeros(&self, bytes: usize) -> Result<(), ()> {
        self.zeros.set(self.zeros.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }

    fn tensor(&self, proto: &TensorProto, dtype: DType, shape: &[usize], len: usize) -> Result<Tensor, String> {
        let name = proto.name();
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("tensor `{name}`: external data has the {key} `{text}`")),
        };
        let folder = self.folder.ok_or_else(|| format!("tensor `{name}` has external data, which is not allowed here"))?;
        let location = entry("location").ok_or_else(|| format!("tensor `{name}` has external data without a location"))?;
        let needed = packed_bytes(dtype, len) as u64;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(needed));
        let mut files = self.files.borrow_mut();
        if !files.contains_key(location) {
            let opened =
                open_inside(folder, location).map_err(|reason| format!("tensor `{name}`: external data at `{location}` {reason}"))?;
            files.insert(location.to_owned(), opened);
        }
        let opened = files.get_mut(location).expect("inserted above");
        let size = opened.size;
        if length != needed || offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(format!("tensor `{name}` needs {needed} bytes; external data has {length} at {offset} of a file of {size} bytes"));
        }
        let key = (offset, length, dtype);
        if !opened.tensors.contains_key(&key) {
            opened.left = opened.left.checked_sub(length).ok_or_else(|| {
                format!("tensor `{name}`: the tensors of `{location}` overlap; together they are larger than twice the file")
            })?;
            let tensor = opened.read(offset, dtype, len).map_err(|e| format!("tensor `{name}`: external data at `{location}`: {e}"))?;
            opened.tensors.insert(key, tensor);
        }
        opened.tensors[&key].reshape(shape).ok_or_else(|| wrong_count(name, shape, len, len))
    }
}

impl Opened {
    /// A vector of `len` elements from `offset` on, read straight into its storage.
    fn read(&mut self, offset: u64, dtype: DType, len: usize) -> Result<Tensor, String> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
        macro_rules! read {
            ($($variant:ident: $t:ty),*) => {
                match dtype {
                    $(DType::$variant => {
                        let mut values: Vec<$t> = vec![bytemuck::Zeroable::zeroed(); len];
                        self.file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(|e| e.to_string())?;
                        Ok(Tensor::vector(values))
                    })*
                    DType::String => Err("strings cannot be external".into()),
                    _ => {
                        let mut raw = vec![0; packed_bytes(dtype, len)];
                        self.file.read_exact(&mut raw).map_err(|e| e.to_string())?;
                        from_raw("", dtype, &[len], len, &raw)
                    }
                }
            };
        }
        read!(F32: f32, F64: f64, F16: f16, BF16: bf16, I8: i8, I16: i16, I32: i32, I64: i64, U8: u8, U16: u16, U32: u32, U64: u64)
    }
}

/// Opens a file of the model's folder; or what is wrong with `location`.
fn open_inside(folder: &Path, location: &str) -> Result<Opened, String> {
    let outside = || "is not a file inside the model's folder".to_owned();
    let relative = Path::new(location);
    if location.contains('\0') || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(outside());
    }
    // A symbolic link may lead out of the folder too: compare where the paths really end.
    let root = folder.canonicalize().map_err(|e| format!("cannot be found: {}: {e}", folder.display()))?;
    let path = root.join(relative).canonicalize().map_err(|e| format!("cannot be opened: {e}"))?;
    if !path.starts_with(&root) || !path.is_file() {
        return Err(outside());
    }
    let file = File::open(&path).map_err(|e| format!("cannot be opened: {e}"))?;
    let size = file.metadata().map_err(|e| format!("cannot be opened: {e}"))?.len();
    Ok(Opened { file, size, left: size.saturating_mul(2), tensors: HashMap::new() })
}

/// The `TensorProto` of a tensor: numbers as raw bytes, strings as `string_data`.
pub(crate) fn encode_tensor(name: &str, tensor: &Tensor) -> TensorProto {
    let mut proto = TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(tensor.dtype().onnx()),
        dims: tensor.shape().iter().map(|&d| i64::try_from(d).expect("a dimension fits int64")).collect(),
        ..TensorProto::default()
    };
    match tensor.data() {
        Slice::String(values) => proto.string_data = values.iter().map(|s| s.clone().into_bytes()).collect(),
        _ => proto.raw_data = Some(raw_bytes(tensor).into()),
    }
    proto
}

/// The elements as little-endian bytes; bool as 0 and 1.
fn raw_bytes(tensor: &Tensor) -> Vec<u8> {
    macro_rules! bytes {
        ($($variant:ident),*) => {
            match tensor.data() {
                $(Slice::$variant(values) => bytemuck::cast_slice(values).to_vec(),)*
                Slice::Bool(values) => values.iter().map(|&b| u8::from(b)).collect(),
                _ => pack(tensor).unwrap_or_default(),
            }
        };
    }
    bytes!(F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64, C64, C128)
}

#[cfg(test)]
mod tests {
    use super::super::proto::StringStringEntryProto;
    use super::*;
    use crate::engine::dtype::with_dtype;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn every_type_survives_a_round_trip() {
        for &dtype in DType::ALL {
            let tensor = with_dtype!(dtype, T => Tensor::new(&[2, 1], vec![T::default(), T::default()]).unwrap());
            let proto = encode_tensor("t", &tensor);
            assert_eq!(decode_tensor(&proto, LIMIT), Ok(tensor), "{dtype}");
        }
    }

    #[test]
    fn small_types_are_packed_from_the_low_bits_up() {
        let decode = |dtype: DType, len: i64, raw: &[u8]| {
            let proto = TensorProto {
                name: Some("t".into()),
                data_type: Some(dtype.onnx()),
                dims: vec![len],
                raw_data: Some(raw.to_vec().into()),
                ..Default::default()
            };
            let typed = TensorProto { raw_data: None, int32_data: raw.iter().map(|&b| i32::from(b)).collect(), ..proto.clone() };
            let tensor = decode_tensor(&proto, LIMIT)?;
            assert_eq!(decode_tensor(&typed, LIMIT), Ok(tensor.clone()));
            assert_eq!(encode_tensor("t", &tensor).raw_data.unwrap(), raw);
            Ok::<_, String>(tensor.widen())
        };
        assert_eq!(decode(DType::I4, 3, &[0xf1, 0x08]), Ok(Tensor::vector(vec![1_i8, -1, -8])));
        assert_eq!(decode(DType::U2, 5, &[0b11_10_01_00, 0b10]), Ok(Tensor::vector(vec![0_u8, 1, 2, 3, 2])));
        // 24 bits hold four numbers of six: 1.0 is 0b001000, its negation has the highest bit too.
        assert_eq!(decode(DType::F6E2M3, 3, &[0b00_001000, 0b1000_1010, 0b0]), Ok(Tensor::vector(vec![1.0_f32, -1.0, 1.0])));
        assert_eq!(decode(DType::I4, 3, &[1]), Err("tensor `t` of shape [3] needs 2 bytes and has 1".into()));
    }

    #[test]
    fn typed_fields_hold_every_type() {
        let proto = |data_type: DType| TensorProto {
            data_type: Some(data_type.onnx()),
            dims: vec![2],
            name: Some("t".into()),
            ..Default::default()
        };
        let bits = vec![0x3C00, 0xC000];
        let cases = [
            (TensorProto { float_data: vec![1.5, -2.0], ..proto(DType::F32) }, Tensor::vector(vec![1.5_f32, -2.0])),
            (TensorProto { double_data: vec![1.5, -2.0], ..proto(DType::F64) }, Tensor::vector(vec![1.5_f64, -2.0])),
            (TensorProto { int64_data: vec![1, -2], ..proto(DType::I64) }, Tensor::vector(vec![1_i64, -2])),
            (TensorProto { int32_data: vec![1, -2], ..proto(DType::I8) }, Tensor::vector(vec![1_i8, -2])),
            (TensorProto { int32_data: vec![1, 255], ..proto(DType::U8) }, Tensor::vector(vec![1_u8, 255])),
            (TensorProto { int32_data: vec![1, 0], ..proto(DType::Bool) }, Tensor::vector(vec![true, false])),
            (TensorProto { int32_data: bits, ..proto(DType::F16) }, Tensor::vector(vec![f16::from_f32(1.0), f16::from_f32(-2.0)])),
            (TensorProto { uint64_data: vec![1, u64::from(u32::MAX)], ..proto(DType::U32) }, Tensor::vector(vec![1, u32::MAX])),
            (
                TensorProto { string_data: vec![b"a".to_vec(), b"".to_vec()], ..proto(DType::String) },
                Tensor::vector(vec!["a".to_owned(), String::new()]),
            ),
        ];
        for (proto, want) in cases {
            assert_eq!(decode_tensor(&proto, LIMIT), Ok(want));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_allocated() {
        let proto = |dims: &[i64]| TensorProto {
            name: Some("w".into()),
            data_type: Some(1),
            dims: dims.to_vec(),
            raw_data: Some(vec![0; 8].into()),
            ..Default::default()
        };
        let message = |dims: &[i64]| decode_tensor(&proto(dims), LIMIT).unwrap_err();
        assert_eq!(message(&[3]), "tensor `w` of shape [3] needs 12 bytes and has 8");
        assert_eq!(message(&[-1]), "tensor `w` has the negative dimension -1");
        assert_eq!(
            message(&[1 << 40, 1 << 40]),
            "tensor `w` of shape [1099511627776, 1099511627776] exceeds the memory limit of 1048576 bytes"
        );
        assert_eq!(message(&[1 << 30]), "tensor `w` of shape [1073741824] exceeds the memory limit of 1048576 bytes");
        let odd = TensorProto { data_type: Some(99), ..proto(&[2]) };
        assert_eq!(decode_tensor(&odd, LIMIT), Err("tensor `w` has element type 99, which is not supported".into()));
    }

    #[test]
    fn external_data_stays_inside_the_folder() {
        let folder = std::env::temp_dir().join(format!("ndserve-external-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("model")).unwrap();
        std::fs::write(folder.join("secret"), [0; 8]).unwrap();
        std::fs::write(folder.join("model/weights"), [0, 0, 128, 63, 0, 0, 0, 64]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.join("secret"), folder.join("model/link")).unwrap();
        let decode = |entries: &[(&str, &str)]| {
            let external_data =
                entries.iter().map(|(k, v)| StringStringEntryProto { key: Some((*k).into()), value: Some((*v).into()) }).collect();
            let proto = TensorProto {
                name: Some("w".into()),
                data_type: Some(1),
                dims: vec![1],
                data_location: Some(1),
                external_data,
                ..Default::default()
            };
            decode_with(&proto, &External::new(Some(&folder.join("model")), LIMIT))
        };
        assert_eq!(decode(&[("location", "weights"), ("offset", "4"), ("length", "4")]), Ok(Tensor::vector(vec![2.0_f32])));
        for location in ["../secret", "/etc/passwd", "link", "/dev/zero", "a\0b", ".", "nothing"] {
            assert!(decode(&[("location", location)]).unwrap_err().contains("tensor `w`"), "{location:?}");
        }
        for entries in [
            &[("location", "weights"), ("offset", "5")][..],
            &[("location", "weights"), ("offset", "18446744073709551615")],
            &[("location", "weights"), ("length", "8")],
            &[("location", "weights"), ("offset", "x")],
            &[],
        ] {
            assert!(decode(entries).is_err(), "{entries:?}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
