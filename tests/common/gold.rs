//! A backend against the golden pairs (tests/golden/, made by `transformers` in float64). Tests run in the package's folder.

use serde_json::Value;
use std::{fs, path::Path};
use tuco::{
    backend::Backend,
    checkpoint::{Pair, Reading, Side},
    engine::{Engine, unobserved},
    metrics,
    twin::{Branch, Twin},
};

/// OutputCo compares two passes that go apart, each with its own rounding of the context rows, so its error is absolute and
/// does not shrink with it.
const OUTPUT_CO_TOLERANCE: f64 = 5e-7;

/// How many pairs there are, so that none is lost unseen.
pub const CASES: usize = 120;

/// Pairs of fine-tunes so light that the rounding of context rows shows on GPUs.
#[allow(dead_code, reason = "tests of the CPU alone have one tolerance")]
pub const LIGHT: [&str; 4] = ["light_bf16", "light_f32", "qwen3_light", "lora_light"];

/// The numbers of a JSON array, or the single one.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().map(|v| v.as_f64().unwrap()).collect(),
        single => vec![single.as_f64().unwrap()],
    }
}

/// The pair of a case: with adapters where it has some, the tuned model being the base where it has only those.
pub fn open(case: &Path) -> Pair {
    let found = |name: &str| Some(case.join(name)).filter(|path| path.exists());
    let base = case.join("base");
    let tuned = found("tuned").unwrap_or(base.clone());
    let sides = Twin::new(
        Side { model: base, adapter: found("base_adapter") },
        Side { model: tuned, adapter: found("adapter") },
    );
    Pair::open_sides(&sides, Reading::default()).unwrap()
}

/// How an OutputCo is compared.
#[derive(Clone, Copy, PartialEq)]
#[allow(dead_code, reason = "each test program compares in one or two ways")]
pub enum OutputCo {
    /// Its absolute error is bounded.
    Absolutely,
    /// What is larger than that bound counts by its relative error.
    Relatively,
}

/// The largest relative error of any number of any prompt, and which it is.
pub fn worst_error<B: Backend>(backend: &B, case: &Path, output_co: OutputCo) -> (f64, String) {
    let gold: Value = serde_json::from_slice(&fs::read(case.join("gold.json")).unwrap()).unwrap();
    let pair = open(case);
    let engine = Engine::new(backend, &pair);
    let golden = gold["prompts"].as_array().unwrap();
    let ids: Vec<Vec<u32>> =
        golden.iter().map(|p| numbers(&p["token_ids"]).iter().map(|id| *id as u32).collect()).collect();
    let prompts: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let scores = engine.score(&prompts, &unobserved).unwrap();
    let base = engine.plain(Branch::Pt, &prompts, &unobserved).unwrap();
    let mut worst = (0.0, String::new());
    for ((golden, score), base) in golden.iter().zip(&scores).zip(&base) {
        let last = score.running.last().unwrap();
        let found: [(&str, Vec<f64>); 9] = [
            ("tuco", vec![metrics::tuco(*last)]),
            ("ptc_l1", vec![last.ptc]),
            ("ftc_l1", vec![last.ftc]),
            ("beta", vec![metrics::beta(&score.running)]),
            ("beta_per_layer", metrics::beta_per_layer(&score.running)),
            ("ptc_l1_per_layer", score.running.iter().map(|l1| l1.ptc).collect()),
            ("ftc_l1_per_layer", score.running.iter().map(|l1| l1.ftc).collect()),
            ("output_co", vec![metrics::output_co(base, &score.last_hidden)]),
            ("last_hidden_l1", vec![score.last_hidden.iter().map(|v| v.abs()).sum()]),
        ];
        for (name, found) in found {
            let expected = numbers(&golden[name]);
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                let mut error = if expected == 0.0 { found.abs() } else { (found / expected - 1.0).abs() };
                if name == "output_co" {
                    error = match ((found - expected).abs() < OUTPUT_CO_TOLERANCE, output_co) {
                        (true, _) => 0.0,
                        (false, OutputCo::Absolutely) => f64::INFINITY,
                        (false, OutputCo::Relatively) => error,
                    };
                }
                if error.is_nan() || error > worst.0 {
                    let tokens = golden["token_ids"].as_array().unwrap().len();
                    worst = (error, format!("{name} of {tokens} tokens: {found}, gold {expected}"));
                }
            }
        }
    }
    worst
}

/// Holds every number of every pair to the relative error that `tolerance` says of the pair; those of which it says none are left out.
pub fn check<B: Backend>(backend: &B, output_co: OutputCo, tolerance: impl Fn(&str) -> Option<f64>) {
    let mut cases: Vec<_> = fs::read_dir("tests/golden")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("gold.json").exists())
        .collect();
    cases.sort();
    assert_eq!(cases.len(), CASES, "golden cases");
    let (mut failed, mut largest) = (false, (0.0, String::new()));
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let Some(tolerance) = tolerance(&name) else { continue };
        let (error, what) = worst_error(backend, &case, output_co);
        println!("{name:24} {error:8.1e}  {what}");
        if error > largest.0 {
            largest = (error, format!("{name}, {what}"));
        }
        failed |= error.is_nan() || error > tolerance;
    }
    println!("report: {:.1e}  {}", largest.0, largest.1);
    assert!(!failed, "beyond what is allowed: see the table");
}
