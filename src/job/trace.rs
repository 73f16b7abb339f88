//! The job of `tuco trace`.

use super::{
    Caller,
    experiments::{Experiment, ExperimentOptions, Opened},
};
use crate::{
    Error, Result,
    experiment::trace,
    prompt::{ContentRef, Encoded},
};
use clap::Args;

/// Flags of `tuco trace`.
#[derive(Debug, Clone, Args)]
#[command(
    mut_arg("limit", |arg| arg.hide(true)),
    mut_arg("fail_on_error", |arg| arg.hide(true)),
    mut_arg("output", |arg| arg.help("The folder for rows.jsonl, summary.json, plots and report.html"))
)]
pub struct TraceOptions {
    /// What the model is told: text
    pub prompt: String,
    /// What it answers; its tokens are traced too
    #[arg(long, value_name = "TEXT")]
    pub response: Option<String>,
    #[command(flatten)]
    pub common: ExperimentOptions,
}

/// `tuco trace`.
///
/// # Errors
/// Everything that is wrong with flags, models and the text before anything is computed; weights that overflow on this text.
pub fn trace(options: TraceOptions, caller: Caller<'_>) -> Result<()> {
    if options.prompt.is_empty() || options.response.as_ref().is_some_and(String::is_empty) {
        let what = if options.prompt.is_empty() { "the prompt" } else { "--response" };
        return Err(Error::usage(format!("{what} is empty, expected text")));
    }
    options.common.machine.device.check_is_one()?;
    let opened = Opened::open(options.common, caller)?;
    opened.pair.checkpoints.ft.head()?;
    let encoder = &opened.encoder;
    let prompt = ContentRef::Prompt(&options.prompt);
    let response = options.response.as_ref().map(|response| encoder.reply(prompt, response));
    let response = response.transpose()?.unwrap_or_default();
    let Encoded { mut token_ids, truncated } = encoder.encode_before(prompt, response.len())?;
    let prompt = token_ids.len();
    token_ids.extend(response);
    if token_ids.len() > encoder.context_length() {
        return Err(Error::usage(format!(
            "prompt and response have {} tokens, but the model takes at most {}",
            token_ids.len(),
            encoder.context_length()
        )));
    }
    opened.run(&Experiment::Trace(trace::TracedText { token_ids, prompt, truncated }))
}
