//! Everything that can be wrong with a checkpoint or a pair: the message names it, nothing is computed.

use crate::{
    common::{Pair, rows, run, tuco},
    scene::demo,
};
use serde_json::json;
use std::fs;

const CASE: &str = "llama_gqa_tied_bf16";
const WEIGHTS: &str = "tuned/model.safetensors";
const SIDES: [&str; 4] = ["--base", "base", "--tuned", "tuned"];

/// Breaks a copy of a pair and scores with it.
#[track_caller]
fn refused(code: i32, parts: &[&str], spoil: impl FnOnce(&Pair)) {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    spoil(&pair);
    let ran = run(&mut pair.score(&["in.jsonl", "-o", "out.jsonl"])).expect(code, parts);
    assert_eq!(ran.stdout, "");
    assert!(!pair.path("out.jsonl").exists(), "an output was begun");
}

#[test]
fn missing_directories_and_files() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    let base = |name: &str| {
        let mut command = tuco();
        command.current_dir(pair.dir.path()).args(["score", "--base", name, "--tuned", "tuned", "in.jsonl"]);
        run(&mut command)
    };
    base("./nowhere").expect(2, &["--base ./nowhere", "no such directory"]);
    base("org/model").expect(2, &["org/model", "hf download org/model"]);
    base("in.jsonl").expect(2, &["--base in.jsonl", "is a file", "a GGUF file"]);
    refused(2, &["tuned/config.json"], |pair| fs::remove_file(pair.path("tuned/config.json")).unwrap());
    refused(2, &["none of model.safetensors"], |pair| fs::remove_file(pair.path(WEIGHTS)).unwrap());
    refused(42, &["pytorch_model.bin", "not a valid zip file"], |pair| {
        fs::rename(pair.path(WEIGHTS), pair.path("tuned/pytorch_model.bin")).unwrap();
    });
}

#[test]
fn files_that_are_no_safetensors() {
    refused(42, &[WEIGHTS, "empty"], |pair| drop(pair.write(WEIGHTS, "")));
    refused(42, &[WEIGHTS, "zip"], |pair| drop(pair.write(WEIGHTS, "PK\x03\x04 a zip file of some length")));
    refused(42, &[WEIGHTS, "git lfs pull"], |pair| {
        pair.write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    });
    refused(42, &[WEIGHTS], |pair| {
        let bytes = fs::read(pair.path(WEIGHTS)).unwrap();
        pair.write(WEIGHTS, &bytes[..bytes.len() - 10]);
    });
    refused(42, &[WEIGHTS], |pair| {
        let mut bytes = fs::read(pair.path(WEIGHTS)).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        pair.write(WEIGHTS, bytes);
    });
}

#[test]
fn headers_that_lie() {
    let norm = "model.layers.0.input_layernorm.weight";
    refused(42, &[WEIGHTS], |pair| {
        pair.edit_header(WEIGHTS, |header| header[norm]["data_offsets"] = json!([0, 1u64 << 40]));
    });
    refused(42, &[WEIGHTS], |pair| {
        // Two tensors over the same bytes.
        pair.edit_header(WEIGHTS, |header| {
            header[norm]["data_offsets"] =
                header["model.layers.1.input_layernorm.weight"]["data_offsets"].clone();
        });
    });
    refused(42, &[norm, "U16", "expected F32, F16 or BF16"], |pair| {
        pair.edit_header(WEIGHTS, |header| header[norm]["dtype"] = json!("U16"));
    });
    refused(42, &["q_proj.weight", "config.json demands"], |pair| {
        pair.edit_header(WEIGHTS, |header| {
            let shape = header["model.layers.0.self_attn.q_proj.weight"]["shape"].as_array_mut().unwrap();
            shape.reverse();
            let product: u64 = shape.iter().map(|n| n.as_u64().unwrap()).product();
            *shape = vec![json!(product), json!(1)];
        });
    });
    refused(42, &["tensor model.layers.1.mlp.up_proj.weight is missing"], |pair| {
        pair.edit_header(WEIGHTS, |header| {
            let tensor = header.remove("model.layers.1.mlp.up_proj.weight").unwrap();
            header.insert("lm_head.weight".into(), tensor);
        });
    });
    refused(42, &["q_norm.weight", "is not part of a llama model"], |pair| {
        pair.edit_header(WEIGHTS, |header| {
            let tensor = header.remove("model.norm.weight").unwrap();
            header.insert("model.layers.0.self_attn.q_norm.weight".into(), tensor);
        });
    });
}

