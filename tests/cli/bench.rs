//! `tuco bench`.

use crate::common::{Pair, run, tuco};
use serde_json::Value;
use std::fs;

pub const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}"#;

#[test]
fn a_shape_is_timed_and_its_figures_are_written() {
    let folder = Pair::copy("llama_gqa_tied_bf16");
    let (config, output) = (folder.write("config.json", CONFIG), folder.path("out.json"));
    let text = run(tuco()
        .args(["bench", "--device", "cpu", "--tokens", "50", "--lengths", "20,7", "--repeat", "2"])
        .args(["--layers", "2", "--adapter-rank", "3", "--peak-tflops", "1", "--copy-rate", "10", "--shape"])
        .arg(&config)
        .arg("--output")
        .arg(&output))
    .expect(0, &[])
    .stdout;
    assert!(text.contains("2 layers, an adapter of rank 3: 54 tokens in 4 prompts"), "{text}");
    assert!(text.contains("| score |") && text.contains("| one forward pass |"), "{text}");
    let summary: Value = serde_json::from_slice(&fs::read(output).unwrap()).unwrap();
    assert_eq!(summary["timings"][0]["seconds"].as_array().unwrap().len(), 2);
    assert!(summary["timings"][0]["of_floor"].as_f64().unwrap() > 0.0);
}

#[test]
fn figures_that_cannot_be_written_are_shown_nevertheless() {
    let folder = Pair::copy("llama_gqa_tied_bf16");
    let config = folder.write("config.json", CONFIG);
    let bench = |output: &str| {
        let args =
            ["--device", "cpu", "--tokens", "20", "--lengths", "20", "--repeat", "1", "--output", output];
        run(folder.run("bench", &args).arg("--shape").arg(&config))
    };
    if cfg!(target_os = "linux") {
        let ran = bench("/dev/full").expect(1, &["cannot write /dev/full: No space left on device"]);
        assert!(ran.stdout.contains("| one forward pass |"), "{}", ran.stdout);
    }
    // What can be known before is no reason to measure.
    for (wrong, expected) in
        [("nowhere/out.json", "expected a file in a folder that is there"), ("base", "expected a file")]
    {
        let ran = bench(wrong).expect(2, &["-o", wrong, expected]);
        assert_eq!(ran.stdout, "");
    }
}

#[cfg(feature = "sim")]
#[test]
fn kernels_are_timed_one_by_one() {
    let folder = Pair::copy("llama_gqa_tied_bf16");
    let config = folder.write("config.json", CONFIG.replace("\"vocab", "\"head_dim\": 64, \"vocab"));
    for (target, kernels) in [
        (
            "sm_80",
            [
                "product_narrow_add 32 × 64 | 1",
                "attention_64 | 1",
                "key_score_bf16 | 4",
                "twin_mean_narrow_bf16 | 4",
                "contribution | 2",
            ],
        ),
        (
            "sm_90a",
            [
                "product_sm90_narrow_add 32 × 64 | 1",
                "attention_sm90_64 | 1",
                "key_score_sm90_64 | 4",
                "twin_mean_sm90_narrow_bf16 | 4",
                "contribution | 2",
            ],
        ),
    ] {
        let text = run(tuco()
            .args(["bench", "--device", "sim", "--tokens", "20", "--lengths", "20", "--repeat", "1"])
            .args(["--context-precision", "bfloat16", "--layers", "2", "--by-kernel", "--kernels", target])
            .arg("--shape")
            .arg(&config))
        .expect(0, &[])
        .stdout;
        for kernel in kernels {
            assert!(text.contains(&format!("| {kernel} |")), "{kernel}: {text}");
        }
    }
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let folder = Pair::copy("llama_gqa_tied_bf16");
    let config = folder.write("config.json", CONFIG);
    let shape = config.to_str().unwrap();
    let refused = |args: &[&str], parts: &[&str]| {
        run(tuco().arg("bench").args(args)).expect(2, parts);
    };
    refused(&["--shape", "llama-9"], &["llama-9", "llama-3-8b", "config.json"]);
    refused(&["--shape", shape, "--layers", "4"], &["--layers is 4", "1 to 3"]);
    refused(&["--shape", shape, "--copy-rate", "0"], &["--copy-rate", "above 0"]);
    refused(&["--shape", shape, "--tokens", "0"], &["--tokens"]);
    refused(&["--shape", shape, "--adapter-rank", "0"], &["--adapter-rank"]);
    let broken = folder.write("broken.json", r#"{"model_type": "llama"}"#);
    run(tuco().args(["bench", "--shape"]).arg(&broken)).expect(42, &["broken.json", "hidden_size"]);
}
