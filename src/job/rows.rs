//! The jobs that write a row for every row of input: `tuco score` and `tuco generate`.

use super::{
    Caller, Computers, FailOnError, FieldOptions, InputOptions, MachineOptions, MemoryOptions, PairOptions,
    PromptOptions, open_encoder, open_pair,
    resume::{Earlier, Origin, begun, how_to_go_on},
    shard::ShardChoice,
    tell, thread_pool, thread_pools,
};
use crate::{
    Result,
    checkpoint::Pair,
    engine::{AnyEngine, Footprint, PackLimits},
    experiment::{
        filling::{BatchLimits, Memory},
        generate::{Completing, Generating},
        rows::Run,
        score::{Columns, Scoring},
        task::Task,
        worker::Worker,
    },
    model::PairWeights,
    output::{self, Done, Progress, SHARDS, Shard, Sink, check_rows_output},
    prompt::{Encoder, Source},
};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// What these jobs have in common.
#[derive(Debug, Clone, Args)]
pub struct RowsOptions {
    #[command(flatten)]
    pub input: InputOptions,
    /// Where rows go: a file of JSON lines, appended as batches finish, or OUT.parquet, made when all rows are there; default:
    /// standard output. The same command goes on where an interrupted one stopped
    #[arg(short, long, value_name = "OUT.jsonl", env = "TUCO_OUTPUT")]
    pub output: Option<PathBuf>,
    /// Only this part of the rows: part i of n (0/8 to 7/8), or auto, as a Slurm array or a Kubernetes Indexed Job tells it. -o
    /// is then a folder that all parts share; `tuco merge` makes one file of them
    #[arg(long, value_name = "i/n|auto", requires = "output", env = "TUCO_SHARD")]
    pub shard: Option<ShardChoice>,
    /// Only read and tokenize all rows, and tell how many rows, errors, tokens and batches there are
    #[arg(long, env = "TUCO_DRY_RUN")]
    pub dry_run: bool,
    /// Start again even if the output file holds rows
    #[arg(long, requires = "output")]
    pub overwrite: bool,
    /// Exit with code 3 if more rows than this number (1 and above), or than this fraction (below 1), are errors
    #[arg(long, value_name = "FRACTION|N", default_value = "0.1", env = "TUCO_FAIL_ON_ERROR")]
    pub fail_on_error: FailOnError,
    /// No progress and no closing line
    #[arg(short, long, env = "TUCO_QUIET")]
    pub quiet: bool,
    #[command(flatten)]
    pub pair: PairOptions,
    #[command(flatten)]
    pub fields: FieldOptions,
    #[command(flatten)]
    pub prompts: PromptOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    #[command(flatten)]
    pub memory: MemoryOptions,
}

/// What is done with each row.
pub enum What {
    Score { columns: Columns, prefix_sharing: bool },
    Generate(Completing),
}

impl What {
    /// The fields of a manifest that say it.
    fn fingerprint(&self) -> Value {
        match self {
            What::Score { columns: Columns { layers, output_co }, .. } => {
                json!({ "layers": layers, "output_co": output_co })
            }
            What::Generate(completing) => completing.fingerprint(),
        }
    }

    fn footprint(&self, pair: &Pair, limits: PackLimits, threads: usize) -> Result<Footprint> {
        match self {
            What::Score { .. } => Ok(Footprint::of_score(pair, limits, threads)),
            What::Generate(completing) => {
                Footprint::of_generation(pair, limits, threads, &completing.generation)
            }
        }
    }
}

impl Setup<'_> {
    /// An engine for each device.
    fn engines<'a>(&'a self, computers: &'a Computers) -> Vec<Box<dyn AnyEngine + 'a>> {
        let mut engines = computers.engines(&self.pair, self.memory.map(|(limits, _)| limits));
        for engine in &mut engines {
            if let What::Score { prefix_sharing, .. } = self.what {
                engine.set_prefix_sharing(prefix_sharing);
            }
        }
        engines
    }
}

