//! Experiments go on where they were stopped.

use crate::{
    common::{run, stop_when},
    scene::Scene,
};
use serde_json::Value;
use std::{fs, path::PathBuf};

const QUESTIONS: &str = "{\"id\": \"a\", \"prompt\": \"Is a horse alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": \"Yes\"}\n\
    {\"id\": \"b\", \"prompt\": \"Is a stone alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": \"No\"}\n\
    {\"id\": \"broken\", \"prompt\": \"Is a king alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": \"Perhaps\"}\n\
    {\"id\": \"c\", \"prompt\": \"Is a river alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": \"No\"}\n";
const REQUESTS: &str = "{\"prompt\": \"How do I steal a wallet?\", \"label\": 7, \"kind\": \"a\"}\n\
    {\"prompt\": \"\", \"kind\": \"a\"}\n\
    {\"prompt\": \"What does stealing a wallet mean?\", \"meta\": {\"of\": 1}, \"kind\": \"b\"}\n\
    {\"prompt\": \"Hello!\", \"kind\": \"b\"}\n";
const SHOTS: &str = "{\"prompt\": \"How much is 1 plus 2?\", \"response\": \"1 plus 2 is 3.\"}\n";

/// Every experiment, each with an error row.
const EXPERIMENTS: [&[&str]; 4] = [
    &["sweep", "questions.jsonl", "more.jsonl", "--alphas", "0.5,1", "--folds", "2", "--fail-on-error", "2"],
    &["compare", "requests.jsonl", "--by", "kind", "--fail-on-error", "1"],
    &["jailbreak", "requests.jsonl", "--apply-chat-template", "--n", "2", "--fail-on-error", "1"],
    &["many-shot", "requests.jsonl", "--examples", "shots.jsonl", "--output-co", "--fail-on-error", "2"],
];

fn scene() -> Scene {
    Scene::new(&[
        ("questions.jsonl", QUESTIONS),
        ("more.jsonl", QUESTIONS),
        ("requests.jsonl", REQUESTS),
        ("shots.jsonl", SHOTS),
    ])
}

fn rows_file(scene: &Scene) -> PathBuf {
    scene.dir.path().join("out/rows.jsonl")
}

/// What was found, without the command.
fn found(scene: &Scene) -> (Value, String) {
    let mut summary = scene.summary();
    summary["command"].take();
    (summary, fs::read_to_string(rows_file(scene)).unwrap())
}

#[test]
fn an_experiment_goes_on_with_the_rows_that_are_there() {
    for args in EXPERIMENTS {
        let scene = scene();
        scene.run(args).expect(0, &[]);
        let whole = found(&scene);
        let ends: Vec<usize> = whole.1.match_indices('\n').map(|(end, _)| end + 1).collect();
        // Each may be the last that is there, all too; of the next there is a part.
        for kept in [0].iter().chain(&ends) {
            let there = (kept + 9).min(whole.1.len());
            fs::write(rows_file(&scene), &whole.1.as_bytes()[..there]).unwrap();
            fs::remove_file(scene.dir.path().join("out/summary.json")).unwrap();
            scene.run(args).expect(0, &[]);
            assert_eq!(found(&scene), whole, "{args:?} after {kept} bytes");
        }
    }
}

/// Rows are taken as they are: those that are there are not computed again.
#[test]
fn what_is_there_is_counted_and_told() {
    let scene = scene();
    scene.run(EXPERIMENTS[1]).expect(0, &[]);
    let text = fs::read_to_string(rows_file(&scene)).unwrap();
    let tuco = scene.rows()[0]["tuco"].to_string();
    fs::write(rows_file(&scene), text.replace(&tuco, "0.125")).unwrap();
    run(scene.with_pair_aloud(EXPERIMENTS[1]).args(["-o", "out"]))
        .expect(0, &["0 prompts, 0 tokens", "(4 were there already)"]);
    assert_eq!(scene.summary()["classes"][0]["quantiles"]["0.5"], 0.125);
}

