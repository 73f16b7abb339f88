//! A small model with any bytes as its weights.

use std::fs;
use tuco::checkpoint::{Checkpoint, Reading};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 4, "hidden_size": 4, "intermediate_size": 4,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu"}"#;

/// Opened or refused; what was opened can be read to its last element.
pub fn open_and_read(file: &str, bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("config.json"), CONFIG).expect("written");
    fs::write(dir.path().join(file), bytes).expect("written");
    if let Ok(checkpoint) = Checkpoint::open(dir.path(), Reading::default()) {
        for name in checkpoint.weights.names() {
            let tensor = checkpoint.weights.get(name).expect("opened checkpoints have readable tensors");
            let elements = tensor.rows * tensor.cols;
            assert_eq!(Some(tensor.stored.bytes.len()), tensor.stored.encoding.bytes(elements));
        }
    }
}
