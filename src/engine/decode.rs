//! Rows that pass the layers with a cache: first those of the prompts, then one row for each token that was chosen. Every
//! row is steered, `x + ptc + alpha · ftc`, and attends in each block to what that block made of the tokens before it.

use super::{
    Engine, Layer, Loaded, Observer, alphas,
    cache::Cache,
    head::{Head, Tokens},
    layer::Meeting,
    pack::RopeTables,
    passage::{Beside, Cached, Passage, PassageSpace},
    tree::Forest,
};
use crate::{
    Result,
    backend::{Backend, PartSums, Role, Rows, Sequence},
    metrics::RunningL1,
    model::ModelSpec,
    twin::{Branch, Twin},
};
use std::ops::Range;

/// What is computed of the pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    pub alpha: f64,
    /// The sums P and F too, whatever alpha is.
    pub contributions: bool,
}

impl Mix {
    fn needed(self) -> Twin<bool> {
        match self.contributions {
            true => Twin::new(true, true),
            false => alphas::needed(std::iter::once(self.alpha)),
        }
    }

    /// The branches whose blocks are computed at all.
    pub fn branches(self) -> &'static [Branch] {
        alphas::branches(self.needed())
    }
}

/// What is known after the last layer of a token that something may follow.
pub struct Next {
    /// Over the vocabulary.
    pub logits: Vec<f64>,
    /// Norms of P and F, if they are computed.
    pub contributions: Option<RunningL1>,
}

/// Rows that pass the layers together.
pub struct DecodePack<B: Backend> {
    x: B::Mat,
    /// Those that something may follow are asked for.
    passage: Passage<B>,
    /// Where the rows' keys and values go in the cache.
    places: Vec<usize>,
    contributions: Option<Contributions<B::Mat>>,
}

/// P and F of a pack's asked rows.
struct Contributions<M> {
    sums: PartSums<M>,
    norms: Vec<RunningL1>,
}

/// What a layer writes to besides the streams.
struct DecodeSpace<M> {
    passage: PassageSpace<M>,
    /// The asked rows of the streams before and after the blocks.
    asked_before: M,
    asked_after: Twin<M>,
}

impl<M> DecodeSpace<M> {
    fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec) -> Self {
        let stream = || backend.zeros(Rows::Context, Role::Stream, 0, spec.hidden_size);
        Self {
            passage: PassageSpace::new(backend, spec, Rows::Context),
            asked_before: stream(),
            asked_after: Twin::new(stream(), stream()),
        }
    }
}

/// A pair that decodes, with its cache.
pub struct Decoder<'e, 'a, B: Backend> {
    engine: &'e Engine<'a, B>,
    mix: Mix,
    head: Loaded<'e, Head<'a, B>>,
    pub cache: Cache<B::Mat>,
    pub ropes: RopeTables<'a>,
    space: DecodeSpace<B::Mat>,
}

impl<'e, 'a, B: Backend> Decoder<'e, 'a, B> {
    pub fn new(engine: &'e Engine<'a, B>, mix: Mix) -> Result<Self> {
        let (backend, spec) = (engine.backend, engine.weights.spec());
        Ok(Self {
            engine,
            mix,
            head: engine.head(Meeting::FewRows)?,
            cache: Cache::new(spec.ft),
            ropes: RopeTables::of(engine.weights),
            space: DecodeSpace::new(backend, spec.ft),
        })
    }

    /// The rows of a forest, whose keys and values go into the cache from `start` on; and each prompt's path there.
    pub fn forest(&self, forest: &Forest, start: usize) -> (DecodePack<B>, Vec<Vec<Range<usize>>>) {
        let cached = |sequence: Sequence| {
            let path = sequence.path.iter().map(|rows| rows.start + start..rows.end + start).collect();
            Sequence { path, ..sequence }
        };
        let all = |sequences: Vec<Sequence>| sequences.into_iter().map(cached).collect::<Vec<_>>();
        let (sequences, last) = (all(forest.sequences.clone()), all(forest.last_tokens()));
        let paths = last.iter().map(|sequence| sequence.path.clone()).collect();
        let places = (start..start + forest.rows()).collect();
        let passage =
            Passage::asking(self.engine.backend, forest.rows(), &sequences, forest.last_rows(), &last);
        (self.pack(&forest.token_ids, &forest.positions, places, passage), paths)
    }

