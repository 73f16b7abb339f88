//! The job of `tuco generate`.

use super::{
    Caller, RowsOptions,
    options::parse_count,
    rows::{RowsJob, What},
};
use crate::{
    Error, Result,
    checkpoint::Pair,
    engine::{Generation, Sampling},
    experiment::generate::Completing,
    output::Done,
    prompt::Encoder,
};
use clap::Args;

/// Flags of `tuco generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateOptions {
    /// Most tokens of a completion (k and K mean a thousand)
    #[arg(
        long,
        visible_alias = "max-tokens",
        value_name = "N",
        default_value = "128",
        value_parser = parse_count,
        env = "TUCO_MAX_NEW_TOKENS"
    )]
    pub max_new_tokens: usize,
    /// Completions of each prompt; more than one need a temperature
    #[arg(long, visible_alias = "samples", value_name = "N", default_value = "1", value_parser = parse_count, env = "TUCO_N")]
    pub n: usize,
    /// Text that ends a completion and is left out of it; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end-of-text tokens
    #[arg(long, env = "TUCO_IGNORE_EOS")]
    pub ignore_eos: bool,
    /// Add the TuCo of every token of the completions
    #[arg(long, env = "TUCO_TUCO")]
    pub tuco: bool,
    #[command(flatten)]
    pub common: RowsOptions,
    #[command(flatten)]
    pub choice: ChoiceOptions,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Choice of tokens")]
pub struct ChoiceOptions {
    /// What the fine-tuning component is multiplied with, on every token of prompt and completion: 1 is the tuned model, 0 the
    /// base's blocks between the tuned embedding and head, above 1 more fine-tuning than there was
    #[arg(long, value_name = "A", default_value = "1", allow_negative_numbers = true, env = "TUCO_ALPHA")]
    pub alpha: f64,
    /// Divides the logits before a random choice; 0 takes the likeliest token; default: 0, of tuco jailbreak 1
    #[arg(long, value_name = "T", allow_negative_numbers = true, env = "TUCO_TEMPERATURE")]
    pub temperature: Option<f64>,
    /// Choose among the K likeliest tokens only
    #[arg(long, value_name = "K", env = "TUCO_TOP_K")]
    pub top_k: Option<usize>,
    /// Choose among the fewest of the likeliest tokens whose probabilities sum up to P
    #[arg(long, value_name = "P", default_value = "1", allow_negative_numbers = true, env = "TUCO_TOP_P")]
    pub top_p: f64,
    /// Another number gives other random choices; a prompt's depend on this and on its id alone
    #[arg(long, value_name = "N", default_value = "0", env = "TUCO_SEED")]
    pub seed: u64,
}

impl ChoiceOptions {
    /// # Errors
    /// Flags out of range, and those that have no effect: those of random choices at temperature 0.
    pub fn sampling(&self, default_temperature: f64) -> Result<Sampling> {
        let temperature = self.temperature.unwrap_or(default_temperature);
        Sampling::named(temperature, self.top_k, self.top_p, ["--top-k", "--top-p"])
    }
}

/// `tuco generate`.
///
/// # Errors
/// As of [`score`](super::score::score).
pub fn generate(options: GenerateOptions, caller: Caller<'_>) -> Result<Done> {
    let mut generation = Generation {
        alpha: options.choice.alpha,
        max_new_tokens: options.max_new_tokens,
        samples: options.n,
        sampling: options.choice.sampling(0.0)?,
        stop_tokens: Vec::new(),
        tuco: options.tuco,
    };
    generation.check()?;
    if options.stop.iter().any(String::is_empty) {
        return Err(Error::usage("--stop is empty, expected text"));
    }
    let what = |pair: &Pair, encoder: &Encoder| {
        // Where there is no head, nothing is computed in vain.
        pair.checkpoints.ft.head()?;
        if !options.stop.is_empty() {
            encoder.check_decodes("--stop")?;
        }
        if !options.ignore_eos {
            generation.stop_tokens = pair.stop_tokens(generation.alpha)?;
        }
        Ok(What::Generate(Completing { generation, stop: options.stop, seed: options.choice.seed }))
    };
    RowsJob::prepare(options.common, caller, what)?.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_cannot_be_meant_are_refused() {
        let usual = ChoiceOptions { alpha: 1.0, temperature: None, top_k: None, top_p: 1.0, seed: 0 };
        assert_eq!(usual.sampling(0.0).unwrap(), Sampling::Greedy);
        let refused = |options: ChoiceOptions, part: &str| {
            let message = options.sampling(0.0).unwrap_err().message;
            assert!(message.contains(part), "{message}");
        };
        refused(ChoiceOptions { top_k: Some(5), ..usual.clone() }, "--top-k has no effect");
        refused(ChoiceOptions { top_p: 0.5, ..usual.clone() }, "--top-p has no effect");
        refused(ChoiceOptions { temperature: Some(-1.0), ..usual.clone() }, "temperature is -1");
        refused(ChoiceOptions { temperature: Some(1.0), top_p: 2.0, ..usual }, "top_p is 2");
    }
}
