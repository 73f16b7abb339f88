//! A batch: prompts without padding, their tokens split into the context rows of several packs and the twin rows of all.

use super::plan::{Draft, Lineage, Plan};
use crate::{
    backend::{Backend, Ropes, Rows},
    model::{ModelSpec, PairWeights, Rope},
    twin::Twin,
};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// How much is computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackLimits {
    /// Context rows of a pack; a longer prompt is a pack of its own.
    pub tokens: usize,
    /// Prompts of a pack.
    pub sequences: usize,
}

impl PackLimits {
    /// Limits that keep the workspace of a model of any size within what a backend has for a pack
    /// ([`Backend::pack_room`]).
    pub fn for_model(spec: &ModelSpec, (bytes, most_tokens): (usize, usize)) -> Self {
        let row = Self::row_bytes(spec);
        let means = 2 * 4 * spec.num_attention_heads * spec.hidden_size;
        Self {
            tokens: (bytes / 4 * 3 / row).clamp(256, most_tokens),
            sequences: (bytes / 4 / means).clamp(16, most_tokens),
        }
    }

    /// Bytes of the workspace for each context row of a pack, in f32.
    pub fn row_bytes(spec: &ModelSpec) -> usize {
        4 * (3 * spec.hidden_size + spec.query_width() + 4 * spec.key_width() + spec.intermediate_size)
    }
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

    /// Those of a pair.
    pub fn of(weights: &'a dyn PairWeights) -> Self {
        Self::new(weights.spec().map(|spec| spec.ropes.as_slice()))
    }

    /// Drops the tables where there are many: those of models that turn prompts of every length by other angles.
    pub fn forget_many(&mut self) {
        const MANY: usize = 16;
        for model in [&mut self.models.pt, &mut self.models.ft] {
            if model.tables.len() > MANY {
                model.tables.clear();
            }
        }
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
    pub lineage: Lineage,
    pub twin_rows: Range<usize>,
    /// Tokens of the prompts that end here, those that are shared counted for each.
    pub tokens: usize,
}

/// Embeds tokens at positions, in rows of a kind.
pub type Embed<'a, M> = &'a dyn Fn(Rows, &[u32], &[u32]) -> M;

/// Prompts on their way through the layers together. Weights are read once for all of them: the context rows take
/// turns, pack by pack, the few twin rows of all packs pass the projections together.
pub struct Batch<B: Backend> {
    /// Of the twin rows.
    pub layout: B::Layout,
    pub packs: Vec<Pack<B>>,
    /// Residual stream of the twin rows, `[R, D]`.
    pub twin: B::Mat,
    /// The prompt of each twin row.
    pub prompts: Vec<usize>,
}

impl<B: Backend> Batch<B> {
    /// Looks up the embeddings of `prompts`, which are laid out as `plan` says.
    pub fn embed(backend: &B, embed: Embed<'_, B::Mat>, prompts: &[&[u32]], plan: Plan) -> Self {
        let last = |prompt: &usize| prompts[*prompt].split_last().expect("a prompt has at least one token");
        let twin_ids: Vec<u32> = plan.prompts.iter().map(|prompt| *last(prompt).0).collect();
        let twin_positions: Vec<u32> =
            plan.prompts.iter().map(|prompt| last(prompt).1.len() as u32).collect();
        let twins = plan.packs.iter().flat_map(|pack| &pack.sequences).filter(|s| !s.twin.is_empty());
        let layout = backend.layout(&twins.cloned().collect::<Vec<_>>());
        let pack = |draft: Draft| Pack {
            layout: backend.layout(&draft.sequences),
            context: embed(Rows::Context, &draft.token_ids, &draft.positions),
            lineage: draft.lineage,
            twin_rows: draft.twin_rows,
            tokens: draft.tokens,
        };
        Self {
            layout,
            packs: plan.packs.into_iter().map(pack).collect(),
            twin: embed(Rows::Twin, &twin_ids, &twin_positions),
            prompts: plan.prompts,
        }
    }

    pub fn twin_rows(&self) -> usize {
        self.prompts.len()
    }

    pub fn context_rows(&self) -> usize {
        self.packs.iter().map(|pack| pack.lineage.own).sum()
    }

    /// What was computed for the twin rows, in the order of the prompts.
    pub fn by_prompt<T>(&self, of_rows: impl Iterator<Item = T>) -> Vec<T> {
        let mut results: Vec<Option<T>> = self.prompts.iter().map(|_| None).collect();
        self.prompts.iter().zip(of_rows).for_each(|(prompt, of_row)| results[*prompt] = Some(of_row));
        results.into_iter().map(|result| result.expect("every prompt has a twin row")).collect()
    }
}
