//! Adapters on the command line: what they are put on, and everything that can be wrong with them.

use crate::common::{Pair, agrees, copy_folder, golden, rows, run};
use serde_json::{Value, json};
use std::fs;

const CONFIG: &str = "adapter/adapter_config.json";
const WEIGHTS: &str = "adapter/adapter_model.safetensors";

#[test]
fn an_adapter_is_put_on_the_base_or_on_the_tuned_model() {
    agrees("lora", &["--base", "base", "--adapter", "adapter"]);
    agrees("lora", &["--base", "base", "--tuned", "base", "--adapter", "adapter"]);
    agrees("lora", &["--adapter", "adapter"]); // its config names ./base
    agrees("lora_on_tuned", &["--base", "base", "--tuned", "tuned", "--adapter", "adapter"]);
    let both = ["--base", "base", "--base-adapter", "base_adapter", "--adapter", "adapter"];
    agrees("lora_both_sides", &both);
}

#[test]
fn the_same_adapter_on_both_sides_gives_exactly_zero() {
    let pair = Pair::copy("lora");
    pair.write("in.jsonl", rows(5));
    let sides = ["--base", "base", "--base-adapter", "adapter", "--adapter", "adapter", "in.jsonl"];
    for row in run(&mut pair.run("score", &sides)).expect(0, &[]).rows() {
        assert_eq!((row["tuco"].as_f64(), row["ftc_l1"].as_f64()), (Some(0.0), Some(0.0)));
    }
}

#[test]
fn merging_rounds_and_is_another_run() {
    let pair = Pair::copy("lora_light");
    pair.write("in.jsonl", rows(4));
    let score = |args: &[&str]| run(pair.run("score", &["--adapter", "adapter", "in.jsonl"]).args(args));
    let unmerged = score(&[]).expect(0, &[]).rows();
    let merged = score(&["--merge-adapter"]).expect(0, &[]).rows();
    for (unmerged, merged) in unmerged.iter().zip(&merged) {
        let [unmerged, merged] = [unmerged, merged].map(|row| row["ftc_l1"].as_f64().unwrap());
        assert!((merged / unmerged - 1.0).abs() > 1e-3, "{merged} {unmerged}");
    }
    score(&["-o", "out.jsonl"]).expect(0, &[]);
    score(&["-o", "out.jsonl", "--merge-adapter"]).expect(42, &["merge_adapter was false and is now true"]);
}

#[test]
fn an_adapter_is_reported() {
    let pair = Pair::copy("lora_light");
    let ran = run(&mut pair.run("inspect", &["--adapter", "adapter"])).expect(0, &[]);
    assert!(ran.stdout.contains("| adapter | none | adapter |"), "{}", ran.stdout);
    assert!(ran.stdout.contains("| self_attn.k_proj.weight | 3 of 3 | 0.00e0 |"), "{}", ran.stdout);
}

