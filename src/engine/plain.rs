//! One model's own forward pass from the tuned model's embedding, for OutputCo and as a baseline of speed.

use super::{Engine, Layer, Observer, Pack, Workspace};
use crate::{Result, backend::Backend, model::PairWeights, twin::Branch};

impl<B: Backend, W: PairWeights> Engine<'_, B, W> {
    /// The last token's hidden state after the last layer of one model's blocks, before the final norm: `[D]` for each
    /// prompt, in order.
    ///
    /// # Errors
    /// Only [`ErrorKind::Interrupted`](crate::ErrorKind), when the observer stops the work.
    pub fn plain(&self, branch: Branch, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Vec<f64>>> {
        let hidden_size = self.weights.spec().ft.hidden_size;
        let mut packs = self.embedded(prompts);
        self.run_layers(&mut packs, observer, |layer, pack, workspace| {
            plain_layer(self.backend, layer, branch, pack, workspace);
        })?;
        let rows = |pack: &Pack<B>| self.backend.read(&pack.twin);
        Ok(packs
            .iter()
            .flat_map(|pack| rows(pack).chunks_exact(hidden_size).map(<[f64]>::to_vec).collect::<Vec<_>>())
            .collect())
    }
}

/// Passes a pack through one model's block.
fn plain_layer<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    branch: Branch,
    pack: &mut Pack<B>,
    workspace: &mut Workspace<B>,
) {
    let Pack { sequences, context, twin } = pack;
    let Workspace { context: context_space, twin: twin_space, output } = workspace;
    let (normed, keys, rest) = context_space.split();
    let (normed, keys) = (&mut normed.ft, &mut keys.ft);
    let block = layer.blocks.get(branch);

    block.context_normed(backend, context, normed);
    block.context_keys(backend, normed, sequences, keys);
    block.twin_rows(backend, twin, normed, keys, sequences, twin_space, &mut output.ft);
    backend.add(twin, &output.ft, &mut output.pt);
    std::mem::swap(twin, &mut output.pt);
    if !layer.is_last {
        block.context_rows(backend, context, normed, keys, sequences, rest);
    }
}
