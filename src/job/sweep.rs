//! The job of `tuco sweep`.

use super::{
    Caller,
    experiments::{Experiment, ExperimentOptions, Opened, names},
    options::parse_count,
    tell,
};
use crate::{
    Result,
    engine::check_alphas,
    experiment::{
        questions::{self, Examples},
        sweep::{self, Grid, Questions},
    },
};
use clap::Args;
use std::path::PathBuf;

/// Flags of `tuco sweep`.
#[derive(Debug, Clone, Args)]
pub struct SweepOptions {
    /// Files of questions: Model-Written Evaluations (JSONL with question, answer_matching_behavior, answer_not_matching_behavior), MMLU
    /// (CSV, Parquet), or JSONL with prompt or messages, choices and label. Each file is a task; a file with a subject column has a task
    /// for each subject
    #[arg(required = true, value_name = "QUESTIONS")]
    pub inputs: Vec<PathBuf>,
    /// What the fine-tuning component is multiplied with; 1 is the tuned model and must be among them
    #[arg(
        long,
        value_name = "A,B,…",
        value_delimiter = ',',
        default_value = "0.75,0.9,0.95,1,1.05,1.1,1.25",
        value_parser = parse_alpha,
        allow_negative_numbers = true,
        env = "TUCO_ALPHAS"
    )]
    pub alphas: Vec<f64>,
    /// Folds of the cross-validation
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_folds, env = "TUCO_FOLDS")]
    pub folds: usize,
    /// MMLU: the file with examples that come before each question (the dev split)
    #[arg(long, value_name = "DEV")]
    pub examples: Option<PathBuf>,
    /// How many of the examples
    #[arg(long, value_name = "N", default_value = "5", value_parser = parse_count, requires = "examples")]
    pub shots: usize,
    #[command(flatten)]
    pub common: ExperimentOptions,
}

fn parse_alpha(text: &str) -> Result<f64, String> {
    text.trim().parse().map_err(|_| "expected numbers with commas between (0.5,1,1.5)".into())
}

fn parse_folds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|folds| (2..=1000).contains(folds)).ok_or_else(|| "expected 2 to 1000".into())
}

/// `tuco sweep`.
///
/// # Errors
/// Everything that is wrong with flags, models and inputs before anything is computed.
pub fn sweep(options: SweepOptions, caller: Caller<'_>) -> Result<()> {
    check_alphas(&options.alphas)?;
    let opened = Opened::open(options.common, caller)?;
    // Where there is no head, nothing is computed in vain.
    opened.pair.checkpoints.ft.head()?;
    let examples = match &options.examples {
        Some(path) => Examples::read(path, options.shots)?,
        None => Examples::default(),
    };
    opened.check_inputs(&options.inputs)?;
    let mut tasks: Vec<Questions> = Vec::new();
    for (path, file) in options.inputs.iter().zip(names(&options.inputs)) {
        let limit = opened.options.limit.unwrap_or(usize::MAX);
        for (subject, rows) in questions::read(path, limit, &examples, &opened.encoder)? {
            if !subject.is_empty() && examples.lack(&subject) {
                tell(&format!("--examples has none of {subject}: its questions are asked without shots"));
            }
            let name = if subject.is_empty() { file.clone() } else { subject };
            let is_taken = tasks.iter().any(|task| task.name == name);
            let name = if is_taken { format!("{name} ({})", path.display()) } else { name };
            tasks.push(Questions { name, rows });
        }
    }
    if examples.are_of_any() && tasks.len() > 1 {
        tell("--examples tells no subject: its shots go before the questions of every task");
    }
    let grid = Grid { alphas: options.alphas, folds: options.folds };
    sweep::check(&mut tasks, &grid)?.iter().for_each(|warning| tell(warning));
    opened.run(&Experiment::Sweep(tasks, grid))
}
