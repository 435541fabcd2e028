//! Prepared rows, in memory or in a file.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
#[cfg(not(unix))]
use std::sync::Mutex;

use super::error::{Error, Result, in_file};

/// Prepared rows with their targets and how much each counts.
#[derive(Debug, Default)]
pub struct Rows {
    /// The shape of a row of inputs.
    pub shape: Vec<usize>,
    /// Inputs, row by row.
    pub x: Store,
    /// Outputs of a row.
    pub outputs: usize,
    /// Targets, row by row.
    pub y: Vec<f32>,
    /// A weight for each row.
    pub weights: Vec<f32>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Elements of a row of inputs.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Numbers one behind the other.
#[derive(Debug)]
pub enum Store {
    /// In memory.
    Memory(Vec<f32>),
    /// In a file.
    Disk(Disk),
}

impl Default for Store {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

/// A file that has no name any more: it is gone with the process, however that ends.
#[derive(Debug)]
pub struct Disk {
    file: File,
    len: usize,
    #[cfg(not(unix))]
    place: Mutex<()>,
}

fn said(error: std::io::Error) -> Error {
    Error(format!("the file of prepared rows: {error}"))
}

impl Store {
    /// An empty one in a file in `folder`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn on_disk(folder: &Path) -> Result<Self> {
        let path = folder.join(format!(".rows.{}.tmp", std::process::id()));
        std::fs::create_dir_all(folder).map_err(|error| in_file(folder, error))?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(|error| in_file(&path, error))?;
        std::fs::remove_file(&path).map_err(|error| in_file(&path, error))?;
        Ok(Self::Disk(Disk {
            file,
            len: 0,
            #[cfg(not(unix))]
            place: Mutex::new(()),
        }))
    }

    /// Appends numbers.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        match self {
            Self::Memory(own) => own.extend_from_slice(values),
            Self::Disk(disk) => {
                disk.write(values).map_err(said)?;
                disk.len += values.len();
            }
        }
        Ok(())
    }

    /// Appends the numbers at `range` to `to`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(&self, range: Range<usize>, to: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Memory(own) => to.extend_from_slice(&own[range]),
            Self::Disk(disk) => {
                let start = to.len();
                to.resize(start + range.len(), 0.0);
                disk.read(range.start, bytemuck::cast_slice_mut(&mut to[start..])).map_err(said)?;
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
impl Disk {
    fn write(&self, values: &[f32]) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.write_all_at(bytemuck::cast_slice(values), (self.len * size_of::<f32>()) as u64)
    }

    fn read(&self, at: usize, to: &mut [u8]) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.read_exact_at(to, (at * size_of::<f32>()) as u64)
    }
}

#[cfg(not(unix))]
impl Disk {
    fn write(&self, values: &[f32]) -> std::io::Result<()> {
        use std::io::{Seek, SeekFrom, Write};
        let _place = self.place.lock();
        (&self.file).seek(SeekFrom::Start((self.len * size_of::<f32>()) as u64))?;
        (&self.file).write_all(bytemuck::cast_slice(values))
    }

    fn read(&self, at: usize, to: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let _place = self.place.lock();
        (&self.file).seek(SeekFrom::Start((at * size_of::<f32>()) as u64))?;
        (&self.file).read_exact(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_memory_would() {
        let (mut memory, mut disk) = (Store::default(), Store::on_disk(&std::env::temp_dir()).unwrap());
        for store in [&mut memory, &mut disk] {
            store.push(&[1.0, 2.0, f32::NAN]).unwrap();
            store.push(&[4.0, 5.0]).unwrap();
            let mut found = vec![0.5];
            store.read(3..5, &mut found).unwrap();
            store.read(0..2, &mut found).unwrap();
            assert_eq!(found, [0.5, 4.0, 5.0, 1.0, 2.0]);
        }
        assert!(disk.read(4..6, &mut Vec::new()).is_err(), "there are five");
    }
}
