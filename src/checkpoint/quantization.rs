//! What `quantization_config` says: FP8 weights with factors beside them, or MXFP4. All other kinds are refused.

use serde_json::Value;

/// FP8 weights `X.weight` and their factors.
#[derive(Debug, PartialEq)]
pub struct Quantization {
    /// Rows and columns that share a factor; `None`: rows of their own, or all.
    block: Option<(usize, usize)>,
}

/// What the factors of `X.weight` are called: by DeepSeek and Qwen (which mean the same by their "inverse"), by all others.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// What else stands beside a weight: factors of activations and of the key-value cache, which only rounded activations need.
const OF_ACTIVATIONS: [&str; 6] =
    [".input_scale", ".activation_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale"];

impl Quantization {
    /// Reads the `quantization_config` (or older `compression_config`) of a `config.json`; `None` where weights are not
    /// quantized, or experts in MXFP4, which their tensors' names say.
    ///
    /// # Errors
    /// A sentence that names the field and what is known.
    pub fn of(config: &Value) -> Result<Option<Self>, String> {
        let field = |name: &str| {
            config.get(name).filter(|value| !value.is_null()).map(|value| (name.to_owned(), value))
        };
        let Some((within, fields)) = field("quantization_config").or_else(|| field("compression_config"))
        else {
            return Ok(None);
        };
        const KNOWN: &str = "known: FP8 as fp8, fbgemm_fp8, modelopt and compressed-tensors have it; experts in mxfp4; GGUF files";
        let refused =
            |what: String| Err(format!("has a {within} with {what}, which cannot be read ({KNOWN})"));
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        match text("quant_method") {
            Some("fp8" | "fbgemm_fp8") => {}
            Some("modelopt") if text("quant_algo") == Some("FP8") => {}
            Some("mxfp4") => return Ok(None),
            Some("compressed-tensors") => return Self::of_groups(&within, fields).map(Some),
            Some(method) => return refused(format!("quant_method \"{method}\"")),
            None => return refused("no quant_method".into()),
        }
        if let Some(format) =
            text("fmt").or_else(|| text("weight_format")).filter(|format| !format.contains("e4m3"))
        {
            return refused(format!("fmt \"{format}\""));
        }
        let block = match fields.get("weight_block_size").filter(|value| !value.is_null()) {
            None => None,
            Some(size) => Some(block_size(size).ok_or_else(|| {
                format!("has {within}.weight_block_size {size}, expected two positive numbers")
            })?),
        };
        Ok(Some(Self { block }))
    }

    /// `config_groups` of compressed-tensors: the weights of all groups have to be FP8 of one kind.
    fn of_groups(within: &str, fields: &Value) -> Result<Self, String> {
        let refused = |what: String| {
            format!(
                "has a {within} of compressed-tensors with {what}, which cannot be read (known: format \"float-quantized\", \
                 weights of type \"float\" and 8 bits)"
            )
        };
        match fields.get("format").and_then(Value::as_str) {
            Some("float-quantized") => {}
            other => return Err(refused(format!("format {other:?}"))),
        }
        let groups = fields.get("config_groups").and_then(Value::as_object);
        let groups =
            groups.filter(|groups| !groups.is_empty()).ok_or_else(|| refused("no config_groups".into()))?;
        let mut blocks = Vec::new();
        for (name, group) in groups {
            let weights = &group["weights"];
            if (weights["type"].as_str(), weights["num_bits"].as_u64()) != (Some("float"), Some(8)) {
                return Err(refused(format!("weights of {name} {}", weights)));
            }
            blocks.push(match weights["strategy"].as_str() {
                Some("tensor" | "channel") => None,
                Some("block") => Some(
                    block_size(&weights["block_structure"])
                        .ok_or_else(|| refused(format!("block_structure {}", weights["block_structure"])))?,
                ),
                _ => return Err(refused(format!("strategy {} of {name}", weights["strategy"]))),
            });
        }
        match blocks.iter().find(|block| **block != blocks[0]) {
            None => Ok(Self { block: blocks[0] }),
            Some(_) => Err(refused("several strategies".into())),
        }
    }

    /// What the factors of a weight may be called.
    pub fn scales_of(&self, weight: &str) -> [String; 2] {
        SCALES.map(|ending| format!("{weight}{ending}"))
    }

    /// Whether a tensor only says how to read another.
    pub fn is_part_of_a_weight(&self, name: &str) -> bool {
        SCALES.iter().any(|ending| name.ends_with(&format!(".weight{ending}")))
            || OF_ACTIVATIONS.iter().any(|ending| name.ends_with(ending))
    }

    /// Rows and columns of a matrix that share one of the factors of this shape.
    ///
    /// # Errors
    /// The shape that was expected.
    pub fn block_of(&self, weight: &[usize], scales: &[usize]) -> Result<(usize, usize), String> {
        let [rows, cols] = *weight else { return Err("those of a matrix".into()) };
        match (self.block, scales) {
            (Some((high, wide)), [down, across])
                if (*down, *across) == (rows.div_ceil(high), cols.div_ceil(wide)) =>
            {
                Ok((high, wide))
            }
            (Some((high, wide)), _) => Err(format!("[{}, {}]", rows.div_ceil(high), cols.div_ceil(wide))),
            (None, [] | [1] | [1, 1]) => Ok((rows, cols)),
            (None, [count] | [count, 1]) if *count == rows => Ok((1, cols)),
            (None, _) => Err(format!("[] or [{rows}, 1]")),
        }
    }
}

fn block_size(size: &Value) -> Option<(usize, usize)> {
    let size = |index: usize| size.get(index)?.as_u64().filter(|n| *n > 0).map(|n| n as usize);
    Some((size(0)?, size(1)?))
}
