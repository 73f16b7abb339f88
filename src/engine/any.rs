//! An engine of any backend, for those who need not know which: what asks is compiled once.

use super::{
    Completion, Continued, Engine, Generation, Likelihood, Listener, Observer, PackLimits, Prompt, RowCount,
    Score, Split, Tokens, Trace,
};
use crate::{
    Result,
    backend::{Backend, KernelTime},
    model::ModelSpec,
    twin::{Branch, Twin},
};

/// What engines do; see the methods of [`Engine`].
pub trait AnyEngine: Send + Sync {
    /// See [`Engine::with_limits`].
    fn set_limits(&mut self, limits: PackLimits);
    /// See [`Engine::with_prefix_sharing`].
    fn set_prefix_sharing(&mut self, prefix_sharing: bool);
    fn spec(&self) -> Twin<&ModelSpec>;
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
    fn generate(
        &self,
        prompts: &[Prompt<'_>],
        generation: &Generation,
        listener: Listener<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Completion>>>;
    /// See [`Backend::kernel_times`].
    fn kernel_times(&self) -> Result<Vec<KernelTime>>;
}

impl<B: Backend> AnyEngine for Engine<'_, B> {
    fn set_limits(&mut self, limits: PackLimits) {
        self.limits = limits;
    }

    fn set_prefix_sharing(&mut self, prefix_sharing: bool) {
        self.prefix_sharing = prefix_sharing;
    }

    fn spec(&self) -> Twin<&ModelSpec> {
        self.spec()
    }

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

    fn generate(
        &self,
        prompts: &[Prompt<'_>],
        generation: &Generation,
        listener: Listener<'_>,
        observer: Observer<'_>,
    ) -> Result<Vec<Vec<Completion>>> {
        self.generate(prompts, generation, listener, observer)
    }

    fn kernel_times(&self) -> Result<Vec<KernelTime>> {
        self.backend.kernel_times()
    }
}
