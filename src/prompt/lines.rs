//! The lines of all inputs, one after the other.

use std::{
    collections::HashSet,
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

use super::{
    ids::{Duplicates, Ids},
    parse::{KNOWN_FIELDS, Row, fields_of},
    row::{Line, RowError, RowErrorKind},
    source::{Format, Input},
};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Longer lines are not read into memory but become error rows. The longest contexts are a few MB of text.
const MAX_LINE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 64 << 20 };

/// So many unknown fields are told by name; a file whose keys are data would otherwise fill screen and memory.
const MAX_TOLD_FIELDS: usize = 20;

/// A line of such bytes only is blank.
pub(super) fn is_blank_byte(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}

/// Where ids are sorted.
fn failed(error: io::Error) -> Error {
    Error::io("sort ids in the folder", &std::env::temp_dir(), &error)
}

/// The fields of a line, or what is wrong with it.
pub type Fields = Result<Map<String, Value>, RowError>;

/// Iterator over the lines of a [`Source`](super::Source), blank ones left out.
///
/// Holds one line. Before the first comes, all are read once to find ids that are used twice; what that takes is in temporary
/// files. An `Err` means that reading failed; nothing follows.
pub struct Lines {
    inputs: Arc<[Input]>,
    /// The input being read; `inputs.len()` at the end.
    current: usize,
    reader: Option<BufReader<Box<dyn Read + Send>>>,
    /// Lines read of all inputs.
    number: u64,
    /// `number` before the first line of each input begun so far.
    starts: Vec<u64>,
    /// The line being read, or as much of it as may be.
    buffer: Vec<u8>,
    is_cut: bool,
    /// Found when the first line is asked for.
    duplicates: Option<Duplicates>,
    /// The field that has the prompt, in the place of `prompt`.
    prompt_field: Option<String>,
    /// Fields that the caller reads.
    expected: Vec<String>,
    told: HashSet<String>,
    warnings: Vec<String>,
}

impl Lines {
    pub(super) fn new(inputs: Arc<[Input]>) -> Self {
        Self {
            inputs,
            current: 0,
            reader: None,
            number: 0,
            starts: Vec::new(),
            buffer: Vec::new(),
            is_cut: false,
            duplicates: None,
            prompt_field: None,
            expected: Vec::new(),
            told: HashSet::new(),
            warnings: Vec::new(),
        }
    }

