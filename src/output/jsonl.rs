//! Output that survives being killed: whole lines of JSON are appended and synced, a torn last line is dropped when the
//! run goes on, and a finished file has the bytes of an uninterrupted run. Where a Parquet file is asked for, it is made of
//! these lines when all are there.

use super::{Done, Manifest, check_output, table};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// The first field of a shard's rows: the number of the row's line in the input, by which shards are merged.
pub const LINE: &str = "line";

/// The field of a manifest that says of how many shards its run is one.
pub const SHARDS: &str = "shards";

/// Where rows go.
#[expect(clippy::large_enum_variant, reason = "a run has one")]
pub enum Sink {
    Stdout,
    File {
        /// What was asked for.
        output: PathBuf,
        /// Where lines are appended: the output itself, if that is no table.
        path: PathBuf,
        file: BufWriter<File>,
        manifest: Manifest,
        /// What an earlier run found that finished.
        done: Option<Done>,
        /// Complete rows that an earlier run left, still to be matched with the input.
        written: Option<WrittenRows>,
    },
}

/// Whether an earlier run left rows in `output`.
pub fn has_rows(output: &Path) -> bool {
    let lines = lines_of(output).metadata().map_or(0, |metadata| metadata.len());
    lines > 0 || table::is_table(output) && output.exists()
}

/// Takes the lock of `output`, whose lines lie in `file`, for as long as that is open. Some file systems have none: then nobody else may
/// write to it, unless it is `shared` by machines.
///
/// # Errors
/// Where another process has it, or `shared` files have none.
pub(super) fn lock(file: &File, output: &Path, shared: bool) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = format!("{} is being written by another process", output.display());
            Err(Error::new(crate::ErrorKind::Io, message))
        }
        Err(TryLockError::Error(error)) if shared => Err(Error::io("lock", output, &error)),
        _ => Ok(()),
    }
}

/// Where lines are appended.
pub(super) fn lines_of(output: &Path) -> PathBuf {
    if table::is_table(output) { table::journal_of(output) } else { output.to_path_buf() }
}

/// Reads back the rows of an earlier run.
pub struct WrittenRows {
    path: PathBuf,
    lines: BufReader<std::io::Take<File>>,
    number: u64,
}

impl Sink {
    /// Opens `output` for a run that `manifest` describes: a new file, or one that the same run began. The manifest is
    /// written beside it before the first row; before that `clear` removes what would tell of other rows.
    ///
    /// # Errors
    /// A mismatch that says what differs when the file belongs to another run; I/O errors, one of which is that another
    /// process writes to it; a usage error where no file can be.
    pub fn create(
        output: &Path,
        manifest: Manifest,
        overwrite: bool,
        clear: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        check_output(output)?;
        let is_table = table::is_table(output);
        let path = lines_of(output);
        // The manifest is only compared while nobody else can be writing.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| Error::io("write", &path, &error))?;
        lock(&file, output, manifest.field(SHARDS).is_some())?;
        let length = file.metadata().map_err(|error| Error::io("read", &path, &error))?.len();
        let (mut written, mut kept, mut done) = (None, 0, None);
        if has_rows(output) && !overwrite {
            let continues = manifest.check_continues(output);
            if length == 0 && continues.is_err() {
                // Nothing is to be left of this attempt.
                std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, &error))?;
            }
            done = continues?.filter(|_| is_table && length == 0);
            kept = complete_length(&mut file, length).map_err(|error| Error::io("read", &path, &error))?;
            let lines = File::open(&path).map_err(|error| Error::io("read", &path, &error))?.take(kept);
            written = Some(WrittenRows { path: path.clone(), lines: BufReader::new(lines), number: 0 });
        }
        clear()?;
        // Rows that are dropped must not come back, after a power cut, under the new manifest.
        file.set_len(kept)
            .and_then(|()| file.sync_all())
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(|error| Error::io("write", &path, &error))?;
        if done.is_none() {
            manifest.write(output, None)?;
        }
        let (output, file) = (output.to_path_buf(), BufWriter::new(file));
        Ok(Sink::File { output, path, file, manifest, done, written })
    }

    /// What an earlier run found that left nothing to do.
    pub fn done(&self) -> Option<&Done> {
        match self {
            Sink::Stdout => None,
            Sink::File { done, .. } => done.as_ref(),
        }
    }

    /// All rows are there.
    ///
    /// # Errors
    /// Where a table cannot be made of them, or the manifest not be written.
    pub fn finish(self, found: &Done) -> Result<()> {
        let Sink::File { output, path, manifest, done, .. } = &self else { return Ok(()) };
        if path == output {
            return manifest.write(output, Some(found));
        }
        if done.is_none() {
            table::write(path, output)?;
            manifest.write(output, Some(found))?;
        }
        std::fs::remove_file(path).map_err(|error| Error::io("remove", path, &error))
    }

    /// The next row that an earlier run wrote, in order. It has an `id`.
    pub fn next_written(&mut self) -> Result<Option<Map<String, Value>>> {
        match self {
            Sink::Stdout => Ok(None),
            Sink::File { written, .. } => match written {
                None => Ok(None),
                Some(rows) => {
                    let row = rows.next()?;
                    if row.is_none() {
                        *written = None;
                    }
                    Ok(row)
                }
            },
        }
    }

    /// Appends rows and makes sure that they are on the disk. `false` when the reader of standard output has gone.
    pub fn append(&mut self, rows: &[Value]) -> Result<bool> {
        match self {
            Sink::Stdout => {
                let mut out = std::io::stdout().lock();
                match write_rows(&mut out, rows).and_then(|()| out.flush()) {
                    Ok(()) => Ok(true),
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
                    Err(error) => Err(Error::io("write", Path::new("standard output"), &error)),
                }
            }
            Sink::File { path, file, .. } => write_rows(file, rows)
                .and_then(|()| file.flush())
                .and_then(|()| file.get_ref().sync_data())
                .map(|()| true)
                .map_err(|error| Error::io("write", path, &error)),
        }
    }
}

