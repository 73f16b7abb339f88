//! Subcommands that are stopped: how they end, and that they leave nothing half done. A pipe in the place of a file makes the
//! program wait where the test wants it.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use crate::common::{Pair, Ran, rows, run};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const CASE: &str = "llama_gqa_tied_bf16";

/// Waits until `done` gives something.
#[track_caller]
fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// A program at work.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until it reads a pipe, whose other end this is.
    #[track_caller]
    fn reads(&mut self, pipe: &Path) -> File {
        // One that does not wait for a reader fails where there is none.
        let open = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe).ok();
        wait_for("the pipe has no reader", open)
    }

    fn stop(&mut self) {
        let status = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// The first line of standard error.
    fn told(&mut self) -> String {
        let mut line = String::new();
        BufReader::with_capacity(1, self.0.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    #[track_caller]
    fn end(mut self) -> Ran {
        let status = wait_for("it goes on", || self.0.try_wait().unwrap());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Ran { code: status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only where a test has failed it is still there.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_bench_says_that_nothing_was_measured() {
    let folder = Pair::copy(CASE);
    let (config, output) = (folder.path("config.json"), folder.path("out.json"));
    make_pipe(&config);
    let args =
        ["--device", "cpu", "--threads", "1", "--tokens", "50", "--lengths", "20", "--repeat", "100000"];
    let mut bench = folder.run("bench", &args);
    let mut bench = Running::start(bench.arg("--shape").arg(&config).arg("--output").arg(&output));
    bench.reads(&config).write_all(crate::bench::CONFIG.as_bytes()).unwrap();
    bench.stop();
    let ran = bench.end().expect(75, &["tuco: stopped; nothing was measured completely"]);
    assert_eq!(ran.stdout, "");
    assert!(!output.exists());
}

#[test]
fn a_stopped_inspect_ends_at_once() {
    let pair = Pair::copy(CASE);
    let config = pair.path("tuned/config.json");
    fs::remove_file(&config).unwrap();
    make_pipe(&config);
    let mut inspect = Running::start(&mut pair.run("inspect", &["--base", "base", "--tuned", "tuned"]));
    // It waits for the config, which never comes.
    let _pipe = inspect.reads(&config);
    inspect.stop();
    let ran = inspect.end().expect(75, &["tuco: stopped"]);
    assert_eq!(ran.stdout, "");
}

#[test]
fn a_stopped_merge_leaves_nothing() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(40));
    for shard in ["0/2", "1/2"] {
        run(&mut pair.score(&["in.jsonl", "-o", "out", "--shard", shard])).expect(0, &[]);
    }
    let part = pair.path("out/shard-00001-of-00002.jsonl");
    let lines = fs::read(&part).unwrap();
    fs::remove_file(&part).unwrap();
    make_pipe(&part);
    let files = || fs::read_dir(pair.dir.path()).unwrap().count();
    let before = files();
    for output in ["merged.jsonl", "merged.parquet"] {
        let mut merge = Running::start(&mut pair.run("merge", &["out", "-o", output]));
        let mut pipe = merge.reads(&part);
        pipe.write_all(&lines[..lines.len() / 2]).unwrap();
        merge.stop();
        let told = merge.told();
        assert!(told.contains("tuco: stopping"), "{told}");
        // If it was waiting for these, it stops when they are there; otherwise it has stopped.
        let _ = pipe.write_all(&lines[lines.len() / 2..]);
        drop(pipe);
        merge.end().expect(75, &["tuco: stopped; nothing was written"]);
        assert_eq!(files(), before, "{output}: something was left behind");
    }
    fs::remove_file(&part).unwrap();
    fs::write(&part, &lines).unwrap();
    run(&mut pair.run("merge", &["out", "-o", "merged.jsonl"])).expect(0, &["40 rows"]);
}
