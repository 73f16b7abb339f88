//! Rows that pass a branch's blocks as context rows, those of steering, of decoding and of traces.

use super::{
    block::Onward,
    cache::KeysValues,
    layer::Layer,
    workspace::{ContextSpace, RowSpace},
};
use crate::{
    backend::{Backend, Role, Rows, Sequence},
    model::ModelSpec,
    twin::{Branch, Twin},
};

/// Which rows pass.
pub struct Passage<B: Backend> {
    pub rows: usize,
    layout: B::Layout,
    /// Those of them that come from the last layer, where these are not all.
    asked: Option<Asked<B>>,
}

struct Asked<B: Backend> {
    rows: Vec<usize>,
    layout: B::Layout,
}

impl<B: Backend> Passage<B> {
    /// Of rows that all come from the last layer.
    pub fn of_all(backend: &B, rows: usize, sequences: &[Sequence]) -> Self {
        Self { rows, layout: backend.layout(sequences), asked: None }
    }

    /// Of rows of which `asked` come from the last layer, as a matrix of their own with sequences of its own.
    pub fn asking(
        backend: &B,
        rows: usize,
        sequences: &[Sequence],
        asked: Vec<usize>,
        asked_sequences: &[Sequence],
    ) -> Self {
        let asked = Asked { rows: asked, layout: backend.layout(asked_sequences) };
        Self { asked: Some(asked), ..Self::of_all(backend, rows, sequences) }
    }

    /// The rows that come from the last layer, where these are not all.
    pub fn asked(&self) -> Option<&[usize]> {
        self.asked.as_ref().map(|asked| asked.rows.as_slice())
    }

    /// How many rows come from the last layer.
    pub fn rows_at_last(&self) -> usize {
        self.asked().map_or(self.rows, <[usize]>::len)
    }

    /// How many rows come from a layer.
    pub fn rows_after(&self, layer: &Layer<'_, B>) -> usize {
        if layer.is_last { self.rows_at_last() } else { self.rows }
    }
}

/// The part of a cache that a block reads, and where the passing rows' own keys and values go in it.
pub struct Cached<'a, M> {
    pub kept: &'a mut KeysValues<M>,
    pub places: &'a [usize],
}

/// What a block reads and writes besides the stream.
pub struct Beside<'a, M> {
    pub cached: Option<Cached<'a, M>>,
    /// Gets the stream between attention and MLP.
    pub after_attention: Option<&'a mut M>,
}

impl<M> Default for Beside<'_, M> {
    fn default() -> Self {
        Self { cached: None, after_attention: None }
    }
}

/// What blocks write to.
pub struct PassageSpace<M> {
    context: ContextSpace<M>,
    asked: RowSpace<M>,
    /// The streams after the blocks.
    pub after: Twin<M>,
}

impl<M> PassageSpace<M> {
    pub fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec, kind: Rows) -> Self {
        let stream = || backend.zeros(kind, Role::Stream, 0, spec.hidden_size);
        Self {
            context: ContextSpace::new(backend, spec, kind),
            asked: RowSpace::new(backend, spec, Branch::Ft, kind, 0),
            after: Twin::new(stream(), stream()),
        }
    }

    /// Makes room for a passage.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, passage: &Passage<B>) {
        self.context.fit(backend, passage.rows);
        self.asked.fit(backend, passage.asked().map_or(0, <[usize]>::len));
    }

    /// Passes the stream `x[rows, D]` through a branch's block, and leaves it in `after`. The layouts' paths name rows of the
    /// passage, or with a cache rows of that.
    pub fn through<B: Backend<Mat = M>>(
        &mut self,
        backend: &B,
        layer: &Layer<'_, B>,
        branch: Branch,
        passage: &Passage<B>,
        x: &M,
        Beside { cached, after_attention }: Beside<'_, M>,
    ) {
        let (block, after) = (layer.blocks.get(branch), self.after.get_mut(branch));
        let asked = passage.asked.as_ref().filter(|_| layer.is_last);
        let onward = if asked.is_some() { Onward::Some } else { Onward::All };
        block.prepare_context(backend, x, &passage.layout, &mut self.context, onward);
        let ContextSpace { rows, keys, values, .. } = &mut self.context;
        let (keys, values) = match cached {
            None => (&*keys, &*values),
            Some(Cached { kept, places }) => {
                backend.scatter(keys, places, &mut kept.keys);
                backend.scatter(values, places, &mut kept.values);
                (&kept.keys, &kept.values)
            }
        };
        backend.resize(after, passage.rows_after(layer));
        if let Some(asked) = asked {
            backend.gather(x, &asked.rows, after);
            backend.gather(&rows.normed, &asked.rows, &mut self.asked.normed);
            block.fill_queries(backend, &asked.layout, &mut self.asked);
            block.move_rows(backend, after, &asked.layout, keys, values, &mut self.asked, after_attention);
        } else {
            backend.copy(x, after);
            block.move_rows(backend, after, &passage.layout, keys, values, rows, after_attention);
        }
    }
}
