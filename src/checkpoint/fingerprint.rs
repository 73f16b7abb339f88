//! SHA-256 of files: the same numbers that the Hugging Face Hub shows for them.

use crate::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::{fs::File, io::Read, path::Path};

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file's content, in hexadecimal.
pub fn file_sha256(path: &Path) -> Result<String> {
    let unreadable = |error: std::io::Error| Error::unreadable(path, &error);
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// File name → SHA-256 for each of `paths`, hashed side by side.
pub fn files(paths: &[&Path]) -> Result<Vec<(String, String)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    paths.par_iter().map(|path| Ok((name(path), file_sha256(path)?))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
