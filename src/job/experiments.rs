//! What the jobs of all experiments have in common, and those of `tuco sweep`, `tuco compare` and `tuco trace`.

use super::{
    AboutPair, Caller, Computers, FailOnError, MachineOptions, PairOptions, PromptOptions, SharedWork,
    open_encoder, open_pair, parse_count, tell, thread_pool, thread_pools,
};
use crate::{
    Error, ErrorKind, Result,
    backend::Backend,
    checkpoint::Pair,
    engine::{Engine, check_alphas},
    experiment::{
        self,
        batches::Batching,
        compare,
        generate::{Completing, Generating},
        jailbreak, many_shot,
        questions::{self, Examples},
        rows::BatchLimits,
        score::{Columns, Scoring},
        sweep::{self, Grid, Task},
        task::Failure,
        trace,
    },
    output::{self, Folder, Progress},
    prompt::{Content, Encoded, Encoder, Line, RowError, RowErrorKind, Source},
};
use clap::Args;
use serde_json::{Value, json};
use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

/// What all experiments have in common.
#[derive(Debug, Clone, Args)]
pub struct ExperimentOptions {
    /// The folder for rows.jsonl, summary.json, plot.svg and report.html
    #[arg(short, long, value_name = "DIR", env = "TUCO_OUTPUT")]
    pub output: PathBuf,
    /// Start again even if the folder holds an experiment
    #[arg(long)]
    pub overwrite: bool,
    /// Only the first N rows of each input
    #[arg(long, value_name = "N", value_parser = parse_count, env = "TUCO_LIMIT")]
    pub limit: Option<usize>,
    /// Exit with code 3 if more rows than this number, or than this fraction, cannot be used
    #[arg(long, value_name = "FRACTION|N", default_value = "0.1", env = "TUCO_FAIL_ON_ERROR")]
    pub fail_on_error: FailOnError,
    /// No progress and no closing line
    #[arg(short, long, env = "TUCO_QUIET")]
    pub quiet: bool,
    #[command(flatten)]
    pub pair: PairOptions,
    #[command(flatten)]
    pub prompts: PromptOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
}

/// Flags of `tuco sweep`.
#[derive(Debug, Clone, Args)]
pub struct SweepOptions {
    /// Questions, each file a task: Model-Written Evaluations (JSONL with question, answer_matching_behavior,
    /// answer_not_matching_behavior), MMLU (CSV, Parquet), or JSONL with prompt or messages, choices and label
    #[arg(required = true, value_name = "QUESTIONS")]
    pub inputs: Vec<PathBuf>,
    /// What the fine-tuning component is multiplied with; 1 is the tuned model and must be among them
    #[arg(
        long,
        value_name = "A,B,…",
        value_delimiter = ',',
        default_value = "0.75,0.9,0.95,1,1.05,1.1,1.25",
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

/// Flags of `tuco compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareOptions {
    /// Prompts as for tuco score. Rows with a label are of that class, others of the class that their file is named after
    #[arg(required = true, value_name = "PROMPTS")]
    pub inputs: Vec<PathBuf>,
    /// Take classes from this field of the rows (or of their meta) instead of label
    #[arg(long, value_name = "FIELD", default_value = "label", env = "TUCO_BY")]
    pub by: String,
    #[command(flatten)]
    pub common: ExperimentOptions,
}

/// Flags of `tuco trace`.
#[derive(Debug, Clone, Args)]
pub struct TraceOptions {
    /// What the model is told
    pub prompt: String,
    /// What it answers; its tokens are traced too
    #[arg(long, value_name = "TEXT")]
    pub response: Option<String>,
    #[command(flatten)]
    pub common: ExperimentOptions,
}

fn parse_folds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|folds| (2..=1000).contains(folds)).ok_or_else(|| "expected 2 to 1000".into())
}

/// The pair, the threads and the tokenizer of an experiment.
pub struct Opened<'a> {
    caller: Caller<'a>,
    pub options: ExperimentOptions,
    pub pair: Pair,
    pool: rayon::ThreadPool,
    pub encoder: Encoder,
}

impl<'a> Opened<'a> {
    pub fn open(options: ExperimentOptions, caller: Caller<'a>) -> Result<Self> {
        let pool = thread_pool(&options.machine)?;
        let pair = pool.install(|| open_pair(&options.pair))?;
        let tell_unless_quiet = |text: &str| {
            if !options.quiet {
                tell(text);
            }
        };
        let date = options.prompts.date(None);
        let encoder = open_encoder(&pair, &options.prompts, date, &tell_unless_quiet)?;
        Ok(Self { caller, options, pair, pool, encoder })
    }

