//! The rotary embeddings of a `config.json`, in the form of `transformers` 4 (`rope_theta`, `rope_scaling`) and 5
//! (`rope_parameters`).

use super::{Family, Rope, RopeScaling, fields::Fields};
use serde_json::{Map, Value};

/// Rotary embeddings of a model: that of layers with full attention and, where it differs, that of sliding ones.
pub struct Ropes {
    pub full: Rope,
    pub sliding: Option<Rope>,
    /// The prompt length they serve.
    pub context_length: usize,
    /// See [`ModelSpec::growing_queries`](super::ModelSpec::growing_queries).
    pub growing_queries: Option<usize>,
}

/// Reads all of them.
pub fn ropes_of(
    config: &Fields,
    family: &Family,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<Ropes, String> {
    let empty = Map::new();
    let object_in = |name: &str| match config.get_or_default(name) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => Err(format!("{name} is {other}, expected an object or null")),
    };
    let by_layer_type = |object: &Map<String, Value>| {
        object.values().any(Value::is_object).then_some(["full_attention", "sliding_attention"])
    };
    let sliding_theta = family.sliding_rope_theta;
    let scaling = object_in("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    // Where both are there, transformers 5 takes the older name's; of two rotary embeddings it tells only a part.
    let (within, object) = match (scaling, object_in("rope_parameters")?) {
        (_, Some(object)) if sliding_theta.is_some() || scaling.is_none() => ("rope_parameters.", object),
        (Some(object), _) => ("rope_scaling.", object),
        (None, _) => ("", &empty),
    };
    let part = |name: &str| match object.get(name) {
        Some(Value::Object(part)) => Ok(part),
        // What is not told of one of them is what the family has.
        None | Some(Value::Null) => Ok(&empty),
        Some(other) => Err(format!("{within}{name} is {other}, expected an object")),
    };
    let fields =
        |object| Fields { object, defaults: &empty, fixed: &empty, names: &[], aliases: &[], within };
    let (full, sliding) = match by_layer_type(object) {
        Some(_) if sliding_theta.is_none() => {
            return Err(format!(
                "{within}full_attention: this family has one rotary embedding for all layers"
            ));
        }
        Some([full, sliding]) => (fields(part(full)?), Some(fields(part(sliding)?))),
        None => (fields(object), None),
    };
    let growing_queries = match full.optional_number("llama_4_scaling_beta")?.filter(|beta| *beta != 0.0) {
        Some(_) => Some(original_of(config, &full, max_position_embeddings)?),
        None => None,
    };
    let (full, context_length) = rope_of(config, &full, "rope_theta", head_dim, max_position_embeddings)?;
    let sliding = match sliding_theta {
        Some(theta) => {
            let sliding = sliding.unwrap_or(fields(&empty));
            Some(rope_of(config, &sliding, theta, head_dim, max_position_embeddings)?.0)
        }
        None => None,
    };
    // Where layers have two rotary embeddings, only that of full attention is stretched: models are trained so (Gemma 3), and
    // max_position_embeddings is the length that they were trained to in the end.
    let context_length = match full.scaling {
        RopeScaling::Linear { .. } if sliding_theta.is_some() => max_position_embeddings,
        _ => context_length,
    };
    Ok(Ropes { full, sliding, context_length, growing_queries })
}

/// One rotary embedding, whose base is `theta_field` of the config where it has none of its own, and the prompt length it
/// serves.
fn rope_of(
    config: &Fields,
    rope: &Fields,
    theta_field: &str,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<(Rope, usize), String> {
    let within = rope.within;
    let rope_theta = match rope.get("rope_theta") {
        Some(_) => rope.number("rope_theta")?,
        None => match config.own_number(theta_field)? {
            Some(theta) => theta,
            None => config.number_or(theta_field, 10_000.0)?,
        },
    };
    if rope_theta <= 1.0 {
        return Err(format!("{within}rope_theta is {rope_theta}, expected more than 1"));
    }
    let partial = match rope.get("partial_rotary_factor") {
        Some(_) => rope.number("partial_rotary_factor")?,
        None => config.number_or("partial_rotary_factor", 1.0)?,
    };
    if partial != 1.0 && config.known("partial_rotary_factor").is_none() {
        return Err(format!("partial_rotary_factor is {partial}; models of this family rotate whole heads"));
    }
    let rotary_dim = match config.known("rotary_dim") {
        Some(_) => config.size_up_to(head_dim, "rotary_dim")?,
        None => (head_dim as f64 * partial) as usize,
    };
    if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        let told = match config.known("rotary_dim") {
            Some(dim) => format!("rotary_dim is {dim}"),
            None => format!("partial_rotary_factor is {partial}"),
        };
        return Err(format!(
            "{told}: {rotary_dim} of {head_dim} dimensions of a head are rotated, expected an \
             even number of them"
        ));
    }
    let rope_type = match rope.get("rope_type").or_else(|| rope.get("type")) {
        None => "default",
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("{within}rope_type is {other}, expected a string")),
    };
    let longest = max_position_embeddings as f64;
    let original = original_of(config, rope, max_position_embeddings)?;
    // Early configs of Phi-3 call it by other names; YaRN has no such lists.
    let rope_type = match rope_type {
        "su" => "longrope",
        "yarn" if rope.get("long_factor").is_some() => "longrope",
        other => other,
    };
    let scaling = match rope_type {
        // Of text alone the positions in time, height and width are one.
        "default" | "mrope" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope.factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: rope.factor()?, max_position_embeddings },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.factor()?,
            low_freq_factor: rope.number("low_freq_factor")?,
            high_freq_factor: rope.number("high_freq_factor")?,
            original_max_position_embeddings: original as f64,
        },
        "yarn" => yarn(rope, original as f64, longest)?,
        "longrope" => longrope(rope, original, rotary_dim, longest)?,
        other => {
            return Err(format!(
                "{within}rope_type \"{other}\" is not known (known: default, linear, dynamic, llama3, yarn, longrope)"
            ));
        }
    };
    // Where max_position_embeddings is the length before stretching, the model serves what it was stretched to.
    let stretched = match scaling {
        RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => longest,
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => longest * factor,
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            original_max_position_embeddings * factor
        }
    };
    let rope = Rope { rope_theta, scaling, rotary_dim };
    Ok((rope, max_position_embeddings.max(stretched as usize)))
}

