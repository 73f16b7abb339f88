//! Whether two tokenizers mean the same tokens by the same ids.

use super::read_json;
use crate::{Error, Result, gguf::Gguf, twin::Twin};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Compares two tokenizers, each the `tokenizer.json` of a directory or the tokens of a GGUF file; without both there is nothing
/// to compare. `names` are what messages call them.
///
/// # Returns
/// A notice for every difference that is allowed: tokens that only one has, added tokens with other names or in the place of ordinary ones; and
/// where only one has a tokenizer.
///
/// # Errors
/// The first id that means one ordinary token in one model and another in the other.
pub fn compare_vocabularies(tokenizers: &Twin<&Path>, names: &Twin<&str>) -> Result<Vec<String>> {
    let paths =
        tokenizers.map(|path| if path.is_file() { path.to_path_buf() } else { path.join("tokenizer.json") });
    match (paths.pt.exists(), paths.ft.exists()) {
        (true, true) => {}
        (false, false) => return Ok(Vec::new()),
        (has_pt, _) => {
            let (without, path) = if has_pt { (names.ft, &paths.ft) } else { (names.pt, &paths.pt) };
            let path = path.display();
            return Ok(vec![format!(
                "whether both models have the same vocabulary is not known: {without} has no {path}"
            )]);
        }
    }
    let is_same = || Some(fs::read(&paths.pt).ok()? == fs::read(&paths.ft).ok()?);
    if paths.pt == paths.ft || !tokenizers.pt.is_file() && is_same() == Some(true) {
        return Ok(Vec::new());
    }
    let vocabularies = paths.as_ref().try_map(|path| Vocabulary::read(path.as_path()))?;
    compare(&vocabularies, &paths, names)
}

/// Tokens by id.
struct Vocabulary {
    ordinary: BTreeMap<u64, String>,
    added: BTreeMap<u64, String>,
}

impl Vocabulary {
    fn read(path: &Path) -> Result<Self> {
        if path.extension().is_none_or(|extension| extension != "json") {
            return Ok(Self::of_gguf(&Gguf::open(path)?));
        }
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

    /// By `tokenizer.ggml.token_type`: normal tokens and bytes, unused ones, all others.
    fn of_gguf(gguf: &Gguf) -> Self {
        let list =
            |key: &str| gguf.metadata.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (mut ordinary, mut added) = (BTreeMap::new(), BTreeMap::new());
        let types = list("tokenizer.ggml.token_type").iter().map(Some).chain(std::iter::repeat(None));
        for ((id, token), kind) in (0..).zip(list("tokenizer.ggml.tokens")).zip(types) {
            let Some(token) = token.as_str().map(str::to_string) else { continue };
            match kind.and_then(Value::as_u64) {
                None | Some(1 | 6) => drop(ordinary.insert(id, token)),
                Some(5) => {}
                Some(_) => drop(added.insert(id, token)),
            }
        }
        Self { ordinary, added }
    }
}

fn compare(
    vocabularies: &Twin<Vocabulary>,
    paths: &Twin<PathBuf>,
    names: &Twin<&str>,
) -> Result<Vec<String>> {
    let Twin { pt, ft } = vocabularies;
    let Twin { pt: first, ft: second } = names;
    for (id, base) in &pt.ordinary {
        if let Some(tuned) = ft.ordinary.get(id).filter(|tuned| *tuned != base) {
            return Err(Error::mismatch(format!(
                "{first} and {second} have different vocabularies: id {id} is {base:?} in {} and {tuned:?} in {}",
                paths.pt.display(),
                paths.ft.display()
            )));
        }
    }
    let mut notices = Vec::new();
    let size = |v: &Vocabulary| v.ordinary.len() + v.added.len();
    if size(pt) != size(ft) {
        notices.push(format!(
            "the tokenizers differ in size: {first} {} tokens, {second} {}",
            size(pt),
            size(ft)
        ));
    }
    for (id, base) in &pt.added {
        if let Some(tuned) = ft.added.get(id).filter(|tuned| *tuned != base) {
            notices.push(format!("added token {id} is {base:?} in {first} and {tuned:?} in {second}"));
        }
    }
    let taken = pt.ordinary.iter().filter_map(|(id, base)| Some((id, base, ft.added.get(id)?)));
    let taken: Vec<_> = taken.filter(|(_, base, tuned)| base != tuned).collect();
    if let [(id, base, tuned), others @ ..] = taken.as_slice() {
        let others =
            if others.is_empty() { String::new() } else { format!("; {} more are so", others.len()) };
        notices.push(format!(
            "token {id} is {base:?} in {first}, and the added token {tuned:?} in {second}{others}"
        ));
    }
    Ok(notices)
}
