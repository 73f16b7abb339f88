//! `config.json` → [`ModelSpec`].

use super::{
    Activation, ExpertsSpec, FAMILIES, Family, LayerSpec, LayerTensor, ModelSpec, WindowRule, fields::Fields,
    rope_config::ropes_of,
};
use serde_json::{Map, Value};

/// The text model's part of the `config.json` of a model of text and images. Whether its unembedding is the embedding the whole says, if it
/// says so.
pub fn text_config(config: &Value) -> Option<Value> {
    const TIED: &str = "tie_word_embeddings";
    let mut text = config.get("text_config")?.as_object()?.clone();
    if let Some(tied) = config.get(TIED).filter(|tied| !tied.is_null()) {
        text.insert(TIED.into(), tied.clone());
    }
    Some(text.into())
}

/// Most layers, and most dimensions of a head: memory is taken for each before tensors are looked at, and a broken config must
/// not take all there is.
const MOST: usize = 1 << 16;

/// Reads a parsed `config.json`, or a part of one, of a text model.
///
/// # Errors
/// A sentence that names the field, what it holds and what was expected.
pub fn parse_config(config: &Value) -> Result<ModelSpec, String> {
    let object = config.as_object().ok_or("is not a JSON object")?;
    let family = family_of(object)?;
    let defaults = family.config_defaults();
    let config = Fields { object, defaults: &defaults, names: family.config_names, within: "" };
    let hidden_size = config.size("hidden_size")?;
    let num_hidden_layers = config.size_up_to(MOST, "num_hidden_layers")?;
    let num_attention_heads = config.size("num_attention_heads")?;
    let num_key_value_heads = match config.known_flag("multi_query")? {
        Some(true) => 1,
        _ => config.size_or("num_key_value_heads", num_attention_heads)?,
    };
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(format!(
            "num_attention_heads ({num_attention_heads}) is not a multiple of num_key_value_heads ({num_key_value_heads})"
        ));
    }
    let head_dim = match config.get("head_dim") {
        Some(_) => config.size_up_to(MOST, "head_dim")?,
        None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        None => {
            return Err(format!(
                "has no head_dim, and hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_attention_heads})"
            ));
        }
    };
    if head_dim % 2 != 0 {
        return Err(format!(
            "head_dim is {head_dim}, expected an even number: dimensions of a head are read in pairs"
        ));
    }
    // transformers asks every family for is_causal (masking_utils.py).
    let causal = [
        ("use_bidirectional_attention", config.known("use_bidirectional_attention"), false),
        ("is_causal", config.get("is_causal"), true),
    ];
    for (field, value, expected) in causal {
        if let Some(value) = value.filter(|value| **value != expected) {
            return Err(format!("{field} is {value}: an encoder, which has no next token to score"));
        }
    }
    for (field, expected) in family.computable_values() {
        if let Some(value) = config.get(&field).filter(|value| **value != expected) {
            return Err(format!("{field} is {value}; only {expected} can be computed"));
        }
    }
    let max_position_embeddings = config.size("max_position_embeddings")?;
    let ropes = ropes_of(&config, family, head_dim, max_position_embeddings)?;
    let attention_bias = config.known_flag("attention_bias")?.unwrap_or(false);
    let attention_scale =
        match (config.known_number("attention_multiplier")?, config.known_number("query_pre_attn_scalar")?) {
            (Some(multiplier), _) => multiplier,
            (None, Some(scalar)) => scalar.powf(-0.5),
            (None, None) => (head_dim as f64).powf(-0.5),
        };
    let scaled_embedding = if family.scaled_embedding { (hidden_size as f64).sqrt() } else { 1.0 };
    Ok(ModelSpec {
        family,
        hidden_size,
        intermediate_size: match config.get("intermediate_size") {
            // Where a family knows null, that is four times the hidden size.
            None if defaults.contains_key(config.own("intermediate_size")) => 4 * hidden_size,
            _ => config.size("intermediate_size")?,
        },
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: config.size("vocab_size")?,
        context_length: ropes.growing_queries.unwrap_or(ropes.context_length),
        growing_queries: ropes.growing_queries,
        norm_eps: as_f32(config.number("rms_norm_eps")?),
        hidden_act: activation_of(&config, family)?,
        qkv_bias: attention_bias || family.always_qkv_bias,
        attention_output_bias: config.known_flag("attention_out_bias")?.unwrap_or(attention_bias)
            && family.suffix(LayerTensor::AttentionOutputBias).is_some(),
        mlp_bias: config.known_flag("mlp_bias")?.unwrap_or(false),
        attention_scale,
        attn_logit_softcapping: config.known_number("attn_logit_softcapping")?.filter(|cap| *cap > 0.0),
        embedding_multiplier: config.known_number("embedding_multiplier")?.unwrap_or(1.0) * scaled_embedding,
        parallel_residual: config.known_flag("use_parallel_residual")?.unwrap_or(false),
        residual_multiplier: config.known_number("residual_multiplier")?.unwrap_or(1.0),
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(family.tied_by_default),
        logits_scaling: match config.known_number("logits_scaling")? {
            Some(0.0) => return Err("logits_scaling is 0, expected a positive number".into()),
            scaling => scaling.unwrap_or(1.0),
        },
        final_logit_softcapping: config.known_number("final_logit_softcapping")?.filter(|cap| *cap > 0.0),
        experts: experts_of(&config)?,
        layers: layers_of(&config, family, num_hidden_layers, ropes.sliding.is_some())?,
        ropes: std::iter::once(ropes.full).chain(ropes.sliding).collect(),
    })
}

