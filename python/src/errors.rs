//! Errors of the library as exceptions of the module `tuco.errors`, with the same messages.

use pyo3::{prelude::*, types::PyDict};
use tuco::{Error, ErrorKind, prompt::RowError};

/// The exception for an error.
pub fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let class = match error.kind {
        ErrorKind::Usage => "UsageError",
        ErrorKind::Checkpoint => "CheckpointError",
        ErrorKind::Mismatch => "MismatchError",
        ErrorKind::NotFinite => "NotFiniteError",
        ErrorKind::Io => "ReadWriteError",
        ErrorKind::Device => "DeviceError",
        ErrorKind::OutOfMemory => "OutOfMemoryError",
        ErrorKind::Interrupted => "CancelledError",
        ErrorKind::BadRows => "BadRowsError",
        ErrorKind::Incomplete => "IncompleteError",
    };
    raised(py, class, &error.message, None)
}

/// A usage error that only Python knows.
pub fn usage(py: Python<'_>, message: &str) -> PyErr {
    raised(py, "UsageError", message, None)
}

/// The exception for a prompt that cannot be used.
pub fn row_exception(py: Python<'_>, index: usize, error: &RowError) -> PyErr {
    let fields = PyDict::new(py);
    let filled = fields.set_item("index", index).and_then(|()| fields.set_item("kind", error.kind.as_str()));
    match filled {
        Ok(()) => raised(py, "PromptError", &format!("prompts[{index}]: {}", error.message), Some(&fields)),
        Err(error) => error,
    }
}

fn raised(py: Python<'_>, class: &str, message: &str, fields: Option<&Bound<'_, PyDict>>) -> PyErr {
    let made = py.import("tuco.errors").and_then(|module| module.getattr(class)?.call((message,), fields));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// [`exception`] at the end of a call.
pub trait Raise<T> {
    fn raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raise<T> for Result<T, Error> {
    fn raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}
