//! What a checkpoint directory says about text: `tokenizer.json` and the files beside it.

use std::{fs, io, path::Path};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::template::SpecialTokens;
use crate::{
    error::{Error, Result},
    hash,
};

/// The text side of a checkpoint. Any of it may be missing: a model can be scored by token ids alone.
pub(super) struct TokenizerFiles {
    pub tokenizer: Option<Tokenizer>,
    /// Of `tokenizer.json`.
    pub tokenizer_sha256: Option<String>,
    /// The file of a tokenizer that is there in place of `tokenizer.json`, and that only `transformers` reads.
    pub other_tokenizer: Option<&'static str>,
    /// The chat template's source.
    pub template: Option<String>,
    pub special_tokens: SpecialTokens,
}

type Fields = Map<String, Value>;

impl TokenizerFiles {
    /// Reads what is there.
    ///
    /// # Errors
    /// Where a file cannot be read or is not what its name says.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        // Checkpoints of before transformers 4.34 have their special tokens in this file, which then wins.
        if !config.contains_key("added_tokens_decoder") {
            config.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
        }
        let named = named_tokens(&config);
        let path = dir.join("tokenizer.json");
        let (tokenizer, tokenizer_sha256) = match read(&path)? {
            None => (None, None),
            Some(bytes) => (Some(load(&path, &bytes, &config, &named)?), Some(hash::sha256(&bytes))),
        };
        const OTHERS: [&str; 4] = ["tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"];
        Ok(Self {
            tokenizer,
            tokenizer_sha256,
            other_tokenizer: OTHERS.into_iter().find(|name| dir.join(name).exists()),
            template: template(dir, &config)?,
            special_tokens: named.into_iter().map(|(name, token)| (name, token.content)).collect(),
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

fn read_object(path: &Path) -> Result<Option<Fields>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let fields = serde_json::from_slice(&bytes);
    fields
        .map(Some)
        .map_err(|error| Error::checkpoint(format!("{} is not a JSON object: {error}", path.display())))
}

/// `chat_template.jinja`, else the field of `tokenizer_config.json`, else `chat_template.json`, which `transformers` writes for
/// models that see images too.
fn template(dir: &Path, config: &Fields) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    if let Some(bytes) = read(&path)? {
        let source = String::from_utf8(bytes);
        return source.map(Some).map_err(|_| Error::checkpoint(format!("{} is not UTF-8", path.display())));
    }
    let field = match config.get("chat_template").filter(|field| !field.is_null()) {
        Some(field) => Some(field.clone()),
        None => {
            read_object(&dir.join("chat_template.json"))?.and_then(|mut file| file.remove("chat_template"))
        }
    };
    Ok(field.as_ref().and_then(default_template).map(str::to_owned))
}

/// A template is a string or, where there are several, a list of `{name, template}`, of which "default" is meant.
fn default_template(field: &Value) -> Option<&str> {
    match field {
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default")?.get("template")?.as_str()
        }
        other => other.as_str(),
    }
}

/// `bos_token` and all others with such a name: those of every tokenizer (`SPECIAL_TOKENS_ATTRIBUTES` of
/// `transformers.tokenization_utils_base`) and the model's own. The template sees them by name.
fn named_tokens(config: &Fields) -> Vec<(String, AddedToken)> {
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    named.filter_map(|(name, token)| Some((name.clone(), added_token(token)?))).collect()
}

/// A token as the text alone, or as an object with its flags.
fn added_token(token: &Value) -> Option<AddedToken> {
    if let Some(text) = token.as_str() {
        return Some(AddedToken::from(text, true));
    }
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let is_special = flag("special").unwrap_or(true);
    Some(
        AddedToken::from(token.get("content")?.as_str()?, is_special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!is_special)),
    )
}

/// The tokenizer as `transformers` sets it up (`TokenizersBackend.__init__`): with the added tokens of `tokenizer_config.json` that
/// `tokenizer.json` does not have; but without its own truncation and padding, which would change a prompt unseen.
fn load(path: &Path, bytes: &[u8], config: &Fields, named: &[(String, AddedToken)]) -> Result<Tokenizer> {
    let broken = |error: tokenizers::Error| {
        Error::checkpoint(format!("{} is not a tokenizer that can be read: {error}", path.display()))
    };
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(broken)?;
    tokenizer.with_truncation(None).map_err(broken)?;
    tokenizer.with_padding(None);

    let known: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
    let mut added = declared_tokens(config);
    added.retain(|token| !known.contains(token));
    let extra =
        ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|name| config.get(name));
    let extra = extra.filter_map(Value::as_array).flatten().filter_map(added_token);
    for token in named.iter().map(|(_, token)| token.clone()).chain(extra) {
        // What is declared elsewhere has its flags from there.
        if !known.iter().chain(&added).any(|other| other.content == token.content) {
            added.push(token);
        }
    }
    if !added.is_empty() {
        tokenizer.add_tokens(&added);
    }
    Ok(tokenizer)
}

/// `added_tokens_decoder`, by id.
fn declared_tokens(config: &Fields) -> Vec<AddedToken> {
    let declared = config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
    let mut tokens: Vec<(u64, AddedToken)> =
        declared.filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?))).collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}
