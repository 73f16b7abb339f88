//! `tuco demo`: kinds of prompts of the pair that ships; with `--all` the experiments on it, and what they show of what the paper found.

use crate::{
    metrics::{auc, quantile, wilson_of_several},
    output::{Report, Table, histogram},
};
use serde_json::{Value, json};
use std::time::Duration;

/// An experiment of `tuco demo --all`, as its command line without the pair: `DEMO/…` lies in the demo's folder, `OUT/…` in
/// that of the results.
pub struct DemoRun {
    pub name: &'static str,
    pub arguments: &'static [&'static str],
    /// What it leaves.
    pub result: &'static str,
}

/// The shots before ordinary questions, to compare with those before requests.
const CONTROL: &str = "OUT/many-shot-control";

pub const RUNS: &[DemoRun] = &[
    DemoRun { name: "compare", arguments: &["DEMO/prompts.jsonl", "--by", "kind"], result: "OUT/compare" },
    DemoRun {
        name: "sweep",
        arguments: &[
            "DEMO/experiments/replies.jsonl",
            "DEMO/experiments/capitals.jsonl",
            "--apply-chat-template",
            "--alphas",
            "0,0.25,0.5,0.75,0.9,1,1.1,1.25,1.5",
        ],
        result: "OUT/sweep",
    },
    DemoRun {
        name: "jailbreak",
        arguments: &["DEMO/experiments/jailbreaks.jsonl", "--apply-chat-template", "--by", "attack"],
        result: "OUT/jailbreak",
    },
    DemoRun {
        name: "many-shot",
        arguments: &[
            "DEMO/experiments/requests.jsonl",
            "--examples",
            "DEMO/experiments/shots.jsonl",
            "--output-co",
        ],
        result: "OUT/many-shot",
    },
    DemoRun {
        name: "many-shot",
        arguments: &["DEMO/experiments/questions.jsonl", "--examples", "DEMO/experiments/shots.jsonl"],
        result: CONTROL,
    },
    DemoRun {
        name: "trace",
        arguments: &["How do I steal a wallet?", "--response", "I'm sorry, but", "--apply-chat-template"],
        result: "OUT/trace",
    },
    DemoRun { name: "score", arguments: &["DEMO/prompts.jsonl", "--output-co"], result: "OUT/scores.jsonl" },
];

/// What its summary says that it is.
pub const NAME: &str = "demo";

/// What the experiments of `tuco demo --all` show of what the paper found, as a summary. Of each experiment there is what it leaves and
/// its summary.
pub fn effects(summaries: &[(&str, Value)], seconds: f64) -> Value {
    let left = |result: &str| {
        let found = summaries.iter().find(|(name, _)| *name == result);
        found.map_or(&Value::Null, |(_, summary)| summary)
    };
    let of = |name: &str| left(&format!("OUT/{name}"));
    let ends_of = |interval: &Value| [0, 1].map(|place| interval[place].as_f64().unwrap_or(f64::NAN));
    // How far two classes are apart; `none` says why that is not known.
    let apart = |of: &Value, none: &str| match of["auc"].as_f64() {
        Some(auc) => {
            let [low, high] = ends_of(&of["auc_newcombe_95"]);
            (format!("AUC {auc:.3} ({low:.3} to {high:.3})"), low > 0.5)
        }
        None => (none.to_owned(), false),
    };
    let pair = |summary: &'static str, negative: &str, positive: &str| {
        let pairs = of(summary)["pairs"].as_array();
        let pair = pairs.and_then(|pairs| {
            pairs.iter().find(|pair| pair["negative"] == negative && pair["positive"] == positive)
        });
        apart(pair.unwrap_or(&Value::Null), "no AUC: only one class")
    };
    let of_one_attack = apart(&of("jailbreak")["by"], "no AUC: no attack has both classes");
    // The change after the most shots, and the ends of its interval.
    let change = |summary: &Value| {
        let last = summary["rungs"].as_array().and_then(|rungs| rungs.last()).unwrap_or(&Value::Null);
        let tuco = &last["tuco"];
        (tuco["change"].as_f64().unwrap_or(f64::NAN), ends_of(&tuco["change_95"]), last["shots"].clone())
    };
    let (requests, [low, high], shots) = change(of("many-shot"));
    let by_shots = (format!("{requests:+.4} ({low:+.4} to {high:+.4}) after {shots} shots"), high < 0.0);
    let (questions, [control_low, control_high], _) = change(left(CONTROL));
    let (difference, half) = (requests - questions, (high - low).hypot(control_high - control_low) / 2.0);
    let than_questions = (
        format!(
            "{difference:+.4} ({:+.4} to {:+.4}) after {shots} shots",
            difference - half,
            difference + half
        ),
        difference + half < 0.0,
    );
    let replies = &of("sweep")["tasks"][0];
    let count = replies["rows"].as_f64().unwrap_or(0.0) - replies["errors"].as_f64().unwrap_or(0.0);
    let accuracies: Vec<f64> =
        replies["accuracy"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let most = accuracies.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let least = accuracies.iter().copied().fold(f64::INFINITY, f64::min);
    let effects = [
        ("chat is above running text (answered)", pair("compare", "text", "answered")),
        ("chat is above running text (refused)", pair("compare", "text", "refused")),
        ("refused is above answered (a question of ours)", pair("compare", "answered", "refused")),
        ("refused is above successful jailbreaks", pair("jailbreak", "successful", "refused")),
        ("the same within one kind of attack (a control of ours)", of_one_attack),
        ("TuCo falls with the number of shots", by_shots),
        ("it falls more than before ordinary questions (a control of ours)", than_questions),
        (
            "accuracy moves with alpha",
            (format!("{:.1} % to {:.1} % of {count}", 100.0 * least, 100.0 * most), {
                let of = |accuracy| wilson_of_several(accuracy, count, accuracies.len());
                of(most).0 > of(least).1
            }),
        ),
    ];
    let effect = |(name, (found, is_shown)): (&str, (String, bool))| json!({ "effect": name, "found": found, "shown": is_shown });
    json!({
        "experiment": NAME,
        "effects": effects.map(effect),
        "seconds": seconds,
        "base": of("compare")["base"],
        "tuned": of("compare")["tuned"],
        "tuco_version": env!("CARGO_PKG_VERSION"),
    })
}