/// Adapters of old versions have matrices for each expert; those of new ones have them for all.
#[test]
fn experts_are_adapted_together_or_each() {
    let pair = Pair::copy("lora_experts_down");
    pair.write("in.jsonl", rows(5));
    let tucos = || {
        let ran = run(&mut pair.run("score", &["--adapter", "adapter", "in.jsonl"])).expect(0, &[]);
        ran.rows().iter().map(|row| row["tuco"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let together = tucos();
    let bytes = fs::read(pair.path(WEIGHTS)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut made: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in tensors.iter() {
        let Some((module, part)) = name.split_once(".experts.") else {
            made.push((name.to_owned(), tensor.shape().to_vec(), tensor.data().to_vec()));
            continue;
        };
        let [rows, cols] = *tensor.shape() else { panic!("{name}") };
        let element = |row: usize, col: usize| &tensor.data()[4 * (row * cols + col)..][..4];
        // Rank 2 of 6 experts.
        for expert in 0..6 {
            let part_name = format!("{module}.experts.{expert}.down_proj.{part}");
            let indices: Vec<(usize, usize)> = match part {
                "lora_A.weight" => {
                    (0..2).flat_map(|k| (0..cols).map(move |col| (2 * expert + k, col))).collect()
                }
                _ => (0..rows).flat_map(|row| (0..2).map(move |k| (row, 6 * k + expert))).collect(),
            };
            let shape = if part == "lora_A.weight" { vec![2, cols] } else { vec![rows, 2] };
            let data = indices.into_iter().flat_map(|(row, col)| element(row, col)).copied().collect();
            made.push((part_name, shape, data));
        }
    }
    let views = made.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    pair.write(WEIGHTS, safetensors::serialize(views, None).unwrap());
    assert_eq!(tucos(), together);
}

/// Breaks a copy of a case and scores with its adapter.
#[track_caller]
fn refused(code: i32, parts: &[&str], spoil: impl FnOnce(&Pair)) {
    let pair = Pair::copy("lora");
    pair.write("in.jsonl", rows(2));
    spoil(&pair);
    let args = ["--base", "base", "--adapter", "adapter", "in.jsonl", "-o", "out.jsonl"];
    run(&mut pair.run("score", &args)).expect(code, parts);
    assert!(!pair.path("out.jsonl").exists(), "an output was begun");
}

#[test]
fn directories_that_are_no_adapters() {
    refused(2, &["no PEFT adapter", "adapter_config.json"], |pair| {
        fs::remove_file(pair.path(CONFIG)).unwrap()
    });
    refused(2, &["neither adapter_model.safetensors nor adapter_model.bin"], |pair| {
        fs::remove_file(pair.path(WEIGHTS)).unwrap()
    });
    refused(42, &["adapter_model.bin", "not a valid zip file"], |pair| {
        fs::rename(pair.path(WEIGHTS), pair.path("adapter/adapter_model.bin")).unwrap();
    });
    let pair = Pair::copy("lora");
    let swapped = ["--base", "base", "--tuned", "adapter", "in.jsonl"];
    run(&mut pair.run("score", &swapped)).expect(2, &["adapter is a PEFT adapter", "--adapter"]);
    run(&mut pair.run("score", &["in.jsonl"])).expect(2, &["--base", "--tuned"]);
    let twice = ["--base", "base", "--base", "base", "--adapter", "adapter", "in.jsonl"];
    run(&mut pair.run("score", &twice)).expect(2, &["--base", "cannot be used multiple times"]);
}

/// Some trainers leave the model's config.json beside an adapter.
#[test]
fn an_adapter_beside_a_config_is_no_model() {
    let pair = Pair::copy("lora");
    fs::copy(pair.path("base/config.json"), pair.path("adapter/config.json")).unwrap();
    let swapped = ["--base", "base", "--tuned", "adapter", "in.jsonl"];
    run(&mut pair.run("score", &swapped)).expect(2, &["adapter is a PEFT adapter", "--adapter"]);
}

#[test]
fn an_adapter_of_another_model_is_told() {
    let pair = Pair::copy("lora");
    pair.write("in.jsonl", rows(2));
    let trained_on = |name: &str| {
        pair.edit_json(CONFIG, |config| config["base_model_name_or_path"] = json!(name));
        let ran = run(&mut pair.run("score", &["--base", "base", "--adapter", "adapter", "in.jsonl"]));
        ran.expect(0, &[]).stderr.contains("the adapter adapter was trained on")
    };
    assert!(!trained_on("somewhere/else/Base/"));
    assert!(trained_on("org/base-Instruct"));
    // Of an adapter that does not say, nothing is known.
    assert!(!trained_on(""));
}

/// A cache with two revisions of a model, and an adapter that was trained on one of them.
#[test]
fn the_revision_that_an_adapter_was_trained_on_is_taken() {
    let pair = Pair::copy("lora");
    pair.write("in.jsonl", rows(2));
    let snapshot = |revision: &str| format!("cache/models--org--base/snapshots/{revision}");
    for revision in ["main", "step3"] {
        copy_folder(&pair.path("base"), &pair.path(&snapshot(revision)));
    }
    pair.edit_json(&format!("{}/config.json", snapshot("step3")), |config| {
        config["rms_norm_eps"] = json!(0.5);
    });
    pair.edit_json(CONFIG, |config| {
        config["base_model_name_or_path"] = json!("org/base");
        config["revision"] = json!("step3");
    });
    let score = |args: &[&str]| {
        let mut command = pair.run("score", &["--adapter", "adapter", "in.jsonl"]);
        let ran = run(command.args(args).env("HF_HUB_CACHE", pair.path("cache"))).expect(0, &[]);
        ran.rows()[0]["tuco"].as_f64().unwrap()
    };
    let [step3, main] =
        ["step3", "main"].map(|revision| score(&["--base", "org/base", "--base-revision", revision]));
    assert_ne!(step3, main);
    assert_eq!(score(&[]), step3);
    assert_eq!(score(&["--base-revision", "main"]), main);
}

#[test]
fn revisions_of_what_is_not_given_are_refused() {
    let pair = Pair::copy("lora");
    let refused = |args: &[&str], part: &str| {
        let mut command = pair.run("score", &["--adapter", "adapter", "in.jsonl"]);
        run(command.args(args)).expect(2, &[part]);
    };
    refused(&["--tuned-revision", "main"], "--tuned-revision is given, but no --tuned");
    refused(&["--base-adapter-revision", "main"], "--base-adapter-revision is given, but no --base-adapter");
    refused(&["--base-revision", "main"], "--base-revision is given, but ./base");
}

/// Trained on the text part alone, an adapter has the names of that.
#[test]
fn an_adapter_of_the_text_part_alone_is_put_on_a_model_of_text_and_images() {
    let pair = Pair::copy("gemma3_with_images");
    pair.write("in.jsonl", rows(3));
    let scores = || {
        let ran = run(&mut pair.run("score", &["--base", "base", "--adapter", "adapter", "in.jsonl"]));
        ran.expect(0, &[]).rows()
    };
    let whole = scores();
    pair.edit_header(WEIGHTS, |header| {
        let names: Vec<String> =
            header.keys().filter(|name| name.contains(".language_model.")).cloned().collect();
        assert!(!names.is_empty());
        for name in names {
            let tensor = header.remove(&name).unwrap();
            header.insert(name.replace(".language_model.", "."), tensor);
        }
    });
    pair.edit_json("adapter/adapter_config.json", |config| {
        *config = config.to_string().replace(".language_model.", ".").parse().unwrap();
    });
    assert_eq!(scores(), whole);
}

#[test]
fn configs_that_cannot_be_read() {
    let spoiled = |parts: &[&str], field: &'static str, value: Value| {
        let mut all = vec![CONFIG];
        all.extend(parts);
        refused(42, &all, |pair| pair.edit_json(CONFIG, |config| config[field] = value));
    };
    spoiled(&["peft_type IA3", "known: LORA"], "peft_type", json!("IA3"));
    spoiled(&["r 0", "positive number"], "r", json!(0));
    spoiled(&["lora_alpha \"big\""], "lora_alpha", json!("big"));
    spoiled(&["lora_bias"], "lora_bias", json!(true));
    spoiled(&["trainable_token_indices"], "trainable_token_indices", json!([1, 2]));
    spoiled(&["layer_replication"], "layer_replication", json!([[0, 1], [0, 2]]));
    spoiled(&["init_lora_weights \"pissa\""], "init_lora_weights", json!("pissa"));
    spoiled(&["init_lora_weights \"lora_ga\""], "init_lora_weights", json!("lora_ga"));
    spoiled(&["alpha_pattern"], "alpha_pattern", json!({"(q": 3}));
    refused(42, &["rank 3", "says 5"], |pair| pair.edit_json(CONFIG, |config| config["r"] = json!(5)));
    refused(42, &["use_dora", "lora_magnitude_vector"], |pair| {
        pair.edit_json(CONFIG, |config| config["use_dora"] = json!(true));
    });
    let pair = Pair::copy("lora");
    pair.edit_json(CONFIG, |config| config["base_model_name_or_path"] = json!("org/absent"));
    let nameless = run(&mut pair.run("score", &["--adapter", "adapter", "in.jsonl"]));
    nameless.expect(2, &["base_model_name_or_path", "org/absent", "hf download org/absent"]);
}

#[test]
fn weights_that_do_not_fit() {
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let renamed = |parts: &[&str], from: &str, to: &str| {
        refused(42, parts, |pair| {
            pair.edit_header(WEIGHTS, |header| {
                let entry = header.remove(from).unwrap();
                header.insert(to.into(), entry);
            });
        });
    };
    renamed(
        &[WEIGHTS, "q_proj.lora_B.weight of shape nothing", "another model"],
        B,
        "base_model.model.x.lora_B.weight",
    );
    renamed(
        &["adapts model.layers.0.attn.q, which the model does not have"],
        A,
        "base_model.model.model.layers.0.attn.q.lora_A.weight",
    );
    renamed(
        &["whose name does not begin with base_model.model."],
        A,
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    );
    let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
    renamed(&["embed_tokens.lora_embedding_B of shape nothing, expected [3, 83] and [48, 3]"], A, embedding);
    renamed(&["a.lora_C.weight, a part of LoRA that is not known"], B, "base_model.model.a.lora_C.weight");
    renamed(
        &["adapts model.layers.0.mlp.experts, but the model has no experts there"],
        A,
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight",
    );
    refused(42, &["it was trained on another model"], |pair| {
        for name in ["config.json", "model.safetensors"] {
            let other = golden("llama_head_dim").join("base").join(name);
            fs::copy(other, pair.path(&format!("base/{name}"))).unwrap();
        }
    });
    refused(42, &[WEIGHTS, "NaN or infinite"], |pair| {
        let mut bytes = fs::read(pair.path(WEIGHTS)).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        pair.write(WEIGHTS, bytes);
    });
}

/// The golden case has more tokens than its base; of other modules there is no more to save.
#[test]
fn saved_modules_are_as_large_as_the_model_s() {
    let pair = Pair::copy("lora_extra_tokens");
    pair.write("in.jsonl", "{\"token_ids\": [1, 69]}\n");
    let score = ["--base", "base", "--adapter", "adapter", "in.jsonl"];
    run(&mut pair.run("score", &score)).expect(0, &["vocab_size differs: base 67, tuned 70"]);
    pair.write("in.jsonl", "{\"token_ids\": [1, 70]}\n");
    run(&mut pair.run("score", &score)).expect(3, &["has 70 (0 to 69)"]);
    pair.edit_header(WEIGHTS, |header| {
        let entry = header.remove("base_model.model.lm_head.weight").unwrap();
        header.insert("base_model.model.model.norm.weight".into(), entry);
    });
    run(&mut pair.run("score", &score))
        .expect(42, &[WEIGHTS, "replaces model.norm.weight by one of shape [70, 32], the model's has [32]"]);
}
