//! What computes: a device with its threads.

use super::{
    holding::Holding,
    task::{Outcome, Ready, Task},
};
use crate::{Error, Result, engine::Observer, prompt::RowError};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Computes a batch at a time.
pub struct Worker<'a, T> {
    pub task: &'a T,
    pool: &'a rayon::ThreadPool,
    holding: Holding,
}

impl<'a, T: Sync> Worker<'a, T> {
    /// A worker for each device of a run.
    pub fn of_each(tasks: &'a [T], pools: &'a [rayon::ThreadPool]) -> Vec<Self> {
        let fitted = Arc::default();
        let worker = |(task, pool)| Self { task, pool, holding: Holding::of_run(Arc::clone(&fitted)) };
        tasks.iter().zip(pools).map(worker).collect()
    }

    /// Tells it of a row that an earlier run wrote, whose prompt needed room for so many tokens.
    pub fn note_written(&self, row: &Map<String, Value>, tokens: usize) {
        if !row.contains_key("error") {
            self.holding.note_fitted(tokens);
        }
    }

    /// Does something on its threads.
    pub fn install<D: Send>(&self, work: impl FnOnce(&T) -> D + Send) -> D {
        self.pool.install(|| work(self.task))
    }

    /// What comes of each prompt, see [`Holding::pass`].
    ///
    /// # Errors
    /// As [`Holding::pass`].
    pub fn in_parts<R: Sync, D: Send>(
        &self,
        prompts: &[R],
        tokens: impl Fn(&R) -> usize + Send,
        warn: &(dyn Fn(&str) + Sync),
        observer: Observer<'_>,
        pass: impl Fn(&T, &[R], Observer<'_>) -> Result<Vec<D>> + Sync,
    ) -> Result<Vec<Result<D>>> {
        let pass = |part: &[R], observer: Observer<'_>| pass(self.task, part, observer);
        self.pool.install(|| self.holding.pass(prompts, tokens, warn, observer, &pass))
    }
}

impl<T: Task> Worker<'_, T> {
    /// The outcomes of rows.
    ///
    /// # Errors
    /// Those that end the run; a row that the device's memory does not hold alone has an outcome that says so.
    pub fn outcomes(
        &self,
        rows: &[Ready<'_>],
        warn: &(dyn Fn(&str) + Sync),
        observer: Observer<'_>,
    ) -> Result<Vec<Outcome>> {
        let tokens = |row: &Ready<'_>| row.token_ids.len() + self.task.new_tokens();
        let outcomes = self.in_parts(rows, tokens, warn, observer, Task::compute)?;
        let too_large = |error: Error| Err(RowError::out_of_memory(error.message));
        let of_row = |outcome: Result<Outcome>| outcome.unwrap_or_else(too_large);
        Ok(outcomes.into_iter().map(of_row).collect())
    }
}
