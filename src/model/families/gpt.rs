//! Families with LayerNorm and names of their own: GPT and what came from it.

use super::{
    LIKE_LLAMA,
    tables::{GPT2_MLP, QUERY_KEY_VALUE},
};
use crate::model::family::{Family, Fusion, LayerTensor::*, LayerTensors, Transposed};

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
        "rotary_pct": 0.25, "rotary_emb_base": 1e4, "use_parallel_residual": true}"#,
    fixed: r#"{"mlp_bias": true, "head_dim": null, "num_key_value_heads": null}"#,
    config_names: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("partial_rotary_factor", "rotary_pct"),
        ("rope_theta", "rotary_emb_base"),
    ],
    fusion: Fusion::GroupByGroup,
    centered_norms: true,
    ..LIKE_LLAMA
};

/// GPT-2 (modeling_gpt2.py): learned positions, LayerNorm, biases, matrices stored as `[in, out]`.
pub static GPT2: Family = LIKE_GPT2;

const LIKE_GPT2: Family = Family {
    model_type: "gpt2",
    embedding: "transformer.wte.weight",
    layer_prefix: "transformer.h.",
    layer_tensors: &[
        &[
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
        ],
        GPT2_MLP,
    ],
    final_norm: "transformer.ln_f.weight",
    final_norm_bias: Some("transformer.ln_f.bias"),
    tied_by_default: true,
    ignored_suffixes: &["attn.bias", "attn.masked_bias"],
    defaults: r#"{"layer_norm_epsilon": 1e-5, "n_positions": 1024, "activation_function": "gelu_new", "n_inner": null,
        "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}"#,
    fixed: r#"{"attention_bias": true, "mlp_bias": true, "head_dim": null, "num_key_value_heads": null, "partial_rotary_factor": null,
        "rope_scaling": null, "rope_parameters": null}"#,
    computable: r#"{"scale_attn_weights": true, "scale_attn_by_inverse_layer_idx": false, "add_cross_attention": false}"#,
    config_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("max_position_embeddings", "n_positions"),
        ("hidden_act", "activation_function"),
        ("intermediate_size", "n_inner"),
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    config_aliases: &["hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"],
    transposed: Transposed::All,
    position_embedding: Some("transformer.wpe.weight"),
    centered_norms: true,
    rotates: false,
    ..LIKE_LLAMA
};

/// StarCoder 1 and SantaCoder (modeling_gpt_bigcode.py): GPT-2 with one key head, and matrices as they are.
pub static GPT_BIGCODE: Family = Family {
    model_type: "gpt_bigcode",
    defaults: r#"{"layer_norm_epsilon": 1e-5, "n_positions": 1024, "activation_function": "gelu_pytorch_tanh", "n_inner": null,
        "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "multi_query": true}"#,
    computable: r#"{"scale_attn_weights": true, "add_cross_attention": false}"#,
    fusion: Fusion::GroupByGroup,
    transposed: Transposed::None,
    ..LIKE_GPT2
};

/// GPT-Neo and TinyStories (modeling_gpt_neo.py): scores are not divided by anything, and layers may have windows.
pub static GPT_NEO: Family = Family {
    model_type: "gpt_neo",
    layer_tensors: &[
        &[
            (AttentionNorm, "ln_1.weight"),
            (AttentionNormBias, "ln_1.bias"),
            (Query, "attn.attention.q_proj.weight"),
            (Key, "attn.attention.k_proj.weight"),
            (Value, "attn.attention.v_proj.weight"),
            (AttentionOutput, "attn.attention.out_proj.weight"),
            (AttentionOutputBias, "attn.attention.out_proj.bias"),
            (MlpNorm, "ln_2.weight"),
            (MlpNormBias, "ln_2.bias"),
        ],
        GPT2_MLP,
    ],
    ignored_suffixes: &["attention.bias", "attention.masked_bias"],
    defaults: r#"{"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "activation_function": "gelu_new", "intermediate_size": null,
        "vocab_size": 50257, "hidden_size": 2048,
        "num_layers": 24, "num_heads": 16, "window_size": 256, "attention_types": [[["global", "local"], 12]],
        "attention_layers": null}"#,
    fixed: r#"{"attention_multiplier": 1.0, "attention_out_bias": true, "mlp_bias": true, "head_dim": null, "num_key_value_heads": null,
        "partial_rotary_factor": null, "rope_scaling": null, "rope_parameters": null}"#,
    computable: "{}",
    config_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
        ("num_hidden_layers", "num_layers"),
        ("num_attention_heads", "num_heads"),
        ("sliding_window", "window_size"),
    ],
    config_aliases: &["num_attention_heads", "num_hidden_layers"],
    transposed: Transposed::None,
    ..LIKE_GPT2
};

