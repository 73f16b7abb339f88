//! Several devices that share the batches.

use crate::common::{Pair, rows, run};
use std::process::Command;

/// A pair with rows, errors among them.
fn prepared(count: usize) -> Pair {
    let pair = Pair::copy("llama_gqa_tied_bf16");
    pair.write("in.jsonl", format!("{{broken\n{}{{\"token_ids\": [], \"label\": 0}}\n", rows(count)));
    pair
}

fn command(pair: &Pair, subcommand: &str, device: &str, more: &[&str]) -> Command {
    let mut command = pair.run(subcommand, &["--base", "base", "--tuned", "tuned", "in.jsonl"]);
    command.args(["--threads", "2", "--fail-on-error", "2", "--device", device]).args(more);
    command
}

#[test]
fn devices_that_cannot_be_meant_are_refused() {
    let pair = prepared(2);
    let refused = |subcommand: &str, device: &str, parts: &[&str]| {
        run(&mut command(&pair, subcommand, device, &["-o", "out"])).expect(2, parts);
    };
    refused("score", "cuda:1,1", &["device 1 is named twice"]);
    for device in ["cuda:", "cuda:0,", "cpu:0", "cuda:0,cuda:1"] {
        refused("score", device, &["--device", "expected auto, cpu, cuda, cuda:N, cuda:N,M,… or reference"]);
    }
    refused("trace", "sim:0,1", &["--device sim:0,1: expected one device"]);
    if cfg!(not(feature = "cuda")) {
        refused("score", "cuda:0,1", &["--device cuda: this program was built without it"]);
    }
}

#[cfg(feature = "sim")]
mod simulated {
    use super::{command, prepared};
    use crate::{
        common::{Pair, Ran, rows, run, stop_when},
        scene::Scene,
    };
    use serde_json::Value;
    use std::{fs, path::Path, process::Command};

    #[test]
    fn rows_are_those_of_one_device_in_the_same_order() {
        let pair = prepared(8);
        for subcommand in ["score", "generate"] {
            let more =
                if subcommand == "score" { ["--output-co", "--layers"] } else { ["--max-new-tokens", "2"] };
            let ran = |device: &str, batch: &str| -> Ran {
                let mut command = command(&pair, subcommand, device, &more);
                run(command.args(["--batch-size", batch])).expect(0, &["10 prompts"])
            };
            let one = ran("sim", "auto");
            assert_eq!(one.rows().len(), 10);
            for (device, batch) in [("sim:0,1", "1"), ("sim:1,0,2", "3"), ("sim:0,1", "auto")] {
                assert_eq!(ran(device, batch).stdout, one.stdout, "{subcommand} {device} {batch}");
            }
        }
    }

    /// What an experiment found with batches of one prompt, without the command.
    fn found(experiment: &mut Command, device: &str, folder: &Path) -> (String, Value) {
        let machine = ["--device", device, "--batch-size", "1", "--overwrite", "-o"];
        run(experiment.args(machine).arg(folder)).expect(0, &[]);
        let mut summary: Value =
            serde_json::from_slice(&fs::read(folder.join("summary.json")).unwrap()).unwrap();
        summary["command"].take();
        (fs::read_to_string(folder.join("rows.jsonl")).unwrap(), summary)
    }

