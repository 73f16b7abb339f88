//! `tuco sweep`, `tuco compare` and `tuco report` on the demo pair.

use crate::{
    common::{Pair, copy_folder, place_of, rows, run, tuco},
    scene::{Scene, demo},
};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Questions of the plain format, a broken one among them.
fn questions() -> String {
    let words = ["horse", "river", "stone", "king", "letter", "winter", "table"];
    let mut text: String = (words.iter().enumerate())
        .map(|(row, word)| {
            let label = ["Yes", "No"][row % 2];
            let messages = format!(r#"[{{"role": "user", "content": "Is a {word} alive?"}}]"#);
            format!("{{\"messages\": {messages}, \"choices\": [\"Yes\", \"No\"], \"label\": \"{label}\"}}\n")
        })
        .collect();
    text += "{\"id\": \"odd\", \"prompt\": \"x\", \"choices\": [\"Yes\", \"No\"], \"label\": \"Perhaps\"}\n";
    text
}

#[test]
fn a_sweep_counts_what_its_rows_say() {
    let scene = Scene::new(&[("alive.jsonl", &questions())]);
    let told = scene
        .run(&["sweep", "alive.jsonl", "--alphas", "0,0.5,1,1.25", "--fail-on-error", "1"])
        .expect(0, &[]);
    let (summary, rows) = (scene.summary(), scene.rows());
    let task = &summary["tasks"][0];
    assert_eq!((task["rows"].as_u64(), task["errors"].as_u64()), (Some(8), Some(1)));
    assert!(rows[7]["error"]["message"].as_str().unwrap().contains("Perhaps"), "{}", rows[7]);
    for (place, accuracy) in task["accuracy"].as_array().unwrap().iter().enumerate() {
        let mut right = 0;
        for row in &rows[..7] {
            let logits: Vec<f64> =
                row["logits"][place].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let best = if logits[0] > logits[1] { "Yes" } else { "No" };
            assert_eq!(row["chosen"][place], best, "{row}");
            right += u32::from(row["label"] == best);
        }
        assert_eq!(accuracy.as_f64(), Some(f64::from(right) / 7.0));
    }
    let moved = rows.iter().any(|row| row["logits"][0] != row["logits"][2]);
    assert!(moved, "alpha changes logits");
    assert!(told.stdout.contains("Acc_CV"), "{}", told.stdout);
    let page = fs::read_to_string(scene.dir.path().join("out/report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("alive") && !page.contains("src="));
    assert!(scene.dir.path().join("out/plot.svg").exists());

    // Batches change nothing.
    let args = ["sweep", "alive.jsonl", "--alphas", "0,0.5,1,1.25", "--fail-on-error", "1", "--overwrite"];
    scene.run(&[&args[..], &["--batch-size", "2"]].concat()).expect(0, &[]);
    assert_eq!(scene.rows(), rows);
}

#[test]
fn a_sweep_tells_what_was_cut_and_what_is_wrong() {
    let question = |text: &str| {
        format!("{{\"prompt\": \"{text}\", \"choices\": [\"Yes\", \"No\"], \"label\": \"Yes\"}}\n")
    };
    let mut text = question("Is a horse alive?").repeat(5);
    text += &question("Is a very long thing with many words that goes on and on alive?");
    text += "{broken\n[1]\n";
    let scene = Scene::new(&[("alive.jsonl", &text)]);
    let args = ["sweep", "alive.jsonl", "--fail-on-error", "3", "--overwrite", "--max-length", "12"];
    scene.run(&args).expect(0, &[]);
    let kinds: Vec<Value> = scene.rows().iter().map(|row| row["error"]["type"].clone()).collect();
    assert_eq!(kinds[5..], ["too_long", "invalid_json", "invalid_row"]);
    assert!(kinds[..5].iter().all(Value::is_null));
    scene.run(&[&args[..], &["--on-overlength", "truncate-left"]].concat()).expect(0, &[]);
    let rows = scene.rows();
    assert_eq!((&rows[5]["truncated"], &rows[5]["n_tokens"]), (&json!(true), &json!(12)));
    assert!(rows[0]["truncated"].is_null() && rows[5]["error"].is_null(), "{} {}", rows[0], rows[5]);
}

/// The demo pair, whose tuned model has finite weights that are too large.
fn overflowing() -> Pair {
    let pair = Pair::copy("../../models/demo");
    pair.edit_bytes("tuned/model.safetensors", |bytes| {
        let place = place_of("model.layers.0.mlp.down_proj.weight", "BF16", bytes);
        // The largest finite number.
        bytes[place].fill(0x7f);
    });
    pair
}

#[test]
fn overflows_are_told_and_never_summarized() {
    let pair = overflowing();
    let words = ["horse", "river", "stone", "king", "table"];
    let question = |word: &str| {
        format!("{{\"prompt\": \"Is a {word} alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": 0}}\n")
    };
    pair.write("alive.jsonl", words.map(question).concat());
    let told = |name: &str, input: &str, parts: &[&str]| {
        let args = [input, "--base", "base", "--tuned", "tuned", "--threads", "2", "-o", name];
        run(&mut pair.run(name, &args)).expect(42, parts);
        assert!(!pair.path(name).join("summary.json").exists());
    };
    told("trace", "Hello you", &["the hidden state overflowed: |P| is "]);
    told(
        "sweep",
        "alive.jsonl",
        &["alive: 0 of 5 questions have logits that are numbers, fewer than 5 folds"],
    );
    let rows = fs::read_to_string(pair.path("sweep/rows.jsonl")).unwrap();
    assert_eq!(rows.matches("\"error\":{\"type\":\"not_finite\"").count(), 5, "{rows}");
}

#[test]
fn published_formats_are_read() {
    let written = |statement: &str, yes: bool| {
        let (own, other) = if yes { (" Yes", " No") } else { (" No", " Yes") };
        format!(
            "{{\"question\": \"Would you say \\\"{statement}\\\"?\", \"statement\": \"{statement}\", \
             \"answer_matching_behavior\": \"{own}\", \"answer_not_matching_behavior\": \"{other}\"}}\n"
        )
    };
    let behaviour: String = (0..6).map(|row| written(&format!("I like {row}"), row % 2 == 0)).collect();
    let test = "\"What is\nthat, a horse?\",one,two,three,four,B\n".repeat(5);
    let dev = "First?,a,b,c,d,A\nSecond?,a,b,c,d,D\n";
    let scene =
        Scene::new(&[("likes.jsonl", &behaviour), ("some_animals_test.csv", &test), ("dev.csv", dev)]);
    let args = ["sweep", "likes.jsonl", "some_animals_test.csv", "--examples", "dev.csv", "--shots", "2"];
    scene.run(&args).expect(0, &[]);
    let rows = scene.rows();
    assert_eq!(rows[0]["answers"], serde_json::json!([" No", " Yes"]));
    assert_eq!((&rows[0]["label"], &rows[1]["label"]), (&" Yes".into(), &" No".into()));
    assert_eq!(rows[6]["answers"], serde_json::json!([" A", " B", " C", " D"]));
    assert_eq!(rows[6]["label"], " B");
    // All tasks count alike in what is told of them together.
    let summary = scene.summary();
    let [likes, animals] =
        [0, 1].map(|task| summary["tasks"][task]["maximize"]["delta_cv"].as_f64().unwrap());
    let mean = summary["mean"]["maximize"]["delta_cv"].as_f64().unwrap();
    assert!((mean - (likes + animals) / 2.0).abs() < 1e-12, "{mean} {likes} {animals}");
    let page = fs::read_to_string(scene.dir.path().join("out/report.html")).unwrap();
    assert!(page.contains("mean of 2 tasks"), "{page}");
    let with_examples = rows[6]["n_tokens"].as_u64().unwrap();
    scene.run(&["sweep", "some_animals_test.csv", "--overwrite"]).expect(0, &[]);
    assert!(scene.rows()[0]["n_tokens"].as_u64().unwrap() < with_examples);
    scene.run(&["sweep", "likes.jsonl", "--apply-chat-template", "--overwrite"]).expect(0, &[]);
    assert_eq!(scene.rows()[0]["answers"], serde_json::json!(["No", "Yes"]));
}

/// Answers that begin alike, as those of Model-Written Evaluations may, are told apart by the first token that they do not share.
#[test]
fn what_all_answers_begin_with_is_said_before() {
    let question = |answers: [&str; 2]| {
        format!("{}\n", json!({ "prompt": "Is it so?", "choices": answers, "label": 1 }))
    };
    let text =
        [question(["(A)", "(B)"]), question(["A", "B"]), question(["(", "(B)"]), question(["(A)", "(A"])];
    let scene = Scene::new(&[("letters.jsonl", &text.concat())]);
    scene.run(&["sweep", "letters.jsonl", "--folds", "2", "--fail-on-error", "2"]).expect(0, &[]);
    let rows = scene.rows();
    assert_eq!(rows[0]["n_tokens"].as_u64(), rows[1]["n_tokens"].as_u64().map(|tokens| tokens + 1));
    assert_eq!((&rows[0]["label"], &rows[0]["answers"]), (&json!("(B)"), &json!(["(A)", "(B)"])));
    assert!(rows[0]["logits"][0] != rows[1]["logits"][0]);
    for row in &rows[2..] {
        assert!(row["error"]["message"].as_str().unwrap().contains("cannot tell them apart"), "{row}");
    }
}

/// A file of several subjects, as those of the Hugging Face Hub are, has a task for each; files of one name are told apart.
#[test]
fn tasks_have_names_of_their_own() {
    let question = |subject: &str| {
        let fields =
            json!({ "question": "What?", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": 1 });
        format!("{fields}\n")
    };
    let scene = Scene::new(&[]);
    for folder in ["one", "two"] {
        let dir = scene.dir.path().join(folder);
        fs::create_dir(&dir).unwrap();
        let subjects = ["law", "art", "law", "art"].map(question);
        fs::write(dir.join("test.jsonl"), subjects.concat()).unwrap();
        fs::write(
            dir.join("prompts.jsonl"),
            "{\"prompt\": \"Hello\"}\n{\"prompt\": \"You\", \"label\": null}\n",
        )
        .unwrap();
    }
    scene.run(&["sweep", "one/test.jsonl", "two/test.jsonl", "--alphas", "1", "--folds", "2"]).expect(0, &[]);
    let tasks = scene.summary()["tasks"].as_array().unwrap().clone();
    let names: Vec<&Value> = tasks.iter().map(|task| &task["name"]).collect();
    assert_eq!(json!(names), json!(["law", "art", "law (two/test.jsonl)", "art (two/test.jsonl)"]));
    scene.run(&["compare", "one/prompts.jsonl", "two/prompts.jsonl", "--overwrite"]).expect(0, &[]);
    let classes = scene.summary()["classes"].as_array().unwrap().clone();
    let classes: Vec<Value> = classes.iter().map(|class| json!([class["name"], class["rows"]])).collect();
    assert_eq!(json!(classes), json!([["one/prompts.jsonl", 2], ["two/prompts.jsonl", 2]]));
    // Of a sweep there were more plots than one.
    fs::write(scene.dir.path().join("out/plot-2.svg"), "").unwrap();
    scene
        .run(&["compare", "one/prompts.jsonl", "two/prompts.jsonl", "--limit", "1", "--overwrite"])
        .expect(0, &[]);
    assert!(!scene.dir.path().join("out/plot-2.svg").exists());
}

/// Byte order marks, ids of other names, broken text and ids that come twice are as in prompts.
#[test]
fn questions_are_read_as_prompts_are() {
    let question = |id: &str| {
        format!("{{{id}\"prompt\": \"Is a horse alive?\", \"choices\": [\"Yes\", \"No\"], \"label\": 0}}\n")
    };
    let scene = Scene::new(&[]);
    let text = [
        "\u{feff}".to_owned() + &question("\"custom_id\": \"a\", "),
        "\n".to_owned(),
        question(""),
        question("\"id\": \"a\", "),
    ];
    let bytes = [text.concat().as_bytes(), b"{\"prompt\": \"\xff\"}\n", question("").as_bytes()].concat();
    fs::write(scene.dir.path().join("in.jsonl"), bytes).unwrap();
    scene.run(&["sweep", "in.jsonl", "--alphas", "1", "--folds", "2", "--fail-on-error", "2"]).expect(0, &[]);
    let rows = scene.rows();
    let ids: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
    assert_eq!(json!(ids), json!(["a", 3, "a", 5, 6]));
    let errors: Vec<&Value> = rows.iter().map(|row| &row["error"]["type"]).collect();
    assert_eq!(json!(errors), json!([null, null, "duplicate_id", "invalid_utf8", null]));
    scene
        .run(&["sweep", "in.jsonl", "--limit", "2", "--alphas", "1", "--folds", "2", "--overwrite"])
        .expect(0, &[]);
    assert_eq!(scene.rows().len(), 2);
    scene.run(&["compare", "-", "-"]).expect(2, &["standard input (-) is given twice"]);
}

/// Tables that pyarrow wrote, in the form of the Hugging Face Hub, are the questions of the CSV.
#[test]
fn mmlu_is_the_same_in_parquet_and_csv() {
    let test = "\"What is\nthat, a horse?\",one,two,three,four,B\n".repeat(5);
    let scene = Scene::new(&[
        ("some_animals_test.csv", &test),
        ("dev.csv", "First?,a,b,c,d,A\nSecond?,a,b,c,d,D\n"),
        ("bad.jsonl", r#"{"question": "x", "subject": "y", "choices": ["a", "b"], "answer": 0}"#),
    ]);
    let table = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables").join(name).display().to_string()
    };
    let (test, dev) = (table("mmlu_test.parquet"), table("mmlu_dev.parquet"));
    scene.run(&["sweep", "some_animals_test.csv", "--examples", "dev.csv", "--shots", "2"]).expect(0, &[]);
    let rows = scene.rows();
    scene.run(&["sweep", &test, "--examples", &dev, "--shots", "2", "--overwrite"]).expect(0, &[]);
    for (from_table, row) in scene.rows().iter().zip(&rows) {
        for field in ["logits", "n_tokens", "label", "answers"] {
            assert_eq!(from_table[field], row[field], "{field}");
        }
    }
    let refused = |args: &[&str], parts: &[&str]| {
        scene.run(&[&["sweep"], args, &["--overwrite"]].concat()).expect(2, parts);
    };
    refused(&[&test, "--examples", &dev, "--shots", "3"], &["2 rows of other_things", "3"]);
    refused(&["bad.jsonl"], &["bad.jsonl:1: ", "choices is no list of four strings"]);
}

#[test]
fn sweeps_that_cannot_be_meant_are_refused() {
    let alike = r#"{"prompt": "x", "choices": ["Yes", "Yesterday"], "label": 0}"#;
    let files = [
        ("good.jsonl", &questions()[..]),
        ("columns.jsonl", "{\"text\": \"x\", \"answer\": \"y\"}"),
        ("alike.jsonl", alike),
        ("short.csv", "question,a,b,c,A\n"),
        ("letter.csv", "question,a,b,c,d,E\n"),
        ("empty.jsonl", "\n"),
    ];
    let scene = Scene::new(&files);
    let refused = |args: &[&str], parts: &[&str]| {
        scene.run(&[&["sweep"], args].concat()).expect(2, parts);
        assert!(!scene.dir.path().join("out").exists(), "nothing is written for {args:?}");
    };
    refused(&["good.jsonl", "--alphas", "1,-0.5"], &["alpha is -0.5"]);
    refused(&["good.jsonl", "--alphas", "0.5,2"], &["--alphas has no 1"]);
    refused(&["good.jsonl", "--folds", "8"], &["7 questions, fewer than 8 folds"]);
    refused(&["good.jsonl", "--folds", "1"], &["expected 2 to 1000"]);
    refused(&["columns.jsonl"], &["columns.jsonl:1: ", "text, answer", "answer_matching_behavior"]);
    refused(&["alike.jsonl"], &["\"Yesterday\" begins with all tokens of \"Yes\"", "cannot tell them apart"]);
    refused(&["short.csv"], &["5 columns", "expected 6"]);
    refused(&["letter.csv"], &["\"E\"", "A, B, C or D"]);
    refused(&["empty.jsonl"], &["has no rows"]);
    refused(&["missing.jsonl"], &["missing.jsonl"]);
    refused(&["short.csv", "--examples", "letter.csv", "--shots", "3"], &["letter.csv has 1 rows", "3"]);
    scene.run(&["sweep", "good.jsonl"]).expect(3, &["1 of 8 rows"]);
    // A file of errors is no small task.
    let good = r#"{"prompt": "x", "choices": ["Yes", "No"], "label": 0}"#;
    let bad = r#"{"prompt": "x", "choices": ["Yes", "No"], "label": "Perhaps"}"#;
    fs::write(scene.dir.path().join("broken.jsonl"), [&[good][..], &[bad; 9]].concat().join("\n")).unwrap();
    for args in [&["sweep", "good.jsonl", "broken.jsonl"][..], &["sweep", "broken.jsonl"]] {
        scene.run(args).expect(3, &["broken: 9 of 10 rows are errors", "5 folds", "Perhaps"]);
    }
}

#[test]
fn classes_are_compared_pairwise() {
    let scene = Scene::new(&[]);
    let prompts = demo("prompts.jsonl");
    let args = ["compare", prompts.to_str().unwrap(), "--by"];
    let told = scene.run(&[&args[..], &["kind"]].concat()).expect(0, &[]);
    scene
        .run(&[&args[..], &["kinds", "--overwrite"]].concat())
        .expect(2, &["--by kinds: no row has this field"]);
    let summary = scene.summary();
    let names: Vec<&str> =
        summary["classes"].as_array().unwrap().iter().map(|class| class["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["text", "answered", "refused"]);
    assert_eq!(scene.rows().len(), 160);
    let pairs = summary["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3);
    // models/demo/README.md: chat stands apart from text, refused from answered hardly.
    assert_eq!((pairs[0]["auc"].as_f64(), pairs[1]["auc"].as_f64()), (Some(1.0), Some(1.0)));
    assert_eq!((&pairs[0]["tpr_at_fpr_5"], &pairs[1]["tpr_at_fpr_5"]), (&json!(1.0), &json!(1.0)));
    let close = pairs[2]["auc"].as_f64().unwrap();
    assert!((close - 0.560).abs() < 5e-4, "{close}");
    for interval in ["auc_newcombe_95", "auc_delong_95", "auc_bootstrap_95"] {
        let ends = [0, 1].map(|end| pairs[2][interval][end].as_f64().unwrap());
        assert!(ends[0] < close && close < ends[1], "{interval}: {ends:?}");
    }
    assert!(told.stdout.contains("refused against answered"), "{}", told.stdout);
}

#[test]
fn comparing_needs_two_classes() {
    let scene = Scene::new(&[
        ("a.txt", "some text\nmore text\n"),
        ("b.jsonl", "{\"prompt\": \"\"}\n"),
        ("c.jsonl", "{\"prompt\": \"good\"}\n{\"prompt\": \"\"}\n"),
        (
            "many.jsonl",
            &(0..101).map(|i| format!("{{\"prompt\": \"x\", \"label\": {i}}}\n")).collect::<String>(),
        ),
    ]);
    scene.run(&["compare", "a.txt"]).expect(2, &["only one class", "\"a\""]);
    let many = "101 classes of prompts (\"0\", \"1\", …), expected at most 100; --by names the field";
    scene.run(&["compare", "many.jsonl"]).expect(2, &[many]);
    scene.run(&["compare", "a.txt", "b.jsonl"]).expect(2, &["no prompt of class \"b\"", "empty string"]);
    scene.run(&["compare", "a.txt", "c.jsonl"]).expect(3, &["1 of 4 rows"]);
    assert_eq!(scene.rows()[3]["error"]["type"], "empty_prompt");
    // Too few of one class for DeLong's interval.
    let pair = &scene.summary()["pairs"][0];
    assert_eq!(pair["auc_delong_95"], Value::Null);
    assert!(pair["auc_newcombe_95"].is_array(), "{pair}");
}

/// As `tuco score` numbers them, whatever the limit of each file.
#[test]
fn rows_are_numbered_through_all_files_and_keep_label_and_meta() {
    let scene = Scene::new(&[
        ("a.txt", "some text\n\nmore text\n"),
        ("b.jsonl", "{\"prompt\": \"other\", \"meta\": {\"k\": 1}}\n{\"prompt\": \"x\", \"label\": \"y\"}\n"),
    ]);
    scene.run(&["compare", "a.txt", "b.jsonl"]).expect(0, &[]);
    let rows = scene.rows();
    let of = |field: &str| -> Vec<&Value> { rows.iter().map(|row| &row[field]).collect() };
    assert_eq!(json!(of("id")), json!([1, 3, 4, 5]));
    assert_eq!(json!(of("class")), json!(["a", "a", "b", "y"]));
    assert_eq!(json!(of("meta")), json!([null, null, { "k": 1 }, null]));
    assert_eq!(json!(of("label")), json!([null, null, null, "y"]));
    let scored = scene.score(&["a.txt", "b.jsonl"]);
    assert_eq!(json!(scored.iter().map(|row| &row["id"]).collect::<Vec<_>>()), json!(of("id")));
    scene.run(&["compare", "a.txt", "b.jsonl", "--limit", "1", "--overwrite"]).expect(0, &[]);
    assert_eq!(json!(scene.rows().iter().map(|row| &row["id"]).collect::<Vec<_>>()), json!([1, 4]));
}

#[test]
fn a_broken_line_is_an_error_of_no_class() {
    let row = |(word, label): (&str, &str)| {
        format!("{{\"prompt\": \"some text about a {word}\", \"label\": \"{label}\"}}\n")
    };
    let mut text = [("horse", "a"), ("river", "a"), ("stone", "b"), ("king", "b")].map(row).concat();
    text += "{broken\n";
    let more = text.clone() + "{\"prompt\": \"\", \"label\": \"c\"}\n";
    let files = [("lab.jsonl", &text[..]), ("more.jsonl", &more[..]), ("bad.jsonl", "{broken\n[1]\n")];
    let scene = Scene::new(&files);
    let told = scene.run(&["compare", "lab.jsonl", "--fail-on-error", "1"]).expect(0, &[]);
    assert!(told.stdout.contains("5 prompts, 1 errors"), "{}", told.stdout);
    let (rows, summary) = (scene.rows(), scene.summary());
    assert_eq!((&rows[4]["error"]["type"], &rows[4]["class"]), (&json!("invalid_json"), &Value::Null));
    assert_eq!((&summary["rows"], &summary["errors"]), (&json!(5), &json!(1)));
    let classes = summary["classes"].as_array().unwrap();
    let sizes: Vec<(&Value, &Value)> = classes.iter().map(|class| (&class["name"], &class["rows"])).collect();
    assert_eq!(sizes, [(&json!("a"), &json!(2)), (&json!("b"), &json!(2))]);
    scene.run(&["compare", "lab.jsonl", "--overwrite"]).expect(3, &["1 of 5 rows"]);
    // A class of which nothing can be scored is told; two others can be compared.
    let args = ["compare", "more.jsonl", "--fail-on-error", "2", "--overwrite"];
    scene.run(&args).expect(0, &["no prompt of class \"c\" can be scored", "empty string"]);
    assert_eq!(scene.summary()["pairs"].as_array().unwrap().len(), 3);
    let args = ["compare", "bad.jsonl", "--overwrite"];
    scene.run(&args).expect(2, &["only one class", "2 rows cannot be read", "bad.jsonl:1"]);
}

/// One base with two adapters is two pairs.
#[test]
fn reports_tell_adapters_apart() {
    let pair = Pair::copy("lora");
    pair.write("in.jsonl", rows(4));
    copy_folder(&pair.path("adapter"), &pair.path("other"));
    pair.edit_json("other/adapter_config.json", |config| config["lora_alpha"] = json!(7));
    let with = |subcommand: &str, adapter: &str, output: &str| {
        let args = ["in.jsonl", "--base", "base", "--adapter", adapter, "--threads", "2", "-o", output];
        run(&mut pair.run(subcommand, &args)).expect(0, &[]);
    };
    with("compare", "adapter", "a");
    with("compare", "other", "b");
    with("score", "adapter", "scores.jsonl");
    let report = |inputs: &[&str]| run(&mut pair.run("report", inputs));
    report(&["a", "scores.jsonl"]).expect(0, &[]);
    let page = fs::read_to_string(pair.path("report.html")).unwrap();
    assert_eq!(page.matches("base base, tuned base with adapter (tuco").count(), 2, "{page}");
    report(&["a", "b"]).expect(2, &["tuned of a has other weights than that of b", "a report of each"]);
    report(&["b", "scores.jsonl"]).expect(2, &["tuned of b has other weights than that of scores.jsonl"]);
    // The same weights elsewhere are the same pair.
    fs::rename(pair.path("adapter"), pair.path("moved")).unwrap();
    with("compare", "moved", "c");
    report(&["a", "c", "scores.jsonl"]).expect(0, &[]);
}

#[test]
fn reports_are_of_one_pair() {
    let scene = Scene::new(&[
        ("a.txt", "some text\nmore text\n"),
        ("b.txt", "other text\nand more\n"),
        ("x.json", "{}"),
    ]);
    scene.run(&["compare", "a.txt", "b.txt"]).expect(0, &[]);
    let report = |inputs: &[&str]| run(tuco().current_dir(scene.dir.path()).arg("report").args(inputs));
    report(&["out"]).expect(0, &[]);
    let page = fs::read_to_string(scene.dir.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("b against a"), "{page}");
    let mut other = scene.summary();
    other["base"] = "elsewhere".into();
    fs::write(scene.dir.path().join("other.json"), other.to_string()).unwrap();
    report(&["out", "other.json"]).expect(0, &[]);
    other["base_sha256"] = "0".into();
    fs::write(scene.dir.path().join("other.json"), other.to_string()).unwrap();
    report(&["out", "other.json"]).expect(2, &["base of out has other weights", "a report of each"]);
    // A trace does not hash them.
    other.as_object_mut().unwrap().shift_remove("base_sha256");
    fs::write(scene.dir.path().join("other.json"), other.to_string()).unwrap();
    report(&["out", "other.json"]).expect(2, &["elsewhere", "a report of each"]);
    let mut other = scene.summary();
    other.as_object_mut().unwrap().shift_remove("base_sha256");
    other["adapter"] = "elsewhere".into();
    fs::write(scene.dir.path().join("other.json"), other.to_string()).unwrap();
    report(&["out", "other.json"]).expect(2, &["adapter of out is null", "other.json \"elsewhere\""]);
    // What does not tell its adapters may have any, such as rows without a manifest.
    other.as_object_mut().unwrap().shift_remove("adapter");
    fs::write(scene.dir.path().join("other.json"), other.to_string()).unwrap();
    fs::write(scene.dir.path().join("rows.jsonl"), "{\"id\": 1, \"tuco\": 0.5}\n").unwrap();
    report(&["out", "other.json", "rows.jsonl"]).expect(0, &[]);
    report(&["out", "-o", "a.txt"]).expect(2, &["-o a.txt is there and is no page"]);
    report(&["x.json"]).expect(2, &["no field experiment"]);
    report(&["a.txt"]).expect(2, &["not valid JSON"]);
    fs::write(scene.dir.path().join("rows.jsonl.manifest.json"), "{\"fingerprint\": {}, \"about\": {}}")
        .unwrap();
    report(&["rows.jsonl"]).expect(2, &["rows.jsonl is not finished"]);
}

#[test]
fn a_model_without_a_head_cannot_be_steered() {
    let pair = Pair::copy("llama_mha_untied_f32");
    pair.edit_header("tuned/model.safetensors", |header| {
        let entry = header.remove("lm_head.weight").unwrap();
        header.insert("model.rotary_emb.inv_freq".into(), entry);
    });
    pair.write("q.jsonl", "{}");
    let args = ["--base", "base", "--tuned", "tuned", "q.jsonl", "-o", "out"];
    run(&mut pair.run("sweep", &args)).expect(42, &["lm_head.weight is missing"]);
}

#[test]
fn a_trace_shows_every_token_and_layer() {
    let scene = Scene::new(&[]);
    let args = ["trace", "What is the capital of France?", "--response", " Paris", "--apply-chat-template"];
    let told = scene.run(&args).expect(0, &[]).stdout;
    let (summary, rows) = (scene.summary(), scene.rows());
    assert_eq!(rows.len(), summary["tokens"].as_u64().unwrap() as usize);
    let text: String = rows.iter().map(|row| row["text"].as_str().unwrap()).collect();
    assert!(text.contains("capital of France?") && text.ends_with(" Paris"), "{text}");
    let in_response = rows.iter().filter(|row| row["in_response"] == true).count();
    assert!((1..rows.len()).contains(&in_response));
    for row in &rows {
        let layers: Vec<f64> =
            row["beta_per_layer"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert_eq!((layers.len(), layers[5]), (6, row["tuco"].as_f64().unwrap()));
        assert_eq!(row["attention_per_layer"].as_array().unwrap().len(), 6);
        assert_eq!(row["mlp_per_layer"].as_array().unwrap().len(), 6);
    }
    let of = |field: &str| -> f64 { rows.iter().map(|row| row[field].as_f64().unwrap()).sum() };
    let all = summary["all_tokens"]["beta_per_layer"][5].as_f64().unwrap();
    assert!((all - of("ftc_l1") / (of("ptc_l1") + of("ftc_l1"))).abs() < 1e-12, "{all}");
    assert!(summary["all_tokens"]["beta"].as_f64().unwrap() >= all);
    assert!(told.contains("fine-tuning promotes") && !told.contains('\u{1b}'), "{told}");
    let page = fs::read_to_string(scene.dir.path().join("out/report.html")).unwrap();
    assert!(page.matches("<svg").count() == 2 && page.contains("layer 6:") && !page.contains("src="));

    // The last token's TuCo is that of tuco score, which reads the same tokens.
    let ids: Vec<u64> = rows.iter().map(|row| row["token_id"].as_u64().unwrap()).collect();
    fs::write(scene.dir.path().join("ids.jsonl"), format!("{{\"token_ids\": {ids:?}}}")).unwrap();
    let mut score = tuco();
    score.current_dir(scene.dir.path()).args(["score", "ids.jsonl", "--quiet", "--base"]).arg(demo("base"));
    let scored = run(score.arg("--tuned").arg(demo("tuned"))).expect(0, &[]).rows();
    let (scored, traced) =
        (scored[0]["tuco"].as_f64().unwrap(), rows[rows.len() - 1]["tuco"].as_f64().unwrap());
    assert!((scored / traced - 1.0).abs() < 1e-5, "{scored} {traced}");

    // What was cut is said.
    assert_eq!(summary["truncated"], false);
    let args = ["trace", "What is the capital of France?", "--overwrite"];
    let cut = ["--max-length", "5", "--on-overlength", "truncate-left"];
    let told = scene.run(&[&args[..], &cut].concat()).expect(0, &[]).stdout;
    assert_eq!((&scene.summary()["truncated"], scene.rows().len()), (&json!(true), 5));
    assert!(told.contains("Tokens of the prompt were left out (--on-overlength)"), "{told}");

    scene.run(&["trace", "x", "--response", ""]).expect(2, &["--response is empty"]);
    scene.run(&["trace", ""]).expect(2, &["empty"]);
}
