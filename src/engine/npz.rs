//! NumPy's archives: a zip file of `.npy` arrays, stored or deflated. Format of an array:
//! <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
//!
//! An archive is not trusted: what it declares is checked against a limit before anything is allocated for it, and no more is
//! unpacked than an array's shape says.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek, Write};

use half::f16;
use ndarray::{ArrayD, IxDyn, ShapeBuilder};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::dtype::DType;
use super::kernels::bytes::from_bytes;
use super::tensor::Tensor;
use super::view::Slice;

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own limit on the length of a header that it trusts (`max_header_size`).
const HEADER_MAX: usize = 10_000;
/// NumPy's own limit (`NPY_MAXDIMS`).
const RANK_MAX: usize = 64;

/// The arrays of an archive by name; together they may take `limit` bytes.
///
/// # Errors
/// What is wrong with the archive, naming the array.
pub fn read(source: impl Read + Seek, limit: usize) -> Result<BTreeMap<String, Tensor>, String> {
    let mut archive = ZipArchive::new(source).map_err(|error| format!("not an .npz archive: {error}"))?;
    let mut arrays = BTreeMap::new();
    let mut left = limit;
    for i in 0..archive.len() {
        let member = archive.by_index(i).map_err(|error| format!("member {i}: {error}"))?;
        let name = member.name().map_err(|error| format!("member {i}: {error}"))?;
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else {
            return Err(format!("member `{name}` is no .npy array"));
        };
        let tensor = read_npy(member, left).map_err(|error| format!("array `{name}`: {error}"))?;
        left = left.saturating_sub(tensor.bytes());
        if arrays.insert(name.clone(), tensor).is_some() {
            return Err(format!("there are two arrays named `{name}`"));
        }
    }
    Ok(arrays)
}

/// An archive of the arrays, stored without compression, as `numpy.savez` writes it.
///
/// # Errors
/// If the archive cannot be made.
pub fn write(arrays: &[(&str, &Tensor)]) -> Result<Vec<u8>, String> {
    let each = arrays.iter().map(|(name, tensor)| (*name, Cow::Borrowed(*tensor)));
    write_each(Cursor::new(Vec::new()), each).map(Cursor::into_inner)
}

/// [`write()`] to a file or memory, one array at a time: no more than one is held.
///
/// # Errors
/// If the archive cannot be written.
pub fn write_each<'a, W: Write + Seek, N: std::fmt::Display>(
    to: W,
    arrays: impl Iterator<Item = (N, Cow<'a, Tensor>)>,
) -> Result<W, String> {
    let mut archive = ZipWriter::new(to);
    for (name, tensor) in arrays {
        if let Err(error) = write_member(&mut archive, &format!("{name}.npy"), &write_npy(&tensor)) {
            // Dropped, it would try to write on, and tell stderr that it cannot.
            let _kept = std::mem::ManuallyDrop::new(archive);
            return Err(error);
        }
    }
    archive.finish().map_err(|error| error.to_string())
}

fn write_member<W: Write + Seek>(archive: &mut ZipWriter<W>, name: &str, bytes: &[u8]) -> Result<(), String> {
    // Beyond 4 GiB a member needs the larger header, which must be asked for.
    let large = bytes.len() >= u32::MAX as usize;
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
    archive.start_file(name, options).map_err(|error| error.to_string())?;
    archive.write_all(bytes).map_err(|error| error.to_string())
}

/// The type of an array's elements: kind, bytes per element, byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descr {
    kind: char,
    size: usize,
    big_endian: bool,
}

impl Descr {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("elements of type `{text}` are not supported");
        if text.contains('O') {
            return Err("it holds Python objects; save text with dtype=str".to_owned());
        }
        let mut chars = text.chars();
        let order = chars.next().filter(|c| "<>|=".contains(*c)).ok_or_else(wrong)?;
        let kind = chars.next().ok_or_else(wrong)?;
        let number: usize = chars.as_str().parse().map_err(|_| wrong())?;
        let known = match kind {
            'f' => [2, 4, 8].contains(&number),
            'i' | 'u' => [1, 2, 4, 8].contains(&number),
            'b' => number == 1,
            'U' | 'S' => true,
            _ => false,
        };
        let size = if kind == 'U' { number.checked_mul(4).ok_or_else(wrong)? } else { number };
        if known { Ok(Self { kind, size, big_endian: order == '>' }) } else { Err(wrong()) }
    }
}

