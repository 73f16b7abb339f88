//! Runs a pair: packs of prompts without padding pass layer 0, then layer 1, …; each layer is computed for the rows
//! that need it, and what a prompt gets does not depend on the company it is in.
//!
//! Only the last token's contributions enter the score and the stream is moved by the tuned model alone, so the
//! pre-trained block is evaluated for one row a prompt: besides that row it needs the keys of all tokens, and values
//! not at all (see [`Backend::twin_attend`]). So a score costs about one forward pass.
//!
//! Each sequence of a pack is a *context* (rows of the tuned model only) followed by *twin* rows (computed for both
//! branches, by the same code in the same order, so that equal weights give exactly equal results). Nobody attends to
//! the last token, so a scored prompt has one twin row and its other tokens are context.

mod alphas;
mod any;
mod block;
mod cache;
mod decode;
mod experts;
mod footprint;
mod generate;
mod head;
mod layer;
mod likelihood;
mod pack;
mod passage;
mod plain;
mod plan;
mod sampling;
mod score;
mod steer;
mod trace;
mod tree;
mod workspace;

pub use alphas::check_alphas;
pub use any::AnyEngine;
pub use footprint::{Batched, Footprint};
pub use generate::{Completion, Finish, Generation, Listener, Prompt, Step, unheard};
pub use head::{LOGITS_AT_ONCE, Tokens};
pub use likelihood::{Continued, Likelihood};
pub use pack::PackLimits;
pub use plan::RowCount;
pub use sampling::Sampling;
pub use score::Score;
pub use trace::{Split, Trace};

use crate::{
    Error, Result,
    backend::{Backend, Role, Rows},
    model::{ModelSpec, PairWeights},
    sync::lock,
    tensor::Tensor,
    twin::{Branch, Twin},
};
use head::Head;
use layer::{Layer, Meeting};
use pack::{Batch, RopeTables};
use plan::Plan;
use std::{
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, OnceLock},
};
use workspace::Workspace;

/// Hears how the work goes on, in tokens passed through the whole model, and may stop it. Fewer than none are those of an attempt that
/// failed and is made again in parts.
pub type Observer<'a> = &'a (dyn Fn(f64) -> ControlFlow<()> + Sync);

/// An observer that never stops.
pub fn unobserved(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Weights on their way through, or kept for the next batch by a backend that keeps weights.
enum Loaded<'e, T> {
    Kept(&'e T),
    Passing(Box<T>),
}

impl<T> std::ops::Deref for Loaded<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Loaded::Kept(kept) => kept,
            Loaded::Passing(passing) => passing,
        }
    }
}

/// A backend with a pair's weights.
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    weights: &'a dyn PairWeights,
    limits: PackLimits,
    /// In memory at a time, where every row has those of the whole vocabulary.
    logits_at_once: usize,
    prefix_sharing: bool,
    embedding: B::Table<'a>,
    position_embedding: Option<B::Table<'a>>,
    /// Kept from batch to batch: their sines take as long as many a small batch.
    ropes: Mutex<RopeTables<'a>>,
    /// Those of backends that keep weights.
    kept_layers: Vec<OnceLock<Layer<'a, B>>>,
    kept_head: OnceLock<Head<'a, B>>,
}

impl<'a, B: Backend> Engine<'a, B> {
    pub fn new(backend: &'a B, weights: &'a dyn PairWeights) -> Self {
        let limits = PackLimits::for_model(weights.spec().ft, backend.pack_room());
        let kept_layers = (0..weights.spec().ft.num_hidden_layers).map(|_| OnceLock::new()).collect();
        let embedding = backend.table(weights.embedding());
        let position_embedding = weights.position_embedding().map(|table| backend.table(table));
        let ropes = Mutex::new(RopeTables::of(weights));
        let kept_head = OnceLock::new();
        let (prefix_sharing, logits_at_once) = (true, LOGITS_AT_ONCE);
        Self {
            backend,
            weights,
            limits,
            logits_at_once,
            prefix_sharing,
            embedding,
            position_embedding,
            ropes,
            kept_layers,
            kept_head,
        }
    }

    /// Sets how much is computed at once. Results do not depend on it.
    pub fn with_limits(self, limits: PackLimits) -> Self {
        Self { limits, ..self }
    }

    /// Sets how many logits are in memory at a time. Results do not depend on it.
    pub fn with_logits_at_once(self, logits_at_once: usize) -> Self {
        Self { logits_at_once, ..self }
    }

    /// Sets whether scored prompts that begin alike share that beginning's rows; they do unless told otherwise. Results do not
    /// depend on it.
    pub fn with_prefix_sharing(self, prefix_sharing: bool) -> Self {
        Self { prefix_sharing, ..self }
    }

