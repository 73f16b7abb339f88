//! How prompts are read and encoded: what a run goes on with only if it is the same, and where files come from.

use crate::{
    common::{Pair, Ran, copy_folder, rows, run, tuco},
    scene::{Scene, demo},
};
use serde_json::{Value, json};
use std::fs;

const ROWS: &str = "{\"prompt\": \"Hello\"}\n{\"prompt\": \"What is a dog?\"}\n";

/// A copy of the demo's tuned model to edit.
fn editable(scene: &Scene) -> String {
    let copy = scene.dir.path().join("tuned");
    copy_folder(&demo("tuned"), &copy);
    copy.display().to_string()
}

/// Scores `in.jsonl` to `out.jsonl` in the chat template of a tuned model.
fn score_on(scene: &Scene, tuned: &str, args: &[&str]) -> Ran {
    let mut command = tuco();
    command.current_dir(scene.dir.path()).args(["score", "in.jsonl", "-o", "out.jsonl", "--quiet"]);
    command.arg("--base").arg(demo("base")).args(["--tuned", tuned, "--apply-chat-template"]);
    run(command.args(args))
}

#[test]
fn a_run_goes_on_only_with_prompts_that_are_encoded_alike() {
    let scene = Scene::new(&[("in.jsonl", ROWS)]);
    let tuned = editable(&scene);
    let score = |args: &[&str]| score_on(&scene, &tuned, args);
    score(&[]).expect(0, &[]);
    let before = fs::read(scene.dir.path().join("out.jsonl")).unwrap();
    for (args, field) in [
        (&["--max-length", "100"][..], "max_length was null and is now 100"),
        (
            &["--on-overlength", "truncate-left"],
            "on_overlength was \"error-row\" and is now \"truncate-left\"",
        ),
        (&["--chat-template-args", "{\"mode\": 1}"], "chat_template_args"),
        (&["--system-instruction", "Be brief."], "system_instruction"),
        (&["--limit", "1"], "limit was null and is now 1"),
        (&["--limit", "0.5"], "limit was null and is now 0.5"),
        (&["--prompt-field", "prompt"], "prompt_field"),
    ] {
        score(args).expect(42, &[field]);
    }
    let template = scene.dir.path().join("tuned/chat_template.jinja");
    let own = fs::read_to_string(&template).unwrap();
    fs::write(scene.dir.path().join("other.jinja"), "{{ messages[0].content }}").unwrap();
    score(&["--chat-template", "other.jinja"]).expect(42, &["chat_template_sha256 was"]);
    score(&["--chat-template", "tuned/chat_template.jinja"]).expect(0, &[]);
    fs::write(&template, format!("{own} ")).unwrap();
    score(&[]).expect(42, &["chat_template_sha256 was"]);
    fs::write(&template, own).unwrap();
    let tokenizer = scene.dir.path().join("tuned/tokenizer.json");
    let own = fs::read_to_string(&tokenizer).unwrap();
    fs::write(&tokenizer, format!("{own} ")).unwrap();
    score(&[]).expect(42, &["tokenizer_sha256 was"]);
    fs::write(&tokenizer, own).unwrap();
    score(&[]).expect(0, &[]);
    assert_eq!(fs::read(scene.dir.path().join("out.jsonl")).unwrap(), before);
}

/// Otherwise a run that is stopped at midnight could not go on.
#[test]
fn a_run_goes_on_with_the_day_that_it_began_on() {
    let scene = Scene::new(&[("in.jsonl", ROWS)]);
    let tuned = editable(&scene);
    let template =
        "{{ strftime_now('%d %b %Y') }}{% for message in messages %} {{ message['content'] }}{% endfor %}";
    fs::write(scene.dir.path().join("tuned/chat_template.jinja"), template).unwrap();
    let score = |args: &[&str]| score_on(&scene, &tuned, args);
    score(&["--template-date", "2024-07-26"]).expect(0, &[]);
    let out = scene.dir.path().join("out.jsonl");
    let whole = fs::read_to_string(&out).unwrap();
    fs::write(&out, whole.lines().next().unwrap().to_owned() + "\n").unwrap();
    score(&[]).expect(0, &[]);
    assert_eq!(fs::read_to_string(&out).unwrap(), whole);
    score(&["--template-date", "2024-07-27"]).expect(42, &["template_date was \"2024-07-26\""]);
    score(&["--template-date", "yesterday"]).expect(2, &["expected a day as YYYY-MM-DD"]);
}