fn write_rows(out: &mut impl Write, rows: &[Value]) -> std::io::Result<()> {
    for row in rows {
        serde_json::to_writer(&mut *out, row)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Length up to and including the last line break.
fn complete_length(file: &mut File, length: u64) -> std::io::Result<u64> {
    const STEP: u64 = 1 << 16;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(STEP);
        let mut tail = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut tail)?;
        if let Some(last) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + last as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

impl WrittenRows {
    fn next(&mut self) -> Result<Option<Map<String, Value>>> {
        let mut line = Vec::new();
        self.number += 1;
        let read = self.lines.read_until(b'\n', &mut line);
        if read.map_err(|error| Error::io("read", &self.path, &error))? == 0 {
            return Ok(None);
        }
        match serde_json::from_slice::<Map<String, Value>>(&line) {
            Ok(row) if row.contains_key("id") => Ok(Some(row)),
            _ => Err(Error::mismatch(format!(
                "{} line {} is not a row of ours; --overwrite starts again",
                self.path.display(),
                self.number
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(seed: i32) -> Manifest {
        Manifest::new(json!({ "seed": seed }), json!({}))
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let mut sink = Sink::create(&path, manifest(1), false, || Ok(())).unwrap();
        sink.append(&[json!({"id": 1, "tuco": 0.5}), json!({"id": 2, "error": {}})]).unwrap();
        drop(sink);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\": 3, \"tu").unwrap();

        let mut sink = Sink::create(&path, manifest(1), false, || Ok(())).unwrap();
        let mut next = || sink.next_written().unwrap().map(Value::from);
        assert_eq!(next(), Some(json!({"id": 1, "tuco": 0.5})));
        assert_eq!(next(), Some(json!({"id": 2, "error": {}})));
        assert_eq!(next(), None);
        sink.append(&[json!({"id": 3})]).unwrap();
        drop(sink);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"id\":1,\"tuco\":0.5}\n{\"id\":2,\"error\":{}}\n{\"id\":3}\n");

        // One of many completions is longer than what is read at once.
        let torn = vec![b'x'; 200_000];
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&torn).unwrap();
        drop(Sink::create(&path, manifest(1), false, || Ok(())).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn another_run_is_refused_and_overwrite_starts_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        Sink::create(&path, manifest(1), false, || Ok(())).unwrap().append(&[json!({"id": 1})]).unwrap();
        let Err(error) = Sink::create(&path, manifest(2), false, || Ok(())) else {
            panic!("it was accepted")
        };
        assert!(error.message.contains("seed"), "{error}");
        assert_eq!(error.exit_code(), 42);
        Sink::create(&path, manifest(2), true, || Ok(())).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let _first = Sink::create(&path, manifest(1), false, || Ok(())).unwrap();
        assert!(Sink::create(&path, manifest(1), false, || Ok(())).is_err());
    }
}
