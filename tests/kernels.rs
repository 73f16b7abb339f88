//! Every kernel of the CUDA backend, on the simulator, against the reference backend.

#[path = "common/bits.rs"]
mod bits;
#[path = "common/kernel_cases.rs"]
mod kernel_cases;

use kernel_cases::{BF16_TOLERANCE, CASES, Case, F32_TOLERANCE, LONG, Weights, compare};
use tuco::{
    backend::{
        Backend, Role, Rows,
        cuda::{ContextPrecision, Cuda, Kernels},
    },
    tensor::{Dtype, LowRank, Stored, Tensor},
};

/// Any number: on a GPU each run has another.
const SEED: u64 = 7;

/// Apart from each other, so that they end at about the same time.
macro_rules! bf16_rows {
    ($($name:ident: $kernels:ident, $weights:ident;)*) => {$(
        #[test]
        fn $name() {
            let cuda = || Cuda::simulated(ContextPrecision::Bfloat16, Kernels::$kernels);
            compare(cuda, CASES, &[Weights::$weights], BF16_TOLERANCE, SEED);
        }
    )*};
}

bf16_rows! {
    kernels_of_bf16_rows_agree_with_the_reference: Sm80, Bf16;
    kernels_of_bf16_rows_agree_with_the_reference_for_adapted_weights: Sm80, Adapted;
    kernels_of_bf16_rows_for_hopper_agree_with_the_reference: Sm90a, Bf16;
    kernels_of_bf16_rows_for_hopper_agree_with_the_reference_for_adapted_weights: Sm90a, Adapted;
}

macro_rules! f32_rows {
    ($($name:ident: $kernels:ident, $weights:ident;)*) => {$(
        #[test]
        fn $name() {
            let cuda = || Cuda::simulated(ContextPrecision::Float32, Kernels::$kernels);
            let cases: Vec<Case> = CASES.iter().copied().chain([LONG]).collect();
            compare(cuda, &cases, &[Weights::$weights], F32_TOLERANCE, SEED);
        }
    )*};
}

f32_rows! {
    kernels_of_f32_rows_agree_with_the_reference: Sm80, Bf16;
    kernels_of_f32_rows_agree_with_the_reference_for_wide_weights: Sm80, Wide;
    kernels_of_f32_rows_agree_with_the_reference_for_adapted_weights: Sm80, Adapted;
    kernels_of_f32_rows_for_hopper_agree_with_the_reference: Sm90a, Bf16;
    kernels_of_f32_rows_for_hopper_agree_with_the_reference_for_wide_weights: Sm90a, Wide;
    kernels_of_f32_rows_for_hopper_agree_with_the_reference_for_adapted_weights: Sm90a, Adapted;
}

#[test]
fn attention_has_the_same_bits_wherever_a_prompt_lies_and_whatever_is_beside_it() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        bits::check_attention(&Cuda::simulated(ContextPrecision::Bfloat16, kernels));
    }
}