    /// Numbers lines as if so many had come before.
    pub fn numbered_after(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// The number of the last line of all, which is read on to.
    ///
    /// # Errors
    /// Where reading fails.
    pub fn last_number(mut self) -> Result<u64> {
        while self.read_line()? {}
        Ok(self.number)
    }

    /// The caller reads these fields of [`Line::other`]: there is no warning of them.
    pub fn expecting(self, fields: &[&str]) -> Self {
        Self { expected: fields.iter().map(|field| (*field).to_owned()).collect(), ..self }
    }

    /// Text prompts are in the field of this name, whatever its name is.
    pub fn with_prompts_in(self, field: Option<&str>) -> Self {
        Self { prompt_field: field.map(str::to_owned), ..self }
    }

    /// What the user should be told about the lines yielded since the last call: each unknown field once, where it came first.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Reads up to the next line ending of any input into `buffer`. `false`: there is none left.
    fn read_line(&mut self) -> Result<bool> {
        while let Some(input) = self.inputs.get(self.current) {
            if self.reader.is_none() {
                self.reader = Some(BufReader::with_capacity(1 << 16, input.reader()?));
                self.starts.push(self.number);
            }
            let Some(reader) = &mut self.reader else { unreachable!("just opened") };
            self.buffer.clear();
            let length = reader
                .take(MAX_LINE_BYTES as u64 + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| input.read_error(&error))?;
            if length == 0 {
                self.reader = None;
                self.current += 1;
                continue;
            }
            self.is_cut = length > MAX_LINE_BYTES && self.buffer.last() != Some(&b'\n');
            if self.is_cut {
                reader.skip_until(b'\n').map_err(|error| input.read_error(&error))?;
            }
            self.number += 1;
            return Ok(true);
        }
        Ok(false)
    }

    /// The line in `buffer`, as a row.
    fn row(&self) -> Row {
        match (self.valid_text(), self.inputs[self.current].format) {
            (Ok(line), Format::Csv) if line.starts_with('"') => {
                Row::bad(RowError::invalid(serde_json::from_str::<String>(line).unwrap_or_default()))
            }
            (Ok(line), Format::Jsonl | Format::Parquet | Format::Csv) => {
                Row::parse(line, self.prompt_field.as_deref())
            }
            (Ok(line), Format::Text) => Row::prompt(line),
            (Err(error), _) => Row::bad(error),
        }
    }

    /// The text of the line in `buffer`, or why it is none.
    fn valid_text(&self) -> Result<&str, RowError> {
        if self.is_cut {
            return Err(RowError::invalid(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
        }
        std::str::from_utf8(self.text()).map_err(|error| {
            let message = format!("not valid UTF-8 at byte {}", error.valid_up_to() + 1);
            RowError::new(RowErrorKind::InvalidUtf8, message)
        })
    }

    /// The next line as the fields of a JSON object, whatever they are, and its number; in place of [`Lines::next`], for formats of their
    /// own.
    ///
    /// # Errors
    /// Where reading failed; what is wrong with the line stands in its place.
    pub fn next_object(&mut self) -> Result<Option<(u64, Fields)>> {
        if !self.read_row()? {
            return Ok(None);
        }
        Ok(Some((self.number, self.valid_text().and_then(fields_of))))
    }

    /// The line in `buffer` without line ending and byte order mark.
    fn text(&self) -> &[u8] {
        let is_first = self.starts.last() == Some(&(self.number - 1));
        let line = self.buffer.as_slice();
        let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_first).unwrap_or(line);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// Reads up to the next line with anything in it. `false`: there is none left.
    fn read_row(&mut self) -> Result<bool> {
        loop {
            match self.read_line()? {
                true if !self.is_cut && self.text().iter().copied().all(is_blank_byte) => {}
                is_there => return Ok(is_there),
            }
        }
    }

    /// Reads all lines of the inputs for their ids.
    fn find_duplicates(&self) -> Result<Duplicates> {
        let mut ids = Ids::default();
        // Lines of text have no ids of their own.
        if self.inputs.iter().any(|input| input.format != Format::Text) {
            let mut lines = Self::new(self.inputs.clone()).numbered_after(self.number);
            while lines.read_row()? {
                ids.note(lines.row().id.as_ref(), lines.number).map_err(failed)?;
            }
        }
        ids.duplicates().map_err(failed)
    }

    fn try_next(&mut self) -> Result<Option<Line>> {
        if self.duplicates.is_none() && self.current < self.inputs.len() {
            self.duplicates = Some(self.find_duplicates()?);
        }
        if !self.read_row()? {
            return Ok(None);
        }
        let duplicates = self.duplicates.as_mut().expect("found above");
        let earlier = duplicates.earlier(self.number).map_err(failed)?;
        Ok(Some(self.line(earlier)))
    }

    fn line(&mut self, earlier: Option<u64>) -> Line {
        let number = self.number;
        let Row { id, label, meta, content, other } = self.row();
        for field in other.keys() {
            self.tell_unknown(field);
        }
        let id = id.unwrap_or_else(|| number.into());
        let content = match (content, earlier) {
            (Ok(_), Some(earlier)) => Err(RowError::used_before(&id, self.place(earlier))),
            (content, _) => content,
        };
        let place = self.place(number);
        let content = content.map_err(|error| error.at(&place));
        Line { number, place, id, label, meta, other, content }
    }

    fn tell_unknown(&mut self, field: &str) {
        if self.told.len() == MAX_TOLD_FIELDS
            || self.told.contains(field)
            || self.expected.iter().any(|expected| expected == field)
        {
            return;
        }
        let place = self.place(self.number);
        self.warnings.push(format!("{place}: unknown field {field:?} is ignored (a row has {KNOWN_FIELDS})"));
        self.told.insert(field.to_owned());
        if self.told.len() == MAX_TOLD_FIELDS {
            self.warnings.push(format!("{place}: further unknown fields are ignored and not told"));
        }
    }

    /// Where the line `number` of all inputs together is: `file:line`.
    fn place(&self, number: u64) -> String {
        let input = self.starts.partition_point(|&start| start < number) - 1;
        format!("{}:{}", self.inputs[input].name, number - self.starts[input])
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.try_next();
        if line.is_err() {
            self.current = self.inputs.len();
        }
        line.transpose()
    }
}

#[cfg(test)]
mod tests;
