//! What holds for every pair, whatever its weights: free tests that need no golden value.

#[path = "common/unshared.rs"]
mod unshared;

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use tuco::{
    backend::{Backend, Role, Rows, cpu::Cpu, reference::Reference},
    checkpoint::Pair,
    engine::{Engine, PackLimits, Score, Tokens, unobserved},
    metrics::{self, RunningL1},
    model::{LayerTensor, ModelSpec, PairWeights, parse_config},
    tensor::{Dtype, Tensor},
    twin::{Branch, Twin},
};
use unshared::Unshared;

fn golden(case: &str, side: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(side)
}

/// Prompts of many lengths, deterministic.
fn prompts(vocab_size: usize, lengths: &[usize]) -> Vec<Vec<u32>> {
    let token = |prompt: usize, i: usize| ((prompt * 31 + i * 17 + i * i) % vocab_size) as u32;
    lengths.iter().enumerate().map(|(p, len)| (0..*len).map(|i| token(p, i)).collect()).collect()
}

fn slices(prompts: &[Vec<u32>]) -> Vec<&[u32]> {
    prompts.iter().map(Vec::as_slice).collect()
}

/// A case of every family, for what has to hold in all of them.
const FAMILIES: [&str; 16] = [
    "llama_gqa_tied_bf16",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_layer_types",
    "qwen2_window",
    "qwen3",
    "phi3",
    "phi3_longrope",
    "olmo2",
    "granite",
    "smollm3",
    "mixtral",
    "qwen3_moe",
    "gpt_neox",
    "gpt2",
];

#[test]
fn a_model_against_itself_gives_exactly_zero() {
    for case in FAMILIES.into_iter().chain(["llama_biases", "rope_llama3"]) {
        let dir = golden(case, "tuned");
        let pair = Pair::open(&dir, &dir, None).unwrap();
        let ids = prompts(50, &[1, 2, 9, 33]);
        for score in Engine::new(&Cpu::new(), &pair).score(&slices(&ids), &unobserved).unwrap() {
            assert!(score.running.iter().all(|l1| l1.ftc == 0.0 && l1.ptc > 0.0));
        }
    }
}

#[test]
fn equal_weights_give_exactly_zero_through_the_whole_computation_too() {
    for case in FAMILIES.into_iter().chain(["llama_biases", "rope_yarn", "light_f32", "qwen3_light"]) {
        let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
        let ids = prompts(50, &[1, 2, 9, 33, 64]);
        let engine_scores =
            Engine::new(&Cpu::new(), &Unshared(&pair)).score(&slices(&ids), &unobserved).unwrap();
        for score in engine_scores {
            assert!(score.running.iter().all(|l1| l1.ftc == 0.0), "{case}: {:?}", score.running);
        }
    }
}

#[test]
fn batch_order_and_threads_change_no_bit() {
    let lengths = [1, 40, 3, 2, 19, 64, 7, 33, 5, 1, 58];
    for case in
        FAMILIES.into_iter().chain(["llama_mha_untied_f32", "rope_dynamic", "rope_differs", "llama_biases"])
    {
        let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
        let backend = Cpu::new();
        let ids = prompts(50, &lengths);
        let alone: Vec<Score> = ids
            .iter()
            .map(|prompt| Engine::new(&backend, &pair).score(&[prompt], &unobserved).unwrap().remove(0))
            .collect();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (tokens, sequences) in [(1, 1), (50, 3), (100, 100), (4096, 4096)] {
                let engine = Engine::new(&backend, &pair).with_limits(PackLimits { tokens, sequences });
                let reversed: Vec<&[u32]> = ids.iter().rev().map(Vec::as_slice).collect();
                let together = pool.install(|| engine.score(&slices(&ids), &unobserved)).unwrap();
                let mut backwards = pool.install(|| engine.score(&reversed, &unobserved)).unwrap();
                backwards.reverse();
                assert_eq!(together, alone, "{case}, {threads} threads, packs of {tokens} tokens");
                assert_eq!(backwards, alone, "{case}, reversed");
            }
        }
    }
}