/// A reward model's head is none of next tokens; TuCo reads neither.
#[test]
fn a_reward_model_is_scored_but_says_no_tokens() {
    let pair = Pair::copy("mixed_dtypes");
    pair.write("in.jsonl", rows(3));
    let whole = run(&mut pair.score(&["in.jsonl"])).expect(0, &[]).rows();
    pair.edit_header(WEIGHTS, |header| {
        let tensor = header.remove("lm_head.weight").unwrap();
        header.insert("score.weight".into(), tensor);
    });
    assert_eq!(run(&mut pair.score(&["in.jsonl"])).expect(0, &[]).rows(), whole);
    run(pair.run("generate", &SIDES).arg("in.jsonl")).expect(42, &["lm_head.weight is missing"]);
}

/// Whatever else is told of the pair, here that one of them has no tokenizer.
#[test]
fn equal_models_are_told() {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(demo("base").join(file), copy.path().join(file)).unwrap();
    }
    let mut inspect = tuco();
    inspect.arg("inspect").arg("--base").arg(demo("base")).arg("--tuned").arg(copy.path());
    let told = run(&mut inspect).expect(0, &[]).stdout;
    assert!(told.contains("vocabulary is not known") && told.contains("every TuCo will be 0"), "{told}");
}

/// A config with linear scaling does not say which of two lengths it tells.
#[test]
fn how_positions_are_rotated_is_told() {
    let inspect = |case: &str| run(&mut Pair::copy(case).run("inspect", &SIDES)).expect(0, &[]).stdout;
    let linear = inspect("rope_linear");
    assert!(linear.contains("| rope_scaling | Linear { factor: 4.0 } |"), "{linear}");
    assert!(linear.contains("times max_position_embeddings"), "{linear}");
    assert!(linear.contains("| epsilon of norms |"), "{linear}");
    let yarn = inspect("rope_yarn");
    assert!(yarn.contains("| rope_scaling | Yarn {") && !yarn.contains("times max_position"), "{yarn}");
}

#[test]
fn an_index_that_names_absent_shards() {
    let pair = Pair::copy("sharded");
    pair.write("in.jsonl", rows(2));
    let shard = fs::read_dir(pair.path("base")).unwrap().map(|entry| entry.unwrap().path());
    let shard = shard.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).max().unwrap();
    let name = shard.file_name().unwrap().to_string_lossy().into_owned();
    fs::remove_file(&shard).unwrap();
    run(&mut pair.score(&["in.jsonl"]))
        .expect(42, &["model.safetensors.index.json", &name, "not in the directory"]);
    pair.edit_json("base/model.safetensors.index.json", |index| index["weight_map"] = json!("no"));
    run(&mut pair.score(&["in.jsonl"])).expect(42, &["weight_map"]);
}

#[test]
fn weights_that_are_not_finite() {
    for bits in [0x7fc0u16, 0x7f80, 0xff80] {
        refused(42, &[WEIGHTS, "tensor model.", "NaN or infinite", "row", "column"], |pair| {
            let mut bytes = fs::read(pair.path(WEIGHTS)).unwrap();
            let end = bytes.len();
            bytes[end - 2..].copy_from_slice(&bits.to_le_bytes());
            // The last tensor may be one that is not used: poison the first one too.
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[header..header + 2].copy_from_slice(&bits.to_le_bytes());
            pair.write(WEIGHTS, bytes);
        });
    }
}

