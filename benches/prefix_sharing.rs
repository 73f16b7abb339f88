//! Prompts with a long common beginning, scored with and without sharing it, by turns.
//!
//! `cargo bench --bench prefix_sharing` on a random pair of SmolLM2-135M's shapes with 8 of its 30 layers;
//! `TUCO_BENCH_BASE=DIR TUCO_BENCH_TUNED=DIR …` on another. `RAYON_NUM_THREADS` sets the threads.

mod common;

use std::{env, path::PathBuf, time::Instant};
use tuco::{
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Engine, unobserved},
    model::PairWeights,
};

const PROMPTS: usize = 100;
const SHARED: usize = 1500;
const OWN: usize = 120;
const LAYERS: usize = 8;
const ROUNDS: usize = 3;

fn main() {
    let made = tempfile::tempdir().expect("a temporary folder");
    let dir = |variable: &str| env::var_os(variable).map(PathBuf::from);
    let (base, tuned) = match (dir("TUCO_BENCH_BASE"), dir("TUCO_BENCH_TUNED")) {
        (Some(base), Some(tuned)) => (base, tuned),
        _ => {
            common::write_pair(made.path(), &common::smollm2_135m(LAYERS));
            (made.path().join("base"), made.path().join("tuned"))
        }
    };
    let pair = Pair::open(&base, &tuned, None).expect("a pair");
    let vocab_size = pair.spec().ft.vocab_size;
    let prompt = |number: usize| -> Vec<u32> {
        let token = |at: usize| if at < SHARED { at * 7919 } else { at * 104_729 + number * 1_299_709 };
        (0..SHARED + OWN).map(|at| (token(at) % vocab_size) as u32).collect()
    };
    let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(prompt).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let backend = Cpu::new();
    let run = |prefix_sharing: bool| {
        let engine = Engine::new(&backend, &pair).with_prefix_sharing(prefix_sharing);
        let (start, cpu) = (Instant::now(), common::cpu_seconds());
        let scores = engine.score(&prompts, &unobserved).expect("it is not stopped");
        (start.elapsed().as_secs_f64(), common::cpu_seconds() - cpu, scores)
    };
    println!("{PROMPTS} prompts of {SHARED} shared and {OWN} own tokens");
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let ((shared, shared_cpu, with), (alone, alone_cpu, without)) = (run(true), run(false));
        assert!(with == without, "sharing changed a bit");
        println!(
            "shared {shared:.2} s ({shared_cpu:.2} s of CPU time), not shared {alone:.2} s ({alone_cpu:.2} s): {:.2} x ({:.2} x)",
            alone / shared,
            alone_cpu / shared_cpu
        );
        ratios.push((alone / shared, alone_cpu / shared_cpu));
    }
    ratios.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (ratio, cpu_ratio) = ratios[ROUNDS / 2];
    println!("median {cpu_ratio:.2} x by CPU time, {ratio:.2} x by the clock in that round");
}
