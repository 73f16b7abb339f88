//! PEFT adapters: LoRA (rsLoRA, DoRA), biases and whole modules that were trained with it. Nothing is merged or copied: a
//! weight is read as the base's plus what the adapter adds (`peft` tuners/lora/layer.py).

mod config;

use super::{Weights, read_json};
use crate::{
    Error, Result,
    model::{LayerTensor, ModelSpec},
    tensor::{Dtype, LowRank, Stored, Tensor, View},
};
use config::Config;
use rayon::prelude::*;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// What `peft` puts before the names of the model's modules.
const PREFIX: &str = "base_model.model.";

/// An adapter on disk that fits its model.
#[derive(Debug)]
pub struct Adapter {
    pub dir: PathBuf,
    weights: Weights,
    trained_on: Option<TrainedOn>,
    /// By the name of the model's tensor.
    updates: BTreeMap<String, Update>,
    /// Tensors that stand in the place of the model's: its name → the adapter's.
    replaced: BTreeMap<String, String>,
    /// A tensor for the unembedding of a model whose unembedding is its embedding.
    unread_head: Option<String>,
    /// Weights are rounded as if the adapter had been merged and the sum stored.
    merge: bool,
}

#[derive(Debug)]
struct Update {
    a: Factor,
    b: Factor,
    /// See [`LowRank::b_columns`].
    b_columns: (usize, usize),
    scale: f64,
    /// DoRA: the name of the magnitudes, and magnitude over norm for every row.
    magnitude: Option<String>,
    row_scales: Option<Vec<f64>>,
}

/// One of the two matrices of an update.
#[derive(Debug)]
enum Factor {
    /// These rows of a tensor.
    Named(String, Range<usize>),
    /// A transposed copy, in f32.
    Own { cols: usize, bytes: Vec<u8> },
}

/// Whether a directory holds an adapter and no model. Some trainers put the model's config.json beside an adapter.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).exists() && !Weights::are_in(dir)
}

/// The model that an adapter says it was trained on.
#[derive(Debug)]
pub struct TrainedOn {
    /// A path or a Hub id.
    pub name: String,
    pub revision: Option<String>,
}

impl TrainedOn {
    /// Of the adapter in a directory, if it says so.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        Ok(Self::of(&read_json(&dir.join(CONFIG))?))
    }

    fn of(config: &Value) -> Option<Self> {
        let text = |field: &str| {
            config.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Some(Self { name: text("base_model_name_or_path")?, revision: text("revision") })
    }

    /// Whether the model at `path` may be it, by the last of its names: a directory's, or that of a repository in the Hub's cache.
    fn may_be(&self, path: &Path) -> bool {
        let last = self.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
        let in_cache = format!("--{last}");
        let is_so = |path: &Path| {
            let names = path.components().map(|part| part.as_os_str().to_string_lossy().to_lowercase());
            let names: Vec<String> = names.collect();
            let is_repository = |name: &String| name.starts_with("models--") && name.ends_with(&in_cache);
            names.last() == Some(&last) || names.iter().any(is_repository)
        };
        is_so(path) || path.canonicalize().is_ok_and(|path| is_so(&path))
    }
}

/// The module that a tensor of LoRA is of, as `peft` names it and matches patterns against it. In the text part of a multimodal model
/// names are shorter.
fn named_by_peft(tensor: &str) -> String {
    let name = unwrapped(tensor);
    name.split_once(".lora_").map_or(name.clone(), |(module, _)| module.to_owned())
}

/// A tensor's name without what `peft` puts around the model and around what it adapts.
fn unwrapped(tensor: &str) -> String {
    tensor.trim_start_matches(PREFIX).replace(".base_layer.", ".")
}

