//! Runs that many machines share: shards, what schedulers tell, merging; kills at any moment.

use crate::common::{Pair, rows, run};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const CASE: &str = "llama_gqa_tied_bf16";

/// A pair, rows with and without ids, with blank lines, errors and an id given twice, and what one machine makes of them.
fn prepared(count: usize) -> (Pair, Vec<u8>) {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(count));
    pair.write("more.jsonl", "\n{\"token_ids\": [1, 2]}\n{broken\n\n{\"id\": \"r3\", \"token_ids\": [4]}\n");
    run(&mut pair.score(&["in.jsonl", "more.jsonl", "-o", "whole.jsonl", "--fail-on-error", "2"]))
        .expect(0, &[]);
    let whole = fs::read(pair.path("whole.jsonl")).unwrap();
    (pair, whole)
}

fn shard(pair: &Pair, index: usize, count: usize, more: &[&str]) -> Command {
    let mut command = pair.score(&["in.jsonl", "more.jsonl", "-o", "out", "--fail-on-error", "2"]);
    command.args(["--shard", &format!("{index}/{count}")]).args(more);
    command
}

fn merge(pair: &Pair, output: &str) -> Command {
    pair.run("merge", &["out", "-o", output])
}

fn file_of(index: usize, count: usize) -> String {
    format!("out/shard-{index:05}-of-{count:05}.jsonl")
}

#[test]
fn merged_shards_have_the_bytes_of_one_machine() {
    let (pair, whole) = prepared(40);
    for index in [2, 0, 1] {
        run(&mut shard(&pair, index, 3, &[])).expect(0, &[]);
    }
    run(&mut merge(&pair, "merged.jsonl")).expect(0, &["43 rows, 2 of them errors"]);
    assert!(fs::read(pair.path("merged.jsonl")).unwrap() == whole);
    // Merged rows are a run like any: nothing is left to do.
    run(&mut pair.score(&["in.jsonl", "more.jsonl", "-o", "merged.jsonl"]))
        .expect(0, &["43 were there already"]);
    run(&mut merge(&pair, "merged.jsonl")).expect(2, &["merged.jsonl", "--overwrite"]);
    run(merge(&pair, "merged.jsonl").arg("--overwrite")).expect(0, &[]);
    assert!(fs::read(pair.path("merged.jsonl")).unwrap() == whole);
    run(&mut merge(&pair, "base")).expect(2, &["-o base is a directory"]);
    // What a table will be made of are rows of a run too.
    let journal = "merged.parquet.rows.jsonl";
    pair.write(journal, "{\"id\": 1}\n");
    run(&mut merge(&pair, "merged.parquet")).expect(2, &["merged.parquet is there already", "--overwrite"]);
    assert_eq!(fs::read(pair.path(journal)).unwrap(), b"{\"id\": 1}\n");
    run(merge(&pair, "merged.parquet").arg("--overwrite")).expect(0, &["43 rows"]);
    assert!(!pair.path(journal).exists());
    run(&mut pair.run("merge", &["base", "-o", "x.jsonl"])).expect(2, &["base has no shards"]);
}

