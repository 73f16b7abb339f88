//! All families that load, a table each. A family that differs only in known ways is one more table here and a golden
//! case in `tests/golden/cases.py`.

use super::family::{
    Family, Fusion,
    LayerTensor::{self, *},
    WindowRule,
};

/// All families.
pub static FAMILIES: &[&Family] = &[
    &LLAMA,
    &MISTRAL,
    &GEMMA,
    &GEMMA2,
    &GEMMA3_TEXT,
    &QWEN2,
    &QWEN3,
    &PHI3,
    &OLMO2,
    &GRANITE,
    &SMOLLM3,
    &MIXTRAL,
    &QWEN3_MOE,
    &GPT_NEOX,
    &GPT2,
];

/// What is common to most: the names that Llama gave the tensors, norms and embeddings as they are.
const LIKE_LLAMA: Family = Family {
    model_type: "llama",
    embedding: "model.embed_tokens.weight",
    layer_prefix: "model.layers.",
    layer_tensors: LLAMA_TENSORS,
    final_norm: "model.norm.weight",
    final_norm_bias: None,
    head: "lm_head.weight",
    tied_by_default: false,
    ignored_suffixes: &["rotary_emb.inv_freq"],
    defaults: "{}",
    config_names: &[],
    fusion: Fusion::OneByOne,
    transposed: false,
    position_embedding: None,
    window_rule: WindowRule::All,
    centered_norms: false,
    rotates: true,
    norms_add_one: false,
    gelu_is_tanh: false,
    scaled_embedding: false,
    always_qkv_bias: false,
    whole_qk_norm: false,
};

/// Of the biases a model has those that its config tells, or none.
const LLAMA_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (GateBias, "mlp.gate_proj.bias"),
    (UpBias, "mlp.up_proj.bias"),
    (DownBias, "mlp.down_proj.bias"),
];

/// Llama 1 to 3.3, and what was made from them: Vicuna, SmolLM, TinyLlama, Yi … (`transformers` modeling_llama.py).
static LLAMA: Family = Family {
    model_type: "llama",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false}"#,
    ..LIKE_LLAMA
};

/// Mistral 7B, its fine-tunes and successors (modeling_mistral.py).
static MISTRAL: Family = Family {
    model_type: "mistral",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8,
        "sliding_window": 4096}"#,
    ..LIKE_LLAMA
};

/// Gemma 1 (modeling_gemma.py).
static GEMMA: Family = Family {
    model_type: "gemma",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 16, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null}"#,
    norms_add_one: true,
    gelu_is_tanh: true,
    scaled_embedding: true,
    tied_by_default: true,
    ..LIKE_LLAMA
};

const GEMMA2_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (AttentionPostNorm, "post_attention_layernorm.weight"),
    (MlpNorm, "pre_feedforward_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (MlpPostNorm, "post_feedforward_layernorm.weight"),
];

/// Gemma 2 (modeling_gemma2.py).
static GEMMA2: Family = Family {
    model_type: "gemma2",
    layer_tensors: GEMMA2_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 4, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null,
        "sliding_window": 4096, "layer_types": null, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}"#,
    norms_add_one: true,
    scaled_embedding: true,
    window_rule: WindowRule::AllButEvery("sliding_window_pattern", 2),
    tied_by_default: true,
    ..LIKE_LLAMA
};

const GEMMA3_TEXT_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (QueryNorm, "self_attn.q_norm.weight"),
    (KeyNorm, "self_attn.k_norm.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (AttentionPostNorm, "post_attention_layernorm.weight"),
    (MlpNorm, "pre_feedforward_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (MlpPostNorm, "post_feedforward_layernorm.weight"),
];

/// The text models of Gemma 3 (modeling_gemma3.py).
static GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    layer_tensors: GEMMA3_TEXT_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": 4, "head_dim": 256, "attention_bias": false, "use_bidirectional_attention": null,
        "sliding_window": 4096, "layer_types": null, "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "vocab_size": 262208}"#,
    norms_add_one: true,
    scaled_embedding: true,
    window_rule: WindowRule::AllButEvery("sliding_window_pattern", 6),
    tied_by_default: true,
    ..LIKE_LLAMA
};

/// Qwen 1.5 to 2.5 (modeling_qwen2.py).
static QWEN2: Family = Family {
    model_type: "qwen2",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 32,
        "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "layer_types": null}"#,
    always_qkv_bias: true,
    window_rule: WindowRule::From("max_window_layers"),
    ..LIKE_LLAMA
};

const QWEN3_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (QueryNorm, "self_attn.q_norm.weight"),
    (KeyNorm, "self_attn.k_norm.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
];

/// Qwen 3, dense (modeling_qwen3.py).
static QWEN3: Family = Family {
    model_type: "qwen3",
    layer_tensors: QWEN3_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 32,
        "head_dim": 128, "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096,
        "max_window_layers": 28, "layer_types": null}"#,
    window_rule: WindowRule::From("max_window_layers"),
    ..LIKE_LLAMA
};

