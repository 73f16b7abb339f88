//! A pair four times as large as `--max-memory`, scored with it and without, by turns: the same bytes, times, and the most that
//! each process had in memory.
//!
//! `cargo bench --bench larger_than_memory`; it writes a random pair of 1.2 GB to the folder for temporary files. Linux. Where
//! it may make a control group (`TUCO_BENCH_CGROUP=/sys/fs/cgroup/memory`, version 1, as root), the process with
//! `--max-memory` is also run in one that holds no more than that and a quarter of it: then the system cannot keep the files in
//! its cache, and every batch reads them from the disk.

mod common;

use common::{Shape, write_pair};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const SHAPE: Shape = Shape {
    hidden_size: 768,
    intermediate_size: 2048,
    layers: 44,
    heads: 12,
    key_value_heads: 12,
    vocab_size: 4096,
};
const MAX_MEMORY: u64 = 300 << 20;
const PROMPTS: usize = 40;
const TOKENS: usize = 512;
const ROUNDS: usize = 2;

/// What a process took.
struct Took {
    seconds: f64,
    cpu: f64,
    peak: u64,
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_pair(dir.path(), &SHAPE);
    let prompt = |row: usize| -> String {
        let ids: Vec<usize> = (0..TOKENS).map(|at| (at * 7919 + row * 104_729) % SHAPE.vocab_size).collect();
        format!("{{\"token_ids\": {ids:?}}}\n")
    };
    fs::write(dir.path().join("in.jsonl"), (0..PROMPTS).map(prompt).collect::<String>()).expect("room");
    println!("{PROMPTS} prompts of {TOKENS} tokens, --max-memory {} MiB", MAX_MEMORY >> 20);
    let group = env::var_os("TUCO_BENCH_CGROUP").map(|groups| PathBuf::from(groups).join("tuco-bench"));
    for _ in 0..ROUNDS {
        let whole = score(dir.path(), "whole.jsonl", None, None);
        let limited = score(dir.path(), "limited.jsonl", Some(MAX_MEMORY), None);
        told("all in memory", &whole, &whole);
        told("--max-memory", &limited, &whole);
        if let Some(group) = &group {
            told("--max-memory, from the disk", &in_group(dir.path(), group), &whole);
        }
        let bytes = |name: &str| fs::read(dir.path().join(name)).expect("rows");
        assert!(bytes("whole.jsonl") == bytes("limited.jsonl"), "--max-memory changed a bit");
    }
}

fn told(name: &str, took: &Took, whole: &Took) {
    let Took { seconds, cpu, peak } = took;
    println!(
        "{name}: {cpu:.1} s of CPU time ({:.2} of the speed), {seconds:.1} s by the clock ({:.2}), {} MiB",
        whole.cpu / cpu,
        whole.seconds / seconds,
        peak >> 20
    );
}

/// Scores in a control group that keeps the files out of the system's cache.
fn in_group(dir: &Path, group: &Path) -> Took {
    fs::create_dir_all(group).expect("a control group");
    fs::write(group.join("memory.limit_in_bytes"), (MAX_MEMORY / 4 * 5).to_string()).expect("a limit");
    for model in ["base", "tuned"] {
        for file in fs::read_dir(dir.join(model)).expect("a model").flatten() {
            // dd tells the system to forget a file of which it copies nothing.
            let file = format!("of={}", file.path().display());
            let forget = ["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none", &file];
            Command::new("dd").args(forget).stdin(Stdio::null()).status().expect("dd");
        }
    }
    let took = score(dir, "limited.jsonl", Some(MAX_MEMORY), Some(group));
    fs::remove_dir(group).expect("nothing is left in it");
    took
}

/// Scores in a process of its own.
fn score(dir: &Path, output: &str, max_memory: Option<u64>, group: Option<&Path>) -> Took {
    // The shell joins the group before it becomes the program.
    let join = group.map_or(String::new(), |group| format!("echo $$ > {}/cgroup.procs; ", group.display()));
    let mut command = Command::new("sh");
    command.current_dir(dir).arg("-c").arg(format!("{join}exec \"$0\" \"$@\""));
    command
        .arg(env!("CARGO_BIN_EXE_tuco"))
        .args(["score", "--base", "base", "--tuned", "tuned", "in.jsonl", "-q"]);
    command.args(["-o", output, "--overwrite"]);
    if let Some(bytes) = max_memory {
        command.arg(format!("--max-memory={}M", bytes >> 20));
    }
    let start = Instant::now();
    let mut child = command.spawn().expect("it starts");
    let (mut cpu, mut peak) = (0.0, 0);
    let status = loop {
        // What the process has used by now, as long as it is there.
        (cpu, peak) = used(child.id()).unwrap_or((cpu, peak));
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    Took { seconds: start.elapsed().as_secs_f64(), cpu, peak }
}

/// CPU seconds of a process and the most it had in memory.
fn used(process: u32) -> Option<(f64, u64)> {
    /// Ticks of `/proc` in a second, the same on all Linux systems in use.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(((ticks(11)? + ticks(12)?) / TICKS, peak << 10))
}
