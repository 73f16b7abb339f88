//! `config.json` → [`ModelSpec`], in the form of `transformers` 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

use super::{Activation, FAMILIES, Family, ModelSpec, Rope, RopeScaling};
use serde_json::{Map, Value};

/// Reads a parsed `config.json`.
///
/// # Errors
/// A sentence that names the field, what it holds and what was expected.
pub fn parse_config(config: &Value) -> Result<ModelSpec, String> {
    let config = Fields { object: config.as_object().ok_or("is not a JSON object")?, within: "" };
    let family = family_of(&config)?;
    let hidden_size = config.size("hidden_size")?;
    let num_attention_heads = config.size("num_attention_heads")?;
    let num_key_value_heads = config.size_or("num_key_value_heads", num_attention_heads)?;
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(format!(
            "num_attention_heads ({num_attention_heads}) is not a multiple of num_key_value_heads ({num_key_value_heads})"
        ));
    }
    let head_dim = match config.get("head_dim") {
        Some(_) => config.size("head_dim")?,
        None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        None => {
            return Err(format!(
                "has no head_dim, and hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_attention_heads})"
            ));
        }
    };
    if head_dim % 2 != 0 {
        return Err(format!("head_dim is {head_dim}; rotary embeddings need an even one"));
    }
    let max_position_embeddings =
        config.size_or("max_position_embeddings", family.default_max_position_embeddings)?;
    let (rope, context_length) = rope_of(&config, head_dim, max_position_embeddings)?;
    Ok(ModelSpec {
        family,
        hidden_size,
        intermediate_size: config.size("intermediate_size")?,
        num_hidden_layers: config.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: config.size("vocab_size")?,
        context_length,
        rms_norm_eps: config.number_or("rms_norm_eps", family.default_rms_norm_eps)?,
        hidden_act: activation_of(&config)?,
        attention_bias: config.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: config.flag("mlp_bias")?.unwrap_or(false),
        rope,
    })
}

fn family_of(config: &Fields) -> Result<&'static Family, String> {
    let known = || FAMILIES.iter().map(|f| f.model_type).collect::<Vec<_>>().join(", ");
    let model_type = match config.get("model_type") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("model_type is {other}, expected a string")),
        None => return Err(format!("has no model_type (known: {})", known())),
    };
    let family = FAMILIES.iter().find(|f| f.model_type == model_type);
    if config.get("quantization_config").is_some() {
        return Err("has a quantization_config: quantized checkpoints cannot be read yet; save the model dequantized \
                    (float32, float16 or bfloat16)"
            .into());
    }
    family.copied().ok_or_else(|| format!("model_type \"{model_type}\" is not known (known: {})", known()))
}

fn activation_of(config: &Fields) -> Result<Activation, String> {
    match config.get("hidden_act") {
        None => Ok(Activation::Silu),
        Some(Value::String(name)) => match name.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            other => {
                Err(format!("hidden_act \"{other}\" is not known (known: silu, gelu, gelu_pytorch_tanh)"))
            }
        },
        Some(other) => Err(format!("hidden_act is {other}, expected a string")),
    }
}

