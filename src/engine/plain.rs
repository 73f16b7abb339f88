//! One model's own forward pass from the tuned model's embedding, for OutputCo and as a baseline of speed.

use super::{Batch, Engine, Layer, Observer, Workspace, block::Onward};
use crate::{Result, backend::Backend, twin::Branch};
use std::ops::ControlFlow;

impl<B: Backend> Engine<'_, B> {
    /// The last token's hidden state after the last layer of one model's blocks, before the final norm: `[D]` for each
    /// prompt, in order.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`](crate::ErrorKind), when the observer stops the work; see also [`Backend::check`].
    pub fn plain(&self, branch: Branch, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Vec<f64>>> {
        let hidden_size = self.weights.spec().ft.hidden_size;
        let mut batch = self.embedded(prompts);
        self.run_layers(&mut batch, &[branch], observer, |layer, batch, workspace, observer| {
            plain_layer(self.backend, layer, branch, batch, workspace, observer)
        })?;
        let hidden = self.backend.read(&batch.twin);
        self.backend.check()?;
        Ok(batch.by_prompt(hidden.chunks_exact(hidden_size).map(<[f64]>::to_vec)))
    }
}

/// Passes a batch through one model's block.
fn plain_layer<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    branch: Branch,
    batch: &mut Batch<B>,
    workspace: &mut Workspace<B::Mat>,
    observer: Observer<'_>,
) -> ControlFlow<()> {
    let Batch { layout, packs, twin, .. } = batch;
    let block = layer.blocks.get(branch);
    block.start_twin(backend, twin, layout, &mut workspace.twin.ft);
    for pack in packs {
        workspace.fit(backend, pack);
        let Workspace { context: space, twin, heritage, .. } = &mut *workspace;
        block.prepare_context(backend, &pack.context, &pack.layout, space, layer.onward(Onward::None));
        heritage.pass_on(backend, branch, space, &pack.lineage);
        block.attend(backend, pack, space, None, &mut twin.ft);
        if !layer.is_last {
            block.move_pack(backend, pack, workspace);
        }
        observer(pack.tokens as f64)?;
    }
    let space = &mut workspace.twin.ft;
    block.finish_twin(backend, twin, space);
    let stream = &mut space.rows.normalized;
    backend.add(twin, &space.output, stream);
    std::mem::swap(twin, stream);
    ControlFlow::Continue(())
}