/// GPT-J (modeling_gptj.py): attention and MLP side by side after one norm, the first dimensions rotated in neighbours.
pub static GPTJ: Family = Family {
    model_type: "gptj",
    layer_tensors: &[&[
        (AttentionNorm, "ln_1.weight"),
        (AttentionNormBias, "ln_1.bias"),
        (Query, "attn.q_proj.weight"),
        (Key, "attn.k_proj.weight"),
        (Value, "attn.v_proj.weight"),
        (AttentionOutput, "attn.out_proj.weight"),
        (Up, "mlp.fc_in.weight"),
        (UpBias, "mlp.fc_in.bias"),
        (Down, "mlp.fc_out.weight"),
        (DownBias, "mlp.fc_out.bias"),
    ]],
    head_bias: Some("lm_head.bias"),
    tied_by_default: false,
    ignored_suffixes: &["attn.bias", "attn.masked_bias", "attn.embed_positions"],
    defaults: r#"{"layer_norm_epsilon": 1e-5, "n_positions": 2048, "activation_function": "gelu_new", "n_inner": null,
        "n_embd": 4096, "n_layer": 28, "n_head": 16, "vocab_size": 50400, "rotary_dim": 64}"#,
    fixed: r#"{"mlp_bias": true, "use_parallel_residual": true, "head_dim": null, "num_key_value_heads": null, "partial_rotary_factor": null,
        "rope_theta": 1e4, "rope_scaling": null, "rope_parameters": null}"#,
    computable: "{}",
    transposed: Transposed::None,
    position_embedding: None,
    rotates: true,
    interleaved_rotation: true,
    one_norm_in_parallel: true,
    ..LIKE_GPT2
};

/// OPT (modeling_opt.py): GPT-2 with ReLU; two rows of the embedding of positions come before the first.
pub static OPT: Family = Family {
    model_type: "opt",
    embedding: "model.decoder.embed_tokens.weight",
    layer_prefix: "model.decoder.layers.",
    layer_tensors: &[
        &[(AttentionNorm, "self_attn_layer_norm.weight"), (AttentionNormBias, "self_attn_layer_norm.bias")],
        QUERY_KEY_VALUE,
        &[
            (AttentionOutput, "self_attn.out_proj.weight"),
            (AttentionOutputBias, "self_attn.out_proj.bias"),
            (MlpNorm, "final_layer_norm.weight"),
            (MlpNormBias, "final_layer_norm.bias"),
            (Up, "fc1.weight"),
            (UpBias, "fc1.bias"),
            (Down, "fc2.weight"),
            (DownBias, "fc2.bias"),
        ],
    ],
    final_norm: "model.decoder.final_layer_norm.weight",
    final_norm_bias: Some("model.decoder.final_layer_norm.bias"),
    tied_by_default: true,
    defaults: r#"{"max_position_embeddings": 2048, "activation_function": "relu", "enable_bias": true,
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12}"#,
    fixed: r#"{"rms_norm_eps": 1e-5, "head_dim": null, "num_key_value_heads": null, "partial_rotary_factor": null, "rope_scaling": null,
        "rope_parameters": null}"#,
    computable: r#"{"do_layer_norm_before": true, "_remove_final_layer_norm": false, "layer_norm_elementwise_affine": true}"#,
    config_names: &[
        ("hidden_act", "activation_function"),
        ("intermediate_size", "ffn_dim"),
        ("attention_bias", "enable_bias"),
        ("mlp_bias", "enable_bias"),
    ],
    ignored_suffixes: &["decoder.version"],
    position_embedding: Some("model.decoder.embed_positions.weight"),
    position_offset: 2,
    centered_norms: true,
    rotates: false,
    ..LIKE_LLAMA
};

