//! Two checkpoints that are a pair: same shape, finite weights, and what they have in common.

use super::{Checkpoint, Weights, compare_vocabularies, fingerprint};
use crate::{
    Error, Result,
    model::{Head, LayerSpec, LayerTensor, ModelSpec, PairWeights, Rope, RopeScaling},
    tensor::{Dtype, Encoding, Tensor},
    twin::{Branch, Twin},
};
use rayon::prelude::*;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// A pre-trained model and the one fine-tuned from it.
#[derive(Debug)]
pub struct Pair {
    pub checkpoints: Twin<Checkpoint>,
    /// Layer tensors that are the same, to the bit, in both.
    shared: HashSet<(usize, LayerTensor)>,
    /// What a user should know before trusting the numbers, a sentence each.
    pub notices: Vec<String>,
}

/// How the weights of a pair are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// The type that weights are read as if they had been stored in; `None`: as they are.
    pub dtype: Option<Dtype>,
    /// Weights are rounded to the models' own types after the adapters were added.
    pub merge: bool,
    /// What was read of the files leaves memory, until it is read again.
    pub lets_go: bool,
}

/// Where one model of a pair is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    pub model: PathBuf,
    /// A PEFT adapter on it.
    pub adapter: Option<PathBuf>,
}

impl Pair {
    /// Opens two model directories and proves that they are a pair. With `dtype`, weights are read as if they had
    /// been stored in it.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; a mismatch names the first field that differs; weights that are not finite are
    /// refused.
    pub fn open(base: &Path, tuned: &Path, dtype: Option<Dtype>) -> Result<Self> {
        let side = |model: &Path| Side { model: model.to_path_buf(), adapter: None };
        let reading = Reading { dtype, ..Reading::default() };
        Self::open_sides(&Twin::new(side(base), side(tuned)), reading)
    }

    /// [`Pair::open`] for models with adapters on them. One model on both sides is mapped once.
    ///
    /// # Errors
    /// As [`Pair::open`] and [`Adapter::open`](super::Adapter::open).
    pub fn open_sides(sides: &Twin<Side>, reading: Reading) -> Result<Self> {
        let pt = Checkpoint::open(&sides.pt.model, reading)?;
        let same = sides.pt.model == sides.ft.model;
        let ft = if same { pt.clone() } else { Checkpoint::open(&sides.ft.model, reading)? };
        let adapted = |checkpoint: Checkpoint, side: &Side| match &side.adapter {
            Some(dir) => checkpoint.with_adapter(dir, reading.merge),
            None => Ok(checkpoint),
        };
        let checkpoints = Twin::new(adapted(pt, &sides.pt)?, adapted(ft, &sides.ft)?);
        check_shapes(&checkpoints)?;
        let mut notices = differences(&checkpoints);
        let differ = !notices.is_empty();
        for checkpoint in [&checkpoints.pt, &checkpoints.ft] {
            notices.extend(
                checkpoint.adapter.as_ref().and_then(|adapter| adapter.stranger_to(&checkpoint.path)),
            );
        }
        let tokenizers = checkpoints.as_ref().map(Checkpoint::tokenizer);
        notices.extend(compare_vocabularies(&tokenizers, &Twin::new("base", "tuned"))?);
        let Twin { pt: base, ft: tuned } = checkpoints.as_ref().map(Checkpoint::encoding);
        // What was tuned from packed experts was tuned from what they say, and bf16 holds that.
        let unpacked = (base, tuned) == (Encoding::Mxfp4, Dtype::Bf16.into());
        if base != tuned && !unpacked && reading.dtype.is_none() {
            let [base, tuned] = [base, tuned].map(Encoding::name);
            notices.push(format!(
                "weights are {base} in base and {tuned} in tuned: rounding of one alone counts as fine-tuning (--dtype rounds both)"
            ));
        }
        notices.extend(unsure_length(&checkpoints.ft.spec));
        check_finite(&checkpoints)?;
        let shared = shared_tensors(&checkpoints);
        weights(&checkpoints).for_each(Weights::let_go_all);
        let mut pair = Self { checkpoints, shared, notices };
        if !differ && pair.layer_tensors().all(|tensor| pair.shared.contains(&tensor)) {
            pair.notices.push("the blocks of the two models are the same: every TuCo will be 0".into());
        }
        Ok(pair)
    }

    /// Every tensor of every layer that the models have.
    pub fn layer_tensors(&self) -> impl Iterator<Item = (usize, LayerTensor)> {
        self.checkpoints.ft.spec.all_layer_tensors()
    }

