//! The rows of a Parquet file as lines of JSON: what holds for lines holds for them.

use std::{
    fs::File,
    io::{self, Read},
};

use parquet::{
    basic::{Compression, ConvertedType, LogicalType, Type as Physical},
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::reader::RowIter,
    schema::types::Type,
};
use serde_json::Value;

use crate::error::{Error, Result};

/// Reads a Parquet file from its first row on, a row in memory at a time (and the library's pages).
pub(super) struct TableLines {
    rows: RowIter<'static>,
    line: Vec<u8>,
    /// Bytes of `line` that have been read.
    read: usize,
}

impl TableLines {
    /// # Errors
    /// A usage error that names the file where it is not Parquet, or the column that is of another type than its rows need.
    pub fn open(file: File, name: &str) -> Result<Self> {
        let reader = open(file, name)?;
        for column in reader.metadata().file_metadata().schema().get_fields() {
            if let Some(expected) = expected(column) {
                return Err(Error::usage(format!(
                    "{name}: column {} must hold {expected}, found {}",
                    column.name(),
                    told(column)
                )));
            }
        }
        Ok(Self { rows: RowIter::from_file_into(Box::new(reader)), line: Vec::new(), read: 0 })
    }
}

/// The number of rows.
pub(super) fn count_rows(file: File, name: &str) -> Result<u64> {
    Ok(open(file, name)?.metadata().file_metadata().num_rows().unsigned_abs())
}

fn open(file: File, name: &str) -> Result<SerializedFileReader<File>> {
    let reader = SerializedFileReader::new(file)
        .map_err(|error| Error::usage(format!("{name} is not a whole Parquet file: {error}")))?;
    let columns = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
    let is_readable = |codec: &Compression| {
        use Compression::{GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
        matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_) | LZ4 | LZ4_RAW)
    };
    match columns.map(|column| column.compression()).find(|codec| !is_readable(codec)) {
        None => Ok(reader),
        Some(codec) => Err(Error::usage(format!(
            "{name} is compressed with {codec}, expected zstd, snappy, gzip, lz4 or nothing"
        ))),
    }
}

/// What a column must hold, if it holds something else.
fn expected(column: &Type) -> Option<&'static str> {
    let (fits, expected) = match column.name() {
        "prompt" => (is_text(column), "strings"),
        "id" | "custom_id" => (is_text(column) || is_integer(column), "strings or integers"),
        "messages" => (element(column).is_some_and(Type::is_group), "lists of groups with role and content"),
        "token_ids" | "prompt_token_ids" => (element(column).is_some_and(is_integer), "lists of integers"),
        _ => return None,
    };
    // A column of nulls has no type.
    let is_null = matches!(column.get_basic_info().logical_type_ref(), Some(LogicalType::Unknown));
    (!fits && !is_null).then_some(expected)
}

fn is_text(column: &Type) -> bool {
    let info = column.get_basic_info();
    column.is_primitive()
        && (info.converted_type() == ConvertedType::UTF8
            || matches!(info.logical_type_ref(), Some(LogicalType::String)))
}

fn is_integer(column: &Type) -> bool {
    column.is_primitive()
        && matches!(column.get_physical_type(), Physical::INT32 | Physical::INT64)
        && !matches!(
            column.get_basic_info().converted_type(),
            ConvertedType::DECIMAL
                | ConvertedType::DATE
                | ConvertedType::TIME_MILLIS
                | ConvertedType::TIME_MICROS
                | ConvertedType::TIMESTAMP_MILLIS
                | ConvertedType::TIMESTAMP_MICROS
        )
}

/// What the lists of a column hold.
fn element(column: &Type) -> Option<&Type> {
    let info = column.get_basic_info();
    let is_list = info.converted_type() == ConvertedType::LIST
        || matches!(info.logical_type_ref(), Some(LogicalType::List));
    if !column.is_group() || !is_list {
        return None;
    }
    let entry = column.get_fields().first()?;
    if entry.is_group() { entry.get_fields().first().map(AsRef::as_ref) } else { Some(entry) }
}

/// What a column holds, for messages.
fn told(column: &Type) -> String {
    if let Some(element) = element(column) {
        return format!("lists of {}", told(element));
    }
    match column {
        Type::GroupType { .. } => "groups".into(),
        Type::PrimitiveType { .. } if is_text(column) => "strings".into(),
        Type::PrimitiveType { physical_type, .. } => physical_type.to_string(),
    }
}

impl Read for TableLines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.line.len() {
            let failed = |error: ParquetError| io::Error::other(error);
            let Some(row) = self.rows.next().transpose().map_err(failed)? else { return Ok(0) };
            let mut row = row.to_json_value();
            // A column has a value in every row; null is that of a row without one.
            if let Value::Object(fields) = &mut row {
                fields.retain(|_, value| !value.is_null());
            }
            self.line.clear();
            self.read = 0;
            serde_json::to_writer(&mut self.line, &row)?;
            self.line.push(b'\n');
        }
        let length = (&self.line[self.read..]).read(buffer)?;
        self.read += length;
        Ok(length)
    }
}
