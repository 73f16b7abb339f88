//! What a checkpoint directory says about text: `tokenizer.json` and the files beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::template::SpecialTokens;
use crate::error::{Error, Result};

/// `SPECIAL_TOKENS_ATTRIBUTES` of `transformers.tokenization_utils_base`: the tokens with a name.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The text side of a checkpoint, as read. Every file may be missing.
#[derive(Debug, Default)]
pub(super) struct TokenizerFiles {
    /// The bytes of `tokenizer.json`, and where they are from.
    pub tokenizer: Option<(PathBuf, Vec<u8>)>,
    /// A `tokenizer.model` or `vocab.json` is there: a tokenizer, in a form that only `transformers` reads.
    pub has_other_tokenizer: bool,
    /// The chat template's source.
    pub template: Option<String>,
    pub special_tokens: SpecialTokens,
}

impl TokenizerFiles {
    pub fn read(dir: &Path) -> Result<Self> {
        let tokenizer = dir.join("tokenizer.json");
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let map = read_object(&dir.join("special_tokens_map.json"))?;
        Ok(Self {
            tokenizer: read(&tokenizer)?.map(|bytes| (tokenizer, bytes)),
            has_other_tokenizer: ["tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"]
                .iter()
                .any(|name| dir.join(name).exists()),
            template: template(dir, &config)?,
            special_tokens: special_tokens(&config, &map),
        })
    }
}

/// The bytes of a file, `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::unreadable(path, &error)),
    }
}

/// A JSON object, empty where there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(bytes) = read(path)? else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::checkpoint(format!("{} is not a JSON object: {error}", path.display())))
}

/// `chat_template.jinja`, else `chat_template.json`, else the field of `tokenizer_config.json`.
fn template(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = read(&path)? {
        return match String::from_utf8(bytes) {
            Ok(source) => Ok(Some(source)),
            Err(_) => Err(Error::checkpoint(format!("{} is not UTF-8", path.display()))),
        };
    }
    let file = read_object(&dir.join("chat_template.json"))?;
    Ok(file.get("chat_template").or(config.get("chat_template")).and_then(template_of))
}

/// A template is a string or, where there are several, a list of `{name, template}` of which "default" is meant.
fn template_of(field: &Value) -> Option<String> {
    let source = match field {
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?.get("template")?,
        other => other,
    };
    source.as_str().map(str::to_owned)
}

/// The named tokens: a string each, or an object with the string as `content`.
fn special_tokens(config: &Map<String, Value>, map: &Map<String, Value>) -> SpecialTokens {
    let text = |token: &Value| token.as_str().or(token["content"].as_str()).map(str::to_owned);
    let token = |name: &str| config.get(name).and_then(text).or(map.get(name).and_then(text));
    NAMED_TOKENS.iter().filter_map(|&name| Some((name.to_owned(), token(name)?))).collect()
}
