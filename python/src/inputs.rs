//! What users give as prompts → what the library encodes.

use crate::arrow::Column;
use numpy::{PyArrayDescrMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyException, PyTypeError, PyValueError},
    prelude::*,
    pybacked::PyBackedStr,
    types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple},
};
use serde_json::Value;
use std::fmt::Display;
use tuco::prompt::{Content, ContentRef, RowError, RowErrorKind};

const EXPECTED: &str = "expected text, token ids (integers, a one-dimensional numpy array of integers) or a conversation (a list of \
                        dicts with role and content)";

/// Prompts as the caller holds them.
pub struct Prompts(Vec<Kept>);

/// One prompt, or as many as a column holds.
enum Kept {
    Text(PyBackedStr),
    Messages(Vec<Value>),
    Ids(Vec<u32>),
    Column(Column),
    Bad(RowError),
}

impl Kept {
    fn ids(ids: Result<Vec<u32>, RowError>) -> Self {
        ids.map_or_else(Self::Bad, Self::Ids)
    }
}

/// A prompt, or why there is none.
pub type Row<'a> = Result<ContentRef<'a>, RowError>;

impl Prompts {
    /// Reads what was given: text, a conversation, token ids, or a list, array or Arrow column of such.
    pub fn read(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = given.py();
        if let Some(columns) = Column::read(given)? {
            return Ok(Self(columns.into_iter().map(Kept::Column).collect()));
        }
        if let Ok(array) = given.cast::<PyUntypedArray>()
            && !matches!(array.dtype().kind(), b'O' | b'U' | b'T')
        {
            return Ok(Self(array_of(array, "prompts")?.into_iter().map(Kept::ids).collect()));
        }
        if given.hasattr("__array__")? && !given.is_instance_of::<PyUntypedArray>() {
            return Self::read(&as_array(given)?);
        }
        if given.is_instance_of::<PyString>() {
            return Ok(Self(vec![prompt_of(given, "prompts")?]));
        }
        if given.is_instance_of::<PyDict>() {
            return Err(PyTypeError::new_err("prompts is a dict; a conversation is a list of dicts"));
        }
        let items = sequence(given)?.ok_or_else(|| {
            PyTypeError::new_err(format!("prompts is {}, {EXPECTED}, or a list of such", kind_of(given)))
        })?;
        let first = items.first();
        if first.is_some_and(|first| is_int(first) || first.is_instance_of::<PyDict>()) {
            return Ok(Self(vec![prompt_of_items(py, items, "prompts")?]));
        }
        let mut kept = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            kept.push(prompt_of(item, &format!("prompts[{index}]"))?);
            if index % 1024 == 0 {
                py.check_signals()?;
            }
        }
        Ok(Self(kept))
    }

    /// The token ids of one prompt, which may be none.
    pub fn ids(given: &Bound<'_, PyAny>, name: &str) -> PyResult<Result<Vec<u32>, RowError>> {
        let wrong = || -> PyErr {
            PyTypeError::new_err(format!(
                "{name} is {}, expected a list or array of token ids",
                kind_of(given)
            ))
        };
        if given.is_instance_of::<PyUntypedArray>() || given.hasattr("__array__")? {
            return match prompt_of(given, name)? {
                Kept::Ids(ids) => Ok(Ok(ids)),
                Kept::Bad(error) => Ok(Err(error)),
                _ => Err(wrong()),
            };
        }
        match if given.is_instance_of::<PyString>() { None } else { sequence(given)? } {
            Some(items) if items.is_empty() => Ok(Ok(Vec::new())),
            Some(items) if is_int(&items[0]) => ids_of(&items, name),
            _ => Err(wrong()),
        }
    }

    /// The prompts, in order.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::with_capacity(self.0.len());
        for kept in &self.0 {
            match kept {
                Kept::Text(text) => rows.push(Ok(ContentRef::Prompt(text))),
                Kept::Messages(messages) => rows.push(Ok(ContentRef::Messages(messages))),
                Kept::Ids(ids) => rows.push(Ok(ContentRef::TokenIds(ids))),
                Kept::Column(column) => column.append_to(&mut rows),
                Kept::Bad(error) => rows.push(Err(error.clone())),
            }
        }
        rows
    }
}

