//! The rows of all shards in one file, in the order of the input, as one machine would have written them.

use super::{
    Done, Manifest, Shard, check_rows_output, folder_of,
    jsonl::{LINE, SHARDS, lines_of, lock},
    remove, table, write_whole,
};
use crate::{Error, ErrorKind, Result};
use serde_json::Value;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Merges the shards of a folder into `output`: JSON lines, or a Parquet file. Proves that every row of the input is there
/// once. `stop` ends it between two rows; once all are read, it is too late for that.
///
/// # Errors
/// A usage error where there are no shards, or `output` is there; rows that are missing, and which shards lack them
/// ([`ErrorKind::Incomplete`]); a mismatch where shards are not of one run; [`ErrorKind::Interrupted`]; I/O errors. `output` is
/// untouched then.
pub fn merge(folder: &Path, output: &Path, overwrite: bool, stop: &AtomicBool) -> Result<Done> {
    check_rows_output(output)?;
    let lines = lines_of(output);
    if (output.exists() || lines.exists()) && !overwrite {
        return Err(Error::usage(format!(
            "-o {} is there already; --overwrite replaces it",
            output.display()
        )));
    }
    // Nobody else may be writing to it.
    let earlier = File::open(&lines).ok();
    earlier.iter().try_for_each(|file| lock(file, output, false))?;
    let parts = parts(folder)?;
    let manifest = parts[0].manifest.clone().without(SHARDS);
    let mut found = Done { rows: 0, rows_of_all: parts[0].done.rows_of_all, errors: 0, first_error: None };
    // That of other rows must not lie beside these.
    let remove_manifest = || remove(&Manifest::path_beside(output));
    if table::is_table(output) {
        let failed = |error: std::io::Error| Error::io("write", &lines, &error);
        let mut journal = tempfile::NamedTempFile::new_in(folder_of(output)).map_err(failed)?;
        merge_lines(parts, journal.as_file_mut(), &lines, &mut found, stop)?;
        remove_manifest()?;
        table::write(journal.path(), output)?;
        remove(&lines)?;
    } else {
        write_whole(output, |file| {
            merge_lines(parts, file, output, &mut found, stop)?;
            remove_manifest()
        })?;
    }
    manifest.write(output, Some(&found))?;
    Ok(found)
}

/// A finished shard.
struct Part {
    shard: Shard,
    path: PathBuf,
    manifest: Manifest,
    done: Done,
    /// Rows read so far.
    rows: u64,
    /// The number of the last one's line.
    line: u64,
    reader: BufReader<File>,
}

/// Opens all shards of a folder.
fn parts(folder: &Path) -> Result<Vec<Part>> {
    let shards = Shard::in_folder(folder)?;
    let Some(first) = shards.first() else {
        return Err(Error::usage(format!(
            "{} has no shards (shard-00000-of-00008.jsonl, …), as --shard with -o {} writes them",
            folder.display(),
            folder.display()
        )));
    };
    let count = first.count;
    if let Some(other) = shards.iter().find(|shard| shard.count != count) {
        return Err(Error::mismatch(format!(
            "{} has shards of two runs, of {count} and of {}: remove those that are not meant",
            folder.display(),
            other.count
        )));
    }
    let mut lacking = Vec::new();
    let mut parts: Vec<Part> = Vec::new();
    let mut there = shards.iter().peekable();
    for index in 0..count {
        let shard = Shard { index, count };
        if there.next_if_eq(&&shard).is_none() {
            lacking.push(format!("{shard} is missing"));
            continue;
        }
        match Part::open(shard, folder)? {
            None => lacking.push(format!("{shard} is not finished")),
            Some(part) => {
                let before = parts.first();
                let difference = before.and_then(|before| before.manifest.difference(&part.manifest));
                if let (Some(before), Some(difference)) = (before, difference) {
                    return Err(Error::mismatch(format!(
                        "shards {} and {shard} in {} are of different runs: {difference}",
                        before.shard,
                        folder.display()
                    )));
                }
                parts.push(part);
            }
        }
    }
    if lacking.is_empty() { Ok(parts) } else { Err(incomplete(folder, &lacking)) }
}

fn incomplete(folder: &Path, lacking: &[String]) -> Error {
    let told = lacking.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
    let more = if lacking.len() > 20 { format!(" and {} more", lacking.len() - 20) } else { String::new() };
    let message = format!("{}: shard {told}{more}; run what is named again", folder.display());
    Error::new(ErrorKind::Incomplete, message)
}

