//! What a `config.json` says of layers: windows, rotation, experts.

use super::{ExpertsSpec, Family, LayerSpec, WindowRule, fields::Fields};
use serde_json::Value;

/// Window and rotary embedding of every layer.
pub fn layers_of(
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
    let named = |field: &'static str| config.known(field).map(|types| (field, types));
    let listed = named("layer_types").or(named("attention_layers"));
    let repeated = config.defaults.get("attention_types").and(config.get_or_default("attention_types"));
    let is_sliding = match (listed, repeated) {
        (Some((field, types)), _) => layer_types(field, types, num_hidden_layers)?,
        (None, Some(types)) => attention_types(types, num_hidden_layers)?,
        (None, None) => {
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
pub fn experts_of(config: &Fields) -> Result<Option<ExpertsSpec>, String> {
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
    let step = match config.known("decoder_sparse_step") {
        Some(_) => config.size("decoder_sparse_step")?,
        None => 1,
    };
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

fn layer_types(field: &str, types: &Value, num_hidden_layers: usize) -> Result<Vec<bool>, String> {
    let types = types.as_array().filter(|types| types.len() == num_hidden_layers).ok_or_else(|| {
        format!("{field}: expected a list of {num_hidden_layers} (num_hidden_layers) strings")
    })?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention" | "attention" | "global") => Ok(false),
            Some("sliding_attention" | "local") => Ok(true),
            _ if field == "attention_layers" => {
                Err(format!("{field} holds {kind}, expected global or local"))
            }
            _ => Err(format!("{field} holds {kind}, expected full_attention or sliding_attention")),
        })
        .collect()
}

/// GPT-Neo's form of it: `[[["global", "local"], 12]]` are 24 layers, every second with a window.
fn attention_types(types: &Value, num_hidden_layers: usize) -> Result<Vec<bool>, String> {
    let repeated = |part: &Value| {
        let kinds = part.get(0)?.as_array()?.iter().map(|kind| match kind.as_str()? {
            "global" => Some(false),
            "local" => Some(true),
            _ => None,
        });
        let times = part.get(1)?.as_u64().filter(|times| *times <= num_hidden_layers as u64)?;
        Some(kinds.collect::<Option<Vec<bool>>>()?.repeat(times as usize))
    };
    let parts: Option<Vec<Vec<bool>>> =
        types.as_array().and_then(|parts| parts.iter().map(repeated).collect());
    parts.map(|parts| parts.concat()).filter(|layers| layers.len() == num_hidden_layers).ok_or_else(|| {
        format!(
            "attention_types is {types}, expected lists of \"global\" and \"local\" with the number of times each is repeated, for \
             {num_hidden_layers} (num_hidden_layers) layers"
        )
    })
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
    use crate::model::{config::tests::tiny, parse_config};
    use serde_json::{Value, json};

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
        let cwm = json!({"model_type": "cwm", "num_hidden_layers": 5, "sliding_window": 4});
        assert_eq!(windows(cwm), [false, true, true, true, false]);
        let neo = json!({"model_type": "gpt_neo", "num_hidden_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]]});
        assert_eq!(windows(neo.clone()), [false, true, false, true]);
        for (types, layers) in
            [(Value::Null, Value::Null), (json!(4), json!(["global", "local", "global", "local"]))]
        {
            let mut config = neo.clone();
            (config["attention_types"], config["attention_layers"]) = (types, layers.clone());
            config["num_hidden_layers"] = if layers.is_null() { 24.into() } else { 4.into() };
            assert_eq!(windows(config)[..4], [false, true, false, true]);
        }
        let mut config = neo.clone();
        (config["num_attention_heads"], config["hidden_size"]) = (4.into(), 64.into());
        assert_eq!(parse_config(&tiny(config)).unwrap().num_attention_heads, 4);
        for broken in
            [json!([[["global"], 3]]), json!([[["here"], 4]]), json!(4), json!([[["local"], 1_u64 << 40]])]
        {
            let mut config = neo.clone();
            config["attention_types"] = broken;
            assert!(parse_config(&tiny(config)).unwrap_err().contains("for 4 (num_hidden_layers) layers"));
        }
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
}
