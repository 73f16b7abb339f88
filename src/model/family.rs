//! What a family is: the names of its tensors and what its `config.json` leaves unsaid.

use super::{Activation, ModelSpec};
use serde_json::{Map, Value};

/// The tensors of one layer. The order is the order of computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    AttentionNorm,
    AttentionNormBias,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    /// A score of each head beside those of the tokens; what it gets of the softmax goes to no value.
    Sinks,
    AttentionOutput,
    AttentionOutputBias,
    AttentionPostNorm,
    MlpNorm,
    MlpNormBias,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    /// Parameters of xIELU, a number each.
    XieluAlphaP,
    XieluAlphaN,
    XieluBeta,
    XieluEps,
    /// Chooses experts, where a layer has those in the place of one MLP.
    Router,
    RouterBias,
    ExpertGate(u16),
    ExpertUp(u16),
    ExpertDown(u16),
    ExpertGateBias(u16),
    ExpertUpBias(u16),
    ExpertDownBias(u16),
    /// Of the expert that every token goes through besides.
    SharedGate,
    SharedUp,
    SharedDown,
    /// Whose sigmoid is how much of that expert a token gets.
    SharedShare,
    MlpPostNorm,
}

/// What names of some of a layer's tensors end with.
pub type LayerTensors = &'static [(LayerTensor, &'static str)];

/// Which layers see only a window, where `sliding_window` is set and `layer_types` does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WindowRule {
    All,
    /// All but every n-th, of those before `max_window_layers` where a family has that.
    AllButEvery(usize),
    /// All but every n-th, n being a field of the config.
    AllButEveryOf(&'static str),
    /// All but the first of every n.
    AllButFirstOfEvery(usize),
    /// Those from the one that a field names.
    From(&'static str),
    /// Those that do not rotate.
    WithoutRope,
}

/// How the rows of fused tensors follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fusion {
    /// All of one tensor, then all of the next.
    OneByOne,
    /// Those of the query heads that share a key head, of this and of its value head, then those of the next key head.
    GroupByGroup,
    /// A row of each, then the next row of each.
    RowByRow,
}

/// Which matrices are stored as `[in, out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transposed {
    None,
    All,
    /// Those of experts, unless they are packed.
    OfExperts,
}

