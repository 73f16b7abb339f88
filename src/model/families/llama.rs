//! Llama, and what differs from it in little.

use super::tables::{
    ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, FUSED_GATED_MLP, GATED_MLP, INPUT_NORM, PLAIN_MLP,
    POST_ATTENTION_NORM, QUERY_KEY_NORMS, QUERY_KEY_VALUE,
};
use crate::model::family::{Family, Fusion, LayerTensor::*, Transposed, WindowRule};

/// What is common to most: the names that Llama gave the tensors, norms and embeddings as they are.
pub const LIKE_LLAMA: Family = Family {
    model_type: "llama",
    told_by: &[],
    embedding: "model.embed_tokens.weight",
    layer_prefix: "model.layers.",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        GATED_MLP,
    ],
    final_norm: "model.norm.weight",
    final_norm_bias: None,
    head: "lm_head.weight",
    head_bias: None,
    tied_by_default: false,
    ignored_suffixes: &["rotary_emb.inv_freq"],
    defaults: "{}",
    fixed: "{}",
    computable: "{}",
    config_names: &[],
    config_aliases: &[],
    fusion: Fusion::OneByOne,
    transposed: Transposed::None,
    experts_together: false,
    position_embedding: None,
    position_offset: 0,
    window_rule: WindowRule::All,
    centered_norms: false,
    rotates: true,
    interleaved_rotation: false,
    sliding_rope_theta: None,
    norms_add_one: false,
    weightless_norms: false,
    one_norm_in_parallel: false,
    gelu_is_tanh: false,
    scaled_embedding: false,
    always_qkv_bias: false,
    whole_qk_norm: false,
};

/// Llama 1 to 3.3, and what was made from them: Vicuna, SmolLM, TinyLlama, Yi … (`transformers` modeling_llama.py).
pub static LLAMA: Family = Family {
    model_type: "llama",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false}"#,
    ..LIKE_LLAMA
};

/// IQuest-Coder (configuration_iquestcoder.py).
pub static IQUESTCODER: Family = Family {
    model_type: "iquestcoder",
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 128,
        "attention_bias": false, "mlp_bias": false}"#,
    computable: r#"{"clip_qkv": null, "use_sliding_window": false}"#,
    ..LIKE_LLAMA
};

/// Meta's Code World Model (modeling_cwm.py): every fourth layer, from the first, sees all.
pub static CWM: Family = Family {
    model_type: "cwm",
    layer_tensors: &[INPUT_NORM, QUERY_KEY_VALUE, ATTENTION_OUTPUT, POST_ATTENTION_NORM, GATED_MLP],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 128,
        "mlp_bias": false, "sliding_window": 8192, "layer_types": null, "rope_theta": 1e6, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6,
        "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
    window_rule: WindowRule::AllButFirstOfEvery(4),
    ..LIKE_LLAMA
};

/// Arcee's AFM (modeling_arcee.py): Llama with a squared ReLU in the place of the gate.
pub static ARCEE: Family = Family {
    model_type: "arcee",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        PLAIN_MLP,
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "relu2", "attention_bias": false,
        "mlp_bias": false}"#,
    ..LIKE_LLAMA
};

