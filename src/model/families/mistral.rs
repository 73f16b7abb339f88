//! What Mistral AI makes.

use super::{
    LIKE_LLAMA,
    tables::{ATTENTION_OUTPUT, INPUT_NORM, POST_ATTENTION_NORM, QUERY_KEY_VALUE},
};
use crate::model::family::{Family, LayerTensor::*};

/// Mistral 7B, its fine-tunes and successors (modeling_mistral.py). A config with `layer_types` is one of `ministral` by another name
/// (configuration_auto.py).
pub static MISTRAL: Family = Family { model_type: "mistral", defaults: MISTRAL_DEFAULTS, ..LIKE_LLAMA };

/// Ministral 8B (modeling_ministral.py): layers with and without a window.
pub static MINISTRAL: Family = Family { model_type: "ministral", defaults: MISTRAL_DEFAULTS, ..LIKE_LLAMA };

const MISTRAL_DEFAULTS: &str = r#"{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8,
    "sliding_window": 4096, "layer_types": null}"#;

/// Mixtral 8x7B and 8x22B (modeling_mixtral.py).
pub static MIXTRAL: Family = Family {
    model_type: "mixtral",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        ATTENTION_OUTPUT,
        POST_ATTENTION_NORM,
        &[
            (Router, "block_sparse_moe.gate.weight"),
            (ExpertGate(0), "block_sparse_moe.experts.{expert}.w1.weight"),
            (ExpertUp(0), "block_sparse_moe.experts.{expert}.w3.weight"),
            (ExpertDown(0), "block_sparse_moe.experts.{expert}.w2.weight"),
        ],
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8,
        "rope_theta": 1e6, "sliding_window": null, "num_local_experts": 8, "num_experts_per_tok": 2}"#,
    ..LIKE_LLAMA
};

/// Ministral 3, the text part of the models for text and images (modeling_ministral3.py). From position
/// `original_max_position_embeddings` on queries grow by `llama_4_scaling_beta`; prompts end before (rope_config.rs).
pub static MINISTRAL3: Family = Family {
    model_type: "ministral3",
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 262144, "hidden_act": "silu", "num_key_value_heads": 8,
        "head_dim": 128, "sliding_window": null, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
        "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
        "llama_4_scaling_beta": 0.1}}"#,
    ..LIKE_LLAMA
};
