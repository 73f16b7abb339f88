//! `config.json` → [`ModelSpec`].

use super::{
    Activation, ClampedSwiglu, FAMILIES, Family, LayerTensor, ModelSpec, Xielu,
    fields::Fields,
    layer_config::{experts_of, layers_of},
    rope_config::ropes_of,
};
use serde_json::{Map, Value};

/// The text model's part of the `config.json` of a model of text and images. Whether its unembedding is the embedding the whole says, if it
/// says so.
///
/// # Errors
/// Where the text model is not used as a model of next tokens.
pub fn text_config(config: &Value) -> Result<Option<Value>, String> {
    const TIED: &str = "tie_word_embeddings";
    if config.get("model_type").is_some_and(|name| name == "paligemma") {
        return Err(
            "model_type is paligemma: all tokens of its prompts see each other, which cannot be computed"
                .into(),
        );
    }
    let flat =
        config.get("vision_config").and_then(Value::as_object).is_some_and(|vision| !vision.is_empty());
    let Some(mut text) = config.get("text_config").and_then(Value::as_object).cloned() else {
        // Before transformers 4.52 Qwen's had the text model's fields beside a vision_config.
        let text = config.as_object().filter(|_| flat).and_then(|whole| as_text(whole.clone(), whole));
        return Ok(text.map(Value::from));
    };
    if let Some(tied) = config.get(TIED).filter(|tied| !tied.is_null()) {
        text.insert(TIED.into(), tied.clone());
    }
    let named = config.as_object().and_then(|whole| as_text(text.clone(), whole));
    Ok(Some(named.unwrap_or(text).into()))
}

