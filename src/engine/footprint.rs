//! What passes take in memory on the CPU, whose context rows are f32 and twin rows f64: upper bounds, so that batches fit what
//! a job may use.

use super::{Generation, LOGITS_AT_ONCE, PackLimits, alphas, decode::Mix};
use crate::{
    Result,
    backend::cpu::{elements_of_key, elements_of_panel, elements_of_tile, elements_of_twin_key},
    metrics::PartsL1,
    model::{LayerTensor, ModelSpec, PairWeights},
    tensor::Tensor,
    twin::Branch,
};
use std::collections::HashSet;

/// Bytes of an element of context rows and of widened weights, and of twin rows.
const F32: usize = 4;
const F64: usize = 8;

/// The system brings a file's pages to memory in groups of so many bytes.
const PAGES_AT_ONCE: usize = 64 << 10;

/// What a thread keeps besides what grows with the shapes: packed blocks of products, its stack.
const THREAD: usize = 8 << 20;

/// Token ids, positions and the like of a row.
const OF_A_ROW: usize = 64;

/// What is in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Batched {
    /// A beginning that prompts share counted once.
    pub rows: usize,
    pub prompts: usize,
    /// Of all prompts, shared ones counted for each.
    pub tokens: usize,
    /// Tokens of the longest prompt.
    pub longest: usize,
}

impl Batched {
    /// A prompt alone.
    pub fn alone(tokens: usize) -> Self {
        Self { rows: tokens, prompts: 1, tokens, longest: tokens }
    }
}

/// The memory of a pass, as parts that grow with the batch and parts that do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Of a layer of both models, as they are in their files and widened.
    weights: usize,
    /// Of all threads together.
    threads: usize,
    /// For each row of the batch, each token of its prompts, each prompt, and each row of the workspace.
    row: usize,
    token: usize,
    prompt: usize,
    workspace: usize,
    /// For each token of the longest prompt.
    longest: usize,
    /// For each prompt of a pack.
    in_pack: usize,
    /// Rows whose logits are in memory at once, and what they take for each.
    logits: (usize, usize),
    /// Packs have a common beginning each for itself ([`plant`](super::tree::plant)).
    in_forests: bool,
    limits: PackLimits,
}

impl Footprint {
    /// Of [`Engine::score`](super::Engine::score), with or without a pass of the base for OutputCo.
    pub fn of_score(weights: &dyn PairWeights, limits: PackLimits, threads: usize) -> Self {
        let spec = weights.spec().ft;
        let (d, q, k, f) = widths(spec);
        let twin_rows = 2 * (5 * d + 2 * q + k + f + of_experts(spec)) + 5 * d + 4 * spec.num_hidden_layers;
        // What packs inherit of earlier ones, and the same joined with their own.
        let inherited = 2 * (2 * d + 4 * k);
        let keys = 2 * k * d * F32;
        Self {
            weights: (widest_layer(weights, &Branch::BOTH, &[Branch::Ft]) + keys)
                .max(looked_up(&weights.embedding(), limits.tokens)),
            prompt: F64 * twin_rows,
            // Means of both branches, and those that grow.
            in_pack: 3 * F64 * spec.num_attention_heads * d,
            ..Self::of_rows(spec, limits, threads, inherited)
        }
    }

    /// Of [`Engine::generate`](super::Engine::generate).
    ///
    /// # Errors
    /// Where there is no head.
    pub fn of_generation(
        weights: &dyn PairWeights,
        limits: PackLimits,
        threads: usize,
        generation: &Generation,
    ) -> Result<Self> {
        let spec = weights.spec().ft;
        let (d, q, _, f) = widths(spec);
        let mix = Mix { alpha: generation.alpha, contributions: generation.tuco };
        // A cache that grows is there twice for a moment.
        let cached = generation.cache_bytes(spec) * 3 / 2;
        // As products give them, in f64, and as the caller gets them, twice: those before are still there.
        let logits = spec.vocab_size * (F32 + 4 * F64);
        let row_of_completion = logits + F32 * (2 * (2 * d + q + 2 * f) + of_experts(spec)) + F64 * 12 * d;
        let head = weights.head()?.unembedding.stored.bytes.len();
        let of_rows = Self::of_rows(spec, limits, threads, 2 * d + f);
        Ok(Self {
            weights: widest_layer(weights, mix.branches(), mix.branches())
                .max(looked_up(&weights.embedding(), limits.tokens))
                .max(head),
            row: of_rows.row + cached,
            prompt: generation.samples
                * (row_of_completion + cached * generation.max_new_tokens.next_multiple_of(32)),
            in_forests: true,
            ..of_rows
        })
    }

