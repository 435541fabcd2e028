//! Elements of large tensors that the reader of a file's messages passed over. They go from the file straight into the storage that the
//! engine keeps, on several threads, when it is known what they are.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;
use half::{bf16, f16};
use num_complex::Complex;

use crate::engine::dtype::DType;
use crate::engine::tensor::{Buffer, Tensor};
use crate::engine::threads::Threads;

/// Bytes that are read at once; what one thread takes up at a time.
const PIECE: usize = 4 << 20;

/// A file and the ranges of it that were passed over.
pub(crate) struct Passed {
    file: File,
    /// By the address of what stands for a range in the messages: no two of them have the same as long as they are kept.
    ranges: HashMap<usize, (u64, usize)>,
    kept: Vec<Bytes>,
    #[cfg(not(unix))]
    place: Mutex<()>,
}

impl Passed {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            ranges: HashMap::new(),
            kept: Vec::new(),
            #[cfg(not(unix))]
            place: Mutex::new(()),
        }
    }

    /// Notes that `len` bytes from `offset` on were passed over, and returns what stands for them.
    pub(crate) fn add(&mut self, offset: u64, len: usize) -> Bytes {
        let stand_in = Bytes::from(vec![0; 1]);
        self.ranges.insert(stand_in.as_ptr() as usize, (offset, len));
        self.kept.push(stand_in.clone());
        stand_in
    }

    /// Where the bytes are that `field` stands for: offset and number.
    pub(crate) fn range(&self, field: &Bytes) -> Option<(u64, usize)> {
        self.ranges.get(&(field.as_ptr() as usize)).copied()
    }

    /// Reads exactly `to.len()` bytes from `offset` on.
    pub(crate) fn read(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, to, offset);
        #[cfg(not(unix))]
        {
            use std::io::{Read as _, Seek as _};
            let _turn = self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut file = &self.file;
            file.seek(io::SeekFrom::Start(offset))?;
            file.read_exact(to)
        }
    }

    /// Reads the elements of all of `unread`, side by side where there are threads for it.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter.
    pub(crate) fn fill<'u>(&self, unread: impl Iterator<Item = &'u mut Unread>, threads: &Threads) -> io::Result<()> {
        let pieces = |unread: &'u mut Unread| {
            let offset = unread.offset;
            let pieces = bytes(&mut unread.values).unwrap_or_default().chunks_mut(PIECE);
            pieces.zip(0_u64..).map(move |(piece, i)| (piece, offset + i * PIECE as u64))
        };
        let pieces: Vec<(&mut [u8], u64)> = unread.flat_map(pieces).collect();
        let failed = OnceLock::new();
        threads.for_each(pieces, |(to, offset)| {
            if failed.get().is_none()
                && let Err(error) = self.read(to, offset)
            {
                // Of several failures one is enough.
                let _ = failed.set(Mutex::new(Some(error)));
            }
        });
        match failed.into_inner().and_then(|error| error.into_inner().ok().flatten()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// A tensor whose elements are still in the file.
#[derive(Debug)]
pub(crate) struct Unread {
    shape: Vec<usize>,
    values: Buffer,
    offset: u64,
}

impl Unread {
    /// A tensor of `shape` from `offset` on; `None` if elements of `dtype` lie in files otherwise than in memory.
    pub(crate) fn new(dtype: DType, shape: &[usize], offset: u64) -> Option<Self> {
        let len = shape.iter().product();
        Some(Self { shape: shape.into(), values: zeros(dtype, len)?, offset })
    }

    /// The tensor with the elements that were read.
    pub(crate) fn into_tensor(self) -> Tensor {
        self.values.into_tensor(&self.shape).expect("made for the shape")
    }
}

macro_rules! plain {
    ($($variant:ident: $t:ty),*) => {
        /// Elements whose memory is not touched before they are read.
        fn zeros(dtype: DType, len: usize) -> Option<Buffer> {
            match dtype {
                $(DType::$variant => Some(Buffer::$variant(vec![<$t as bytemuck::Zeroable>::zeroed(); len])),)*
                _ => None,
            }
        }

        /// The elements as they lie in a file.
        fn bytes(buffer: &mut Buffer) -> Option<&mut [u8]> {
            match buffer {
                $(Buffer::$variant(values) => Some(bytemuck::cast_slice_mut(values)),)*
                _ => None,
            }
        }
    };
}
plain!(
    F32: f32, F64: f64, F16: f16, BF16: bf16, I8: i8, I16: i16, I32: i32, I64: i64, U8: u8, U16: u16, U32: u32, U64: u64,
    C64: Complex<f32>, C128: Complex<f64>
);
