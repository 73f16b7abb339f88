//! Parts of a run that many machines share: which rows are whose, and the folder that the parts lie in.

use super::Manifest;
use crate::{Error, Result, hash};
use serde_json::Value;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// One part of all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    /// From 0 to `count - 1`.
    pub index: u64,
    pub count: u64,
}

impl Shard {
    /// # Errors
    /// Says what is expected where there is no such part.
    pub fn new(index: u64, count: u64) -> Result<Self, String> {
        match count {
            0 => Err("expected at least one shard".into()),
            _ if index >= count => {
                Err(format!("there is no shard {index} of {count}, expected 0 to {}", count - 1))
            }
            _ => Ok(Self { index, count }),
        }
    }

    /// Whether a row is in this part. Depends on its id alone, on every machine alike.
    pub fn holds(self, id: &Value) -> bool {
        hash::number(id.to_string().as_bytes()) % self.count == self.index
    }

    /// Where its rows are in a folder.
    pub fn path(self, folder: &Path) -> PathBuf {
        folder.join(format!("shard-{:05}-of-{:05}.jsonl", self.index, self.count))
    }

    /// The rows of another part in the same folder, of this run or, by mistake, of another.
    pub fn neighbour(self, folder: &Path) -> Result<Option<PathBuf>> {
        let others = Self::in_folder(folder)?.into_iter().filter(|other| *other != self);
        let mut paths = others.map(|other| other.path(folder));
        Ok(paths.find(|path| Manifest::path_beside(path).exists()))
    }

    /// The part whose rows a file of this name has.
    fn of_file(name: &str) -> Option<Self> {
        let (index, count) = name.strip_prefix("shard-")?.strip_suffix(".jsonl")?.split_once("-of-")?;
        Self::new(index.parse().ok()?, count.parse().ok()?).ok()
    }

    /// The parts of which a folder has files, in order; none where there is no such folder.
    pub fn in_folder(folder: &Path) -> Result<Vec<Self>> {
        let failed = |error: std::io::Error| Error::io("read", folder, &error);
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut shards = Vec::new();
        for entry in entries {
            shards.extend(entry.map_err(failed)?.file_name().to_str().and_then(Self::of_file));
        }
        shards.sort_unstable();
        Ok(shards)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_id_is_in_one_shard_and_stays_there() {
        let ids: Vec<Value> = (0..1000).flat_map(|id| [json!(id), json!(format!("row {id}"))]).collect();
        let counts: Vec<usize> = (0..7)
            .map(|index| ids.iter().filter(|id| Shard::new(index, 7).unwrap().holds(id)).count())
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), 2000);
        assert!(counts.iter().all(|count| (200..400).contains(count)), "{counts:?}");
        // First eight bytes of SHA-256 of `"a"` (with the quotes) and of `7`, modulo 1000, by Python's hashlib.
        assert!(Shard::new(349, 1000).unwrap().holds(&json!("a")));
        assert!(Shard::new(230, 1000).unwrap().holds(&json!(7)));
    }

    #[test]
    fn files_tell_their_shard() {
        let shard = Shard::new(3, 16).unwrap();
        let path = shard.path(Path::new(""));
        assert_eq!(path, Path::new("shard-00003-of-00016.jsonl"));
        assert_eq!(Shard::of_file(path.to_str().unwrap()), Some(shard));
        assert_eq!(Shard::of_file("shard-00016-of-00016.jsonl"), None);
        assert_eq!(Shard::of_file("shard-00003-of-00016.jsonl.manifest.json"), None);
    }
}
