//! The command line in a Python process.

use crate::{errors::Raise, running::watched};
use pyo3::prelude::*;
use std::{ffi::OsString, sync::atomic::AtomicBool};
use tuco::{
    cli::{self, Cli},
    job::Caller,
};

/// The program `tuco`, whose words are given with the program's name first; its exit code. It takes the process over: signals
/// no longer reach Python.
#[pyfunction]
pub fn main(py: Python<'_>, line: Vec<OsString>) -> u8 {
    py.detach(|| cli::main(line))
}

/// Runs a subcommand, whose words are given, as a part of a Python program: environment variables (`TUCO_…`) are not read,
/// errors are raised, and what a signal handler raises stops it after what is written.
#[pyfunction]
pub fn run(py: Python<'_>, words: Vec<String>) -> PyResult<()> {
    let command = [vec!["tuco".to_owned()], words].concat();
    let cli = Cli::of_program(&command).raise(py)?;
    let stop = AtomicBool::new(false);
    watched(py, &stop, || Ok(()), || cli.run(Caller { command: &command, stop: &stop }))?.raise(py)
}
