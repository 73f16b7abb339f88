//! Hashes of a checkpoint's files.

use crate::{Error, Result, hash};
use rayon::prelude::*;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// File name → SHA-256 for each of `paths`, hashed side by side.
///
/// # Errors
/// Where one cannot be read; [`Interrupted`](crate::ErrorKind::Interrupted) when `stop` is set.
pub fn files(paths: &[PathBuf], stop: &AtomicBool) -> Result<Vec<(String, String)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hash = |path: &Path| {
        let file = File::open(path).map(|file| UntilStopped { file, stop });
        file.and_then(|file| hash::sha256_of(file, |_| {})).map_err(|error| {
            match stop.load(Ordering::Relaxed) {
                true => Error::stopped(),
                false => Error::unreadable(path, &error),
            }
        })
    };
    paths.par_iter().map(|path| Ok((name(path), hash(path)?))).collect()
}

/// A file that cannot be read any more once it is stopped.
struct UntilStopped<'a> {
    file: File,
    stop: &'a AtomicBool,
}

impl Read for UntilStopped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("stopped")),
            false => self.file.read(buffer),
        }
    }
}