/// A text model's fields with its own `model_type`, if they have that of the whole or none, and it is a family's.
fn as_text(mut text: Map<String, Value>, whole: &Map<String, Value>) -> Option<Map<String, Value>> {
    let name =
        [text.get("model_type"), whole.get("model_type")].into_iter().flatten().find_map(Value::as_str)?;
    let name = format!("{name}_text");
    FAMILIES.iter().find(|family| family.model_type == name)?;
    text.insert("model_type".into(), name.into());
    Some(text)
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
    let fixed = family.fixed_fields();
    let config = Fields {
        object,
        defaults: &defaults,
        fixed: &fixed,
        names: family.config_names,
        aliases: family.config_aliases,
        within: "",
    };
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
    let known = || {
        names
            .chain(["gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
            .collect::<Vec<_>>()
            .join(", ")
    };
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
    // A family that has these has no other activation, whatever hidden_act says.
    let clamped = (config.own_number("swiglu_alpha")?, config.own_number("swiglu_limit")?);
    if let (Some(alpha), Some(limit)) = clamped {
        return Ok(Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }));
    }
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
            "xielu" if family.suffix(LayerTensor::XieluAlphaP).is_some() => {
                Ok(Activation::Xielu(Xielu::INITIAL))
            }
            other => Err(format!(
                "{} \"{other}\" is not known (known: silu, gelu, gelu_pytorch_tanh, relu, relu2)",
                config.own(field)
            )),
        },
        Some(other) => Err(format!("{} is {other}, expected a string", config.own(field))),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::{Rope, RopeScaling};
    use serde_json::json;

    /// A config with the shape of a small model, where it has none.
    pub fn tiny(mut config: Value) -> Value {
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
    fn the_whole_says_whether_its_text_model_is_tied() {
        let text = |config: Value| text_config(&config).unwrap();
        let tied = |config: Value| text(config).unwrap()["tie_word_embeddings"].clone();
        assert_eq!(
            tied(json!({"tie_word_embeddings": true, "text_config": {"tie_word_embeddings": false}})),
            true
        );
        assert_eq!(
            tied(json!({"tie_word_embeddings": null, "text_config": {"tie_word_embeddings": false}})),
            false
        );
        assert_eq!(tied(json!({"text_config": {}})), Value::Null);
        assert_eq!(text(json!({"text_config": null})), None);
        let model_type = |config: Value| text(config).map(|text| text["model_type"].clone());
        let of_qwen = |config: Value| assert_eq!(model_type(config), Some("qwen2_vl_text".into()));
        of_qwen(json!({"model_type": "qwen2_vl", "vision_config": {"depth": 1}}));
        of_qwen(json!({"model_type": "qwen2_vl", "text_config": {}}));
        of_qwen(json!({"model_type": "qwen2_vl", "text_config": {"model_type": "qwen2_vl"}}));
        assert_eq!(model_type(json!({"model_type": "qwen2", "vision_config": {}})), None);
        assert_eq!(model_type(json!({"model_type": "other", "vision_config": {"depth": 1}})), None);
    }

    #[test]
    fn falcons_of_one_model_type_are_told_apart() {
        let family = |more: Value| {
            let mut config = json!({"model_type": "falcon", "hidden_size": 32, "num_attention_heads": 4});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let spec = parse_config(&config).unwrap();
            let norm = spec.family.suffix(LayerTensor::AttentionNorm).unwrap();
            (norm, spec.has_one_norm(), spec.num_key_value_heads)
        };
        assert_eq!(
            family(json!({"multi_query": true, "num_kv_heads": 4})),
            ("input_layernorm.weight", true, 1)
        );
        let new = |norms: Value| json!({"new_decoder_architecture": true, "multi_query": true, "num_kv_heads": 2, "num_ln_in_parallel_attn": norms});
        assert_eq!(family(new(Value::Null)), ("ln_attn.weight", false, 2));
        assert_eq!(family(new(json!(2))), ("ln_attn.weight", false, 2));
        assert_eq!(family(new(json!(1))), ("input_layernorm.weight", true, 2));
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
        let paligemma = json!({"model_type": "paligemma", "text_config": {"model_type": "gemma2"}});
        assert!(text_config(&paligemma).unwrap_err().contains("all tokens of its prompts see each other"));
        let granite = json!({"model_type": "granitemoehybrid", "num_local_experts": 32});
        assert_eq!(problem(granite), "num_local_experts is 32; only 0 can be computed");
        let granite = json!({"model_type": "granitemoehybrid"});
        assert_eq!(problem(granite), "layer_types: expected a list of 2 (num_hidden_layers) strings");
        let granite = json!({"model_type": "granitemoehybrid", "layer_types": ["attention", "mamba"]});
        assert_eq!(
            problem(granite),
            "layer_types holds \"mamba\", expected full_attention or sliding_attention"
        );
    }

    #[test]
    fn what_a_family_has_is_not_what_a_config_says_that_nobody_reads() {
        let gptj = json!({"model_type": "gptj", "n_embd": 32, "n_head": 2, "rotary_dim": 8, "use_parallel_residual": false,
            "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
        let spec = parse_config(&gptj).unwrap();
        assert!(spec.parallel_residual);
        let Rope { rope_theta, ref scaling, .. } = spec.ropes[0];
        assert_eq!((rope_theta, scaling), (1e4, &RopeScaling::Default));
        let neo =
            json!({"model_type": "gpt_neo", "hidden_size": 32, "num_heads": 2, "attention_multiplier": 0.5});
        assert_eq!(parse_config(&neo).unwrap().attention_scale, 1.0);
        let stray = json!({"model_type": "gpt2", "n_embd": 32, "n_head": 2, "head_dim": 4, "num_key_value_heads": 1,
            "rope_scaling": {"type": "linear", "factor": 2.0}});
        let gpt2 = parse_config(&stray).unwrap();
        assert_eq!((gpt2.head_dim, gpt2.num_key_value_heads, gpt2.context_length), (16, 2, 1024));
        let opt =
            parse_config(&tiny(json!({"model_type": "opt", "rms_norm_eps": 0.1, "ffn_dim": 64}))).unwrap();
        assert_eq!(opt.norm_eps, 1e-5);
        let phi = tiny(json!({"model_type": "phi", "use_parallel_residual": false, "mlp_bias": false}));
        let phi = parse_config(&phi).unwrap();
        assert!(phi.parallel_residual && phi.mlp_bias && phi.qkv_bias);
    }

    #[test]
    fn gates_of_gpt_oss_are_its_own_whatever_is_null() {
        let spec = |more: Value| {
            let mut config =
                tiny(json!({"model_type": "gpt_oss", "num_experts": 3, "num_experts_per_tok": 2}));
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parse_config(&config).unwrap()
        };
        let nulls = spec(
            json!({"swiglu_limit": null, "swiglu_alpha": null, "rope_theta": null, "rope_scaling": null}),
        );
        let own = Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.702, limit: 7.0 });
        assert_eq!((nulls.hidden_act, nulls.ropes[0].rope_theta), (own, 1.5e5));
        assert_eq!(nulls.experts.unwrap().count, 3);
        let gelu = spec(json!({"hidden_act": "gelu", "swiglu_limit": 0.5}));
        assert_eq!(gelu.hidden_act, Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.702, limit: 0.5 }));
    }

    #[test]
    fn odd_heads_are_refused_whether_they_rotate_or_not() {
        let problem = |config: Value| parse_config(&config).unwrap_err();
        let gpt2 = problem(json!({"model_type": "gpt2", "n_embd": 15, "n_head": 3}));
        assert!(gpt2.contains("head_dim is 5, expected an even number"), "{gpt2}");
    }
}
