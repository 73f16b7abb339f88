//! Flags → a job that can start. Everything that can fail early fails here: paths, checkpoints, the pair, inputs, the
//! output and what it already holds.

mod bench;
mod compare;
mod demo;
mod device;
mod experiments;
mod generate;
mod jailbreak;
mod many_shot;
mod memory;
mod merge;
mod options;
mod report;
mod resume;
mod rows;
mod score;
mod shard;
mod sweep;
mod trace;

pub use bench::{BenchOptions, bench};
pub use compare::{CompareOptions, compare};
pub use demo::{DemoOptions, demo};
pub use device::{Computer, Computers, Device, Precision, Resident};
pub use experiments::ExperimentOptions;
pub use generate::{ChoiceOptions, GenerateOptions, generate};
pub use jailbreak::{JailbreakOptions, jailbreak};
pub use many_shot::{ManyShotOptions, many_shot};
pub use memory::{MemoryOptions, Size, left as memory_left};
pub use merge::{MergeOptions, merge};
use options::parse_count;
pub(crate) use options::{told_by_clap, with_boolish_variables, without_environment};

pub use options::{
    DtypeChoice, FailOnError, FieldOptions, InputOptions, Limit, MachineOptions, PairOptions, PrefixSharing,
    PromptOptions,
};
pub use report::{ReportOptions, report};
pub use rows::RowsOptions;
pub use score::{ScoreOptions, score};
pub use sweep::{SweepOptions, sweep};
pub use trace::{TraceOptions, trace};

use crate::{
    Error, Result,
    checkpoint::{self, Pair, Side},
    experiment::inspect,
    output::{self, tell},
    prompt::{Encoder, EncoderOptions},
    tensor::Dtype,
    twin::Twin,
};
use chrono::NaiveDate;
use serde_json::Map;
use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Who runs a job.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The command line, which manifests and summaries keep.
    pub command: &'a [String],
    /// Set from outside to stop the job.
    pub stop: &'a AtomicBool,
}

/// Opens the pair that the flags name.
pub fn open_pair(options: &PairOptions, memory: MemoryOptions) -> Result<Pair> {
    Pair::open_sides(&sides(options)?, memory.reading(options.reading()))
}

/// What results say of the pair that they are of.
struct AboutPair {
    /// Where the models lie, and their adapters.
    models: Twin<String>,
    adapters: Twin<Option<String>>,
    /// What the weights are read as.
    dtypes: Twin<&'static str>,
}

impl AboutPair {
    fn new(pair: &Pair, options: &PairOptions) -> Self {
        let checkpoints = pair.checkpoints.as_ref();
        let shown = |path: &Path| path.display().to_string();
        let chosen = options.dtype.dtype();
        Self {
            models: checkpoints.map(|checkpoint| shown(&checkpoint.path)),
            adapters: checkpoints
                .map(|checkpoint| checkpoint.adapter.as_ref().map(|adapter| shown(&adapter.dir))),
            dtypes: checkpoints.map(|checkpoint| chosen.map_or(checkpoint.encoding().name(), Dtype::name)),
        }
    }
}

/// The two models that the flags name, with their adapters.
fn sides(options: &PairOptions) -> Result<Twin<Side>> {
    let resolve = |flag: &str, name: &Option<String>, revision: &Option<String>| {
        name.as_ref().map(|name| checkpoint::resolve(flag, name, revision.as_deref())).transpose()
    };
    let unused = [
        ("--base", options.base.is_none() && options.adapter.is_none(), &options.base_revision),
        ("--tuned", options.tuned.is_none(), &options.tuned_revision),
        ("--adapter", options.adapter.is_none(), &options.adapter_revision),
        ("--base-adapter", options.base_adapter.is_none(), &options.base_adapter_revision),
    ];
    if let Some((flag, ..)) =
        unused.iter().find(|(_, is_missing, revision)| *is_missing && revision.is_some())
    {
        return Err(Error::usage(format!("{flag}-revision is given, but no {flag}")));
    }
    if options.merge_adapter && options.adapter.is_none() && options.base_adapter.is_none() {
        return Err(Error::usage(
            "--merge-adapter: there is no adapter (--adapter, --base-adapter) to merge",
        ));
    }
    let adapters = Twin::new(
        resolve("--base-adapter", &options.base_adapter, &options.base_adapter_revision)?,
        resolve("--adapter", &options.adapter, &options.adapter_revision)?,
    );
    let base = match (resolve("--base", &options.base, &options.base_revision)?, &adapters.ft) {
        (Some(base), _) => base,
        (None, Some(adapter)) => base_of_adapter(adapter, options.base_revision.as_deref())?,
        (None, None) => return Err(Error::usage("--base is missing")),
    };
    let tuned = match (resolve("--tuned", &options.tuned, &options.tuned_revision)?, &adapters.ft) {
        (Some(tuned), _) => tuned,
        (None, Some(_)) => base.clone(),
        (None, None) => return Err(Error::usage("--tuned is missing, and there is no --adapter")),
    };
    Ok(Twin::new(Side { model: base, adapter: adapters.pt }, Side { model: tuned, adapter: adapters.ft }))
}

