//! `tuco score` as a user sees it: rows in and out, bad rows, going on after an interruption, exit codes.

#[cfg(unix)]
use crate::common::stop_when;
use crate::common::{Pair, rows, run};
use serde_json::{Value, json};
use std::{fs, io::Write, process::Stdio, thread, time::Duration};

const CASE: &str = "llama_gqa_tied_bf16";

#[test]
fn a_row_holds_what_was_asked_for() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", "{\"token_ids\": [1, 2, 3], \"label\": \"x\", \"meta\": {\"a\": [1]}}\n\n{\"prompt_token_ids\": [4], \"id\": 7}\n");
    let ran =
        run(&mut pair.score(&["in.jsonl", "--layers", "--output-co"])).expect(0, &["2 prompts, 4 tokens"]);
    let rows = ran.rows();
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    let expected = [
        "id",
        "tuco",
        "ptc_l1",
        "ftc_l1",
        "beta",
        "n_tokens",
        "beta_per_layer",
        "output_co",
        "label",
        "meta",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&rows[0]["id"], &rows[1]["id"]), (&json!(1), &json!(7)));
    assert_eq!((&rows[0]["label"], &rows[0]["meta"]), (&json!("x"), &json!({"a": [1]})));
    let (ptc, ftc) = (rows[0]["ptc_l1"].as_f64().unwrap(), rows[0]["ftc_l1"].as_f64().unwrap());
    assert_eq!(rows[0]["tuco"].as_f64().unwrap(), ftc / (ptc + ftc));
    let plain = run(&mut pair.score(&["in.jsonl", "-q"])).expect(0, &[]);
    assert_eq!(plain.stderr, "");
    assert!(plain.rows()[0].get("output_co").is_none());
}

#[test]
fn bad_rows_become_error_rows_and_the_run_goes_on() {
    let pair = Pair::copy(CASE);
    let mut input = concat!(
        "{\"id\": \"good\", \"token_ids\": [1, 2]}\n",
        "{broken\n",
        "{\"id\": \"both\", \"prompt\": \"x\", \"token_ids\": [1]}\n",
        "{\"id\": \"none\"}\n",
        "{\"id\": \"type\", \"token_ids\": [1, -2], \"label\": 5}\n",
        "{\"id\": \"good\", \"token_ids\": [1]}\n",
        "{\"id\": \"empty\", \"token_ids\": []}\n",
        "{\"id\": \"range\", \"token_ids\": [1, 60000]}\n",
        "{\"id\": \"text\", \"prompt\": \"hello\"}\n",
        "{\"id\": \"colour\", \"token_ids\": [1], \"color\": 1}\n",
    )
    .as_bytes()
    .to_vec();
    input.extend(b"{\"id\": \"\xff\"}\n");
    let long: Vec<u32> = vec![1; 5000];
    input.extend(json!({"id": "long", "token_ids": long}).to_string().bytes());
    pair.write("in.jsonl", input);
    let ran = run(&mut pair.score(&["in.jsonl"])).expect(3, &["10 of 12 rows", "color"]);
    let kinds: Vec<Value> = ran.rows().iter().map(|row| row["error"]["type"].clone()).collect();
    let expected = [
        json!(null),
        json!("invalid_json"),
        json!("invalid_row"),
        json!("invalid_row"),
        json!("invalid_row"),
        json!("duplicate_id"),
        json!("empty_prompt"),
        json!("token_out_of_range"),
        json!("no_tokenizer"),
        json!(null),
        json!("invalid_utf8"),
        json!("too_long"),
    ];
    assert_eq!(kinds, expected, "{}", ran.stdout);
    let rows = ran.rows();
    assert_eq!((&rows[4]["id"], &rows[4]["label"]), (&json!("type"), &json!(5)));
    for bad in [1, 7, 8] {
        let message = rows[bad]["error"]["message"].as_str().unwrap();
        assert!(message.contains(&format!("in.jsonl:{}: ", bad + 1)), "{message}");
    }
    run(&mut pair.score(&["in.jsonl", "--fail-on-error", "10"])).expect(0, &["10 of 12 rows"]);
    run(&mut pair.score(&["in.jsonl", "--on-overlength", "truncate-left", "--fail-on-error", "9"]))
        .expect(0, &[]);
}