/// The shortest decimal of the f32 that is meant: some tools write a decimal, others the double that the f32 is.
fn as_f32(value: f64) -> f64 {
    (value as f32).to_string().parse().expect("a number")
}

fn family_of(config: &Map<String, Value>) -> Result<&'static Family, String> {
    // A text model may be a part of another's config.
    let names = FAMILIES.iter().filter(|f| f.told_by.is_empty()).map(|f| f.model_type);
    let known = || names.chain(["gemma3", "mistral3"]).collect::<Vec<_>>().join(", ");
    let model_type = match config.get("model_type") {
        Some(Value::String(name)) => name,
        None | Some(Value::Null) => return Err(format!("has no model_type (known: {})", known())),
        Some(other) => return Err(format!("model_type is {other}, expected a string")),
    };
    // Of several the one that more is told of.
    let family = FAMILIES.iter().filter(|f| f.is_of(config)).max_by_key(|f| f.told_by.len());
    family.copied().ok_or_else(|| format!("model_type \"{model_type}\" is not known (known: {})", known()))
}

fn activation_of(config: &Fields, family: &Family) -> Result<Activation, String> {
    let field = if config.known("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match config.get(field) {
        None => Err(format!("has no {field}")),
        Some(Value::String(name)) => match name.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" if family.gelu_is_tanh => Ok(Activation::GeluTanh),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate" => {
                Ok(Activation::GeluTanh)
            }
            "relu" => Ok(Activation::Relu),
            "relu2" => Ok(Activation::Relu2),
            other => Err(format!(
                "{} \"{other}\" is not known (known: silu, gelu, gelu_pytorch_tanh, relu, relu2)",
                config.own(field)
            )),
        },
        Some(other) => Err(format!("{} is {other}, expected a string", config.own(field))),
    }
}

/// Window and rotary embedding of every layer.
fn layers_of(
    config: &Fields,
    family: &Family,
    num_hidden_layers: usize,
    has_sliding_rope: bool,
) -> Result<Vec<LayerSpec>, String> {
    let switched_on = config.known_flag("use_sliding_window")?.unwrap_or(true);
    let window = match config.known("sliding_window") {
        Some(_) if switched_on => Some(config.size("sliding_window")?),
        _ => None,
    };
    let by_type = config.defaults.contains_key("position_embedding_type");
    let is_rope = || config.get("position_embedding_type").is_some_and(|kind| kind == "rope");
    let has_rope = if family.rotates && (!by_type || is_rope()) {
        no_rope_layers(config, num_hidden_layers)?
    } else {
        vec![false; num_hidden_layers]
    };
    let is_sliding = match config.known("layer_types") {
        Some(types) => layer_types(types, num_hidden_layers)?,
        None => {
            // 0 is no size, but a place to begin or to end.
            let place = |field: &str| match config.known(field) {
                Some(first) if *first == 0 => Ok(0),
                Some(_) => config.size(field),
                None => Ok(num_hidden_layers),
            };
            let rule = |layer: usize| -> Result<bool, String> {
                Ok(match family.window_rule {
                    WindowRule::All => true,
                    WindowRule::AllButEvery(n) => {
                        !(layer + 1).is_multiple_of(n) && layer < place("max_window_layers")?
                    }
                    WindowRule::AllButEveryOf(field) => !(layer + 1).is_multiple_of(config.size(field)?),
                    WindowRule::AllButFirstOfEvery(n) => !layer.is_multiple_of(n),
                    WindowRule::From(field) => layer >= place(field)?,
                    WindowRule::WithoutRope => !has_rope[layer],
                })
            };
            (0..num_hidden_layers).map(rule).collect::<Result<_, _>>()?
        }
    };
    let explicit = config.known("layer_types").is_some();
    let has_experts = sparse_layers(config, num_hidden_layers)?;
    (0..num_hidden_layers)
        .map(|layer| {
            let sliding = is_sliding[layer] && (window.is_some() || explicit);
            if sliding && window.is_none() {
                return Err(format!(
                    "layer_types[{layer}] is sliding_attention, but no sliding_window is set"
                ));
            }
            Ok(LayerSpec {
                sliding_window: window.filter(|_| sliding),
                rope: has_rope[layer].then_some(usize::from(sliding && has_sliding_rope)),
                has_experts: has_experts[layer],
            })
        })
        .collect()
}

