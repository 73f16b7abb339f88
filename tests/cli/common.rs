//! What the tests of the command line share: the program, small checkpoints to break, JSON lines.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
#[cfg(unix)]
use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

pub fn tuco() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tuco"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TUCO_")) {
        command.env_remove(name);
    }
    command.env("HF_HUB_CACHE", "/nonexistent");
    command
}

pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// The files of a folder in a new one.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A folder with a copy of a golden pair (`base`, `tuned`, adapters) that a test may break.
pub struct Pair {
    pub dir: tempfile::TempDir,
}

impl Pair {
    pub fn copy(case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let has = |side: &&str| golden(case).join(side).exists();
        for side in ["base", "tuned", "adapter", "base_adapter"].into_iter().filter(has) {
            copy_folder(&golden(case).join(side), &dir.path().join(side));
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut serde_json::Value)) {
        let mut json = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut json);
        self.write(name, json.to_string());
    }

    /// Changes the bytes of a file.
    pub fn edit_bytes(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap();
        edit(&mut bytes);
        self.write(name, bytes);
    }

    /// Rewrites the header of a safetensors file; `edit` gets it as JSON, the data stay.
    pub fn edit_header(
        &self,
        name: &str,
        edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
    ) {
        let bytes = fs::read(self.path(name)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: serde_json::Map<_, _> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        edit(&mut header);
        let text = serde_json::to_vec(&header).unwrap();
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text);
        out.extend(&bytes[8 + length..]);
        self.write(name, out);
    }

    /// `tuco score` with this pair, in its folder.
    pub fn score(&self, args: &[&str]) -> Command {
        let mut command = self.run("score", &["--base", "base", "--tuned", "tuned"]);
        command.args(["--threads", "2"]).args(args);
        command
    }

    /// A subcommand, in the pair's folder.
    pub fn run(&self, subcommand: &str, args: &[&str]) -> Command {
        let mut command = tuco();
        command.current_dir(self.dir.path()).arg(subcommand).args(args);
        command
    }
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(command: &mut Command) -> Ran {
    Ran::of(command.output().unwrap())
}

/// Runs it until the file is as long as is wanted, then sends SIGTERM.
#[cfg(unix)]
#[track_caller]
pub fn stop_when(command: &mut Command, file: &Path, is_wanted: impl Fn(u64) -> bool) -> Ran {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !is_wanted(fs::metadata(file).map_or(0, |metadata| metadata.len())) {
        assert!(started.elapsed() < Duration::from_secs(20), "nothing was written");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    Ran::of(child.wait_with_output().unwrap())
}

impl Ran {
    fn of(Output { status, stdout, stderr }: Output) -> Self {
        Self {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Checks the exit code and that all of `parts` are told on standard error.
    #[track_caller]
    pub fn expect(self, code: i32, parts: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not told in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub fn rows(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Where `part` is in `bytes`, for the first time.
pub fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

/// Rows of token ids, `{"id": "r0", "token_ids": […]}`.
pub fn rows(count: usize) -> String {
    (0..count)
        .map(|row| {
            let ids: Vec<usize> = (0..1 + row * 7 % 23).map(|i| (row * 5 + i * 3) % 50).collect();
            format!("{{\"id\": \"r{row}\", \"token_ids\": {ids:?}, \"label\": {row}}}\n")
        })
        .collect()
}

/// Where a tensor of this type lies among the bytes of a safetensors file.
pub fn place_of(name: &str, dtype: &str, bytes: &[u8]) -> std::ops::Range<usize> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[name]["dtype"], dtype, "{name}");
    let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap() as usize);
    8 + length + start..8 + length + end
}

/// Scores the prompts of a golden case and compares TuCo with its gold.
#[track_caller]
pub fn agrees(case: &str, args: &[&str]) {
    let pair = Pair::copy(case);
    let gold: serde_json::Value =
        serde_json::from_slice(&fs::read(golden(case).join("gold.json")).unwrap()).unwrap();
    let prompts = gold["prompts"].as_array().unwrap();
    let lines: String = prompts.iter().map(|p| format!("{{\"token_ids\": {}}}\n", p["token_ids"])).collect();
    pair.write("in.jsonl", lines);
    let ran = run(pair.run("score", args).arg("in.jsonl")).expect(0, &[]);
    for (row, prompt) in ran.rows().iter().zip(prompts) {
        let (found, expected) = (row["tuco"].as_f64().unwrap(), prompt["tuco"].as_f64().unwrap());
        assert!((found / expected - 1.0).abs() < 3e-6, "{found}, gold {expected}");
    }
}