#[test]
fn outputs_that_would_not_hold_what_their_names_say_are_refused() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    for name in ["out.csv", "out.TXT", "-"] {
        run(&mut pair.score(&["in.jsonl", "-o", name]))
            .expect(2, &[&format!("-o {name}: rows are written as JSON lines")]);
        assert!(!pair.path(name).exists());
    }
}

#[test]
fn an_interrupted_run_goes_on_and_ends_with_the_same_bytes() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(40));
    let args = ["in.jsonl", "-o", "out.jsonl", "--layers", "--batch-size", "3"];
    run(&mut pair.score(&args)).expect(0, &[]);
    let whole = fs::read(pair.path("out.jsonl")).unwrap();
    assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 40);
    for cut in [0, 1, 30, whole.len() / 3, whole.len() / 2 + 11, whole.len() - 1] {
        fs::write(pair.path("out.jsonl"), &whole[..cut]).unwrap();
        run(&mut pair.score(&args)).expect(0, &[]);
        assert!(fs::read(pair.path("out.jsonl")).unwrap() == whole, "cut at {cut}");
    }
    // Finished already: nothing is computed again.
    run(&mut pair.score(&args)).expect(0, &["0 prompts", "40 were there already"]);
    // Other batches give the same bytes too.
    run(&mut pair.score(&["in.jsonl", "-o", "other.jsonl", "--layers", "--max-batch-tokens", "50"]))
        .expect(0, &[]);
    assert!(fs::read(pair.path("other.jsonl")).unwrap() == whole);
}

#[test]
fn sharing_beginnings_changes_no_byte() {
    let pair = Pair::copy(CASE);
    let beginning: Vec<usize> = (0..40).map(|i| i * 7 % 50).collect();
    let row = |row: usize| {
        let token_ids = [&beginning[..20 + row % 21], &[row % 50]].concat();
        json!({ "token_ids": token_ids })
    };
    let input: String = (0..60).map(|number| format!("{}\n", row(number))).collect();
    pair.write("in.jsonl", input);
    let scored = |sharing: &str| {
        let args = ["in.jsonl", "--prefix-sharing", sharing, "--max-batch-tokens", "200", "--output-co"];
        run(&mut pair.score(&args)).expect(0, &["60 prompts"]).stdout
    };
    let off = scored("off");
    assert_eq!(scored("auto"), off);
    assert_eq!(scored("on"), off);
    run(&mut pair.score(&["in.jsonl", "--prefix-sharing", "maybe"])).expect(2, &["--prefix-sharing"]);
}

#[test]
fn a_killed_run_goes_on() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(5000));
    run(&mut pair.score(&["in.jsonl", "-o", "whole.jsonl"])).expect(0, &[]);
    let whole = fs::read(pair.path("whole.jsonl")).unwrap();
    let written = || fs::metadata(pair.path("out.jsonl")).map_or(0, |metadata| metadata.len());
    for _ in 0..5 {
        let before = written();
        let mut command = pair.score(&["in.jsonl", "-o", "out.jsonl", "--batch-size", "1"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        while written() <= before {
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(written() < whole.len() as u64, "it was killed on the way");
    }
    run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl"])).expect(0, &[]);
    assert!(fs::read(pair.path("out.jsonl")).unwrap() == whole);
}

#[test]
fn nothing_that_is_read_is_written_over() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(4));
    fs::hard_link(pair.path("in.jsonl"), pair.path("same.jsonl")).unwrap();
    let before = fs::read(pair.path("in.jsonl")).unwrap();
    for output in ["in.jsonl", "./in.jsonl", "same.jsonl"] {
        run(&mut pair.score(&["in.jsonl", "-o", output, "--overwrite"])).expect(2, &["is one of the inputs"]);
    }
    assert_eq!(fs::read(pair.path("in.jsonl")).unwrap(), before);
}

