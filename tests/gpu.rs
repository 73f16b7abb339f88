//! What needs a GPU; where there is none, these tests are reported as ignored.

use libtest_mimic::{Arguments, Trial};
use std::path::{Path, PathBuf};
use tuco::{
    backend::cuda::{ContextPrecision, Cuda, Kernels},
    checkpoint::Pair,
    engine::{Engine, PackLimits, Score, unobserved},
    metrics,
};

fn golden(case: &str, side: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(side)
}

fn gpu(precision: ContextPrecision) -> Cuda {
    Cuda::open(0, precision, None).unwrap()
}

/// The ways to compute that this GPU has.
fn ways() -> impl Iterator<Item = (ContextPrecision, Kernels)> {
    let precisions = [ContextPrecision::Bfloat16, ContextPrecision::Float32].into_iter();
    let all = precisions.flat_map(|precision| [(precision, Kernels::Sm80), (precision, Kernels::Sm90a)]);
    all.filter(|(precision, kernels)| Cuda::open(0, *precision, Some(*kernels)).is_ok())
}

fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths.iter().map(|len| (0..*len).map(|i| (i * 17 + i * i + len) as u32 % 50).collect()).collect()
}

fn slices(prompts: &[Vec<u32>]) -> Vec<&[u32]> {
    prompts.iter().map(Vec::as_slice).collect()
}

const CASES: [&str; 6] =
    ["llama_gqa_tied_bf16", "gemma2", "gemma3_layer_types", "qwen3_moe", "phi3_longrope", "gpt2"];

fn a_gpu_agrees_with_the_cpu() {
    let cuda = gpu(ContextPrecision::Float32);
    let ids = prompts(&[1, 2, 19, 64, 130]);
    for case in CASES {
        let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
        let tuco = |scores: Vec<Score>| -> Vec<f64> {
            scores.iter().map(|score| metrics::tuco(*score.running.last().unwrap())).collect()
        };
        let found = tuco(Engine::new(&cuda, &pair).score(&slices(&ids), &unobserved).unwrap());
        let cpu = tuco::backend::cpu::Cpu::new();
        let expected = tuco(Engine::new(&cpu, &pair).score(&slices(&ids), &unobserved).unwrap());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found / expected - 1.0).abs() < 1e-4, "{case}: {found}, cpu {expected}");
        }
    }
}

fn batch_order_and_residence_change_no_bit_on_a_gpu() {
    for (precision, kernels) in ways() {
        let open = || Cuda::open(0, precision, Some(kernels)).unwrap();
        let (streamed, resident) = (open(), open().with_resident_weights(true));
        let ids = prompts(&[70, 1, 140, 2, 9, 64]);
        for case in CASES {
            let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
            let alone = ids.iter().map(|ids| Engine::new(&streamed, &pair).score(&[ids], &unobserved));
            let alone: Vec<Score> = alone.map(|scores| scores.unwrap().remove(0)).collect();
            let engine = Engine::new(&resident, &pair).with_limits(PackLimits { tokens: 200, sequences: 3 });
            let reversed: Vec<&[u32]> = ids.iter().rev().map(Vec::as_slice).collect();
            for _ in 0..2 {
                let mut together = engine.score(&reversed, &unobserved).unwrap();
                together.reverse();
                assert_eq!(together, alone, "{case}, {precision:?}, {kernels:?}");
            }
        }
    }
}

fn a_machine_without_a_gpu_says_so() {
    let error = Cuda::open(0, ContextPrecision::Float32, None).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, tuco::ErrorKind::Device);
    assert!(error.message.contains("NVIDIA driver"), "{error}");
}

fn main() {
    let missing = Cuda::open(0, ContextPrecision::Float32, None).err();
    if let Some(error) = &missing {
        println!("tests that need a GPU are ignored: {error}");
    }
    let tests: [(&str, fn(), bool); 3] = [
        ("a_gpu_agrees_with_the_cpu", a_gpu_agrees_with_the_cpu, true),
        (
            "batch_order_and_residence_change_no_bit_on_a_gpu",
            batch_order_and_residence_change_no_bit_on_a_gpu,
            true,
        ),
        ("a_machine_without_a_gpu_says_so", a_machine_without_a_gpu_says_so, false),
    ];
    let trial = |(name, test, needs_gpu): (&str, fn(), bool)| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(needs_gpu != missing.is_none())
    };
    libtest_mimic::run(&Arguments::from_args(), tests.into_iter().map(trial).collect()).exit();
}