const PHI3_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.qkv_proj.weight"),
    (Key, "self_attn.qkv_proj.weight"),
    (Value, "self_attn.qkv_proj.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Gate, "mlp.gate_up_proj.weight"),
    (Up, "mlp.gate_up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
];

/// Phi 3 to 4 (modeling_phi3.py).
static PHI3: Family = Family {
    model_type: "phi3",
    layer_tensors: PHI3_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu", "sliding_window": null,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0}"#,
    ..LIKE_LLAMA
};

const OLMO2_TENSORS: &[(LayerTensor, &str)] = &[
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (QueryNorm, "self_attn.q_norm.weight"),
    (KeyNorm, "self_attn.k_norm.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (AttentionPostNorm, "post_attention_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (MlpPostNorm, "post_feedforward_layernorm.weight"),
];

/// OLMo 2 (modeling_olmo2.py): norms after attention and MLP, none before.
static OLMO2: Family = Family {
    model_type: "olmo2",
    layer_tensors: OLMO2_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false}"#,
    whole_qk_norm: true,
    ..LIKE_LLAMA
};

/// Granite 3, dense (modeling_granite.py).
static GRANITE: Family = Family {
    model_type: "granite",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false,
        "mlp_bias": false, "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0,
        "logits_scaling": 1.0}"#,
    ..LIKE_LLAMA
};

/// SmolLM3 (modeling_smollm3.py): every fourth layer does not rotate.
static SMOLLM3: Family = Family {
    model_type: "smollm3",
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 4,
        "rope_theta": 2e6, "attention_bias": false, "mlp_bias": false, "no_rope_layers": null,
        "no_rope_layer_interval": 4, "use_sliding_window": false, "sliding_window": null, "layer_types": null}"#,
    window_rule: WindowRule::WithoutRope,
    tied_by_default: true,
    ..LIKE_LLAMA
};

const MIXTRAL_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Router, "block_sparse_moe.gate.weight"),
    (ExpertGate(0), "block_sparse_moe.experts.{expert}.w1.weight"),
    (ExpertUp(0), "block_sparse_moe.experts.{expert}.w3.weight"),
    (ExpertDown(0), "block_sparse_moe.experts.{expert}.w2.weight"),
];

/// Mixtral 8x7B and 8x22B (modeling_mixtral.py).
static MIXTRAL: Family = Family {
    model_type: "mixtral",
    layer_tensors: MIXTRAL_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8,
        "rope_theta": 1e6, "sliding_window": null, "num_local_experts": 8, "num_experts_per_tok": 2}"#,
    ..LIKE_LLAMA
};

const QWEN3_MOE_TENSORS: &[(LayerTensor, &str)] = &[
    (AttentionNorm, "input_layernorm.weight"),
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
    (QueryNorm, "self_attn.q_norm.weight"),
    (KeyNorm, "self_attn.k_norm.weight"),
    (AttentionOutput, "self_attn.o_proj.weight"),
    (AttentionOutputBias, "self_attn.o_proj.bias"),
    (MlpNorm, "post_attention_layernorm.weight"),
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (Router, "mlp.gate.weight"),
    (ExpertGate(0), "mlp.experts.{expert}.gate_proj.weight"),
    (ExpertUp(0), "mlp.experts.{expert}.up_proj.weight"),
    (ExpertDown(0), "mlp.experts.{expert}.down_proj.weight"),
];

/// Qwen 3 with experts (modeling_qwen3_moe.py); some layers may have one MLP.
static QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    layer_tensors: QWEN3_MOE_TENSORS,
    defaults: r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu", "num_key_value_heads": 4,
        "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096, "num_experts": null,
        "num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": false,
        "decoder_sparse_step": 1, "mlp_only_layers": null}"#,
    ..LIKE_LLAMA
};

/// GPT-NeoX and Pythia (modeling_gpt_neox.py): LayerNorm, biases, attention and MLP side by side.
static GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    embedding: "gpt_neox.embed_in.weight",
    layer_prefix: "gpt_neox.layers.",
    layer_tensors: &[
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
    ],
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
static GPT2: Family = Family {
    model_type: "gpt2",
    embedding: "transformer.wte.weight",
    layer_prefix: "transformer.h.",
    layer_tensors: &[
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
    ],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sound() {
        for family in FAMILIES {
            assert!(!family.config_defaults().is_empty(), "{}", family.model_type);
            let twice = |f: &Family| FAMILIES.iter().filter(|other| other.model_type == f.model_type).count();
            assert_eq!(twice(family), 1, "{}", family.model_type);
            for (index, (tensor, _)) in family.layer_tensors.iter().enumerate() {
                let first = family.layer_tensors.iter().position(|(other, _)| other == tensor);
                assert_eq!(first, Some(index), "{tensor:?} of {}", family.model_type);
            }
            // What experts write goes to the stream as it is (engine/layer.rs).
            let has = |tensor| family.layer_tensors.iter().any(|(own, _)| *own == tensor);
            let scales = family.config_defaults().contains_key("residual_multiplier");
            assert!(!has(Router) || !has(MlpPostNorm) && !scales, "{}", family.model_type);
        }
    }
}
