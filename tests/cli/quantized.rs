//! Quantized checkpoints on the command line: where GGUF files may stand, and everything that can be wrong with them.

use crate::common::{Pair, agrees, find, golden, place_of, rows, run};
use serde_json::{Value, json};
use std::fs;

const GGUF: &str = "base/model.gguf";
const FP8: &str = "tuned/model.safetensors";
const PACKED: &str = "base/model.safetensors";

fn score(pair: &Pair, args: &[&str]) -> crate::common::Ran {
    run(pair.run("score", args).args(["in.jsonl", "--threads", "2"]))
}

#[test]
fn a_gguf_file_stands_where_a_directory_does() {
    let pair = Pair::copy("gguf_q8_0");
    pair.write("in.jsonl", rows(4));
    let by_directory = score(&pair, &["--base", "base", "--tuned", "tuned"]).expect(0, &[]).stdout;
    let by_file = score(&pair, &["--base", GGUF, "--tuned", "tuned"]).expect(0, &[]).stdout;
    assert_eq!(by_file, by_directory);
    for row in score(&pair, &["--base", GGUF, "--tuned", GGUF]).expect(0, &[]).rows() {
        assert_eq!((row["tuco"].as_f64(), row["ftc_l1"].as_f64()), (Some(0.0), Some(0.0)));
    }
    let report = run(&mut pair.run("inspect", &["--base", GGUF, "--tuned", "tuned"])).expect(0, &[]).stdout;
    assert!(report.contains("| dtype | Q8_0 | bfloat16 |"), "{report}");
    score(&pair, &["--base", GGUF, "--tuned", "tuned", "-o", "out.jsonl"]).expect(0, &[]);
    let manifest: Value =
        serde_json::from_slice(&fs::read(pair.path("out.jsonl.manifest.json")).unwrap()).unwrap();
    assert!(manifest.to_string().contains("\"base\":{\"model.gguf\":"), "{manifest}");
}

#[test]
fn an_adapter_on_a_gguf_base_agrees_with_peft() {
    agrees("gguf_k", &["--adapter", "adapter"]);
}

/// Breaks the base of a pair and scores.
#[track_caller]
fn refused(case: &str, code: i32, parts: &[&str], spoil: impl FnOnce(&Pair)) {
    let pair = Pair::copy(case);
    pair.write("in.jsonl", rows(2));
    spoil(&pair);
    score(&pair, &["--base", "base", "--tuned", "tuned", "-o", "out.jsonl"]).expect(code, parts);
    assert!(!pair.path("out.jsonl").exists(), "an output was begun");
}

#[track_caller]
fn refused_gguf(parts: &[&str], edit: impl FnOnce(&mut Vec<u8>)) {
    let mut all = vec![GGUF];
    all.extend(parts);
    refused("gguf_q4_0", 42, &all, |pair| pair.edit_bytes(GGUF, edit));
}

#[test]
fn gguf_files_that_are_none_or_not_whole() {
    refused_gguf(&["is not a GGUF file"], |bytes| bytes[0] = b'X');
    refused_gguf(&["cut off"], |bytes| bytes.truncate(bytes.len() - 100));
    refused_gguf(&["cut off in its tables"], |bytes| bytes.truncate(60));
    refused_gguf(&["version 9, expected 2 or 3"], |bytes| bytes[4] = 9);
    refused_gguf(&["big-endian"], |bytes| bytes[4..8].copy_from_slice(&3u32.to_be_bytes()));
    refused_gguf(&["a length of", "bytes are left"], |bytes| bytes[24..32].fill(0xff));
    refused_gguf(&["a list of 4194305, expected at most 4194304"], |bytes| {
        // Version 3, no tensors, one field: "x", a list of so many bytes.
        let numbers = [0u64, 1, 1].into_iter().flat_map(u64::to_le_bytes);
        *bytes = [&b"GGUF"[..], &3u32.to_le_bytes()].concat().into_iter().chain(numbers).collect();
        bytes.push(b'x');
        [9u32, 0].into_iter().for_each(|kind| bytes.extend(kind.to_le_bytes()));
        bytes.extend(4_194_305u64.to_le_bytes());
        bytes.resize(bytes.len() + 4_194_305, 0);
    });
    refused("gguf_q4_0", 2, &["base has 2 GGUF files", "base/model.gguf"], |pair| {
        fs::copy(pair.path(GGUF), pair.path("base/other.gguf")).unwrap();
    });
}

