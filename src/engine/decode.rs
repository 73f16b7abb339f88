//! Rows that pass the layers with a cache: first those of the prompts, then one row for each token that was chosen. Every
//! row is steered, `x + ptc + alpha · ftc`, and attends in each block to what that block made of the tokens before it.

use super::{
    Engine, Layer, Loaded, Observer,
    cache::Cache,
    head::{Head, Tokens},
    layer::Meeting,
    pack::RopeTables,
    passage::{Cached, Passage, PassageSpace},
    steer::branches_of,
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
    /// The branches whose blocks are computed at all.
    pub fn branches(self) -> &'static [Branch] {
        if self.contributions { &[Branch::Pt, Branch::Ft] } else { branches_of(&[self.alpha]) }
    }

    /// The branches whose blocks are computed in a layer: alpha 1 needs none of the base, alpha 0 none of the tuned model.
    fn needed<B: Backend>(self, layer: &Layer<'_, B>) -> Twin<bool> {
        let needs = |without: f64| self.contributions || self.alpha != without;
        if layer.same_block { Twin::new(false, true) } else { Twin::new(needs(1.0), needs(0.0)) }
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
pub struct Pack<B: Backend> {
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
struct Space<M> {
    passage: PassageSpace<M>,
    /// The streams after the blocks, and of those and the stream before them the asked rows.
    after: Twin<M>,
    asked_before: M,
    asked_after: Twin<M>,
}

impl<M> Space<M> {
    fn new<B: Backend<Mat = M>>(backend: &B, spec: &ModelSpec) -> Self {
        let stream = || backend.zeros(Rows::Context, Role::Stream, 0, spec.hidden_size);
        Self {
            passage: PassageSpace::new(backend, spec),
            after: Twin::new(stream(), stream()),
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
    space: Space<B::Mat>,
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
            space: Space::new(backend, spec.ft),
        })
    }

    /// The rows of a forest, whose keys and values go into the cache from `start` on; and each prompt's path there.
    pub fn forest(&self, forest: &Forest, start: usize) -> (Pack<B>, Vec<Vec<Range<usize>>>) {
        let cached = |sequence: Sequence| {
            let path = sequence.path.iter().map(|rows| rows.start + start..rows.end + start).collect();
            Sequence { path, ..sequence }
        };
        let all = |sequences: Vec<Sequence>| sequences.into_iter().map(cached).collect::<Vec<_>>();
        let (sequences, last) = (all(forest.sequences.clone()), all(forest.last_tokens()));
        let paths = last.iter().map(|sequence| sequence.path.clone()).collect();
        let places = (start..start + forest.rows()).collect();
        let positions = &forest.positions;
        (self.pack(&forest.token_ids, positions, places, &sequences, forest.last_rows(), &last), paths)
    }

    /// A row for each of some sequences, whose paths end with it: a token at a position.
    pub fn tokens(&self, token_ids: &[u32], sequences: &[Sequence]) -> Pack<B> {
        let positions: Vec<u32> = sequences.iter().map(|sequence| sequence.path_len() as u32 - 1).collect();
        let place = |sequence: &Sequence| sequence.path.last().map_or(0, |rows| rows.end - 1);
        let places = sequences.iter().map(place).collect();
        self.pack(token_ids, &positions, places, sequences, (0..sequences.len()).collect(), sequences)
    }

    fn pack(
        &self,
        token_ids: &[u32],
        positions: &[u32],
        places: Vec<usize>,
        sequences: &[Sequence],
        asked: Vec<usize>,
        asked_sequences: &[Sequence],
    ) -> Pack<B> {
        let Engine { backend, weights, .. } = self.engine;
        let spec = weights.spec().ft;
        let zeros = || backend.zeros(Rows::Context, Role::Stream, asked.len(), spec.hidden_size);
        let twin = || Twin::new(zeros(), zeros());
        let contributions = || Contributions {
            sums: PartSums { attention: twin(), mlp: twin() },
            norms: vec![RunningL1::default(); asked.len()],
        };
        Pack {
            x: self.engine.embed(Rows::Context, token_ids, positions),
            contributions: self.mix.contributions.then(contributions),
            passage: Passage {
                rows: token_ids.len(),
                layout: backend.layout(sequences),
                asked,
                asked_layout: backend.layout(asked_sequences),
            },
            places,
        }
    }

    /// Passes packs through all layers: what follows their asked rows, pack by pack.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`] when the observer stops the work; see also [`Backend::check`].
    pub fn pass(
        &mut self,
        mut packs: Vec<Pack<B>>,
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
        let next = |pack: Pack<B>| {
            let logits = self.head.logits(*backend, &pack.x, pack.passage.asked.len(), Tokens::All);
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
    fn pass_layer(&mut self, index: usize, layer: &Layer<'_, B>, pack: &mut Pack<B>) {
        let Engine { backend, .. } = self.engine;
        let Pack { x, passage, places, contributions } = pack;
        let Space { passage: space, after, asked_before, asked_after } = &mut self.space;
        space.fit(*backend, passage);
        let needed = self.mix.needed(layer);
        for branch in [Branch::Pt, Branch::Ft].into_iter().filter(|branch| *needed.get(*branch)) {
            let cached = Cached { kept: self.cache.of(*backend, index, branch), places };
            space.through(*backend, layer, branch, passage, x, after.get_mut(branch), Some(cached));
        }
        if let Some(Contributions { sums, norms }) = contributions {
            let asked_of = |from: &B::Mat, to: &mut B::Mat| {
                backend.resize(to, passage.asked.len());
                backend.gather(from, &passage.asked, to);
            };
            asked_of(x, asked_before);
            let after = if layer.is_last {
                layer.both(after)
            } else {
                asked_of(&after.ft, &mut asked_after.ft);
                if needed.pt {
                    asked_of(&after.pt, &mut asked_after.pt);
                }
                layer.both(asked_after)
            };
            // Attention and MLP are not told apart: the whole layer counts as its MLP.
            let before = Twin::new(&*asked_before, &*asked_before);
            let traced = backend.trace(asked_before, before, after, sums);
            *norms = traced.iter().map(|l1| l1.whole).collect();
        }
        let Twin { pt, ft } = after;
        match self.mix.alpha {
            _ if layer.same_block => std::mem::swap(x, ft),
            1.0 => std::mem::swap(x, ft),
            0.0 => std::mem::swap(x, pt),
            alpha => {
                backend.blend(pt, ft, alpha);
                std::mem::swap(x, ft);
            }
        }
    }
}
