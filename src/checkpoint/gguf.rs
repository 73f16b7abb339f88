//! GGUF files as models: llama.cpp's metadata and names of tensors, in the terms of `config.json` and `transformers`.
//!
//! An architecture is data: which family it is, which metadata fill which fields. The names of a layer's tensors are common
//! to all. llama.cpp changes some tensors as it converts them; that is undone here (`convert_hf_to_gguf.py`).

use super::weights::{Entry, Weights};
use crate::{
    Error, Result,
    gguf::{Gguf, TensorInfo},
    model::{Family, LayerTensor, ModelSpec, parse_config},
    tensor::{Dtype, Interleaved, Stored},
};
use LayerTensor::*;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, path::Path};

/// An architecture of llama.cpp that is one of our families.
struct Architecture {
    /// `general.architecture`, and what metadata keys begin with.
    name: &'static str,
    /// `model_type` of the family.
    model_type: &'static str,
    /// That of models with experts, where it is another.
    with_experts: Option<&'static str>,
    /// Fields besides [`FIELDS`], and the metadata that fill them.
    fields: &'static [(&'static str, &'static str)],
    /// Queries and keys are stored in pairs of rows, see [`Stored::paired`].
    paired: bool,
    /// The number of layers of the one model whose `query_pre_attn_scalar` is the hidden size for each head; it is the head's
    /// dimension in all others. (llama.cpp has no metadata for it.)
    scaled_by_width_at: Option<usize>,
}

const PLAIN: Architecture = Architecture {
    name: "",
    model_type: "",
    with_experts: None,
    fields: &[],
    paired: false,
    scaled_by_width_at: None,
};

static ARCHITECTURES: &[Architecture] = &[
    // Mistral, Mixtral, SmolLM and many others are of this architecture too.
    Architecture { name: "llama", model_type: "llama", with_experts: Some("mixtral"), paired: true, ..PLAIN },
    Architecture { name: "qwen2", model_type: "qwen2", ..PLAIN },
    Architecture { name: "qwen3", model_type: "qwen3", ..PLAIN },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        fields: &[("moe_intermediate_size", "expert_feed_forward_length")],
        ..PLAIN
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        fields: &[("sliding_window", "attention.sliding_window")],
        ..PLAIN
    },
    Architecture { name: "gemma", model_type: "gemma", ..PLAIN },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        fields: &[
            ("sliding_window", "attention.sliding_window"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        scaled_by_width_at: Some(46),
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        fields: &[
            ("sliding_window", "attention.sliding_window"),
            ("sliding_window_pattern", "attention.sliding_window_pattern"),
            ("rope_local_base_freq", "rope.freq_base_swa"),
        ],
        scaled_by_width_at: Some(62),
        ..PLAIN
    },
    Architecture {
        name: "granite",
        model_type: "granite",
        fields: &[
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("attention_multiplier", "attention.scale"),
            ("logits_scaling", "logit_scale"),
        ],
        paired: true,
        ..PLAIN
    },
];

/// Fields of every architecture.
const FIELDS: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
];

/// What follows `blk.` and the layer's number. Of fused tensors the last is named.
const LAYER_TENSORS: &[(&str, LayerTensor)] = &[
    ("attn_norm.weight", AttentionNorm),
    ("attn_q.weight", Query),
    ("attn_k.weight", Key),
    ("attn_v.weight", LayerTensor::Value),
    ("attn_qkv.weight", LayerTensor::Value),
    ("attn_q.bias", QueryBias),
    ("attn_k.bias", KeyBias),
    ("attn_v.bias", ValueBias),
    ("attn_q_norm.weight", QueryNorm),
    ("attn_k_norm.weight", KeyNorm),
    ("attn_output.weight", AttentionOutput),
    ("attn_output.bias", AttentionOutputBias),
    ("post_attention_norm.weight", AttentionPostNorm),
    ("ffn_norm.weight", MlpNorm),
    ("ffn_gate.weight", Gate),
    ("ffn_up.weight", Up),
    ("ffn_down.weight", Down),
    ("ffn_gate.bias", GateBias),
    ("ffn_up.bias", UpBias),
    ("ffn_down.bias", DownBias),
    ("ffn_gate_inp.weight", Router),
    ("ffn_gate_exps.weight", ExpertGate(0)),
    ("ffn_up_exps.weight", ExpertUp(0)),
    ("ffn_down_exps.weight", ExpertDown(0)),
    ("post_ffw_norm.weight", MlpPostNorm),
];

