//! Completions: prompts pass the layers once, then every chosen token as a row of its own; keys and values of the tokens
//! before it are kept for both branches.
//!
//! A completion has the same tokens whatever the batch it is in: its random numbers come from its own seed, and no bit of
//! its logits depends on other rows. Completions of one prompt, and prompts that begin alike, share rows
//! (see [`tree`](super::tree)); a completion that has ended leaves the batch.

use super::{
    Engine, Observer,
    cache::Cache,
    check_alphas,
    decode::{Decoder, Mix, Next},
    layer::Meeting,
    sampling::{Draws, Sampling},
    tree::plant,
};
use crate::{
    Error, Result,
    backend::{Backend, Sequence},
    metrics::tuco,
    model::ModelSpec,
};
use rayon::prelude::*;
use std::ops::{ControlFlow, Range};

/// Rows of the cache that a completion reserves at a time.
const RESERVED_ROWS: usize = 32;

/// What is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// What the fine-tuning component is multiplied with, for every token of prompt and completion: 1 is the tuned model.
    pub alpha: f64,
    /// Most tokens of a completion, at least 1. A completion also ends where the model's context does.
    pub max_new_tokens: usize,
    /// Completions of each prompt, at least 1.
    pub samples: usize,
    pub sampling: Sampling,
    /// Tokens that end a completion (and are its last).
    pub stop_tokens: Vec<u32>,
    /// The TuCo of every token too, which takes both models' blocks whatever alpha is.
    pub tuco: bool,
}

impl Default for Generation {
    /// The tuned model's likeliest completion of at most 128 tokens.
    fn default() -> Self {
        Self {
            alpha: 1.0,
            max_new_tokens: 128,
            samples: 1,
            sampling: Sampling::Greedy,
            stop_tokens: Vec::new(),
            tuco: false,
        }
    }
}

impl Generation {
    /// Bytes of the cache for each token.
    pub fn cache_bytes(&self, spec: &ModelSpec) -> usize {
        let mix = Mix { alpha: self.alpha, contributions: self.tuco };
        mix.branches().len() * spec.num_hidden_layers * 2 * spec.key_width() * size_of::<f32>()
    }

    /// # Errors
    /// A usage error for a number out of range.
    pub fn check(&self) -> Result<()> {
        check_alphas(&[self.alpha])?;
        self.sampling.check()?;
        if self.max_new_tokens == 0 {
            return Err(Error::usage("max_new_tokens is 0, expected a number from 1 on"));
        }
        match (self.samples, self.sampling) {
            (0, _) => Err(Error::usage("the number of completions is 0, expected a number from 1 on")),
            (1, _) | (_, Sampling::Random { .. }) => Ok(()),
            (samples, Sampling::Greedy) => Err(Error::usage(format!(
                "{samples} completions of a prompt would be the same at temperature 0; choose a temperature above 0, or one completion"
            ))),
        }
    }
}

/// A prompt to be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// At least one, all below the vocabulary's size.
    pub token_ids: &'a [u32],
    /// Decides, with a completion's number, about its random choices.
    pub seed: u64,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// One of [`Generation::stop_tokens`] came.
    StopToken,
    /// The caller said so.
    Stopped,
    /// It has as many tokens as it may have, or as the context holds.
    Length,
    /// The logits of the next token are not numbers.
    NotFinite,
}

/// What follows a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    pub token_ids: Vec<u32>,
    /// For each of these tokens TuCo of the hidden state that it was chosen from, the first one's being the prompt's; P and F
    /// are sums of what both models' blocks say to the steered stream, before alpha scales F. Empty if not asked for.
    ///
    /// Both branches' rows are f32 on the CPU: it is off by about 2e-7 / TuCo.
    pub tuco: Vec<f64>,
    pub finish: Finish,
}

/// A completion that has just got another token.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Which prompt, and which of its completions.
    pub prompt: usize,
    pub sample: usize,
    /// The completion so far.
    pub token_ids: &'a [u32],
    /// See [`Completion::tuco`].
    pub tuco: &'a [f64],
}