/// A family as data: everything else comes from `config.json`.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What else tells it from later ones of the same `model_type`: fields and their values, as JSON.
    pub told_by: &'static [(&'static str, &'static str)],
    /// Name of the token embedding.
    pub embedding: &'static str,
    /// What stands before a layer's number in tensor names.
    pub layer_prefix: &'static str,
    /// What stands after it, in groups. Tensors of the same name are fused: their rows follow each other in this order. A
    /// layer has no norm that is not listed. Of experts the first is listed, with `{expert}` for its number.
    pub layer_tensors: &'static [LayerTensors],
    /// Names of the norm after the layers and of its bias.
    pub final_norm: &'static str,
    pub final_norm_bias: Option<&'static str>,
    /// Names of the unembedding and of its bias.
    pub head: &'static str,
    pub head_bias: Option<&'static str>,
    /// The unembedding is the embedding where `tie_word_embeddings` is not set.
    pub tied_by_default: bool,
    /// Endings of tensor names that old releases store and nobody needs.
    pub ignored_suffixes: &'static [&'static str],
    /// The fields of its `config.json` that not all families know, and the values of absent ones, as JSON.
    pub defaults: &'static str,
    /// The fields that are the same in all its models, whatever a `config.json` says, as JSON.
    pub fixed: &'static str,
    /// Fields that may have one value only, as JSON: what others mean cannot be computed.
    pub computable: &'static str,
    /// Names that its `config.json` has for what is called otherwise elsewhere: `(elsewhere, here)`.
    pub config_names: &'static [(&'static str, &'static str)],
    /// Which of them go by the name that they have elsewhere too (`attribute_map` of transformers).
    pub config_aliases: &'static [&'static str],
    /// How the rows of fused tensors follow each other.
    pub fusion: Fusion,
    /// Which matrices are stored as `[in, out]`.
    pub transposed: Transposed,
    /// Files have the tensors of a layer's experts in one, one above the other, without `{expert}.` in its name.
    pub experts_together: bool,
    /// Name of the embedding of positions.
    pub position_embedding: Option<&'static str>,
    /// Its rows before that of the first position.
    pub position_offset: usize,
    /// Which layers see only a window.
    pub window_rule: WindowRule,
    /// Norms take the mean off: LayerNorm.
    pub centered_norms: bool,
    /// Queries and keys are rotated, where its configs have a `position_embedding_type` only if that is `rope`.
    pub rotates: bool,
    /// What is rotated together are neighbours, not dimensions half of the rotated ones apart.
    pub interleaved_rotation: bool,
    /// The field with the base of the angles that layers with a window have for themselves; `None`: all layers rotate alike.
    pub sliding_rope_theta: Option<&'static str>,
    /// Norms multiply with `1 + weight`, not `weight`.
    pub norms_add_one: bool,
    /// Norms have no weights: files have none, and ones are taken.
    pub weightless_norms: bool,
    /// Where attention and MLP stand side by side, the MLP takes what the norm before attention gives.
    pub one_norm_in_parallel: bool,
    /// `gelu` is what official configs call the tanh approximation that their models were trained with.
    pub gelu_is_tanh: bool,
    /// Embeddings are multiplied with `sqrt(hidden_size)`.
    pub scaled_embedding: bool,
    /// Queries, keys and values have biases, whatever `attention_bias` says.
    pub always_qkv_bias: bool,
    /// Query and key norms take all heads together, not each head for itself.
    pub whole_qk_norm: bool,
}

