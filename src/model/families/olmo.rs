//! OLMo.

use super::{
    LIKE_LLAMA,
    tables::{
        ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, EXPERTS, GATED_MLP, INPUT_NORM, NORMS_AFTER,
        POST_ATTENTION_NORM, QUERY_KEY_NORMS, QUERY_KEY_VALUE,
    },
};
use crate::model::family::{Family, LayerTensors, WindowRule};

/// OLMo 1 (modeling_olmo.py): LayerNorm without weights.
pub static OLMO: Family = Family {
    model_type: "olmo",
    defaults: r#"{"max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false}"#,
    fixed: r#"{"rms_norm_eps": 1e-5}"#,
    computable: r#"{"clip_qkv": null}"#,
    centered_norms: true,
    weightless_norms: true,
    ..LIKE_LLAMA
};

const OLMO2_TENSORS: &[LayerTensors] =
    &[QUERY_KEY_VALUE, QUERY_KEY_NORMS, ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, NORMS_AFTER, GATED_MLP];

/// OLMo 2 (modeling_olmo2.py): norms after attention and MLP, none before.
pub static OLMO2: Family = Family {
    model_type: "olmo2",
    layer_tensors: OLMO2_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false}"#,
    whole_qk_norm: true,
    ..LIKE_LLAMA
};

/// OLMo 3 (modeling_olmo3.py): OLMo 2 with windows; only layers of full attention stretch their angles.
pub static OLMO3: Family = Family {
    model_type: "olmo3",
    layer_tensors: OLMO2_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "rope_theta": 5e5, "sliding_window": 4096, "layer_types": null}"#,
    sliding_rope_theta: Some("rope_theta"),
    window_rule: WindowRule::AllButEvery(4),
    whole_qk_norm: true,
    ..LIKE_LLAMA
};

/// OLMoE (modeling_olmoe.py).
pub static OLMOE: Family = Family {
    model_type: "olmoe",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        QUERY_KEY_NORMS,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        EXPERTS,
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu", "attention_bias": false,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": false}"#,
    computable: r#"{"clip_qkv": null}"#,
    whole_qk_norm: true,
    ..LIKE_LLAMA
};
