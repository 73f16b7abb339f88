//! PEFT adapters: LoRA (rsLoRA, DoRA), biases and whole modules that were trained with it. Nothing is merged or copied: a
//! weight is read as the base's plus what the adapter adds (`peft` tuners/lora/layer.py).

use super::{Weights, read_json};
use crate::{
    Error, Result,
    model::ModelSpec,
    tensor::{LowRank, Stored, Tensor},
};
use rayon::prelude::*;
use regex::Regex;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What `peft` puts before the names of the model's modules.
const PREFIX: &str = "base_model.model.";

/// An adapter on disk that fits its model.
#[derive(Debug)]
pub struct Adapter {
    pub dir: PathBuf,
    weights: Weights,
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
    a: String,
    b: String,
    scale: f64,
    /// DoRA: magnitude over norm, for every row.
    row_scales: Option<Vec<f64>>,
}

/// Whether a directory holds an adapter and no model.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG).exists() && !dir.join("config.json").exists()
}

/// The model that an adapter says it was trained on: a path or a Hub id.
pub fn base_of(dir: &Path) -> Result<Option<String>> {
    let config = read_json(&dir.join(CONFIG))?;
    Ok(config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned))
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
        let config = Config::new(&config)
            .map_err(|problem| Error::checkpoint(format!("{} {problem}", config_path.display())))?;
        let path = dir.join(WEIGHTS);
        if !path.exists() {
            let hint = if dir.join("adapter_model.bin").exists() {
                "; it has only adapter_model.bin, which can run code when it is read: load it with peft and \
                 save_pretrained it again"
            } else {
                ""
            };
            return Err(Error::usage(format!("{} has no {WEIGHTS}{hint}", dir.display())));
        }
        let mut adapter = Self {
            dir: dir.to_path_buf(),
            weights: Weights::map(&[path])?,
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
        adapter.set_row_scales(model, &config)?;
        Ok(adapter)
    }

    /// `adapter_config.json` and the weights.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = self.weights.files().map(Path::to_path_buf);
        std::iter::once(self.dir.join(CONFIG)).chain(weights).collect()
    }

    /// A tensor of the adapter for an unembedding that the model does not have.
    pub fn unread_head(&self) -> Option<&str> {
        self.unread_head.as_deref()
    }

    /// What the adapter makes of the model's tensor `name`.
    pub fn apply<'a>(&'a self, name: &str, stored: Tensor<'a>) -> Tensor<'a> {
        if let Some(own) = self.replaced.get(name) {
            return self.weights.get(own).expect("checked when it was opened");
        }
        let Some(update) = self.updates.get(name) else { return stored };
        let part = |name: &str| {
            let Tensor { dtype, cols, bytes, .. } =
                self.weights.get(name).expect("checked when it was opened");
            Stored { dtype, cols, bytes }
        };
        let update = LowRank {
            a: part(&update.a),
            b: part(&update.b),
            scale: update.scale,
            row_scales: update.row_scales.as_deref(),
            merged_to: self.merge.then_some(stored.rounded_to),
        };
        Tensor { update: Some(update), ..stored }
    }

    fn broken(&self, problem: String) -> Error {
        Error::checkpoint(format!("{} {problem}", self.dir.join(WEIGHTS).display()))
    }

    /// Finds out what each tensor of the file is for.
    fn sort_tensors(&mut self, spec: &ModelSpec, model: &Weights, config: &Config) -> Result<()> {
        let names: Vec<String> = self.weights.names().map(str::to_owned).collect();
        if let Some(name) = names.iter().find(|name| !name.starts_with(PREFIX)) {
            return Err(self.broken(format!("has tensor {name}, whose name does not begin with {PREFIX}")));
        }
        for name in &names {
            let target = name.trim_start_matches(PREFIX);
            let target = target.replace(".base_layer.", ".");
            // An adapter of a multimodal model may change the part for images too.
            let Some(target) = model.own_name(&target) else { continue };
            let is_part = |target: &str| {
                spec.is_scored(target) || spec.is_after_layers(target) && model.shape(target).is_some()
            };
            if let Some(module) = target.strip_suffix(".lora_A.weight") {
                if is_part(&format!("{module}.weight")) {
                    let update = self.update(name, module, model, config)?;
                    self.updates.insert(format!("{module}.weight"), update);
                } else if spec.is_after_layers(&format!("{module}.weight")) {
                    self.unread_head = Some(name.clone());
                } else {
                    return Err(self.broken(format!("adapts {module}, which the model does not have")));
                }
            } else if target.contains(".lora_embedding_") {
                return Err(self.broken(format!("has tensor {name}: adapted embeddings cannot be read yet")));
            } else if target.contains(".lora_") {
                let (module, part) = name.split_once(".lora_").unwrap_or_default();
                let known = ["B.weight", "magnitude_vector", "magnitude_vector.weight"].contains(&part);
                if !known || !names.contains(&format!("{module}.lora_A.weight")) {
                    return Err(self.broken(format!("has tensor {name}, which belongs to no lora_A.weight")));
                }
            } else if is_part(&target) {
                let (own, others) = (self.weights.shape(name), model.shape(&target));
                if own != others {
                    return Err(self.broken(format!(
                        "replaces {target} by one of shape {own:?}, the model's has {others:?}"
                    )));
                }
                self.computable(name)?;
                self.replaced.insert(target, name.clone());
            } else if spec.is_after_layers(&target) {
                self.unread_head = Some(name.clone());
            } else {
                return Err(self.broken(format!("has tensor {name}, which the model does not have")));
            }
        }
        Ok(())
    }

    fn update(&self, a: &str, module: &str, model: &Weights, config: &Config) -> Result<Update> {
        let b = a.replace(".lora_A.", ".lora_B.");
        let target = format!("{module}.weight");
        let [rows, cols] = model.shape(&target).unwrap_or_default()[..] else {
            return Err(self.broken(format!("adapts {module}, which is no matrix in the model")));
        };
        let (a_shape, b_shape) = (self.weights.shape(a), self.weights.shape(&b));
        let rank = a_shape.and_then(|shape| shape.first()).copied().unwrap_or(0);
        if rank == 0 || a_shape != Some(&[rank, cols]) || b_shape != Some(&[rows, rank]) {
            return Err(self.broken(format!(
                "has {a} of shape {a_shape:?} and {b} of shape {b_shape:?}, expected [rank, {cols}] and [{rows}, rank]: \
                 it was trained on another model"
            )));
        }
        let told = config.rank(module);
        if rank != told {
            return Err(self.broken(format!("has {a} of rank {rank}, {CONFIG} says {told}")));
        }
        self.computable(a)?;
        self.computable(&b)?;
        Ok(Update { a: a.into(), b, scale: config.scale(module, rank), row_scales: None })
    }

    fn computable(&self, name: &str) -> Result<Tensor<'_>> {
        self.weights.get(name).ok_or_else(|| {
            let dtype = self.weights.dtype_name(name);
            self.broken(format!("has {name} as {dtype}, expected F32, F16 or BF16"))
        })
    }

    fn check_finite(&self) -> Result<()> {
        let names: Vec<&str> = self.weights.names().collect();
        let bad = names.par_iter().find_map_first(|name| {
            let index = self.weights.get(name)?.first_non_finite()?;
            Some(format!("has a NaN or infinite element in {name}, at index {index}"))
        });
        bad.map_or(Ok(()), |problem| Err(self.broken(problem)))
    }

    /// DoRA: rows have the learned magnitude instead of their norm.
    fn set_row_scales(&mut self, model: &Weights, config: &Config) -> Result<()> {
        if !config.use_dora {
            return Ok(());
        }
        let mut all = BTreeMap::new();
        for (name, update) in &self.updates {
            let module = update.a.trim_end_matches(".lora_A.weight");
            let names = ["", ".weight"].map(|ending| format!("{module}.lora_magnitude_vector{ending}"));
            let magnitude = names.iter().find_map(|name| self.weights.get(name));
            let tensor = self.apply(name, model.get(name).expect("checked above"));
            let magnitude =
                magnitude.filter(|vector| vector.rows * vector.cols == tensor.rows).ok_or_else(|| {
                    self.broken(format!("has use_dora, but no {} of {} elements", names[0], tensor.rows))
                })?;
            let unmerged = LowRank { merged_to: None, ..tensor.update.expect("it has one") };
            let tensor = Tensor { update: Some(unmerged), ..tensor };
            let scales = magnitude.to_f32().into_par_iter().enumerate().map(|(row, magnitude)| {
                let mut wide = vec![0.0; tensor.cols];
                tensor.widen_run_f64(row, 0..tensor.cols, &mut wide);
                f64::from(magnitude) / wide.iter().map(|v| v * v).sum::<f64>().sqrt()
            });
            all.insert(name.clone(), scales.collect::<Vec<f64>>());
        }
        for (name, scales) in all {
            self.updates.get_mut(&name).expect("it is one of them").row_scales = Some(scales);
        }
        Ok(())
    }
}

