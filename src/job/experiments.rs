//! What the jobs of all experiments have in common.

use super::{
    AboutPair, Caller, Computers, FailOnError, FieldOptions, MachineOptions, MemoryOptions, PairOptions,
    PromptOptions, open_encoder, open_pair, parse_count,
    resume::{Earlier, Origin, begun, how_to_go_on},
    tell, thread_pool, thread_pools,
};
use crate::{
    Error, Result,
    checkpoint::Pair,
    engine::{AnyEngine, Footprint, PackLimits},
    experiment::{
        self, batches,
        batches::Batching,
        compare,
        generate::{Completing, Generating},
        jailbreak, many_shot,
        score::{Columns, Scoring},
        sweep::{self, Grid, Questions},
        trace,
    },
    hash,
    model::PairWeights,
    output::{self, Folder, Manifest, Progress},
    prompt::{Content, Encoded, Encoder, Line, RowError, Source, check_inputs},
};
use clap::Args;
use serde_json::{Value, json};
use std::{fmt, io::IsTerminal, path::PathBuf};

/// What all experiments have in common.
#[derive(Debug, Clone, Args)]
pub struct ExperimentOptions {
    /// The folder for rows.jsonl, summary.json, plots and report.html. The same command goes on where an interrupted one stopped
    #[arg(short, long, value_name = "DIR", env = "TUCO_OUTPUT")]
    pub output: PathBuf,
    /// Start again even if the folder holds an experiment
    #[arg(long)]
    pub overwrite: bool,
    /// Only the first N rows of each input
    #[arg(long, value_name = "N", value_parser = parse_count, env = "TUCO_LIMIT")]
    pub limit: Option<usize>,
    /// Exit with code 3 if more rows than this number (1 and above), or than this fraction (below 1), cannot be used
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
    #[command(flatten)]
    pub memory: MemoryOptions,
}

/// The pair, the threads and the tokenizer of an experiment.
pub struct Opened<'a> {
    caller: Caller<'a>,
    pub options: ExperimentOptions,
    earlier: Earlier,
    pub pair: Pair,
    pool: rayon::ThreadPool,
    pub encoder: Encoder,
}

impl<'a> Opened<'a> {
    pub fn open(options: ExperimentOptions, caller: Caller<'a>) -> Result<Self> {
        let pool = thread_pool(&options.machine)?;
        let pair = pool.install(|| open_pair(&options.pair, options.memory))?;
        let tell_unless_quiet = |text: &str| {
            if !options.quiet {
                tell(text);
            }
        };
        let rows = Folder::rows_in(&options.output);
        let earlier = Earlier::read(begun(&rows, options.overwrite))?;
        let date = earlier.template_date(&options.prompts);
        let encoder = open_encoder(&pair, &options.prompts, date, &tell_unless_quiet)?;
        Ok(Self { caller, options, earlier, pair, pool, encoder })
    }

    /// Reads the rows of the inputs, of each as many as `--limit` says, numbered through, whatever the limit; `fields` are those that rows may have besides the usual. `each`
    /// gets them with the [`names`] of their files.
    pub fn read(
        &self,
        inputs: &[PathBuf],
        named: &FieldOptions,
        fields: &[&str],
        mut each: impl FnMut(&str, Line) -> Result<()>,
    ) -> Result<()> {
        self.check_inputs(inputs)?;
        let mut number = 0;
        for (path, name) in inputs.iter().zip(names(inputs)) {
            let lines = Source::open(std::slice::from_ref(path))?.lines().numbered_after(number);
            let mut lines = lines.expecting(fields).with_prompts_in(named.prompt_field.as_deref());
            let mut taken = 0;
            while let Some(line) = lines.next().filter(|_| taken < self.options.limit.unwrap_or(usize::MAX)) {
                let line = line?;
                lines.take_warnings().iter().for_each(|warning| tell(warning));
                taken += 1;
                each(&name, line)?;
            }
            number = lines.last_number()?;
        }
        self.encoder.take_warnings().iter().for_each(|warning| tell(warning));
        Ok(())
    }

    /// # Errors
    /// A usage error where standard input is named twice, or a file that the results are to be written to.
    pub fn check_inputs(&self, inputs: &[PathBuf]) -> Result<()> {
        output::check_not_read(&Folder::rows_in(&self.options.output), inputs)?;
        check_inputs(inputs)
    }

