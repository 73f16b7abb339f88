//! What is said where there is no NVIDIA driver, or one that does not come far, and how the host goes about one that does:
//! `tests/driver/libcuda.c` instead of it.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A driver of ours, under the first of the names that are looked for.
fn driver(dir: &Path) -> PathBuf {
    let library = dir.join("libcuda.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/libcuda.c");
    let options = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"];
    let built = Command::new("cc").args(options).args([&library, &source]).status();
    assert!(built.unwrap().success());
    library
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// The program with the demo pair, and with what is in `libraries` as the driver.
fn tuco(libraries: &Path, scene: &str, subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tuco"));
    command.args([subcommand, "--base"]).arg(demo().join("base")).arg("--tuned").arg(demo().join("tuned"));
    command.env("LD_LIBRARY_PATH", libraries).env("DRIVER", scene).env_remove("CUDA_VISIBLE_DEVICES");
    command
}

/// Scores a prompt.
fn scored(libraries: &Path, scene: &str, device: &str, visible: Option<&str>) -> Output {
    let mut command = tuco(libraries, scene, "score");
    let prompts = libraries.join("prompts.txt");
    std::fs::write(&prompts, "for it as was\n").unwrap();
    command.arg(prompts).args(["--threads", "1", "--device", device]);
    visible.iter().for_each(|devices| {
        command.env("CUDA_VISIBLE_DEVICES", devices);
    });
    command.output().unwrap()
}

/// The rows of the demo's prompts and what was said, with so many bytes of the device's memory.
fn scored_in(libraries: &Path, scene: &str, memory: usize) -> (Vec<Value>, Output) {
    let mut command = tuco(libraries, scene, "score");
    command.arg(demo().join("prompts.jsonl")).args(["--device", "cuda"]);
    let output = command.env("MEMORY", memory.to_string()).output().unwrap();
    let rows = String::from_utf8_lossy(&output.stdout);
    (rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect(), output)
}

const COMPUTING: [&str; 2] = ["computes", "computes on Hopper"];

/// Whether there is a real one, which `LD_LIBRARY_PATH` alone does not hide.
fn has_driver() -> bool {
    let cache = Command::new("ldconfig").arg("-p").output();
    cache.is_ok_and(|cache| String::from_utf8_lossy(&cache.stdout).contains("libcuda.so.1"))
}

#[test]
fn what_keeps_a_gpu_from_computing_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    driver(dir.path());
    let scenes = [
        ("no device", None, "the NVIDIA driver shows no GPU"),
        ("no device", Some(""), "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is \"\")"),
        ("none visible", Some("7"), "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is \"7\")"),
        ("does not start", None, "the NVIDIA driver does not start: unknown error (CUDA_ERROR_UNKNOWN)"),
        (
            "old driver",
            None,
            "the NVIDIA driver is for CUDA 12.8; the kernels need one for CUDA 13.0 (580) or newer",
        ),
        ("old GPU", None, "cuda:0, GPU of a test, has compute capability 7.5; 8.0 (Ampere) is the least"),
        ("no memory", None, "the GPU cannot be used: out of memory (CUDA_ERROR_OUT_OF_MEMORY)"),
        (
            "",
            None,
            "the GPU cannot load the kernels: no kernel image is available (CUDA_ERROR_NO_BINARY_FOR_GPU)",
        ),
    ];
    for (scene, visible, sentence) in scenes {
        let asked = scored(dir.path(), scene, "cuda", visible);
        let stderr = String::from_utf8_lossy(&asked.stderr);
        assert_eq!(asked.status.code(), Some(1), "{scene}: {stderr}");
        // The driver would go on with what was made and not given back.
        assert!(stderr.trim_end().ends_with(sentence) && asked.stdout.is_empty(), "{scene}: {stderr}");

        let auto = scored(dir.path(), scene, "auto", visible);
        let stderr = String::from_utf8_lossy(&auto.stderr);
        assert!(auto.status.success() && !auto.stdout.is_empty(), "{scene}: {stderr}");
        assert!(stderr.contains(&format!("tuco: device: cpu ({sentence})\n")), "{scene}: {stderr}");
        assert!(!stderr.contains("driver: "), "{scene}: {stderr}");
    }
    let beyond = scored(dir.path(), "", "cuda:3", None);
    let stderr = String::from_utf8_lossy(&beyond.stderr);
    assert_eq!(beyond.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--device cuda:3: the driver shows 1 GPUs, from cuda:0"), "{stderr}");
}

#[test]
fn a_machine_without_a_driver_says_so() {
    if has_driver() {
        println!("there is a driver");
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let asked = scored(empty.path(), "", "cuda", None);
    let stderr = String::from_utf8_lossy(&asked.stderr);
    assert_eq!(asked.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("there is no NVIDIA driver (libcuda.so.1) on this machine"), "{stderr}");
}

/// The driver says what it was asked for against its rules, and what it was not given back. Its kernels do nothing, so scores are 0.
#[test]
fn the_host_keeps_the_driver_s_rules() {
    let dir = tempfile::tempdir().unwrap();
    driver(dir.path());
    let (prompts, questions) = (demo().join("prompts.jsonl"), dir.path().join("questions.jsonl"));
    let question = r#"{"prompt": "Is it so?", "choices": ["yes", "no"], "label": "no"}"#;
    std::fs::write(&questions, [question; 6].join("\n")).unwrap();
    let runs: [(&str, &Path, &[&str]); 6] = [
        ("score", &prompts, &["--layers", "--output-co"]),
        ("score", &prompts, &["--resident", "off", "--batch-size", "7"]),
        ("generate", &prompts, &["--limit", "3", "--max-new-tokens", "40", "--tuco", "--alpha", "0.5"]),
        ("jailbreak", &prompts, &["--limit", "4", "--n", "3", "--max-new-tokens", "5"]),
        ("sweep", &questions, &["--alphas", "0,1,1.2", "--folds", "2", "--resident", "off"]),
        ("trace", Path::new("for it as was"), &[]),
    ];
    for scene in COMPUTING {
        for (subcommand, input, options) in &runs {
            let mut command = tuco(dir.path(), scene, subcommand);
            let to = dir.path().join("results");
            command.arg(input).args(["--device", "cuda", "--overwrite", "-o"]).arg(&to).args(*options);
            let output = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{scene}, {subcommand}: {stderr}");
            assert!(
                stderr.contains("tuco: device: cuda:0 (GPU of a test)"),
                "{scene}, {subcommand}: {stderr}"
            );
            assert!(!stderr.contains("driver: "), "{scene}, {subcommand}: {stderr}");
            let _ = std::fs::remove_file(&to).or_else(|_| std::fs::remove_dir_all(&to));
        }
    }
}

#[test]
fn what_memory_does_not_hold_at_once_is_scored_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    driver(dir.path());
    for scene in COMPUTING {
        let (all, _) = scored_in(dir.path(), scene, 1 << 30);
        assert!(all.len() > 100 && all.iter().all(|row| row["tuco"] == 0.0), "{scene}: {} rows", all.len());
        let (rows, output) = scored_in(dir.path(), scene, 5 << 20);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !stderr.contains("driver: "), "{scene}: {stderr}");
        assert!(stderr.contains("weights brought layer by layer"), "{scene}: {stderr}");
        let warnings = stderr.matches("going on with as few tokens at once as it holds").count();
        assert_eq!((rows, warnings), (all, 1), "{scene}: {stderr}");

        // A layer alone is too much: a run may find more memory next time.
        let (rows, output) = scored_in(dir.path(), scene, 1 << 20);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), rows.len()), (Some(1), 0), "{scene}: {stderr}");
        assert!(
            stderr.contains("does not fit alone: cuda:0 (GPU of a test): the GPU cannot allocate"),
            "{scene}: {stderr}"
        );
        assert!(!stderr.contains("driver: "), "{scene}: {stderr}");
    }
}
