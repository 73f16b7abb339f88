//! Every golden pair (tests/golden/, made by `transformers` in float64) on both backends.

#[path = "common/gold.rs"]
mod gold;

use gold::{OutputCo, check, numbers, open};
use serde_json::Value;
use std::{fs, path::Path};
use tuco::{
    backend::{Backend, cpu::Cpu, reference::Reference},
    engine::{Engine, Generation, Prompt, Tokens, unheard, unobserved},
    metrics,
};

/// Largest relative error allowed. What is left on `reference` (f64) are the float32 rotary tables, which
/// `transformers` takes from other library functions; on `cpu` comes the rounding of context rows to f32.
const CPU_TOLERANCE: f64 = 3e-6;
const REFERENCE_TOLERANCE: f64 = 1e-6;

/// Steering and traces take all rows through both branches in f32 on `cpu` (traces where TuCo is not small): their rounding is
/// not common, and logits have no f64 rows in them.
const CPU_ALL_ROWS_TOLERANCE: f64 = 1e-5;

#[test]
fn cpu_agrees_with_transformers() {
    check(&Cpu::new(), OutputCo::Absolutely, |_| Some(CPU_TOLERANCE));
}

#[test]
fn reference_agrees_with_transformers() {
    check(&Reference, OutputCo::Absolutely, |_| Some(REFERENCE_TOLERANCE));
}

/// Context rows have the 24 bits of f32 in three bf16 numbers, and tensor cores add up in f32.
#[cfg(feature = "sim")]
fn simulator_tolerance(case: &str) -> f64 {
    if gold::LIGHT.contains(&case) { 1e-3 } else { 3e-5 }
}

#[cfg(feature = "sim")]
#[test]
fn cuda_on_the_simulator_agrees_with_transformers() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    let cuda = Cuda::simulated(ContextPrecision::Float32, Kernels::Sm80);
    check(&cuda, OutputCo::Relatively, |case| Some(simulator_tolerance(case)));
}

#[cfg(feature = "sim")]
#[test]
fn cuda_for_hopper_on_the_simulator_agrees_with_transformers() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    let cuda = Cuda::simulated(ContextPrecision::Float32, Kernels::Sm90a);
    // Those that are others in their files alone come to the kernels as some that are here.
    let files = ["config_", "sharded", "vocab_tail", "mixed_dtypes", "fp8_", "gguf_"];
    let is_of_files = |case: &str| files.iter().any(|start| case.starts_with(start));
    check(&cuda, OutputCo::Relatively, |case| (!is_of_files(case)).then(|| simulator_tolerance(case)));
}

/// With context rows in bf16, whose rounding averages out over hundreds of dimensions only, in both paths for GPUs.
#[cfg(feature = "sim")]
#[test]
fn context_rows_in_bf16_come_near_transformers() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        let cuda = Cuda::simulated(ContextPrecision::Bfloat16, kernels);
        let case = Path::new("tests/golden/gemma2_wide_heads");
        let (error, what) = gold::worst_error(&cuda, case, OutputCo::Relatively);
        println!("{kernels:?} {error:8.1e}  {what}");
        assert!(error < 1e-2, "{kernels:?}: {error:e}: {what}");
    }
}

/// The largest error of any logit of a steered case, relative to the prompt's largest logit.
fn worst_steering_error<B: Backend>(backend: &B, case: &str, golden: &[Value]) -> (f64, String) {
    let pair = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case));
    let ids: Vec<Vec<u32>> =
        golden.iter().map(|p| numbers(&p["token_ids"]).iter().map(|id| *id as u32).collect()).collect();
    let prompts: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let names: Vec<&String> = golden[0]["alphas"].as_object().unwrap().keys().collect();
    let alphas: Vec<f64> = names.iter().map(|name| name.parse().unwrap()).collect();
    let engine = Engine::new(backend, &pair);
    let all = engine.steer(&prompts, &alphas, Tokens::All, &unobserved).unwrap();
    let chosen = engine.steer(&prompts, &alphas, Tokens::Of(&[3, 1]), &unobserved).unwrap();
    let mut worst = (0.0, String::new());
    for (index, name) in names.iter().enumerate() {
        for (prompt, golden) in golden.iter().enumerate() {
            let golden = &golden["alphas"][name.as_str()];
            let largest = golden["largest"].as_f64().unwrap();
            let expected = numbers(&golden["logits"]);
            let found = &all[index][prompt];
            let magnitude = found.iter().fold(0.0, |largest: f64, logit| largest.max(logit.abs()));
            let few = [(chosen[index][prompt][0], expected[3]), (chosen[index][prompt][1], expected[1])];
            let pairs = found.iter().copied().zip(expected).chain(few).chain([(magnitude, largest)]);
            for (found, expected) in pairs {
                let error = (found - expected).abs() / largest;
                if error.is_nan() || error > worst.0 {
                    worst = (error, format!("alpha {name}: {found}, gold {expected}, largest {largest}"));
                }
            }
        }
    }
    worst
}

