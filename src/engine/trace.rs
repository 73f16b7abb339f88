//! Tracing: the contributions of every layer, of its attention and of its MLP, to every token.
//!
//! All rows pass both models' blocks from the tuned model's stream, which goes on as the tuned model's block leaves it. That is
//! two plain passes, in the precision of context rows. Where fine-tuning is so light that their rounding would show
//! ([`LIGHT`]), the prompt is traced again in the precision of twin rows.

use super::{
    Engine, Observer,
    head::Head,
    layer::{Block, Meeting, PackView},
    tree::{Forest, plant},
    workspace::ContextSpace,
};
use crate::{
    Error, ErrorKind, Result,
    backend::{Backend, PartSums, Role, Rows},
    metrics::{PartsL1, tuco},
    model::PairWeights,
    twin::Twin,
};

/// A prompt with a token of a smaller TuCo than this, other than 0, is traced again: f32 rounding is a few 1e-7 of the
/// stream.
const LIGHT: f64 = 0.03;

/// What a prompt's trace gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Running norms by token, then by layer.
    pub tokens: Vec<Vec<PartsL1>>,
    /// Where the last token's final hidden state comes from.
    pub split: Split,
}

/// The final hidden state of a token as the sum of its parts, `[D]` each: `x_L = x_0 + P_L + F_L`.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    pub embedding: Vec<f64>,
    pub pt: Vec<f64>,
    pub ft: Vec<f64>,
}

impl Split {
    /// The final hidden state.
    pub fn hidden(&self) -> Vec<f64> {
        self.embedding.iter().zip(&self.pt).zip(&self.ft).map(|((x, p), f)| x + p + f).collect()
    }
}

impl<B: Backend, W: PairWeights> Engine<'_, B, W> {
    /// Traces prompts, in order.
    ///
    /// # Errors
    /// Only [`ErrorKind::Interrupted`], when the observer stops the work.
    pub fn trace(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>> {
        let mut traces = self.trace_in(Rows::Context, prompts, observer)?;
        let is_light = |trace: &Trace| {
            let last = trace.tokens.iter().filter_map(|layers| layers.last());
            last.map(|l1| tuco(l1.whole)).any(|tuco| tuco < LIGHT && tuco != 0.0)
        };
        let light: Vec<usize> = (0..prompts.len()).filter(|prompt| is_light(&traces[*prompt])).collect();
        let again: Vec<&[u32]> = light.iter().map(|prompt| prompts[*prompt]).collect();
        for (prompt, trace) in light.into_iter().zip(self.trace_in(Rows::Twin, &again, &super::unobserved)?) {
            traces[prompt] = trace;
        }
        Ok(traces)
    }

    /// What each part of a final hidden state adds to the logits, a list over the vocabulary for each: the final norm is
    /// taken with the scale that the whole state has. Their sum, with what the norm's bias adds, is the logits before
    /// scaling and capping.
    ///
    /// # Errors
    /// Where the checkpoint has no head that can be read.
    pub fn logits_of_parts(&self, split: &Split) -> Result<Split> {
        let head = Head::load(self.backend, self.weights, Meeting::Packs)?;
        let parts = [&split.embedding, &split.pt, &split.ft].map(Vec::as_slice);
        let [embedding, pt, ft] = head.logits_of_parts(self.backend, &split.hidden(), parts);
        Ok(Split { embedding, pt, ft })
    }

    /// Traces with rows of one kind.
    fn trace_in(&self, kind: Rows, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>> {
        let mut ropes = self.ropes();
        let mut traces: Vec<Option<Trace>> = vec![None; prompts.len()];
        for forest in plant(prompts, self.limits.tokens, &mut ropes) {
            for (prompt, trace) in self.trace_forest(kind, &forest, observer)? {
                traces[prompt] = Some(trace);
            }
        }
        Ok(traces.into_iter().map(|trace| trace.expect("every prompt ends in a forest")).collect())
    }

    fn trace_forest(
        &self,
        kind: Rows,
        forest: &Forest,
        observer: Observer<'_>,
    ) -> Result<Vec<(usize, Trace)>> {
        let (backend, spec) = (self.backend, self.weights.spec().ft);
        let (rows, hidden_size) = (forest.rows(), spec.hidden_size);
        let mat = |kind: Rows| backend.zeros(kind, Role::Stream, rows, hidden_size);
        let mut x = self.embeddings().embed(backend, spec, kind, &forest.token_ids, &forest.positions);
        let last_rows = forest.last_rows();
        let read_last = |kind: Rows, mat: &B::Mat| {
            let mut chosen = backend.zeros(kind, Role::Stream, last_rows.len(), hidden_size);
            backend.gather(mat, &last_rows, &mut chosen);
            backend.read(&chosen)
        };
        let layout = backend.layout(&forest.sequences);
        let embedding = read_last(kind, &x);
        let mut space = ContextSpace::new(backend, spec, kind);
        space.fit(backend, rows);
        let mut after_attention = Twin::new(mat(kind), mat(kind));
        let mut after = Twin::new(mat(kind), mat(kind));
        let sums = || Twin::new(mat(Rows::Twin), mat(Rows::Twin));
        let mut sums = PartSums { attention: sums(), mlp: sums() };
        let mut layers: Vec<Vec<PartsL1>> = Vec::with_capacity(spec.num_hidden_layers);
        for index in 0..spec.num_hidden_layers {
            let layer = self.layer(index, Meeting::Packs);
            let mut through = |block: &Block<'_, B>, after_attention: &mut B::Mat, after: &mut B::Mat| {
                let view = PackView { layout: &layout, context: &x, first_twin: 0 };
                block.prepare_context(backend, view, &mut space);
                block.fill_values(backend, &mut space);
                backend.copy(&x, after);
                let ContextSpace { rows, keys, values, .. } = &mut space;
                block.move_rows(backend, after, &layout, keys, values, rows, Some(after_attention));
            };
            through(&layer.blocks.ft, &mut after_attention.ft, &mut after.ft);
            if !layer.same_block {
                through(&layer.blocks.pt, &mut after_attention.pt, &mut after.pt);
            }
            layers.push(backend.trace(&x, layer.both(&after_attention), layer.both(&after), &mut sums));
            std::mem::swap(&mut x, &mut after.ft);
            backend.check()?;
            if observer(forest.tokens as f64 / spec.num_hidden_layers as f64).is_break() {
                return Err(Error::new(ErrorKind::Interrupted, "stopped"));
            }
        }
        backend.check()?;
        let PartSums { attention, mlp } = &sums;
        let sums_of_parts =
            [&attention.pt, &mlp.pt, &attention.ft, &mlp.ft].map(|sum| read_last(Rows::Twin, sum));
        let trace = |(place, (prompt, end)): (usize, &(usize, usize))| {
            let own = place * hidden_size..(place + 1) * hidden_size;
            let [p_attention, p_mlp, f_attention, f_mlp] =
                sums_of_parts.each_ref().map(|sum| &sum[own.clone()]);
            let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
            let split = Split {
                embedding: embedding[own].to_vec(),
                pt: add(p_attention, p_mlp),
                ft: add(f_attention, f_mlp),
            };
            let rows = forest.sequences[*end].path_rows(0);
            let tokens = rows.map(|row| layers.iter().map(|layer| layer[row]).collect()).collect();
            (*prompt, Trace { tokens, split })
        };
        Ok(forest.ends.iter().enumerate().map(trace).collect())
    }
}
