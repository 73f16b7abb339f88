//! The rows of a CSV file as lines of JSON, by the names in its first row: what holds for lines holds for them.

use csv::{ByteRecord, Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::{
    io::{self, Chain, Read},
    path::Path,
};

use crate::error::{Error, Result};

/// Columns whose cells are JSON.
const JSON: [&str; 4] = ["messages", "token_ids", "prompt_token_ids", "meta"];

/// A row after the last one: one that does not come as it is lies within a quote that nothing closes.
const END: &[u8] = b"\n\x1a end of file \x1a\n";
const END_CELL: &str = "\x1a end of file \x1a";

/// Reads a CSV file, a row in memory at a time.
pub(super) struct CsvLines<R> {
    reader: Reader<Chain<R, &'static [u8]>>,
    names: Vec<String>,
    record: ByteRecord,
    line: Vec<u8>,
    /// Bytes of `line` that have been read.
    read: usize,
}

impl<R: Read> CsvLines<R> {
    /// # Errors
    /// A usage error that names the file where the first row does not name the columns; reading.
    pub fn open(file: R, name: &str) -> Result<Self> {
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(file.chain(END));
        let header = reader.headers().map_err(|error| match error.kind() {
            csv::ErrorKind::Io(error) => Error::io("read", Path::new(name), error),
            _ => Error::usage(format!("{name}: {error}")),
        })?;
        let mut names: Vec<String> = header.iter().map(str::to_owned).collect();
        if names.last().is_some_and(|last| last.contains(END_CELL)) {
            if names.len() > 1 || names[0] != END_CELL {
                return Err(Error::usage(format!("{name}: a quote of the first row is not closed")));
            }
            // An empty file.
            names.clear();
            reader.set_headers(StringRecord::new());
        }
        if let Some(twice) =
            names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name))
        {
            return Err(Error::usage(format!("{name}: two columns are called {twice:?}")));
        }
        Ok(Self { reader, names, record: ByteRecord::new(), line: Vec::new(), read: 0 })
    }

    /// The number of rows besides the first.
    pub fn count(mut self) -> io::Result<u64> {
        let mut rows = 0;
        while self.next_record()? {
            rows += 1;
        }
        Ok(rows)
    }

    /// Reads the next row; `false` where there is none.
    fn next_record(&mut self) -> io::Result<bool> {
        Ok(self.reader.read_byte_record(&mut self.record)?
            && !(self.record.len() == 1 && &self.record[0] == END_CELL.as_bytes()))
    }

    /// Makes the next row a line; `false` where there is none.
    fn next_line(&mut self) -> io::Result<bool> {
        if !self.next_record()? {
            return Ok(false);
        }
        self.line.clear();
        self.read = 0;
        serde_json::to_writer(&mut self.line, &value_of(&self.names, &self.record))?;
        self.line.push(b'\n');
        Ok(true)
    }
}

/// The fields of a row, or text that says why it has none.
fn value_of(names: &[String], record: &ByteRecord) -> Value {
    let is_open = |cell: &[u8]| cell.trim_ascii_end().ends_with(END_CELL.as_bytes());
    if record.iter().next_back().is_some_and(is_open) {
        return "a quote that opens in this row is not closed".into();
    }
    if record.len() != names.len() {
        return format!("the row has {} cells, expected {}", record.len(), names.len()).into();
    }
    let cells: Vec<Result<&str, _>> = record.iter().map(std::str::from_utf8).collect();
    match cells.iter().position(Result::is_err) {
        Some(column) => format!("the cell of column {} is not valid UTF-8", names[column]).into(),
        None => object_of(names, &cells.into_iter().flatten().collect::<Vec<&str>>()),
    }
}

/// Empty cells are no fields.
fn object_of(names: &[String], cells: &[&str]) -> Value {
    let value = |(name, cell): (&String, &&str)| {
        let text = || Value::from(*cell);
        let value = match name.as_str() {
            json if JSON.contains(&json) => serde_json::from_str(cell).unwrap_or_else(|_| text()),
            "id" | "custom_id" => {
                let number = cell.parse::<i64>().ok().filter(|number| number.to_string() == **cell);
                number.map_or_else(text, Value::from)
            }
            _ => text(),
        };
        (name.clone(), value)
    };
    names.iter().zip(cells).filter(|(_, cell)| !cell.is_empty()).map(value).collect::<Map<_, _>>().into()
}

impl<R: Read> Read for CsvLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.line.len() && !self.next_line()? {
            return Ok(0);
        }
        let length = (&self.line[self.read..]).read(buffer)?;
        self.read += length;
        Ok(length)
    }
}
