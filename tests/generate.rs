//! Completions against what steering whole sequences again and again gives, and what no batch may change.

use std::path::{Path, PathBuf};
use tuco::{
    Result,
    backend::{Backend, cpu::Cpu, reference::Reference},
    checkpoint::Pair,
    engine::{
        Completion, Engine, Finish, Generation, PackLimits, Prompt, Sampling, Tokens, unheard, unobserved,
    },
    metrics,
    model::{Head, LayerTensor, ModelSpec, PairWeights},
    tensor::{Dtype, Tensor},
    twin::{Branch, Twin},
};

fn golden(case: &str, side: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(side)
}

fn open(case: &str) -> Pair {
    Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap()
}

/// Prompts of some lengths, the last two of which begin as the one before them.
fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    let token = |prompt: usize, i: usize| ((prompt * 31 + i * 17 + i * i) % 50) as u32;
    let mut all: Vec<Vec<u32>> =
        lengths.iter().enumerate().map(|(p, len)| (0..*len).map(|i| token(p, i)).collect()).collect();
    let last = all[lengths.len() - 1].clone();
    all.push(last.iter().copied().chain([7, 3]).collect());
    all.push(last);
    all
}

fn seeded(prompts: &[Vec<u32>]) -> Vec<Prompt<'_>> {
    prompts.iter().zip(10..).map(|(token_ids, seed)| Prompt { token_ids, seed }).collect()
}

fn generate<B: Backend>(
    engine: &Engine<'_, B>,
    prompts: &[Prompt<'_>],
    generation: &Generation,
) -> Result<Vec<Vec<Completion>>> {
    engine.generate(prompts, generation, &mut unheard, &unobserved)
}

/// A case of every family; those whose rotations depend on the length begin before they change and end after it.
const CASES: [(&str, &[usize]); 18] = [
    ("llama_gqa_tied_bf16", &[1, 9, 70]),
    ("llama_biases", &[1, 9, 70]),
    ("mistral", &[1, 9, 30]),
    ("gemma", &[1, 9, 30]),
    ("gemma2", &[1, 9, 30]),
    ("gemma3_layer_types", &[1, 9, 30]),
    ("qwen2_window", &[1, 9, 30]),
    ("qwen3", &[1, 9, 30]),
    ("phi3", &[1, 9, 30]),
    ("phi3_longrope", &[1, 9, 30]),
    ("rope_dynamic", &[1, 9, 30]),
    ("rope_differs", &[1, 9, 30]),
    ("olmo2", &[1, 9, 30]),
    ("granite", &[1, 9, 30]),
    ("smollm3", &[1, 9, 30]),
    ("mixtral", &[1, 9, 30]),
    ("gpt_neox", &[1, 9, 30]),
    ("gpt2", &[1, 9, 20]),
];

/// Every token is the likeliest one of the whole sequence before it, steered from the beginning; and its TuCo is that of a
/// trace (at alpha 1).
fn check_decoding<B: Backend>(backend: &B, case: &str, lengths: &[usize], new: usize, tolerance: f64) {
    let pair = open(case);
    let engine = Engine::new(backend, &pair);
    let ids = prompts(lengths);
    for alpha in [0.0, 0.5, 1.0, 1.25] {
        let tuco = alpha == 1.0 || alpha == 0.5;
        let generation = Generation { alpha, max_new_tokens: new, tuco, ..Generation::default() };
        let completions = generate(&engine, &seeded(&ids), &generation).unwrap();
        let mut wholes: Vec<Vec<u32>> = Vec::new();
        for (prompt, completions) in ids.iter().zip(&completions) {
            let completion = &completions[0].token_ids;
            assert_eq!(
                (completions.len(), completion.len(), completions[0].finish),
                (1, new, Finish::Length)
            );
            wholes.extend((0..new).map(|at| [prompt, &completion[..at]].concat()));
        }
        let wholes: Vec<&[u32]> = wholes.iter().map(Vec::as_slice).collect();
        let logits = engine.steer(&wholes, &[alpha], Tokens::All, &unobserved).unwrap().remove(0);
        let chosen = completions.iter().flat_map(|completions| &completions[0].token_ids);
        for ((token, logits), whole) in chosen.zip(&logits).zip(&wholes) {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let scale = logits.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            let missing = (largest - logits[*token as usize]) / scale;
            assert!(missing < tolerance, "{case}, alpha {alpha}, after {} tokens: {missing:e}", whole.len());
        }
        if alpha == 1.0 {
            let traces = engine.trace(&wholes, &unobserved).unwrap();
            let found = completions.iter().flat_map(|completions| &completions[0].tuco);
            for ((found, trace), whole) in found.zip(&traces).zip(&wholes) {
                let expected = metrics::tuco(trace.tokens[whole.len() - 1].last().unwrap().whole);
                let error = (found / expected - 1.0).abs();
                assert!(error < tolerance / expected, "{case}, after {} tokens: {error:e}", whole.len());
            }
        }
        assert!(completions.iter().all(|of| of[0].tuco.len() == if tuco { new } else { 0 }));
    }
}

#[test]
fn every_decoded_token_is_steered() {
    for (case, lengths) in CASES {
        check_decoding(&Cpu::new(), case, lengths, 40, 1e-5);
    }
    for case in ["llama_gqa_tied_bf16", "phi3_longrope", "rope_dynamic", "qwen3_moe"] {
        check_decoding(&Reference, case, &[1, 30], 20, 1e-9);
    }
}

#[cfg(feature = "sim")]
#[test]
fn every_decoded_token_is_steered_on_the_simulator() {
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};
    for case in ["llama_gqa_tied_bf16", "gemma2", "phi3_longrope"] {
        check_decoding(&Cuda::simulated(ContextPrecision::Float32, Kernels::Sm80), case, &[1, 9], 4, 1e-4);
    }
}