impl Adapter {
    /// Opens a PEFT directory as an adapter of `model`; with `merge`, weights are rounded to the model's own types after
    /// the adapter was added, as `merge_and_unload` does.
    ///
    /// # Errors
    /// A sentence that names the file and the field or tensor.
    pub fn open(dir: &Path, spec: &ModelSpec, model: &Weights, merge: bool) -> Result<Self> {
        let config_path = dir.join(CONFIG);
        if !config_path.exists() {
            return Err(Error::usage(format!("{} is no PEFT adapter: it has no {CONFIG}", dir.display())));
        }
        let config = read_json(&config_path)?;
        let trained_on = TrainedOn::of(&config);
        let config = Config::new(&config)
            .map_err(|problem| Error::checkpoint(format!("{} {problem}", config_path.display())))?;
        let Some(path) = WEIGHTS.map(|name| dir.join(name)).into_iter().find(|path| path.exists()) else {
            return Err(Error::usage(format!("{} has neither {}", dir.display(), WEIGHTS.join(" nor "))));
        };
        let mut adapter = Self {
            dir: dir.to_path_buf(),
            weights: Weights::map(&[path])?,
            trained_on,
            updates: BTreeMap::new(),
            replaced: BTreeMap::new(),
            unread_head: None,
            merge,
        };
        adapter.sort_tensors(spec, model, &config)?;
        if !adapter.updates.keys().chain(adapter.replaced.keys()).any(|name| spec.is_scored(name)) {
            return Err(adapter.broken("changes nothing of what is scored".into()));
        }
        adapter.check_finite()?;
        adapter.set_row_scales(spec, model)?;
        Ok(adapter)
    }

