//! Steering: `x + ptc + alpha · ftc` on all rows, alpha 1 being the tuned model and 0 the base's blocks between the tuned
//! model's embedding and head.
//!
//! All rows pass both models' blocks as context rows (f32 on the CPU): logits are no small differences. Rows that only
//! some alphas need are computed for those: up to the first layer in which the models differ all alphas have one stream,
//! alpha 1 needs no block of the base, alpha 0 none of the tuned model, and of the last layer only the asked rows are
//! computed. Prompts that begin alike share the rows of that beginning (see [`tree`](super::tree)).

use super::{
    Engine, Layer, Observer,
    alphas::{branches, check_alphas, needed},
    head::Tokens,
    layer::Meeting,
    passage::{Beside, Passage, PassageSpace},
    tree::{Chosen, Forest, plant},
};
use crate::{
    Result,
    backend::{Backend, Role, Rows},
    twin::Twin,
};

/// A residual stream and the alphas that it is the stream of.
pub struct Stream<M> {
    pub x: M,
    /// As places in the caller's list.
    pub alphas: Vec<usize>,
}

/// Prompts and their streams.
pub struct SteerPack<B: Backend> {
    pub forest: Forest,
    pub passage: Passage<B>,
    /// Which of the asked rows each prompt has asked for, in the order of [`Forest::ends`].
    pub of_prompt: Vec<Vec<usize>>,
    pub streams: Vec<Stream<B::Mat>>,
}

impl<B: Backend> Engine<'_, B> {
    /// Logits of the token after each prompt under each of `alphas`: by alpha, then by prompt, then by token. The observer hears the
    /// prompts' tokens once, whatever the number of alphas.
    ///
    /// # Errors
    /// A usage error for an alpha that is negative or not finite, and for none; a checkpoint error where there is no head;
    /// [`ErrorKind::Interrupted`](crate::ErrorKind) when the observer stops the work.
    pub fn steer(
        &self,
        prompts: &[&[u32]],
        alphas: &[f64],
        tokens: Tokens<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let backend = self.backend;
        let head = self.head(Meeting::Packs)?;
        let packs = self.steered(prompts, alphas, &|prompt| prompts[prompt].len() - 1, observer)?;
        let mut logits = vec![vec![Vec::new(); prompts.len()]; alphas.len()];
        for SteerPack { forest, passage, of_prompt, streams } in packs {
            for Stream { x, alphas } in streams {
                let rows = head.logits(backend, &x, passage.rows_at_last(), tokens);
                for ((prompt, _), of_prompt) in forest.ends.iter().zip(&of_prompt) {
                    for alpha in &alphas {
                        logits[*alpha][*prompt] =
                            of_prompt.iter().flat_map(|row| rows[*row].clone()).collect();
                    }
                }
            }
        }
        backend.check()?;
        Ok(logits)
    }

    /// The streams of prompts after the last layer, of each those rows that begin with the position that `first` tells of it.
    ///
    /// # Errors
    /// As [`Engine::steer`], but for the head.
    pub(super) fn steered(
        &self,
        prompts: &[&[u32]],
        alphas: &[f64],
        first: &dyn Fn(usize) -> usize,
        observer: Observer<'_>,
    ) -> Result<Vec<SteerPack<B>>> {
        check_alphas(alphas)?;
        let backend = self.backend;
        let spec = self.weights.spec().ft;
        let forests = plant(prompts, self.limits.tokens, &mut self.ropes());
        let mut packs: Vec<SteerPack<B>> = {
            let embedded = |forest: Forest| {
                let x = self.embed(Rows::Context, &forest.token_ids, &forest.positions);
                let streams = vec![Stream { x, alphas: (0..alphas.len()).collect() }];
                let Chosen { rows: asked, sequences, of_prompt } = forest.rows_from(first);
                let passage = Passage::asking(backend, forest.rows(), &forest.sequences, asked, &sequences);
                SteerPack { forest, passage, of_prompt, streams }
            };
            forests.into_iter().map(embedded).collect()
        };
        let mut space = PassageSpace::new(backend, spec, Rows::Context);
        let layers = spec.num_hidden_layers as f64;
        let branches = branches(needed(alphas.iter().copied()));
        self.each_layer(Meeting::Packs, branches, |_, layer| {
            packs.iter_mut().try_for_each(|pack| {
                steer_layer(backend, layer, spec.hidden_size, alphas, pack, &mut space);
                observer(pack.forest.tokens as f64 / layers)
            })
        })?;
        Ok(packs)
    }
}

/// Passes a pack's streams through a layer; from the last one they come with the chosen rows only.
fn steer_layer<B: Backend>(
    backend: &B,
    layer: &Layer<'_, B>,
    hidden_size: usize,
    alphas: &[f64],
    pack: &mut SteerPack<B>,
    space: &mut PassageSpace<B::Mat>,
) {
    let SteerPack { passage, streams, .. } = pack;
    space.fit(backend, passage);
    let mut moved = Vec::with_capacity(streams.len());
    for Stream { mut x, alphas: places } in streams.drain(..) {
        let needed = layer.computes(needed(places.iter().map(|place| alphas[*place])));
        for branch in branches(needed) {
            space.through(backend, layer, *branch, passage, &x, Beside::default());
        }
        let Twin { pt, ft } = &mut space.after;
        if !needed.pt {
            std::mem::swap(&mut x, ft);
            moved.push(Stream { x, alphas: places });
            continue;
        }
        for place in places {
            let mut x = backend.zeros(Rows::Context, Role::Stream, 0, hidden_size);
            backend.resize(&mut x, passage.rows_after(layer));
            match alphas[place] {
                0.0 => backend.copy(pt, &mut x),
                alpha => {
                    backend.copy(ft, &mut x);
                    if alpha != 1.0 {
                        backend.blend(pt, &mut x, alpha);
                    }
                }
            }
            moved.push(Stream { x, alphas: vec![place] });
        }
    }
    *streams = moved;
}