    /// Reads the rows of the inputs, of each as many as `--limit` says; `field` is one that rows may have besides the usual.
    pub fn read(
        &self,
        inputs: &[PathBuf],
        field: Option<&str>,
        mut each: impl FnMut(&Path, Line) -> Result<()>,
    ) -> Result<()> {
        for path in inputs {
            let mut lines = Source::open(std::slice::from_ref(path))?.lines().expecting(field);
            let mut taken = 0;
            while let Some(line) = lines.next().filter(|_| taken < self.options.limit.unwrap_or(usize::MAX)) {
                let line = line?;
                lines.take_warnings().iter().for_each(|warning| tell(warning));
                taken += 1;
                each(path, line)?;
            }
        }
        self.encoder.take_warnings().iter().for_each(|warning| tell(warning));
        Ok(())
    }

    /// The tokens of a row.
    pub fn encode(&self, content: Result<Content, RowError>) -> Result<Encoded, Failure> {
        content.and_then(|content| self.encoder.encode(&content)).map_err(Failure::from)
    }

    /// The fields of a summary that tell the pair, as [`report`](super::report()) compares them.
    fn about_pair(&self) -> [(&'static str, Value); 6] {
        let AboutPair { models, adapters, dtypes } = AboutPair::new(&self.pair, &self.options.pair);
        [
            ("base", models.pt.into()),
            ("tuned", models.ft.into()),
            ("base_adapter", adapters.pt.into()),
            ("adapter", adapters.ft.into()),
            ("merge_adapter", self.options.pair.merge_adapter.into()),
            ("dtype", json!({ "base": dtypes.pt, "tuned": dtypes.ft })),
        ]
    }

    /// Runs the experiment on the device, writes what it found and prints its tables.
    pub fn run(&self, experiment: &Experiment) -> Result<()> {
        let rows = experiment.rows();
        let Self { options, pair, pool, .. } = self;
        pair.notices.iter().for_each(|notice| tell(notice));
        let mut folder = Folder::create(&options.output, options.overwrite)?;
        let progress = Progress::new(rows as u64, options.quiet);
        let machine = &options.machine;
        let limits = BatchLimits {
            prompts: machine.batch_size.unwrap_or(usize::MAX),
            tokens: machine.max_batch_tokens,
            memory: None,
        };
        let computers = pool.install(|| Computers::choose(machine, pair, &tell))?;
        let several;
        let pools = match computers.count() {
            1 => std::slice::from_ref(pool),
            count => {
                several = thread_pools(machine, count)?;
                several.as_slice()
            }
        };
        let device = computers.name();
        let batching = Batching { limits, progress: &progress, pools, stop: self.caller.stop, warn: &tell };
        let outcome =
            computers.run(Running { experiment, opened: self, batching: &batching, folder: &mut folder });
        let closing = progress.finish();
        let mut summary = outcome.map_err(|error| match error.kind {
            ErrorKind::Interrupted => {
                let dir = options.output.display();
                Error::new(error.kind, format!("stopped; {dir} is incomplete, --overwrite starts again"))
            }
            _ => error,
        })?;
        for (name, value) in self.about_pair() {
            summary[name] = value;
        }
        summary["device"] = device.into();
        summary["apply_chat_template"] = options.prompts.apply_chat_template.into();
        summary["tuco_version"] = env!("CARGO_PKG_VERSION").into();
        summary["command"] = json!(self.caller.command);
        let report = experiment::report(&summary).expect("an experiment's own summary");
        let errors = folder.errors();
        folder.finish(&summary, &report)?;
        if let Some(warning) = jailbreak::warning(&summary) {
            tell(&warning);
        }
        if std::io::stdout().is_terminal()
            && let (Experiment::Trace(_), Some(text)) = (experiment, trace::colored(&summary))
        {
            output::print(&text)?;
        }
        output::print(&report.to_markdown())?;
        if !options.quiet {
            tell(&closing);
            tell(&format!("{} has rows, summary, plot and report", options.output.display()));
        }
        if options.fail_on_error.is_exceeded(errors, rows as u64) {
            return Err(Error::new(
                ErrorKind::BadRows,
                format!(
                    "{errors} of {rows} rows could not be used, more than --fail-on-error allows; their rows say why"
                ),
            ));
        }
        Ok(())
    }
}

/// An experiment whose inputs are read and checked.
pub enum Experiment {
    Sweep(Vec<Task>, Grid),
    Compare(Vec<compare::Prompt>),
    Jailbreak { prompts: Vec<jailbreak::Prompt>, labels: jailbreak::Labels, completing: Completing },
    ManyShot { prompts: Vec<many_shot::Prompt>, shots: Vec<usize>, columns: Columns },
    Trace(trace::Text),
}

impl Experiment {
    fn rows(&self) -> usize {
        match self {
            Self::Sweep(tasks, _) => tasks.iter().map(|task| task.rows.len()).sum(),
            Self::Compare(prompts) => prompts.len(),
            Self::Jailbreak { prompts, .. } => prompts.len(),
            Self::ManyShot { prompts, .. } => prompts.len(),
            Self::Trace(_) => 1,
        }
    }
}

/// An experiment on its way, whichever backends compute.
struct Running<'a> {
    experiment: &'a Experiment,
    opened: &'a Opened<'a>,
    batching: &'a Batching<'a>,
    folder: &'a mut Folder,
}

