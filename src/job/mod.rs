//! Flags → a job that can start. Everything that can fail early fails here: paths, checkpoints, the pair, inputs, the
//! output and what it already holds.

mod bench;
mod compare;
mod demo;
mod device;
mod experiments;
mod generate;
mod inspect;
mod jailbreak;
mod many_shot;
mod memory;
mod merge;
mod options;
mod pair;
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
pub use inspect::inspect;
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
use pair::AboutPair;
pub use pair::open_pair;
pub use report::{ReportOptions, report};
pub use rows::RowsOptions;
pub use score::{ScoreOptions, score};
pub use sweep::{SweepOptions, sweep};
pub use trace::{TraceOptions, trace};

use crate::{
    Error, Result,
    checkpoint::{self, Pair},
    output::tell,
    prompt::{Encoder, EncoderOptions},
    twin::Twin,
};
use chrono::NaiveDate;
use serde_json::Map;
use std::sync::atomic::AtomicBool;

/// Who runs a job.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// The command line, which manifests and summaries keep.
    pub command: &'a [String],
    /// Set from outside to stop the job.
    pub stop: &'a AtomicBool,
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
