//! How experiments that know all their prompts beforehand go through them.

use super::rows::BatchLimits;
use crate::{Error, ErrorKind, Result, engine::Observer, output::Progress};
use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

/// Limits, progress, threads and the way to stop.
pub struct Batching<'a> {
    pub limits: BatchLimits,
    pub progress: &'a Progress,
    pub pool: &'a rayon::ThreadPool,
    /// Set from outside to stop the run.
    pub stop: &'a AtomicBool,
}

impl Batching<'_> {
    /// Computes a batch of `rows` rows on the pool's threads. Interrupted between two layers when asked to stop.
    pub fn compute<T: Send>(
        &self,
        rows: usize,
        prompts: &[&[u32]],
        work: impl FnOnce(Observer<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        self.progress.batch(rows as u64, prompts.iter().map(|prompt| prompt.len() as u64).sum());
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "stopped"));
        }
        self.pool.install(|| {
            work(&|tokens| {
                self.progress.advance(tokens);
                if self.stop.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        })
    }
}

/// Cuts rows, in order, into batches within the limits, whose tokens count `times` times.
pub fn split<'r, T>(
    rows: &'r [T],
    batching: &Batching<'_>,
    times: usize,
    tokens: impl Fn(&T) -> usize,
) -> Vec<&'r [T]> {
    let limits = batching.limits;
    let mut batches = Vec::new();
    let mut rest = rows;
    while !rest.is_empty() {
        let mut sum = 0;
        let fits = |row: &T| {
            sum += times * tokens(row);
            sum <= limits.tokens
        };
        let count = rest.iter().take(limits.prompts).map(fits).take_while(|fits| *fits).count().max(1);
        let (batch, later) = rest.split_at(count);
        batches.push(batch);
        rest = later;
    }
    batches
}
