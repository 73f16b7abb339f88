//! Packs: prompts side by side without padding, their tokens split into context rows and twin rows.

use crate::{
    backend::{Backend, Sequence},
    model::{ModelSpec, Rope, RopeTable},
    twin::Twin,
};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Memory that the workspace of a pack may take, in bytes: enough rows to keep the matrix products busy, few enough to
/// stay small beside a model.
const WORKSPACE_BYTES: usize = 160 << 20;
const MEANS_BYTES: usize = 48 << 20;

/// More rows than this make the products no faster.
const MOST_TOKENS: usize = 2048;

/// How much is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackLimits {
    /// Tokens of a pack; a longer prompt is a pack of its own.
    pub tokens: usize,
    /// Prompts of a pack.
    pub sequences: usize,
}

impl PackLimits {
    /// Limits that keep the workspace of a model of any size small.
    pub fn for_model(spec: &ModelSpec) -> Self {
        let row =
            4 * (3 * spec.hidden_size + spec.query_width() + 3 * spec.key_width() + spec.intermediate_size);
        let means = 4 * spec.num_attention_heads * spec.hidden_size;
        Self {
            tokens: (WORKSPACE_BYTES / row).clamp(256, MOST_TOKENS),
            sequences: (MEANS_BYTES / means).clamp(16, MOST_TOKENS),
        }
    }
}

/// Splits prompts, in order, into packs.
pub fn plan(prompts: &[&[u32]], limits: PackLimits) -> Vec<Range<usize>> {
    let mut packs = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        let full = tokens + prompt.len() > limits.tokens || index - start == limits.sequences;
        if full && index > start {
            packs.push(start..index);
            (start, tokens) = (index, 0);
        }
        tokens += prompt.len();
    }
    if start < prompts.len() {
        packs.push(start..prompts.len());
    }
    packs
}

/// Rotary tables by the length that selects the frequencies, grown as longer prompts come.
pub struct RopeTables<'a> {
    rope: Twin<&'a Rope>,
    tables: Twin<HashMap<usize, Arc<RopeTable>>>,
}

impl<'a> RopeTables<'a> {
    pub fn new(rope: Twin<&'a Rope>) -> Self {
        Self { rope, tables: Twin::default() }
    }

    /// Tables that hold the positions of a prompt of `tokens` tokens.
    fn get(&mut self, tokens: usize) -> Twin<Arc<RopeTable>> {
        let pt = lookup(self.rope.pt, &mut self.tables.pt, tokens);
        if self.rope.pt == self.rope.ft {
            return Twin::new(pt.clone(), pt);
        }
        Twin::new(pt, lookup(self.rope.ft, &mut self.tables.ft, tokens))
    }
}

fn lookup(rope: &Rope, tables: &mut HashMap<usize, Arc<RopeTable>>, tokens: usize) -> Arc<RopeTable> {
    let length = rope.table_length(tokens);
    let table = tables.entry(length).or_insert_with(|| Arc::new(rope.table(tokens, length)));
    if table.positions() < tokens {
        *table = Arc::new(rope.table(tokens.next_power_of_two(), length));
    }
    table.clone()
}

/// Prompts side by side, and their residual streams.
pub struct Pack<B: Backend> {
    pub sequences: Vec<Sequence>,
    /// Residual stream of the context rows, `[C, D]`.
    pub context: B::Mat,
    /// Residual stream of the twin rows, `[R, D]`.
    pub twin: B::Mat,
}

impl<B: Backend> Pack<B> {
    /// Lays out prompts of at least one token, the last token of each a twin row, and looks up their embeddings.
    pub fn embed(
        backend: &B,
        table: &B::Weight<'_>,
        hidden_size: usize,
        prompts: &[&[u32]],
        ropes: &mut RopeTables<'_>,
    ) -> Self {
        let (mut context_ids, mut twin_ids) = (Vec::new(), Vec::new());
        let mut sequences = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let (last, context) = prompt.split_last().expect("a prompt has at least one token");
            let start = Twin::new(context_ids.len(), twin_ids.len());
            context_ids.extend_from_slice(context);
            twin_ids.push(*last);
            sequences.push(Sequence {
                context: start.pt..context_ids.len(),
                twin: start.ft..twin_ids.len(),
                rope: ropes.get(prompt.len()),
            });
        }
        let embed = |ids: &[u32]| {
            let mut rows = backend.zeros(ids.len(), hidden_size);
            backend.embed(ids, table, &mut rows);
            rows
        };
        Self { sequences, context: embed(&context_ids), twin: embed(&twin_ids) }
    }

    pub fn context_rows(&self) -> usize {
        self.sequences.last().map_or(0, |last| last.context.end)
    }

    pub fn twin_rows(&self) -> usize {
        self.sequences.last().map_or(0, |last| last.twin.end)
    }

    pub fn tokens(&self) -> usize {
        self.context_rows() + self.twin_rows()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_keep_to_their_limits_and_the_order() {
        let lengths = [3usize, 4, 9, 1, 1, 1, 1, 2];
        let prompts: Vec<Vec<u32>> = lengths.iter().map(|n| vec![0; *n]).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let limits = PackLimits { tokens: 7, sequences: 3 };
        assert_eq!(plan(&prompts, limits), [0..2, 2..3, 3..6, 6..8]);
        assert_eq!(plan(&[], limits), []);
    }
}
