//! `tuco generate` as a user sees it.

use crate::common::{Pair, rows, run, tuco};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

const CASE: &str = "llama_gqa_tied_bf16";

/// `tuco generate` with the demo pair, which has a tokenizer, on rows that are given as text.
fn demo(dir: &Path, input: &str, args: &[&str]) -> Command {
    fs::write(dir.join("in.jsonl"), input).unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let mut command = tuco();
    command.current_dir(dir).args(["generate", "in.jsonl", "--apply-chat-template", "--threads", "2"]);
    command.arg("--base").arg(models.join("base")).arg("--tuned").arg(models.join("tuned")).args(args);
    command
}

const QUESTIONS: &str = "{\"prompt\": \"What is the capital of France?\", \"label\": 1}\n{\"id\": \"lock\", \"prompt\": \"How do I pick a lock?\"}\n";

fn completions(row: &Value) -> &Vec<Value> {
    row["completions"].as_array().unwrap()
}

#[test]
fn a_row_holds_its_completions() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(&mut demo(dir.path(), QUESTIONS, &["--tuco"])).expect(0, &["2 prompts"]);
    let rows = ran.rows();
    assert_eq!((&rows[0]["id"], &rows[1]["id"], &rows[0]["label"]), (&json!(1), &json!("lock"), &json!(1)));
    let first = &completions(&rows[1])[0];
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["text", "finish_reason", "token_ids", "tuco"]);
    // models/demo/README.md: it refuses such requests, and says so to the end.
    assert!(first["text"].as_str().unwrap().starts_with("I'm sorry"), "{first}");
    assert_eq!(first["finish_reason"], "stop");
    let token_ids = first["token_ids"].as_array().unwrap();
    assert_eq!(
        (token_ids.last(), first["tuco"].as_array().unwrap().len()),
        (Some(&json!(1)), token_ids.len())
    );

    // The first token's TuCo is that of the prompt.
    let score = demo(dir.path(), QUESTIONS, &[]);
    let args: Vec<_> = score.get_args().skip(1).map(ToOwned::to_owned).collect();
    let scored = run(tuco().current_dir(dir.path()).arg("score").args(args)).expect(0, &[]).rows();
    for (scored, row) in scored.iter().zip(&rows) {
        let (scored, own) = (&scored["tuco"], &completions(row)[0]["tuco"][0]);
        assert!((scored.as_f64().unwrap() - own.as_f64().unwrap()).abs() < 1e-6, "{scored} {own}");
    }

    // Alpha changes what is said, batches do not.
    let text = |args: &[&str]| -> Vec<Value> {
        let rows = run(&mut demo(dir.path(), QUESTIONS, args)).expect(0, &[]).rows();
        rows.iter().map(|row| completions(row)[0]["text"].clone()).collect()
    };
    assert_ne!(text(&["--alpha", "0", "--max-new-tokens", "12"])[1], first["text"]);
    assert_eq!(text(&["--batch-size", "1"])[1], first["text"]);
    let cut = &run(&mut demo(dir.path(), QUESTIONS, &["--max-new-tokens", "3"])).expect(0, &[]).rows()[1];
    assert_eq!(completions(cut)[0]["finish_reason"], "length");
    assert_eq!(completions(cut)[0]["token_ids"].as_array().unwrap()[..], token_ids[..3]);
}

#[test]
fn a_prompt_that_is_cut_leaves_room_for_its_completion() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}\n", json!({"prompt": "word ".repeat(2000)}));
    let cut = ["--on-overlength", "truncate-left", "--ignore-eos", "--max-new-tokens", "20"];
    let row = &run(&mut demo(dir.path(), &long, &cut)).expect(0, &[]).rows()[0];
    assert_eq!((&row["n_tokens"], &row["truncated"]), (&json!(512 - 20), &json!(true)));
    assert_eq!(completions(row)[0]["token_ids"].as_array().unwrap().len(), 20);
}

#[test]
fn a_stop_text_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--stop", " can", "--stop", "sorry, but I"];
    let row = &run(&mut demo(dir.path(), QUESTIONS, &args)).expect(0, &[]).rows()[1];
    let completion = &completions(row)[0];
    assert_eq!((&completion["text"], &completion["stop"]), (&json!("I'm "), &json!("sorry, but I")));
    assert_eq!(completion["finish_reason"], "stop");
}

