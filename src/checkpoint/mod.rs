//! Checkpoints on disk: found, mapped, proven whole, and proven to be a pair. Nothing is copied; a layer's tensors are
//! borrowed from the mapped files.

mod fingerprint;
mod hub;
mod pair;
mod vocabulary;
mod weights;

pub use hub::resolve;
pub use pair::Pair;
pub use weights::Weights;

use crate::{
    Error, Result,
    model::{LayerTensor, ModelSpec, parse_config},
    tensor::{Dtype, Tensor},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A model on disk whose tensors are all there and of the right shapes.
#[derive(Debug)]
pub struct Checkpoint {
    pub dir: PathBuf,
    pub spec: ModelSpec,
    pub weights: Weights,
}

impl Checkpoint {
    /// Opens a Hugging Face model directory.
    ///
    /// # Errors
    /// A sentence that names the file and the field or tensor: usage errors for paths that are not there, checkpoint
    /// errors for everything that is broken or not supported.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("config.json");
        let config = read_json(&config_path)?;
        let spec = parse_config(&config)
            .map_err(|problem| Error::checkpoint(format!("{} {problem}", config_path.display())))?;
        let checkpoint = Self { dir: dir.to_path_buf(), weights: Weights::open(dir)?, spec };
        checkpoint.check_layers()?;
        checkpoint.check_unknown()?;
        Ok(checkpoint)
    }

    /// A tensor of a layer; `None` where the model has no such tensor.
    pub fn layer_tensor(&self, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        let (rows, _) = tensor.shape(&self.spec)?;
        let stored = self.weights.get(&self.spec.family.layer_tensor_name(layer, tensor)?)?;
        if tensor.is_vector() {
            return Some(stored);
        }
        let before = self.spec.family.fused_with(tensor).take_while(|other| *other != tensor);
        let first: usize = before.filter_map(|other| other.shape(&self.spec)).map(|(rows, _)| rows).sum();
        Some(stored.row_range(first..first + rows))
    }

    /// The token embedding `[V, D]`.
    pub fn embedding(&self) -> Result<Tensor<'_>> {
        let (vocab_size, hidden_size) = (self.spec.vocab_size, self.spec.hidden_size);
        self.checked(self.spec.family.embedding, &[vocab_size, hidden_size])
    }

    /// The dtype of most of the layers' weights.
    pub fn dtype(&self) -> Dtype {
        self.layer_tensor(0, LayerTensor::Down).map_or(Dtype::F32, |tensor| tensor.dtype)
    }

    /// Sizes of all weight files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.weights.bytes()
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let found = self.weights.shape(name).ok_or_else(|| {
            Error::checkpoint(format!(
                "{}: tensor {name} is missing (expected shape {shape:?})",
                self.dir.display()
            ))
        })?;
        let file = self.weights.file_of(name).display();
        if found != shape {
            let message = format!("{file}: tensor {name} has shape {found:?}, config.json demands {shape:?}");
            return Err(Error::checkpoint(message));
        }
        self.weights.get(name).ok_or_else(|| {
            let dtype = self.weights.dtype_name(name);
            Error::checkpoint(format!("{file}: tensor {name} is {dtype}, expected F32, F16 or BF16"))
        })
    }

    fn check_layers(&self) -> Result<()> {
        for layer in 0..self.spec.num_hidden_layers {
            for (tensor, _) in self.spec.family.layer_tensors {
                let Some((_, cols)) = tensor.shape(&self.spec) else { continue };
                let fused = self.spec.family.fused_with(*tensor);
                let rows = fused.filter_map(|tensor| tensor.shape(&self.spec)).map(|(rows, _)| rows).sum();
                let name = self.spec.family.layer_tensor_name(layer, *tensor).expect("listed by the family");
                let (vector, matrix) = ([cols], [rows, cols]);
                self.checked(&name, if tensor.is_vector() { &vector } else { &matrix })?;
            }
        }
        Ok(())
    }

    /// Tensors that no part of the model would use change what the model computes elsewhere, so they are refused.
    fn check_unknown(&self) -> Result<()> {
        let family = self.spec.family;
        let known = |name: &str| {
            name == family.embedding
                || family.other_tensors.contains(&name)
                || family.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix))
                || name.strip_prefix(family.layer_prefix).and_then(|rest| rest.split_once('.')).is_some_and(
                    |(layer, suffix)| {
                        layer.parse::<usize>().is_ok_and(|layer| layer < self.spec.num_hidden_layers)
                            && family
                                .layer_tensors
                                .iter()
                                .any(|(tensor, known)| *known == suffix && tensor.shape(&self.spec).is_some())
                    },
                )
        };
        match self.weights.names().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(Error::checkpoint(format!(
                "{}: tensor {name} is not part of a {} model with this config.json ({} layers, qkv_bias {}, \
                 attention_output_bias {}, mlp_bias {})",
                self.weights.file_of(name).display(),
                family.model_type,
                self.spec.num_hidden_layers,
                self.spec.qkv_bias,
                self.spec.attention_output_bias,
                self.spec.mlp_bias,
            ))),
        }
    }
}

/// Reads a JSON file of a checkpoint.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|error| Error::unreadable(path, &error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::checkpoint(format!("{} is not valid JSON: {error}", path.display())))
}
