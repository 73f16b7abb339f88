//! What a run leaves behind: rows appended as they are ready, a manifest that says what made them, and progress for
//! whoever watches.

mod folder;
mod heatmap;
mod histogram;
mod jsonl;
mod manifest;
mod merge;
mod plot;
mod progress;
mod report;
mod shards;
mod table;

pub use folder::{Folder, read_summary, write_summary};
pub use heatmap::{color, heatmap};
pub use histogram::histogram;
pub use jsonl::{LINE, Sink, has_rows};
pub use manifest::{Done, Manifest};
pub use merge::merge;
pub use plot::{Axes, Series, curves, outlines, scatter};
pub use progress::Progress;
pub use report::{Report, Table, page};
pub use shards::Shard;
pub use table::write as write_table;

use crate::{Error, Result};
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// Prints a report on standard output; a reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", Path::new("standard output"), &error))
        }
        _ => Ok(()),
    }
}

/// Writes a file whole or not at all, whenever the machine stops: a temporary file beside it takes its name when all is
/// on the disk.
///
/// # Errors
/// Those of `write`, and of the file system.
fn write_whole<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let failed = |error: io::Error| Error::io("write", path, &error);
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    // As any new file: the user's mask says who may read it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    let written = write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    // The name too has to reach the disk; only Unix lets a folder be synced.
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(written)
}

/// The folder that a file is in, or is to be.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
