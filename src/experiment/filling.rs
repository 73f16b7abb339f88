//! Which prompts go through the layers together. Results do not depend on it.

use super::task::Task;
use crate::{
    engine::{Batched, Footprint, RowCount},
    prompt::RowError,
};
use std::sync::Arc;

/// How many prompts go through the layers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub prompts: usize,
    /// Tokens, a beginning that prompts share counted once.
    pub tokens: usize,
    /// Bytes; `None`: what the others come to.
    pub memory: Option<Memory>,
}

impl BatchLimits {
    /// # Errors
    /// Where a prompt of so many tokens alone takes more memory than there is.
    pub fn check(&self, tokens: usize) -> Result<(), RowError> {
        self.memory.map_or(Ok(()), |memory| memory.check(tokens))
    }
}

/// What batches may take of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub most: usize,
    pub footprint: Footprint,
}

impl Memory {
    /// Whether it is enough for a batch.
    fn holds(&self, batched: Batched) -> bool {
        self.footprint.bytes(batched) <= self.most
    }

    /// # Errors
    /// Where a prompt alone is too much.
    fn check(&self, tokens: usize) -> Result<(), RowError> {
        if self.holds(Batched::alone(tokens)) {
            return Ok(());
        }
        // The longest that fits is found by halving.
        let (mut fits, mut too_long) = (0, tokens);
        while fits + 1 < too_long {
            let middle = fits.midpoint(too_long);
            *if self.holds(Batched::alone(middle)) { &mut fits } else { &mut too_long } = middle;
        }
        let message = format!("the prompt has {tokens} tokens, --max-memory leaves room for {fits}");
        Err(RowError::out_of_memory(message))
    }
}

/// A batch as it fills.
pub struct Filling<'a> {
    limits: BatchLimits,
    /// Tokens that come to each prompt.
    new_tokens: usize,
    /// Hidden states that are in memory for each row.
    streams: usize,
    prompts: usize,
    /// Tokens of all prompts, and of the longest.
    tokens: usize,
    longest: usize,
    count: RowCount<'a>,
}

impl<'a> Filling<'a> {
    pub fn new(limits: BatchLimits, count: RowCount<'a>, new_tokens: usize, streams: usize) -> Self {
        Self { limits, new_tokens, streams, prompts: 0, tokens: 0, longest: 0, count }
    }

    /// Of the prompts of a task.
    pub fn of_task(limits: BatchLimits, task: &'a impl Task) -> Self {
        Self::new(limits, task.row_count(), task.new_tokens(), 1)
    }

    /// Whether one prompt more is too much; one that is not to be computed has no tokens. The first never is.
    fn is_full(&self, token_ids: Option<&Arc<[u32]>>) -> bool {
        let prompts = self.prompts + 1;
        let is_long = |ids: &Arc<[u32]>| {
            let rows = self.count.rows_with(ids);
            let (tokens, longest) = (self.tokens + ids.len(), self.longest.max(ids.len()));
            let batched = Batched { rows, prompts, tokens, longest };
            self.streams * rows + prompts * self.new_tokens > self.limits.tokens
                || self.limits.memory.is_some_and(|memory| !memory.holds(batched))
        };
        // Rows that are errors take memory too.
        let is_crowded = self.prompts >= self.limits.prompts.min(self.limits.tokens);
        self.prompts > 0 && (is_crowded || token_ids.is_some_and(is_long))
    }

    /// Adds a prompt; to an empty batch if this one is full, and then says so.
    pub fn add(&mut self, token_ids: Option<&Arc<[u32]>>) -> bool {
        let is_full = self.is_full(token_ids);
        if is_full {
            (self.prompts, self.tokens, self.longest) = (0, 0, 0);
            self.count.clear();
        }
        self.prompts += 1;
        if let Some(token_ids) = token_ids {
            self.tokens += token_ids.len();
            self.longest = self.longest.max(token_ids.len());
            self.count.add(token_ids);
        }
        is_full
    }
}

/// Cuts prompts that are all known, in order, into batches; one that is not to be computed has no tokens.
pub fn cut<'p, P>(
    prompts: &'p [P],
    mut filling: Filling<'_>,
    token_ids: impl Fn(&P) -> Option<Arc<[u32]>>,
) -> Vec<&'p [P]> {
    let (mut batches, mut start) = (Vec::new(), 0);
    for (index, prompt) in prompts.iter().enumerate() {
        if filling.add(token_ids(prompt).as_ref()) {
            batches.push(&prompts[start..index]);
            start = index;
        }
    }
    batches.extend((start < prompts.len()).then(|| &prompts[start..]));
    batches
}