    /// `adapter_config.json` and the weights.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = self.weights.files().map(Path::to_path_buf);
        std::iter::once(self.dir.join(CONFIG)).chain(weights).collect()
    }

    /// What to know of it if the model at `path`, which it is put on, is called otherwise than the one that it was trained on.
    pub fn stranger_to(&self, path: &Path) -> Option<String> {
        let TrainedOn { name, .. } = self.trained_on.as_ref().filter(|base| !base.may_be(path))?;
        Some(format!(
            "the adapter {} was trained on {name}, as it says, and is put on {}: if these are two models (as a base and its instruct \
             version are), what comes out is no model that was trained",
            self.dir.display(),
            path.display()
        ))
    }

    /// A tensor of the adapter for an unembedding that the model does not have.
    pub fn unread_head(&self) -> Option<&str> {
        self.unread_head.as_deref()
    }

    /// The shape of the tensor that stands in the place of the model's `name`, or where the model has none.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.weights.shape(self.replaced.get(name)?)
    }

    /// Whether a tensor of the adapter stands in the place of the model's.
    pub fn replaces(&self, name: &str) -> bool {
        self.replaced.contains_key(name)
    }

    /// The tensor that stands where the model has none of this name.
    pub fn own(&self, name: &str) -> Option<Tensor<'_>> {
        self.weights.get(self.replaced.get(name)?)
    }

    /// What the adapter makes of the model's tensor `name`.
    pub fn apply<'a>(&'a self, name: &str, stored: Tensor<'a>) -> Tensor<'a> {
        let checked = |name: &str| self.weights.get(name).expect("checked when it was opened");
        let whole = self.own(name).unwrap_or(stored);
        let Some(update) = self.updates.get(name) else { return whole };
        let part = |factor: &'a Factor| match factor {
            Factor::Named(name, rows) => checked(name).stored.row_range(rows.clone()),
            Factor::Own { cols, bytes } => Stored::new(Dtype::F32, *cols, bytes),
        };
        let update = LowRank {
            a: part(&update.a),
            b: part(&update.b),
            b_columns: update.b_columns,
            scale: update.scale,
            row_scales: update.row_scales.as_deref(),
            merged_to: self.merge.then_some(stored.rounded_to),
        };
        Tensor { update: Some(update), ..whole }
    }

    pub fn weights_file(&self) -> PathBuf {
        self.weights.files().next().expect("it was mapped").to_path_buf()
    }

    fn broken(&self, problem: String) -> Error {
        Error::checkpoint(format!("{} {problem}", self.weights_file().display()))
    }

    /// Finds out what each tensor of the file is for.
    fn sort_tensors(&mut self, spec: &ModelSpec, model: &Weights, config: &Config) -> Result<()> {
        let names: Vec<String> = self.weights.names().map(str::to_owned).collect();
        if let Some(name) = names.iter().find(|name| !name.starts_with(PREFIX)) {
            return Err(self.broken(format!("has tensor {name}, whose name does not begin with {PREFIX}")));
        }
        for name in &names {
            let target = unwrapped(name);
            // An adapter of a multimodal model may change the part for images too; one that was trained on its text part alone has the names of that.
            let is_text = |target: &String| spec.family.is_named_as(target);
            let Some(target) = model.own_name(&target).or_else(|| Some(target).filter(is_text)) else {
                continue;
            };
            let is_part = |target: &str| {
                spec.is_scored(target) || spec.is_after_layers(target) && model.shape(target).is_some()
            };
            if let Some(module) = target.strip_suffix(".lora_A.weight") {
                let weight = format!("{module}.weight");
                if module.ends_with(".experts") {
                    self.update_experts(name, module, spec, config)?;
                } else if is_part(&weight) {
                    let update = self.update(name, module, spec, model, config)?;
                    self.updates.insert(weight, update);
                } else if spec.is_after_layers(&weight) {
                    self.unread_head = Some(name.clone());
                } else {
                    return Err(self.broken(format!("adapts {module}, which the model does not have")));
                }
            } else if let Some(module) = target.strip_suffix(".lora_embedding_A") {
                let update = self.update_embedding(name, module, model, config)?;
                self.updates.insert(format!("{module}.weight"), update);
            } else if let Some((module, part)) = name.split_once(".lora_") {
                let first = match part {
                    "B.weight" | "magnitude_vector" | "magnitude_vector.weight" => "lora_A.weight",
                    "embedding_B" => "lora_embedding_A",
                    _ => {
                        return Err(
                            self.broken(format!("has tensor {name}, a part of LoRA that is not known"))
                        );
                    }
                };
                if !names.contains(&format!("{module}.{first}")) {
                    return Err(self.broken(format!("has tensor {name}, which belongs to no {first}")));
                }
            } else if is_part(&target) || target == spec.family.head {
                self.check_replaces(name, &target, spec, model)?;
                self.replaced.insert(target, name.clone());
            } else if spec.is_after_layers(&target) {
                self.unread_head = Some(name.clone());
            } else if target.contains(".experts.") && spec.family.experts_together {
                return Err(
                    self.broken(format!("has tensor {name}: saved experts cannot be read, adapted ones can"))
                );
            } else {
                return Err(self.broken(format!("has tensor {name}, which the model does not have")));
            }
        }
        Ok(())
    }

    /// A saved module is as large as the model's. Embedding and unembedding may have more rows, of tokens that were added; `peft` then
    /// saves the unembedding of models too whose unembedding is their embedding.
    fn check_replaces(&self, name: &str, target: &str, spec: &ModelSpec, model: &Weights) -> Result<()> {
        let table = [spec.vocab_size, spec.hidden_size];
        let is_table = [spec.family.embedding, spec.family.head].contains(&target);
        let expected = model.shape(target).unwrap_or(&table);
        let found = self.weights.shape(name);
        let has_more = matches!((found, expected), (Some([rows, cols]), [least, width]) if rows > least && cols == width);
        if found != Some(expected) && !(is_table && has_more) {
            return Err(self.broken(format!(
                "replaces {target} by one of shape {}, the model's has {expected:?}",
                shown(found)
            )));
        }
        self.computable(name).map(|_| ())
    }

    /// Of a linear layer: `W + scale · B A`.
    fn update(
        &self,
        a: &str,
        module: &str,
        spec: &ModelSpec,
        model: &Weights,
        config: &Config,
    ) -> Result<Update> {
        let b = a.replace(".lora_A.", ".lora_B.");
        let target = format!("{module}.weight");
        let [mut rows, mut cols] = model.shape(&target).unwrap_or_default()[..] else {
            return Err(self.broken(format!("adapts {module}, which is no matrix in the model")));
        };
        if spec.family.is_transposed(&target) {
            (rows, cols) = (cols, rows);
        }
        let rank = self.rank_of(a, &b, |rank| ([rank, cols], [rows, rank]))?;
        let named = config.pattern_key(named_by_peft(a));
        self.check_rank(a, rank, config.rank(&named))?;
        let magnitude = config.use_dora.then(|| a.replace(".lora_A.weight", ".lora_magnitude_vector"));
        let (a, b) = (Factor::Named(a.into(), 0..rank), Factor::Named(b, 0..rows));
        let scale = config.scale(&named, rank);
        Ok(Update { a, b, b_columns: (0, 1), scale, magnitude, row_scales: None })
    }

    /// Of an embedding, whose rows are what a linear layer's columns are: `W + scale · (B A)ᵀ`.
    fn update_embedding(&self, a: &str, module: &str, model: &Weights, config: &Config) -> Result<Update> {
        let b = a.replace(".lora_embedding_A", ".lora_embedding_B");
        let [rows, cols] = model.shape(&format!("{module}.weight")).unwrap_or_default()[..] else {
            return Err(self.broken(format!("adapts {module}, which the model does not have")));
        };
        if config.use_dora {
            return Err(
                self.broken(format!("adapts {module} with use_dora, which cannot be read for embeddings"))
            );
        }
        let rank = self.rank_of(a, &b, |rank| ([rank, rows], [cols, rank]))?;
        let named = named_by_peft(a);
        self.check_rank(a, rank, config.rank(&named))?;
        let (a, b) = (self.transposed(&b)?, self.transposed(a)?);
        let scale = config.scale(&named, rank);
        Ok(Update { a, b, b_columns: (0, 1), scale, magnitude: None, row_scales: None })
    }

    /// Of all experts of a layer together (`target_parameters`), whose weights `transformers` keeps one above the other: `A`
    /// has the rows of one expert after those of another, `B` the columns of all experts for each rank. Its rows are those of the gate and
    /// then those of the up projection, or as the family fuses them.
    fn update_experts(&mut self, a: &str, module: &str, spec: &ModelSpec, config: &Config) -> Result<()> {
        let b = a.replace(".lora_A.", ".lora_B.");
        let layer = spec.family.layer_of(module).filter(|layer| spec.has_experts(*layer));
        let (Some(layer), Some(experts)) = (layer, &spec.experts) else {
            return Err(self.broken(format!("adapts {module}, but the model has no experts there")));
        };
        let (count, hidden, inner) = (experts.count, spec.hidden_size, experts.intermediate_size);
        let is_down = self.weights.shape(a).is_some_and(|shape| shape.get(1) == Some(&inner))
            && self.weights.shape(&b).is_some_and(|shape| shape.first() == Some(&hidden));
        type Parts = &'static [(fn(u16) -> LayerTensor, usize)];
        const GATE_AND_UP: Parts = &[(LayerTensor::ExpertGate, 0), (LayerTensor::ExpertUp, 1)];
        let is_fused = spec.family.fused_with(LayerTensor::ExpertGate(0)).count() > 1;
        let (name, cols, rows, parts): (_, _, _, Parts) = if is_down {
            ("down_proj", inner, hidden, &[(LayerTensor::ExpertDown, 0)])
        } else {
            ("gate_up_proj", hidden, 2 * inner, if is_fused { &GATE_AND_UP[..1] } else { GATE_AND_UP })
        };
        let all = self.rank_of(a, &b, |all| ([all, cols], [rows, all]))?;
        let key = format!("{}.{name}", named_by_peft(a));
        let rank = config.rank(&key);
        self.check_rank(a, all, count * rank)?;
        for expert in 0..count {
            for (tensor, part) in parts {
                let height = rows / parts.len();
                let target =
                    spec.family.layer_tensor_name(layer, tensor(expert as u16)).expect("it has experts");
                let update = Update {
                    a: Factor::Named(a.into(), expert * rank..(expert + 1) * rank),
                    b: Factor::Named(b.clone(), part * height..(part + 1) * height),
                    b_columns: (expert, count),
                    scale: config.scale(&key, rank),
                    magnitude: None,
                    row_scales: None,
                };
                self.updates.insert(target, update);
            }
        }
        Ok(())
    }

    /// The rank of two matrices that have the shapes that it demands.
    fn rank_of(&self, a: &str, b: &str, shapes: impl Fn(usize) -> ([usize; 2], [usize; 2])) -> Result<usize> {
        let (a_shape, b_shape) = (self.weights.shape(a), self.weights.shape(b));
        let rank = a_shape.and_then(|shape| shape.first()).copied().unwrap_or(0);
        let (wanted_a, wanted_b) = shapes(rank);
        if rank == 0 || a_shape != Some(&wanted_a) || b_shape != Some(&wanted_b) {
            return Err(self.broken(format!(
                "has {a} of shape {} and {b} of shape {}, expected {wanted_a:?} and {wanted_b:?}, of a rank above 0: it was \
                 trained on another model",
                shown(a_shape),
                shown(b_shape)
            )));
        }
        self.computable(a)?;
        self.computable(b)?;
        Ok(rank)
    }

    fn check_rank(&self, a: &str, rank: usize, told: usize) -> Result<()> {
        if rank == told {
            return Ok(());
        }
        Err(self.broken(format!("has {a} of rank {rank}, {CONFIG} says {told}")))
    }

    fn transposed(&self, name: &str) -> Result<Factor> {
        let tensor = self.computable(name)?;
        let (rows, cols, values) = (tensor.rows, tensor.cols, tensor.to_f32());
        let bytes = (0..cols * rows).flat_map(|i| values[i % rows * cols + i / rows].to_le_bytes()).collect();
        Ok(Factor::Own { cols: rows, bytes })
    }

    fn computable(&self, name: &str) -> Result<Tensor<'_>> {
        self.weights.get(name).ok_or_else(|| {
            let stored_as = self.weights.type_name(name);
            self.broken(format!("has {name} as {stored_as}, expected F32, F16 or BF16"))
        })
    }

    fn check_finite(&self) -> Result<()> {
        let names: Vec<&str> = self.weights.names().collect();
        let bad = names.par_iter().find_map_first(|name| {
            let index = self.weights.get(name)?.stored.first_non_finite(|_| ())?;
            Some(format!("has a NaN or infinite element in {name}, at index {index}"))
        });
        bad.map_or(Ok(()), |problem| Err(self.broken(problem)))
    }

    /// DoRA: rows have the learned magnitude instead of their norm.
    fn set_row_scales(&mut self, spec: &ModelSpec, model: &Weights) -> Result<()> {
        let mut all = BTreeMap::new();
        for (name, update) in &self.updates {
            let Some(magnitude) = &update.magnitude else { continue };
            let found =
                self.weights.get(magnitude).or_else(|| self.weights.get(&format!("{magnitude}.weight")));
            let mut tensor = self.apply(name, model.get(name).expect("checked above"));
            if spec.family.is_transposed(name) {
                let view = View { transposed: true, ..View::WHOLE };
                tensor = Tensor { rows: tensor.cols, cols: tensor.rows, view: Some(view), ..tensor };
            }
            let magnitude =
                found.filter(|vector| vector.rows * vector.cols == tensor.rows).ok_or_else(|| {
                    self.broken(format!("has use_dora, but no {magnitude} of {} elements", tensor.rows))
                })?;
            let unmerged = LowRank { merged_to: None, ..tensor.update.expect("it has one") };
            let tensor = Tensor { update: Some(unmerged), ..tensor };
            let scales = magnitude.to_f32().into_par_iter().enumerate().map(|(row, magnitude)| {
                let mut wide = vec![0.0; tensor.cols];
                tensor.widen_run_f64(row, 0..tensor.cols, &mut wide);
                f64::from(magnitude) / wide.iter().map(|v| v * v).sum::<f64>().sqrt()
            });
            all.insert(name.clone(), scales.collect::<Vec<f64>>());
            model.let_go(tensor.stored.bytes);
        }
        for (name, scales) in all {
            self.updates.get_mut(&name).expect("it is one of them").row_scales = Some(scales);
        }
        Ok(())
    }
}

/// A tensor's shape, for messages.
fn shown(shape: Option<&[usize]>) -> String {
    shape.map_or_else(|| "nothing".into(), |shape| format!("{shape:?}"))
}
