//! What a model is, as data: a [`ModelSpec`] says everything in which families differ, so that a layer is written once.

mod config;
mod families;
mod family;
mod fields;
mod layer_config;
mod rope;
mod rope_config;

pub use config::{parse_config, text_config};
pub use families::FAMILIES;
pub use family::{Family, Fusion, LayerTensor, WindowRule};
pub use rope::{Rope, RopeScaling, RopeTable};

use crate::{
    Error, Result,
    tensor::Tensor,
    twin::{Branch, Twin},
};

/// What makes logits of the last hidden states: the tuned model's.
#[derive(Debug, Clone, Copy)]
pub struct Head<'w> {
    /// The final norm's weight and bias, `[1, D]`.
    pub norm: Tensor<'w>,
    pub norm_bias: Option<Tensor<'w>>,
    /// `[V, D]`, and its bias `[1, V]`.
    pub unembedding: Tensor<'w>,
    pub bias: Option<Tensor<'w>>,
}

/// Where the weights of a pair come from.
pub trait PairWeights: Sync {
    fn spec(&self) -> Twin<&ModelSpec>;

    /// The tuned model's token embedding, `[V, D]`.
    fn embedding(&self) -> Tensor<'_>;

    /// The tuned model's embedding of positions, `[context_length, D]`; `None` where positions are rotations.
    fn position_embedding(&self) -> Option<Tensor<'_>> {
        None
    }

    /// The tuned model's final norm and unembedding. Scores need neither.
    ///
    /// # Errors
    /// Where the checkpoint has none that can be read.
    fn head(&self) -> Result<Head<'_>> {
        Err(Error::checkpoint("the model has no head"))
    }

    /// A tensor of a layer; `None` where the model has no such tensor (biases).
    fn layer_tensor(&self, branch: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>>;

    /// The nonlinearity of a layer's MLP, with the layer's own parameters.
    ///
    /// # Panics
    /// Where it has parameters that the checkpoint lacks; those of a checked one are there.
    fn activation(&self, branch: Branch, layer: usize) -> Activation {
        let activation = self.spec().get(branch).hidden_act;
        if !matches!(activation, Activation::Xielu(_)) {
            return activation;
        }
        Activation::Xielu(Xielu::of_stored(LayerTensor::OF_XIELU.map(|tensor| {
            let mut value = [0.0];
            let stored =
                self.layer_tensor(branch, layer, tensor).expect("a checked model has all its tensors");
            stored.widen_run_f64(0, 0..1, &mut value);
            value[0]
        })))
    }

    /// Whether the tensor is the same, to the bit, in both checkpoints.
    fn is_shared(&self, layer: usize, tensor: LayerTensor) -> bool;

    /// Whether what is not read leaves memory.
    fn lets_go(&self) -> bool {
        false
    }

    /// A tensor will be read soon: begins to bring it to where it is read, and does not wait for it.
    fn expect(&self, _tensor: &Tensor<'_>) {}

    /// A tensor was read and is not needed for a while: it may leave memory.
    fn let_go(&self, _tensor: &Tensor<'_>) {}
}

/// The nonlinearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)` with the error function (`gelu`).
    Gelu,
    /// The tanh approximation (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    Relu2,
    Xielu(Xielu),
    ClampedSwiglu(ClampedSwiglu),
}

/// A gate of gpt-oss (`transformers` modeling_gpt_oss.py): of `g`, at most `limit`, and `u`, within ±`limit`, `g sigmoid(alpha g) (u + 1)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedSwiglu {
    pub alpha: f64,
    pub limit: f64,
}

/// xIELU (arXiv 2411.13010, `transformers` activations.py), whose parameters are a layer's own:
/// `x (alpha_p x + beta)` above 0, else `alpha_n (exp(min(x, eps)) - 1 - x) + beta x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xielu {
    pub alpha_p: f64,
    pub alpha_n: f64,
    pub beta: f64,
    pub eps: f64,
}

impl Xielu {
    /// Before training.
    pub const INITIAL: Self = Self { alpha_p: 0.8, alpha_n: 0.8, beta: 0.5, eps: -1e-6 };

    /// Of what checkpoints store: of both alphas the logarithms of what a sum of exponentials makes them.
    fn of_stored([alpha_p, alpha_n, beta, eps]: [f64; 4]) -> Self {
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        Self { alpha_p: softplus(alpha_p), alpha_n: beta + softplus(alpha_n), beta, eps }
    }
}

impl std::fmt::Display for ClampedSwiglu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, alpha {}", self.limit, self.alpha)
    }
}

impl Activation {
    /// The limit of a gate that has one.
    pub fn limit(self) -> Option<ClampedSwiglu> {
        match self {
            Activation::ClampedSwiglu(gate) => Some(gate),
            _ => None,
        }
    }

    /// `hidden_act` in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu | Activation::ClampedSwiglu(_) => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
            Activation::Relu => "relu",
            Activation::Relu2 => "relu2",
            Activation::Xielu(_) => "xielu",
        }
    }
}