    /// The shapes of both models.
    pub fn spec(&self) -> Twin<&'a ModelSpec> {
        self.weights.spec()
    }

    /// Counts the rows that scored prompts take together.
    pub fn row_count(&self) -> RowCount<'_> {
        RowCount::new(RopeTables::of(self.weights), self.prefix_sharing)
    }

    /// For what is laid out next.
    fn ropes(&self) -> MutexGuard<'_, RopeTables<'a>> {
        let mut ropes = lock(&self.ropes);
        ropes.forget_many();
        ropes
    }

    /// Lays `prompts` out and embeds them with the tuned model's embedding.
    fn embedded(&self, prompts: &[&[u32]]) -> Batch<B> {
        let plan = Plan::new(prompts, self.limits, self.prefix_sharing, &mut self.ropes());
        let embed = |kind: Rows, ids: &[u32], positions: &[u32]| self.embed(kind, ids, positions);
        Batch::embed(self.backend, &embed, prompts, plan)
    }

    /// Residual stream before the first layer, `[rows, D]`, of tokens at positions: the tuned model's embedding.
    fn embed(&self, kind: Rows, token_ids: &[u32], positions: &[u32]) -> B::Mat {
        let Self { backend, weights, .. } = self;
        let spec = weights.spec().ft;
        let look_up = |ids: &[u32], table: &B::Table<'_>| {
            let mut rows = backend.zeros(kind, Role::Stream, ids.len(), spec.hidden_size);
            backend.embed(ids, table, &mut rows);
            rows
        };
        let mut rows = look_up(token_ids, &self.embedding);
        weights.let_go(&weights.embedding());
        if spec.embedding_multiplier != 1.0 {
            backend.scale(&mut rows, spec.embedding_multiplier);
        }
        if let Some(table) = &self.position_embedding {
            backend.accumulate(&look_up(positions, table), &mut rows);
        }
        weights.position_embedding().iter().for_each(|table| weights.let_go(table));
        rows
    }

    /// The weights of a layer.
    fn layer(&self, index: usize, meeting: Meeting) -> Loaded<'_, Layer<'a, B>> {
        self.loaded(&self.kept_layers[index], || Layer::load(self.backend, self.weights, index, meeting))
    }

    /// The tuned model's final norm and unembedding.
    ///
    /// # Errors
    /// A checkpoint error where there is none that can be read.
    fn head(&self, meeting: Meeting) -> Result<Loaded<'_, Head<'a, B>>> {
        let head = self.weights.head()?;
        Ok(self.loaded(&self.kept_head, || Head::load(self.backend, self.weights, head, meeting)))
    }

    fn loaded<'e, T>(&self, kept: &'e OnceLock<T>, load: impl FnOnce() -> T) -> Loaded<'e, T> {
        match self.backend.keeps_weights() {
            true => Loaded::Kept(kept.get_or_init(load)),
            false => Loaded::Passing(Box::new(load())),
        }
    }

    /// Layer-major schedule: the whole batch passes a layer before it comes to the next.
    fn run_layers(
        &self,
        batch: &mut Batch<B>,
        branches: &[Branch],
        observer: Observer<'_>,
        mut step: impl FnMut(
            &Layer<'_, B>,
            &mut Batch<B>,
            &mut Workspace<B::Mat>,
            Observer<'_>,
        ) -> ControlFlow<()>,
    ) -> Result<()> {
        let spec = self.weights.spec().ft;
        self.backend.expect_context(Some(batch.context_rows()));
        let mut workspace = Workspace::new(self.backend, spec, batch.twin_rows());
        let share = |tokens: f64| observer(tokens / spec.num_hidden_layers as f64);
        let done =
            self.each_layer(Meeting::Packs, branches, |_, layer| step(layer, batch, &mut workspace, &share));
        self.backend.expect_context(None);
        done
    }

    /// Takes a step with each layer, whose number it is told. What the next one's blocks of these branches need is fetched while a
    /// device is at work.
    ///
    /// # Errors
    /// [`Interrupted`](crate::ErrorKind::Interrupted) when a step breaks; see also [`Backend::check`].
    fn each_layer(
        &self,
        meeting: Meeting,
        branches: &[Branch],
        mut step: impl FnMut(usize, &Layer<'_, B>) -> ControlFlow<()>,
    ) -> Result<()> {
        let layers = self.weights.spec().ft.num_hidden_layers;
        let mut next = Some(self.layer(0, meeting));
        for index in 0..layers {
            let Some(layer) = next else { break };
            let stopped = self.passing_through(index, branches, || step(index, &layer)).is_break();
            next = (index + 1 < layers && !stopped).then(|| self.layer(index + 1, meeting));
            if let Some(next) = &next {
                branches.iter().for_each(|branch| next.blocks.get(*branch).fetch(self.backend));
            }
            self.backend.check()?;
            if stopped {
                return Err(Error::stopped());
            }
        }
        Ok(())
    }

    /// Works with a layer of weights that are not always in memory: those of the next one are read meanwhile, and its own
    /// leave memory afterwards.
    fn passing_through<T>(&self, index: usize, branches: &[Branch], work: impl FnOnce() -> T) -> T {
        if !self.weights.lets_go() {
            return work();
        }
        // After the last layer the next batch, or the next token, comes to the first one.
        let next = (index + 1) % self.weights.spec().ft.num_hidden_layers;
        // The system may make the reader wait for the disk: not one of the threads that compute.
        let done = std::thread::scope(|scope| {
            let read = || self.layer_tensors(next, branches).for_each(|tensor| self.weights.expect(&tensor));
            // Where there may be no more threads, layers are read when they come.
            let _ = std::thread::Builder::new().spawn_scoped(scope, read);
            work()
        });
        self.layer_tensors(index, branches).for_each(|tensor| self.weights.let_go(&tensor));
        done
    }

    /// What the blocks of these branches read.
    fn layer_tensors(&self, index: usize, branches: &[Branch]) -> impl Iterator<Item = Tensor<'a>> {
        let weights = self.weights;
        weights.spec().ft.layer_tensors(index).flat_map(move |tensor| {
            // Layers take what is the same from the base.
            let branches = if weights.is_shared(index, tensor) { &[Branch::Pt] } else { branches };
            branches.iter().filter_map(move |branch| weights.layer_tensor(*branch, index, tensor))
        })
    }
}
