//! What a run cannot do without.

use crate::model::{LayerTensor, ModelSpec};

/// Multiplications and additions of products for one token of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operations {
    /// One forward pass of one model, without the unembedding.
    pub pass: f64,
    /// A score.
    pub score: f64,
}

impl Operations {
    /// In prompts of `tokens` tokens.
    pub fn per_token(spec: &ModelSpec, tokens: f64) -> Self {
        let layers = spec.num_hidden_layers as f64;
        let layer = products(spec) / layers;
        let keys = 2.0 * (spec.key_width() * spec.hidden_size) as f64;
        let means = 4.0 * (spec.num_attention_heads * spec.hidden_size) as f64;
        let attention = 2.0 * spec.query_width() as f64 * tokens;
        // Context rows skip all of the last layer but its keys; the pre-trained block needs its keys, the means of both
        // branches and two rows a prompt.
        let score =
            (layers - 1.0) * (layer + attention) + layers * (keys + means + 2.0 * layer / tokens) + keys;
        Self { pass: layers * (layer + attention), score }
    }
}

/// Operations of a token in all layers' products; of experts in as many as it goes through.
fn products(spec: &ModelSpec) -> f64 {
    let share = spec.experts.as_ref().map_or(1.0, |experts| experts.per_token as f64 / experts.count as f64);
    let operations = |(layer, tensor): (usize, LayerTensor)| {
        2.0 * tensor.elements(spec, layer) as f64 * if tensor.expert().is_some() { share } else { 1.0 }
    };
    spec.all_layer_tensors().filter(|(_, tensor)| !tensor.is_vector()).map(operations).sum()
}
