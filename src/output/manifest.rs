//! The manifest beside an output file: what made the rows, so that a run is only continued by itself.

use super::write_whole;
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};
use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Describes a run.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Everything that the rows depend on; two runs continue each other only if this is equal.
    fingerprint: Value,
    /// What is good to know besides: command, paths, notices.
    about: Value,
}

impl Manifest {
    pub fn new(fingerprint: Value, about: Value) -> Self {
        Self { fingerprint, about }
    }

    /// `OUT.jsonl` → `OUT.jsonl.manifest.json`.
    pub fn path_beside(output: &Path) -> PathBuf {
        let mut name = OsString::from(output);
        name.push(".manifest.json");
        name.into()
    }

    /// The manifest beside `output`, if there is one, and what was found if that run is finished.
    ///
    /// # Errors
    /// Where it cannot be read; a mismatch where it is no manifest.
    pub fn find(output: &Path) -> Result<Option<(Self, Option<Done>)>> {
        let path = Self::path_beside(output);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        let mut manifest: Value = serde_json::from_slice(&text)
            .map_err(|error| Error::mismatch(format!("{} is not valid JSON ({error})", path.display())))?;
        let done = manifest.get("done").and_then(Done::from_json);
        let mut take = |field| manifest.get_mut(field).map_or(Value::Null, Value::take);
        Ok(Some((Self::new(take("fingerprint"), take("about")), done)))
    }

    /// A field of the fingerprint.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fingerprint.get(name)
    }

    /// What it says besides, or of the run itself.
    pub fn told(&self, name: &str) -> Option<&Value> {
        self.about.get(name).or_else(|| self.field(name))
    }

    /// The same with a field of the fingerprint more.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.fingerprint[name] = value;
        self
    }

    /// The same without a field of the fingerprint.
    pub fn without(mut self, name: &str) -> Self {
        if let Value::Object(fields) = &mut self.fingerprint {
            fields.shift_remove(name);
        }
        self
    }

    /// Compares with the manifest beside `output`; tells what was found if that run is finished.
    ///
    /// # Errors
    /// A mismatch that names every field that differs, with both values; where the manifest cannot be read.
    pub fn check_continues(&self, output: &Path) -> Result<Option<Done>> {
        let refuse = |what: String| {
            Error::mismatch(format!(
                "{} holds rows of another run: {what}. Choose another -o, or --overwrite to start again",
                output.display()
            ))
        };
        let missing = || refuse(format!("{} is missing", Self::path_beside(output).display()));
        let found = Self::find(output).map_err(|error| match error.kind {
            ErrorKind::Mismatch => refuse(error.message),
            _ => error,
        })?;
        let (earlier, done) = found.ok_or_else(missing)?;
        match earlier.difference(self) {
            None => Ok(done),
            Some(difference) => Err(refuse(difference)),
        }
    }

    /// What differs in the fingerprints of this manifest and a later one.
    pub fn difference(&self, later: &Self) -> Option<String> {
        let (mut before, mut now) = (Map::new(), Map::new());
        flatten("", &self.fingerprint, &mut before);
        flatten("", &later.fingerprint, &mut now);
        let fields: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_string(), Value::to_string);
        let differences: Vec<String> = fields
            .into_iter()
            .filter(|field| before.get(*field) != now.get(*field))
            .map(|field| match self.input(field).zip(later.input(field)) {
                Some((before, now)) => {
                    format!("the input {now} is not what {before} was: other content, or read in another way")
                }
                None => {
                    format!("{field} was {} and is now {}", show(before.get(field)), show(now.get(field)))
                }
            })
            .collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// The input file of which a field of the fingerprint is the hash.
    fn input(&self, field: &str) -> Option<&str> {
        let place: usize = field.strip_prefix("inputs.")?.parse().ok()?;
        self.about["inputs"][place].as_str()
    }

    /// Writes it beside `output`; `done` where all rows are there.
    pub fn write(&self, output: &Path, done: Option<&Done>) -> Result<()> {
        let mut manifest = json!({ "fingerprint": self.fingerprint, "about": self.about });
        if let Some(done) = done {
            manifest["done"] = done.to_json();
        }
        let path = Self::path_beside(output);
        write_whole(&path, |file| {
            writeln!(file, "{manifest:#}").map_err(|error| Error::io("write", &path, &error))
        })
    }
}

/// What a run did, once it is through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    pub rows: u64,
    /// Rows of the input, those of other shards included.
    pub rows_of_all: u64,
    /// Rows that are errors, those of earlier runs included.
    pub errors: u64,
    /// The message of the first of them.
    pub first_error: Option<String>,
}

impl Done {
    /// Counts a row that is an error.
    pub fn note_error(&mut self, message: String) {
        self.errors += 1;
        self.first_error.get_or_insert(message);
    }

    fn to_json(&self) -> Value {
        let Done { rows, rows_of_all, errors, first_error } = self;
        json!({ "rows": rows, "rows_of_all": rows_of_all, "errors": errors, "first_error": first_error })
    }

    fn from_json(done: &Value) -> Option<Self> {
        Some(Self {
            rows: done["rows"].as_u64()?,
            rows_of_all: done["rows_of_all"].as_u64()?,
            errors: done["errors"].as_u64()?,
            first_error: done["first_error"].as_str().map(str::to_owned),
        })
    }
}

/// Objects and lists → `a.b.0` names of their leaves.
fn flatten(name: &str, value: &Value, out: &mut Map<String, Value>) {
    let child = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| flatten(&child(key), value, out)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&child(&i.to_string()), value, out));
        }
        leaf => {
            out.insert(name.to_string(), leaf.clone());
        }
    }
}
