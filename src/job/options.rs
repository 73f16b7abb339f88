//! The flags that several subcommands share, and their types.

use super::device::{Device, KernelTarget, Precision, Resident};
use crate::{
    Error, ErrorKind,
    checkpoint::Reading,
    experiment::filling::{BatchLimits, Memory},
    prompt::Overlength,
    tensor::Dtype,
};
use chrono::NaiveDate;
use clap::{Arg, ArgAction, Args, Command, FromArgMatches, ValueEnum, builder::BoolishValueParser};
use serde_json::{Map, Value};
use std::{path::PathBuf, str::FromStr};

/// Which two models.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Models")]
pub struct PairOptions {
    /// The pre-trained model: a directory, a GGUF file, or a Hugging Face id in the local cache; default: what --adapter was
    /// trained on
    #[arg(long, value_name = "DIR|FILE|ID", env = "TUCO_BASE", required_unless_present = "adapter")]
    pub base: Option<String>,
    /// The model fine-tuned from it: a directory, a GGUF file, or a Hugging Face id in the local cache; default with
    /// --adapter: the base
    #[arg(long, value_name = "DIR|FILE|ID", env = "TUCO_TUNED", required_unless_present = "adapter")]
    pub tuned: Option<String>,
    /// A PEFT adapter (LoRA, DoRA) on the tuned model: a directory, or a Hugging Face id in the local cache
    #[arg(long, value_name = "DIR|ID", env = "TUCO_ADAPTER")]
    pub adapter: Option<String>,
    /// A PEFT adapter on the base
    #[arg(long, value_name = "DIR|ID", env = "TUCO_BASE_ADAPTER")]
    pub base_adapter: Option<String>,
    /// Round weights to the model's own type after an adapter was added, as merging it would
    #[arg(long, env = "TUCO_MERGE_ADAPTER")]
    pub merge_adapter: bool,
    /// Branch, tag or commit of --base (or of what --adapter names), if that is an id
    #[arg(long, value_name = "REVISION", env = "TUCO_BASE_REVISION")]
    pub base_revision: Option<String>,
    /// Branch, tag or commit of --tuned, if that is an id
    #[arg(long, value_name = "REVISION", env = "TUCO_TUNED_REVISION")]
    pub tuned_revision: Option<String>,
    /// Branch, tag or commit of --adapter, if that is an id
    #[arg(long, value_name = "REVISION", env = "TUCO_ADAPTER_REVISION")]
    pub adapter_revision: Option<String>,
    /// Branch, tag or commit of --base-adapter, if that is an id
    #[arg(long, value_name = "REVISION", env = "TUCO_BASE_ADAPTER_REVISION")]
    pub base_adapter_revision: Option<String>,
    /// What the weights are rounded to when they are read; auto takes them as stored
    #[arg(long, value_enum, default_value_t, env = "TUCO_DTYPE")]
    pub dtype: DtypeChoice,
}

impl PairOptions {
    /// How the weights are read.
    pub fn reading(&self) -> Reading {
        Reading { dtype: self.dtype.dtype(), merge: self.merge_adapter, lets_go: false }
    }
}