#[test]
fn gguf_files_of_other_models() {
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            assert_eq!(from.len(), to.len());
            let at = find(bytes, from.as_bytes());
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    // The first "llama" is the value of general.architecture.
    refused_gguf(&["architecture \"mamba\"", "known: llama, qwen2"], replaced("llama", "mamba"));
    refused_gguf(&["has no num_hidden_layers"], replaced("llama.block_count", "llama.block_cound"));
    refused_gguf(&["shape [96, 64], its metadata demand [128, 64]"], |bytes| {
        let at = find(bytes, b"llama.feed_forward_length") + "llama.feed_forward_length".len() + 4;
        bytes[at..at + 4].copy_from_slice(&128u32.to_le_bytes());
    });
    refused_gguf(
        &["model.layers.1.mlp.up_proj.weight is missing"],
        replaced("blk.1.ffn_up.weight", "blk.9.ffn_up.weight"),
    );
    refused_gguf(
        &["output_nerm.weight is not part of a llama model"],
        replaced("output_norm.weight", "output_nerm.weight"),
    );
    refused_gguf(&["k_proj.weight is IQ4_NL, expected F32"], |bytes| {
        // The tensor's name is followed by its two dimensions and its type.
        let name = b"blk.0.attn_k.weight";
        let at = find(bytes, name) + name.len() + 4 + 16;
        bytes[at..at + 4].copy_from_slice(&20u32.to_le_bytes());
    });
    refused_gguf(&["ffn_down.weight", "no whole Q6_K blocks"], |bytes| {
        let name = b"blk.0.ffn_down.weight";
        let at = find(bytes, name) + name.len() + 4 + 16;
        bytes[at..at + 4].copy_from_slice(&14u32.to_le_bytes());
    });
    refused_gguf(&["1.mlp.down_proj.weight has a NaN or infinite element at row 63, column 64"], |bytes| {
        // A tensor's name, dimensions and type are followed by its offset from where the tensors begin; the last of them
        // are 64 elements of F32. The rows of this one are three blocks of 18 bytes.
        let offset = |name: &[u8], dimensions: usize| {
            let at = find(bytes, name) + name.len() + 4 + 8 * dimensions + 4;
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
        };
        let start = bytes.len() - (offset(b"output_norm.weight", 1) + 256);
        let block = start + offset(b"blk.1.ffn_down.weight", 2) + 64 * 54 - 18;
        bytes[block..block + 2].copy_from_slice(&[0, 0x7c]);
    });
}

#[test]
fn fp8_weights_need_their_factors() {
    let header = |parts: &[&str], edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        refused("fp8_row", 42, parts, |pair| pair.edit_header(FP8, edit));
    };
    const WEIGHT: &str = "model.layers.0.self_attn.q_proj.weight";
    header(&[FP8, WEIGHT, "F8_E4M3 without factors", "q_proj.weight_scale"], &|header| {
        let scale = header.remove(&format!("{WEIGHT}_scale")).unwrap();
        header.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), scale);
    });
    header(&[WEIGHT, "has shape [1, 24], expected [] or [24, 1]"], &|header| {
        header[&format!("{WEIGHT}_scale")]["shape"] = json!([1, 24]);
    });
    refused("fp8_blocks", 42, &["_scale_inv has shape [5, 3], expected [1, 1]"], |pair| {
        pair.edit_json("tuned/config.json", |config| {
            config["quantization_config"]["weight_block_size"] = json!([128, 128]);
        });
    });
    refused("fp8_row", 42, &[FP8, "is F8_E4M3, expected F32, F16 or BF16, or FP8 with"], |pair| {
        pair.edit_json("tuned/config.json", |config| config["quantization_config"] = Value::Null);
    });
    refused("fp8_tensor", 42, &[FP8, "NaN or infinite element"], |pair| {
        pair.edit_bytes(FP8, |bytes| {
            let place = place_of("model.layers.1.mlp.down_proj.weight", "F8_E4M3", bytes);
            bytes[place.start] = 0xff;
        });
    });
}