/// Prompts with common beginnings: some that are the beginning of another, some equal, some of one token.
fn prompts_that_begin_alike() -> Vec<Vec<u32>> {
    let mut ids = prompts(50, &[1, 40, 3, 64, 7, 33, 150]);
    ids.push(vec![9, 4]);
    for (of, length, tail) in
        [(3, 30, 5), (3, 30, 9), (3, 63, 0), (6, 140, 12), (6, 149, 0), (5, 33, 0), (5, 1, 70), (0, 1, 0)]
    {
        let tail = (0..tail).map(|i| (i * 7 + tail) as u32 % 50);
        ids.push(ids[of][..length].iter().copied().chain(tail).collect());
    }
    ids
}

/// Scores and outputs of the base alone must be the same bits for each prompt alone and for all together, with and without
/// shared beginnings, whatever the packs.
fn sharing_changes_no_bit<B: Backend>(backend: &B, case: &str, longest: usize, packs: &[(usize, usize)]) {
    let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
    let mut ids = prompts_that_begin_alike();
    ids.retain(|prompt| prompt.len() <= longest);
    let both = |engine: &Engine<_>, prompts: &[&[u32]]| {
        let scores = engine.score(prompts, &unobserved).unwrap();
        scores.into_iter().zip(engine.plain(Branch::Pt, prompts, &unobserved).unwrap()).collect::<Vec<_>>()
    };
    let alone: Vec<_> =
        ids.iter().map(|prompt| both(&Engine::new(backend, &pair), &[prompt]).remove(0)).collect();
    for (tokens, sequences) in packs.iter().copied() {
        for prefix_sharing in [true, false] {
            let engine = Engine::new(backend, &pair)
                .with_limits(PackLimits { tokens, sequences })
                .with_prefix_sharing(prefix_sharing);
            let together = both(&engine, &slices(&ids));
            for (prompt, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert!(
                    together == alone,
                    "{case}, packs of {tokens} tokens and {sequences} prompts, sharing {prefix_sharing}, prompt {prompt}"
                );
            }
        }
    }
}

#[test]
fn shared_beginnings_change_no_bit() {
    for case in FAMILIES.into_iter().chain([
        "llama_mha_untied_f32",
        "rope_dynamic",
        "rope_differs",
        "llama_biases",
        "light_f32",
        "qwen3_light",
    ]) {
        let longest = if case == "gpt2" { 70 } else { 200 };
        sharing_changes_no_bit(&Cpu::new(), case, longest, &[(1, 100), (40, 3), (4096, 4096)]);
    }
    for case in ["mistral", "rope_dynamic", "rope_differs", "gpt_neox"] {
        sharing_changes_no_bit(&Reference, case, 200, &[(40, 3)]);
    }
}