/// The model that an adapter names as its base, at the adapter's revision of it or at another.
fn base_of_adapter(adapter: &Path, other_revision: Option<&str>) -> Result<PathBuf> {
    let config = adapter.join("adapter_config.json");
    let base = checkpoint::TrainedOn::read(adapter)?.ok_or_else(|| {
        Error::usage(format!("--base is missing, and {} has no base_model_name_or_path", config.display()))
    })?;
    // What lies in a directory has no revisions, whatever the adapter says.
    let is_path = Path::new(&base.name).exists();
    if is_path && other_revision.is_some() {
        return Err(Error::usage(format!(
            "--base-revision is given, but {} (of {}) is no Hub id",
            base.name,
            config.display()
        )));
    }
    let flag = format!("--base is missing, and base_model_name_or_path of {}:", config.display());
    checkpoint::resolve(&flag, &base.name, other_revision.or(base.revision.as_deref().filter(|_| !is_path)))
}

/// `tuco inspect`: prints what the pair is.
pub fn inspect(options: &PairOptions) -> Result<()> {
    output::print(&inspect::report(&open_pair(options, MemoryOptions::default())?))
}

/// The tuned model's tokenizer and template, as the flags want them; `tell` hears in what the vocabulary of another tokenizer
/// differs.
pub fn open_encoder(
    pair: &Pair,
    options: &PromptOptions,
    template_date: NaiveDate,
    tell: &dyn Fn(&str),
) -> Result<Encoder> {
    let tuned = &pair.checkpoints.ft;
    let (vocab_size, context_length) = (tuned.spec.vocab_size, tuned.spec.context_length);
    if let Some(max_length) = options.max_length.filter(|most| !(1..=context_length).contains(most)) {
        return Err(Error::usage(format!(
            "--max-length is {max_length}, expected 1 to {context_length} (the tuned model's context)"
        )));
    }
    let encoder_options = EncoderOptions {
        apply_chat_template: options.apply_chat_template,
        system_instruction: options.system_instruction.clone(),
        chat_template: options.chat_template.clone(),
        chat_template_args: options.chat_template_args.clone().map_or_else(Map::new, |arguments| arguments.0),
        template_date,
        max_length: options.max_length,
        on_overlength: options.on_overlength,
    };
    let own = tuned.tokenizer();
    let given = options.tokenizer.as_ref();
    let revision = options.tokenizer_revision.as_deref();
    let given = given.map(|name| checkpoint::resolve("--tokenizer", name, revision)).transpose()?;
    if let Some(given) = &given {
        let notices =
            checkpoint::compare_vocabularies(&Twin::new(own, given), &Twin::new("tuned", "--tokenizer"))?;
        notices.iter().for_each(|notice| tell(notice));
    }
    Encoder::open(given.as_deref().unwrap_or(own), vocab_size, context_length, encoder_options)
}

/// The threads that do the work.
pub fn thread_pool(options: &MachineOptions) -> Result<rayon::ThreadPool> {
    threads(options.threads.unwrap_or(0))
}

/// The threads of each device: all of `pool` for one; several share as many alike, so that none waits for the work of another.
pub fn thread_pools(pool: rayon::ThreadPool, count: usize) -> Result<Vec<rayon::ThreadPool>> {
    match count {
        1 => Ok(vec![pool]),
        _ => (0..count).map(|_| threads((pool.current_num_threads() / count).max(1))).collect(),
    }
}

fn threads(count: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .map_err(|error| Error::usage(format!("--threads: cannot start the threads: {error}")))
}