    #[test]
    fn experiments_are_those_of_one_device() {
        let pair = prepared(0);
        pair.write("in.jsonl", rows(6));
        let compare = |device: &str| {
            let mut command = pair.run("compare", &["--base", "base", "--tuned", "tuned", "in.jsonl"]);
            found(&mut command, device, &pair.path("out"))
        };
        assert_eq!(compare("sim:0,1"), compare("sim"));

        let question =
            |label| format!(r#"{{"prompt": "Is it?", "choices": ["Yes", "No"], "label": "{label}"}}"#);
        let questions = ["Yes", "No", "Yes"].map(question).join("\n");
        let scene = Scene::new(&[("a.jsonl", &questions)]);
        let sweep = |device: &str| {
            let mut command = scene.with_pair(&["sweep", "a.jsonl", "--alphas", "1", "--folds", "2"]);
            found(&mut command, device, &scene.dir.path().join("out"))
        };
        assert_eq!(sweep("sim:0,1"), sweep("sim"));
    }

    #[cfg(unix)]
    #[test]
    fn a_stopped_run_goes_on_with_more_devices() {
        let pair = prepared(24);
        let whole = run(&mut command(&pair, "score", "sim", &[])).expect(0, &[]).stdout;
        let args = ["-o", "out.jsonl", "--batch-size", "1"];
        let output = pair.path("out.jsonl");
        stop_when(&mut command(&pair, "score", "sim:0,1", &args), &output, |length| length > 0)
            .expect(75, &[]);
        let written = fs::read_to_string(&output).unwrap();
        assert!(whole.starts_with(&written) && written.len() < whole.len());
        run(&mut command(&pair, "score", "sim:2,1,0", &args)).expect(0, &["were there already"]);
        assert_eq!(fs::read_to_string(&output).unwrap(), whole);
    }

    /// Eight prompts of 6 tokens, but the sixth of 118.
    fn one_long_prompt() -> Pair {
        let pair = prepared(0);
        let row = |id: u32| {
            let ids: Vec<u32> = (0..if id == 5 { 118 } else { 6 }).map(|i| (7 * id + i) % 90 + 1).collect();
            format!("{{\"id\": {id}, \"token_ids\": {ids:?}}}\n")
        };
        pair.write("in.jsonl", (0..8).map(row).collect::<String>());
        pair
    }

    fn with_memory(pair: &Pair, bytes: &str, more: &[&str]) -> Ran {
        run(command(pair, "score", "sim", more).env("TUCO_SIM_MEMORY", bytes))
    }

    #[test]
    fn a_batch_that_does_not_fit_goes_on_in_parts() {
        let pair = one_long_prompt();
        let whole =
            with_memory(&pair, "10000000", &[]).expect(0, &["tuco: device: simulator", "weights resident"]);
        assert!(!whole.stderr.contains("going on"), "{}", whole.stderr);
        // Weights come to memory after the rows of the first batch.
        for bytes in ["550000", "500000", "450000", "420000", "400000"] {
            let parts = with_memory(&pair, bytes, &[]).expect(0, &["cannot allocate", "--max-batch-tokens"]);
            assert_eq!(parts.stdout, whole.stdout);
            assert_eq!(parts.stderr.matches("going on").count(), 1, "{}", parts.stderr);
        }
    }

    #[test]
    fn a_prompt_that_does_not_fit_alone_is_an_error_row() {
        let pair = one_long_prompt();
        let whole = with_memory(&pair, "10000000", &[]).expect(0, &[]).rows();
        let rows = with_memory(&pair, "340000", &[]).expect(0, &["1 of 8 rows are errors"]).rows();
        let error = &rows[5]["error"];
        assert_eq!(error["type"], "out_of_memory");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with("the prompt needs room for 118 tokens and does not fit alone: simulator:"),
            "{message}"
        );
        assert!((0..8).filter(|row| *row != 5).all(|row| rows[row] == whole[row]));

        // Accuracy without a question would be another number.
        let question = |words: usize| {
            let text = "word ".repeat(words);
            format!("{{\"prompt\": {text:?}, \"choices\": [\"Yes\", \"No\"], \"label\": 0}}\n")
        };
        let questions = [2, 2, 300].map(question).concat();
        let scene = Scene::new(&[("a.jsonl", &questions)]);
        let args = ["sweep", "a.jsonl", "--alphas", "1,2", "--folds", "2", "--device", "sim", "-o", "out"];
        run(scene.with_pair(&args).env("TUCO_SIM_MEMORY", "2700000"))
            .expect(2, &["a row 3: the prompt needs room for", "fewer --alphas or a smaller --max-length"]);

        let pair = prepared(8);
        let more = ["--max-new-tokens", "2"];
        let whole = run(&mut command(&pair, "generate", "sim", &more)).expect(0, &[]);
        let parts = run(command(&pair, "generate", "sim", &more).env("TUCO_SIM_MEMORY", "250000"));
        assert_eq!(parts.expect(0, &["going on"]).stdout, whole.stdout);
    }

    #[test]
    fn weights_that_do_not_fit_end_the_run() {
        let pair = one_long_prompt();
        let advice = "the weights do not fit: cannot allocate";
        with_memory(&pair, "80000", &["--resident", "on"]).expect(1, &[advice, "--resident off"]);
        let why =
            ["weights brought layer by layer: 1M would take more than four fifths of the 1M that are free"];
        pair.write("in.jsonl", rows(1));
        assert!(with_memory(&pair, "160000", &[]).expect(0, &why).rows()[0]["tuco"].is_number());
    }

    #[test]
    fn a_device_that_is_not_found_again_may_come_back() {
        let pair = prepared(4);
        let args = ["-o", "out.jsonl"];
        run(&mut command(&pair, "score", "sim", &args)).expect(0, &[]);
        let rows = fs::read_to_string(pair.path("out.jsonl")).unwrap();
        let said = ["the rows in out.jsonl are of sim sm_90a, context rows in f32, but --device auto finds"];
        run(&mut command(&pair, "score", "auto", &args)).expect(1, &said);
        // Nor does a GPU that comes back help here.
        run(command(&pair, "score", "auto", &args).arg("--layers")).expect(42, &["layers was", "device was"]);
        // Who names another one wants other rows.
        run(&mut command(&pair, "score", "cpu", &args)).expect(42, &["device was", "--overwrite"]);
        assert_eq!(fs::read_to_string(pair.path("out.jsonl")).unwrap(), rows);
    }

    #[test]
    fn what_a_lost_device_has_computed_is_kept() {
        let pair = prepared(12);
        let whole = run(&mut command(&pair, "score", "sim", &[])).expect(0, &[]).stdout;
        for device in ["sim", "sim:0,1"] {
            let args = ["-o", "out.jsonl", "--batch-size", "2", "--overwrite"];
            let mut lost = command(&pair, "score", device, &args);
            let said = [
                "simulator: the device is lost",
                "are complete, the same command without --overwrite goes on",
            ];
            run(lost.env("TUCO_SIM_LAUNCHES", "150")).expect(1, &said);
            let written = fs::read_to_string(pair.path("out.jsonl")).unwrap();
            assert!(!written.is_empty() && whole.starts_with(&written) && written.len() < whole.len());
            run(&mut command(&pair, "score", device, &args[..4])).expect(0, &["were there already"]);
            assert_eq!(fs::read_to_string(pair.path("out.jsonl")).unwrap(), whole);
        }
    }
}
