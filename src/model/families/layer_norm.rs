//! Families whose norms are LayerNorm.

use super::{
    LIKE_LLAMA,
    tables::{
        ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, GATED_MLP, INPUT_NORM, INPUT_NORM_BIAS, PLAIN_MLP,
        POST_ATTENTION_NORM, POST_ATTENTION_NORM_BIAS, QUERY_KEY_VALUE,
    },
};
use crate::model::family::{Family, Fusion, LayerTensor::*};

/// GPT-NeoX and Pythia (modeling_gpt_neox.py): LayerNorm, biases, attention and MLP side by side.
pub static GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    embedding: "gpt_neox.embed_in.weight",
    layer_prefix: "gpt_neox.layers.",
    layer_tensors: &[&[
        (AttentionNorm, "input_layernorm.weight"),
        (AttentionNormBias, "input_layernorm.bias"),
        (Query, "attention.query_key_value.weight"),
        (Key, "attention.query_key_value.weight"),
        (Value, "attention.query_key_value.weight"),
        (QueryBias, "attention.query_key_value.bias"),
        (KeyBias, "attention.query_key_value.bias"),
        (ValueBias, "attention.query_key_value.bias"),
        (AttentionOutput, "attention.dense.weight"),
        (AttentionOutputBias, "attention.dense.bias"),
        (MlpNorm, "post_attention_layernorm.weight"),
        (MlpNormBias, "post_attention_layernorm.bias"),
        (Up, "mlp.dense_h_to_4h.weight"),
        (UpBias, "mlp.dense_h_to_4h.bias"),
        (Down, "mlp.dense_4h_to_h.weight"),
        (DownBias, "mlp.dense_4h_to_h.bias"),
    ]],
    final_norm: "gpt_neox.final_layer_norm.weight",
    final_norm_bias: Some("gpt_neox.final_layer_norm.bias"),
    head: "embed_out.weight",
    ignored_suffixes: &["rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"],
    defaults: r#"{"layer_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "gelu", "attention_bias": true,
        "mlp_bias": true, "rotary_pct": 0.25, "rotary_emb_base": 1e4, "use_parallel_residual": true}"#,
    config_names: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("partial_rotary_factor", "rotary_pct"),
        ("rope_theta", "rotary_emb_base"),
    ],
    fusion: Fusion::HeadByHead,
    centered_norms: true,
    ..LIKE_LLAMA
};

/// GPT-2 (modeling_gpt2.py): learned positions, LayerNorm, biases, matrices stored as `[in, out]`.
pub static GPT2: Family = Family {
    model_type: "gpt2",
    embedding: "transformer.wte.weight",
    layer_prefix: "transformer.h.",
    layer_tensors: &[&[
        (AttentionNorm, "ln_1.weight"),
        (AttentionNormBias, "ln_1.bias"),
        (Query, "attn.c_attn.weight"),
        (Key, "attn.c_attn.weight"),
        (Value, "attn.c_attn.weight"),
        (QueryBias, "attn.c_attn.bias"),
        (KeyBias, "attn.c_attn.bias"),
        (ValueBias, "attn.c_attn.bias"),
        (AttentionOutput, "attn.c_proj.weight"),
        (AttentionOutputBias, "attn.c_proj.bias"),
        (MlpNorm, "ln_2.weight"),
        (MlpNormBias, "ln_2.bias"),
        (Up, "mlp.c_fc.weight"),
        (UpBias, "mlp.c_fc.bias"),
        (Down, "mlp.c_proj.weight"),
        (DownBias, "mlp.c_proj.bias"),
    ]],
    final_norm: "transformer.ln_f.weight",
    final_norm_bias: Some("transformer.ln_f.bias"),
    tied_by_default: true,
    ignored_suffixes: &["attn.bias", "attn.masked_bias"],
    defaults: r#"{"layer_norm_epsilon": 1e-5, "n_positions": 1024, "activation_function": "gelu_new", "n_inner": null,
        "attention_bias": true, "mlp_bias": true, "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257,
        "scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false, "add_cross_attention": false}"#,
    config_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("max_position_embeddings", "n_positions"),
        ("hidden_act", "activation_function"),
        ("intermediate_size", "n_inner"),
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    transposed: true,
    position_embedding: Some("transformer.wpe.weight"),
    centered_norms: true,
    rotates: false,
    ..LIKE_LLAMA
};

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
        &[
            (Up, "mlp.c_fc.weight"),
            (UpBias, "mlp.c_fc.bias"),
            (Down, "mlp.c_proj.weight"),
            (DownBias, "mlp.c_proj.bias"),
        ],
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
        "partial_rotary_factor": 0.25, "use_qkv_bias": false, "qk_layernorm": false, "use_parallel_residual": false}"#,
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
