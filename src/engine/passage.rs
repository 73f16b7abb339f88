//! Rows that pass a branch's blocks as context rows, those of steering and of decoding: from the last layer only those come
//! that are asked for.

use super::{
    Layer,
    cache::KeysValues,
    layer::{Onward, PackView},
    workspace::{ContextSpace, RowSpace},
};
use crate::{
    backend::{Backend, Rows},
    model::ModelSpec,
    twin::Branch,
};

/// Which rows pass.
pub struct Passage<B: Backend> {
    pub rows: usize,
    pub layout: B::Layout,
    /// Those of them that come from the last layer, where they are a matrix of their own.
    pub asked: Vec<usize>,
    pub asked_layout: B::Layout,
}

impl<B: Backend> Passage<B> {
    /// How many rows come from a layer.
    pub fn rows_after(&self, layer: &Layer<'_, B>) -> usize {
        if layer.is_last { self.asked.len() } else { self.rows }
    }
}

/// The part of a cache that a block reads, and where the passing rows' own keys and values go in it.
pub struct Cached<'a, M> {
    pub kept: &'a mut KeysValues<M>,
    pub places: &'a [usize],
}

/// What a block writes to besides the stream.
pub struct PassageSpace<M> {
    context: ContextSpace<M>,
    asked: RowSpace<M>,
}

impl<M> PassageSpace<M> {
    pub fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec) -> Self {
        Self {
            context: ContextSpace::new(backend, spec, Rows::Context),
            asked: RowSpace::new(backend, spec, Rows::Context),
        }
    }

    /// Makes room for a passage.
    pub fn fit<B: Backend<Mat = M>>(&mut self, backend: &B, passage: &Passage<B>) {
        self.context.fit(backend, passage.rows);
        self.asked.fit(backend, passage.asked.len());
    }

    /// Passes the stream `x[rows, D]` through a branch's block, and leaves it in `after`. The layouts' paths name rows of the
    /// passage, or with a cache rows of that.
    #[allow(clippy::too_many_arguments, reason = "what a block reads and writes")]
    pub fn through<B: Backend<Mat = M>>(
        &mut self,
        backend: &B,
        layer: &Layer<'_, B>,
        branch: Branch,
        passage: &Passage<B>,
        x: &M,
        after: &mut M,
        cached: Option<Cached<'_, M>>,
    ) {
        let block = layer.blocks.get(branch);
        let Passage { layout, asked, asked_layout, .. } = passage;
        let view = PackView { layout, context: x, twin_rows: &(0..0) };
        block.prepare_context(backend, view, &mut self.context, layer.onward(Onward::Some));
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
        if layer.is_last {
            backend.gather(x, asked, after);
            backend.gather(&rows.normed, asked, &mut self.asked.normed);
            block.fill_queries(backend, asked_layout, &mut self.asked);
            block.move_rows(backend, after, asked_layout, keys, values, &mut self.asked, None);
        } else {
            backend.copy(x, after);
            block.move_rows(backend, after, layout, keys, values, rows, None);
        }
    }
}
