//! A trace of all tokens against two plain forward passes over the same prompts, by turns. A plain pass leaves out what
//! nobody reads of the last layer, all rows but the last of each prompt; a trace needs them.
//!
//! `cargo bench --bench trace` on the demo pair; `TUCO_BENCH_BASE=DIR TUCO_BENCH_TUNED=DIR …` on another.
//! `RAYON_NUM_THREADS` sets the threads.

mod common;

use std::path::Path;
use tuco::{
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Engine, unobserved},
    model::PairWeights,
    twin::Branch,
};

const ROUNDS: usize = 5;

fn main() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let (base, tuned) = common::named_pair().unwrap_or_else(|| (demo.join("base"), demo.join("tuned")));
    let pair = Pair::open(&base, &tuned, None).expect("a pair");
    let prompts = common::prompts(pair.spec().ft.vocab_size);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let backend = Cpu::new();
    let engine = Engine::new(&backend, &pair);
    let mut passes = || {
        for branch in [Branch::Pt, Branch::Ft] {
            engine.plain(branch, &prompts, &unobserved).expect("it is not stopped");
        }
    };
    let mut trace = || drop(engine.trace(&prompts, &unobserved).expect("it is not stopped"));
    // What is done once is not counted.
    passes();
    common::by_turns(ROUNDS, ["trace", "two plain passes"], [&mut trace, &mut passes]);
}