#[test]
fn batch_order_shared_beginnings_and_threads_change_no_completion() {
    let sampling = Sampling::Random { temperature: 0.8, top_k: Some(30), top_p: 0.95 };
    for (case, lengths) in CASES {
        let pair = open(case);
        let backend = Cpu::new();
        let ids = prompts(lengths);
        let seeded = seeded(&ids);
        let samples = Generation {
            alpha: 1.25,
            max_new_tokens: 15,
            samples: 2,
            sampling,
            stop_tokens: vec![3, 11],
            tuco: true,
        };
        let greedy = Generation { max_new_tokens: 15, ..Generation::default() };
        for generation in [samples, greedy] {
            let alone: Vec<_> = seeded
                .iter()
                .map(|prompt| {
                    generate(&Engine::new(&backend, &pair), &[*prompt], &generation).unwrap().remove(0)
                })
                .collect();
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for tokens in [1, 64, 4096] {
                    let limits = PackLimits { tokens, sequences: 100 };
                    let engine = Engine::new(&backend, &pair).with_limits(limits);
                    let together = pool.install(|| generate(&engine, &seeded, &generation)).unwrap();
                    let reversed: Vec<Prompt<'_>> = seeded.iter().rev().copied().collect();
                    let mut backwards = pool.install(|| generate(&engine, &reversed, &generation)).unwrap();
                    backwards.reverse();
                    assert_eq!(together, alone, "{case}, {threads} threads, packs of {tokens} tokens");
                    assert_eq!(backwards, alone, "{case}, reversed");
                }
            }
        }
    }
}

/// A pair of which one side's blocks are not numbers, or whose blocks are the same without being known to be.
struct Altered<'a> {
    pair: &'a Pair,
    broken: Option<Branch>,
    nan: Vec<u8>,
}

impl<'a> Altered<'a> {
    fn new(pair: &'a Pair, broken: Option<Branch>) -> Self {
        Self { pair, broken, nan: [f32::NAN; 1 << 16].iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

impl PairWeights for Altered<'_> {
    fn spec(&self) -> Twin<&ModelSpec> {
        let spec = self.pair.spec().ft;
        Twin::new(spec, spec)
    }

    fn embedding(&self) -> Tensor<'_> {
        self.pair.embedding()
    }

    fn head(&self) -> Result<Head<'_>> {
        self.pair.head()
    }

    fn layer_tensor(&self, branch: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        if self.broken == Some(branch) {
            let (rows, cols) = tensor.shape(self.pair.spec().ft, layer)?;
            return Some(Tensor::stored(Dtype::F32, rows, cols, &self.nan[..rows * cols * 4]));
        }
        self.pair.layer_tensor(Branch::Ft, layer, tensor)
    }

    fn is_shared(&self, _: usize, _: LayerTensor) -> bool {
        false
    }
}