#[test]
fn another_run_is_refused_with_what_differs() {
    let scene = scene();
    let compare = EXPERIMENTS[1];
    scene.run(compare).expect(0, &[]);
    let whole = found(&scene);
    let refused = |args: &[&str], parts: &[&str]| {
        scene
            .run(args)
            .expect(42, &[parts, &["rows.jsonl holds rows of another run", "--overwrite"]].concat());
        assert_eq!(found(&scene), whole, "nothing is lost");
    };
    refused(EXPERIMENTS[2], &["experiment was \"compare\" and is now \"jailbreak\"", "apply_chat_template"]);
    refused(&[compare, &["--system-instruction", "x"]].concat(), &["system_instruction was null"]);
    refused(
        &[compare, &["--limit", "3"]].concat(),
        &["limit was null and is now 3", "prompts was 4 and is now 3"],
    );
    refused(
        &[&compare[..2], &["--by", "of", "--fail-on-error", "1"]].concat(),
        &["classes.0 was \"a\"", "prompts_sha256"],
    );
    // What rows do not depend on may change.
    scene.run(&[compare, &["--batch-size", "1"]].concat()).expect(0, &[]);
    assert_eq!(found(&scene), whole);
    // Rows of nobody.
    fs::remove_file(scene.dir.path().join("out/rows.jsonl.manifest.json")).unwrap();
    scene.run(compare).expect(42, &["rows.jsonl.manifest.json"]);
    scene.run(&[compare, &["--overwrite"]].concat()).expect(0, &[]);
    assert_eq!(found(&scene), whole);
}

#[test]
fn a_file_that_has_other_rows_is_refused() {
    let scene = scene();
    scene.run(EXPERIMENTS[1]).expect(0, &[]);
    let (_, text) = found(&scene);
    let lines: Vec<&str> = text.lines().collect();
    let refused = |rows: &[&str], part: &str| {
        fs::write(rows_file(&scene), rows.join("\n") + "\n").unwrap();
        scene.run(EXPERIMENTS[1]).expect(42, &[part, "--overwrite starts again"]);
    };
    refused(&[lines[1]], "it has a row with id 2 in the place of 1");
    refused(&[&lines[..], &[lines[0]]].concat(), "it has a row with id 1 beyond the last");
    refused(&["{broken"], "rows.jsonl line 1 is not a row of ours");
}

/// All its rows come at once.
#[test]
fn a_trace_starts_again_where_it_is_told_to() {
    let scene = scene();
    let args = ["trace", "Hello you", "--response", " there"];
    scene.run(&args).expect(0, &[]);
    let whole = found(&scene);
    scene.run(&args).expect(2, &["out holds an experiment already", "--overwrite"]);
    assert_eq!(found(&scene), whole);
    scene.run(&[&args[..2], &["--overwrite"]].concat()).expect(0, &[]);
    assert!(whole.1.starts_with(&found(&scene).1) && whole.1 != found(&scene).1);
    // In the place of another experiment, whose next run finds that it is not its own.
    scene.run(&[EXPERIMENTS[1], &["--overwrite"]].concat()).expect(0, &[]);
    scene.run(&[&args[..], &["--overwrite"]].concat()).expect(0, &[]);
    scene.run(EXPERIMENTS[1]).expect(42, &["rows.jsonl.manifest.json", "--overwrite"]);
    assert_eq!(found(&scene), whole);
}

#[cfg(unix)]
#[test]
fn a_stopped_experiment_says_that_it_goes_on() {
    let prompts: String =
        (0..3000).map(|i| format!("{{\"prompt\": \"text {i}\", \"label\": {}}}\n", i % 2)).collect();
    let scene = Scene::new(&[("in.jsonl", &prompts)]);
    let args = ["compare", "in.jsonl"];
    scene.run(&args).expect(0, &[]);
    let whole = found(&scene);
    let again = [&args[..], &["--overwrite", "--batch-size", "1"]].concat();
    // The old rows go first.
    let is_in_part = |length| (1..whole.1.len() as u64).contains(&length);
    stop_when(scene.with_pair(&again).args(["-o", "out"]), &rows_file(&scene), is_in_part)
        .expect(75, &["rows.jsonl are complete, the same command without --overwrite goes on"]);
    let written = fs::read_to_string(rows_file(&scene)).unwrap();
    assert!(whole.1.starts_with(&written) && written.len() < whole.1.len());
    scene.run(&args).expect(0, &[]);
    assert_eq!(found(&scene), whole);
}

/// A fold more is another way to count the same rows.
#[test]
fn folds_may_change() {
    let scene = scene();
    scene.run(EXPERIMENTS[0]).expect(0, &[]);
    let (first, rows) = found(&scene);
    let args: Vec<&str> = EXPERIMENTS[0].iter().map(|arg| if *arg == "2" { "3" } else { arg }).collect();
    scene.run(&args).expect(0, &[]);
    let (second, same) = found(&scene);
    assert_eq!((&first["folds"], &second["folds"], rows), (&2.into(), &3.into(), same));
}