/// The same bytes are other prompts under another name.
#[test]
fn a_run_does_not_go_on_with_inputs_that_are_read_in_another_way() {
    let pair = Pair::copy(CASE);
    pair.write("in.txt", rows(2));
    pair.write("in.jsonl", rows(2));
    run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl"])).expect(0, &[]);
    run(&mut pair.score(&["in.txt", "-o", "out.jsonl"]))
        .expect(42, &["the input in.txt is not what in.jsonl was"]);
}

#[cfg(unix)]
#[test]
fn sigterm_is_heard_where_no_row_is_computed() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", "{\"prompt\": \"\"}\n".repeat(200_000));
    let args = ["in.jsonl", "-o", "out.jsonl", "--batch-size", "10", "--fail-on-error", "200000"];
    crate::common::stop_when(&mut pair.score(&args), &pair.path("out.jsonl"), |length| length > 0)
        .expect(75, &["stopped; the rows in out.jsonl are complete"]);
}

/// Whoever does not listen does not end the run.
#[cfg(unix)]
#[test]
fn a_closed_standard_error_is_no_failure() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(4));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = pair.score(&["in.jsonl"]).stderr(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.split(|byte| *byte == b'\n').count()), (Some(0), 5));
}

#[cfg(unix)]
#[test]
fn sigterm_stops_cleanly_and_says_how_to_go_on() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(20000));
    let args = ["in.jsonl", "-o", "out.jsonl", "--batch-size", "4"];
    stop_when(&mut pair.score(&args), &pair.path("out.jsonl"), |length| length > 0)
        .expect(75, &["out.jsonl are complete, the same command goes on"]);
    assert!(fs::read_to_string(pair.path("out.jsonl")).unwrap().ends_with('\n'));
}

#[test]
fn the_output_of_another_run_is_refused_with_what_differs() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(4));
    let args = ["in.jsonl", "-o", "out.jsonl"];
    run(&mut pair.score(&args)).expect(0, &[]);
    let before = fs::read(pair.path("out.jsonl")).unwrap();
    run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl", "--layers"]))
        .expect(42, &["out.jsonl", "layers was false and is now true", "--overwrite"]);
    run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl", "--dtype", "float16"]))
        .expect(42, &["dtype.base was"]);
    pair.write("in.jsonl", rows(5));
    run(&mut pair.score(&args)).expect(42, &["the input in.jsonl is not what in.jsonl was"]);
    pair.write("in.jsonl", rows(4));
    fs::copy(
        crate::common::golden(CASE).join("base/model.safetensors"),
        pair.path("tuned/model.safetensors"),
    )
    .unwrap();
    run(&mut pair.score(&args)).expect(42, &["tuned.model.safetensors was"]);
    assert_eq!(fs::read(pair.path("out.jsonl")).unwrap(), before, "nothing is lost");
    run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl", "--overwrite"])).expect(0, &[]);
    let row: Value =
        serde_json::from_str(fs::read_to_string(pair.path("out.jsonl")).unwrap().lines().next().unwrap())
            .unwrap();
    assert_eq!(row["tuco"], json!(0.0), "the same model twice");
    fs::remove_file(pair.path("out.jsonl.manifest.json")).unwrap();
    run(&mut pair.score(&args)).expect(42, &["out.jsonl.manifest.json is missing", "--overwrite"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(4));
    run(&mut pair.score(&["in.jsonl", "-o", "nowhere/out.jsonl"])).expect(2, &["nowhere/out.jsonl"]);
    run(&mut pair.score(&["in.jsonl", "-o", "base"])).expect(2, &["-o base is a directory"]);
    if cfg!(target_os = "linux") {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ran = run(pair.score(&["in.jsonl"]).stdout(Stdio::from(full)));
        ran.expect(1, &["standard output", "No space left"]);
    }
}