/// The rotary embedding and the prompt length it serves.
fn rope_of(
    config: &Fields,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<(Rope, usize), String> {
    let empty = Map::new();
    let (within, object) = match (config.get("rope_parameters"), config.get("rope_scaling")) {
        (Some(Value::Object(object)), _) => ("rope_parameters.", object),
        (None, Some(Value::Object(object))) => ("rope_scaling.", object),
        (None, None) => ("", &empty),
        (Some(other), _) => return Err(format!("rope_parameters is {other}, expected an object")),
        (None, Some(other)) => return Err(format!("rope_scaling is {other}, expected an object or null")),
    };
    let rope = Fields { object, within };
    let rope_theta = match rope.get("rope_theta") {
        Some(_) => rope.number("rope_theta")?,
        None => config.number_or("rope_theta", 10_000.0)?,
    };
    if rope_theta <= 1.0 {
        return Err(format!("{within}rope_theta is {rope_theta}, expected more than 1"));
    }
    let partial = match rope.get("partial_rotary_factor") {
        Some(_) => rope.number("partial_rotary_factor")?,
        None => config.number_or("partial_rotary_factor", 1.0)?,
    };
    if partial != 1.0 {
        return Err(format!("partial_rotary_factor is {partial}; only 1 is supported for this family"));
    }
    let rope_type = match rope.get("rope_type").or_else(|| rope.get("type")) {
        None => "default",
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("{within}rope_type is {other}, expected a string")),
    };
    let longest = max_position_embeddings as f64;
    let scaling = match rope_type {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope.factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: rope.factor()?, max_position_embeddings },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.factor()?,
            low_freq_factor: rope.number("low_freq_factor")?,
            high_freq_factor: rope.number("high_freq_factor")?,
            original_max_position_embeddings: rope.number_or("original_max_position_embeddings", longest)?,
        },
        "yarn" => yarn(&rope, longest)?,
        other => {
            return Err(format!(
                "{within}rope_type \"{other}\" is not known (known: default, linear, dynamic, llama3, yarn)"
            ));
        }
    };
    // Where max_position_embeddings is the length before stretching, the model serves what it was stretched to.
    let stretched = match scaling {
        RopeScaling::Default | RopeScaling::Llama3 { .. } => longest,
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => longest * factor,
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            original_max_position_embeddings * factor
        }
    };
    let rope = Rope { rope_theta, scaling, rotary_dim: head_dim };
    Ok((rope, max_position_embeddings.max(stretched as usize)))
}

fn yarn(rope: &Fields, longest: f64) -> Result<RopeScaling, String> {
    let original = rope.number_or("original_max_position_embeddings", longest)?;
    let factor = match rope.get("factor") {
        Some(_) => rope.factor()?,
        None => longest / original,
    };
    let mscale_of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    // A zero counts as absent, as it does in transformers.
    let nonzero = |name| Ok::<_, String>(rope.optional_number(name)?.filter(|value| *value != 0.0));
    let attention_factor = match rope.optional_number("attention_factor")? {
        Some(given) => given,
        None => match (nonzero("mscale")?, nonzero("mscale_all_dim")?) {
            (Some(mscale), Some(all_dim)) => mscale_of(mscale) / mscale_of(all_dim),
            _ => mscale_of(1.0),
        },
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast: nonzero("beta_fast")?.unwrap_or(32.0),
        beta_slow: nonzero("beta_slow")?.unwrap_or(1.0),
        truncate: rope.flag("truncate")?.unwrap_or(true),
        original_max_position_embeddings: original,
    })
}

/// A JSON object whose fields are asked for by name and type; `null` counts as absent, as in `transformers`.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The object's own name with a dot, for messages.
    within: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn size(&self, name: &str) -> Result<usize, String> {
        match self.get(name) {
            // Sizes beyond 2^32 are no sizes of any model, and products of them would overflow.
            Some(value) => match value.as_u64() {
                Some(size) if size > 0 && size < 1 << 32 => Ok(size as usize),
                _ => Err(format!("{}{name} is {value}, expected a positive integer", self.within)),
            },
            None => Err(format!("has no {}{name}", self.within)),
        }
    }

    fn size_or(&self, name: &str, default: usize) -> Result<usize, String> {
        if self.get(name).is_some() { self.size(name) } else { Ok(default) }
    }

    fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number >= 0.0 => Ok(Some(number)),
                _ => Err(format!("{}{name} is {value}, expected a number that is not negative", self.within)),
            },
        }
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        self.optional_number(name)?.ok_or_else(|| format!("has no {}{name}", self.within))
    }

    fn number_or(&self, name: &str, default: f64) -> Result<f64, String> {
        Ok(self.optional_number(name)?.unwrap_or(default))
    }

    /// The scaling factor, which must not be zero.
    fn factor(&self) -> Result<f64, String> {
        match self.number("factor")? {
            factor if factor > 0.0 => Ok(factor),
            factor => Err(format!("{}factor is {factor}, expected a positive number", self.within)),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(format!("{}{name} is {other}, expected true or false", self.within)),
        }
    }
}
