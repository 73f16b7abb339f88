//! The job of `tuco report`.

use crate::{
    Error, Result,
    experiment::{self, scored::Scored},
    output::{self, Manifest, Report, read_summary},
};
use clap::Args;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

/// Flags of `tuco report`.
#[derive(Debug, Clone, Args)]
pub struct ReportOptions {
    /// Folders that experiments left, or their summary.json, or rows of tuco score (.jsonl): TuCo against OutputCo
    #[arg(required = true, value_name = "DIR|SUMMARY|ROWS")]
    pub inputs: Vec<PathBuf>,
    /// The page to write
    #[arg(short, long, value_name = "OUT.html", default_value = "report.html")]
    pub output: PathBuf,
}

/// What numbers that are put side by side have in common: fields of summaries, and what manifests call them.
const PAIR: [(&str, &str); 6] = [
    ("base", "base_dir"),
    ("tuned", "tuned_dir"),
    ("base_adapter", "base_adapter_dir"),
    ("adapter", "adapter_dir"),
    ("merge_adapter", "merge_adapter"),
    ("dtype", "dtype"),
];

/// `tuco report`.
///
/// # Errors
/// Inputs that are no summaries, or of different pairs.
pub fn report(options: &ReportOptions) -> Result<()> {
    output::check_output(&options.output)?;
    let mut reports: Vec<Report> = Vec::new();
    // The value of each field, and who said so first.
    let mut known: BTreeMap<&str, (Value, &Path)> = BTreeMap::new();
    for path in &options.inputs {
        let summary = if is_jsonl(path) { of_rows(path)? } else { read_summary(path)? };
        for (name, _) in PAIR {
            // What a summary does not have it says nothing of.
            let Some(value) = summary.get(name) else { continue };
            let (other, earlier) = known.entry(name).or_insert_with(|| (value.clone(), path.as_path()));
            if *other != *value {
                return Err(Error::usage(format!(
                    "{name} of {} is {other}, of {} {value}: make a report of each",
                    earlier.display(),
                    path.display()
                )));
            }
        }
        let report = experiment::report(&summary)
            .ok_or_else(|| Error::usage(format!("{} is no summary that can be shown", path.display())))?;
        reports.push(report);
    }
    std::fs::write(&options.output, output::page(&reports))
        .map_err(|error| Error::io("write", &options.output, &error))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"))
}

/// The summary of what `tuco score` wrote, with the pair that its manifest names.
fn of_rows(path: &Path) -> Result<Value> {
    let file = File::open(path).map_err(|error| Error::unreadable(path, &error))?;
    let mut scored = Scored::default();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| Error::unreadable(path, &error))?;
        let row = serde_json::from_str(&line).map_err(|error| format!("is not valid JSON: {error}"));
        row.and_then(|row: Value| scored.add(&row)).map_err(|problem| {
            let place = format!("{}:{}", path.display(), number + 1);
            Error::usage(format!("{place} {problem}; expected rows of tuco score, or an experiment's folder"))
        })?;
    }
    let mut summary = scored
        .summary()
        .ok_or_else(|| Error::usage(format!("{} has no row with a score", path.display())))?;
    if let Ok(Some((manifest, _))) = Manifest::find(path) {
        for (field, about) in PAIR.into_iter().chain([("tuco_version", "tuco_version")]) {
            summary[field] = manifest.told(about).cloned().into();
        }
    }
    Ok(summary)
}
