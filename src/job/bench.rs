//! The job of `tuco bench`.

use super::{Computer, MachineOptions, parse_count, thread_pool};
use crate::{
    Error, ErrorKind, Result,
    backend::KernelTime,
    engine::AnyEngine,
    experiment::{
        bench::{self, Ceilings, Timed, Timing},
        cost::Operations,
        rows::unless_stopped,
        shapes::{RandomPair, VOCABULARY, shape},
    },
    model::PairWeights,
    output,
    twin::Branch,
};
use clap::Args;
use serde_json::json;
use std::{ops::ControlFlow, path::PathBuf, sync::atomic::AtomicBool, time::Instant};

/// Flags of `tuco bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// The models' shape: llama-3-8b, llama-2-7b, llama-2-13b, llama-3-70b, mistral-7b, gemma-7b, smollm2-135m, or a model's
    /// config.json. Weights are random
    #[arg(long, value_name = "NAME|CONFIG")]
    pub shape: String,
    /// Only that many of its layers
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub layers: Option<usize>,
    /// The tuned model is the base and an adapter (LoRA) of this rank on all matrices of its layers, instead of other weights
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub adapter_rank: Option<usize>,
    /// Tokens of all prompts together
    #[arg(long, value_name = "N", default_value = "32768", value_parser = parse_count)]
    pub tokens: usize,
    /// Lengths of prompts, in turn
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_value = "512", value_parser = parse_count)]
    pub lengths: Vec<usize>,
    /// How often each is timed, after once to warm up
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse_count)]
    pub repeat: usize,
    /// What products in bf16 can reach on this machine, for shares of the floor
    #[arg(long, value_name = "TFLOP/s")]
    pub peak_tflops: Option<f64>,
    /// What a copy in memory reaches on this machine, read and written bytes together
    #[arg(long, value_name = "GB/s")]
    pub copy_rate: Option<f64>,
    /// On a GPU: also take the time of every kernel, in a run of its own
    #[arg(long)]
    pub by_kernel: bool,
    /// A file for all figures as JSON
    #[arg(short, long, value_name = "OUT.json")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineOptions,
}

/// `tuco bench`: prints how fast pairs of a shape are scored.
///
/// # Errors
/// Flags out of range; those of the device; [`ErrorKind::Interrupted`] when it is stopped.
pub fn bench(options: &BenchOptions, stop: &AtomicBool) -> Result<()> {
    let (config, mut spec) = shape(&options.shape)?;
    if let Some(layers) = options.layers {
        if layers > spec.num_hidden_layers {
            return Err(Error::usage(format!(
                "--layers is {layers}, expected 1 to {}, which {} has",
                spec.num_hidden_layers, options.shape
            )));
        }
        spec.num_hidden_layers = layers;
        spec.layers.truncate(layers);
    }
    for (flag, value) in [("--peak-tflops", options.peak_tflops), ("--copy-rate", options.copy_rate)] {
        if value.is_some_and(|value| value.is_nan() || value <= 0.0) {
            return Err(Error::usage(format!("{flag}: expected a number above 0")));
        }
    }
    // Before minutes of measuring.
    options.output.iter().try_for_each(|output| output::check_output(output))?;
    let ceilings = Ceilings {
        operations: options.peak_tflops.map(|peak| peak * 1e12),
        bytes: options.copy_rate.map(|rate| rate * 1e9),
    };
    let pair = RandomPair::new(spec, options.adapter_rank);
    let prompts = bench::prompts(options.tokens, &options.lengths, VOCABULARY);
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let pool = thread_pool(&options.machine)?;
    let computer = Computer::choose(&options.machine, &pair, &|_| ())?;
    let timings = pool
        .install(|| time_passes(computer.engine(&pair).as_ref(), &prompts, options.repeat, stop))
        .map_err(|error| what_is_lost(error, "nothing was measured completely"))?;
    let device = computer.describe();
    let adapter = options.adapter_rank.map_or(String::new(), |rank| format!(", an adapter of rank {rank}"));
    // What was measured is shown before anything else can fail.
    output::print(&format!(
        "{}, {} layers{adapter}: {tokens} tokens in {} prompts; {device}\n\n{}",
        options.shape,
        pair.spec().ft.num_hidden_layers,
        prompts.len(),
        bench::table(tokens, &timings, ceilings)
    ))?;
    let mut kernels = Vec::new();
    if options.by_kernel {
        kernels = pool
            .install(|| time_kernels(computer.profiled().engine(&pair).as_ref(), &prompts, stop))
            .map_err(|error| what_is_lost(error, "the kernels were not measured completely"))?;
        output::print(&match kernels.as_slice() {
            [] => format!("\n--by-kernel: {device} has no kernels\n"),
            kernels => {
                format!("\nOne score, kernel by kernel:\n\n{}", bench::kernel_table(kernels, ceilings))
            }
        })?;
    }
    if let Some(path) = &options.output {
        let mut summary = bench::summary(tokens, &timings, &kernels, ceilings);
        summary["shape"] = json!(options.shape);
        summary["config"] = config;
        summary["adapter_rank"] = json!(options.adapter_rank);
        summary["layers"] = json!(pair.spec().ft.num_hidden_layers);
        summary["lengths"] = json!(options.lengths);
        summary["device"] = json!(device);
        summary["tuco_version"] = json!(env!("CARGO_PKG_VERSION"));
        std::fs::write(path, format!("{summary:#}\n")).map_err(|error| Error::io("write", path, &error))?;
    }
    Ok(())
}

/// Says of a run that was stopped what it does not leave.
fn what_is_lost(error: Error, lost: &str) -> Error {
    match error.kind {
        ErrorKind::Interrupted => Error::new(error.kind, format!("stopped; {lost}")),
        _ => error,
    }
}

/// An observer that stops the work when `stop` is set.
fn until(stop: &AtomicBool) -> impl Fn(f64) -> ControlFlow<()> + Sync {
    move |_| unless_stopped(&[stop])
}

/// Scores and plain passes in turn.
fn time_passes(
    engine: &dyn AnyEngine,
    prompts: &[Vec<u32>],
    repeat: usize,
    stop: &AtomicBool,
) -> Result<Vec<Timing>> {
    let Operations { pass, score } = bench::operations(engine.spec().ft, prompts);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (start, observer) = (Instant::now(), until(stop));
    bench::time(
        repeat,
        &mut [
            Timed {
                name: "score",
                operations: score,
                run: &mut || engine.score(&prompts, &observer).map(|_| ()),
            },
            Timed {
                name: "one forward pass",
                operations: pass,
                run: &mut || engine.plain(Branch::Ft, &prompts, &observer).map(|_| ()),
            },
        ],
        || start.elapsed().as_secs_f64(),
    )
}

/// The kernels of one score, after one to warm up.
fn time_kernels(engine: &dyn AnyEngine, prompts: &[Vec<u32>], stop: &AtomicBool) -> Result<Vec<KernelTime>> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let observer = until(stop);
    engine.score(&prompts, &observer)?;
    engine.kernel_times()?;
    engine.score(&prompts, &observer)?;
    engine.kernel_times()
}