#[test]
fn what_is_missing_is_told() {
    let (pair, _) = prepared(40);
    for index in [0, 2] {
        run(&mut shard(&pair, index, 4, &[])).expect(0, &[]);
    }
    run(&mut merge(&pair, "merged.jsonl")).expect(3, &["1/4 is missing, 3/4 is missing"]);
    run(&mut shard(&pair, 1, 4, &[])).expect(0, &[]);
    run(&mut shard(&pair, 3, 4, &[])).expect(0, &[]);
    // A part that lost its end.
    let path = pair.path(&file_of(1, 4));
    let part = fs::read(&path).unwrap();
    let last = part[..part.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    fs::write(&path, &part[..last]).unwrap();
    run(&mut merge(&pair, "merged.jsonl")).expect(3, &["shard 1/4 has", "rows, but wrote"]);
    fs::write(&path, &part[..last + 9]).unwrap();
    run(&mut merge(&pair, "merged.jsonl")).expect(42, &["shard-00001-of-00004.jsonl line", "not a row"]);
    assert!(!pair.path("merged.jsonl").exists());
    // The same command mends it.
    run(&mut shard(&pair, 1, 4, &[])).expect(0, &[]);
    assert!(fs::read(&path).unwrap() == part);
    // A row that another shard has.
    fs::copy(pair.path(&file_of(2, 4)), &path).unwrap();
    run(&mut merge(&pair, "merged.jsonl")).expect(42, &["is not a row of shard 1/4"]);
}

#[test]
fn shards_of_other_runs_are_refused() {
    let (pair, _) = prepared(12);
    run(&mut shard(&pair, 0, 2, &[])).expect(0, &[]);
    run(&mut shard(&pair, 1, 3, &[])).expect(42, &["shards was 2 and is now 3"]);
    run(&mut shard(&pair, 1, 2, &["--layers"])).expect(42, &["layers was false and is now true"]);
    run(&mut shard(&pair, 1, 2, &["--layers", "--overwrite"])).expect(0, &[]);
    run(&mut merge(&pair, "merged.jsonl")).expect(42, &["0/2 and 1/2", "layers was false and is now true"]);
    run(&mut shard(&pair, 1, 3, &["--overwrite"])).expect(0, &[]);
    run(&mut merge(&pair, "merged.jsonl")).expect(42, &["shards of two runs, of"]);
    run(&mut shard(&pair, 3, 3, &[])).expect(2, &["no shard 3 of 3"]);
    run(&mut pair.score(&["in.jsonl", "--shard", "0/2"])).expect(2, &["--output"]);
    run(&mut pair.score(&["in.jsonl", "--shard", "0/2", "-o", "in.jsonl"]))
        .expect(2, &["in.jsonl is a file, expected a folder"]);
}

#[test]
fn schedulers_tell_the_shard() {
    let (pair, whole) = prepared(12);
    let auto = |environment: &[(&str, &str)]| {
        let mut command = pair.score(&["in.jsonl", "more.jsonl", "-o", "out", "--fail-on-error", "2"]);
        for name in
            ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "JOB_COMPLETION_INDEX"]
        {
            command.env_remove(name);
        }
        command.args(["--shard", "auto"]).envs(environment.iter().copied());
        run(&mut command)
    };
    auto(&[]).expect(2, &["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"]);
    auto(&[("SLURM_ARRAY_TASK_ID", "2")]).expect(2, &["SLURM_ARRAY_TASK_COUNT is not set"]);
    auto(&[("JOB_COMPLETION_INDEX", "1")]).expect(2, &["TUCO_SHARD_COUNT is not set"]);
    assert!(!pair.path("out").exists());
    let array =
        [("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("SLURM_ARRAY_TASK_MIN", "1")];
    auto(&array).expect(0, &[]);
    auto(&[("JOB_COMPLETION_INDEX", "1"), ("TUCO_SHARD_COUNT", "2")]).expect(0, &[]);
    run(&mut merge(&pair, "merged.jsonl")).expect(0, &[]);
    assert!(fs::read(pair.path("merged.jsonl")).unwrap() == whole);
}

#[cfg(unix)]
#[test]
fn a_stopped_shard_goes_on_and_has_one_writer() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(20000));
    let args = ["in.jsonl", "-o", "out", "--shard", "1/2", "--batch-size", "4"];
    let child = pair.score(&args).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    let part = pair.path(&file_of(1, 2));
    while fs::metadata(&part).map_or(0, |m| m.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(20), "nothing was written");
        thread::sleep(Duration::from_millis(2));
    }
    run(&mut pair.score(&args))
        .expect(1, &["shard-00001-of-00002.jsonl is being written by another process"]);
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(fs::read_to_string(&part).unwrap().ends_with('\n'));
    run(&mut merge(&pair, "merged.jsonl")).expect(3, &["0/2 is missing, 1/2 is not finished"]);
}

/// Kills runs of 8 shards at so many moments, spread over the time that one takes, then lets each finish.
fn killed(kills: usize) {
    const SHARDS: usize = 8;
    let (pair, whole) = prepared(600);
    let start = Instant::now();
    run(&mut shard(&pair, 0, SHARDS, &["--batch-size", "1"])).expect(0, &[]);
    let takes = start.elapsed().as_micros() as u64;
    fs::remove_dir_all(pair.path("out")).unwrap();
    let mut killed = 0;
    // A run that goes on is shorter, so that some end before their moment: those do not count.
    for attempt in 0..10 * kills {
        if killed == kills {
            break;
        }
        // The golden ratio's multiples are spread evenly, whatever their number.
        let share = (attempt as f64 * 0.618_034).fract();
        let mut command = shard(&pair, attempt % SHARDS, SHARDS, &["--batch-size", "1"]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_micros((takes as f64 * share) as u64));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().code().is_none());
    }
    assert_eq!(killed, kills);
    for index in 0..SHARDS {
        run(&mut shard(&pair, index, SHARDS, &[])).expect(0, &[]);
    }
    run(&mut merge(&pair, "merged.jsonl")).expect(0, &["603 rows"]);
    assert!(fs::read(pair.path("merged.jsonl")).unwrap() == whole);
}

#[test]
fn killed_shards_lose_and_double_nothing() {
    killed(5);
}

#[test]
#[ignore = "takes longer: cargo test --release --test cli -- --ignored killed"]
fn shards_killed_at_20_moments_lose_and_double_nothing() {
    killed(20);
}

/// The rows of a Parquet file as JSON, by the reader of the library.
fn table(path: &Path) -> Vec<Value> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let reader = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_json_value()).collect()
}