#[test]
fn configs_that_cannot_be_meant() {
    let spoiled = |parts: &[&str], field: &'static str, value: serde_json::Value| {
        let mut all = vec!["tuned/config.json"];
        all.extend(parts);
        refused(42, &all, |pair| pair.edit_json("tuned/config.json", |config| config[field] = value));
    };
    spoiled(&["model_type \"mamba\"", "known: llama"], "model_type", json!("mamba"));
    spoiled(&["hidden_size", "expected an integer from 1"], "hidden_size", json!("big"));
    spoiled(&["num_key_value_heads"], "num_key_value_heads", json!(4));
    spoiled(&["hidden_act \"relu6\""], "hidden_act", json!("relu6"));
    spoiled(
        &["num_hidden_layers is 4000000000, expected at most"],
        "num_hidden_layers",
        json!(4_000_000_000u32),
    );
    spoiled(&["quantization_config", "known: FP8"], "quantization_config", json!({"bits": 4}));
    spoiled(&["rope_type \"spiral\""], "rope_parameters", json!({"rope_type": "spiral", "rope_theta": 1e4}));
    spoiled(&["has no rope_parameters.factor"], "rope_parameters", json!({"rope_type": "linear"}));
    spoiled(&["partial_rotary_factor"], "partial_rotary_factor", json!(0.5));
    refused(42, &["tuned/config.json", "not valid JSON"], |pair| drop(pair.write("tuned/config.json", "{")));
}

#[test]
fn configs_of_other_families_that_cannot_be_meant() {
    let spoiled = |case: &str, parts: &[&str], field: &str, value: serde_json::Value| {
        let pair = Pair::copy(case);
        pair.write("in.jsonl", rows(2));
        pair.edit_json("base/config.json", |config| config[field] = value);
        let mut all = vec!["base/config.json"];
        all.extend(parts);
        run(&mut pair.score(&["in.jsonl"])).expect(42, &all);
    };
    spoiled("mistral", &["sliding_window is \"wide\""], "sliding_window", json!("wide"));
    spoiled("gemma2", &["layer_types", "list of 3"], "layer_types", json!(["full_attention"]));
    let chunked = json!(["chunked_attention", "full_attention", "full_attention"]);
    spoiled("gemma2", &["chunked_attention", "expected full_attention"], "layer_types", chunked);
    spoiled("gemma2", &["use_bidirectional_attention"], "use_bidirectional_attention", json!(true));
    let sliding = json!(vec!["sliding_attention"; 5]);
    spoiled("smollm3", &["layer_types[0]", "no sliding_window"], "layer_types", sliding);
    spoiled("smollm3", &["no_rope_layers", "list of 5"], "no_rope_layers", json!([1, 0]));
    spoiled("phi3_longrope", &["rope_scaling.short_factor", "3 positive numbers"], "rope_scaling", {
        json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 1.0, 1.0]})
    });
    spoiled("phi3_longrope", &["partial_rotary_factor is 0.01"], "partial_rotary_factor", json!(0.01));
    let nested = json!({"full_attention": {"rope_theta": 1e4, "rope_type": "default"}});
    spoiled("qwen3", &["rope_parameters.full_attention", "one rotary embedding"], "rope_parameters", nested);
}

#[test]
fn models_that_are_no_pair() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    let other = crate::common::golden("llama_mha_untied_f32").join("base");
    let mut command = tuco();
    command.current_dir(pair.dir.path()).args(["score", "--tuned", "tuned", "in.jsonl", "--base"]).arg(other);
    run(&mut command).expect(42, &["not a pair", "hidden_size is"]);
}

#[test]
fn vocabularies_that_differ() {
    let tokenizer = |tokens: &[&str], added: &[&str]| {
        let vocab: serde_json::Map<_, _> =
            tokens.iter().zip(0..).map(|(t, id)| (t.to_string(), json!(id))).collect();
        let added: Vec<_> = added.iter().zip(tokens.len()..).map(|(t, id)| json!({"id": id, "content": t, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})).collect();
        json!({"version": "1.0", "added_tokens": added, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}}).to_string()
    };
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    pair.write("base/tokenizer.json", tokenizer(&["a", "b", "c"], &["<x>"]));
    pair.write("tuned/tokenizer.json", tokenizer(&["a", "b", "c"], &["<y>", "<tail>"]));
    run(&mut pair.score(&["in.jsonl"]))
        .expect(0, &["differ in size", "added token 3 is \"<x>\" in base and \"<y>\" in tuned"]);
    pair.write("tuned/tokenizer.json", tokenizer(&["a", "b"], &["<x>", "<y>"]));
    run(&mut pair.score(&["in.jsonl"]))
        .expect(0, &["token 2 is \"c\" in base, and the added token \"<x>\" in tuned"]);
    pair.write("tuned/tokenizer.json", tokenizer(&["a", "c", "b"], &["<x>"]));
    run(&mut pair.score(&["in.jsonl"])).expect(42, &["different vocabularies", "id 1 is \"b\"", "\"c\""]);
    // Another tokenizer, which is told of unless nothing is to be told.
    pair.write("tuned/tokenizer.json", tokenizer(&["a", "b", "c"], &["<x>"]));
    fs::create_dir(pair.path("other")).unwrap();
    pair.write("other/tokenizer.json", tokenizer(&["a", "b", "c"], &["<x>", "<tail>"]));
    for more in [&["-o", "out.jsonl"][..], &["-o", "quiet.jsonl", "--quiet"]] {
        let ran = run(pair.score(&["in.jsonl", "--tokenizer", "other"]).args(more)).expect(0, &[]);
        let is_told = ran.stderr.contains("differ in size");
        assert_eq!(is_told, !more.contains(&"--quiet"), "{}", ran.stderr);
    }
    let compare = ["--base", "base", "--tuned", "tuned", "in.jsonl", "--tokenizer", "other", "-o", "compare"];
    let ran = run(pair.run("compare", &compare).arg("--quiet")).expect(0, &[]);
    assert!(!ran.stderr.contains("differ in size"), "{}", ran.stderr);
}