/// Hears every token as it comes, and may end that completion.
pub type Listener<'a> = &'a mut (dyn FnMut(Step<'_>) -> ControlFlow<()> + Send);

/// A listener that ends nothing.
pub fn unheard(_: Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A completion in the making.
struct Unfinished {
    prompt: usize,
    sample: usize,
    /// Of prompt and completion.
    token_ids: Vec<u32>,
    prompt_len: usize,
    tuco: Vec<f64>,
    random: Draws,
    finish: Option<Finish>,
    /// Where keys and values of all tokens but the newest are, and the reserved rows that come after them.
    path: Vec<Range<usize>>,
    spare: Range<usize>,
    /// All rows of the cache that are reserved for this completion alone.
    own: Vec<Range<usize>>,
    /// What the cached keys' rotations depend on besides positions.
    rope_kind: Vec<usize>,
}

impl Unfinished {
    /// Chooses the next token.
    fn choose(&mut self, next: &Next, generation: &Generation, context_length: usize) {
        let Some(token) = generation.sampling.choose(&next.logits, &mut self.random) else {
            self.finish = Some(Finish::NotFinite);
            return;
        };
        self.token_ids.push(token);
        self.tuco.extend(next.contributions.map(tuco));
        let is_full = self.token_ids.len() - self.prompt_len == generation.max_new_tokens;
        if generation.stop_tokens.contains(&token) {
            self.finish = Some(Finish::StopToken);
        } else if is_full || self.token_ids.len() > context_length {
            self.finish = Some(Finish::Length);
        }
    }

    /// Tells the listener about the newest token.
    fn tell(&mut self, listener: Listener<'_>) {
        if self.finish == Some(Finish::NotFinite) {
            return;
        }
        let token_ids = &self.token_ids[self.prompt_len..];
        let step = Step { prompt: self.prompt, sample: self.sample, token_ids, tuco: &self.tuco };
        if listener(step).is_break() && self.finish != Some(Finish::StopToken) {
            self.finish = Some(Finish::Stopped);
        }
    }

    /// Appends a row for the newest token to the path.
    fn extend_path<M>(&mut self, cache: &mut Cache<M>) {
        if self.spare.is_empty() {
            self.spare = cache.take(RESERVED_ROWS);
            self.own.push(self.spare.clone());
            self.path.push(self.spare.start..self.spare.start);
        }
        self.spare.start += 1;
        if let Some(rows) = self.path.last_mut() {
            rows.end += 1;
        }
    }

    fn give_back<M>(&mut self, cache: &mut Cache<M>) {
        self.own.drain(..).for_each(|rows| cache.give_back(rows));
        self.spare = 0..0;
    }

    fn completion(mut self) -> Completion {
        let token_ids = self.token_ids.split_off(self.prompt_len);
        Completion { token_ids, tuco: self.tuco, finish: self.finish.unwrap_or(Finish::Length) }
    }
}

impl<B: Backend> Engine<'_, B> {
    /// Completes prompts: for each of them, in order, its completions.
    ///
    /// The observer hears rows of prompts and completions as they pass the layers.
    ///
    /// # Errors
    /// Those of [`Generation::check`]; a checkpoint error where there is no head; [`ErrorKind::Interrupted`](crate::ErrorKind)
    /// when the observer stops the work; see also [`Backend::check`].
    pub fn generate(
        &self,
        prompts: &[Prompt<'_>],
        generation: &Generation,
        listener: Listener<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Completion>>> {
        generation.check()?;
        let context_length = self.weights.spec().ft.context_length;
        let mix = Mix { alpha: generation.alpha, contributions: generation.tuco };
        let mut decoder = Decoder::new(self, mix)?;
        let (mut drafts, firsts) = begin(&mut decoder, prompts, generation, self.limits.tokens, observer)?;
        let mut next: Vec<&Next> = drafts.iter().map(|draft| &firsts[draft.prompt]).collect();
        let mut later: Vec<Next>;
        loop {
            let mut open: Vec<&mut Unfinished> =
                drafts.iter_mut().filter(|draft| draft.finish.is_none()).collect();
            open.par_iter_mut()
                .zip(&next)
                .for_each(|(draft, next)| draft.choose(next, generation, context_length));
            for draft in &mut open {
                draft.tell(listener);
                if draft.finish.is_some() {
                    draft.give_back(&mut decoder.cache);
                }
            }
            open.retain(|draft| draft.finish.is_none());
            if open.is_empty() {
                break;
            }
            later = follow(&mut decoder, &mut open, observer)?;
            next = later.iter().collect();
        }
        let mut completions: Vec<Vec<Completion>> = prompts.iter().map(|_| Vec::new()).collect();
        drafts.into_iter().for_each(|draft| completions[draft.prompt].push(draft.completion()));
        Ok(completions)
    }
}

/// Passes the prompts: drafts of all completions, and what follows each prompt.
fn begin<B: Backend>(
    decoder: &mut Decoder<'_, '_, B>,
    prompts: &[Prompt<'_>],
    generation: &Generation,
    most_rows: usize,
    observer: Observer<'_>,
) -> Result<(Vec<Unfinished>, Vec<Next>)> {
    let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.token_ids).collect();
    let mut packs = Vec::new();
    let mut paths = vec![Vec::new(); prompts.len()];
    let mut order = Vec::with_capacity(prompts.len());
    for forest in plant(&ids, most_rows, &mut decoder.ropes) {
        let start = decoder.cache.take(forest.rows()).start;
        let (pack, of_forest) = decoder.forest(&forest, start);
        packs.push(pack);
        for ((prompt, _), path) in forest.ends.iter().zip(of_forest) {
            paths[*prompt] = path;
            order.push(*prompt);
        }
    }
    let passed = decoder.pass(packs, Meeting::Packs, observer)?;
    let mut next: Vec<(usize, Next)> = order.into_iter().zip(passed.into_iter().flatten()).collect();
    next.sort_by_key(|(prompt, _)| *prompt);
    let draft = |(prompt, sample): (usize, usize)| Unfinished {
        prompt,
        sample,
        token_ids: ids[prompt].to_vec(),
        prompt_len: ids[prompt].len(),
        tuco: Vec::new(),
        random: Draws::new(prompts[prompt].seed, sample),
        finish: None,
        path: paths[prompt].clone(),
        spare: 0..0,
        own: Vec::new(),
        rope_kind: decoder.ropes.kind(ids[prompt].len()),
    };
    let all =
        (0..prompts.len()).flat_map(|prompt| (0..generation.samples).map(move |sample| (prompt, sample)));
    Ok((all.map(draft).collect(), next.into_iter().map(|(_, next)| next).collect()))
}

/// Passes the newest token of each draft: what follows it.
fn follow<B: Backend>(
    decoder: &mut Decoder<'_, '_, B>,
    drafts: &mut [&mut Unfinished],
    observer: Observer<'_>,
) -> Result<Vec<Next>> {
    // Where rotations depend on the length, each new token has a table of its own, which nobody needs again.
    decoder.ropes.forget_many();
    let mut next: Vec<Option<Next>> = drafts.iter().map(|_| None).collect();
    let (mut token_ids, mut sequences, mut packs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut going_on, mut again) = (Vec::new(), Vec::new());
    for (place, draft) in drafts.iter_mut().enumerate() {
        let length = draft.token_ids.len();
        let kind = decoder.ropes.kind(length);
        if kind == draft.rope_kind {
            draft.extend_path(&mut decoder.cache);
            let context = going_on.len()..going_on.len() + 1;
            let (path, ropes) = (draft.path.clone(), decoder.ropes.get(length));
            sequences.push(Sequence { context, twin: 0..0, path, ropes });
            token_ids.extend(draft.token_ids.last());
            going_on.push(place);
        } else {
            // All positions rotate otherwise from this length on: what is cached is of no use any more.
            draft.give_back(&mut decoder.cache);
            let rows = decoder.cache.take(length.next_multiple_of(RESERVED_ROWS));
            let forest = plant(&[&draft.token_ids], length, &mut decoder.ropes).remove(0);
            let (pack, mut path) = decoder.forest(&forest, rows.start);
            (draft.path, draft.spare, draft.rope_kind) =
                (path.remove(0), rows.start + length..rows.end, kind);
            draft.own.push(rows);
            packs.push(pack);
            again.push(place);
        }
    }
    let one_row_each = (!going_on.is_empty()).then(|| decoder.tokens(&token_ids, &sequences));
    let passed = decoder.pass(one_row_each.into_iter().collect(), Meeting::FewRows, observer)?;
    let passed_again = decoder.pass(packs, Meeting::Packs, observer)?;
    let places = going_on.into_iter().chain(again);
    places
        .zip(passed.into_iter().chain(passed_again).flatten())
        .for_each(|(place, found)| next[place] = Some(found));
    Ok(next.into_iter().map(|next| next.expect("every draft passed")).collect())
}
