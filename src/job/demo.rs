//! `tuco demo`: the pair that ships, on prompts it has not seen.

use crate::{
    Error, Result,
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Engine, Score, unobserved},
    experiment::demo::{by_kind, table},
    output::print,
    prompt::{Encoder, EncoderOptions, Source},
};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Flags of `tuco demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoOptions {
    /// Where the demo pair and its prompts are
    #[arg(long, value_name = "DIR", default_value_os_t = shipped())]
    pub dir: PathBuf,
    /// Run every experiment and make one report of them
    #[arg(long)]
    pub all: bool,
    /// With --all: the folder for what the experiments find
    #[arg(short, long, value_name = "DIR", default_value = "tuco-demo", requires = "all")]
    pub output: PathBuf,
}

/// `models/demo` here, or beside the source that the program was built from.
fn shipped() -> PathBuf {
    let here = PathBuf::from("models/demo");
    if here.is_dir() { here } else { PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(here) }
}

/// Scores the demo's held-out prompts and prints a table and a histogram.
pub fn demo(options: &DemoOptions) -> Result<()> {
    let start = Instant::now();
    let prompts = options.dir.join("prompts.jsonl");
    if !prompts.exists() {
        return Err(Error::usage(format!(
            "--dir {}: there is no demo here (expected base/, tuned/ and prompts.jsonl, as in models/demo of the source)",
            options.dir.display()
        )));
    }
    let pair = Pair::open(&options.dir.join("base"), &options.dir.join("tuned"), None)?;
    let spec = &pair.checkpoints.ft.spec;
    let encoder = Encoder::open(
        &pair.checkpoints.ft.path,
        spec.vocab_size,
        spec.context_length,
        EncoderOptions::default(),
    )?;
    let (kinds, ids) = read(&prompts, &encoder)?;
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let scores = Engine::new(&Cpu::new(), &pair).score(&rows, &unobserved)?;
    let scores: Vec<f64> = scores.iter().map(Score::tuco).collect();
    print(&table(&by_kind(&kinds, &rows, &scores), start.elapsed()))
}

/// The kind and the token ids of every prompt.
fn read(prompts: &Path, encoder: &Encoder) -> Result<(Vec<String>, Vec<Vec<u32>>)> {
    let (mut kinds, mut ids) = (Vec::new(), Vec::new());
    for line in Source::open(&[prompts.to_path_buf()])?.lines() {
        let line = line?;
        let encoded = line
            .content
            .and_then(|content| encoder.encode(&content).map_err(|error| error.at(&line.place)))?;
        let kind = line.meta.as_ref().and_then(|meta| meta.get("kind")?.as_str()).unwrap_or("other");
        kinds.push(kind.to_string());
        ids.push(encoded.token_ids);
    }
    Ok((kinds, ids))
}
