//! Any bytes as a GGUF file: opened or refused, and what was opened can be read to its last element.
#![no_main]
use libfuzzer_sys::fuzz_target;
use std::fs;
use tuco::checkpoint::{Checkpoint, Reading};

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).expect("written");
    if let Ok(checkpoint) = Checkpoint::open(&path, Reading::default()) {
        for tensor in checkpoint.weights.names().filter_map(|name| checkpoint.weights.get(name)) {
            assert_eq!(tensor.to_f32().len(), tensor.rows * tensor.cols);
        }
    }
});