/// How rows become token ids.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Prompts")]
pub struct PromptOptions {
    /// Where tokenizer and chat template are: a directory, or a Hugging Face id in the local cache; default: the tuned model
    #[arg(long, value_name = "DIR|ID", env = "TUCO_TOKENIZER")]
    pub tokenizer: Option<String>,
    /// Branch, tag or commit of --tokenizer, if that is an id
    #[arg(long, value_name = "REVISION", env = "TUCO_TOKENIZER_REVISION")]
    pub tokenizer_revision: Option<String>,
    /// Put every plain prompt through the tuned model's chat template as one user message
    #[arg(long, env = "TUCO_APPLY_CHAT_TEMPLATE")]
    pub apply_chat_template: bool,
    /// System message for conversations that have none of their own
    #[arg(long, value_name = "TEXT", env = "TUCO_SYSTEM_INSTRUCTION")]
    pub system_instruction: Option<String>,
    /// Jinja file of the chat template; default: the tokenizer's own
    #[arg(long, value_name = "FILE", env = "TUCO_CHAT_TEMPLATE")]
    pub chat_template: Option<PathBuf>,
    /// What the chat template sees besides the conversation, as a JSON object: '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", env = "TUCO_CHAT_TEMPLATE_ARGS")]
    pub chat_template_args: Option<TemplateArgs>,
    /// The day that chat templates that ask for it (strftime_now) see as today (YYYY-MM-DD); default: today, or the day an interrupted
    /// run began
    #[arg(long, value_name = "DATE", value_parser = parse_date, env = "TUCO_TEMPLATE_DATE")]
    pub template_date: Option<NaiveDate>,
    /// Longest prompt in tokens; default: the tuned model's context
    #[arg(long, value_name = "TOKENS", value_parser = parse_count, env = "TUCO_MAX_LENGTH")]
    pub max_length: Option<usize>,
    /// What becomes of longer prompts
    #[arg(long, value_enum, default_value_t, env = "TUCO_ON_OVERLENGTH")]
    pub on_overlength: Overlength,
}

impl PromptOptions {
    /// The day that chat templates see: as told, or that of an `earlier` run that is to go on, or today.
    pub fn date(&self, earlier: Option<NaiveDate>) -> NaiveDate {
        self.template_date.or(earlier).unwrap_or_else(|| chrono::Local::now().date_naive())
    }
}

/// Variables of a chat template.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateArgs(pub Map<String, Value>);

/// What the conversation itself gives a template.
const OF_CONVERSATION: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

impl FromStr for TemplateArgs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Ok(Value::Object(arguments)) = serde_json::from_str(text) else {
            return Err("expected a JSON object, such as {\"enable_thinking\": false}".into());
        };
        match OF_CONVERSATION.into_iter().find(|name| arguments.contains_key(*name)) {
            Some(name) => Err(format!("{name} cannot be given: it comes from the prompt")),
            None => Ok(Self(arguments)),
        }
    }
}

fn parse_date(text: &str) -> Result<NaiveDate, String> {
    text.parse().map_err(|_| "expected a day as YYYY-MM-DD (2025-07-01)".into())
}

/// How rows say what they are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Prompts")]
pub struct FieldOptions {
    /// The field, or column, that has the prompt's text, instead of prompt (text, goal, instruction, …)
    #[arg(long, value_name = "FIELD", env = "TUCO_PROMPT_FIELD")]
    pub prompt_field: Option<String>,
}

/// Which rows.
#[derive(Debug, Clone, Args)]
pub struct InputOptions {
    /// Prompts: JSONL files, .parquet and .csv files (columns named as fields), .txt files (one prompt a line), or - for JSONL on
    /// standard input
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Only the first N rows, or this fraction of them (0.1)
    #[arg(long, value_name = "N|FRACTION", env = "TUCO_LIMIT")]
    pub limit: Option<Limit>,
}

