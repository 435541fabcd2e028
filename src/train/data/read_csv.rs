//! Tables of comma-separated values (RFC 4180) with a line of names.

use std::path::Path;

use super::{Column, Table};
use crate::train::error::{Error, Result, in_file};

/// Cells that stand for a missing value.
const MISSING: &[&str] = &["", "na", "n/a", "nan", "null", "none", "?"];

/// The table of a file. A column is of numbers if every value that is not missing is one. The first line decides between commas,
/// semicolons and tabs.
///
/// # Errors
/// The line whose number of cells is not that of the names, or what is wrong with the file.
pub fn read_csv(path: &Path) -> Result<Table> {
    let text = std::fs::read(path).map_err(|error| in_file(path, error))?;
    parse(&text).map_err(|error| in_file(path, error))
}

fn parse(text: &[u8]) -> Result<Table> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let first = text.split(|&b| b == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| first.iter().filter(|&&b| b == delimiter).count();
    let delimiter = [b',', b';', b'\t'].into_iter().rev().max_by_key(|&d| count(d)).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(text);
    let names: Vec<String> = reader.headers().map_err(said)?.iter().map(str::to_owned).collect();
    if let Some((at, name)) = names.iter().enumerate().find(|(at, name)| name.is_empty() || names[..*at].contains(name)) {
        return Err(Error(format!("column {} has no name of its own: {name:?}", at + 1)));
    }
    let mut cells: Vec<Vec<String>> = vec![Vec::new(); names.len()];
    for record in reader.records() {
        let record = record.map_err(said)?;
        for (column, cell) in cells.iter_mut().zip(record.iter()) {
            column.push(if MISSING.contains(&cell.to_ascii_lowercase().as_str()) { String::new() } else { cell.to_owned() });
        }
    }
    if cells.first().is_none_or(Vec::is_empty) {
        return Err("there is no row".into());
    }
    let column = |(name, cells): (&String, Vec<String>)| {
        if cells.iter().all(String::is_empty) {
            return Err(Error(format!("column `{name}` has no value in any row")));
        }
        let numbers = cells.iter().map(|cell| if cell.is_empty() { Some(f32::NAN) } else { number(cell) }).collect::<Option<Vec<f32>>>();
        Ok(numbers.map_or(Column::Texts(cells), Column::Numbers))
    };
    let columns = names.iter().zip(cells).map(column).collect::<Result<_>>()?;
    Ok(Table { names, columns })
}

fn number(cell: &str) -> Option<f32> {
    cell.parse::<f64>().ok().filter(|v| v.is_finite()).map(|v| v as f32)
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

    #[test]
    fn columns_are_numbers_or_texts() {
        let table = parse(b"\xef\xbb\xbfa;b;c\r\n1;x;\n2.5;\"y;z\";NA\n").unwrap_err();
        assert_eq!(table.0, "column `c` has no value in any row");
        let table = parse(b"a,b,c\r\n1,x,\n-2.5e3,\"y,\"\"z\",4\n").unwrap();
        assert_eq!(table.names, ["a", "b", "c"]);
        assert_eq!(table.columns[0], Column::Numbers(vec![1.0, -2500.0]));
        assert_eq!(table.columns[1], Column::Texts(vec!["x".into(), "y,\"z".into()]));
        assert!(table.columns[2].missing(0) && !table.columns[2].missing(1));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (text, message) in [
            (&b"a,b\n1,2\n3\n"[..], "line 3: 1 cells where the names are 2"),
            (b"a,b\n1,2,3\n", "line 2: 3 cells where the names are 2"),
            (b"a,a\n1,2\n", "column 2 has no name of its own: \"a\""),
            (b"a,b\n", "there is no row"),
            (b"a,b\n1,\xff\n", "line 2: it is not UTF-8 text"),
        ] {
            assert_eq!(parse(text).unwrap_err().0, message);
        }
    }
}
