//! Rows that are read in parts: from files that need not fit into memory, or from memory.

use std::path::{Path, PathBuf};

use super::read_csv::Csv;
use super::read_images::Images;
use super::read_npz::Npz;
use super::read_parquet::Parquet;
use super::{Column, Inputs, Table};
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
    files: Vec<(PathBuf, Box<dyn Reader>)>,
    memory: Option<(Inputs, Column)>,
    features: Vec<String>,
    target: String,
}

impl Source {
    /// Opens files whose rows follow each other. They are held in memory if they take no more than `limit` bytes.
    ///
    /// # Errors
    /// What is wrong with a file, by its row, column or array.
    pub fn open(paths: &[&Path], wanted: &Wanted<'_>, limit: usize) -> Result<Self> {
        let files = paths.iter().map(|path| Ok((path.to_path_buf(), open(path, wanted)?))).collect::<Result<Vec<_>>>()?;
        let mut source = Self { files, memory: None, features: wanted.features.to_vec(), target: wanted.target.to_owned() };
        if source.files.iter().map(|(_, file)| file.bytes()).sum::<usize>() <= limit {
            let mut memory: Option<(Inputs, Column)> = None;
            source.each(&mut |_, inputs, target| {
                match &mut memory {
                    None => memory = Some((inputs.clone(), target.clone())),
                    Some((all, targets)) => {
                        all.append(inputs)?;
                        targets.append(target)?;
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
        let (mut first, mut form) = (0, None);
        for (path, file) in &self.files {
            file.parts(&mut |inputs, target| {
                let inputs = match inputs {
                    Inputs::Array { .. } if !self.features.is_empty() => return Err("`data.features` are columns of a table".into()),
                    other => {
                        let form = form.get_or_insert_with(|| Form::of(&other, &target, &self.features));
                        form.fit(other, &target, &self.target).map_err(|error| in_file(path, error))?
                    }
                };
                f(first, &inputs, &target)?;
                first += target.rows();
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// What the rows of all files have in common.
struct Form {
    rows: FormOfRows,
    numbers: bool,
}

enum FormOfRows {
    /// The columns that are taken, in their order, and which are numbers.
    Table(Vec<(String, bool)>),
    Array(Vec<usize>),
}

impl Form {
    fn of(inputs: &Inputs, target: &Column, features: &[String]) -> Self {
        let numbers = |column: &Column| matches!(column, Column::Numbers(_));
        let rows = match inputs {
            Inputs::Table(table) => {
                let names = if features.is_empty() { &table.names } else { features };
                FormOfRows::Table(names.iter().map(|name| (name.clone(), table.column(name).is_ok_and(numbers))).collect())
            }
            Inputs::Array { shape, .. } => FormOfRows::Array(shape.clone()),
        };
        Self { rows, numbers: numbers(target) }
    }

    /// The rows in this form, wherever a file has its columns.
    fn fit(&self, inputs: Inputs, target: &Column, name: &str) -> Result<Inputs> {
        let check = |column: &Column, numbers: bool, what: &str, name: &str| match matches!(column, Column::Numbers(_)) == numbers {
            true => Ok(()),
            false => Err(Error(format!("{what} `{name}`: numbers in one file, text in the other"))),
        };
        check(target, self.numbers, "the target", name)?;
        match (&self.rows, inputs) {
            (FormOfRows::Table(columns), Inputs::Table(table)) => {
                let table = if columns.iter().map(|(name, _)| name).eq(&table.names) {
                    table
                } else {
                    table.select(&columns.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>())?
                };
                for ((name, numbers), column) in columns.iter().zip(&table.columns) {
                    check(column, *numbers, "column", name)?;
                }
                Ok(Inputs::Table(table))
            }
            (FormOfRows::Array(shape), Inputs::Array { name, shape: own, values }) if own == *shape => {
                Ok(Inputs::Array { name, shape: own, values })
            }
            _ => Err("the rows of the two files have different shapes".into()),
        }
    }
}

fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Box<dyn Reader>> {
    Ok(match Format::of(path)? {
        Format::Pictures => Box::new(Images::open(path, wanted.size, wanted.channels)?),
        Format::Text => Box::new(Csv::open(path, wanted.target, if wanted.any_texts { None } else { Some(wanted.texts) })?),
        Format::Archive => Box::new(Npz::open(path, wanted.inputs, wanted.target)?),
        Format::Parquet => Box::new(Parquet::open(path, Some(wanted.target))?),
    })
}

/// The whole table of a file.
///
/// # Errors
/// What is wrong with the file, by its line or column, or that it holds no table.
pub fn read_table(path: &Path) -> Result<Table> {
    let mut whole: Option<Table> = None;
    let mut add = |part: Table| {
        match &mut whole {
            Some(table) => table.columns.iter_mut().zip(&part.columns).try_for_each(|(column, more)| column.append(more))?,
            None => whole = Some(part),
        }
        Ok(())
    };
    match Format::of(path)? {
        Format::Text => Csv::open(path, "", None)?.tables(&mut add)?,
        Format::Parquet => Parquet::open(path, None)?.tables(&mut add)?,
        Format::Archive | Format::Pictures => return Err(in_file(path, "it holds no table")),
    }
    Ok(whole.unwrap_or_default())
}

/// What a path holds, by its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// Lines of text, which may be packed.
    Text,
    /// Apache Parquet.
    Parquet,
    /// Arrays of NumPy.
    Archive,
    /// A folder of folders.
    Pictures,
}

impl Format {
    /// The format of the data at a path.
    ///
    /// # Errors
    /// If there is nothing, or its kind is not known.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Pictures);
        }
        if !path.exists() {
            return Err(in_file(path, "no such file or folder"));
        }
        let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let unpacked = if extension(path) == "gz" { path.with_extension("") } else { path.to_owned() };
        match extension(&unpacked).as_str() {
            "csv" | "tsv" => Ok(Self::Text),
            "npz" if unpacked == path => Ok(Self::Archive),
            "parquet" if unpacked == path => Ok(Self::Parquet),
            _ => {
                let known = ".csv, .tsv (also .gz), .parquet, .npz and folders of pictures by class";
                Err(in_file(path, format!("the kind of data is not known; known are {known}")))
            }
        }
    }
}
