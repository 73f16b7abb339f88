//! All families that load, a table each. A family that differs only in known ways is one more table here and a golden
//! case in `tests/golden/family_pairs.py`.

mod gemma;
mod gpt;
mod gpt_oss;
mod layer_norm;
mod llama;
mod mistral;
mod olmo;
mod qwen;
mod tables;

use super::family::Family;
use llama::LIKE_LLAMA;

/// All families.
pub static FAMILIES: &[&Family] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MINISTRAL,
    &mistral::MINISTRAL3,
    &mistral::MIXTRAL,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3_TEXT,
    &qwen::QWEN2,
    &qwen::QWEN2_MOE,
    &qwen::QWEN2_VL,
    &qwen::QWEN2_5_VL,
    &qwen::QWEN3,
    &qwen::QWEN3_VL,
    &qwen::QWEN3_MOE,
    &olmo::OLMO,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &olmo::OLMOE,
    &llama::PHI3,
    &llama::GRANITE,
    &llama::GRANITE_MOE_HYBRID,
    &llama::SMOLLM3,
    &llama::GLM,
    &llama::GLM4,
    &llama::ERNIE4_5,
    &llama::SEED_OSS,
    &llama::ARCEE,
    &llama::APERTUS,
    &llama::IQUESTCODER,
    &llama::CWM,
    &layer_norm::NEMOTRON,
    &layer_norm::JAIS2,
    &layer_norm::STABLELM,
    &layer_norm::STARCODER2,
    &layer_norm::PHI,
    &gpt::GPT_NEOX,
    &gpt::GPT2,
    &gpt::GPT_BIGCODE,
    &gpt::GPT_NEO,
    &gpt::GPTJ,
    &gpt::OPT,
    &gpt_oss::GPT_OSS,
    &gpt::FALCON,
    &gpt::FALCON_40B,
    &gpt::FALCON2,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::LayerTensor::*;

    #[test]
    fn tables_are_sound() {
        for family in FAMILIES {
            assert!(!family.config_defaults().is_empty(), "{}", family.model_type);
            family.computable_values();
            family.fixed_fields();
            let is_same =
                |other: &&&Family| (other.model_type, other.told_by) == (family.model_type, family.told_by);
            assert_eq!(FAMILIES.iter().filter(is_same).count(), 1, "{}", family.model_type);
            for (index, (tensor, _)) in family.listed_tensors().enumerate() {
                let first = family.listed_tensors().position(|(other, _)| other == tensor);
                assert_eq!(first, Some(index), "{tensor:?} of {}", family.model_type);
            }
            // What experts write goes to the stream as it is (engine/block.rs).
            let has = |tensor| family.listed_tensors().any(|(own, _)| *own == tensor);
            let scales = family.config_defaults().contains_key("residual_multiplier");
            assert!(!has(Router) || !has(MlpPostNorm) && !scales, "{}", family.model_type);
            // Neither fused rows nor the weights of norms are put into another order (checkpoint/mod.rs).
            let are_fused = [Query, Key].iter().any(|tensor| family.fused_with(*tensor).count() > 1);
            assert!(!family.interleaved_rotation || !has(QueryNorm) && !are_fused, "{}", family.model_type);
        }
    }
}