/// The header of an array.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    descr: Descr,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// Reads the literal of a Python dictionary with the three keys that every array has.
fn parse_header(text: &str) -> Result<Header, String> {
    let wrong = || format!("its header `{}` cannot be read", text.trim());
    let after = |key: &str| {
        let quoted = [format!("'{key}':"), format!("\"{key}\":")];
        let start = quoted.iter().find_map(|key| text.find(key.as_str()).map(|at| at + key.len()));
        start.map(|at| text[at..].trim_start()).ok_or_else(wrong)
    };
    let descr = after("descr")?;
    let quote = descr.chars().next().filter(|c| "'\"".contains(*c)).ok_or("it is a structured array, which is not supported")?;
    let descr = descr[1..].split(quote).next().ok_or_else(wrong)?;
    let order = after("fortran_order")?;
    let fortran_order = match order {
        text if text.starts_with("True") => true,
        text if text.starts_with("False") => false,
        _ => return Err(wrong()),
    };
    let shape = after("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(wrong)?.0;
    let dims = shape.split(',').map(|dim| dim.trim().trim_end_matches('L')).filter(|dim| !dim.is_empty());
    let shape: Vec<usize> = dims.map(|dim| dim.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
    if shape.len() > RANK_MAX {
        return Err(format!("it has {} dimensions, at most {RANK_MAX} are allowed", shape.len()));
    }
    Ok(Header { descr: Descr::parse(descr)?, fortran_order, shape })
}

/// The names of an archive's arrays, with their shapes.
///
/// # Errors
/// What is wrong with the archive, naming the array.
pub fn shapes(source: impl Read + Seek) -> Result<BTreeMap<String, Vec<usize>>, String> {
    let mut archive = ZipArchive::new(source).map_err(|error| format!("not an .npz archive: {error}"))?;
    let mut shapes = BTreeMap::new();
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(|error| format!("member {i}: {error}"))?;
        let name = member.name().map_err(|error| format!("member {i}: {error}"))?;
        let name = name.strip_suffix(".npy").ok_or_else(|| format!("member `{name}` is no .npy array"))?.to_owned();
        let header = read_header(&mut member).map_err(|error| format!("array `{name}`: {error}"))?;
        shapes.insert(name, header.shape);
    }
    Ok(shapes)
}

/// Calls `f` with the rows of the array `name` in their order, at most `rows` at a time: memory is needed for these only.
///
/// # Errors
/// If there is no such array, or it is not in rows; or what `f` says.
pub fn each_rows<E: From<String>>(
    source: impl Read + Seek,
    name: &str,
    rows: usize,
    f: &mut dyn FnMut(Tensor) -> Result<(), E>,
) -> Result<(), E> {
    let said = |error: String| E::from(format!("array `{name}`: {error}"));
    let mut archive = ZipArchive::new(source).map_err(|error| format!("not an .npz archive: {error}"))?;
    let mut member = archive.by_name(&format!("{name}.npy")).map_err(|error| said(error.to_string()))?;
    let Header { descr, fortran_order, shape } = read_header(&mut member).map_err(said)?;
    let Some((&all, row)) = shape.split_first().filter(|(_, row)| !fortran_order || row.iter().all(|&n| n == 1)) else {
        return Err(said(format!("shape {shape:?} is not in rows one behind the other")));
    };
    let size: usize = row.iter().product();
    let mut left = all;
    while left > 0 {
        let now = left.min(rows.max(1));
        let shape = [&[now], row].concat();
        let tensor = read_elements(&mut member, descr, false, &shape, now * size).map_err(said)?;
        f(tensor)?;
        left -= now;
    }
    Ok(())
}

fn read_header(mut source: impl Read) -> Result<Header, String> {
    let mut preamble = [0; 8];
    source.read_exact(&mut preamble).map_err(short)?;
    if !preamble.starts_with(MAGIC) {
        return Err("it does not begin as an .npy array".to_owned());
    }
    let len = if preamble[6] == 1 {
        let mut len = [0; 2];
        source.read_exact(&mut len).map_err(short)?;
        usize::from(u16::from_le_bytes(len))
    } else {
        let mut len = [0; 4];
        source.read_exact(&mut len).map_err(short)?;
        u32::from_le_bytes(len) as usize
    };
    if len > HEADER_MAX {
        return Err(format!("its header has {len} bytes, at most {HEADER_MAX} are allowed"));
    }
    let mut header = vec![0; len];
    source.read_exact(&mut header).map_err(short)?;
    parse_header(&String::from_utf8_lossy(&header))
}

fn short(error: std::io::Error) -> String {
    format!("it ends too early: {error}")
}

fn read_npy(mut source: impl Read, limit: usize) -> Result<Tensor, String> {
    let Header { descr, fortran_order, shape } = read_header(&mut source)?;
    let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    // A string is held behind a handle that is larger than most texts: it counts as what it takes in memory.
    let held = if matches!(descr.kind, 'U' | 'S') { descr.size.saturating_add(DType::String.size()) } else { descr.size };
    let fits = |n: &usize| n.checked_mul(held).is_some_and(|bytes| bytes <= limit);
    let elements = elements.filter(fits).ok_or_else(|| format!("its shape {shape:?} exceeds the memory limit"))?;
    read_elements(source, descr, fortran_order, &shape, elements)
}

fn read_elements(source: impl Read, descr: Descr, fortran_order: bool, shape: &[usize], elements: usize) -> Result<Tensor, String> {
    let needed = elements * descr.size;
    let mut bytes = Vec::new();
    source.take(needed as u64).read_to_end(&mut bytes).map_err(short)?;
    if bytes.len() != needed {
        return Err(format!("shape {shape:?} needs {needed} bytes, there are {}", bytes.len()));
    }
    if descr.big_endian {
        // Text in UTF-32 swaps per character.
        let unit = if descr.kind == 'U' { 4 } else { descr.size.max(1) };
        bytes.chunks_exact_mut(unit).for_each(<[u8]>::reverse);
    }
    decode(descr, fortran_order, shape, elements, &bytes)
}

fn decode(descr: Descr, fortran_order: bool, shape: &[usize], elements: usize, bytes: &[u8]) -> Result<Tensor, String> {
    let dim = || IxDyn(shape).set_f(fortran_order);
    macro_rules! numbers {
        ($ty:ty) => {
            ArrayD::from_shape_vec(dim(), from_bytes::<$ty>(bytes)).map(Tensor::from)
        };
    }
    // Empty text has no bytes to cut into elements.
    let texts = |one: fn(&[u8]) -> Result<String, String>| -> Result<Vec<String>, String> {
        if descr.size == 0 { Ok(vec![String::new(); elements]) } else { bytes.chunks_exact(descr.size).map(one).collect() }
    };
    let tensor = match (descr.kind, descr.size) {
        ('f', 2) => numbers!(f16),
        ('f', 4) => numbers!(f32),
        ('f', _) => numbers!(f64),
        ('i', 1) => numbers!(i8),
        ('i', 2) => numbers!(i16),
        ('i', 4) => numbers!(i32),
        ('i', _) => numbers!(i64),
        ('u', 1) => numbers!(u8),
        ('u', 2) => numbers!(u16),
        ('u', 4) => numbers!(u32),
        ('u', _) => numbers!(u64),
        ('b', _) => ArrayD::from_shape_vec(dim(), bytes.iter().map(|&b| b != 0).collect()).map(Tensor::from),
        ('U', _) => ArrayD::from_shape_vec(dim(), texts(utf32)?).map(Tensor::from),
        _ => ArrayD::from_shape_vec(dim(), texts(utf8)?).map(Tensor::from),
    };
    tensor.map_err(|error| error.to_string())
}

/// Text in UTF-32, padded with zeros.
fn utf32(bytes: &[u8]) -> Result<String, String> {
    let codes = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    let text: Option<String> = codes.map(char::from_u32).collect();
    text.map(|text| text.trim_end_matches('\0').to_owned()).ok_or_else(|| "a text is not Unicode".to_owned())
}

/// Text in UTF-8, padded with zeros.
fn utf8(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())?;
    Ok(text.trim_end_matches('\0').to_owned())
}

