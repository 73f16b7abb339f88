//! How many prompts go through the layers together, and what comes of them.

use crate::{
    Result,
    checkpoint::Pair,
    engine::{Continued, Footprint, PackLimits, Prompt, RowCount},
    experiment::{
        filling::{BatchLimits, Filling, cut},
        queue::Queue,
    },
};

/// What goes through the layers as tokens.
pub trait TokenIds: Sync {
    fn token_ids(&self) -> &[u32];
}

impl TokenIds for &[u32] {
    fn token_ids(&self) -> &[u32] {
        self
    }
}

impl TokenIds for Prompt<'_> {
    fn token_ids(&self) -> &[u32] {
        self.token_ids
    }
}

impl TokenIds for Continued<'_> {
    fn token_ids(&self) -> &[u32] {
        self.passing()
    }
}

/// What passes take of memory, by the limits of packs and the number of threads.
pub type Footprints<'a> = dyn Fn(&Pair, PackLimits, usize) -> Result<Footprint> + 'a;

/// The room that a batch takes.
#[derive(Clone, Copy)]
pub struct Room<'a> {
    pub footprint: &'a Footprints<'a>,
    /// Hidden states that are in memory for each row.
    pub streams: usize,
    /// Tokens that come to each prompt.
    pub new_tokens: usize,
    /// Tokens and prompts of a batch at most, besides what the limits say.
    pub most_tokens: usize,
    pub most_prompts: usize,
}

impl<'a> Room<'a> {
    pub fn of(footprint: &'a Footprints<'a>) -> Self {
        Self { footprint, streams: 1, new_tokens: 0, most_tokens: usize::MAX, most_prompts: usize::MAX }
    }
}

/// Cuts prompts, in order, into batches within the limits.
pub fn batches<'p, P: TokenIds>(
    prompts: &'p [P],
    limits: BatchLimits,
    room: Room<'_>,
    count: RowCount<'_>,
) -> Vec<&'p [P]> {
    let limits = BatchLimits {
        tokens: limits.tokens.min(room.most_tokens),
        prompts: limits.prompts.min(room.most_prompts),
        ..limits
    };
    let filling = Filling::new(limits, count, room.new_tokens, room.streams);
    cut(prompts, filling, |prompt| Some(prompt.token_ids().into()))
}

/// Batches on their way, and who takes what comes of each prompt.
pub struct Passing<'p, P, F> {
    pub batches: std::vec::IntoIter<&'p [P]>,
    pub take: F,
}

impl<'p, P: Sync, T, F: FnMut(Result<T>)> Queue<Vec<Result<T>>> for Passing<'p, P, F> {
    type Job = &'p [P];

    fn next(&mut self) -> Result<Option<&'p [P]>> {
        Ok(self.batches.next())
    }

    fn take(&mut self, _: &'p [P], found: Vec<Result<T>>) -> Result<()> {
        found.into_iter().for_each(&mut self.take);
        Ok(())
    }
}