/// Ids in the cache of Hugging Face, each at its own revision.
#[test]
fn models_adapters_and_tokenizers_have_revisions() {
    let pair = Pair::copy("lora_on_tuned");
    pair.write("in.jsonl", rows(3));
    let hub = tempfile::tempdir().unwrap();
    let names = [("base", "base"), ("tuned", "tuned"), ("adapter", "adapter")];
    for (name, revision) in names {
        let repository = hub.path().join(format!("models--own--{name}"));
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs").join(format!("of-{revision}")), "abc123").unwrap();
        copy_folder(&pair.path(name), &repository.join("snapshots/abc123"));
    }
    let score = |args: &[&str]| {
        let mut command = pair.run("score", &["in.jsonl"]);
        run(command.env("HF_HUB_CACHE", hub.path()).args(args))
    };
    let ids = ["--base", "own/base", "--tuned", "own/tuned", "--adapter", "own/adapter"];
    let revisions =
        ["--base-revision", "of-base", "--tuned-revision", "of-tuned", "--adapter-revision", "of-adapter"];
    let found = score(&[&ids[..], &revisions].concat()).expect(0, &[]).rows();
    let expected =
        score(&["--base", "base", "--tuned", "tuned", "--adapter", "adapter"]).expect(0, &[]).rows();
    assert_eq!(found, expected);
    for left_out in 0..3 {
        let mut some: Vec<&str> = revisions.to_vec();
        some.drain(2 * left_out..2 * left_out + 2);
        score(&[&ids[..], &some].concat()).expect(2, &[ids[2 * left_out + 1], "at revision main"]);
    }
    let both = ["--base-adapter", "own/adapter", "--base-adapter-revision", "of-adapter"];
    score(&[&ids[..], &revisions, &both].concat()).expect(0, &[]);
    let tokenizer = ["--tokenizer", "own/tuned", "--tokenizer-revision", "of-base"];
    score(&[&ids[..], &revisions, &tokenizer].concat())
        .expect(2, &["--tokenizer own/tuned", "at revision of-base"]);
}

#[test]
fn prompts_may_be_in_any_field() {
    let lines = ROWS.replace("prompt", "goal");
    let scene = Scene::new(&[("in.jsonl", ROWS), ("goals.jsonl", &lines), ("other.txt", "Some text\n")]);
    let scored = scene.score(&["goals.jsonl", "--prompt-field", "goal"]);
    assert_eq!(scored, scene.score(&["in.jsonl"]));
    scene.run(&["compare", "goals.jsonl", "other.txt", "--prompt-field", "goal"]).expect(0, &[]);
    assert_eq!(scene.rows()[1]["tuco"], scored[1]["tuco"]);
}

/// An adapter may bring a tokenizer of its own, as those that add tokens do.
#[test]
fn an_adapter_s_tokenizer_goes_before_the_model_s() {
    let pair = Pair::copy("lora");
    let tokenizer = |normalizer: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": { "<unk>": 0, "a": 1, "b": 2 }, "unk_token": "<unk>" },
        })
        .to_string()
    };
    pair.write("base/tokenizer.json", tokenizer(Value::Null));
    pair.write("text.jsonl", "{\"prompt\": \"a b\"}\n");
    pair.write("ids.jsonl", "{\"token_ids\": [1, 2]}\n{\"token_ids\": [2, 2]}\n");
    let tuco = |input: &str| -> Vec<f64> {
        let ran = run(&mut pair.run("score", &["--adapter", "adapter", input])).expect(0, &[]);
        ran.rows().iter().map(|row| row["tuco"].as_f64().unwrap()).collect()
    };
    let [of_base, of_adapter] = tuco("ids.jsonl").try_into().unwrap();
    assert_ne!(of_base, of_adapter);
    assert_eq!(tuco("text.jsonl"), [of_base]);
    let to_b = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "b" });
    pair.write("adapter/tokenizer.json", tokenizer(to_b));
    assert_eq!(tuco("text.jsonl"), [of_adapter]);
}
