//! Tensors of a layer as most families name them, in groups that a family's table is made of.

use crate::model::family::{LayerTensor::*, LayerTensors};

pub const INPUT_NORM: LayerTensors = &[(AttentionNorm, "input_layernorm.weight")];

pub const INPUT_NORM_BIAS: LayerTensors = &[(AttentionNormBias, "input_layernorm.bias")];

/// Of the biases a model has those that its config tells, or none.
pub const QUERY_KEY_VALUE: LayerTensors = &[
    (Query, "self_attn.q_proj.weight"),
    (Key, "self_attn.k_proj.weight"),
    (Value, "self_attn.v_proj.weight"),
    (QueryBias, "self_attn.q_proj.bias"),
    (KeyBias, "self_attn.k_proj.bias"),
    (ValueBias, "self_attn.v_proj.bias"),
];

pub const QUERY_KEY_NORMS: LayerTensors =
    &[(QueryNorm, "self_attn.q_norm.weight"), (KeyNorm, "self_attn.k_norm.weight")];

pub const ATTENTION_OUTPUT: LayerTensors = &[(AttentionOutput, "self_attn.o_proj.weight")];

pub const ATTENTION_OUTPUT_BIAS: LayerTensors = &[(AttentionOutputBias, "self_attn.o_proj.bias")];

/// Llama's name for the norm before the MLP.
pub const POST_ATTENTION_NORM: LayerTensors = &[(MlpNorm, "post_attention_layernorm.weight")];

pub const POST_ATTENTION_NORM_BIAS: LayerTensors = &[(MlpNormBias, "post_attention_layernorm.bias")];

/// Norms before and after both halves, but for the first.
pub const SANDWICH_NORMS: LayerTensors = &[
    (AttentionPostNorm, "post_attention_layernorm.weight"),
    (MlpNorm, "pre_feedforward_layernorm.weight"),
    (MlpPostNorm, "post_feedforward_layernorm.weight"),
];

/// Norms after both halves, none before.
pub const NORMS_AFTER: LayerTensors = &[
    (AttentionPostNorm, "post_attention_layernorm.weight"),
    (MlpPostNorm, "post_feedforward_layernorm.weight"),
];

pub const GATED_MLP: LayerTensors = &[
    (Gate, "mlp.gate_proj.weight"),
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (GateBias, "mlp.gate_proj.bias"),
    (UpBias, "mlp.up_proj.bias"),
    (DownBias, "mlp.down_proj.bias"),
];

/// The gate's rows and those of the up projection in one tensor.
pub const FUSED_GATED_MLP: LayerTensors =
    &[(Gate, "mlp.gate_up_proj.weight"), (Up, "mlp.gate_up_proj.weight"), (Down, "mlp.down_proj.weight")];

/// An MLP without a gate.
pub const PLAIN_MLP: LayerTensors = &[
    (Up, "mlp.up_proj.weight"),
    (Down, "mlp.down_proj.weight"),
    (UpBias, "mlp.up_proj.bias"),
    (DownBias, "mlp.down_proj.bias"),
];

/// The same under GPT-2's names.
pub const GPT2_MLP: LayerTensors = &[
    (Up, "mlp.c_fc.weight"),
    (UpBias, "mlp.c_fc.bias"),
    (Down, "mlp.c_proj.weight"),
    (DownBias, "mlp.c_proj.bias"),
];

/// Experts in the place of the MLP.
pub const EXPERTS: LayerTensors = &[
    (Router, "mlp.gate.weight"),
    (ExpertGate(0), "mlp.experts.{expert}.gate_proj.weight"),
    (ExpertUp(0), "mlp.experts.{expert}.up_proj.weight"),
    (ExpertDown(0), "mlp.experts.{expert}.down_proj.weight"),
];
