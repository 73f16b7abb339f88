//! Checkpoints on disk: found, mapped, proven whole, and proven to be a pair. Nothing is copied; a layer's tensors are
//! borrowed from the mapped files.

mod adapter;
mod fingerprint;
mod gguf;
mod hub;
mod pages;
mod pair;
mod pytorch;
mod quantization;
mod stop_tokens;
mod vocabulary;
mod weights;

pub use adapter::{Adapter, TrainedOn};
pub use hub::resolve;
pub use pair::{Pair, Reading, Side};
pub use vocabulary::compare_vocabularies;
pub use weights::Weights;

use crate::{
    Error, Result,
    gguf::find,
    model::{Family, Fusion, Head, LayerTensor, ModelSpec, parse_config, text_config},
    tensor::{Dtype, Encoding, Interleaved, Stored, Tensor, View},
};
use quantization::Quantization;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// A model on disk whose tensors are all there and of the right shapes, perhaps with an adapter on it. Clones share the
/// mapped files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// A directory, or a GGUF file.
    pub path: PathBuf,
    pub spec: ModelSpec,
    pub weights: Arc<Weights>,
    pub adapter: Option<Arc<Adapter>>,
    /// The name of the unembedding, once it was looked for.
    unembedding: OnceLock<Result<&'static str>>,
}

impl Checkpoint {
    /// Opens a Hugging Face model directory, of a multimodal model its text part; or a GGUF file, or a directory that holds
    /// one.
    ///
    /// # Errors
    /// A sentence that names the file and the field or tensor: usage errors for paths that are not there, checkpoint
    /// errors for everything that is broken or not supported.
    pub fn open(path: &Path, reading: Reading) -> Result<Self> {
        if adapter::is_adapter(path) {
            return Err(Error::usage(format!(
                "{} is a PEFT adapter, not a model: pass it with --adapter",
                path.display()
            )));
        }
        let (path, spec, weights) = match find(path)? {
            Some(file) => {
                let (spec, weights) = gguf::open(&file, reading.dtype)?;
                (file, spec, weights)
            }
            None => {
                let (spec, weights) = open_directory(path, reading.dtype)?;
                (path.to_path_buf(), spec, weights)
            }
        };
        let weights = Arc::new(weights.letting_go(reading.lets_go));
        let checkpoint = Self { path, weights, spec, adapter: None, unembedding: OnceLock::new() };
        checkpoint.check_layers()?;
        checkpoint.position_embedding().transpose()?;
        checkpoint.check_unknown()?;
        Ok(checkpoint)
    }

    /// The same model with an adapter on it, see [`Adapter::open`].
    pub fn with_adapter(&self, dir: &Path, merge: bool) -> Result<Self> {
        let adapter = Adapter::open(dir, &self.spec, &self.weights, merge)?;
        let mut spec = self.spec.clone();
        if let Some([rows, _]) = adapter.shape(spec.family.embedding) {
            spec.vocab_size = *rows;
        }
        Ok(Self { adapter: Some(Arc::new(adapter)), unembedding: OnceLock::new(), spec, ..self.clone() })
    }

    /// What says how text becomes tokens, a directory or a GGUF file: the adapter's, if it brings a tokenizer.
    pub fn tokenizer(&self) -> &Path {
        let own = self.adapter.as_ref().filter(|adapter| adapter.dir.join("tokenizer.json").exists());
        own.map_or(&self.path, |adapter| &adapter.dir)
    }

    /// The file that says what shape the model has.
    pub fn config_file(&self) -> PathBuf {
        if self.path.is_dir() { self.path.join("config.json") } else { self.path.clone() }
    }

