//! No room for what is written: the file is named, what was written before is kept, and the run goes on when there is room.
//! Files may not grow beyond a limit of the shell here, which fails as a full disk does.
#![cfg(target_os = "linux")]

use crate::common::{Pair, rows, run};
use std::{
    ffi::OsStr,
    fs::{self, File},
    process::Command,
};

const CASE: &str = "llama_gqa_tied_bf16";

/// The same command where files may have so many blocks of 512 bytes.
fn with_room(command: &Command, blocks: usize) -> Command {
    let mut limited = Command::new("sh");
    // A write beyond the limit is then an error instead of a signal.
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
    limited.arg(command.get_program()).args(command.get_args());
    limited.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// A pair, and rows whose output takes about 100 blocks.
fn prepared() -> Pair {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(300));
    pair
}

/// Lets a command fail for want of room, and then go on.
#[track_caller]
fn check_goes_on(command: &mut Command, blocks: usize, named: &str) {
    let parts = [named, "File too large", "the same command goes on"];
    run(&mut with_room(command, blocks)).expect(1, &parts);
    run(command).expect(0, &[]);
}

#[test]
fn rows_go_on_when_there_is_room_again() {
    let pair = prepared();
    let score = |output| pair.score(&["in.jsonl", "--batch-size", "20", "-o", output]);
    run(&mut score("whole.jsonl")).expect(0, &[]);
    run(&mut with_room(&score("out.jsonl"), 60)).expect(1, &["cannot write out.jsonl: File too large"]);
    let (whole, part) =
        (fs::read(pair.path("whole.jsonl")).unwrap(), fs::read(pair.path("out.jsonl")).unwrap());
    assert!(part.len() > 20_000 && part.len() < whole.len() && whole.starts_with(&part), "{}", part.len());
    run(&mut score("out.jsonl")).expect(0, &["were there already"]);
    assert!(fs::read(pair.path("out.jsonl")).unwrap() == whole);
}

#[test]
fn a_shard_and_the_merged_file_go_on() {
    let pair = prepared();
    let mut whole = pair.score(&["in.jsonl", "-o", "whole.jsonl"]);
    run(&mut whole).expect(0, &[]);
    for (index, named) in [(0, "shard-00000-of-00002.jsonl"), (1, "shard-00001-of-00002.jsonl")] {
        let shard = format!("{index}/2");
        let mut score = pair.score(&["in.jsonl", "--batch-size", "20", "-o", "out", "--shard", &shard]);
        check_goes_on(&mut score, 30, named);
    }
    let mut merge = pair.run("merge", &["out", "-o", "merged.jsonl"]);
    run(&mut with_room(&merge, 60)).expect(1, &["cannot write merged.jsonl: File too large"]);
    assert!(!pair.path("merged.jsonl").exists());
    run(&mut merge).expect(0, &[]);
    assert!(fs::read(pair.path("merged.jsonl")).unwrap() == fs::read(pair.path("whole.jsonl")).unwrap());
}

#[test]
fn a_table_is_whole_or_not_there() {
    let pair = prepared();
    let score = |output| pair.score(&["in.jsonl", "--batch-size", "20", "-o", output]);
    run(&mut score("whole.parquet")).expect(0, &[]);
    // First there is no room for the rows, then, with all of them there, none for the table.
    check_goes_on(&mut score("out.parquet"), 60, "cannot write out.parquet.rows.jsonl");
    let whole = fs::read(pair.path("whole.parquet")).unwrap();
    assert!(fs::read(pair.path("out.parquet")).unwrap() == whole);
    run(&mut score("rows.jsonl")).expect(0, &[]);
    fs::rename(pair.path("rows.jsonl"), pair.path("late.parquet.rows.jsonl")).unwrap();
    fs::rename(pair.path("rows.jsonl.manifest.json"), pair.path("late.parquet.manifest.json")).unwrap();
    let files = || fs::read_dir(pair.dir.path()).unwrap().count();
    let before = files();
    run(&mut with_room(&score("late.parquet"), 16)).expect(1, &["cannot write late.parquet"]);
    assert_eq!(files(), before, "something was left behind");
    run(&mut score("late.parquet")).expect(0, &[]);
    assert!(fs::read(pair.path("late.parquet")).unwrap() == whole);
}

#[test]
fn standard_output_without_room_is_told() {
    let pair = prepared();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = pair.score(&["in.jsonl"]).stdout(full).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot write standard output: No space left on device"), "{told}");
}

#[test]
fn an_experiment_goes_on_when_there_is_room_again() {
    let pair = Pair::copy(CASE);
    let two_classes = |(row, line): (usize, &str)| {
        line.replace(&format!("\"label\": {row}}}"), &format!("\"label\": {}}}\n", row % 2))
    };
    pair.write("in.jsonl", rows(300).lines().enumerate().map(two_classes).collect::<String>());
    let compare = |output| {
        let args = ["--base", "base", "--tuned", "tuned", "in.jsonl", "--batch-size", "20"];
        let mut command = pair.run("compare", &args);
        command.args(["-o", output]);
        command
    };
    assert_eq!(compare("out").get_program(), OsStr::new(env!("CARGO_BIN_EXE_tuco")));
    run(&mut compare("whole")).expect(0, &[]);
    check_goes_on(&mut compare("out"), 40, "cannot write out/rows.jsonl");
    let rows = |output: &str| fs::read(pair.path(output).join("rows.jsonl")).unwrap();
    assert!(rows("out") == rows("whole"));
}
