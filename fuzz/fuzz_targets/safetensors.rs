//! Any bytes as the model.safetensors of a small model.
#![no_main]
use libfuzzer_sys::fuzz_target;

mod opened;

fuzz_target!(|bytes: &[u8]| opened::open_and_read("model.safetensors", bytes));