/// The items of a list, a tuple or another sequence; `None` for what is none.
pub fn sequence<'py>(given: &Bound<'py, PyAny>) -> PyResult<Option<Vec<Bound<'py, PyAny>>>> {
    if let Ok(list) = given.cast::<PyList>() {
        return Ok(Some(list.iter().collect()));
    }
    if let Ok(tuple) = given.cast::<PyTuple>() {
        return Ok(Some(tuple.iter().collect()));
    }
    if given.is_instance_of::<PyBytes>() || given.is_instance_of::<PyByteArray>() {
        return Ok(None);
    }
    let kinds = given.py().import("collections.abc")?;
    // Sets and dicts have no order that a caller could find results by.
    let (iterable, unordered) =
        (kinds.getattr("Iterable")?, [kinds.getattr("Set")?, kinds.getattr("Mapping")?]);
    let has_no_order =
        unordered.iter().map(|kind| given.is_instance(kind)).collect::<PyResult<Vec<bool>>>()?;
    if given.is_instance(&iterable)? && !has_no_order.contains(&true) {
        return given.try_iter()?.collect::<PyResult<_>>().map(Some);
    }
    Ok(None)
}

/// The items of a list of one for each prompt.
pub fn items_of<'py>(
    given: &Bound<'py, PyAny>,
    name: &str,
    expected: &str,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let items = if given.is_instance_of::<PyString>() { None } else { sequence(given)? };
    items.ok_or_else(|| {
        PyTypeError::new_err(format!("{name} is no list, expected a list of {expected}, one for each prompt"))
    })
}

/// Whether there is an item for each prompt.
pub fn check_count(name: &str, items: usize, prompts: usize) -> PyResult<()> {
    match items == prompts {
        true => Ok(()),
        false => Err(PyTypeError::new_err(format!(
            "{name} has {items} items, expected one for each of {prompts} prompts"
        ))),
    }
}

/// The name of a value's class.
fn kind_of(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string())
}

/// What stands for a missing value in lists and in pandas' columns.
fn is_missing(value: &Bound<'_, PyAny>) -> bool {
    value.is_none() || value.cast::<PyFloat>().is_ok_and(|number| number.value().is_nan())
}

/// Text of Python as the library's, which has no lone surrogates.
pub fn text_of(text: &Bound<'_, PyString>) -> Result<PyBackedStr, RowError> {
    let invalid = |error: PyErr| RowError::new(RowErrorKind::InvalidUtf8, error.value(text.py()).to_string());
    PyBackedStr::try_from(text.clone()).map_err(invalid)
}

/// Tensors of other libraries; numpy shares their memory.
fn as_array<'py>(given: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    given.py().import("numpy")?.call_method1("asarray", (given,))
}

pub fn is_int(value: &Bound<'_, PyAny>) -> bool {
    // numpy's integers are no `int`, but are numbers that count.
    let is_counting =
        || value.hasattr("__index__").unwrap_or(false) && !value.hasattr("__len__").unwrap_or(true);
    !value.is_instance_of::<PyBool>() && (value.is_instance_of::<PyInt>() || is_counting())
}

/// One prompt, called `name` in messages.
fn prompt_of(given: &Bound<'_, PyAny>, name: &str) -> PyResult<Kept> {
    if let Ok(text) = given.cast::<PyString>() {
        return Ok(text_of(text).map_or_else(Kept::Bad, Kept::Text));
    }
    if is_missing(given) {
        return Ok(Kept::Bad(null()));
    }
    if let Ok(array) = given.cast::<PyUntypedArray>() {
        return match array.ndim() {
            1 => Ok(Kept::ids(array_of(array, name)?.remove(0))),
            dimensions => Err(PyValueError::new_err(format!(
                "{name} is an array of {dimensions} dimensions, expected the token ids of one prompt (1 dimension)"
            ))),
        };
    }
    if given.hasattr("__array__")? {
        return prompt_of(&as_array(given)?, name);
    }
    let wrong = || PyTypeError::new_err(format!("{name} is {}, {EXPECTED}", kind_of(given)));
    let items = if given.is_instance_of::<PyDict>() { None } else { sequence(given)? };
    prompt_of_items(given.py(), items.ok_or_else(wrong)?, name)
}

/// One prompt of token ids or messages.
fn prompt_of_items(py: Python<'_>, items: Vec<Bound<'_, PyAny>>, name: &str) -> PyResult<Kept> {
    match items.first() {
        None => Ok(Kept::Bad(RowError::new(RowErrorKind::EmptyPrompt, "the prompt is an empty list"))),
        Some(first) if is_int(first) => ids_of(&items, name).map(Kept::ids),
        Some(first) if first.is_instance_of::<PyDict>() => messages_of(PyList::new(py, items)?.as_any()),
        Some(first) => {
            let kind = kind_of(first);
            Err(PyTypeError::new_err(format!(
                "{name}[0] is {kind}, expected an integer (of token ids) or a dict (of a conversation)"
            )))
        }
    }
}

