//! Where rows come from: files and standard input, opened once, read as often as needed.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use super::{
    csv_lines::CsvLines,
    lines::{BYTE_ORDER_MARK, Lines, is_blank_byte},
    table::{self, TableLines},
};
use crate::{
    error::{Error, Result},
    hash,
    paths::has_extension,
};

/// The inputs of a run, in the order given.
///
/// Files named `.txt` hold one prompt a line; those named `.parquet` and `.csv` are tables, a row a line; all others (`.jsonl`, `.ndjson`, `.json`, any name) one JSON object a line. `-` is
/// JSONL from standard input. What can be read only once (standard input, pipes) is copied to an anonymous temporary file, so that
/// every input can be hashed, counted and read in constant memory, whatever its size.
#[derive(Debug)]
pub struct Source {
    inputs: Arc<[Input]>,
    scans: OnceLock<Vec<Scan>>,
}

#[derive(Debug)]
pub(super) struct Input {
    /// As the user wrote it.
    pub name: String,
    pub format: Format,
    store: Store,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    /// One prompt a line.
    Text,
    /// Tables, read as lines of JSON.
    Parquet,
    Csv,
}

#[derive(Debug)]
enum Store {
    /// Opened anew for each reading, so that a run over thousands of files does not hold thousands of handles.
    Path(PathBuf),
    Spooled(Arc<File>),
}

/// Endings of compressed files, whose bytes are no lines.
const PACKED: [&str; 5] = ["gz", "bz2", "xz", "zst", "zip"];

/// What one pass over an input finds out.
#[derive(Debug)]
struct Scan {
    sha256: String,
    /// Lines that are not blank.
    rows: u64,
}

impl Source {
    /// Opens `inputs` and copies those that can be read only once, which waits for their end.
    ///
    /// # Errors
    /// A usage error that names the path where an input is missing, unreadable, a directory, or standard input for the second
    /// time; [`ErrorKind::Io`](crate::ErrorKind::Io) where copying fails.
    pub fn open(inputs: &[PathBuf]) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::usage("no input: name files of prompts, or - for JSONL on standard input"));
        }
        check_inputs(inputs)?;
        let inputs = inputs.iter().map(|path| Input::open(path)).collect::<Result<Arc<[_]>>>()?;
        Ok(Self { inputs, scans: OnceLock::new() })
    }

    /// Each input's path as given, and what its rows depend on: how it is read, and the SHA-256 of its bytes in hexadecimal.
    ///
    /// # Errors
    /// Where reading fails.
    pub fn fingerprints(&self) -> Result<Vec<(String, String)>> {
        let fingerprint = |(input, scan): (&Input, &Scan)| {
            let format = match input.format {
                Format::Jsonl => "jsonl",
                Format::Text => "txt",
                Format::Parquet => "parquet",
                Format::Csv => "csv",
            };
            (input.name.clone(), format!("{format}:{}", scan.sha256))
        };
        Ok(self.inputs.iter().zip(self.scans()?).map(fingerprint).collect())
    }

    /// How many lines [`lines`](Self::lines) will yield: those that are not blank.
    ///
    /// # Errors
    /// Where reading fails.
    pub fn count_lines(&self) -> Result<u64> {
        Ok(self.scans()?.iter().map(|scan| scan.rows).sum())
    }

    /// The lines of all inputs, from the first on.
    pub fn lines(&self) -> Lines {
        Lines::new(self.inputs.clone())
    }

    /// One pass over everything finds the hashes and the counts, the first time either is asked for.
    fn scans(&self) -> Result<&[Scan]> {
        if let Some(scans) = self.scans.get() {
            return Ok(scans);
        }
        let scans = self.inputs.iter().map(Input::scan).collect::<Result<_>>()?;
        Ok(self.scans.get_or_init(|| scans))
    }
}