    /// Hashes of the configs and of all weight files: file name → SHA-256, in order. That of large models takes minutes, which `stop` ends.
    ///
    /// # Errors
    /// Where a file cannot be read; [`ErrorKind::Interrupted`](crate::ErrorKind) when it is stopped.
    pub fn fingerprints(&self, stop: &AtomicBool) -> Result<Twin<Vec<(String, String)>>> {
        let files = self.checkpoints.as_ref().map(Checkpoint::files);
        let (pt, ft) =
            rayon::join(|| fingerprint::files(&files.pt, stop), || fingerprint::files(&files.ft, stop));
        Ok(Twin::new(pt?, ft?))
    }
}

impl PairWeights for Pair {
    fn spec(&self) -> Twin<&ModelSpec> {
        self.checkpoints.as_ref().map(|checkpoint| &checkpoint.spec)
    }

    fn embedding(&self) -> Tensor<'_> {
        self.checkpoints.ft.embedding().expect("checked when the pair was opened")
    }

    fn position_embedding(&self) -> Option<Tensor<'_>> {
        self.checkpoints
            .ft
            .position_embedding()
            .map(|table| table.expect("checked when the model was opened"))
    }

    fn head(&self) -> Result<Head<'_>> {
        self.checkpoints.ft.head()
    }

    fn layer_tensor(&self, branch: Branch, layer: usize, tensor: LayerTensor) -> Option<Tensor<'_>> {
        self.checkpoints.get(branch).layer_tensor(layer, tensor)
    }

    fn lets_go(&self) -> bool {
        weights(&self.checkpoints).any(Weights::lets_go)
    }

    fn expect(&self, tensor: &Tensor<'_>) {
        weights(&self.checkpoints).for_each(|weights| weights.expect(tensor.stored.bytes));
    }

    fn let_go(&self, tensor: &Tensor<'_>) {
        weights(&self.checkpoints).for_each(|weights| weights.let_go(tensor.stored.bytes));
    }

    fn is_shared(&self, layer: usize, tensor: LayerTensor) -> bool {
        tensor.shape(&self.checkpoints.ft.spec, layer).is_none() || self.shared.contains(&(layer, tensor))
    }
}

/// The weights of both models, once where they are one model's.
fn weights(checkpoints: &Twin<Checkpoint>) -> impl Iterator<Item = &Weights> {
    let Twin { pt, ft } = checkpoints.as_ref().map(|checkpoint| &checkpoint.weights);
    let other = (!Arc::ptr_eq(pt, ft)).then_some(ft);
    std::iter::once(pt).chain(other).map(AsRef::as_ref)
}

fn check_shapes(checkpoints: &Twin<Checkpoint>) -> Result<()> {
    let Twin { pt, ft } = checkpoints;
    for ((field, base), (_, tuned)) in pt.spec.shape_fields().into_iter().zip(ft.spec.shape_fields()) {
        if base != tuned {
            return Err(Error::mismatch(format!(
                "base and tuned are not a pair: {field} is {base} in {} and {tuned} in {}",
                pt.config_file().display(),
                ft.config_file().display(),
            )));
        }
    }
    ft.embedding().map(|_| ())
}

