//! Any JSON as `config.json`: a model or an error, and an accepted model's shapes and rotary table can be computed.
#![no_main]
use libfuzzer_sys::fuzz_target;
use tuco::model::parse_config;

fuzz_target!(|text: &str| {
    let Ok(config) = serde_json::from_str(text) else { return };
    if let Ok(spec) = parse_config(&config) {
        for (tensor, _) in spec.family.listed_tensors() {
            let _ = tensor.shape(&spec, 0);
        }
        if spec.head_dim <= 1024 {
            for rope in &spec.ropes {
                let _ = rope.table(8, rope.table_length(8));
            }
        }
    }
});
