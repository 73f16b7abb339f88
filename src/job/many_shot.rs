//! The job of `tuco many-shot`.

use super::{
    Caller, FieldOptions,
    experiments::{Experiment, ExperimentOptions, Opened},
    tell,
};
use crate::{
    Error, Result,
    experiment::{
        many_shot::{self, Prompt, RESPONSE, Rung},
        score::Columns,
    },
    prompt::RowError,
};
use clap::Args;
use std::path::PathBuf;

/// Flags of `tuco many-shot`.
#[derive(Debug, Clone, Args)]
pub struct ManyShotOptions {
    /// The prompts that come last, as for tuco score (all go through the chat template)
    #[arg(required = true, value_name = "QUESTIONS")]
    pub inputs: Vec<PathBuf>,
    /// What comes before them, in this order: JSONL with prompt and response, or messages that end with the assistant's
    #[arg(long, value_name = "EXAMPLES.jsonl", required = true)]
    pub examples: PathBuf,
    /// Numbers of examples; default: 0, 1, 2, 4, … up to 128, as far as there are examples and the model's context holds them
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', env = "TUCO_SHOTS")]
    pub shots: Option<Vec<usize>>,
    /// OutputCo too: how far the two models' own outputs are apart (a second pass)
    #[arg(long, env = "TUCO_OUTPUT_CO")]
    pub output_co: bool,
    #[command(flatten)]
    pub common: ExperimentOptions,
    #[command(flatten)]
    pub fields: FieldOptions,
}

/// `tuco many-shot`.
///
/// # Errors
/// Everything that is wrong with flags, models and inputs before anything is computed.
pub fn many_shot(options: ManyShotOptions, caller: Caller<'_>) -> Result<()> {
    let ManyShotOptions { inputs, examples: path, shots, output_co, fields, mut common } = options;
    // The limit is one of questions.
    let limit = common.limit.take();
    // Shots are turns of a conversation.
    common.prompts.apply_chat_template = true;
    let mut opened = Opened::open(common, caller)?;
    let name = path.display();
    let mut examples = Vec::new();
    opened.read(std::slice::from_ref(&path), &FieldOptions::default(), &[RESPONSE], |_, line| {
        let number = line.number;
        let example = many_shot::example(line);
        examples
            .push(example.map_err(|problem| Error::usage(format!("--examples {name}:{number}: {problem}")))?);
        Ok(())
    })?;
    if examples.is_empty() {
        return Err(Error::usage(format!("--examples {name} has no rows")));
    }
    let is_chosen = shots.is_some();
    let mut shots = shots.unwrap_or_else(|| many_shot::default_shots(examples.len()));
    if let Some(too_many) = shots.iter().find(|shots| **shots > examples.len()) {
        let have = examples.len();
        return Err(Error::usage(format!("--shots asks for {too_many} examples, {name} has {have}")));
    }
    shots.sort_unstable();
    shots.dedup();
    opened.options.limit = limit;
    let (mut prompts, mut questions) = (Vec::new(), 0);
    opened.read(&inputs, &fields, &[], |_, line| {
        for count in &shots {
            let content = line.content.clone().and_then(|content| {
                let conversation = many_shot::conversation(&examples[..*count], content);
                conversation.map_err(|message| RowError::invalid(message).at(&line.place))
            });
            let encoded = opened.encode(&line.place, content, 0);
            let about = Rung { question: questions, shots: *count };
            let (id, label, meta) = (line.id.clone(), line.label.clone(), line.meta.clone());
            prompts.push(Prompt { id, label, meta, about, encoded });
        }
        questions += 1;
        Ok(())
    })?;
    let all = shots.len();
    many_shot::check(&mut prompts, &mut shots, is_chosen)?;
    if shots.len() < all {
        let most = shots.last().copied().unwrap_or(0);
        tell(&format!("more than {most} shots are longer than the model's context: they are left out"));
    }
    let columns = Columns { layers: false, output_co };
    opened.run(&Experiment::ManyShot { prompts, shots, columns })
}