#[test]
fn a_parquet_file_has_what_the_lines_have() {
    let (pair, _) = prepared(40);
    let args = ["in.jsonl", "more.jsonl", "--layers", "-o"];
    run(pair.score(&args).arg("lines.jsonl")).expect(0, &[]);
    run(pair.score(&args).arg("out.parquet")).expect(0, &[]);
    let lines = fs::read_to_string(pair.path("lines.jsonl")).unwrap();
    let rows = table(&pair.path("out.parquet"));
    assert_eq!((rows.len(), rows[0]["beta_per_layer"].is_array()), (43, true));
    for (line, row) in lines.lines().zip(&rows) {
        let line: Value = serde_json::from_str(line).unwrap();
        let fields = row.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
        for (name, value) in fields {
            match (name.as_str(), &line[name]) {
                // Strings and numbers are both there, so all are text.
                ("id", Value::Number(id)) => assert_eq!(*value, id.to_string()),
                (_, expected) => assert_eq!(value, expected, "{name}"),
            }
        }
        assert_eq!(
            row.as_object().unwrap().values().filter(|v| !v.is_null()).count(),
            line.as_object().unwrap().len()
        );
    }
    assert!(!pair.path("out.parquet.rows.jsonl").exists());
    let bytes = fs::read(pair.path("out.parquet")).unwrap();
    run(pair.score(&args).arg("out.parquet")).expect(0, &["0 prompts", "43 were there already"]);
    assert!(!pair.path("out.parquet.rows.jsonl").exists());
    run(pair.score(&args[..2]).args(["-o", "out.parquet"])).expect(42, &["layers was true and is now false"]);
    assert!(!pair.path("out.parquet.rows.jsonl").exists());
    // Interrupted before the table was made.
    fs::remove_file(pair.path("out.parquet")).unwrap();
    fs::write(pair.path("out.parquet.rows.jsonl"), &lines[..lines.len() / 2]).unwrap();
    run(pair.score(&args).arg("out.parquet")).expect(0, &["were there already"]);
    assert!(fs::read(pair.path("out.parquet")).unwrap() == bytes);
    for index in 0..2 {
        run(&mut shard(&pair, index, 2, &["--layers"])).expect(0, &[]);
    }
    run(&mut merge(&pair, "merged.parquet")).expect(0, &[]);
    assert!(fs::read(pair.path("merged.parquet")).unwrap() == bytes);
}

/// Completions are lists of groups with lists in them.
#[test]
fn completions_are_the_same_in_a_parquet_file() {
    let (pair, _) = prepared(6);
    pair.write("bad.jsonl", "{\"id\": \"none\"}\n");
    let args =
        ["in.jsonl", "bad.jsonl", "--temperature", "1", "--n", "2", "--tuco", "--max-new-tokens", "3", "-o"];
    let generate = |output: &str| {
        let pair_of = ["--base", "base", "--tuned", "tuned", "--fail-on-error", "1"];
        run(&mut pair.run("generate", &[&pair_of[..], &args, &[output]].concat())).expect(0, &[])
    };
    generate("lines.jsonl");
    generate("out.parquet");
    let rows = table(&pair.path("out.parquet"));
    let lines = fs::read_to_string(pair.path("lines.jsonl")).unwrap();
    let mut seen = 0;
    for (line, row) in lines.lines().zip(&rows) {
        let line: Value = serde_json::from_str(line).unwrap();
        let completions = line["completions"].as_array().cloned().unwrap_or_default();
        seen += completions.len();
        for (index, completion) in completions.iter().enumerate() {
            for (name, value) in completion.as_object().unwrap() {
                assert_eq!(row["completions"][index][name], *value, "{name} of {index}");
            }
        }
        assert_eq!(row["completions"].as_array().map_or(0, Vec::len), completions.len());
        assert_eq!(row["error"]["type"], line["error"]["type"]);
    }
    assert!(seen >= 12 && rows.len() == lines.lines().count(), "{seen} completions of {} rows", rows.len());
}

/// Writes rows of an id, token ids and a label as a Parquet file, with our own writer.
fn input_table(pair: &Pair, name: &str, lines: &str) {
    let output = pair.path(name);
    pair.write(&format!("{name}.rows.jsonl"), lines);
    tuco::output::write_table(&pair.path(&format!("{name}.rows.jsonl")), &output).unwrap();
}

#[test]
fn a_parquet_file_is_input_like_lines() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(40));
    input_table(&pair, "in.parquet", &rows(40));
    let lines = run(&mut pair.score(&["in.jsonl"])).expect(0, &[]);
    let table = run(&mut pair.score(&["in.parquet"])).expect(0, &["40 prompts"]);
    assert_eq!(table.stdout, lines.stdout);
    input_table(&pair, "wrong.parquet", "{\"id\": 1.5, \"token_ids\": [1]}\n");
    run(&mut pair.score(&["wrong.parquet"]))
        .expect(2, &["wrong.parquet: column id must hold strings or integers, found DOUBLE"]);
    input_table(&pair, "wrong.parquet", "{\"token_ids\": [\"a\"]}\n");
    run(&mut pair.score(&["wrong.parquet"]))
        .expect(2, &["column token_ids must hold lists of integers, found lists of strings"]);
    pair.edit_bytes("in.parquet", |bytes| bytes.truncate(bytes.len() / 2));
    run(&mut pair.score(&["in.parquet"])).expect(2, &["in.parquet is not a whole Parquet file"]);
}