impl Family {
    /// All of [`Family::layer_tensors`], in order.
    pub fn listed_tensors(&self) -> impl Iterator<Item = &'static (LayerTensor, &'static str)> {
        self.layer_tensors.iter().copied().flatten()
    }

    /// What the name of a tensor ends with, with `{expert}` for an expert's number.
    pub fn suffix(&self, tensor: LayerTensor) -> Option<&'static str> {
        self.listed_tensors().find(|(kind, _)| *kind == tensor.listed()).map(|(_, suffix)| *suffix)
    }

    /// The full name of a tensor of layer `layer`.
    pub fn layer_tensor_name(&self, layer: usize, tensor: LayerTensor) -> Option<String> {
        let suffix = self.suffix(tensor)?;
        let name = format!("{}{layer}.{suffix}", self.layer_prefix);
        Some(match tensor.expert() {
            Some(expert) => name.replace(EXPERT, &expert.to_string()),
            None => name,
        })
    }

    /// The layer and the tensor (of fused ones the first) that a full name means.
    pub fn layer_tensor_of(&self, name: &str) -> Option<(usize, LayerTensor)> {
        let (layer, suffix) = name.strip_prefix(self.layer_prefix)?.split_once('.')?;
        let tensor = self.listed_tensors().find_map(|(kind, own)| match own.split_once(EXPERT) {
            None => (*own == suffix).then_some(*kind),
            Some((before, after)) => {
                let expert = suffix.strip_prefix(before)?.strip_suffix(after)?;
                Some(kind.of_expert(expert.parse().ok()?))
            }
        });
        Some((layer.parse().ok()?, tensor?))
    }

    /// What files call a tensor of all experts of a layer, where they have them together.
    pub fn name_of_all_experts(&self, layer: usize, suffix: &str) -> String {
        format!("{}{layer}.{}", self.layer_prefix, suffix.replace(&format!("{EXPERT}."), ""))
    }

    /// What messages call a tensor of this name: an expert's by the tensor that files have for all of them.
    pub fn stored_name(&self, name: &str) -> String {
        let of_expert = |(layer, tensor): (usize, LayerTensor)| {
            let all = self.name_of_all_experts(layer, self.suffix(tensor)?);
            Some(format!("{all} of expert {}", tensor.expert()?))
        };
        let tensor = self.layer_tensor_of(name).filter(|_| self.experts_together);
        tensor.and_then(of_expert).unwrap_or_else(|| name.to_owned())
    }

    /// Whether a module or tensor is called as those of this family's layers and embedding are.
    pub fn is_named_as(&self, name: &str) -> bool {
        let embedding = self.embedding.trim_end_matches("weight");
        name.starts_with(self.layer_prefix) || name.starts_with(embedding)
    }

    /// The layer that a name is in.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        name.strip_prefix(self.layer_prefix)?.split('.').next()?.parse().ok()
    }

    /// Whether a tensor that is not packed is stored as `[in, out]`.
    pub fn transposes(&self, tensor: LayerTensor) -> bool {
        !tensor.is_vector()
            && match self.transposed {
                Transposed::None => false,
                Transposed::All => true,
                Transposed::OfExperts => tensor.expert().is_some(),
            }
    }

    /// Whether the tensor of this name, which is not packed, is stored as `[in, out]`.
    pub fn is_transposed(&self, name: &str) -> bool {
        self.layer_tensor_of(name).is_some_and(|(_, tensor)| self.transposes(tensor))
    }

    /// The tensors that are stored under the same name as `tensor`, itself among them, in the order of their rows.
    pub fn fused_with(&self, tensor: LayerTensor) -> impl Iterator<Item = LayerTensor> {
        let suffix = self.suffix(tensor);
        let fused = self.listed_tensors().filter(move |(_, other)| Some(*other) == suffix);
        fused.map(move |(kind, _)| tensor.expert().map_or(*kind, |expert| kind.of_expert(expert)))
    }

    /// [`Family::defaults`], parsed.
    pub fn config_defaults(&self) -> Map<String, Value> {
        parsed(self.defaults)
    }

    /// [`Family::fixed`], parsed.
    pub fn fixed_fields(&self) -> Map<String, Value> {
        parsed(self.fixed)
    }

    /// [`Family::computable`], parsed.
    pub fn computable_values(&self) -> Map<String, Value> {
        parsed(self.computable)
    }

    /// Whether a `config.json` is that of a model of this family.
    pub fn is_of(&self, config: &Map<String, Value>) -> bool {
        let has = |name: &str, value: &Value| config.get(name) == Some(value);
        let told_by = |(name, value): &(&str, &str)| serde_json::from_str(value).is_ok_and(|v| has(name, &v));
        has("model_type", &self.model_type.into()) && self.told_by.iter().all(told_by)
    }
}

/// An object of a family's table.
///
/// # Panics
/// If it is no JSON object; a test reads those of all families.
fn parsed(table: &str) -> Map<String, Value> {
    serde_json::from_str(table).expect("a family's table holds JSON objects")
}

/// Stands for an expert's number in names.
const EXPERT: &str = "{expert}";

impl LayerTensor {
    /// What keys are made with, besides angles and numbers of the config.
    pub const OF_KEYS: [Self; 5] =
        [Self::AttentionNorm, Self::AttentionNormBias, Self::Key, Self::KeyBias, Self::KeyNorm];

    /// The parameters of xIELU.
    pub const OF_XIELU: [Self; 4] = [Self::XieluAlphaP, Self::XieluAlphaN, Self::XieluBeta, Self::XieluEps];

    /// Norm weights and biases have one dimension, numbers one or none.
    pub fn is_vector(self) -> bool {
        use LayerTensor::*;
        let is_matrix = matches!(
            self,
            Query
                | Key
                | Value
                | AttentionOutput
                | Gate
                | Up
                | Down
                | Router
                | SharedGate
                | SharedUp
                | SharedDown
                | SharedShare
                | ExpertGate(_)
                | ExpertUp(_)
                | ExpertDown(_)
        );
        !is_matrix
    }