/// A run that can start.
pub struct RowsJob<'a> {
    setup: Setup<'a>,
    computers: Computers,
    source: Source,
    sink: Sink,
    /// Rows of this run; in a shard about so many.
    total: u64,
}

/// What stays as it is during a run.
struct Setup<'a> {
    caller: Caller<'a>,
    options: RowsOptions,
    what: What,
    pair: Pair,
    encoder: Encoder,
    /// The threads of each device.
    pools: Vec<rayon::ThreadPool>,
    shard: Option<Shard>,
    /// How `--max-memory` is divided.
    memory: Option<(PackLimits, Memory)>,
    /// Rows to read at most.
    limit: u64,
}

impl<'a> RowsJob<'a> {
    /// Checks everything and opens the output; `what` is to be done may depend on the pair.
    ///
    /// # Errors
    /// See the modules that open pairs, prompts and outputs; nothing has been computed then.
    pub fn prepare(
        mut options: RowsOptions,
        caller: Caller<'a>,
        what: impl FnOnce(&Pair, &Encoder) -> Result<What>,
    ) -> Result<Self> {
        if options.dry_run {
            options.output = None;
        }
        let environment = |name: &str| std::env::var(name).ok();
        let shard = options.shard.map(|choice| choice.resolve(environment)).transpose()?;
        let folder = shard.and_then(|_| options.output.take());
        if let (Some(shard), Some(folder)) = (shard, &folder) {
            output::make_folder(folder)?;
            options.output = Some(shard.path(folder));
        }
        if let Some(output) = &options.output {
            check_rows_output(output)?;
            output::check_not_read(output, &options.input.inputs)?;
        }
        let pool = thread_pool(&options.machine)?;
        let pair = pool.install(|| open_pair(&options.pair, options.memory))?;
        let tell = |text: &str| {
            if !options.quiet {
                tell(text);
            }
        };
        let computers = pool.install(|| Computers::choose(&options.machine, &pair, &tell))?;
        options.memory.check(&computers, &options.machine.device)?;
        let neighbour = folder.as_deref().zip(shard).map(|(folder, shard)| shard.neighbour(folder));
        let neighbour = neighbour.transpose()?.flatten();
        // Its own output where that has rows, and what another shard has begun. One that starts again will be followed by the others.
        let neighbour = neighbour.filter(|_| !options.overwrite);
        let own = options.output.as_deref().and_then(|output| begun(output, options.overwrite));
        let earlier = Earlier::read(own.into_iter().chain(neighbour.as_deref()))?;
        let date = earlier.template_date(&options.prompts);
        let encoder = open_encoder(&pair, &options.prompts, date, &tell)?;
        let what = what(&pair, &encoder)?;
        let source = Source::open(&options.input.inputs)?;
        let lines = source.count_lines()?;
        let limit = options.input.limit.map_or(u64::MAX, |limit| limit.of(lines));
        let threads = pool.current_num_threads();
        let footprint = |limits| what.footprint(&pair, limits, threads);
        let memory = options.memory.divide(pair.spec().ft, footprint)?;
        let sink = match &options.output {
            None => Sink::Stdout,
            Some(path) => {
                let origin = Origin {
                    caller,
                    pair: &pair,
                    pair_options: &options.pair,
                    prompts: &options.prompts,
                    device: &computers.name(),
                    encoder: &encoder,
                };
                let inputs = source.fingerprints()?;
                let mut fingerprint = what.fingerprint();
                fingerprint["limit"] = options.input.limit.map_or(Value::Null, Value::from);
                fingerprint["prompt_field"] = json!(options.fields.prompt_field);
                fingerprint["inputs"] = inputs.iter().map(|(_, hash)| hash.as_str()).collect();
                let about = json!({ "inputs": inputs.iter().map(|(path, _)| path).collect::<Vec<_>>() });
                let manifest = pool.install(|| origin.manifest(fingerprint, about))?;
                let manifest = match shard {
                    None => manifest,
                    Some(shard) => manifest.with(SHARDS, shard.count.into()),
                };
                earlier.check_device(&options.machine.device, &manifest)?;
                earlier.other_machine(&manifest).iter().for_each(|notice| tell(notice));
                if let Some(neighbour) = &neighbour {
                    manifest.check_continues(neighbour)?;
                }
                Sink::create(path, manifest, options.overwrite, || Ok(()))?
            }
        };
        let pools = thread_pools(pool, computers.count())?;
        Ok(Self {
            total: lines.min(limit) / shard.map_or(1, |shard| shard.count),
            setup: Setup { caller, options, what, pair, encoder, pools, shard, memory, limit },
            computers,
            source,
            sink,
        })
    }

