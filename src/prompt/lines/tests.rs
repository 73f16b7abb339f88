use std::{fs, path::PathBuf};

use serde_json::json;

use super::*;
use crate::{
    error::ErrorKind,
    prompt::{Content, Source},
};

/// Files in a directory that is gone with it.
struct Files {
    dir: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Files {
    fn new<B: AsRef<[u8]>>(files: &[(&str, B)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = files.iter().map(|(name, bytes)| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            path
        });
        Self { paths: paths.collect(), dir }
    }

    fn source(&self) -> Source {
        Source::open(&self.paths).unwrap()
    }

    /// All lines, after checking that the source counts as many.
    fn lines(&self) -> Vec<Line> {
        let source = self.source();
        let lines: Vec<Line> = source.lines().map(Result::unwrap).collect();
        assert_eq!(source.count_lines().unwrap(), lines.len() as u64);
        lines
    }

    /// A message with the directory taken out.
    fn shorten(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn prompt(line: &Line) -> &str {
    match line.content.as_ref().unwrap() {
        Content::Prompt(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_are_numbered_over_all_inputs_and_blank_ones_are_skipped() {
    let files = Files::new(&[
        ("a.jsonl", "\u{feff}\n{\"prompt\": \"one\"}\r\n  \t\r\n{\"prompt\": \"two\", \"id\": \"b\"}"),
        ("empty.ndjson", ""),
        ("b.TXT", "\u{feff} three \r\n\n\r\nfour"),
    ]);
    let lines = files.lines();
    let ids: Vec<String> = lines.iter().map(|line| line.id.to_string()).collect();
    let prompts: Vec<&str> = lines.iter().map(prompt).collect();
    assert_eq!(ids, ["2", "\"b\"", "5", "8"]);
    assert_eq!(prompts, ["one", "two", " three ", "four"]);
    assert_eq!(lines[3].number, 8);
}

#[test]
fn a_byte_order_mark_counts_only_at_the_start_of_a_file() {
    let files = Files::new(&[("a.txt", "\u{feff}one\n\u{feff}two"), ("b.txt", "\u{feff}\u{feff}")]);
    let prompts: Vec<String> = files.lines().iter().map(|line| prompt(line).to_owned()).collect();
    assert_eq!(prompts, ["one", "\u{feff}two", "\u{feff}"]);
}

#[test]
fn part_of_a_byte_order_mark_is_a_row_of_its_own() {
    for bytes in [b"\xef\n\xbb\xbb".as_slice(), b"\xef\xbb\n\xbf", b"\xefx\n1"] {
        assert_eq!(Files::new(&[("a.txt", bytes)]).lines().len(), 2, "{bytes:?}");
    }
    for bytes in [b"\xef".as_slice(), b"\xef\xbb"] {
        assert_eq!(Files::new(&[("a.txt", bytes)]).lines().len(), 1, "{bytes:?}");
    }
}

#[test]
fn bad_lines_name_file_and_line_and_the_rest_is_read() {
    let bytes: Vec<u8> = [
        b"{\"prompt\"}\n".as_slice(),
        b"{\"prompt\": \"\xff\"}\n",
        b"{\"id\": 7}\n\n",
        b"{\"prompt\": \"ok\"}",
    ]
    .concat();
    let files = Files::new(&[("first.txt", b"x\n".to_vec()), ("bad.jsonl", bytes)]);
    let lines = files.lines();
    let errors: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            Some(format!("{} {}", line.id, files.shorten(&line.content.as_ref().err()?.to_string())))
        })
        .collect();
    assert_eq!(
        errors,
        [
            "2 invalid_json: bad.jsonl:1: not valid JSON at column 10: expected `:`",
            "3 invalid_utf8: bad.jsonl:2: not valid UTF-8 at byte 13",
            "7 invalid_row: bad.jsonl:3: none of prompt, messages and token_ids is given",
        ]
    );
    assert_eq!(prompt(&lines[4]), "ok");
}

#[test]
fn invalid_utf8_in_a_text_file_is_that_line_s_error() {
    let lines = Files::new(&[("a.txt", b"good\n\xc3\x28\ngood".as_slice())]).lines();
    assert_eq!(lines[1].content.as_ref().unwrap_err().kind, RowErrorKind::InvalidUtf8);
    assert_eq!(prompt(&lines[2]), "good");
}

#[test]
fn a_second_use_of_an_id_names_the_first() {
    let files = Files::new(&[
        ("a.jsonl", "{\"prompt\": \"p\"}\n{\"prompt\": \"p\", \"id\": \"x\"}\n"),
        (
            "b.jsonl",
            "\n{\"prompt\": \"p\", \"id\": \"x\", \"label\": 3}\n{\"prompt\": \"p\", \"id\": 1}\n{\"prompt\": 1, \"id\": \"x\"}",
        ),
    ]);
    let lines = files.lines();
    let error = |line: usize| files.shorten(&lines[line].content.as_ref().unwrap_err().to_string());
    assert_eq!(error(2), "duplicate_id: b.jsonl:2: id \"x\" was used before, at a.jsonl:2");
    assert_eq!(error(3), "duplicate_id: b.jsonl:3: id 1 was used before, at a.jsonl:1");
    assert_eq!(error(4), "invalid_row: b.jsonl:4: prompt must be a string, found an integer");
    assert_eq!((&lines[2].id, &lines[2].label), (&json!("x"), &Some(json!(3))));
}

#[test]
fn unknown_fields_are_told_once_each_and_not_without_end() {
    let row = |fields: &str| format!("{{\"prompt\": \"p\"{fields}}}\n");
    let many: String = (0..50).map(|index| row(&format!(", \"key{index}\": 1"))).collect();
    let files =
        Files::new(&[("a.jsonl", row(", \"promt\": 1, \"response\": 2") + &row(", \"promt\": 1") + &many)]);
    let source = files.source();
    let mut lines = source.lines();
    assert!(lines.next().unwrap().unwrap().content.is_ok());
    let warnings = lines.take_warnings();
    assert_eq!(warnings.len(), 2);
    assert!(
        files.shorten(&warnings[0]).starts_with("a.jsonl:1: unknown field \"promt\" is ignored"),
        "{}",
        warnings[0]
    );
    assert!(lines.next().unwrap().unwrap().content.is_ok());
    assert!(lines.take_warnings().is_empty());
    assert_eq!(lines.by_ref().count(), 50);
    let warnings = lines.take_warnings();
    assert_eq!(warnings.len(), MAX_TOLD_FIELDS - 2 + 1);
    assert!(warnings.last().unwrap().ends_with("further unknown fields are ignored and not told"));
}

#[test]
fn a_line_too_long_for_memory_is_one_error_row() {
    let fits = "a".repeat(MAX_LINE_BYTES);
    let blank = " ".repeat(MAX_LINE_BYTES + 1);
    let files = Files::new(&[("a.txt", format!("{fits}\n{fits}aa\n{blank}x\nlast"))]);
    let lines = files.lines();
    assert_eq!(prompt(&lines[0]), fits);
    for line in &lines[1..3] {
        let error = line.content.as_ref().unwrap_err();
        assert_eq!(error.kind, RowErrorKind::InvalidRow);
        assert!(error.message.ends_with("the line is longer than 1024 bytes"), "{error}");
    }
    assert_eq!((lines[3].number, prompt(&lines[3])), (4, "last"));
}

#[test]
fn inputs_that_cannot_be_read_are_named() {
    let files = Files::new(&[("a.jsonl", "")]);
    let open = |path: PathBuf| Source::open(&[files.paths[0].clone(), path]).unwrap_err();
    let missing = files.dir.path().join("missing.jsonl");
    for (path, part) in [(missing.clone(), "cannot read"), (files.dir.path().to_owned(), "is a directory")] {
        let error = open(path.clone());
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(
            error.message.contains(part) && error.message.contains(&path.display().to_string()),
            "{error}"
        );
    }
    assert_eq!(Source::open(&[]).unwrap_err().kind, ErrorKind::Usage);
    let twice = Source::open(&["-".into(), "-".into()]).unwrap_err();
    assert!(twice.message.contains("given twice"), "{twice}");
}

#[test]
fn a_file_that_goes_away_ends_the_lines_with_an_error() {
    let files = Files::new(&[("a.txt", "a\n"), ("b.txt", "b\n")]);
    let source = files.source();
    fs::remove_file(&files.paths[1]).unwrap();
    let mut lines = source.lines();
    assert!(lines.next().unwrap().is_ok());
    assert!(lines.next().unwrap().unwrap_err().message.contains("b.txt"));
    assert!(lines.next().is_none());
}

#[test]
fn fingerprints_are_formats_and_hashes_of_the_bytes() {
    let files = Files::new(&[("a.jsonl", "abc"), ("b.txt", "")]);
    let fingerprints = files.source().fingerprints().unwrap();
    assert_eq!(fingerprints[0].0, files.paths[0].display().to_string());
    assert_eq!(fingerprints[0].1, "jsonl:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(fingerprints[1].1, "txt:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

/// A pipe can be read once; the source can be read as often as one likes, by several readers at a time.
#[cfg(unix)]
#[test]
fn what_can_be_read_only_once_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let text: String = (0..3000).map(|index| format!("{{\"prompt\": \"{index}\"}}\n\n")).collect();
    let writer = std::thread::spawn({
        let (path, text) = (path.clone(), text.clone());
        move || fs::write(path, text).unwrap()
    });
    let source = Source::open(&[path]).unwrap();
    writer.join().unwrap();
    let (mut one, mut two) = (source.lines(), source.lines());
    for index in 0..3000 {
        for lines in [&mut one, &mut two] {
            assert_eq!(prompt(&lines.next().unwrap().unwrap()), index.to_string());
        }
    }
    assert!(one.next().is_none());
    assert_eq!(source.count_lines().unwrap(), 3000);
    assert_eq!(source.fingerprints().unwrap()[0].1.len(), "jsonl:".len() + 64);
}

/// Quoted line breaks, ids, JSON in cells, empty cells; rows of another width and other bytes are error rows.
#[test]
fn tables_in_csv_are_rows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in.csv");
    let text = b"\xef\xbb\xbfid,goal,messages,meta,label\n7,\"two\nlines, quoted\",,\"{\"\"a\"\": 1}\",x\n\
                 b,,\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"hi\"\"}]\",,\n1,2\nc,\xff,,,\n007,last,,,\n";
    fs::write(&path, text).unwrap();
    let source = Source::open(std::slice::from_ref(&path)).unwrap();
    let lines = source.lines().with_prompts_in(Some("goal"));
    let lines: Vec<Line> = lines.map(Result::unwrap).collect();
    assert_eq!((source.count_lines().unwrap(), lines.len()), (5, 5));
    assert_eq!(lines[0].content, Ok(Content::Prompt("two\nlines, quoted".into())));
    assert_eq!((&lines[0].id, &lines[0].meta), (&json!(7), &Some(json!({"a": 1}))));
    assert_eq!((&lines[0].label, &lines[1].label), (&Some(json!("x")), &None));
    assert_eq!(lines[1].content, Ok(Content::Messages(vec![json!({"role": "user", "content": "hi"})])));
    let told = [2, 3].map(|row: usize| lines[row].content.as_ref().unwrap_err().message.as_str());
    assert!(told[0].ends_with("the row has 2 cells, expected 5"), "{}", told[0]);
    assert!(told[1].ends_with("the cell of column goal is not valid UTF-8"), "{}", told[1]);
    assert_eq!((&lines[4].id, &lines[4].content), (&json!("007"), &Ok(Content::Prompt("last".into()))));
    fs::write(&path, "prompt\na\n\"b\nc\n").unwrap();
    let source = Source::open(std::slice::from_ref(&path)).unwrap();
    let lines: Vec<Line> = source.lines().map(Result::unwrap).collect();
    assert_eq!((source.count_lines().unwrap(), lines.len()), (2, 2));
    let told = &lines[1].content.as_ref().unwrap_err().message;
    assert!(told.ends_with("a quote that opens in this row is not closed"), "{told}");
    fs::write(&path, "prompt,\"x\na,b\n").unwrap();
    let told = Source::open(std::slice::from_ref(&path)).unwrap().count_lines().unwrap_err().message;
    assert!(told.contains("a quote of the first row is not closed"), "{told}");
    fs::write(&path, "").unwrap();
    assert_eq!(Source::open(std::slice::from_ref(&path)).unwrap().count_lines().unwrap(), 0);
    fs::write(&path, "a,a\n").unwrap();
    let told = Source::open(&[path]).unwrap().count_lines().unwrap_err().message;
    assert!(told.contains("two columns are called \"a\""), "{told}");
}

#[test]
fn what_is_no_lines_is_told() {
    let files = Files::new(&[("a.json", " [\n  {\"prompt\": \"a\"}\n]"), ("a.jsonl.gz", "\u{1f}")]);
    let told = |path: &PathBuf| Source::open(std::slice::from_ref(path)).unwrap_err().message;
    assert!(told(&files.paths[0]).contains("is one JSON array"), "{}", told(&files.paths[0]));
    assert!(told(&files.paths[1]).contains("is compressed"), "{}", told(&files.paths[1]));
    // One line alone that is an array is a bad row.
    let files = Files::new(&[
        ("a.jsonl", "[ 1, 2]\n{\"prompt\": \"a\"}\n"),
        ("b.jsonl", "[{\"prompt\": \"a\"},\n{\"prompt\": \"b\"}]\n"),
    ]);
    assert!(Source::open(&files.paths[..1]).is_ok());
    assert!(told(&files.paths[1]).contains("is one JSON array"));
}