    /// Of [`Engine::steer`](super::Engine::steer), with so many logits for each prompt and alpha.
    ///
    /// # Errors
    /// Where there is no head.
    pub fn of_steering(
        weights: &dyn PairWeights,
        limits: PackLimits,
        threads: usize,
        alphas: &[f64],
        logits: usize,
    ) -> Result<Self> {
        let spec = weights.spec().ft;
        let head = weights.head()?.unembedding;
        // A few directions of it, or all of it.
        let of_head = match logits < spec.vocab_size {
            true => logits * spec.hidden_size * F64 + looked_up(&head, logits),
            false => widened_head(weights),
        };
        let streams = Self::of_streams(weights, limits, threads, alphas, 0);
        // Logits as they are made, and twice as they are given: by prompt and by alpha.
        let of_alpha = 2 * F64 * logits + F32 * spec.hidden_size;
        let prompt = of_last_rows(spec) + of_logits(logits) + alphas.len() * of_alpha;
        Ok(Self { weights: streams.weights.max(of_head), prompt, ..streams })
    }

    /// Of [`Engine::likelihoods`](super::Engine::likelihoods), which may ask for every row.
    ///
    /// # Errors
    /// Where there is no head.
    pub fn of_likelihoods(
        weights: &dyn PairWeights,
        limits: PackLimits,
        threads: usize,
        alpha: f64,
    ) -> Result<Self> {
        let spec = weights.spec().ft;
        weights.head()?;
        let streams = Self::of_streams(weights, limits, threads, &[alpha], of_last_rows(spec) / F32);
        // Of as many rows as there are at once.
        let logits = ((LOGITS_AT_ONCE / spec.vocab_size).max(1), of_logits(spec.vocab_size));
        Ok(Self { weights: streams.weights.max(widened_head(weights)), logits, ..streams })
    }

    /// Of streams under alphas; `besides` elements for each row of the workspace.
    fn of_streams(
        weights: &dyn PairWeights,
        limits: PackLimits,
        threads: usize,
        alphas: &[f64],
        besides: usize,
    ) -> Self {
        let spec = weights.spec().ft;
        let d = spec.hidden_size;
        let branches = alphas::branches(alphas::needed(alphas.iter().copied()));
        Self {
            weights: widest_layer(weights, branches, branches)
                .max(looked_up(&weights.embedding(), limits.tokens)),
            row: alphas.len() * F32 * d + OF_A_ROW,
            in_forests: true,
            // A stream that goes in, and those that both models give.
            ..Self::of_rows(spec, limits, threads, 3 * d + besides)
        }
    }

    /// Of [`Engine::trace`](super::Engine::trace), which may have to go on in f64, and of the logits of a trace's parts, where there is a
    /// head.
    pub fn of_traces(weights: &dyn PairWeights, limits: PackLimits, threads: usize) -> Self {
        let spec = weights.spec().ft;
        let (d, _, _, _) = widths(spec);
        let of_parts = 3 * of_logits(spec.vocab_size);
        let of_rows = Self::of_rows(spec, limits, threads, 4 * d);
        // Norms of both traces, as they are made and as they are given, a shared token's for each prompt.
        let norms = spec.num_hidden_layers * size_of::<PartsL1>();
        let wider = F64 / F32;
        Self {
            weights: widest_layer(weights, &Branch::BOTH, &Branch::BOTH)
                .max(looked_up(&weights.embedding(), limits.tokens))
                .max(widened_head(weights) + of_parts),
            row: F64 * 5 * d + OF_A_ROW + norms,
            token: 2 * norms,
            prompt: F64 * 12 * d,
            workspace: wider * of_rows.workspace,
            // Threads keep what they needed for rows in f32.
            longest: (1 + wider) * of_rows.longest,
            in_forests: true,
            ..of_rows
        }
    }

    /// Of passes of both kinds, one after the other.
    pub fn or(self, other: Self) -> Self {
        Self {
            weights: self.weights.max(other.weights),
            threads: self.threads.max(other.threads),
            row: self.row.max(other.row),
            token: self.token.max(other.token),
            prompt: self.prompt.max(other.prompt),
            workspace: self.workspace.max(other.workspace),
            longest: self.longest.max(other.longest),
            in_pack: self.in_pack.max(other.in_pack),
            logits: (self.logits.0.max(other.logits.0), self.logits.1.max(other.logits.1)),
            in_forests: self.in_forests || other.in_forests,
            limits: self.limits,
        }
    }

