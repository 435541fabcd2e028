//! Tables in Apache Parquet, read in parts. Columns are flat: lists and structs are refused by name.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::{LogicalType, TimeUnit};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{AsBytes, DataType};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::source::{PART_ROWS, Reader};
use super::{Column, Inputs, Table};
use crate::train::error::{Error, Result, in_file};

/// What the values of a column are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    /// Numbers, to be multiplied by this. Dates and times are days since 1970 began.
    Numbers(f64),
    /// Whole numbers without a sign.
    Unsigned,
    Texts,
}

/// A file whose columns are known.
pub(super) struct Parquet {
    path: PathBuf,
    names: Vec<String>,
    meanings: Vec<Meaning>,
    target: String,
    rows: usize,
}

const SECONDS_OF_DAY: f64 = 86_400.0;

impl Parquet {
    /// Reads what the file says of itself.
    ///
    /// # Errors
    /// The column that is neither numbers nor texts, or what is wrong with the file.
    pub(super) fn open(path: &Path, target: Option<&str>) -> Result<Self> {
        let reader = reader(path)?;
        let metadata = reader.metadata().file_metadata();
        let columns = metadata.schema_descr().columns();
        let names: Vec<String> = columns.iter().map(|column| column.path().string()).collect();
        let meaning = |column: &ColumnDescriptor| {
            let wrong = |what: &str| in_file(path, format!("column `{}` is {what}; numbers or texts are wanted", column.path().string()));
            if column.max_rep_level() > 0 || column.path().parts().len() > 1 {
                return Err(wrong("a list or a struct"));
            }
            of(column).map_err(|what| wrong(&what))
        };
        let meanings = columns.iter().map(|column| meaning(column)).collect::<Result<_>>()?;
        let rows = usize::try_from(metadata.num_rows()).unwrap_or(0);
        if rows == 0 {
            return Err(in_file(path, "there is no row"));
        }
        if let Some(target) = target.filter(|target| !names.iter().any(|name| name == target)) {
            return Err(in_file(path, format!("there is no column `{target}`; there are {}", super::quoted(&names))));
        }
        Ok(Self { path: path.to_owned(), names, meanings, target: target.unwrap_or_default().to_owned(), rows })
    }
}

impl Reader for Parquet {
    fn bytes(&self) -> usize {
        let size = |meaning: &Meaning| if *meaning == Meaning::Texts { 2 * size_of::<String>() } else { size_of::<f32>() };
        self.rows * self.meanings.iter().map(size).sum::<usize>()
    }

    fn parts(&self, f: &mut dyn FnMut(Inputs, Column) -> Result<()>) -> Result<()> {
        self.tables(&mut |mut table| {
            let target = table.take(&self.target)?;
            f(Inputs::Table(table), target)
        })
    }
}

impl Parquet {
    /// Calls `f` with all columns of the rows, a part at a time, in the order of the file.
    pub(super) fn tables(&self, f: &mut dyn FnMut(Table) -> Result<()>) -> Result<()> {
        let file = reader(&self.path)?;
        let said = |error: parquet::errors::ParquetError| in_file(&self.path, error);
        for group in 0..file.num_row_groups() {
            let group = file.get_row_group(group).map_err(said)?;
            let mut readers =
                (0..self.names.len()).map(|i| group.get_column_reader(i)).collect::<std::result::Result<Vec<_>, _>>().map_err(said)?;
            let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
            while left > 0 {
                let now = left.min(PART_ROWS);
                let columns = readers.iter_mut().zip(&self.meanings).zip(&self.names).map(|((reader, meaning), name)| {
                    read(reader, *meaning, now).map_err(|error| in_file(&self.path, format!("column `{name}`: {error}")))
                });
                let columns = columns.collect::<Result<Vec<_>>>()?;
                left -= now;
                f(Table { names: self.names.clone(), columns })?;
            }
        }
        Ok(())
    }
}

fn reader(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(|error| in_file(path, error))?;
    SerializedFileReader::new(file).map_err(|error| in_file(path, error))
}