    /// All files that say what the model computes.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = self.weights.files().map(Path::to_path_buf);
        let adapter = self.adapter.iter().flat_map(|adapter| adapter.files());
        let mut files: Vec<PathBuf> = std::iter::once(self.config_file()).chain(weights).collect();
        files.dedup();
        files.extend(adapter);
        files
    }

    /// A tensor by its name in the file, as the adapter changes it, or as only the adapter has it.
    fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let stored = self.weights.get(name);
        let Some(adapter) = &self.adapter else { return stored };
        stored.map_or_else(|| adapter.own(name), |stored| Some(adapter.apply(name, stored)))
    }

    /// Its shape.
    fn shape(&self, name: &str) -> Option<&[usize]> {
        let own = self.adapter.as_ref().and_then(|adapter| adapter.shape(name));
        own.or_else(|| self.weights.shape(name))
    }

    /// The file that it is in.
    fn file_of(&self, name: &str) -> PathBuf {
        match self.adapter.as_ref().filter(|adapter| adapter.replaces(name)) {
            Some(adapter) => adapter.weights_file(),
            None => self.weights.file_of(name).to_path_buf(),
        }
    }

    /// A tensor of a layer; `None` where the model has no such tensor.
    pub fn layer_tensor(&self, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        let (rows, cols) = tensor.shape(&self.spec, layer)?;
        let family = self.spec.family;
        let name = family.layer_tensor_name(layer, tensor)?;
        let stored = self.tensor(&name)?;
        // A vector is a matrix of one column here, so that its parts are rows.
        let (length, inner) = if tensor.is_vector() { (rows * cols, 1) } else { (rows, cols) };
        let shape =
            |tensor: LayerTensor| tensor.shape(&self.spec, layer).map(|(rows, cols)| rows * cols / inner);
        let lengths: Vec<(LayerTensor, usize)> =
            family.fused_with(tensor).filter_map(|tensor| Some((tensor, shape(tensor)?))).collect();
        let all: usize = lengths.iter().map(|(_, length)| length).sum();
        let before: usize = lengths.iter().take_while(|(other, _)| *other != tensor).map(|(_, n)| n).sum();
        let transposed = self.is_transposed(tensor, &name);
        let elements = Stored { cols: if transposed { all } else { inner }, ..stored.stored };
        let whole = Tensor { rows: all, cols: inner, stored: elements, ..stored };
        let view = match (lengths.len(), family.fusion, transposed) {
            (1, _, false) => {
                return Some(match self.interleaved(tensor) {
                    None => stored,
                    interleaved => Tensor { view: Some(View { interleaved, ..View::WHOLE }), ..whole },
                });
            }
            (1, _, true) | (_, Fusion::OneByOne, true) => {
                View { first: before, group: all, stride: all, transposed, ..View::WHOLE }
            }
            (_, Fusion::OneByOne, false) => return Some(whole.row_range(before..before + length)),
            (_, fusion, _) => {
                let groups = if fusion == Fusion::RowByRow { length } else { self.spec.num_key_value_heads };
                View {
                    first: before / groups,
                    group: length / groups,
                    stride: all / groups,
                    transposed,
                    ..View::WHOLE
                }
            }
        };
        Some(Tensor { rows: length, view: Some(view), ..whole })
    }

    /// Whether a tensor of a layer is stored as `[in, out]`.
    fn is_transposed(&self, tensor: LayerTensor, name: &str) -> bool {
        self.spec.family.transposes(tensor) && !self.weights.is_packed(name)
    }

    /// How the rows of queries and keys are stored where that is not how they are computed.
    fn interleaved(&self, tensor: LayerTensor) -> Option<Interleaved> {
        use LayerTensor::*;
        let is_rotated = matches!(tensor, Query | Key | QueryBias | KeyBias);
        (self.spec.family.interleaved_rotation && is_rotated)
            .then(|| Interleaved { head_dim: self.spec.head_dim, rotary_dim: self.spec.ropes[0].rotary_dim })
    }

    /// What the file has outside the layers, by name: embeddings, final norm, unembedding.
    pub fn tensors_outside_layers(&self) -> impl Iterator<Item = (&'static str, Tensor<'_>)> {
        let Family { embedding, position_embedding, final_norm, final_norm_bias, head, head_bias, .. } =
            self.spec.family;
        let required = [embedding, final_norm, head].map(|name| Some(*name));
        let names = required.into_iter().chain([*position_embedding, *final_norm_bias, *head_bias]);
        names.flatten().filter_map(|name| Some((name, self.tensor(name)?)))
    }

    /// The token embedding `[V, D]`.
    pub fn embedding(&self) -> Result<Tensor<'_>> {
        let (vocab_size, hidden_size) = (self.spec.vocab_size, self.spec.hidden_size);
        self.checked(self.spec.family.embedding, &[vocab_size, hidden_size])
    }

    /// The embedding of positions `[context_length, D]`, where the family has one.
    pub fn position_embedding(&self) -> Option<Result<Tensor<'_>>> {
        let Family { position_embedding, position_offset, .. } = *self.spec.family;
        let rows = self.spec.context_length + position_offset;
        let table = self.checked(position_embedding?, &[rows, self.spec.hidden_size]);
        Some(table.map(|table| table.row_range(position_offset..rows)))
    }

    /// The final norm and the unembedding.
    ///
    /// # Errors
    /// Names the tensor that is missing, of the wrong shape or not finite.
    pub fn head(&self) -> Result<Head<'_>> {
        let ModelSpec { family, hidden_size, vocab_size, .. } = &self.spec;
        if let Some(name) = self.adapter.as_ref().and_then(|adapter| adapter.unread_head()) {
            let dir = self.path.display();
            return Err(Error::checkpoint(format!(
                "the adapter has {name}, but {dir} has no unembedding of its own to adapt: logits cannot be computed yet"
            )));
        }
        let unembedding = self.unembedding.get_or_init(|| self.find_unembedding()).clone()?;
        let vector = |name: &str| self.finite(name, &[*hidden_size]);
        let bias = family.head_bias.map(|name| self.finite(name, &[*vocab_size]));
        Ok(Head {
            norm: vector(family.final_norm)?,
            norm_bias: family.final_norm_bias.map(vector).transpose()?,
            unembedding: self.checked(unembedding, &[*vocab_size, *hidden_size])?,
            bias: bias.transpose()?,
        })
    }

    /// The unembedding, proven finite: of tied models the embedding, unless the file has a head that differs from it, as
    /// after training that untied them (transformers 5 reads that one too).
    fn find_unembedding(&self) -> Result<&'static str> {
        let ModelSpec { family, hidden_size, vocab_size, tie_word_embeddings, .. } = &self.spec;
        let [embedding, head] = [family.embedding, family.head].map(|name| self.weights.get(name));
        let brings_head = self.adapter.as_ref().is_some_and(|adapter| adapter.replaces(family.head));
        let is_tied = *tie_word_embeddings
            && !brings_head
            && match (embedding, head) {
                (Some(embedding), Some(head)) => {
                    embedding.stored.is_same(&head.stored, |bytes| self.weights.let_go(bytes))
                }
                _ => true,
            };
        let name = if is_tied { family.embedding } else { family.head };
        self.finite(name, &[*vocab_size, *hidden_size]).map(|_| name)
    }

    fn finite(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.checked(name, shape)?;
        match tensor.stored.first_non_finite(|bytes| self.weights.let_go(bytes)) {
            None => Ok(tensor),
            Some(_) => Err(Error::checkpoint(format!(
                "{}: tensor {name} has a NaN or infinite element",
                self.file_of(name).display()
            ))),
        }
    }

    /// How most of the layers' weights are stored.
    pub fn encoding(&self) -> Encoding {
        let down = [LayerTensor::Down, LayerTensor::ExpertDown(0)];
        let found = down.into_iter().find_map(|tensor| self.layer_tensor(0, tensor));
        found.map_or(Dtype::F32.into(), |tensor| tensor.stored.encoding)
    }

    /// Sizes of all weight files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.weights.bytes()
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let shown = self.spec.family.stored_name(name);
        let found = self.shape(name).ok_or_else(|| {
            Error::checkpoint(format!(
                "{}: tensor {shown} is missing (expected shape {shape:?})",
                self.path.display()
            ))
        })?;
        let file = self.file_of(name);
        let file = file.display();
        // A number may be stored without dimensions.
        if found != shape && !(found.is_empty() && shape == [1]) {
            let demanding = match &self.adapter {
                // It has more tokens than config.json says.
                Some(adapter) if adapter.replaces(self.spec.family.embedding) => {
                    "the adapter's embedding demands"
                }
                _ if self.path.is_dir() => "config.json demands",
                _ => "its metadata demand",
            };
            let message = format!("{file}: tensor {shown} has shape {found:?}, {demanding} {shape:?}");
            return Err(Error::checkpoint(message));
        }
        self.tensor(name).ok_or_else(|| {
            let stored_as = self.weights.type_name(name);
            Error::checkpoint(format!(
                "{file}: tensor {shown} is {stored_as}, expected {}",
                if self.path.is_dir() {
                    "F32, F16 or BF16, or FP8 with a quantization_config in config.json"
                } else {
                    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K"
                }
            ))
        })
    }

    fn check_layers(&self) -> Result<()> {
        for layer in 0..self.spec.num_hidden_layers {
            for tensor in self.spec.layer_tensors(layer) {
                let shape = |tensor: LayerTensor| tensor.shape(&self.spec, layer);
                let (_, cols) = shape(tensor).expect("the layer has it");
                let fused = self.spec.family.fused_with(tensor).filter_map(shape);
                // Parts of a vector follow each other along its one dimension.
                let (rows, cols) = if tensor.is_vector() {
                    (1, fused.map(|(_, cols)| cols).sum())
                } else {
                    (fused.map(|(rows, _)| rows).sum(), cols)
                };
                let name = self.spec.family.layer_tensor_name(layer, tensor).expect("listed by the family");
                match (tensor.is_vector(), self.is_transposed(tensor, &name)) {
                    (true, _) => self.checked(&name, &[cols])?,
                    (false, false) => self.checked(&name, &[rows, cols])?,
                    (false, true) => self.checked(&name, &[cols, rows])?,
                };
            }
        }
        Ok(())
    }

    /// Tensors that no part of the model would use change what the model computes elsewhere, so they are refused.
    fn check_unknown(&self) -> Result<()> {
        let family = self.spec.family;
        let known = |name: &str| {
            self.spec.is_scored(name)
                || self.spec.is_after_layers(name)
                || self.spec.is_of_another_head(name)
                || family.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix))
        };
        match self.weights.names().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(Error::checkpoint(format!(
                "{}: tensor {name} is not part of a {} model of this shape ({} layers, qkv_bias {}, \
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

/// The shape and the weights of a Hugging Face model directory.
fn open_directory(dir: &Path, dtype: Option<Dtype>) -> Result<(ModelSpec, Weights)> {
    let config_path = dir.join("config.json");
    let config = read_json(&config_path)?;
    let broken = |problem: String| Error::checkpoint(format!("{} {problem}", config_path.display()));
    let text = text_config(&config).map_err(broken)?;
    let spec = parse_config(text.as_ref().unwrap_or(&config)).map_err(broken)?;
    let quantization = Quantization::of(&config).map_err(broken)?;
    let mut weights = Weights::open(dir, dtype)?;
    if text.is_some() {
        weights.keep_text_part();
    }
    weights.add_prefix_of(&spec);
    if let Some(quantization) = quantization {
        weights.find_scales(&quantization)?;
    }
    weights.part_experts(&spec)?;
    if spec.family.weightless_norms {
        weights.add_norms(&spec)?;
    }
    Ok((spec, weights))
}

/// Reads a JSON file of a checkpoint.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|error| Error::unreadable(path, &error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::checkpoint(format!("{} is not valid JSON: {error}", path.display())))
}
