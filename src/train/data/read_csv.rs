//! Tables of comma-separated values (RFC 4180) with a line of names, read in parts.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use super::source::{PART_ROWS, Reader};
use super::{Column, Inputs, Table};
use crate::train::error::{Error, Result, in_file};

/// Cells that stand for a missing value.
const MISSING: &[&str] = &["", "na", "n/a", "nan", "null", "none", "?"];

/// A file whose columns are known.
#[derive(Clone, Debug)]
pub(super) struct Csv {
    path: PathBuf,
    names: Vec<String>,
    /// Which columns are numbers.
    numbers: Vec<bool>,
    target: String,
    bytes: usize,
}

/// What the first pass finds of a column.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    numbers: usize,
    /// Values that are no numbers, and the line of the first.
    texts: usize,
    line: u64,
}

impl Csv {
    /// Reads the file once to know its columns. A column is of numbers if every value that is not missing is one. The first line
    /// decides between commas, semicolons and tabs. `texts` are columns that may mix numbers and texts; without it all may.
    ///
    /// # Errors
    /// The line whose number of cells is not that of the names, a column without a value, or one of numbers with a few cells that
    /// are none: the line and the cell; or what is wrong with the file.
    pub(super) fn open(path: &Path, target: &str, texts: Option<&[&str]>) -> Result<Self> {
        let said = |error: Error| in_file(path, error);
        let (names, kinds, bytes) = scan(open(path)?, target, texts).map_err(said)?;
        let numbers = kinds.iter().map(|kind| kind.texts == 0).collect();
        Ok(Self { path: path.to_owned(), names, numbers, target: target.to_owned(), bytes })
    }
}

impl Reader for Csv {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn parts(&self, f: &mut dyn FnMut(Inputs, Column) -> Result<()>) -> Result<()> {
        self.tables(&mut |mut table| {
            let target = table.take(&self.target).map_err(|error| in_file(&self.path, error))?;
            f(Inputs::Table(table), target)
        })
    }
}

impl Csv {
    /// Calls `f` with all columns of the rows, a part at a time, in the order of the file.
    pub(super) fn tables(&self, f: &mut dyn FnMut(Table) -> Result<()>) -> Result<()> {
        let inside = |error: Error| in_file(&self.path, error);
        let empty = || -> Vec<Column> {
            let column = |&numbers: &bool| if numbers { Column::Numbers(Vec::new()) } else { Column::Texts(Vec::new()) };
            self.numbers.iter().map(column).collect()
        };
        let mut give = |columns: Vec<Column>| f(Table { names: self.names.clone(), columns });
        let mut columns = empty();
        let mut reader = reader(open(&self.path)?).map_err(inside)?;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| inside(said(error)))? {
            for (column, cell) in columns.iter_mut().zip(&record) {
                match column {
                    Column::Numbers(values) if missing(cell) => values.push(f32::NAN),
                    // A cell that the first pass did not see: the file has changed since.
                    Column::Numbers(values) => values.push(number(cell).ok_or_else(|| inside("it changed while it was read".into()))?),
                    Column::Texts(values) => values.push(if missing(cell) { String::new() } else { cell.to_owned() }),
                }
            }
            if columns.first().is_some_and(|column| column.rows() == PART_ROWS) {
                give(std::mem::replace(&mut columns, empty()))?;
            }
        }
        if columns.first().is_some_and(|column| column.rows() > 0) { give(columns) } else { Ok(()) }
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(|error| in_file(path, error))?;
    let packed = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    Ok(if packed { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) })
}

fn reader(source: impl Read) -> Result<csv::Reader<impl Read>> {
    /// The most bytes that a line of names may have.
    const NAMES: u64 = 16 << 20;
    let mut source = BufReader::new(source);
    let mut first = Vec::new();
    (&mut source).take(NAMES).read_until(b'\n', &mut first).map_err(|error| Error(error.to_string()))?;
    let count = |delimiter: u8| first.iter().filter(|&&b| b == delimiter).count();
    let delimiter = [b',', b';', b'\t'].into_iter().rev().max_by_key(|&d| count(d)).unwrap_or(b',');
    let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&first).to_vec();
    Ok(csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(Cursor::new(text).chain(source)))
}

fn missing(cell: &str) -> bool {
    cell.len() <= 4 && MISSING.iter().any(|word| cell.eq_ignore_ascii_case(word))
}

