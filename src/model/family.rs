//! The families that are known: for each the names of its tensors and what its `config.json` leaves unsaid.

use super::ModelSpec;

/// The tensors of one layer. The order is the order of computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    QueryBias,
    KeyBias,
    ValueBias,
    AttentionOutputBias,
    MlpNorm,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
}

/// A family as data: everything else comes from `config.json`.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Name of the token embedding.
    pub embedding: &'static str,
    /// What stands before a layer's number in tensor names.
    pub layer_prefix: &'static str,
    /// What stands after it.
    pub layer_tensors: &'static [(LayerTensor, &'static str)],
    /// Tensors outside the layers that a checkpoint may have besides the embedding.
    pub other_tensors: &'static [&'static str],
    /// Endings of tensor names that old releases store and nobody needs.
    pub ignored_suffixes: &'static [&'static str],
    /// `rms_norm_eps` where `config.json` has none.
    pub default_rms_norm_eps: f64,
    /// `max_position_embeddings` where `config.json` has none.
    pub default_max_position_embeddings: usize,
}

impl Family {
    /// The full name of a tensor of layer `layer`.
    pub fn layer_tensor_name(&self, layer: usize, tensor: LayerTensor) -> Option<String> {
        let (_, suffix) = self.layer_tensors.iter().find(|(kind, _)| *kind == tensor)?;
        Some(format!("{}{layer}.{suffix}", self.layer_prefix))
    }
}

impl LayerTensor {
    /// Norm weights and biases have one dimension.
    pub fn is_vector(self) -> bool {
        use LayerTensor::*;
        !matches!(self, Query | Key | Value | AttentionOutput | Gate | Up | Down)
    }

    /// Rows and columns that `spec` demands of this tensor (vectors are one row), or `None` if the model has none.
    pub fn shape(self, spec: &ModelSpec) -> Option<(usize, usize)> {
        use LayerTensor::*;
        let (d, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, k) = (spec.query_width(), spec.key_width());
        match self {
            AttentionNorm | MlpNorm => Some((1, d)),
            Query => Some((q, d)),
            Key | Value => Some((k, d)),
            AttentionOutput => Some((d, q)),
            Gate | Up => Some((f, d)),
            Down => Some((d, f)),
            QueryBias => spec.attention_bias.then_some((1, q)),
            KeyBias | ValueBias => spec.attention_bias.then_some((1, k)),
            AttentionOutputBias => spec.attention_bias.then_some((1, d)),
            GateBias | UpBias => spec.mlp_bias.then_some((1, f)),
            DownBias => spec.mlp_bias.then_some((1, d)),
        }
    }
}

/// Llama 1 to 3.3, and what was made from them: Vicuna, SmolLM, TinyLlama, Yi … (`transformers` modeling_llama.py).
static LLAMA: Family = Family {
    model_type: "llama",
    embedding: "model.embed_tokens.weight",
    layer_prefix: "model.layers.",
    layer_tensors: &[
        (LayerTensor::AttentionNorm, "input_layernorm.weight"),
        (LayerTensor::Query, "self_attn.q_proj.weight"),
        (LayerTensor::Key, "self_attn.k_proj.weight"),
        (LayerTensor::Value, "self_attn.v_proj.weight"),
        (LayerTensor::AttentionOutput, "self_attn.o_proj.weight"),
        (LayerTensor::QueryBias, "self_attn.q_proj.bias"),
        (LayerTensor::KeyBias, "self_attn.k_proj.bias"),
        (LayerTensor::ValueBias, "self_attn.v_proj.bias"),
        (LayerTensor::AttentionOutputBias, "self_attn.o_proj.bias"),
        (LayerTensor::MlpNorm, "post_attention_layernorm.weight"),
        (LayerTensor::Gate, "mlp.gate_proj.weight"),
        (LayerTensor::Up, "mlp.up_proj.weight"),
        (LayerTensor::Down, "mlp.down_proj.weight"),
        (LayerTensor::GateBias, "mlp.gate_proj.bias"),
        (LayerTensor::UpBias, "mlp.up_proj.bias"),
        (LayerTensor::DownBias, "mlp.down_proj.bias"),
    ],
    other_tensors: &["model.norm.weight", "lm_head.weight"],
    ignored_suffixes: &["rotary_emb.inv_freq"],
    default_rms_norm_eps: 1e-6,
    default_max_position_embeddings: 2048,
};

/// All families that load.
pub static FAMILIES: &[&Family] = &[&LLAMA];