/// A decoder-only transformer, from its `config.json`. Field names are those of `transformers`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    pub family: &'static Family,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Longest prompt the model is made for, in tokens (with the RoPE scaling that stretches it).
    pub context_length: usize,
    /// From this position on queries grow with it (`llama_4_scaling_beta`), which is not computed: prompts end before.
    pub growing_queries: Option<usize>,
    /// Of all norms (`rms_norm_eps`, `layer_norm_eps`).
    pub norm_eps: f64,
    pub hidden_act: Activation,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// A bias on o.
    pub attention_output_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Factor on `q · k` before the softmax.
    pub attention_scale: f64,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Factor on embeddings.
    pub embedding_multiplier: f64,
    /// The MLP gets the layer's input, not that and what attention adds.
    pub parallel_residual: bool,
    /// Factor on what attention and MLP add to the residual stream.
    pub residual_multiplier: f64,
    /// The unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Logits are divided by this, and then
    pub logits_scaling: f64,
    /// become `cap · tanh(logit / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// The experts of layers that have some.
    pub experts: Option<ExpertsSpec>,
    /// In what the layers differ, one entry each.
    pub layers: Vec<LayerSpec>,
    /// Rotary embeddings that layers choose from.
    pub ropes: Vec<Rope>,
}

/// MLPs of which each token goes through a few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertsSpec {
    pub count: usize,
    /// Experts that a token goes through, those with the largest router probabilities.
    pub per_token: usize,
    /// Their probabilities are divided by their sum.
    pub normalize: bool,
    pub intermediate_size: usize,
    /// That of an expert that every token goes through besides, where there is one.
    pub shared_intermediate_size: Option<usize>,
}

/// In what layers of one model differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// A token sees the `sliding_window` tokens up to itself; `None`: all before it.
    pub sliding_window: Option<usize>,
    /// Which of [`ModelSpec::ropes`]; `None`: queries and keys are not rotated.
    pub rope: Option<usize>,
    /// Experts in the place of the MLP.
    pub has_experts: bool,
}

impl std::fmt::Display for ExpertsSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, per_token, intermediate_size, shared_intermediate_size: shared, .. } = self;
        write!(f, "{per_token} of {count}, intermediate_size {intermediate_size}")?;
        shared.map_or(Ok(()), |size| write!(f, ", and one of {size} for all"))
    }
}

impl ModelSpec {
    /// Query heads that share one key-value head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Width of all query heads together, `H · Dh`.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together, `K · Dh`.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Elements that a query norm takes together.
    pub fn query_norm_width(&self) -> usize {
        if self.family.whole_qk_norm { self.query_width() } else { self.head_dim }
    }

    /// Elements that a key norm takes together.
    pub fn key_norm_width(&self) -> usize {
        if self.family.whole_qk_norm { self.key_width() } else { self.head_dim }
    }

    /// Whether attention and MLP get what one norm gives.
    pub fn has_one_norm(&self) -> bool {
        self.parallel_residual && self.family.one_norm_in_parallel
    }

    /// Whether a tensor of this name is the embedding or one of a layer.
    pub fn is_scored(&self, name: &str) -> bool {
        name == self.family.embedding
            || Some(name) == self.family.position_embedding
            || (self.family.layer_tensor_of(name))
                .is_some_and(|(layer, tensor)| tensor.shape(self, layer).is_some())
    }

    /// Every tensor of every layer.
    pub fn all_layer_tensors(&self) -> impl Iterator<Item = (usize, LayerTensor)> {
        (0..self.num_hidden_layers)
            .flat_map(|layer| self.layer_tensors(layer).map(move |tensor| (layer, tensor)))
    }

    /// All tensors of a layer, in the order of the family's table.
    pub fn layer_tensors(&self, layer: usize) -> impl Iterator<Item = LayerTensor> {
        let experts = self.experts.as_ref().map_or(0, |experts| experts.count);
        let listed = self.family.listed_tensors().map(|(tensor, _)| *tensor);
        let all = listed.flat_map(move |tensor| {
            let count = if tensor.expert().is_some() { experts } else { 1 };
            (0..count).map(move |expert| tensor.of_expert(expert as u16))
        });
        all.filter(move |tensor| tensor.shape(self, layer).is_some())
    }

    /// Whether a layer has experts in the place of the MLP.
    pub fn has_experts(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|layer| layer.has_experts)
    }

    /// Whether a tensor of this name comes after the layers: the final norm, the unembedding.
    pub fn is_after_layers(&self, name: &str) -> bool {
        let Family { final_norm, final_norm_bias, head, head_bias, .. } = *self.family;
        name == final_norm || name == head || [final_norm_bias, head_bias].contains(&Some(name))
    }

    /// Whether it is of a head for something else than next tokens, which neither TuCo nor logits read: a reward model's (`score` of
    /// transformers' sequence classification) or a value head (`v_head` of TRL).
    pub fn is_of_another_head(&self, name: &str) -> bool {
        ["score.", "v_head."].iter().any(|head| name.starts_with(head))
    }

    /// The fields whose difference makes two models no pair, by name.
    pub fn shape_fields(&self) -> [(&'static str, String); 15] {
        [
            ("model_type", self.family.model_type.to_string()),
            ("hidden_size", self.hidden_size.to_string()),
            ("num_hidden_layers", self.num_hidden_layers.to_string()),
            ("num_attention_heads", self.num_attention_heads.to_string()),
            ("num_key_value_heads", self.num_key_value_heads.to_string()),
            ("head_dim", self.head_dim.to_string()),
            ("intermediate_size", self.intermediate_size.to_string()),
            ("hidden_act", self.hidden_act.name().to_string()),
            ("qkv_bias", self.qkv_bias.to_string()),
            ("attention_output_bias", self.attention_output_bias.to_string()),
            ("mlp_bias", self.mlp_bias.to_string()),
            ("parallel_residual", self.parallel_residual.to_string()),
            ("one norm for attention and MLP", self.has_one_norm().to_string()),
            (
                "growing_queries (llama_4_scaling_beta)",
                self.growing_queries.map_or("none".into(), |position| position.to_string()),
            ),
            ("experts", self.experts.as_ref().map_or("none".into(), ExpertsSpec::to_string)),
        ]
    }
}
