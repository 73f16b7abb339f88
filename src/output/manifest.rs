//! The manifest beside an output file: what made the rows, so that a run is only continued by itself.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::{
    ffi::OsString,
    fs,
    io::Write,
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

    /// A field of the fingerprint that an earlier run wrote beside `output`.
    pub fn earlier(output: &Path, field: &str) -> Option<Value> {
        let text = fs::read(Self::path_beside(output)).ok()?;
        let manifest: Value = serde_json::from_slice(&text).ok()?;
        manifest.get("fingerprint")?.get(field).cloned()
    }

    /// What the manifest beside `output` says besides, or of the run itself.
    pub fn told(output: &Path, field: &str) -> Option<Value> {
        let text = fs::read(Self::path_beside(output)).ok()?;
        let manifest: Value = serde_json::from_slice(&text).ok()?;
        let part = |name: &str| manifest.get(name)?.get(field).cloned();
        part("about").or_else(|| part("fingerprint"))
    }

    /// Compares with the manifest beside `output`.
    ///
    /// # Errors
    /// A mismatch that names every field that differs, with both values.
    pub fn check_continues(&self, output: &Path) -> Result<()> {
        let path = Self::path_beside(output);
        let refuse = |what: String| {
            Error::mismatch(format!(
                "{} holds rows of another run: {what}. Choose another -o, or --overwrite to start again",
                output.display()
            ))
        };
        let text = fs::read(&path)
            .map_err(|error| refuse(format!("its {} cannot be read ({error})", path.display())))?;
        let earlier: Value = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("its {} is not valid JSON ({error})", path.display())))?;
        let (mut before, mut now) = (Map::new(), Map::new());
        flatten("", earlier.get("fingerprint").unwrap_or(&Value::Null), &mut before);
        flatten("", &self.fingerprint, &mut now);
        let fields: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_string(), Value::to_string);
        let differences: Vec<String> = fields
            .into_iter()
            .filter(|field| before.get(*field) != now.get(*field))
            .map(|field| {
                format!("{field} was {} and is now {}", show(before.get(field)), show(now.get(field)))
            })
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(refuse(differences.join("; "))) }
    }

    /// Writes it whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("write", path, &error);
        let text =
            serde_json::to_string_pretty(&json!({ "fingerprint": self.fingerprint, "about": self.about }))
                .expect("JSON values serialize");
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
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
