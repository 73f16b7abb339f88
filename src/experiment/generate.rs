//! `tuco generate`: what the pair says to every row of input.

use super::task::{Outcome, Ready, Task};
use crate::{
    Error, Result,
    engine::{AnyEngine, Completion, Finish, Generation, Observer, Prompt, RowCount, Sampling, Step},
    hash,
    model::ModelSpec,
    prompt::{Encoder, RowError},
};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;

/// Memory that keys and values of a batch may take.
const CACHE_BYTES: usize = 1 << 30;

/// What is generated, for rows of text.
#[derive(Debug, Clone, PartialEq)]
pub struct Completing {
    pub generation: Generation,
    /// Texts that end a completion.
    pub stop: Vec<String>,
    pub seed: u64,
}

impl Completing {
    /// All that completions depend on, for a manifest.
    pub fn fingerprint(&self) -> Value {
        let Generation { alpha, max_new_tokens, samples, sampling, stop_tokens, tuco } = &self.generation;
        let (temperature, top_k, top_p) = match *sampling {
            Sampling::Greedy => (0.0, None, 1.0),
            Sampling::Random { temperature, top_k, top_p } => (temperature, top_k, top_p),
        };
        json!({
            "alpha": alpha,
            "max_new_tokens": max_new_tokens,
            "n": samples,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": self.seed,
            "stop": self.stop,
            "stop_tokens": stop_tokens,
            "tuco": tuco,
        })
    }

    /// The seed of a row: it depends on the row's id, not on its place.
    pub fn seed_of(&self, id: &Value) -> u64 {
        hash::number(format!("{} {id}", self.seed).as_bytes())
    }

    /// # Errors
    /// A usage error for a number out of range, for an empty stop text, and for stop texts without a tokenizer.
    pub fn check(&self, encoder: &Encoder) -> Result<()> {
        self.generation.check()?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::usage("stop is empty, expected text"));
        }
        if self.stop.is_empty() { Ok(()) } else { encoder.check_decodes("stop") }
    }

    /// Tokens of a batch whose keys and values take little memory.
    pub fn most_tokens(&self, spec: &ModelSpec) -> usize {
        (CACHE_BYTES / self.generation.cache_bytes(spec)).max(1)
    }

    /// Tokens that come to each prompt.
    pub fn new_tokens(&self) -> usize {
        self.generation.samples * self.generation.max_new_tokens
    }

    /// The completions of each prompt.
    ///
    /// # Errors
    /// See [`Engine::generate`](crate::engine::Engine::generate).
    pub fn complete(
        &self,
        engine: &dyn AnyEngine,
        encoder: &Encoder,
        prompts: &[Prompt<'_>],
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Text>>> {
        let stops = |token_ids: &[u32]| {
            let text = encoder.text_of_all(token_ids).unwrap_or_default();
            self.stop_in(&text).is_some()
        };
        let mut listener = |step: Step<'_>| {
            let found = !self.stop.is_empty() && stops(step.token_ids);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let completions = engine.generate(prompts, &self.generation, &mut listener, observer)?;
        let of_prompt =
            |of: Vec<Completion>| of.into_iter().map(|completion| self.text(encoder, completion)).collect();
        Ok(completions.into_iter().map(of_prompt).collect())
    }

    fn text(&self, encoder: &Encoder, completion: Completion) -> Text {
        // A token that ends a completion says nothing.
        let end = completion.token_ids.len() - usize::from(completion.finish == Finish::StopToken);
        let mut text = encoder.text_of_all(&completion.token_ids[..end]);
        let found = text.as_ref().and_then(|text| self.stop_in(text));
        let found = found.map(|(start, stop)| (start, stop.to_owned()));
        if let (Some(text), Some((start, _))) = (&mut text, &found) {
            text.truncate(*start);
        }
        Text { text, stop: found.map(|(_, stop)| stop), completion }
    }

    /// Where in a text the first of the stops begins, and which it is.
    fn stop_in(&self, text: &str) -> Option<(usize, &str)> {
        let found = self.stop.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop.as_str())));
        found.min_by_key(|(start, stop)| (*start, std::cmp::Reverse(stop.len())))
    }
}

