//! The native part of the Python package `tuco`: the library's [`Session`](tuco::Session) as a class, its errors as
//! exceptions, its results as numpy arrays and Arrow tables; and the
//! command line.

mod arrow;
mod command;
mod completion;
mod continuations;
mod errors;
mod inputs;
mod outcomes;
mod pair;
mod running;
mod scores;
mod scoring;
mod trace;
mod used;
mod warnings;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        command::{main, run},
        completion::Completion,
        pair::Pair,
        scores::Scores,
        trace::Trace,
    };

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