    /// What all passes take for their rows; `besides` elements for each row of the workspace.
    fn of_rows(spec: &ModelSpec, limits: PackLimits, threads: usize, besides: usize) -> Self {
        let (d, q, k, f) = widths(spec);
        let heads = spec.num_attention_heads;
        let inner = d.max(q).max(f);
        let thread = THREAD + F64 * (elements_of_panel(inner) + elements_of_tile(d, heads));
        let thread_row =
            F32 * elements_of_key(spec.head_dim, spec.group_size()) + F64 * elements_of_twin_key(heads);
        Self {
            weights: 0,
            threads: threads * thread,
            row: F32 * d + OF_A_ROW,
            token: 0,
            prompt: 0,
            workspace: F32 * (2 * d + q + f + 4 * k + of_experts(spec) + besides),
            longest: threads * thread_row,
            in_pack: 0,
            logits: (0, 0),
            in_forests: false,
            limits,
        }
    }

    /// Bytes for weights and for threads, whatever is in the batch.
    pub fn fixed(&self) -> [usize; 2] {
        [self.weights, self.threads]
    }

    /// Bytes with such a batch.
    pub fn bytes(&self, Batched { rows, prompts, tokens: all_tokens, longest }: Batched) -> usize {
        let PackLimits { tokens, sequences } = self.limits;
        let fixed: usize = self.fixed().iter().sum();
        // A forest ends where the next prompt's own rows are too many for it.
        let again = if self.in_forests { rows.saturating_sub(1) / tokens * longest } else { 0 };
        fixed
            + (rows + again) * self.row
            + all_tokens * self.token
            + prompts * self.prompt
            + rows.min(tokens + longest) * self.workspace
            + longest * self.longest
            + prompts.min(sequences) * self.in_pack
            + (rows + again).min(self.logits.0) * self.logits.1
    }
}

/// Bytes of the unembedding, as it is in its file and widened.
fn widened_head(weights: &dyn PairWeights) -> usize {
    let spec = weights.spec().ft;
    let stored = weights.head().map_or(0, |head| head.unembedding.stored.bytes.len());
    stored + F32 * spec.hidden_size * spec.vocab_size.next_multiple_of(16)
}

/// Bytes of a row's logits: as products give them, read, cut into rows, scaled.
fn of_logits(logits: usize) -> usize {
    logits * (F32 + 3 * F64)
}

/// Bytes for each row that is asked for of the last layer.
fn of_last_rows(spec: &ModelSpec) -> usize {
    let (d, q, _, f) = widths(spec);
    F32 * (2 * d + q + f + of_experts(spec))
}

/// `D`, `H · Dh`, `K · Dh`, `F`.
fn widths(spec: &ModelSpec) -> (usize, usize, usize, usize) {
    (spec.hidden_size, spec.query_width(), spec.key_width(), spec.intermediate_size)
}

/// Elements for each row that goes through experts.
fn of_experts(spec: &ModelSpec) -> usize {
    let of = |experts: &crate::model::ExpertsSpec| {
        let shared = experts.shared_intermediate_size.map_or(0, |size| size + 2);
        2 * spec.hidden_size + 2 * experts.count + experts.intermediate_size + shared
    };
    spec.experts.as_ref().map_or(0, of)
}

/// Bytes of the layer that takes most: what is read of it, and what is widened.
fn widest_layer(weights: &dyn PairWeights, read: &[Branch], widened: &[Branch]) -> usize {
    let spec = weights.spec().ft;
    let of_layer = |layer: usize| -> usize {
        let mut places = HashSet::new();
        let mut bytes = 0;
        for tensor in spec.layer_tensors(layer) {
            let of = |branch: &Branch| weights.layer_tensor(*branch, layer, tensor);
            for stored in read.iter().filter_map(of).map(|tensor| tensor.stored.bytes) {
                // Fused tensors lie in one place.
                bytes += if places.insert(stored.as_ptr_range()) { stored.len() } else { 0 };
            }
            bytes += widened.len() * widened_bytes(spec, layer, tensor);
        }
        bytes
    };
    (0..spec.num_hidden_layers).map(of_layer).max().unwrap_or(0)
}

/// Bytes of a weight in f32, with the columns that panels are padded with.
fn widened_bytes(spec: &ModelSpec, layer: usize, tensor: LayerTensor) -> usize {
    match tensor.shape(spec, layer) {
        Some((rows, cols)) if !tensor.is_vector() => F32 * cols * (rows.next_multiple_of(16).max(80)),
        _ => 0,
    }
}

/// Bytes of a table that are in memory after some of its rows were looked up.
fn looked_up(table: &Tensor<'_>, rows: usize) -> usize {
    let row = table.stored.bytes.len() / table.rows.max(1);
    table.stored.bytes.len().min(rows * (row + PAGES_AT_ONCE))
}