#[test]
fn alpha_1_needs_no_block_of_the_base_and_alpha_0_none_of_the_tuned_model() {
    let pair = open("llama_gqa_tied_bf16");
    let backend = Cpu::new();
    let ids = prompts(&[1, 9]);
    let of = |broken: Option<Branch>, alpha: f64, tuco: bool| {
        let generation = Generation { alpha, tuco, max_new_tokens: 5, ..Generation::default() };
        let weights = Altered::new(&pair, broken);
        generate(&Engine::new(&backend, &weights), &seeded(&ids), &generation).unwrap()
    };
    let whole = of(None, 1.0, false);
    assert!(whole.iter().all(|of| of[0].token_ids.len() == 5));
    assert_eq!(of(Some(Branch::Pt), 1.0, false), whole);
    assert_eq!(of(Some(Branch::Ft), 0.0, false), whole);
    for (broken, alpha) in [(Branch::Pt, 0.5), (Branch::Ft, 0.5), (Branch::Pt, 0.0), (Branch::Ft, 1.0)] {
        for completions in of(Some(broken), alpha, false) {
            assert_eq!((completions[0].finish, completions[0].token_ids.len()), (Finish::NotFinite, 0));
        }
    }
    // Equal blocks: no contribution of fine-tuning, and alpha changes nothing.
    let with_tuco = of(None, 1.0, true);
    assert!(with_tuco.iter().flat_map(|of| &of[0].tuco).all(|tuco| *tuco == 0.0));
    let tokens = |all: &[Vec<Completion>]| all.iter().map(|of| of[0].token_ids.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&with_tuco), tokens(&whole));
    assert_eq!(tokens(&of(None, 3.0, true)), tokens(&whole));
}

#[test]
fn completions_end_where_they_should() {
    let pair = open("llama_gqa_tied_bf16");
    let backend = Cpu::new();
    let engine = Engine::new(&backend, &pair);
    let ids = prompts(&[9]);
    let generation = Generation { max_new_tokens: 12, ..Generation::default() };
    let whole = generate(&engine, &seeded(&ids), &generation).unwrap()[0][0].token_ids.clone();
    let stop = whole[6];
    let first = whole.iter().position(|token| *token == stop).unwrap();
    let stopping = Generation { stop_tokens: vec![stop], ..generation.clone() };
    let found = &generate(&engine, &seeded(&ids), &stopping).unwrap()[0][0];
    assert_eq!((&found.token_ids[..], found.finish), (&whole[..=first], Finish::StopToken));

    // The listener hears every token in order, and stops one completion only.
    let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: 1.0 };
    let sampled = Generation { sampling, samples: 3, ..generation.clone() };
    let unstopped = generate(&engine, &seeded(&ids), &sampled).unwrap();
    let mut heard = vec![vec![0; 3]; ids.len()];
    let mut listener = |step: tuco::engine::Step<'_>| {
        heard[step.prompt][step.sample] += 1;
        assert_eq!(step.token_ids.len(), heard[step.prompt][step.sample]);
        let stops = (step.prompt, step.sample) == (1, 2) && step.token_ids.len() == 4;
        if stops { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    };
    let found = engine.generate(&seeded(&ids), &sampled, &mut listener, &unobserved).unwrap();
    for (prompt, (found, whole)) in found.iter().zip(&unstopped).enumerate() {
        for (sample, (found, whole)) in found.iter().zip(whole).enumerate() {
            if (prompt, sample) == (1, 2) {
                assert_eq!((&found.token_ids[..], found.finish), (&whole.token_ids[..4], Finish::Stopped));
            } else {
                assert_eq!(found, whole);
            }
        }
    }
    // Completions of one prompt differ, and those of another seed.
    assert_ne!(unstopped[0][0], unstopped[0][1]);
    let other = Prompt { token_ids: &ids[0], seed: 77 };
    assert_ne!(generate(&engine, &[other], &sampled).unwrap()[0], unstopped[0]);

    // The context ends: its last token may still be answered by one.
    let context = pair.spec().ft.context_length;
    let long: Vec<u32> = (0..context - 3).map(|i| (i * 7 % 50) as u32).collect();
    let found = &generate(&engine, &[Prompt { token_ids: &long, seed: 0 }], &generation).unwrap()[0][0];
    assert_eq!((found.token_ids.len(), found.finish), (4, Finish::Length));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let pair = open("llama_gqa_tied_bf16");
    let backend = Cpu::new();
    let engine = Engine::new(&backend, &pair);
    let prompt = Prompt { token_ids: &[1, 2], seed: 0 };
    let refused = |generation: Generation, part: &str| {
        let error = generate(&engine, &[prompt], &generation).unwrap_err();
        assert!(error.message.contains(part) && error.exit_code() == 2, "{error}");
    };
    let usual = Generation::default;
    refused(Generation { alpha: -0.5, ..usual() }, "alpha is -0.5");
    refused(Generation { max_new_tokens: 0, ..usual() }, "max_new_tokens is 0");
    refused(Generation { samples: 0, ..usual() }, "expected a number from 1 on");
    refused(Generation { samples: 2, ..usual() }, "the same at temperature 0");
    let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: 1.5 };
    refused(Generation { sampling, ..usual() }, "top_p is 1.5");
}