impl SharedWork for Running<'_> {
    /// The summary.
    type Output = Result<Value>;

    fn on<B: Backend>(self, backends: &[&B]) -> Result<Value> {
        let Self { experiment, opened, batching, folder } = self;
        let encoder = &opened.encoder;
        let engines = backends.iter().map(|backend| Engine::new(*backend, &opened.pair));
        match experiment {
            Experiment::Sweep(tasks, grid) => {
                sweep::run(&engines.collect::<Vec<_>>(), tasks, grid, batching, folder)
            }
            Experiment::Compare(prompts) => compare::run(engines.collect(), prompts, batching, folder),
            Experiment::Jailbreak { prompts, labels, completing } => {
                let generating = engines.map(|engine| Generating { engine, encoder, completing });
                jailbreak::run(generating.collect(), prompts, labels, batching, folder)
            }
            Experiment::ManyShot { prompts, shots, columns } => {
                let scoring = engines.map(|engine| Scoring { engine, columns: *columns });
                many_shot::run(&scoring.collect::<Vec<_>>(), prompts, shots, batching, folder)
            }
            Experiment::Trace(text) => {
                let engine = Engine::new(backends[0], &opened.pair);
                trace::run(&engine, text, encoder, batching, folder)
            }
        }
    }
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
    let task = |path: &PathBuf| {
        let mut rows = questions::read(path, &examples, &opened.encoder)?;
        rows.truncate(opened.options.limit.unwrap_or(usize::MAX));
        Ok(Task { name: stem(path), rows })
    };
    let tasks = options.inputs.iter().map(task).collect::<Result<Vec<Task>>>()?;
    let grid = Grid { alphas: options.alphas, folds: options.folds };
    sweep::check(&tasks, &grid)?;
    opened.run(&Experiment::Sweep(tasks, grid))
}

/// `tuco compare`.
///
/// # Errors
/// As [`sweep()`].
pub fn compare(options: CompareOptions, caller: Caller<'_>) -> Result<()> {
    let opened = Opened::open(options.common, caller)?;
    let mut prompts = Vec::new();
    let is_label = options.by == "label";
    opened.read(&options.inputs, Some(&options.by), |path, line| {
        let class = match line.field(&options.by) {
            Some(Value::String(class)) => Some(class.clone()),
            Some(class) => Some(class.to_string()),
            // It might have told another class than its file.
            None if is_unread(&line) => None,
            None if is_label => Some(stem(path)),
            None => Some(format!("no {}", options.by)),
        };
        prompts.push(compare::Prompt { id: line.id, about: class, encoded: opened.encode(line.content) });
        Ok(())
    })?;
    compare::check(&prompts)?.iter().for_each(|warning| tell(warning));
    opened.run(&Experiment::Compare(prompts))
}

/// Whether a line is no row.
fn is_unread(line: &Line) -> bool {
    use RowErrorKind::{InvalidJson, InvalidRow, InvalidUtf8};
    matches!(&line.content, Err(RowError { kind: InvalidJson | InvalidRow | InvalidUtf8, .. }))
}

/// `tuco trace`.
///
/// # Errors
/// As [`sweep()`]; weights that overflow on this text.
pub fn trace(options: TraceOptions, caller: Caller<'_>) -> Result<()> {
    if options.prompt.is_empty() || options.response.as_ref().is_some_and(String::is_empty) {
        let what = if options.prompt.is_empty() { "the prompt" } else { "--response" };
        return Err(Error::usage(format!("{what} is empty, expected text")));
    }
    options.common.machine.device.check_is_one()?;
    let opened = Opened::open(options.common, caller)?;
    opened.pair.checkpoints.ft.head()?;
    let encoder = &opened.encoder;
    let usage = |error: RowError| Error::usage(error.message);
    let encoded = encoder.encode(&Content::Prompt(options.prompt)).map_err(usage)?;
    let Encoded { mut token_ids, truncated } = encoded;
    let prompt = token_ids.len();
    if let Some(response) = &options.response {
        token_ids.extend(encoder.continuation(response).map_err(usage)?);
    }
    if token_ids.len() > encoder.max_length() {
        return Err(Error::usage(format!(
            "prompt and response have {} tokens, but the model takes at most {}",
            token_ids.len(),
            encoder.max_length()
        )));
    }
    opened.run(&Experiment::Trace(trace::Text { token_ids, prompt, truncated }))
}

/// A file's name without its ending.
fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}
