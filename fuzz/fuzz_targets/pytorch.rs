//! Any bytes as the pytorch_model.bin of a small model.
#![no_main]
use libfuzzer_sys::fuzz_target;

mod opened;

fuzz_target!(|bytes: &[u8]| opened::open_and_read("pytorch_model.bin", bytes));
