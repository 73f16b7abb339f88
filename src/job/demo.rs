//! `tuco demo`: the pair that ships, on prompts it has not seen.

use crate::{
    Error, Result,
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Engine, unobserved},
    metrics::{auc, quantile, tuco},
    output::{histogram, print},
    prompt::{Encoder, EncoderOptions, Overlength, Source},
};
use chrono::NaiveDate;
use clap::Args;
use serde_json::Map;
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

/// A kind of prompt (`meta.kind`) and its scores.
struct Kind {
    name: String,
    tuco: Vec<f64>,
    tokens: usize,
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
    let encoder_options = EncoderOptions {
        apply_chat_template: false,
        system_instruction: None,
        chat_template_args: Map::new(),
        template_date: NaiveDate::default(),
        max_length: None,
        on_overlength: Overlength::ErrorRow,
    };
    let encoder =
        Encoder::open(&pair.checkpoints.ft.path, spec.vocab_size, spec.context_length, encoder_options)?;
    let (kinds, ids) = read(&prompts, &encoder)?;
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let scores = Engine::new(&Cpu::new(), &pair).score(&rows, &unobserved)?;
    let scores: Vec<f64> =
        scores.iter().filter_map(|score| score.running.last()).map(|last| tuco(*last)).collect();
    print(&table(&by_kind(&kinds, &rows, &scores), start))
}

/// The kind and the token ids of every prompt.
fn read(prompts: &Path, encoder: &Encoder) -> Result<(Vec<String>, Vec<Vec<u32>>)> {
    let (mut kinds, mut ids) = (Vec::new(), Vec::new());
    for line in Source::open(&[prompts.to_path_buf()])?.lines() {
        let line = line?;
        let encoded = line.content.and_then(|content| encoder.encode(&content));
        let encoded = encoded.map_err(|error| Error::usage(format!("{}: {error}", prompts.display())))?;
        let kind = line.meta.as_ref().and_then(|meta| meta.get("kind")?.as_str()).unwrap_or("other");
        kinds.push(kind.to_string());
        ids.push(encoded.token_ids);
    }
    Ok((kinds, ids))
}

/// Kinds in the order of their first prompt.
fn by_kind(names: &[String], rows: &[&[u32]], scores: &[f64]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for ((name, row), score) in names.iter().zip(rows).zip(scores) {
        let index = kinds.iter().position(|kind| kind.name == *name).unwrap_or_else(|| {
            kinds.push(Kind { name: name.clone(), tuco: Vec::new(), tokens: 0 });
            kinds.len() - 1
        });
        kinds[index].tuco.push(*score);
        kinds[index].tokens += row.len();
    }
    kinds
}

fn table(kinds: &[Kind], start: Instant) -> String {
    let mut text =
        "TuCo: the share of the last hidden state that fine-tuning wrote (0 to 1), on held-out prompts.\n\n\
                    | prompts  | number | tokens | median TuCo | 5 % to 95 %      |\n\
                    |----------|-------:|-------:|------------:|------------------|\n"
            .to_string();
    for kind in kinds {
        let q = |q| quantile(&kind.tuco, q).unwrap_or(f64::NAN);
        let (median, low, high) = (q(0.5), q(0.05), q(0.95));
        let (name, number, tokens) = (&kind.name, kind.tuco.len(), kind.tokens);
        text += &format!("| {name:8} | {number:6} | {tokens:6} | {median:11.4} | {low:.4} to {high:.4} |\n");
    }
    let of = |is: &dyn Fn(&str) -> bool| -> Vec<f64> {
        kinds.iter().filter(|kind| is(&kind.name)).flat_map(|kind| kind.tuco.clone()).collect()
    };
    let (running_text, chat) = (of(&|name| name == "text"), of(&|name| name != "text"));
    text += &format!("\n{}\n", histogram(&[("text", &running_text), ("chat", &chat)], 12, 40));
    if let Some(auc) = auc(&running_text, &chat) {
        text += &format!("AUC of TuCo, chat against running text: {auc:.3} (0.5: no difference, 1: apart)\n");
    }
    if let Some(auc) = auc(&of(&|name| name == "answered"), &of(&|name| name == "refused")) {
        text += &format!("AUC of TuCo, refused against answered requests: {auc:.3}\n");
    }
    let (prompts, seconds) = (running_text.len() + chat.len(), start.elapsed().as_secs_f64());
    text + &format!(
        "\n{prompts} prompts in {seconds:.2} s. Your own pair: tuco score --base DIR --tuned DIR prompts.jsonl -o scores.jsonl\n"
    )
}
