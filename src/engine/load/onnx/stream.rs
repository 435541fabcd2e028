//! A file as the bytes that the protobuf reader takes. Large weights are passed over: they are read when it is known what they are, so that
//! the file's bytes and the tensors are never in memory together.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::{Buf, Bytes};

use crate::engine::elements::WeightFile;
use crate::engine::load::passed::Passed;

/// A file being read from front to back.
pub(super) struct FileBuf {
    file: File,
    /// What was read and not taken yet is `block[start..end]`.
    block: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the file behind the block.
    behind: usize,
    size: usize,
    passed: Passed,
    /// The first failure. What follows it reads as zeros, which the caller throws away.
    error: Option<io::Error>,
}

impl FileBuf {
    const BLOCK: usize = 64 << 10;
    /// As many bytes or more of one field are passed over: what is shorter is in the block, or not worth a call of its own.
    const LARGE: usize = 16 << 10;

    /// # Errors
    /// If the file cannot be opened, or is no file with a size.
    pub(super) fn open(path: &std::path::Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let size = usize::try_from(metadata.len()).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is too large"))?;
        let passed = Passed::new(WeightFile::new(path.display().to_string(), file.try_clone()?));
        let mut buf = Self { file, block: vec![0; Self::BLOCK].into(), start: 0, end: 0, behind: size, size, passed, error: None };
        buf.fill();
        Ok(buf)
    }

    /// What was passed over.
    ///
    /// # Errors
    /// The failure that ended the reading, if there was one.
    pub(super) fn end(self) -> io::Result<Passed> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.passed),
        }
    }

    /// Passes over `len` bytes and returns what stands for them.
    fn pass(&mut self, len: usize) -> Bytes {
        let offset = (self.size - self.remaining()) as u64;
        let held = len.min(self.end - self.start);
        self.start += held;
        if len > held && self.error.is_none() {
            // What is passed over lies in the file, whose size fits.
            self.error = self.file.seek(SeekFrom::Start(offset + len as u64)).err();
        }
        self.behind -= len - held;
        if self.start == self.end && self.behind > 0 {
            self.fill();
        }
        self.passed.add(offset, len)
    }

    /// Reads exactly `to.len()` bytes of the file.
    fn read(file: &mut File, error: &mut Option<io::Error>, to: &mut [u8]) {
        if error.is_none() {
            *error = file.read_exact(to).err();
        }
        if error.is_some() {
            to.fill(0);
        }
    }

    fn fill(&mut self) {
        let len = self.behind.min(self.block.len());
        Self::read(&mut self.file, &mut self.error, &mut self.block[..len]);
        (self.start, self.end) = (0, len);
        self.behind -= len;
    }
}

impl Buf for FileBuf {
    fn remaining(&self) -> usize {
        self.end - self.start + self.behind
    }

    fn chunk(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining(), "advanced beyond the end of the file");
        loop {
            let step = count.min(self.end - self.start);
            self.start += step;
            count -= step;
            if self.start < self.end || self.behind == 0 {
                return;
            }
            self.fill();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        assert!(len <= self.remaining(), "read beyond the end of the file");
        if len >= Self::LARGE {
            return self.pass(len);
        }
        let mut bytes = vec![0; len];
        let (head, tail) = bytes.split_at_mut(len.min(self.end - self.start));
        head.copy_from_slice(&self.block[self.start..self.start + head.len()]);
        self.start += head.len();
        Self::read(&mut self.file, &mut self.error, tail);
        self.behind -= tail.len();
        if self.start == self.end && self.behind > 0 {
            self.fill();
        }
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_as_its_bytes_whatever_is_asked_for() {
        let path = std::env::temp_dir().join(format!("ndserve-stream-{}", std::process::id()));
        let bytes: Vec<u8> = (0..3 * FileBuf::BLOCK + 17).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut buf = FileBuf::open(&path).unwrap();
        let (mut at, mut large) = (0, Vec::new());
        // Within a block, to its end, over it, and more than a block at once; a large field within a block and over several.
        let sizes = [1, 100, FileBuf::LARGE, FileBuf::LARGE, FileBuf::BLOCK - 2 * FileBuf::LARGE - 103, 5, 0, FileBuf::BLOCK + 9, 64];
        for len in sizes {
            let field = buf.copy_to_bytes(len);
            let wanted = &bytes[at..at + len];
            if len >= FileBuf::LARGE {
                large.push((field, wanted))
            } else {
                assert!(field == wanted, "{len} at {at}")
            }
            assert_eq!(buf.get_u8(), bytes[at + len]);
            at += len + 1;
        }
        while buf.has_remaining() {
            assert_eq!(buf.get_u8(), bytes[at]);
            at += 1;
        }
        assert_eq!(at, bytes.len());
        let passed = buf.end().unwrap();
        assert_eq!(large.len(), 4);
        for (field, wanted) in large {
            let (offset, len) = passed.range(&field).unwrap();
            let mut read = vec![0; len];
            passed.file().read_now(&mut read, offset).unwrap();
            assert!(read == wanted, "{len} at {offset}");
        }
        assert_eq!(passed.range(&Bytes::from_static(&[0])), None);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert!(FileBuf::open(&std::env::temp_dir()).is_err());
        assert!(FileBuf::open("/dev/zero".as_ref()).is_err());
    }
}
