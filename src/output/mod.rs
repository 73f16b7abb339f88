//! What a run leaves behind: rows appended as they are ready, a manifest that says what made them, and progress for
//! whoever watches.

mod folder;
mod heatmap;
mod histogram;
mod jsonl;
mod manifest;
mod plot;
mod progress;
mod report;

pub use folder::{Folder, read_summary, write_summary};
pub use heatmap::{color, heatmap};
pub use histogram::histogram;
pub use jsonl::{Sink, WrittenRow};
pub use manifest::Manifest;
pub use plot::{Axes, Series, curves, outlines, scatter};
pub use progress::Progress;
pub use report::{Report, Table, page};

use crate::{Error, Result};
use std::{io::Write, path::Path};

/// Prints a report on standard output; a reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", Path::new("standard output"), &error))
        }
        _ => Ok(()),
    }
}