#[test]
fn packed_experts_need_their_factors_and_each_expert() {
    const BLOCKS: &str = "model.layers.1.mlp.experts.down_proj_blocks";
    const SCALES: &str = "model.layers.1.mlp.experts.down_proj_scales";
    let header = |case: &str, parts: &[&str], edit: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        refused(case, 42, parts, |pair| pair.edit_header(PACKED, edit));
    };
    let renamed = |from: &'static str, to: &'static str| {
        move |header: &mut serde_json::Map<String, Value>| {
            let tensor = header.remove(from).unwrap();
            header.insert(to.into(), tensor);
        }
    };
    const CASE: &str = "mxfp4";
    header(CASE, &[PACKED, BLOCKS, "but there is no", SCALES], &renamed(SCALES, "model.layers.1.x.inv_freq"));
    header(CASE, &[PACKED, SCALES, "but there is no", BLOCKS], &renamed(BLOCKS, "model.layers.1.x.inv_freq"));
    header(CASE, &[BLOCKS, "of type I8, expected U8"], &|header| header[BLOCKS]["dtype"] = json!("I8"));
    header(CASE, &[BLOCKS, "of shape [4, 128, 8], expected [4, 64, 1, 16], as that of", SCALES], &|header| {
        header[BLOCKS]["shape"] = json!([4, 128, 8]);
    });
    header(CASE, &[SCALES, "of shape [2, 128, 1], expected [4, 128, 1]"], &|header| {
        header[SCALES]["shape"] = json!([2, 128, 1]);
    });
    header(CASE, &[SCALES, "of shape [256], expected [4, rows, columns / 32]"], &|header| {
        header[SCALES]["shape"] = json!([256]);
    });
    header(
        CASE,
        &["1.mlp.experts.down_proj of expert 0 has shape [32, 64], config.json demands [64, 32]"],
        &|header| {
            header[SCALES]["shape"] = json!([4, 32, 2]);
            header[BLOCKS]["shape"] = json!([4, 32, 2, 16]);
        },
    );
    refused(
        CASE,
        42,
        &["1.mlp.experts.down_proj of expert 0 has a NaN or infinite element at row 0, column 0"],
        |pair| {
            pair.edit_bytes(PACKED, |bytes| {
                let place = place_of(SCALES, "U8", bytes);
                bytes[place.start] = 255;
            });
        },
    );
    header(
        CASE,
        &["has tensor model.layers.1.mlp.experts.0.down_proj, but gpt_oss has all experts of a layer in one"],
        &renamed("model.layers.1.mlp.experts.down_proj_bias", "model.layers.1.mlp.experts.0.down_proj"),
    );
    header(
        CASE,
        &["1.mlp.experts.down_proj and model.layers.1.mlp.experts.down_proj_blocks, expected one of them"],
        &renamed("model.layers.0.mlp.experts.down_proj_bias", "model.layers.1.mlp.experts.down_proj"),
    );
    const WHOLE: &str = "model.layers.0.mlp.experts.gate_up_proj_bias";
    header("gpt_oss", &[WHOLE, "of shape [42, 5], expected [5, …]"], &|header| {
        header[WHOLE]["shape"] = json!([42, 5]);
    });
}

