//! Columns that come and go by the Arrow C data interface (its PyCapsule protocol), without copies.

use crate::{
    errors::usage,
    inputs::{Row, null, out_of_range},
};
use arrow_array::{
    Array, ArrayRef, LargeStringArray, RecordBatch, RecordBatchIterator, StringArray, StringViewArray,
    StructArray,
    cast::AsArray,
    ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi, to_ffi},
    ffi_stream::{ArrayStreamReader, FFI_ArrowArrayStream},
    make_array,
    types::{
        Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
        UInt32Type, UInt64Type,
    },
};
use arrow_schema::{ArrowError, DataType};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyCapsule, PyCapsuleMethods, PyTuple},
};
use serde_json::{Value, json};
use std::{ffi::CStr, ops::Range};
use tuco::prompt::{Content, ContentRef, RowError, RowErrorKind};

const SCHEMA: &CStr = c"arrow_schema";
const ARRAY: &CStr = c"arrow_array";
const STREAM: &CStr = c"arrow_array_stream";

/// A chunk of a column of prompts.
pub enum Column {
    Text(StringArray),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    /// Where the ids of each prompt are, or what is wrong with them.
    Ids(Ids, Vec<Result<Range<usize>, RowError>>),
    Messages(Vec<Result<Vec<Value>, RowError>>),
}

/// Token ids of all prompts of a chunk: as they are, or converted.
pub enum Ids {
    Shared(arrow_array::UInt32Array),
    Converted(Vec<u32>),
}

impl Column {
    /// The chunks of a column; `None` for what does not speak the protocol.
    pub fn read(given: &Bound<'_, PyAny>) -> PyResult<Option<Vec<Self>>> {
        let chunks = if given.hasattr("__arrow_c_stream__")? {
            chunks_of(&given.call_method0("__arrow_c_stream__")?)?
        } else if given.hasattr("__arrow_c_array__")? {
            vec![array_of(&given.call_method0("__arrow_c_array__")?)?]
        } else {
            return Ok(None);
        };
        chunks.iter().map(Self::of).collect::<PyResult<_>>().map(Some)
    }

    fn of(array: &ArrayRef) -> PyResult<Self> {
        match array.data_type() {
            DataType::Utf8 => Ok(Self::Text(array.as_string::<i32>().clone())),
            DataType::LargeUtf8 => Ok(Self::LargeText(array.as_string::<i64>().clone())),
            DataType::Utf8View => Ok(Self::TextView(array.as_string_view().clone())),
            DataType::Dictionary(..) => spelled_out(array).map(Self::Text),
            // What has no value has no type.
            DataType::Null => {
                Ok(Self::Ids(Ids::Converted(Vec::new()), (0..array.len()).map(|_| Err(null())).collect()))
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => Self::of_lists(array),
            DataType::Struct(fields) => Err(PyTypeError::new_err(format!(
                "prompts is a table with columns {}, expected one column",
                fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
            ))),
            other => Err(expected_column(other)),
        }
    }

    fn of_lists(array: &ArrayRef) -> PyResult<Self> {
        let (values, ranges) = lists_of(array);
        let whole = |range: Option<Range<usize>>| {
            let range = range.ok_or_else(null)?;
            let is_null = |index: &usize| values.data_type() == &DataType::Null || values.is_null(*index);
            match range.clone().find(is_null) {
                Some(index) => Err(invalid(format!("token id {} is null", index - range.start))),
                None => Ok(range),
            }
        };
        let shared = || ranges.iter().cloned().map(whole).collect();
        Ok(match values.data_type() {
            DataType::UInt32 => Self::Ids(Ids::Shared(values.as_primitive::<UInt32Type>().clone()), shared()),
            DataType::Int8 => Self::converted(shared(), values.as_primitive::<Int8Type>().values()),
            DataType::Int16 => Self::converted(shared(), values.as_primitive::<Int16Type>().values()),
            DataType::Int32 => Self::converted(shared(), values.as_primitive::<Int32Type>().values()),
            DataType::Int64 => Self::converted(shared(), values.as_primitive::<Int64Type>().values()),
            DataType::UInt8 => Self::converted(shared(), values.as_primitive::<UInt8Type>().values()),
            DataType::UInt16 => Self::converted(shared(), values.as_primitive::<UInt16Type>().values()),
            DataType::UInt64 => Self::converted(shared(), values.as_primitive::<UInt64Type>().values()),
            DataType::Null => Self::converted::<u32>(shared(), &[]),
            DataType::Struct(_) => return messages_of(values.as_struct(), &ranges),
            _ => return Err(expected_column(array.data_type())),
        })
    }

    /// Ids of another type: those of the lists alone, one after the other.
    fn converted<T: Copy + Into<i128>>(lists: Vec<Result<Range<usize>, RowError>>, values: &[T]) -> Self {
        let mut ids: Vec<u32> = Vec::new();
        let convert = |list: Result<Range<usize>, RowError>| {
            let start = ids.len();
            for value in &values[list?] {
                let id: i128 = (*value).into();
                ids.push(u32::try_from(id).map_err(|_| out_of_range(ids.len() - start, &id))?);
            }
            Ok(start..ids.len())
        };
        let lists = lists.into_iter().map(convert).collect();
        Self::Ids(Ids::Converted(ids), lists)
    }

    /// Adds the prompts of this chunk.
    pub fn append_to<'a>(&'a self, rows: &mut Vec<Row<'a>>) {
        match self {
            Self::Text(texts) => rows.extend(texts.iter().map(text_row)),
            Self::LargeText(texts) => rows.extend(texts.iter().map(text_row)),
            Self::TextView(texts) => rows.extend(texts.iter().map(text_row)),
            Self::Messages(conversations) => rows.extend(conversations.iter().map(|messages| {
                messages.as_ref().map(|messages| ContentRef::Messages(messages)).map_err(Clone::clone)
            })),
            Self::Ids(ids, ranges) => {
                let values: &[u32] = match ids {
                    Ids::Shared(array) => array.values(),
                    Ids::Converted(values) => values,
                };
                rows.extend(
                    ranges
                        .iter()
                        .map(|range| range.clone().map(|range| ContentRef::TokenIds(&values[range]))),
                );
            }
        }
    }
}