/// Factors of rotary frequencies, which llama.cpp stores as tensors.
const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// The shape and the weights of a GGUF file.
pub fn open(path: &Path, dtype: Option<Dtype>) -> Result<(ModelSpec, Weights)> {
    let gguf = Gguf::open(path)?;
    let broken = |problem: String| Error::checkpoint(format!("{} {problem}", path.display()));
    let architecture = architecture_of(&gguf.metadata).map_err(broken)?;
    let config = config_of(architecture, &gguf).map_err(broken)?;
    let spec = parse_config(&config).map_err(|problem| broken(format!("{problem} (by its metadata)")))?;
    let mut tensors = BTreeMap::new();
    for info in gguf.tensors.iter().filter(|info| !ROPE_FACTORS.contains(&info.name.as_str())) {
        add(&mut tensors, architecture, &spec, &gguf, info).map_err(broken)?;
    }
    let files = vec![(gguf.path, gguf.bytes)];
    Ok((spec, Weights::of_files(files, tensors, dtype)))
}

fn architecture_of(metadata: &Map<String, Value>) -> Result<&'static Architecture, String> {
    let known = || ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
    match metadata.get("general.architecture").and_then(Value::as_str) {
        None => Err(format!("has no general.architecture (known: {})", known())),
        Some(name) => ARCHITECTURES
            .iter()
            .find(|known| known.name == name)
            .ok_or_else(|| format!("is of architecture \"{name}\", which is not known (known: {})", known())),
    }
}

/// The `config.json` that the metadata mean.
fn config_of(architecture: &Architecture, gguf: &Gguf) -> Result<Value, String> {
    let get = |key: &str| gguf.metadata.get(&format!("{}.{key}", architecture.name));
    let number = |key: &str| get(key).and_then(Value::as_f64);
    let mut config = Map::new();
    let mut set = |field: &str, value: Value| drop(config.insert(field.to_owned(), value));
    for (field, key) in FIELDS.iter().chain(architecture.fields) {
        if let Some(value) = get(key).filter(|value| **value != json!(0)) {
            set(field, value.clone());
        }
    }
    let has_experts = number("expert_count").is_some_and(|count| count > 0.0);
    let model_type = architecture.with_experts.filter(|_| has_experts).unwrap_or(architecture.model_type);
    set("model_type", model_type.into());
    // The only activation that each of these architectures has is the family's default.
    if !model_type.starts_with("gemma") {
        set("hidden_act", "silu".into());
    }
    let has = |name: &str| gguf.tensors.iter().any(|info| info.name == name);
    set("attention_bias", has("blk.0.attn_output.bias").into());
    set("mlp_bias", has("blk.0.ffn_down.bias").into());
    let table = gguf.tensors.iter().find(|info| info.name == "token_embd.weight");
    let table = table.ok_or("has no tensor token_embd.weight")?;
    set("vocab_size", table.shape[0].into());
    let has_head = gguf.tensors.iter().any(|info| info.name == "output.weight");
    set("tie_word_embeddings", (!has_head).into());
    // Most architectures multiply normalized probabilities, as the family's default says; Qwen's configs have a switch.
    if model_type == "qwen3_moe" {
        set("norm_topk_prob", true.into());
    }

    let heads = number("attention.head_count").unwrap_or(1.0);
    let width = number("embedding_length").unwrap_or(0.0) / heads;
    let head_dim = number("attention.key_length").unwrap_or(width);
    if let Some(layers) = architecture.scaled_by_width_at {
        let by_width = number("block_count") == Some(layers as f64);
        set("query_pre_attn_scalar", if by_width { width } else { head_dim }.into());
    }
    if let Some(dimensions) = number("rope.dimension_count").filter(|count| *count != head_dim) {
        set("partial_rotary_factor", (dimensions / head_dim).into());
    }
    if let Some(scaling) = rope_scaling(gguf, &get)? {
        // Families have defaults of their own for this field, which goes before the object's.
        set("original_max_position_embeddings", scaling["original_max_position_embeddings"].clone());
        set("rope_scaling", scaling);
    }
    Ok(Value::Object(config))
}

/// `rope_scaling` of `config.json`. Factors that are stored as tensors mean what those of longrope do.
fn rope_scaling<'a>(gguf: &Gguf, get: &dyn Fn(&str) -> Option<&'a Value>) -> Result<Option<Value>, String> {
    let original = get("rope.scaling.original_context_length").or_else(|| get("context_length")).cloned();
    let [common, short, long] = ROPE_FACTORS.map(|name| factors(gguf, name));
    let (short, long) = (short.or(common.clone()).transpose()?, long.or(common.clone()).transpose()?);
    if let (Some(short), Some(long)) = (short, long) {
        let attention_factor = match (&common, get("rope.scaling.attn_factor")) {
            (Some(_), _) => Some(json!(1.0)),
            (None, factor) => factor.cloned(),
        };
        return Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original,
        })));
    }
    let factor = get("rope.scaling.factor").cloned();
    match get("rope.scaling.type").and_then(Value::as_str) {
        None | Some("none") => Ok(None),
        Some(kind @ ("linear" | "yarn")) => Ok(Some(json!({
            "rope_type": kind,
            "factor": factor,
            "original_max_position_embeddings": original,
        }))),
        Some(other) => Err(format!("has rope.scaling.type \"{other}\" (known: none, linear, yarn)")),
    }
}

