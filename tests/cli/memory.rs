//! `--max-memory`: pairs that are larger than what the process may have in memory; and `--dry-run`.
#![cfg(target_os = "linux")]

use crate::{
    common::{Pair, Ran, run, tuco},
    random_pair::{Shape, write_pair},
};
use serde_json::{Value, json};
use std::{
    fs,
    process::{Command, Stdio},
    sync::LazyLock,
    thread,
    time::Duration,
};

/// Of both models together 108 MiB.
const SHAPE: Shape = Shape {
    hidden_size: 256,
    intermediate_size: 704,
    layers: 40,
    heads: 4,
    key_value_heads: 1,
    vocab_size: 512,
};

/// Words that are tokens.
const WORDS: [&str; 12] =
    ["?", "Is", "a", "horse", "river", "stone", "king", "letter", "winter", "alive", "Yes", "No"];

/// A tokenizer whose tokens are words.
fn tokenizer() -> String {
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"}
    });
    tokenizer.to_string()
}

static PAIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    write_pair(dir.path(), &SHAPE);
    fs::write(dir.path().join("tuned/tokenizer.json"), tokenizer()).unwrap();
    let questions = ["horse", "river", "stone", "king", "letter", "winter"].map(|word| {
        format!(
            "{{\"prompt\": \"{}Is a {word} alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": 0}}\n",
            "winter ".repeat(9)
        )
    });
    fs::write(dir.path().join("questions.jsonl"), questions.concat()).unwrap();
    let row = |row: usize| {
        let ids: Vec<usize> = (0..1 + row * 7 % 60).map(|i| (row * 5 + i * 3) % 512).collect();
        format!("{{\"id\": \"r{row}\", \"token_ids\": {ids:?}}}\n")
    };
    fs::write(dir.path().join("in.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
    dir
});

fn on_pair(subcommand: &str, args: &[&str]) -> Command {
    let mut command = tuco();
    command.current_dir(PAIR.path()).args([
        subcommand,
        "--base",
        "base",
        "--tuned",
        "tuned",
        "--threads",
        "2",
    ]);
    command.args(args);
    command
}

/// Runs it: what it wrote, and the most it had in memory, in bytes, as the kernel counts it.
fn peak(command: &mut Command) -> (Ran, u64) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(kibibytes.unwrap_or(0) << 10);
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or(-1);
    (Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }, most)
}

/// The least that is told when there is too little.
fn least(subcommand: &str, args: &[&str]) -> String {
    let ran = run(on_pair(subcommand, args).args(["--max-memory", "1M"]));
    let ran = ran.expect(2, &["--max-memory 1M is too little", "for the weights of a layer"]);
    let (_, rest) = ran.stderr.split_once("the least is ").unwrap();
    rest.split_once(':').unwrap().0.to_owned()
}

#[track_caller]
fn check_stays_below(subcommand: &str, args: &[&str]) {
    let (whole, without) = peak(&mut on_pair(subcommand, args));
    let whole = whole.expect(0, &[]);
    let least = least(subcommand, args).strip_suffix('M').unwrap().parse::<u64>().unwrap();
    assert!(least << 20 < without * 2 / 3, "{least} MiB are little less than the {without} bytes of all");
    for most in [least, least + 20] {
        let (ran, in_use) = peak(on_pair(subcommand, args).arg(format!("--max-memory={most}M")));
        let ran = ran.expect(0, &["of memory were in use at most"]);
        assert!(in_use > 0 && in_use <= most << 20, "{in_use} bytes in use, of {most} MiB");
        assert!(ran.stdout == whole.stdout, "--max-memory changed a bit");
    }
}

#[test]
fn scores_of_a_large_pair_are_the_same_in_little_memory() {
    check_stays_below("score", &["in.jsonl", "--output-co"]);
}

#[test]
fn completions_of_a_large_pair_are_the_same_in_little_memory() {
    check_stays_below("generate", &["in.jsonl", "--alpha", "0.5", "--tuco", "--max-new-tokens", "3"]);
}

