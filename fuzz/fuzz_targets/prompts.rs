//! Any bytes as rows: every line becomes a row with its number, or an error of the row; one JSON array in the place of lines is refused.
#![no_main]
use libfuzzer_sys::fuzz_target;
use std::fs;
use tuco::prompt::Source;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["rows.jsonl", "rows.txt"] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("written");
        let Ok(source) = Source::open(&[path]) else { continue };
        let rows = source.count_lines().expect("counted");
        let read = source.lines().map(|line| line.expect("a readable file")).count();
        assert_eq!(read as u64, rows);
    }
});
