//! Mapped files, and which of their pages are in memory.

use memmap2::Mmap;
use std::path::PathBuf;

/// Bytes that the system is asked to read at a time: it takes no more in one request than its read-ahead.
#[cfg(unix)]
const READ_AHEAD: usize = 128 << 10;

/// The files of a checkpoint.
pub struct MappedFiles {
    files: Vec<(PathBuf, Mmap)>,
    /// Pages that were read need not stay.
    pub lets_go: bool,
}

impl MappedFiles {
    pub fn new(files: Vec<(PathBuf, Mmap)>) -> Self {
        Self { files, lets_go: false }
    }

    pub fn push(&mut self, path: PathBuf, map: Mmap) {
        self.files.push((path, map));
    }

    pub fn iter(&self) -> impl Iterator<Item = &(PathBuf, Mmap)> {
        self.files.iter()
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn path(&self, file: usize) -> &PathBuf {
        &self.files[file].0
    }

    pub fn bytes(&self, file: usize) -> &[u8] {
        &self.files[file].1
    }

    /// Lets pages leave the process's memory; what is read of them again comes back from the file.
    pub fn let_go(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, start)) = self.place(bytes) {
            // SAFETY: the mapping is of a file and only read, so that its pages come back as they were.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes.len()) };
            debug_assert!(advised.is_ok());
        }
    }

    /// [`let_go`](Self::let_go) of all files: where parts were let go one by one, the system has brought back ends of one with the next.
    pub fn let_go_all(&self) {
        self.files.iter().for_each(|(_, map)| self.let_go(map));
    }

    /// Begins to read what will be needed soon, without taking it into the process's memory yet.
    pub fn expect(&self, bytes: &[u8]) {
        #[cfg(unix)]
        if let Some((map, start)) = self.place(bytes) {
            let end = start + bytes.len();
            for first in (start..end).step_by(READ_AHEAD) {
                // Without the advice it is read when it is needed.
                let _ = map.advise_range(memmap2::Advice::WillNeed, first, READ_AHEAD.min(end - first));
            }
        }
    }

    /// The file that bytes lie in, and where, if pages are let go and it is one of these.
    #[cfg(unix)]
    fn place(&self, bytes: &[u8]) -> Option<(&Mmap, usize)> {
        let start = bytes.as_ptr() as usize;
        let holds = |map: &Mmap| map.as_ptr_range().contains(&bytes.as_ptr());
        let (_, map) = self.files.iter().find(|(_, map)| self.lets_go && holds(map))?;
        Some((map, start - map.as_ptr() as usize))
    }
}
