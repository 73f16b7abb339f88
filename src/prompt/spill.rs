//! Any number of records in order, in constant memory: they are sorted some at a time, and temporary files are merged.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
};

/// Ordered by the first number, then the second, then the third.
pub type Record = [u64; 3];

/// Records that are sorted in memory.
const IN_MEMORY: usize = if cfg!(test) { 8 } else { 1 << 15 };

/// Files that are merged into one when there are so many of one generation.
const MERGED: usize = if cfg!(test) { 3 } else { 16 };

/// Bytes of a file that are read at a time.
const BUFFER: usize = 8 << 10;

/// Takes records in any order.
#[derive(Default)]
pub struct Sorter {
    buffer: Vec<Record>,
    /// By generation: files of sorted records, each generation about [`MERGED`] times as long as the one before.
    files: Vec<Vec<File>>,
}

impl Sorter {
    pub fn push(&mut self, record: Record) -> io::Result<()> {
        self.buffer.push(record);
        if self.buffer.len() == IN_MEMORY {
            self.buffer.sort_unstable();
            let file = write(self.buffer.drain(..).map(Ok))?;
            self.add(0, file)?;
        }
        Ok(())
    }

    fn add(&mut self, generation: usize, file: File) -> io::Result<()> {
        if self.files.len() == generation {
            self.files.push(Vec::new());
        }
        self.files[generation].push(file);
        if self.files[generation].len() == MERGED {
            let files = std::mem::take(&mut self.files[generation]);
            let merged = write(Sorted::new(files, Vec::new())?)?;
            self.add(generation + 1, merged)?;
        }
        Ok(())
    }

    /// All records, in order.
    pub fn sorted(mut self) -> io::Result<Sorted> {
        self.buffer.sort_unstable();
        Sorted::new(self.files.into_iter().flatten(), self.buffer)
    }
}

/// Writes records to a file without a name, which is gone with its handle, and goes back to its beginning.
fn write(records: impl Iterator<Item = io::Result<Record>>) -> io::Result<File> {
    let mut file = BufWriter::with_capacity(BUFFER, tempfile::tempfile()?);
    for record in records {
        record?.iter().try_for_each(|number| file.write_all(&number.to_le_bytes()))?;
    }
    let mut file = file.into_inner()?;
    file.rewind()?;
    Ok(file)
}

/// Sorted records.
pub struct Sorted {
    parts: Vec<Part>,
    /// The next record of each part that has one.
    heads: BinaryHeap<Reverse<(Record, usize)>>,
}

enum Part {
    File(BufReader<File>),
    Memory(std::vec::IntoIter<Record>),
}

impl Sorted {
    fn new(files: impl IntoIterator<Item = File>, buffer: Vec<Record>) -> io::Result<Self> {
        let files = files.into_iter().map(|file| Part::File(BufReader::with_capacity(BUFFER, file)));
        let parts = files.chain([Part::Memory(buffer.into_iter())]).collect();
        let mut sorted = Self { parts, heads: BinaryHeap::new() };
        (0..sorted.parts.len()).try_for_each(|part| sorted.advance(part))?;
        Ok(sorted)
    }

    fn advance(&mut self, part: usize) -> io::Result<()> {
        let next = self.parts[part].next()?;
        self.heads.extend(next.map(|record| Reverse((record, part))));
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((record, part)) = self.heads.pop()?;
        Some(self.advance(part).map(|()| record))
    }
}

impl Part {
    fn next(&mut self) -> io::Result<Option<Record>> {
        let file = match self {
            Part::Memory(records) => return Ok(records.next()),
            Part::File(file) => file,
        };
        let mut bytes = [0; size_of::<Record>()];
        match file.read_exact(&mut bytes) {
            Ok(()) => {
                let (numbers, _) = bytes.as_chunks();
                Ok(Some(std::array::from_fn(|i| u64::from_le_bytes(numbers[i]))))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_come_in_order_and_none_is_lost(records in prop::collection::vec(any::<[u8; 3]>(), 0..400)) {
            let mut records: Vec<Record> = records.into_iter().map(|record| record.map(u64::from)).collect();
            let mut sorter = Sorter::default();
            for record in &records {
                sorter.push(*record).unwrap();
            }
            let sorted: Vec<Record> = sorter.sorted().unwrap().map(Result::unwrap).collect();
            records.sort_unstable();
            prop_assert_eq!(sorted, records);
        }
    }
}
