//! The tokens with which a model ends what it says.

use super::{Checkpoint, Pair, read_json};
use crate::{
    Error, Result,
    gguf::{Gguf, find},
};
use serde_json::Value;

impl Checkpoint {
    /// `eos_token_id` of `generation_config.json`, else of `config.json` (one number or a list); of a GGUF file those of its
    /// tokenizer that end a text or a turn. Empty where the model names none.
    ///
    /// # Errors
    /// A checkpoint error that names the file where a number is none or beyond the vocabulary.
    pub fn stop_tokens(&self) -> Result<Vec<u32>> {
        if let Some(file) = find(&self.path)? {
            let metadata = Gguf::open(&file)?.metadata;
            let named =
                ["eos_token_id", "eot_token_id"].map(|name| metadata.get(&format!("tokenizer.ggml.{name}")));
            let mut all = Vec::new();
            for value in named.into_iter().flatten() {
                all.extend(self.token_ids(value, &file.display().to_string())?);
            }
            return Ok(all);
        }
        for name in ["generation_config.json", "config.json"] {
            let path = self.path.join(name);
            if !path.exists() {
                continue;
            }
            let config = read_json(&path)?;
            let given =
                |config: &'_ Value| config.get("eos_token_id").filter(|value| !value.is_null()).cloned();
            if let Some(value) = given(&config).or_else(|| given(config.get("text_config")?)) {
                return self.token_ids(&value, &path.display().to_string());
            }
        }
        Ok(Vec::new())
    }

    fn token_ids(&self, value: &Value, file: &str) -> Result<Vec<u32>> {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let most = self.spec.vocab_size as u64;
        let token = |value: &Value| {
            let token = value.as_u64().filter(|token| *token < most);
            token.map(|token| token as u32).ok_or_else(|| {
                Error::checkpoint(format!(
                    "{file}: eos_token_id is {value}, expected token ids from 0 to {}",
                    most.saturating_sub(1)
                ))
            })
        };
        values.iter().map(token).collect()
    }
}

impl Pair {
    /// The tokens that end a completion: the tuned model's, and with less than all of its fine-tuning (`alpha` below 1) the
    /// base's too.
    ///
    /// # Errors
    /// Those of [`Checkpoint::stop_tokens`].
    pub fn stop_tokens(&self, alpha: f64) -> Result<Vec<u32>> {
        let mut tokens = self.checkpoints.ft.stop_tokens()?;
        if alpha < 1.0 {
            let vocab_size = self.checkpoints.ft.spec.vocab_size;
            tokens.extend(
                self.checkpoints.pt.stop_tokens()?.iter().filter(|token| (**token as usize) < vocab_size),
            );
        }
        tokens.sort_unstable();
        tokens.dedup();
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::{fs, path::Path};

    /// A pair of one golden model, with what its files say of the end.
    fn stop_tokens(files: &[(&str, Value)], alpha: f64) -> Result<Vec<u32>> {
        let dir = tempfile::tempdir().unwrap();
        for side in ["base", "tuned"] {
            fs::create_dir(dir.path().join(side)).unwrap();
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_gqa_tied_bf16/tuned");
            for name in ["config.json", "model.safetensors"] {
                fs::copy(golden.join(name), dir.path().join(side).join(name)).unwrap();
            }
            let path = dir.path().join(side).join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["eos_token_id"] = 5.into();
            fs::write(path, config.to_string()).unwrap();
        }
        for (name, content) in files {
            fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        Pair::open(&dir.path().join("base"), &dir.path().join("tuned"), None)?.stop_tokens(alpha)
    }

    #[test]
    fn generation_config_goes_before_config_and_the_base_s_count_below_alpha_1() {
        let of = |value: Value| json!({ "eos_token_id": value });
        let tuned = "tuned/generation_config.json";
        assert_eq!(stop_tokens(&[], 1.0).unwrap(), [5]);
        assert_eq!(stop_tokens(&[(tuned, of(json!(7)))], 1.0).unwrap(), [7]);
        assert_eq!(stop_tokens(&[(tuned, of(json!([9, 7, 9])))], 1.3).unwrap(), [7, 9]);
        assert_eq!(stop_tokens(&[(tuned, of(Value::Null))], 1.0).unwrap(), [5]);
        assert_eq!(stop_tokens(&[(tuned, of(json!(7)))], 0.5).unwrap(), [5, 7]);
        let base = ("base/generation_config.json", of(json!([3, 7])));
        assert_eq!(stop_tokens(&[base, (tuned, of(json!(7)))], 0.0).unwrap(), [3, 7]);
        let error = stop_tokens(&[(tuned, of(json!("end")))], 1.0).unwrap_err();
        assert!(error.message.contains("generation_config.json: eos_token_id is \"end\""), "{error}");
    }
}