/// The fields of `adapter_config.json` that say how strong the adapter is.
struct Config {
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    use_dora: bool,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

impl Config {
    fn new(config: &Value) -> std::result::Result<Self, String> {
        let object = config.as_object().ok_or("is not a JSON object")?;
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(format!("has peft_type {other}, which cannot be read (known: LORA)")),
            None => return Err("has no peft_type (known: LORA)".into()),
        }
        // Each of these changes what the weights mean; `transformers` writes null, false or nothing where it is not used.
        const UNREAD: [&str; 12] = [
            "fan_in_fan_out",
            "layer_replication",
            "trainable_token_indices",
            "target_parameters",
            "lora_bias",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "use_bdlora",
            "use_qalora",
            "velora_config",
        ];
        let is_set = |value: &&Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            _ => true,
        };
        if let Some(field) = UNREAD.into_iter().find(|field| object.get(*field).filter(is_set).is_some()) {
            return Err(format!("has {field}, which cannot be read yet"));
        }
        if let Some(Value::String(init)) = object.get("init_lora_weights") {
            let changes_base = ["pissa", "olora", "corda", "loftq"].iter().any(|name| init.starts_with(name));
            if changes_base {
                return Err(format!(
                    "has init_lora_weights \"{init}\", which changes the base as well; save it with \
                     path_initial_model_for_weight_conversion, as an ordinary LoRA"
                ));
            }
        }
        let flag = |name: &str| object.get(name).and_then(Value::as_bool).unwrap_or(false);
        let number = |name: &str| {
            let value = object.get(name).and_then(Value::as_f64).filter(|value| *value > 0.0);
            value.ok_or_else(|| match object.get(name) {
                Some(value) => format!("has {name} {value}, expected a positive number"),
                None => format!("has no {name}"),
            })
        };
        Ok(Self {
            rank: number("r")? as usize,
            alpha: number("lora_alpha")?,
            use_rslora: flag("use_rslora"),
            use_dora: flag("use_dora"),
            rank_pattern: patterns(object, "rank_pattern")?,
            alpha_pattern: patterns(object, "alpha_pattern")?,
        })
    }

    fn rank(&self, module: &str) -> usize {
        lookup(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    fn scale(&self, module: &str, rank: usize) -> f64 {
        let alpha = lookup(&self.alpha_pattern, module).unwrap_or(self.alpha);
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }
}

/// `rank_pattern`, `alpha_pattern`: ends of module names, as regular expressions (`peft` get_pattern_key).
fn patterns(object: &Map<String, Value>, field: &str) -> std::result::Result<Vec<(Regex, f64)>, String> {
    let Some(patterns) = object.get(field).and_then(Value::as_object) else { return Ok(Vec::new()) };
    let pattern = |(key, value): (&String, &Value)| {
        let regex = Regex::new(&format!("^(.*\\.)?({key})$")).map_err(|error| format!("{field}: {error}"))?;
        let value = value.as_f64().filter(|value| *value > 0.0);
        Ok((regex, value.ok_or_else(|| format!("{field}.{key}: expected a positive number"))?))
    };
    patterns.iter().map(pattern).collect()
}

fn lookup(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}