    /// A row for each of some sequences, whose paths end with it: a token at a position.
    pub fn tokens(&self, token_ids: &[u32], sequences: &[Sequence]) -> DecodePack<B> {
        let positions: Vec<u32> = sequences.iter().map(|sequence| sequence.path_len() as u32 - 1).collect();
        let place = |sequence: &Sequence| sequence.path.last().map_or(0, |rows| rows.end - 1);
        let places = sequences.iter().map(place).collect();
        let passage = Passage::of_all(self.engine.backend, sequences.len(), sequences);
        self.pack(token_ids, &positions, places, passage)
    }

    fn pack(
        &self,
        token_ids: &[u32],
        positions: &[u32],
        places: Vec<usize>,
        passage: Passage<B>,
    ) -> DecodePack<B> {
        let Engine { backend, weights, .. } = self.engine;
        let rows = passage.rows_at_last();
        let zeros = || backend.zeros(Rows::Context, Role::Stream, rows, weights.spec().ft.hidden_size);
        let twin = || Twin::new(zeros(), zeros());
        let contributions = || Contributions {
            sums: PartSums { attention: twin(), mlp: twin() },
            norms: vec![RunningL1::default(); rows],
        };
        DecodePack {
            x: self.engine.embed(Rows::Context, token_ids, positions),
            contributions: self.mix.contributions.then(contributions),
            passage,
            places,
        }
    }

    /// Passes packs through all layers: what follows their asked rows, pack by pack.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`] when the observer stops the work; see also [`Backend::check`].
    pub fn pass(
        &mut self,
        mut packs: Vec<DecodePack<B>>,
        meeting: Meeting,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Next>>> {
        if packs.is_empty() {
            return Ok(Vec::new());
        }
        let Engine { backend, weights, .. } = self.engine;
        self.cache.fit(*backend);
        let layers = weights.spec().ft.num_hidden_layers;
        self.engine.each_layer(meeting, self.mix.branches(), |index, layer| {
            packs.iter_mut().try_for_each(|pack| {
                self.pass_layer(index, layer, pack);
                observer(pack.passage.rows as f64 / layers as f64)
            })
        })?;
        let next = |pack: DecodePack<B>| {
            let logits = self.head.logits(*backend, &pack.x, pack.passage.rows_at_last(), Tokens::All);
            let norms = pack.contributions.map(|contributions| contributions.norms);
            let contributions = |row: usize| norms.as_ref().map(|norms| norms[row]);
            let next = |(row, logits)| Next { logits, contributions: contributions(row) };
            logits.into_iter().enumerate().map(next).collect()
        };
        let next = packs.into_iter().map(next).collect();
        backend.check()?;
        Ok(next)
    }

    /// Passes a pack through a layer; from the last one its asked rows come alone.
    fn pass_layer(&mut self, index: usize, layer: &Layer<'_, B>, pack: &mut DecodePack<B>) {
        let Engine { backend, .. } = self.engine;
        let DecodePack { x, passage, places, contributions } = pack;
        let DecodeSpace { passage: space, asked_before, asked_after } = &mut self.space;
        space.fit(*backend, passage);
        let needed = layer.computes(self.mix.needed());
        for branch in alphas::branches(needed) {
            let cached = Cached { kept: self.cache.of(*backend, index, *branch), places };
            let beside = Beside { cached: Some(cached), ..Beside::default() };
            space.through(*backend, layer, *branch, passage, x, beside);
        }
        let after = &mut space.after;
        if let Some(Contributions { sums, norms }) = contributions {
            let (mut before, mut moved) = (&*x, &*after);
            if let Some(asked) = passage.asked() {
                let asked_of = |from: &B::Mat, to: &mut B::Mat| {
                    backend.resize(to, asked.len());
                    backend.gather(from, asked, to);
                };
                asked_of(x, asked_before);
                before = asked_before;
                // From the last layer they come alone.
                if !layer.is_last {
                    asked_of(&after.ft, &mut asked_after.ft);
                    if needed.pt {
                        asked_of(&after.pt, &mut asked_after.pt);
                    }
                    moved = asked_after;
                }
            }
            // Attention and MLP are not told apart: the whole layer counts as its MLP.
            let traced = backend.trace(before, Twin::new(before, before), layer.both(moved), sums);
            *norms = traced.iter().map(|l1| l1.whole).collect();
        }
        let Twin { pt, ft } = after;
        match self.mix.alpha {
            0.0 if needed.pt => std::mem::swap(x, pt),
            alpha => {
                if needed.pt && alpha != 1.0 {
                    backend.blend(pt, ft, alpha);
                }
                std::mem::swap(x, ft);
            }
        }
    }
}