/// # Errors
/// A usage error where standard input is among `inputs` twice.
pub fn check_inputs(inputs: &[PathBuf]) -> Result<()> {
    match inputs.iter().filter(|path| is_stdin(path)).count() {
        0 | 1 => Ok(()),
        _ => Err(Error::usage("standard input (-) is given twice, but can be read only once")),
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl Input {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if is_stdin(path) {
            let store = Store::Spooled(spool(&mut io::stdin().lock(), path)?);
            return Ok(Self { name, format: Format::Jsonl, store });
        }
        let is_named = |name| has_extension(path, &[name]);
        let format = match () {
            () if is_named("txt") => Format::Text,
            () if is_named("parquet") => Format::Parquet,
            () if is_named("csv") => Format::Csv,
            () => Format::Jsonl,
        };
        if PACKED.into_iter().any(is_named) {
            return Err(Error::usage(format!(
                "{name} is compressed: unpack it, or pipe what it holds into standard input (-)"
            )));
        }
        let mut file = File::open(path).map_err(|error| Error::unreadable(path, &error))?;
        let metadata = file.metadata().map_err(|error| Error::unreadable(path, &error))?;
        if metadata.is_dir() {
            return Err(Error::usage(format!("{name} is a directory; name the files in it")));
        }
        let store = if metadata.is_file() {
            Store::Path(path.to_owned())
        } else {
            Store::Spooled(spool(&mut file, path)?)
        };
        let input = Self { name, format, store };
        input.check_lines()?;
        Ok(input)
    }

    /// # Errors
    /// A usage error for one JSON array in the place of lines.
    fn check_lines(&self) -> Result<()> {
        if self.format != Format::Jsonl {
            return Ok(());
        }
        let mut start = Vec::new();
        self.bytes()?.take(1 << 16).read_to_end(&mut start).map_err(|error| self.read_error(&error))?;
        let text = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&start).trim_ascii_start();
        let of_objects =
            text.strip_prefix(b"[").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"{"));
        // A line alone that is an array is a row, if no good one.
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let goes_on = of_objects && serde_json::from_slice::<serde_json::Value>(line).is_err();
        match goes_on {
            false => Ok(()),
            true => Err(Error::usage(format!(
                "{} is one JSON array, expected an object a line: `jq -c '.[]'` makes lines of it",
                self.name
            ))),
        }
    }

    /// Of lines.
    pub fn reader(&self) -> Result<Box<dyn Read + Send>> {
        match self.format {
            Format::Parquet => Ok(Box::new(TableLines::open(self.file()?, &self.name)?)),
            Format::Csv => Ok(Box::new(CsvLines::open(self.bytes()?, &self.name)?)),
            Format::Jsonl | Format::Text => self.bytes(),
        }
    }

    fn file(&self) -> Result<File> {
        match &self.store {
            Store::Path(path) => File::open(path).map_err(|error| Error::unreadable(path, &error)),
            Store::Spooled(file) => file.try_clone().map_err(|error| self.read_error(&error)),
        }
    }

    fn bytes(&self) -> Result<Box<dyn Read + Send>> {
        match &self.store {
            Store::Path(_) => Ok(Box::new(self.file()?)),
            Store::Spooled(file) => Ok(Box::new(Spooled { file: file.clone(), offset: 0 })),
        }
    }

    pub fn read_error(&self, error: &io::Error) -> Error {
        Error::io("read", Path::new(&self.name), error)
    }

    fn scan(&self) -> Result<Scan> {
        let mut rows = RowCount::default();
        let sha256 = hash::sha256_of(self.bytes()?, |chunk| rows.update(chunk));
        let sha256 = sha256.map_err(|error| self.read_error(&error))?;
        let rows = match self.format {
            Format::Parquet => table::count_rows(self.file()?, &self.name)?,
            Format::Csv => {
                let lines = CsvLines::open(self.bytes()?, &self.name)?;
                lines.count().map_err(|error| self.read_error(&error))?
            }
            Format::Jsonl | Format::Text => rows.finish(),
        };
        Ok(Scan { sha256, rows })
    }
}

/// Counts lines with anything in them, from chunks cut anywhere.
#[derive(Default)]
struct RowCount {
    rows: u64,
    in_row: bool,
    /// Position in the file, as far as a byte order mark can reach.
    position: usize,
}

impl RowCount {
    fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if BYTE_ORDER_MARK.get(self.position) == Some(&byte) {
                self.position += 1;
                continue;
            }
            if self.is_cut_mark() {
                self.in_row = true;
                self.rows += 1;
            }
            self.position = BYTE_ORDER_MARK.len();
            if byte == b'\n' {
                self.in_row = false;
            } else if !self.in_row && !is_blank_byte(byte) {
                self.in_row = true;
                self.rows += 1;
            }
        }
    }

    /// The first bytes of a byte order mark without the others are a row like any bytes.
    fn is_cut_mark(&self) -> bool {
        (1..BYTE_ORDER_MARK.len()).contains(&self.position)
    }

    fn finish(&self) -> u64 {
        self.rows + u64::from(self.is_cut_mark())
    }
}

/// Copies what can be read only once to a file without a name, which is gone with its last handle.
fn spool(reader: &mut impl Read, path: &Path) -> Result<Arc<File>> {
    let copy = |reader: &mut _| {
        let mut file = tempfile::tempfile()?;
        io::copy(reader, &mut file)?;
        Ok(Arc::new(file))
    };
    copy(reader).map_err(|error| Error::io("copy to a temporary file", path, &error))
}

/// Reads a shared file from its own position: two readers of one file do not disturb each other.
struct Spooled {
    file: Arc<File>,
    offset: u64,
}

impl Read for Spooled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(unix)]
        let length = std::os::unix::fs::FileExt::read_at(&*self.file, buffer, self.offset)?;
        #[cfg(windows)]
        let length = std::os::windows::fs::FileExt::seek_read(&*self.file, buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}
