//! Whether two tokenizers mean the same tokens by the same ids.

use super::read_json;
use crate::{Error, Result, twin::Twin};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Compares the `tokenizer.json` of two model directories; without both there is nothing to compare.
///
/// # Returns
/// A notice for every difference that is allowed: tokens that only one has, added tokens with other names.
///
/// # Errors
/// The first id that means one ordinary token in one model and another in the other.
pub fn compare(dirs: &Twin<&Path>) -> Result<Vec<String>> {
    let paths = dirs.map(|dir| dir.join("tokenizer.json"));
    let (Ok(base), Ok(tuned)) = (fs::read(&paths.pt), fs::read(&paths.ft)) else { return Ok(Vec::new()) };
    if base == tuned {
        return Ok(Vec::new());
    }
    let vocabularies = paths.as_ref().try_map(|path| Vocabulary::read(path.as_path()))?;
    compare_vocabularies(&vocabularies, &paths)
}

/// Tokens by id.
struct Vocabulary {
    ordinary: BTreeMap<u64, String>,
    added: BTreeMap<u64, String>,
}

impl Vocabulary {
    fn read(path: &Path) -> Result<Self> {
        let json = read_json(path)?;
        let mut ordinary = BTreeMap::new();
        match json.pointer("/model/vocab") {
            Some(Value::Object(map)) => {
                ordinary.extend(map.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.clone()))));
            }
            // Unigram: a list of [token, score].
            Some(Value::Array(list)) => {
                let token = |entry: &Value| entry.get(0)?.as_str().map(str::to_string);
                ordinary.extend((0..).zip(list.iter().filter_map(token)));
            }
            _ => {
                let message = format!("{} has no model.vocab", path.display());
                return Err(Error::checkpoint(message));
            }
        }
        let mut added = BTreeMap::new();
        for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(id), Some(content)) =
                (token.get("id").and_then(Value::as_u64), token.get("content").and_then(Value::as_str))
            {
                ordinary.remove(&id);
                added.insert(id, content.to_string());
            }
        }
        Ok(Self { ordinary, added })
    }
}

fn compare_vocabularies(vocabularies: &Twin<Vocabulary>, paths: &Twin<PathBuf>) -> Result<Vec<String>> {
    let Twin { pt, ft } = vocabularies;
    for (id, base) in &pt.ordinary {
        if let Some(tuned) = ft.ordinary.get(id).filter(|tuned| *tuned != base) {
            return Err(Error::mismatch(format!(
                "base and tuned have different vocabularies: id {id} is {base:?} in {} and {tuned:?} in {}",
                paths.pt.display(),
                paths.ft.display()
            )));
        }
    }
    let mut notices = Vec::new();
    let size = |v: &Vocabulary| v.ordinary.len() + v.added.len();
    if size(pt) != size(ft) {
        notices.push(format!("the tokenizers differ in size: base {} tokens, tuned {}", size(pt), size(ft)));
    }
    for (id, base) in &pt.added {
        if let Some(tuned) = ft.added.get(id).filter(|tuned| *tuned != base) {
            notices.push(format!("added token {id} is {base:?} in base and {tuned:?} in tuned"));
        }
    }
    Ok(notices)
}