#[test]
fn experiments_with_a_large_pair_are_the_same_in_little_memory() {
    let common = ["--overwrite", "-o"];
    let with = |args: &[&'static str], output: &'static str| [args, &common, &[output]].concat();
    check_stays_below("compare", &with(&["in.jsonl", "questions.jsonl"], "compare"));
    check_stays_below("sweep", &with(&["questions.jsonl", "--alphas", "0.5,1,2"], "sweep"));
    check_stays_below("trace", &with(&["Is a king alive", "--response", "Yes a king"], "trace"));
    let jailbreak = ["questions.jsonl", "--n", "2", "--max-new-tokens", "2", "--fail-on-error", "6"];
    check_stays_below("jailbreak", &with(&jailbreak, "jailbreak"));
}

#[test]
fn a_prompt_that_does_not_fit_is_an_error_row() {
    let ids: Vec<usize> = (0..20_000).map(|i| i % 512).collect();
    fs::write(
        PAIR.path().join("long.jsonl"),
        format!("{{\"token_ids\": {ids:?}}}\n{{\"token_ids\": [1]}}\n"),
    )
    .unwrap();
    let most =
        format!("{}M", least("score", &["in.jsonl"]).strip_suffix('M').unwrap().parse::<u64>().unwrap() + 20);
    let ran = run(&mut on_pair("score", &["long.jsonl", "--max-memory", &most, "--fail-on-error", "1"]));
    let rows = ran.expect(0, &["the prompt has 20000 tokens, --max-memory leaves room for"]).rows();
    assert_eq!(rows[0]["error"]["type"], "out_of_memory");
    assert!(rows[1]["tuco"].is_f64());
}

#[test]
fn rows_that_are_errors_fill_batches_too() {
    fs::write(PAIR.path().join("empty.jsonl"), "{\"prompt\": \"\"}\n".repeat(1000)).unwrap();
    let args = ["empty.jsonl", "--dry-run", "--max-batch-tokens", "100", "--fail-on-error", "1000"];
    let ran = run(&mut on_pair("score", &args)).expect(0, &[]);
    assert!(ran.stdout.contains("| 1000 | 1000 | 0 | 0 | 10 |"), "{}", ran.stdout);
}

#[test]
fn what_max_memory_cannot_mean_is_told() {
    for size in ["80", "M", "-1G", "0G", "1X", "lots"] {
        run(on_pair("score", &["in.jsonl"]).arg(format!("--max-memory={size}")))
            .expect(2, &["--max-memory", "expected a number with K, M, G or T"]);
    }
    for size in ["262144K", "256MiB", "0.25gb"] {
        run(&mut on_pair("score", &["in.jsonl", "--dry-run", "--max-memory", size]))
            .expect(0, &["in use at most"]);
    }
    run(&mut on_pair("score", &["in.jsonl", "--max-memory", "1G", "--device", "reference"]))
        .expect(2, &["--max-memory is for --device cpu, not for reference"]);
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    let pair = Pair::copy("llama_gqa_tied_bf16");
    pair.write("in.jsonl", "{\"token_ids\": [1, 2, 3]}\n{broken\n{\"token_ids\": [4, 5]}\n");
    let args = ["in.jsonl", "-o", "out.jsonl", "--dry-run", "--batch-size", "1", "--fail-on-error"];
    let ran = run(pair.score(&args).arg("1")).expect(0, &["1 of 3 rows are errors"]);
    assert!(ran.stdout.contains("| 3 | 1 | 5 | 3 | 3 |"), "{}", ran.stdout);
    // What the models see of the first prompt.
    assert!(ran.stdout.contains("The first prompt, id 1, 3 tokens:"), "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().last(), Some("[1, 2, 3]"));
    run(pair.score(&args).arg("0")).expect(3, &[]);
    assert!(!pair.path("out.jsonl").exists() && !pair.path("out.jsonl.manifest.json").exists());
}
