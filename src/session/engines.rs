//! A pair with the engine that borrows it, whichever backend computes.

use crate::{
    Result,
    backend::Backend,
    checkpoint::Pair,
    engine::{Continued, Engine, Likelihood, Observer, Prompt, RowCount, Score, Split, Tokens, Trace},
    experiment::generate::{Completing, Text},
    job::Computer,
    prompt::Encoder,
    twin::Branch,
};
use self_cell::self_cell;

/// What an engine borrows.
pub struct Loaded {
    pub pair: Pair,
    pub computer: Computer,
}

/// What engines of all backends do; see the methods of [`Engine`].
pub trait Passes: Send + Sync {
    fn row_count(&self) -> RowCount<'_>;
    fn score(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Score>>;
    fn plain(&self, branch: Branch, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Vec<f64>>>;
    fn steer(
        &self,
        prompts: &[&[u32]],
        alphas: &[f64],
        tokens: Tokens<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Vec<f64>>>>;
    fn trace(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>>;
    fn likelihoods(
        &self,
        texts: &[Continued<'_>],
        alpha: f64,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Likelihood>>>;
    fn logits_of_parts(&self, split: &Split) -> Result<Split>;
    /// See [`Completing::complete`].
    fn complete(
        &self,
        prompts: &[Prompt<'_>],
        completing: &Completing,
        encoder: &Encoder,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Text>>>;
}

impl<B: Backend> Passes for Engine<'_, B, Pair> {
    fn row_count(&self) -> RowCount<'_> {
        self.row_count()
    }

    fn score(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Score>> {
        self.score(prompts, observer)
    }

    fn plain(&self, branch: Branch, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Vec<f64>>> {
        self.plain(branch, prompts, observer)
    }

    fn steer(
        &self,
        prompts: &[&[u32]],
        alphas: &[f64],
        tokens: Tokens<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        self.steer(prompts, alphas, tokens, observer)
    }

    fn trace(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<Trace>> {
        self.trace(prompts, observer)
    }

    fn likelihoods(
        &self,
        texts: &[Continued<'_>],
        alpha: f64,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Likelihood>>> {
        self.likelihoods(texts, alpha, observer)
    }

    fn logits_of_parts(&self, split: &Split) -> Result<Split> {
        self.logits_of_parts(split)
    }

    fn complete(
        &self,
        prompts: &[Prompt<'_>],
        completing: &Completing,
        encoder: &Encoder,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Text>>> {
        completing.complete(self, encoder, prompts, observer)
    }
}

type AnyEngine<'a> = Box<dyn Passes + 'a>;

self_cell!(
    /// The engine lives as long as what it borrows, so that a device keeps its weights from call to call.
    pub struct Engines {
        owner: Loaded,

        #[not_covariant]
        dependent: AnyEngine,
    }
);

/// Makes the engine of a pair.
pub fn start(loaded: Loaded) -> Engines {
    Engines::new(loaded, |Loaded { pair, computer }| match computer {
        Computer::Cpu(cpu) => Box::new(Engine::new(cpu, pair)),
        Computer::Reference(reference) => Box::new(Engine::new(reference, pair)),
        #[cfg(any(feature = "cuda", feature = "sim"))]
        Computer::Cuda(cuda) => Box::new(Engine::new(cuda.as_ref(), pair)),
    })
}
