//! How likely the tokens of a text are, each after those before it, under alpha.

use super::{
    Engine, Observer,
    head::Tokens,
    layer::Meeting,
    steer::{SteerPack, Stream},
};
use crate::{
    Error, Result,
    backend::{Backend, Role, Rows},
};
use rayon::prelude::*;

/// A prompt and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continued<'a> {
    /// Of both.
    pub token_ids: &'a [u32],
    /// How many of the tokens are the prompt's, at least 1.
    pub n_prompt: usize,
}

impl<'a> Continued<'a> {
    /// The tokens that pass the layers: what would follow the last one is not asked for.
    pub fn passing(&self) -> &'a [u32] {
        &self.token_ids[..self.token_ids.len().saturating_sub(1).max(1).min(self.token_ids.len())]
    }

    /// # Errors
    /// A usage error for the first text whose prompt has no tokens, or more than there are.
    pub fn check(texts: &[Self]) -> Result<()> {
        let is_wrong = |text: &Self| !(1..=text.token_ids.len()).contains(&text.n_prompt);
        let Some(index) = texts.iter().position(is_wrong) else { return Ok(()) };
        let Continued { token_ids, n_prompt } = texts[index];
        Err(Error::usage(format!(
            "text {index}: {n_prompt} of its {} tokens are the prompt's, expected at least 1 and no more than there are",
            token_ids.len()
        )))
    }
}

/// How likely a token is after those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// The natural logarithm of its probability; not finite where the logits have overflowed.
    pub log_likelihood: f64,
    /// Whether it is what greedy decoding takes: the token with the largest logit, of equal ones the first.
    pub is_greedy: bool,
}

impl Likelihood {
    fn of(token: u32, logits: &[f64]) -> Self {
        let (mut likeliest, mut largest) = (0, f64::NEG_INFINITY);
        for (token, logit) in logits.iter().enumerate() {
            if *logit > largest {
                (likeliest, largest) = (token, *logit);
            }
        }
        let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        let log_likelihood = logits[token as usize] - largest - sum.ln();
        Self { log_likelihood, is_greedy: likeliest == token as usize }
    }
}

impl<B: Backend> Engine<'_, B> {
    /// How likely every token is that follows a prompt, with `x + ptc + alpha · ftc` on all tokens: a list for each of them.
    /// Prompts with several continuations share their rows.
    ///
    /// # Errors
    /// As [`Engine::steer`] and [`Continued::check`].
    pub fn likelihoods(
        &self,
        texts: &[Continued<'_>],
        alpha: f64,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Likelihood>>> {
        Continued::check(texts)?;
        let backend = self.backend;
        let head = self.head(Meeting::Packs)?;
        // Nothing follows a prompt that is the whole text.
        let asked: Vec<usize> =
            (0..texts.len()).filter(|text| texts[*text].n_prompt < texts[*text].token_ids.len()).collect();
        let passing: Vec<&[u32]> = asked.iter().map(|text| texts[*text].passing()).collect();
        let first = |prompt: usize| texts[asked[prompt]].n_prompt - 1;
        let packs = self.steered(&passing, &[alpha], &first, observer)?;
        let mut likelihoods = vec![Vec::new(); texts.len()];
        let spec = self.weights.spec().ft;
        let rows_at_once = (self.logits_at_once / spec.vocab_size).max(1);
        for SteerPack { forest, passage, of_prompt, streams } in packs {
            // Which texts ask for a row, and what is their token after it.
            let mut tokens_after = vec![Vec::new(); passage.rows_at_last()];
            for ((prompt, _), rows) in forest.ends.iter().zip(&of_prompt) {
                let Continued { token_ids, n_prompt } = texts[asked[*prompt]];
                rows.iter()
                    .zip(&token_ids[n_prompt..])
                    .for_each(|(row, token)| tokens_after[*row].push((asked[*prompt], *token)));
            }
            for Stream { x, .. } in streams {
                let all: Vec<usize> = (0..passage.rows_at_last()).collect();
                let mut some = backend.zeros(Rows::Context, Role::Stream, 0, spec.hidden_size);
                for rows in all.chunks(rows_at_once) {
                    backend.resize(&mut some, rows.len());
                    backend.gather(&x, rows, &mut some);
                    let logits = head.logits(backend, &some, rows.len(), Tokens::All);
                    let found: Vec<Vec<(usize, Likelihood)>> = logits
                        .par_iter()
                        .zip(&tokens_after[rows[0]..rows[0] + rows.len()])
                        .map(|(logits, after)| {
                            after
                                .iter()
                                .map(|(text, token)| (*text, Likelihood::of(*token, logits)))
                                .collect()
                        })
                        .collect();
                    // Rows of a text come in its order: a sequence's after those of what it branches off from.
                    found.into_iter().flatten().for_each(|(text, found)| likelihoods[text].push(found));
                }
            }
        }
        backend.check()?;
        Ok(likelihoods)
    }
}
