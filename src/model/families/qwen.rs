//! Qwen.

use super::{
    LIKE_LLAMA,
    tables::{
        ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, EXPERTS, GATED_MLP, INPUT_NORM, POST_ATTENTION_NORM,
        QUERY_KEY_NORMS, QUERY_KEY_VALUE,
    },
};
use crate::model::family::{Family, LayerTensor::*, LayerTensors, WindowRule};

/// Qwen 1.5 to 2.5 (modeling_qwen2.py).
pub static QWEN2: Family = Family {
    model_type: "qwen2",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 32,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "layer_types": null}"#,
    always_qkv_bias: true,
    window_rule: WindowRule::From("max_window_layers"),
    ..LIKE_LLAMA
};

/// The text part of Qwen 2 VL (modeling_qwen2_vl.py), which is Qwen 2.
pub static QWEN2_VL: Family = Family { model_type: "qwen2_vl_text", ..LIKE_QWEN2_VL };

/// The text part of Qwen 2.5 VL (modeling_qwen2_5_vl.py).
pub static QWEN2_5_VL: Family = Family { model_type: "qwen2_5_vl_text", ..LIKE_QWEN2_VL };

const LIKE_QWEN2_VL: Family = Family {
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 8, "rope_theta": 1e6,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 80, "layer_types": null}"#,
    always_qkv_bias: true,
    window_rule: WindowRule::From("max_window_layers"),
    ..LIKE_LLAMA
};

/// Qwen 1.5 and 2 with experts (modeling_qwen2_moe.py), of which one takes every token.
pub static QWEN2_MOE: Family = Family {
    model_type: "qwen2_moe",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        POST_ATTENTION_NORM,
        GATED_MLP,
        EXPERTS,
        &[
            (SharedGate, "mlp.shared_expert.gate_proj.weight"),
            (SharedUp, "mlp.shared_expert.up_proj.weight"),
            (SharedDown, "mlp.shared_expert.down_proj.weight"),
            (SharedShare, "mlp.shared_expert_gate.weight"),
        ],
    ],
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 16,
        "qkv_bias": true, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "layer_types": null,
        "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": false, "decoder_sparse_step": 1, "mlp_only_layers": null}"#,
    config_names: &[("attention_bias", "qkv_bias")],
    window_rule: WindowRule::AllButEvery(2),
    ..LIKE_LLAMA
};

const QWEN3_TENSORS: &[LayerTensors] = &[
    INPUT_NORM,
    QUERY_KEY_VALUE,
    QUERY_KEY_NORMS,
    ATTENTION_OUTPUT,
    ATTENTION_OUTPUT_BIAS,
    POST_ATTENTION_NORM,
    GATED_MLP,
];

/// Qwen 3, dense (modeling_qwen3.py).
pub static QWEN3: Family = Family {
    model_type: "qwen3",
    layer_tensors: QWEN3_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 32,
        "head_dim": 128, "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096,
        "max_window_layers": 28, "layer_types": null}"#,
    window_rule: WindowRule::From("max_window_layers"),
    ..LIKE_LLAMA
};

/// The text part of Qwen 3 VL (modeling_qwen3_vl.py), which is Qwen 3.
pub static QWEN3_VL: Family = Family {
    model_type: "qwen3_vl_text",
    layer_tensors: QWEN3_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 128000, "hidden_act": "silu", "num_key_value_heads": 32, "rope_theta": 5e5,
        "head_dim": 128, "attention_bias": false}"#,
    ..LIKE_LLAMA
};

/// Qwen 3 with experts (modeling_qwen3_moe.py); some layers may have one MLP.
pub static QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        QUERY_KEY_NORMS,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        GATED_MLP,
        EXPERTS,
    ],
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 4,
        "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096, "num_experts": null,
        "num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": false,
        "decoder_sparse_step": 1, "mlp_only_layers": null}"#,
    ..LIKE_LLAMA
};
