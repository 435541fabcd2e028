//! Elements of large weights, which lie in the model's file until somebody looks at them: so the weights that operators pack while a
//! model is loaded are never in memory all together with what is made of them.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use super::kernels::allocator::prefer_huge_pages;
use super::kernels::stored::{self, Stored, lines_of};
use super::threads::Threads;
use super::weight_cache::{WeightCache, WeightCachePlace};

/// Memory of numbers that were read and are not needed any more, for the next ones.
pub(crate) type Spare = Arc<Mutex<Vec<Vec<f32>>>>;

/// Numbers in a file, and in memory as soon as they were looked at.
pub(crate) struct InFile {
    file: Arc<WeightFile>,
    offset: u64,
    len: usize,
    read: OnceLock<Numbers>,
    /// Where memory to read to may be found, and is left.
    spare: Option<Spare>,
}

/// Numbers that were read.
enum Numbers {
    /// To memory that may come from, and go to, others.
    Here(Vec<f32>),
    /// To stay, or found in a file of packed weights.
    Stored(Stored),
}

impl InFile {
    /// `len` numbers from `offset` on.
    pub(crate) fn new(file: &Arc<WeightFile>, offset: u64, len: usize, spare: Option<&Spare>) -> Arc<Self> {
        let new = Arc::new(Self { file: Arc::clone(file), offset, len, read: OnceLock::new(), spare: spare.cloned() });
        file.unread.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&new));
        new
    }

    /// The same numbers for somebody who looks at them for a short time: they are read to memory of `spare`, which then has it back.
    pub(crate) fn briefly(self: &Arc<Self>, spare: &Spare) -> Arc<Self> {
        if self.read.get().is_some() { Arc::clone(self) } else { Self::new(&self.file, self.offset, self.len, Some(spare)) }
    }

    pub(crate) fn file(&self) -> &Arc<WeightFile> {
        &self.file
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The numbers, which the first call reads.
    pub(crate) fn get(&self) -> &[f32] {
        let read = self.read.get_or_init(|| {
            let spare = self.spare.as_ref().and_then(|spare| spare.lock().unwrap_or_else(PoisonError::into_inner).pop());
            let mut values = match spare {
                Some(mut values) if values.capacity() >= self.len => {
                    values.resize(self.len, 0.0);
                    values
                }
                _ => zeros(self.len),
            };
            self.file.read(bytemuck::cast_slice_mut(&mut values), self.offset);
            Numbers::Here(values)
        });
        match read {
            Numbers::Here(values) => values,
            Numbers::Stored(stored) => &stored.elements()[..self.len],
        }
    }

    /// What the numbers became in `form`, if a file of packed weights has it in as many lines.
    pub(crate) fn kept(&self, form: fmt::Arguments<'_>, lines: usize) -> Option<Stored> {
        self.file.cache.get()?.kept(self.offset, &form.to_string(), lines)
    }

    /// Lets the file of packed weights have what the numbers became.
    pub(crate) fn keep(&self, form: fmt::Arguments<'_>, stored: &Stored) {
        if let Some(cache) = self.file.cache.get() {
            cache.keep(self.offset, &form.to_string(), stored);
        }
    }
}

/// Memory to read to.
fn zeros(len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    prefer_huge_pages(&mut values);
    values
}

impl Drop for InFile {
    fn drop(&mut self) {
        if let (Some(spare), Some(Numbers::Here(values))) = (&self.spare, self.read.take()) {
            spare.lock().unwrap_or_else(PoisonError::into_inner).push(values);
        }
    }
}

/// A file with weights that are read when somebody looks at them, until [`WeightFile::finish`].
pub(crate) struct WeightFile {
    path: String,
    /// `None` once everything has been read.
    file: RwLock<Option<File>>,
    /// The first failure. What could not be read is zeros, which whoever calls [`WeightFile::finish`] throws away.
    error: Mutex<Option<io::Error>>,
    unread: Mutex<Vec<Weak<InFile>>>,
    /// What another process made of the weights.
    cache: OnceLock<Arc<WeightCache>>,
}