/// Token ids; what is none is told, an id out of range is the prompt's own error.
fn ids_of(items: &[Bound<'_, PyAny>], name: &str) -> PyResult<Result<Vec<u32>, RowError>> {
    if let Some(index) = items.iter().position(|item| !is_int(item)) {
        let kind = kind_of(&items[index]);
        return Err(PyTypeError::new_err(format!("{name}[{index}] is {kind}, expected an integer")));
    }
    let id_of = |(index, item): (usize, &Bound<'_, PyAny>)| {
        item.extract::<u32>().map_err(|_| out_of_range(index, item))
    };
    Ok(items.iter().enumerate().map(id_of).collect())
}

/// Wider integers as the token ids of prompts of one length.
fn ids_in<T: Copy + Display + TryInto<u32>>(values: &[T], width: usize) -> Vec<Result<Vec<u32>, RowError>> {
    let id_of = |(index, value): (usize, &T)| (*value).try_into().map_err(|_| out_of_range(index, value));
    values.chunks_exact(width).map(|prompt| prompt.iter().enumerate().map(id_of).collect()).collect()
}

/// The error of a prompt whose token `index` is no id.
pub fn out_of_range(index: usize, found: &dyn Display) -> RowError {
    let message = format!("token {index} has id {found}, expected 0 to {}", u32::MAX);
    RowError::new(RowErrorKind::TokenOutOfRange, message)
}

/// The error of a prompt that is missing.
pub fn null() -> RowError {
    RowError::new(RowErrorKind::InvalidRow, "the prompt is null")
}

/// A conversation, through JSON.
fn messages_of(given: &Bound<'_, PyAny>) -> PyResult<Kept> {
    let dumps = given.py().import("json")?.getattr("dumps")?;
    let text = dumps.call1((given,)).and_then(|text| text.extract::<String>());
    let value = match text {
        Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
        Err(error) if error.is_instance_of::<PyException>(given.py()) => {
            Err(error.value(given.py()).to_string())
        }
        Err(error) => return Err(error),
    };
    let no_json = |problem: String| {
        RowError::new(RowErrorKind::InvalidRow, format!("the messages are no JSON: {problem}"))
    };
    Ok(match value.map_err(no_json).and_then(Content::of_messages) {
        Ok(Content::Messages(messages)) => Kept::Messages(messages),
        Ok(_) => unreachable!("a conversation is messages"),
        Err(error) => Kept::Bad(error),
    })
}

/// The token ids of an array: of one prompt, or of a prompt a row. They are copied while no other thread can write to them.
fn array_of(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<Vec<Result<Vec<u32>, RowError>>> {
    let dtype = array.dtype();
    if !matches!(dtype.kind(), b'i' | b'u') {
        return Err(PyTypeError::new_err(format!(
            "{name} is an array of {dtype}, expected integers (token ids)"
        )));
    }
    let width = match *array.shape() {
        [width] | [_, width] => width,
        _ => {
            return Err(PyValueError::new_err(format!(
                "{name} is an array of {} dimensions, expected 1 (one prompt's token ids) or 2 (a prompt a row)",
                array.ndim()
            )));
        }
    };
    if !array.is_c_contiguous() {
        return Err(PyValueError::new_err(format!(
            "{name} is an array that is not contiguous (strides {:?}): pass numpy.ascontiguousarray(…)",
            array.strides()
        )));
    }
    if width == 0 {
        let prompts = if array.ndim() == 1 { 1 } else { array.shape()[0] };
        return Ok(vec![Ok(Vec::new()); prompts]);
    }
    if let Ok(ids) = array.as_any().extract::<PyReadonlyArrayDyn<'_, u32>>() {
        return Ok(ids.as_slice()?.chunks_exact(width).map(|prompt| Ok(prompt.to_vec())).collect());
    }
    // Other integers, and other byte orders.
    let is_signed = dtype.kind() == b'i';
    let wide = array.as_any().call_method1("astype", (if is_signed { "int64" } else { "uint64" },))?;
    Ok(if is_signed {
        ids_in(wide.extract::<PyReadonlyArrayDyn<'_, i64>>()?.as_slice()?, width)
    } else {
        ids_in(wide.extract::<PyReadonlyArrayDyn<'_, u64>>()?.as_slice()?, width)
    })
}
