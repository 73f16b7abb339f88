//! Chat templates and token ids against what `transformers` makes of them (`tests/golden/templates/generate.py`).

use std::{fs, path::Path};

use chrono::NaiveDate;
use serde_json::Value;
use tuco::prompt::{ChatTemplate, Content, Encoder, EncoderOptions, RowErrorKind, SpecialTokens};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/templates");

fn golden(name: &str) -> Value {
    let text = fs::read_to_string(Path::new(GOLDEN).join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn special_tokens(case: &Value) -> SpecialTokens {
    let token = |name: &str| Some((name.to_owned(), case[name].as_str()?.to_owned()));
    ["bos_token", "eos_token"].into_iter().filter_map(token).collect()
}

fn date(case: &Value) -> NaiveDate {
    case["date"].as_str().unwrap_or("1999-12-31").parse().unwrap()
}

/// What our renderer makes of a case: the text, or why not.
fn render(case: &Value) -> Result<String, String> {
    let template = case["template"].as_str().unwrap();
    let template =
        ChatTemplate::new(template, &special_tokens(case), date(case)).map_err(|e| e.to_string())?;
    let messages = case["messages"].as_array().unwrap();
    let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
    template.render(messages, case.get("tools"), add_generation_prompt).map_err(|error| error.to_string())
}

#[test]
fn every_template_renders_as_transformers_renders_it() {
    let golden = golden("cases.json");
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in cases {
        let name = &case["name"];
        match (render(case), case["expected"].as_str(), case["raises"].as_str()) {
            (Ok(text), Some(expected), _) if text == expected => {}
            (Err(message), None, Some(part)) if message.contains(part) => {}
            (outcome, expected, raises) => {
                failures.push(format!(
                    "{name}\n  ours     {outcome:?}\n  expected {expected:?}, raises {raises:?}"
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A checkpoint's text side in a temporary directory.
fn encoder(config: &Value) -> (tempfile::TempDir, Encoder) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(Path::new(GOLDEN).join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let encoder = Encoder::open(dir.path(), 1 << 16, 1 << 16, EncoderOptions::default()).unwrap();
    (dir, encoder)
}

fn token_ids(case: &Value) -> Vec<u32> {
    case["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap().try_into().unwrap()).collect()
}

#[test]
fn plain_texts_have_the_token_ids_of_transformers() {
    let golden = golden("tokenization.json");
    let (_dir, encoder) = encoder(&serde_json::json!({"bos_token": golden["bos_token"]}));
    for case in golden["plain"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let encoded = encoder.encode(&Content::Prompt(text.to_owned()));
        if text.is_empty() {
            // There special tokens would be left, and nothing to score.
            assert_eq!(encoded.unwrap_err().kind, RowErrorKind::EmptyPrompt);
        } else {
            assert_eq!(encoded.unwrap().token_ids, token_ids(case), "{text:?}");
        }
    }
}

#[test]
fn conversations_have_the_token_ids_of_transformers() {
    let golden = golden("tokenization.json");
    for case in golden["chats"].as_array().unwrap() {
        let config = serde_json::json!({
            "bos_token": golden["bos_token"],
            "eos_token": golden["eos_token"],
            "chat_template": case["template"],
        });
        let (_dir, encoder) = encoder(&config);
        let messages = case["messages"].as_array().unwrap().clone();
        let encoded = encoder.encode(&Content::Messages(messages)).unwrap();
        assert_eq!(encoded.token_ids, token_ids(case), "{}", case["text"]);
    }
}

/// The same tokens in GGUF files, cut by the rule that each names.
#[test]
fn tokenizers_of_gguf_files_give_the_token_ids_of_transformers() {
    let golden = golden("gguf.json");
    let rules = golden["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 4);
    for rule in rules {
        let path = Path::new(GOLDEN).join(format!("gguf/{}.gguf", rule["rule"].as_str().unwrap()));
        let encoder = Encoder::open(&path, 1 << 16, 1 << 16, EncoderOptions::default()).unwrap();
        for case in rule["plain"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            if !text.is_empty() {
                let encoded = encoder.encode(&Content::Prompt(text.to_owned())).unwrap();
                assert_eq!(encoded.token_ids, token_ids(case), "{} {text:?}", rule["rule"]);
            }
        }
    }
}

/// The chat template and the named tokens come from the metadata too.
#[test]
fn conversations_through_a_gguf_file_have_the_token_ids_of_transformers() {
    let golden = golden("tokenization.json");
    // Its pieces are those of GPT-2's rule.
    let path = Path::new(GOLDEN).join("gguf/gpt-2.gguf");
    let encoder = Encoder::open(&path, 1 << 16, 1 << 16, EncoderOptions::default()).unwrap();
    let chats = golden["chats"].as_array().unwrap();
    for case in chats.iter().filter(|case| case["template"].as_str().unwrap().contains("bos_token")) {
        let messages = case["messages"].as_array().unwrap().clone();
        let encoded = encoder.encode(&Content::Messages(messages)).unwrap();
        assert_eq!(encoded.token_ids, token_ids(case), "{}", case["text"]);
    }
}
