//! Hashes of a checkpoint's files.

use crate::{Error, Result, hash};
use rayon::prelude::*;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// File name → SHA-256 for each of `paths`, hashed side by side.
pub fn files(paths: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hash = |path: &Path| File::open(path).and_then(|file| hash::sha256_of(file, |_| {}));
    paths
        .par_iter()
        .map(|path| Ok((name(path), hash(path).map_err(|error| Error::unreadable(path, &error))?)))
        .collect()
}