#[test]
fn embedded_rows_are_those_of_the_table_on_the_device_and_on_the_host() {
    const ROWS: usize = 1500;
    let host = Cuda::simulated(ContextPrecision::Bfloat16, Kernels::Sm80);
    let device = Cuda::simulated(ContextPrecision::Bfloat16, Kernels::Sm80).with_resident_weights(true);
    let device = device.profiled();
    // More than are brought at once.
    let many = (0..4100).map(|row| row * 7 % ROWS as u32);
    let ids: Vec<u32> = [7, 0, ROWS as u32 - 1, 7, 1023, 1024].into_iter().chain(many).collect();
    let mut bytes = vec![0; ROWS * 40 * 4];
    // Each table comes to lie where the one before it lay.
    for seed in 0..2 {
        // Bits of any numbers but infinite ones, zeros of both signs and numbers below the normal ones among them.
        for (at, pair) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let bits = (at as u32 + seed).wrapping_mul(2_654_435_761) >> 16;
            *pair = (if bits.is_multiple_of(7) { bits & 0x8001 } else { bits & 0xbfff } as u16).to_le_bytes();
        }
        let b = vec![1; ROWS * 2 * 4];
        let update = |cols: usize| LowRank {
            a: Stored::new(Dtype::F32, cols, &bytes[..2 * cols * 4]),
            b: Stored::new(Dtype::F32, 2, &b),
            b_columns: (0, 1),
            scale: 0.3,
            row_scales: None,
            merged_to: None,
        };
        let kinds = [(Dtype::Bf16, false), (Dtype::F32, false), (Dtype::F16, false), (Dtype::Bf16, true)];
        for ((dtype, adapted), cols) in kinds.into_iter().flat_map(|kind| [(kind, 40), (kind, 37)]) {
            let stored = Tensor::stored(dtype, ROWS, cols, &bytes[..ROWS * cols * dtype.size()]);
            let tensor = Tensor { update: adapted.then(|| update(cols)), ..stored };
            let rows_of = |cuda: &Cuda| -> Vec<u64> {
                let mut out = cuda.zeros(Rows::Context, Role::Stream, ids.len(), cols);
                cuda.embed(&ids, &cuda.table(tensor), &mut out);
                let rows = cuda.read(&out);
                cuda.check().unwrap();
                rows.into_iter().map(f64::to_bits).collect()
            };
            let mut expected = vec![0.0f32; ids.len() * cols];
            for (id, row) in ids.iter().zip(expected.chunks_exact_mut(cols)) {
                tensor.widen_run(*id as usize, 0..cols, row);
            }
            let expected: Vec<u64> = expected.into_iter().map(|value| f64::from(value).to_bits()).collect();
            assert!(rows_of(&host) == expected, "on the host: {dtype:?}, {cols}, adapted: {adapted}");
            assert!(rows_of(&device) == expected, "on the device: {dtype:?}, {cols}, adapted: {adapted}");
        }
    }
    let mut run: Vec<String> = device.kernel_times().unwrap().into_iter().map(|time| time.kernel).collect();
    run.sort();
    assert_eq!(run, ["gather_bf16_f32", "gather_f32_f32"]);
}

/// Holds products to the same bits whatever their tiles, and to have run with these.
fn check_tiles(
    (context, kernels): (ContextPrecision, Kernels),
    few: &[usize],
    cols: usize,
    tiles: &[String],
    epilogues: &[&str],
) {
    let cuda = Cuda::simulated(context, kernels).profiled();
    bits::check_products(&cuda, 300, few, cols);
    let run: Vec<String> = cuda.kernel_times().unwrap().into_iter().map(|time| time.kernel).collect();
    for tiles in tiles {
        for epilogue in epilogues {
            let kernel = format!("{tiles}{epilogue}");
            assert!(run.contains(&kernel), "{kernel} is not among {run:?}");
        }
    }
}

#[test]
fn products_have_the_same_bits_whatever_their_tiles() {
    for (kernels, name) in [(Kernels::Sm80, "product_"), (Kernels::Sm90a, "product_sm90_")] {
        let tiles = ["", "narrow_"].map(|narrow| format!("{name}{narrow}"));
        let way = (ContextPrecision::Bfloat16, kernels);
        check_tiles(way, &[100], 200, &tiles, &["store_bf16", "add", "activated", "gated"]);
    }
}

#[test]
fn products_of_f32_rows_have_the_same_bits_whatever_their_tiles() {
    // Two tiles of weights fill the simulator's multiprocessors by halves.
    for (few, cols, tiles) in
        [(&[1, 20, 50, 100][..], 100, &["8", "32", "64", "128", "whole"][..]), (&[90], 200, &["halves"])]
    {
        let tiles: Vec<String> = tiles.iter().map(|tile| format!("twin_product_sm90_{tile}_")).collect();
        let way = (ContextPrecision::Float32, Kernels::Sm90a);
        check_tiles(way, few, cols, &tiles, &["store", "add", "activated", "gated"]);
    }
}
