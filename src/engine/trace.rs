//! Tracing: the contributions of every layer, of its attention and of its MLP, to every token.
//!
//! All rows pass both models' blocks from the tuned model's stream, which goes on as the tuned model's block leaves it. That is
//! two plain passes, in the precision of context rows. Where fine-tuning is so light that their rounding would show
//! ([`LIGHT`]), the prompt is traced again in the precision of twin rows.

use super::{
    Engine, Layer, Observer,
    alphas::branches,
    layer::Meeting,
    passage::{Beside, Passage, PassageSpace},
    tree::{Forest, plant},
};
use crate::{
    Error, ErrorKind, Result,
    backend::{Backend, PartSums, Role, Rows},
    metrics::{PartsL1, RunningL1, tuco},
    twin::{Branch, Twin},
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

impl Trace {
    /// Why the trace is no numbers, if it is none.
    ///
    /// # Errors
    /// As [`RunningL1::check_finite`](crate::metrics::RunningL1::check_finite). It is not said at which token, as one that overflows may take
    /// those before it along: a weight of 0 times a value that is not a number is none.
    pub fn check_finite(&self) -> Result<(), String> {
        self.tokens.iter().filter_map(|layers| layers.last()).try_for_each(|l1| l1.whole.check_finite())
    }
}

/// The final hidden state of a token as the sum of its parts, `[D]` each: `x_L = x_0 + P_L + F_L`.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    pub embedding: Vec<f64>,
    pub pt: Vec<f64>,
    pub ft: Vec<f64>,
}

impl Trace {
    /// The norms after each layer over all tokens: those of each token together.
    pub fn over_all_tokens(&self) -> Vec<RunningL1> {
        let layers = self.tokens.first().map_or(0, Vec::len);
        let after = |layer: usize| {
            let of_tokens = self.tokens.iter().map(|layers| layers[layer].whole);
            of_tokens.fold(RunningL1::default(), |sum, l1| RunningL1 {
                ptc: sum.ptc + l1.ptc,
                ftc: sum.ftc + l1.ftc,
            })
        };
        (0..layers).map(after).collect()
    }
}

impl Split {
    /// The final hidden state.
    pub fn hidden(&self) -> Vec<f64> {
        self.embedding.iter().zip(&self.pt).zip(&self.ft).map(|((x, p), f)| x + p + f).collect()
    }
}