fn number(cell: &str) -> Option<f32> {
    cell.parse::<f64>().ok().filter(|v| v.is_finite()).map(|v| v as f32)
}

/// The names of the columns, what they hold, and the bytes of all cells in memory.
fn scan(source: impl Read, target: &str, texts: Option<&[&str]>) -> Result<(Vec<String>, Vec<Kind>, usize)> {
    let mut reader = reader(source)?;
    let names: Vec<String> = reader.headers().map_err(said)?.iter().map(str::to_owned).collect();
    if let Some((at, name)) = names.iter().enumerate().find(|(at, name)| name.is_empty() || names[..*at].contains(name)) {
        return Err(Error(format!("column {} has no name of its own: {name:?}", at + 1)));
    }
    let mut kinds = vec![Kind::default(); names.len()];
    let mut odd: Vec<String> = vec![String::new(); names.len()];
    let (mut record, mut rows, mut bytes) = (csv::StringRecord::new(), 0, 0);
    while reader.read_record(&mut record).map_err(said)? {
        rows += 1;
        for (at, cell) in record.iter().enumerate().filter(|(_, cell)| !missing(cell)) {
            let kind = &mut kinds[at];
            if number(cell).is_some() {
                kind.numbers += 1;
                continue;
            }
            if kind.texts == 0 {
                kind.line = record.position().map_or(0, csv::Position::line);
                cell.clone_into(&mut odd[at]);
            }
            kind.texts += 1;
            bytes += size_of::<String>() + cell.len();
        }
    }
    if rows == 0 {
        return Err("there is no row".into());
    }
    for ((name, kind), odd) in names.iter().zip(&kinds).zip(&odd) {
        if kind.numbers + kind.texts == 0 {
            return Err(Error(format!("column `{name}` has no value in any row")));
        }
        // A text or two among many numbers is a broken cell rather than a category.
        let broken = kind.texts > 0 && kind.texts * 20 <= kind.numbers;
        if broken && name != target && texts.is_some_and(|texts| !texts.contains(&name.as_str())) {
            return Err(Error(format!(
                "line {}: column `{name}` is {odd:?}, which is no number as its other {} values are; if they are texts, give the column an \
                 `encode`",
                kind.line, kind.numbers
            )));
        }
    }
    bytes += rows * kinds.iter().filter(|kind| kind.texts == 0).count() * size_of::<f32>();
    Ok((names, kinds, bytes))
}

/// The error of the reader in words that name the line.
fn said(error: csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    Error(match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("line {line}: {len} cells where the names are {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => format!("line {line}: it is not UTF-8 text"),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &[u8]) -> Result<Vec<bool>> {
        scan(text, "t", Some(&["mixed"])).map(|(_, kinds, _)| kinds.iter().map(|kind| kind.texts == 0).collect())
    }

    #[test]
    fn columns_are_numbers_or_texts() {
        assert_eq!(kinds(b"\xef\xbb\xbfa;b;c\r\n1;x;\n2.5;\"y;z\";NA\n").unwrap_err().0, "column `c` has no value in any row");
        assert_eq!(kinds(b"a,b,c\r\n1,x,\n-2.5e3,\"y,\"\"z\",4\n"), Ok(vec![true, false, true]));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        let mut broken = "a,t\n".to_owned();
        (0..30).for_each(|i| broken.push_str(&format!("{},1\n", if i == 17 { "1O".to_owned() } else { i.to_string() })));
        assert_eq!(kinds(broken.replace("a,t", "mixed,t").as_bytes()), Ok(vec![false, true]));
        let many =
            "line 19: column `a` is \"1O\", which is no number as its other 29 values are; if they are texts, give the column an `encode`";
        for (text, message) in [
            (&b"a,b\n1,2\n3\n"[..], "line 3: 1 cells where the names are 2"),
            (b"a,b\n1,2,3\n", "line 2: 3 cells where the names are 2"),
            (b"a,a\n1,2\n", "column 2 has no name of its own: \"a\""),
            (b"a,b\n", "there is no row"),
            (b"a,b\n1,\xff\n", "line 2: it is not UTF-8 text"),
            (broken.as_bytes(), many),
        ] {
            assert_eq!(kinds(text).unwrap_err().0, message);
        }
    }
}