fn write_npy(tensor: &Tensor) -> Vec<u8> {
    let (descr, data) = encode(tensor);
    let dims: String = tensor.shape().iter().map(|dim| format!("{dim}, ")).collect();
    let shape = match tensor.shape().len() {
        // A tuple of one keeps its comma.
        0 | 1 => dims.trim_end().to_owned(),
        _ => dims.trim_end_matches(", ").to_owned(),
    };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    // The elements start at a multiple of 64, so that the file can be mapped.
    let padding = 63 - (MAGIC.len() + 4 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + header.len() + data.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[1, 0]);
    let len = u16::try_from(header.len()).expect("the engine's tensors have few dimensions");
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    bytes
}

/// NumPy's name of the element type, and the elements.
fn encode(tensor: &Tensor) -> (String, Vec<u8>) {
    macro_rules! raw {
        ($values:expr, $descr:literal) => {
            ($descr.to_owned(), bytemuck::cast_slice($values).to_vec())
        };
    }
    match tensor.data() {
        Slice::F32(v) => raw!(v, "<f4"),
        Slice::F64(v) => raw!(v, "<f8"),
        Slice::F16(v) => raw!(v, "<f2"),
        Slice::I8(v) => raw!(v, "|i1"),
        Slice::I16(v) => raw!(v, "<i2"),
        Slice::I32(v) => raw!(v, "<i4"),
        Slice::I64(v) => raw!(v, "<i8"),
        Slice::U8(v) => raw!(v, "|u1"),
        Slice::U16(v) => raw!(v, "<u2"),
        Slice::U32(v) => raw!(v, "<u4"),
        Slice::U64(v) => raw!(v, "<u8"),
        Slice::Bool(v) => ("|b1".to_owned(), v.iter().map(|&b| u8::from(b)).collect()),
        // NumPy has no bfloat16; float32 holds each of its values exactly.
        Slice::BF16(v) => ("<f4".to_owned(), v.iter().flat_map(|b| b.to_f32().to_le_bytes()).collect()),
        Slice::C64(v) => raw!(v, "<c8"),
        Slice::C128(v) => raw!(v, "<c16"),
        Slice::String(v) => {
            let width = v.iter().map(|text| text.chars().count()).max().unwrap_or(0).max(1);
            let padded = |text: &String| text.chars().map(u32::from).chain(std::iter::repeat(0)).take(width).collect::<Vec<_>>();
            (format!("<U{width}"), v.iter().flat_map(padded).flat_map(u32::to_le_bytes).collect())
        }
        // NumPy has none of the types below 8 bits nor the small floats.
        _ => encode(&tensor.widen()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &u16::try_from(header.len()).unwrap().to_le_bytes(), header.as_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes
    }

    fn parse(header: &str, data: &[u8]) -> Result<Tensor, String> {
        read_npy(npy(header, data).as_slice(), LIMIT)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let tensors = [
            Tensor::new(&[2, 3], vec![1.0_f32, -2.0, f32::INFINITY, 4.0, 5.0, 6.0]).unwrap(),
            Tensor::vector(vec![1.5_f64]),
            Tensor::scalar(f16::from_f32(0.5)),
            Tensor::vector(vec![-1_i8]),
            Tensor::vector(vec![-1_i16]),
            Tensor::vector(vec![-1_i32]),
            Tensor::vector(vec![i64::MIN, i64::MAX]),
            Tensor::vector(vec![255_u8]),
            Tensor::vector(vec![u16::MAX]),
            Tensor::vector(vec![u32::MAX]),
            Tensor::vector(vec![u64::MAX]),
            Tensor::new(&[2, 1], vec![true, false]).unwrap(),
            Tensor::vector(vec!["grün".to_owned(), String::new(), "x".to_owned()]),
            Tensor::zeros(DType::F32, &[0, 4]),
        ];
        let names: Vec<String> = (0..tensors.len()).map(|i| format!("a/{i}")).collect();
        let named: Vec<(&str, &Tensor)> = names.iter().map(String::as_str).zip(&tensors).collect();
        let bytes = write(&named).unwrap();
        let arrays = read(Cursor::new(bytes), LIMIT).unwrap();
        for (name, tensor) in named {
            assert_eq!(arrays[name], *tensor, "{name}");
        }
    }

    #[test]
    fn numpys_variants_are_understood() {
        let want = Tensor::new(&[2, 2], vec![1_i16, 2, 3, 4]).unwrap();
        let little = [1, 0, 2, 0, 3, 0, 4, 0];
        assert_eq!(parse("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2), }\n", &little), Ok(want.clone()));
        assert_eq!(parse("{\"shape\": (2L, 2L), \"descr\": \"<i2\", \"fortran_order\": False}", &little), Ok(want.clone()));
        assert_eq!(parse("{'descr': '>i2', 'fortran_order': False, 'shape': (2, 2)}", &[0, 1, 0, 2, 0, 3, 0, 4]), Ok(want.clone()));
        assert_eq!(parse("{'descr': '<i2', 'fortran_order': True, 'shape': (2, 2)}", &[1, 0, 3, 0, 2, 0, 4, 0]), Ok(want));
        assert_eq!(
            parse("{'descr': '|S3', 'fortran_order': False, 'shape': (2,)}", b"ab\0cde"),
            Ok(Tensor::vector(vec!["ab".to_owned(), "cde".to_owned()]))
        );
        assert_eq!(parse("{'descr': '<i8', 'fortran_order': False, 'shape': ()}", &[7, 0, 0, 0, 0, 0, 0, 0]), Ok(Tensor::scalar(7_i64)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (header, want) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "needs 12 bytes, there are 4"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8)}", "exceeds the memory limit"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,)}", "exceeds the memory limit"),
            ("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}", "exceeds the memory limit"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "Python objects"),
            ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "`<c8` are not supported"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "structured array"),
            ("{'descr': '<f4', 'fortran_order': Perhaps, 'shape': (1,)}", "cannot be read"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "cannot be read"),
            ("{'descr': '<f4'}", "cannot be read"),
            ("", "cannot be read"),
        ] {
            let error = parse(header, &[0; 4]).unwrap_err();
            assert!(error.contains(want), "{header}: {error}");
        }
        assert!(read_npy(&b"\x93NUMPY\x02\0\xff\xff\xff\xff"[..], LIMIT).unwrap_err().contains("at most 10000"));
        assert!(read(Cursor::new(b"PK"), LIMIT).unwrap_err().contains("not an .npz archive"));
    }
}