impl WeightFile {
    pub(crate) fn new(path: String, file: File) -> Arc<Self> {
        Arc::new(Self { path, file: RwLock::new(Some(file)), error: Mutex::default(), unread: Mutex::default(), cache: OnceLock::new() })
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Lets weights be found in a file of packed ones, and be kept there, as `place` says. Without one, they are read.
    pub(crate) fn use_cache(&self, place: &WeightCachePlace, label: &str, threads: &Threads) -> io::Result<()> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            let _ = self.cache.set(Arc::new(WeightCache::open(place, Path::new(&self.path), file, label, threads)?));
        }
        Ok(())
    }

    /// The packed weights that are kept, if any are to be.
    pub(crate) fn cache(&self) -> Option<&Arc<WeightCache>> {
        self.cache.get()
    }

    /// Reads all that is still in use and was not looked at, side by side where there are threads for it, and closes the file.
    ///
    /// # Errors
    /// The first failure of reading, now or before.
    pub(crate) fn finish(&self, threads: &Threads) -> io::Result<()> {
        /// Bytes that one thread reads at a time.
        const PIECE: usize = 4 << 20;
        let unread = std::mem::take(&mut *self.unread.lock().unwrap_or_else(PoisonError::into_inner));
        let unread = unread.into_iter().filter_map(|numbers| numbers.upgrade()).filter(|numbers| numbers.read.get().is_none());
        let unread: Vec<Arc<InFile>> = unread.collect();
        threads.for_each(unread.iter(), |numbers| {
            if let Some(stored) = numbers.kept(format_args!("as it is"), lines_of::<f32>(numbers.len)) {
                let _ = numbers.read.set(Numbers::Stored(stored));
            }
        });
        let unread = unread.into_iter().filter(|numbers| numbers.read.get().is_none());
        let mut unread: Vec<_> = unread.map(|numbers| (stored::zeros::<f32>(numbers.len), numbers)).collect();
        let mut pieces: Vec<(&mut [u8], u64)> = Vec::new();
        for (lines, numbers) in &mut unread {
            let bytes = &mut bytemuck::cast_slice_mut(lines)[..numbers.len * size_of::<f32>()];
            pieces.extend(bytes.chunks_mut(PIECE).zip(0..).map(|(piece, i)| (piece, numbers.offset + i * PIECE as u64)));
        }
        threads.for_each(pieces, |(to, offset)| self.read(to, offset));
        for (lines, numbers) in unread {
            let stored = Stored::from(lines);
            numbers.keep(format_args!("as it is"), &stored);
            // Somebody may have looked meanwhile.
            let _ = numbers.read.set(Numbers::Stored(stored));
        }
        self.file.write().unwrap_or_else(PoisonError::into_inner).take();
        match self.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// As [`WeightFile::read_now`], for somebody who cannot fail.
    fn read(&self, to: &mut [u8], offset: u64) {
        if let Err(error) = self.read_now(to, offset) {
            to.fill(0);
            self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Reads exactly `to.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// If the file cannot be read, or has become shorter.
    pub(crate) fn read_now(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_ref().ok_or_else(|| io::Error::other("the file is closed"))?;
        read_at(file, to, offset)
    }
}

/// Reads exactly `to.len()` bytes of a file that several threads read.
#[cfg(unix)]
pub(crate) fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

/// As on Unix, one after the other: the place in a file is shared by all who read it.
#[cfg(not(unix))]
pub(crate) fn read_at(mut file: &File, to: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read as _, Seek as _};
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(io::SeekFrom::Start(offset))?;
    file.read_exact(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, values: &[f32]) -> (std::path::PathBuf, Arc<WeightFile>) {
        let path = std::env::temp_dir().join(format!("ndserve-elements-{name}-{}", std::process::id()));
        std::fs::write(&path, bytemuck::cast_slice(values)).unwrap();
        (path.clone(), WeightFile::new(path.display().to_string(), File::open(&path).unwrap()))
    }

    fn count(spare: &Spare) -> usize {
        spare.lock().unwrap().len()
    }

    #[test]
    fn what_was_not_looked_at_is_there_behind_the_end_of_the_file() {
        let values: Vec<f32> = (0..3_000_000).map(|i| i as f32).collect();
        let (path, file) = file("finish", &values);
        let all = InFile::new(&file, 0, values.len(), None);
        let end = InFile::new(&file, 8, 2, None);
        drop(InFile::new(&file, 1 << 40, 1, None));
        file.finish(&Threads::new(2).unwrap()).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert!(all.get() == values);
        assert_eq!(end.get(), [2.0, 3.0]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn who_looks_briefly_leaves_the_memory_to_the_next() {
        let (path, file) = file("spare", &[1.0, 2.0, 3.0, 4.0]);
        let (long, short) = (InFile::new(&file, 0, 4, None), InFile::new(&file, 8, 2, None));
        let spare = Spare::default();
        let look = |numbers: &Arc<InFile>| {
            let brief = numbers.briefly(&spare);
            assert_eq!(count(&spare).min(1), count(&spare));
            (brief.get().to_vec(), brief.get().as_ptr() as usize)
        };
        let (first, second, third) = (look(&long), look(&short), look(&long));
        assert_eq!((first.0, second.0, third.0), (vec![1.0, 2.0, 3.0, 4.0], vec![3.0, 4.0], vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!((first.1, count(&spare)), (third.1, 1));
        assert_eq!(first.1, second.1);
        assert_eq!(long.get(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(long.briefly(&spare).get().as_ptr(), long.get().as_ptr(), "what was read is shared");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_became_shorter_fails_at_its_end() {
        let (path, file) = file("short", &[1.0; 8]);
        let numbers = InFile::new(&file, 0, 8, None);
        File::options().write(true).open(&path).unwrap().set_len(12).unwrap();
        assert_eq!(numbers.get(), [0.0; 8]);
        assert_eq!(file.finish(&Threads::single()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        std::fs::remove_file(path).unwrap();
    }
}
