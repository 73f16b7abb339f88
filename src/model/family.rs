//! What a family is: the names of its tensors and what its `config.json` leaves unsaid.

use super::ModelSpec;
use serde_json::{Map, Value};

/// The tensors of one layer. The order is the order of computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    AttentionNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    AttentionOutput,
    AttentionOutputBias,
    AttentionPostNorm,
    MlpNorm,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    MlpPostNorm,
}

/// Which layers see only a window, where `sliding_window` is set and `layer_types` does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WindowRule {
    All,
    /// All but every n-th, n being a field of the config or this number.
    AllButEvery(&'static str, usize),
    /// Those from the one that a field names.
    From(&'static str),
    /// Those that do not rotate.
    WithoutRope,
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
    /// What stands after it. Tensors of the same name are fused: their rows follow each other in this order. A layer has
    /// no norm that is not listed.
    pub layer_tensors: &'static [(LayerTensor, &'static str)],
    /// Tensors outside the layers that a checkpoint may have besides the embedding.
    pub other_tensors: &'static [&'static str],
    /// Endings of tensor names that old releases store and nobody needs.
    pub ignored_suffixes: &'static [&'static str],
    /// The fields of its `config.json` that not all families know, and the values of absent ones, as JSON.
    pub defaults: &'static str,
    /// Which layers see only a window.
    pub window_rule: WindowRule,
    /// Norms multiply with `1 + weight`, not `weight`.
    pub norms_add_one: bool,
    /// Embeddings are multiplied with `sqrt(hidden_size)`.
    pub scaled_embedding: bool,
    /// Queries, keys and values have biases, whatever `attention_bias` says.
    pub always_qkv_bias: bool,
    /// Query and key norms take all heads together, not each head for itself.
    pub whole_qk_norm: bool,
}

impl Family {
    /// The full name of a tensor of layer `layer`.
    pub fn layer_tensor_name(&self, layer: usize, tensor: LayerTensor) -> Option<String> {
        let (_, suffix) = self.layer_tensors.iter().find(|(kind, _)| *kind == tensor)?;
        Some(format!("{}{layer}.{suffix}", self.layer_prefix))
    }

    /// The layer that a tensor belongs to by its full name, and what its name ends with there.
    pub fn layer_tensor_of<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (layer, suffix) = name.strip_prefix(self.layer_prefix)?.split_once('.')?;
        Some((layer.parse().ok()?, suffix))
    }

    /// The tensors that are stored under the same name as `tensor`, itself among them, in the order of their rows.
    pub fn fused_with(&self, tensor: LayerTensor) -> impl Iterator<Item = LayerTensor> {
        let name = self.layer_tensors.iter().find(|(kind, _)| *kind == tensor).map(|(_, name)| *name);
        self.layer_tensors.iter().filter(move |(_, other)| Some(*other) == name).map(|(kind, _)| *kind)
    }

    /// [`Family::defaults`], parsed.
    ///
    /// # Panics
    /// If it is no JSON object; a test reads those of all families.
    pub fn config_defaults(&self) -> Map<String, Value> {
        serde_json::from_str(self.defaults).expect("a family's defaults are a JSON object")
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
        if !spec.family.layer_tensors.iter().any(|(tensor, _)| *tensor == self) {
            return None;
        }
        let (d, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, k) = (spec.query_width(), spec.key_width());
        match self {
            AttentionNorm | AttentionPostNorm | MlpNorm | MlpPostNorm => Some((1, d)),
            QueryNorm => Some((1, spec.query_norm_width())),
            KeyNorm => Some((1, spec.key_norm_width())),
            Query => Some((q, d)),
            Key | Value => Some((k, d)),
            AttentionOutput => Some((d, q)),
            Gate | Up => Some((f, d)),
            Down => Some((d, f)),
            QueryBias => spec.qkv_bias.then_some((1, q)),
            KeyBias | ValueBias => spec.qkv_bias.then_some((1, k)),
            AttentionOutputBias => spec.attention_output_bias.then_some((1, d)),
            GateBias | UpBias => spec.mlp_bias.then_some((1, f)),
            DownBias => spec.mlp_bias.then_some((1, d)),
        }
    }
}
