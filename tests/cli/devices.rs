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
        common::{Ran, rows, run},
        scene::Scene,
    };
    use serde_json::Value;
    use std::{
        fs,
        path::Path,
        process::{Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

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
        let child = command(&pair, "score", "sim:0,1", &args).stderr(Stdio::piped()).spawn().unwrap();
        let (started, output) = (Instant::now(), pair.path("out.jsonl"));
        while fs::metadata(&output).map_or(0, |metadata| metadata.len()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "nothing was written");
            thread::sleep(Duration::from_millis(2));
        }
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        let stopped = child.wait_with_output().unwrap();
        assert_eq!(stopped.status.code(), Some(75), "{}", String::from_utf8_lossy(&stopped.stderr));
        let written = fs::read_to_string(&output).unwrap();
        assert!(whole.starts_with(&written) && written.len() < whole.len());
        run(&mut command(&pair, "score", "sim:2,1,0", &args)).expect(0, &["were there already"]);
        assert_eq!(fs::read_to_string(&output).unwrap(), whole);
    }
}
