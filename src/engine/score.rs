//! The score: contributions of pre-training and fine-tuning to the last token's hidden state.

use super::{Batch, Engine, Layer, Observer, Workspace};
use crate::{
    Result,
    backend::Backend,
    metrics::{self, RunningL1},
    twin::Branch,
};
use std::ops::ControlFlow;

/// What a prompt's pass gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// `‖P_l‖₁` and `‖F_l‖₁` of the last token after each of the `L` layers.
    pub running: Vec<RunningL1>,
    /// The tuned model's hidden state of the last token after the last layer, before the final norm, `[D]`.
    pub last_hidden: Vec<f64>,
}

impl Score {
    /// The norms after the last layer.
    pub fn last(&self) -> RunningL1 {
        self.running.last().copied().unwrap_or_default()
    }

    /// The Tuning Contribution, 0 to 1; see [`metrics::tuco`].
    pub fn tuco(&self) -> f64 {
        metrics::tuco(self.last())
    }

    /// Why the score is no number, if it is none.
    ///
    /// # Errors
    /// As [`RunningL1::check_finite`].
    pub fn check_finite(&self) -> Result<(), String> {
        self.last().check_finite()
    }

    /// The largest contribution after any layer, see [`metrics::beta`].
    pub fn beta(&self) -> f64 {
        metrics::beta(&self.running)
    }
}

impl<B: Backend> Engine<'_, B> {
    /// Scores prompts of token ids (at least one each, all below the vocabulary's size), in order.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`](crate::ErrorKind), when the observer stops the work; see also [`Backend::check`].
    pub fn score(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Score>> {
        let backend = self.backend;
        let hidden_size = self.weights.spec().ft.hidden_size;
        let mut batch = self.embedded(prompts);
        let mut sums = backend.sums(batch.twin_rows(), hidden_size);
        self.run_layers(
            &mut batch,
            &[Branch::Ft, Branch::Pt],
            observer,
            |layer, batch, workspace, observer| {
                score_context(backend, layer, batch, workspace, observer)?;
                score_twin(backend, layer, batch, workspace, &mut sums);
                ControlFlow::Continue(())
            },
        )?;
        let (norms, hidden) = (backend.norms(&sums), backend.read(&batch.twin));
        backend.check()?;
        let scores = hidden.chunks_exact(hidden_size).enumerate().map(|(row, hidden)| Score {
            running: norms.iter().map(|after_layer| after_layer[row]).collect(),
            last_hidden: hidden.to_vec(),
        });
        Ok(batch.by_prompt(scores))
    }
}

/// Queries and keys of the twin rows, then, pack by pack, their attention and the context's own way through the layer.
fn score_context<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    batch: &mut Batch<B>,
    workspace: &mut Workspace<B::Mat>,
    observer: Observer<'_>,
) -> ControlFlow<()> {
    let Batch { layout, packs, twin, .. } = batch;
    let blocks = &layer.blocks;
    // The tuned model's stream is read by both, so what the pre-trained branch does with it is asked for first.
    if !layer.same_block {
        blocks.pt.start_twin(backend, twin, layout, &mut workspace.twin.pt);
    }
    blocks.ft.start_twin(backend, twin, layout, &mut workspace.twin.ft);
    for pack in packs {
        workspace.fit(backend, pack);
        layer.attend_both(backend, pack, workspace);
        if !layer.is_last {
            blocks.ft.move_pack(backend, pack, workspace);
        }
        observer(pack.tokens as f64)?;
    }
    ControlFlow::Continue(())
}

/// The rest of the layer for the twin rows of both branches.
fn score_twin<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    batch: &mut Batch<B>,
    workspace: &mut Workspace<B::Mat>,
    sums: &mut B::Sums,
) {
    let (twin, space) = (&mut batch.twin, &mut workspace.twin);
    if !layer.same_block {
        layer.blocks.pt.finish_twin(backend, twin, &mut space.pt);
    }
    layer.blocks.ft.finish_twin(backend, twin, &mut space.ft);
    let f_pt = (!layer.same_block).then_some(&space.pt.output);
    backend.contribution(f_pt, &space.ft.output, twin, sums);
}
