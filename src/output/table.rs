//! Rows as a Parquet file, made of the JSON lines that a run leaves: a column for each field, lists and groups for what is
//! nested, compressed with zstd.

use super::write_whole;
use crate::{Error, ErrorKind, Result, paths::has_extension};
use parquet::{
    basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel},
    data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::{Type, TypePtr},
};
use serde_json::{Map, Value};
use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of JSON in a row group, which is held in memory.
const GROUP_BYTES: usize = 32 << 20;

/// Fields whose shape is the user's: what is nested in them stays JSON, else its keys would become columns.
const PASSED_THROUGH: [&str; 2] = ["label", "meta"];

/// Whether an output's name asks for a Parquet file.
pub fn is_table(output: &Path) -> bool {
    has_extension(output, &["parquet"])
}

/// Where the lines are that a Parquet file is made of.
pub fn journal_of(output: &Path) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(".rows.jsonl");
    name.into()
}

/// Makes `output` of the JSON lines in `journal`: whole or not at all.
///
/// # Errors
/// I/O errors.
pub fn write(journal: &Path, output: &Path) -> Result<()> {
    let mut fields = Vec::new();
    for_each_row(journal, |row, _| {
        add_fields(&mut fields, row, &PASSED_THROUGH);
        Ok(())
    })?;
    let failed = |error: ParquetError| {
        Error::new(ErrorKind::Io, format!("cannot write {}: {error}", output.display()))
    };
    write_whole(output, |file| {
        let schema = Type::group_type_builder("rows").with_fields(types(&fields)).build().map_err(failed)?;
        let level = ZstdLevel::try_new(3).map_err(failed)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let mut writer =
            SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(failed)?;
        let rows_kind = Kind::Group(fields);
        let mut columns = RowGroup::of(&rows_kind);
        let mut bytes = 0;
        for_each_row(journal, |row, length| {
            columns.add(&rows_kind, Some(row));
            bytes += length;
            if bytes >= GROUP_BYTES {
                bytes = 0;
                columns.flush(&mut writer).map_err(failed)?;
            }
            Ok(())
        })?;
        if bytes > 0 {
            columns.flush(&mut writer).map_err(failed)?;
        }
        writer.close().map(|_| ()).map_err(failed)
    })
}

/// Calls `see` with every row and the length of its line.
fn for_each_row(journal: &Path, mut see: impl FnMut(&Value, usize) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("read", journal, &error);
    let mut lines = BufReader::new(File::open(journal).map_err(failed)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let row = serde_json::from_slice(&line).map_err(|error| failed(error.into()))?;
        see(&row, line.len())?;
        line.clear();
    }
    Ok(())
}

/// What the values of a column are.
#[derive(Debug, PartialEq)]
enum Kind {
    /// Null in every row so far.
    Nothing,
    Bool,
    Int,
    Float,
    Text,
    /// Values of several kinds, or nested ones that are the user's: text as it is, the others as JSON.
    Any,
    List(Box<Kind>),
    Group(Vec<Field>),
}

#[derive(Debug, PartialEq)]
struct Field {
    name: String,
    kind: Kind,
    /// What is nested stays JSON.
    is_flat: bool,
}

/// Adds what a row shows of its fields.
fn add_fields(fields: &mut Vec<Field>, row: &Value, flat: &[&str]) {
    for (name, value) in row.as_object().into_iter().flat_map(Map::iter) {
        let position = fields.iter().position(|field| field.name == *name).unwrap_or_else(|| {
            let is_flat = flat.contains(&name.as_str());
            fields.push(Field { name: name.clone(), kind: Kind::Nothing, is_flat });
            fields.len() - 1
        });
        let Field { kind, is_flat, .. } = &mut fields[position];
        kind.add(value, *is_flat);
    }
}