/// Apertus (modeling_apertus.py): norms of queries and keys, xIELU without a gate.
pub static APERTUS: Family = Family {
    model_type: "apertus",
    layer_tensors: &[
        &[(AttentionNorm, "attention_layernorm.weight")],
        QUERY_KEY_VALUE,
        QUERY_KEY_NORMS,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        &[(MlpNorm, "feedforward_layernorm.weight")],
        PLAIN_MLP,
        &[
            (XieluAlphaP, "mlp.act_fn.alpha_p"),
            (XieluAlphaN, "mlp.act_fn.alpha_n"),
            (XieluBeta, "mlp.act_fn.beta"),
            (XieluEps, "mlp.act_fn.eps"),
        ],
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 65536, "hidden_act": "xielu", "attention_bias": false,
        "rope_theta": 12e6, "rope_parameters": {"rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
    ..LIKE_LLAMA
};

/// ERNIE 4.5, dense (modeling_ernie4_5.py).
pub static ERNIE4_5: Family = Family {
    model_type: "ernie4_5",
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 2,
        "head_dim": 128, "rope_theta": 5e5, "use_bias": false}"#,
    config_names: &[("attention_bias", "use_bias"), ("mlp_bias", "use_bias")],
    interleaved_rotation: true,
    tied_by_default: true,
    ..LIKE_LLAMA
};

/// GLM 4 of 9B (modeling_glm.py).
pub static GLM: Family = Family {
    model_type: "glm",
    layer_tensors: &[INPUT_NORM, QUERY_KEY_VALUE, ATTENTION_OUTPUT, POST_ATTENTION_NORM, FUSED_GATED_MLP],
    defaults: GLM_DEFAULTS,
    interleaved_rotation: true,
    ..LIKE_LLAMA
};

const GLM_DEFAULTS: &str = r#"{"rms_norm_eps": 1.5625e-7, "max_position_embeddings": 131072, "hidden_act": "silu",
    "num_key_value_heads": 2, "head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": true}"#;

/// GLM 4 of April 2025 (modeling_glm4.py): norms after attention and MLP too.
pub static GLM4: Family = Family {
    model_type: "glm4",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        &[(AttentionPostNorm, "post_self_attn_layernorm.weight")],
        POST_ATTENTION_NORM,
        FUSED_GATED_MLP,
        &[(MlpPostNorm, "post_mlp_layernorm.weight")],
    ],
    defaults: GLM_DEFAULTS,
    interleaved_rotation: true,
    ..LIKE_LLAMA
};

/// Granite 3, dense (modeling_granite.py).
pub static GRANITE: Family = Family {
    model_type: "granite",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "logits_scaling": 1.0}"#,
    ..LIKE_LLAMA
};

/// Granite 4 without Mamba and experts (modeling_granitemoehybrid.py).
pub static GRANITE_MOE_HYBRID: Family = Family {
    model_type: "granitemoehybrid",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        &[
            (Gate, "shared_mlp.input_linear.weight"),
            (Up, "shared_mlp.input_linear.weight"),
            (Down, "shared_mlp.output_linear.weight"),
        ],
    ],
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "shared_intermediate_size": 1024, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "logits_scaling": 1.0, "position_embedding_type": null, "layer_types": ["mamba"]}"#,
    computable: r#"{"num_local_experts": 0}"#,
    config_names: &[("intermediate_size", "shared_intermediate_size")],
    ..LIKE_LLAMA
};

/// Phi 3 to 4 (modeling_phi3.py).
pub static PHI3: Family = Family {
    model_type: "phi3",
    layer_tensors: &[
        INPUT_NORM,
        &[
            (Query, "self_attn.qkv_proj.weight"),
            (Key, "self_attn.qkv_proj.weight"),
            (Value, "self_attn.qkv_proj.weight"),
        ],
        ATTENTION_OUTPUT,
        POST_ATTENTION_NORM,
        FUSED_GATED_MLP,
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu", "sliding_window": null,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0}"#,
    ..LIKE_LLAMA
};

/// Seed-OSS (modeling_seed_oss.py).
pub static SEED_OSS: Family = Family {
    model_type: "seed_oss",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 524288, "hidden_act": "silu", "num_key_value_heads": 8,
        "head_dim": 128, "attention_bias": true, "attention_out_bias": false, "mlp_bias": false}"#,
    ..LIKE_LLAMA
};

/// SmolLM3 (modeling_smollm3.py): every fourth layer does not rotate.
pub static SMOLLM3: Family = Family {
    model_type: "smollm3",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 4,
        "rope_theta": 2e6, "attention_bias": false, "mlp_bias": false, "no_rope_layers": null,
        "no_rope_layer_interval": 4, "use_sliding_window": false, "sliding_window": null, "layer_types": null}"#,
    window_rule: WindowRule::WithoutRope,
    tied_by_default: true,
    ..LIKE_LLAMA
};
