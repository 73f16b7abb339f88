//! Every kernel of the CUDA backend, on the simulator, against the reference backend.

#[path = "common/bits.rs"]
mod bits;
#[path = "common/kernel_cases.rs"]
mod kernel_cases;

use kernel_cases::{BF16_TOLERANCE, CASES, F32_TOLERANCE, Weights, compare};
use tuco::backend::{
    Backend,
    cuda::{ContextPrecision, Cuda, Kernels},
};

#[test]
fn kernels_of_bf16_rows_agree_with_the_reference() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        let cuda = || Cuda::simulated(ContextPrecision::Bfloat16, kernels);
        compare(cuda, CASES, &[Weights::Bf16, Weights::Adapted], BF16_TOLERANCE);
    }
}

fn compare_f32_rows(kernels: Kernels) {
    let cuda = || Cuda::simulated(ContextPrecision::Float32, kernels);
    compare(cuda, CASES, &[Weights::Bf16, Weights::Wide, Weights::Adapted], F32_TOLERANCE);
}

#[test]
fn kernels_of_f32_rows_agree_with_the_reference() {
    compare_f32_rows(Kernels::Sm80);
}

#[test]
fn kernels_of_f32_rows_for_hopper_agree_with_the_reference() {
    compare_f32_rows(Kernels::Sm90a);
}

#[test]
fn attention_has_the_same_bits_wherever_a_prompt_lies_and_whatever_is_beside_it() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        bits::check_attention(&Cuda::simulated(ContextPrecision::Bfloat16, kernels));
    }
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
    let tiles = ["8", "32", "64", "128", "whole"].map(|tile| format!("twin_product_sm90_{tile}_"));
    let few = [1, 20, 50, 100];
    check_tiles(
        (ContextPrecision::Float32, Kernels::Sm90a),
        &few,
        100,
        &tiles,
        &["store", "add", "activated", "gated"],
    );
}
