//! Rows that are read in parts: from files that need not fit into memory, or from memory.

use std::path::Path;

use super::read_csv::Csv;
use super::read_images::Images;
use super::read_npz::Npz;
use super::read_parquet::Parquet;
use super::{Column, Inputs};
use crate::train::error::{Error, Result, in_file};

/// Rows of a part of a table.
pub(super) const PART_ROWS: usize = 8192;

/// Rows of a part whose rows have `size` numbers: few enough that a part is no burden.
pub(super) fn part_rows(size: usize) -> usize {
    /// 16 MiB.
    const NUMBERS: usize = 4 << 20;
    (NUMBERS / size.max(1)).clamp(1, PART_ROWS)
}

/// A file whose rows can be read any number of times.
pub(super) trait Reader {
    /// Bytes that all rows take in memory, about.
    fn bytes(&self) -> usize;

    /// Calls `f` with all rows, a part at a time, in the order of the file.
    ///
    /// # Errors
    /// What is wrong with a row, or what `f` says.
    fn parts(&self, f: &mut dyn FnMut(Inputs, Column) -> Result<()>) -> Result<()>;
}

/// What is read of a file.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// The array of the inputs, if an archive has several.
    pub inputs: Option<&'a str>,
    /// The column or array that is to be predicted.
    pub target: &'a str,
    /// The columns that are taken, in their order; all others if there is none.
    pub features: &'a [String],
    /// Columns in which numbers may stand among texts.
    pub texts: &'a [&'a str],
    /// Whether any column may be so.
    pub any_texts: bool,
    /// Height and width that pictures are brought to.
    pub size: Option<[usize; 2]>,
    /// Channels of pictures.
    pub channels: Option<usize>,
}

/// All rows: in memory, or in files.
pub struct Source {
    files: Vec<Box<dyn Reader>>,
    memory: Option<(Inputs, Column)>,
    features: Vec<String>,
}

impl Source {
    /// Opens files whose rows follow each other. They are held in memory if they take no more than `limit` bytes.
    ///
    /// # Errors
    /// What is wrong with a file, by its row, column or array.
    pub fn open(paths: &[&Path], wanted: &Wanted<'_>, limit: usize) -> Result<Self> {
        let files = paths.iter().map(|path| open(path, wanted)).collect::<Result<Vec<_>>>()?;
        let mut source = Self { files, memory: None, features: wanted.features.to_vec() };
        if source.files.iter().map(|file| file.bytes()).sum::<usize>() <= limit {
            let mut memory: Option<(Inputs, Column)> = None;
            source.each(&mut |_, inputs, target| {
                match &mut memory {
                    None => memory = Some((inputs.clone(), target.clone())),
                    Some((all, targets)) => {
                        all.append(inputs)?;
                        targets.append(target).map_err(|error| Error(format!("the target `{}`: {error}", wanted.target)))?;
                    }
                }
                Ok(())
            })?;
            source.memory = memory;
            source.files.clear();
        }
        Ok(source)
    }

    /// Whether the rows are read from files each time.
    pub fn streams(&self) -> bool {
        self.memory.is_none()
    }

    /// The rows, if they are held.
    pub fn into_memory(self) -> Option<(Inputs, Column)> {
        self.memory
    }

    /// Holds only some of the rows that are in memory.
    pub fn keep(&mut self, rows: &[usize]) {
        if let Some((inputs, target)) = &mut self.memory {
            (*inputs, *target) = (inputs.pick(rows), target.pick(rows));
        }
    }

    /// Calls `f` with all rows, a part at a time: the number of the first, and the rows.
    ///
    /// # Errors
    /// What is wrong with a row, or what `f` says.
    pub fn each(&self, f: &mut dyn FnMut(usize, &Inputs, &Column) -> Result<()>) -> Result<()> {
        if let Some((inputs, target)) = &self.memory {
            return f(0, inputs, target);
        }
        let mut first = 0;
        for file in &self.files {
            file.parts(&mut |inputs, target| {
                let inputs = match inputs {
                    Inputs::Table(table) if !self.features.is_empty() => Inputs::Table(table.select(&self.features)?),
                    Inputs::Array { .. } if !self.features.is_empty() => return Err("`data.features` are columns of a table".into()),
                    other => other,
                };
                f(first, &inputs, &target)?;
                first += target.rows();
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Box<dyn Reader>> {
    if path.is_dir() {
        return Ok(Box::new(Images::open(path, wanted.size, wanted.channels)?));
    }
    let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let unpacked = if extension(path) == "gz" { path.with_extension("") } else { path.to_owned() };
    Ok(match extension(&unpacked).as_str() {
        "csv" | "tsv" => Box::new(Csv::open(path, wanted.target, if wanted.any_texts { None } else { Some(wanted.texts) })?),
        "npz" if unpacked == path => Box::new(Npz::open(path, wanted.inputs, wanted.target)?),
        "parquet" if unpacked == path => Box::new(Parquet::open(path, wanted.target)?),
        _ => {
            let known = ".csv, .tsv (also .gz), .parquet, .npz and folders of pictures by class";
            return Err(in_file(path, format!("the kind of data is not known; known are {known}")));
        }
    })
}