#[test]
fn what_makes_the_two_models_less_comparable_is_told() {
    let pair = Pair::copy(CASE);
    pair.write("in.jsonl", rows(2));
    pair.write("base/tokenizer.json", "{}");
    pair.edit_json("base/config.json", |config| config["max_position_embeddings"] = json!(16));
    run(&mut pair.score(&["in.jsonl"])).expect(
        0,
        &[
            "whether both models have the same vocabulary is not known: tuned has no",
            "the base takes 16 tokens, the tuned model",
        ],
    );
    let pair = Pair::copy("sharded");
    pair.write("in.jsonl", rows(2));
    let told = "weights are float32 in base and bfloat16 in tuned";
    run(&mut pair.score(&["in.jsonl"])).expect(0, &[told]);
    let rounded = run(&mut pair.score(&["in.jsonl", "--dtype", "bfloat16"])).expect(0, &[]);
    assert!(!rounded.stderr.contains("weights are"), "{}", rounded.stderr);
}

#[test]
fn experts_that_are_missing_or_too_many() {
    let spoiled = |parts: &[&str], spoil: &dyn Fn(&Pair)| {
        let pair = Pair::copy("mixtral");
        pair.write("in.jsonl", rows(2));
        spoil(&pair);
        run(&mut pair.score(&["in.jsonl"])).expect(42, parts);
    };
    let expert = "model.layers.1.block_sparse_moe.experts.4.w2.weight";
    spoiled(&["tuned", expert, "is missing"], &|pair| {
        pair.edit_header(WEIGHTS, |header| {
            let entry = header.remove(expert).unwrap();
            header.insert("model.layers.1.self_attn.rotary_emb.inv_freq".into(), entry);
        });
    });
    spoiled(&["block_sparse_moe.gate.weight has shape [5, 24], config.json demands [4, 24]"], &|pair| {
        pair.edit_json("tuned/config.json", |config| config["num_local_experts"] = json!(4));
    });
    spoiled(&["num_experts_per_tok is 9", "num_local_experts is 5"], &|pair| {
        pair.edit_json("tuned/config.json", |config| config["num_experts_per_tok"] = json!(9));
    });
}

#[test]
fn names_without_the_first_part_mean_the_same() {
    let pair = Pair::copy("gpt2");
    pair.write("in.jsonl", rows(3));
    let expected = run(&mut pair.score(&["in.jsonl"])).expect(0, &[]).stdout;
    pair.edit_header(WEIGHTS, |header| {
        let entries = std::mem::take(header).into_iter();
        header.extend(
            entries.map(|(name, entry)| (name.trim_start_matches("transformer.").to_string(), entry)),
        );
    });
    assert_eq!(run(&mut pair.score(&["in.jsonl"])).expect(0, &[]).stdout, expected);
    pair.edit_json("tuned/config.json", |config| config["scale_attn_by_inverse_layer_idx"] = json!(true));
    run(&mut pair.score(&["in.jsonl"])).expect(42, &["scale_attn_by_inverse_layer_idx is true"]);
}
