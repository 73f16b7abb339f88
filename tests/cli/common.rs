//! What the tests of the command line share: the program, small checkpoints to break, JSON lines.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
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

/// A folder with a copy of a golden pair (`base`, `tuned`) that a test may break.
pub struct Pair {
    pub dir: tempfile::TempDir,
}

impl Pair {
    pub fn copy(case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for side in ["base", "tuned"] {
            fs::create_dir(dir.path().join(side)).unwrap();
            for entry in fs::read_dir(golden(case).join(side)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), dir.path().join(side).join(entry.file_name())).unwrap();
            }
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

    /// `tuco score` with this pair, in its folder.
    pub fn score(&self, args: &[&str]) -> Command {
        let mut command = tuco();
        command.current_dir(self.dir.path()).args([
            "score",
            "--base",
            "base",
            "--tuned",
            "tuned",
            "--threads",
            "2",
        ]);
        command.args(args);
        command
    }
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

impl Ran {
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

/// Rows of token ids, `{"id": "r0", "token_ids": […]}`.
pub fn rows(count: usize) -> String {
    (0..count)
        .map(|row| {
            let ids: Vec<usize> = (0..1 + row * 7 % 23).map(|i| (row * 5 + i * 3) % 50).collect();
            format!("{{\"id\": \"r{row}\", \"token_ids\": {ids:?}, \"label\": {row}}}\n")
        })
        .collect()
}