#[test]
fn batch_order_shared_beginnings_and_threads_change_no_bit_of_steered_logits() {
    let ids = prompts_that_begin_alike();
    let alphas = [0.0, 0.5, 1.0, 1.25];
    for case in
        FAMILIES.into_iter().chain(["llama_mha_untied_f32", "rope_dynamic", "rope_differs", "llama_biases"])
    {
        let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
        let backend = Cpu::new();
        let fits = |prompt: &&Vec<u32>| case != "gpt2" || prompt.len() <= 70;
        let ids: Vec<Vec<u32>> = ids.iter().filter(fits).cloned().collect();
        let steer = |engine: &Engine<_>, prompts: &[&[u32]], alphas: &[f64]| {
            engine.steer(prompts, alphas, Tokens::All, &unobserved).unwrap()
        };
        let alone: Vec<Vec<Vec<f64>>> = ids
            .iter()
            .map(|prompt| {
                let of_alpha = |alpha: &f64| steer(&Engine::new(&backend, &pair), &[prompt], &[*alpha]);
                alphas.iter().map(|alpha| of_alpha(alpha)[0][0].clone()).collect()
            })
            .collect();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (tokens, sequences) in [(1, 1), (100, 100), (4096, 4096)] {
                let engine = Engine::new(&backend, &pair).with_limits(PackLimits { tokens, sequences });
                let reversed: Vec<&[u32]> = ids.iter().rev().map(Vec::as_slice).collect();
                let together = pool.install(|| steer(&engine, &slices(&ids), &alphas));
                let backwards = pool.install(|| steer(&engine, &reversed, &alphas));
                for (index, alpha) in alphas.iter().enumerate() {
                    for (prompt, alone) in alone.iter().enumerate() {
                        assert_eq!(
                            together[index][prompt], alone[index],
                            "{case}, alpha {alpha}, prompt {prompt}"
                        );
                        assert_eq!(
                            backwards[index][ids.len() - 1 - prompt],
                            alone[index],
                            "{case}, reversed"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_trace_s_parts_add_up_and_its_last_token_is_the_score() {
    for case in FAMILIES {
        let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
        let ids = prompts(50, &[1, 9, 33]);
        let backend = Cpu::new();
        let engine = Engine::new(&backend, &pair);
        let traces = engine.trace(&slices(&ids), &unobserved).unwrap();
        let scores = engine.score(&slices(&ids), &unobserved).unwrap();
        let logits = engine.steer(&slices(&ids), &[1.0], Tokens::All, &unobserved).unwrap().remove(0);
        for (((trace, score), logits), ids) in traces.iter().zip(&scores).zip(&logits).zip(&ids) {
            assert_eq!(trace.tokens.len(), ids.len());
            for (traced, scored) in trace.tokens[ids.len() - 1].iter().zip(&score.running) {
                assert!((metrics::tuco(traced.whole) / metrics::tuco(*scored) - 1.0).abs() < 1e-5, "{case}");
                let bounds = traced.attention.ftc + traced.mlp.ftc;
                assert!(traced.whole.ftc <= bounds * (1.0 + 1e-12), "{case}: the triangle inequality");
            }
            let largest = score.last_hidden.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
            for (sum, hidden) in trace.split.hidden().iter().zip(&score.last_hidden) {
                assert!((sum - hidden).abs() < 1e-5 * largest, "{case}: {sum} {hidden}");
            }
            let spec = &pair.checkpoints.ft.spec;
            if spec.final_logit_softcapping.is_none() && spec.family.final_norm_bias.is_none() {
                let parts = engine.logits_of_parts(&trace.split).unwrap().hidden();
                let largest = logits.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                for (sum, logit) in parts.iter().zip(logits) {
                    assert!(
                        (sum / spec.logits_scaling - logit).abs() < 1e-5 * largest,
                        "{case}: {sum} {logit}"
                    );
                }
            }
        }
        // Other prompts with a common beginning change no bit.
        let alone: Vec<_> =
            ids.iter().map(|ids| engine.trace(&[ids], &unobserved).unwrap().remove(0)).collect();
        assert_eq!(traces, alone, "{case}");
        let longer: Vec<u32> = ids[2].iter().copied().chain([1, 2, 3]).collect();
        assert_eq!(engine.trace(&[&longer, &ids[2]], &unobserved).unwrap()[1], alone[2], "{case}");
    }
}

#[test]
fn equal_weights_leave_no_trace() {
    let pair = Pair::open(&golden("qwen3", "base"), &golden("qwen3", "tuned"), None).unwrap();
    let ids = prompts(50, &[9, 33]);
    for trace in Engine::new(&Cpu::new(), &Unshared(&pair)).trace(&slices(&ids), &unobserved).unwrap() {
        assert!(trace.tokens.iter().flatten().all(|l1| l1.whole.ftc == 0.0 && l1.attention.ftc == 0.0));
    }
}

#[test]
fn steering_a_model_against_itself_changes_nothing() {
    let dir = golden("llama_gqa_tied_bf16", "tuned");
    let pair = Pair::open(&dir, &dir, None).unwrap();
    let ids = prompts(50, &[1, 9, 33]);
    let logits = Engine::new(&Cpu::new(), &pair)
        .steer(&slices(&ids), &[0.0, 1.0, 7.0], Tokens::All, &unobserved)
        .unwrap();
    assert!(logits.iter().all(|of_alpha| *of_alpha == logits[1]));
}

#[test]
fn the_stream_of_a_score_is_the_tuned_model_s_own_pass() {
    let pair =
        Pair::open(&golden("llama_gqa_tied_bf16", "base"), &golden("llama_gqa_tied_bf16", "tuned"), None)
            .unwrap();
    let ids = prompts(50, &[1, 8, 40]);
    let engine = Engine::new(&Reference, &pair);
    let scores = engine.score(&slices(&ids), &unobserved).unwrap();
    let plain = engine.plain(Branch::Ft, &slices(&ids), &unobserved).unwrap();
    for (score, plain) in scores.iter().zip(plain) {
        assert_eq!(score.last_hidden, plain);
    }
}

/// Runs given block outputs of one token through the sums: `(f_pt, f_ft)` of each layer.
fn sums<B: Backend>(backend: &B, layers: &[([f32; 2], [f32; 2])]) -> Vec<RunningL1> {
    let row = |values: &[f32; 2]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let table = backend.table(Tensor::stored(Dtype::F32, 1, 2, &bytes));
        let mut mat = backend.zeros(Rows::Twin, Role::Stream, 1, 2);
        backend.embed(&[0], &table, &mut mat);
        mat
    };
    let (mut x, mut sums) = (backend.zeros(Rows::Twin, Role::Stream, 1, 2), backend.sums(1, 2));
    for (pt, ft) in layers {
        backend.contribution(Some(&row(pt)), &row(ft), &mut x, &mut sums);
    }
    backend.norms(&sums).iter().map(|rows| rows[0]).collect()
}

fn worked_examples<B: Backend>(backend: &B) {
    let (h, minus_half, zero) = ([2.0, -6.0], [-1.0, 3.0], [0.0, 0.0]);
    // PTC = (0, 0, h, -h/2), FTC = (h, -h/2, 0, 0): β = 1, TuCo = 1/2.
    let running = sums(backend, &[(zero, h), (zero, minus_half), (h, h), (minus_half, minus_half)]);
    assert_eq!((metrics::beta(&running), metrics::tuco(running[3])), (1.0, 0.5));
    // x_0 = 0, f_PT(x, 0) = h, f_PT(x, 1) = x, f_FT(x, 0) = 2h, f_FT(x, 1) = 0: P = 3h, F = -h, TuCo = 1/4, and both
    // models end at 2h.
    let twice = [4.0, -12.0];
    let running = sums(backend, &[(h, twice), (twice, zero)]);
    assert_eq!(running[1], RunningL1 { ptc: 24.0, ftc: 8.0 });
    assert_eq!(metrics::tuco(running[1]), 0.25);
    assert_eq!(metrics::output_co(&[4.0, -12.0], &[4.0, -12.0]), 0.0);
}

#[test]
fn the_paper_s_worked_examples() {
    worked_examples(&Cpu::new());
    worked_examples(&Reference);
}

/// A pair of random weights in memory.
struct Random {
    spec: ModelSpec,
    embedding: Vec<u8>,
    tensors: Twin<Vec<(usize, LayerTensor, Vec<u8>)>>,
}

impl Random {
    fn new(config: serde_json::Value, seed: u64, noise: f32) -> Self {
        let spec = parse_config(&config).unwrap();
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let embedding: Vec<f32> = (0..spec.vocab_size * spec.hidden_size).map(|_| random()).collect();
        let mut tensors = Twin::new(Vec::new(), Vec::new());
        for layer in 0..spec.num_hidden_layers {
            for tensor in spec.layer_tensors(layer) {
                let (rows, cols) = tensor.shape(&spec, layer).unwrap();
                let scale = if tensor.is_vector() { 1.0 } else { 2.0 / (cols as f32).sqrt() };
                let pt: Vec<f32> = (0..rows * cols).map(|_| random() * scale).collect();
                let ft: Vec<f32> = pt.iter().map(|v| v + random() * scale * noise).collect();
                tensors.pt.push((layer, tensor, bytes(&pt)));
                tensors.ft.push((layer, tensor, bytes(&ft)));
            }
        }
        Self { spec, embedding: bytes(&embedding), tensors }
    }
}

impl PairWeights for Random {
    fn spec(&self) -> Twin<&ModelSpec> {
        Twin::new(&self.spec, &self.spec)
    }

    fn embedding(&self) -> Tensor<'_> {
        let (rows, cols) = (self.spec.vocab_size, self.spec.hidden_size);
        Tensor::stored(Dtype::F32, rows, cols, &self.embedding)
    }

    fn layer_tensor(&self, branch: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        let (rows, cols) = tensor.shape(&self.spec, layer)?;
        let found = self.tensors.get(branch).iter().find(|(l, t, _)| (*l, *t) == (layer, tensor));
        let bytes = &found.expect("made for every layer").2;
        Some(Tensor::stored(Dtype::F32, rows, cols, bytes))
    }

    fn is_shared(&self, _: usize, _: LayerTensor) -> bool {
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cpu_agrees_with_reference_on_any_shape(
        kv_heads in 1usize..4,
        group in 1usize..4,
        half_dim in 1usize..20,
        hidden in 1usize..90,
        intermediate in 1usize..100,
        bias in any::<bool>(),
        lengths in prop::collection::vec(1usize..90, 1..5),
        seed in any::<u64>(),
        noise in 1e-3f32..0.5,
    ) {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": 2, "num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads,
            "head_dim": 2 * half_dim, "vocab_size": 40, "attention_bias": bias, "mlp_bias": bias,
        });
        let weights = Random::new(config, seed, noise);
        let ids = prompts(40, &lengths);
        let cpu = Engine::new(&Cpu::new(), &weights).score(&slices(&ids), &unobserved).unwrap();
        let reference = Engine::new(&Reference, &weights).score(&slices(&ids), &unobserved).unwrap();
        for (cpu, reference) in cpu.iter().zip(&reference) {
            for (cpu, reference) in cpu.running.iter().zip(&reference.running) {
                // Of few dimensions contributions may cancel, rounding does not.
                let near = |found: f64, expected: f64, least: f64| {
                    (found - expected).abs() < 2e-5 * expected.max(least * reference.ptc)
                };
                prop_assert!(near(cpu.ftc, reference.ftc, 1e-3), "{cpu:?} {reference:?}");
                prop_assert!(near(cpu.ptc, reference.ptc, 1.0), "{cpu:?} {reference:?}");
            }
        }
    }
}

#[cfg(feature = "sim")]
mod on_the_simulator {
    use super::*;
    use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};

    const WAYS: [(ContextPrecision, Kernels); 4] = [
        (ContextPrecision::Bfloat16, Kernels::Sm80),
        (ContextPrecision::Bfloat16, Kernels::Sm90a),
        (ContextPrecision::Float32, Kernels::Sm80),
        (ContextPrecision::Float32, Kernels::Sm90a),
    ];

    #[test]
    fn equal_weights_give_exactly_zero_in_cuda_s_kernels() {
        for case in ["llama_biases", "gemma2", "qwen3_light", "mixtral", "gpt_neox", "light_f32"] {
            let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
            let ids = prompts(50, &[1, 2, 33]);
            for (precision, kernels) in WAYS {
                let cuda = Cuda::simulated(precision, kernels);
                for score in Engine::new(&cuda, &Unshared(&pair)).score(&slices(&ids), &unobserved).unwrap() {
                    assert!(
                        score.running.iter().all(|l1| l1.ftc == 0.0 && l1.ptc > 0.0),
                        "{case}: {score:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn shared_beginnings_change_no_bit_in_cuda_s_kernels() {
        let cases = ["llama_gqa_tied_bf16", "gemma2_wide_heads", "qwen3", "rope_differs"];
        for (case, (precision, kernels)) in cases.into_iter().zip(WAYS.into_iter().cycle()) {
            sharing_changes_no_bit(&Cuda::simulated(precision, kernels), case, 40, &[(25, 3)]);
        }
    }

    #[test]
    fn logits_of_parts_are_those_of_the_reference_in_cuda_s_kernels() {
        let pair = Pair::open(&golden("qwen3", "base"), &golden("qwen3", "tuned"), None).unwrap();
        let trace = Engine::new(&Reference, &pair).trace(&[&[1, 2, 3]], &unobserved).unwrap().remove(0);
        let expected = Engine::new(&Reference, &pair).logits_of_parts(&trace.split).unwrap();
        for (precision, kernels) in WAYS {
            let cuda = Cuda::simulated(precision, kernels);
            let found = Engine::new(&cuda, &pair).logits_of_parts(&trace.split).unwrap();
            let tolerance = if precision == ContextPrecision::Float32 { 1e-5 } else { 1e-2 };
            let parts = [
                (&found.embedding, &expected.embedding),
                (&found.pt, &expected.pt),
                (&found.ft, &expected.ft),
            ];
            for (found, expected) in parts {
                let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                let error = found.iter().zip(expected).fold(0.0, |a: f64, (f, e)| a.max((f - e).abs()));
                assert!(error < tolerance * largest, "{precision:?}: {error} of {largest}");
            }
        }
    }

    #[test]
    fn batch_order_resident_weights_and_lanes_change_no_bit_in_cuda_s_kernels() {
        let cases = [
            "llama_gqa_tied_bf16",
            "gemma2_wide_heads",
            "gemma3_layer_types",
            "phi3_longrope",
            "qwen3_moe",
            "gpt2",
        ];
        // Each in two ways; on a GPU (tests/gpu.rs) in all.
        for (index, case) in cases.into_iter().enumerate() {
            let pair = Pair::open(&golden(case, "base"), &golden(case, "tuned"), None).unwrap();
            let ids = prompts(50, &[70, 1, 40, 2, 9]);
            for (precision, kernels) in [WAYS[index % 4], WAYS[(index + 3) % 4]] {
                // The times of its kernels are taken, so that it does one after the other.
                let streamed = Cuda::simulated(precision, kernels).profiled();
                let alone = ids.iter().map(|ids| Engine::new(&streamed, &pair).score(&[ids], &unobserved));
                let alone: Vec<Score> = alone.map(|scores| scores.unwrap().remove(0)).collect();
                let resident = Cuda::simulated(precision, kernels).with_resident_weights(true);
                let engine =
                    Engine::new(&resident, &pair).with_limits(PackLimits { tokens: 100, sequences: 3 });
                let reversed: Vec<&[u32]> = ids.iter().rev().map(Vec::as_slice).collect();
                for _ in 0..2 {
                    let mut together = engine.score(&reversed, &unobserved).unwrap();
                    together.reverse();
                    assert_eq!(together, alone, "{case}, {precision:?}, {kernels:?}");
                }
            }
        }
    }

    /// Most kernels of few context rows leave those of twin rows room, those of more than 1024 do not.
    #[test]
    fn batches_of_few_rows_and_of_many_give_the_same_bits_in_turns() {
        let pair = Pair::open(&golden("qwen3", "base"), &golden("qwen3", "tuned"), None).unwrap();
        let cuda = Cuda::simulated(ContextPrecision::Bfloat16, Kernels::Sm90a).with_resident_weights(true);
        let engine = Engine::new(&cuda, &pair);
        let few = prompts(50, &[9, 40, 1]);
        let lengths: Vec<usize> = [9, 40, 1].into_iter().chain(41..65).collect();
        let many = prompts(50, &lengths);
        let score = |ids| engine.score(&slices(ids), &unobserved).unwrap();
        let trace = || engine.trace(&slices(&few), &unobserved).unwrap();
        let (alone, traced) = (score(&few), trace());
        for _ in 0..2 {
            assert_eq!(score(&many)[..few.len()], alone);
            assert_eq!(trace(), traced);
            assert_eq!(score(&few), alone);
        }
    }
}