impl<B: Backend> Engine<'_, B> {
    /// Traces prompts, in order; [`Trace::check_finite`] tells whether one has overflowed.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`](crate::ErrorKind), when the observer stops the work; see also [`Backend::check`].
    pub fn trace(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>> {
        let mut traces = self.trace_in(Rows::Context, prompts, observer)?;
        let is_light = |trace: &Trace| {
            let last = trace.tokens.iter().filter_map(|layers| layers.last());
            last.map(|l1| tuco(l1.whole)).any(|tuco| tuco < LIGHT && tuco != 0.0)
        };
        let light: Vec<usize> = (0..prompts.len()).filter(|prompt| is_light(&traces[*prompt])).collect();
        if light.is_empty() {
            return Ok(traces);
        }
        let again: Vec<&[u32]> = light.iter().map(|prompt| prompts[*prompt]).collect();
        // Tokens that pass again count once, but whoever wants to stop is heard.
        let again = self.trace_in(Rows::Twin, &again, &|_| observer(0.0))?;
        for (prompt, trace) in light.into_iter().zip(again) {
            traces[prompt] = trace;
        }
        Ok(traces)
    }

    /// What each part of a final hidden state adds to the logits, a list over the vocabulary for each: the final norm is
    /// taken with the scale that the whole state has. Their sum, with what the norm's bias adds, is the logits before
    /// scaling and capping.
    ///
    /// # Errors
    /// Where the checkpoint has no head that can be read; [`ErrorKind::NotFinite`] where the logits overflow; see also [`Backend::check`].
    pub fn logits_of_parts(&self, split: &Split) -> Result<Split> {
        let head = self.head(Meeting::Packs)?;
        let parts = [&split.embedding, &split.pt, &split.ft].map(Vec::as_slice);
        let [embedding, pt, ft] = head.logits_of_parts(self.backend, &split.hidden(), parts);
        self.backend.check()?;
        if [&embedding, &pt, &ft].into_iter().flatten().any(|logit| !logit.is_finite()) {
            let message =
                "the logits of the hidden state's parts overflowed: the weights are finite but too large";
            return Err(Error::new(ErrorKind::NotFinite, message));
        }
        Ok(Split { embedding, pt, ft })
    }

    /// Traces with rows of one kind.
    fn trace_in(&self, kind: Rows, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>> {
        let (backend, spec) = (self.backend, self.weights.spec().ft);
        let forests = plant(prompts, self.limits.tokens, &mut self.ropes());
        let mut packs: Vec<TracePack<B>> =
            forests.into_iter().map(|forest| TracePack::embed(self, kind, forest)).collect();
        let stream = || backend.zeros(kind, Role::Stream, 0, spec.hidden_size);
        let mut space = TraceSpace {
            passage: PassageSpace::new(backend, spec, kind),
            after_attention: Twin::new(stream(), stream()),
        };
        let layers = spec.num_hidden_layers as f64;
        self.each_layer(Meeting::Packs, &Branch::BOTH, |_, layer| {
            packs.iter_mut().try_for_each(|pack| {
                trace_layer(backend, layer, pack, &mut space);
                observer(pack.forest.tokens as f64 / layers)
            })
        })?;
        let mut traces: Vec<Option<Trace>> = vec![None; prompts.len()];
        for (prompt, trace) in packs.iter().flat_map(|pack| pack.traces(backend)) {
            traces[prompt] = Some(trace);
        }
        backend.check()?;
        Ok(traces.into_iter().map(|trace| trace.expect("every prompt ends in a forest")).collect())
    }
}

/// Some prompts on their way.
struct TracePack<B: Backend> {
    forest: Forest,
    kind: Rows,
    hidden_size: usize,
    passage: Passage<B>,
    /// The stream, `[rows, D]`, and what was added to it, of the same kind.
    x: B::Mat,
    sums: PartSums<B::Mat>,
    /// The last tokens' rows of the stream before the first layer, `[prompts, D]`.
    embedding: Vec<f64>,
    /// Running norms by layer, then by row.
    norms: Vec<Vec<PartsL1>>,
}

/// What a layer writes to besides the streams.
struct TraceSpace<M> {
    passage: PassageSpace<M>,
    after_attention: Twin<M>,
}

impl<B: Backend> TracePack<B> {
    fn embed(engine: &Engine<'_, B>, kind: Rows, forest: Forest) -> Self {
        let (backend, spec) = (engine.backend, engine.weights.spec().ft);
        let x = engine.embed(kind, &forest.token_ids, &forest.positions);
        let zeros = || backend.zeros(kind, Role::Stream, forest.rows(), spec.hidden_size);
        let sums = || Twin::new(zeros(), zeros());
        let sums = PartSums { attention: sums(), mlp: sums() };
        let mut pack = Self {
            passage: Passage::of_all(backend, forest.rows(), &forest.sequences),
            embedding: Vec::new(),
            norms: Vec::with_capacity(spec.num_hidden_layers),
            hidden_size: spec.hidden_size,
            forest,
            kind,
            x,
            sums,
        };
        pack.embedding = pack.last_rows_of(backend, &pack.x);
        pack
    }

    /// The rows of the prompts' last tokens.
    fn last_rows_of(&self, backend: &B, mat: &B::Mat) -> Vec<f64> {
        let last_rows = self.forest.last_rows();
        let mut chosen = backend.zeros(self.kind, Role::Stream, last_rows.len(), self.hidden_size);
        backend.gather(mat, &last_rows, &mut chosen);
        backend.read(&chosen)
    }

    /// The prompts' numbers and traces, after the last layer.
    fn traces(&self, backend: &B) -> Vec<(usize, Trace)> {
        let PartSums { attention, mlp } = &self.sums;
        let sums =
            [&attention.pt, &mlp.pt, &attention.ft, &mlp.ft].map(|sum| self.last_rows_of(backend, sum));
        let trace = |(place, (prompt, end)): (usize, &(usize, usize))| {
            let own = place * self.hidden_size..(place + 1) * self.hidden_size;
            let [p_attention, p_mlp, f_attention, f_mlp] = sums.each_ref().map(|sum| &sum[own.clone()]);
            let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
            let split = Split {
                embedding: self.embedding[own].to_vec(),
                pt: add(p_attention, p_mlp),
                ft: add(f_attention, f_mlp),
            };
            let rows = self.forest.sequences[*end].path_rows(0);
            let tokens = rows.map(|row| self.norms.iter().map(|layer| layer[row]).collect()).collect();
            (*prompt, Trace { tokens, split })
        };
        self.forest.ends.iter().enumerate().map(trace).collect()
    }
}

/// Passes a pack through both blocks and adds up what they did.
fn trace_layer<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    pack: &mut TracePack<B>,
    space: &mut TraceSpace<B::Mat>,
) {
    let TracePack { passage, x, sums, norms, .. } = pack;
    let TraceSpace { passage: space, after_attention } = space;
    space.fit(backend, passage);
    for branch in branches(layer.computes(Twin::new(true, true))) {
        let after_attention = after_attention.get_mut(*branch);
        backend.resize(after_attention, passage.rows);
        let beside = Beside { after_attention: Some(after_attention), ..Beside::default() };
        space.through(backend, layer, *branch, passage, x, beside);
    }
    norms.push(backend.trace(x, layer.both(after_attention), layer.both(&space.after), sums));
    std::mem::swap(x, &mut space.after.ft);
}
