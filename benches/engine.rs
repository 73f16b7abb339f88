//! A score against one plain forward pass over the same prompts: the ratio is what TuCo costs.
//!
//! `cargo bench --bench engine` on the demo pair; `TUCO_BENCH_BASE=DIR TUCO_BENCH_TUNED=DIR cargo bench --bench engine`
//! on another, `TUCO_BENCH_BASE=DIR TUCO_BENCH_ADAPTER=DIR …` on a base and an adapter. `RAYON_NUM_THREADS` sets the
//! threads.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{env, path::PathBuf, time::Duration};
use tuco::{
    backend::cpu::Cpu,
    checkpoint::{Pair, Reading, Side},
    engine::{Engine, unobserved},
    model::PairWeights,
    twin::{Branch, Twin},
};

fn dir(variable: &str, side: &str) -> PathBuf {
    let demo = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(side);
    env::var_os(variable).map_or_else(demo, PathBuf::from)
}

fn score_and_plain(criterion: &mut Criterion) {
    let base = dir("TUCO_BENCH_BASE", "base");
    let adapter = env::var_os("TUCO_BENCH_ADAPTER").map(PathBuf::from);
    let tuned = if adapter.is_some() { base.clone() } else { dir("TUCO_BENCH_TUNED", "tuned") };
    let sides = Twin::new(Side { model: base, adapter: None }, Side { model: tuned, adapter });
    let pair = Pair::open_sides(&sides, Reading::default()).expect("a pair");
    let prompts = common::prompts(pair.spec().ft.vocab_size);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let backend = Cpu::new();
    let engine = Engine::new(&backend, &pair);
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(prompts.iter().map(|prompt| prompt.len() as u64).sum()));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(20));
    group.bench_function("plain", |bencher| {
        bencher.iter(|| engine.plain(Branch::Ft, &prompts, &unobserved).expect("it is not stopped"));
    });
    group.bench_function("score", |bencher| {
        bencher.iter(|| engine.score(&prompts, &unobserved).expect("it is not stopped"));
    });
    group.finish();
}

criterion_group!(benches, score_and_plain);
criterion_main!(benches);