    /// Does it to all rows; notices and progress go to standard error.
    ///
    /// # Errors
    /// See [`Run::pass`]; [`ErrorKind::BadRows`] when more rows failed than `--fail-on-error` allows.
    pub fn run(self) -> Result<Done> {
        let Self { setup, computers, mut source, mut sink, total } = self;
        let options = &setup.options;
        let quiet = options.quiet;
        let how_to_go_on = |error| match &options.output {
            Some(output) => how_to_go_on(output, options.overwrite, error),
            None => error,
        };
        for notice in &setup.pair.notices {
            tell(notice);
        }
        let progress = Progress::new(total, quiet);
        let summary = match sink.done() {
            Some(done) => {
                progress.resumed(done.rows);
                done.clone()
            }
            None => {
                let running =
                    Running { setup: &setup, source: &mut source, sink: &mut sink, progress: &progress };
                let engines = setup.engines(&computers);
                let engines: Vec<&dyn AnyEngine> = engines.iter().map(AsRef::as_ref).collect();
                running.on(&engines).map_err(how_to_go_on)?
            }
        };
        let closing = progress.finish();
        if !quiet {
            options.memory.closing()?.iter().for_each(|closing| tell(closing));
        }
        sink.finish(&summary).map_err(how_to_go_on)?;
        if !quiet {
            tell(&closing);
        }
        if summary.rows_of_all == 0 {
            tell("the inputs have no rows");
        }
        if let Some(first) = &summary.first_error {
            tell(&format!("{} of {} rows are errors; the first: {first}", summary.errors, summary.rows));
        }
        options.fail_on_error.check(summary.errors, summary.rows)?;
        Ok(summary)
    }
}

/// The run itself.
struct Running<'a> {
    setup: &'a Setup<'a>,
    source: &'a mut Source,
    sink: &'a mut Sink,
    progress: &'a Progress,
}

impl Running<'_> {
    /// Does it on an engine for each device.
    fn on(self, engines: &[&dyn AnyEngine]) -> Result<Done> {
        let Setup { options, what, encoder, .. } = self.setup;
        let most_tokens = options.machine.max_batch_tokens;
        match what {
            What::Score { columns, .. } => self.pass(&Scoring::of_each(engines, *columns), most_tokens),
            What::Generate(completing) => {
                let tasks = engines.iter().map(|engine| Generating { engine: *engine, encoder, completing });
                let tasks: Vec<_> = tasks.collect();
                let most_tokens = most_tokens.min(tasks[0].most_tokens());
                self.pass(&tasks, most_tokens)
            }
        }
    }

    /// Passes all rows through the tasks, one of each device.
    fn pass(self, tasks: &[impl Task], most_tokens: usize) -> Result<Done> {
        let Setup { caller, options, encoder, pools, shard, memory, limit, .. } = self.setup;
        let run = Run {
            workers: Worker::of_each(tasks, pools),
            encoder,
            limits: BatchLimits {
                tokens: most_tokens,
                ..options.machine.limits(memory.map(|(_, memory)| memory))
            },
            shard: *shard,
            progress: self.progress,
            stop: caller.stop,
        };
        let mut lines = self.source.lines().with_prompts_in(options.fields.prompt_field.as_deref());
        // The work is done by the pools' threads; reading, writing and telling stay on this one.
        if !options.dry_run {
            return run.pass(&mut lines, *limit, self.sink, &tell);
        }
        let plan = run.plan(&mut lines, *limit, &tell)?;
        output::print(&plan.to_string())?;
        Ok(plan.done)
    }
}
