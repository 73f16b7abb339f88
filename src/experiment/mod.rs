//! What can be done with a pair, one file for each: read rows, run the engine, write what comes out.

pub mod batches;
pub mod bench;
pub mod compare;
pub mod cost;
pub mod demo;
pub mod dry_run;
pub mod filling;
pub mod generate;
pub mod holding;
pub mod inspect;
pub mod jailbreak;
pub mod many_shot;
pub mod questions;
pub mod queue;
pub mod refusals;
pub mod rows;
pub mod score;
pub mod scored;
pub mod shapes;
pub mod sweep;
pub mod task;
pub mod trace;
pub mod worker;

use crate::output::Report;
use serde_json::Value;

/// Tables and plots of an experiment's summary; `None` for one that is not known or lacks something.
pub fn report(summary: &Value) -> Option<Report> {
    match summary["experiment"].as_str()? {
        "sweep" => sweep::report(summary),
        "compare" => compare::report(summary),
        "trace" => trace::report(summary),
        "jailbreak" => jailbreak::report(summary),
        "many-shot" => many_shot::report(summary),
        "score" => scored::report(summary),
        demo::NAME => demo::report(summary),
        _ => None,
    }
}

/// What a summary says about its run: models with their adapters, version; how prompts became tokens.
fn about(summary: &Value) -> Vec<String> {
    let text = |name: &str| summary[name].as_str();
    let (Some(base), Some(tuned), Some(version)) = (text("base"), text("tuned"), text("tuco_version")) else {
        return Vec::new();
    };
    let with = |name: &str| text(name).map_or(String::new(), |adapter| format!(" with {adapter}"));
    let (base_adapter, adapter) = (with("base_adapter"), with("adapter"));
    let mut notes = vec![format!("base {base}{base_adapter}, tuned {tuned}{adapter} (tuco {version})")];
    notes.extend(summary["apply_chat_template"].as_bool().map(|is_applied| match is_applied {
        true => "Prompts went through the tuned model's chat template.".to_owned(),
        false => "Plain prompts went without a chat template.".to_owned(),
    }));
    notes.extend(text("system_instruction").map(|text| format!("System instruction: {text:?}")));
    if let Some(count) = summary["truncated"].as_u64().filter(|count| *count > 0) {
        notes.push(format!(
            "{count} prompts were cut (--on-overlength): their numbers are those of what was left of them."
        ));
    }
    notes
}

/// A list of numbers of a summary.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    value.as_array()?.iter().map(Value::as_f64).collect()
}

/// A number of a summary, for a table.
fn number(value: &Value) -> String {
    value.as_f64().map_or("–".to_owned(), |number| format!("{number:.4}"))
}

/// An interval of a summary, for a table.
fn interval(value: &Value, digits: usize) -> String {
    match (value[0].as_f64(), value[1].as_f64()) {
        (Some(low), Some(high)) => format!("{low:.digits$} to {high:.digits$}"),
        _ => "–".to_owned(),
    }
}