/// `num_local_experts` or, as Qwen's configs have it, `num_experts`.
fn experts_of(config: &Fields) -> Result<Option<ExpertsSpec>, String> {
    let field = if config.known("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    if config.known(field).is_none() {
        return Ok(None);
    }
    let (count, per_token) = (config.size(field)?, config.size("num_experts_per_tok")?);
    if count > usize::from(u16::MAX) {
        return Err(format!("{field} is {count}, expected at most {}", u16::MAX));
    }
    if per_token > count {
        return Err(format!("num_experts_per_tok is {per_token}, but {field} is {count}"));
    }
    let width = if config.known("moe_intermediate_size").is_some() {
        "moe_intermediate_size"
    } else {
        "intermediate_size"
    };
    Ok(Some(ExpertsSpec {
        count,
        per_token,
        normalize: config.known_flag("norm_topk_prob")?.unwrap_or(true),
        intermediate_size: config.size(width)?,
        shared_intermediate_size: match config.known("shared_expert_intermediate_size") {
            Some(_) => Some(config.size("shared_expert_intermediate_size")?),
            None => None,
        },
    }))
}

/// Which layers have experts: every `decoder_sparse_step`-th, but none of `mlp_only_layers`.
fn sparse_layers(config: &Fields, num_hidden_layers: usize) -> Result<Vec<bool>, String> {
    if experts_of(config)?.is_none() {
        return Ok(vec![false; num_hidden_layers]);
    }
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense: Vec<u64> = match config.known("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => list
            .as_array()
            .and_then(|list| list.iter().map(Value::as_u64).collect())
            .ok_or_else(|| format!("mlp_only_layers is {list}, expected a list of layers"))?,
    };
    let is_sparse = |layer: usize| (layer + 1).is_multiple_of(step) && !dense.contains(&(layer as u64));
    Ok((0..num_hidden_layers).map(is_sparse).collect())
}

fn layer_types(types: &Value, num_hidden_layers: usize) -> Result<Vec<bool>, String> {
    let types = types.as_array().filter(|types| types.len() == num_hidden_layers).ok_or_else(|| {
        format!("layer_types: expected a list of {num_hidden_layers} (num_hidden_layers) strings")
    })?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention" | "attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(format!("layer_types holds {kind}, expected full_attention or sliding_attention")),
        })
        .collect()
}

