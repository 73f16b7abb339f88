//! What the benchmarks share: random pairs on disk, for figures that need a size but no sense, and turns of two things that
//! are compared.

#![allow(dead_code, reason = "each benchmark uses its part")]

use half::bf16;
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Shapes of a model.
pub struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    pub vocab_size: usize,
}

/// SmolLM2-135M with fewer layers (all cost alike).
pub const fn smollm2_135m(layers: usize) -> Shape {
    Shape {
        hidden_size: 576,
        intermediate_size: 1536,
        layers,
        heads: 9,
        key_value_heads: 3,
        vocab_size: 4096,
    }
}

/// Writes `dir/base` and `dir/tuned`, bf16 in one file for each layer.
pub fn write_pair(dir: &Path, shape: &Shape) {
    for (side, seed) in [("base", 1), ("tuned", 2)] {
        write_model(&dir.join(side), shape, seed).expect("a folder that can be written");
    }
}

fn write_model(dir: &Path, shape: &Shape, seed: u64) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads, "vocab_size": shape.vocab_size,
        "max_position_embeddings": 1 << 20, "tie_word_embeddings": true,
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    let mut state = seed;
    let mut values = move |rows: usize, cols: usize, around: f32| -> Vec<u8> {
        let scale = 1.7 / (cols as f32).sqrt();
        let random = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let unit = (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            bf16::from_f32(around + unit * scale).to_le_bytes()
        };
        (0..rows * cols).flat_map(random).collect()
    };
    let (d, f) = (shape.hidden_size, shape.intermediate_size);
    let kv = d / shape.heads * shape.key_value_heads;
    let file_of = |index: usize| format!("model-{:05}-of-{:05}.safetensors", index + 1, shape.layers + 1);
    let mut weight_map = serde_json::Map::new();
    for index in 0..=shape.layers {
        let tensors: Vec<(String, [usize; 2])> = match index == shape.layers {
            true => vec![
                ("model.embed_tokens.weight".into(), [shape.vocab_size, d]),
                ("model.norm.weight".into(), [d, 0]),
            ],
            false => [
                ("input_layernorm", [d, 0]),
                ("self_attn.q_proj", [d, d]),
                ("self_attn.k_proj", [kv, d]),
                ("self_attn.v_proj", [kv, d]),
                ("self_attn.o_proj", [d, d]),
                ("post_attention_layernorm", [d, 0]),
                ("mlp.gate_proj", [f, d]),
                ("mlp.up_proj", [f, d]),
                ("mlp.down_proj", [d, f]),
            ]
            .map(|(name, shape)| (format!("model.layers.{index}.{name}.weight"), shape))
            .into(),
        };
        let made: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, [rows, cols])| match cols {
                0 => (name, vec![rows], values(1, rows, 1.0)),
                _ => (name, vec![rows, cols], values(rows, cols, 0.0)),
            })
            .collect();
        let views = made.iter().map(|(name, shape, bytes)| {
            weight_map.insert(name.clone(), file_of(index).into());
            (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("bytes of this shape"))
        });
        let views: Vec<_> = views.collect();
        serialize_to_file(views, None, &dir.join(file_of(index))).map_err(std::io::Error::other)?;
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string())
}

/// Prompts of mixed lengths, together about as many tokens as a job's batches have (`--max-batch-tokens`), since work on
/// the weights is shared by a batch.
pub fn prompts(vocab_size: usize) -> Vec<Vec<u32>> {
    const LENGTHS: [usize; 16] = [20, 394, 57, 211, 133, 289, 76, 340, 102, 248, 180, 31, 365, 155, 310, 228];
    let prompt = |seed: usize, length: usize| {
        (0..length).map(|i| ((i * 7919 + length + seed) % vocab_size) as u32).collect()
    };
    (0..4).flat_map(|seed| LENGTHS.map(|length| prompt(seed, length))).collect()
}

/// The pair that `TUCO_BENCH_BASE` and `TUCO_BENCH_TUNED` name.
pub fn named_pair() -> Option<(PathBuf, PathBuf)> {
    let dir = |variable: &str| env::var_os(variable).map(PathBuf::from);
    Some((dir("TUCO_BENCH_BASE")?, dir("TUCO_BENCH_TUNED")?))
}

/// Does two things by turns, prints what they took, and at last how many times the second's the first took: the median.
pub fn by_turns(rounds: usize, names: [&str; 2], mut things: [&mut dyn FnMut(); 2]) {
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let took = things.each_mut().map(|thing| {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            thing();
            [start.elapsed().as_secs_f64(), cpu_seconds() - cpu]
        });
        let [first, second] = took;
        let ratio = [0, 1].map(|clock| first[clock] / second[clock]);
        for (name, [seconds, cpu]) in names.iter().zip(took) {
            print!("{name} {seconds:.2} s ({cpu:.2} s of CPU time), ");
        }
        println!("{:.2} x ({:.2} x)", ratio[0], ratio[1]);
        ratios.push(ratio);
    }
    let [clock, cpu] = [0, 1].map(|clock| {
        let mut ratios: Vec<f64> = ratios.iter().map(|ratio| ratio[clock]).collect();
        ratios.sort_by(f64::total_cmp);
        ratios[rounds / 2]
    });
    println!("{} over {}: median {cpu:.2} x by CPU time, {clock:.2} x by the clock", names[0], names[1]);
}

/// CPU time that this process has used: what other work on the machine changes least. Linux; 0 elsewhere.
pub fn cpu_seconds() -> f64 {
    /// Ticks of `/proc` in a second, the same on all Linux systems in use.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS
}
