//! Whatever the bytes of a GGUF file are, opening it ends in a model that can be read or in an error, never in a panic.

use proptest::prelude::*;
use std::{fs, path::Path};
use tuco::checkpoint::{Checkpoint, Reading};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn spoiled_files_are_refused_or_read(
        case in prop::sample::select(vec!["gguf_q4_0", "gguf_mixtral", "gguf_phi3", "gguf_gemma2"]),
        changes in prop::collection::vec((0usize..2500, any::<u8>()), 1..4),
        cut in prop::option::of(0usize..3000),
    ) {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join("base/model.gguf");
        let mut bytes = fs::read(golden).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.min(bytes.len())));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(&path, Reading::default()) {
            for (name, tensor) in checkpoint.weights.names().filter_map(|name| Some((name, checkpoint.weights.get(name)?))) {
                prop_assert_eq!(tensor.to_f32().len(), tensor.rows * tensor.cols, "{}", name);
            }
        }
    }
}
