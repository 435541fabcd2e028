//! Where packed weights are: in memory of this process, or in a file that is mapped and was written by another.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::allocator::prefer_huge_pages;

/// 64 bytes: a line of the cache, to which packed weights are aligned.
#[derive(Clone, Copy, Debug, Zeroable, Pod)]
#[repr(C, align(64))]
pub struct Line([u32; 16]);

/// Bytes of a [`Line`].
pub const LINE_BYTES: usize = size_of::<Line>();

/// Packed weights, which clones share.
#[derive(Clone)]
pub struct Stored(Memory);

#[derive(Clone)]
enum Memory {
    Own(Arc<Vec<Line>>),
    Mapped(Arc<Mapping>, Range<usize>),
}

impl Stored {
    /// Room for `count` elements, of which the last line is filled up with zeros, and what `fill` makes of zeros.
    pub fn new<T: Pod>(count: usize, fill: impl FnOnce(&mut [T])) -> Stored {
        let mut lines = zeros::<T>(count);
        fill(&mut bytemuck::cast_slice_mut(&mut lines)[..count]);
        lines.into()
    }

    /// Some bytes of a mapped file; `None` unless they are whole lines inside it.
    pub fn mapped(mapping: &Arc<Mapping>, bytes: Range<usize>) -> Option<Stored> {
        let whole = bytes.start.is_multiple_of(LINE_BYTES) && bytes.len().is_multiple_of(LINE_BYTES);
        (whole && mapping.bytes().get(bytes.clone()).is_some()).then(|| Stored(Memory::Mapped(Arc::clone(mapping), bytes)))
    }

    /// All lines as elements of a type that fits in them without a rest.
    #[inline]
    pub fn elements<T: Pod>(&self) -> &[T] {
        match &self.0 {
            Memory::Own(lines) => bytemuck::cast_slice(lines),
            Memory::Mapped(mapping, bytes) => bytemuck::cast_slice(&mapping.bytes()[bytes.clone()]),
        }
    }
}

impl From<Vec<Line>> for Stored {
    fn from(lines: Vec<Line>) -> Self {
        Stored(Memory::Own(Arc::new(lines)))
    }
}

/// Lines of zeros for `count` elements.
pub(crate) fn zeros<T>(count: usize) -> Vec<Line> {
    let mut lines = bytemuck::zeroed_vec(lines_of::<T>(count));
    prefer_huge_pages(&mut lines);
    lines
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if matches!(self.0, Memory::Own(_)) { "in memory" } else { "in a file" };
        write!(f, "{} bytes {place}", self.elements::<u8>().len())
    }
}

/// Lines that `count` elements take.
pub fn lines_of<T>(count: usize) -> usize {
    (count * size_of::<T>()).div_ceil(LINE_BYTES)
}

/// Numbers that are packed. They may lie in a file of which somebody remembers what was made of them: then they need not be read.
pub trait Source {
    /// How many there are.
    fn count(&self) -> usize;

    /// The numbers.
    fn numbers(&self) -> &[f32];

    /// What [`Source::keep`] was given for `form`, in this process or an earlier one, if it has as many lines.
    fn kept(&self, form: fmt::Arguments<'_>, lines: usize) -> Option<Stored> {
        let _ = (form, lines);
        None
    }

    /// Remembers what was made of the numbers. `form` says how: with the instruction set, all that the result depends on beside them.
    fn keep(&self, form: fmt::Arguments<'_>, stored: &Stored) {
        let _ = (form, stored);
    }
}

impl Source for [f32] {
    fn count(&self) -> usize {
        self.len()
    }

    fn numbers(&self) -> &[f32] {
        self
    }
}

impl<const N: usize> Source for [f32; N] {
    fn count(&self) -> usize {
        N
    }

    fn numbers(&self) -> &[f32] {
        self
    }
}

impl Source for Vec<f32> {
    fn count(&self) -> usize {
        self.len()
    }

    fn numbers(&self) -> &[f32] {
        self
    }
}

/// `count` elements of `form`: what is remembered of it, or what `fill` makes of zeros and the numbers, which is then remembered.
pub(crate) fn packed<T: Pod>(
    source: &(impl Source + ?Sized),
    form: fmt::Arguments<'_>,
    count: usize,
    fill: impl FnOnce(&[f32], &mut [T]),
) -> Stored {
    let all = |numbers: &[f32], elements: &mut [T]| {
        fill(numbers, elements);
        true
    };
    packed_if(source, form, count, all).expect("any numbers have this form")
}

/// As [`packed`]; `None` if `fill` says that there is no such form of these numbers.
pub(crate) fn packed_if<T: Pod>(
    source: &(impl Source + ?Sized),
    form: fmt::Arguments<'_>,
    count: usize,
    fill: impl FnOnce(&[f32], &mut [T]) -> bool,
) -> Option<Stored> {
    if let Some(kept) = source.kept(form, lines_of::<T>(count)) {
        return Some(kept);
    }
    let mut exists = true;
    let stored = Stored::new(count, |elements| exists = fill(source.numbers(), elements));
    if exists {
        source.keep(form, &stored);
    }
    exists.then_some(stored)
}

/// A file in memory, to be read.
///
/// Its pages are the system's own copy of the file: nothing is copied, and no memory is cleared for it. A file that becomes shorter
/// while it is mapped ends the process when the lost part is looked at: it must be one that nobody writes to, but replaces.
pub struct Mapping {
    #[cfg(target_os = "linux")]
    start: *const u8,
    #[cfg(target_os = "linux")]
    len: usize,
    #[cfg(not(target_os = "linux"))]
    lines: (Vec<Line>, usize),
}

// SAFETY: pages that are only read, until the value is dropped.
#[cfg(target_os = "linux")]
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
#[cfg(target_os = "linux")]
unsafe impl Sync for Mapping {}

#[cfg(target_os = "linux")]
impl Mapping {
    /// Maps all of a file.
    ///
    /// # Errors
    /// If the system does not map it; an empty one it does not.
    pub fn new(file: &File) -> io::Result<Mapping> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: a new mapping at a place that the system chooses touches no other memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0)? };
        Ok(Mapping { start: start.cast(), len })
    }

    /// The bytes of the file.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are mapped until `self` is dropped, nobody in this process writes to them, and who made the file replaces it
        // instead of writing to it.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the pages are those of `new`, and borrows of them have ended.
        let _ = unsafe { rustix::mm::munmap(self.start.cast_mut().cast(), self.len) };
    }
}

#[cfg(not(target_os = "linux"))]
impl Mapping {
    /// Reads all of a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(mut file: &File) -> io::Result<Mapping> {
        let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut lines: Vec<Line> = bytemuck::zeroed_vec(lines_of::<u8>(len));
        io::Read::read_exact(&mut file, &mut bytemuck::cast_slice_mut(&mut lines)[..len])?;
        Ok(Mapping { lines: (lines, len) })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines.0)[..self.lines.1]
    }
}
