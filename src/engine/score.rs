//! The score: contributions of pre-training and fine-tuning to the last token's hidden state.

use super::{Engine, Layer, Observer, Pack, Workspace};
use crate::{
    Result,
    backend::{Backend, RunningL1},
    model::PairWeights,
};

/// What a prompt's pass gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// `‖P_l‖₁` and `‖F_l‖₁` of the last token after each of the `L` layers.
    pub running: Vec<RunningL1>,
    /// The tuned model's hidden state of the last token after the last layer, before the final norm, `[D]`.
    pub last_hidden: Vec<f64>,
}

impl<B: Backend, W: PairWeights> Engine<'_, B, W> {
    /// Scores prompts of token ids (at least one each, all below the vocabulary's size), in order.
    ///
    /// # Errors
    /// Only [`ErrorKind::Interrupted`](crate::ErrorKind), when the observer stops the work.
    pub fn score(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Score>> {
        let backend = self.backend;
        let hidden_size = self.weights.spec().ft.hidden_size;
        let mut packs = self.embedded(prompts);
        let mut sums: Vec<_> = packs.iter().map(|pack| backend.sums(pack.twin_rows(), hidden_size)).collect();
        let mut running: Vec<Vec<RunningL1>> = vec![Vec::new(); packs.len()];
        let mut next = (0..packs.len()).cycle();
        self.run_layers(&mut packs, observer, |layer, pack, workspace| {
            let index = next.next().expect("as many steps as packs in every layer");
            running[index].extend(score_layer(backend, layer, pack, workspace, &mut sums[index]));
        })?;
        let mut scores = Vec::with_capacity(prompts.len());
        for (pack, running) in packs.iter().zip(running) {
            let (rows, hidden) = (pack.twin_rows(), backend.read(&pack.twin));
            scores.extend((0..rows).map(|row| Score {
                running: running[row..].iter().step_by(rows).copied().collect(),
                last_hidden: hidden[row * hidden_size..(row + 1) * hidden_size].to_vec(),
            }));
        }
        Ok(scores)
    }
}

/// Passes a pack through a layer and returns the running norms of its twin rows.
fn score_layer<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    pack: &mut Pack<B>,
    workspace: &mut Workspace<B>,
    sums: &mut B::Sums,
) -> Vec<RunningL1> {
    let Pack { sequences, context, twin } = pack;
    let Workspace { context: context_space, twin: twin_space, output } = workspace;
    let (normed, keys, rest) = context_space.split();
    let blocks = &layer.blocks;

    blocks.ft.context_normed(backend, context, &mut normed.ft);
    blocks.ft.context_keys(backend, &normed.ft, sequences, &mut keys.ft);
    blocks.ft.twin_rows(backend, twin, &normed.ft, &keys.ft, sequences, twin_space, &mut output.ft);
    if !layer.same_block {
        if !layer.same_normed {
            blocks.pt.context_normed(backend, context, &mut normed.pt);
        }
        let pt_normed = if layer.same_normed { &normed.ft } else { &normed.pt };
        if !layer.same_keys {
            blocks.pt.context_keys(backend, pt_normed, sequences, &mut keys.pt);
        }
        let pt_keys = if layer.same_keys { &keys.ft } else { &keys.pt };
        blocks.pt.twin_rows(backend, twin, pt_normed, pt_keys, sequences, twin_space, &mut output.pt);
    }
    let f_pt = (!layer.same_block).then_some(&output.pt);
    let running = backend.contribution(f_pt, &output.ft, twin, sums);
    if !layer.is_last {
        blocks.ft.context_rows(backend, context, &mut normed.ft, &keys.ft, sequences, rest);
    }
    running
}
