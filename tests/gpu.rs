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

use kernel_cases::{BF16_TOLERANCE, F32_TOLERANCE, Weights, compare};
use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use tuco::{
    backend::cuda::{ContextPrecision, Cuda, Kernels},
    checkpoint::Pair,
    engine::{Engine, PackLimits, Score, unobserved},
};
use unshared::Unshared;

/// The ways to compute that this GPU has.
fn ways() -> impl Iterator<Item = (ContextPrecision, Kernels)> {
    let precisions = [ContextPrecision::Bfloat16, ContextPrecision::Float32].into_iter();
    let all = precisions.flat_map(|precision| [(precision, Kernels::Sm80), (precision, Kernels::Sm90a)]);
    all.filter(|(precision, kernels)| Cuda::open(0, *precision, Some(*kernels)).is_ok())
}

fn every_kernel_agrees_with_the_reference() {
    for (precision, kernels) in ways() {
        let cuda = || Cuda::open(0, precision, Some(kernels)).unwrap();
        let (tolerance, kinds): (_, &[Weights]) = match precision {
            ContextPrecision::Bfloat16 => (BF16_TOLERANCE, &[Weights::Bf16, Weights::Adapted]),
            ContextPrecision::Float32 => (F32_TOLERANCE, &[Weights::Bf16, Weights::Wide, Weights::Adapted]),
        };
        kinds.iter().for_each(|weights| compare(cuda, tolerance, *weights));
    }
}

fn rows_have_the_same_bits_whatever_is_beside_them() {
    for (precision, kernels) in ways() {
        let cuda = Cuda::open(0, precision, Some(kernels)).unwrap();
        bits::check_attention(&cuda);
        // Wide tiles and narrow ones on a GPU of 132 multiprocessors.
        bits::check_products(&cuda, 8192, 512, 1024);
    }
}

fn golden_pairs_agree_with_transformers() {
    gold::check(&Cuda::open(0, ContextPrecision::Float32, None).unwrap(), 1e-3);
}

fn equal_weights_give_exactly_zero() {
    let ids = prompts(&[1, 2, 33, 300]);
    for case in CASES {
        let model = Path::new("tests/golden").join(case).join("tuned");
        let pair = Pair::open(&model, &model, None).unwrap();
        for (precision, kernels) in ways() {
            let cuda = Cuda::open(0, precision, Some(kernels)).unwrap();
            for score in Engine::new(&cuda, &Unshared(&pair)).score(&slices(&ids), &unobserved).unwrap() {
                assert!(score.running.iter().all(|l1| l1.ftc == 0.0 && l1.ptc > 0.0), "{case}: {score:?}");
            }
        }
    }
}

fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths.iter().map(|len| (0..*len).map(|i| (i * 17 + i * i + len) as u32 % 50).collect()).collect()
}

fn slices(prompts: &[Vec<u32>]) -> Vec<&[u32]> {
    prompts.iter().map(Vec::as_slice).collect()
}

const CASES: [&str; 6] =
    ["llama_gqa_tied_bf16", "gemma2_wide_heads", "gemma3_layer_types", "qwen3_moe", "phi3_longrope", "gpt2"];

fn batch_order_and_residence_change_no_bit_on_a_gpu() {
    for (precision, kernels) in ways() {
        let open = || Cuda::open(0, precision, Some(kernels)).unwrap();
        let (streamed, resident) = (open(), open().with_resident_weights(true));
        let ids = prompts(&[70, 1, 140, 2, 9, 64]);
        for case in CASES {
            let dir = Path::new("tests/golden").join(case);
            let pair = Pair::open(&dir.join("base"), &dir.join("tuned"), None).unwrap();
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
    macro_rules! tests {
        ($($name:ident: $needs_gpu:literal),*) => {
            [$((stringify!($name), $name as fn(), $needs_gpu)),*]
        };
    }
    let tests = tests![
        every_kernel_agrees_with_the_reference: true,
        rows_have_the_same_bits_whatever_is_beside_them: true,
        golden_pairs_agree_with_transformers: true,
        equal_weights_give_exactly_zero: true,
        batch_order_and_residence_change_no_bit_on_a_gpu: true,
        a_machine_without_a_gpu_says_so: false
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