    /// The number of the expert that it belongs to.
    pub fn expert(self) -> Option<u16> {
        use LayerTensor::*;
        match self {
            ExpertGate(expert) | ExpertUp(expert) | ExpertDown(expert) => Some(expert),
            ExpertGateBias(expert) | ExpertUpBias(expert) | ExpertDownBias(expert) => Some(expert),
            _ => None,
        }
    }

    /// The same tensor of another expert.
    pub fn of_expert(self, expert: u16) -> Self {
        use LayerTensor::*;
        match self {
            ExpertGate(_) => ExpertGate(expert),
            ExpertUp(_) => ExpertUp(expert),
            ExpertDown(_) => ExpertDown(expert),
            ExpertGateBias(_) => ExpertGateBias(expert),
            ExpertUpBias(_) => ExpertUpBias(expert),
            ExpertDownBias(_) => ExpertDownBias(expert),
            other => other,
        }
    }

    /// The tensor that stands for it in a family's table.
    pub fn listed(self) -> Self {
        self.of_expert(0)
    }

    /// How many elements it has in layer `layer`.
    pub fn elements(self, spec: &ModelSpec, layer: usize) -> usize {
        self.shape(spec, layer).map_or(0, |(rows, cols)| rows * cols)
    }

    /// Rows and columns that `spec` demands of this tensor in layer `layer` (vectors are one row), or `None` if the layer
    /// has none.
    pub fn shape(self, spec: &ModelSpec, layer: usize) -> Option<(usize, usize)> {
        use LayerTensor::*;
        spec.family.suffix(self)?;
        let (d, f) = (spec.hidden_size, spec.intermediate_size);
        let (q, k) = (spec.query_width(), spec.key_width());
        let experts = spec.layers.get(layer)?.has_experts.then_some(spec.experts.as_ref()).flatten();
        let expert = |expert: u16, rows: fn(usize, usize) -> (usize, usize)| {
            let experts = experts.filter(|experts| usize::from(expert) < experts.count)?;
            Some(rows(experts.intermediate_size, spec.hidden_size))
        };
        match self {
            MlpNorm | MlpNormBias if spec.has_one_norm() => None,
            AttentionNorm | AttentionNormBias | AttentionPostNorm | MlpNorm | MlpNormBias | MlpPostNorm => {
                Some((1, d))
            }
            QueryNorm => Some((1, spec.query_norm_width())),
            KeyNorm => Some((1, spec.key_norm_width())),
            Sinks => Some((1, spec.num_attention_heads)),
            Query => Some((q, d)),
            Key | Value => Some((k, d)),
            AttentionOutput => Some((d, q)),
            QueryBias => spec.qkv_bias.then_some((1, q)),
            KeyBias | ValueBias => spec.qkv_bias.then_some((1, k)),
            AttentionOutputBias => spec.attention_output_bias.then_some((1, d)),
            Router => experts.map(|experts| (experts.count, d)),
            RouterBias => experts.map(|experts| (1, experts.count)),
            SharedGate | SharedUp => Some((experts?.shared_intermediate_size?, d)),
            SharedDown => Some((d, experts?.shared_intermediate_size?)),
            SharedShare => experts?.shared_intermediate_size.map(|_| (1, d)),
            ExpertGate(index) | ExpertUp(index) => expert(index, |inner, hidden| (inner, hidden)),
            ExpertDown(index) => expert(index, |inner, hidden| (hidden, inner)),
            ExpertGateBias(index) | ExpertUpBias(index) => expert(index, |inner, _| (1, inner)),
            ExpertDownBias(index) => expert(index, |_, hidden| (1, hidden)),
            Gate | Up | Down | GateBias | UpBias | DownBias if experts.is_some() => None,
            Gate | Up => Some((f, d)),
            Down => Some((d, f)),
            GateBias | UpBias => spec.mlp_bias.then_some((1, f)),
            DownBias => spec.mlp_bias.then_some((1, d)),
            XieluAlphaP | XieluAlphaN | XieluBeta | XieluEps => {
                matches!(spec.hidden_act, Activation::Xielu(_)).then_some((1, 1))
            }
        }
    }
}