/// What the work is done with.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineOptions {
    /// What computes: auto, cpu, cuda, cuda:N or reference; cuda:0,1,… shares batches among several GPUs. auto takes the first
    /// GPU, else the CPU; reference is slow and exact, for comparison
    #[arg(long, value_name = "DEVICE", default_value_t, env = "TUCO_DEVICE")]
    pub device: Device,
    /// On a GPU: the precision of all tokens but the last in matrix products; auto: bfloat16, float32 for small models
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|bfloat16|float32",
        env = "TUCO_CONTEXT_PRECISION"
    )]
    pub context_precision: Precision,
    /// On a GPU: which kernels it runs, to compare them; auto: the newest that it can
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|sm_80|sm_90a",
        env = "TUCO_KERNELS"
    )]
    pub kernels: KernelTarget,
    /// On a GPU: keep the weights of both models in its memory; auto: if they fit
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|on|off",
        env = "TUCO_RESIDENT"
    )]
    pub resident: Resident,
    /// Threads; default: one for each core
    #[arg(long, value_name = "N", value_parser = parse_threads, env = "TUCO_THREADS")]
    pub threads: Option<usize>,
    /// Prompts that go through the layers together: auto, or a number (results do not depend on it)
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = parse_batch_size, env = "TUCO_BATCH_SIZE")]
    pub batch_size: BatchSize,
    /// Tokens that go through the layers together, those that prompts share counted once (k and K mean a thousand; results
    /// do not depend on it)
    #[arg(long, value_name = "N", default_value = "32768", value_parser = parse_count, env = "TUCO_MAX_BATCH_TOKENS")]
    pub max_batch_tokens: usize,
}

/// Whether prompts that begin alike share that beginning's computation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PrefixSharing {
    /// On: finding what prompts share costs next to nothing
    #[default]
    Auto,
    On,
    Off,
}

/// A command whose flags, and those of its subcommands, have no environment variables.
pub fn without_environment(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&str>)).mut_subcommands(without_environment)
}

/// A command whose environment variables for flags that are on or off take what such variables take: 1 and 0, yes and no, on and off too.
pub fn with_boolish_variables(command: Command) -> Command {
    let boolish = |arg: Arg| match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        _ => arg,
    };
    command.mut_args(boolish).mut_subcommands(with_boolish_variables)
}

/// What clap says, in one sentence and without the usage of a program that nobody called.
pub fn told_by_clap(error: &clap::Error) -> String {
    let message = error.to_string();
    let message = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

impl MachineOptions {
    /// What goes through the layers together, with `memory` for it.
    pub fn limits(&self, memory: Option<Memory>) -> BatchLimits {
        BatchLimits { prompts: self.batch_size.unwrap_or(usize::MAX), tokens: self.max_batch_tokens, memory }
    }
}

impl Default for MachineOptions {
    /// The flags' own defaults.
    fn default() -> Self {
        let command = without_environment(Self::augment_args(Command::new("").no_binary_name(true)));
        let none = command.try_get_matches_from([""; 0]).expect("no flag is required");
        Self::from_arg_matches(&none).expect("every flag has a default")
    }
}

/// Prompts in a batch; `None` leaves it to the token budget.
pub type BatchSize = Option<usize>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    #[default]
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

impl DtypeChoice {
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            DtypeChoice::Auto => None,
            DtypeChoice::Float32 => Some(Dtype::F32),
            DtypeChoice::Bfloat16 => Some(Dtype::Bf16),
            DtypeChoice::Float16 => Some(Dtype::F16),
        }
    }
}

/// A fraction of `total`: a whole number where it is one but for what decimal fractions lose in binary (0.07 of 100).
fn part(fraction: f64, total: u64) -> f64 {
    let part = fraction * total as f64;
    let whole = part.round();
    if (part - whole).abs() <= 1e-12 * total as f64 { whole } else { part }
}

/// A number of rows, or a fraction of all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    Rows(u64),
    Fraction(f64),
}

impl Limit {
    /// Rows of `total`.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Limit::Rows(rows) => rows,
            Limit::Fraction(fraction) => part(fraction, total).ceil() as u64,
        }
    }
}

