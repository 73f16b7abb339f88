//! A batch: prompts side by side without padding, their tokens split into the context rows of several packs and the
//! twin rows of all.

use super::layer::PackView;
use crate::{
    backend::{Backend, Role, Ropes, Rows, Sequence},
    model::{ModelSpec, Rope},
    tensor::Tensor,
    twin::Twin,
};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// How much is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackLimits {
    /// Tokens of a pack; a longer prompt is a pack of its own.
    pub tokens: usize,
    /// Prompts of a pack.
    pub sequences: usize,
}

impl PackLimits {
    /// Limits that keep the workspace of a model of any size within what a backend has for a pack
    /// ([`Backend::pack_room`]).
    pub fn for_model(spec: &ModelSpec, (bytes, most_tokens): (usize, usize)) -> Self {
        let row =
            4 * (3 * spec.hidden_size + spec.query_width() + 4 * spec.key_width() + spec.intermediate_size);
        let means = 4 * spec.num_attention_heads * spec.hidden_size;
        Self {
            tokens: (bytes / 4 * 3 / row).clamp(256, most_tokens),
            sequences: (bytes / 4 / means).clamp(16, most_tokens),
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
    models: Twin<ModelTables<'a>>,
    same: bool,
}

struct ModelTables<'a> {
    ropes: &'a [Rope],
    /// By what [`Rope::table_length`] says of each of them.
    tables: HashMap<Vec<usize>, Ropes>,
}

impl<'a> RopeTables<'a> {
    pub fn new(ropes: Twin<&'a [Rope]>) -> Self {
        let same = ropes.pt == ropes.ft;
        Self { models: ropes.map(|ropes| ModelTables { ropes, tables: HashMap::new() }), same }
    }

    /// What a prompt's rotations depend on besides positions: prompts of one kind rotate alike.
    pub fn kind(&self, tokens: usize) -> Vec<usize> {
        let ropes = self.models.pt.ropes.iter().chain(self.models.ft.ropes);
        ropes.map(|rope| rope.table_length(tokens)).collect()
    }

    /// Tables that hold the positions of a prompt of `tokens` tokens.
    pub fn get(&mut self, tokens: usize) -> Twin<Ropes> {
        let pt = self.models.pt.get(tokens);
        let ft = if self.same { pt.clone() } else { self.models.ft.get(tokens) };
        Twin::new(pt, ft)
    }
}

impl ModelTables<'_> {
    fn get(&mut self, tokens: usize) -> Ropes {
        let lengths: Vec<usize> = self.ropes.iter().map(|rope| rope.table_length(tokens)).collect();
        let make = |positions: usize| -> Ropes {
            let tables = self.ropes.iter().zip(&lengths);
            tables.map(|(rope, length)| Arc::new(rope.table(positions, *length))).collect()
        };
        let tables = self.tables.entry(lengths.clone()).or_insert_with(|| make(tokens));
        if tables.iter().any(|table| table.positions() < tokens) {
            *tables = make(tokens.next_power_of_two());
        }
        tables.clone()
    }
}

/// The context rows of some prompts.
pub struct Pack<B: Backend> {
    pub layout: B::Layout,
    /// Their residual stream, `[C, D]`.
    pub context: B::Mat,
    pub context_rows: usize,
    pub twin_rows: Range<usize>,
}

impl<B: Backend> Pack<B> {
    pub fn tokens(&self) -> usize {
        self.context_rows + self.twin_rows.len()
    }

    pub fn view(&self) -> PackView<'_, B> {
        PackView { layout: &self.layout, context: &self.context, first_twin: self.twin_rows.start }
    }
}

/// Embedding tables: of tokens, and of positions where the model has one.
pub struct Embeddings<'a> {
    pub tokens: Tensor<'a>,
    pub positions: Option<Tensor<'a>>,
}

impl Embeddings<'_> {
    /// Residual stream before the first layer, `[rows, D]`, of tokens at positions.
    pub fn embed<B: Backend>(
        &self,
        backend: &B,
        spec: &ModelSpec,
        kind: Rows,
        token_ids: &[u32],
        positions: &[u32],
    ) -> B::Mat {
        let mut rows = backend.zeros(kind, Role::Stream, token_ids.len(), spec.hidden_size);
        backend.embed(token_ids, &self.tokens, &mut rows);
        if spec.embedding_multiplier != 1.0 {
            backend.scale(&mut rows, spec.embedding_multiplier);
        }
        if let Some(table) = &self.positions {
            let mut learned = backend.zeros(kind, Role::Stream, token_ids.len(), spec.hidden_size);
            backend.embed(positions, table, &mut learned);
            backend.accumulate(&learned, &mut rows);
        }
        rows
    }
}

/// Prompts on their way through the layers together. Weights are read once for all of them: the context rows take
/// turns, pack by pack, the few twin rows of all packs pass the projections together.
pub struct Batch<B: Backend> {
    /// Of all sequences.
    pub layout: B::Layout,
    pub packs: Vec<Pack<B>>,
    /// Residual stream of the twin rows, `[R, D]`.
    pub twin: B::Mat,
    pub twin_rows: usize,
}

impl<B: Backend> Batch<B> {
    /// Lays out prompts of at least one token, the last token of each a twin row, and looks up their embeddings.
    pub fn embed(
        backend: &B,
        tables: &Embeddings<'_>,
        spec: &ModelSpec,
        prompts: &[&[u32]],
        limits: PackLimits,
        ropes: &mut RopeTables<'_>,
    ) -> Self {
        let embed =
            |kind: Rows, ids: &[u32], positions: &[u32]| tables.embed(backend, spec, kind, ids, positions);
        let mut sequences = Vec::with_capacity(prompts.len());
        let mut packs = Vec::new();
        let mut twin_ids = Vec::with_capacity(prompts.len());
        let mut twin_positions = Vec::with_capacity(prompts.len());
        for range in plan(prompts, limits) {
            let (mut context_ids, mut context_positions, first_twin) =
                (Vec::new(), Vec::new(), twin_ids.len());
            for prompt in &prompts[range.clone()] {
                let (last, context) = prompt.split_last().expect("a prompt has at least one token");
                let start = context_ids.len();
                context_ids.extend_from_slice(context);
                context_positions.extend(0..context.len() as u32);
                sequences.push(Sequence {
                    context: start..context_ids.len(),
                    twin: twin_ids.len()..twin_ids.len() + 1,
                    path: std::iter::once(start..context_ids.len()).collect(),
                    ropes: ropes.get(prompt.len()),
                });
                twin_ids.push(*last);
                twin_positions.push(context.len() as u32);
            }
            packs.push(Pack {
                layout: backend.layout(&sequences[range]),
                context: embed(Rows::Context, &context_ids, &context_positions),
                context_rows: context_ids.len(),
                twin_rows: first_twin..twin_ids.len(),
            });
        }
        Self {
            layout: backend.layout(&sequences),
            packs,
            twin: embed(Rows::Twin, &twin_ids, &twin_positions),
            twin_rows: twin_ids.len(),
        }
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
        assert!(plan(&[], limits).is_empty());
    }
}
