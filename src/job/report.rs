//! The job of `tuco report`.

use super::experiments::{WEIGHTS, weights_of};
use crate::{
    Error, Result,
    experiment::{self, scored::Scored},
    output::{self, Manifest, Report, SUMMARY, read_summary},
    paths::has_extension,
    prompt::Source,
};
use clap::Args;
use serde_json::Value;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Flags of `tuco report`.
#[derive(Debug, Clone, Args)]
pub struct ReportOptions {
    /// Folders that experiments left, or their summary.json, or rows of tuco score (.jsonl, .parquet): TuCo by label, and
    /// against OutputCo
    #[arg(required = true, value_name = "DIR|SUMMARY|ROWS")]
    pub inputs: Vec<PathBuf>,
    /// The page to write
    #[arg(short, long, value_name = "OUT.html", default_value = "report.html")]
    pub output: PathBuf,
}

/// What numbers that are put side by side have in common, as fields of summaries and what manifests call them: where the weights lie.
const PLACES: [(&str, &str); 4] = [
    ("base", "base_dir"),
    ("tuned", "tuned_dir"),
    ("base_adapter", "base_adapter_dir"),
    ("adapter", "adapter_dir"),
];
/// How they are read.
const READING: [(&str, &str); 2] = [("merge_adapter", "merge_adapter"), ("dtype", "dtype")];

/// `tuco report`.
///
/// # Errors
/// Inputs that are no summaries, or of different pairs.
pub fn report(options: &ReportOptions) -> Result<()> {
    output::check_output(&options.output)?;
    let summaries = options.inputs.iter().map(|input| input.join(SUMMARY));
    let read: Vec<PathBuf> = options.inputs.iter().cloned().chain(summaries).collect();
    output::check_not_read(&options.output, &read)?;
    check_replaces_page(&options.output)?;
    let mut reports: Vec<Report> = Vec::new();
    let mut earlier: Vec<(&Path, Value)> = Vec::new();
    for path in &options.inputs {
        let summary =
            if has_extension(path, &["jsonl", "parquet"]) { of_rows(path)? } else { read_summary(path)? };
        for (other, of_other) in &earlier {
            if let Some(difference) = difference(of_other, &summary) {
                let (other, path) = (other.display(), path.display());
                let message = match difference {
                    Difference::Weights(model) => {
                        format!("{model} of {other} has other weights than that of {path}")
                    }
                    Difference::Field(name, [before, now]) => {
                        format!("{name} of {other} is {before}, of {path} {now}")
                    }
                };
                return Err(Error::usage(format!("{message}: make a report of each")));
            }
        }
        let report = experiment::report(&summary)
            .ok_or_else(|| Error::usage(format!("{} is no summary that can be shown", path.display())))?;
        reports.push(report);
        earlier.push((path, summary));
    }
    std::fs::write(&options.output, output::page(&reports))
        .map_err(|error| Error::io("write", &options.output, &error))
}

/// # Errors
/// A usage error where something else than a page is there.
fn check_replaces_page(output: &Path) -> Result<()> {
    // What is no file, such as a pipe, holds nothing.
    if !output.is_file() {
        return Ok(());
    }
    let mut start = [0; 15];
    match File::open(output).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if start.eq_ignore_ascii_case(b"<!doctype html>") => Ok(()),
        _ => Err(Error::usage(format!(
            "-o {} is there and is no page that a report could take the place of: name another file",
            output.display()
        ))),
    }
}

/// What two summaries say of their pairs that differs. Weights are compared by their hashes where both have some, since the same may lie
/// anywhere, and others under the same name.
fn difference<'a>(one: &'a Value, other: &'a Value) -> Option<Difference<'a>> {
    let are_hashed = WEIGHTS.iter().all(|(hash, _)| one[hash].is_string() && other[hash].is_string());
    let mut weights = WEIGHTS.into_iter().filter(|(hash, _)| are_hashed && one[hash] != other[hash]);
    if let Some((_, model)) = weights.next() {
        return Some(Difference::Weights(model));
    }
    // What a summary does not have it says nothing of.
    let both = |(name, _)| Some((name, [one.get(name)?, other.get(name)?]));
    let places = PLACES.into_iter().filter(|_| !are_hashed);
    let mut fields = places.chain(READING).filter_map(both);
    fields.find(|(_, [before, now])| before != now).map(|(name, values)| Difference::Field(name, values))
}

enum Difference<'a> {
    /// Of this model.
    Weights(&'static str),
    Field(&'static str, [&'a Value; 2]),
}

/// The summary of what `tuco score` wrote, with the pair that its manifest names.
fn of_rows(path: &Path) -> Result<Value> {
    let mut lines = Source::open(&[path.to_owned()])?.lines();
    let mut scored = Scored::default();
    while let Some((number, row)) = lines.next_object()? {
        row.map_err(|error| error.message).and_then(|row| scored.add(&row)).map_err(|problem| {
            let place = format!("{}:{number}", path.display());
            Error::usage(format!("{place} {problem}; expected rows of tuco score, or an experiment's folder"))
        })?;
    }
    let mut summary = scored
        .summary()
        .ok_or_else(|| Error::usage(format!("{} has no row with a score", path.display())))?;
    if let Some((manifest, done)) = Manifest::find(path)? {
        if done.is_none() {
            return Err(Error::usage(format!(
                "{} is not finished: give the command that writes it again",
                path.display()
            )));
        }
        let prompts = ["apply_chat_template", "system_instruction", "tuco_version"].map(|name| (name, name));
        for (field, about) in PLACES.into_iter().chain(READING).chain(prompts) {
            summary[field] = manifest.told(about).cloned().into();
        }
        weights_of(&manifest).for_each(|(name, hash)| summary[name] = hash);
    }
    Ok(summary)
}