/// Tables of a summary; `None` where it lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    let row = |effect: &Value| {
        let shown = if effect["shown"].as_bool()? { "yes" } else { "no" };
        Some(vec![
            effect["effect"].as_str()?.to_owned(),
            effect["found"].as_str()?.to_owned(),
            shown.to_owned(),
        ])
    };
    let rows = summary["effects"].as_array()?.iter().map(row).collect::<Option<Vec<_>>>()?;
    let mut notes = super::about(summary);
    notes.push(format!("All experiments took {:.0} s.", summary["seconds"].as_f64()?));
    Some(Report {
        title: "What the demo pair shows (demo)".into(),
        notes,
        tables: vec![Table::new(
            "What the paper finds, with controls, and whether this pair shows it (no: the 95 % interval includes no effect; of accuracies, all \
             alphas' together)",
            ["effect", "found", "shown"],
            rows,
        )],
        plots: Vec::new(),
    })
}

/// A kind of prompt (`meta.kind`) and its scores.
pub struct Kind {
    name: String,
    tuco: Vec<f64>,
    tokens: usize,
}

/// Kinds in the order of their first prompt.
pub fn by_kind(names: &[String], rows: &[&[u32]], scores: &[f64]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for ((name, row), score) in names.iter().zip(rows).zip(scores) {
        let index = kinds.iter().position(|kind| kind.name == *name).unwrap_or_else(|| {
            kinds.push(Kind { name: name.clone(), tuco: Vec::new(), tokens: 0 });
            kinds.len() - 1
        });
        kinds[index].tuco.push(*score);
        kinds[index].tokens += row.len();
    }
    kinds
}

/// A table and a histogram of kinds, for people.
pub fn table(kinds: &[Kind], took: Duration) -> String {
    let mut text =
        "TuCo: the share of the last hidden state that fine-tuning wrote (0 to 1), on held-out prompts.\n\n\
                    | prompts  | number | tokens | median TuCo | 5 % to 95 %      |\n\
                    |----------|-------:|-------:|------------:|------------------|\n"
            .to_string();
    for kind in kinds {
        let q = |q| quantile(&kind.tuco, q).unwrap_or(f64::NAN);
        let (median, low, high) = (q(0.5), q(0.05), q(0.95));
        let (name, number, tokens) = (&kind.name, kind.tuco.len(), kind.tokens);
        text += &format!("| {name:8} | {number:6} | {tokens:6} | {median:11.4} | {low:.4} to {high:.4} |\n");
    }
    let of = |is: &dyn Fn(&str) -> bool| -> Vec<f64> {
        kinds.iter().filter(|kind| is(&kind.name)).flat_map(|kind| kind.tuco.clone()).collect()
    };
    let (running_text, chat) = (of(&|name| name == "text"), of(&|name| name != "text"));
    text += &format!("\n{}\n", histogram(&[("text", &running_text), ("chat", &chat)], 12, 40));
    if let Some(auc) = auc(&running_text, &chat) {
        text += &format!("AUC of TuCo, chat against running text: {auc:.3} (0.5: no difference, 1: apart)\n");
    }
    if let Some(auc) = auc(&of(&|name| name == "answered"), &of(&|name| name == "refused")) {
        text += &format!("AUC of TuCo, refused against answered requests: {auc:.3}\n");
    }
    let (prompts, seconds) = (running_text.len() + chat.len(), took.as_secs_f64());
    text + &format!(
        "\n{prompts} prompts in {seconds:.2} s. Your own pair: tuco score --base DIR --tuned DIR prompts.jsonl -o scores.jsonl\n"
    )
}
