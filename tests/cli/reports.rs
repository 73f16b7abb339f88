//! The reports for people: `tuco inspect`, `tuco demo`, `--help`.

use crate::common::{Pair, run, tuco};

const CASE: &str = "llama_gqa_tied_bf16";

#[test]
fn inspect_tells_what_differs() {
    let pair = Pair::copy(CASE);
    let report =
        run(tuco().current_dir(pair.dir.path()).args(["inspect", "--base", "base", "--tuned", "tuned"]))
            .expect(0, &[])
            .stdout;
    for part in [
        "| hidden_size |",
        "| num_key_value_heads |",
        "relative change",
        "GFLOP/token",
        "| dtype | bfloat16 |",
        "| model.norm.weight | ",
    ] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    assert!(!report.contains("NaN"), "{report}");
}

#[test]
fn inspect_of_a_model_and_itself_finds_no_change() {
    let pair = Pair::copy(CASE);
    let report =
        run(tuco().current_dir(pair.dir.path()).args(["inspect", "--base", "base", "--tuned", "base"]))
            .expect(0, &[])
            .stdout;
    let line = report.lines().find(|line| line.contains("layer tensors are identical")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[0], words[words.len() - 1]), (words[2], "0.00e0"), "{line}");
    assert!(report.contains("| model.embed_tokens.weight | yes | 0.00e0 |"), "{report}");
}

#[test]
fn inspect_refuses_what_is_no_pair() {
    let pair = Pair::copy(CASE);
    pair.edit_json("tuned/config.json", |config| config["rms_norm_eps"] = 0.5.into());
    pair.edit_json("base/config.json", |config| config["num_attention_heads"] = "four".into());
    run(tuco().current_dir(pair.dir.path()).args(["inspect", "--base", "base", "--tuned", "tuned"]))
        .expect(42, &["base/config.json", "num_attention_heads"]);
}

/// The figures that `models/demo/README.md` gives.
#[test]
fn demo_shows_that_chat_is_above_text() {
    let report = run(tuco().arg("demo")).expect(0, &[]).stdout;
    assert!(report.contains("chat against running text: 1.000"), "{report}");
    assert!(report.lines().filter(|line| line.starts_with("| text")).count() == 1, "{report}");
    assert!(report.contains("prompts in"), "{report}");
}

#[test]
fn demo_runs_every_experiment() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("all");
    let told = run(tuco().args(["demo", "--all", "-o"]).arg(&out)).expect(0, &[]).stdout;
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for experiment in ["compare", "sweep", "jailbreak", "many-shot", "trace", "score", "demo"] {
        assert!(page.contains(&format!("({experiment})</h2>")), "{experiment} is not in the report");
    }
    assert!(page.matches("<svg").count() >= 7 && !page.contains("src="));
    let shown = |effect: &str| {
        let line = told.lines().find(|line| line.contains(effect)).unwrap();
        line.trim_end_matches(['|', ' ']).ends_with("yes")
    };
    // models/demo/README.md tells which effects this pair has.
    assert!(shown("chat is above running text (answered)") && shown("chat is above running text (refused)"));
    assert!(shown("TuCo falls with the number of shots") && shown("accuracy moves with alpha"));
    assert!(!shown("refused is above answered (a question of ours)"));
    run(tuco().args(["demo", "-o"]).arg(&out)).expect(2, &["--all"]);
}

#[test]
fn demo_without_its_folder_says_what_it_looks_for() {
    run(tuco().args(["demo", "--dir", "/nonexistent"])).expect(2, &["/nonexistent", "prompts.jsonl"]);
}

#[test]
fn help_names_every_exit_code() {
    let help = run(tuco().arg("--help")).expect(0, &[]).stdout;
    // However its lines are broken.
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for code in [
        "0 done",
        "1 try again",
        "2 wrong usage",
        "3 too many",
        "42 broken checkpoint, not a pair",
        "75 stopped",
    ] {
        assert!(words.contains(code), "{code:?} is not in\n{help}");
    }
}