/// What the values of a column mean.
fn of(column: &ColumnDescriptor) -> std::result::Result<Meaning, String> {
    use parquet::basic::Type;
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::MILLIS => 1e-3,
        TimeUnit::MICROS => 1e-6,
        TimeUnit::NANOS => 1e-9,
    };
    Ok(match (column.physical_type(), column.logical_type_ref()) {
        (_, Some(LogicalType::Timestamp(time) | LogicalType::Time(time))) => Meaning::Numbers(unit(&time.unit) / SECONDS_OF_DAY),
        (Type::INT32 | Type::INT64, Some(LogicalType::Decimal(decimal))) => Meaning::Numbers(10_f64.powi(-decimal.scale)),
        (Type::INT32 | Type::INT64, Some(LogicalType::Integer(int))) if !int.is_signed => Meaning::Unsigned,
        (Type::BOOLEAN | Type::INT32 | Type::INT64 | Type::INT96 | Type::FLOAT | Type::DOUBLE, _) => Meaning::Numbers(1.0),
        (Type::BYTE_ARRAY, None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json)) => Meaning::Texts,
        (physical, Some(logical)) => return Err(format!("{logical:?} in {physical}")),
        (physical, None) => return Err(format!("{physical}")),
    })
}

/// The next `rows` values; `None` where one is missing.
fn values<T: DataType>(reader: &mut ColumnReaderImpl<T>, rows: usize) -> Result<Vec<Option<T::T>>> {
    let (mut levels, mut found) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let mut read = 0;
    while read < rows {
        let (more, _, _) =
            reader.read_records(rows - read, Some(&mut levels), None, &mut found).map_err(|error| Error(error.to_string()))?;
        if more == 0 {
            return Err(Error(format!("it ends {} rows too early", rows - read)));
        }
        read += more;
    }
    // A column that cannot miss values has no levels.
    if found.len() == rows {
        return Ok(found.into_iter().map(Some).collect());
    }
    let mut found = found.into_iter();
    Ok(levels.iter().map(|&level| if level > 0 { found.next() } else { None }).collect())
}

fn read(reader: &mut ColumnReader, meaning: Meaning, rows: usize) -> Result<Column> {
    let factor = if let Meaning::Numbers(factor) = meaning { factor } else { 1.0 };
    let unsigned = meaning == Meaning::Unsigned;
    macro_rules! numbers {
        ($reader:expr, $number:expr) => {
            Column::Numbers(values($reader, rows)?.into_iter().map(|v| v.map_or(f32::NAN, |v| ($number(v) * factor) as f32)).collect())
        };
    }
    Ok(match reader {
        ColumnReader::BoolColumnReader(reader) => numbers!(reader, |v: bool| f64::from(u8::from(v))),
        ColumnReader::Int32ColumnReader(reader) if unsigned => numbers!(reader, |v: i32| f64::from(v.cast_unsigned())),
        ColumnReader::Int32ColumnReader(reader) => numbers!(reader, f64::from),
        ColumnReader::Int64ColumnReader(reader) if unsigned => numbers!(reader, |v: i64| v.cast_unsigned() as f64),
        ColumnReader::Int64ColumnReader(reader) => numbers!(reader, |v: i64| v as f64),
        // Only times were ever written in 96 bits.
        ColumnReader::Int96ColumnReader(reader) => numbers!(reader, |v: parquet::data_type::Int96| v.to_seconds() as f64 / SECONDS_OF_DAY),
        ColumnReader::FloatColumnReader(reader) => numbers!(reader, f64::from),
        ColumnReader::DoubleColumnReader(reader) => numbers!(reader, |v: f64| v),
        ColumnReader::ByteArrayColumnReader(reader) => {
            let text = |value: Option<parquet::data_type::ByteArray>| match value {
                None => Ok(String::new()),
                Some(bytes) => {
                    std::str::from_utf8(bytes.as_bytes()).map(str::to_owned).map_err(|_| Error("a value is not UTF-8 text".into()))
                }
            };
            Column::Texts(values(reader, rows)?.into_iter().map(text).collect::<Result<_>>()?)
        }
        ColumnReader::FixedLenByteArrayColumnReader(_) => return Err("its values are bytes of a fixed length".into()),
    })
}
