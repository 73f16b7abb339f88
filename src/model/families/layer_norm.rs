//! Families with LayerNorm that name tensors as Llama does.

use super::{
    LIKE_LLAMA,
    tables::{
        ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, GATED_MLP, GPT2_MLP, INPUT_NORM, INPUT_NORM_BIAS, PLAIN_MLP,
        POST_ATTENTION_NORM, POST_ATTENTION_NORM_BIAS, QUERY_KEY_VALUE,
    },
};
use crate::model::family::{Family, LayerTensor::*};

/// StarCoder 2 (modeling_starcoder2.py): LayerNorm, biases, an MLP without a gate.
pub static STARCODER2: Family = Family {
    model_type: "starcoder2",
    layer_tensors: &[
        INPUT_NORM,
        INPUT_NORM_BIAS,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        POST_ATTENTION_NORM_BIAS,
        GPT2_MLP,
    ],
    final_norm_bias: Some("model.norm.bias"),
    tied_by_default: true,
    defaults: r#"{"norm_epsilon": 1e-5, "max_position_embeddings": 4096, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2,
        "sliding_window": null, "use_bias": true}"#,
    config_names: &[
        ("rms_norm_eps", "norm_epsilon"),
        ("attention_bias", "use_bias"),
        ("mlp_bias", "use_bias"),
    ],
    centered_norms: true,
    ..LIKE_LLAMA
};

/// StableLM (modeling_stablelm.py): LayerNorm; side by side attention and MLP have one norm.
pub static STABLELM: Family = Family {
    model_type: "stablelm",
    layer_tensors: &[
        INPUT_NORM,
        INPUT_NORM_BIAS,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        POST_ATTENTION_NORM,
        POST_ATTENTION_NORM_BIAS,
        GATED_MLP,
    ],
    final_norm_bias: Some("model.norm.bias"),
    defaults: r#"{"layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu", "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25, "use_qkv_bias": false, "use_parallel_residual": false}"#,
    computable: r#"{"qk_layernorm": false}"#,
    config_names: &[("rms_norm_eps", "layer_norm_eps"), ("attention_bias", "use_qkv_bias")],
    centered_norms: true,
    one_norm_in_parallel: true,
    ..LIKE_LLAMA
};

/// Nemotron 3 and 4, Minitron (modeling_nemotron.py): LayerNorm that multiplies with 1 + weight, squared ReLU without a gate.
pub static NEMOTRON: Family = Family {
    model_type: "nemotron",
    layer_tensors: &[
        INPUT_NORM,
        INPUT_NORM_BIAS,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        POST_ATTENTION_NORM_BIAS,
        PLAIN_MLP,
    ],
    final_norm_bias: Some("model.norm.bias"),
    defaults: r#"{"norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "relu2", "head_dim": null,
        "partial_rotary_factor": 0.5, "attention_bias": false, "mlp_bias": false}"#,
    config_names: &[("rms_norm_eps", "norm_eps")],
    centered_norms: true,
    norms_add_one: true,
    ..LIKE_LLAMA
};

/// Jais 2 (modeling_jais2.py): LayerNorm, biases, squared ReLU without a gate.
pub static JAIS2: Family = Family {
    model_type: "jais2",
    layer_tensors: NEMOTRON.layer_tensors,
    final_norm_bias: Some("model.norm.bias"),
    defaults: r#"{"layer_norm_eps": 1e-5, "max_position_embeddings": 8192, "hidden_act": "relu2", "head_dim": null, "attention_bias": true,
        "mlp_bias": true}"#,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    centered_norms: true,
    ..LIKE_LLAMA
};

/// Phi 1, 1.5 and 2 (modeling_phi.py): LayerNorm, biases, attention and MLP side by side after one norm.
pub static PHI: Family = Family {
    model_type: "phi",
    layer_tensors: &[
        INPUT_NORM,
        INPUT_NORM_BIAS,
        QUERY_KEY_VALUE,
        &[
            (AttentionOutput, "self_attn.dense.weight"),
            (AttentionOutputBias, "self_attn.dense.bias"),
            (Up, "mlp.fc1.weight"),
            (UpBias, "mlp.fc1.bias"),
            (Down, "mlp.fc2.weight"),
            (DownBias, "mlp.fc2.bias"),
        ],
    ],
    final_norm: "model.final_layernorm.weight",
    final_norm_bias: Some("model.final_layernorm.bias"),
    head_bias: Some("lm_head.bias"),
    defaults: r#"{"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5}"#,
    fixed: r#"{"attention_bias": true, "mlp_bias": true, "use_parallel_residual": true}"#,
    computable: r#"{"qk_layernorm": false}"#,
    config_names: &[("rms_norm_eps", "layer_norm_eps")],
    centered_norms: true,
    one_norm_in_parallel: true,
    ..LIKE_LLAMA
};