/// The largest relative error of any token's TuCo in a traced case.
fn worst_tracing_error<B: Backend>(backend: &B, case: &str, golden: &[Value]) -> (f64, String) {
    let pair = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case));
    let mut worst = (0.0, String::new());
    for golden in golden {
        let ids: Vec<u32> = numbers(&golden["token_ids"]).iter().map(|id| *id as u32).collect();
        let trace = Engine::new(backend, &pair).trace(&[&ids], &unobserved).unwrap().remove(0);
        let expected = numbers(&golden["tuco_per_token"]);
        assert_eq!(trace.tokens.len(), expected.len());
        for (token, (found, expected)) in trace.tokens.iter().zip(expected).enumerate() {
            let found = metrics::tuco(found.last().unwrap().whole);
            let error = if expected == 0.0 { found.abs() } else { (found / expected - 1.0).abs() };
            if error.is_nan() || error > worst.0 {
                worst = (error, format!("token {token} of {}: {found}, gold {expected}", ids.len()));
            }
        }
    }
    worst
}

fn check_steering<B: Backend>(backend: &B, tolerance: f64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/steering.json");
    let gold: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = gold["cases"].as_object().unwrap();
    assert_eq!(cases.len(), gold::CASES, "golden cases");
    let mut failed = false;
    for (name, golden) in cases {
        let (error, what) = worst_steering_error(backend, name, golden.as_array().unwrap());
        let (trace_error, trace_what) = worst_tracing_error(backend, name, golden.as_array().unwrap());
        println!("{name:24} {error:8.1e}  {what}\n{:24} {trace_error:8.1e}  {trace_what}", "");
        failed |= [error, trace_error].iter().any(|error| error.is_nan() || *error > tolerance);
    }
    assert!(!failed, "beyond {tolerance:e}: see the table");
}

#[test]
fn cpu_steers_and_traces_as_transformers_with_hooks() {
    check_steering(&Cpu::new(), CPU_ALL_ROWS_TOLERANCE);
}

#[test]
fn reference_steers_and_traces_as_transformers_with_hooks() {
    check_steering(&Reference, REFERENCE_TOLERANCE);
}

/// Checks the greedy completions of golden pairs, to the token, and the TuCo of each of their tokens.
fn check_generation<B: Backend>(
    backend: &B,
    chosen: impl Fn(&str) -> bool,
    golden_tokens: usize,
    tolerance: f64,
) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/generation.json");
    let gold: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let tokens = |value: &Value| -> Vec<u32> { numbers(value).iter().map(|id| *id as u32).collect() };
    let (mut seen, mut worst) = (0, 0.0f64);
    for (name, golden) in gold["cases"].as_object().unwrap().iter().filter(|(name, _)| chosen(name)) {
        let pair = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name));
        let engine = Engine::new(backend, &pair);
        let golden = golden.as_array().unwrap();
        let ids: Vec<Vec<u32>> = golden.iter().map(|prompt| tokens(&prompt["token_ids"])).collect();
        let prompts: Vec<Prompt<'_>> = ids.iter().map(|token_ids| Prompt { token_ids, seed: 0 }).collect();
        for alpha in golden[0]["completions"].as_object().unwrap().keys() {
            let number = alpha.parse().unwrap();
            let generation = Generation {
                alpha: number,
                max_new_tokens: 12,
                tuco: number == 1.0,
                ..Generation::default()
            };
            let found = engine.generate(&prompts, &generation, &mut unheard, &unobserved).unwrap();
            for (found, golden) in found.iter().zip(golden) {
                let expected = tokens(&golden["completions"][alpha]);
                assert_eq!(found[0].token_ids[..expected.len()], expected, "{name}, alpha {alpha}");
                seen += expected.len();
                if number == 1.0 {
                    let expected = numbers(&golden["tuco"]);
                    assert!(found[0].tuco.len() >= expected.len(), "{name}: {}", found[0].tuco.len());
                    for (found, expected) in found[0].tuco.iter().zip(expected) {
                        // Rounding (of f32 rows in both branches on `cpu`, of rotary tables elsewhere): absolute.
                        let error = (found - expected).abs();
                        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
                    }
                }
            }
        }
    }
    assert_eq!(seen, golden_tokens, "golden tokens");
    println!("{seen} tokens, TuCo off by {worst:.1e}");
    assert!(worst < tolerance, "TuCo is off by {worst:e}");
}

#[test]
fn cpu_generates_as_transformers() {
    check_generation(&Cpu::new(), |_| true, 11485, 1e-6);
}

#[test]
fn reference_generates_as_transformers() {
    check_generation(&Reference, |_| true, 11485, 3e-7);
}

#[cfg(feature = "sim")]
#[test]
fn cuda_on_the_simulator_generates_as_transformers() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    let chosen = |name: &str| ["llama_gqa_tied_bf16", "qwen3_moe"].contains(&name);
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        check_generation(&Cuda::simulated(ContextPrecision::Float32, kernels), chosen, 192, 1e-5);
    }
}

/// A few families of those that the other backends go through: the simulator is slow.
#[cfg(feature = "sim")]
#[test]
fn cuda_on_the_simulator_steers_and_traces_as_transformers_with_hooks() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/steering.json");
    let gold: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        let cuda = Cuda::simulated(ContextPrecision::Float32, kernels);
        for case in ["llama_gqa_tied_bf16", "gemma2", "qwen3_moe", "gpt_neox"] {
            let golden = gold["cases"][case].as_array().unwrap();
            for (error, what) in
                [worst_steering_error(&cuda, case, golden), worst_tracing_error(&cuda, case, golden)]
            {
                println!("{kernels:?} {case:24} {error:8.1e}  {what}");
                assert!(error < 1e-4, "{kernels:?} {case}: {error:e}: {what}");
            }
        }
    }
}
