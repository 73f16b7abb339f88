//! `adapter_config.json`.

use regex::Regex;
use serde_json::{Map, Value};

/// The fields of `adapter_config.json` that say how strong the adapter is.
pub struct Config {
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    pub use_dora: bool,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Ends of names of tensors that are adapted by themselves, not as a module's.
    target_parameters: Vec<String>,
}

impl Config {
    pub fn new(config: &Value) -> std::result::Result<Self, String> {
        let object = config.as_object().ok_or("is not a JSON object")?;
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(format!("has peft_type {other}, which cannot be read (known: LORA)")),
            None => return Err("has no peft_type (known: LORA)".into()),
        }
        // Each of these changes what the weights mean; `transformers` writes null, false or nothing where it is not used.
        const UNREAD: [&str; 10] = [
            "layer_replication",
            "trainable_token_indices",
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
            let changes_base =
                ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|name| init.starts_with(name));
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
            target_parameters: match object.get("target_parameters").and_then(Value::as_array) {
                Some(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                None => Vec::new(),
            },
        })
    }

    /// What patterns are matched against for a linear layer: the module's name, or its weight's where that is what is adapted.
    pub fn pattern_key(&self, module: String) -> String {
        let weight = format!("{module}.weight");
        let is_weight = |target: &String| weight == *target || weight.ends_with(&format!(".{target}"));
        if self.target_parameters.iter().any(is_weight) { weight } else { module }
    }

    pub fn rank(&self, module: &str) -> usize {
        lookup(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    pub fn scale(&self, module: &str, rank: usize) -> f64 {
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