impl Part {
    /// `None` where its run has not finished.
    fn open(shard: Shard, folder: &Path) -> Result<Option<Self>> {
        let path = shard.path(folder);
        let failed = |error| Error::io("read", &path, &error);
        let file = File::open(&path).map_err(failed)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock_shared() {
            return Ok(None);
        }
        // A run makes its file first: one that was killed before it wrote the manifest leaves none.
        let Some((manifest, done)) = Manifest::find(&path)? else { return Ok(None) };
        let reader = BufReader::new(file);
        Ok(done.map(|done| Self { shard, path, manifest, done, rows: 0, line: 0, reader }))
    }

    /// The next row: the number of its line in the input, and its JSON with a line break.
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        let mut json = Vec::new();
        let read = self.reader.read_until(b'\n', &mut json);
        if read.map_err(|error| Error::io("read", &self.path, &error))? == 0 {
            return Ok(None);
        }
        self.rows += 1;
        let numbered = split_line(&json).filter(|(line, _)| *line > self.line);
        let Some((line, row)) = numbered.filter(|(_, row)| self.has(row)) else {
            return Err(Error::mismatch(format!(
                "{} line {} is not a row of shard {}: run it again with --overwrite",
                self.path.display(),
                self.rows,
                self.shard
            )));
        };
        self.line = line;
        Ok(Some((line, row)))
    }

    /// Whether a row is whole and this shard's.
    fn has(&self, row: &[u8]) -> bool {
        let row: Option<Value> = serde_json::from_slice(row).ok().filter(|_| row.ends_with(b"\n"));
        row.is_some_and(|row| row.get("id").is_some_and(|id| self.shard.holds(id)))
    }
}

/// `{"line":12,"id":…}` → 12 and `{"id":…}`: the bytes that a run without shards writes.
fn split_line(json: &[u8]) -> Option<(u64, Vec<u8>)> {
    let rest = json.strip_prefix(format!("{{\"{LINE}\":").as_bytes())?;
    let digits = rest.iter().position(|byte| *byte == b',')?;
    let line = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
    Some((line, [b"{", &rest[digits + 1..]].concat()))
}

/// Writes the rows of all parts by the numbers of their lines, one row of each part in memory.
fn merge_lines(
    mut parts: Vec<Part>,
    file: &mut File,
    path: &Path,
    found: &mut Done,
    stop: &AtomicBool,
) -> Result<()> {
    let mut out = BufWriter::new(file);
    let mut heads = BinaryHeap::new();
    for (index, part) in parts.iter_mut().enumerate() {
        heads.extend(part.next()?.map(|(line, row)| Reverse((line, index, row))));
    }
    let mut last = 0;
    while let Some(Reverse((line, index, row))) = heads.pop() {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped; nothing was written"));
        }
        if line == last {
            return Err(Error::mismatch(format!(
                "line {line} of the input is in two shards, one of them {}: these are not shards of one run",
                parts[index].path.display()
            )));
        }
        last = line;
        out.write_all(&row).map_err(|error| Error::io("write", path, &error))?;
        found.rows += 1;
        heads.extend(parts[index].next()?.map(|(line, row)| Reverse((line, index, row))));
    }
    out.flush().map_err(|error| Error::io("write", path, &error))?;
    check_numbers(&parts, found)
}

/// Whether each part has the rows that its run wrote, and all together those of the input.
fn check_numbers(parts: &[Part], found: &mut Done) -> Result<()> {
    let folder = parts[0].path.parent().unwrap_or(Path::new("."));
    let truncated = parts.iter().filter(|part| part.rows != part.done.rows);
    let truncated: Vec<String> = truncated
        .map(|part| format!("{} has {} rows, but wrote {}", part.shard, part.rows, part.done.rows))
        .collect();
    if !truncated.is_empty() {
        return Err(incomplete(folder, &truncated));
    }
    if found.rows != found.rows_of_all {
        return Err(Error::mismatch(format!(
            "{}: the shards have {} rows together, but the input has {}",
            folder.display(),
            found.rows,
            found.rows_of_all
        )));
    }
    found.errors = parts.iter().map(|part| part.done.errors).sum();
    found.first_error = parts.iter().find_map(|part| part.done.first_error.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_without_a_manifest_is_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(Shard { index: 0, count: 2 }.path(folder.path()), "").unwrap();
        let output = folder.path().join("merged.jsonl");
        let error = merge(folder.path(), &output, false, &AtomicBool::new(false)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Incomplete);
        assert!(error.message.contains("0/2 is not finished, 1/2 is missing"), "{error}");
    }
}