impl Kind {
    /// Takes one more value in.
    fn add(&mut self, value: &Value, is_flat: bool) {
        match (&mut *self, value) {
            (_, Value::Null) | (Kind::Any, _) => {}
            (Kind::List(_) | Kind::Nothing, Value::Array(items)) if !is_flat => {
                if *self == Kind::Nothing {
                    *self = Kind::List(Box::new(Kind::Nothing));
                }
                let Kind::List(kind) = self else { unreachable!("it is a list") };
                items.iter().for_each(|item| kind.add(item, false));
            }
            (Kind::Group(_) | Kind::Nothing, Value::Object(_)) if !is_flat => {
                if *self == Kind::Nothing {
                    *self = Kind::Group(Vec::new());
                }
                let Kind::Group(fields) = self else { unreachable!("it is a group") };
                add_fields(fields, value, &[]);
            }
            (_, value) => {
                let kind = match value {
                    Value::Bool(_) => Kind::Bool,
                    Value::Number(number) if number.is_i64() => Kind::Int,
                    // Beyond i64 only text keeps every digit.
                    Value::Number(number) if number.is_f64() => Kind::Float,
                    Value::String(_) => Kind::Text,
                    _ => Kind::Any,
                };
                *self = match (&*self, kind) {
                    (Kind::Nothing, kind) => kind,
                    (before, kind) if *before == kind => kind,
                    (Kind::Int, Kind::Float) | (Kind::Float, Kind::Int) => Kind::Float,
                    _ => Kind::Any,
                };
            }
        }
    }

    /// The column's type. All may be null.
    fn to_type(&self, name: &str) -> TypePtr {
        let leaf = |physical, logical| {
            Type::primitive_type_builder(name, physical)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(logical)
                .build()
        };
        let group = |name: &str, repetition, logical, fields| {
            Type::group_type_builder(name)
                .with_repetition(repetition)
                .with_logical_type(logical)
                .with_fields(fields)
                .build()
        };
        let built = match self {
            Kind::Bool => leaf(Physical::BOOLEAN, None),
            Kind::Int => leaf(Physical::INT64, None),
            Kind::Float => leaf(Physical::DOUBLE, None),
            Kind::Nothing | Kind::Text | Kind::Any => leaf(Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Kind::Group(fields) => group(name, Repetition::OPTIONAL, None, types(fields)),
            Kind::List(kind) => group("list", Repetition::REPEATED, None, vec![kind.to_type("element")])
                .and_then(|list| {
                    group(name, Repetition::OPTIONAL, Some(LogicalType::List), vec![Arc::new(list)])
                }),
        };
        Arc::new(built.expect("a valid type: leaves of these types, groups of at least one field"))
    }
}

/// The columns of a group.
fn types(fields: &[Field]) -> Vec<TypePtr> {
    fields.iter().map(|field| field.kind.to_type(&field.name)).collect()
}

/// The columns of a row group: values with the levels that say where they belong (Dremel's).
#[derive(Default)]
struct RowGroup {
    leaves: Vec<Leaf>,
    /// The leaf that the next value goes to.
    next: usize,
}

struct Leaf {
    values: Values,
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

enum Values {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
    Text(Vec<ByteArray>),
}

/// How deep a value lies.
#[derive(Clone, Copy)]
struct Levels {
    definition: i16,
    /// Of this value: 0 where it begins a row.
    repetition: i16,
    /// Lists around it.
    lists: i16,
}

impl RowGroup {
    fn of(kind: &Kind) -> Self {
        let mut columns = Self::default();
        columns.add_leaves(kind);
        columns
    }

    fn add_leaves(&mut self, kind: &Kind) {
        let values = match kind {
            Kind::Group(fields) => return fields.iter().for_each(|field| self.add_leaves(&field.kind)),
            Kind::List(kind) => return self.add_leaves(kind),
            Kind::Bool => Values::Bool(Vec::new()),
            Kind::Int => Values::Int(Vec::new()),
            Kind::Float => Values::Float(Vec::new()),
            Kind::Nothing | Kind::Text | Kind::Any => Values::Text(Vec::new()),
        };
        self.leaves.push(Leaf { values, definition: Vec::new(), repetition: Vec::new() });
    }

