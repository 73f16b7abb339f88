//! OpenAI's open models.

use super::{
    LIKE_LLAMA,
    tables::{ATTENTION_OUTPUT, ATTENTION_OUTPUT_BIAS, INPUT_NORM, POST_ATTENTION_NORM, QUERY_KEY_VALUE},
};
use crate::model::family::{Family, Fusion, LayerTensor::*, Transposed, WindowRule};

/// gpt-oss and gpt-oss-safeguard, 20B and 120B (modeling_gpt_oss.py): attention with sinks, experts with a gate of their own, whose rows and
/// those of the up projection take turns.
pub static GPT_OSS: Family = Family {
    model_type: "gpt_oss",
    layer_tensors: &[
        INPUT_NORM,
        QUERY_KEY_VALUE,
        &[(Sinks, "self_attn.sinks")],
        ATTENTION_OUTPUT,
        ATTENTION_OUTPUT_BIAS,
        POST_ATTENTION_NORM,
        &[
            (Router, "mlp.router.weight"),
            (RouterBias, "mlp.router.bias"),
            (ExpertGate(0), "mlp.experts.{expert}.gate_up_proj"),
            (ExpertUp(0), "mlp.experts.{expert}.gate_up_proj"),
            (ExpertDown(0), "mlp.experts.{expert}.down_proj"),
            (ExpertGateBias(0), "mlp.experts.{expert}.gate_up_proj_bias"),
            (ExpertUpBias(0), "mlp.experts.{expert}.gate_up_proj_bias"),
            (ExpertDownBias(0), "mlp.experts.{expert}.down_proj_bias"),
        ],
    ],
    defaults: r#"{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "num_key_value_heads": 8, "head_dim": 64,
        "attention_bias": true, "sliding_window": 128, "layer_types": null, "num_local_experts": 128, "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "rope_theta": 1.5e5, "rope_parameters": {"rope_type": "yarn", "factor": 32.0,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false, "original_max_position_embeddings": 4096}}"#,
    config_names: &[("num_experts", "num_local_experts")],
    config_aliases: &["num_experts"],
    fusion: Fusion::RowByRow,
    transposed: Transposed::OfExperts,
    experts_together: true,
    window_rule: WindowRule::AllButEvery(2),
    ..LIKE_LLAMA
};
