//! Pairs of random weights with the shapes of real models: speed is measured without a checkpoint.

use crate::{
    Error, Result,
    model::{LayerTensor, ModelSpec, PairWeights, parse_config},
    tensor::{Dtype, LowRank, Stored, Tensor},
    twin::{Branch, Twin},
};
use half::bf16;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde_json::Value;
use std::{fs, path::Path};

/// Shapes by name: what `config.json` of the model says.
const SHAPES: [(&str, &str); 7] = [
    (
        "llama-3-8b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}"#,
    ),
    (
        "llama-2-7b",
        r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096}"#,
    ),
    (
        "llama-2-13b",
        r#"{"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096}"#,
    ),
    (
        "llama-3-70b",
        r#"{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}"#,
    ),
    (
        "mistral-7b",
        r#"{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 32768}"#,
    ),
    (
        "gemma-7b",
        r#"{"model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 8192}"#,
    ),
    (
        "smollm2-135m",
        r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}"#,
    ),
];

/// Token ids that prompts are made of.
pub const VOCABULARY: usize = 4096;

/// Tensors begin at different places of one row of random numbers, within so many elements.
const OFFSETS: usize = 1 << 20;

/// The config of this name, or a model's `config.json`, and the model that it describes.
///
/// # Errors
/// Neither; those of the config.
pub fn shape(name: &str) -> Result<(Value, ModelSpec)> {
    let parse = |config: Value| match parse_config(&config) {
        Ok(spec) => Ok((config, spec)),
        Err(message) => Err(Error::checkpoint(format!("--shape {name}: {message}"))),
    };
    if let Some((_, config)) = SHAPES.iter().find(|(known, _)| *known == name) {
        return parse(serde_json::from_str(config).expect("a config of our own"));
    }
    let names = SHAPES.map(|(known, _)| known).join(", ");
    let text = fs::read_to_string(Path::new(name)).map_err(|error| {
        Error::usage(format!("--shape {name}: expected one of {names}, or a config.json ({error})"))
    })?;
    let config = serde_json::from_str(&text)
        .map_err(|error| Error::checkpoint(format!("{name} is not JSON: {error}")))?;
    parse(config)
}

/// Random weights in bf16: other ones in both models, or those of one and an adapter's.
pub struct RandomPair {
    spec: ModelSpec,
    /// Of the adapter, on all matrices.
    rank: Option<usize>,
    /// About as large as keep the size of what they multiply.
    matrices: Vec<u8>,
    /// Around 1.
    vectors: Vec<u8>,
}

impl RandomPair {
    /// Two models, or one and an adapter of this rank.
    pub fn new(spec: ModelSpec, rank: Option<usize>) -> Self {
        let sizes = spec.all_layer_tensors().map(|(layer, tensor)| tensor.elements(&spec, layer));
        let widest = spec.hidden_size.max(spec.intermediate_size).max(spec.query_width());
        let sizes = sizes.chain(rank.map(|rank| rank * widest));
        let largest = sizes.max().unwrap_or(0).max(VOCABULARY * spec.hidden_size);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut random = |len: usize, middle: f32, spread: f32| {
            let mut value = || {
                let unit = rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
                bf16::from_f32(middle + spread * unit).to_le_bytes()
            };
            (0..len).flat_map(|_| value()).collect()
        };
        let spread = (3.0 / spec.hidden_size as f32).sqrt();
        Self {
            matrices: random(largest + OFFSETS, 0.0, spread),
            vectors: random(spec.hidden_size.max(spec.intermediate_size) + OFFSETS, 1.0, 0.1),
            spec,
            rank,
        }
    }

    fn tensor(&self, seed: usize, is_vector: bool, rows: usize, cols: usize) -> Tensor<'_> {
        let first = seed.wrapping_mul(40_503) % OFFSETS;
        let numbers = if is_vector { &self.vectors } else { &self.matrices };
        Tensor::stored(Dtype::Bf16, rows, cols, &numbers[2 * first..2 * (first + rows * cols)])
    }

    /// One of the two matrices of an adapter.
    fn factor(&self, seed: usize, rows: usize, cols: usize) -> Stored<'_> {
        self.tensor(seed, false, rows, cols).stored
    }
}

impl PairWeights for RandomPair {
    fn spec(&self) -> Twin<&ModelSpec> {
        Twin::new(&self.spec, &self.spec)
    }

    fn embedding(&self) -> Tensor<'_> {
        self.tensor(0, false, VOCABULARY, self.spec.hidden_size)
    }

    fn layer_tensor(&self, branch: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        let (rows, cols) = tensor.shape(&self.spec, layer)?;
        let place = self.spec.layer_tensors(layer).position(|other| other == tensor)?;
        let seed = 1 + 4 * (layer * self.spec.layer_tensors(layer).count() + place);
        let of_model = |branch| self.tensor(seed + branch as usize, tensor.is_vector(), rows, cols);
        let Some(rank) = self.rank else { return Some(of_model(branch)) };
        let base = of_model(Branch::Pt);
        let update = (branch == Branch::Ft && !tensor.is_vector()).then(|| LowRank {
            a: self.factor(seed + 2, rank, cols),
            b: self.factor(seed + 3, rows, rank),
            b_columns: (0, 1),
            scale: 1.0,
            row_scales: None,
            merged_to: None,
        });
        Some(Tensor { update, ..base })
    }

    fn is_shared(&self, layer: usize, tensor: LayerTensor) -> bool {
        tensor.shape(&self.spec, layer).is_none() || self.rank.is_some() && tensor.is_vector()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_shapes_have_the_sizes_of_their_models() {
        // As the model cards count them: with the embedding, and the unembedding where it is another matrix.
        for (name, billions, embeddings) in [
            ("llama-3-8b", 8.03, 2),
            ("llama-2-7b", 6.74, 2),
            ("llama-2-13b", 13.02, 2),
            ("llama-3-70b", 70.55, 2),
            ("mistral-7b", 7.24, 2),
            ("gemma-7b", 8.54, 1),
            ("smollm2-135m", 0.1345, 1),
        ] {
            let (_, spec) = shape(name).unwrap();
            let elements = spec.all_layer_tensors().map(|(layer, tensor)| tensor.elements(&spec, layer));
            let count = elements.sum::<usize>() + (embeddings * spec.vocab_size + 1) * spec.hidden_size;
            let error = count as f64 / 1e9 / billions - 1.0;
            assert!(error.abs() < 0.001, "{name}: {count} weights");
        }
        assert!(shape("llama-9").unwrap_err().message.contains("llama-3-8b"));
    }
}
