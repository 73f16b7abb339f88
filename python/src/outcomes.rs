//! What becomes of prompts that have no outcome.

use crate::errors::{row_exception, usage};
use pyo3::{prelude::*, types::PyList};
use tuco::prompt::RowError;

/// The exception for the first prompt that has no outcome; `others` is what the others have, which is not lost.
pub fn row_exception_with<'py>(
    py: Python<'py>,
    (index, error): (usize, &RowError),
    name: &str,
    others: impl IntoPyObject<'py>,
) -> PyErr {
    let exception = row_exception(py, index, error);
    match exception.value(py).setattr(name, others) {
        Ok(()) => exception,
        Err(error) => error,
    }
}

/// What becomes of prompts without an outcome: the first raises, or each has its exception in its place.
#[derive(Clone, Copy, PartialEq)]
pub enum Errors {
    Raise,
    Rows,
}

impl Errors {
    pub fn parse(py: Python<'_>, errors: &str) -> PyResult<Self> {
        match errors {
            "raise" => Ok(Self::Raise),
            "rows" => Ok(Self::Rows),
            other => Err(usage(py, &format!("errors is {other:?}, expected \"raise\" or \"rows\""))),
        }
    }

    /// Before anything is computed.
    pub fn check<T>(self, py: Python<'_>, rows: &[Result<T, RowError>]) -> PyResult<()> {
        match first_error(rows) {
            Some((index, error)) if self == Self::Raise => Err(row_exception(py, index, error)),
            _ => Ok(()),
        }
    }

    /// A list of what prompts have. What the others have is not lost where one raises: it has `None` in its place.
    pub fn list<'py, T: IntoPyObject<'py>>(
        self,
        py: Python<'py>,
        name: &str,
        outcomes: impl Iterator<Item = Result<T, RowError>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (found, mut first_error) = (PyList::empty(py), None);
        for (index, outcome) in outcomes.enumerate() {
            match outcome {
                Ok(of_prompt) => found.append(of_prompt)?,
                Err(error) if self == Self::Rows => {
                    found.append(row_exception(py, index, &error).value(py))?
                }
                Err(error) => {
                    found.append(py.None())?;
                    first_error.get_or_insert((index, error));
                }
            }
        }
        match &first_error {
            Some((index, error)) => Err(row_exception_with(py, (*index, error), name, found)),
            None => Ok(found),
        }
    }
}

/// The first prompt that has no outcome, and why.
pub fn first_error<T>(rows: &[Result<T, RowError>]) -> Option<(usize, &RowError)> {
    rows.iter().enumerate().find_map(|(index, row)| Some((index, row.as_ref().err()?)))
}

/// What `passed` has for each row that was good, or what was wrong with it before.
pub fn joined<R, T>(
    rows: Vec<Result<R, RowError>>,
    passed: Vec<Result<T, RowError>>,
) -> impl Iterator<Item = Result<T, RowError>> {
    let mut passed = passed.into_iter();
    rows.into_iter().map(move |row| row.and_then(|_| passed.next().expect("an outcome for every prompt")))
}