fn text_row(text: Option<&str>) -> Row<'_> {
    text.map(ContentRef::Prompt).ok_or_else(null)
}

fn invalid(message: impl Into<String>) -> RowError {
    RowError::new(RowErrorKind::InvalidRow, message)
}

fn expected_column(found: &DataType) -> PyErr {
    PyTypeError::new_err(format!(
        "prompts is an Arrow column of {found}, expected strings, lists of integers, or lists of structs with role and content"
    ))
}

/// The values of a list array, and which of them are in each list.
fn lists_of(array: &ArrayRef) -> (ArrayRef, Vec<Option<Range<usize>>>) {
    let list = |row: usize, range: Range<usize>| (!array.is_null(row)).then_some(range);
    match array.data_type() {
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let ends = lists.offsets().windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
            (lists.values().clone(), ends.enumerate().map(|(row, range)| list(row, range)).collect())
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            let ends = lists.offsets().windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
            (lists.values().clone(), ends.enumerate().map(|(row, range)| list(row, range)).collect())
        }
        _ => {
            let lists = array.as_fixed_size_list();
            let width = lists.value_length() as usize;
            let ranges = (0..lists.len()).map(|row| list(row, row * width..(row + 1) * width)).collect();
            (lists.values().clone(), ranges)
        }
    }
}

/// Conversations: lists of structs.
fn messages_of(messages: &StructArray, ranges: &[Option<Range<usize>>]) -> PyResult<Column> {
    if let Some(field) = messages.fields().iter().find(|field| !is_json(field.data_type())) {
        return Err(PyTypeError::new_err(format!(
            "prompts has messages whose {} is {}, expected text, numbers, booleans, or lists and structs of such",
            field.name(),
            field.data_type()
        )));
    }
    let conversation = |range: &Option<Range<usize>>| {
        let range = range.clone().ok_or_else(null)?;
        match Content::of_messages(range.map(|row| json_at(messages, row)).collect())? {
            Content::Messages(messages) => Ok(messages),
            _ => unreachable!("a conversation is messages"),
        }
    };
    Ok(Column::Messages(ranges.iter().map(conversation).collect()))
}

/// Whether values of a type are JSON as [`json_at`] makes it.
fn is_json(data_type: &DataType) -> bool {
    use DataType::{
        Boolean, FixedSizeList, Float32, Float64, LargeList, LargeUtf8, List, Null, Struct, Utf8, Utf8View,
    };
    match data_type {
        Null | Boolean | Float32 | Float64 | Utf8 | LargeUtf8 | Utf8View => true,
        List(item) | LargeList(item) | FixedSizeList(item, _) => is_json(item.data_type()),
        Struct(fields) => fields.iter().all(|field| is_json(field.data_type())),
        other => other.is_integer(),
    }
}

