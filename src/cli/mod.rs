//! The command line: its subcommands, and the program that runs them.

mod demo;

use crate::{
    Error, Result,
    job::{
        self, BenchOptions, Caller, CompareOptions, DemoOptions, GenerateOptions, JailbreakOptions,
        ManyShotOptions, MergeOptions, PairOptions, ReportOptions, ScoreOptions, SweepOptions, TraceOptions,
    },
    output::tell,
};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::{
    ffi::OsString,
    sync::atomic::{AtomicBool, Ordering},
};

/// Measures the Tuning Contribution (TuCo) of a fine-tuned language model: the share of each prompt's last hidden
/// state that fine-tuning wrote (arXiv 2506.23423).
#[derive(Debug, Parser)]
#[command(name = "tuco", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done · 1 try again (I/O, device) · 2 wrong usage · 3 too many bad rows, or rows to merge are missing · \
                        42 broken checkpoint, not a pair, not this run's output, or weights that overflow: do not retry · 75 stopped cleanly: run it again"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Score every prompt of the inputs
    #[command(alias = "run")]
    Score(Box<ScoreOptions>),
    /// Complete every prompt of the inputs, with fine-tuning scaled by alpha
    Generate(Box<GenerateOptions>),
    /// Put the rows of all shards (--shard) into one file, and prove that each is there once
    Merge(MergeOptions),
    /// How far classes of prompts are apart in TuCo: AUC with intervals, histograms
    Compare(Box<CompareOptions>),
    /// How the choice of answers moves when the fine-tuning component is scaled by alpha
    Sweep(Box<SweepOptions>),
    /// Whether prompts that get round refusals have a lower TuCo: sampled completions, a dictionary of refusals, AUC
    Jailbreak(Box<JailbreakOptions>),
    /// TuCo, and OutputCo, against the number of examples before a prompt
    ManyShot(Box<ManyShotOptions>),
    /// Show the contributions to every token of a prompt and its response, and what fine-tuning says
    Trace(Box<TraceOptions>),
    /// Put what experiments found on one HTML page
    Report(ReportOptions),
    /// Tell what a pair is: shapes, identical tensors, how far the weights moved, what a run costs
    Inspect(InspectOptions),
    /// Measure how fast pairs of a shape are scored on this machine, with random weights
    Bench(BenchOptions),
    /// Show what TuCo does, on the small pair that ships with the source
    Demo(DemoOptions),
}

#[derive(Debug, Args)]
struct InspectOptions {
    #[command(flatten)]
    pair: PairOptions,
}

/// Set by Ctrl-C and SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

/// Lets Ctrl-C and SIGTERM stop the program: cleanly, a second one at once; or at once, where there is nothing to leave behind.
fn stop_on_signals(at_once: bool) {
    let stopped = Error::stopped();
    let set = ctrlc::set_handler(move || {
        if at_once {
            tell(&stopped.message);
            std::process::exit(stopped.exit_code().into());
        }
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        tell("stopping; once more stops at once");
    });
    set.expect("the program sets no other handler");
}

/// A command line whose flags are as clap knows them: `--batch_size=8`, as Python programs have it, is `--batch-size=8`.
fn with_dashes(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = line.into_iter().collect();
    // What follows `--` is no flag.
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    for word in &mut words[..end] {
        *word = flag_with_dashes(std::mem::take(word));
    }
    words
}

fn flag_with_dashes(word: OsString) -> OsString {
    let Some(flag) = word.to_str().filter(|word| word.starts_with("--")) else { return word };
    let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
    // What is no name of a flag is text.
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if is_name { format!("{}{value}", name.replace('_', "-")).into() } else { word }
}

/// The program: runs a command line, whose first word is the program's name, and tells what went wrong on standard error.
/// Gives the exit code ([`Error::exit_code`]). To be called once in a process: signals are its own from then on.
pub fn main(line: impl IntoIterator<Item = OsString>) -> u8 {
    let line = with_dashes(line);
    let matches = job::with_boolish_variables(Cli::command()).try_get_matches_from(&line);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, which may be closed.
            let _ = error.print();
            return error.exit_code() as u8;
        }
    };
    stop_on_signals(cli.ends_at_once());
    let command: Vec<String> = line.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    match cli.run(Caller { command: &command, stop: &STOP }) {
        Ok(()) => 0,
        Err(error) => {
            tell(&error.message);
            error.exit_code()
        }
    }
}

impl Cli {
    /// What a program says whose user wrote no command line: environment variables (`TUCO_…`) are not read. The first word is
    /// the program's name.
    ///
    /// # Errors
    /// A usage error, in one sentence.
    pub fn of_program(line: &[String]) -> Result<Self> {
        let line = with_dashes(line.iter().map(OsString::from));
        let matches = job::without_environment(Self::command()).try_get_matches_from(line);
        let parsed = matches.and_then(|matches| Self::from_arg_matches(&matches));
        parsed.map_err(|error| Error::usage(job::told_by_clap(&error)))
    }

    /// Whether there is nothing to leave behind in order when it is stopped.
    fn ends_at_once(&self) -> bool {
        match &self.command {
            Command::Inspect(_) | Command::Report(_) => true,
            Command::Demo(options) => !options.all,
            _ => false,
        }
    }

    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the jobs; [`Error::exit_code`] tells what may be tried again.
    pub fn run(self, caller: Caller<'_>) -> Result<()> {
        match self.command {
            Command::Score(options) => job::score(*options, caller).map(|_| ()),
            Command::Generate(options) => job::generate(*options, caller).map(|_| ()),
            Command::Merge(options) => job::merge(&options, caller.stop),
            Command::Compare(options) => job::compare(*options, caller),
            Command::Sweep(options) => job::sweep(*options, caller),
            Command::Jailbreak(options) => job::jailbreak(*options, caller),
            Command::ManyShot(options) => job::many_shot(*options, caller),
            Command::Trace(options) => job::trace(*options, caller),
            Command::Report(options) => job::report(&options),
            Command::Inspect(options) => job::inspect(&options.pair),
            Command::Bench(options) => job::bench(&options, caller.stop),
            Command::Demo(options) if options.all => demo::all(&options, caller),
            Command::Demo(options) => job::demo(&options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_flags_lose_their_underscores() {
        let line = ["tuco", "--batch_size=a_b", "--max_length", "my_file", "--a b_c", "--", "--some_text"];
        let expected =
            ["tuco", "--batch-size=a_b", "--max-length", "my_file", "--a b_c", "--", "--some_text"];
        assert_eq!(with_dashes(line.map(OsString::from)), expected.map(OsString::from));
    }
}