/// Completes rows.
#[derive(Clone, Copy)]
pub struct Generating<'a> {
    pub engine: &'a dyn AnyEngine,
    pub encoder: &'a Encoder,
    pub completing: &'a Completing,
}

/// A completion as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    /// `None` without a tokenizer.
    pub text: Option<String>,
    /// The text of [`Completing::stop`] that ended it.
    pub stop: Option<String>,
    pub completion: Completion,
}

impl Generating<'_> {
    /// See [`Completing::most_tokens`].
    pub fn most_tokens(&self) -> usize {
        self.completing.most_tokens(self.engine.spec().ft)
    }

    /// The rows' prompts with their seeds.
    pub fn seeded<'r>(&self, rows: &[Ready<'r>]) -> Vec<Prompt<'r>> {
        let prompt =
            |row: &Ready<'r>| Prompt { token_ids: row.token_ids, seed: self.completing.seed_of(row.id) };
        rows.iter().map(prompt).collect()
    }

    /// See [`Completing::complete`].
    ///
    /// # Errors
    /// See [`Engine::generate`](crate::engine::Engine::generate).
    pub fn complete(&self, prompts: &[Prompt<'_>], observer: Observer<'_>) -> Result<Vec<Vec<Text>>> {
        self.completing.complete(self.engine, self.encoder, prompts, observer)
    }
}

impl Task for Generating<'_> {
    fn row_count(&self) -> RowCount<'_> {
        self.engine.row_count()
    }

    fn new_tokens(&self) -> usize {
        self.completing.new_tokens()
    }

    fn following(&self) -> usize {
        self.completing.generation.max_new_tokens
    }

    fn compute(&self, rows: &[Ready<'_>], observer: Observer<'_>) -> Result<Vec<Outcome>> {
        let completions = self.complete(&self.seeded(rows), observer)?;
        Ok(rows.iter().zip(completions).map(|(row, of_row)| fields(row, &of_row)).collect())
    }
}

/// The fields of a row's output.
fn fields(row: &Ready<'_>, completions: &[Text]) -> Outcome {
    let completions: std::result::Result<Vec<_>, RowError> = completions.iter().map(Text::fields).collect();
    let mut fields = Map::new();
    fields.insert("completions".into(), completions?.into());
    fields.insert("n_tokens".into(), row.token_ids.len().into());
    if row.truncated {
        fields.insert("truncated".into(), true.into());
    }
    Ok(fields)
}

impl Text {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.text.as_ref().is_none_or(|text| text.trim().is_empty())
    }

    /// `stop` where a token or text of those asked for ended it, else `length`.
    pub fn finish_reason(&self) -> &'static str {
        let ended = self.stop.is_some() || self.completion.finish == Finish::StopToken;
        if ended { "stop" } else { "length" }
    }

    /// # Errors
    /// Where the logits of a next token are not numbers: what came before is no answer.
    pub fn check_finite(&self) -> Result<(), RowError> {
        match self.completion.finish {
            Finish::NotFinite => Err(RowError::not_finite_logits("of a next token")),
            _ => Ok(()),
        }
    }

    /// The fields of a completion in a row.
    pub fn fields(&self) -> Outcome {
        self.check_finite()?;
        let Completion { token_ids, tuco, .. } = &self.completion;
        let mut fields = Map::new();
        fields.insert("text".into(), json!(self.text));
        fields.insert("finish_reason".into(), self.finish_reason().into());
        if let Some(stop) = &self.stop {
            fields.insert("stop".into(), stop.as_str().into());
        }
        fields.insert("token_ids".into(), json!(token_ids));
        if !tuco.is_empty() {
            fields.insert("tuco".into(), json!(tuco));
        }
        Ok(fields)
    }
}