fn factors(gguf: &Gguf, name: &str) -> Option<Result<Vec<f32>, String>> {
    let info = gguf.tensors.iter().find(|info| info.name == name)?;
    Some(numbers(gguf, info))
}

/// The elements of a vector.
fn numbers(gguf: &Gguf, info: &TensorInfo) -> Result<Vec<f32>, String> {
    let (Some(encoding), [length]) = (info.encoding, &info.shape[..]) else {
        let TensorInfo { name, shape, type_name, .. } = info;
        return Err(format!(
            "has tensor {name} of shape {shape:?} as {type_name}, expected a vector of F32, F16 or BF16"
        ));
    };
    let mut values = vec![0.0; *length];
    Stored::new(encoding, *length, &gguf.bytes[info.range.clone()]).widen_run(0, 0..*length, &mut values);
    Ok(values)
}

/// Takes a tensor in, under the name that the family gives it.
fn add(
    tensors: &mut BTreeMap<String, Entry>,
    architecture: &Architecture,
    spec: &ModelSpec,
    gguf: &Gguf,
    info: &TensorInfo,
) -> Result<(), String> {
    let family = spec.family;
    let whole =
        || Entry::mapped(0, info.type_name.clone(), info.encoding, info.shape.clone(), info.range.clone());
    let Some((layer, tensor)) = layer_tensor_of(&info.name) else {
        let name = other_name(family, &info.name);
        let mut taken = whole();
        if family.norms_add_one && name == family.final_norm {
            taken.set_vector(numbers(gguf, info)?.iter().map(|value| value - 1.0));
        }
        tensors.insert(name, taken);
        return Ok(());
    };
    // A name that the family does not have is told as it is in the file.
    let name_of = |tensor| family.layer_tensor_name(layer, tensor).unwrap_or_else(|| info.name.clone());
    if tensor.expert().is_some() && family.suffix(tensor).is_some() {
        let experts = spec.experts.as_ref().map_or(0, |experts| experts.count);
        // The tensor's own number is not to be trusted: an entry is made for each expert.
        let [count, rows, cols] = info.shape[..] else {
            return Err(format!(
                "has tensor {} of shape {:?}, expected three dimensions",
                info.name, info.shape
            ));
        };
        if count != experts {
            return Err(format!(
                "has tensor {} of shape {:?}, expected {experts} experts ({}.expert_count)",
                info.name, info.shape, architecture.name
            ));
        }
        let all = whole();
        for expert in 0..count {
            let own = all.part(expert, count, &[rows, cols]);
            tensors.insert(name_of(tensor.of_expert(expert as u16)), own);
        }
        return Ok(());
    }
    let paired = match tensor {
        Query | Key | QueryBias | KeyBias if architecture.paired => Some(Interleaved::whole(spec.head_dim)),
        _ => None,
    };
    let adds_one = family.norms_add_one && tensor.is_vector();
    let mut taken = whole();
    if tensor.is_vector() && (paired.is_some() || adds_one) {
        let mut values = numbers(gguf, info)?;
        if let Some(paired) = paired.filter(|paired| values.len().is_multiple_of(paired.head_dim)) {
            values = (0..values.len()).map(|row| values[paired.stored_row(row)]).collect();
        }
        if adds_one {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        taken.set_vector(values.into_iter());
    } else {
        taken.paired = paired;
    }
    tensors.insert(name_of(tensor), taken);
    Ok(())
}

fn layer_tensor_of(name: &str) -> Option<(usize, LayerTensor)> {
    let (layer, suffix) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, tensor) = LAYER_TENSORS.iter().find(|(known, _)| *known == suffix)?;
    Some((layer.parse().ok()?, *tensor))
}

/// The name of a tensor outside of the layers.
fn other_name(family: &Family, name: &str) -> String {
    let named = match name {
        "token_embd.weight" => Some(family.embedding),
        "output_norm.weight" => Some(family.final_norm),
        "output.weight" => Some(family.head),
        _ => None,
    };
    named.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tensor_has_as_many_experts_as_the_metadata_say() {
        let name = "blk.0.ffn_gate_exps.weight";
        let golden = fs::read("tests/golden/gguf_mixtral/base/model.gguf").unwrap();
        let at = golden.windows(name.len()).position(|found| found == name.as_bytes()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        // Such shapes are whole: no bytes are needed for tensors without rows.
        for experts in [5, (1 << 16) + 4, 1u64 << 40] {
            let mut bytes = golden.clone();
            // After the name comes the number of dimensions, then they, that of experts last.
            let dimensions = [0, 0, experts].map(u64::to_le_bytes).concat();
            bytes[at + name.len() + 4..][..dimensions.len()].copy_from_slice(&dimensions);
            fs::write(&path, bytes).unwrap();
            let message = open(&path, None).unwrap_err().message;
            let told = format!(
                "model.gguf has tensor {name} of shape [{experts}, 0, 0], expected 4 experts (llama.expert_count)"
            );
            assert!(message.ends_with(&told), "{message}");
        }
    }
}