/// Whether each layer rotates: `no_rope_layers` has a 1 for those that do.
fn no_rope_layers(config: &Fields, num_hidden_layers: usize) -> Result<Vec<bool>, String> {
    if let Some(list) = config.known("no_rope_layers") {
        let rotates = |flag: &Value| flag.as_u64().filter(|flag| *flag < 2).map(|flag| flag == 1);
        let flags: Option<Vec<bool>> = list.as_array().and_then(|list| list.iter().map(rotates).collect());
        return flags.filter(|flags| flags.len() == num_hidden_layers).ok_or_else(|| {
            format!(
                "no_rope_layers: expected a list of {num_hidden_layers} (num_hidden_layers) ones and zeros"
            )
        });
    }
    match config.known("no_rope_layer_interval") {
        None => Ok(vec![true; num_hidden_layers]),
        Some(_) => {
            let interval = config.size("no_rope_layer_interval")?;
            Ok((1..=num_hidden_layers).map(|layer| !layer.is_multiple_of(interval)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tiny(mut config: Value) -> Value {
        let shape = json!({
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
            "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 512,
        });
        for (field, value) in shape.as_object().unwrap() {
            config.as_object_mut().unwrap().entry(field).or_insert(value.clone());
        }
        config
    }

    #[test]
    fn gelu_of_gemma_is_the_approximation_that_it_was_trained_with() {
        let activation = |config: Value| parse_config(&tiny(config)).unwrap().hidden_act;
        // The official releases of Gemma 1 say so, and transformers (configuration_gemma.py) reads it so.
        assert_eq!(activation(json!({"model_type": "gemma", "hidden_act": "gelu"})), Activation::GeluTanh);
        assert_eq!(
            activation(json!({"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": "gelu"})),
            Activation::GeluTanh
        );
        assert_eq!(activation(json!({"model_type": "llama", "hidden_act": "gelu"})), Activation::Gelu);
    }

    #[test]
    fn fields_are_read_as_transformers_reads_them() {
        let config = json!({"model_type": "qwen2", "sliding_window": 4, "max_window_layers": 0, "use_sliding_window": false});
        assert_eq!(parse_config(&tiny(config)).unwrap().layers[0].sliding_window, None);
        let config = json!({"model_type": "qwen2", "sliding_window": 4, "max_window_layers": 0, "use_sliding_window": true});
        assert_eq!(parse_config(&tiny(config)).unwrap().layers[0].sliding_window, Some(4));
        // Of Qwen with experts every second layer, of those before max_window_layers; Gemma 2 knows no pattern but its own.
        let windows = |config: Value| -> Vec<bool> {
            let layers = parse_config(&tiny(config)).unwrap().layers;
            layers.iter().map(|layer| layer.sliding_window.is_some()).collect()
        };
        let moe = |first: usize| {
            json!({"model_type": "qwen2_moe", "num_hidden_layers": 4, "use_sliding_window": true,
            "sliding_window": 4, "max_window_layers": first, "num_experts": 4})
        };
        assert_eq!(windows(moe(28)), [true, false, true, false]);
        assert_eq!(windows(moe(2)), [true, false, false, false]);
        assert_eq!(windows(moe(0)), [false; 4]);
        let gemma2 = json!({"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window_pattern": 3});
        assert_eq!(windows(gemma2), [true, false, true, false]);
        // A model of mistral whose layers differ is one of ministral.
        let types = json!(["full_attention", "sliding_attention"]);
        for name in ["mistral", "ministral"] {
            let config = json!({"model_type": name, "sliding_window": 4, "layer_types": types});
            assert_eq!(windows(config), [false, true]);
        }
        let config = json!({"model_type": "smollm3", "no_rope_layers": [true, false]});
        assert!(parse_config(&tiny(config)).unwrap_err().contains("no_rope_layers: expected a list of 2"));
        let mixtral = json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": false});
        assert!(parse_config(&tiny(mixtral)).unwrap().experts.unwrap().normalize);
    }

    #[test]
    fn the_whole_says_whether_its_text_model_is_tied() {
        let tied = |config: Value| text_config(&config).unwrap()["tie_word_embeddings"].clone();
        assert_eq!(
            tied(json!({"tie_word_embeddings": true, "text_config": {"tie_word_embeddings": false}})),
            true
        );
        assert_eq!(
            tied(json!({"tie_word_embeddings": null, "text_config": {"tie_word_embeddings": false}})),
            false
        );
        assert_eq!(tied(json!({"text_config": {}})), Value::Null);
        assert_eq!(text_config(&json!({"text_config": null})), None);
    }

    #[test]
    fn what_a_family_cannot_compute_is_refused_by_name() {
        let problem = |config: Value| parse_config(&tiny(config)).unwrap_err();
        assert_eq!(
            problem(json!({"model_type": "olmo", "clip_qkv": 8.0})),
            "clip_qkv is 8.0; only null can be computed"
        );
        assert_eq!(
            problem(json!({"model_type": "qwen2", "is_causal": false})),
            "is_causal is false: an encoder, which has no next token to score"
        );
        assert_eq!(
            problem(json!({"model_type": "gpt2", "n_embd": 32, "n_head": 2, "activation_function": "tanh"})),
            "activation_function \"tanh\" is not known (known: silu, gelu, gelu_pytorch_tanh, relu, relu2)"
        );
        let stablelm = json!({"model_type": "stablelm", "qk_layernorm": true});
        assert_eq!(problem(stablelm), "qk_layernorm is true; only false can be computed");
    }

    #[test]
    fn odd_heads_are_refused_whether_they_rotate_or_not() {
        let problem = |config: Value| parse_config(&config).unwrap_err();
        let gpt2 = problem(json!({"model_type": "gpt2", "n_embd": 15, "n_head": 3}));
        assert!(gpt2.contains("head_dim is 5, expected an even number"), "{gpt2}");
    }
}