    /// The tokens of the row at `place` that so many are to follow.
    pub fn encode(
        &self,
        place: &str,
        content: Result<Content, RowError>,
        following: usize,
    ) -> Result<Encoded, RowError> {
        let encode = |content: Content| self.encoder.encode_before(content.as_ref(), following);
        content.and_then(|content| encode(content).map_err(|error| error.at(place)))
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

    /// What the rows of an experiment depend on.
    fn manifest(&self, experiment: &Experiment, mut what: Value, device: &str) -> Result<Manifest> {
        let Self { caller, options, pair, pool, encoder, .. } = self;
        let origin = Origin {
            caller: *caller,
            pair,
            pair_options: &options.pair,
            prompts: &options.prompts,
            device,
            encoder,
        };
        what["limit"] = json!(options.limit);
        what["prompts"] = experiment.rows().into();
        pool.install(|| origin.manifest(what, json!({})))
    }

    /// The folder that it writes to, which says in `about_pair` which weights are at work, where all are hashed.
    fn folder(
        &self,
        experiment: &Experiment,
        device: &str,
        about_pair: &mut Vec<(&'static str, Value)>,
    ) -> Result<Folder> {
        let ExperimentOptions { output, overwrite, machine, .. } = &self.options;
        let Some(what) = experiment.fingerprint() else { return Folder::of_one_batch(output, *overwrite) };
        let manifest = self.manifest(experiment, what, device)?;
        self.earlier.check_device(&machine.device, &manifest)?;
        self.earlier.other_machine(&manifest).iter().for_each(|notice| tell(notice));
        about_pair.extend(weights_of(&manifest));
        Folder::open(output, manifest, *overwrite)
    }

    /// Runs the experiment on the device, writes what it found and prints its tables. Goes on with the rows of an earlier run.
    pub fn run(self, experiment: &Experiment) -> Result<()> {
        let rows = experiment.rows();
        self.pair.notices.iter().for_each(|notice| tell(notice));
        let computers = self.pool.install(|| Computers::choose(&self.options.machine, &self.pair, &tell))?;
        self.options.memory.check(&computers, &self.options.machine.device)?;
        let threads = self.pool.current_num_threads();
        let footprint = |limits| experiment.footprint(&self.pair, limits, threads);
        let memory = self.options.memory.divide(self.pair.spec().ft, footprint)?;
        let device = computers.name();
        let mut about_pair = Vec::from(self.about_pair());
        let mut folder = self.folder(experiment, &device, &mut about_pair)?;
        let Self { caller, options, pair, pool, encoder, .. } = self;
        let machine = &options.machine;
        let progress = Progress::new(rows as u64, options.quiet);
        let limits = machine.limits(memory.map(|(_, memory)| memory));
        let pools = thread_pools(pool, computers.count())?;
        let batching =
            Batching { limits, progress: &progress, pools: &pools, stop: caller.stop, warn: &tell };
        let engines = computers.engines(&pair, memory.map(|(limits, _)| limits));
        let engines: Vec<&dyn AnyEngine> = engines.iter().map(AsRef::as_ref).collect();
        let outcome = experiment.run(&engines, &encoder, &batching, &mut folder);
        let closing = progress.finish();
        let mut summary = outcome.map_err(|error| match folder.goes_on() {
            true => how_to_go_on(&Folder::rows_in(&options.output), options.overwrite, error),
            false => error,
        })?;
        for (name, value) in about_pair {
            summary[name] = value;
        }
        summary["device"] = device.into();
        summary["apply_chat_template"] = options.prompts.apply_chat_template.into();
        summary["system_instruction"] = options.prompts.system_instruction.clone().into();
        if let Some(truncated) = experiment.truncated() {
            summary["truncated"] = truncated.into();
        }
        summary["tuco_version"] = env!("CARGO_PKG_VERSION").into();
        summary["command"] = json!(caller.command);
        let report = experiment::report(&summary).expect("an experiment's own summary");
        let errors = folder.errors();
        folder.finish(&summary, &report)?;
        if std::io::stdout().is_terminal()
            && let (Experiment::Trace(_), Some(text)) = (experiment, trace::colored(&summary))
        {
            output::print(&text)?;
        }
        output::print(&report.to_markdown())?;
        if !options.quiet {
            tell(&closing);
            options.memory.closing()?.iter().for_each(|closing| tell(closing));
            tell(&format!("{} has rows, summary, plot and report", options.output.display()));
        }
        options.fail_on_error.check(errors, rows as u64)
    }
}

/// An experiment whose inputs are read and checked.
#[expect(clippy::large_enum_variant, reason = "a run has one")]
pub enum Experiment {
    Sweep(Vec<Questions>, Grid),
    Compare(Vec<compare::Prompt>),
    Jailbreak { plan: jailbreak::Plan, completing: Completing },
    ManyShot { prompts: Vec<many_shot::Prompt>, shots: Vec<usize>, columns: Columns },
    Trace(trace::TracedText),
}

impl Experiment {
    fn rows(&self) -> usize {
        match self {
            Self::Sweep(tasks, _) => tasks.iter().map(|task| task.rows.len()).sum(),
            Self::Compare(prompts) => prompts.len(),
            Self::Jailbreak { plan, .. } => plan.prompts.len(),
            Self::ManyShot { prompts, .. } => prompts.len(),
            Self::Trace(_) => 1,
        }
    }

    /// How many prompts were cut; `None` where what comes of the one there is says that itself.
    fn truncated(&self) -> Option<usize> {
        fn of<A>(prompts: &[batches::Prompt<A>]) -> usize {
            prompts
                .iter()
                .filter_map(|prompt| prompt.encoded.as_ref().ok())
                .filter(|row| row.truncated)
                .count()
        }
        match self {
            Self::Sweep(tasks, _) => {
                Some(tasks.iter().flat_map(Questions::asked).filter(|question| question.truncated).count())
            }
            Self::Compare(prompts) => Some(of(prompts)),
            Self::Jailbreak { plan, .. } => Some(of(&plan.prompts)),
            Self::ManyShot { prompts, .. } => Some(of(prompts)),
            Self::Trace(_) => None,
        }
    }

    /// What its passes take of memory.
    fn footprint(&self, pair: &Pair, limits: PackLimits, threads: usize) -> Result<Footprint> {
        let of_scores = Footprint::of_score(pair, limits, threads);
        match self {
            Self::Sweep(tasks, Grid { alphas, .. }) => {
                Footprint::of_steering(pair, limits, threads, alphas, sweep::most_answers(tasks))
            }
            Self::Jailbreak {
                plan: jailbreak::Plan { labels: jailbreak::Labels::Sampled { .. }, .. },
                completing,
            } => Ok(of_scores.or(Footprint::of_generation(pair, limits, threads, &completing.generation)?)),
            Self::Compare(_) | Self::Jailbreak { .. } | Self::ManyShot { .. } => Ok(of_scores),
            Self::Trace(_) => Ok(Footprint::of_traces(pair, limits, threads)),
        }
    }

    /// Computes it, on an engine for each device.
    ///
    /// # Returns
    /// The summary.
    fn run(
        &self,
        engines: &[&dyn AnyEngine],
        encoder: &Encoder,
        batching: &Batching<'_>,
        folder: &mut Folder,
    ) -> Result<Value> {
        match self {
            Self::Sweep(tasks, grid) => sweep::run(engines, tasks, grid, batching, folder),
            Self::Compare(prompts) => compare::run(engines, prompts, batching, folder),
            Self::Jailbreak { plan, completing } => {
                let generating =
                    engines.iter().map(|engine| Generating { engine: *engine, encoder, completing });
                jailbreak::run(&generating.collect::<Vec<_>>(), plan, batching, folder)
            }
            Self::ManyShot { prompts, shots, columns } => {
                many_shot::run(&Scoring::of_each(engines, *columns), prompts, shots, batching, folder)
            }
            Self::Trace(text) => trace::run(engines[0], text, encoder, batching, folder),
        }
    }

    /// What its rows depend on besides the pair; `None` where those of an earlier run are of no use, since all come at once. All that is
    /// known of the prompts is hashed, so that inputs are read once.
    fn fingerprint(&self) -> Option<Value> {
        let of_jailbreaks;
        let (mut what, prompts): (Value, &dyn fmt::Debug) = match self {
            Self::Sweep(tasks, Grid { alphas, .. }) => {
                (json!({ "experiment": "sweep", "alphas": alphas }), tasks)
            }
            Self::Compare(prompts) => {
                (json!({ "experiment": "compare", "classes": compare::classes(prompts) }), prompts)
            }
            Self::Jailbreak { plan: jailbreak::Plan { prompts, labels, .. }, completing } => {
                let what = match labels {
                    jailbreak::Labels::Judged { column } => {
                        json!({ "experiment": "jailbreak", "judge_column": column })
                    }
                    jailbreak::Labels::Sampled { refusals, successes } => json!({
                        "experiment": "jailbreak",
                        "generation": completing.fingerprint(),
                        "refusals": refusals.sha256(),
                        "successes": successes,
                    }),
                };
                // Kinds are told apart afterwards.
                of_jailbreaks = prompts.iter().map(jailbreak::what_rows_depend_on).collect::<Vec<_>>();
                (what, &of_jailbreaks)
            }
            Self::ManyShot { prompts, shots, columns: Columns { output_co, .. } } => {
                (json!({ "experiment": "many-shot", "shots": shots, "output_co": output_co }), prompts)
            }
            Self::Trace(_) => return None,
        };
        // Only ever compared with what the same version of the program writes.
        what["prompts_sha256"] = hash::sha256_of_debug(prompts).into();
        Some(what)
    }
}

/// The fields of a summary that say which weights both models have: hashes of the hashes of their files.
pub fn weights_of(manifest: &Manifest) -> impl Iterator<Item = (&'static str, Value)> {
    let of = |(name, field)| Some((name, hash::sha256(manifest.field(field)?.to_string().as_bytes()).into()));
    WEIGHTS.into_iter().filter_map(of)
}

/// Those fields, and what manifests call the files.
pub const WEIGHTS: [(&str, &str); 2] = [("base_sha256", "base"), ("tuned_sha256", "tuned")];

/// Of a field that was to tell rows apart.
pub fn no_such_field(by: &str) -> Error {
    Error::usage(format!("--by {by}: no row has this field, nor its meta"))
}

/// What files are called where results tell them apart: by their names without endings, or by their paths where several have one name.
pub fn names(paths: &[PathBuf]) -> Vec<String> {
    let stem = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let is_alone = |path: &PathBuf| paths.iter().filter(|other| stem(other) == stem(path)).count() == 1;
    let name = |path: &PathBuf| stem(path).filter(|_| is_alone(path));
    paths.iter().map(|path| name(path).unwrap_or_else(|| path.display().to_string())).collect()
}