/// Differences that are allowed: each block runs with its own model's numbers.
fn differences(checkpoints: &Twin<Checkpoint>) -> Vec<String> {
    let Twin { pt, ft } = checkpoints.as_ref().map(|checkpoint| &checkpoint.spec);
    let mut notices = Vec::new();
    let mut note = |what: &str, base: String, tuned: String| {
        if base != tuned {
            notices.push(format!("{what} differs: base {base}, tuned {tuned}; each block runs with its own"));
        }
    };
    let of_layers = |spec: &ModelSpec, of: fn(&LayerSpec) -> Option<usize>| {
        format!("{:?}", spec.layers.iter().map(of).collect::<Vec<_>>())
    };
    let of_ropes = |spec: &ModelSpec, of: fn(&Rope) -> String| {
        spec.ropes.iter().map(of).collect::<Vec<String>>().join(" and ")
    };
    let thetas = |spec: &ModelSpec| of_ropes(spec, |rope| rope.rope_theta.to_string());
    note("rope_theta", thetas(pt), thetas(ft));
    let scalings = |spec: &ModelSpec| of_ropes(spec, |rope| format!("{:?}", rope.scaling));
    note("the scaling of rotary embeddings", scalings(pt), scalings(ft));
    let dimensions = |spec: &ModelSpec| of_ropes(spec, |rope| rope.rotary_dim.to_string());
    note("the number of rotated dimensions", dimensions(pt), dimensions(ft));
    let by_layer = |spec: &ModelSpec| of_layers(spec, |layer| layer.rope);
    note("which rotary embedding each layer has", by_layer(pt), by_layer(ft));
    let windows = |spec: &ModelSpec| of_layers(spec, |layer| layer.sliding_window);
    note("the layers' windows", windows(pt), windows(ft));
    let normalize =
        |spec: &ModelSpec| format!("{:?}", spec.experts.as_ref().map(|experts| experts.normalize));
    note("norm_topk_prob", normalize(pt), normalize(ft));
    note("the epsilon of norms", pt.norm_eps.to_string(), ft.norm_eps.to_string());
    note("the factor on attention scores", pt.attention_scale.to_string(), ft.attention_scale.to_string());
    let cap = |spec: &ModelSpec| format!("{:?}", spec.attn_logit_softcapping);
    note("attn_logit_softcapping", cap(pt), cap(ft));
    let limit = |spec: &ModelSpec| spec.hidden_act.limit().map_or("none".into(), |limit| limit.to_string());
    note("the limit of gates", limit(pt), limit(ft));
    note("residual_multiplier", pt.residual_multiplier.to_string(), ft.residual_multiplier.to_string());
    let ends = [
        ("embedding_multiplier", Twin::new(pt.embedding_multiplier, ft.embedding_multiplier)),
        ("logits_scaling", Twin::new(pt.logits_scaling, ft.logits_scaling)),
    ];
    for (what, Twin { pt: base, ft: tuned }) in ends.into_iter().filter(|(_, of)| of.pt != of.ft) {
        notices.push(format!(
            "{what} differs: base {base}, tuned {tuned}; the tuned model's is taken, at any alpha"
        ));
    }
    if pt.context_length < ft.context_length {
        notices.push(format!(
            "the base takes {} tokens, the tuned model {}: of longer prompts PTC is what the base was not trained for",
            pt.context_length, ft.context_length
        ));
    }
    if pt.vocab_size != ft.vocab_size {
        notices.push(format!(
            "vocab_size differs: base {}, tuned {}; prompts are embedded with the tuned model's",
            pt.vocab_size, ft.vocab_size
        ));
    }
    notices
}

/// Configs with linear scaling tell the length before stretching (Vicuna of 16k) or after it (DeepSeek Coder, LongChat); nothing in them says which.
fn unsure_length(spec: &ModelSpec) -> Option<String> {
    let [Rope { scaling: RopeScaling::Linear { factor }, .. }] = spec.ropes[..] else { return None };
    let (length, unstretched) = (spec.context_length, spec.context_length as f64 / factor);
    (factor > 1.0).then(|| {
        format!(
            "prompts of up to {length} tokens are taken, {factor} (the linear factor of rotary embeddings) times max_position_embeddings: if \
             that is already the length which the model was trained for, --max-length {unstretched:.0} keeps longer ones out"
        )
    })
}

fn check_finite(checkpoints: &Twin<Checkpoint>) -> Result<()> {
    let Twin { pt, ft } = checkpoints;
    let names_of = |checkpoint: &Checkpoint| {
        let family = checkpoint.spec.family;
        let names = (checkpoint.spec.all_layer_tensors())
            .filter_map(|(layer, tensor)| family.layer_tensor_name(layer, tensor));
        let mut names: Vec<String> = names.collect();
        names.dedup();
        names
    };
    let mut tensors: Vec<(&Checkpoint, String)> = vec![(ft, ft.spec.family.embedding.to_string())];
    tensors.extend(ft.spec.family.position_embedding.map(|name| (ft, name.to_string())));
    for checkpoint in [pt, ft] {
        tensors.extend(names_of(checkpoint).into_iter().map(|name| (checkpoint, name)));
    }
    let bad = tensors.par_iter().find_map_first(|(checkpoint, name)| {
        let tensor = checkpoint.weights.get(name)?;
        let index = tensor.stored.first_non_finite(|bytes| checkpoint.weights.let_go(bytes))?;
        let file = checkpoint.weights.file_of(name).display();
        let (row, col) = (index / tensor.cols, index % tensor.cols);
        let name = checkpoint.spec.family.stored_name(name);
        Some(format!("{file}: tensor {name} has a NaN or infinite element at row {row}, column {col}"))
    });
    bad.map_or(Ok(()), |message| Err(Error::checkpoint(message)))
}

fn shared_tensors(checkpoints: &Twin<Checkpoint>) -> HashSet<(usize, LayerTensor)> {
    let Twin { pt, ft } = checkpoints;
    let all: Vec<_> = ft.spec.all_layer_tensors().collect();
    all.into_par_iter()
        .filter(|(layer, tensor)| {
            let tensors = [pt, ft].map(|checkpoint| checkpoint.layer_tensor(*layer, *tensor));
            let [Some(base), Some(tuned)] = tensors else { return false };
            base.is_same(&tuned, |bytes| weights(checkpoints).for_each(|weights| weights.let_go(bytes)))
        })
        .collect()
}