    /// Adds a row: a group that is always there.
    fn add(&mut self, kind: &Kind, row: Option<&Value>) {
        self.next = 0;
        self.shred(kind, row, Levels { definition: -1, repetition: 0, lists: 0 });
    }

    /// Takes a value apart.
    fn shred(&mut self, kind: &Kind, value: Option<&Value>, at: Levels) {
        let value = value.filter(|value| !value.is_null());
        let there = Levels { definition: at.definition + 1, ..at };
        match (kind, value) {
            (Kind::Group(fields), Some(value)) => {
                fields.iter().for_each(|field| self.shred(&field.kind, value.get(&field.name), there));
            }
            (Kind::Group(fields), None) => {
                fields.iter().for_each(|field| self.shred_nothing(&field.kind, at));
            }
            (Kind::List(kind), Some(Value::Array(items))) if !items.is_empty() => {
                let first_leaf = self.next;
                for (index, item) in items.iter().enumerate() {
                    self.next = first_leaf;
                    let lists = at.lists + 1;
                    let repetition = if index == 0 { at.repetition } else { lists };
                    self.shred(kind, Some(item), Levels { definition: at.definition + 2, repetition, lists });
                }
            }
            (Kind::List(kind), Some(_)) => self.shred_nothing(kind, there),
            (Kind::List(kind), None) => self.shred_nothing(kind, at),
            (_, Some(value)) => {
                let leaf = &mut self.leaves[self.next];
                leaf.values.push(value);
                self.end_leaf(there);
            }
            (_, None) => self.end_leaf(at),
        }
    }

    /// All leaves below are empty from here on.
    fn shred_nothing(&mut self, kind: &Kind, at: Levels) {
        match kind {
            Kind::Group(fields) => fields.iter().for_each(|field| self.shred_nothing(&field.kind, at)),
            Kind::List(kind) => self.shred_nothing(kind, at),
            _ => self.end_leaf(at),
        }
    }

    fn end_leaf(&mut self, at: Levels) {
        let leaf = &mut self.leaves[self.next];
        leaf.definition.push(at.definition);
        leaf.repetition.push(at.repetition);
        self.next += 1;
    }

    /// Writes what was added as a row group.
    fn flush(&mut self, writer: &mut SerializedFileWriter<&mut File>) -> Result<(), ParquetError> {
        let mut group = writer.next_row_group()?;
        for leaf in &mut self.leaves {
            leaf.flush(&mut group)?;
        }
        group.close().map(|_| ())
    }
}

impl Leaf {
    fn flush(&mut self, group: &mut SerializedRowGroupWriter<'_, &mut File>) -> Result<(), ParquetError> {
        let mut column = group.next_column()?.expect("a column for every leaf");
        let (definition, repetition) = (Some(&self.definition[..]), Some(&self.repetition[..]));
        match &mut self.values {
            Values::Bool(values) => {
                column.typed::<BoolType>().write_batch(values, definition, repetition)?;
                values.clear();
            }
            Values::Int(values) => {
                column.typed::<Int64Type>().write_batch(values, definition, repetition)?;
                values.clear();
            }
            Values::Float(values) => {
                column.typed::<DoubleType>().write_batch(values, definition, repetition)?;
                values.clear();
            }
            Values::Text(values) => {
                column.typed::<ByteArrayType>().write_batch(values, definition, repetition)?;
                values.clear();
            }
        }
        self.definition.clear();
        self.repetition.clear();
        column.close()
    }
}

impl Values {
    /// # Panics
    /// Where the value is not of the column's kind, which was found by looking at all rows.
    fn push(&mut self, value: &Value) {
        const KIND: &str = "the kind of all values of the column";
        match self {
            Values::Bool(values) => values.push(value.as_bool().expect(KIND)),
            Values::Int(values) => values.push(value.as_i64().expect(KIND)),
            Values::Float(values) => values.push(value.as_f64().expect(KIND)),
            Values::Text(values) => values.push(text_of(value).into_bytes().into()),
        }
    }
}

/// A value in a column of text, or as the name of a class: a text itself, anything else as JSON.
pub fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
