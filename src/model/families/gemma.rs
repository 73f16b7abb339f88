//! Gemma.

use super::{
    LIKE_LLAMA,
    tables::{
        ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, GATED_MLP, INPUT_NORM, QUERY_KEY_NORMS, QUERY_KEY_VALUE,
        SANDWICH_NORMS,
    },
};
use crate::model::family::{Family, WindowRule};

/// Gemma 1 (modeling_gemma.py).
pub static GEMMA: Family = Family {
    model_type: "gemma",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 16, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null}"#,
    norms_add_one: true,
    gelu_is_tanh: true,
    scaled_embedding: true,
    tied_by_default: true,
    ..LIKE_LLAMA
};

/// Gemma 2 (modeling_gemma2.py).
pub static GEMMA2: Family = Family {
    model_type: "gemma2",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        SANDWICH_NORMS,
        GATED_MLP,
    ],
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 4, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null,
        "sliding_window": 4096, "layer_types": null, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}"#,
    norms_add_one: true,
    scaled_embedding: true,
    window_rule: WindowRule::AllButEvery(2),
    tied_by_default: true,
    ..LIKE_LLAMA
};

/// The text models of Gemma 3 (modeling_gemma3.py).
pub static GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        QUERY_KEY_NORMS,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        SANDWICH_NORMS,
        GATED_MLP,
    ],
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 4, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null,
        "sliding_window": 4096, "sliding_window_pattern": 6, "layer_types": null, "final_logit_softcapping": null,
        "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "vocab_size": 262208}"#,
    fixed: r#"{"attn_logit_softcapping": null}"#,
    norms_add_one: true,
    scaled_embedding: true,
    sliding_rope_theta: Some("rope_local_base_freq"),
    window_rule: WindowRule::AllButEveryOf("sliding_window_pattern"),
    tied_by_default: true,
    ..LIKE_LLAMA
};
