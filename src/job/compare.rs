//! The job of `tuco compare`.

use super::{
    Caller, FieldOptions,
    experiments::{Experiment, ExperimentOptions, Opened, no_such_field},
    tell,
};
use crate::{
    Result,
    experiment::compare,
    output::text_of,
    prompt::{Line, RowError, RowErrorKind},
};
use clap::Args;
use std::path::PathBuf;

/// Flags of `tuco compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareOptions {
    /// Prompts as for tuco score. Rows with a label are of that class, others of the class that their file is named after. Of two
    /// classes the one that comes later is the positive one, whose TuCo is expected to be higher: to compare prompts with and
    /// without an attack, name the file with the attack first
    #[arg(required = true, value_name = "PROMPTS")]
    pub inputs: Vec<PathBuf>,
    /// Take classes from this field of the rows (or of their meta) instead of label
    #[arg(long, value_name = "FIELD", default_value = "label", env = "TUCO_BY")]
    pub by: String,
    #[command(flatten)]
    pub common: ExperimentOptions,
    #[command(flatten)]
    pub fields: FieldOptions,
}

/// `tuco compare`.
///
/// # Errors
/// Everything that is wrong with flags, models and inputs before anything is computed.
pub fn compare(options: CompareOptions, caller: Caller<'_>) -> Result<()> {
    let opened = Opened::open(options.common, caller)?;
    let mut prompts = Vec::new();
    let is_label = options.by == "label";
    let none = format!("no {}", options.by);
    opened.read(&options.inputs, &options.fields, &[&options.by], |file, line| {
        let class = match line.field(&options.by) {
            Some(class) => Some(text_of(class)),
            // It might have told another class than its file.
            None if is_unread(&line) => None,
            None if is_label => Some(file.to_owned()),
            None => Some(none.clone()),
        };
        let encoded = opened.encode(&line.place, line.content, 0);
        prompts.push(compare::Prompt {
            id: line.id,
            label: line.label,
            meta: line.meta,
            about: class,
            encoded,
        });
        Ok(())
    })?;
    let mut classes = prompts.iter().filter_map(|prompt| prompt.about.as_ref()).peekable();
    if !is_label && classes.peek().is_some() && classes.all(|class| *class == none) {
        return Err(no_such_field(&options.by));
    }
    compare::check(&prompts)?.iter().for_each(|warning| tell(warning));
    opened.run(&Experiment::Compare(prompts))
}

/// Whether a line is no row.
fn is_unread(line: &Line) -> bool {
    use RowErrorKind::{InvalidJson, InvalidRow, InvalidUtf8};
    matches!(&line.content, Err(RowError { kind: InvalidJson | InvalidRow | InvalidUtf8, .. }))
}