/// A value as JSON. Null fields of structs are left out: columns have a value in every row.
fn json_at(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let list = |values: ArrayRef| (0..values.len()).map(|item| json_at(&values, item)).collect();
    macro_rules! number {
        ($($data_type:ident: $primitive:ty),*) => {
            match array.data_type() {
                $(DataType::$data_type => json!(array.as_primitive::<$primitive>().value(row)),)*
                _ => Value::Null,
            }
        };
    }
    match array.data_type() {
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => json!(array.as_string::<i64>().value(row)),
        DataType::Utf8View => json!(array.as_string_view().value(row)),
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::List(_) => list(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let given = fields
                .iter()
                .zip(columns)
                .map(|(field, column)| (field.name().clone(), json_at(column, row)));
            Value::Object(given.filter(|(_, value)| !value.is_null()).collect())
        }
        _ => number!(
            Int8: Int8Type, Int16: Int16Type, Int32: Int32Type, Int64: Int64Type, UInt8: UInt8Type, UInt16: UInt16Type,
            UInt32: UInt32Type, UInt64: UInt64Type, Float32: Float32Type, Float64: Float64Type
        ),
    }
}

/// Text that is kept as places in a list of all texts that occur.
fn spelled_out(array: &ArrayRef) -> PyResult<StringArray> {
    let dictionary = array.as_any_dictionary();
    let texts: Vec<Option<&str>> = match dictionary.values().data_type() {
        DataType::Utf8 => dictionary.values().as_string::<i32>().iter().collect(),
        DataType::LargeUtf8 => dictionary.values().as_string::<i64>().iter().collect(),
        DataType::Utf8View => dictionary.values().as_string_view().iter().collect(),
        _ => return Err(expected_column(array.data_type())),
    };
    let places = if texts.is_empty() { vec![0; array.len()] } else { dictionary.normalized_keys() };
    let text = |(row, place): (usize, usize)| if array.is_null(row) { None } else { texts[place] };
    Ok(places.into_iter().enumerate().map(text).collect())
}

fn broken(error: &ArrowError) -> PyErr {
    PyTypeError::new_err(format!("prompts is an Arrow column that cannot be read: {error}"))
}

/// The arrays of a stream.
fn chunks_of(capsule: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    let stream = capsule.cast::<PyCapsule>()?.pointer_checked(Some(STREAM))?;
    // SAFETY: a capsule of this name holds such a stream; reading moves it out and leaves a released one, as the protocol says.
    let reader = unsafe { ArrayStreamReader::from_raw(stream.cast::<FFI_ArrowArrayStream>().as_ptr()) };
    let chunks =
        reader.and_then(Iterator::collect::<Result<Vec<ArrayRef>, _>>).map_err(|error| broken(&error))?;
    chunks.iter().try_for_each(check)?;
    Ok(chunks)
}

/// Whether an array that comes from elsewhere is what its type says: text that is UTF-8, offsets within its values.
fn check(array: &ArrayRef) -> PyResult<()> {
    array.to_data().validate_full().map_err(|error| broken(&error))
}

/// An array from the capsules of its schema and itself.
fn array_of(capsules: &Bound<'_, PyAny>) -> PyResult<ArrayRef> {
    let capsules = capsules.cast::<PyTuple>()?;
    let pointer = |index: usize, name: &CStr| {
        capsules.get_item(index)?.cast::<PyCapsule>()?.pointer_checked(Some(name))
    };
    let (schema, array) = (pointer(0, SCHEMA)?, pointer(1, ARRAY)?);
    // SAFETY: capsules of these names hold such structs. The array is moved out, which leaves a released one, as the protocol
    // says; the schema stays with its capsule.
    let data = unsafe {
        let array = FFI_ArrowArray::from_raw(array.cast().as_ptr());
        from_ffi(array, schema.cast::<FFI_ArrowSchema>().as_ref())
    };
    let array = data.map(make_array).map_err(|error| broken(&error))?;
    check(&array)?;
    Ok(array)
}

/// The capsules of a table as one struct array: schema and array.
pub fn capsules<'py>(py: Python<'py>, batch: &RecordBatch) -> PyResult<Bound<'py, PyTuple>> {
    let (array, schema) =
        to_ffi(&StructArray::from(batch.clone()).into()).map_err(|error| usage(py, &error.to_string()))?;
    let schema = PyCapsule::new_with_value(py, schema, SCHEMA)?;
    let array = PyCapsule::new_with_value(py, array, ARRAY)?;
    PyTuple::new(py, [schema, array])
}

/// The capsule of a table as a stream of one batch.
pub fn stream<'py>(py: Python<'py>, batch: &RecordBatch) -> PyResult<Bound<'py, PyCapsule>> {
    let reader = RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
    PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(reader)), STREAM)
}

/// The capsule of a table's schema.
pub fn schema<'py>(py: Python<'py>, batch: &RecordBatch) -> PyResult<Bound<'py, PyCapsule>> {
    let schema = FFI_ArrowSchema::try_from(batch.schema().as_ref());
    PyCapsule::new_with_value(py, schema.map_err(|error| usage(py, &error.to_string()))?, SCHEMA)
}
