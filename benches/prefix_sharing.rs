//! Prompts with a long common beginning, scored with and without sharing it, by turns; and steered under seven alphas, as few-shot
//! questions of `tuco sweep` are, together and one by one.
//!
//! `cargo bench --bench prefix_sharing` on a random pair of SmolLM2-135M's shapes with 8 of its 30 layers;
//! `TUCO_BENCH_BASE=DIR TUCO_BENCH_TUNED=DIR …` on another. `RAYON_NUM_THREADS` sets the threads.

mod common;

use tuco::{
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Engine, Tokens, unobserved},
    model::PairWeights,
};

const PROMPTS: usize = 100;
const SHARED: usize = 1500;
const OWN: usize = 120;
const LAYERS: usize = 8;
const ROUNDS: usize = 3;
const QUESTIONS: usize = 20;
const ALPHAS: [f64; 7] = [0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25];

fn main() {
    let made = tempfile::tempdir().expect("a temporary folder");
    let (base, tuned) = common::named_pair().unwrap_or_else(|| {
        common::write_pair(made.path(), &common::smollm2_135m(LAYERS));
        (made.path().join("base"), made.path().join("tuned"))
    });
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
        engine.score(&prompts, &unobserved).expect("it is not stopped")
    };
    println!("{PROMPTS} prompts of {SHARED} shared and {OWN} own tokens");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    common::by_turns(
        ROUNDS,
        ["not shared", "shared"],
        [&mut || without = run(false), &mut || with = run(true)],
    );
    assert!(with == without, "sharing changed a bit");

    let questions = &prompts[..QUESTIONS];
    let engine = Engine::new(&backend, &pair);
    let steered = |prompts: &[&[u32]]| {
        let answers = Tokens::Of(&[1, 2, 3, 4]);
        engine.steer(prompts, &ALPHAS, answers, &unobserved).expect("it is not stopped")
    };
    println!("{QUESTIONS} of them under {} alphas", ALPHAS.len());
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    common::by_turns(
        ROUNDS,
        ["one by one", "together"],
        [&mut || alone = questions.iter().map(|question| steered(&[question])).collect(), &mut || {
            together = steered(questions)
        }],
    );
    let same = |(question, alone): (usize, &Vec<Vec<Vec<f64>>>)| {
        (0..ALPHAS.len()).all(|alpha| alone[alpha][0] == together[alpha][question])
    };
    assert!(alone.iter().enumerate().all(same), "sharing changed a bit");
}