#[test]
fn inputs_that_cannot_be_read() {
    let pair = Pair::copy(CASE);
    run(&mut pair.score(&["nowhere.jsonl"])).expect(2, &["nowhere.jsonl"]);
    run(&mut pair.score(&["base"])).expect(2, &["base"]);
    run(&mut pair.score(&["base/config.json/rows.jsonl"]))
        .expect(2, &["cannot read base/config.json/rows.jsonl"]);
    if cfg!(target_os = "linux") {
        // As a broken disk: what was named is right, so that another try may help.
        run(&mut pair.run("report", &["/proc/self/mem"]))
            .expect(1, &["cannot read /proc/self/mem: Input/output error"]);
    }
    run(&mut pair.score(&[])).expect(2, &["<INPUT>"]);
    run(&mut pair.score(&["x.jsonl", "--batch-size", "0"])).expect(2, &["--batch-size"]);
}

#[test]
fn standard_input_and_limits() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(10));
    let expected = run(&mut pair.score(&["in.jsonl", "--limit", "3"])).expect(0, &["3 prompts"]);
    assert_eq!(expected.rows().len(), 3);
    let mut child =
        pair.score(&["-", "--limit", "0.3"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rows(10).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.stdout);
    let none = run(&mut pair.score(&["/dev/null"])).expect(0, &["0 prompts"]);
    assert_eq!(none.stdout, "");
}

#[test]
fn devices_agree_and_dtypes_differ() {
    let pair = Pair::copy("llama_mha_untied_f32");
    pair.write("in.jsonl", rows(5));
    let tuco = |args: &[&str]| -> Vec<f64> {
        let ran = run(pair.score(&["in.jsonl"]).args(args)).expect(0, &[]);
        ran.rows().iter().map(|row| row["tuco"].as_f64().unwrap()).collect()
    };
    let (cpu, reference) = (tuco(&[]), tuco(&["--device", "reference"]));
    let rounded = tuco(&["--dtype", "bfloat16"]);
    for ((cpu, reference), rounded) in cpu.iter().zip(&reference).zip(&rounded) {
        assert!((cpu / reference - 1.0).abs() < 1e-5);
        let moved = (rounded / reference - 1.0).abs();
        assert!(moved > 1e-6 && moved < 0.1, "{moved}");
    }
    assert_eq!(tuco(&["--dtype", "float32"]), cpu);
}

/// As Python programs and lm-eval have them.
#[test]
fn flags_may_have_underscores() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    let args = ["in.jsonl", "--batch_size=1", "--max_length", "8", "--system_instruction=--be_brief=yes"];
    run(&mut pair.score(&args)).expect(0, &[]);
    run(&mut pair.score(&["in.jsonl", "--no_such_flag"])).expect(2, &["--no-such-flag"]);
}

#[test]
fn a_run_that_another_machine_began_is_told() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(4));
    let args = ["in.jsonl", "-o", "out.jsonl"];
    run(&mut pair.score(&args)).expect(0, &[]);
    pair.edit_json("out.jsonl.manifest.json", |manifest| {
        manifest["about"]["instruction_set"] = "neon".into();
        manifest.as_object_mut().unwrap().remove("done");
    });
    let rows = fs::read_to_string(pair.path("out.jsonl")).unwrap();
    pair.write("out.jsonl", format!("{}\n", rows.lines().next().unwrap()));
    run(&mut pair.score(&args)).expect(0, &["out.jsonl were begun with neon instructions, this machine has"]);
    assert_eq!(fs::read_to_string(pair.path("out.jsonl")).unwrap(), rows);
}

#[test]
fn variables_of_flags_are_on_or_off_in_the_usual_words() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(1));
    for (value, has_layers) in [("1", true), ("yes", true), ("true", true), ("0", false), ("off", false)] {
        let ran = run(pair.score(&["in.jsonl"]).env("TUCO_LAYERS", value)).expect(0, &[]);
        assert_eq!(ran.rows()[0].get("beta_per_layer").is_some(), has_layers, "{value}");
    }
}
