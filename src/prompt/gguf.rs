//! What a GGUF file says about text: its tokens and merges as a `tokenizer.json`, its named tokens and chat template as a
//! `tokenizer_config.json`.
//!
//! llama.cpp names the rule by which a text is cut before its merges (`tokenizer.ggml.pre`) and has the rules in its code
//! (llama-vocab.cpp). Those here are of the `tokenizer.json` files that the models were released with.

use crate::gguf::Gguf;
use serde_json::{Map, Value, json};

/// A rule by which a text is cut.
struct Rule {
    /// Its names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    cut: Cut,
    /// Texts are composed first (NFC).
    composes: bool,
    /// A piece that is a token is that, whatever its merges.
    ignores_merges: bool,
    /// Whether a text begins with `bos_token` where the file does not say.
    adds_bos: bool,
}

enum Cut {
    /// As GPT-2 does, perhaps with every digit for itself before.
    Gpt2 { digits: bool },
    /// Into the matches of a pattern.
    Pattern(&'static str),
}

const GPT2: Rule = Rule {
    names: &[],
    cut: Cut::Gpt2 { digits: false },
    composes: false,
    ignores_merges: false,
    adds_bos: false,
};

static RULES: &[Rule] = &[
    Rule { names: &["gpt-2"], ..GPT2 },
    Rule { names: &["smollm", "starcoder", "refact"], cut: Cut::Gpt2 { digits: true }, ..GPT2 },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        cut: Cut::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignores_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen"],
        cut: Cut::Pattern(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        composes: true,
        ..GPT2
    },
];

/// `tokenizer.ggml.token_type` of tokens that are found in a text before it is cut: control tokens, and those of users.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The file's tokenizer as a `tokenizer.json`.
///
/// # Errors
/// Why there is none; completes "FILE …".
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Value, String> {
    let get = |key: &str| gguf.metadata.get(&format!("tokenizer.ggml.{key}"));
    let text = |key: &str| get(key).and_then(Value::as_str);
    const ASK: &str = "; name a directory that has the model's tokenizer.json: --tokenizer DIR";
    match text("model") {
        Some("gpt2") => {}
        Some(other) => {
            return Err(format!(
                "has a tokenizer of kind \"{other}\", which cannot be read (known: gpt2){ASK}"
            ));
        }
        None => return Err(format!("has no tokenizer{ASK}")),
    }
    let pre = text("pre").unwrap_or("default");
    let rule = RULES.iter().find(|rule| rule.names.contains(&pre)).ok_or_else(|| {
        let known: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        format!(
            "has a tokenizer with tokenizer.ggml.pre \"{pre}\", which is not known (known: {}){ASK}",
            known.join(", ")
        )
    })?;
    let strings = |key: &str| -> Result<Vec<&str>, String> {
        let list =
            get(key).and_then(Value::as_array).and_then(|list| list.iter().map(Value::as_str).collect());
        list.ok_or_else(|| format!("has no list of strings tokenizer.ggml.{key}{ASK}"))
    };
    let (tokens, merges) = (strings("tokens")?, strings("merges")?);
    let types: Vec<u64> = get("token_type")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |types| types.iter().map(|kind| kind.as_u64().unwrap_or(1)).collect());
    let is_added = |id: usize| types.get(id).is_some_and(|kind| [CONTROL, USER_DEFINED].contains(kind));
    let added = (0..tokens.len()).filter(|id| is_added(*id)).map(|id| {
        json!({
            "id": id, "content": tokens[id], "special": types[id] == CONTROL,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let added: Vec<Value> = added.collect();
    let vocab: Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| ((*token).into(), id.into())).collect();
    if vocab.len() != tokens.len() {
        return Err(format!(
            "has a tokenizer in which {} tokens are there twice{ASK}",
            tokens.len() - vocab.len()
        ));
    }
    let flag = |key: &str| get(key).and_then(Value::as_bool);
    let end = |key: &str, wanted: bool| {
        let id = get(key).and_then(Value::as_u64).filter(|id| wanted && (*id as usize) < tokens.len());
        id.map(|id| (tokens[id as usize], id))
    };
    let bos = end("bos_token_id", flag("add_bos_token").unwrap_or(rule.adds_bos));
    let eos = end("eos_token_id", flag("add_eos_token").unwrap_or(false));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": rule.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": pre_tokenizer(&rule.cut),
        "post_processor": post_processor(bos, eos),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rule.ignores_merges, "vocab": vocab, "merges": merges,
        },
    }))
}

fn pre_tokenizer(cut: &Cut) -> Value {
    match cut {
        Cut::Gpt2 { digits: false } => byte_level(true),
        Cut::Gpt2 { digits: true } => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})
        }
        Cut::Pattern(pattern) => {
            let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        }
    }
}

/// Bytes as printable characters, in which the vocabulary is written.
fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Puts tokens before and after a text.
fn post_processor(bos: Option<(&str, u64)>, eos: Option<(&str, u64)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token =
        |end: Option<(&str, u64)>| end.map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": 0}}));
    let around = |text: Vec<Value>| {
        [token(bos).into_iter().collect(), text, token(eos).into_iter().collect()].concat()
    };
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let special: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.into(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around(vec![sequence("A")]),
        "pair": around(vec![sequence("A"), sequence("B")]),
        "special_tokens": special,
    })
}

/// The file's named tokens and chat template, as `tokenizer_config.json` has them.
pub(super) fn config(gguf: &Gguf) -> Map<String, Value> {
    let tokens = gguf.metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array);
    let named = [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
        ("sep_token", "seperator_token_id"),
    ];
    let named = named.into_iter().filter_map(|(name, key)| {
        let id = gguf.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
        Some((name.to_owned(), tokens?.get(id as usize)?.clone()))
    });
    let template = gguf.metadata.get("tokenizer.chat_template").cloned();
    named.chain(template.map(|template| ("chat_template".to_owned(), template))).collect()
}