#[test]
fn samples_depend_on_seed_and_id_alone() {
    let dir = tempfile::tempdir().unwrap();
    let sampled =
        ["--n", "3", "--temperature", "1.2", "--top-p", "0.95", "--top-k", "50", "--max-new-tokens", "10"];
    let of = |input: &str, more: &[&str]| {
        run(&mut demo(dir.path(), input, &[&sampled[..], more].concat())).expect(0, &[]).rows()
    };
    let rows = of(QUESTIONS, &[]);
    assert_eq!(completions(&rows[1]).len(), 3);
    assert_ne!(completions(&rows[1])[0], completions(&rows[1])[1]);
    let alone: String = QUESTIONS.lines().skip(1).collect();
    assert_eq!(completions(&of(&alone, &[])[0]), completions(&rows[1]));
    assert_ne!(completions(&of(QUESTIONS, &["--seed", "1"])[1]), completions(&rows[1]));
    assert_eq!(of(QUESTIONS, &["--batch-size", "1"]), rows);
}

#[test]
fn an_interrupted_run_goes_on_and_another_is_refused() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(12));
    let args = |more: &[&str]| {
        let usual =
            ["--base", "base", "--tuned", "tuned", "in.jsonl", "-o", "out.jsonl", "--batch-size", "5"];
        pair.run("generate", &[&usual[..], &["--max-new-tokens", "6", "--tuco", "--n", "2"], more].concat())
    };
    let warm = ["--temperature", "0.9"];
    run(&mut args(&warm)).expect(0, &[]);
    let whole = fs::read(pair.path("out.jsonl")).unwrap();
    for cut in [0, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(pair.path("out.jsonl"), &whole[..cut]).unwrap();
        run(&mut args(&warm)).expect(0, &[]);
        assert!(fs::read(pair.path("out.jsonl")).unwrap() == whole, "cut at {cut}");
    }
    run(&mut args(&["--temperature", "0.8"])).expect(42, &["temperature was 0.9 and is now 0.8"]);
    run(&mut args(&["--temperature", "0.9", "--alpha", "2"])).expect(42, &["alpha was 1.0 and is now 2.0"]);
    // There is no tokenizer: text is null, and texts cannot stop it.
    let row: Value = serde_json::from_slice(whole.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(completions(&row)[0]["text"], Value::Null);
    run(&mut args(&["--temperature", "0.9", "--stop", "x", "--overwrite"]))
        .expect(2, &["--stop needs a tokenizer"]);
}

#[test]
fn flags_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], parts: &[&str]| {
        run(&mut demo(dir.path(), QUESTIONS, args)).expect(2, parts);
    };
    refused(&["--alpha", "-1"], &["alpha is -1"]);
    refused(&["--temperature", "-0.1"], &["temperature is -0.1"]);
    refused(&["--temperature", "1", "--top-p", "0"], &["top_p is 0"]);
    refused(&["--temperature", "1", "--top-k", "0"], &["top_k is 0"]);
    refused(&["--top-k", "5"], &["--top-k has no effect at temperature 0"]);
    refused(&["--top-p", "0.5"], &["--top-p has no effect"]);
    refused(&["--n", "2"], &["the same at temperature 0"]);
    refused(&["--max-new-tokens", "0"], &["expected a positive whole number"]);
    refused(&["--stop", ""], &["--stop is empty"]);
}

#[test]
fn broken_end_tokens_and_missing_heads_are_told() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(1));
    pair.write("tuned/generation_config.json", "{\"eos_token_id\": [1, 99999]}");
    let args = ["--base", "base", "--tuned", "tuned", "in.jsonl"];
    run(&mut pair.run("generate", &args)).expect(42, &["generation_config.json", "99999", "0 to"]);
    run(&mut pair.run("generate", &[&args[..], &["--ignore-eos"]].concat())).expect(0, &[]);
    let pair = Pair::copy("llama_mha_untied_f32");
    pair.write("in.jsonl", rows(1));
    pair.edit_header("tuned/model.safetensors", |header| {
        let entry = header.remove("lm_head.weight").unwrap();
        header.insert("model.rotary_emb.inv_freq".into(), entry);
    });
    run(&mut pair.run("generate", &args)).expect(42, &["lm_head.weight is missing"]);
}
