//! Every kernel of the CUDA backend, on the simulator, against the reference backend.

#[path = "common/attention_bits.rs"]
mod attention_bits;
#[path = "common/kernel_cases.rs"]
mod kernel_cases;

use kernel_cases::{BF16_TOLERANCE, F32_TOLERANCE, compare};
use tuco::backend::cuda::{ContextPrecision, Cuda, Kernels};

#[test]
fn kernels_of_bf16_rows_agree_with_the_reference() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        compare(|| Cuda::simulated(ContextPrecision::Bfloat16, kernels), BF16_TOLERANCE, false);
    }
}

#[test]
fn kernels_of_f32_rows_agree_with_the_reference() {
    for wide_weights in [false, true] {
        let cuda = || Cuda::simulated(ContextPrecision::Float32, Kernels::Sm80);
        compare(cuda, F32_TOLERANCE, wide_weights);
    }
}

#[test]
fn attention_has_the_same_bits_wherever_a_prompt_lies_and_whatever_is_beside_it() {
    for kernels in [Kernels::Sm80, Kernels::Sm90a] {
        attention_bits::check(&Cuda::simulated(ContextPrecision::Bfloat16, kernels));
    }
}