/// The prompt length before stretching.
fn original_of(config: &Fields, rope: &Fields, max_position_embeddings: usize) -> Result<usize, String> {
    // Of one rotary embedding for all layers the config's own field goes before that of the object.
    match config.get("original_max_position_embeddings") {
        Some(_) => config.size("original_max_position_embeddings"),
        None => rope.size_or("original_max_position_embeddings", max_position_embeddings),
    }
}

fn yarn(rope: &Fields, original: f64, longest: f64) -> Result<RopeScaling, String> {
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

/// Factors of Phi-3 for each frequency, others for long prompts.
fn longrope(rope: &Fields, original: usize, rotary_dim: usize, longest: f64) -> Result<RopeScaling, String> {
    let factors = |name: &str| {
        let wrong = || format!("{}{name}: expected {} positive numbers", rope.within, rotary_dim / 2);
        let list = rope.get(name).and_then(Value::as_array).ok_or_else(wrong)?;
        let list: Option<Vec<f32>> =
            list.iter().map(|v| v.as_f64().filter(|v| *v > 0.0).map(|v| v as f32)).collect();
        list.filter(|list| list.len() == rotary_dim / 2).ok_or_else(wrong)
    };
    let factor = rope.optional_number("factor")?.unwrap_or(longest / original as f64);
    let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        attention_factor: rope.number_or("attention_factor", default)?,
        original_max_position_embeddings: original,
    })
}

#[cfg(test)]
mod tests {
    use crate::model::{Rope, RopeScaling, parse_config};
    use serde_json::{Value, json};

    #[test]
    fn fields_go_before_each_other_as_in_transformers() {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 50, "max_position_embeddings": 131072, "original_max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 131072},
        });
        let rope = |config: &Value| parse_config(config).unwrap().ropes[0].clone();
        let original = |rope: Rope| match rope.scaling {
            RopeScaling::Yarn { original_max_position_embeddings, .. } => original_max_position_embeddings,
            other => panic!("{other:?}"),
        };
        assert_eq!(original(rope(&config)), 32768.0);
        config["original_max_position_embeddings"] = Value::Null;
        assert_eq!(original(rope(&config)), 131072.0);
        config["rope_scaling"] = json!({"rope_type": "linear", "factor": 2.0});
        assert!(matches!(rope(&config).scaling, RopeScaling::Linear { factor: 2.0 }));
    }

    #[test]
    fn early_configs_of_phi_3_have_other_names_for_longrope() {
        let rope = |name: &str| {
            let factors = vec![1.5; 8];
            let config = json!({
                "model_type": "phi3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                "vocab_size": 50, "max_position_embeddings": 8192, "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": name, "short_factor": factors, "long_factor": factors},
            });
            parse_config(&config).unwrap().ropes[0].clone()
        };
        assert!(matches!(rope("longrope").scaling, RopeScaling::LongRope { .. }));
        assert_eq!([rope("su"), rope("yarn")], [(); 2].map(|()| rope("longrope")));
    }

    #[test]
    fn prompts_end_where_queries_would_grow() {
        let ministral = json!({
            "model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 32, "vocab_size": 131072,
        });
        let spec = parse_config(&ministral).unwrap();
        assert_eq!((spec.context_length, spec.growing_queries), (16384, Some(16384)));
    }

    #[test]
    fn linear_scaling_stretches_what_was_not_trained_stretched() {
        let context_length = |config: Value| parse_config(&config).unwrap().context_length;
        // lmsys/vicuna-7b-v1.5-16k
        let vicuna = json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        });
        assert_eq!(context_length(vicuna), 16384);
        // google/gemma-3-4b-it, as transformers 4 and 5 write it.
        let mut gemma = json!({"model_type": "gemma3_text", "max_position_embeddings": 131072});
        let linear = json!({"rope_type": "linear", "factor": 8.0});
        gemma["rope_scaling"] = linear.clone();
        assert_eq!(context_length(gemma.clone()), 131072);
        gemma["rope_scaling"] = Value::Null;
        gemma["rope_parameters"] =
            json!({"full_attention": linear, "sliding_attention": {"rope_type": "default"}});
        assert_eq!(context_length(gemma), 131072);
    }
}
