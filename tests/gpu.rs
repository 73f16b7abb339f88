//! What needs a GPU; where there is none, these tests are reported as ignored. They run in the package's folder, with nothing of
//! cargo's, so that the program built elsewhere runs on a machine with a GPU.

#[path = "common/bits.rs"]
mod bits;
#[path = "common/gold.rs"]
mod gold;
#[path = "common/kernel_cases.rs"]
mod kernel_cases;
#[path = "common/unshared.rs"]
mod unshared;

use kernel_cases::{BF16_TOLERANCE, CASES, Case, F32_TOLERANCE, LONG, Weights, compare, shape};
use libtest_mimic::{Arguments, Trial};
use std::{
    path::Path,
    process::exit,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tuco::{
    ErrorKind,
    backend::{
        AttentionShape, Backend, Linear, Role, Rows,
        cuda::{ContextPrecision, Cuda, Kernels},
    },
    checkpoint::Pair,
    engine::{Engine, PackLimits, Score, unobserved},
    model::PairWeights,
    tensor::{Dtype, Tensor},
};
use unshared::Unshared;

/// A way to compute.
type Way = (ContextPrecision, Kernels);

fn open((precision, kernels): Way) -> Cuda {
    Cuda::open(0, precision, Some(kernels)).unwrap()
}

fn newest(precision: ContextPrecision) -> Cuda {
    Cuda::open(0, precision, None).unwrap()
}

/// What numbers are made from: another at each run, or that of a run before (`TUCO_SEED`).
fn seed() -> u64 {
    match std::env::var("TUCO_SEED") {
        Ok(seed) => seed.parse().expect("TUCO_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64,
    }
}

fn every_kernel_agrees_with_the_reference(way: Way) {
    let (tolerance, kinds): (_, &[Weights]) = match way.0 {
        ContextPrecision::Bfloat16 => (BF16_TOLERANCE, &[Weights::Bf16, Weights::Adapted]),
        ContextPrecision::Float32 => (F32_TOLERANCE, &[Weights::Bf16, Weights::Wide, Weights::Adapted]),
    };
    compare(|| open(way), CASES, kinds, tolerance, seed());
}

fn rows_have_the_same_bits_whatever_is_beside_them(way: Way) {
    let cuda = open(way);
    bits::check_attention(&cuda);
    // All tiles on a GPU of 132 multiprocessors.
    bits::check_products(&cuda, 8192, &[1, 20, 50, 100, 512], 1024);
}

fn equal_weights_give_exactly_zero(way: Way) {
    let cuda = open(way);
    for case in PAIRS {
        let model = Path::new("tests/golden").join(case).join("tuned");
        let pair = Pair::open(&model, &model, None).unwrap();
        let ids = prompts(&pair, &[1, 2, 33, 300]);
        for score in Engine::new(&cuda, &Unshared(&pair)).score(&slices(&ids), &unobserved).unwrap() {
            assert!(score.running.iter().all(|l1| l1.ftc == 0.0 && l1.ptc > 0.0), "{case}: {score:?}");
        }
    }
}

fn batch_order_residence_and_lanes_change_no_bit(way: Way) {
    // The times of its kernels are taken, so that it does one after the other.
    let streamed = open(way).profiled();
    let resident = open(way).with_resident_weights(true);
    for case in PAIRS {
        let dir = Path::new("tests/golden").join(case);
        let pair = Pair::open(&dir.join("base"), &dir.join("tuned"), None).unwrap();
        // Few context rows, most of whose kernels leave others room, and with all more than 1024.
        let few = [70, 1, 140, 2, 9, 64];
        let lengths: Vec<usize> = few.into_iter().chain(110..130).collect();
        let ids = prompts(&pair, &lengths);
        let alone = ids.iter().map(|ids| Engine::new(&streamed, &pair).score(&[ids], &unobserved));
        let alone: Vec<Score> = alone.map(|scores| scores.unwrap().remove(0)).collect();
        let engine = Engine::new(&resident, &pair).with_limits(PackLimits { tokens: 200, sequences: 3 });
        for count in [few.len(), ids.len()].repeat(4) {
            let reversed: Vec<&[u32]> = ids[..count].iter().rev().map(Vec::as_slice).collect();
            let mut together = engine.score(&reversed, &unobserved).unwrap();
            together.reverse();
            assert_eq!(together, alone[..count], "{case}");
        }
    }
}

/// Of these lengths, where the pair has as many positions.
fn prompts(pair: &Pair, lengths: &[usize]) -> Vec<Vec<u32>> {
    let longest = pair.spec().ft.context_length;
    lengths
        .iter()
        .map(|len| (0..*len.min(&longest)).map(|i| (i * 17 + i * i + len) as u32 % 50).collect())
        .collect()
}

fn slices(prompts: &[Vec<u32>]) -> Vec<&[u32]> {
    prompts.iter().map(Vec::as_slice).collect()
}

const PAIRS: [&str; 6] =
    ["llama_gqa_tied_bf16", "gemma2_wide_heads", "gemma3_layer_types", "qwen3_moe", "phi3_longrope", "gpt2"];

fn golden_pairs_agree_with_transformers() {
    let tolerance = |case: &str| Some(if gold::LIGHT.contains(&case) { 1e-3 } else { 1e-4 });
    gold::check(&newest(ContextPrecision::Float32), gold::OutputCo::Relatively, tolerance);
}

/// As many columns as the widest layer of an 8B model has, too much work for the simulator: tensor cores cut off what a sum does not hold,
/// and what rounding does not, that grows with the columns.
fn long_products_agree_with_the_reference() {
    let cases = [Case::Products { rows: 8, d: 14336, f: 64 }];
    let cuda = || newest(ContextPrecision::Float32);
    compare(cuda, &cases, &[Weights::Bf16, Weights::Wide], F32_TOLERANCE, seed());
    compare(cuda, &[LONG], &[Weights::Wide, Weights::Adapted], F32_TOLERANCE, seed());
}

/// So many twin rows that blocks have more than one piece of work, and wide ones average them.
fn many_prompts_agree_with_the_reference() {
    let cases = [
        Case::Heads { lengths: &[130; 300], shape: shape(4, 4, 8), d: 16 },
        Case::Heads { lengths: &[130; 60], shape: shape(4, 4, 128), d: 16 },
        Case::Heads { lengths: &[130; 60], shape: shape(2, 1, 8), d: 700 },
        Case::Heads {
            lengths: &[130; 60],
            shape: AttentionShape { sliding_window: Some(40), ..shape(35, 5, 8) },
            d: 33,
        },
    ];
    let cuda = || newest(ContextPrecision::Bfloat16);
    compare(cuda, &cases, &[Weights::Bf16], BF16_TOLERANCE, seed());
}

/// Rows are embedded while kernels before them are at work, through pinned memory that those embedded next are written to.
fn rows_embedded_behind_kernels_arrive() {
    const ROWS: usize = 4096;
    const COLS: usize = 4096;
    const INNER: usize = 8192;
    let cuda = newest(ContextPrecision::Float32);
    let zeros = vec![0; INNER * INNER * 2];
    let weight = cuda.weight(Tensor::stored(Dtype::Bf16, INNER, INNER, &zeros));
    let linear = Linear { weight, bias: None };
    let mat = |role, rows, cols| cuda.zeros(Rows::Context, role, rows, cols);
    let (a, mut product) = (mat(Role::Operand, INNER, INNER), mat(Role::Operand, INNER, INNER));
    // Brings the weight; to read is to wait.
    cuda.linear(&a, &linear, &mut product);
    cuda.read(&mat(Role::Stream, 1, 1));

    // Of both types that tables have, numbers that bf16 holds.
    let value = |id: usize, col: usize| ((id * 31 + col) % 251) as f32;
    let table = |size: usize| -> Vec<u8> {
        let values = (0..7 * COLS).map(|at| value(at / COLS, at % COLS).to_le_bytes());
        values.flat_map(|bytes| bytes[4 - size..].to_vec()).collect()
    };
    let tables = [(Dtype::F32, table(4)), (Dtype::Bf16, table(2))];
    let ids = |factor: usize| -> Vec<u32> { (0..ROWS).map(|row| (row * factor % 7) as u32).collect() };
    let embedded = [(0, ids(5)), (1, ids(3)), (0, ids(2))];
    let mut found = embedded.each_ref().map(|_| mat(Role::Stream, ROWS, COLS));
    let start = Instant::now();
    // Each some 20 ms and more.
    (0..16).for_each(|_| cuda.linear(&a, &linear, &mut product));
    for ((table, ids), rows) in embedded.iter().zip(&mut found) {
        let (dtype, bytes) = &tables[*table];
        cuda.embed(ids, &cuda.table(Tensor::stored(*dtype, 7, COLS, bytes)), rows);
    }
    let returned = start.elapsed();
    let found = found.each_ref().map(|rows| cuda.read(rows));
    println!("report: embedded after {returned:.0?}, read after {:.0?}", start.elapsed());
    cuda.check().unwrap();
    for ((_, ids), found) in embedded.iter().zip(found) {
        let expected = ids.iter().flat_map(|id| (0..COLS).map(|col| f64::from(value(*id as usize, col))));
        assert!(expected.eq(found));
    }
}

fn a_machine_without_a_gpu_says_so() {
    let error = Cuda::open(0, ContextPrecision::Float32, None).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Device);
    assert!(error.message.contains("NVIDIA driver"), "{error}");
}

fn trial(name: impl Into<String>, runs: bool, test: impl FnOnce() + Send + 'static) -> Trial {
    let run = || {
        test();
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(!runs)
}

/// Whether the GPU runs these kernels.
fn runs(kernels: Kernels) -> bool {
    match Cuda::open(0, ContextPrecision::Float32, Some(kernels)) {
        Err(error) if error.kind == ErrorKind::Usage => false,
        opened => opened.map(|_| true).unwrap(),
    }
}

fn main() {
    // Kept to the end, so that the driver makes the GPU's context once.
    let gpu = Cuda::open(0, ContextPrecision::Float32, None);
    if let Err(error) = &gpu {
        if std::env::var_os("TUCO_NEEDS_GPU").is_some_and(|value| value == "1") {
            eprintln!("TUCO_NEEDS_GPU is 1, but {error}");
            exit(1);
        }
        eprintln!("tests that need a GPU are ignored: {error}");
    }
    macro_rules! tests {
        ($kind:ty; $($name:ident),*) => {
            [$((stringify!($name), $name as $kind)),*]
        };
    }
    let of_ways = tests![
        fn(Way); every_kernel_agrees_with_the_reference, rows_have_the_same_bits_whatever_is_beside_them,
        equal_weights_give_exactly_zero, batch_order_residence_and_lanes_change_no_bit
    ];
    let others = tests![
        fn(); golden_pairs_agree_with_transformers, long_products_agree_with_the_reference,
        many_prompts_agree_with_the_reference, rows_embedded_behind_kernels_arrive
    ];
    let mut trials = Vec::new();
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        let runs = gpu.is_ok() && runs(kernels);
        for precision in [ContextPrecision::Bfloat16, ContextPrecision::Float32] {
            let way = format!("{precision:?}_{}", kernels.name()).to_lowercase();
            for (name, test) in of_ways {
                trials.push(trial(format!("{name}_{way}"), runs, move || test((precision, kernels))));
            }
        }
    }
    trials.extend(others.map(|(name, test)| trial(name, gpu.is_ok(), test)));
    trials.push(trial("a_machine_without_a_gpu_says_so", gpu.is_err(), a_machine_without_a_gpu_says_so));
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    drop(gpu);
    conclusion.exit();
}
