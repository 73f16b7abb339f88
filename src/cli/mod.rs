//! The flags of each subcommand, and nothing else.

mod demo;

use crate::{
    Result,
    experiment::demo::{self as demo_pair, DemoOptions},
    job::{
        self, BenchOptions, CompareOptions, GenerateOptions, JailbreakOptions, ManyShotOptions, MergeOptions,
        PairOptions, ReportOptions, ScoreOptions, SweepOptions, TraceOptions,
    },
};
use clap::{Args, Parser, Subcommand};

/// Measures the Tuning Contribution (TuCo) of a fine-tuned language model: the share of each response's last hidden
/// state that fine-tuning wrote (arXiv 2506.23423).
#[derive(Debug, Parser)]
#[command(name = "tuco", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done · 1 try again (I/O) · 2 wrong usage · 3 too many bad rows, or rows to merge are missing · \
                        42 not a pair, or not this run's output: do not retry · 75 stopped cleanly: run it again"
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

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        job::stop_on_signals();
        match self.command {
            Command::Score(options) => job::score(*options).map(|_| ()),
            Command::Generate(options) => job::generate(*options).map(|_| ()),
            Command::Merge(options) => job::merge(&options),
            Command::Compare(options) => job::compare(*options),
            Command::Sweep(options) => job::sweep(*options),
            Command::Jailbreak(options) => job::jailbreak(*options),
            Command::ManyShot(options) => job::many_shot(*options),
            Command::Trace(options) => job::trace(*options),
            Command::Report(options) => job::report(&options),
            Command::Inspect(options) => job::inspect(&options.pair),
            Command::Bench(options) => job::bench(&options),
            Command::Demo(options) if options.all => demo::all(&options),
            Command::Demo(options) => demo_pair::run(&options),
        }
    }
}