impl From<Limit> for Value {
    fn from(limit: Limit) -> Self {
        match limit {
            Limit::Rows(rows) => rows.into(),
            Limit::Fraction(fraction) => fraction.into(),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(rows) = parse_count(text) {
            return Ok(Limit::Rows(rows as u64));
        }
        match text.parse() {
            Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(Limit::Fraction(fraction)),
            _ => Err("expected a number of rows (100, 1k) or a fraction above 0 and up to 1 (0.1)".into()),
        }
    }
}

/// How many bad rows a run may have before its exit code says so: a number, or a fraction below 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailOnError(f64);

impl FailOnError {
    /// # Errors
    /// [`ErrorKind::BadRows`] where `errors` of `rows` are more than may be.
    pub fn check(self, errors: u64, rows: u64) -> Result<(), Error> {
        let allowed = if self.0 < 1.0 { part(self.0, rows) } else { self.0 };
        if errors as f64 <= allowed {
            return Ok(());
        }
        let message = format!(
            "{errors} of {rows} rows are errors, more than --fail-on-error allows; their rows say why"
        );
        Err(Error::new(ErrorKind::BadRows, message))
    }
}

impl FromStr for FailOnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            Ok(number) if (0.0..1.0).contains(&number) || number.fract() == 0.0 && number >= 1.0 => {
                Ok(Self(number))
            }
            _ => Err("expected a fraction from 0 up to but not 1 (0.1), or a whole number of rows".into()),
        }
    }
}

/// `200`, `16k`, `2K`.
pub fn parse_count(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1000),
        None => (text, 1),
    };
    match digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(number) if number > 0 => Ok(number),
        _ => Err("expected a positive whole number, with k for a thousand".into()),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=4096) => Ok(threads),
        _ => Err("expected 1 to 4096".into()),
    }
}

fn parse_batch_size(text: &str) -> Result<BatchSize, String> {
    if text == "auto" { Ok(None) } else { parse_count(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_a_template_are_an_object() {
        let parsed = "{\"enable_thinking\": false}".parse::<TemplateArgs>().unwrap();
        assert_eq!(parsed.0["enable_thinking"], false);
        assert!("[1]".parse::<TemplateArgs>().unwrap_err().contains("expected a JSON object"));
        assert!(
            "{\"messages\": []}".parse::<TemplateArgs>().unwrap_err().starts_with("messages cannot be given")
        );
        assert!(parse_date("yesterday").unwrap_err().contains("YYYY-MM-DD"));
    }

    #[test]
    fn counts_and_limits_are_read_as_people_write_them() {
        assert_eq!(parse_count("16k"), Ok(16_000));
        assert_eq!(parse_count("7"), Ok(7));
        assert!(parse_count("0").is_err() && parse_count("-1").is_err() && parse_count("k").is_err());
        assert_eq!("0.25".parse(), Ok(Limit::Fraction(0.25)));
        assert_eq!("2K".parse(), Ok(Limit::Rows(2000)));
        assert_eq!(Limit::Fraction(0.25).of(10), 3);
        assert_eq!(Limit::Fraction(0.07).of(100), 7);
        assert!("1.5".parse::<Limit>().is_err() && "0".parse::<Limit>().is_err());
    }

    #[test]
    fn a_given_day_is_before_that_of_an_earlier_run() {
        let day = |day| NaiveDate::from_ymd_opt(2024, 7, day);
        let date = |template_date, earlier| {
            PromptOptions { template_date, ..PromptOptions::default() }.date(earlier)
        };
        assert_eq!(Some(date(day(1), day(2))), day(1));
        assert_eq!(Some(date(None, day(2))), day(2));
        assert!(date(None, None) > date(None, day(2)));
    }

    #[test]
    fn allowed_errors_are_a_fraction_or_a_number() {
        let exceeded =
            |text: &str, errors, rows| text.parse::<FailOnError>().unwrap().check(errors, rows).is_err();
        assert!(!exceeded("0.1", 1, 10) && exceeded("0.1", 2, 10));
        assert!(!exceeded("0.29", 29, 100) && exceeded("0.29", 30, 100));
        assert!(!exceeded("3", 3, 10) && exceeded("3", 4, 10));
        assert!(exceeded("0", 1, 10) && !exceeded("0", 0, 10));
        assert!("1.5".parse::<FailOnError>().is_err() && "x".parse::<FailOnError>().is_err());
    }
}
