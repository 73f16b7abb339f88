//! What the library has to tell, as Python warnings.

use pyo3::prelude::*;
use std::ffi::{CStr, CString};
use tuco::{Session, prompt::Encoded};

/// Python warnings of the code so many calls above.
pub fn warn_at(py: Python<'_>, session: &Session, level: i32) -> PyResult<()> {
    for warning in session.take_warnings() {
        let text = CString::new(warning.replace('\0', " "))?;
        warn_of(py, &text, level)?;
    }
    Ok(())
}

fn warn_of(py: Python<'_>, text: &CStr, level: i32) -> PyResult<()> {
    let category = py.import("tuco.errors")?.getattr("TucoWarning")?;
    PyErr::warn(py, &category, text, level)
}

/// Tells how many prompts were cut, where results do not say of each.
pub fn warn_of_cut<'a>(py: Python<'_>, rows: impl Iterator<Item = &'a Encoded>) -> PyResult<()> {
    let cut = rows.filter(|encoded| encoded.truncated).count();
    if cut == 0 {
        return Ok(());
    }
    let text = format!("{cut} of the prompts are longer than the model takes, and were cut (on_overlength)");
    warn_of(py, &CString::new(text)?, 1)
}
