//! A folder with inputs, and subcommands with the demo pair in it.

use crate::common::{Ran, run, tuco};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub fn demo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(name)
}

/// A folder with inputs, and experiments with the demo pair in it.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    pub fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        Self { dir }
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.run_to("out", args)
    }

    /// A subcommand with the demo pair and an output.
    pub fn run_to(&self, output: &str, args: &[&str]) -> Ran {
        let mut command = self.with_pair(args);
        run(command.args(["-o", output]))
    }

    /// The rows of `tuco score`.
    pub fn score(&self, args: &[&str]) -> Vec<Value> {
        run(&mut self.with_pair(&[&["score"], args].concat())).expect(0, &[]).rows()
    }

    /// A subcommand without a pair.
    pub fn plain(&self, args: &[&str]) -> Ran {
        run(tuco().current_dir(self.dir.path()).args(args))
    }

    /// A subcommand with the demo pair.
    pub fn with_pair(&self, args: &[&str]) -> Command {
        let mut command = self.with_pair_aloud(args);
        command.arg("--quiet");
        command
    }

    /// One that tells how far it is.
    pub fn with_pair_aloud(&self, args: &[&str]) -> Command {
        let mut command = tuco();
        command.current_dir(self.dir.path()).args(args).args(["--threads", "2"]);
        command.arg("--base").arg(demo("base")).arg("--tuned").arg(demo("tuned"));
        command
    }

    pub fn summary(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.path().join("out/summary.json")).unwrap()).unwrap()
    }

    pub fn rows(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("out/rows.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
