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

pub use folder::{Folder, SUMMARY, read_summary, write_summary};
pub use heatmap::{color, heatmap};
pub use histogram::histogram;
pub use jsonl::{LINE, SHARDS, Sink, has_rows};
pub use manifest::{Done, Manifest};
pub use merge::merge;
pub use plot::{Axes, Series, curves, outlines, scatter};
pub use progress::Progress;
pub use report::{Report, Table, page, visible};
pub use shards::Shard;
pub use table::{text_of, write as write_table};

use crate::{Error, Result, paths::has_extension};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
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

/// Tells the user something on standard error. That nobody reads it is no reason to stop.
pub fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "tuco: {text}");
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

/// # Errors
/// A usage error where `output`, as `-o` names it, cannot be a file.
pub fn check_output(output: &Path) -> Result<()> {
    if output.is_dir() {
        return Err(Error::usage(format!("-o {} is a directory, expected a file", output.display())));
    }
    match folder_of(output).is_dir() {
        true => Ok(()),
        false => {
            Err(Error::usage(format!("-o {}: expected a file in a folder that is there", output.display())))
        }
    }
}

/// # Errors
/// A usage error where `output`, as `-o` names it, cannot be a file of rows.
pub fn check_rows_output(output: &Path) -> Result<()> {
    if has_extension(output, &["csv", "tsv", "txt"]) || output == Path::new("-") {
        return Err(Error::usage(format!(
            "-o {}: rows are written as JSON lines or Parquet, expected a name such as rows.jsonl or rows.parquet (without -o they go to standard output)",
            output.display()
        )));
    }
    check_output(output)
}

/// Nothing that is read is written over.
///
/// # Errors
/// A usage error where `output` is the file of one of `inputs`, by whatever name.
pub fn check_not_read(output: &Path, inputs: &[PathBuf]) -> Result<()> {
    match inputs.iter().find(|input| is_same_file(output, input)) {
        None => Ok(()),
        Some(input) => Err(Error::usage(format!(
            "{} is one of the inputs ({}): the output has to be another file",
            output.display(),
            input.display()
        ))),
    }
}

/// Whether two names are of one file that is there.
fn is_same_file(one: &Path, other: &Path) -> bool {
    #[cfg(unix)]
    let identity = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok()
    };
    #[cfg(not(unix))]
    let identity = |path: &Path| path.canonicalize().ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Makes the folder that `-o` names, if it is not there.
///
/// # Errors
/// A usage error where something else is; I/O errors.
pub fn make_folder(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        return Err(Error::usage(format!("-o {} is a file, expected a folder", folder.display())));
    }
    std::fs::create_dir_all(folder).map_err(|error| Error::io("make the folder", folder, &error))
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, &error)),
        _ => Ok(()),
    }
}

/// The folder that a file is in, or is to be.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