/// Falcon 7B (modeling_falcon.py): one key head, attention and MLP side by side after one norm.
pub static FALCON: Family = Family {
    defaults: r#"{"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "activation": "gelu", "ffn_hidden_size": null, "bias": false,
        "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "num_kv_heads": null,
        "multi_query": true, "parallel_attn": true}"#,
    computable: r#"{"alibi": false}"#,
    ..LIKE_FALCON
};

/// Falcon 40B and 180B: several key heads, and a norm for the MLP too.
pub static FALCON_40B: Family = Family {
    told_by: &[("new_decoder_architecture", "true")],
    layer_tensors: &[
        &[
            (AttentionNorm, "ln_attn.weight"),
            (AttentionNormBias, "ln_attn.bias"),
            (MlpNorm, "ln_mlp.weight"),
            (MlpNormBias, "ln_mlp.bias"),
        ],
        FALCON_PRODUCTS,
    ],
    one_norm_in_parallel: false,
    ..LIKE_FALCON
};

/// Falcon 2 of 11B: several key heads, one norm.
pub static FALCON2: Family = Family {
    told_by: &[("new_decoder_architecture", "true"), ("num_ln_in_parallel_attn", "1")],
    ..LIKE_FALCON
};

const LIKE_FALCON: Family = Family {
    model_type: "falcon",
    embedding: "transformer.word_embeddings.weight",
    layer_prefix: "transformer.h.",
    layer_tensors: &[
        &[
            (AttentionNorm, "input_layernorm.weight"),
            (AttentionNormBias, "input_layernorm.bias"),
            (MlpNorm, "post_attention_layernorm.weight"),
            (MlpNormBias, "post_attention_layernorm.bias"),
        ],
        FALCON_PRODUCTS,
    ],
    final_norm: "transformer.ln_f.weight",
    final_norm_bias: Some("transformer.ln_f.bias"),
    tied_by_default: true,
    defaults: r#"{"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "activation": "gelu", "ffn_hidden_size": null, "bias": false,
        "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "num_kv_heads": null,
        "parallel_attn": true}"#,
    computable: r#"{"alibi": false, "parallel_attn": true}"#,
    config_names: &[
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation"),
        ("intermediate_size", "ffn_hidden_size"),
        ("num_key_value_heads", "num_kv_heads"),
        ("attention_bias", "bias"),
        ("mlp_bias", "bias"),
        ("use_parallel_residual", "parallel_attn"),
    ],
    ignored_suffixes: &["rotary_emb.inv_freq", "rotary.inv_freq"],
    fusion: Fusion::GroupByGroup,
    centered_norms: true,
    one_norm_in_parallel: true,
    ..LIKE_LLAMA
};

const FALCON_PRODUCTS: LayerTensors = &[
    (Query, "self_attention.query_key_value.weight"),
    (Key, "self_attention.query_key_value.weight"),
    (Value, "self_attention.query_key_value.weight"),
    (QueryBias, "self_attention.query_key_value.bias"),
    (KeyBias, "self_attention.query_key_value.bias"),
    (ValueBias, "self_attention.query_key_value.bias"),
    (AttentionOutput, "self_attention.dense.weight"),
    (AttentionOutputBias, "self_attention.dense.bias"),
    (Up, "mlp.dense_h_to_4h.weight"),
    (UpBias, "mlp.dense_h_to_4h.bias"),
    (Down, "mlp.dense_4h_to_h.weight"),
    (DownBias, "mlp.dense_4h_to_h.bias"),
];