#[test]
fn quantization_of_unknown_kinds() {
    let spoiled = |case: &str, parts: &[&str], config: Value| {
        let mut all = vec!["base/config.json", "known:"];
        all.extend(parts);
        refused(case, 42, &all, |pair| {
            pair.edit_json("base/config.json", |json| json["quantization_config"] = config);
        });
    };
    const PLAIN: &str = "llama_gqa_tied_bf16";
    spoiled(PLAIN, &["quant_method \"gptq\""], json!({"quant_method": "gptq", "bits": 4}));
    spoiled(
        PLAIN,
        &["quant_method \"bitsandbytes\""],
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
    );
    spoiled(PLAIN, &["no quant_method"], json!({"bits": 4}));
    spoiled(PLAIN, &["fmt \"e5m2\""], json!({"quant_method": "fp8", "fmt": "e5m2"}));
    let packed = json!({"quant_method": "compressed-tensors", "format": "pack-quantized"});
    spoiled("fp8_compressed", &["pack-quantized"], packed);
    let int8 = json!({"g": {"weights": {"type": "int", "num_bits": 8, "strategy": "channel"}}});
    let config =
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": int8});
    spoiled("fp8_compressed", &["weights of g"], config);
}

/// A pair of GGUF files without a tokenizer, and a directory with one.
#[test]
fn text_for_a_gguf_file_needs_its_tokenizer_or_another() {
    let pair = Pair::copy("gguf_q4_0");
    pair.write("in.jsonl", "{\"prompt\": \"a b\"}\n");
    let sides = ["--base", GGUF, "--tuned", "tuned/model.gguf"];
    let ran = score(&pair, &sides).expect(3, &["has no tokenizer", "--tokenizer DIR"]);
    assert_eq!(ran.rows()[0]["error"]["type"], "no_tokenizer");
    fs::create_dir(pair.path("words")).unwrap();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"a": 5, "b": 6}, "unk_token": "a"}});
    pair.write("words/tokenizer.json", tokenizer.to_string());
    let text = score(&pair, &[&sides[..], &["--tokenizer", "words"]].concat()).expect(0, &[]).rows();
    pair.write("in.jsonl", "{\"token_ids\": [5, 6]}\n");
    assert_eq!(text[0]["tuco"], score(&pair, &sides).expect(0, &[]).rows()[0]["tuco"]);
    score(&pair, &[&sides[..], &["--tokenizer", "nowhere/at/all"]].concat())
        .expect(2, &["--tokenizer nowhere/at/all"]);
}

/// What a GGUF file says of tokens is compared as what a `tokenizer.json` says.
#[test]
fn vocabularies_of_gguf_files_are_compared() {
    use tuco::{checkpoint::compare_vocabularies, twin::Twin};
    let templates = golden("templates");
    let names = Twin::new("base", "tuned");
    let (gpt2, qwen2) = (templates.join("gguf/gpt-2.gguf"), templates.join("gguf/qwen2.gguf"));
    assert_eq!(
        compare_vocabularies(&Twin::new(&gpt2, &qwen2).map(|path| path.as_path()), &names).unwrap(),
        [""; 0]
    );
    // The directory's tokenizer has the same tokens, but for those that were added for the rules.
    let notices = compare_vocabularies(&Twin::new(gpt2.as_path(), templates.as_path()), &names).unwrap();
    assert_eq!(notices, ["the tokenizers differ in size: base 327 tokens, tuned 320"]);
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(templates.join("tokenizer.json")).unwrap();
    let other = text.replacen("\"Ġthe\":", "\"Ġteh\":", 1);
    assert!(text != other);
    fs::write(dir.path().join("tokenizer.json"), other).unwrap();
    let error = compare_vocabularies(&Twin::new(gpt2.as_path(), dir.path()), &names).unwrap_err();
    assert!(error.message.contains("is \"Ġthe\" in") && error.message.contains("gpt-2.gguf"), "{error}");
}
