//! What a checkpoint says about text: `tokenizer.json` and the files beside it, or the metadata of a GGUF file.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde_json::{Map, Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::{gguf, template::SpecialTokens};
use crate::{
    error::{Error, Result},
    gguf::Gguf,
    hash,
};

/// The text side of a checkpoint. Any of it may be missing: a model can be scored by token ids alone.
pub(super) struct TokenizerFiles {
    /// `Err`: why there is none.
    pub tokenizer: Result<Tokenizer, String>,
    /// Of `tokenizer.json`, or of what a GGUF file has in its place.
    pub tokenizer_sha256: Option<String>,
    /// Of what the files beside it say about tokens.
    pub special_tokens_sha256: String,
    /// The chat template's source.
    pub template: Option<String>,
    pub special_tokens: SpecialTokens,
}

type Fields = Map<String, Value>;

/// Fields of `tokenizer_config.json` with tokens, besides those with a name of their own.
const ADDED_TOKENS: &str = "added_tokens_decoder";
const EXTRA_TOKENS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Whether a field of `tokenizer_config.json` decides about tokens.
fn is_of_tokens(name: &str) -> bool {
    is_named_token(name) || name == ADDED_TOKENS || EXTRA_TOKENS.contains(&name)
}

fn is_named_token(name: &str) -> bool {
    name.ends_with("_token")
}

impl TokenizerFiles {
    /// Reads what is there; `path` is a directory or a GGUF file.
    ///
    /// # Errors
    /// Where a file cannot be read or is not what its name says.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_file() { Self::of_gguf(path) } else { Self::of_directory(path) }
    }

    fn of_directory(dir: &Path) -> Result<Self> {
        let mut config = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        // Checkpoints of before transformers 4.34 have their special tokens in this file, which then wins.
        if !config.contains_key(ADDED_TOKENS) {
            config.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
        }
        let path = dir.join("tokenizer.json");
        let json = read(&path)?.ok_or_else(|| without_tokenizer(dir));
        Self::new(&path, json, &config, template(dir, &config)?)
    }

    fn of_gguf(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = gguf::config(&gguf);
        let json = gguf::tokenizer(&gguf).map_err(|problem| format!("{} {problem}", path.display()));
        let template = config.get("chat_template").and_then(Value::as_str).map(str::to_owned);
        Self::new(path, json.map(|json| json.to_string().into_bytes()), &config, template)
    }

    /// `json` is a `tokenizer.json`, from `path`, or why there is none.
    fn new(
        path: &Path,
        json: Result<Vec<u8>, String>,
        config: &Fields,
        template: Option<String>,
    ) -> Result<Self> {
        let named = named_tokens(config);
        let tokenizer_sha256 = json.as_ref().ok().map(|bytes| hash::sha256(bytes));
        let fields: BTreeMap<&String, &Value> =
            config.iter().filter(|(name, _)| is_of_tokens(name)).collect();
        let special_tokens_sha256 = hash::sha256(json!(fields).to_string().as_bytes());
        let tokenizer = match json {
            Ok(bytes) => Ok(load(path, &bytes, config, &named)?),
            Err(reason) => Err(reason),
        };
        let special_tokens = named.into_iter().map(|(name, token)| (name, token.content)).collect();
        Ok(Self { tokenizer, tokenizer_sha256, special_tokens_sha256, template, special_tokens })
    }
}

/// Why a directory has no `tokenizer.json`: it may have a tokenizer that only `transformers` reads.
fn without_tokenizer(dir: &Path) -> String {
    const OTHERS: [&str; 4] = ["tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"];
    match OTHERS.into_iter().find(|name| dir.join(name).exists()) {
        None => format!("{} has no tokenizer.json, so only token_ids can be scored", dir.display()),
        Some(other) => format!(
            "{} has {other} but no tokenizer.json; transformers makes one of it: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            dir.display()
        ),
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
    let named = config.iter().filter(|(name, _)| is_named_token(name));
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
    let extra = EXTRA_TOKENS.into_iter().filter_map(|name| config.get(name));
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
    let declared = config.get(ADDED_TOKENS).and_then(Value::as_object).into_iter().flatten();
    let mut tokens: Vec<(u64, AddedToken)> =
        declared.filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?))).collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}
