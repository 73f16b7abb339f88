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

#[test]
fn kernels_of_f32_rows_agree_with_the_reference() {
    let cuda = || Cuda::simulated(ContextPrecision::Float32, Kernels::Sm80);
    compare(cuda, CASES, &[Weights::Bf16, Weights::Wide, Weights::Adapted], F32_TOLERANCE);
}

#[test]
fn attention_has_the_same_bits_wherever_a_prompt_lies_and_whatever_is_beside_it() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        bits::check_attention(&Cuda::simulated(ContextPrecision::Bfloat16, kernels));
    }
}

#[test]
fn products_have_the_same_bits_whatever_their_tiles() {
    let cuda = Cuda::simulated(ContextPrecision::Bfloat16, Kernels::Sm90a).profiled();
    bits::check_products(&cuda, 300, 100, 200);
    let run: Vec<String> = cuda.kernel_times().unwrap().into_iter().map(|time| time.kernel).collect();
    for epilogue in ["store_bf16", "add", "activated", "gated"] {
        for tiles in ["", "narrow_"] {
            let kernel = format!("product_sm90_{tiles}{epilogue}");
            assert!(run.contains(&kernel), "{kernel} is not among {run:?}");
        }
    }
}
