//! What is said where there is no NVIDIA driver, or one that does not come far: `tests/driver/libcuda.c` instead of it.
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A driver of ours, under the first of the names that are looked for.
fn driver(dir: &Path) -> PathBuf {
    let library = dir.join("libcuda.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/libcuda.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.unwrap().success());
    library
}

/// Scores a prompt of the demo pair with what is in `libraries` as the driver.
fn scored(libraries: &Path, scene: &str, device: &str, visible: Option<&str>) -> Output {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tuco"));
    command.arg("score").arg("--base").arg(demo.join("base")).arg("--tuned").arg(demo.join("tuned"));
    let prompts = libraries.join("prompts.txt");
    std::fs::write(&prompts, "for it as was\n").unwrap();
    command.arg(prompts).args(["--threads", "1", "--device", device]);
    command.env("LD_LIBRARY_PATH", libraries).env("DRIVER", scene).env_remove("CUDA_VISIBLE_DEVICES");
    visible.iter().for_each(|devices| {
        command.env("CUDA_VISIBLE_DEVICES", devices);
    });
    command.output().unwrap()
}

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
